"""Numbers worked out by hand, and properties that hold for any scores."""

import cProfile
import pstats
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_rl.agents import estimates, statistics
from lepton_rl.agents.comparison import paired_difference
from lepton_rl.errors import InputError

SCORES = st.lists(st.floats(-2, 2, allow_nan=False).map(lambda x: round(x, 6)), min_size=1, max_size=40)


def row(arm="policy", task="a", seed=0, runs=1, accuracy=0.7, **other):
    facts = {"split": "held-out", "regime": "few-label", "source_only": 0.5, "supervised": 0.9}
    cost = {"steps": 100, "seconds": 1.0}
    return {
        "arm": arm,
        "task": task,
        "seed": seed,
        "runs": runs,
        "accuracy": accuracy,
        **facts,
        **cost,
        **other,
    }


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.3], 0.3),
        ([0, 1, 2], 1.0),  # three values: a quarter rounds down to none
        ([100, 1, 2, -100], 1.5),
        ([0, 0, 1, 2, 3, 4, 90, 95], 2.5),
    ],
)
def test_iqm_averages_the_middle_half(scores, expected):
    assert statistics.iqm(scores) == pytest.approx(expected)


def test_normalised_score_by_hand_with_the_cells_without_room_left_out():
    scores = statistics.normalised_score([0.7, 0.4, 0.95, 0.6], [0.5] * 4, [0.9, 0.9, 0.9, 0.51])
    assert scores[:3] == pytest.approx([0.5, -0.25, 1.125])
    assert np.isnan(scores[3])


def test_room_of_exactly_two_points_counts():
    assert statistics.normalised_score([0.51], [0.5], [0.52]) == pytest.approx([0.5])


def test_optimality_gap_ignores_what_is_above_the_target():
    assert statistics.optimality_gap([0.5, 2.0, 0.9]) == pytest.approx(0.2)


def test_performance_profile_is_the_share_strictly_above():
    assert statistics.performance_profile([0.0, 0.5, 0.5, 1.0], [-1, 0.0, 0.5, 1.0]) == pytest.approx(
        [1, 0.75, 0.25, 0]
    )


def test_probability_of_improvement_counts_ties_half_and_averages_tasks():
    # a: pairs (1,0) (1,1) (2,0) (2,1) = 3.5 of 4; b: 0 of 1
    value = statistics.probability_of_improvement([1, 2, 0], [0, 1, 5], ["a", "a", "b"], ["a", "a", "b"])
    assert value == pytest.approx((3.5 / 4 + 0) / 2)


def test_probability_of_improvement_needs_a_common_task():
    with pytest.raises(InputError, match="none in common"):
        statistics.probability_of_improvement([1], [2], ["a"], ["b"])


def test_runs_to_match_takes_the_median_task_and_never_flatters_the_policy():
    reached = {
        "a": {1: 0.5, 4: 0.8},
        "b": {1: 0.9, 4: 0.9},
        "c": {1: 0.1, 4: 0.2},
        "d": {1: 0.6, 4: 0.6},
    }
    goal = dict.fromkeys("abcd", 0.7)
    assert statistics.runs_to_match(reached, goal) == {"median": 4, "never": 0.5, "largest": 4, "tasks": 4}
    del reached["b"]
    assert statistics.runs_to_match(reached, goal)["median"] is None


def test_runs_to_match_has_an_interval_over_the_tasks():
    reached = {task: {1: 0.5, 2: 0.6, 8: 0.9} for task in range(40)}
    goal = {task: 0.5 if task < 10 else 0.6 if task < 30 else 0.95 for task in range(40)}
    found = statistics.runs_to_match(reached, goal, rng=np.random.default_rng(0))
    assert (found["median"], found["ci"]) == (2, [2, 2])
    half = {task: 0.5 if task < 21 else 0.95 for task in range(40)}
    found = statistics.runs_to_match(reached, half, rng=np.random.default_rng(0))
    assert (found["median"], found["ci"]) == (1, [1, None])  # beyond the most runs tried
    one = statistics.runs_to_match({"a": {1: 0.5}}, {"a": 0.4}, rng=np.random.default_rng(0))
    assert (one["median"], one["ci"]) == (1, [1, 1])


