"""The benchmark: cells that can be killed, rows that repeat, and hidden labels that nobody reaches."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import domain, lane_weights, same
from tiny import task as tiny_task

from lepton_rl.agents import benchmark as module
from lepton_rl.agents import cells as cells_module
from lepton_rl.agents.arms import SingleArm, arm_names, find_arm, register, replayed, unregister
from lepton_rl.agents.benchmark import BenchmarkConfig, CellsFailed, benchmark, summary_table
from lepton_rl.agents.cells import Bench, Cell, Place, supervised_accuracy
from lepton_rl.agents.plan import notes, plan, row_order
from lepton_rl.agents.rows import policy_mark
from lepton_rl.agents.statistics import FIELDS
from lepton_rl.artifact import PolicyArtifact
from lepton_rl.controls import ACTION_SIZES
from lepton_rl.errors import InputError
from lepton_rl.policy import NetworkPolicy
from lepton_rl.rollout import RunResult
from lepton_rl.signals import SIGNALS
from lepton_rl.standardise import Standardiser
from lepton_rl.stopping import Stopped
from lepton_rl.task import AdaptationTask, HiddenTask, VisibleTask

ROOT = Path(__file__).resolve().parent.parent
FROM_FILES = ("tuned-default-per-regime", "tuned-schedule")  # one run of the static or the scheduled kind
ARMS = ("source-only", "tuned-default", "tpe", "policy")
IMAGES = 40
POLICIES = {"tuned-default": "tuned-default"}


class TinySuite:
    """Tasks of ten gradient steps; odd ones are label-free."""

    def task(self, split, index, regime=None):
        few = index % 2 == 0 if regime is None else regime == "few-label"
        visible = tiny_task(index, labels=few, budget=10, images=IMAGES)
        visible = dataclasses.replace(visible, name=f"tiny/{split}/{index}")
        truth = domain(10 * index + 5, IMAGES, 3).labels
        hidden = HiddenTask(
            target_eval=domain(900 + index, 20, 3),
            target_test=domain(800 + index, 50, 3),
            target_train_labels=truth,
        )
        return AdaptationTask(visible=visible, hidden=hidden, split=split)


class Deadly(SingleArm):
    """Kills its process on task 0: always, or until it has left a mark."""

    def single(self, task, seed):
        mark = os.environ["LEPTON_TEST_MARK"]
        if task.name.endswith("tasks/0") and (self.name == "deadly" or not os.path.exists(mark)):
            Path(mark).touch()
            os._exit(3)
        return find_arm("source-only").single(task, seed)


@pytest.fixture(autouse=True)
def short_upper_bound(monkeypatch):
    monkeypatch.setattr(cells_module, "SUPERVISED_STEPS", 5)
    monkeypatch.setattr(replayed, "TASKS", 2)


def register_deadly_arms():
    for name in ("deadly", "mortal"):
        register(Deadly(name=name, source="a test"))


def hasty_suite_with_deadly_arms():
    """What a worker process calls: it knows neither the patches nor the arms of the test."""
    cells_module.SUPERVISED_STEPS = 5
    register_deadly_arms()
    return TinySuite()


def configure(out, **changes):
    words = {"arms": ARMS, "runs": (1, 2), "tasks": 2, "seeds": 1, "policy": ("tuned-default",), "workers": 1}
    return BenchmarkConfig(**{**words, "out": out, **changes})


def rows_of(out, *left_out):
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in left_out} for row in rows]


def bench(**changes):
    words = {"make_suite": TinySuite, "regime": None, "seed": 0, "runs": (1, 2), "policies": POLICIES}
    return Bench(**{**words, **changes})


def place(index=0, seed=0):
    return Place(split="held-out-tasks", index=index, seed=seed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small benchmark that several tests look at and none changes."""
    patch = pytest.MonkeyPatch()
    patch.setattr(cells_module, "SUPERVISED_STEPS", 5)
    out = tmp_path_factory.mktemp("bench") / "out"
    summary = benchmark(configure(out), TinySuite)
    patch.undo()
    return out, summary


# ----- rows, summary, files


