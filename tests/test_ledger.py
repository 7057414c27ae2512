"""What meta-training cost and when it pays off, by hand."""

import pytest

from lepton_rl.agents.ledger import ledger, search_cost, training_cost
from lepton_rl.agents.statistics import summarise

CARD = {
    "arguments": {
        **{"rollouts": 40, "n_envs": 16, "n_steps": 32, "tasks": 300},
        **{"validate_every": 10, "validation_tasks": 48},
    }
}
DEFAULT = {"search": {"runs": 480, "seconds": 962}}
RUNS = 2560 + 300 + 5 * 48  # 20480 decisions / 8, the default on every task, four validations and the default's


def rows(policy=0.7):
    places = {"split": "s", "regime": "few-label", "seed": 0, "source_only": 0.5, "supervised": 0.9}
    cells = [("policy", 1, policy, 100)] + [("tpe", k, a, 100 * k) for k, a in ((1, 0.5), (4, 0.6), (8, 0.7))]
    return [
        {**places, "arm": arm, "task": task, "runs": runs, "accuracy": a, "steps": steps, "seconds": steps / 50}
        for arm, runs, a, steps in cells
        for task in "ab"
    ]


def test_the_cost_of_training_follows_from_the_card():
    assert training_cost(CARD, 100.0, 0.02) == {"runs": RUNS, "steps": 100 * RUNS, "seconds": 2 * RUNS}
    taught = CARD | {"experience": {"tasks": 2, "runs": 10, "steps": 700}}
    assert training_cost(taught, 100.0, 0.02)["runs"] == RUNS + 10
    assert training_cost(taught, 100.0, 0.02)["steps"] == 100 * RUNS + 700
    assert training_cost({"cost": {"runs": 5, "steps": 50}}, 100.0, 0.02) == {"runs": 5, "steps": 50, "seconds": None}
    assert training_cost({"arguments": {}}, 100.0, None) == {"runs": None, "steps": None, "seconds": None}


def test_the_cost_of_the_default_is_what_its_search_says():
    assert search_cost(DEFAULT, 100.0, 0.02) == {"runs": 480, "steps": 48_000, "seconds": 962}
    assert search_cost({"search": {"games": 7, "steps": 650}}, 100.0, 0.02) == {"runs": 7, "steps": 650, "seconds": 13}
    assert search_cost({}, 100.0, 0.02)["runs"] is None


def test_it_pays_off_after_as_many_domains_as_the_saved_runs_need():
    found = ledger(summarise(rows()), {"m": CARD}, DEFAULT)
    # Eight runs match: 700 steps a domain are saved, 310,000 + 48,000 were spent.
    assert found["training"]["m"]["runs"] == RUNS == 3100
    assert found["pays_off"] == {"tpe": {"runs": 8, "at_least": False, "saved_steps": 700, "domains": 512}}


def test_a_tuner_that_never_matches_gives_a_bound_and_one_run_that_matches_never_pays():
    assert ledger(summarise(rows(0.8)), {"m": CARD}, DEFAULT)["pays_off"]["tpe"] == {
        **{"runs": None, "at_least": True, "saved_steps": 700, "domains": 512}
    }
    assert ledger(summarise(rows(0.4)), {"m": CARD}, DEFAULT)["pays_off"]["tpe"]["domains"] is None


@pytest.mark.parametrize("cards", [{}, {"tuned-default": {}}])
def test_without_a_card_nothing_is_claimed(cards):
    assert ledger(summarise(rows()), cards, DEFAULT)["pays_off"] == {}
    assert ledger(summarise([row for row in rows() if row["arm"] == "tpe"]), cards, DEFAULT) == {}
