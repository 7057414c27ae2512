"""`examples/serve.py`: what it answers, what it counts, and what it refuses."""

import importlib.util
import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import SIDE, domain

from lepton_rl import InputError
from lepton_rl.export.made import make
from lepton_rl.models import build_model
from lepton_rl.preprocessing import Preprocessing, probabilities

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the client about the library under it
    from fastapi.testclient import TestClient

ROOT = Path(__file__).resolve().parent.parent
WAY = Preprocessing(channels=1, height=SIDE, width=SIDE, mean=(0.4,), std=(0.25,))
NAMES = ("cat", "dog", 'o"wl')


@pytest.fixture(scope="module")
def serve():
    spec = importlib.util.spec_from_file_location("serve_example", ROOT / "examples" / "serve.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    model = build_model("vgg-gn", channels=1, n_classes=3, width=4).eval()
    make(model, WAY, NAMES, folder, images=domain(5, 10, 3).images, formats=("onnx",))
    return folder / "model.onnx", model


@pytest.fixture
def client(serve, exported):
    limits = serve.Limits(bytes=5000, pixels=400)
    return TestClient(serve.create_app(exported[0], limits))


def encoded(image, form="PNG"):
    content = io.BytesIO()
    Image.fromarray(image).save(content, form)
    return content.getvalue()


def post(client, content, kind="image/png"):
    return client.post("/predict", content=content, headers={"Content-Type": kind})


def metric(client, line):
    rows = dict(row.rsplit(" ", 1) for row in client.get("/metrics").text.splitlines() if not row.startswith("#"))
    return float(rows.get(line, 0))


def test_the_answer_is_that_of_the_network(client, exported):
    whole = domain(8, 5, 3)
    expected = probabilities(exported[1], whole, WAY)
    for image, row in zip(whole.images[:, 0], expected, strict=True):
        answer = post(client, encoded(image))
        assert answer.status_code == 200
        facts = answer.json()
        assert facts["class"] == NAMES[row.argmax()]
        assert facts["confidence"] == pytest.approx(row.max(), abs=1e-5)
        assert [facts["probabilities"][name] for name in NAMES] == pytest.approx(row.tolist(), abs=1e-5)


@pytest.mark.parametrize(("form", "kind"), [("JPEG", "image/jpeg"), ("WEBP", "image/webp; q=1"), ("PNG", "IMAGE/PNG")])
@pytest.mark.parametrize("shape", [(9, 13), (9, 13, 3)])
def test_every_format_size_and_colour_is_brought_to_the_model(client, form, kind, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert post(client, encoded(image, form), kind).status_code == 200


def test_health_says_what_is_served(client):
    facts = {"status": "ok", "classes": list(NAMES), "weights": "float32", "image_size": [SIDE, SIDE]}
    assert client.get("/health").json() == facts


def test_everything_is_counted(client):
    image = encoded(domain(8, 1, 3).images[0, 0])
    name = post(client, image).json()["class"]
    post(client, image)
    post(client, b"x")
    post(client, image, "text/html")
    label = name.replace('"', '\\"')
    assert metric(client, 'lepton_requests_total{status="200"}') == 2
    assert metric(client, 'lepton_requests_total{status="422"}') == 1
    assert metric(client, 'lepton_requests_total{status="415"}') == 1
    assert metric(client, f'lepton_predictions_total{{name="{label}"}}') == 2
    assert metric(client, "lepton_predict_seconds_count") == 2
    assert metric(client, "lepton_confidence_count") == 2


def parts(n):
    for _ in range(n):
        yield b"x" * 1000


BAD = {
    "another type": (b"<html>", "text/html", 415, "expected one of image/png, image/jpeg, image/webp"),
    "no type": (b"x", "", 415, "content type ''"),
    "no image": (b"no image at all", "image/png", 422, "no whole PNG image"),
    "a gif as png": (encoded(np.zeros((4, 4), dtype=np.uint8), "GIF"), "image/png", 422, "no whole PNG image"),
    "cut off": (encoded(np.zeros((9, 9), dtype=np.uint8))[:-30], "image/png", 422, "no whole PNG image"),
    "empty": (b"", "image/png", 422, "the body is empty"),
    "too many bytes": (b"x" * 5001, "image/png", 413, "5001 bytes: at most 5000"),
    "too many pixels": (encoded(np.zeros((21, 20), dtype=np.uint8)), "image/png", 413, "20x21 pixels: at most 400"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case, client):
    content, kind, status, message = BAD[case]
    answer = post(client, content, kind)
    assert answer.status_code == status
    assert message in answer.json()["detail"]
    assert client.get("/health").status_code == 200


def test_a_body_that_does_not_say_how_long_it_is_is_cut_off(client):
    answer = post(client, parts(6))
    assert (answer.status_code, answer.json()["detail"]) == (413, "more than 5000 bytes")


def test_files_of_others_are_not_served(serve, exported, tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    for path in (tmp_path / "gone.onnx", tmp_path / "text.onnx"):
        with pytest.raises(InputError, match=path.name) as caught:
            serve.Model(path)
        assert "\n" not in str(caught.value)


def test_the_command_line_says_what_is_wrong_in_one_line(serve, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve.py", "gone.onnx"])
    with pytest.raises(SystemExit, match=r"serve: error: 'gone\.onnx' does not exist"):
        serve.main()


def test_without_its_extra_it_says_which_one_to_install():
    code = "import runpy, sys; sys.modules['fastapi'] = None; runpy.run_path(sys.argv[1])"
    path = ROOT / "examples" / "serve.py"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert "pip install 'lepton_rl[serve]'" in done.stderr
