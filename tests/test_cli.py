"""The command `lepton`: what it prints, the exit codes, and that bad input leaves nothing behind."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import lepton_rl.apply
from lepton_rl import Domain, Shift, __version__
from lepton_rl.artifact import PolicyArtifact
from lepton_rl.cli import COMMANDS, main
from lepton_rl.controls import ACTION_SIZES
from lepton_rl.demo import demo_table
from lepton_rl.models import build_model
from lepton_rl.policy import NetworkPolicy
from lepton_rl.signals import SIGNALS
from lepton_rl.standardise import Standardiser
from lepton_rl.suite import TaskSuite

ROOT = Path(__file__).resolve().parent.parent
SIDE = 8


def write_folder(root, domain, labelled=None):
    """Write a domain as a folder of class folders; all but the first `labelled` images go to `unlabelled/`."""
    for i, (image, label) in enumerate(zip(domain.images, domain.labels, strict=True)):
        known = labelled is None or i < labelled
        folder = root / (f"digit-{label}" if known else "unlabelled")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes of real digits: a source folder, a shifted target with few labels, a test folder, weights."""
    root = tmp_path_factory.mktemp("data")
    digits = Domain.digits()
    digits = digits.take(digits.labels < 2)
    shift = Shift(kind="contrast", severity=0.9)
    write_folder(root / "source", digits.take(range(100)))
    write_folder(root / "target", shift(digits.take(range(100, 200))), labelled=30)
    write_folder(root / "test", shift(digits.take(range(200, 300))))
    model = build_model("vgg", channels=1, n_classes=2, width=4)
    save_file(model.state_dict(), root / "vgg.safetensors")
    return root


@pytest.fixture
def good(data, tmp_path):
    """Arguments of a run that works, as a dictionary that tests change."""
    return {
        "--model": "vgg",
        "--weights": data / "vgg.safetensors",
        "--source": data / "source",
        "--target": data / "target",
        "--policy": "tuned-default",
        "--budget": 5,
        "--out": tmp_path / "out",
    }


def run(arguments, command="adapt"):
    flat = [str(part) for pair in arguments.items() for part in pair if pair[1] is not None]
    return main([command, *flat])


def tiny_policy(card=None):
    import torch

    n, k = len(SIGNALS), sum(ACTION_SIZES)
    layers = ((torch.zeros(3, n), torch.zeros(3)), (torch.zeros(k, 3), torch.zeros(k)))
    policy = NetworkPolicy(inputs=Standardiser.unchanged(n), layers=layers)
    return PolicyArtifact(policy=policy, card=card or {})


