"""What a benchmark leaves behind for papers: tables, figures, task by task, and the rows behind every number."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lepton_rl.agents.ledger import ledger
from lepton_rl.agents.statistics import summarise
from lepton_rl.report import benchmark_report
from lepton_rl.report.arms import Point, ends, order, shown, staircase
from lepton_rl.report.figures import write_figures
from lepton_rl.report.tables import write_tables
from lepton_rl.report.tasks import task_table

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = Path("/usr/bin/chromium")


def rows():
    rng = np.random.default_rng(0)
    found = []
    for arm, most in (("policy", 1), ("tuned-default", 1), ("tpe_50%", 4)):
        for index in range(6):
            for runs in {1, most}:
                facts = {"split": "held-out-tasks", "regime": ("few-label", "label-free")[index % 2], "seed": 0}
                cost = {"steps": 80 * runs, "seconds": 1.5 * runs, "index": index}
                accuracy = round(float(rng.uniform(0.5, 0.9)), 3)
                ends = {"source_only": 0.5, "supervised": 0.9}
                found.append(
                    {"arm": arm, "task": f"t{index}", "runs": runs, "accuracy": accuracy, **facts, **ends, **cost}
                )
    return found


@pytest.fixture
def folder(tmp_path):
    made = rows()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (tmp_path / "summary.json").write_text(json.dumps(summarise(made)))
    (tmp_path / "manifest.json").write_text(json.dumps({"command": "lepton benchmark", "arguments": {"seed": 0}}))
    return tmp_path


def test_tables_hold_every_arm_and_number_of_runs_and_the_numbers_of_the_summary(folder):
    summary = json.loads((folder / "summary.json").read_text())
    markdown, latex = (path.read_text() for path in write_tables(folder, summary))
    assert markdown.count("\n### ") + markdown.startswith("### ") == latex.count(r"\begin{tabular}") == 3
    whole = markdown.split("###")[1]
    assert [line.split(" | ")[:2] for line in whole.strip().splitlines()[4:]] == [
        ["| policy", "1"],
        ["| tpe_50%", "1"],
        ["| tpe_50%", "4"],
        ["| tuned-default", "1"],
    ]
    one = summary["arms"]["policy"]
    low, high = one["ci"]
    assert f"| policy | 1 | {one['iqm']:.3f} | {low:.3f} to {high:.3f} | {one['median']:.3f} |" in whole
    assert r"tpe\_50\% & 4 &" in latex
    assert not re.search(r"(?<!\\)[%_&](?=\d)", "".join(line for line in latex.splitlines() if line.startswith("tpe")))
    assert f"{summary['improvement']['tpe_50%']:.3f}" in whole.splitlines()[6]


def test_tables_of_scores_that_do_not_exist(folder):
    flat = [row | {"supervised": 0.5} for row in rows()]
    markdown, _ = write_tables(folder, summarise(flat))
    assert "| policy | 1 | - | - | - | - | - |" in markdown.read_text()


def test_tasks_are_listed_the_worst_first_with_the_best_arm_of_each():
    made = [row for row in rows() if row["arm"] != "tpe_50%" or row["runs"] == 4]
    lines = re.findall(r"<tr><td>(t\d)</td>(.*?)</tr>", task_table(rows(), "rows"))
    mine = {row["task"]: row["accuracy"] for row in made if row["arm"] == "policy"}
    assert [task for task, _ in lines] == sorted(mine, key=mine.get)
    for task, rest in lines:
        best = max((row["accuracy"], row["arm"]) for row in made if row["task"] == task)
        assert f'{best[1]}</td><td class="number">{best[0]:.3f}' in rest
        assert f"{mine[task] - best[0]:+.3f}" in rest


def test_without_matplotlib_there_are_no_figures_and_no_complaint(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert write_figures(folder, json.loads((folder / "summary.json").read_text())) == []
    assert not (folder / "figures").exists()


def test_figures_are_made_twice_alike(folder):
    pytest.importorskip("matplotlib")
    summary = json.loads((folder / "summary.json").read_text())
    written = write_figures(folder, summary, rows())
    assert len(written) == 2 * 3 * 2  # curves, profiles and tasks; two groups, two formats
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_figures(folder, summary, rows())] == before
    assert all(
        content[:4] == b"\x89PNG" for path, content in zip(written, before, strict=True) if path.suffix == ".png"
    )
    assert all(b"<svg" in content for path, content in zip(written, before, strict=True) if path.suffix == ".svg")


def test_best_so_far_holds_until_the_next_score_and_to_the_end():
    points = [Point(100, 0.5, 0.4, 0.6), Point(400, 0.7, 0.6, 0.8)]
    assert [(at, score) for at, score, _, _ in staircase(points, 50, 600)] == [
        (100, 0.5),
        (400, 0.5),
        (400, 0.7),
        (600, 0.7),
    ]
    assert [(at, score) for at, score, _, _ in staircase([Point(0, 0.1, 0.0, 0.2)], 50, 600)] == [(50, 0.1), (600, 0.1)]
    assert staircase([], 50, 600) == []
    assert ends([points, [Point(0, 0.1, 0.0, 0.2)]]) == (50, 600)


def test_a_plot_shows_what_the_policy_has_to_beat_then_the_best():
    scores = {f"tuner-{n}": 0.1 * n for n in range(8)} | {"tuned-schedule": 0.0, "policy": 0.3, "source-only": 0.0}
    arms = {arm: {1: {"iqm": score}} for arm, score in scores.items()}
    names = ["policy", "source-only", "tuned-schedule", "tuner-7", "tuner-6", "tuner-5", "tuner-4", "tuner-3"]
    assert shown(arms, "x") == names
    assert sorted(arms, key=order)[:3] == ["policy", "tuned-schedule", "source-only"]


def test_the_page_says_whether_the_policy_is_apart_from_what_it_has_to_beat(folder):
    made = [row | {"accuracy": 0.8} if row["arm"] == "policy" else row for row in rows()]
    made = [row | {"accuracy": 0.6} if row["arm"] == "tuned-default" else row for row in made]
    summary = summarise([row | {"accuracy": 0.9} if row["arm"] == "tpe_50%" else row for row in made])
    cards = {"m": {"cost": {"runs": 10, "steps": 1234.0, "seconds": 7200.0}}}
    (folder / "summary.json").write_text(json.dumps(summary | {"ledger": ledger(summary, cards)}))
    page = re.sub(r"<[^>]+>", " ", benchmark_report(folder).read_text().split("<main>")[1])
    said = "Policy minus tuned-default: +20.0 points (95 % interval +20.0 to +20.0 over 6 tasks); the policy is above."
    assert said in page
    assert re.search(r"training of m +10 +1,234 +2\.0", page)
    assert re.search(r"tpe_50% +1 +0 +never", page)  # its first run matches: nothing is saved
    assert "Only 1 seed: claims need 5 of each, a training per policy." in page


def trace(folder, *words):
    command = [sys.executable, str(ROOT / "scripts" / "trace.py"), str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_number_can_be_traced_to_its_rows(folder):
    done = trace(folder, "--arm", "tpe_50%", "--runs", "4")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    summary = json.loads((folder / "summary.json").read_text())
    numbers = [int(line.split(":")[1].split()[0]) for line in lines if line.startswith("rows.jsonl:")]
    raw = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [i for i, row in enumerate(raw, start=1) if (row["arm"], row["runs"]) == ("tpe_50%", 4)] == numbers
    assert f"iqm: {summary['arms']['tpe_50%']['iqm']}" in lines
    assert f"ci: {summary['arms']['tpe_50%']['ci']}" in lines
    wrong = trace(folder, "--arm", "tpe")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no Chromium")
def test_the_report_draws_its_plots_in_a_browser(folder, tmp_path):
    page = benchmark_report(folder)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [str(CHROMIUM), *flags, "--virtual-time-budget=8000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0
    assert done.stdout.count('class="main-svg"') >= 5  # two groups, each with curves and profiles; the tasks
    assert "gradient steps, all runs" in done.stdout
    assert "best-so-far score (IQM)" in done.stdout
    assert "Task by task, the worst first" in done.stdout
    assert "Uncaught" not in done.stderr
