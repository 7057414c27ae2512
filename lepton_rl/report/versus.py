"""The policy against every other arm, cell by cell, its policies one by one, and what meta-training cost."""

from collections.abc import Sequence

from lepton_rl.report.arms import OPPONENTS, POLICY, interval, order
from lepton_rl.report.page import Cell, figures, note, signed, table
from lepton_rl.report.records import Record, mapping, number, optional_number, text

ENOUGH = 5  # policies, and seeds of every task


def differences(group: Record, where: str, *, all_arms: bool = True) -> str:
    """Tabulate the paired differences in points of accuracy; the interval says whether the arms are apart."""
    found = group.get("differences")
    if not isinstance(found, dict) or not found:
        return ""
    rows: list[Sequence[str | Cell]] = []
    for arm in sorted(found, key=order):
        if not all_arms and arm not in OPPONENTS:
            continue
        one = mapping(found, arm, where)
        low, high = interval(one, where)
        verdict = text(one, "verdict", where)
        kind = {"above": "good", "below": "bad"}.get(verdict, "")
        counts = " / ".join(str(int(number(one, key, where))) for key in ("won", "tied", "lost"))
        rows.append(
            (
                Cell(arm, "arm"),
                str(int(number(one, "runs", where))),
                signed(100 * number(one, "mean", where), 1),
                "-" if low is None or high is None else f"{100 * low:+.1f} .. {100 * high:+.1f}",
                Cell(verdict, kind),
                counts,
            )
        )
    header = (f"{POLICY} minus", "its runs", "points", "95 % interval", "the policy is", "won / tied / lost")
    said = note(
        "One run of the policy against the arm at its largest number of runs, paired on task and seed, in points of "
        "accuracy. The interval draws tasks, and policies where there are several: it says what other tasks would "
        "show. Above or below = the interval leaves out 0."
    )
    return said + table(header, rows) if rows else ""


def sentences(summary: Record, where: str) -> list[str]:
    """Say in words what the paired intervals of the policy and its opponents say."""
    found = summary.get("differences")
    if not isinstance(found, dict):
        return []
    lines = []
    for arm in OPPONENTS:
        if arm not in found:
            continue
        one = mapping(found, arm, where)
        low, high = interval(one, where)
        points = f"{100 * number(one, 'mean', where):+.1f} points"
        over = f"over {int(number(one, 'tasks', where))} tasks"
        if low is None or high is None:
            lines.append(f"Policy minus {arm}: {points} {over}; too few for an interval.")
            continue
        between = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f} {over}"
        verdict = text(one, "verdict", where)
        said = "they are not apart" if verdict == "not apart" else f"the policy is {verdict}"
        lines.append(f"Policy minus {arm}: {points} ({between}); {said}.")
    return lines


def policies(summary: Record, names: Record, where: str) -> str:
    """Tabulate the policies under test one by one, where there are several."""
    found = summary.get("policies")
    if not isinstance(found, dict) or not found:
        return ""
    rows = []
    for mark in sorted(found):
        one, named = mapping(found, mark, where), names.get(mark)
        low, high = interval(one, where)
        name = str(named.get("name", mark)) if isinstance(named, dict) else mark
        harm = optional_number(one, "negative_transfer", where)
        rows.append(
            (
                name,
                mark,
                figures(optional_number(one, "iqm", where)),
                "-" if low is None else f"{figures(low)} .. {figures(high)}",
                figures(optional_number(one, "mean_accuracy", where)),
                "-" if harm is None else f"{harm:.0%}",
            )
        )
    return table(("policy", "its mark in the rows", "IQM", "95 % interval", "accuracy", "made worse"), rows, words=2)


def ledger(summary: Record, names: Record, where: str) -> str:
    """Tabulate what meta-training cost, and after how many new domains it pays off."""
    found = summary.get("ledger")
    if not isinstance(found, dict) or not found:
        return ""
    training = mapping(found, "training", where)
    rows = []
    for mark in sorted(training):
        named = names.get(mark)
        name = str(named.get("name", mark)) if isinstance(named, dict) else mark
        rows.append((f"training of {name}", *_costs(mapping(training, mark, where), where)))
    rows.append(("search of the tuned default", *_costs(mapping(found, "default", where), where)))
    said = note("The second ledger, paid once: by the cards of the policies, and at this benchmark's steps per run.")
    body = said + table(("meta-training", "runs", "gradient steps", "hours at this pace"), rows)
    pays = mapping(found, "pays_off", where)
    lines = [_pays(arm, mapping(pays, arm, where), where) for arm in sorted(pays)]
    if not lines:
        return body
    said = note(
        "It pays off on the new domain at which the steps that its one run saves on the median task, against a tuner "
        "that is run until it matches, are more than those of meta-training."
    )
    return body + said + table(("against", "runs to match", "saved steps a domain", "pays off after domains"), lines)


def _pays(arm: str, one: Record, where: str) -> Sequence[str | Cell]:
    domains, runs, saved = (optional_number(one, key, where) for key in ("domains", "runs", "saved_steps"))
    most = bool(one.get("at_least"))  # it was never matched: more runs are needed than were tried
    return (
        Cell(arm, "arm"),
        "not matched" if runs is None else f"{runs:.0f}",
        ("at least " if most else "") + figures(saved, 0),
        "never" if domains is None else ("at most " if most else "") + f"{domains:,.0f}",
    )


def _costs(cost: Record, where: str) -> tuple[str, str, str]:
    runs, steps, seconds = (optional_number(cost, key, where) for key in ("runs", "steps", "seconds"))
    hours = None if seconds is None else seconds / 3600
    return tuple("-" if v is None else f"{v:,.{d}f}" for v, d in ((runs, 0), (steps, 0), (hours, 1)))  # type: ignore[return-value]
