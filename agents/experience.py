"""Experience to learn from before PPO: training tasks played under the tuned default and random changes of it.

All lanes of a fleet play one task with one seed, so that what differs between them is the actions alone. Lane 0 keeps
everything, which is the tuned default; some lanes change knobs at the start only, which makes each a static setting;
the others change knobs on the way as well. None stops: what stopping would have given is in the accuracies.

A task is one safetensors file, written whole or not at all; tasks that are there already are not played again.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from lepton_rl.agents.crew import Crew
from lepton_rl.agents.suites import MakeSuite, SuiteChoice
from lepton_rl.cache import write_atomically
from lepton_rl.controls import ACTION_SIZES, KEEP, KNOBS, tuned_default
from lepton_rl.envs.session import eval_hits
from lepton_rl.errors import InputError
from lepton_rl.fleet import FleetEngine
from lepton_rl.run import AdaptationRun, decisions_of
from lepton_rl.selection import visible_score
from lepton_rl.stopping import stop_on_signals
from lepton_rl.task import AdaptationTask

STATIC_SHARE, STATIC_MOVES = 0.5, 0.3  # of the lanes beside the default's; how likely a knob is moved at their start
EARLY_MOVES, LATE_MOVES, PULL_BACKS = 0.15, 0.05, 0.1  # of the other lanes: at the start, later, and the transfer knob
TRANSFER, STOP = KNOBS.index("transfer"), KNOBS.index("stop")


@dataclass(frozen=True, kw_only=True)
class ExperienceConfig:
    """Play training tasks under random changes of the tuned default; a killed one goes on by the same command."""

    out: Path = Path("runs/experience")
    """Folder of the tasks' files."""
    suite: str = "digits"
    """Suite whose training part is played: digits, or data (with --data)."""
    data: Path | None = None
    """Folder of the .npz files of the suite data; default LEPTON_DATA."""
    size: int = 16
    """Side in pixels to which images of the suite data are brought: 8, 16 or 28."""
    first: int = 0
    """Number of the first training task."""
    tasks: int = 200
    """How many training tasks to play."""
    lanes: int = 8
    """Runs of each task, that of the tuned default included."""
    workers: int = 2
    """Processes."""
    device: str = "cpu"
    """Where the networks train."""
    seed: int = 0
    """Seed of the actions."""

    def __post_init__(self) -> None:
        """Refuse values that give nothing."""
        for name, least in (("tasks", 1), ("lanes", 2), ("workers", 1), ("first", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)} is out of range: expected {least} or more")

    def path(self, index: int) -> Path:
        """Return the file of a task."""
        return self.out / f"{self.suite}{self.size if self.suite == 'data' else ''}-{index:05d}.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class Experience:
    """What was seen and done on one task; lane 0 is the tuned default.

    Attributes:
        observations: float32 `[lanes, decisions + 1, signals]`.
        actions: int64 `[lanes, decisions, 12]`.
        accuracies: On both halves of target_eval, float32 `[lanes, decisions + 1, 2]`, 0..1; privileged.
        scores: What the guard goes by, float32 `[lanes, decisions + 1]`.
        original: Accuracy of the untouched network under source statistics on both halves, float32 `[2]`.
        original_score: Its visible score, float32 `[]`.
        facts: Of the task: name, base set, architecture, regime, shifts, ...
    """

    observations: Tensor
    actions: Tensor
    accuracies: Tensor
    scores: Tensor
    original: Tensor
    original_score: Tensor
    facts: dict[str, Any]

    def to_bytes(self) -> bytes:
        """Return the file."""
        tensors = {k: v.contiguous() for k, v in vars(self).items() if isinstance(v, Tensor)}
        return save(tensors, {"facts": json.dumps(self.facts, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> "Experience":
        """Read a file that `to_bytes` made."""
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return cls(**load(content), facts=json.loads(header["__metadata__"]["facts"]))

    @property
    def returns(self) -> Tensor:
        """Points above the tuned default at the end of each lane's run, `[lanes]`."""
        last = self.accuracies[:, -1].mean(-1)
        return 100 * (last - last[0])


def collect(config: ExperienceConfig) -> list[Path]:
    """Play the tasks that are missing and return the files of all.

    Raises:
        Stopped: If SIGTERM or SIGUSR2 came; the tasks that were finished are kept.
        RuntimeError: If a task failed twice.
    """
    choice = SuiteChoice(name=config.suite, data=config.data, size=config.size)
    config.out.mkdir(parents=True, exist_ok=True)
    wanted = range(config.first, config.first + config.tasks)
    missing = [index for index in wanted if not config.path(index).is_file()]
    with stop_on_signals() as stop:
        check = functools.partial(stop.check, "the tasks at hand")
        with Crew(config.workers, functools.partial(_player, choice.maker(), config), check) as crew:
            for number, done in enumerate(crew.run(missing), 1):
                if done.problem is not None:
                    raise RuntimeError(f"training task {done.job} failed: {done.problem}")
                print(f"{number} of {len(missing)} tasks: {done.value}", file=sys.stderr, flush=True)
    return [config.path(index) for index in wanted]


def _player(make_suite: MakeSuite, config: ExperienceConfig) -> Callable[[int], str]:
    suite = make_suite()

    def play_one(index: int) -> str:
        experience = play(suite.task("train", index), config.lanes, seed=config.seed, device=config.device)
        write_atomically(config.path(index), experience.to_bytes())
        return f"{experience.facts['name']}, best lane {float(experience.returns.max()):+.1f} points"

    return play_one


@torch.no_grad()
def _halves(hits: np.ndarray) -> list[float]:
    return [float(hits[0::2].mean()), float(hits[1::2].mean())]


def play(task: AdaptationTask, lanes: int, *, seed: int, device: str = "cpu") -> Experience:
    """Play a task on all lanes of a fleet."""
    engine = FleetEngine(task.visible, lanes, device=device)
    run = AdaptationRun(engine)
    lane_seed = int(task.facts["seed"])
    settings = tuned_default()
    observation = run.start(dict.fromkeys(range(lanes), (task.visible, lane_seed, settings)))
    tasks = [task] * lanes
    original = _halves(eval_hits(engine, tasks, "source")[0])
    original_score = visible_score(engine, engine.views("source"))[0]
    seen, scores = [observation], [visible_score(engine, run.views)]
    accuracies = [[_halves(hits) for hits in eval_hits(engine, tasks)]]
    done = []
    for actions in random_actions(lanes, decisions_of(task.visible.budget), (seed, lane_seed)):
        observation, _ = run.step(actions)
        done.append(actions)
        seen.append(observation)
        scores.append(visible_score(engine, run.views))
        accuracies.append([_halves(hits) for hits in eval_hits(engine, tasks)])
    facts = {**task.facts, "name": task.name, "regime": task.visible.regime, "settings": asdict(settings)}
    return Experience(
        observations=torch.stack(seen, 1).float().cpu(),
        actions=torch.stack(done, 1).cpu(),
        accuracies=torch.tensor(accuracies, dtype=torch.float32).transpose(0, 1),
        scores=torch.stack(scores, 1).float().cpu(),
        original=torch.tensor(original),
        original_score=original_score.float().cpu(),
        facts=facts,
    )


def random_actions(lanes: int, decisions: int, entropy: tuple[int, ...]) -> Iterator[Tensor]:
    """Yield the actions of all lanes, int64 `[lanes, 12]`, decision by decision; none of them stops."""
    rng = np.random.default_rng(entropy)
    keep, sizes = np.array(KEEP), np.array(ACTION_SIZES)
    n_static = round((lanes - 1) * STATIC_SHARE)
    static = np.arange(lanes) <= n_static
    for decision in range(decisions):
        chance = np.full((lanes, len(KNOBS)), EARLY_MOVES if decision == 0 else LATE_MOVES)
        chance[static] = STATIC_MOVES if decision == 0 else 0.0
        chance[:, TRANSFER] = np.where(static | (decision == 0), 0.0, PULL_BACKS)
        chance[:, STOP] = 0.0
        chance[0] = 0.0
        # Another value than keep: one of the size - 1 others, counted on from it.
        others = (keep + rng.integers(1, sizes, (lanes, len(KNOBS)))) % sizes
        yield torch.from_numpy(np.where(rng.random(chance.shape) < chance, others, keep))
