"""Numbers of a training for people who watch: TensorBoard when it is installed, Weights & Biases when asked for.

`log.csv` and the checkpoint are the record; what is sent here is a copy, and a run of Weights & Biases that fails ends
no training.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger, configure

from lepton_rl.arrays import one_line
from lepton_rl.extras import extra

Say = Callable[[str], None]


def tracked(folder: Path, project: str | None, arguments: dict[str, Any], say: Say = lambda _: None) -> Logger:
    """Return the logger of a training.

    Args:
        folder: Of the training; TensorBoard's events go into `tensorboard`, Weights & Biases' files into `wandb`.
        project: Project of Weights & Biases; None = not asked for. `WANDB_MODE=offline` keeps everything here.
        arguments: Shown as the run's configuration.
        say: Called with a line that a person should read.

    Raises:
        InputError: If Weights & Biases was asked for and is not installed.
    """
    formats = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    logger = configure(str(folder / "tensorboard"), formats)
    if project is not None:
        logger.output_formats.append(WandbWriter(folder, project, arguments, say))
    return logger


class WandbWriter(KVWriter):
    """Sends what SB3 logs to a run of Weights & Biases; a resumed training goes on with its run.

    A run that fails, for example for want of a login or of a network, is told in a line and let go.

    Args:
        folder: Of the training; its name is the run's.
        project: Of Weights & Biases.
        arguments: The run's configuration.
        say: Called with a line that a person should read.
    """

    def __init__(self, folder: Path, project: str, arguments: dict[str, Any], say: Say) -> None:
        wandb = extra("wandb", "wandb")
        identity = folder.resolve().name
        names = {"project": project, "name": identity, "id": identity, "resume": "allow"}
        self._say = say
        self._run: Any = None
        self._run = self._tried(lambda: wandb.init(**names, dir=str(folder), config=arguments))

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Send one row."""
        del key_excluded
        row = {key: value for key, value in key_values.items() if isinstance(value, int | float)}
        if self._run is not None:
            self._tried(lambda: self._run.log(row, step=step))

    def close(self) -> None:
        """End the run."""
        if self._run is not None:
            self._tried(lambda: self._run.finish())

    def _tried(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401
        try:
            return call()
        except Exception as error:  # whatever it is, the training is worth more
            self._run = None
            self._say(f"Weights & Biases failed ({one_line(error)}): the training goes on without it")
            return None
