"""A small network that was really trained, for tests of what training makes of a model."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from tests.examples import CLASSES, TinyNet, bars


@functools.cache
def trained_on_bars() -> nn.Module:
    """A `TinyNet` after two hundred steps; every caller gets the same module and must leave it as it is."""
    data = bars(400, seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TinyNet().build(CLASSES)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(50):
            for index in torch.randperm(len(data)).split(100):
                loss = F.cross_entropy(model(data.images[index]), data.labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()
