"""The task suites by name, as commands take them: built in, a folder of data sets, or a user's own two folders."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lepton_rl.agents.arms import closest
from lepton_rl.datasets import SuiteSource, contents, data_folder, folder_suite
from lepton_rl.errors import InputError
from lepton_rl.suite import Suite

MakeSuite = Callable[[], Suite]
SUITES = ("digits", "data", "folders")


@dataclass(frozen=True, kw_only=True)
class SuiteChoice:
    """Which suite, and where its images are.

    Attributes:
        name: One of `SUITES`.
        data: Folder of the suite `data`; None = what `LEPTON_DATA` names.
        source: Folder of source images of the suite `folders`.
        target: Folder of target images of the suite `folders`.
        size: Side in pixels to which images of `data` and `folders` are brought.
    """

    name: str
    data: Path | None = None
    source: Path | None = None
    target: Path | None = None
    size: int = 16

    def maker(self) -> MakeSuite:
        """Return what makes the suite; worker processes import and call it.

        Raises:
            InputError: If there is no such suite, or a folder is missing.
        """
        if self.name == "digits":
            return SuiteSource()
        if self.name == "data":
            return SuiteSource(name="data", data=data_folder(self.data), size=self.size)
        if self.name == "folders":
            if self.source is None or self.target is None:
                raise InputError("suite 'folders' needs two folders of images: give --source and --target")
            return functools.partial(folder_suite, self.source, self.target, self.size)
        raise InputError(f"suite {self.name!r} is unknown: {closest(self.name, list(SUITES))}")

    def contents(self) -> str | None:
        """Return a hash of the suite's files and their size in pixels; None for one that has no files."""
        folders: list[Path | None] = []
        if self.name == "data":
            folders = [data_folder(self.data)]
        elif self.name == "folders":
            folders = [self.source, self.target]
        return "-".join([str(self.size), *(contents(folder) for folder in folders if folder)]) if folders else None