def test_rows_summary_and_files_are_as_promised(finished):
    out, summary = finished
    rows = rows_of(out)
    assert len(rows) == 2 * 2 * (1 + 1 + 2 + 1)
    assert all(set(FIELDS) <= set(row) for row in rows)
    assert rows == sorted(rows, key=lambda r: (r["split"], r["index"], r["seed"], r["arm"], r["runs"]))
    names = {path.name for path in out.iterdir()}
    assert names - {"figures"} == {  # figures need matplotlib
        "tables.md",
        "tables.tex",
        "manifest.json",
        "rows.jsonl",
        "references.jsonl",
        "summary.json",
        "report.html",
        "optuna",
    }
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    for arm in ARMS:
        assert {"iqm", "ci", "by_runs"} <= set(summary["arms"][arm])
        assert arm in summary["negative_transfer"]
    assert set(summary["runs_to_match"]) == {"tpe"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["arguments"]["arms"] == list(ARMS)
    assert manifest["tuners"]["tpe"]["options"]["n_startup_trials"] == 10
    assert {"torch", "numpy", "optuna"} <= set(manifest["versions"])
    assert len(list((out / "optuna").iterdir())) == 4


def test_steps_count_every_gradient_step(finished):
    out, _ = finished
    for row in rows_of(out):
        expected = 0 if row["arm"] == "source-only" else 10 * row["runs"]
        assert row["steps"] == expected
        assert row["seconds"] >= 0
    seconds = {(r["task"], r["runs"]): r["seconds"] for r in rows_of(out) if r["arm"] == "tpe"}
    assert all(seconds[name, 2] > seconds[name, 1] for name, _ in seconds)


def test_rows_agree_with_each_other(finished):
    """The policy is the tuned default here, and source-only is the zero of the score."""
    out, _ = finished
    by_arm = {}
    for row in rows_of(out, "seconds"):
        assert row.pop("policy") == ("tuned-default" if row["arm"] == "policy" else None)
        by_arm.setdefault(row.pop("arm"), []).append(row)
    assert by_arm["policy"] == by_arm["tuned-default"]
    assert all(row["accuracy"] == row["source_only"] for row in by_arm["source-only"])
    assert {row["regime"] for row in by_arm["tpe"]} == {"few-label", "label-free"}


def test_early_tpe_is_labelled_random_start_up(finished):
    _, summary = finished
    assert summary["notes"] == ["tpe with 1, 2 runs is random start-up, as TPE draws its first 10 trials at random"]
    table = summary_table(summary)
    assert "random start-up" in table
    assert re.search(r"^tpe +2 ", table, re.MULTILINE)
    assert "runs of tpe to match the policy's single run" in table


def test_a_second_call_makes_nothing_again(finished, monkeypatch):
    out, summary = finished
    before = (out / "rows.jsonl").read_bytes()
    monkeypatch.setattr(Bench, "rows", None)
    monkeypatch.setattr(Bench, "reference", None)
    assert benchmark(configure(out), TinySuite) == summary
    assert (out / "rows.jsonl").read_bytes() == before


# ----- killed, continued, grown


def test_a_killed_benchmark_goes_on_where_it_was(finished, tmp_path, monkeypatch):
    """Cut the rows in the middle of a line: only what was cut is made again, and all is the same."""
    out, _ = finished
    mine = tmp_path / "out"
    (mine / "optuna").mkdir(parents=True)
    for name in ("manifest.json", "references.jsonl"):
        (mine / name).write_bytes((out / name).read_bytes())
    content = (out / "rows.jsonl").read_bytes()
    cut = content.rindex(b'"runs": 2')  # the last row of a tuner that has two
    (mine / "rows.jsonl").write_bytes(content[:cut])
    made = []
    real = Bench.rows
    monkeypatch.setattr(Bench, "rows", lambda self, cell, task: made.append(cell.arm) or real(self, cell, task))
    benchmark(configure(mine), TinySuite)
    assert made[:1] == ["tpe"]
    assert len(made) == len({row["arm"] for row in rows_of(out)[-2:]} | {"tpe"})
    assert rows_of(mine, "seconds") == rows_of(out, "seconds")


def test_a_benchmark_may_grow_but_not_shrink(tmp_path):
    out = tmp_path / "out"
    benchmark(configure(out, arms=("source-only",), tasks=1, splits=("held-out-tasks",)), TinySuite)
    benchmark(configure(out, arms=("source-only", "tpe"), splits=("held-out-tasks",)), TinySuite)
    grown = configure(out, arms=("source-only", "tpe"), splits=("held-out-tasks",), runs=(1, 2, 3))
    benchmark(grown, TinySuite)
    assert len(rows_of(out)) == 2 * (1 + 3)
    fresh = tmp_path / "fresh"
    benchmark(dataclasses.replace(grown, out=fresh), TinySuite)
    assert rows_of(out, "seconds") == rows_of(fresh, "seconds")
    for fewer in ({"runs": (1, 2)}, {"arms": ("tpe",)}, {"tasks": 1}):
        with pytest.raises(InputError, match="may grow but not shrink"):
            benchmark(dataclasses.replace(grown, **fewer), TinySuite)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"seed": 1}, "seed 0, now 1"), ({"regime": "few-label"}, "regime 'both', now 'few-label'")],
)
def test_rows_of_two_benchmarks_are_never_mixed(finished, change, told):
    out, _ = finished
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=told) as error:
        benchmark(configure(out, **change), TinySuite)
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_rows_of_two_versions_are_never_mixed(finished, tmp_path):
    out, _ = finished
    for key, value in (("lepton_rl", "0.0.9"), ("torch", "2.0"), ("format", 2)):
        mine = tmp_path / key
        mine.mkdir()
        manifest = json.loads((out / "manifest.json").read_text())
        manifest["fingerprint"][key] = value
        (mine / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(InputError, match=f"{key} {value!r}, now"):
            benchmark(configure(mine), TinySuite)


def policy_file(path, rate):
    """A network whose answers depend on its weights, and so on the rate that it was drawn with."""
    rng = torch.Generator().manual_seed(int(rate * 1e6))
    widths = (len(SIGNALS), 4, sum(ACTION_SIZES))
    layers = tuple(
        (torch.randn(out, into, generator=rng), torch.randn(out, generator=rng)) for into, out in pairwise(widths)
    )
    network = NetworkPolicy(inputs=Standardiser.unchanged(widths[0]), layers=layers)
    PolicyArtifact(policy=network, card={"name": path.stem}).save(path)
    return str(path)


def test_several_policies_have_rows_of_their_own_and_others_run_once(tmp_path):
    one, two = (policy_file(tmp_path / f"{name}.safetensors", rate) for name, rate in (("one", 1e-3), ("two", 2e-3)))
    arms = ("tuned-default", "policy", "policy-replayed")
    config = configure(tmp_path / "out", arms=arms, policy=(one,), splits=("held-out-tasks",))
    benchmark(config, TinySuite)
    alone = rows_of(config.out, "seconds")
    summary = benchmark(dataclasses.replace(config, policy=(one, two)), TinySuite)
    rows = rows_of(config.out, "seconds")
    marks = {policy_mark(path) for path in (one, two)}
    assert {row["policy"] for row in rows if row["arm"] == "policy"} == marks
    assert {row["policy"] for row in rows if row["arm"] == "tuned-default"} == {None}
    assert [row for row in rows if row["policy"] in (None, policy_mark(one))] == alone
    assert set(summary["policies"]) == marks
    lessons = json.loads((config.out / "lessons.json").read_text())
    assert set(lessons) == {f"policy-replayed {mark}" for mark in marks}
    assert lessons[f"policy-replayed {policy_mark(one)}"] != lessons[f"policy-replayed {policy_mark(two)}"]
    named = json.loads((config.out / "manifest.json").read_text())["policies"]
    assert named[policy_mark(two)] == {"name": "two.safetensors", "card": {"name": "two"}}
    with pytest.raises(InputError, match=r"holds rows of 'policy.*may grow but not shrink"):
        benchmark(dataclasses.replace(config, policy=(two,)), TinySuite)
    same = tmp_path / "same.safetensors"
    same.write_bytes(Path(one).read_bytes())
    with pytest.raises(InputError, match=r"same\.safetensors' is the same as .*one\.safetensors"):
        benchmark(dataclasses.replace(config, policy=(one, str(same)), out=tmp_path / "x"), TinySuite)


def test_all_means_every_held_out_part(tmp_path):
    held_out = ["held-out-tasks", "held-out-shifts", "held-out-architecture", "longer-budget"]
    cells = plan(configure(tmp_path, splits=("all",), tasks=1, arms=("adabn",)))
    assert [cell.place.split for cell in cells] == held_out
    cells = plan(configure(tmp_path, splits=("all",), tasks=1, arms=("adabn",), suite="data"))
    assert [cell.place.split for cell in cells] == [*held_out, "held-out-datasets"]
    [told] = notes(configure(tmp_path, splits=("validation",), arms=("adabn",)))
    assert told == "validation: policies are trained or chosen on these tasks"


class Slow(SingleArm):
    """Asks its own benchmark to leave on task 1, unless it did before."""

    def single(self, task, seed):
        if task.name.endswith("/1") and self.name not in ASKED:
            ASKED.append(self.name)
            os.kill(os.getpid(), signal.SIGTERM)
        return find_arm("source-only").single(task, seed)


ASKED = []


def test_a_signal_ends_a_benchmark_which_then_goes_on(tmp_path):
    register(Slow(name="slow", source="a test"))
    config = configure(tmp_path / "out", arms=("slow",), splits=("held-out-tasks",), tasks=4)
    try:
        with pytest.raises(Stopped, match="stopped by SIGTERM after the cells that are finished: what is"):
            benchmark(config, TinySuite)
        assert [row["index"] for row in rows_of(config.out)] == [0, 1]
        benchmark(config, TinySuite)
    finally:
        unregister("slow")
        ASKED.clear()
    assert [row["index"] for row in rows_of(config.out)] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_signal_to_all_processes_costs_the_cells_at_hand_and_the_exit_code_is_75(tmp_path):
    words = "benchmark --arms source-only adabn tpe --runs 1 64 --tasks 2 --seeds 1 --splits held-out-tasks --workers 2"
    command = [sys.executable, "-m", "lepton_rl.cli", *words.split(), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True)
    ends = time.monotonic() + 100
    while not list((tmp_path / "out" / "optuna").glob("tpe*")) and time.monotonic() < ends:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGUSR2)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 75, told
    assert "stopped by SIGUSR2" in told
    assert "Traceback" not in told
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not the output of a benchmark"):
        benchmark(configure(tmp_path), TinySuite)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="is not a benchmark's"):
        benchmark(configure(tmp_path), TinySuite)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", "manifest.json"}


