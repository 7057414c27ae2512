"""Suites from files, submissions and their check, and the two doors to other machines."""

import dataclasses
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_benchmark import TinySuite, configure, rows_of

from lepton_rl import datasets
from lepton_rl.agents import benchmark as module
from lepton_rl.agents import cells as cells_module
from lepton_rl.agents import population
from lepton_rl.agents.arm import Database
from lepton_rl.agents.arms import find_arm, replayed
from lepton_rl.agents.benchmark import benchmark, summary_table
from lepton_rl.agents.book import Book
from lepton_rl.agents.experience import ExperienceConfig, collect
from lepton_rl.agents.leaderboard import differences, read_submission, sampled
from lepton_rl.agents.population import Member
from lepton_rl.agents.ray_crew import RayCrew
from lepton_rl.agents.train import TrainConfig, train
from lepton_rl.agents.training_env import make_env
from lepton_rl.errors import InputError
from lepton_rl.starting_model import StartingModel
from lepton_rl.suite import SPLITS

QUICK = ("source-only", "adabn", "tpe")
INITDB = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.fixture(autouse=True)
def short_upper_bound(monkeypatch):
    monkeypatch.setattr(cells_module, "SUPERVISED_STEPS", 5)
    monkeypatch.setattr(replayed, "TASKS", 2)


def tiny_suite():
    """What another process calls."""
    cells_module.SUPERVISED_STEPS = 5
    return TinySuite()


