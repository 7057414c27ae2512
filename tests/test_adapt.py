"""`adapt()`: what it promises about the model, the verdict, the figures and the files."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import lepton_rl.report
from lepton_rl import ControlSettings, Domain, InputError, Shift, adapt
from lepton_rl.controls import KEEP
from lepton_rl.loading import load_model
from lepton_rl.policy import KeepPolicy, SchedulePolicy
from lepton_rl.preprocessing import predict
from lepton_rl.pretrain import pretrained
from lepton_rl.splits import split_source

SHIFT = Shift(kind="contrast", severity=1.0, seed=1)


@pytest.fixture(scope="module")
def domains():
    """Source, target with 60 of 300 labels, and test images; no image is in two of them."""
    digits = Domain.digits()
    target = SHIFT(digits.take(range(600, 900)))
    few = np.where(np.arange(300) < 60, target.labels, -1)
    return digits.take(range(600)), replace(target, labels=few), SHIFT(digits.take(range(900, 1100)))


@pytest.fixture(scope="module")
def model(domains):
    return pretrained("vgg", split_source(domains[0], 0)[0], width=8, steps=120)


@pytest.fixture(scope="module")
def adapted(domains, model, tmp_path_factory):
    source, target, test = domains
    out = tmp_path_factory.mktemp("adapt") / "run"
    rows = []
    result = adapt(
        model, source=source, target=target, test=test, policy="tuned-default", budget=60, out=out, callback=rows.append
    )
    return result, out, rows


def same(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def timeless(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


# ----- the result


def test_a_shifted_domain_is_won_back(adapted):
    result, _, _ = adapted
    assert result.verdict == "adapted"
    assert result.after["test_accuracy"] > result.before["test_accuracy"] + 0.1
    assert result.after["probe_accuracy"] > result.before["probe_accuracy"] + 0.1
    assert result.classes == tuple("0123456789")
    assert result.steps == 60


def test_the_history_has_a_row_per_decision_and_the_callback_sees_them_all(adapted):
    result, _, rows = adapted
    assert [row["decision"] for row in result.history] == list(range(9))
    assert [row["step"] for row in result.history] == [0, 7, 15, 22, 30, 37, 45, 52, 60]
    assert rows == result.history
    assert result.history[0]["action"] is None
    assert set(result.history[1]["action"].values()) <= set(KEEP)


def test_the_figures_are_those_of_the_returned_model(adapted, domains, model):
    result, _, _ = adapted
    test = domains[2]
    assert result.after["test_accuracy"] == float((result.predict(test) == test.labels).mean())
    assert result.before["test_accuracy"] == float((predict(model, test, result.preprocessing) == test.labels).mean())
    assert not result.model.training
    assert result.metrics.after.images == len(test)
    assert result.metrics.after.scores["accuracy"].value == result.after["test_accuracy"]
    assert np.trace(result.metrics.before.confusion) == round(result.before["test_accuracy"] * len(test))


def test_the_saved_weights_make_the_same_predictions(adapted, domains):
    result, out, _ = adapted
    loaded = load_model("vgg", out / "weights.safetensors")
    assert same(loaded, result.model.state_dict())
    assert (predict(loaded, domains[2], result.preprocessing) == result.predict(domains[2])).all()
    with safe_open(out / "weights.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["lepton_model"])
    assert facts["classes"] == list("0123456789")
    assert facts["preprocessing"]["mean"] == list(result.preprocessing.mean)


def test_the_folder_holds_everything(adapted):
    result, out, _ = adapted
    names = {"weights.safetensors", "history.jsonl", "result.json", "manifest.json", "report.html"}
    names |= {"explanation.json", "reference.safetensors"}
    assert {p.name for p in out.iterdir()} == names
    assert [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()] == result.history
    record = json.loads((out / "result.json").read_text())
    assert (record["verdict"], record["before"], record["after"]) == (result.verdict, result.before, result.after)
    assert record["classes"] == list("0123456789")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["arguments"]["target"]["labelled"] == 60
    assert (manifest["seed"], manifest["arguments"]["policy"]) == (0, "tuned-default")
    assert "Adaptation report" in (out / "report.html").read_text()


def test_the_original_is_never_touched(domains, model):
    source, target, _ = domains
    mine = copy.deepcopy(model).train()
    mine.stages[0].requires_grad_(False)
    state = copy.deepcopy(mine.state_dict())
    result = adapt(mine, source=source, target=target, policy="tuned-default", budget=10)
    assert result.model is not mine
    assert same(mine, state)
    assert not same(result.model, state)
    assert mine.training
    assert [p.requires_grad for p in mine.stages[0].parameters()] == [False] * 3


def test_the_same_seed_gives_the_same_weights(domains, model):
    source, target, _ = domains
    first, again, other = (
        adapt(model, source=source, target=target, policy="tuned-default", budget=10, seed=seed) for seed in (4, 4, 5)
    )
    assert same(first.model, again.model.state_dict())
    assert timeless(first.history) == timeless(again.history)
    assert not same(first.model, other.model.state_dict())


def test_test_labels_change_nothing_but_the_test_figure(domains, model):
    source, target, test = domains
    wrong = replace(test, labels=(test.labels + 1) % 10)
    one, two = (
        adapt(model, source=source, target=target, test=t, policy="tuned-default", budget=10) for t in (test, wrong)
    )
    assert timeless(one.history) == timeless(two.history)
    assert same(one.model, two.model.state_dict())
    assert one.after["probe_accuracy"] == two.after["probe_accuracy"]
    assert one.after["test_accuracy"] != two.after["test_accuracy"]


def test_where_nothing_gains_the_original_comes_back(domains, model):
    source, _, _ = domains
    harmful = KeepPolicy(settings=ControlSettings(learning_rate=3e-2))
    same_domain = Domain.digits().take(range(600, 900))
    result = adapt(model, source=source, target=same_domain, policy=harmful, budget=10, seed=0)
    assert (result.verdict, result.chosen) == ("kept the original", "original")
    assert "original" in result.reason
    assert same(result.model, model.state_dict())
    assert result.after == result.before


def test_a_policy_that_stops_at_once_takes_no_step(domains, model):
    stop = SchedulePolicy(actions=((*KEEP[:-1], 1),))
    result = adapt(model, source=domains[0], target=domains[1], policy=stop, budget=400)
    assert (result.steps, len(result.history)) == (0, 2)


# ----- regimes and models


@pytest.mark.parametrize("with_source", [True, False])
def test_without_labels_there_are_no_figures(domains, model, with_source, tmp_path):
    source, target, _ = domains
    result = adapt(
        model,
        source=source if with_source else None,
        target=target.without_labels(),
        policy="tuned-default",
        budget=10,
        progress=True,
        out=tmp_path / "out",
    )
    assert (result.before, result.after, result.metrics) == ({}, {}, None)
    assert result.history[0]["probe_accuracy"] is None
    assert result.history[0]["observation"]["has_source"] == with_source
    assert "no labels to measure with" in (tmp_path / "out" / "report.html").read_text()


def test_an_own_network_in_half_precision_with_tied_weights_and_no_batch_norm():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, stride=2)
            self.first = nn.Conv2d(8, 8, 3, padding=1)
            self.second = self.first
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = self.stem(x).relu()
            x = self.second(self.first(x).relu()).relu()
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    model = Own().to(torch.float16)
    rng = np.random.default_rng(0)
    target = Domain.from_arrays(rng.integers(0, 256, (40, 12, 12), dtype=np.uint8), rng.integers(0, 4, 40))
    result = adapt(model, target=target, policy="tuned-default", budget=5)
    assert {p.dtype for p in result.model.parameters()} == {torch.float16}
    assert result.model.first.weight is result.model.second.weight
    assert result.predict(target).shape == (40,)
    assert result.preprocessing.channels == 3


# ----- what is refused


def test_bad_input_is_refused_before_a_step_is_taken(domains, model, tmp_path):
    source, target, _ = domains
    rows = []

    def refused(match, **change):
        arguments = {"source": source, "target": target, "policy": "tuned-default", "out": tmp_path / "out"} | change
        with pytest.raises(InputError, match=match) as caught:
            adapt(arguments.pop("model", model), callback=rows.append, **arguments)
        assert "\n" not in str(caught.value)

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 40)
    refused("is not empty", out=tmp_path / "full")
    refused("below one decision", budget=4)
    refused("has 0 images", target=target.take([]))
    refused("has no parameters", model=nn.Identity())
    refused("is unknown", policy="lepton-v0")
    refused("is not a policy file", policy=tmp_path / "bad.safetensors")
    refused("outputs but the source knows", source=replace(source, classes=(*source.classes, "x")), new_head="never")
    assert rows == []
    assert {p.name for p in tmp_path.iterdir()} == {"full", "bad.safetensors"}


def test_a_failing_report_leaves_no_half_written_folder(adapted, tmp_path, monkeypatch):
    result, _, _ = adapted

    def fail(folder):
        assert (folder / "weights.safetensors").exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lepton_rl.report, "adapt_report", fail)
    with pytest.raises(OSError, match="No space"):
        result.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
