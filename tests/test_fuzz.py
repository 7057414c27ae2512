"""A small part of what scripts/fuzz.py does with 100,000 inputs, and that it would notice a failure."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import fuzz

    yield fuzz
    for name in [name for name in sys.modules if name.split("_")[0] == "fuzz"]:
        del sys.modules[name]


def test_three_thousand_damaged_inputs_are_read_or_refused(script):
    # Memory is not limited here: the limit would stay with the process and its other tests.
    report = script.fuzz(script.FuzzConfig(inputs=3000, seed=11), limit_memory=False)
    assert len(report) >= 18
    assert sum(row["inputs"] for row in report.values()) >= 3000
    assert {name: row["reasons"] for name, row in report.items() if row["failed"]} == {}
    # A damaged entry of the cache is as good as none, and the images are decoded again.
    assert {name for name, row in report.items() if row["refused"] == 0} == {"decoded"}
    assert sum(row["read"] > 0 for row in report.values()) >= 13  # the damage is not always deadly


@pytest.mark.parametrize("kind", ["text", "npz", "tensors", "bytes"])
def test_the_same_seed_makes_the_same_damage(script, kind, tmp_path):
    from fuzz_damage import damaged
    from fuzz_targets import targets

    target = next(target for target in targets(tmp_path) if target.kind == kind)
    made = [damaged(target, np.random.default_rng(seed)) for seed in (1, 1, *range(2, 12))]
    assert made[0] == made[1]
    assert len(set(made)) >= 8


@pytest.fixture
def one(script):
    old = {number: script.signal.signal(number, script._alarm) for number, _ in script.CLOCKS.values()}
    yield script._one
    for number, handler in old.items():
        script.signal.signal(number, handler)


def test_failures_are_noticed(script, one):
    from fuzz_targets import Target

    def target(parse):
        return Target(name="x", kind="bytes", seeds=(b"x",), parse=parse, share=1)

    def lines(content):
        raise script.InputError("one\ntwo")

    def work(content):
        while True:
            pass

    outcomes = [one(target(parse), b"", 0.05) for parse in (lines, work, lambda c: 1 / 0, len)]
    assert [outcome for outcome, _ in outcomes] == ["failed", "failed", "failed", "read"]
    assert "more than 0.05 s of work" in outcomes[1][1]
    assert "ZeroDivisionError in test_fuzz.py" in outcomes[2][1]
    # A machine that pauses this process makes no input slow; one that waits for ever is still noticed.
    assert one(target(lambda content: time.sleep(0.2)), b"", 0.05) == ("read", "")
    assert one(target(lambda content: time.sleep(60)), b"", 0.005)[0] == "failed"
