"""Everything of lepton_rl that reads a file or a command line, each with valid inputs to damage."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from lepton_rl import cli, decoded_cache
from lepton_rl.agents.book import open_book
from lepton_rl.agents.rows import RowFile, check_joins
from lepton_rl.agents.search_space import Space
from lepton_rl.artifact import PolicyArtifact
from lepton_rl.checkpoint import Checkpoint, Checkpoints
from lepton_rl.controls import ACTION_SIZES, ControlSettings
from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.guard import EVIDENCE, Guard
from lepton_rl.loading import load_weights
from lepton_rl.policy import NetworkPolicy
from lepton_rl.report.records import number, numbers, read_lines, read_object, text
from lepton_rl.signals import SIGNALS
from lepton_rl.standardise import Standardiser


@dataclass(frozen=True, kw_only=True)
class Target:
    """A parser.

    Attributes:
        name: Of the parser.
        kind: How its inputs are built: text, npz, tensors, or bytes.
        seeds: Valid inputs.
        parse: Reads one input.
        share: Of all inputs, in parts.
    """

    name: str
    kind: str
    seeds: tuple[bytes, ...]
    parse: Callable[[bytes], object]
    share: int


def targets(folder: Path) -> list[Target]:
    """List the parsers; `folder` is for the files that they read."""
    return [
        Target(name="policy", kind="tensors", seeds=(_policy(),), parse=PolicyArtifact.from_bytes, share=20),
        file_target(folder, "weights", "w.safetensors", "tensors", (_weights(),), load_weights, 10),
        file_target(folder, "torch", "w.pt", "bytes", (_torch(),), load_weights, 5),
        _checkpoint(folder),
        file_target(folder, "npz", "d.npz", "npz", (_arrays(True), _arrays(False)), Domain.from_npz, 15),
        _images(folder),
        file_target(folder, "rows", "rows.jsonl", "text", (_rows(),), lambda path: RowFile(path).read(), 10),
        file_target(
            folder, "records", "history.jsonl", "text", (_record(), _record() + b"\n" + _record()), _read_records, 5
        ),
        file_target(folder, "manifest", "manifest.json", "text", (_manifest(),), _join, 8),
        _table(folder),
        file_target(folder, "decoded", "0.json", "text", (_decoded(),), _read_decoded, 3),
        file_target(folder, "journal", "cell.jsonl", "text", (_journal(),), _read_journal, 2),
        Target(name="settings", kind="text", seeds=(_settings(),), parse=_read_settings, share=8),
        Target(name="arguments", kind="text", seeds=tuple(_arguments()), parse=_parse_arguments, share=2),
    ]


def file_target(
    folder: Path,
    name: str,
    file: str,
    kind: str,
    seeds: tuple[bytes, ...],
    read: Callable[[Path], object],
    share: int,
) -> Target:
    """Return a target that writes each input to a file of this name and reads it."""
    path = folder / name / file
    path.parent.mkdir()

    def parse(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return Target(name=name, kind=kind, seeds=seeds, parse=parse, share=share)


def _policy() -> bytes:
    n, k = len(SIGNALS), sum(ACTION_SIZES)
    layers = ((torch.ones(2, n), torch.zeros(2)), (torch.ones(k, 2), torch.zeros(k)))
    looks = ((torch.ones(1, EVIDENCE), torch.zeros(1)),)
    guard = Guard(inputs=Standardiser.unchanged(EVIDENCE), layers=looks, margin=1.0)
    policy = NetworkPolicy(inputs=Standardiser.unchanged(n), layers=layers, guard=guard)
    return PolicyArtifact(policy=policy, card={"name": "x", "scores": [1, 2.5], "deep": {"a": None}}).to_bytes()


def _weights() -> bytes:
    return save({"a.weight": torch.ones(2, 3), "b": torch.zeros(2, dtype=torch.int64)}, {"k": '{"a": 1}'})


def _torch() -> bytes:
    out = io.BytesIO()
    torch.save({"state_dict": {"a": torch.ones(2, 3), "b": torch.zeros(2)}}, out)
    return out.getvalue()


def _checkpoint(folder: Path) -> Target:
    path = folder / "checkpoint" / "c.safetensors"
    files = Checkpoints(path, "fuzz")
    files.save(Checkpoint(tensors={"a": torch.ones(3)}, facts={"rows": [{"a": 1.5}], "best": None}))
    seed = path.read_bytes()

    def parse(content: bytes) -> object:
        path.write_bytes(content)
        return files.load()

    return Target(name="checkpoint", kind="tensors", seeds=(seed,), parse=parse, share=5)


def _arrays(packed: bool) -> bytes:
    out = io.BytesIO()
    images = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
    (np.savez_compressed if packed else np.savez)(out, x=images, y=np.array([0, 1, 2, 0, -1]))
    return out.getvalue()


def _images(folder: Path) -> Target:
    path = folder / "images" / "cat" / "image"
    path.parent.mkdir(parents=True)
    seeds = []
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
        out = io.BytesIO()
        picture.save(out, kind)
        seeds.append(out.getvalue())
    wide = io.BytesIO()
    Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4)).save(wide, "PNG")

    def parse(content: bytes) -> object:
        (path.parent / "image.png").write_bytes(content)
        return Domain.from_folder(path.parent.parent, size=4)

    return Target(name="image", kind="bytes", seeds=(*seeds, wide.getvalue()), parse=parse, share=10)


def _table(folder: Path) -> Target:
    path = folder / "table" / "t.csv"
    path.parent.mkdir()
    for name in ("a.png", "b, c.png"):
        Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(path.parent / name)
    named = b'path,label,split\na.png,cat,train\n"b, c.png",7,test\n'

    def parse(content: bytes) -> object:
        path.write_bytes(content)
        split = "train" if len(content) % 2 else None
        return Domain.from_csv(path, split=split, size=4)

    seeds = (named, b"a.png,1\r\n" + b'"b, c.png",', b"label,path\n12,a.png\n")
    return Target(name="table", kind="text", seeds=seeds, parse=parse, share=8)


def _decoded() -> bytes:
    return json.dumps({"shape": [2, 1, 4, 4], "kept": [0, 1], "sizes": {"4x4": 2}, "skipped": []}).encode()


def _read_decoded(path: Path) -> object:
    path.with_suffix(".bin").write_bytes(bytes(32))
    return decoded_cache._load(path)


def _rows() -> bytes:
    row = {"arm": "policy", "task": "t", "split": "s", "seed": 0, "runs": 1, "accuracy": 0.5, "score": None}
    return b"".join(json.dumps(row | {"seed": k}).encode() + b"\n" for k in range(3))


def _record() -> bytes:
    return json.dumps({"decision": 1, "reason": "x", "before": {"accuracy": 0.5}, "classes": ["a", "b"]}).encode()


def _records() -> tuple[bytes, ...]:
    return _record(), _record() + b"\n" + _record()


def _read_records(path: Path) -> object:
    found = read_lines(path)
    if len(found) == 1:
        found.append(read_object(path))
    return [(text(r, "reason", "r"), number(r, "decision", "r"), numbers(r, "before", "r")) for r in found]


MINE = {"format": 1, "suite": "digits", "policy": None, "torch": "2.0"}


def _manifest() -> bytes:
    return json.dumps({"command": "lepton benchmark", "fingerprint": MINE, "seed": 0}, indent=2).encode()


def _join(path: Path) -> object:
    return check_joins(path.parent, MINE)


def _journal() -> bytes:
    parameters = Space().parameters(ControlSettings())
    run = {"steps": 5, "seconds": 0.1, "images": 10}
    record = {"state": "COMPLETE", "value": 0.5, "parameters": parameters, "run": run}
    return b"".join(json.dumps(record | {"value": k / 4}).encode() + b"\n" for k in range(3))


def _read_journal(path: Path) -> object:
    return open_book(path, Space()).finished()


def _settings() -> bytes:
    return ControlSettings().to_json().encode()


def _read_settings(content: bytes) -> object:
    return ControlSettings.from_json(content.decode(errors="replace"))


def _arguments() -> Iterator[bytes]:
    yield b"adapt\n--model\nvgg\n--target\ndigits\n--out\nx\n--budget\n400\n--classes\na\nb\n--mean\n0.5"
    yield b"train\n--out\nx\n--tasks\n1000\n--regime\nfew-label\n--hidden\n64\n64\n--learning-rate\n3e-4"
    yield b"benchmark\n--arms\npolicy\ntpe\n--runs\n1\n4\n--out\nx\n--regime\nboth"
    yield b"inspect\nlepton-v1\n--weights\nx.pt"
    yield b"report\nx"
    yield b"--help"


def _parse_arguments(content: bytes) -> object:
    """Parse a command line, one argument a line, as `lepton` does, but run nothing."""
    argv = content.replace(b"\0", b"").decode(errors="surrogateescape").split("\n")
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        try:
            name, *rest = argv
            if name in cli.COMMANDS:
                config, _ = cli.COMMANDS[name].load()
                return cli.parsed(config, rest, "lepton")
            if name.startswith("-"):
                return cli.main([name])
            raise InputError("unknown command")
        except SystemExit as left:
            if left.code not in (0, 2):
                raise RuntimeError(f"left with {left.code}") from None
            raise InputError("refused by the parser of arguments") from None
