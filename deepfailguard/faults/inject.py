"""The one way to apply faults: each with a seed of its own, and checked afterwards."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import nn

from deepfailguard.data.base import Splits
from deepfailguard.errors import EmptyReceiptError, FaultError, FaultNotApplicableError
from deepfailguard.faults.base import ActsOn, Fault
from deepfailguard.identity import describe, weights_fingerprint
from deepfailguard.seeding import derive_seed
from deepfailguard.types import Receipt
from deepfailguard.versions.spec import VersionSpec

__all__ = ["Injected", "InjectedAll", "inject", "inject_all"]

T = TypeVar("T")

_TARGETS: dict[ActsOn, type] = {
    "training_data": Splits,
    "test_data": Splits,
    "program": VersionSpec,
    "weights": nn.Module,
}
# What each kind of data fault must leave alone, so that figures on these parts stay honest.
_KEPT_PARTS: dict[ActsOn, tuple[str, ...]] = {"training_data": ("test",), "test_data": ("train", "calibration")}
_PARTS = ("train", "calibration", "test")


@dataclass(frozen=True, slots=True)
class Injected(Generic[T]):
    """A target with a fault.

    Attributes:
        target: the changed copy.
        receipt: what was changed in it.
    """

    target: T
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class InjectedAll(Generic[T]):
    """A target with several faults.

    Attributes:
        target: the changed copy; the target itself where no fault was asked for.
        receipts: what each fault changed, in the order of their application.
    """

    target: T
    receipts: tuple[Receipt, ...]


def inject(fault: Fault[T], target: T, seed: int, occurrence: int = 0) -> Injected[T]:
    """Apply a fault and check that it did what it says.

    Args:
        fault: what to do.
        target: `Splits`, a `VersionSpec` or an `nn.Module`, as `fault.acts_on` says; never changed itself.
        seed: of the experiment; the fault gets one of its own, derived from it and the fault's name.
        occurrence: how often a fault of this name was applied before, so that a second one draws anew
            (the same bits flipped twice would be no fault).

    Raises:
        FaultNotApplicableError: the fault acts on another kind of target.
        EmptyReceiptError: nothing was changed, whatever the receipt says.
        FaultError: the receipt is another fault's, or a part was changed that had to stay.
    """
    _check_target(fault, target)
    purpose = (fault.name,) if occurrence == 0 else (fault.name, occurrence)
    changed, receipt = fault.apply(target, derive_seed(seed, "fault", *purpose))
    if receipt.fault != fault.name:
        raise FaultError(f"fault {fault.name!r} returned a receipt of {receipt.fault!r}; its apply must name itself")
    if not _differs(target, changed):
        raise EmptyReceiptError(
            f"fault {fault.name!r} returned a target equal to the one it was given, though its receipt says: {receipt}"
        )
    _check_kept_parts(fault, target, changed)
    return Injected(changed, receipt)


def inject_all(faults: Sequence[Fault[T]], target: T, seed: int) -> InjectedAll[T]:
    """Apply faults one after the other, each to what the one before it left."""
    receipts: list[Receipt] = []
    seen: Counter[str] = Counter()
    for fault in faults:
        injected = inject(fault, target, seed, occurrence=seen[fault.name])
        target = injected.target
        receipts.append(injected.receipt)
        seen[fault.name] += 1
    return InjectedAll(target, tuple(receipts))


def _check_target(fault: Fault[Any], target: object) -> None:
    expected = _TARGETS[fault.acts_on]
    if not isinstance(target, expected):
        raise FaultNotApplicableError(
            f"fault {fault.name!r} acts on {fault.acts_on} and expects {expected.__name__}, "
            f"got {type(target).__name__}; apply it at that stage"
        )


def _differs(before: object, after: object) -> bool:
    if isinstance(before, Splits) and isinstance(after, Splits):
        return any(_part_differs(before, after, part) for part in _PARTS)
    if isinstance(before, VersionSpec) and isinstance(after, VersionSpec):
        # The names of the faults are for people; what counts is what the version is made of.
        return _ingredients(before) != _ingredients(after)
    if isinstance(before, nn.Module) and isinstance(after, nn.Module):
        return weights_fingerprint(before) != weights_fingerprint(after)
    return True


def _ingredients(spec: VersionSpec) -> tuple[Any, ...]:
    return describe(spec.architecture), spec.recipe, spec.seed, spec.dataset


def _part_differs(before: Splits, after: Splits, part: str) -> bool:
    old, new = getattr(before, part), getattr(after, part)
    return old is not new and old.fingerprint != new.fingerprint


def _check_kept_parts(fault: Fault[Any], before: object, after: object) -> None:
    if not (isinstance(before, Splits) and isinstance(after, Splits)):
        return
    for part in _KEPT_PARTS[fault.acts_on]:
        if _part_differs(before, after, part):
            raise FaultError(
                f"fault {fault.name!r} acts on {fault.acts_on} but changed the {part} part; "
                "figures on it would no longer mean what they say"
            )
