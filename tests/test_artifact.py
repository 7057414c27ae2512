"""The policy file: what it keeps, and everything it refuses."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from lepton_rl.artifact import FORMAT_VERSION, PolicyArtifact, load_policy
from lepton_rl.controls import ACTION_SIZES, ControlSettings
from lepton_rl.errors import InputError
from lepton_rl.policy import KeepPolicy, NetworkPolicy
from lepton_rl.signals import SIGNALS


def make_artifact(seed: int = 0) -> PolicyArtifact:
    rng = torch.Generator().manual_seed(seed)
    sizes = (len(SIGNALS), 6, sum(ACTION_SIZES))
    layers = tuple(
        (torch.randn(o, i, generator=rng), torch.randn(o, generator=rng)) for i, o in itertools.pairwise(sizes)
    )
    policy = NetworkPolicy(
        mean=torch.randn(len(SIGNALS), generator=rng),
        std=torch.rand(len(SIGNALS), generator=rng) + 0.1,
        layers=layers,
        settings=ControlSettings(),
    )
    return PolicyArtifact(policy=policy, card={"b": 1, "a": "two"})


def rewritten(change) -> bytes:
    """Return the file with its description changed by a function."""
    content = make_artifact().to_bytes()
    length = int.from_bytes(content[:8], "little")
    described = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["lepton"])
    change(described)
    policy = make_artifact().policy
    tensors = {"observation.mean": policy.mean, "observation.std": policy.std}
    for i, (weight, bias) in enumerate(policy.layers):
        tensors |= {f"layer.{i}.weight": weight, f"layer.{i}.bias": bias}
    return save(tensors, {"lepton": json.dumps(described)})


def test_a_policy_survives_the_file(tmp_path: Path):
    artifact = make_artifact()
    artifact.save(tmp_path / "p.safetensors")
    again = PolicyArtifact.load(tmp_path / "p.safetensors")
    observations = torch.randn(5, len(SIGNALS))
    assert torch.equal(again.policy.logits(observations), artifact.policy.logits(observations))
    assert again.card == artifact.card
    assert again.policy.settings == artifact.policy.settings


def test_identical_content_gives_identical_bytes():
    assert make_artifact().to_bytes() == make_artifact().to_bytes()
    assert make_artifact().to_bytes() != make_artifact(1).to_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=FORMAT_VERSION + 1), "format version 2: expected 1"),
        (lambda d: d["observation"]["signals"].pop(), "another observation schema"),
        (lambda d: d["action"].update(hash="0"), "another action schema"),
        (lambda d: d.update(layers=99), "99 layers"),
        (lambda d: d.update(layers=1), "holds the tensors"),
        (lambda d: d.update(extra=1), "has the keys"),
        (lambda d: d.update(settings=[1]), "control settings"),
        (lambda d: d["settings"].update(learning_rate=1e9), "learning_rate"),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(change, message):
    with pytest.raises(InputError, match=message) as error:
        PolicyArtifact.from_bytes(rewritten(change), "p")
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_refused():
    artifact = make_artifact()
    artifact.policy.layers[0][0][0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        PolicyArtifact.from_bytes(artifact.to_bytes(), "p")


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"PK\x03\x04" + b"\0" * 100, (10**15).to_bytes(8, "little")])
def test_files_of_another_kind_are_refused(content):
    with pytest.raises(InputError, match="not a policy file"):
        PolicyArtifact.from_bytes(content, "p")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_harmless(data):
    content = bytearray(make_artifact().to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        artifact = PolicyArtifact.from_bytes(bytes(content[:cut]) if data.draw(st.booleans()) else bytes(content))
    except InputError:
        return
    assert all(torch.isfinite(w).all() for w, _ in artifact.policy.layers)


def test_policies_by_name(tmp_path: Path):
    assert isinstance(load_policy("tuned-default"), KeepPolicy)
    policy = KeepPolicy()
    assert load_policy(policy) is policy
    with pytest.raises(InputError, match="does not exist"):
        load_policy(tmp_path / "missing.safetensors")
    with pytest.raises(InputError, match="SB3 zip files run code"):
        load_policy("model.zip")


def test_loading_needs_neither_gymnasium_nor_sb3_nor_optuna(tmp_path: Path):
    make_artifact().save(tmp_path / "p.safetensors")
    code = (
        "import sys; from lepton_rl.artifact import load_policy; "
        f"load_policy({str(tmp_path / 'p.safetensors')!r}); "
        "print([m for m in ('gymnasium', 'stable_baselines3', 'optuna') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
