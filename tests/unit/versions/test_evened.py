"""Batches of few sizes: kernels need not be made for each."""

import torch
from torch import Tensor, nn

from deepfailguard.guard.asking import ask
from deepfailguard.types import Bounds
from deepfailguard.versions.stability import stability
from deepfailguard.versions.version import Version, evened


class Sizes(nn.Module):
    """Two classes, by the mean pixel; keeps the sizes of the batches that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        self.seen: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(len(x))
        logits: Tensor = self.head(x.flatten(1).mean(1, keepdim=True))
        return logits


def test_there_are_few_sizes_and_little_is_added() -> None:
    sizes = {len(evened(torch.zeros(count, 1))) for count in range(1, 65)}
    assert len(sizes) <= 14
    for count in range(1, 600):
        filled = evened(torch.arange(float(count))[:, None])
        assert len(filled) <= 1.25 * count + 4
        assert filled[:count, 0].tolist() == list(range(count))


def test_a_version_is_asked_batches_of_few_sizes_and_answers_for_each_input() -> None:
    model = Sizes()
    version = Version.of(model, "sizes", 2, Bounds())
    images = torch.rand(64, 1, 4, 4)
    whole = ask(version, None, images, frozenset({"features", "stability"}))
    model.seen.clear()
    for count in range(1, 65):
        answers = ask(version, None, images[:count], frozenset({"features", "stability"}))
        assert answers.health.answered == count
        assert torch.allclose(answers.logits, whole.logits[:count])
        assert torch.allclose(answers.features, whole.features[:count])
        assert answers.stability is not None
        assert whole.stability is not None
        assert torch.allclose(answers.stability, whole.stability[:count])
    assert len(model.seen) <= 14


def test_stability_of_an_odd_number_of_images_is_that_of_each() -> None:
    model, images, labels = Sizes(), torch.rand(11, 1, 4, 4), torch.zeros(11, dtype=torch.int64)
    alone = [stability(model, images[n : n + 1], labels[n : n + 1], Bounds()) for n in range(11)]
    assert torch.allclose(stability(model, images, labels, Bounds()), torch.cat(alone))
