"""`adapt()` killed at any decision: the same call goes on and comes to the same end, bit by bit."""

import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from test_adapt import same, timeless
from tiny import EVERYTHING, domain

from lepton_rl import adapt, cli
from lepton_rl.artifact import SHIPPED, load_policy
from lepton_rl.checkpoint import Checkpoint, Checkpoints
from lepton_rl.controls import KEEP, KNOBS, ControlSettings
from lepton_rl.errors import InputError
from lepton_rl.keeping import Keeper, keeping, unfinished
from lepton_rl.manifest import MANIFEST
from lepton_rl.models import build_model
from lepton_rl.policy import KeepPolicy, RandomPolicy, SchedulePolicy
from lepton_rl.run import AdaptationRun
from lepton_rl.solo import SoloEngine
from lepton_rl.stopping import STOP_SIGNALS, Stopped

adapt_module = importlib.import_module("lepton_rl.adapt")  # the package gives the function under this name
BUDGET = 15  # three decisions


class Killed(BaseException):
    """Nothing in the package catches it."""


def moved(**knobs):
    return tuple(knobs.get(name, keep) for name, keep in zip(KNOBS, KEEP, strict=True))


# A stage freezes, weights are pulled half-way back, the stage comes back: moments, caches and statistics all matter.
BUSY = SchedulePolicy(
    actions=(moved(), moved(unfreeze=0, transfer=1), moved(unfreeze=2, learning_rate=3)), settings=EVERYTHING
)
HEAD_ONLY = KeepPolicy(settings=ControlSettings(unfrozen_stages=0))  # lives on the cache of frozen stages
RANDOM = RandomPolicy(settings=EVERYTHING)
CASES = {
    "busy": ("vgg", BUSY, 6, True),
    "channels last": ("resnet", BUSY, 16, True),
    "head only": ("vgg", HEAD_ONLY, 6, True),
    "group norm": ("vgg-gn", RANDOM, 6, True),
    "source-free": ("vgg", RANDOM, 6, False),
    "learned guard": ("vgg", load_policy(SHIPPED), 6, True),  # keeps the last weights only
}


def arguments(case="busy", side=6):
    architecture, policy, side, with_source = CASES[case]
    torch.manual_seed(0)
    return {
        "model": build_model(architecture, channels=1, n_classes=3, width=4).eval(),
        "source": domain(1, 60, 3, side=side) if with_source else None,
        "target": domain(2, 45, 3, side=side),
        "policy": policy,
        "budget": BUDGET,
        "seed": 3,
    }


def run(out, case="busy", **changes):
    return adapt(**(arguments(case) | {"out": out} | changes))


def killed_after(monkeypatch, decision, out, **changes):
    """Run until a decision is saved, and die."""
    save = Keeper.save

    def dying(self, run, trail):
        save(self, run, trail)
        if run.decision[0] == decision:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "save", dying)
        with pytest.raises(Killed):
            run(out, **changes)


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_after_every_decision_comes_to_the_same_end(case, tmp_path, monkeypatch, capsys):
    whole = run(None, case)
    out = tmp_path / "out"
    for decision in (1, 2, 3):
        killed_after(monkeypatch, decision, out, case=case)
        kept = [json.loads(line) for line in (unfinished(out) / "history.jsonl").read_text().splitlines()]
        assert [row["decision"] for row in kept] == list(range(decision + 1))
        assert not out.exists()
    steps, train = [], SoloEngine.train
    monkeypatch.setattr(SoloEngine, "train", lambda *given: steps.append(given[-1]) or train(*given))
    rows = []
    result = run(out, case, callback=rows.append)
    assert steps == []  # all had been taken
    assert timeless(result.history) == timeless(whole.history)
    assert rows == result.history
    assert same(result.model, whole.model.state_dict())
    assert (result.chosen, result.reason, result.steps) == (whole.chosen, whole.reason, BUDGET)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"lepton: going on after decision {k} of 3, from {unfinished(out)}" for k in (1, 2, 3)]


def test_the_whole_state_of_the_engine_comes_back(tmp_path, monkeypatch):
    """What is saved after each decision of an interrupted run equals what an unbroken one saves there."""
    seen, save = {}, Keeper.save

    def watching(self, run, trail):
        save(self, run, trail)
        kept = self._files.load()
        seen.setdefault(run.decision[0], []).append(kept.tensors)

    monkeypatch.setattr(Keeper, "save", watching)
    run(tmp_path / "whole")
    for decision in (1, 2):
        killed_after(monkeypatch, decision, tmp_path / "out")
    run(tmp_path / "out")
    assert [len(seen[k]) for k in (1, 2, 3)] == [2, 2, 2]
    for whole, parts in seen.values():
        assert whole.keys() == parts.keys()
        assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert sum(name.startswith("run.engine.moments.exp_avg_sq.") for name in seen[3][0]) > 5


