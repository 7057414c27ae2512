"""Numbers of a training for people who watch: TensorBoard when it is installed, Weights & Biases when asked for.

`log.csv` and the checkpoint are the record; what is sent here is a copy, and a tracker that fails ends no training.
"""

import importlib.util
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger, configure

from lepton_rl.extras import extra


def tracked(folder: Path, project: str | None, arguments: dict[str, Any]) -> Logger:
    """Return the logger of a training.

    Args:
        folder: Of the training; TensorBoard's events go into `tensorboard`, Weights & Biases' files into `wandb`.
        project: Project of Weights & Biases; None = not asked for. `WANDB_MODE=offline` keeps everything here.
        arguments: Shown as the run's configuration.

    Raises:
        InputError: If Weights & Biases was asked for and is not installed.
    """
    formats = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    logger = configure(str(folder / "tensorboard"), formats)
    if project is not None:
        logger.output_formats.append(WandbWriter(folder, project, arguments))
    return logger


class WandbWriter(KVWriter):
    """Sends what SB3 logs to a run of Weights & Biases; a resumed training goes on with its run.

    Args:
        folder: Of the training; its name is the run's.
        project: Of Weights & Biases.
        arguments: The run's configuration.
    """

    def __init__(self, folder: Path, project: str, arguments: dict[str, Any]) -> None:
        wandb = extra("wandb", "wandb")
        identity = folder.resolve().name
        self.run = wandb.init(
            project=project, name=identity, id=identity, resume="allow", dir=str(folder), config=arguments
        )

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Send one row."""
        del key_excluded
        self.run.log({key: value for key, value in key_values.items() if isinstance(value, int | float)}, step=step)

    def close(self) -> None:
        """End the run."""
        self.run.finish()
