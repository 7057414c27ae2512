"""The look back on a run: examples, maps, what is stored, and how the page shows it."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_report import EVIL, body, decision, plain, write_lines
from tiny import domain

from lepton_rl import Domain, InputError, adapt
from lepton_rl.explanation import EXAMPLES, changed_images, plane
from lepton_rl.features import features_and_logits
from lepton_rl.models import build_model
from lepton_rl.report import adapt_report
from lepton_rl.report.explained import bars


def sure_of(classes, share, k=3):
    p = np.full((len(classes), k), (1 - share) / (k - 1))
    p[np.arange(len(classes)), classes] = share
    return p


def test_examples_by_hand():
    labels = np.array([0, 1, 2, 1, -1, 0])
    images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 1, 2, 2) * 10
    held = Domain(images=images, labels=labels, name="x", classes=("a", "b", EVIL))
    found = changed_images(held, sure_of([0, 0, 2, 0, 0, 0], 0.5), sure_of([0, 1, 1, 2, 2, 0], 0.75))
    assert (found["images"], found["changed"]) == (6, 4)
    assert found["counts"] == {"became right": 1, "became wrong": 1, "stayed wrong": 1, "label unknown": 1}
    right, wrong, still, unknown = found["shown"]
    assert (right["before"], right["after"], right["label"], right["sure"]) == ("a", "b", "b", [0.5, 0.75])
    assert (wrong["before"], wrong["after"], wrong["label"]) == (EVIL, "b", EVIL)
    assert (still["kind"], still["label"]) == ("stayed wrong", "b")
    assert (unknown["kind"], unknown["label"]) == ("label unknown", None)
    picture = Image.open(io.BytesIO(base64.b64decode(right["png"])))
    assert (np.asarray(picture) == images[1, 0]).all()


def test_different_moves_come_first_and_there_are_not_too_many():
    n = 60
    labels = np.ones(n, dtype=np.int64)
    images = np.zeros((n, 3, 200, 120), dtype=np.uint8)
    held = Domain(images=images, labels=labels, name="x", classes=("a", "b", "c"))
    before = sure_of([0] * (n - 1) + [2], 0.5)
    found = changed_images(held, before, sure_of([1] * n, 0.9))
    assert len(found["shown"]) == EXAMPLES
    assert [row["before"] for row in found["shown"][:2]] == ["a", "c"]
    assert Image.open(io.BytesIO(base64.b64decode(found["shown"][0]["png"]))).size == (58, 96)


def test_the_plane_is_one_for_all_groups_and_keeps_what_differs_most():
    rng = np.random.default_rng(0)
    flat = torch.from_numpy(rng.normal(size=(80, 5)) * [5, 2, 0.01, 0.01, 0.01]).float()
    moved = flat + torch.tensor([0, 10.0, 0, 0, 0])
    found = plane({"one": flat, "two": moved})
    assert sum(found["explained"]) > 0.999
    one, two = (np.array(found["points"][name]) for name in ("one", "two"))
    gap = two - one
    assert np.abs(gap - gap[0]).max() < 0.003  # every point moves by the same vector
    assert np.abs(np.concatenate([one, two])).max() == 1.0


@pytest.mark.parametrize("rows", [torch.zeros(1, 4), torch.ones(5, 4), torch.full((5, 4), torch.nan), torch.rand(5, 1)])
def test_where_there_is_no_plane(rows):
    assert plane({"target before": rows}) is None


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    model = build_model("vgg", channels=1, n_classes=3, width=4)
    result = adapt(model, source=domain(2, 40, 3), target=domain(1, 30, 3), budget=10, out=out)
    return result, out


def test_a_run_stores_its_explanation(saved):
    result, out = saved
    facts = json.loads((out / "explanation.json").read_text())
    assert facts == result.explanation.facts
    assert [row["decision"] for row in facts["decisions"]] == [1, 2]
    assert facts["examples"]["of"] == "target"
    assert set(facts["maps"]["points"]) == {"source before", "source after", "target before", "target after"}
    assert [len(facts["maps"]["points"][f"{side} after"]) for side in ("source", "target")] == [8, 30]
    reference = load_file(out / "reference.safetensors")["features"]
    assert reference.shape == (30, 16)
    again, _ = features_and_logits(result.model, "head", domain(1, 30, 3), result.preprocessing)
    order = np.random.default_rng((0, 2)).permutation(30)
    torch.testing.assert_close(reference, again[order])


def test_labels_of_the_target_are_not_looked_at(saved):
    """Only the run's own probe and support are labelled: its examples come from images whose labels are hidden."""
    result, _ = saved
    assert {row["label"] for row in result.explanation.facts["examples"]["shown"]} <= {None}


