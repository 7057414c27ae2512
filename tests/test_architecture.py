"""The floors of the package: imports go down only, and nothing from a file is executed."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = ("envs", "agents")
LEARNING = {"gymnasium", "stable_baselines3", "optuna"}
AGENTS = "lepton_rl.agents"
ENVS = "lepton_rl.envs"


def files_of(floor):
    """Give the Python files of a floor; the core leaves out the links to the other two."""
    if floor != "lepton_rl":
        return sorted((ROOT / floor).rglob("*.py"))
    inside = (path.relative_to(ROOT / floor) for path in (ROOT / floor).rglob("*.py"))
    return sorted(ROOT / floor / path for path in inside if path.parts[0] not in LINKS)


EVERY = [path for floor in ("lepton_rl", "envs", "agents", "scripts") for path in files_of(floor)]


def imported(tree):
    """List every module that a file imports, at the top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            # `from lepton_rl import agents` imports lepton_rl.agents
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def breaches(source, forbidden):
    """List the imports in a source text that lie in a forbidden package."""
    names = imported(ast.parse(source))
    return [name for name in names if any(name == ban or name.startswith(f"{ban}.") for ban in forbidden)]


def executions(source):
    """List what could run code from a file: pickle and its kind, eval, exec, unguarded torch.load."""
    found = breaches(source, {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"})
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in {"eval", "exec", "builtins.eval", "builtins.exec"}:
            found.append(name)
        if name == "torch.load" and keywords.get("weights_only") != "True":
            found.append(name)
        if keywords.get("allow_pickle", "False") != "False":
            found.append(f"{name} with allow_pickle")
    return found


def shown(path):
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check():
    assert ROOT / "lepton_rl" / "errors.py" in EVERY
    assert not any("lepton_rl/envs" in shown(path) for path in EVERY)


@pytest.mark.parametrize("path", [p for p in files_of("lepton_rl") if p.name != "cli.py"], ids=shown)
def test_core_imports_nothing_from_above(path):
    assert breaches(path.read_text(encoding="utf-8"), {*LEARNING, AGENTS, ENVS, "lepton_rl.cli"}) == []


@pytest.mark.parametrize("path", files_of("envs"), ids=shown)
def test_envs_import_neither_agents_nor_what_trains_them(path):
    forbidden = {"stable_baselines3", "optuna", AGENTS, "lepton_rl.cli"}
    assert breaches(path.read_text(encoding="utf-8"), forbidden) == []


@pytest.mark.parametrize("path", files_of("agents"), ids=shown)
def test_agents_do_not_import_the_command_line(path):
    assert breaches(path.read_text(encoding="utf-8"), {"lepton_rl.cli"}) == []


@pytest.mark.parametrize("path", EVERY, ids=shown)
def test_imports_are_absolute_and_through_the_package(path):
    source = path.read_text(encoding="utf-8")
    relative = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom) and n.level]
    assert relative == []
    assert breaches(source, {"envs", "agents", "scripts"}) == []


@pytest.mark.parametrize("path", EVERY, ids=shown)
def test_nothing_from_a_file_is_executed(path):
    assert executions(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import optuna.samplers", ["optuna.samplers"]),
        ("def f():\n    from gymnasium import spaces", ["gymnasium.spaces"]),
        ("from lepton_rl import agents", ["lepton_rl.agents"]),
        ("import optuna_like, numpy", []),
    ],
)
def test_the_import_check_itself(source, expected):
    assert breaches(source, {*LEARNING, AGENTS}) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("eval('1')", ["eval"]),
        ("import pickle", ["pickle"]),
        ("torch.load(path)", ["torch.load"]),
        ("torch.load(path, weights_only=True)", []),
        ("model.eval()", []),
        ("np.load(path, allow_pickle=True)", ["np.load with allow_pickle"]),
        ("np.load(path, allow_pickle=False)", []),
    ],
)
def test_the_execution_check_itself(source, expected):
    assert executions(source) == expected


def test_packages_install_inside_lepton_rl_only(tmp_path):
    code = (
        "import sys, lepton_rl.envs, lepton_rl.agents; "
        "assert 'envs' not in sys.modules and 'agents' not in sys.modules; "
        "print(lepton_rl.envs.__name__, lepton_rl.agents.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, [ENVS, AGENTS]), done.stderr
    assert not set(LINKS) & set(sys.modules)


@pytest.mark.parametrize("name", LINKS)
def test_links_are_relative_and_point_to_the_real_folders(name):
    link = ROOT / "lepton_rl" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


def test_every_package_folder_is_listed_for_the_wheel():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT).parts for path in EVERY if path.parent.name != "scripts"}
    named = {".".join(parts if parts[0] == "lepton_rl" else ("lepton_rl", *parts)) for parts in folders}
    assert listed == named
