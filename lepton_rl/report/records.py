"""Read the files of a finished command, and say clearly what is wrong with them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from lepton_rl.errors import InputError

Record: TypeAlias = Mapping[str, object]


def read_object(path: Path) -> Record:
    """Read a JSON file that holds one object.

    Raises:
        InputError: when the file is missing, is not JSON, or holds something else.
    """
    return _parse(_read(path), str(path))


def read_lines(path: Path) -> list[Record]:
    """Read a JSONL file: one object on every line.

    Raises:
        InputError: naming the file and the line, when a line is not an object; or when there is no line.
    """
    lines = _read(path).split("\n")  # not splitlines: a JSON text may hold U+2028
    records = [_parse(line, f"{path}, line {i}") for i, line in enumerate(lines, start=1) if line.strip()]
    if not records:
        raise InputError(f"{path} is empty, expected one JSON object per line: run the command again")
    return records


def text(record: Record, key: str, where: str) -> str:
    """Give a text field.

    Raises:
        InputError: when it is missing or not a text.
    """
    value = record.get(key)
    if not isinstance(value, str):
        raise InputError(f"{where}: field {key!r} is {_show(value)}, expected a text: run the command again")
    return value


def number(record: Record, key: str, where: str) -> float:
    """Give a number field; NaN is allowed, because a diverged run has such scores.

    Raises:
        InputError: when it is missing or not a number.
    """
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: field {key!r} is {_show(value)}, expected a number: run the command again")
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{where}: field {key!r} is too large, expected a number: run the command again") from None


def optional_number(record: Record, key: str, where: str) -> float | None:
    """Give a number field, or None where it is null or missing."""
    return None if record.get(key) is None else number(record, key, where)


def mapping(record: Record, key: str, where: str) -> Record:
    """Give a field that is an object.

    Raises:
        InputError: when it is missing or not an object.
    """
    value = record.get(key)
    if not isinstance(value, dict):
        raise InputError(f"{where}: field {key!r} is {_show(value)}, expected an object: run the command again")
    return value


def numbers(record: Record, key: str, where: str) -> dict[str, float]:
    """Give a field that is an object of numbers; null (never run) gives an empty one."""
    if record.get(key) is None and key in record:
        return {}
    inner = mapping(record, key, where)
    return {str(name): number(inner, name, f"{where}: {key}") for name in inner}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: {reason}; expected a file of a finished command, check --out") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text, expected JSON: run the command again") from error


def _parse(source: str, where: str) -> Record:
    try:
        value = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: not valid JSON ({_show(source)}), expected one whole object; "
            "the file was probably cut off: run the command again"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: {_show(value)} is not a JSON object: run the command again")
    return value


def _show(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