def test_a_diverged_run_is_kept_as_such(tmp_path, monkeypatch):
    finite = SoloEngine.finite
    monkeypatch.setattr(SoloEngine, "finite", lambda self: finite(self) & (self.step_count < 10))
    whole = run(None)
    killed_after(monkeypatch, 2, tmp_path / "out")
    result = run(tmp_path / "out")
    assert result.reason.endswith("training diverged and was ended")
    assert (result.reason, len(result.history)) == (whole.reason, 3)
    assert same(result.model, whole.model.state_dict())


def test_a_damaged_newest_checkpoint_costs_one_decision(tmp_path, monkeypatch, capsys):
    whole = run(None)
    out = tmp_path / "out"
    killed_after(monkeypatch, 2, out)
    path = unfinished(out) / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    result = run(out)
    said = capsys.readouterr().err
    assert "checkpoint.safetensors is damaged (" in said
    assert "going on after decision 1 of 3" in said
    assert same(result.model, whole.model.state_dict())


def test_finished_folds_are_kept(tmp_path, monkeypatch):
    whole = run(None, folds=3)
    out = tmp_path / "out"
    plain, made = adapt_module.rollout, []

    def counted(*given, **named):
        made.append(len(made))
        if len(made) == 3:  # the run, the first fold, and then no further
            raise Killed
        return plain(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(adapt_module, "rollout", counted)
        with pytest.raises(Killed):
            run(out, folds=3)
        assert (unfinished(out) / "fold-1-of-3.safetensors").is_file()
        del made[:]
        with pytest.raises(Killed):
            run(out, folds=3)  # the run again from its end, the second fold, and then no further
        del made[:]
        result = run(out, folds=3)
    assert len(made) == 2  # the run and the third fold
    assert result.cross_validation == whole.cross_validation
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_fold_that_no_run_kept_is_refused(tmp_path, monkeypatch):
    out = tmp_path / "out"
    killed_after(monkeypatch, 3, out)
    kept = Checkpoints(unfinished(out) / "checkpoint.safetensors", "adaptation").load()
    facts = {"arguments": kept.facts["arguments"]}
    files = Checkpoints(unfinished(out) / "fold-1-of-2.safetensors", "part of an adaptation")
    for bad in (torch.zeros(2, 3), torch.full((23, 3), float("nan"))):
        files.save(Checkpoint(tensors={"before": bad, "after": bad}, facts=facts))
        with pytest.raises(InputError, match=r"fold-1-of-2.safetensors' holds what no run saved: .* \[23, 3\]"):
            run(out, folds=2)


# ----- what does not belong together


def test_another_adaptation_is_not_gone_on_with(tmp_path, monkeypatch):
    out = tmp_path / "out"
    killed_after(monkeypatch, 1, out)
    before = {path.name: path.read_bytes() for path in unfinished(out).iterdir()}
    target = arguments()["target"]
    for change, named in (
        ({"seed": 4}, "seed"),
        ({"budget": 20}, "budget"),
        ({"source": None}, "source, normalisation"),
        ({"target": replace(target, images=255 - target.images)}, "target"),
        ({"policy": replace(BUSY, actions=BUSY.actions[:2])}, "policy"),
        ({"model": build_model("vgg", channels=1, n_classes=3, width=4, seed=9).eval()}, "model"),
        ({"normalisation": ((0.5,), (0.5,))}, "normalisation"),
        ({"class_prior": {"0": 1, "1": 2, "2": 3}}, "class_prior"),
    ):
        with pytest.raises(InputError, match=f"unfinished adaptation with another {named}:") as error:
            run(out, **change)
        assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in unfinished(out).iterdir()} == before
    result = run(out, seed=4, overwrite=True)  # the earlier one is given up
    assert same(result.model, run(None, seed=4).model.state_dict())
    assert not unfinished(out).exists()


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    killed_after(monkeypatch, 1, tmp_path / "out")
    monkeypatch.setattr("lepton_rl.checkpoint.FORMAT", 4)
    with pytest.raises(InputError, match="is a checkpoint of format 3: expected format 4; finish it with"):
        run(tmp_path / "out")


@pytest.mark.parametrize("wrong", [{}, {"progress": "0"}])
def test_a_first_observation_that_no_run_saved_is_refused(wrong, tmp_path, monkeypatch):
    killed_after(monkeypatch, 1, tmp_path / "out", case="learned guard")
    files = Checkpoints(unfinished(tmp_path / "out") / "checkpoint.safetensors", "adaptation", print)
    saved = files.load()
    first = saved.facts["history"][0]
    first["observation"] = first["observation"] | wrong if wrong else {}
    files.save(saved)
    with pytest.raises(InputError, match="holds what no run saved"):
        run(tmp_path / "out", "learned guard")


