"""A guard that was taught on runs of the policy which it guards.

`lepton train` learns a guard from the experience that the actor was distilled from, runs under fixed plans. What the
guard has to judge afterwards are the policy's own runs. Here training tasks that nothing was learnt from are played
under the policy, and under a few plans beside it for what is not its own, and the guard is corrected by how these end.

A task is one safetensors file, as in `experience.py`: what is there already is not played again.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lepton_rl.agents.crew import Crew
from lepton_rl.agents.experience import Experience, play
from lepton_rl.agents.guarding import expected_gains, guard_table, learn_guard
from lepton_rl.agents.plans import PLANS
from lepton_rl.agents.suites import MakeSuite, SuiteChoice
from lepton_rl.artifact import PolicyArtifact
from lepton_rl.cache import write_atomically
from lepton_rl.errors import InputError
from lepton_rl.policy import NetworkPolicy, Policy
from lepton_rl.stopping import stop_on_signals
from lepton_rl.suite import PAIRS_SPLIT

BESIDE = tuple(
    plan
    for plan in PLANS
    if plan.name
    in (
        "tuned default",
        "rate far down",
        "certain",
        "self-training, diversity down",
        "self-training, entropy and diversity, little source",
        "self-training, entropy and diversity, slow",
        "self-training, entropy and diversity, rate up",
    )
)
"""Plans that are played beside the policy, for the guard to see good runs and bad ones of every task."""

JUDGES = 3  # seeds of the guards that judge a table's tasks without having seen them

Job = tuple[str, int]  # split, number of the task


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """Correct a policy's guard by runs of that policy; a killed teaching goes on by the same command."""

    policy: Path
    """Policy file, whose actor and card are kept, and whose guard is corrected; without one it is learnt from nothing.
    """
    out: Path
    """File of the policy with its new guard."""
    experience: Path = Path("runs/guard")
    """Folder of the tasks' files."""
    suite: str = "digits"
    """digits, or data (with --data)."""
    data: Path | None = None
    """Folder of the .npz files of the suite data; default LEPTON_DATA."""
    size: int = 16
    """Side in pixels to which images of the suite data are brought: 8, 16 or 28."""
    first: int = 4000
    """Number of the first training task; choose one that nothing was learnt from yet."""
    tasks: int = 600
    """How many training tasks."""
    pairs: int = 0
    """How many more from one set to another (suite data)."""
    workers: int = 2
    """Processes."""
    seed: int = 0
    """Of the guard's first weights, its batches and which tasks each network knows."""

    def __post_init__(self) -> None:
        """Refuse values that give nothing."""
        for name, least in (("tasks", 1), ("pairs", 0), ("workers", 1), ("first", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)} is out of range: expected {least} or more")

    @property
    def jobs(self) -> list[Job]:
        """All tasks to be played."""
        numbers = range(self.first, self.first + self.tasks)
        pairs = range(self.first, self.first + self.pairs)
        return [("train", number) for number in numbers] + [(PAIRS_SPLIT, number) for number in pairs]

    def path(self, job: Job) -> Path:
        """Return the file of a task."""
        return self.experience / f"{job[0]}-{job[1]:05d}.safetensors"


def teach(config: TeachConfig) -> str:
    """Play what is missing, write the policy with its new guard, and return how that guard does, as Markdown.

    The table is of guards that did not see a task, for the policy's own runs and for the tuned default's.

    Raises:
        InputError: If there is no such policy, or the suite does not have such tasks.
        Stopped: If SIGTERM or SIGUSR2 came; the tasks that were finished are kept.
        RuntimeError: If a task failed twice.
    """
    artifact = PolicyArtifact.load(config.policy)
    make_suite = SuiteChoice(name=config.suite, data=config.data, size=config.size).maker()
    suite = make_suite()
    for split in dict.fromkeys(split for split, _ in config.jobs):
        suite.recipe(split, config.first)  # says at once what the suite does not have
    config.experience.mkdir(parents=True, exist_ok=True)
    missing = [job for job in config.jobs if not config.path(job).is_file()]
    actor = replace(artifact.policy, guard=None)
    with stop_on_signals() as stop:
        check = functools.partial(stop.check, "the tasks at hand")
        with Crew(config.workers, functools.partial(_player, make_suite, actor, config), check) as crew:
            for number, done in enumerate(crew.run(missing), 1):
                if done.problem is not None:
                    raise RuntimeError(f"task {done.job} failed: {done.problem}")
                print(f"{number} of {len(missing)}: {done.value}", file=sys.stderr, flush=True)
    experience = [Experience.load(config.path(job)) for job in config.jobs]
    _check_own(experience, actor, config)
    before = artifact.policy.guard
    guard = learn_guard(experience, config.seed, before)
    facts: dict[str, Any] = {
        "tasks": len(experience),
        "runs": sum(len(e.actions) for e in experience),
        "seed": config.seed,
    }
    taught = PolicyArtifact(policy=replace(artifact.policy, guard=guard), card={**artifact.card, "guard": facts})
    taught.save(config.out)
    expected = [expected_gains(experience, seed, before=before) for seed in range(JUDGES)]
    return "\n\n".join(
        f"{whose}:\n\n{guard_table(experience, np.full(len(experience), lane), expected, before)}"
        for lane, whose in ((0, "The policy's runs"), (1, "The tuned default's runs"))
    )


def _check_own(experience: list[Experience], actor: NetworkPolicy, config: TeachConfig) -> None:
    for e in experience:
        seen, done = e.observations[0, :-1], e.actions[0]
        same = (actor.act(seen, torch.arange(len(seen)), torch.zeros(len(seen))) == done).all(1)
        if len(e.actions) != 1 + len(BESIDE) or same.float().mean() < 0.5:  # rounding may decide otherwise once
            raise InputError(
                f"{str(config.experience)!r}: task {e.facts['name']} was played under another policy, or other plans: "
                "expected runs of this one; choose another --experience"
            )


def _player(make_suite: MakeSuite, actor: Policy, config: TeachConfig) -> Callable[[Job], str]:
    suite = make_suite()

    def play_one(job: Job) -> str:
        experience: Experience = play(suite.task(*job), plans=BESIDE, policy=actor)
        write_atomically(config.path(job), experience.to_bytes())
        return str(experience.facts["name"])

    return play_one
