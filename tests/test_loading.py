"""Models and domains from names, files and folders."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from lepton_rl import InputError
from lepton_rl.inspect_model import layer_groups
from lepton_rl.loading import load_domain, load_model, load_weights
from lepton_rl.models import ARCHITECTURES, build_model

MODULE = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))

def needs(width):
    return nn.Linear(width, 2)

def returns_text():
    return "resnet"

def fails():
    raise OSError("no such\\nfile")

ready = build()
number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_nets_for_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return "own_nets_for_test"


# ----- weights


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_built_in_takes_its_size_from_the_weights(name, tmp_path):
    made = build_model(name, channels=3, n_classes=7, width=12, seed=5)
    save_file(made.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model(name, tmp_path / "w.safetensors")
    assert not loaded.training
    assert all(torch.equal(value, made.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert loaded(torch.zeros(1, 3, 8, 8)).shape == (1, 7)


@pytest.mark.parametrize(
    "wrap", [dict, lambda d: {"state_dict": d, "epoch": 3}, lambda d: {f"module.{k}": v for k, v in d.items()}]
)
def test_pt_files_hold_a_state_dict_bare_nested_or_of_data_parallel(wrap, tmp_path):
    made = build_model("vgg", channels=1, n_classes=2, width=4)
    torch.save(wrap(made.state_dict()), tmp_path / "w.pt")
    loaded = load_model("vgg", tmp_path / "w.pt")
    assert torch.equal(loaded.head.weight, made.head.weight)


def test_a_pickled_network_is_not_unpickled(tmp_path):
    torch.save(build_model("vgg", channels=1, n_classes=2, width=4), tmp_path / "whole.pt")
    with pytest.raises(InputError, match="cannot be read safely"):
        load_weights(tmp_path / "whole.pt")


def test_damaged_and_missing_weights_are_named(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match="do not exist"):
        load_weights(path)
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"cannot be read \("):
        load_weights(path)
    (tmp_path / "w.pt").write_bytes(b"not a zip")
    with pytest.raises(InputError, match="cannot be read safely"):
        load_weights(tmp_path / "w.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="hold list"):
        load_weights(tmp_path / "list.pt")


def test_weights_of_another_model_are_refused(tmp_path):
    save_file(build_model("resnet", channels=1, n_classes=2, width=4).state_dict(), tmp_path / "r.safetensors")
    with pytest.raises(InputError, match=r"weights '.*r\.safetensors' lack"):
        load_model("vgg", tmp_path / "r.safetensors")
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="are not of a 'vgg'"):
        load_model("vgg", tmp_path / "a.safetensors")


def test_weights_of_another_shape_are_refused(own_module, tmp_path):
    save_file({"1.weight": torch.ones(3, 5), "1.bias": torch.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"have another shape of '1\.weight'"):
        load_model(f"{own_module}:build", tmp_path / "w.safetensors")
    save_file({"1.weight": torch.ones(3, 4), "1.bias": torch.ones(3), "x": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="have the unknown 'x'"):
        load_model(f"{own_module}:build", tmp_path / "w.safetensors")


# ----- names


def test_functions_and_modules_of_the_working_folder_are_found(own_module, tmp_path):
    assert isinstance(load_model(f"{own_module}:build"), nn.Sequential)
    assert isinstance(load_model(f"{own_module}:ready"), nn.Sequential)
    save_file({"1.weight": torch.ones(3, 4), "1.bias": torch.ones(3)}, tmp_path / "w.safetensors")
    assert load_model(f"{own_module}:build", tmp_path / "w.safetensors")[1].weight.sum() == 12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "comes without weights"),
        ("resnet18", "is unknown: expected one of vgg, resnet"),
        ("own_nets_for_test:", "is unknown"),
        ("own_nets_for_test:nothing", "has no 'nothing'"),
        ("no_such_module_here:build", "cannot be imported"),
        ("own_nets_for_test:needs", "needs arguments"),
        ("own_nets_for_test:returns_text", "returns str"),
        ("own_nets_for_test:number", "is int"),
        ("own_nets_for_test:fails", r"fails in own_nets_for_test\.py line 14 \(OSError: no such file\)"),
    ],
)
def test_bad_model_names_are_explained(own_module, name, message):
    with pytest.raises(InputError, match=message):
        load_model(name)


# ----- domains


def test_domains_by_name_file_and_folder(tmp_path):
    x = np.zeros((4, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=[0, 1, 0, 1], x_test=x[:1], y_test=[1])
    assert len(load_domain("digits")) == 1797
    assert len(load_domain(str(tmp_path / "d.npz"))) == 5
    assert len(load_domain(f"{tmp_path / 'd.npz'}:train")) == 4
    assert load_domain(f"{tmp_path / 'd.npz'}:test", classes=("a", "b")).classes == ("a", "b")
    (tmp_path / "f" / "cat").mkdir(parents=True)
    Image.fromarray(x[0]).save(tmp_path / "f" / "cat" / "1.png")
    folder = load_domain(str(tmp_path / "f"), classes=("dog", "cat"), size=(3, 5))
    assert (folder.labels.tolist(), folder.images.shape) == ([1], (1, 1, 3, 5))


def test_a_file_that_is_no_domain_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text("1,2")
    with pytest.raises(InputError, match="is a file: expected a folder"):
        load_domain(str(tmp_path / "x.txt"))


# ----- layer groups


def test_layer_groups_of_the_vgg_by_hand():
    groups = layer_groups(build_model("vgg", channels=1, n_classes=10, width=4))
    # conv 9 * in * out and two numbers a channel; the head has 16 features
    assert [g.parameters for g in groups] == [36 + 8, 288 + 16, 576 + 16, 1152 + 32, 160 + 10]
    assert [g.batch_norms for g in groups] == [1, 1, 1, 1, 0]
    assert [g.unfrozen_from for g in groups] == [4, 3, 2, 1, 0]
    assert [g.name for g in groups] == ["stage 1", "stage 2", "stage 3", "stage 4", "head"]