def test_the_page_shows_what_weighed_most(saved):
    _, out = saved
    shown = plain(out / "report.html")
    assert "Decision 1: " in shown
    assert "Probability of all this together" in shown
    assert "target images changed class" in shown
    page = body(out / "report.html")
    assert page.count('class="bars"') == 2
    assert 'id="map-before"' in page
    assert 'id="map-after"' in page


# ----- the page from files


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


@pytest.fixture
def folder(tmp_path):
    write_lines(tmp_path / "history.jsonl", [decision(0, None), decision(1, {"stop": 1})])
    result = {"verdict": "adapted", "reason": "r", "chosen": "c", "before": {}, "after": {}, "classes": ["a", EVIL]}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "manifest.json").write_text("{}")
    example = {"kind": "became right", "before": EVIL, "after": "a", "sure": [0.5, 0.9], "label": EVIL, "png": PIXEL}
    signals = {"entropy": -0.5, EVIL: 0.25}
    facts = {
        "decisions": [
            {"decision": 1, "probability": 0.5, "typical": 0.25, "signals": signals, "knobs": {"stop": {EVIL: 0.1}}}
        ],
        "examples": {"of": "test", "images": 9, "changed": 1, "counts": {"became right": 1}, "shown": [example]},
        "maps": {"explained": [0.5, 0.25], "points": {"target before": [[0, 1]], "target after": [[1, 0]]}},
    }
    (tmp_path / "explanation.json").write_text(json.dumps(facts))
    return tmp_path


def test_labels_worth_a_look_are_shown(folder):
    row = {"before": EVIL, "after": "a", "sure": [0.1, 0.8], "png": PIXEL}
    changed(folder, lambda facts: facts.update(labels={"images": 7, "doubtful": 1, "shown": [row]}))
    shown = plain(adapt_report(folder))
    assert "1 of 7 labelled target images have a label that the network contradicts" in shown
    assert f"{EVIL} 0.10 a 0.80" in shown
    assert EVIL not in body(folder / "report.html")
    changed(folder, lambda facts: facts.update(labels=None))
    assert "Labels worth a look" not in plain(adapt_report(folder))


def changed(folder, change):
    facts = json.loads((folder / "explanation.json").read_text())
    change(facts)
    (folder / "explanation.json").write_text(json.dumps(facts))


def test_everything_is_shown_and_escaped(folder):
    shown = plain(adapt_report(folder))
    assert "Decision 1: stopped Probability of all this together 0.50; at a typical observation 0.25." in shown
    assert "entropy 0.50 -0.500" in shown  # the value that was seen before the decision, and its weight
    assert "1 of 9 test images changed class: 1 became right." in shown
    assert f"{EVIL} 0.50 a 0.90 is {EVIL}" in shown
    assert "(75% of their variance)" in shown
    page = body(folder / "report.html")
    assert EVIL not in page
    assert f'src="data:image/png;base64,{PIXEL}"' in page


def test_bars_by_hand():
    drawn = bars({"a": 0.5, "b": -0.25, "c": 0.0}, {"a": 0.125}, "x")
    assert 'class="for" style="left:50%;width:50.0%"' in drawn
    assert 'class="against" style="right:50%;width:25.0%"' in drawn
    assert "No signal moved" in bars({"a": 0.0}, {}, "x")


def test_a_policy_that_does_not_look_and_features_without_a_plane_are_told(folder):
    changed(folder, lambda facts: facts.update(decisions=None, maps=None))
    shown = plain(adapt_report(folder))
    assert "does not look at the signals" in shown
    assert "span no plane" in shown


def test_an_older_run_without_an_explanation_has_a_report(folder):
    (folder / "explanation.json").unlink()
    assert "changed class" not in plain(adapt_report(folder))


def evil_image(facts):
    facts["examples"]["shown"][0]["png"] = 'x" onerror="alert(1)'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (evil_image, "no small PNG"),
        (lambda f: f["examples"]["shown"][0].update(png=PIXEL + "A" * 300_000), "no small PNG"),
        (lambda f: f["examples"]["shown"][0].update(sure=[1]), "no two probabilities"),
        (lambda f: f["examples"].update(shown=[1]), "no list of objects"),
        (lambda f: f.update(labels={"images": 1, "doubtful": "x", "shown": []}), "'doubtful' is 'x'"),
        (lambda f: f["maps"]["points"].update({"target before": [[1]]}), "no list of points"),
        (lambda f: f["maps"].update(explained="x"), "no two shares"),
        (lambda f: f["decisions"][0].update(signals={"a": "x"}), "'a' is 'x', expected a number"),
        (lambda f: f.update(decisions=3), "'decisions' is no list"),
    ],
)
def test_damaged_explanations_are_refused_in_one_line(folder, change, message):
    changed(folder, change)
    with pytest.raises(InputError, match=message) as caught:
        adapt_report(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()