# ----- data sets by path


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Small files with the names and layouts of the real ones."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for name, shape in (("mnist", (28, 28)), ("usps", (16, 16)), ("mnist_m", (32, 32, 3)), ("cifar10", (32, 32, 3))):
        x = rng.integers(0, 256, (300, *shape)).astype(np.uint8)
        y = np.arange(300).astype(np.uint8) % 10
        np.savez(folder / f"{name}.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    monkeypatch.setattr(datasets, "PRETRAIN_STEPS", 5)
    return folder


def test_held_out_sets_are_in_their_own_split_and_nowhere_else(data):
    suite = datasets.data_suite(data)
    for split in SPLITS:
        assert {suite.recipe(split, i).base for i in range(40)} == {"mnist", "cifar10", "digits"}
    names = [suite.recipe("held-out-datasets", i).base for i in range(8)]
    assert set(names) == {"mnist-usps", "mnist-mnist_m", "usps-mnist", "mnist_m-mnist"}
    assert not any(suite.recipe("held-out-datasets", i).target_shifts for i in range(8))


def test_sets_with_the_same_classes_are_learnt_from_in_pairs(data):
    suite = datasets.data_suite(data)
    recipes = [suite.recipe("train-pairs", i) for i in range(60)]
    assert {recipe.base for recipe in recipes} == {"mnist-digits", "digits-mnist"}  # no letters in this folder
    assert {len(recipe.target_shifts) for recipe in recipes} == {0, 1, 2}
    plain = next(r for r in recipes if not r.target_shifts and r.base == "digits-mnist" and r.classes == "all")
    task = suite.make(plain)
    mnist = {image.tobytes() for image in datasets.read_set(data, "mnist", 16).images}
    assert all(image.tobytes() in mnist for image in task.hidden.target_eval.images)
    assert task.hidden.target_test is None  # to learn from
    assert plain == suite.recipe("train-pairs", plain.index)
    with pytest.raises(InputError, match="expected train-pairs"):
        suite.pairs.recipe("train", 0)


def test_letters_are_paired_by_the_classes_that_both_sets_have(data):
    rng = np.random.default_rng(0)
    for name, classes in (("notmnist", 10), ("emnist_letters", 26)):
        x, y = rng.integers(0, 256, (520, 28, 28)).astype(np.uint8), (np.arange(520) % classes).astype(np.uint8)
        np.savez(data / f"{name}.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    suite = datasets.data_suite(data)
    recipes = [suite.recipe("train-pairs", i) for i in range(60)]
    assert len({recipe.base for recipe in recipes}) == 4
    assert suite.widest(recipes[0]).classes == "all"
    for base in ("notmnist-emnist_letters", "emnist_letters-notmnist"):
        task = suite.make(next(r for r in recipes if r.base == base and r.classes == "all"))
        assert task.visible.n_classes == 10
        assert task.hidden.target_eval.labels.max() == 9


def test_a_folder_without_pairs_says_what_they_need(data):
    for name in ("mnist", "usps", "mnist_m"):
        (data / f"{name}.npz").unlink()
    with pytest.raises(InputError, match=r"'train-pairs' needs mnist.npz, or notmnist.npz and emnist_letters.npz"):
        datasets.data_suite(data).task("train-pairs", 0)
    config = ExperienceConfig(suite="data", data=data, split="train-pairs", out=data / "out", tasks=1, glances=0)
    with pytest.raises(InputError, match="add them to the data folder"):
        collect(config)
    with pytest.raises(InputError, match="add them to the data folder"):
        train(TrainConfig(suite="data", data=data, split="train-pairs", out=data / "out"))
    assert not (data / "out").exists()
    for made in (ExperienceConfig, TrainConfig):
        with pytest.raises(InputError, match="suite 'digits' has no split 'train-pairs'"):
            made(split="train-pairs")


def test_real_rollouts_are_played_on_the_split_that_was_asked_for(data):
    asked = {"suite": "data", "data": data, "n_envs": 2, "workers": 1, "engine": "fleet"}
    for split in ("train", "train-pairs"):
        lanes = make_env(TrainConfig(split=split, **asked))
        _, told = lanes.reset(seed=0)
        assert all(f"/{split}/" in name for name in told["task"])
        lanes.close()


def test_images_are_brought_to_one_size_and_one_number_of_channels(data):
    suite = datasets.data_suite(data)
    for split, index in (("train", 0), ("held-out-datasets", 0), ("held-out-datasets", 1)):
        task = suite.task(split, index, "few-label")
        parts = [task.visible.target_unlabelled, task.visible.target_support, task.hidden.target_eval]
        assert all(part.images.shape[1:] == (3, 16, 16) for part in parts)
        assert not task.visible.target_unlabelled.has_labels
        assert task.visible.regime == "few-label"
    again = datasets.data_suite(data).task("held-out-datasets", 1, "few-label")
    assert (again.visible.target_unlabelled.images == task.visible.target_unlabelled.images).all()
    assert again.name == task.name == "mnist-mnist_m/held-out-datasets/0001"


def test_a_data_folder_without_data_is_told(data, tmp_path, monkeypatch):
    monkeypatch.delenv("LEPTON_DATA", raising=False)
    with pytest.raises(InputError, match="give --data, or set LEPTON_DATA"):
        datasets.data_folder()
    with pytest.raises(InputError, match="holds no data set"):
        datasets.data_folder(tmp_path)
    monkeypatch.setenv("LEPTON_DATA", str(data))
    assert datasets.data_folder() == data
    with pytest.raises(InputError, match="size 20 is out of range"):
        datasets.data_suite(data, 20)
    for name in datasets.HELD_OUT:
        (data / f"{name}.npz").unlink()
    with pytest.raises(InputError, match="'held-out-datasets' needs"):
        datasets.data_suite(data).task("held-out-datasets", 0)


def test_the_suite_of_a_data_folder_can_be_benchmarked(data, tmp_path):
    config = configure(
        tmp_path / "out", suite="data", data=data, arms=("adabn",), splits=("held-out-datasets",), tasks=1
    )
    benchmark(config)
    [row] = rows_of(config.out)
    assert (row["split"], row["task"]) == ("held-out-datasets", "mnist-usps/held-out-datasets/0000")
    (data / "usps.npz").unlink()
    with pytest.raises(InputError, match="rows with data"):
        benchmark(config)
    with pytest.raises(InputError, match="split 'held-out-datasets' is unknown"):
        benchmark(dataclasses.replace(config, suite="digits"))


@pytest.mark.data
@pytest.mark.skipif("LEPTON_DATA" not in os.environ, reason="LEPTON_DATA is not set")
def test_the_real_sets_make_tasks():
    suite = datasets.data_suite(datasets.data_folder())
    for index in range(4):
        task = suite.task("held-out-datasets", index)
        assert len(task.hidden.target_test) > 50


# ----- two folders of images


@pytest.fixture
def folders(tmp_path):
    """Cups are bright above and keys are not, in a studio and, darker, with a phone and a tablet."""
    rng = np.random.default_rng(0)
    for domain, bright in (("studio", 120), ("phone", 60), ("tablet", 90)):
        for kind in ("cup", "key"):
            (tmp_path / domain / kind).mkdir(parents=True)
            for i in range(40):
                pixels = rng.integers(0, bright, (20, 20, 3)).astype(np.uint8)
                pixels[:10] += np.uint8(60 * (kind == "cup"))
                Image.fromarray(pixels).save(tmp_path / domain / kind / f"{i}.png")
    return {"suite": "folders", "source": tmp_path / "studio", "target": (tmp_path / "phone",), "size": 12}


def test_two_folders_of_images_are_a_suite(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "PRETRAIN_STEPS", 5)
    config = configure(tmp_path / "out", arms=("source-only", "adabn"), tasks=2, **folders)
    benchmark(config)
    rows = rows_of(config.out)
    assert {(row["split"], row["index"]) for row in rows} == {("own", 0), ("own", 1)}
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    with pytest.raises(InputError, match="give --source and --target"):
        benchmark(dataclasses.replace(config, source=None))
    for path in (tmp_path / "phone" / "key").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="phone"):
        datasets.folder_suite(tmp_path / "studio", [tmp_path / "phone"], 12)


OWN_NETWORK = """
import torch
from torch import nn

def build(classes=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

def other():
    return build(3)
"""


def test_an_own_network_is_benchmarked_on_several_targets_in_turn(folders, tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(OWN_NETWORK)
    monkeypatch.chdir(tmp_path)
    targets = (tmp_path / "phone", tmp_path / "tablet")
    words = folders | {"target": targets, "model": "own_network:build", "budgets": (5,)}
    config = configure(tmp_path / "out", arms=("source-only", "tuned-default"), tasks=2, **words)
    benchmark(config)
    rows = rows_of(config.out)
    assert {row["task"] for row in rows} == {"source-target1/own/0000", "source-target2/own/0001"}
    assert {row["steps"] for row in rows if row["arm"] == "tuned-default"} == {5}
    suite = datasets.folder_suite(folders["source"], targets, 12, StartingModel(name="own_network:build"), (5,))
    task = suite.task("own", 0)
    assert [type(layer).__name__ for layer in task.visible.model][:2] == ["Conv2d", "ReLU"]
    assert task.visible.budget == 5
    save_file({k: v + 1 for k, v in task.visible.model.state_dict().items()}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="rows with data"):  # other weights are another benchmark
        benchmark(dataclasses.replace(config, weights=tmp_path / "other.safetensors"))
    with pytest.raises(InputError, match="3 outputs and the source 2 classes"):
        datasets.folder_suite(folders["source"], targets, 12, StartingModel(name="own_network:other")).task("own", 0)


def test_a_network_without_weights_is_trained_on_the_source_folder(folders):
    network = StartingModel(name="vgg-gn")
    suite = datasets.folder_suite(folders["source"], folders["target"], 12, network)
    model, again = (suite.task("own", index).visible.model for index in (0, 1))
    assert model is again
    train = suite.task("own", 0).visible.source_train or suite.task("own", 1).visible.source_train
    pixels = (torch.from_numpy(train.images).float() / 255 - train.images.mean() / 255) / (train.images.std() / 255)
    assert float((model(pixels).argmax(1).numpy() == train.labels).mean()) > 0.9


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"suite": "digits", "model": "vgg"}, "with --suite folders alone"),
        ({"suite": "digits", "budgets": (5,)}, "with --suite folders alone"),
        ({"weights": Path("net.safetensors")}, "without --model"),
        ({"budgets": (3,)}, "budget 3"),
    ],
)
def test_what_does_not_go_together_is_told(folders, tmp_path, words, told):
    with pytest.raises(InputError, match=told):
        benchmark(configure(tmp_path / "out", arms=("source-only",), **folders | words))