@given(st.lists(st.sampled_from([1.0, 2.0, 8.0, np.inf]), min_size=1, max_size=30), st.integers(0, 99))
def test_the_interval_of_runs_to_match_holds_the_median_and_agrees_with_sorting(needed, seed):
    ordered = np.sort(np.array(needed))
    low, high = estimates._median_interval(ordered, np.random.default_rng(seed), 200)
    middle = (len(needed) - 1) // 2
    samples = np.sort(np.random.default_rng(seed).choice(ordered, (200, len(needed))), axis=1)[:, middle]
    ends = np.quantile(samples, [0.025, 0.975], method="inverted_cdf")
    assert [low, high] == [None if np.isinf(end) else int(end) for end in ends]


def test_profiles_are_in_the_summary():
    rows = [row(task=str(i), accuracy=0.5 + 0.1 * i) for i in range(4)]
    profiles = statistics.summarise(rows)["profiles"]
    shares = dict(zip(profiles["thresholds"], profiles["arms"]["policy"], strict=True))
    expected = statistics.normalised_score(
        [0.5, 0.6, 0.7, 0.8], [rows[0]["source_only"]] * 4, [rows[0]["supervised"]] * 4
    )
    for threshold in (-0.2, 0.1, 0.6, 1.2):
        assert shares[threshold] == pytest.approx(np.mean(expected > threshold))


def test_estimates_agree_with_rliable():
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    scores = np.random.default_rng(0).normal(0.5, 0.3, (10, 7))  # runs x tasks
    other = np.random.default_rng(1).normal(0.4, 0.3, (10, 7))
    tasks = list(range(7)) * 10
    assert statistics.iqm(scores) == pytest.approx(metrics.aggregate_iqm(scores))
    assert statistics.mean(scores) == pytest.approx(metrics.aggregate_mean(scores))
    assert statistics.optimality_gap(scores) == pytest.approx(metrics.aggregate_optimality_gap(scores))
    theirs = metrics.probability_of_improvement(scores, other)
    assert statistics.probability_of_improvement(scores, other, tasks, tasks) == pytest.approx(theirs)
    profile, _ = library.create_performance_profile({"x": scores}, np.linspace(0, 1, 11), reps=10)
    assert statistics.performance_profile(scores, np.linspace(0, 1, 11)) == pytest.approx(profile["x"])
    _, interval = library.get_interval_estimates(
        {"x": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000
    )
    ours = statistics.bootstrap_interval(scores.ravel(), tasks, rng=np.random.default_rng(0), resamples=2000)
    assert ours == pytest.approx(interval["x"][:, 0], abs=0.015)


def test_interval_has_no_width_where_the_seeds_of_every_task_agree():
    rng = np.random.default_rng(0)
    assert statistics.bootstrap_interval([0.2, 0.2, 0.8, 0.8], ["a", "a", "b", "b"], rng=rng) == pytest.approx(
        (0.5, 0.5)
    )


def test_single_seed_per_task_resamples_the_tasks():
    rng = np.random.default_rng(0)
    low, high = statistics.bootstrap_interval([0.0, 1.0] * 8, list(range(16)), rng=rng)
    assert low < 0.4 < 0.6 < high


def test_interval_of_a_mean_agrees_with_its_closed_form():
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    low, high = statistics.bootstrap_interval(values, [0] * 400, rng=np.random.default_rng(2), trim=0.0, resamples=4000)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=1e-3)
    assert high == pytest.approx(values.mean() + half, abs=1e-3)


def test_strata_are_resampled_apart():
    # Two far groups: the mean of a stratified sample moves by the noise within them, not by their distance.
    scores = np.concatenate([np.linspace(0, 0.01, 50), np.linspace(10, 10.01, 50)])
    low, high = statistics.bootstrap_interval(scores, ["a"] * 50 + ["b"] * 50, rng=np.random.default_rng(0), trim=0.0)
    assert high - low < 0.01


def test_interval_agrees_with_a_bootstrap_that_sorts_every_sample():
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(6, 7))
    low, high = statistics.bootstrap_interval(
        scores.ravel(), [task for task in range(6) for _ in range(7)], rng=rng, resamples=4000
    )
    draws = [[rng.choice(task, 7) for task in scores] for _ in range(4000)]
    middle = np.sort(np.reshape(draws, (4000, 42)), axis=-1)[:, 10:32].mean(axis=-1)
    assert [low, high] == pytest.approx(np.quantile(middle, [0.025, 0.975]), abs=0.03)


