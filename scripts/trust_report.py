"""Print one table: faults survived, inputs fuzzed, kills resumed to the bit, malicious files refused, soak memory.

Reads what the other scripts left in a folder (`--json` of fuzz.py and soak.py); what is missing there is run now, in a
quick version. The exit code is 1 if anything was lost.
"""

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).resolve().parent.parent
JOBS = ("train", "real-train", "adapt", "benchmark")
NOTHING = '{"random_kills": 0, "write_kills": 0, "identical": false}'
FAULT_TESTS = (
    *("fault", "full_disk", "damaged", "not_finite", "diverged"),
    *("worker", "a_signal", "clock", "share_a_folder"),
)


@dataclass(frozen=True, kw_only=True)
class TrustConfig:
    """Print the table of trust."""

    results: Path = Path("runs/trust")
    """Folder with fuzz.json, soak.json, kills.json and tests.json; made where missing."""
    run: bool = True
    """Run quick versions of what is missing."""
    kills: int = 20
    """Of each kind of work, at random moments."""
    inputs: int = 10_000
    """Of the fuzzer, in the quick version."""
    minutes: float = 2.0
    """Of the soak, in the quick version."""


def fuzz(config: TrustConfig, path: Path) -> None:
    """Fuzz every parser."""
    _call("scripts/fuzz.py", "--inputs", config.inputs, "--json", path)


def soak(config: TrustConfig, path: Path) -> None:
    """Step a fleet for a while."""
    _call("scripts/soak.py", "--minutes", config.minutes, "--json", path)


def kills(config: TrustConfig, path: Path) -> None:
    """Kill trainings, an adaptation and a benchmark again and again."""
    found = []
    for job in JOBS:
        with tempfile.TemporaryDirectory() as folder:
            said = _call("tests/killing.py", job, Path(folder) / "kills", config.kills)
        found.append(json.loads((said.splitlines() or [NOTHING])[-1]))
    path.write_text(json.dumps(found) + "\n")


def tests(config: TrustConfig, path: Path) -> None:
    """Run the tests of faults and of malicious files, and count them."""
    del config
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "tests.xml"
        files = [f"tests/test_{name}.py" for name in ("faults", "resume", "adapt_resume", "trust")]
        _call("-m", "pytest", "-q", "-k", "not trust_report and not twenty_kills", f"--junitxml={xml}", *files)
        cases = list(ET.parse(xml).getroot().iter("testcase"))
    counts = {}
    for kind in ("faults", "malicious"):
        mine = [case for case in cases if _kind(case) == kind]
        good = [case for case in mine if not {"failure", "error", "skipped"} & {child.tag for child in case}]
        counts[kind] = [len(good), len(mine)]
    path.write_text(json.dumps(counts) + "\n")


def _kind(case: ET.Element) -> str | None:
    name = case.get("name", "")
    if case.get("classname", "").endswith("test_trust"):
        return "malicious"
    return "faults" if any(word in name for word in FAULT_TESTS) else None


def _call(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    return done.stdout


def table(found: dict[str, Any]) -> tuple[list[tuple[str, str]], bool]:
    """Return the rows of the table, and whether nothing was lost; what is missing counts as lost."""
    rows: list[tuple[str, str]] = []
    whole = True

    def add(name: str, good: int, of: int) -> None:
        nonlocal whole
        whole = whole and good == of > 0
        rows.append((name, f"{good} of {of}"))

    checked = found.get("tests") or {"faults": [0, 0], "malicious": [0, 0]}
    add("faults injected and survived", *checked["faults"])
    parsers = (found.get("fuzz") or {"parsers": {}})["parsers"].values()
    inputs = sum(row["inputs"] for row in parsers)
    add("inputs fuzzed", inputs - sum(row["failed"] for row in parsers), inputs)
    jobs = found.get("kills") or [json.loads(NOTHING)]
    counts = [(job["random_kills"] + job["write_kills"], job["identical"]) for job in jobs]
    whole = whole and all(same for _, same in counts)
    add("kills resumed to the bit", sum(n for n, same in counts if same), sum(n for n, _ in counts))
    add("malicious files refused", *checked["malicious"])
    soaked = found.get("soak")
    if soaked is None:
        rows.append(("soak memory slope", "not run"))
        return rows, False
    slope = f"{soaked['mib_per_minute']:+.3f} MiB a minute over {soaked['minutes']:g} minutes"
    rows.append(("soak memory slope", f"{slope}, {soaked['handles_leaked']} handles leaked"))
    return rows, whole and bool(soaked["passed"])


def main() -> int:
    """Run what is missing and print the table."""
    config = tyro.cli(TrustConfig)
    found: dict[str, Any] = {}
    for make in (tests, fuzz, kills, soak):
        path = config.results / f"{make.__name__}.json"
        if config.run and not path.is_file():
            print(f"{path} is missing: running a quick version", file=sys.stderr)
            path.parent.mkdir(parents=True, exist_ok=True)
            make(config, path.absolute())
        found[make.__name__] = json.loads(path.read_text()) if path.is_file() else None
    rows, whole = table(found)
    for name, value in rows:
        print(f"{name:<28} {value}")
    print("nothing was lost" if whole else "something was lost, or not run")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
