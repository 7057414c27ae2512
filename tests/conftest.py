"""Shared by all tests: one thread, one cache of pretrained weights, the smallest real tasks."""

import os
import tempfile
from pathlib import Path

# Before anything reads it: tests neither use nor fill the user's own cache, and repeated runs share theirs.
os.environ.setdefault("LEPTON_CACHE", str(Path(tempfile.gettempdir()) / "lepton_rl-test-cache"))

import pytest
import torch

from lepton_rl.suite import TaskSuite

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def suite() -> TaskSuite:
    """The built-in suite, with hastily pretrained networks and small budgets."""
    return TaskSuite("digits-test", {"digits": _digits}, pretrain_steps=60, budgets=(10, 16))


def _digits():
    from lepton_rl.domain import Domain

    return Domain.digits()


@pytest.fixture
def quick(monkeypatch):
    """Trainings of a fake task that take a tenth of a second: `quick(out, rollouts)` returns their arguments."""
    import killing

    from lepton_rl.agents import training, training_env

    for module, name in ((training_env, "make_env"), (training, "make_env"), (training, "greedy_accuracies")):
        monkeypatch.setattr(module, name, getattr(module, name))
    killing.make_quick()
    return killing.config
