"""Which of a data set's accepted forms is on disk, and one clear error when none is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepfailguard.errors import DataNotFoundError

__all__ = ["Form", "Found", "locate"]


@dataclass(frozen=True, slots=True)
class Form:
    """One way in which a data set's files may lie below its root.

    Attributes:
        title: what the form is called in errors.
        files: files or folders below the root, all of them needed.
        endings: what may follow each name; the first ending that exists is taken.
    """

    title: str
    files: tuple[str, ...]
    endings: tuple[str, ...] = ("",)

    def find(self, root: Path) -> tuple[Path, ...]:
        """The paths that exist, in the order of `files`; shorter than `files` where some are missing."""
        found = []
        for name in self.files:
            candidates = (root / f"{name}{ending}" for ending in self.endings)
            found += [path for path in candidates if path.exists()][:1]
        return tuple(found)

    def __str__(self) -> str:
        endings = [ending for ending in self.endings if ending]
        if "" in self.endings:
            note = f" (plain or {' or '.join(endings)})" if endings else ""
        else:
            note = f", each ending in {' or '.join(endings)}"
        return f"{self.title}: {', '.join(self.files)}{note}"


@dataclass(frozen=True, slots=True)
class Found:
    """A form that is complete on disk.

    Attributes:
        form: the form.
        files: the path of each of its files, in their order.
    """

    form: Form
    files: tuple[Path, ...]


def locate(name: str, root: str | Path, forms: Sequence[Form], obtain: str) -> Found:
    """The first of the forms that is complete below the root.

    Args:
        name: the data set, for the error.
        root: folder to look in; a relative one is taken from the working directory.
        forms: accepted forms, the preferred one first.
        obtain: where the files can be had.

    Raises:
        DataNotFoundError: no form is complete. It gives the absolute folder, every file name of every form,
            those which are there already, and where to get the rest.
    """
    folder = Path(root).expanduser().resolve()
    for form in forms:
        files = form.find(folder)
        if len(files) == len(form.files):
            return Found(form, files)
    raise DataNotFoundError(_not_found(name, folder, forms, obtain))


def _not_found(name: str, folder: Path, forms: Sequence[Form], obtain: str) -> str:
    there = sorted({path.relative_to(folder).as_posix() for form in forms for path in form.find(folder)})
    if not folder.is_dir():
        state = "the folder does not exist"
    else:
        state = f"there is only {', '.join(there)}" if there else "none of them is there"
    lines = [f"data set {name} is not on disk. Looked in {folder} for one of these ({state}):"]
    lines += [f"  - {form}" for form in forms]
    lines += [f"To get it: {obtain}", "If it lies elsewhere, set the data set's root (dataset.root=FOLDER)."]
    return "\n".join(lines)
