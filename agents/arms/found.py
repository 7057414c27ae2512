"""Open-loop arms that were found over the training tasks and are read from files: no feedback, no new search.

`scripts/look_up.py` and `scripts/tune_schedule.py` make the files; without its file an arm says so before any work.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from lepton_rl.agents.arm import SingleArm
from lepton_rl.controls import ACTION_SIZES, ControlSettings
from lepton_rl.errors import InputError
from lepton_rl.policy import KeepPolicy, Policy, SchedulePolicy
from lepton_rl.rollout import RunResult, rollout
from lepton_rl.task import REGIMES, VisibleTask

CASES = tuple(regime + free for regime in REGIMES for free in ("", ", source-free"))


def known_beforehand(task: VisibleTask) -> str:
    """Return what anyone knows of a task before it starts: labels or none, source data or none."""
    return task.regime + (", source-free" if task.source_free else "")


def read_found(name: str, maker: str) -> dict[str, Any]:
    """Read a file of `lepton_rl/defaults` that a script, the maker, writes.

    Raises:
        InputError: If it is missing or damaged.
    """
    path = resources.files("lepton_rl").joinpath(f"defaults/{name}.json")
    advice = f"make it with `python scripts/{maker}`, or leave the arm out"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"arm {name!r} was not found yet: expected lepton_rl/defaults/{name}.json; {advice}") from None
    except ValueError:
        raise InputError(f"lepton_rl/defaults/{name}.json is damaged: expected JSON; {advice}") from None
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise InputError(f"lepton_rl/defaults/{name}.json has no settings: expected an object of them; {advice}")
    return content


def checked_actions(actions: Any, where: str) -> tuple[tuple[int, ...], ...]:  # noqa: ANN401
    """Return actions that were read from a file.

    Raises:
        InputError: If one is not within `ACTION_SIZES`.
    """
    try:
        found = tuple(tuple(int(value) for value in action) for action in actions)
        fits = all(0 <= value < size for action in found for value, size in zip(action, ACTION_SIZES, strict=True))
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise InputError(f"{where} holds no actions: expected lists of {len(ACTION_SIZES)} sub-actions; make it again")
    return found


@dataclass(frozen=True, kw_only=True)
class FoundArm(SingleArm):
    """One run under what a file says.

    Attributes:
        maker: Script that writes the file.
    """

    maker: str = ""

    def check(self) -> None:
        """Read the file, and all that a task may ask of it."""
        found = read_found(self.name, self.maker)
        for case in CASES:
            self._policy(found, case)

    def single(self, task: VisibleTask, seed: int) -> RunResult:
        """Run once."""
        return rollout(task, self.policy_for(task), seed=seed)

    def policy_for(self, task: VisibleTask) -> Policy:
        """Return the policy for a task."""
        return self._policy(read_found(self.name, self.maker), known_beforehand(task))

    def _policy(self, found: dict[str, Any], case: str) -> Policy:
        where = f"lepton_rl/defaults/{self.name}.json"
        if "actions" in found:
            actions = checked_actions(found["actions"], where)
            return SchedulePolicy(actions=actions, settings=_settings(found["settings"]))
        if case not in found["settings"]:
            raise InputError(
                f"{where} has no settings for {case!r}: expected them for {', '.join(CASES)}; make it again with "
                f"`python scripts/{self.maker}`"
            )
        return KeepPolicy(settings=_settings(found["settings"][case]))


def _settings(content: Any) -> ControlSettings:  # noqa: ANN401
    return ControlSettings.from_json(json.dumps(content))


PER_REGIME = FoundArm(
    name="tuned-default-per-regime",
    source="the best static setting per what is known beforehand, of all plans played on the training tasks",
    maker="look_up.py",
)
SCHEDULE = FoundArm(
    name="tuned-schedule",
    source="the best settings with one later change, found by Optuna over the training tasks",
    maker="tune_schedule.py",
)
ARMS = (PER_REGIME, SCHEDULE)
