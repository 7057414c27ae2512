"""Reports show what the files say, escape all of it, and name the file and line that is wrong."""

import html
import json
import re

import numpy as np
import pytest

from lepton_rl.agents.statistics import summarise
from lepton_rl.errors import InputError
from lepton_rl.metrics import compare
from lepton_rl.report import adapt_report, benchmark_report, write_report
from lepton_rl.report.actions import describe

EVIL = "<script>alert(1)</script>"
KEEP = {"unfreeze": 1, "learning_rate": 2, "source": 2, "transfer": 0, "augmentation": 1, "stop": 0}


def decision(number, action, **controls):
    return {
        "decision": number,
        "step": 10 * number,
        "seconds": 0.5 * number,
        "observation": {"entropy": 0.5 - 0.1 * number, "constant": 1.0},
        "action": action,
        "controls": {"learning_rate": 1e-3, "unfrozen_stages": 1.0, "entropy": 0.0, **controls},
        "score": 0.4 + 0.05 * number,
        "probe_accuracy": None,
    }


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def adapted(tmp_path):
    history = [
        decision(0, None),
        decision(1, {**KEEP, "unfreeze": 2, "learning_rate": 3}, learning_rate=2.5e-3, unfrozen_stages=2.0),
        decision(2, KEEP, learning_rate=2.5e-3, unfrozen_stages=2.0, entropy=0.1),
    ]
    result = {
        "verdict": "adapted",
        "reason": "the probe score rose by 0.1",
        "chosen": "decision 2",
        "before": {"accuracy": 0.5012},
        "after": {"accuracy": 0.7512},
        "classes": ["cat", EVIL],
    }
    write_lines(tmp_path / "history.jsonl", history)
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "manifest.json").write_text(json.dumps({"command": f"lepton adapt {EVIL}", "seed": 7}))
    return tmp_path


@pytest.fixture
def benchmarked(tmp_path):
    def cell(arm, task, runs, accuracy):
        facts = {"split": "held-out", "regime": "few-label", "seed": 0, "source_only": 0.5, "supervised": 0.9}
        cost = {"steps": 120 * runs, "seconds": 1.5 * runs}
        return {"arm": arm, "task": task, "runs": runs, "accuracy": accuracy, **facts, **cost}

    rows = [
        cell("policy", "mild", 1, 0.70),
        cell("policy", EVIL, 1, 0.60),
        cell("policy", "dark", 1, 0.40),
        cell("tuned-default", "mild", 1, 0.65),
        cell("tuned-default", EVIL, 1, 0.62),
        cell("tuned-default", "dark", 1, 0.60),
        *(cell("tpe", task, runs, 0.5 + runs / 100) for task in ("mild", EVIL, "dark") for runs in (1, 4, 16)),
    ]
    write_lines(tmp_path / "rows.jsonl", rows)
    (tmp_path / "summary.json").write_text(json.dumps(summarise(rows)))
    (tmp_path / "manifest.json").write_text(json.dumps({"command": "lepton benchmark"}))
    return tmp_path


def body(path):
    """Cut the inlined library away: it holds words such as <script> of its own."""
    return path.read_text(encoding="utf-8").split("<body>")[1]


