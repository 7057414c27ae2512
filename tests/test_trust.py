"""Nothing from a file is executed, and what lies about itself is refused in one line."""

import base64
import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from test_artifact import make_artifact

from lepton_rl import Domain, adapt
from lepton_rl.agents.rows import RowFile, check_joins
from lepton_rl.artifact import PolicyArtifact, load_policy
from lepton_rl.cli import main
from lepton_rl.errors import InputError
from lepton_rl.loading import load_model, load_weights
from lepton_rl.lock import beside
from lepton_rl.models import build_model
from lepton_rl.policy import KeepPolicy
from lepton_rl.report import write_report
from lepton_rl.report.records import read_lines, read_object

EVIL = "<script>alert(1)</script>"


class Malice:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def refused(function, *arguments, match=None):
    """Check that something is refused in one line, and return it."""
    with pytest.raises(InputError, match=match) as error:
        function(*arguments)
    said = str(error.value)
    assert "\n" not in said
    assert len(said) < 600
    return said


# ----- pickles


@pytest.fixture
def sb3_zip(tmp_path):
    """A model as stable-baselines3 saves it, whose pickled parts make a file when they are read."""
    path, made = tmp_path / "model.zip", tmp_path / "made"
    poison = base64.b64encode(pickle.dumps(Malice(made))).decode()
    weights = io.BytesIO()
    torch.save({"a": Malice(made)}, weights)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {":type:": "x", ":serialized:": poison}}))
        archive.writestr("policy.pth", weights.getvalue())
    return path, made


def test_the_malice_works_where_pickles_are_read(sb3_zip):
    path, made = sb3_zip
    data = json.loads(zipfile.ZipFile(path).read("data"))
    pickle.loads(base64.b64decode(data["policy_class"][":serialized:"])).close()
    assert made.exists()


def test_an_sb3_zip_is_never_opened(sb3_zip, tmp_path, capsys):
    path, made = sb3_zip
    refused(load_policy, path, match="SB3 zip files run code when loaded and are not read")
    renamed = tmp_path / "p.safetensors"
    renamed.write_bytes(path.read_bytes())
    refused(load_policy, renamed, match="not a policy file")
    refused(load_weights, path, match="cannot be read safely")
    refused(load_weights, renamed, match="cannot be read")
    assert main(["inspect", str(renamed)]) == 2
    assert not made.exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickled_weights_and_arrays_run_nothing(tmp_path, protocol):
    made = tmp_path / "made"
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Malice(made), protocol=protocol))
    refused(load_weights, tmp_path / "w.pt", match="cannot be read safely")
    with zipfile.ZipFile(tmp_path / "torch.pt", "w") as archive:  # the new format of torch
        archive.writestr("archive/data.pkl", pickle.dumps(Malice(made), protocol=protocol))
        archive.writestr("archive/version", "3")
    refused(load_weights, tmp_path / "torch.pt", match="cannot be read safely")
    objects = np.empty(2, dtype=object)
    objects[:] = [Malice(made), 1]
    np.savez(tmp_path / "d.npz", x=objects, y=np.zeros(2, dtype=int))
    refused(Domain.from_npz, tmp_path / "d.npz", match=r"d\.npz")
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Malice(made), protocol=protocol))
    refused(Domain.from_npz, tmp_path / "raw.npz", match=r"raw\.npz")
    assert not made.exists()


# ----- safetensors


