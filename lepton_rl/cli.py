"""The command `lepton`: parse, call, print.

Every command's options are a frozen dataclass next to what it configures. A command's libraries are imported when
that command is called, so that `lepton --help` and `lepton report` do not wait for them.
"""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from lepton_rl import __version__
from lepton_rl.artifact import SHIPPED
from lepton_rl.console import print_table, say
from lepton_rl.errors import InputError
from lepton_rl.stopping import Stopped, Unfinished

FAILED, BAD_INPUT, STOPPED, INTERRUPTED = 1, 2, 75, 130


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Adapt to held-out domains that the policy was not trained on, beside Optuna, in minutes."""

    out: Path = Path("runs/demo")
    """Folder for rows.jsonl, summary.json, report.html and manifest.json; an interrupted demo there goes on."""
    tasks: int = 12
    """Number of held-out domains."""
    policy: str = SHIPPED
    """lepton-v1 (shipped), tuned-default, or a policy file."""
    workers: int = 2
    """Processes; 0 = one per core. The figures do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write report.html anew from the files that `lepton adapt` or `lepton benchmark` left in a folder."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The folder that was given as --out."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A sub-command.

    Attributes:
        summary: One line for `lepton --help`.
        load: Imports what the command needs; returns its options and what to do with them and the command line.
    """

    summary: str
    load: Callable[[], tuple[type, Callable[[Any, list[str]], None]]]


def _in(module: str) -> Callable[[], tuple[type, Callable[[Any, list[str]], None]]]:
    """Load a command from a module of its own, which has `Config` and `run`."""

    def load() -> tuple[type, Callable[[Any, list[str]], None]]:
        found = importlib.import_module(module)
        return found.Config, found.run

    return load


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    Args:
        argv: Arguments without the program's name; default those of the process.
    """
    return exit_code(lambda: _dispatch(list(sys.argv[1:] if argv is None else argv)))


def exit_code(work: Callable[[], int]) -> int:
    """Work, and say in one line what went wrong.

    Returns:
        What `work` returns, 1 for work that failed and can be gone on with, 2 for what the user can put right, 75
        when a signal asked to stop and all is saved, 130 after Ctrl-C.
    """
    try:
        return work()
    except KeyboardInterrupt:
        return _fail("interrupted: what is written is whole; the same command goes on, or begins again", INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe has gone, for example `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Stopped as error:
        return _fail(str(error), STOPPED)
    except Unfinished as error:
        return _fail(str(error), FAILED)
    except InputError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}; check the path, its permissions and the space left")


def _fail(message: str, code: int = BAD_INPUT) -> int:
    print(f"lepton: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _dispatch(argv: list[str]) -> int:
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"lepton {__version__}")
        return 0
    if name not in COMMANDS:
        raise InputError(f"command {name!r} is unknown: expected one of {', '.join(COMMANDS)}; see lepton --help")
    config_type, run = COMMANDS[name].load()
    run(parsed(config_type, rest, f"lepton {name}"), ["lepton", *argv])
    return 0


def parsed(config_type: type, arguments: Sequence[str], program: str) -> Any:  # noqa: ANN401
    """Parse a command's arguments.

    Raises:
        InputError: If the options refuse a value, which the parser would put into a box of its own.
        SystemExit: If the parser refuses them, with 2; after `--help`, with 0.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config_type, args=arguments, prog=program)
    except SystemExit as left:
        if isinstance(left.__context__, InputError):
            said = io.StringIO()
            raise left.__context__ from None
        raise
    finally:
        sys.stderr.write(said.getvalue())


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return "\n".join(
        (
            "usage: lepton COMMAND [OPTIONS]",
            "",
            "A learned controller that adapts a trained network to a new domain in one run.",
            "",
            "commands:",
            *lines,
            "",
            "lepton COMMAND --help lists the options of a command, lepton --version the version.",
        )
    )


def _load_adapt() -> tuple[type, Callable[[Any, list[str]], None]]:
    from lepton_rl.adapt_table import before_and_after
    from lepton_rl.apply import ApplyConfig, apply

    def run(config: ApplyConfig, argv: list[str]) -> None:
        result = apply(config, argv=argv, say=say)
        for titles, lines in before_and_after(result):
            print_table(titles, lines)
        say(f"{result.verdict}: {result.reason}")
        say(f"{result.steps} gradient steps, {result.seconds:.1f} s, one run")
        say(f"report: {config.out / 'report.html'}")

    return ApplyConfig, run


def _load_train() -> tuple[type, Callable[[Any, list[str]], None]]:
    from lepton_rl.agents.train import TrainConfig, train

    def run(config: TrainConfig, argv: list[str]) -> None:
        del argv
        say(f"policy: {train(config)}")

    return TrainConfig, run


def _load_benchmark() -> tuple[type, Callable[[Any, list[str]], None]]:
    from lepton_rl.agents.benchmark import BenchmarkConfig, summary_table

    def run(config: BenchmarkConfig, argv: list[str]) -> None:
        del argv
        say(summary_table(_benchmark(config)))
        say(f"report: {config.out / 'report.html'}")

    return BenchmarkConfig, run


def _benchmark(config: Any) -> dict[str, Any]:  # noqa: ANN401
    """Run a benchmark; cells that failed are told in one line, with all others kept."""
    from lepton_rl.agents.benchmark import CellsFailed, benchmark

    try:
        return benchmark(config)
    except CellsFailed as error:
        raise SystemExit(_fail(str(error), FAILED)) from error


def _load_demo() -> tuple[type, Callable[[Any, list[str]], None]]:
    return DemoConfig, _demo


def _demo(config: DemoConfig, argv: list[str]) -> None:
    from lepton_rl import demo
    from lepton_rl.agents.benchmark import BenchmarkConfig
    from lepton_rl.report.records import read_lines

    del argv
    _benchmark(
        BenchmarkConfig(
            arms=demo.ARMS,
            runs=demo.RUNS,
            splits=(demo.SPLIT,),
            tasks=config.tasks,
            seeds=1,
            policy=(config.policy,),
            workers=config.workers,
            out=config.out,
        )
    )
    print_table(*demo.demo_table(read_lines(config.out / "rows.jsonl")), words=2)
    say("Accuracy on test images that no arm has seen. An arm's gradient steps are those of all its runs.")
    say(f"report: {config.out / 'report.html'}")


def _load_report() -> tuple[type, Callable[[Any, list[str]], None]]:
    from lepton_rl.report import write_report

    def run(config: ReportConfig, argv: list[str]) -> None:
        del argv
        say(f"report: {write_report(config.folder)}")

    return ReportConfig, run


COMMANDS = {
    "demo": Command(summary="adapt to held-out domains beside Optuna, in minutes", load=_load_demo),
    "train": Command(summary="train a policy over many tasks", load=_load_train),
    "adapt": Command(summary="adapt a trained network to a new domain, in one run", load=_load_adapt),
    "export": Command(summary="write a run's model as ONNX and torch.export", load=_in("lepton_rl.export.command")),
    "drift": Command(summary="say whether new images call for adapting again", load=_in("lepton_rl.drift_command")),
    "benchmark": Command(summary="compare arms on held-out tasks, with intervals", load=_load_benchmark),
    "report": Command(summary="write report.html anew from a finished command's folder", load=_load_report),
    "inspect": Command(
        summary="show a model's layer groups, a data set's faults, a policy's card",
        load=_in("lepton_rl.inspect_command"),
    ),
}

if __name__ == "__main__":
    sys.exit(main())