def test_policies_are_drawn_for_all_tasks_at_once():
    """A good and a bad policy on 20 tasks: drawn anew for each task they would hide each other."""
    scores, tasks = [1.0, 0.0] * 20, [task for task in range(20) for _ in range(2)]
    rng = np.random.default_rng(0)
    apart = statistics.bootstrap_interval(scores, tasks, groups=["good", "bad"] * 20, rng=rng, trim=0.0)
    assert apart == (0.0, 1.0)  # both drawn the same: one time in four each
    low, high = statistics.bootstrap_interval(scores, tasks, rng=rng, trim=0.0)
    assert 0.3 < low < high < 0.7


def test_one_policy_changes_nothing_and_a_missing_cell_does_no_harm():
    scores, tasks = np.linspace(0, 1, 12), [0, 0, 0, 1, 1, 1] * 2
    one = statistics.bootstrap_interval(scores, tasks, groups=["a"] * 12, rng=np.random.default_rng(0))
    assert one == statistics.bootstrap_interval(scores, tasks, rng=np.random.default_rng(0))
    groups = ["a", "b", "a", "a", "a", "a"] * 2  # task 1 has no cell of policy b
    low, high = statistics.bootstrap_interval(scores, tasks, groups=groups, rng=np.random.default_rng(0))
    assert 0 <= low < statistics.iqm(scores) < high <= 1


def test_bands_of_profiles_are_sums_of_binomials():
    # Above 0.5: 1 of 2 in task a, 2 of 2 in b: share 0.75, variance (1 * 0.5) / 16.
    low, high = statistics.profile_band([0, 1, 1, 1], [0.5, 2], ["a", "a", "b", "b"])
    assert low == pytest.approx([0.75 - 1.96 * np.sqrt(0.5) / 4, 0])
    assert high == pytest.approx([1, 0])
    low, _ = statistics.profile_band([0, 1, 1, 1], [0.5], list("abcd"))  # single cells: one stratum of four
    assert low == pytest.approx([0.75 - 1.96 * np.sqrt(4 * 0.75 * 0.25) / 4])


def test_paired_differences_by_hand():
    ours = [row(task=t, seed=s, accuracy=a) for t, s, a in (("a", 0, 0.7), ("a", 1, 0.8), ("b", 0, 0.5), ("c", 0, 0.9))]
    theirs = [row(task=t, seed=s, accuracy=a) for t, s, a in (("a", 0, 0.6), ("a", 1, 0.8), ("b", 0, 0.6))]
    found = paired_difference(ours, theirs, np.random.default_rng(0))
    assert found["mean"] == pytest.approx((0.05 - 0.1) / 2)  # seeds first, then tasks; c has no partner
    assert (found["tasks"], found["won"], found["lost"], found["tied"]) == (2, 1, 1, 0)
    assert found["ci"] == pytest.approx([-0.1, 0.05])
    assert found["verdict"] == "not apart"
    assert paired_difference(ours[3:], theirs, np.random.default_rng(0)) == {}
    assert paired_difference(ours[:1], theirs, np.random.default_rng(0))["ci"] == [None, None]


def test_a_difference_on_every_task_is_apart_and_policies_are_paired_with_themselves():
    ours = [row(task=str(t), policy=p, accuracy=0.7 + 0.01 * (p == "q")) for t in range(6) for p in "pq"]
    same = [row(task=str(t), policy=p, accuracy=0.6 + 0.01 * (p == "q")) for t in range(6) for p in "pq"]
    found = paired_difference(ours, same, np.random.default_rng(0))
    assert (found["mean"], found["verdict"]) == (pytest.approx(0.1), "above")
    assert found["ci"] == pytest.approx([0.1, 0.1])
    default = [row(task=str(t), policy=None, accuracy=0.75) for t in range(6)]
    found = paired_difference(ours, default, np.random.default_rng(0))
    assert (found["mean"], found["verdict"], found["lost"]) == (pytest.approx(-0.045), "below", 6)
    assert found["ci"] == pytest.approx([-0.05, -0.04])  # which policies are drawn


