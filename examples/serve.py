"""Serve an exported model over HTTP: one file, health, metrics, and limits on what comes in.

    pip install 'lepton_rl[serve]'
    lepton export runs/phone
    python examples/serve.py runs/phone/export/model.onnx

    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/predict

Put it behind a proxy that does TLS and authentication; it has neither.
"""

import argparse
import io
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

try:
    import onnxruntime
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
except ImportError as error:
    sys.exit(f"serve: error: {error}: expected the extra 'serve'; pip install 'lepton_rl[serve]'")

from lepton_rl.decode import image_pixels, with_channels
from lepton_rl.errors import InputError
from lepton_rl.export.card import Card, card_of

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may be."""

    bytes: int = 8 * 2**20
    """Of the body; more is refused while it comes in, with 413."""
    pixels: int = 32 * 2**20
    """Of the image, told by its header before anything is unpacked; more is refused with 413."""


class Model:
    """An exported model with its class names and its way of preparing images.

    Args:
        path: A file of `lepton export`, `model.onnx` or `model.int8.onnx`.

    Raises:
        InputError: If it is none.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"{str(path)!r} does not exist: expected a file of lepton export; check the path")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # requests run beside each other
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds; each means that the file is damaged
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{path} cannot be read ({reason}): expected a whole ONNX file; export it again") from None
        self.card: Card = card_of(self._session.get_modelmeta().custom_metadata_map, str(path))

    def pixels(self, content: bytes, form: str, limits: Limits) -> NDArray[np.uint8]:
        """Decode one image as `lepton adapt` does, uint8 `[1, c, h, w]`.

        Raises:
            HTTPException: 413 if it has too many pixels, 422 if it cannot be decoded.
        """
        way = self.card.preprocessing
        try:
            with Image.open(io.BytesIO(content), formats=(form,)) as image:
                if image.width * image.height > limits.pixels:
                    raise HTTPException(413, f"{image.width}x{image.height} pixels: at most {limits.pixels} are taken")
                array = image_pixels(ImageOps.exif_transpose(image), (way.height, way.width))
        except HTTPException:
            raise
        except Exception as error:  # decoders raise many kinds on damaged files; each means the same to the client
            raise HTTPException(422, f"the body is no whole {form} image") from error
        return with_channels(array, way.channels)[None]

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the probability of every class for every image, `[n, k]`."""
        logits = self._session.run(["logits"], {"images": np.ascontiguousarray(images)})[0].astype(np.float64)
        raised = np.exp(logits - logits.max(1, keepdims=True))
        result: NDArray[np.float64] = raised / raised.sum(1, keepdims=True)
        return result


def create_app(path: Path, limits: Limits | None = None) -> FastAPI:
    """Return the service for one exported file; for `uvicorn.run` and for tests."""
    model, limits = Model(path), limits or Limits()
    registry = CollectorRegistry()
    requests = Counter("lepton_requests", "Requests to /predict by status.", ["status"], registry=registry)
    predicted = Counter("lepton_predictions", "Predictions by class.", ["name"], registry=registry)
    seconds = Histogram("lepton_predict_seconds", "Time of a prediction, decoding included.", registry=registry)
    sure = Histogram(
        "lepton_confidence",
        "Largest probability; when it sinks, ask `lepton drift`.",
        buckets=[i / 10 for i in range(1, 10)],
        registry=registry,
    )
    app = FastAPI(title="lepton", description="Classifies one image a request.")

    @app.get("/health")
    def health() -> dict[str, Any]:
        way = model.card.preprocessing
        return {
            "status": "ok",
            "classes": list(model.card.classes),
            "weights": model.card.weights,
            "image_size": [way.height, way.width],
        }

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        began = time.perf_counter()
        try:
            form = _form(request)
            content = await _body(request, limits.bytes)
            found = await run_in_threadpool(lambda: model.probabilities(model.pixels(content, form, limits))[0])
        except HTTPException as error:
            requests.labels(str(error.status_code)).inc()
            raise
        best = int(found.argmax())
        name = model.card.classes[best]
        requests.labels("200").inc()
        predicted.labels(name).inc()
        seconds.observe(time.perf_counter() - began)
        sure.observe(float(found[best]))
        shares = dict(zip(model.card.classes, found.tolist(), strict=True))
        return {"class": name, "confidence": float(found[best]), "probabilities": shares}

    return app


def _form(request: Request) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in FORMATS:
        raise HTTPException(415, f"content type {kind[:40]!r}: expected one of {', '.join(FORMATS)}")
    return FORMATS[kind]


async def _body(request: Request, limit: int) -> bytes:
    """Read the body, and stop as soon as it is too long, whatever its header says."""
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > limit:
        raise HTTPException(413, f"{stated[:20]} bytes: at most {limit} are taken")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit:
            raise HTTPException(413, f"more than {limit} bytes")
    if not content:
        raise HTTPException(422, "the body is empty: expected one image")
    return bytes(content)


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="model.onnx or model.int8.onnx of lepton export")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--max-mib", type=float, default=8.0, help="largest body in MiB")
    options = parser.parse_args()
    try:
        app = create_app(options.model, Limits(bytes=math.floor(options.max_mib * 2**20)))
    except InputError as error:
        raise SystemExit(f"serve: error: {error}") from None
    uvicorn.run(app, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
