"""Experience to learn from before PPO: training tasks played under every plan of the portfolio, and glances at more.

All lanes of a fleet play one task with one seed, so that what differs between them is the actions alone. Lane i follows
plan i; lane 0 keeps everything, which is the tuned default. None stops: what stopping would have given is in the
accuracies.

Playing tells what plans are worth, and costs. A glance is the first observation of a task that is not played, a hundred
times cheaper: what the played tasks have taught is said of it too, and an actor learns from both.

A task, and a bunch of glances, is one safetensors file, written whole or not at all; what is there already is not made
again. Plans that were added to the end of the portfolio since are played and put beside the others.
"""

import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lepton_rl.agents.crew import Crew
from lepton_rl.agents.plans import PLANS, Plan
from lepton_rl.agents.suites import MakeSuite, SuiteChoice
from lepton_rl.cache import write_atomically
from lepton_rl.controls import tuned_default
from lepton_rl.datasets import check_split
from lepton_rl.envs.session import eval_hits
from lepton_rl.errors import InputError
from lepton_rl.fleet import FleetEngine
from lepton_rl.policy import Policy
from lepton_rl.run import AdaptationRun, decisions_of
from lepton_rl.selection import visible_score
from lepton_rl.signals import SIGNALS
from lepton_rl.solo import SoloEngine
from lepton_rl.stopping import stop_on_signals
from lepton_rl.task import AdaptationTask

GLANCES = "glances"  # their folder within that of the tasks
BUNCH = 50


@dataclass(frozen=True, kw_only=True)
class ExperienceConfig:
    """Play training tasks under every plan, and glance at more; a killed collection goes on by the same command."""

    out: Path = Path("runs/experience")
    """Folder of the tasks' files."""
    suite: str = "digits"
    """Suite whose training part is played: digits, or data (with --data)."""
    data: Path | None = None
    """Folder of the .npz files of the suite data; default LEPTON_DATA."""
    size: int = 16
    """Side in pixels to which images of the suite data are brought: 8, 16 or 28."""
    split: Literal["train", "train-pairs"] = "train"
    """Which training tasks: within one set, or from a set to another with the same classes (suite data)."""
    first: int = 0
    """Number of the first training task."""
    tasks: int = 200
    """How many training tasks to play."""
    glances: int = 1000
    """At how many further training tasks to glance, in bunches of 50."""
    workers: int = 2
    """Processes."""
    device: str = "cpu"
    """Where the networks train."""

    def __post_init__(self) -> None:
        """Refuse values that give nothing."""
        for name, least in (("tasks", 1), ("workers", 1), ("first", 0), ("glances", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)} is out of range: expected {least} or more")
        check_split(self.suite, self.split)

    def path(self, index: int) -> Path:
        """Return the file of a task."""
        return self.out / f"{self._name}-{index:05d}.safetensors"

    def glance_path(self, index: int) -> Path:
        """Return the file of the bunch of glances that begins with a task."""
        return self.out / GLANCES / f"{self._name}-{index:05d}.safetensors"

    @property
    def bunches(self) -> range:
        """The first task of every bunch of glances."""
        after = self.first + self.tasks
        return range(after, after + self.glances, BUNCH)

    @property
    def _name(self) -> str:
        suite = f"{self.suite}{self.size if self.suite == 'data' else ''}"
        return suite + self.split.removeprefix("train")


