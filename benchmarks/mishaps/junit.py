"""A campaign as JUnit XML: a test case for each class of faults and each claim."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.mishaps.figures import ClassRun, claims_of
from deepfailguard.store import save_text

__all__ = ["junit_xml", "write_junit"]


def junit_xml(runs: Sequence[ClassRun]) -> str:
    """The XML; what is not expected to be noticed is skipped, not passed.

    Args:
        runs: of the classes, each with a trial at least.
    """
    root = ElementTree.Element("testsuites", name="deepfailguard chaos")
    for group in dict.fromkeys(run.group for run in runs):
        suite = ElementTree.SubElement(root, "testsuite", name=group)
        for run in (run for run in runs if run.group == group):
            _add(suite, run)
        _count(suite)
    _count(root)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write_junit(path: Path, runs: Sequence[ClassRun]) -> None:
    """Write the file."""
    save_text(path, junit_xml(runs))


def _add(suite: ElementTree.Element, run: ClassRun) -> None:
    claims = claims_of(run)
    seconds = f"{run.seconds / max(len(claims), 1):.3f}"
    for claim in claims:
        case = ElementTree.SubElement(suite, "testcase", classname=run.name, name=claim.name, time=seconds)
        ElementTree.SubElement(case, "system-out").text = f"{len(run.outcomes)} trials: {claim.told}"
        if not claim.holds:
            ElementTree.SubElement(case, "failure", message=claim.told)
    if not run.promise:
        case = ElementTree.SubElement(suite, "testcase", classname=run.name, name="noticed", time="0")
        ElementTree.SubElement(case, "skipped", message="nothing notices it at run time, by design")


def _count(element: ElementTree.Element) -> None:
    cases = list(element.iter("testcase"))
    element.set("tests", str(len(cases)))
    for name, tag in (("failures", "failure"), ("skipped", "skipped")):
        element.set(name, str(sum(case.find(tag) is not None for case in cases)))
    element.set("errors", "0")
