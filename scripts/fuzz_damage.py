"""Random damage to valid inputs, blind and knowing: bytes, JSON values, headers, members of archives."""

import io
import json
import re
import struct
import zipfile
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fuzz_targets import Target

ODD_BYTES = (0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x5B, 0x7B)
ODD_VALUES = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1", b"0", b"1e-320", b"true", b"null", b"[]", b"{}", b'""'),
    *(b"9" * 400, b"9" * 5000, b"[" * 2000, b'{"a":' * 500, b'"\\ud800"', b'"\\u0000"', b"18446744073709551616"),
    *(b'"../../x"', b'"<script>"', b"0.1e", b"-"),
)
VALUE = re.compile(rb'-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|"(?:[^"\\]|\\.)*"')


def damaged(target: "Target", rng: np.random.Generator) -> bytes:
    """Take one of the target's seeds and damage it."""
    seed = target.seeds[rng.integers(len(target.seeds))]
    ways = {"text": _text, "npz": _npz, "tensors": _tensors}
    if target.kind in ways and rng.random() < 0.6:
        return ways[target.kind](seed, rng)
    return blind(seed, rng, target.seeds)


def blind(content: bytes, rng: np.random.Generator, others: tuple[bytes, ...] = ()) -> bytes:
    """Damage bytes without knowing what they mean, one to eight times."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 9))):
        if not data:
            return bytes(rng.integers(0, 256, int(rng.integers(0, 64)), dtype=np.uint8))
        a, b = sorted(int(x) for x in rng.integers(0, len(data) + 1, 2))
        b = min(b, a + int(rng.integers(1, 4096)))
        way = rng.integers(8)
        place = min(a, len(data) - 1)
        if way == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif way == 1:
            data[place] = ODD_BYTES[rng.integers(len(ODD_BYTES))]
        elif way == 2:
            del data[a:b]
        elif way == 3:
            data[a:a] = data[a:b]
        elif way == 4:
            data[a:a] = rng.integers(0, 256, int(rng.integers(1, 32)), dtype=np.uint8).tobytes()
        elif way == 5:
            del data[a:]
        elif way == 6:
            data[place : place + 4] = struct.pack("<I", int(rng.integers(0, 2**32)))
        elif others:
            other = others[rng.integers(len(others))]
            c = int(rng.integers(0, len(other) + 1))
            data[a:b] = other[c : c + 256]
    return bytes(data)


def _text(content: bytes, rng: np.random.Generator) -> bytes:
    """Put odd values where there are values."""
    for _ in range(int(rng.integers(1, 4))):
        found = list(VALUE.finditer(content))
        if not found:
            break
        one = found[rng.integers(len(found))]
        odd = ODD_VALUES[rng.integers(len(ODD_VALUES))]
        if rng.random() < 0.2:
            odd = found[rng.integers(len(found))].group()
        content = content[: one.start()] + odd + content[one.end() :]
    return content


def _tensors(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage a safetensors header, or the JSON inside of it, and state its new length."""
    length = int.from_bytes(content[:8], "little")
    head, body = content[8 : 8 + length], content[8 + length :]
    try:
        inner = json.loads(head).get("__metadata__", {})
    except ValueError:
        return blind(content, rng)
    if inner and rng.random() < 0.6:
        key = list(inner)[rng.integers(len(inner))]
        described = json.loads(head)
        described["__metadata__"][key] = _text(inner[key].encode(), rng).decode(errors="replace")
        head = json.dumps(described).encode()
    else:
        head = _text(head, rng)
    if rng.random() < 0.3:
        body = blind(body, rng)
    return struct.pack("<Q", len(head)) + head + body


def _npz(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage the members of an archive and pack them again, with right checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as fresh:
        for name in archive.namelist():
            member = archive.read(name)
            if rng.random() < 0.7:
                member = _text(member[:128], rng) + member[128:] if rng.random() < 0.5 else blind(member, rng)
            fresh.writestr(name if rng.random() < 0.9 else f"../{name}", member)
    return out.getvalue()
