from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.errors import EmptyReceiptError, FaultError, FaultNotApplicableError
from deepfailguard.faults.base import ActsOn
from deepfailguard.faults.inject import inject, inject_all
from deepfailguard.faults.numbers import fault_number_names
from deepfailguard.faults.receipts import receipt_of
from deepfailguard.faults.test_data import NoisyInputs
from deepfailguard.faults.training_data import LabelNoise, MisscaledInputs, TooLittleData
from deepfailguard.faults.weights import BitFlips
from deepfailguard.seeding import derive_seed
from deepfailguard.types import Change, Receipt


@dataclass(frozen=True, slots=True)
class Liar:
    """Claims a change that it did not make."""

    name: ClassVar[str] = "liar"
    acts_on: ClassVar[ActsOn] = "training_data"
    number: ClassVar[int | None] = None

    def apply(self, target: Splits, seed: int) -> tuple[Splits, Receipt]:
        same = ImageSet(target.train.images.clone(), target.train.labels.clone())
        return target.with_parts(train=same), receipt_of(self, seed, [Change("train", "a", "b")])


@dataclass(frozen=True, slots=True)
class Trespasser:
    """Calls itself a fault of training data but changes test images."""

    name: ClassVar[str] = "trespasser"
    acts_on: ClassVar[ActsOn] = "training_data"
    number: ClassVar[int | None] = None

    def apply(self, target: Splits, seed: int) -> tuple[Splits, Receipt]:
        return NoisyInputs().apply(target, seed)[0], receipt_of(self, seed, [Change("test", "a", "b")])


@dataclass(frozen=True, slots=True)
class Borrower:
    """Hands over the receipt of another fault."""

    name: ClassVar[str] = "borrower"
    acts_on: ClassVar[ActsOn] = "training_data"
    number: ClassVar[int | None] = None

    def apply(self, target: Splits, seed: int) -> tuple[Splits, Receipt]:
        return LabelNoise().apply(target, seed)


def test_the_fault_gets_a_seed_of_its_own(splits: Splits) -> None:
    injected = inject(LabelNoise(), splits, seed=7)
    own = derive_seed(7, "fault", "label_noise")
    assert injected.receipt.seed == own
    assert torch.equal(injected.target.train.labels, LabelNoise().apply(splits, own)[0].train.labels)


def test_faults_are_applied_in_order_each_to_what_the_last_one_left(splits: Splits) -> None:
    injected = inject_all([TooLittleData(0.5), LabelNoise(0.2), MisscaledInputs()], splits, seed=0)
    assert [receipt.fault for receipt in injected.receipts] == ["too_little_data", "label_noise", "misscaled_inputs"]
    assert len(injected.target.train) == 50
    # A fifth of the 50 that were left, not of the 100 there were.
    assert injected.receipts[1].changes[0].count == 10
    assert injected.target.test is splits.test


def test_no_fault_leaves_the_target_as_it_is(splits: Splits) -> None:
    injected = inject_all([], splits, seed=0)
    assert injected.target is splits
    assert injected.receipts == ()


def test_the_same_fault_twice_draws_anew(cnn: nn.Module) -> None:
    twice = inject_all([BitFlips(count=20)] * 2, cnn, seed=0)
    first, second = twice.receipts
    assert first.seed != second.seed
    before, after = (nn.utils.parameters_to_vector(model.parameters()) for model in (cnn, twice.target))
    assert (before.view(torch.int32) != after.view(torch.int32)).sum() > 20


def test_a_fault_refuses_a_target_of_another_kind(splits: Splits) -> None:
    with pytest.raises(FaultNotApplicableError, match="acts on weights and expects Module, got Splits"):
        inject(BitFlips(), splits, seed=0)  # type: ignore[arg-type]


def test_a_receipt_that_lies_is_found_out(splits: Splits) -> None:
    with pytest.raises(EmptyReceiptError, match="'liar' returned a target equal to the one it was given"):
        inject(Liar(), splits, seed=0)


def test_a_fault_of_training_data_must_not_touch_test_data(splits: Splits) -> None:
    with pytest.raises(FaultError, match="'trespasser' acts on training_data but changed the test part"):
        inject(Trespasser(), splits, seed=0)


def test_a_receipt_of_another_fault_is_refused(splits: Splits) -> None:
    with pytest.raises(FaultError, match="'borrower' returned a receipt of 'label_noise'"):
        inject(Borrower(), splits, seed=0)


def test_the_paper_has_twelve_faults_of_different_names() -> None:
    assert list(fault_number_names) == list(range(1, 13))
    assert len(set(fault_number_names.values())) == 12
