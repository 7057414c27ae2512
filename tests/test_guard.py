"""The learned guard: what it looks at, what it learns, and that a run goes by it."""

import dataclasses

import numpy as np
import pytest
import torch

from lepton_rl.agents import guarding
from lepton_rl.agents.experience import Experience
from lepton_rl.agents.guarding import MARGINS, evidence_of, expected_gains, guard_table, learn_guard, worth_of
from lepton_rl.artifact import PolicyArtifact
from lepton_rl.controls import ACTION_SIZES, KEEP
from lepton_rl.errors import InputError
from lepton_rl.guard import EVIDENCE, Guard, evidence
from lepton_rl.policy import KeepPolicy, NetworkPolicy, asking_for
from lepton_rl.rollout import rollout
from lepton_rl.run import AdaptationRun
from lepton_rl.selection import ORIGINAL, Candidate, choose_by_gain
from lepton_rl.signals import MEASURED_NAMES, SIGNAL_NAMES, SIGNALS
from lepton_rl.solo import SoloEngine
from lepton_rl.standardise import Standardiser
from tests.tiny import domain
from tests.tiny import task as tiny_task

N = len(SIGNALS)


def constant(points: float, margin: float = 1.0) -> Guard:
    """Return a guard that expects the same of everything."""
    layers = ((torch.zeros(1, EVIDENCE), torch.tensor([points])),)
    return Guard(inputs=Standardiser.unchanged(EVIDENCE), layers=layers, margin=margin)


def keeping(guard: Guard | None) -> NetworkPolicy:
    """Return a network that keeps every knob, with a guard."""
    bias = torch.cat([torch.eye(size)[keep] for size, keep in zip(ACTION_SIZES, KEEP, strict=True)])
    layers = ((torch.zeros(sum(ACTION_SIZES), N), bias),)
    return NetworkPolicy(inputs=Standardiser.unchanged(N), layers=layers, guard=guard)


