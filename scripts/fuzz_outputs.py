"""Targets of the fuzzer that read what lepton_rl itself leaves on a disk: unfinished and finished runs, exports."""

import io
import json
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_targets import MINE, Target, file_target
from safetensors import SafetensorError
from safetensors.torch import load, save

from lepton_rl.agents.leaderboard import FORMAT as SUBMISSION
from lepton_rl.agents.leaderboard import hash_of, read_submission
from lepton_rl.checkpoint import KEY, checksum
from lepton_rl.domain import Domain
from lepton_rl.export.card import EXTRA_FILE, Card, read_card
from lepton_rl.export.card import KEY as CARD
from lepton_rl.keeping import Keeper, Trail, arguments_of, unfinished
from lepton_rl.models import build_model
from lepton_rl.own import own_task
from lepton_rl.policy import KeepPolicy
from lepton_rl.preprocessing import Preprocessing
from lepton_rl.rollout import rollout
from lepton_rl.run import AdaptationRun
from lepton_rl.saved_run import SavedRun
from lepton_rl.selection import ORIGINAL, Candidate
from lepton_rl.solo import SoloEngine
from lepton_rl.stopping import StopRequest


def output_targets(folder: Path) -> list[Target]:
    """List these parsers; `folder` is for the files that they read."""
    found = [
        _kept(folder),
        _run(folder),
        file_target(folder, "submission", "s.json", "text", (_submission(),), read_submission, 3),
        file_target(folder, "archive", "m.pt2", "npz", (_archive(),), read_card, 3),
    ]
    if find_spec("onnx"):
        found.append(file_target(folder, "onnx", "m.onnx", "bytes", (_onnx(),), read_card, 3))
    return found


def _kept(folder: Path) -> Target:
    """The checkpoint of an unfinished adaptation, with a right checksum however it is damaged."""
    out = folder / "kept" / "out"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 6, 6), dtype=np.uint8)
    task, _ = own_task(
        build_model("vgg", channels=1, n_classes=2, width=4).eval(),
        target=Domain.from_arrays(images, np.arange(12) % 2, classes=("a", "b")),
        budget=5,
    )
    policy = KeepPolicy()
    arguments = arguments_of(task.visible, policy, policy.settings, 0)
    engine = SoloEngine(task.visible)

    def keeper() -> Keeper:
        return Keeper(out, overwrite=False, stop=StopRequest(), say=lambda _: None)

    rollout(task.visible, policy, seed=0, engine=engine, keeper=keeper())
    path = unfinished(out) / "checkpoint.safetensors"
    seed = path.read_bytes()
    run = AdaptationRun(engine)
    observation = run.start({0: (task.visible, 0, policy.settings)})
    original = Candidate(name=ORIGINAL, weights=run.checkpoint(0), score=0.5)
    row = json.loads((path.parent / "history.jsonl").read_text().splitlines()[0])

    def parse(content: bytes) -> object:
        path.write_bytes(with_right_checksum(content))
        start = Trail(observation=observation, candidates=[original], history=[row])
        return keeper().resume(run, start, arguments)

    return Target(name="kept", kind="tensors", seeds=(seed,), parse=parse, share=4)


def with_right_checksum(content: bytes) -> bytes:
    """Make a damaged checkpoint say what its checksum is, as somebody who means harm would."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        described = json.loads(header["__metadata__"][KEY])
        described.pop("sha256", None)
        header["__metadata__"][KEY] = json.dumps(described | {"sha256": checksum(described, load(content))})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError):
        return content
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + content[8 + length :]


def _run(folder: Path) -> Target:
    """A folder that `lepton adapt` made: weights that say what their model is."""
    path = folder / "run" / "weights.safetensors"
    path.parent.mkdir()
    (path.parent / "history.jsonl").touch()
    (path.parent / "manifest.json").write_text('{"command": "lepton adapt", "arguments": {"model": "vgg"}}')
    state = build_model("vgg", channels=1, n_classes=2, width=2).state_dict()
    facts = {"classes": ["a", "b"], "preprocessing": _way()}
    seed = save(dict(state), {"lepton_model": json.dumps(facts)})

    def parse(content: bytes) -> object:
        path.write_bytes(content)
        return SavedRun.read(path.parent).load()

    return Target(name="run", kind="tensors", seeds=(seed,), parse=parse, share=6)


def _way() -> dict[str, Any]:
    return {"channels": 1, "height": 6, "width": 6, "mean": [0.5], "std": [0.25]}


def _submission() -> bytes:
    row = {"arm": "tpe", "policy": None, "split": "s", "index": 0, "seed": 0, "runs": 1, "accuracy": 0.5, "task": "t"}
    rows = [row, row | {"runs": 2}]
    content = {"format": SUBMISSION, "arguments": {}, "policies": {}, "fingerprint": MINE, "versions": {}}
    return json.dumps(content | {"rows": rows, "hash": hash_of(rows)}).encode()


def _card() -> str:
    way = Preprocessing(channels=1, height=6, width=6, mean=(0.5,), std=(0.25,))
    return Card(classes=("a", "b"), preprocessing=way, weights="float32").to_text()


def _archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"m/extra/{EXTRA_FILE}", _card())
    return out.getvalue()


def _onnx() -> bytes:
    import onnx

    graph = onnx.helper.make_graph([], "g", [], [])
    model = onnx.helper.make_model(graph)
    entry = model.metadata_props.add()
    entry.key, entry.value = CARD, _card()
    content: bytes = model.SerializeToString()
    return content
