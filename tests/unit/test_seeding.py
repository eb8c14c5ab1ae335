"""Random numbers for threads: torch's own way to keep a generator's state can stop the program."""

import gc
import threading

import torch

from deepfailguard.seeding import random_state_kept, seed_default, seed_everything


def test_threads_that_keep_the_state_do_not_stop_one_another() -> None:
    """Torch's `fork_rng` in two threads deadlocks when the collector runs in between: here it always runs."""
    before = torch.get_rng_state()
    thresholds = gc.get_threshold()

    def keep() -> None:
        for _ in range(200):
            with random_state_kept([]):
                seed_default(0)
                torch.rand(2)

    threads = [threading.Thread(target=keep, daemon=True) for _ in range(4)]
    gc.set_threshold(1, 1, 1)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120.0)
    finally:
        gc.set_threshold(*thresholds)
    assert not any(thread.is_alive() for thread in threads)
    assert torch.get_rng_state().shape == before.shape


def test_the_state_is_given_back_after_an_error() -> None:
    seed_everything(3, "test")
    before = torch.get_rng_state()
    try:
        with random_state_kept():
            torch.rand(5)
            raise ArithmeticError
    except ArithmeticError:
        pass
    assert torch.equal(torch.get_rng_state(), before)
