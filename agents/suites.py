"""The task suites by name, as commands take them: built in, a folder of data sets, or a user's own two folders."""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lepton_rl.agents.arms import closest
from lepton_rl.datasets import SuiteSource, contents, data_folder, folder_suite
from lepton_rl.errors import InputError
from lepton_rl.run import decisions_of
from lepton_rl.starting_model import StartingModel
from lepton_rl.suite import BUDGETS, Suite

MakeSuite = Callable[[], Suite]
SUITES = ("digits", "data", "folders")


@dataclass(frozen=True, kw_only=True)
class SuiteChoice:
    """Which suite, and where its images are.

    Attributes:
        name: One of `SUITES`.
        data: Folder of the suite `data`; None = what `LEPTON_DATA` names.
        source: Folder of source images of the suite `folders`.
        target: Folders of target images of the suite `folders`.
        size: Side in pixels to which images of `data` and `folders` are brought.
        model: The network of all tasks of `folders`, as in `loading.load_model`; None draws one of the family for each.
        weights: File of its weights; without them a named network is trained on the source.
        budgets: Budgets of the tasks of `folders`; none = those of the other suites.
    """

    name: str
    data: Path | None = None
    source: Path | None = None
    target: tuple[Path, ...] = ()
    size: int = 16
    model: str | None = None
    weights: Path | None = None
    budgets: tuple[int, ...] = ()

    def maker(self) -> MakeSuite:
        """Return what makes the suite; worker processes import and call it.

        Raises:
            InputError: If there is no such suite, or a folder is missing.
        """
        if self.name != "folders" and (self.model or self.weights or self.budgets):
            raise InputError(
                f"suite {self.name!r} has networks and budgets of its own: expected --model, --weights and --budgets "
                "with --suite folders alone; leave them out"
            )
        if self.name == "digits":
            return SuiteSource()
        if self.name == "data":
            return SuiteSource(name="data", data=data_folder(self.data), size=self.size)
        if self.name == "folders":
            if self.source is None or not self.target:
                raise InputError("suite 'folders' needs two folders of images: give --source and --target")
            for budget in self.budgets:
                decisions_of(budget)
            budgets = self.budgets or BUDGETS
            return functools.partial(folder_suite, self.source, self.target, self.size, self._network(), budgets)
        raise InputError(f"suite {self.name!r} is unknown: {closest(self.name, list(SUITES))}")

    def contents(self) -> str | None:
        """Return a hash of the suite's files, their size in pixels and its network; None for one without files."""
        folders: list[Path | None] = []
        if self.name == "data":
            folders = [data_folder(self.data)]
        elif self.name == "folders":
            folders = [self.source, *self.target]
        if not folders:
            return None
        parts = [str(self.size), *(contents(folder) for folder in folders if folder)]
        if (network := self._network()) is not None:
            parts += [network.name, "trained here" if not network.comes_trained else weights_hash(network.load())]
        return "-".join([*parts, *map(str, self.budgets)])

    def _network(self) -> StartingModel | None:
        if self.model is None:
            if self.weights is not None:
                raise InputError(f"weights {str(self.weights)!r} without --model: expected the network they belong to")
            return None
        return StartingModel(name=self.model, weights=self.weights)


def weights_hash(model: nn.Module) -> str:
    """Return a hash of the names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().reshape(-1).view(dtype=torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