def test_a_line_damaged_in_the_middle_is_named(finished, tmp_path):
    out, _ = finished
    (tmp_path / "manifest.json").write_bytes((out / "manifest.json").read_bytes())
    (tmp_path / "rows.jsonl").write_bytes(b'{"arm": "policy"}\n' + (out / "rows.jsonl").read_bytes())
    with pytest.raises(InputError, match=r"a row has no field 'split'.*remove its line from rows\.jsonl"):
        benchmark(configure(tmp_path), TinySuite)
    (tmp_path / "rows.jsonl").write_bytes(b"{}x\n" + (out / "rows.jsonl").read_bytes())
    with pytest.raises(InputError, match=r"rows\.jsonl, line 1 is damaged"):
        benchmark(configure(tmp_path), TinySuite)


# ----- the information contract


@pytest.mark.parametrize("name", [name for name in arm_names() if name not in FROM_FILES])
@pytest.mark.parametrize("index", [0, 1])
def test_hidden_labels_change_nothing_but_the_report(name, index, monkeypatch):
    """Permute every hidden label: the same steps, settings, scores and chosen weights, another accuracy."""
    chosen = []
    real = RunResult.accuracy

    def watch(self, test):
        chosen.append((lane_weights(self.engine), self.chosen, self.score, [r["controls"] for r in self.history]))
        return real(self, test)

    monkeypatch.setattr(RunResult, "accuracy", watch)
    honest = TinySuite().task("held-out-tasks", index)
    rotated = {
        field: dataclasses.replace(part, labels=(part.labels + 1) % 3)
        for field in ("target_eval", "target_test")
        for part in [getattr(honest.hidden, field)]
    }
    hidden = HiddenTask(**rotated, target_train_labels=(honest.hidden.target_train_labels + 1) % 3)
    cell = Cell(place=place(index), arm=name, policy="tuned-default" * find_arm(name).needs_policy)
    one = bench().rows(cell, honest)
    two = bench().rows(cell, dataclasses.replace(honest, hidden=hidden))
    half = len(chosen) // 2
    assert half == len({id(c[0]) for c in chosen[:half]}) > 0
    for before, after in zip(chosen[:half], chosen[half:], strict=True):
        assert same(before[0], after[0])
        assert before[1:] == after[1:]
    differing = {"accuracy", "seconds"}
    strip = lambda rows: [{k: v for k, v in row.items() if k not in differing} for row in rows]  # noqa: E731
    assert strip(one) == strip(two)
    assert [row["accuracy"] for row in one] != [row["accuracy"] for row in two]


