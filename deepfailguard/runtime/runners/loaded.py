"""A version that was loaded and can be asked, wherever that is."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.errors import DeepfailguardError, VersionError
from deepfailguard.guard.asking import Answers, ask, no_answers
from deepfailguard.guard.calibrating import estimator_for
from deepfailguard.runtime.base import Question, Source
from deepfailguard.runtime.checksums import WeightRotation
from deepfailguard.versions.version import Version

__all__ = ["LoadedVersion"]


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """A version in evaluation mode with what it is asked with.

    Attributes:
        version: of sound weights when it was loaded.
        estimator: tells boundary distances; None if nobody needs them.
        rotation: compares the weights with what they were then.
    """

    version: Version
    estimator: DistanceEstimator | None
    rotation: WeightRotation

    @classmethod
    def load(cls, name: str, source: Source, distance: DistanceEstimator | None, cache: Path | None) -> Self:
        """Load a version from its source.

        Raises:
            DeepfailguardError: it cannot be loaded; the text is the source's own where that says what to do.
        """
        try:
            version = replace(source.load(), name=name)
            version.model.eval()
            return cls(version, estimator_for(version, distance, cache), WeightRotation(version.model))
        except DeepfailguardError:
            raise
        except BaseException as error:  # even what would end the process: anybody's code is imported and called here
            raise VersionError(f"version {name!r} cannot be loaded: {type(error).__name__}: {error}") from error

    def ask(self, question: Question) -> Answers:
        """Its answers; whatever the model does is told in their health."""
        estimator = self.estimator if question.measured else None
        try:
            return ask(self.version, estimator, question.images, question.needs)
        except BaseException as error:  # `sys.exit()` in a model, say
            told = f"{type(error).__name__}: {error}"
            return no_answers(self.version.name, self.version.classes, len(question.images), told, "exception")
