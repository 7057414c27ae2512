"""`lepton export`: what the files compute and hold, that nothing dead is in them, and what is refused."""

import json
import re
import shutil
import sys
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny import domain
from torch import nn

from lepton_rl import InputError, adapt
from lepton_rl.cli import main
from lepton_rl.export import made as made_module
from lepton_rl.export import parity as parity_module
from lepton_rl.export.card import Card, read_card
from lepton_rl.export.made import make
from lepton_rl.export.parity import ParityError, check, parity
from lepton_rl.export.program import Deployable, trace
from lepton_rl.models import build_model
from lepton_rl.preprocessing import Preprocessing, logits
from lepton_rl.saved_run import SavedRun

SIDE = 6
WAY = Preprocessing(channels=1, height=SIDE, width=SIDE, mean=(0.4,), std=(0.25,))
EVIL = '<b>"x"</b>'


class WithOldHead(nn.Module):
    """A network with a new head, its old one, and one whose result goes nowhere."""

    def __init__(self):
        super().__init__()
        self.body = build_model("resnet-gn", channels=1, n_classes=3, width=4)
        self.old_head = nn.Linear(16, 7)
        self.rotation_head = nn.Linear(36, 4)

    def forward(self, x):
        self.rotation_head(x.flatten(1))
        return self.body(x)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All three files of a network with dead parts, and the images that they were compared on."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("export")
    images = domain(5, 70, 3).images
    model = WithOldHead()
    expected = logits(model.eval(), domain(5, 70, 3), WAY).numpy()
    labels = expected.argmax(1)
    done = make(model, WAY, ("a", EVIL, "c"), folder, images=images, calibration=images[:40], labels=labels)
    return folder, done, images, expected


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run whose model this package knows by name."""
    out = tmp_path_factory.mktemp("run") / "run"
    model = build_model("vgg", channels=1, n_classes=3, width=4)
    result = adapt(model, source=domain(2, 40, 3), target=domain(1, 30, 3), policy="tuned-default", budget=5)
    return result.save(out, command="lepton adapt", arguments={"model": "vgg"})


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


# ----- what the files compute


def test_every_file_computes_what_the_network_does(made):
    folder, done, images, expected = made
    assert [file.name for file in done.files] == ["model.onnx", "model.pt2", "model.int8.onnx"]
    np.testing.assert_allclose(run_onnx(folder / "model.onnx", images), expected, atol=1e-5)
    program = torch.export.load(folder / "model.pt2").module()
    np.testing.assert_allclose(program(torch.from_numpy(images)).detach().numpy(), expected, atol=1e-5)
    assert all(file.parity.largest_gap < 1e-5 and file.accuracy == 1.0 for file in done.files[:2])


def test_any_number_of_images_goes_through(made):
    folder, _, images, expected = made
    for n in (1, 3, 70):
        np.testing.assert_allclose(run_onnx(folder / "model.onnx", images[:n]), expected[:n], atol=1e-5)


def test_int8_is_close_and_says_what_it_costs(made):
    folder, done, images, expected = made
    file = done.files[2]
    found = run_onnx(folder / "model.int8.onnx", images)
    assert file.accuracy == file.parity.agreement == (found.argmax(1) == expected.argmax(1)).mean()
    assert 1e-4 < file.parity.largest_gap < 0.2
    graph = onnx.load(folder / "model.int8.onnx").graph
    weights = {i.name: i for i in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 9
    dequantize = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in convolutions:
        quantised, scale = (weights[name] for name in dequantize[node.input[1]].input[:2])
        assert quantised.data_type == onnx.TensorProto.INT8
        assert scale.dims[0] == quantised.dims[0]  # one scale per output channel


# ----- nothing dead


def test_nothing_dead_is_exported(made):
    folder, done, _, _ = made
    assert done.pruned == {
        "model.old_head.weight": 7 * 16,
        "model.old_head.bias": 7,
        "model.rotation_head.weight": 4 * 36,
        "model.rotation_head.bias": 4,
    }
    body = sum(p.numel() for p in WithOldHead().body.parameters())
    assert done.kept == body + 2  # mean and standard deviation
    held = onnx.load(folder / "model.onnx").graph.initializer
    shapes = [tuple(i.dims) for i in held]
    assert sum(int(np.prod(s)) for s in shapes if len(s) > 1) < body
    assert not {(7, 16), (16, 7), (4, 36), (36, 4)} & set(shapes)
    program = torch.export.load(folder / "model.pt2")
    assert not [name for name in (*program.state_dict, *program.constants) if "old" in name or "rotation" in name]
    assert sum(t.numel() for t in program.state_dict.values()) == body + 2


def test_a_tensor_with_two_names_stays_while_one_is_used():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(SIDE * SIDE, 4)
            self.second = nn.Linear(4, 4)
            self.again = self.second

        def forward(self, x):
            return self.second(self.first(x.flatten(1)))

    model = Tied()
    traced = trace(Deployable(model, WAY), WAY)
    assert traced.kept == 37 * 4 + 20 + 2
    images = torch.from_numpy(domain(1, 4, 3).images)
    assert torch.equal(traced.program.module()(images), Deployable(model, WAY)(images))


# ----- the card


def test_the_card_comes_back_from_both_files(made):
    folder, _, _, _ = made
    for name, weights in (("model.onnx", "float32"), ("model.pt2", "float32"), ("model.int8.onnx", "int8")):
        assert read_card(folder / name) == Card(classes=("a", EVIL, "c"), preprocessing=WAY, weights=weights)
    model = onnx.load(folder / "model.onnx")
    assert [entry.key for entry in model.metadata_props] == ["lepton"]
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["n", 1, SIDE, SIDE]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "card of format 2"),
        ({"classes": ["one"]}, "names no classes"),
        ({"classes": "abc"}, "names no classes"),
        ({"weights": "int4"}, "weights 'int4'"),
        ({"preprocessing": {"mean": [1]}}, "expected the keys"),
        ({"preprocessing": vars(WAY) | {"std": [0.0], "mean": [0.1]}}, "std above 0"),
        ({"preprocessing": vars(WAY) | {"std": [float("inf")], "mean": [0.1]}}, "std above 0"),
        ({"preprocessing": vars(WAY) | {"std": [10**400], "mean": [0.1]}}, "std above 0"),
        ({"preprocessing": vars(WAY) | {"mean": [0.1], "std": [0.1], "height": 10**9}}, "a size"),
        ({"preprocessing": vars(WAY) | {"mean": [0.1], "std": [0.1], "channels": True}}, "1 or 3 channels"),
    ],
)
def test_a_damaged_card_is_refused_in_one_line(change, message):
    good = json.loads(Card(classes=("a", "b"), preprocessing=WAY).to_text())
    with pytest.raises(InputError, match=message) as caught:
        Card.from_text(json.dumps(good | change), "x.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{" * 10**5, "x" * (2**20 + 1)])
def test_what_is_no_card_is_refused(text):
    with pytest.raises(InputError, match="no card"):
        Card.from_text(text, "x")


def test_files_of_others_are_refused_in_one_line(made, tmp_path):
    folder, _, _, _ = made
    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    (tmp_path / "cut.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-50])
    (tmp_path / "cut.pt2").write_bytes((folder / "model.pt2").read_bytes()[:-50])
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("x/models/model.json", "{}")
    for name in ("other.onnx", "cut.onnx", "cut.pt2", "other.pt2", "gone.onnx"):
        with pytest.raises(InputError, match=name) as caught:
            read_card(tmp_path / name)
        assert "\n" not in str(caught.value)


# ----- parity


def test_parity_by_hand():
    one = np.array([[1.0, 4.0], [2.0, 0.0]], dtype=np.float32)
    other = np.array([[1.0, 3.0], [0.0, 1.0]], dtype=np.float32)
    found = parity(one, other)
    assert (found.images, found.largest_gap, found.agreement) == (2, 0.5, 0.5)  # a gap of 2 of the largest, 4
    with pytest.raises(ParityError, match=r"x differs from the network by 0\.5"):
        check(found, "x")
    assert parity(one, np.full_like(one, np.nan)).largest_gap == np.inf
    assert parity(one, one[:, :1]).agreement == 0.0


def test_a_file_that_computes_something_else_is_not_kept(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parity_module, "TOLERANCE", -1.0)
    assert main(["export", str(saved), "--out", str(tmp_path / "out"), "--formats", "torch"]) == 1
    assert re.fullmatch(r"lepton: error: model\.pt2 differs .*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


# ----- the command


def test_the_command_writes_all_files_and_says_what_they_do(saved, tmp_path, capsys):
    images, labels = domain(9, 20, 3).images[:, 0], domain(9, 20, 3).labels
    np.savez(tmp_path / "t.npz", x=images, y=labels)
    data = ["--calibration", str(tmp_path / "t.npz"), "--test", str(tmp_path / "t.npz")]
    assert main(["export", str(saved), "--out", str(tmp_path / "out"), *data]) == 0
    shown, problems = capsys.readouterr()
    assert problems == ""
    assert re.search(r"model\.onnx +\d+ +\d\.\de-\d\d +100\.0% +\d\.\d{3} +\d\.\d{3}", shown)
    assert len(shown.splitlines()) == 12, shown  # the translator's own chatter is not passed on
    assert re.search(r"int8 costs -?\d+\.\d points of accuracy on 20 images", shown)
    names = {"model.onnx", "model.pt2", "model.int8.onnx", "export.json", "manifest.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["compared_on"] == "t"
    assert record["files"]["model.onnx"]["bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size
    model = SavedRun.read(saved).load()
    whole = domain(9, 20, 3)
    right = (logits(model, whole, SavedRun.read(saved).preprocessing).argmax(1).numpy() == whole.labels).mean()
    assert record["files"]["model.onnx"]["accuracy"] == right


def test_the_run_itself_is_as_before(saved):
    names = {"weights.safetensors", "history.jsonl", "result.json", "manifest.json", "report.html"}
    assert names <= {path.name for path in saved.iterdir()}


def no_weights(run):
    (run / "weights.safetensors").unlink()


def no_metadata(run):
    from safetensors.torch import load_file, save_file

    tensors = load_file(run / "weights.safetensors")
    save_file(tensors, run / "weights.safetensors")


def own_model(run):
    (run / "manifest.json").write_text(json.dumps({"command": "lepton adapt", "arguments": {"model": "os:system"}}))


def in_python(run):
    (run / "manifest.json").write_text("{}")


def one_image(run):
    np.savez(run.parent / "one.npz", x=np.zeros((1, SIDE, SIDE), dtype=np.uint8))


def other_classes(run):
    np.savez(run.parent / "five.npz", x=np.zeros((9, SIDE, SIDE), dtype=np.uint8), y=[4] * 9)


BAD = {
    "no weights": (no_weights, [], "has no weights.safetensors"),
    "weights of others": (no_metadata, [], "weights.safetensors cannot be read"),
    "own model": (own_model, [], r"made with 'os:system', which no file may import.*give --model os:system"),
    "in Python": (in_python, [], r"made in Python.*give --model"),
    "another model": (None, ["--model", "resnet"], "weights"),
    "few images": (one_image, ["--calibration", "one.npz"], "has 1 images: expected at least 8"),
    "unlabelled test": (one_image, ["--test", "one.npz"], "has no labels"),
    "classes unknown": (other_classes, ["--test", "five.npz"], "label 4 is not known"),
    "int8 without onnx": (None, ["--formats", "torch", "--calibration", "one.npz"], "expected onnx for int8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, saved, tmp_path, capsys, monkeypatch):
    change, options, message = BAD[case]
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    if change:
        change(run)
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert main(["export", "run", *options]) == 2
    shown, problems = capsys.readouterr()
    assert shown == ""
    assert re.fullmatch(rf"lepton: error: .*{message}.*\n", problems), problems
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["gone", "pyproject.toml", "tests"])
def test_what_is_no_run_is_refused(name, capsys):
    assert main(["export", name]) == 2
    assert re.fullmatch(rf"lepton: error: run '{name}' .*expected the --out of .*\n", capsys.readouterr().err)


def test_a_missing_extra_is_told_in_one_line(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(saved), "--out", str(tmp_path / "out")]) == 2
    expected = (
        r"lepton: error: onnx cannot be imported .*expected the extra 'export'; pip install 'lepton_rl\[export\]'\n"
    )
    assert re.fullmatch(expected, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(saved, tmp_path, capsys, monkeypatch):
    def fail(path, content):
        assert len(content) > 1000  # torch wrote into memory: it would end the process itself
        raise OSError(28, "No space left on device", path.name)

    monkeypatch.setattr(made_module, "write_atomically", fail)
    assert main(["export", str(saved), "--out", str(tmp_path / "out"), "--formats", "torch"]) == 2
    assert "model.pt2: No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_a_graph_is_told_in_one_line():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(SIDE * SIDE, 3)

        def forward(self, x):
            x = x.flatten(1)
            return self.head(x) if float(x.sum()) > 0 else self.head(-x)

    with pytest.raises(InputError, match="Deciding cannot be exported") as caught:
        trace(Deployable(Deciding(), WAY), WAY)
    assert "\n" not in str(caught.value)