def test_an_arm_is_given_the_visible_task_and_nothing_else():
    class Nosy(SingleArm):
        def single(self, task, seed):
            given.append((task, seed))
            return find_arm("source-only").single(task, seed)

    given = []
    register(Nosy(name="nosy", source="a test"))
    try:
        bench().rows(Cell(place=place(), arm="nosy"), TinySuite().task("held-out-tasks", 0))
    finally:
        unregister("nosy")
    [(seen, seed)] = given
    assert type(seen) is VisibleTask
    assert not seen.target_unlabelled.has_labels
    assert not any(hasattr(seen, name) for name in ("hidden", "target_test", "target_eval", "facts"))
    assert seed == place().lane_seed(0)


def test_an_arm_that_takes_more_than_its_budget_is_caught():
    class Greedy(SingleArm):
        def single(self, task, seed):
            return find_arm("full-finetune").single(dataclasses.replace(task, budget=3 * task.budget), seed)

    register(Greedy(name="greedy", source="a test"))
    try:
        with pytest.raises(InputError, match="'greedy' took 30 gradient steps: expected at most its budget of 10"):
            bench().rows(Cell(place=place(), arm="greedy"), TinySuite().task("held-out-tasks", 0))
    finally:
        unregister("greedy")


def test_the_seed_of_a_place_is_its_own_and_nothing_elses():
    seeds = {
        (split, index, seed, base): Place(split=split, index=index, seed=seed).lane_seed(base)
        for split in ("held-out-tasks", "held-out-shifts")
        for index in range(5)
        for seed in range(3)
        for base in (0, 1)
    }
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds.values())


