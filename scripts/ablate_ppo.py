"""Compare ways to train with PPO on recorded runs; see `lepton_rl.agents.ppo_ablation`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from lepton_rl.agents.ppo_ablation import VARIANTS, Variant, ppo_ablation
from lepton_rl.cli import exit_code
from lepton_rl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What PPO rests on: residual start, control variate, critic, signals, regimes and settings."""

    experience: Path = Path("runs/experience")
    """Folder of scripts/collect_experience.py."""
    seeds: int = 3
    """Trainings of every variant; each is judged on its own part of the tasks, so at least 2."""
    workers: int = 2
    """Processes."""
    only: tuple[str, ...] = ()
    """Parts of the names of the variants that are compared with the first; none = all."""

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to learn from or to judge by."""
        if self.seeds < 2 or self.workers < 1:
            raise InputError(f"seeds {self.seeds} and workers {self.workers}: expected at least 2 and 1")
        if not any(self.experience.glob("*.safetensors")):
            raise InputError(f"experience {str(self.experience)!r} holds no task: expected .safetensors files")
        names = [variant.name for variant in VARIANTS]
        for part in self.only:
            if not any(part in name for name in names):
                raise InputError(f"only {part!r}: expected a part of one of these: {'; '.join(names)}")

    @property
    def variants(self) -> list[Variant]:
        """The first, and what is compared with it."""
        first, *others = VARIANTS
        return [first, *(v for v in others if not self.only or any(part in v.name for part in self.only))]


def _ablate() -> int:
    arguments = tyro.cli(Arguments)
    print(ppo_ablation(arguments.experience, arguments.seeds, arguments.workers, arguments.variants))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(_ablate))
