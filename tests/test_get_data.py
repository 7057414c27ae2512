"""The script that fetches data sets, offline: the hub is a data set in memory."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from lepton_rl import Domain
from lepton_rl.errors import InputError

datasets = pytest.importorskip("datasets")


@pytest.fixture
def script():
    path = Path(__file__).parent.parent / "scripts" / "get_data.py"
    spec = importlib.util.spec_from_file_location("get_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_memory(name, split):
    assert name == "ylecun/mnist"
    n = {"train": 6, "test": 4}[split]
    images = np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((1, 5, 5), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    return datasets.Dataset.from_dict({"image": list(images), "label": [i % 2 for i in range(n)]}, features=features)


def test_what_is_fetched_is_read_back(script, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", in_memory)
    arguments = script.Arguments(out=tmp_path, sets=("mnist",), most=5)
    assert script.fetch(arguments) == [tmp_path / "mnist.npz"]
    assert script.fetch(arguments) == []  # it is there already
    train, test = (Domain.from_npz(tmp_path / "mnist.npz", part) for part in ("train", "test"))
    assert train.images.shape == (5, 1, 5, 5)
    assert (train.images[:, 0, 0, 0] % 2 == train.labels).all()
    assert test.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_a_set_that_is_unknown_or_out_of_reach_is_named(script, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="data set 'mnits' is unknown"):
        script.fetch(script.Arguments(out=tmp_path, sets=("mnits",)))

    def unreachable(name, split):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match="'ylecun/mnist' cannot be fetched"):
        script.fetch(script.Arguments(out=tmp_path, sets=("mnist",)))
    assert not list(tmp_path.iterdir())