def test_an_output_that_is_already_there_is_kept_until_the_new_one_is_whole(tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = run(out, seed=4)
    with pytest.raises(InputError, match="is not empty"):
        run(out)
    killed_after(monkeypatch, 1, out, overwrite=True)
    assert json.loads((out / MANIFEST).read_text())["seed"] == 4
    second = run(out)  # it was allowed to go when this adaptation began
    assert json.loads((out / MANIFEST).read_text())["seed"] == 3
    assert not same(first.model, second.model.state_dict())


def test_a_kill_while_the_output_is_put_in_its_place(tmp_path, monkeypatch):
    whole = run(None)
    out = tmp_path / "out"
    run(out, seed=4)
    # Right between the two renames: the old output is away, the new one not there yet.
    killed_after(monkeypatch, 3, out, overwrite=True)
    out.rename(tmp_path / ".out.999999999.old")
    (tmp_path / ".out.999999999.part").mkdir()
    (tmp_path / ".out.x.part").mkdir()  # not one of ours
    result = run(out)
    assert same(result.model, whole.model.state_dict())
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.x.part"}
    # Right after them: the output is there, and what was kept is there still.
    killed_after(monkeypatch, 3, out, overwrite=True)
    assert same(run(out).model, whole.model.state_dict())
    assert not unfinished(out).exists()


# ----- asked to leave


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_finishes_the_decision_and_saves_it(number, tmp_path, monkeypatch):
    whole = run(None)
    step = AdaptationRun.step
    with monkeypatch.context() as patch:
        patch.setattr(AdaptationRun, "step", lambda *given: [os.kill(os.getpid(), number), step(*given)][1])
        with pytest.raises(Stopped) as stopped:
            run(tmp_path / "out")
    assert str(stopped.value).startswith(f"stopped by {signal.Signals(number).name} after decision 1 of 3: ")
    assert signal.getsignal(number) == signal.SIG_DFL
    assert same(run(tmp_path / "out").model, whole.model.state_dict())


def test_the_command_line_leaves_with_75_and_130_and_goes_on(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    argv = ["adapt", "--model", "vgg", "--target", "digits", "--source", "digits", "--policy", "tuned-default"]
    argv += ["--budget", "15", "--out", str(out)]
    step = AdaptationRun.step

    def signalled(number):
        return lambda *given: [os.kill(os.getpid(), number), step(*given)][1]

    with monkeypatch.context() as patch:
        patch.setattr(AdaptationRun, "step", signalled(signal.SIGTERM))
        assert cli.main(argv) == 75
        assert "stopped by SIGTERM after decision 1 of 3" in capsys.readouterr().err
        patch.setattr(AdaptationRun, "step", signalled(signal.SIGINT))
        # A shell starts what it puts into the background deaf to Ctrl-C; the tests may run there.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            assert cli.main(argv) == 130
        finally:
            signal.signal(signal.SIGINT, before)
    assert len((unfinished(out) / "history.jsonl").read_text().splitlines()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.unfinished"]
    assert cli.main(argv) == 0
    assert "going on after decision 1 of 3" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((out / MANIFEST).read_text())["command"] == "lepton adapt"


@pytest.mark.parametrize("out", ["/", ".", "..", "file", "file/sub"])
def test_a_place_that_is_not_free_is_left_alone(out, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("file", "thesis.tex"):
        (tmp_path / "here" / name).write_text("x")
    with pytest.raises((InputError, OSError)):
        run(out)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "here", "thesis.tex"]


def test_what_is_kept_needs_a_folder(tmp_path):
    unfinished(tmp_path / "out").write_text("x")
    with pytest.raises(InputError, match=r"out\.unfinished' is a file: expected a folder; move it away"):
        run(tmp_path / "out")
    assert unfinished(tmp_path / "out").read_text() == "x"


def test_two_processes_do_not_adapt_into_one_folder_that_is_not_there_yet(tmp_path):
    out = tmp_path / "a" / "b" / "out"
    code = (
        "import sys; from pathlib import Path; from lepton_rl.keeping import keeping\n"
        "with keeping(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use by process {other.pid}"), keeping(out):
            pass
        other.stdin.close()
    assert other.returncode == 0
    assert list(tmp_path.iterdir()) == []  # nor are the folders left that the lock needed


def test_checkpoints_hold_tensors_that_share_memory(tmp_path):
    files = Checkpoints(tmp_path / "c.safetensors", "test")
    both = torch.arange(4.0)
    files.save(Checkpoint(tensors={"a": both, "b": both[1:3], "c": both}, facts={}))
    assert {name: t.tolist() for name, t in files.load().tensors.items()} == {
        "a": [0.0, 1.0, 2.0, 3.0],
        "b": [1.0, 2.0],
        "c": [0.0, 1.0, 2.0, 3.0],
    }
