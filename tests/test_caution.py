"""What it costs to be careful: which runs are played, and what the table says of them."""

from dataclasses import replace

import pytest

from lepton_rl.agents import caution
from lepton_rl.agents.caution import ALWAYS, Ended, caution_table, ended, play_all
from lepton_rl.agents.cells import Place
from lepton_rl.artifact import load_policy
from lepton_rl.errors import InputError
from lepton_rl.rollout import rollout
from lepton_rl.selection import ORIGINAL

RUN = Ended(
    split="a",
    index=0,
    regime="few-label",
    has_probe=True,
    scores=(0.5, 0.4),
    expected=3.0,
    accuracies=(50.0, 54.0),
)


@pytest.mark.parametrize("split", ["validation", "held-out-tasks"])
def test_a_run_is_judged_as_the_benchmark_does_it(suite, split):
    task, policy, place = suite.task(split, 0), load_policy("lepton-v1"), Place(split=split, index=0, seed=1)
    run = ended(task, policy, place)
    hidden = task.hidden.target_test if split == "held-out-tasks" else task.hidden.target_eval
    for asked in (ALWAYS, 100.0, 0.0):
        same = rollout(task.visible, caution.asking_for(policy, asked), seed=place.lane_seed(0))
        gained = run.gained(asked)
        assert (gained is None) == (same.chosen == ORIGINAL)
        assert 100 * same.accuracy(hidden) == pytest.approx(run.accuracies[0] + (gained or 0.0))


def test_who_asks_for_more_gets_the_original_more_often():
    assert RUN.gained(2.0) == 4.0
    assert RUN.gained(3.0) is None
    shown = replace(RUN, expected=-1.0, scores=(0.5, 0.6))
    assert shown.gained(0.0) == 4.0  # the labelled images show a gain
    assert shown.gained(0.5) is None


def test_the_table_counts_tasks_and_not_runs():
    harmed = replace(RUN, index=1, regime="label-free", accuracies=(50.0, 40.0), expected=1.0)
    runs = [RUN, harmed, replace(harmed, accuracies=(50.0, 58.0))]
    rows = caution_table(runs, (0.0, 2.0, 5.0)).splitlines()
    assert rows[0] == "| asked for | all (2) | few-label (1) | label-free (1) |"
    assert rows[3] == (
        "| 0 | +1.50 ± 1.77, 0.0% worse, 100% adapted | +4.00 ± 0.00, 0.0% worse, 100% adapted | "
        "-1.00 ± 0.00, 0.0% worse, 100% adapted |"
    )
    assert "| +2.00 ± 1.41, 0.0% worse, 33% adapted |" in rows[4]
    assert "| +0.00 ± 0.00, 0.0% worse, 0% adapted |" in rows[5]
    worse = caution_table([harmed], (0.0,)).splitlines()
    assert worse[2] == "| nothing: always adapted |" + " -10.00 ± 0.00, 100.0% worse, 100% adapted |" * 2


def test_all_splits_tasks_and_seeds_are_played(suite):
    runs = play_all(lambda: suite, "lepton-v1", ("validation", "held-out-tasks"), 1, 2, 1)
    assert sorted((run.split, run.index) for run in runs) == [("held-out-tasks", 0)] * 2 + [("validation", 0)] * 2
    assert len({run.expected for run in runs}) == 4


def test_a_policy_without_a_guard_and_an_unknown_split_are_told_at_once(suite):
    with pytest.raises(InputError, match="KeepPolicy has none"):
        play_all(lambda: suite, "tuned-default", ("validation",), 1, 1, 1)
    with pytest.raises(InputError, match="nowhere"):
        play_all(lambda: suite, "lepton-v1", ("nowhere",), 1, 1, 1)
