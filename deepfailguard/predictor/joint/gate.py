"""How much an input looks like one that was changed, rather than like a calibration input."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from deepfailguard.predictor.joint.opinions import Opinions

__all__ = ["Gate", "fit_gate", "signs"]

_SMALLEST: Final = 1e-6
_CHANGED: Final = 1 / 3  # changed inputs for each usual one in service: more would cost usual inputs more than it gains


@dataclass(frozen=True, slots=True)
class Gate:
    """A logistic regression on the signs of S kinds.

    Attributes:
        mean: (S,) float64, of the signs.
        scale: (S,) float64 > 0.
        slope: (S,) float64, of the standardised signs.
        offset: () float64.
    """

    mean: Tensor
    scale: Tensor
    slope: Tensor
    offset: Tensor

    def __call__(self, opinions: Opinions) -> Tensor:
        """(B,) float64 in (0, 1): the probability of a changed input, where a quarter of the inputs are changed ones.

        A version that has no say counts as usual: that it is missing says nothing of the input.
        """
        standard = torch.where(_known(opinions), (signs(opinions) - self.mean) / self.scale, 0.0)
        return (standard @ self.slope + self.offset).sigmoid()


def signs(opinions: Opinions) -> Tensor:
    """What may tell a changed input: (B, 3 N + 2) float64.

    Of each version how strange its features are, how sure it is and how far its second opinion differs; of all
    together the entropy of the mean answer and the share of pairs that disagree.
    """
    own, second = opinions.own.softmax(2), opinions.second.softmax(2)
    entropy = torch.special.entr(opinions.plain.softmax(1)).sum(1, keepdim=True)
    labels, both = own.argmax(2), opinions.heard[:, :, None] & opinions.heard[:, None, :]
    differ = (labels[:, :, None] != labels[:, None, :]) & both
    apart = (differ.sum((1, 2)) / both.sum((1, 2)).clamp_min(1))[:, None]
    return torch.cat([opinions.strangeness, own.amax(2), (own - second).abs().sum(2), entropy, apart], 1)


def _known(opinions: Opinions) -> Tensor:
    """(B, 3 N + 2) bool, which of the signs tell anything."""
    anybody = opinions.heard.any(1, keepdim=True)
    return torch.cat([opinions.heard.repeat(1, 3), anybody, anybody], 1)


def fit_gate(usual: Opinions, changed: Opinions) -> Gate:
    """Learn to tell changed inputs from usual ones."""
    from sklearn.linear_model import LogisticRegression  # heavy: only who fits pays for it

    both = torch.cat([signs(usual), signs(changed)])
    known = torch.cat([_known(usual), _known(changed)])
    count = known.sum(0).clamp_min(1)
    mean = torch.where(known, both, 0.0).sum(0) / count
    spread = (torch.where(known, both - mean, 0.0).square().sum(0) / count).sqrt()
    scale = torch.where(spread > _SMALLEST, spread, 1.0)
    standard = torch.where(known, (both - mean) / scale, 0.0)
    target = torch.cat([torch.zeros(len(usual.own)), torch.ones(len(changed.own))])
    model = LogisticRegression(max_iter=200).fit(standard.cpu().numpy(), target.numpy())
    slope, offset = torch.from_numpy(model.coef_[0]), torch.tensor(float(model.intercept_[0]), dtype=torch.float64)
    # The regression knows how many of its inputs were changed; in service nobody does.
    odds = torch.tensor(_CHANGED * len(usual.own) / len(changed.own), dtype=torch.float64)
    return Gate(mean, scale, slope, offset + odds.log())