def test_the_upper_bound_reads_the_hidden_labels_and_learns_from_them():
    honest = TinySuite().task("held-out-tasks", 0)
    longer = dataclasses.replace(honest, visible=dataclasses.replace(honest.visible, budget=100))
    wrong = (honest.hidden.target_train_labels + 1) % 3
    misled = dataclasses.replace(longer, hidden=dataclasses.replace(longer.hidden, target_train_labels=wrong))
    assert supervised_accuracy(longer, 3) > 0.6
    assert supervised_accuracy(misled, 3) < 0.3
    blank = dataclasses.replace(honest, hidden=HiddenTask(target_test=honest.hidden.target_test))
    with pytest.raises(InputError, match="no target_train_labels"):
        supervised_accuracy(blank, 3)
    with pytest.raises(InputError, match="no labelled target_test"):
        bench().reference(place(), dataclasses.replace(honest, hidden=HiddenTask()))


# ----- planning, many cells, workers


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arms": ("tuned-defalt",)}, "arm 'tuned-defalt' is unknown: did you mean 'tuned-default'"),
        ({"suite": "digit"}, "suite 'digit' is unknown: did you mean 'digits'"),
        ({"splits": ("held-out-shift",)}, "did you mean 'held-out-shifts'"),
        ({"arms": ()}, "arms .* is empty"),
        ({"arms": ("tpe", "tpe")}, "repeats itself"),
        ({"runs": (0, 1)}, "runs .* out of range"),
        ({"tasks": 0}, "tasks 0 is out of range"),
        ({"workers": -1}, "workers -1 is negative"),
        ({"regime": "few"}, "regime 'few' is unknown"),
        ({"policy": ()}, "policy .* is empty"),
        ({"policy": ("nothing.safetensors",)}, "'nothing.safetensors' does not exist"),
    ],
)
def test_bad_arguments_are_told_in_one_line_before_anything_is_written(tmp_path, change, told):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=told) as error:
        benchmark(configure(out, **change))
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_a_plan_has_every_cell_once_and_tuners_first():
    config = configure(Path("unused"), tasks=3, seeds=2)
    cells = plan(config)
    assert len(cells) == len(set(cells)) == 4 * 2 * 3 * 2
    assert [cell.arm for cell in cells[:12]] == ["tpe"] * 12
    assert len({cell.journal(Path("x")) for cell in cells}) == len(cells)


