"""N-version fault-tolerant inference for deep-learning systems.

    from deepfailguard.guard.guarded import GuardedPredictor

Import everything from the module that defines it; this package root imports nothing.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
