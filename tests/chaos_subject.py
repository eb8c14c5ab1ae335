"""A small guard of versions that can be broken, for tests of what the chaos benchmark is made of."""

from functools import partial
from pathlib import Path

from benchmarks.mishaps.loading import Habits
from benchmarks.mishaps.references import References
from benchmarks.mishaps.service import Plan
from benchmarks.mishaps.subjects import Subject, with_switches
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from deepfailguard.runtime.settings import Settings
from tests.examples import bars, template_model

NAMES = ("ann", "bob", "eve")
SETTINGS = Settings(first_probe=0.02, longest_probe=0.2, watch=False, upkeep_share=0.5)
HABITS = Habits(clients=2, batch=8, deadlines=(20.0, 30.0), pause=0.002)


def small_subject(folder: Path) -> Subject:
    plans = tuple(partial(template_model, seed, 0.1) for seed in range(len(NAMES)))
    folder.mkdir(parents=True, exist_ok=True)
    guard = GuardedPredictor.fit(
        with_switches(plans, folder, NAMES), bars(100, seed=3, noise=0.4), predictor=SoftVotePredictor()
    )
    guard.save(folder / "guard")
    images = bars(40, seed=9, noise=0.4)
    return Subject(guard, folder / "guard", plans, images.images, images.labels)


def small_plan(folder: Path) -> Plan:
    subject = small_subject(folder / "subject")
    references = References(subject.guard, subject.images, folder)
    return Plan(subject, references, folder / "run", seed=1, habits=HABITS, settings=SETTINGS)