# ----- submissions


@pytest.fixture(scope="module")
def submitted(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(cells_module, "SUPERVISED_STEPS", 5)
    folder = tmp_path_factory.mktemp("submitted")
    benchmark(configure(folder / "out", arms=QUICK, submit=folder / "file.json"), TinySuite)
    patch.undo()
    return folder / "file.json"


def test_a_submission_holds_rows_versions_and_hashes_and_is_confirmed(submitted, tmp_path):
    content = json.loads(submitted.read_text())
    assert len(content["rows"]) == 2 * 2 * 4
    assert {"lepton_rl", "torch"} <= set(content["versions"])
    assert {"defaults", "suite", "data"} <= set(content["fingerprint"])
    assert str(submitted.parent) not in submitted.read_text()
    summary = benchmark(configure(tmp_path / "out", verify=submitted), TinySuite)
    assert "4 of its cells were made again and confirmed, equal but for seconds" in summary_table(summary)
    assert {row["arm"] for row in rows_of(tmp_path / "out")} == set(QUICK)
    before = (submitted.parent / "out" / "rows.jsonl").read_bytes()
    with pytest.raises(InputError, match="is not empty"):
        benchmark(configure(submitted.parent / "out", verify=submitted), TinySuite)
    assert (submitted.parent / "out" / "rows.jsonl").read_bytes() == before


def changed(submitted, path, change, rehash=True):
    from lepton_rl.agents.leaderboard import hash_of

    content = json.loads(submitted.read_text())
    change(content)
    if rehash:
        content["hash"] = hash_of(content["rows"])
    path.write_text(json.dumps(content))
    return path


def flatter(content):
    for row in content["rows"]:
        row["accuracy"] = min(1.0, row["accuracy"] + 0.1)


@pytest.mark.parametrize(
    ("change", "rehash", "told"),
    [
        (flatter, True, "could not be confirmed: .*accuracy"),
        (flatter, False, "do not have the hash"),
        (lambda c: c["fingerprint"].update(defaults="0"), True, "made with defaults '0'"),
        (lambda c: c["fingerprint"].update(torch="0.1") or flatter(c), True, "could not be confirmed"),
        (lambda c: c.update(rows=[]), True, "0 rows"),
        (lambda c: c.pop("rows") and c.update(hash=0), False, "is no submission"),
        (lambda c: c["arguments"].update(tricks=1), True, "of another version"),
    ],
)
def test_a_submission_that_is_not_true_is_refused(submitted, tmp_path, change, rehash, told):
    if told == "is no submission":
        path = tmp_path / "file.json"
        path.write_text("{}")
    else:
        path = changed(submitted, tmp_path / "file.json", change, rehash)
    with pytest.raises(InputError, match=told) as error:
        benchmark(configure(tmp_path / "out", verify=path), TinySuite)
    assert "\n" not in str(error.value)


def test_other_versions_may_differ_a_little(submitted):
    told = read_submission(submitted).rows[:2]
    close = [row | {"accuracy": row["accuracy"] + 0.01, "score": 0.5} for row in told]
    assert differences(told, close, same_versions=False) == []
    assert len(differences(told, close, same_versions=True)) == 4
    far = [row | {"accuracy": row["accuracy"] + 0.1} for row in told]
    assert len(differences(told, far, same_versions=False)) == 2


def test_a_sample_has_different_arms_while_there_are_some(submitted):
    rows = read_submission(submitted).rows
    for seed in range(5):
        groups = sampled(rows, seed)
        assert len(groups) == 4
        assert {group[0]["arm"] for group in groups} == set(QUICK)
        assert all(len(group) == (2 if group[0]["arm"] == "tpe" else 1) for group in groups)
    assert sampled(rows, 1) != sampled(rows, 2)


# ----- repeated, resumed


def test_two_benchmarks_with_one_seed_give_the_same_rows_except_seconds(tmp_path):
    arms = ("full-finetune", "tpe-hyperband", "gp-schedule", "pbt", "policy-replayed")
    found = []
    for name in ("one", "two"):
        benchmark(configure(tmp_path / name, arms=arms, tasks=1, splits=("held-out-tasks",)), TinySuite)
        found.append(rows_of(tmp_path / name, "seconds"))
    assert found[0] == found[1]
    assert {row["runs"] for row in found[0] if row["arm"] == "pbt"} == {1, 2}


class Killed(BaseException):
    """Nothing in the way may catch it."""


def test_a_killed_population_goes_on_from_its_last_decision_to_the_same_rows(tmp_path, monkeypatch):
    """And its file is gone when its rows are made."""
    monkeypatch.setattr(population, "KEEP_SECONDS", 0.0)
    config = configure(tmp_path / "whole", arms=("pbt-warm",), runs=(6,), tasks=1, splits=("held-out-tasks",))
    benchmark(config, TinySuite)
    assert not list((config.out / "optuna").glob("*"))
    steps, go_on = [], Member.go_on

    def killed(self):
        steps.append(self.steps)
        if len(steps) == 6 + 3:  # in the middle of the second and last decision
            raise Killed
        go_on(self)

    monkeypatch.setattr(Member, "go_on", killed)
    parts = dataclasses.replace(config, out=tmp_path / "parts")
    with pytest.raises(Killed):
        benchmark(parts, TinySuite)
    assert [path.name for path in (parts.out / "optuna").glob("*")] == ["pbt-warm-held-out-tasks-0000-0.6.safetensors"]
    benchmark(parts, TinySuite)
    assert steps[9:] == [5] * 6  # the first decision is not made again
    assert rows_of(parts.out, "seconds") == rows_of(config.out, "seconds")
    assert not list((parts.out / "optuna").glob("*"))


def test_the_seconds_of_a_population_are_counted_once(tmp_path):
    began = time.perf_counter()
    config = configure(tmp_path / "out", arms=("pbt",), runs=(4,), tasks=1, splits=("held-out-tasks",))
    benchmark(config, TinySuite)
    [row] = rows_of(config.out)
    assert 0 < row["seconds"] < time.perf_counter() - began


# ----- a database


class Server:
    """PostgreSQL from Debian's package, on a free port, without root's rights."""

    def __init__(self, folder):
        self.bin, self.folder = INITDB[-1].parent, folder / "database"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder.mkdir()
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres")
        self.call(f"{self.bin}/initdb -D {self.folder} -A trust -U bench --no-sync -E UTF8")

    @property
    def url(self):
        return f"postgresql+psycopg://bench@127.0.0.1:{self.port}/postgres"

    def call(self, line):
        command = ["su", "postgres", "-c", line] if os.getuid() == 0 else ["sh", "-c", line]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        subprocess.run(command, check=True, cwd="/", **quiet)

    def start(self):
        options = f"-p {self.port} -k {self.folder} -F -c listen_addresses=127.0.0.1"
        self.call(f'{self.bin}/pg_ctl -D {self.folder} -l {self.folder}/log -w -o "{options}" start')

    def stop(self):
        self.call(f"{self.bin}/pg_ctl -D {self.folder} -m immediate -w stop")


@pytest.fixture
def server():
    if not INITDB:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg")
    # Not below pytest's own folder: every pytest that starts closes that to other users.
    with tempfile.TemporaryDirectory(prefix="lepton-postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        made = Server(Path(folder))
        made.start()
        yield made
        made.stop()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_studies_live_in_postgresql_which_may_go_away_and_come_back(server, tmp_path, monkeypatch):
    config = configure(tmp_path / "files", arms=("tpe", "tpe-hyperband"), tasks=1, splits=("held-out-tasks",))
    benchmark(config, TinySuite)
    expected = [row for row in rows_of(config.out, "seconds") if row["arm"] == "tpe"]
    shared = dataclasses.replace(config, out=tmp_path / "shared", storage=server.url, arms=("tpe",))
    went = []

    def wait(seconds):
        went.append(seconds)
        server.start()

    real = Book.tell

    def tell(self, *words):
        if not went:  # the first trial is lost in the middle of its telling
            server.stop()
        real(self, *words)

    monkeypatch.setattr(Book, "tell", tell)
    monkeypatch.setattr(cells_module.time, "sleep", wait)
    benchmark(shared, TinySuite)
    assert went == [1.0]
    assert rows_of(shared.out, "seconds") == expected
    assert not list((shared.out / "optuna").glob("*")) if (shared.out / "optuna").exists() else True
    storage = optuna.storages.RDBStorage(server.url)
    names = optuna.get_all_study_names(storage)
    storage.remove_session()
    storage.engine.dispose()
    assert len(names) == 1
    again = list(
        find_arm("tpe").search(
            TinySuite().task("held-out-tasks", 0).visible, 3, 2, Database(url=server.url, study=names[0])
        )
    )
    assert [trial.remembered for trial in again] == [10, 10]
    gc.collect()  # connections that died with the server complain when they are deleted


def test_a_database_that_stays_away_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(cells_module, "PATIENCE", (0.0, 0.0))
    url = f"sqlite:///{tmp_path}/missing/folder.db"
    config = configure(tmp_path / "out", arms=("tpe",), tasks=1, splits=("held-out-tasks",), storage=url)
    with pytest.raises(module.CellsFailed, match="the database of the tuners does not answer") as error:
        benchmark(config, TinySuite)
    assert "\n" not in str(error.value)


def test_studies_in_a_database_give_the_rows_of_studies_in_files(tmp_path):
    config = configure(tmp_path / "files", arms=("tpe",), tasks=1, splits=("held-out-tasks",))
    benchmark(config, TinySuite)
    shared = dataclasses.replace(config, out=tmp_path / "shared", storage=f"sqlite:///{tmp_path}/studies.db")
    benchmark(shared, TinySuite)
    assert rows_of(shared.out, "seconds") == rows_of(config.out, "seconds")


# ----- Ray


def start_doing():
    """Make a handler that dies once and fails sometimes."""

    def do(job):
        if isinstance(job, tuple) and not os.path.exists(job[1]):
            Path(job[1]).touch()
            os._exit(3)
        if job == 3:
            raise ZeroDivisionError("division by zero")
        return job

    return do


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_ray_cluster_makes_the_same_rows(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    program = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
import test_benchmark_suites as tests
from lepton_rl.agents.benchmark import benchmark
from lepton_rl.agents.population import Member
from lepton_rl.agents.ray_crew import RayCrew
if __name__ == "__main__":
    out = Path({str(tmp_path)!r})
    import ray
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with RayCrew(2, tests.start_doing, "auto") as crew:
        done = {{str(one.job): one for one in crew.run([0, 1, 2, 3, ("x", str(out / "mark"))])}}
    assert len(done) == 5
    assert "ZeroDivisionError" in done["3"].problem
    assert [one.problem for one in done.values()].count(None) == 4
    config = tests.configure(out / "out", arms=tests.QUICK, tasks=1, address="auto", workers=2)
    benchmark(config, tests.tiny_suite)
    ray.shutdown()
"""
    script = tmp_path / "cluster.py"
    script.write_text(program)
    words = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "RAY_USAGE_STATS_ENABLED": "0"}
    words["RAY_worker_niceness"] = "0"  # Ray makes its workers yield to whatever else the machine does
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, env={**os.environ, **words}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    benchmark(configure(tmp_path / "here", arms=QUICK, tasks=1), TinySuite)
    assert rows_of(tmp_path / "out", "seconds") == rows_of(tmp_path / "here", "seconds")


def test_without_ray_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install lepton_rl\[ray\]"):
        RayCrew(1, start_doing, "auto")