def test_several_policies_are_summarised_together_and_apart():
    rows = [row(task=t, policy=p, accuracy=a) for t in "ab" for p, a in (("p", 0.7), ("q", 0.9))]
    rows += [row(arm="tuned-default", task=t, policy=None, accuracy=0.6) for t in "ab"]
    summary = statistics.summarise(rows)
    assert summary["arms"]["policy"]["iqm"] == pytest.approx(0.75)
    assert summary["arms"]["policy"]["ci"] == pytest.approx([0.5, 1.0])
    assert {p: one["iqm"] for p, one in summary["policies"].items()} == {
        "p": pytest.approx(0.5),
        "q": pytest.approx(1.0),
    }
    assert summary["differences"]["tuned-default"]["mean"] == pytest.approx(0.2)
    assert summary["cells"] == 2


def test_harm_is_counted_by_task_on_the_mean_over_its_seeds():
    rows = [
        row(task=t, seed=s, accuracy=a) for t, s, a in (("a", 0, 0.4), ("a", 1, 0.7), ("b", 0, 0.4), ("b", 1, 0.55))
    ]
    assert statistics.summarise(rows)["negative_transfer"] == {"policy": 0.5}  # means 0.55 and 0.475, source-only 0.5


@given(SCORES)
def test_iqm_lies_between_minimum_and_maximum(scores):
    assert min(scores) - 1e-12 <= statistics.iqm(scores) <= max(scores) + 1e-12


@given(SCORES, st.floats(-5, 5))
def test_iqm_moves_with_the_scores(scores, shift):
    moved = statistics.iqm([x + shift for x in scores])
    assert moved == pytest.approx(statistics.iqm(scores) + shift, abs=1e-9)


@given(SCORES, st.randoms(use_true_random=False))
def test_order_does_not_matter(scores, random):
    rows = [(x, i % 3) for i, x in enumerate(scores)]
    mixed = random.sample(rows, len(rows))
    first = statistics.bootstrap_interval(
        [x for x, _ in rows], [t for _, t in rows], rng=np.random.default_rng(3), resamples=50
    )
    second = statistics.bootstrap_interval(
        [x for x, _ in mixed], [t for _, t in mixed], rng=np.random.default_rng(3), resamples=50
    )
    assert first == second
    assert statistics.iqm([x for x, _ in mixed]) == pytest.approx(statistics.iqm(scores), abs=1e-12)


@given(SCORES, st.integers(1, 5))
def test_interval_contains_the_estimate_and_stays_within_the_scores(scores, tasks):
    strata = [i % tasks for i in range(len(scores))]
    low, high = statistics.bootstrap_interval(scores, strata, rng=np.random.default_rng(0), resamples=60)
    assert low <= statistics.iqm(scores) <= high
    assert min(scores) - 1e-12 <= low
    assert high <= max(scores) + 1e-12


@pytest.mark.parametrize(
    ("scores", "strata", "message"),
    [([], [], "no scores"), ([0.1, np.nan], [0, 0], "finite"), ([0.1, 0.2], [0], "1 strata for 2 scores")],
)
def test_bad_scores_are_named(scores, strata, message):
    with pytest.raises(InputError, match=message):
        statistics.bootstrap_interval(scores, strata, rng=np.random.default_rng(0))


def test_summary_by_hand():
    rows = [
        row(task="a", accuracy=0.7),
        row(task="b", accuracy=0.8),
        row(arm="source-only", task="a", accuracy=0.5),
        row(arm="source-only", task="b", accuracy=0.5),
        row(arm="tpe", task="a", runs=1, accuracy=0.48),
        row(arm="tpe", task="b", runs=1, accuracy=0.8),
        row(arm="tpe", task="a", runs=4, accuracy=0.72),
        row(arm="tpe", task="b", runs=4, accuracy=0.78),
    ]
    summary = statistics.summarise(rows)
    assert summary["arms"]["policy"]["iqm"] == pytest.approx(0.625)  # (0.5 + 0.75) / 2
    assert summary["arms"]["tpe"]["iqm"] == pytest.approx((0.55 + 0.7) / 2)  # at 4 runs
    assert summary["arms"]["tpe"]["runs"] == 4
    assert summary["arms"]["tpe"]["by_runs"]["1"]["mean_accuracy"] == pytest.approx(0.64)
    assert summary["arms"]["tpe"]["by_runs"]["1"]["negative_transfer"] == 0.5
    assert summary["negative_transfer"] == {"policy": 0.0, "source-only": 0.0, "tpe": 0.0}
    assert summary["runs_to_match"] == {"tpe": {"median": 1, "never": 0.0, "largest": 4, "tasks": 2, "ci": [1, 4]}}
    assert summary["improvement"] == {"source-only": 1.0, "tpe": 0.5}
    assert (summary["cells"], summary["left_out"]) == (2, 0)


