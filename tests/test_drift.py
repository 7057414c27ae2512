"""`lepton drift`: how often it is wrong, what it sees, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import SIDE, domain

from lepton_rl import Shift, adapt
from lepton_rl.cli import main
from lepton_rl.drift import GAPS, measure_drift
from lepton_rl.models import build_model


def features(seed, n=60, d=6):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_the_same_distribution_is_rarely_taken_for_another(monkeypatch):
    """The level is 1 in 100: of 60 pairs that differ by chance alone, 4 or more alarms come once in 300 times."""
    monkeypatch.setattr("lepton_rl.drift.SPLITS", 100)
    monkeypatch.setattr("lepton_rl.drift.DRAWS", 10)
    alarms = sum(measure_drift(features(2 * i), features(2 * i + 1, n=25)).drifted for i in range(60))
    assert alarms <= 3


@pytest.mark.parametrize(
    ("change", "loud"),
    [
        (lambda x: x + torch.tensor([1.5, 0, 0, 0, 0, 0]), {"a_distance", "mean_shift"}),
        (lambda x: 3 * x, {"variance_shift", "coral"}),
    ],
)
def test_a_shift_is_seen_by_the_signal_that_it_moves(change, loud):
    found = measure_drift(features(0, 120), change(features(1, 80)))
    assert found.drifted
    assert set(found.gaps) == set(GAPS)
    assert all(found.gaps[name]["score"] > found.threshold for name in loud)
    row = found.gaps[found.loudest]
    assert row["gap"] > row["limit"] > row["usual"]
    assert row["score"] > found.threshold > 1
    assert found.to_json()["loudest"] == found.loudest


def test_score_and_limit_are_of_one_scale():
    found = measure_drift(features(0), features(1))
    for row in found.gaps.values():
        spread = (row["limit"] - row["usual"]) / found.threshold
        assert row["score"] == pytest.approx((row["gap"] - row["usual"]) / spread)


def test_long_features_are_narrowed_and_the_answer_stays():
    base, other = features(0, 80, 600), features(1, 60, 600)
    assert not measure_drift(base, other).drifted
    assert measure_drift(base, other + 0.5).drifted


def test_the_seed_decides():
    one, again = (measure_drift(features(0), features(1), seed=3).to_json() for _ in range(2))
    assert one == again
    assert one != measure_drift(features(0), features(1), seed=4).to_json()


# ----- the command


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    model = build_model("vgg", channels=1, n_classes=3, width=4)
    result = adapt(model, source=domain(2, 40, 3), target=domain(1, 90, 3), policy="tuned-default", budget=5)
    return result.save(out, command="lepton adapt", arguments={"model": "vgg"})


def npz(path, images, labels=None):
    np.savez(path, **({"x": images[:, 0]} | ({} if labels is None else {"y": labels})))
    return str(path)


def test_new_images_of_the_same_kind_call_for_nothing(saved, tmp_path, capsys):
    new = domain(7, 60, 3)
    assert main(["drift", str(saved), npz(tmp_path / "n.npz", new.images, new.labels)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"no need to adapt: the largest gap, .*, is \d\.\d{3}, and splits .* go up to \d\.\d{3}\n", shown)
    assert re.search(r"accuracy on those with a label: \d\.\d{3}", shown)


def test_other_images_call_for_adapting(saved, tmp_path, capsys):
    new = Shift(kind="invert", severity=1.0)(domain(7, 60, 3))
    path = npz(tmp_path / "n.npz", new.images)
    assert main(["drift", str(saved), path, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["time_to_adapt"] is facts["drifted"] is True
    assert (facts["images"], facts["reference_images"], facts["accuracy"]) == (60, 90, None)
    assert "99 in 100 splits" in facts["why"]
    assert main(["drift", str(saved), path]) == 0
    shown = capsys.readouterr().out
    assert "time to adapt again: " in shown
    assert f"lepton adapt --warm-start {saved} --target {path}" in shown
    assert main(["drift", str(saved), path, "--model", "vgg"]) == 0  # what had to be typed once, has to be again
    assert f"lepton adapt --warm-start {saved} --model vgg --target {path}" in capsys.readouterr().out


def test_images_of_another_size_and_unknown_classes(saved, tmp_path, capsys):
    new = domain(7, 60, 5, side=9)
    assert main(["drift", str(saved), npz(tmp_path / "n.npz", new.images, new.labels), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["time_to_adapt"] is True
    assert "label 4 is not known" in facts["why"]


def few_target_images(run):
    save_file({"features": torch.zeros(39, 16)}, run / "reference.safetensors")


BAD = {
    "no run": (lambda run: shutil.rmtree(run), "is no folder"),
    "no reference": (lambda run: (run / "reference.safetensors").unlink(), "has no reference.safetensors"),
    "damaged": (lambda run: (run / "reference.safetensors").write_bytes(b"x" * 40), "cannot be read"),
    "not finite": (
        lambda run: save_file({"features": torch.full((50, 16), torch.nan)}, run / "reference.safetensors"),
        "holds no finite features",
    ),
    "few": (few_target_images, "saw 39 target images: expected at least 40"),
    "another width": (
        lambda run: save_file({"features": torch.zeros(50, 17)}, run / "reference.safetensors"),
        "has 16 features and the run 17",
    ),
    "few new": (lambda run: npz(run.parent / "n.npz", domain(7, 19, 3).images), "have 19 images: expected at least 20"),
    "no new": (lambda run: (run.parent / "n.npz").unlink(), "does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, saved, tmp_path, capsys):
    change, message = BAD[case]
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    new = npz(tmp_path / "n.npz", domain(7, 60, 3).images)
    change(run)
    assert main(["drift", str(run), new]) == 2
    shown, problems = capsys.readouterr()
    assert shown == ""
    assert re.fullmatch(rf"lepton: error: .*{message}.*\n", problems), problems


# ----- adapting again


def test_a_warm_start_begins_with_the_weights_of_the_run(saved, tmp_path, capsys):
    import lepton_rl.apply

    seen = {}

    def spy(model, **arguments):
        seen.update(arguments, state={k: v.clone() for k, v in model.state_dict().items()})
        return adapt(model, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lepton_rl.apply, "adapt", spy)
        new = npz(tmp_path / "n.npz", domain(7, 60, 3, side=9).images)
        out = tmp_path / "out"
        assert main(["adapt", "--warm-start", str(saved), "--target", new, "--budget", "5", "--out", str(out)]) == 0
    from safetensors.torch import load_file

    weights = load_file(saved / "weights.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in seen["state"].items())
    before = json.loads((saved / "result.json").read_text())
    after = json.loads((out / "result.json").read_text())
    assert after["classes"] == before["classes"]
    assert after["preprocessing"] == before["preprocessing"]
    assert seen["image_size"] == (SIDE, SIDE)
    # The result is a run like any other: a command after it knows the model by name.
    assert json.loads((out / "manifest.json").read_text())["arguments"]["model"] == "vgg"
    capsys.readouterr()
    assert main(["drift", str(out), new, "--json"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no model is named"),
        (["--warm-start", "gone"], "run 'gone' is no folder"),
        (["--warm-start", "RUN", "--weights", "w.pt"], "expected one of them"),
        (["--warm-start", "RUN", "--classes", "a", "b", "c"], "expected those of the run"),
        (["--warm-start", "RUN", "--model", "resnet"], "weights"),
    ],
)
def test_a_warm_start_that_cannot_be_is_one_line(options, message, saved, tmp_path, capsys):
    new = npz(tmp_path / "n.npz", domain(7, 60, 3).images)
    options = [str(saved) if option == "RUN" else option for option in options]
    assert main(["adapt", "--target", new, "--budget", "5", "--out", str(tmp_path / "out"), *options]) == 2
    shown, problems = capsys.readouterr()
    assert shown == ""
    assert re.fullmatch(rf"lepton: error: .*{message}.*\n", problems), problems
    assert not (tmp_path / "out").exists()