def plain(path):
    """Keep the words that a reader sees."""
    source = re.sub(r"<script.*?</script>", " ", body(path), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", source)))


def test_adapt_report_shows_verdict_numbers_and_plain_actions(adapted):
    path = adapt_report(adapted)
    shown = plain(path)
    assert path == adapted / "report.html"
    for part in (
        "Adapted the probe score rose by 0.1",
        "accuracy 0.501 0.751 +0.250",
        "0 start 0 0.400",
        "1 unfroze one stage, learning rate x2.5 10 0.450",
        "2 kept everything 20 0.500",
        "1 of 2 signals changed",
        "2 decisions, 20 gradient steps",
    ):
        assert part in shown


def test_everything_from_the_files_is_escaped(adapted, benchmarked):
    for path in (adapt_report(adapted), benchmark_report(benchmarked)):
        assert EVIL not in body(path)
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body(path)


def test_names_inside_plots_are_escaped(adapted):
    rows = [json.loads(line) for line in (adapted / "history.jsonl").read_text().splitlines()]
    for row in rows:
        row["observation"][EVIL] = row["score"]
        row["controls"][EVIL] = row["score"]
    write_lines(adapted / "history.jsonl", rows)
    path = adapt_report(adapted)
    assert "alert(1)" in body(path)
    assert "<script>alert(1)" not in body(path)
    assert "\\u003cscript" not in body(path)


@pytest.mark.parametrize("report", [adapt_report, benchmark_report])
def test_page_is_whole_by_itself(report, adapted, benchmarked):
    page = report(adapted).read_text(encoding="utf-8")
    assert len(re.findall(r"plotly\.js v\d", page)) == 1
    assert not re.search(r"<(script|link|img|iframe)[^>]*\s(src|href)=", page)
    assert "default-src 'none'" in page
    assert '<meta name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme" in page
    assert not list(adapted.glob(".*.part"))


def test_adapt_report_without_labels_says_so(adapted):
    result = json.loads((adapted / "result.json").read_text())
    result |= {"before": {}, "after": {}, "verdict": "kept the original", "classes": []}
    (adapted / "result.json").write_text(json.dumps(result))
    shown = plain(adapt_report(adapted))
    assert "Kept the original" in shown
    assert "no labels to measure with" in shown


def with_metrics(folder, names, labels, before, after, key="metrics", wrap=lambda found: found):
    k = len(names)
    result = json.loads((folder / "result.json").read_text())
    found = compare(np.array(labels), np.eye(k)[before] * 0.9 + 0.1 / k, np.eye(k)[after] * 0.9 + 0.1 / k, names)
    (folder / "result.json").write_text(json.dumps({**result, key: wrap(found.to_json())}))


def test_metrics_are_shown_with_their_intervals(adapted):
    with_metrics(adapted, ("cat", EVIL, "owl"), [0] * 6 + [1] * 4, [0, 0, 0, 1, 1, 1, 1, 1, 2, 2], [0] * 6 + [1] * 4)
    shown = plain(adapt_report(adapted))
    assert "Measured on 10 labelled images" in shown
    assert re.search(
        r"accuracy 0\.500 0\.\d\d \.\. 0\.\d\d 1\.000 1\.00 \.\. 1\.00 \+0\.500 \+0\.\d\d \.\. \+0\.\d\d", shown
    )
    assert "cat 6 images 0.50 > 1.00 1.00 .. 1.00 1.00 > 1.00" in shown
    assert "owl 0 images - > - 0.00 > - 0.00 > -" in shown
    page = body(adapted / "report.html")
    assert EVIL not in page
    assert "\\u003cscript" not in page
    assert all(f'id="{name}"' in page for name in ("confusion-before", "confusion-after", "calibration"))


def test_with_many_classes_the_worst_pairs_stand_for_the_matrix(adapted):
    names = tuple(f"kind {i}" for i in range(50))
    with_metrics(adapted, names, [3, 3, 3, 7], [4, 4, 3, 9], [3, 3, 3, 7])
    shown = plain(adapt_report(adapted))
    assert "true class said to be images kind 3 kind 4 2 kind 7 kind 9 1 after" in shown
    assert 'id="confusion-before"' not in body(adapted / "report.html")


def test_cross_validation_is_told_apart(adapted):
    def wrap(found):
        return {"folds": 5, "pooled": found, "accuracies": []}

    with_metrics(adapted, ("a", "b"), [0, 1], [1, 1], [0, 1], "cross_validation", wrap)
    shown = plain(adapt_report(adapted))
    assert "5 further runs, each without its share" in shown
    assert re.search(r"accuracy 0\.500 .* 1\.000", shown)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("confusion", [[1, 2]], "no 2 x 2 matrix"),
        ("confusion", [["x", 1], [1, 1]], "no 2 x 2 matrix"),
        ("reliability", [[1, 2]], "three numbers"),
        ("scores", {"accuracy": 1}, "'accuracy' is 1, expected an object"),
    ],
)
def test_damaged_metrics_are_named(adapted, key, value, message):
    with_metrics(adapted, ("a", "b"), [0, 1], [1, 1], [0, 1])
    result = json.loads((adapted / "result.json").read_text())
    result["metrics"]["before"][key] = value
    (adapted / "result.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match=message):
        adapt_report(adapted)


def test_same_files_give_the_same_bytes(adapted):
    assert adapt_report(adapted).read_bytes() == adapt_report(adapted).read_bytes()


def test_benchmark_report_shows_arms_losses_and_cost(benchmarked):
    shown = plain(benchmark_report(benchmarked))
    # Scores 0.5, 0.25 and -0.25: three values, none is trimmed; one of three is worse than source-only.
    assert re.search(r"policy 1 0\.167 -?\d\.\d{3} \.\. \d\.\d{3} 0\.567 33%", shown)
    assert "few-label, held-out" in shown
    assert "won on 1 of 3 tasks, lost on 2 and tied on 0" in shown
    assert shown.index("dark few-label held-out 0.400 0.600 -0.200") < shown.index("0.600 0.620 -0.020")
    assert re.search(r"runs to match the policy's single run .* tpe 16 (\d+ \.\. )?(more than )?\d+ \d+%", shown)
    assert "tpe 16 1920 24.0" in shown
    assert re.search(r"tpe \* 4 .*tpe 16 ", shown)


def test_benchmark_report_without_the_policy_arm(benchmarked):
    rows = [json.loads(line) for line in (benchmarked / "rows.jsonl").read_text().splitlines()]
    rows = [{**row, "supervised": 0.5} for row in rows if row["arm"] == "tpe"]
    write_lines(benchmarked / "rows.jsonl", rows)
    (benchmarked / "summary.json").write_text(json.dumps(summarise(rows)))
    shown = plain(benchmark_report(benchmarked))
    assert "were not both run" in shown
    assert "there is nothing to draw" in shown


def test_benchmark_report_reads_the_least_summary(benchmarked):
    arms = {"policy": {"iqm": 0.25, "ci": [0.125, 0.5]}}
    least = {"arms": arms, "runs_to_match": {"tpe": None}, "negative_transfer": {}}
    (benchmarked / "summary.json").write_text(json.dumps(least))
    shown = plain(benchmark_report(benchmarked))
    assert "policy 1 0.250 0.125 .. 0.500 - -" in shown
    assert "tasks never matched tpe never - -" in shown


@pytest.mark.parametrize("name", ["history.jsonl", "result.json", "manifest.json"])
def test_missing_file_is_named(adapted, name):
    (adapted / name).unlink()
    with pytest.raises(InputError, match=name):
        adapt_report(adapted)
    assert not (adapted / "report.html").exists()


@pytest.mark.parametrize(("name", "report"), [("history.jsonl", adapt_report), ("rows.jsonl", benchmark_report)])
def test_line_cut_in_the_middle_is_named(adapted, benchmarked, name, report):
    whole = (adapted / name).read_text()
    count = whole.count("\n")
    (adapted / name).write_text(whole[:-30])
    with pytest.raises(InputError, match=rf"{name}, line {count}: not valid JSON") as caught:
        report(adapted)
    assert "\n" not in str(caught.value)
    assert not (adapted / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "high"}, r"history.jsonl, row 1: field 'score' is 'high', expected a number"),
        ({"controls": None, "step": True}, r"row 1: field 'step' is True"),
        ({"observation": [1]}, r"row 1: field 'observation' is \[1\], expected an object"),
    ],
)
def test_wrong_field_is_named(adapted, change, message):
    write_lines(adapted / "history.jsonl", [{**decision(0, None), **change}])
    with pytest.raises(InputError, match=message):
        adapt_report(adapted)


@pytest.mark.parametrize("content", ["", "\n\n", "[1]\n", "\xff", "[" * 100_000])
def test_files_that_are_no_records(adapted, content):
    (adapted / "history.jsonl").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"history\.jsonl"):
        adapt_report(adapted)


def test_write_report_finds_out_what_the_folder_holds(adapted, tmp_path):
    assert "Adaptation report" in write_report(adapted).read_text(encoding="utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="neither"):
        write_report(empty)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (None, "start"),
        (KEEP, "kept everything"),
        ({"unfreeze": 0, "alignment": 0, "entropy": 1}, "froze one stage, alignment /6, entropy /2.5"),
        ({"transfer": 1, "augmentation": 2}, "pulled half-way back to the start, stronger augmentation"),
        ({"self_training": 4, "stop": 1}, "self training x6, stopped"),
    ],
)
def test_actions_in_plain_words(action, words):
    assert describe(action) == words
