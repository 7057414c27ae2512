"""The policy file: what it keeps, and everything it refuses."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from lepton_rl.artifact import FORMAT_VERSION, PolicyArtifact, load_policy
from lepton_rl.controls import ACTION_SIZES, ControlSettings
from lepton_rl.errors import InputError
from lepton_rl.guard import EVIDENCE, Guard
from lepton_rl.policy import KeepPolicy, NetworkPolicy
from lepton_rl.signals import SIGNALS
from lepton_rl.standardise import Standardiser


def make_artifact(seed: int = 0, *, guarded: bool = False) -> PolicyArtifact:
    rng = torch.Generator().manual_seed(seed)
    sizes = (len(SIGNALS), 6, sum(ACTION_SIZES))
    layers = tuple(
        (torch.randn(o, i, generator=rng), torch.randn(o, generator=rng)) for i, o in itertools.pairwise(sizes)
    )
    policy = NetworkPolicy(
        inputs=Standardiser.of(torch.randn(9, len(SIGNALS), generator=rng)),
        layers=layers,
        settings=ControlSettings(),
    )
    if guarded:
        sizes = (EVIDENCE, 5, 1)
        layers = tuple(
            (torch.randn(o, i, generator=rng), torch.randn(o, generator=rng)) for i, o in itertools.pairwise(sizes)
        )
        guard = Guard(inputs=Standardiser.of(torch.randn(9, EVIDENCE, generator=rng)), layers=layers, margin=1.0)
        policy = replace(policy, guard=guard)
    return PolicyArtifact(policy=policy, card={"b": 1, "a": "two"})


def rewritten(change, *, guarded: bool = False) -> bytes:
    """Return the file with its description changed by a function."""
    content = make_artifact(guarded=guarded).to_bytes()
    length = int.from_bytes(content[:8], "little")
    described = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["lepton"])
    change(described)
    return save(load(content), {"lepton": json.dumps(described)})


def test_a_policy_survives_the_file(tmp_path: Path):
    artifact = make_artifact()
    artifact.save(tmp_path / "p.safetensors")
    again = PolicyArtifact.load(tmp_path / "p.safetensors")
    observations = torch.randn(5, len(SIGNALS))
    assert torch.equal(again.policy.logits(observations), artifact.policy.logits(observations))
    assert again.card == artifact.card
    assert again.policy.settings == artifact.policy.settings


def test_a_guard_goes_with_the_policy(tmp_path: Path):
    artifact = make_artifact(guarded=True)
    artifact.save(tmp_path / "p.safetensors")
    again = PolicyArtifact.load(tmp_path / "p.safetensors").policy.guard
    seen = torch.randn(4, EVIDENCE)
    assert again is not None
    assert torch.equal(again.gain(seen), artifact.policy.guard.gain(seen))
    assert again.margin == 1.0
    assert make_artifact().policy.guard is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(guard=None), "holds the tensors"),
        (lambda d: d.update(guard=[2]), "damaged guard"),
        (lambda d: d["guard"].update(margin="1"), "damaged guard"),
        (lambda d: d["guard"].update(margin=float("nan")), "damaged guard"),
        (lambda d: d["guard"].update(margin=1e9), "damaged guard"),
        (lambda d: d["guard"].pop("margin"), "damaged guard"),
        (lambda d: d["guard"].update(more=1), "damaged guard"),
        (lambda d: d["guard"].update(layers=0), "guard' has 0 layers"),
        (lambda d: d["guard"].update(layers=10**9), "guard' has 1000000000 layers"),
        (lambda d: d["guard"].update(layers=1), "holds the tensors"),
    ],
)
def test_a_wrong_guard_is_refused_in_one_line(change, message):
    with pytest.raises(InputError, match=message) as error:
        PolicyArtifact.from_bytes(rewritten(change, guarded=True), "p")
    assert "\n" not in str(error.value)


def test_a_guard_of_wrong_shapes_or_numbers_is_refused():
    for name, tensor in (
        ("guard.layer.0.weight", torch.zeros(5, EVIDENCE + 1)),
        ("guard.layer.1.weight", torch.zeros(2, 5)),
        ("guard.std", torch.zeros(EVIDENCE)),
        ("guard.low", torch.full((EVIDENCE,), 3e38)),
        ("guard.mean", torch.full((EVIDENCE,), torch.nan)),
    ):
        content = make_artifact(guarded=True).to_bytes()
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        with pytest.raises(InputError, match=r"wrong shapes|not finite"):
            PolicyArtifact.from_bytes(save(load(content) | {name: tensor}, metadata), "p")


def test_identical_content_gives_identical_bytes():
    assert make_artifact().to_bytes() == make_artifact().to_bytes()
    assert make_artifact().to_bytes() != make_artifact(1).to_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.update(format_version=FORMAT_VERSION + 1),
            f"format version {FORMAT_VERSION + 1}: expected {FORMAT_VERSION}",
        ),
        (lambda d: d["observation"]["signals"].pop(), "another observation schema"),
        (lambda d: d["action"].update(hash="0"), "another action schema"),
        (lambda d: d.update(layers=99), "99 layers"),
        (lambda d: d.update(layers=1), "holds the tensors"),
        (lambda d: d.update(extra=1), "has the keys"),
        (lambda d: d.update(settings=[1]), "control settings"),
        (lambda d: d["settings"].update(learning_rate=1e9), "learning_rate"),
        (lambda d: d.update(guard={"layers": 2, "margin": 1.0}), "holds the tensors"),
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
