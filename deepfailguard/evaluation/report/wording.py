"""What the guard did, in sentences that stay honest when it did not help."""

from deepfailguard.evaluation.intervals import Interval
from deepfailguard.evaluation.measures import EnsembleMeasures
from deepfailguard.evaluation.report.figures import percent, percents, points

__all__ = ["headline", "remark_on_abstentions", "remark_on_best_single", "remark_on_chance", "remark_on_changes"]


def headline(measures: EnsembleMeasures) -> str:
    """The evaluation in one sentence."""
    guard, majority = percents([measures.guard, measures.majority])
    if len(measures.version_accuracy) == 1:
        return f"With a single version there is nothing to choose: it answers {guard} right, with the guard or without."
    if measures.guard < measures.majority:
        return f"The guard answers {guard} right, majority vote {majority}: on these inputs the guard does harm."
    if measures.rescue_share is None:
        return f"The guard answers {guard} right, as majority vote does; no choice among these versions does better."
    if measures.guard == measures.majority:
        return f"The guard answers {guard} right, neither more nor less than majority vote: it adds nothing here."
    return (
        f"The guard answers {guard} right, majority vote {majority}; it recovers "
        f"{percent(measures.rescue_share, 0)} of what a perfect choice among these versions could add."
    )


def remark_on_chance(over_majority: Interval) -> str:
    """How sure the difference between guard and majority vote is."""
    if over_majority.estimate == 0:
        return f"Guard and majority vote are right equally often ({_range(over_majority)})."
    luck = "that is hardly chance" if over_majority.excludes_zero else "that may be chance"
    gap = f"{points(over_majority.estimate)} points ({_range(over_majority)})"
    return f"Against majority vote the guard stands at {gap}; {luck}."


def remark_on_changes(measures: EnsembleMeasures) -> str:
    """How often the guard corrects the vote and how often it spoils it."""
    return (
        f"Of {measures.inputs} inputs, the guard corrects the vote on {measures.revised or 'none'} "
        f"and spoils it on {measures.broken or 'none'}."
    )


def remark_on_best_single(name: str, measures: EnsembleMeasures, over_best_single: Interval) -> str:
    """Whether one version alone would have done as well."""
    guard, single = percents([measures.guard, measures.best_single])
    alone = f"{name}, the version that was best on calibration data, alone answers {single} right"
    if measures.guard == measures.best_single:
        return f"{alone}, just as many as the guard."
    against = f"the guard {guard} ({points(over_best_single.estimate)} points, {_range(over_best_single)})"
    luck = "" if over_best_single.excludes_zero else ", which may be chance"
    if measures.guard > measures.best_single:
        return f"{alone}, {against}{luck}."
    return f"{alone}, {against}{luck}: running this version alone would have been better on these inputs."


def remark_on_abstentions(measures: EnsembleMeasures) -> str:
    """What abstaining costs and gains; empty if the guard never abstains."""
    if measures.coverage == 1:
        return ""
    if measures.answered_accuracy is None:
        return "The guard abstains on every input; the figures count the answers that it prefers."
    return (
        f"The guard abstains on {percent(1 - measures.coverage)} of the inputs; of the answers that it gives, "
        f"{percent(measures.answered_accuracy)} are right. All other figures count the answer that it prefers "
        "where it abstains."
    )


def _range(interval: Interval) -> str:
    return f"{percent(interval.level, 0)} interval {points(interval.low)} to {points(interval.high)}"