def header(described, length=None, body=b""):
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def lies():
    """Headers that do not say the truth; each is refused by the policy file and by weights."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    yield "length beyond the end", header({"a": entry}, length=10**6, body=bytes(8))
    yield "length of 2^63", header({"a": entry}, length=2**63, body=bytes(8))
    yield "offsets beyond the end", header({"a": entry | {"data_offsets": [0, 10**9]}}, body=bytes(8))
    yield "negative offsets", header({"a": entry | {"data_offsets": [-8, 0]}}, body=bytes(8))
    yield "shape of another size", header({"a": entry | {"shape": [10**6, 10**6]}}, body=bytes(8))
    yield "overflowing shape", header({"a": entry | {"shape": [2**62, 2**62]}}, body=bytes(8))
    yield "overlap", header({"a": entry, "b": entry}, body=bytes(8))
    yield "hole", header({"a": entry | {"data_offsets": [8, 16]}}, body=bytes(16))
    yield "unknown type", header({"a": entry | {"dtype": "OBJECT"}}, body=bytes(8))
    yield "deep header", struct.pack("<Q", 200_000) + b"[" * 200_000
    yield "no object", header([1, 2])
    yield "empty", b""


@pytest.mark.parametrize("content", [content for _, content in lies()], ids=[name for name, _ in lies()])
def test_a_lying_header_is_refused(content, tmp_path):
    path = tmp_path / "f.safetensors"
    path.write_bytes(content)
    refused(PolicyArtifact.load, path, match=r"f\.safetensors")
    refused(load_weights, path, match=r"f\.safetensors")


def test_ten_thousand_keys_of_metadata_are_refused(tmp_path):
    policy = make_artifact().policy
    path = tmp_path / "p.safetensors"
    save_file({"observation.mean": policy.inputs.mean}, path, {str(k): "x" for k in range(10_000)} | {"lepton": "{}"})
    refused(PolicyArtifact.load, path, match="metadata other than 'lepton'")
    assert set(load_weights(path)) == {"observation.mean"}  # weights are read without it


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "p.safetensors"
    with path.open("wb") as file:
        file.truncate(50 * 2**30)  # sparse: nothing is written
    refused(PolicyArtifact.load, path, match="expected at most 16777216")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(bad, tmp_path):
    artifact = make_artifact()
    artifact.policy.layers[1][1][0] = bad
    refused(PolicyArtifact.from_bytes, artifact.to_bytes(), match="not finite")
    state = build_model("vgg", channels=1, n_classes=2, width=4).state_dict()
    state["head.bias"][0] = bad
    (tmp_path / "w.safetensors").write_bytes(save(state))
    refused(load_model, "vgg", tmp_path / "w.safetensors", match="'head.bias' is not finite")


def test_wrong_shapes_are_refused(tmp_path):
    artifact = make_artifact()
    layers = list(artifact.policy.layers)
    layers[0] = (layers[0][0].T.contiguous(), layers[0][1])
    object.__setattr__(artifact.policy, "layers", tuple(layers))
    refused(PolicyArtifact.from_bytes, artifact.to_bytes(), match="wrong shapes")


# ----- JSON, and names


BOMBS = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "huge number": "1" + "0" * 100_000,
    "not closed": '{"a": "' + "x" * 100_000,
    "other kind": "[1, 2]",
    "bytes": "\ud800",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_json_bombs_are_refused(bomb, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(bomb.encode("utf-8", "surrogatepass") + b"\n")
    refused(RowFile(path).read, match="line 1 is damaged")
    refused(read_lines, path)
    refused(read_object, path)
    (tmp_path / "manifest.json").write_bytes(path.read_bytes())
    refused(check_joins, tmp_path, {"format": 1}, match="not a benchmark's")
    refused(write_report, tmp_path)
    described = struct.pack("<Q", len(path.read_bytes())) + path.read_bytes()
    refused(PolicyArtifact.from_bytes, described, match="not a policy file")


def test_a_path_in_a_class_name_leads_nowhere_and_html_stays_text(tmp_path):
    digits = Domain.digits()
    digits = digits.take(digits.labels < 2)
    names = ("../../escaped", EVIL)
    model = build_model("vgg", channels=1, n_classes=2, width=4)
    out = tmp_path / "a" / "out"
    target = Domain(images=digits.images[:60], labels=digits.labels[:60], name=f"../{EVIL}", classes=names)
    result = adapt(model, target=target, policy=KeepPolicy(), budget=5, out=out, classes=names)
    assert result.classes == names
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"out"}
    assert not beside(out).exists()
    report = (out / "report.html").read_text()
    assert EVIL not in report
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["command"] = f"lepton {EVIL}"
    (out / "manifest.json").write_text(json.dumps(manifest))
    shown = write_report(out).read_text()
    assert EVIL not in shown
    assert "&lt;script&gt;" in shown


def test_names_inside_an_archive_are_no_paths(tmp_path):
    images = io.BytesIO()
    np.save(images, np.zeros((3, 4, 4), dtype=np.uint8))
    path = tmp_path / "in" / "d.npz"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../../evil.npy", "/tmp/evil.npy", "x.npy"):
            archive.writestr(name, images.getvalue())
    assert len(Domain.from_npz(path)) == 3
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "d.npz"]


def test_a_link_out_of_a_data_folder_is_refused(tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    Image.new("L", (4, 4)).save(secret / "s.png")
    data = tmp_path / "data" / "cat"
    data.mkdir(parents=True)
    Image.new("L", (4, 4)).save(data / "ok.png")
    (data / "link.png").symlink_to(secret / "s.png")
    refused(Domain.from_folder, data.parent, match="leads out of the folder")
    (data / "link.png").unlink()
    (data / "up").symlink_to(secret, target_is_directory=True)
    refused(Domain.from_folder, data.parent, match="leads out of the folder")


def test_a_table_of_images_does_not_lead_out_of_its_folder(tmp_path):
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    for path in (tmp_path / "secret.png", data / "ok.png"):
        Image.new("L", (4, 4)).save(path)
    (data / "link.png").symlink_to(tmp_path / "secret.png")
    (data / "up").symlink_to(tmp_path, target_is_directory=True)
    table = data / "t.csv"
    for name in ("../secret.png", "sub/../../secret.png", "link.png", "up/secret.png"):
        table.write_text(f"ok.png,1\n{name},0\n")
        refused(Domain.from_csv, table, match=rf"line 2: '{name}' leads out of the folder")
    table.write_text(f"ok.png,1\nsub/../ok.png,1\n{tmp_path / 'secret.png'},0\n")  # as its writer meant it
    assert len(Domain.from_csv(table)) == 3


def test_a_table_with_odd_cells_is_refused_in_one_short_line(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    table = tmp_path / "t.csv"
    digits = "9" * 5000  # more than an integer may be read from
    table.write_text(f"a.png,{digits}\n")
    assert Domain.from_csv(table).classes == (digits,)
    table.write_text(f"{'x' * 5000}.png,1\n")
    refused(Domain.from_csv, table, match="line 1: the path cannot be used")
    table.write_text(f"a.png,1\na.png,{digits}\n")
    refused(Domain.from_csv, table, match="line 2: 'a.png' is '9999")
    table.write_text("path,label\n" + '"' * 200_000)
    refused(Domain.from_csv, table, match=r"t\.csv")


# ----- bombs


def npz_member(shape, content, method=zipfile.ZIP_DEFLATED, descr="|u1"):
    """Return an archive with one array whose header says what it likes."""
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": descr, "fortran_order": False, "shape": shape})
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as archive, archive.open("x.npy", "w", force_zip64=True) as member:
        member.write(array.getvalue())
        for part in content:
            member.write(part)
    return whole.getvalue()


def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path):
    path = tmp_path / "bomb.npz"
    path.write_bytes(npz_member((512 * 2**20 // 64, 8, 8), [bytes(2**20)] * 512))
    assert path.stat().st_size < 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(Domain.from_npz, path, match="pack no better than 200 to 1")
    path.write_bytes(npz_member((10**9, 100, 100), [b"xyz"]))
    refused(Domain.from_npz, path, match="claims 10000000000000 bytes of")
    path.write_bytes(npz_member((2**40, 2**40), [b"xyz"]))
    refused(Domain.from_npz, path, match="claims")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_a_bomb_of_weights_is_refused_before_it_is_unpacked(tmp_path):
    plain, path = io.BytesIO(), tmp_path / "w.pt"
    torch.save({"a": torch.zeros(2**24)}, plain)  # 64 MiB
    with zipfile.ZipFile(plain) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    del plain, whole
    assert path.stat().st_size < 2**20
    assert len(torch.load(path, weights_only=True)["a"]) == 2**24  # torch would unpack it
    refused(load_weights, path, match="cannot be read safely")


def test_image_bombs_are_refused_before_they_are_unpacked(tmp_path):
    folder = tmp_path / "data" / "cat"
    folder.mkdir(parents=True)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    body = zlib.compress(bytes(2**20), 9)
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    refused(Domain.from_folder, folder.parent, match=r"bomb\.png")


def test_reading_files_needs_no_yaml():
    code = "import sys, lepton_rl.cli, lepton_rl.loading, lepton_rl.artifact; assert 'yaml' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == 0
