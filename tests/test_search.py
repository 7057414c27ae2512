"""The search over training tasks: in the form that the arms read, and a killed one keeps what it found."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lepton_rl.agents import search as module
from lepton_rl.agents.arms.found import checked_actions
from lepton_rl.agents.crew import Done
from lepton_rl.agents.search import DEFAULT, SCHEDULE, SearchConfig, search
from lepton_rl.agents.trials import Played
from lepton_rl.controls import ControlSettings
from lepton_rl.errors import InputError
from lepton_rl.stopping import Unfinished

ROOT = Path(__file__).resolve().parent.parent


class Players:
    """Plays games here, by a smooth function: the best learning rate is 3e-3."""

    def __init__(self):
        self.games, self.fails_after = [], math.inf

    def __call__(self, workers, start, check):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *words):
        return None

    def run(self, games):
        for game in reversed(games):  # they come back in any order
            self.games.append(game)
            if len(self.games) > self.fails_after:
                yield Done(job=game, problem="its worker died 2 times (signal 9, Killed)")
                return
            score = 1 - abs(math.log(game.policy.settings.learning_rate / 3e-3)) / 10
            yield Done(job=game, value=Played(accuracy=score, steps=10, images=2))


@pytest.fixture
def players(monkeypatch):
    made = Players()
    monkeypatch.setattr(module, "Crew", made)
    return made


def test_a_schedule_is_found_and_written_as_the_arm_reads_it(players, tmp_path):
    out = tmp_path / "tuned-schedule.json"
    made = search(SearchConfig(tasks=6, trials=25, out=out), SCHEDULE)
    content = json.loads(out.read_text())
    assert content == json.loads(json.dumps(made))
    assert checked_actions(content["actions"], "x")
    assert ControlSettings(**content["settings"]).learning_rate == pytest.approx(3e-3, rel=0.5)
    assert {game.index for game in players.games} == set(range(6))
    assert len(players.games) < 25 * 6  # poor trials stop after a third of the tasks
    assert content["search"]["games"] == len(players.games)
    assert content["search"]["steps"] == 10 * len(players.games)
    assert content["search"]["finished_trials"] == 25


@pytest.mark.parametrize("what", [DEFAULT, SCHEDULE])
def test_a_search_that_fails_keeps_its_best_and_goes_on_to_the_same_end(players, tmp_path, what):
    whole = search(SearchConfig(tasks=3, trials=14, out=tmp_path / "whole.json"), what)
    players.fails_after = len(players.games) + 23
    config = SearchConfig(tasks=3, trials=14, out=tmp_path / "parts.json")
    with pytest.raises(Unfinished, match="died 2 times"):
        search(config, what)
    early = json.loads((tmp_path / "parts.json").read_text())
    assert 0 < early["search"]["finished_trials"] < whole["search"]["finished_trials"]
    players.fails_after = math.inf
    parts = search(config, what)
    assert {key: parts[key] for key in parts if key != "search"} == {
        key: whole[key] for key in parts if key != "search"
    }
    assert parts["search"]["games"] == whole["search"]["games"]


def test_the_best_is_on_the_disk_after_every_trial(players, tmp_path, monkeypatch):
    written = []
    write = module.write_found
    monkeypatch.setattr(module, "write_found", lambda path, content: (write(path, content), written.append(content)))
    search(SearchConfig(tasks=2, trials=5, out=tmp_path / "f.json"), DEFAULT)
    assert [content["search"]["finished_trials"] for content in written] == [1, 2, 3, 4, 5, 5]
    # The first guesses are 1e-3 three times, then 2e-3: 1 - log(3) / 10, then 1 - log(1.5) / 10.
    assert written[0]["mean_accuracy"] == pytest.approx(0.890139, abs=1e-6)
    assert written[3]["mean_accuracy"] == pytest.approx(0.959453, abs=1e-6)


def test_two_searches_are_not_mixed(players, tmp_path):
    out = tmp_path / "f.json"
    search(SearchConfig(tasks=2, trials=4, out=out), DEFAULT)
    search(SearchConfig(tasks=2, trials=2, out=out, seed=1), DEFAULT)
    assert json.loads(out.read_text())["search"]["finished_trials"] == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"tasks": 0}, "tasks 0 is out of range"),
        ({"trials": 0}, "trials 0 is out of range"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"suite": "digit"}, "did you mean 'digits'"),
        ({"suite": "folders"}, "has no training tasks"),
    ],
)
def test_wrong_arguments_are_named(words, expected, tmp_path):
    with pytest.raises(InputError, match=expected):
        search(SearchConfig(out=tmp_path / "f.json", **words), DEFAULT)


@pytest.mark.slow
def test_a_signal_ends_the_script_with_75_and_the_same_command_goes_on(tmp_path):
    out = tmp_path / "f.json"
    words = [
        str(ROOT / "scripts/tune_default.py"),
        "--out",
        str(out),
        "--tasks",
        "1",
        "--trials",
        "3",
        "--workers",
        "1",
    ]
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    ends = time.monotonic() + 60
    while not out.exists() and time.monotonic() < ends:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 75, told
    assert "stopped by SIGTERM after" in told
    kept = json.loads(out.read_text())["search"]["finished_trials"]
    assert 1 <= kept < 3
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, timeout=90, check=True)
    assert f"trial {kept}:" in done.stdout
    assert f"trial {kept - 1}:" not in done.stdout
    assert json.loads(out.read_text())["search"]["finished_trials"] == 3
