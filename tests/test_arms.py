"""The arms of the benchmark: what each trains, and that none gets more than it may."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny import same, task
from torch import nn

from lepton_rl.agents import arms
from lepton_rl.agents.arm import Arm
from lepton_rl.agents.arms import PolicyArm, SingleArm, TunerArm, arm_names, find_arm, register
from lepton_rl.agents.arms import found as found_module
from lepton_rl.agents.arms.auto_rgn import SurgicalEngine
from lepton_rl.agents.arms.learned import ShuffledPolicy
from lepton_rl.agents.arms.replayed import most_frequent
from lepton_rl.agents.arms.settings import cross_entropy_only
from lepton_rl.controls import ACTION_SIZES, KEEP, KNOBS, ControlSettings, tuned_default
from lepton_rl.errors import InputError
from lepton_rl.policy import KeepPolicy, RandomPolicy
from lepton_rl.rollout import rollout
from lepton_rl.run import AdaptationRun
from lepton_rl.signals import SIGNALS
from lepton_rl.solo import SoloEngine

ISSUED = {"source-only", "linear-probe", "full-finetune", "tuned-default", "random-policy", "policy", "tpe"}
FROM_FILES = ("tuned-default-per-regime", "tuned-schedule")
SINGLE = [name for name in arm_names() if isinstance(find_arm(name), SingleArm)]
DEFAULT = json.loads(tuned_default().to_json())
HEAD = "weights.head."


def bound(name):
    arm = find_arm(name, "tuned-default")
    return arm.taught([arm.lesson(task(4, budget=10), 3)]) if arm.lessons else arm


@pytest.fixture
def found(monkeypatch):
    """Files of the open-loop arms, whether or not the package ships them."""
    conditions = [r + f for r in ("few-label", "label-free") for f in ("", ", source-free")]
    slower = (2, 1, *KEEP[2:])
    files = {
        "tuned-default-per-regime": {
            "settings": {c: DEFAULT | {"augmentation": i / 4} for i, c in enumerate(conditions)}
        },
        "tuned-schedule": {"settings": DEFAULT | {"unfrozen_stages": 1}, "actions": [KEEP, slower]},
    }
    monkeypatch.setattr(found_module, "read_found", lambda name, maker: files[name])
    return files


def weights(result):
    """Parameters by name, and apart from them the statistics."""
    saved = result.engine.snapshot(0)
    parameters = {k: v for k, v in saved.items() if k.startswith("weights.")}
    return parameters, {k: v for k, v in saved.items() if k not in parameters}


def untouched(visible):
    engine = SoloEngine(visible)
    engine.load(0, visible, 5)
    return {k: v for k, v in engine.snapshot(0).items() if k.startswith("weights.")}


def depths(result):
    return [int(row["controls"]["unfrozen_stages"]) for row in result.history]


def test_every_name_of_the_issue_is_there_and_each_arm_says_where_it_is_from():
    assert set(arm_names()) >= ISSUED
    assert all(find_arm(name).source for name in arm_names())
    assert [n for n in arm_names() if find_arm(n).needs_policy] == ["policy", "policy-shuffled", "policy-replayed"]


@pytest.mark.parametrize(
    ("wrong", "near"), [("tuned-defualt", "tuned-default"), ("TPE", None), ("tpe-worm", "tpe-warm")]
)
def test_unknown_arm_names_the_nearest(wrong, near):
    with pytest.raises(InputError, match=r"expected one of source-only, .*tpe") as told:
        find_arm(wrong)
    assert repr(wrong) in str(told.value)
    assert near is None or f"did you mean {near!r}?" in str(told.value)


def test_a_name_is_registered_once_and_an_arm_must_be_able_to_run():
    other = PolicyArm(name="tpe", source="x", policy_for=lambda task: KeepPolicy())
    with pytest.raises(InputError, match="'tpe' exists already"):
        register(other)
    with pytest.raises(InputError, match="cannot run"):
        register(Arm(name="idle", source="x"))
    assert "idle" not in arm_names()
    assert register(find_arm("tpe")) is find_arm("tpe")


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.usefixtures("found")
def test_single_arms_stay_within_the_budget(name, labels):
    visible = task(3, labels=labels, source=labels, budget=10)
    result = bound(name).single(visible, 5)
    assert result.steps == (0 if name in {"source-only", "adabn"} else 10)
    assert np.isfinite(result.score)
    assert torch.isfinite(result.logits(visible.target_unlabelled.images)).all()


def test_source_only_is_the_network_as_it_is():
    visible = task(1)
    images = visible.target_unlabelled.images
    result = find_arm("source-only").single(visible, 5)
    mean, std = (torch.as_tensor(v, dtype=torch.float32)[:, None, None] for v in (visible.mean, visible.std))
    with torch.no_grad():
        expected = visible.model((torch.from_numpy(images).float() / 255 - mean) / std)
    assert torch.allclose(result.logits(images), expected, atol=1e-5)


def test_adabn_changes_statistics_and_no_weight():
    visible = task(1)
    parameters, statistics = weights(find_arm("adabn").single(visible, 5))
    assert same(parameters, untouched(visible))
    target = {k: v for k, v in statistics.items() if "target" in k}
    source = {k.replace("target", "source"): v for k, v in target.items()}
    assert target
    assert any(not torch.equal(statistics[k], v) for k, v in source.items())


def test_linear_probe_changes_the_head_alone_and_full_finetuning_everything(monkeypatch):
    visible = task(2, budget=15)
    before = untouched(visible)
    # The guard may bring the original back; here the last weights are looked at.
    monkeypatch.setattr("lepton_rl.rollout.choose", lambda candidates, margin: (candidates[-1], "last"))
    for name, all_layers in (("linear-probe", False), ("full-finetune", True)):
        after, _ = weights(find_arm(name).single(visible, 5))
        changed = {k for k in before if not torch.equal(before[k], after[k])}
        assert changed
        assert all(k.startswith(HEAD) for k in changed) != all_layers
        assert {k for k in before if k.startswith(HEAD)} <= changed
        if all_layers:
            assert changed == set(before)


def test_schedules_unfreeze_as_they_say():
    visible = task(2, budget=40)
    two_phases = find_arm("lp-ft").single(visible, 5)
    assert depths(two_phases) == [0, 0, 0, 0, 0, 1, 2, 3, 4]
    rates = [row["controls"]["learning_rate"] for row in two_phases.history]
    assert rates == pytest.approx([5e-3] * 5 + [2e-3] * 4)
    assert depths(find_arm("gradual-unfreezing").single(visible, 5)) == [0, 0, 1, 2, 3, 4, 4, 4, 4]


@pytest.mark.parametrize("budget", [5, 10, 25, 160])
def test_lp_ft_probes_for_half_of_the_decisions(budget):
    policy = find_arm("lp-ft").policy_for(task(2, budget=budget))
    n = min(8, budget // 5)
    opened = [action[KNOBS.index("unfreeze")] == 2 for action in policy.actions]
    assert opened[:n].index(True) == n // 2 if n > 1 else opened[0]
    assert sum(opened) == 4


def test_tuned_default_is_keeping_and_policy_runs_what_it_is_bound_to():
    visible = task(2, budget=10)
    expected = rollout(visible, KeepPolicy(), seed=5)
    for name in ("tuned-default", "policy"):
        assert same(bound(name).single(visible, 5).engine.snapshot(0), expected.engine.snapshot(0))
    slow = KeepPolicy(settings=ControlSettings(learning_rate=1e-5))
    assert find_arm("policy", slow).policy is slow


def test_a_missing_policy_is_told_when_the_arm_is_bound(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        find_arm("policy", str(tmp_path / "no.safetensors"))
    assert find_arm("tpe", str(tmp_path / "no.safetensors")).name == "tpe"  # needs none


def test_the_shuffled_policy_sees_the_same_numbers_in_one_wrong_order():
    seen = []

    class Watching(KeepPolicy):
        def act(self, observations, decisions, seeds):
            seen.append(observations)
            return super().act(observations, decisions, seeds)

    observation = torch.arange(2 * len(SIGNALS), dtype=torch.float32).reshape(2, -1)
    for _ in range(2):
        action = ShuffledPolicy(policy=Watching()).act(observation, torch.zeros(2), torch.zeros(2))
        assert action.tolist() == [list(KEEP)] * 2
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], observation)
    assert torch.equal(seen[0].sort(dim=1).values, observation)
    assert torch.equal(seen[0][1] - seen[0][0], torch.full((len(SIGNALS),), float(len(SIGNALS))))


def test_auto_rgn_gives_every_layer_its_share_of_the_learning_rate():
    """The first step of Adam moves every weight that has a gradient by the learning rate: what is left is the share."""
    engine = SurgicalEngine(task(2, budget=40))
    run = AdaptationRun(engine)
    run.start({0: (task(2, budget=40), 5, cross_entropy_only(learning_rate=1e-3))})
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    inner, moved, gradients = engine.backward, [], []

    def watched(*given):
        inner(*given)
        moved.append({name: (p.detach() - before[name]).abs().max() for name, p in engine.model.named_parameters()})
        gradients.append({name: p.grad.clone() for name, p in engine.model.named_parameters()})

    engine.backward = watched
    run.step(torch.tensor([KEEP]))
    layers = [name for name, module in engine.model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    norm = lambda tensors, layer: sum(float(x.square().sum()) for n, x in tensors.items() if n.startswith(layer)) ** 0.5  # noqa: E731
    norms = {layer: norm(gradients[0], f"{layer}.") / norm(before, f"{layer}.") for layer in layers}
    steps = {layer: float(moved[0][f"{layer}.weight"]) for layer in layers}
    largest = max(norms, key=norms.get)
    assert len(layers) > 3
    assert min(norms.values()) < 0.7 * norms[largest]
    assert steps[largest] == pytest.approx(1e-3, rel=0.01)
    for layer in layers:
        assert steps[layer] / steps[largest] == pytest.approx(norms[layer] / norms[largest], rel=0.01), layer
    still = [name for name in before if name.rpartition(".")[0] not in layers]
    assert still, "normalisation layers"
    assert all(moved[-1][name] == 0 for name in still)
    known = {p for group in engine.optimizer.param_groups for p in group["params"]}
    assert known == set(engine.model.parameters()), "a gradient that nobody clears piles up"


def test_auto_rgn_is_not_full_finetuning():
    results = [find_arm(name).single(task(2, budget=40), 5) for name in ("auto-rgn", "full-finetune")]
    one, other = (result.engine.snapshot(0) for result in results)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_default_per_regime_is_looked_up_by_what_is_known_beforehand(found):
    arm = find_arm("tuned-default-per-regime")
    for i, (labels, source) in enumerate([(True, True), (True, False), (False, True), (False, False)]):
        policy = arm.policy_for(task(3, labels=labels, source=source))
        assert policy == KeepPolicy(settings=dataclasses.replace(tuned_default(), augmentation=i / 4))


def test_a_tuned_schedule_is_played_as_it_was_found(found):
    result = find_arm("tuned-schedule").single(task(2, budget=20), 5)
    assert depths(result) == [1, 1, 2, 2, 2]
    rates = [row["controls"]["learning_rate"] for row in result.history]
    assert rates == pytest.approx([tuned_default().learning_rate] * 2 + [tuned_default().learning_rate / 2.5] * 3)
    found["tuned-schedule"]["actions"] = [[9] * len(KEEP)]
    with pytest.raises(InputError, match="holds no actions"):
        find_arm("tuned-schedule").single(task(2, budget=20), 5)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_an_arm_without_its_file_says_how_to_make_it(content, tmp_path, monkeypatch):
    monkeypatch.setattr(found_module.resources, "files", lambda package: tmp_path)
    (tmp_path / "defaults").mkdir()
    if content is not None:
        (tmp_path / "defaults" / "tuned-schedule.json").write_text(content)
    with pytest.raises(InputError, match=r"make it with `python scripts/tune_schedule\.py`") as told:
        find_arm("tuned-schedule").check()
    assert "\n" not in str(told.value)


def test_the_replayed_policy_plays_the_most_frequent_actions():
    one, two = (1, *KEEP[1:]), (2, *KEEP[1:])
    stop = (*KEEP[:-1], 1)
    assert most_frequent([(one, two), (two, two), (two, one)]) == (two, two)
    assert most_frequent([(one,), (two,)]) == (one,)  # a tie
    assert most_frequent([(KEEP, stop), (KEEP, stop), (KEEP, KEEP, two)]) == (KEEP, stop, (2, *KEEP[1:-1], 1))
    assert most_frequent([(KEEP, stop), (KEEP, KEEP, two), (KEEP, KEEP, two)]) == (KEEP, KEEP, two)
    arm = find_arm("policy-replayed", RandomPolicy())
    lessons = [arm.lesson(task(i, budget=20), i) for i in range(3)]
    assert [len(lesson) for lesson in lessons] == [4] * 3
    taught = arm.taught(json.loads(json.dumps(lessons)))
    assert len(taught.actions) == 4
    assert all(0 <= a < n for action in taught.actions for a, n in zip(action, ACTION_SIZES, strict=True))
    played = taught.single(task(7, budget=20), 5).history[1:]
    assert [tuple(row["action"].values()) for row in played] == list(taught.actions)


def test_arms_share_the_start_and_the_batches(monkeypatch):
    """Paired: whatever the arm, step k of a cell sees the same images and starts from the same weights."""
    from lepton_rl import streams

    visible = task(6, budget=10)
    real, drawn = streams.integers, {}

    def record(seeds, stream, counters, n, high):
        rows = real(seeds, stream, counters, n, high)
        for k, step in enumerate(counters[0].tolist()):
            drawn[current].setdefault((stream, step), rows[0, k].tolist())
        return rows

    monkeypatch.setattr(streams, "integers", record)
    starts = {}
    for current in ("full-finetune", "linear-probe", "tuned-default", "tpe"):
        drawn[current] = {}
        arm = find_arm(current)
        one = next(arm.search(visible, 5, 1)).result() if isinstance(arm, TunerArm) else arm.single(visible, 5)
        starts[current] = {k: one.history[0]["observation"][k] for k in ("entropy", "confidence", "probe_loss")}
    everywhere = {streams.SUPPORT_BATCH, streams.TARGET_BATCH}
    batches = {k: {key: v for key, v in d.items() if key[0] in everywhere} for k, d in drawn.items()}
    assert len(batches["full-finetune"]) == 20
    assert all(mine == batches["full-finetune"] for mine in batches.values())
    assert all(mine == starts["full-finetune"] for mine in starts.values())


def test_arms_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_arm("policy").name = "other"


def test_the_manual_names_every_arm():
    from pathlib import Path

    text = (Path(__file__).resolve().parent.parent / "docs" / "add-an-arm.md").read_text(encoding="utf-8")
    assert [name for name in arm_names() if f"`{name}`" not in text] == []
    assert arms.__doc__
    assert "docs/add-an-arm.md" in arms.__doc__