@dataclass(frozen=True, kw_only=True, eq=False)
class Experience:
    """What was seen and done on one task; lane i followed plan i.

    Attributes:
        observations: float32 `[lanes, decisions + 1, signals]`.
        actions: int64 `[lanes, decisions, 12]`.
        accuracies: On both halves of target_eval, float32 `[lanes, decisions + 1, 2]`, 0..1; privileged.
        scores: What the guard goes by, float32 `[lanes, decisions + 1]`.
        original: Accuracy of the untouched network under source statistics on both halves, float32 `[2]`.
        original_score: Its visible score, float32 `[]`.
        original_signals: What is measured of it, float32 `[18]`.
        facts: Of the task: name, base set, architecture, regime, shifts, ...
    """

    observations: Tensor
    actions: Tensor
    accuracies: Tensor
    scores: Tensor
    original: Tensor
    original_score: Tensor
    original_signals: Tensor
    facts: dict[str, Any]

    def to_bytes(self) -> bytes:
        """Return the file."""
        tensors = {k: v.contiguous() for k, v in vars(self).items() if isinstance(v, Tensor)}
        return save(tensors, {"facts": json.dumps(self.facts, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> "Experience":
        """Read a file that `to_bytes` made.

        Raises:
            InputError: If it is another file, or damaged.
        """
        try:
            return cls.load_bytes(path.read_bytes())
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = str(error).splitlines()[0][:80]
            raise InputError(f"{str(path)!r} is no experience ({reason}): remove it and collect it again") from None

    @classmethod
    def load_bytes(cls, content: bytes) -> "Experience":
        """Read the bytes of a file."""
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return cls(**load(content), facts=json.loads(header["__metadata__"]["facts"]))

    @property
    def returns(self) -> Tensor:
        """Points above the tuned default at the end of each lane's run, `[lanes]`."""
        last = self.accuracies[:, -1].mean(-1)
        return 100 * (last - last[0])


def collect(config: ExperienceConfig) -> list[Path]:
    """Glance at and play the tasks that are missing, and return the files of all that are played.

    Raises:
        InputError: If the suite does not have such tasks, or the folder holds others.
        Stopped: If SIGTERM or SIGUSR2 came; the tasks that were finished are kept.
        RuntimeError: If a task failed twice.
    """
    make_suite = SuiteChoice(name=config.suite, data=config.data, size=config.size).maker()
    make_suite().recipe(config.split, config.first)  # says at once what the suite does not have
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / GLANCES).mkdir(exist_ok=True)
    wanted = range(config.first, config.first + config.tasks)
    missing = [index for index in config.bunches if not config.glance_path(index).is_file()]
    missing += [index for index in wanted if _plans_played(config.path(index)) < len(PLANS)]
    with stop_on_signals() as stop:
        check = functools.partial(stop.check, "the tasks at hand")
        with Crew(config.workers, functools.partial(_player, make_suite, config), check) as crew:
            for number, done in enumerate(crew.run(missing), 1):
                if done.problem is not None:
                    raise RuntimeError(f"training task {done.job} failed: {done.problem}")
                print(f"{number} of {len(missing)}: {done.value}", file=sys.stderr, flush=True)
    return [config.path(index) for index in wanted]


def _player(make_suite: MakeSuite, config: ExperienceConfig) -> Callable[[int], str]:
    suite = make_suite()

    def glance_at_some(first: int) -> str:
        last = min(first + BUNCH, config.bunches.start + config.glances)
        seen = [glance(suite.task(config.split, index), config.device) for index in range(first, last)]
        write_atomically(config.glance_path(first), save({"observations": torch.stack(seen)}))
        return f"a glance at {len(seen)} tasks"

    def play_one(index: int) -> str:
        task, path = suite.task(config.split, index), config.path(index)
        experience = (
            completed(Experience.load(path), task, config.device) if path.is_file() else play(task, config.device)
        )
        write_atomically(path, experience.to_bytes())
        return f"{experience.facts['name']}, best plan {float(experience.returns.max()):+.1f} points"

    return lambda index: glance_at_some(index) if index in config.bunches else play_one(index)


def glance(task: AdaptationTask, device: str = "cpu") -> Tensor:
    """Return the first observation of the tuned default's run on a task, `[signals]`; no gradient step is taken."""
    run = AdaptationRun(SoloEngine(task.visible, device=device))
    return run.start({0: (task.visible, int(task.facts["seed"]), tuned_default())})[0].float().cpu()


def read_experience(folder: Path) -> list[Experience]:
    """Read all tasks of a folder that were played, in the order of their names."""
    return [Experience.load(path) for path in sorted(folder.glob("*.safetensors"))]


def read_glances(folder: Path) -> Tensor:
    """Read the first observations of all tasks of a folder that were glanced at, `[tasks, signals]`.

    Raises:
        InputError: If a file is another, or damaged.
    """
    found = [torch.zeros(0, len(SIGNALS))]
    for path in sorted((folder / GLANCES).glob("*.safetensors")):
        try:
            seen = load(path.read_bytes())["observations"]
        except (SafetensorError, ValueError, KeyError):
            seen = torch.zeros(0)
        if seen.dim() != 2 or seen.shape[1] != len(SIGNALS):
            raise InputError(f"{str(path)!r} holds no glances: remove it and collect them again")
        found.append(seen)
    return torch.cat(found)


def _plans_played(path: Path) -> int:
    """Return how many plans a task's file knows, 0 without one; InputError if others cannot be put beside them."""
    if not path.is_file():
        return 0
    known = Experience.load(path)
    _check_start(known)
    return len(known.actions)


def _check_start(known: Experience) -> None:
    lanes, decisions = known.actions.shape[:2]
    planned = torch.stack([plan.actions(decisions) for plan in PLANS[:lanes]])
    if known.facts["settings"] != asdict(tuned_default()) or not torch.equal(planned, known.actions):
        raise InputError(
            f"task {known.facts['name']} was played from other settings, or under other plans: expected today's tuned "
            "default and the first of today's plans; collect it again in another --out"
        )


def completed(known: Experience, task: AdaptationTask, device: str = "cpu") -> Experience:
    """Play the plans that were added to the end of the portfolio since a task was played.

    Raises:
        InputError: If it was another task, from other settings, or under other plans than the first of today's.
    """
    _check_start(known)
    new = play(task, device, PLANS[len(known.actions) :])
    if new.facts != known.facts:
        raise InputError(f"task {known.facts['name']} is another one today: collect it again in another --out")
    together: dict[str, Any] = {
        name: torch.cat([getattr(known, name), getattr(new, name)])
        for name in ("observations", "actions", "accuracies", "scores")
    }
    return replace(known, **together)


def _halves(hits: np.ndarray) -> list[float]:
    return [float(hits[0::2].mean()), float(hits[1::2].mean())]


def play(
    task: AdaptationTask, device: str = "cpu", plans: Sequence[Plan] = PLANS, policy: Policy | None = None
) -> Experience:
    """Play a task under all plans at once; under a policy, too, if there is one, on the first lane."""
    lanes = len(plans) + (policy is not None)
    engine = FleetEngine(task.visible, lanes, device=device)
    run = AdaptationRun(engine)
    lane_seed = int(task.facts["seed"])
    settings = tuned_default()
    starts = [] if policy is None else [policy.settings]
    starts += [settings] * len(plans)
    observation = run.start({lane: (task.visible, lane_seed, start) for lane, start in enumerate(starts)})
    tasks = [task] * lanes
    original = _halves(eval_hits(engine, tasks, "source")[0])
    untouched = engine.views("source")
    original_score, original_signals = (
        x[0] for x in (visible_score(engine, untouched), run.look_at_original(untouched))
    )
    seen, scores = [observation], [visible_score(engine, run.views)]
    accuracies = [[_halves(hits) for hits in eval_hits(engine, tasks)]]
    planned = torch.stack([plan.actions(decisions_of(task.visible.budget)) for plan in plans], 1)
    done = []
    for decision, actions in enumerate(planned):
        if policy is not None:
            own = policy.act(observation[:1].cpu(), torch.tensor([decision]), torch.tensor([lane_seed]))
            actions = torch.cat([own, actions])
        done.append(actions)
        observation, _ = run.step(actions)
        seen.append(observation)
        scores.append(visible_score(engine, run.views))
        accuracies.append([_halves(hits) for hits in eval_hits(engine, tasks)])
    facts = {**task.facts, "name": task.name, "regime": task.visible.regime, "settings": asdict(settings)}
    return Experience(
        observations=torch.stack(seen, 1).float().cpu(),
        actions=torch.stack(done, 1),
        accuracies=torch.tensor(accuracies, dtype=torch.float32).transpose(0, 1),
        scores=torch.stack(scores, 1).float().cpu(),
        original=torch.tensor(original),
        original_score=original_score.float().cpu(),
        original_signals=original_signals.float().cpu(),
        facts=facts,
    )
