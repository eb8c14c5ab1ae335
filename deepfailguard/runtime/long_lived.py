"""What a process that answers for days does once, when it has started."""

import gc

__all__ = ["freeze_objects"]


def freeze_objects() -> None:
    """Let the collector of garbage leave alone what there is now.

    It looks at all objects now and then, those of torch's modules among them: measured, requests then waited 80 ms.
    """
    gc.collect()
    gc.freeze()