# ----- help


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", shown, re.MULTILINE) for name in COMMANDS)
    assert set(COMMANDS) == {"demo", "train", "adapt", "export", "drift", "benchmark", "report", "inspect"}
    assert main([]) == 0
    assert capsys.readouterr().out == shown


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lepton {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_described(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: lepton {command}" in shown
    config, _ = COMMANDS[command].load()
    (tree,) = ast.parse(inspect.getsource(config)).body
    for field, text in zip(tree.body[1:], tree.body[2:], strict=False):
        if isinstance(field, ast.AnnAssign):
            name = ast.unparse(field.target)
            assert (name.upper() if "Positional" in ast.unparse(field) else f"--{name.replace('_', '-')}") in shown
            assert len(ast.literal_eval(text.value).split()) >= 2, f"{name} is not described"


def test_the_listing_waits_for_no_library_of_the_agents():
    code = (
        "import sys, lepton_rl\nfrom lepton_rl.cli import main\nmain(['--help'])\n"
        "heavy = {'gymnasium', 'stable_baselines3', 'optuna', 'plotly', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# ----- runs that work


def test_adapt_from_folders(good, data, tmp_path, capsys):
    assert run(good | {"--test": data / "test", "--seed": 2}) == 0
    shown, problems = capsys.readouterr()
    assert problems == ""
    assert re.search(r"probe accuracy +\d\.\d{3} +\d\.\d{3}", shown)
    assert re.search(r"test accuracy +\d\.\d{3} +\d\.\d{3} +[+-]\d\.\d{3} +[+-]\d\.\d{3} \.\. [+-]\d\.\d{3}", shown)
    assert re.search(r"digit-0 +\d+ +\d\.\d{2} > \d\.\d{2}", shown)
    assert re.search(r"^(adapted|kept the original): ", shown, re.MULTILINE)
    assert f"report: {tmp_path / 'out' / 'report.html'}" in shown
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["command"] == "lepton adapt"
    assert manifest["argv"][:4] == ["lepton", "adapt", "--model", "vgg"]
    assert (manifest["seed"], manifest["arguments"]["budget"]) == (2, 5)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["classes"] == ["digit-0", "digit-1"]


def test_a_class_prior_can_be_typed(good, tmp_path, capsys, monkeypatch):
    prior = ["--class-prior", "digit-0", "3", "digit-1", "1"]
    flat = [str(part) for pair in good.items() for part in pair]
    assert main(["adapt", *flat, *prior]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["arguments"]["class_prior"] == {"digit-0": 3.0, "digit-1": 1.0}
    capsys.readouterr()
    monkeypatch.setattr(lepton_rl.apply, "adapt", None)  # it is said before anything is trained
    assert main(["adapt", *flat, "--overwrite", "--class-prior", "digit-0", "3"]) == 2
    problem = capsys.readouterr().err
    assert "class_prior: 'digit-1' missing: expected a share of each of" in problem
    assert problem.count("\n") == 1


def test_adapt_trains_a_built_in_first_when_there_are_no_weights(good, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    assert run(good | {"--weights": None, "--image-size": 6}) == 0
    assert "training vgg on 80 labelled images of source, as no --weights are given" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["preprocessing"]["height"], result["preprocessing"]["width"]) == (6, 6)


def test_adapt_without_a_source_and_with_a_policy_file(good, tmp_path, capsys):
    tiny_policy().save(tmp_path / "p.safetensors")
    assert run(good | {"--source": None, "--policy": tmp_path / "p.safetensors", "--mean": 0.5, "--std": 0.25}) == 0
    capsys.readouterr()
    preprocessing = json.loads((tmp_path / "out" / "result.json").read_text())["preprocessing"]
    assert (preprocessing["mean"], preprocessing["std"]) == ([0.5], [0.25])


def test_adapt_from_an_npz_file_whose_labels_number_the_source_classes(good, data, tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (9, SIDE, SIDE), dtype=np.uint8)
    np.savez(tmp_path / "t.npz", x_train=x, y_train=[0, 1, -1] * 3, x_test=x[:2], y_test=[0, 1])
    assert run(good | {"--target": f"{tmp_path}/t.npz:train", "--test": f"{tmp_path}/t.npz:test"}) == 0
    assert "test accuracy" in capsys.readouterr().out


def test_report_writes_the_page_anew(good, tmp_path, capsys):
    assert run(good) == 0
    page = tmp_path / "out" / "report.html"
    page.unlink()
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "Adaptation report" in page.read_text()
    assert f"report: {page}" in capsys.readouterr().out


def test_inspect_a_model(data, capsys):
    assert main(["inspect", "vgg", "--weights", str(data / "vgg.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"stage 4 +stages\.3 +1,184 +1 +0 +1 ", shown)  # conv 9 * 8 * 16 and two numbers a channel
    assert main(["inspect", "resnet"]) == 0


def test_inspect_a_policy(tmp_path, capsys):
    tiny_policy({"tasks": "digits/train", "episodes": 3}).save(tmp_path / "p.safetensors")
    assert main(["inspect", str(tmp_path / "p.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert f"{len(SIGNALS)} - 3 - {sum(ACTION_SIZES)}" in shown
    assert "digits/train" in shown


# ----- bad input: one line, exit code 2, nothing left behind


def wrong_version(path):
    path.write_bytes(tiny_policy().to_bytes().replace(b'\\"format_version\\": 3', b'\\"format_version\\": 7'))


def wrong_schema(path):
    path.write_bytes(tiny_policy().to_bytes().replace(b'\\"progress\\"', b'\\"prograss\\"'))


def truncated_image(path):
    write_folder(path, Domain.digits().take(range(2)))
    image = path / "digit-0" / "0.png"
    image.write_bytes(image.read_bytes()[:-30])


def unknown_class(path):
    digits = Domain.digits()
    write_folder(path, digits.take(digits.labels < 3).take(range(6)))


def labels_of_wrong_length(path):
    np.savez(path, x=np.zeros((4, SIDE, SIDE), dtype=np.uint8), y=np.zeros(3, dtype=np.int64))


def unreadable(path):
    path.mkdir()
    (path / "digit-0").mkdir()
    (path / "digit-0" / "0.png").write_bytes(b"no image")


BAD = {
    "missing target": ("--target", "gone", None, r"gone' does not exist"),
    "missing source": ("--source", "gone", None, r"gone' does not exist"),
    "missing npz": ("--target", "gone.npz", None, r"gone.npz' does not exist"),
    "truncated image": ("--target", "cut", truncated_image, r"cut/digit-0/0.png' cannot be read"),
    "no image": ("--target", "text", unreadable, r"digit-0/0.png' cannot be read"),
    "unknown class": ("--target", "three", unknown_class, r"class 'digit-2' .* not known to the model"),
    "wrong labels": ("--target", "t.npz", labels_of_wrong_length, r"labels have shape \[3\] for 4 images"),
    "empty target": ("--target", "empty", Path.mkdir, r"holds no image"),
    "low budget": ("--budget", "4", None, r"budget 4 is below one decision"),
    "policy version": ("--policy", "v.safetensors", wrong_version, r"format version 7: expected 3"),
    "policy schema": ("--policy", "s.safetensors", wrong_schema, r"another observation schema"),
    "missing policy": ("--policy", "gone.safetensors", None, r"gone.safetensors' does not exist"),
    "unknown policy": ("--policy", "lepton-v0", None, r"policy 'lepton-v0' is unknown"),
    "missing weights": ("--weights", "gone.pt", None, r"gone.pt' do not exist"),
    "unknown model": ("--model", "vgg19", None, r"model 'vgg19' is unknown"),
    "model without parameters": ("--model", "torch.nn:Identity", None, r"has no parameters"),
    "negative seed": ("--seed", "-1", None, r"seed -1 is out of range"),
    "too few names": ("--classes", "just-one", None, r"class 'digit-0' .* not known.*expected 'just-one'"),
    "bad size": ("--image-size", "0", None, r"size is .*expected 1..8192"),
    "bad mean": ("--mean", "0.5", None, r"normalisation has mean \[0.5\] and std \[\]"),
}
VALUES = {"--budget", "--seed", "--classes", "--image-size", "--mean", "--model"}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, good, tmp_path, capsys):
    option, value, make, message = BAD[case]
    plain = option in VALUES or case == "unknown policy"
    if make:
        make(tmp_path / value)
    if case == "model without parameters":
        good["--weights"] = None
    before = set(tmp_path.rglob("*"))
    assert run(good | {option: value if plain else tmp_path / value}) == 2
    shown, problems = capsys.readouterr()
    assert shown == ""
    assert re.fullmatch(rf"lepton: error: .*{message}.*\n", problems), problems
    assert set(tmp_path.rglob("*")) == before


def test_a_used_out_folder_is_refused_until_overwrite(good, tmp_path, capsys):
    assert run(good) == 0
    assert run(good | {"--seed": 1}) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["adapt", *[str(p) for pair in (good | {"--seed": 1}).items() for p in pair], "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["seed"] == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["adopt"], "command 'adopt' is unknown: expected one of demo, train, adapt"),
        (["report", "gone"], "gone holds neither history.jsonl"),
        (["inspect", "gone.safetensors"], "'gone.safetensors' does not exist"),
        (["inspect", "nothing"], "model 'nothing' is unknown"),
        (["inspect", "photos/studoi"], "'photos/studoi' does not exist: expected a folder"),
    ],
)
def test_other_bad_input(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert re.fullmatch(rf"lepton: error: .*{message}.*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--n-epochs", "0", "n_epochs 0 is out of range: expected at least 1"),
        ("--batch-size", "1", "batch_size 1 is out of range: expected at least 2"),
        ("--seed", "-1", "seed -1 is out of range: expected at least 0"),
        ("--hidden", "0", r"hidden \(0,\) is out of range: expected one or more sizes"),
        ("--learning-rate", "nan", "learning_rate nan is out of range: expected above 0"),
        ("--gamma", "1.5", "gamma 1.5 is out of range: expected 0 to 1"),
        ("--action-cost", "inf", "action_cost inf is out of range: expected at least 0"),
        ("--experience", "gone", "experience 'gone' holds no task"),
    ],
)
def test_values_that_the_options_refuse_are_told_in_one_line(option, value, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", option, value]) == 2
    shown, problems = capsys.readouterr()
    assert shown == ""
    assert re.fullmatch(rf"lepton: error: {message}.*\n", problems)
    assert list(tmp_path.iterdir()) == []


def test_wrong_options_are_told_by_the_parser(capsys):
    with pytest.raises(SystemExit) as left:
        main(["adapt", "--bugdet", "3"])
    assert left.value.code == 2
    assert "--bugdet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "lepton: error: interrupted"),
        (PermissionError(13, "Permission denied", "x/y"), 2, "lepton: error: x/y: Permission denied"),
        (OSError(28, "No space left on device"), 2, "lepton: error: No space left on device"),
    ],
)
def test_what_happens_outside_is_told_in_one_line(error, code, message, good, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(lepton_rl.apply, "adapt", fail)
    assert run(good) == code
    problems = capsys.readouterr().err
    assert problems.startswith(message)
    assert problems.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_bug_keeps_its_traceback(good, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(lepton_rl.apply, "adapt", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(good)


def test_a_reader_that_goes_away_is_no_error():
    code = "import sys; from lepton_rl.cli import main; sys.exit(main(['inspect', 'resnet']))"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    child.stdout.close()
    with child.stderr as problems:
        assert problems.read() == b""
    assert child.wait() == 1


# ----- the demo


def rows_of(index, accuracies):
    columns = [("source-only", 1), ("tpe", 1), ("tpe", 8), ("policy", 1), ("tuned-default", 1)]
    return [
        {"arm": arm, "runs": runs, "split": "held-out-shifts", "index": index, "accuracy": value, "steps": 40 * runs}
        for (arm, runs), value in zip(columns, accuracies, strict=True)
    ]


def test_the_table_of_the_demo_by_hand():
    titles, lines = demo_table(rows_of(1, [0.2, 0.3, 0.4, 0.5, 0.6]) + rows_of(0, [0.4, 0.5, 0.5, 0.6, 0.7]))
    shown = [title.replace("\n", " ") for title in titles]
    assert shown[2:] == ["source only", "tuned default 1 run", "policy 1 run", "Optuna 1 run", "Optuna 8 runs"]
    recipes = [TaskSuite.digits().recipe("held-out-shifts", i) for i in (0, 1)]
    for line, recipe in zip(lines, recipes, strict=False):
        assert line[0].split(" ")[0] == recipe.target_shifts[0].kind
        assert line[1] == str(recipe.labels_per_class or "none")
    assert lines[0][2:] == ["0.400", "0.700", "0.600", "0.500", "0.500"]
    assert lines[1][2:] == ["0.200", "0.600", "0.500", "0.300", "0.400"]
    assert lines[2][2:] == ["0.300", "0.650", "0.550", "0.400", "0.450"]
    assert lines[3] == ["gradient steps", "", "40", "40", "40", "40", "320"]


def test_the_demo_asks_the_benchmark_and_prints_what_it_measured(tmp_path, capsys, monkeypatch):
    import lepton_rl.agents.benchmark

    asked = []

    def stub(config):
        asked.append(config)
        config.out.mkdir()
        lines = [json.dumps(row) for row in rows_of(0, [0.125, 0.25, 0.375, 0.5, 0.625])]
        (config.out / "rows.jsonl").write_text("\n".join(lines) + "\n")
        return {}

    monkeypatch.setattr(lepton_rl.agents.benchmark, "benchmark", stub)
    assert main(["demo", "--out", str(tmp_path / "d"), "--policy", "tuned-default"]) == 0
    shown = capsys.readouterr().out
    assert all(figure in shown for figure in ("0.125", "0.250", "0.375", "0.500", "0.625"))
    assert f"report: {tmp_path / 'd' / 'report.html'}" in shown
    assert (asked[0].splits, asked[0].runs, asked[0].workers) == (("held-out-shifts",), (1, 4, 8), 2)
    assert set(asked[0].arms) == {"source-only", "tuned-default", "policy", "tpe"}


def test_cells_that_failed_are_told_in_one_line(tmp_path, capsys, monkeypatch):
    import lepton_rl.agents.benchmark

    def fail(config):
        raise lepton_rl.agents.benchmark.CellsFailed("2 of 9 cells failed")

    monkeypatch.setattr(lepton_rl.agents.benchmark, "benchmark", fail)
    with pytest.raises(SystemExit) as left:
        main(["benchmark", "--out", str(tmp_path / "b")])
    assert left.value.code == 1
    assert capsys.readouterr().err == "lepton: error: 2 of 9 cells failed\n"


# ----- what the README promises


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        [sys.executable, "-"], input=blocks[0], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "adapted" in done.stdout
    assert (tmp_path / "runs" / "first" / "report.html").is_file()


def test_the_readme_names_only_commands_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\blepton ([a-z]+)", text))
    assert {"adapt", "train", "benchmark"} <= named <= set(COMMANDS)