@pytest.mark.slow
def test_10000_cells_plan_run_and_report_without_slowing_down(tmp_path, monkeypatch):
    class Instant(SingleArm):
        def single(self, task, seed):
            del task
            accuracy = 0.5 + seed % 100 / 250
            result = RunResult(engine=None, chosen="x", reason="", score=accuracy, steps=1, seconds=0.0, diverged=False)
            object.__setattr__(result, "accuracy", lambda test: accuracy)
            return result

    one = TinySuite().task("held-out-tasks", 0)
    monkeypatch.setattr(TinySuite, "task", lambda self, split, index, regime: _named(one, split, index))
    monkeypatch.setattr(
        Bench,
        "reference",
        lambda self, place, task: cells_module._where(place, task) | {"source_only": 0.4, "supervised": 0.9},
    )
    arms = tuple(f"instant-{number}" for number in range(10))
    for arm in arms:
        register(Instant(name=arm, source="a test"))
    config = configure(tmp_path / "out", arms=arms, tasks=50, seeds=1)
    seconds = []
    try:
        for seeds in (1, 10):
            began = time.process_time()
            summary = benchmark(dataclasses.replace(config, seeds=seeds), TinySuite)
            seconds.append(time.process_time() - began)
    finally:
        for arm in arms:
            unregister(arm)
    assert len(rows_of(tmp_path / "out")) == 10_000
    assert summary["cells"] == 1000
    assert seconds[1] < 30  # about 6
    assert seconds[1] < 15 * seconds[0]  # nine times as many cells: no slower, each


def _named(one, split, index):
    return dataclasses.replace(one, visible=dataclasses.replace(one.visible, name=f"{split}/{index}"))


def test_a_failing_cell_takes_no_other_with_it(tmp_path, monkeypatch):
    class Broken(SingleArm):
        def single(self, task, seed):
            if task.name.endswith("/1"):
                raise ZeroDivisionError("division by zero")
            return find_arm("source-only").single(task, seed)

    register(Broken(name="broken", source="a test"))
    config = configure(tmp_path / "out", arms=("broken", "source-only"))
    try:
        with pytest.raises(CellsFailed, match=r"2 jobs failed, .*'broken' on .* task 1, .*ZeroDivisionError") as told:
            benchmark(config, TinySuite)
    finally:
        unregister("broken")
    assert "\n" not in str(told.value)
    assert len(rows_of(config.out)) == 6
    assert not (config.out / "summary.json").exists()


def test_dead_workers_cost_their_cells_a_second_try_and_no_other_anything(finished, tmp_path, monkeypatch):
    """And the rows of two workers are those of one."""
    out, _ = finished
    monkeypatch.setenv("LEPTON_TEST_MARK", str(tmp_path / "mark"))
    register_deadly_arms()
    config = configure(tmp_path / "out", arms=(*ARMS, "deadly", "mortal"), workers=2)
    told = r"^1 jobs failed, .*'deadly' on held-out-tasks task 0, seed 0: .*died 2 times \(exit code 3\)"
    try:
        with pytest.raises(CellsFailed, match=told):
            benchmark(config, hasty_suite_with_deadly_arms)
    finally:
        for name in ("deadly", "mortal"):
            unregister(name)
    assert (tmp_path / "mark").exists()
    rows = sorted(rows_of(config.out, "seconds"), key=row_order)
    assert [row for row in rows if row["arm"] in ARMS] == rows_of(out, "seconds")
    assert sum(row["arm"] == "mortal" for row in rows) == 4
    assert sum(row["arm"] == "deadly" for row in rows) == 3


def test_the_number_of_threads_is_put_back(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_start", lambda bench: seen.append(torch.get_num_threads()) or bench.start())
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        benchmark(configure(tmp_path / "out", arms=("source-only",), tasks=1), TinySuite)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_the_script_is_a_thin_door(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py")]
    done = subprocess.run([*command, "--arms", "tpee"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lepton: error: arm 'tpee' is unknown: did you mean 'tpe'?")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_digits_suite_can_be_benchmarked(tmp_path, suite):
    """The built-in suite, with the budget it has, on the two quickest arms."""
    config = configure(tmp_path / "out", arms=("source-only", "adabn"), tasks=1, regime="few-label")
    summary = benchmark(config, lambda: suite)
    rows = rows_of(config.out)
    assert {row["regime"] for row in rows} == {"few-label"}
    assert all(0.05 <= row["accuracy"] <= 1 for row in rows)
    assert np.isclose(summary["arms"]["source-only"]["mean_accuracy"], np.mean([r["source_only"] for r in rows]))
