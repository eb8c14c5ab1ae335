"""The command `deepfailguard`, also as ``python -m deepfailguard.cli.main``."""

import argparse
import sys
from collections.abc import Callable, Sequence

import deepfailguard
from deepfailguard.cli.serve import add_serve
from deepfailguard.cli.signing import add_signing

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 if it did what it should, 1 if it could not, 2 if asked wrong.

    Args:
        argv: arguments; those of the process if None.
    """
    parser = argparse.ArgumentParser(
        "deepfailguard", description="Several versions of a classifier that answer as one."
    )
    parser.add_argument("--version", action="version", version=f"deepfailguard {deepfailguard.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_serve(commands)
    add_signing(commands)
    arguments = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
