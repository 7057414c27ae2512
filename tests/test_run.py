"""One run as a state machine: windows, ends, divergence, and that hidden labels are out of reach."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import EVERYTHING, PLAIN, domain, lane_weights, largest_gap, same, task

from lepton_rl.controls import KEEP, KNOBS
from lepton_rl.errors import InputError
from lepton_rl.fleet import FleetEngine
from lepton_rl.policy import KeepPolicy, RandomPolicy
from lepton_rl.rollout import rollout
from lepton_rl.run import DECISIONS, MIN_INTERVAL, AdaptationRun, decisions_of
from lepton_rl.signals import SIGNALS
from lepton_rl.solo import SoloEngine
from lepton_rl.task import AdaptationTask, HiddenTask

STOP, TRANSFER = KNOBS.index("stop"), KNOBS.index("transfer")


def keep(lanes=1):
    return torch.tensor([KEEP] * lanes)


def started(*tasks, settings=PLAIN, fleet=False, dtype=torch.float32):
    engine = FleetEngine(tasks[0], len(tasks), dtype=dtype) if fleet else SoloEngine(tasks[0], dtype=dtype)
    run = AdaptationRun(engine)
    return run, run.start({i: (t, i, settings) for i, t in enumerate(tasks)})


# ----- windows and ends


@given(st.integers(MIN_INTERVAL, 10_000))
def test_windows_are_long_enough_even_and_add_up_to_the_budget(budget):
    n = decisions_of(budget)
    windows = [budget * (d + 1) // n - budget * d // n for d in range(n)]
    assert n == min(DECISIONS, budget // MIN_INTERVAL)
    assert sum(windows) == budget
    assert min(windows) >= MIN_INTERVAL
    assert max(windows) - min(windows) <= 1


@pytest.mark.parametrize("budget", [5, 13, 43])
def test_a_run_takes_exactly_its_budget_and_then_is_over(budget):
    run, _ = started(task(budget=budget))
    taken = []
    while not run.over[0]:
        _, outcome = run.step(keep())
        taken.append(outcome.steps[0])
    assert sum(taken) == budget == int(run.engine.step_count[0])
    assert len(taken) == decisions_of(budget)
    assert outcome.ended == [True]


def test_too_small_a_budget_is_refused():
    with pytest.raises(InputError, match="budget 4"):
        started(task(budget=4))


def test_stop_ends_a_run_without_a_gradient_step():
    run, _ = started(task(budget=15))
    run.step(keep())
    before = lane_weights(run.engine)
    action = keep()
    action[0, STOP] = 1
    _, outcome = run.step(action)
    assert (outcome.steps, outcome.ended, outcome.diverged) == ([0], [True], [False])
    assert same(before, lane_weights(run.engine))


def test_the_transfer_coefficient_halves_the_distance_from_the_pretrained_weights():
    run, _ = started(task(budget=15))
    run.step(keep())
    before = run.engine.weight_norms()[1]
    action = keep()
    action[0, TRANSFER] = action[0, STOP] = 1
    run.step(action)
    assert torch.allclose(run.engine.weight_norms()[1], before / 2, rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"source": False}, {"labels": False}, {"probe": False}, {"images": 1}])
def test_observations_stay_inside_their_declared_ranges(options):
    run, seen = started(task(budget=15, **options), settings=EVERYTHING)
    low, high = (torch.tensor([getattr(signal, end) for signal in SIGNALS]) for end in ("low", "high"))
    while True:
        assert seen.dtype == torch.float32
        assert bool(((seen >= low) & (seen <= high)).all())
        if run.over[0]:
            break
        seen, _ = run.step(keep())


# ----- divergence


@pytest.mark.parametrize("fleet", [False, True])
def test_a_lane_that_diverges_goes_back_to_its_last_finite_weights(fleet):
    run, _ = started(task(budget=15), fleet=fleet)
    run.step(keep())
    good = lane_weights(run.engine)
    poison(run.engine, 0)
    seen, outcome = run.step(keep())
    assert (outcome.diverged, outcome.ended) == ([True], [True])
    assert same(good, lane_weights(run.engine))
    assert bool(torch.isfinite(seen).all())
    assert all(bool(torch.isfinite(value).all()) for value in run.checkpoint(0).values())


def poison(engine, lane):
    """Make one weight of a lane not a number."""
    with torch.no_grad():
        if hasattr(engine, "blocks"):
            engine.blocks[2][lane, 0] = float("nan")
        else:
            engine.groups[2][0].view(-1)[0] = float("nan")


def test_a_lane_that_diverges_does_not_touch_the_others():
    tasks = [task(i, budget=15) for i in range(3)]
    ends = {}
    for poisoned in (False, True):
        run, _ = started(*tasks, fleet=True, settings=EVERYTHING, dtype=torch.float64)
        run.step(keep(3))
        if poisoned:
            poison(run.engine, 1)
        seen, outcome = run.step(keep(3))
        assert outcome.diverged == [False, poisoned, False]
        seen, outcome = run.step(keep(3))
        ends[poisoned] = [(lane_weights(run.engine, i), seen[i]) for i in (0, 2)]
    for (clean, seen_clean), (beside, seen_beside) in zip(ends[False], ends[True], strict=True):
        # Lanes that all train take a shorter path, so rounding may differ, and nothing else.
        assert largest_gap(clean, beside) < 1e-9
        assert torch.allclose(seen_clean, seen_beside, atol=1e-6)


@pytest.mark.parametrize("fleet", [False, True])
def test_a_diverged_lane_can_start_again(fleet):
    visible = task(budget=10)
    run, _ = started(visible, fleet=fleet)
    first = run.step(keep())[0]
    poison(run.engine, 0)
    run.step(keep())
    run.start({0: (visible, 0, PLAIN)})
    assert torch.equal(run.step(keep())[0], first)


def test_an_absurd_learning_rate_diverges_instead_of_crashing():
    run, _ = started(task(budget=15, architecture="vgg-gn"))
    run.engine.heads.flat.data.zero_()
    run.controls = replace(run.controls, learning_rate=torch.tensor([1e38], dtype=torch.float64))
    stats = run.engine.train(run.controls, [5])
    assert not bool(run.engine.finite()[0] & torch.isfinite(stats.terms).all())


# ----- hidden labels


def test_hidden_labels_change_nothing(suite):
    made = suite.task("held-out-tasks", 0)
    hidden = made.hidden
    rng = np.random.default_rng(0)

    def shuffled(part):
        return replace(part, labels=rng.permutation(part.labels))

    other = AdaptationTask(
        visible=made.visible,
        hidden=HiddenTask(
            target_eval=shuffled(hidden.target_eval),
            target_test=shuffled(hidden.target_test),
            target_train_labels=rng.permutation(hidden.target_train_labels),
        ),
    )
    runs = [rollout(each.visible, RandomPolicy(), seed=3) for each in (made, other)]
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in run.history] for run in runs]
    assert rows[0] == rows[1]
    assert runs[0].chosen == runs[1].chosen
    assert same(lane_weights(runs[0].engine), lane_weights(runs[1].engine))


def test_visible_labels_do_change_something():
    visible = task(budget=10)
    wrong = replace(visible, target_support=domain(99, 9, 3))
    ends = [lane_weights(rollout(each, KeepPolicy(settings=PLAIN), seed=1).engine) for each in (visible, wrong)]
    assert not same(*ends)


def test_the_same_seed_gives_the_same_run_and_another_one_another():
    visible = task(budget=15)
    ends = [rollout(visible, RandomPolicy(settings=PLAIN), seed=seed) for seed in (1, 1, 2)]
    seen = [[row["observation"] for row in run.history] for run in ends]
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]
