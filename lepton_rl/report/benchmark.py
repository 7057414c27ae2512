"""The report of `lepton benchmark`: the arms against budget, with the losses printed too."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lepton_rl.errors import InputError
from lepton_rl.report.arms import POLICY, ByRuns, arms_of, colours, interval, order
from lepton_rl.report.curves import anytime, profiles
from lepton_rl.report.page import (
    Cell,
    Section,
    escape,
    figures,
    folded,
    manifest_table,
    note,
    page,
    table,
    write_whole,
)
from lepton_rl.report.records import Record, optional_number, read_lines, read_object, text
from lepton_rl.report.tasks import losses, task_of, task_table
from lepton_rl.report.versus import ENOUGH, differences, ledger, policies, sentences

LONG = 20  # lines of a table that is folded
RANDOM_START_UP = 10
"""TPE and GP draw their first ten trials at random: with no more runs than that they are random search."""


def benchmark_report(folder: Path) -> Path:
    """Write `report.html` from `rows.jsonl`, `summary.json` and `manifest.json`, and return its path.

    Raises:
        InputError: when a file is missing, cut off, or lacks a field.
    """
    rows_file, summary_file = folder / "rows.jsonl", folder / "summary.json"
    rows, place = read_lines(rows_file), str(rows_file)
    summary, where = read_object(summary_file), str(summary_file)
    manifest = read_object(folder / "manifest.json")
    found = manifest.get("policies")
    names: Record = found if isinstance(found, dict) else {}
    paint = colours(arms_of(summary, where), where)
    sections = [Section("In short", _short(summary, rows, where))]
    for index, group in enumerate(_groups(summary, where)):
        sections.append(_group_section(group, f"{where}, group {index + 1}", index, paint))
    sections.append(Section("Where the policy lost", losses(rows, place)))
    sections.append(Section("Task by task, the worst first", task_table(rows, place)))
    one_by_one = policies(summary, names, where)
    if one_by_one:
        sections.append(Section("The policies one by one", one_by_one))
    sections.append(Section("What it cost", _cost(summary, where) + ledger(summary, names, where)))
    sections.append(Section("How this was made", manifest_table(dict(manifest))))
    return write_whole(folder / "report.html", page("Benchmark report", _lead(rows, place), sections))


def _lead(rows: Sequence[Record], where: str) -> str:
    tasks = {task_of(row, f"{where}, row {i}") for i, row in enumerate(rows, start=1)}
    counts = [(_count(rows, "arm"), "arm"), (len(tasks), "task"), (_count(rows, "seed"), "seed")]
    if _count(rows, "policy") > 1:
        counts.append((_count(rows, "policy"), "policy"))
    said = (
        ", ".join(f"{count} {_plural(word, count)}" for count, word in counts)
        + "; all arms start from the same weights and see the same. "
        "The score is 0 at source-only and 1 at training with all target labels."
    )
    return f'<p class="lead">{escape(said)}</p>'


def _count(rows: Sequence[Record], key: str) -> int:
    return len({str(row[key]) for row in rows if row.get(key) is not None})


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word[:-1] + "ies" if word.endswith("y") else word + "s"


def _short(summary: Record, rows: Sequence[Record], where: str) -> str:
    """Say first what a reader wants to know, and how far it can be trusted."""
    said = "".join(f"<p>{escape(line)}</p>" for line in sentences(summary, where)) or note(
        f"The arm {POLICY} was not run beside one that it has to beat."
    )
    seeds, many = _count(rows, "seed"), _count(rows, "policy")
    few = [f"{n} {_plural(word, n)}" for n, word in ((many, "policy"), (seeds, "seed")) if 0 < n < ENOUGH]
    if few:
        said += note(f"Only {' and '.join(few)}: claims need {ENOUGH} of each, a training per policy.")
    rest = differences(summary, where)
    return said + (folded("The policy against every arm", rest) if rest else "")


def _groups(summary: Record, where: str) -> list[Record]:
    """Give one part per regime and split; an older summary is one part by itself."""
    groups = summary.get("groups")
    if not isinstance(groups, list) or not groups:
        return [{**summary, "regime": "all regimes", "split": "all splits"}]
    for index, group in enumerate(groups, start=1):
        if not isinstance(group, dict):
            raise InputError(f"{where}, group {index}: expected an object: run the benchmark again")
    return groups


def _group_section(group: Record, where: str, index: int, paint: Mapping[str, str]) -> Section:
    heading = f"{text(group, 'regime', where)}, {text(group, 'split', where)}"
    arms = arms_of(group, where)
    first = {arm: by_runs for arm, by_runs in arms.items() if arm in paint}
    body = _headline(first, where)
    if len(first) < len(arms):
        body += folded(f"All {len(arms)} arms", _headline(arms, where))
    body += _match(group) + _left_out(group)
    body += anytime(arms, where, f"anytime-{index}", paint)
    body += profiles(group, f"profile-{index}", paint)
    return Section(heading, body + differences(group, where, all_arms=False))


def _headline(arms: Mapping[str, ByRuns], where: str) -> str:
    rows: list[Sequence[str | Cell]] = []
    noted = False
    for arm, by_runs in arms.items():
        for runs, entry in by_runs.items():
            random = arm.startswith(("tpe", "gp")) and runs <= RANDOM_START_UP
            noted = noted or random
            low, high = interval(entry, where)
            harm = optional_number(entry, "negative_transfer", where)
            rows.append(
                (
                    Cell(arm + (" *" if random else ""), "arm here" if arm == POLICY else "arm"),
                    str(runs),
                    figures(optional_number(entry, "iqm", where)),
                    "-" if low is None else f"{figures(low)} .. {figures(high)}",
                    figures(optional_number(entry, "mean_accuracy", where)),
                    "-" if harm is None else f"{harm:.0%}",
                )
            )
    header = ("arm", "runs", "IQM", "95 % interval", "accuracy", "made worse")
    said = "Made worse: the share of tasks that end more than a point below source-only (negative transfer)."
    if noted:
        said += f" * {RANDOM_START_UP} runs or fewer: TPE and GP are still in their random start-up."
    return table(header, rows) + note(said)


def _match(group: Record) -> str:
    found = group.get("runs_to_match")
    if not isinstance(found, dict):
        return ""
    lines = []
    for arm in sorted(found, key=order):
        entry = found[arm] if isinstance(found[arm], dict) else {"median": found[arm]}
        if entry.get("tasks") == 0:
            continue
        never, largest = entry.get("never"), entry.get("largest")
        between = entry.get("ci")
        ends = dict.fromkeys(_needed(end, largest) for end in between) if isinstance(between, list) else {}
        share = "-" if never is None else f"{never:.0%}"
        lines.append((Cell(arm, "arm"), _needed(entry.get("median"), largest), " .. ".join(ends) or "-", share))
    if not lines:
        return ""
    header = ("runs to match the policy's single run", "median task", "95 % interval", "tasks never matched")
    return table(header, lines)


def _needed(runs: object, largest: object) -> str:
    if runs is not None:
        return str(runs)
    return f"more than {largest}" if largest else "never"


def _left_out(group: Record) -> str:
    left_out = group.get("left_out")
    if not left_out:
        return ""
    return note(f"{left_out} cells are left out of the scores: source-only is within 2 points of supervised there.")


def _cost(summary: Record, where: str) -> str:
    rows = []
    for arm, by_runs in arms_of(summary, where).items():
        for runs, entry in by_runs.items():
            steps, seconds = (optional_number(entry, key, where) for key in ("steps", "seconds"))
            rows.append((Cell(arm, "arm"), str(runs), figures(steps, 0), figures(seconds, 1)))
    said = note(
        "Means per task and seed on the new domain; pruned and discarded runs are included. "
        "`python scripts/trace.py FOLDER --arm ARM --runs K` lists the rows behind every number of this page."
    )
    costs = table(("arm", "runs", "gradient steps", "seconds"), rows)
    return said + (folded(f"The cost of {len(rows)} arms and numbers of runs", costs) if len(rows) > LONG else costs)
