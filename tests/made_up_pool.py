"""A made-up pool for the tests of the benchmarks: versions whose logits are the truth and noise."""

import torch

from benchmarks.decisions.evidence import PoolEvidence, Said
from benchmarks.decisions.images import CALIBRATION, TEST, Part, rehearsed_part
from benchmarks.decisions.pools import Member
from deepfailguard.data.base import ImageSet
from deepfailguard.faults.rehearsal import KINDS
from deepfailguard.seeding import generator

CLASSES = 3


def pool_evidence(
    purpose: str, versions: int, sizes: tuple[int, int], strength: float = 2.0, others: tuple[str, ...] = ()
) -> PoolEvidence:
    """What versions say of calibration, test and rehearsed images.

    Args:
        purpose: another one, other numbers.
        versions: how many.
        sizes: calibration images, and images of every other part.
        strength: of the truth in the logits; the noise has deviation 1.
        others: further parts.
    """
    parts, said = {}, {}
    for name in (CALIBRATION, TEST, *others, *map(rehearsed_part, KINDS)):
        random, count = generator(0, purpose, name), sizes[name != CALIBRATION]
        labels = torch.randint(CLASSES, (count,), generator=random)
        source = torch.arange(count) if name.startswith("rehearsed") else None
        parts[name] = Part(ImageSet(torch.rand(count, 1, 2, 2, generator=random), labels), source)
        truth = torch.nn.functional.one_hot(labels, CLASSES)
        logits = [strength * truth + torch.randn(count, CLASSES, generator=random) for _ in range(versions)]
        distances = count if name in (CALIBRATION, TEST) else 0
        said[name] = tuple(Said(x, x, x.amax(1).abs()[:distances], torch.ones(distances).bool()) for x in logits)
    members = tuple(Member(f"family{number}", None) for number in range(versions))
    return PoolEvidence("digits", 107, members, tuple("abcdefgh"[:versions]), parts, said)