def test_one_point_below_source_only_is_not_yet_harm():
    summary = statistics.summarise([row(accuracy=0.4901), row(task="b", accuracy=0.4899)])
    assert summary["negative_transfer"] == {"policy": 0.5}


def test_cells_without_room_are_counted_and_left_out_of_scores_only():
    summary = statistics.summarise([row(accuracy=0.7), row(task="b", accuracy=0.1, supervised=0.5)])
    policy = summary["arms"]["policy"]
    assert (policy["iqm"], policy["left_out"], summary["left_out"]) == (pytest.approx(0.5), 1, 1)
    assert policy["mean_accuracy"] == pytest.approx(0.4)
    assert summary["negative_transfer"]["policy"] == 0.5


def test_nothing_to_normalise_gives_no_score():
    policy = statistics.summarise([row(supervised=0.5)])["arms"]["policy"]
    assert policy["iqm"] is None
    assert policy["ci"] == [None, None]


def test_groups_hold_one_part_per_regime_and_split():
    rows = [
        row(accuracy=0.7),
        row(accuracy=0.9, split="held-out shift"),
        row(accuracy=0.5, regime="label-free"),
    ]
    groups = statistics.summarise(rows)["groups"]
    found = {(g["regime"], g["split"]): g["arms"]["policy"]["iqm"] for g in groups}
    assert found == {
        ("few-label", "held-out"): pytest.approx(0.5),
        ("few-label", "held-out shift"): pytest.approx(1.0),
        ("label-free", "held-out"): pytest.approx(0.0),
    }


def test_bad_rows_are_named():
    with pytest.raises(InputError, match="0 benchmark rows"):
        statistics.summarise([])
    with pytest.raises(InputError, match="row 2 has no field 'task'"):
        statistics.summarise([row(), {k: v for k, v in row().items() if k != "task"}])
    with pytest.raises(InputError, match="'accuracy' is nan"):
        statistics.summarise([row(accuracy=float("nan"))])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.floats(0, 1)), min_size=1, max_size=20))
def test_summary_does_not_depend_on_the_order_of_rows(cells):
    rows = [row(task=t, seed=s, accuracy=round(a, 6)) for t, s, a in {(t, s): (t, s, a) for t, s, a in cells}.values()]
    first, second = (statistics.summarise(order, resamples=20) for order in (rows, rows[::-1]))
    assert first["arms"]["policy"]["ci"] == second["arms"]["policy"]["ci"]
    assert first["negative_transfer"] == second["negative_transfer"]


def many_rows(tasks):
    rng = np.random.default_rng(0)
    return [
        row(arm=arm, task=f"t{task}", seed=seed, accuracy=float(a), split=("held-out", "other")[task % 2])
        for arm in ("policy", "tuned-default", "tpe", "source-only")
        for task in range(tasks)
        for seed, a in enumerate(rng.random(10))
    ]


def test_work_grows_no_faster_than_the_rows():
    """Counted in calls: a clock tells the processor's caches as well, and what else runs on the machine."""

    def calls(tasks):
        profile = cProfile.Profile()
        profile.runcall(statistics.summarise, many_rows(tasks))
        return pstats.Stats(profile).total_calls

    assert calls(500) < 10 * calls(50)


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_seconds():
    """And not more than their number: ten times the rows take at most ten times the time, on any processor."""

    def taken(tasks):
        rows = many_rows(tasks)
        start = time.process_time()  # a busy machine must not fail it
        return statistics.summarise(rows), time.process_time() - start

    for _ in range(3):  # what shares the processor's caches must not either
        (_, few), (summary, many) = taken(250), taken(2500)
        if many < 10 * few:
            break
    assert many < 10 * few
    assert many < 30  # 10.1 on a slow processor
    assert summary["cells"] == 25_000
