"""Making versions of the models that a guard is given."""

import pytest

from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.types import Bounds
from deepfailguard.versions.version import Version
from tests.examples import CLASSES, bars, template_model


def test_versions_are_named_by_the_mapping_and_take_inputs_in_its_bounds() -> None:
    same = {name: Version.of(template_model(seed), "x", CLASSES) for seed, name in enumerate(("a", "b"))}
    guard = GuardedPredictor.fit(same, bars(40, seed=3))
    assert guard.saved.card.names == ("a", "b")
    assert [health.name for health in guard(bars(2, seed=4).images).health] == ["a", "b"]
    with pytest.raises(ConfigurationError, match="versions need different names, several are called x"):
        GuardedPredictor.fit(list(same.values()), bars(40, seed=3))
    wide = Version.of(template_model(0), "wide", CLASSES, Bounds(-1, 1))
    with pytest.raises(ConfigurationError, match=r"'wide' takes inputs in \[-1, 1\], .* pass bounds=Bounds\(-1, 1\)"):
        GuardedPredictor.fit([wide], bars(40, seed=3))
    assert GuardedPredictor.fit([wide], bars(40, seed=3), bounds=Bounds(-1, 1)).versions[0].bounds == Bounds(-1, 1)
