"""Train an adaptation policy with PPO: one command, any device, killed and resumed at any moment."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lepton_rl.datasets import SuiteSource, check_split, data_folder
from lepton_rl.errors import InputError
from lepton_rl.lock import LOCK, locked
from lepton_rl.stopping import stop_on_signals

# Names of arguments, whether a value can train, and what is expected instead.
LIMITS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("tasks", "n_envs", "n_steps", "workers", "n_epochs", "validate_every"),
        lambda n: n >= 1,
        "at least 1",
    ),
    (("batch_size",), lambda n: n >= 2, "at least 2"),
    (("rollouts", "rehearsals", "validation_tasks", "seed"), lambda n: n >= 0, "at least 0"),
    (("hidden",), lambda sizes: min(sizes, default=0) >= 1, "one or more sizes of at least 1"),
    (("learning_rate", "clip_range", "target_kl"), lambda x: 0 < x < math.inf, "above 0"),
    (("ent_coef", "action_cost"), lambda x: 0 <= x < math.inf, "at least 0"),
    (("gamma", "gae_lambda"), lambda x: 0 <= x <= 1, "0 to 1"),
    (("keep_probability",), lambda x: 0 < x < 1, "above 0 and below 1"),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train an adaptation policy over the training tasks of a suite."""

    out: Path = Path("runs/train")
    """Folder for checkpoints, logs and the policy; an interrupted training found there goes on."""
    suite: Literal["digits", "data"] = "digits"
    """Suite whose training part is played: digits (built in) or data (with --data)."""
    data: Path | None = None
    """Folder of the .npz files of the suite data; default LEPTON_DATA."""
    size: int = 16
    """Side in pixels of the images of the suite data: 8, 16 or 28."""
    split: Literal["train", "train-pairs"] = "train"
    """Which training tasks: within one set, or from a set to another with the same classes (suite data)."""
    tasks: int = 1000
    """Training tasks to draw from."""
    regime: Literal["few-label", "label-free"] | None = None
    """Fix the label regime; both when left out."""
    experience: Path | None = None
    """Folder of `scripts/collect_experience.py`: start from a policy distilled from it, not from keeping everything."""
    rehearsals: int = 0
    """Rollouts of PPO on the recorded runs of the experience before the first real one; they cost seconds."""
    rollouts: int = 40
    """Rollouts to collect; a rollout is n_steps decisions on every lane. 0 = only what the experience tells."""
    n_envs: int = 16
    """Lanes that play at the same time."""
    n_steps: int = 32
    """Decisions per lane and rollout (SB3's n_steps); an episode has at most 8."""
    workers: int = 2
    """Processes that step the lanes on a CPU; 1 steps them in this process."""
    engine: Literal["auto", "workers", "worker-fleets", "fleet"] = "auto"
    """Lanes one by one in worker processes (workers), one fleet per architecture in each of them (worker-fleets), or in
    this process (fleet); auto measures which is fastest and keeps to it when the training is resumed."""
    device: str = "cpu"
    """Where the inner networks train: cpu or cuda (one fleet per architecture)."""
    learning_rate: float = 3e-4
    """PPO's learning rate (Adam)."""
    n_epochs: int = 10
    """Passes over a rollout."""
    batch_size: int = 128
    """Minibatch of a pass."""
    gamma: float = 1.0
    """Discount; 1 because short horizons choose learning rates far too small."""
    gae_lambda: float = 0.95
    """Generalised advantage estimation."""
    clip_range: float = 0.2
    """PPO's clipping of the probability ratio."""
    ent_coef: float = 0.0
    """Entropy bonus."""
    target_kl: float = 0.03
    """End an update early when the policy moved this far."""
    keep_probability: float = 0.93
    """How likely an untrained policy keeps each knob."""
    action_cost: float = 0.05
    """Points a moved knob costs in training, so that what does not help is left alone."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of actor and critic."""
    validation_tasks: int = 48
    """Tasks of the validation split that choose the best policy; 0 = keep the last."""
    validate_every: int = 10
    """Rollouts between two validations."""
    wandb: str | None = None
    """Project of Weights & Biases to send the log to (extra wandb; WANDB_MODE=offline keeps it in --out)."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        for names, fits, expected in LIMITS:
            for name in names:
                if not fits(getattr(self, name)):
                    raise InputError(f"{name} {getattr(self, name)} is out of range: expected {expected}")
        if self.n_envs * self.n_steps < 2:
            raise InputError("n_envs 1 with n_steps 1 is a rollout of one decision: expected two or more; raise either")
        check_split(self.suite, self.split)
        if self.suite == "data":
            data_folder(self.data)
        if self.experience is None and (self.rehearsals or not self.rollouts):
            asked = f"rehearsals {self.rehearsals} and rollouts {self.rollouts}"
            raise InputError(f"{asked} without an experience: expected rehearsals 0, and 1 rollout or more; give one")
        if self.experience is not None and not any(self.experience.glob("*.safetensors")):
            raise InputError(
                f"experience {str(self.experience)!r} holds no task: expected a folder of .safetensors files; "
                "make one with scripts/collect_experience.py"
            )

    @property
    def source(self) -> SuiteSource:
        """Where the suite comes from."""
        return SuiteSource(name=self.suite, data=self.data, size=self.size)


def train(config: TrainConfig, progress: bool = True) -> Path:
    """Train, and return the path of the policy file.

    Writes into `config.out`: `policy.safetensors` (the best by validation), `log.csv` (a row per rollout),
    `checkpoint.safetensors` and the one before it (to go on from), `manifest.json`, and TensorBoard events when
    TensorBoard is installed.

    Raises:
        InputError: If the folder holds a training with other arguments, another process trains there, or the suite
            lacks the tasks.
        Stopped: If SIGTERM or SIGUSR2 came; the rollout at hand was finished and saved.
        WorkerDied: If worker processes died again and again; what came before is saved.
    """
    config.source().recipe(config.split, 0)  # says at once what the suite does not have
    with locked(config.out / LOCK, config.out), stop_on_signals() as stop:
        from lepton_rl.agents.training import Training

        training = Training(config, say=lambda line: print(f"lepton: {line}", file=sys.stderr))
        try:
            training.run(_bar(config.rollouts) if progress else lambda done, row: None, stop)
        finally:
            training.close()
    return config.out / "policy.safetensors"


def _bar(total: int) -> Callable[[int, dict[str, Any]], None]:
    """Return a function that shows progress on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=Console(file=sys.stderr),
    )
    task = bar.add_task("training", total=total, text="")
    bar.start()

    def show(done: int, row: dict[str, Any]) -> None:
        text = f"{row['return_over_default']:+.2f} points over default" if "return_over_default" in row else ""
        bar.update(task, completed=done, text=text)
        if done >= total:
            bar.stop()

    return show
