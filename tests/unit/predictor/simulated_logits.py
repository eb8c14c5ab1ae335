"""Evidence with logits of which everything is known."""

import torch
from torch import Tensor

from deepfailguard.seeding import generator
from deepfailguard.types import Evidence


def evidence_of(logits: Tensor, features: tuple[Tensor, ...] | None = None) -> Evidence:
    """Evidence whose labels are where the logits (B, N, K) are largest; no distance was found."""
    labels = logits.argmax(2)
    unfound = torch.zeros(labels.shape, dtype=torch.bool)
    return Evidence(labels, torch.zeros(labels.shape), unfound, logits.float(), features)


def simulated(
    inputs: int, strengths: tuple[float, ...], classes: int = 4, purpose: str = "calibration"
) -> tuple[Evidence, Tensor]:
    """Versions whose logits are the exact log-posteriors of what each saw: a class's centre plus normal noise.

    A version of strength s sees s times a one-hot vector plus standard normal noise, so s times what it sees are the
    logits of the true posterior; what the versions see is independent given the class.
    """
    random = generator(0, "simulated", purpose)
    truth = torch.randint(0, classes, (inputs,), generator=random)
    seen = torch.randn(inputs, len(strengths), classes, generator=random, dtype=torch.float64)
    strength = torch.tensor(strengths, dtype=torch.float64)[:, None]
    seen += strength * torch.nn.functional.one_hot(truth, classes)[:, None]
    features = tuple(seen.float().unbind(1))
    return evidence_of(seen * strength, features), truth