def synthetic(number: int, lanes: int = 4, decisions: int = 3) -> Experience:
    """Return a task on which one signal tells what the weights are worth, and the visible score does not."""
    rng = torch.Generator().manual_seed(number)
    told = torch.rand(lanes, decisions + 1, generator=rng) - 0.5
    told[:, 0] = 0
    observations = torch.rand(lanes, decisions + 1, N, generator=rng)
    observations[..., 7] = told
    observations[..., SIGNAL_NAMES.index("has_probe")] = 0
    accuracies = (0.5 + 0.2 * told)[..., None].expand(-1, -1, 2).clone()
    return Experience(
        observations=observations,
        actions=torch.tensor(KEEP).expand(lanes, decisions, -1).clone(),
        accuracies=accuracies,
        scores=torch.rand(lanes, decisions + 1, generator=rng),
        original=torch.tensor([0.5, 0.5]),
        original_score=torch.tensor(0.5),
        original_signals=torch.zeros(len(MEASURED_NAMES)),
        facts={"regime": "label-free", "budget": 20, "source_free": 0, "name": str(number)},
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What these examples teach is learnt soon."""
    monkeypatch.setattr(guarding, "STEPS", 300)


@pytest.fixture(scope="module")
def experience() -> list[Experience]:
    return [synthetic(number) for number in range(40)]


def test_evidence_is_what_is_seen_now_what_was_seen_first_the_original_and_both_scores():
    m = len(MEASURED_NAMES)
    seen = evidence(
        now=torch.ones(2, 3, N),
        start=torch.zeros(2, 3, N),
        original=torch.full((2, 3, m), 4.0),
        score=torch.full((2, 3), 2.0),
        original_score=torch.full((2, 3), 3.0),
    )
    assert seen.shape == (2, 3, EVIDENCE)
    assert seen[0, 0].tolist() == [1.0] * N + [0.0] * N + [4.0] * m + [2.0, 3.0]


def test_it_learns_from_the_signal_that_tells_and_is_judged_on_tasks_it_did_not_see(experience):
    expected = torch.cat(expected_gains(experience))
    worth = torch.cat([worth_of(e)[:, -1] for e in experience])
    assert torch.corrcoef(torch.stack([expected, worth]))[0, 1] > 0.6
    # The same examples with the outcomes of other tasks: nothing is left to learn.
    others = [dataclasses.replace(e, accuracies=experience[i - 1].accuracies) for i, e in enumerate(experience)]
    expected = torch.cat(expected_gains(others))
    worth = torch.cat([worth_of(e)[:, -1] for e in others])
    assert torch.corrcoef(torch.stack([expected, worth]))[0, 1] < 0.3


def test_the_same_seed_gives_the_same_guard_and_another_seed_another(experience):
    first, again, other = (learn_guard(experience, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.layers[0], again.layers[0], strict=True))
    assert not torch.equal(first.layers[0][0], other.layers[0][0])


def test_gains_are_points(experience):
    guard = learn_guard(experience)
    seen = torch.cat([evidence_of(e)[:, -1] for e in experience])
    worth = torch.cat([worth_of(e)[:, -1] for e in experience])
    slope = float(torch.dot(guard.gain(seen), worth) / torch.dot(worth, worth))
    assert 0.6 < slope < 1.2


def test_a_guard_is_corrected_where_it_is_wrong_and_left_where_it_is_right(experience):
    first = learn_guard(experience)
    seen = torch.cat([evidence_of(e).flatten(0, 1) for e in experience])
    worth = torch.cat([worth_of(e).flatten() for e in experience])
    same = learn_guard(experience, 1, first)
    # Nothing new: what is added is small beside what is there.
    assert (same.gain(seen) - first.gain(seen)).std() < 0.4 * first.gain(seen).std()
    # Five points too high everywhere: that is what is learnt.
    (hidden, (weights, bias)) = first.layers
    wrong = dataclasses.replace(first, layers=(hidden, (weights, bias + 5)))
    mended = learn_guard(experience, 1, wrong)
    error, was = ((guard.gain(seen) - worth).mean() for guard in (mended, wrong))
    assert was > 4
    assert abs(error) < was / 2
    assert len(mended.layers[0][1]) == 2 * len(first.layers[0][1])
    shapes = ((4, EVIDENCE), (4, 4), (1, 4))
    deep = dataclasses.replace(first, layers=tuple((torch.zeros(s), torch.zeros(s[0])) for s in shapes))
    with pytest.raises(InputError, match="the guard to be corrected has 3 layers"):
        learn_guard(experience, 1, deep)


def test_what_is_far_out_is_taken_for_far_out(experience):
    guard = learn_guard(experience)
    edge = guard.inputs.high
    assert torch.equal(guard.gain(edge), guard.gain(edge + 1e6 * guard.inputs.std))
    assert not torch.equal(guard.gain(edge), guard.gain(guard.inputs.mean))
    assert torch.isfinite(guard.gain(torch.full((EVIDENCE,), 1e30)))


@pytest.mark.parametrize(("points", "adapted"), [(3.0, True), (1.5, True), (0.9, False), (-3.0, False)])
def test_a_run_goes_by_the_guard(points, adapted):
    task = tiny_task(budget=10, labels=False)
    result = rollout(task, keeping(constant(points)), seed=1)
    assert (result.chosen != ORIGINAL) == adapted
    assert f"{points:+.1f} points" in result.reason
    assert result.history[0]["expected_gain"] is None
    assert [row["expected_gain"] for row in result.history[1:]] == pytest.approx([points] * len(result.history[1:]))


@pytest.mark.parametrize(
    ("gain", "scores", "has_probe", "margin", "chosen"),
    [
        (2.0, (0.9, 0.1), True, 0.0, "last"),  # the guard is for it
        (-0.5, (0.5, 0.6), True, 0.0, "last"),  # the guard is not, the labelled images are
        (-0.5, (0.5, 0.6), False, 0.0, "original"),  # without them a score that rose says nothing
        (-0.5, (0.6, 0.6), True, 0.0, "original"),
        (-9.0, (0.6, 0.5), True, 0.0, "original"),
        (4.0, (0.5, 0.6), True, 5.0, "original"),  # who asks for more asks the guard alone
        (6.0, (0.6, 0.5), True, 5.0, "last"),
    ],
)
def test_the_original_comes_back_when_all_witnesses_are_for_it(gain, scores, has_probe, margin, chosen):
    weights = {"w": torch.zeros(1)}
    candidates = [
        Candidate(name=n, weights=weights, score=s) for n, s in zip(("original", "last"), scores, strict=True)
    ]
    choice, reason = choose_by_gain(candidates, gain, margin, has_probe=has_probe)
    assert choice.name == chosen
    assert f"{gain:+.1f} points" in reason
    assert ("5 asked for" in reason) == (margin > 0)


@pytest.mark.parametrize(("asked", "adapted"), [(2.9, True), (3.1, False), (-5, True)])
def test_more_can_be_asked_of_a_guard(asked, adapted):
    policy = keeping(constant(3.0, margin=0.0))
    careful = asking_for(policy, asked)
    assert policy.guard.margin == 0.0
    result = rollout(tiny_task(budget=10), careful, seed=1)
    assert (result.chosen != ORIGINAL) == adapted
    assert PolicyArtifact.from_bytes(PolicyArtifact(policy=careful, card={}).to_bytes()).policy.guard.margin == asked


@pytest.mark.parametrize("asked", [float("nan"), float("inf"), 101, True, "5", None])
def test_what_is_no_gain_is_refused(asked):
    with pytest.raises(InputError, match=r"min_gain .* is out of range: expected points of accuracy, -100 to 100"):
        asking_for(keeping(constant(3.0)), asked)


def test_who_has_no_guard_cannot_be_asked():
    for policy in (KeepPolicy(), keeping(None)):
        with pytest.raises(InputError, match="Policy has none: expected a trained policy, such as lepton-v1"):
            asking_for(policy, 5.0)


def test_the_original_is_untouched_where_it_is_kept():
    task = tiny_task(budget=10, labels=False)
    images = domain(9, 30, 3).images
    kept, other = (rollout(task, keeping(constant(-1.0)), seed=seed) for seed in (1, 2))
    assert torch.equal(kept.logits(images), other.logits(images))
    changed = rollout(task, keeping(constant(9.0)), seed=1)
    assert not torch.equal(kept.logits(images), changed.logits(images))


def test_without_a_guard_the_visible_scores_choose_as_for_any_policy():
    task = tiny_task(budget=10)
    plain, network = rollout(task, KeepPolicy(), seed=1), rollout(task, keeping(None), seed=1)
    assert (plain.chosen, plain.reason) == (network.chosen, network.reason)
    assert all(row["expected_gain"] is None for row in network.history)


def test_the_guard_sees_of_a_run_what_it_was_taught_to_see():
    """The evidence of a run is built as that of the experience: same order, same scores."""
    task = tiny_task(budget=10, labels=False)
    weights = torch.zeros(1, EVIDENCE)
    for at in range(EVIDENCE):
        if at in (0, N, EVIDENCE - 2, EVIDENCE - 1):  # progress now and at the start, score, score of the original
            weights[0, at] = 1.0
        if 2 * N <= at < EVIDENCE - 2:
            weights[0, at] = at
    guard = dataclasses.replace(constant(0.0), layers=((weights, torch.zeros(1)),))
    history = rollout(task, keeping(guard), seed=1).history
    for row in history[1:]:
        seen = row["observation"]["progress"] + 0.0 + row["score"] + _original_score(task)
        assert row["expected_gain"] == pytest.approx(seen + _original_signals(task), rel=1e-5)


def _original_signals(task) -> float:
    """Return the measured signals of the untouched network under the source's statistics, added up by place."""
    run = AdaptationRun(SoloEngine(task))
    run.start({0: (task, 1, KeepPolicy().settings)})
    measured = run.look_at_original(run.engine.views("source"))[0]
    other = run.look_at_original(run.engine.views("target"))[0]
    assert not torch.allclose(measured, other), "normalisation by the target is not what the user had"
    return sum((2 * N + i) * float(x) for i, x in enumerate(measured))


def _original_score(task) -> float:
    return rollout(task, keeping(constant(-9.0)), seed=1).score


def test_the_table_has_a_row_per_rule_and_pays_hindsight_most(experience):
    table = guard_table(experience, np.zeros(len(experience), int), [expected_gains(experience)])
    rows = {line.split("|")[1].strip(): float(line.split("|")[2].split("±")[0]) for line in table.splitlines()[2:]}
    assert list(rows)[:2] == ["none: the last weights", "visible scores"]
    assert len(rows) == 3 + 2 * len(MARGINS)
    # Without a probe there is one witness: its word and that of both are the same.
    assert all(rows[f"learned, margin {m:g}"] == rows[f"learned, margin {m:g}, or the probe"] for m in MARGINS)
    assert rows["hindsight"] >= max(rows.values())
    assert rows["learned, margin 0"] > rows["visible scores"]
