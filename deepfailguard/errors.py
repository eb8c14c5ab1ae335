"""Every error that deepfailguard raises on purpose.

    DeepfailguardError
    ├── ConfigurationError (ValueError)        a setting that cannot work
    ├── NotFittedError (RuntimeError)          asked before it was fitted
    ├── DataError
    │   ├── DataNotFoundError (FileNotFoundError)   a data set that is not on disk
    │   ├── DataFormatError (ValueError)            wrong shape, dtype, range, NaN
    │   └── SplitOverlapError (ValueError)          the same image in two splits
    ├── VersionError
    │   ├── VersionNotFoundError (LookupError)      no such version in the pool
    │   ├── AmbiguousVersionError (LookupError)     several versions bear the name
    │   ├── TrainingDivergedError (ArithmeticError) the loss is no longer finite
    │   ├── WrongOutputError (ValueError)           not finite logits of shape (B, classes)
    │   └── VersionLostError (ConnectionError)      what runs a version died
    ├── FaultError
    │   ├── EmptyReceiptError (ValueError)          a fault that changed nothing
    │   └── FaultNotApplicableError (ValueError)    a fault that does not fit its target
    ├── StoreError
    │   ├── CorruptFileError (ValueError)           a checksum that does not match
    │   └── SignatureError (ValueError)             a signature that is missing or not the expected one
    ├── CacheMissError (LookupError)           evidence that was never computed
    └── GuardLostError (ConnectionError)       the process of a served guard died

Each says what was expected, what came and what to do. Leaves also inherit the builtin that they
resemble, so that ``except FileNotFoundError`` works for those who do not know this tree.
"""

__all__ = [
    "AmbiguousVersionError",
    "CacheMissError",
    "ConfigurationError",
    "CorruptFileError",
    "DataError",
    "DataFormatError",
    "DataNotFoundError",
    "DeepfailguardError",
    "EmptyReceiptError",
    "FaultError",
    "FaultNotApplicableError",
    "GuardLostError",
    "NotFittedError",
    "SignatureError",
    "SplitOverlapError",
    "StoreError",
    "TrainingDivergedError",
    "VersionError",
    "VersionLostError",
    "VersionNotFoundError",
    "WrongOutputError",
]


class DeepfailguardError(Exception):
    """Root of the tree: catches everything that deepfailguard raises on purpose."""


class ConfigurationError(DeepfailguardError, ValueError):
    """A setting that cannot work."""


class NotFittedError(DeepfailguardError, RuntimeError):
    """An object was asked before it was fitted."""


class DataError(DeepfailguardError):
    """Something is wrong with the data."""


class DataNotFoundError(DataError, FileNotFoundError):
    """A data set is not on disk."""


class DataFormatError(DataError, ValueError):
    """Data have the wrong shape, dtype or range, or are not finite."""


class SplitOverlapError(DataError, ValueError):
    """The same images stand in two splits."""


class VersionError(DeepfailguardError):
    """Something is wrong with a version."""


class VersionNotFoundError(VersionError, LookupError):
    """The pool has no such version."""


class AmbiguousVersionError(VersionError, LookupError):
    """Several versions of the pool bear the name that was asked for."""


class TrainingDivergedError(VersionError, ArithmeticError):
    """A training's loss is no longer finite."""


class WrongOutputError(VersionError, ValueError):
    """A version did not return finite logits of shape (B, classes)."""


class VersionLostError(VersionError, ConnectionError):
    """The process (or the machine) that runs a version died."""


class FaultError(DeepfailguardError):
    """Something is wrong with a fault."""


class EmptyReceiptError(FaultError, ValueError):
    """A fault changed nothing."""


class FaultNotApplicableError(FaultError, ValueError):
    """A fault does not fit what it was applied to."""


class StoreError(DeepfailguardError):
    """A file could not be written or read as it should be."""


class CorruptFileError(StoreError, ValueError):
    """A file's content does not match its checksum."""


class SignatureError(StoreError, ValueError):
    """Files are not signed, or not by whom they should be."""


class CacheMissError(DeepfailguardError, LookupError):
    """Evidence was asked of a cache that never saw the input."""


class GuardLostError(DeepfailguardError, ConnectionError):
    """The process of a guard that is served died."""
