"""The manifest, and output folders that are whole or not there at all."""

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

import lepton_rl
from lepton_rl.errors import InputError
from lepton_rl.manifest import check_free, whole_folder, write_manifest

ROOT = Path(__file__).resolve().parent.parent


def test_the_manifest_says_how_a_result_was_made(tmp_path):
    arguments = {"out": Path("a b"), "seed": 3, "classes": ("x", "y")}
    path = write_manifest(tmp_path, command="lepton x", arguments=arguments, extra={"note": 1}, argv=["lepton", "a b"])
    content = json.loads(path.read_text())
    assert content["arguments"] == {"out": "a b", "seed": 3, "classes": ["x", "y"]}
    assert (content["command"], content["seed"], content["note"]) == ("lepton x", 3, 1)
    assert content["command_line"] == "lepton 'a b'"
    assert content["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert content["versions"]["lepton_rl"] == lepton_rl.__version__
    age = datetime.now(UTC) - datetime.fromisoformat(content["created"])
    assert 0 <= age.total_seconds() < 60


def test_the_version_is_that_of_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert lepton_rl.__version__ == project["version"]


def test_a_folder_appears_whole(tmp_path):
    out = tmp_path / "runs" / "x"
    with whole_folder(out) as part:
        (part / "a").write_text("1")
        assert not out.exists()
    assert [p.name for p in out.iterdir()] == ["a"]
    assert [p.name for p in out.parent.iterdir()] == ["x"]


def test_nothing_is_left_after_an_error(tmp_path):
    def fail():
        with whole_folder(tmp_path / "x") as part:
            (part / "a").write_text("1")
            raise KeyError("midway")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_output_goes_only_when_asked_and_only_after_the_new_one_is_whole(tmp_path):
    out = tmp_path / "x"
    out.mkdir()  # an empty folder is free
    with whole_folder(out) as part:
        (part / "manifest.json").write_text("old")
    with pytest.raises(InputError, match="is not empty"):
        check_free(out)
    with pytest.raises(KeyError), whole_folder(out, overwrite=True):
        raise KeyError
    assert (out / "manifest.json").read_text() == "old"
    with whole_folder(out, overwrite=True) as part:
        (part / "manifest.json").write_text("new")
    assert (out / "manifest.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_folder_of_something_else_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("3 years")
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        check_free(tmp_path, overwrite=True)


def test_out_cannot_be_a_file_nor_lie_below_one(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match="is a file"):
        check_free(tmp_path / "f")
    with pytest.raises(InputError, match="cannot be made"):
        check_free(tmp_path / "f" / "g")
