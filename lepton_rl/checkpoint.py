"""Checkpoints in two generations, each one file with its own checksum; a damaged newest one costs one save.

A checkpoint is a safetensors file: nothing in it is executed. Its one metadata key holds the format, what the
file is for, facts as JSON, and a SHA-256 over all of it and every tensor.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lepton_rl.cache import remove_unfinished, sync_folder, write_atomically
from lepton_rl.errors import InputError

FORMAT = 3  # 1 had neither generations nor checksums; 2 no range of the observations and no expected gain
KEY = "lepton_checkpoint"
MAX_HEADER_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What was saved.

    Attributes:
        tensors: By name.
        facts: JSON values.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class _Damaged(ValueError):
    """The file is not whole."""


class Checkpoints:
    """The newest checkpoint in a file, and the one before it beside it.

    Args:
        path: The newest one, `NAME.safetensors`; the one before it is `NAME.previous.safetensors`.
        kind: What the checkpoints are for; others are refused.
        say: Called with a line that a person should read.
    """

    def __init__(self, path: Path, kind: str, say: Callable[[str], None] = lambda _: None) -> None:
        self.path, self.kind, self._say = path, kind, say
        self.previous = path.with_suffix(".previous" + path.suffix)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; at any moment at least one whole generation is there under its name."""
        content = _to_bytes(checkpoint, self.kind)
        fresh = self.path.with_suffix(".next" + self.path.suffix)
        write_atomically(fresh, content)
        if self.path.exists():
            os.replace(self.path, self.previous)
        os.replace(fresh, self.path)
        sync_folder(self.path.parent)

    def load(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None if there is none.

        A file that is damaged is set aside, so that it never takes the place of a whole one, and told.

        Raises:
            InputError: If all are damaged, or one was written by another version or for something else.
        """
        fresh = self.path.with_suffix(".next" + self.path.suffix)
        remove_unfinished(self.path.parent)
        fresh.unlink(missing_ok=True)  # of a process that was killed before it took its place
        damaged: list[Path] = []
        for path in (self.path, self.previous):
            if not path.is_file():
                continue
            try:
                found = _from_bytes(path.read_bytes(), self.kind, path)
            except _Damaged as error:
                damaged.append(path)
                reason = str(error)
                continue
            if damaged:
                os.replace(damaged[0], self.path.with_suffix(".damaged" + self.path.suffix))
                self._say(f"{damaged[0]} is damaged ({reason}): going on from {path}, the one before it")
            return found
        if damaged:
            raise InputError(
                f"{' and '.join(map(str, damaged))} damaged ({reason}): expected a whole checkpoint; "
                "delete what is there to start again"
            )
        return None


def _to_bytes(checkpoint: Checkpoint, kind: str) -> bytes:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    seen: set[int] = set()
    for name, tensor in tensors.items():  # safetensors refuses tensors that share their memory
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    described = {"format": FORMAT, "kind": kind, "facts": dict(checkpoint.facts)}
    described["sha256"] = checksum(described, tensors)
    return save(tensors, {KEY: json.dumps(described)})  # in its order: rows give the columns of a table


def _from_bytes(content: bytes, kind: str, path: Path) -> Checkpoint:
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(content) - 8):
        raise _Damaged("it was cut off")
    try:
        header = json.loads(content[8 : 8 + length])
        metadata = header.get("__metadata__", {})
        text = metadata.get(KEY)
        if text is not None:
            described = json.loads(text)
            stated = described.pop("sha256")
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise _Damaged(" ".join(str(error).split())[:80] or type(error).__name__) from None
    if text is None or described.get("format") != FORMAT:
        said = "1" if text is None else str(described.get("format"))[:20]
        raise InputError(
            f"{path} is a checkpoint of format {said}: expected format {FORMAT}; finish it with the version of "
            "lepton_rl that wrote it, or choose another --out"
        )
    if stated != checksum(described, tensors):
        raise _Damaged("its checksum is another one")
    if described.get("kind") != kind:
        raise InputError(
            f"{path} is a checkpoint of {described.get('kind')!r}: expected {kind!r}; choose another --out"
        )
    return Checkpoint(tensors=tensors, facts=described["facts"])


def checksum(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of what a checkpoint says of itself and of all its tensors."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(dtype=torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
