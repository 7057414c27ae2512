"""Killed at any moment and nothing lost: checkpoints, signals, locks, full disks."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import killing
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from safetensors.torch import save_file

from lepton_rl import cache, checkpoint, cli
from lepton_rl.agents import rows, training, training_env, workers
from lepton_rl.agents.train import train
from lepton_rl.agents.workers import WorkerDied, WorkerVectorEnv
from lepton_rl.cache import write_atomically
from lepton_rl.checkpoint import Checkpoint, Checkpoints
from lepton_rl.errors import InputError
from lepton_rl.lock import beside, locked
from lepton_rl.standardise import Standardiser
from lepton_rl.stopping import STOP_SIGNALS, Stopped, stop_on_signals

HERE = Path(__file__).resolve().parent


def one(number):
    return Checkpoint(tensors={"a": torch.full((3,), float(number)), "b": torch.tensor(number)}, facts={"n": number})


@pytest.fixture
def lines():
    return []


@pytest.fixture
def files(tmp_path, lines):
    return Checkpoints(tmp_path / "c.safetensors", "test", lines.append)


# ----- checkpoints


def test_two_generations_are_kept(files, lines):
    assert files.load() is None
    for number in range(3):
        files.save(one(number))
    newest = files.load()
    assert newest.facts == {"n": 2}
    assert newest.tensors["a"].tolist() == [2.0, 2.0, 2.0]
    assert newest.tensors["b"].dtype == torch.int64
    files.path.unlink()
    assert files.load().facts == {"n": 1}
    assert lines == []  # a kill between two renames is no damage


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def cut(path, place):
    path.write_bytes(path.read_bytes()[:place])


@pytest.mark.parametrize(("harm", "place"), [(flip, -1), (flip, -9), (cut, 0), (cut, 5), (cut, 90), (cut, -1)])
def test_a_damaged_newest_one_is_told_and_the_one_before_it_used(files, lines, harm, place):
    files.save(one(1))
    files.save(one(2))
    harm(files.path, place)
    assert files.load().facts == {"n": 1}
    assert len(lines) == 1
    assert "c.safetensors is damaged" in lines[0]
    assert "\n" not in lines[0]
    files.save(one(3))  # the damaged one must not push the whole one out
    files.path.unlink()
    assert files.load().facts == {"n": 1}


def test_every_single_bit_is_covered_by_the_checksum(files, tmp_path):
    files.save(one(1))
    whole = files.path.read_bytes()
    wrong = 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 4
        files.path.write_bytes(bytes(content))
        try:
            found = files.load()
        except InputError:
            wrong += 1
            continue
        # What JSON reads as the same text, for example another case of an escape, is the same checkpoint.
        assert found.facts == {"n": 1}
        assert found.tensors["a"].tolist() == [1.0, 1.0, 1.0]
    assert wrong >= len(whole) - 4


def test_both_damaged_is_an_error(files):
    files.save(one(1))
    files.save(one(2))
    cut(files.path, 40)
    cut(files.previous, 40)
    with pytest.raises(InputError, match=r"c\.safetensors and .*c\.previous\.safetensors damaged"):
        files.load()


def test_an_old_checkpoint_and_one_of_another_kind_are_refused(files):
    save_file({"counters": torch.zeros(3)}, files.path)
    with pytest.raises(InputError, match=r"format 1: expected format 3; finish it with the version"):
        files.load()
    files.save(one(1))
    with pytest.raises(InputError, match="checkpoint of 'test': expected 'other'"):
        Checkpoints(files.path, "other").load()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch, capsys):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_atomically(path, b"new")
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_training_on_a_full_disk_says_so_and_goes_on_later(quick, tmp_path, monkeypatch, capsys):
    train(quick(tmp_path / "whole", 4), progress=False)
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    config = quick(tmp_path / "full", 4)
    command = cli.Command(summary="", load=lambda: (type(config), lambda _, argv: train(config, progress=False)))
    monkeypatch.setitem(cli.COMMANDS, "train", command)
    assert cli.main(["train"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "No space left on device" in said
    assert str(tmp_path / "full") in said
    monkeypatch.setattr(cache.os, "fsync", lambda handle: None)
    assert cli.main(["train"]) == 0
    assert killing.same(tmp_path / "full", tmp_path / "whole")


def full_after(monkeypatch, syncs):
    """Let the disk be full from the n-th sync on; returns how to empty it."""
    sync, left = os.fsync, [syncs]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    return lambda: monkeypatch.setattr(os, "fsync", sync)


@pytest.mark.parametrize("syncs", [0, 7, 15])
def test_an_adaptation_on_a_full_disk_says_so_and_goes_on_later(tmp_path, monkeypatch, capsys, syncs):
    job = killing.adaptation()
    job.short(tmp_path / "whole")
    empty = full_after(monkeypatch, syncs)
    assert cli.exit_code(lambda: job.short(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "No space left on device" in said
    assert str(tmp_path) in said  # `out` itself is written beside its place
    assert not (tmp_path / "out").exists()
    empty()
    job.short(tmp_path / "out")
    assert job.same(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize("syncs", [0, 3, 8])
def test_a_benchmark_on_a_full_disk_says_so_and_goes_on_later(tmp_path, monkeypatch, capsys, syncs):
    monkeypatch.setattr(killing.cells, "SUPERVISED_STEPS", 5)
    monkeypatch.setattr(rows, "SYNC_SECONDS", 0.0)

    def work(out):
        words = {"arms": ("source-only", "tuned-default"), "runs": (1,), "tasks": 2, "seeds": 1, "workers": 1}
        killing.benchmark(killing.BenchmarkConfig(out=out, **words), killing.TinySuite)
        return 0

    work(tmp_path / "whole")
    capsys.readouterr()
    empty = full_after(monkeypatch, syncs)
    assert cli.exit_code(lambda: work(tmp_path / "out")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in said
    assert str(tmp_path / "out") in said
    empty()
    work(tmp_path / "out")
    both = [killing.read_rows(tmp_path / name / "rows.jsonl") for name in ("whole", "out")]
    assert both[0] == both[1]
    assert len(both[0]) == 8


# ----- a training


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("job", "kills", "writes"),
    [
        # A write is a sync or a rename: 10 of the first save, 1 + 11 + 1 of a training around it.
        ("train", 20, 23),
        ("adapt", 20, 37),
        ("benchmark", 4, 0),  # scripts/trust_report.py kills it 20 times, and a training on real lanes
    ],
)
def test_twenty_kills_change_nothing(tmp_path, job, kills, writes):
    command = [sys.executable, str(HERE / "killing.py"), job, str(tmp_path / "kills"), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["random_kills"] == kills
    assert result["resumed_within"] >= kills / 5  # not all of them before anything was saved
    assert result["write_kills"] == writes
    assert result["identical"] is True


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".log.csv.abcdefgh.part").write_text("half")
    (tmp_path / ".hidden").write_text("mine")
    (tmp_path / ".folder.part").mkdir()
    cache.remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".hidden", ".folder.part"}
    cache.remove_unfinished(tmp_path / "missing")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_finishes_the_rollout_and_saves(quick, tmp_path, monkeypatch, number, capsys):
    train(quick(tmp_path / "whole", 3), progress=False)
    config = quick(tmp_path / "parts", 3)
    rollout = training.Training._rollout
    monkeypatch.setattr(training.Training, "_rollout", lambda self: [os.kill(os.getpid(), number), rollout(self)][1])
    command = cli.Command(summary="", load=lambda: (type(config), lambda _, argv: train(config, progress=False)))
    monkeypatch.setitem(cli.COMMANDS, "train", command)
    assert cli.main(["train"]) == 75
    assert f"stopped by {signal.Signals(number).name} after rollout 1 of 3" in capsys.readouterr().err
    assert signal.getsignal(number) == signal.SIG_DFL
    monkeypatch.setattr(training.Training, "_rollout", rollout)
    assert cli.main(["train"]) == 0
    assert killing.same(tmp_path / "parts", tmp_path / "whole")


def test_signals_outside_of_the_main_thread_stay_as_they_are():
    seen = []

    def work():
        with stop_on_signals() as request:
            request.check("nothing")
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
    with stop_on_signals() as request:
        request.note(signal.SIGTERM, None)
        with pytest.raises(Stopped, match="after all"):
            request.check("all")


def test_a_damaged_checkpoint_costs_one_rollout(quick, tmp_path, capsys):
    train(quick(tmp_path / "whole", 4), progress=False)
    train(quick(tmp_path / "parts", 4), progress=False)
    cut(tmp_path / "parts" / "checkpoint.safetensors", -5)
    train(quick(tmp_path / "parts", 4), progress=False)
    assert "checkpoint.safetensors is damaged (" in capsys.readouterr().err
    assert killing.same(tmp_path / "parts", tmp_path / "whole")


def test_results_are_written_again_from_the_checkpoint(quick, tmp_path):
    train(quick(tmp_path, 2), progress=False)
    before = {name: (tmp_path / name).read_bytes() for name in killing.WRITTEN}
    (tmp_path / "log.csv").write_text("half a")
    (tmp_path / "policy.safetensors").unlink()
    train(quick(tmp_path, 2), progress=False)
    assert {name: (tmp_path / name).read_bytes() for name in killing.WRITTEN} == before


def test_weights_that_are_not_finite_are_never_saved(quick, tmp_path, monkeypatch):
    train(quick(tmp_path / "whole", 3), progress=False)
    train(quick(tmp_path / "parts", 2), progress=False)
    rollout = training.Training._rollout

    def spoiled(self):
        row = rollout(self)
        with torch.no_grad():
            self.model.policy.action_net.bias[3] = float("nan")
        return row

    monkeypatch.setattr(training.Training, "_rollout", spoiled)
    with pytest.raises(InputError, match=r"rollout 3 left policy.action_net.bias non-finite"):
        train(quick(tmp_path / "parts", 3), progress=False)
    monkeypatch.setattr(training.Training, "_rollout", rollout)
    train(quick(tmp_path / "parts", 3), progress=False)
    a, b = (Checkpoints(tmp_path / x / "checkpoint.safetensors", "training").load() for x in ("whole", "parts"))
    learned = [name for name in a.tensors if name.startswith(("policy.", "optimizer."))]
    assert learned
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in learned)


def test_a_training_outlives_a_worker_and_gives_up_on_the_second(quick, tmp_path, monkeypatch, capsys):
    train(quick(tmp_path / "whole", 3), progress=False)
    collect = training.ResumablePPO.collect_rollouts
    deaths = []

    def die(self, *args, **named):
        if self.rollouts == 1 and len(deaths) < most:
            deaths.append(self.rollouts)
            collect(self, *args, **named)  # the worker dies at the end of a rollout: everything has moved by then
            raise WorkerDied("worker 0 died (exit code -9) while it was asked to step")
        return collect(self, *args, **named)

    monkeypatch.setattr(training.ResumablePPO, "collect_rollouts", die)
    most = 1
    train(quick(tmp_path / "parts", 3), progress=False)
    assert "worker 0 died (exit code -9) while it was asked to step: the rollout is" in capsys.readouterr().err
    assert killing.same(tmp_path / "parts", tmp_path / "whole")
    deaths.clear()
    most = 9
    config = quick(tmp_path / "again", 3)
    with pytest.raises(WorkerDied):
        train(config, progress=False)
    monkeypatch.setattr(training.ResumablePPO, "collect_rollouts", collect)
    train(config, progress=False)
    assert killing.same(tmp_path / "again", tmp_path / "whole")


def test_a_killed_worker_is_named_and_deaf_to_sigterm():
    env = WorkerVectorEnv(2, 2, tasks=1)
    first, second = env._processes
    os.kill(first.pid, signal.SIGTERM)  # blocked from its first instruction on
    os.kill(first.pid, signal.SIGINT)
    time.sleep(0.2)
    assert first.is_alive()
    os.kill(second.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match=r"worker 1 died \(exit code -9\) while it was asked to reset"):
        env.reset(seed=0)
    assert not first.is_alive()


def test_a_worker_whose_parent_left_an_answer_unread_leaves_without_a_word():
    ours, theirs = multiprocessing.Pipe()
    theirs.send("an answer")
    ours.close()  # as a parent does when another worker died
    with pytest.raises(ConnectionResetError):
        theirs.recv()
    ours, theirs = multiprocessing.Pipe()
    theirs.send("an answer")
    ours.close()
    workers._serve(theirs, {"num_envs": 1, "tasks": 1})


def test_the_observation_statistics_outlive_a_policy_that_is_sent_to_a_process():
    inputs = Standardiser(mean=torch.arange(3.0), std=torch.ones(3), low=torch.zeros(3), high=torch.ones(3))
    mean = inputs.mean
    lanes = SyncVectorEnv([killing.QuickEnv], autoreset_mode=AutoresetMode.SAME_STEP)
    env = training_env.NormalisedVecEnv(training_env.SB3VecEnv(lanes), inputs)
    before = mean.data_ptr()
    ForkingPickler.dumps(mean)  # as a pipe to another process does
    assert mean.data_ptr() != before  # it has moved, and what it was is free for others
    mean.zero_()
    assert env.inputs.mean.tolist() == [0.0, 1.0, 2.0]
    assert not np.shares_memory(env.inputs.std.numpy(), inputs.std.numpy())


# ----- locks


def test_two_processes_do_not_share_a_folder(tmp_path, quick, capsys):
    folder = tmp_path / "out"
    code = (
        "import sys, time; from pathlib import Path; from lepton_rl.lock import locked\n"
        "with locked(Path(sys.argv[1]) / '.lock', Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"'{folder}' is in use by process {other.pid}: expected one"):
            train(quick(folder, 1), progress=False)
        other.kill()
        other.wait()
    assert (folder / ".lock").exists()
    train(quick(folder, 1), progress=False)  # the lock of the dead holds nobody up
    assert not (folder / ".lock").exists()
    assert beside(tmp_path / "out") == tmp_path / ".out.lock"


def test_a_lock_is_given_back_after_an_error(tmp_path):
    def fail():
        with locked(tmp_path / "x.lock", tmp_path):
            raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            fail()
    assert os.listdir(tmp_path) == []


def test_a_clock_that_jumps_changes_nothing_but_seconds(quick, tmp_path, monkeypatch):
    train(quick(tmp_path / "whole", 2), progress=False)
    now = [1e9]

    def jumping():
        now[0] += (-1) ** int(now[0]) * 1e6 + 1
        return now[0]

    for name in ("time", "perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, jumping)
    train(quick(tmp_path / "jumped", 2), progress=False)
    assert killing.same(tmp_path / "jumped", tmp_path / "whole")


def test_checkpoint_headers_are_limited(files, monkeypatch):
    files.save(one(1))
    monkeypatch.setattr(checkpoint, "MAX_HEADER_BYTES", 10)
    with pytest.raises(InputError, match="damaged"):
        files.load()
