"""Tables of image files and labels: `path,label` and, if wanted, `split`."""

import csv
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lepton_rl.arrays import UNLABELLED, one_line
from lepton_rl.errors import InputError
from lepton_rl.image_folder import IMAGE_SUFFIXES

COLUMNS = ("path", "label", "split")
SHOWN_CLASSES = 10
SHOWN_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: where it stands, the image file, and the label or an empty text."""

    line: int
    file: Path
    label: str


def read_csv(
    path: Path, split: str | None, known: tuple[str, ...] | None, root: Path | None
) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Return image files, their labels and the class names.

    Args:
        path: The table, UTF-8, separated by commas; the first line may name the columns.
        split: Keep the lines with this text in the column `split`; None for all.
        known: Class names in order; default those in the table, sorted, as numbers if all are.
        root: Folder that relative paths start from; default the table's own.

    Raises:
        InputError: If the table or a line of it cannot be used; it names the line.
    """
    rows = [row for row, part in _rows(path, root or path.parent, split) if split is None or part == split]
    if not rows:
        which = "" if split is None else f" of split {split!r}"
        raise InputError(f"{str(path)!r} holds no image{which}: expected lines of path,label; add some")
    _check_labels_agree(path, rows)
    names = _sorted({row.label for row in rows if row.label}) if known is None else known
    number = {name: i for i, name in enumerate(names)}
    for row in rows:
        if row.label and row.label not in number:
            more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
            raise _at(
                path, row.line, f"class {row.label!r} is not known", f"one of {', '.join(map(repr, names[:10]))}{more}"
            )
    return [row.file for row in rows], [number.get(row.label, UNLABELLED) for row in rows], names


def _rows(path: Path, root: Path, split: str | None) -> Iterator[tuple[Row, str]]:
    order = {"path": 0, "label": 1}
    wanted = len(order)
    for number, (line, fields) in enumerate(_lines(path)):
        if number == 0 and "path" in [field.lower() for field in fields]:
            order, wanted = _columns(path, line, fields), len(fields)
            continue
        if split is not None and "split" not in order:
            raise _at(path, line, "there is no column 'split'", "a first line such as path,label,split")
        if len(fields) != wanted:
            raise _at(path, line, f"{len(fields)} columns", f"{wanted}, with quotes around a path that holds a comma")
        cell = {name: fields[place].strip() for name, place in order.items()}
        yield (
            Row(line=line, file=_file(path, line, root, cell["path"]), label=cell.get("label", "")),
            cell.get("split", ""),
        )


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers and fields, without empty lines."""
    if not path.is_file():
        raise InputError(
            f"file {str(path)!r} does not exist or is no file: expected a table of path,label; check the path"
        )
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            for fields in reader:
                line = reader.line_num
                if any(field.strip() for field in fields):
                    yield line, fields
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise _at(path, line + 1, f"cannot be read ({one_line(error)})", "UTF-8 text, separated by commas") from error


def _columns(path: Path, line: int, fields: Sequence[str]) -> dict[str, int]:
    """Return where the columns are; those of other names are passed over."""
    names = [field.strip().lower() for field in fields]
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if twice:
        raise _at(path, line, f"the column {twice[0]!r} stands there twice", "every column once")
    return {name: names.index(name) for name in COLUMNS if name in names}


def _file(path: Path, line: int, root: Path, text: str) -> Path:
    if not text or "\0" in text:
        raise _at(path, line, f"the path is {text!r}", "the name of an image file")
    file = root / text
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        raise _at(path, line, f"{text!r} is no image by its name", f"one of {', '.join(IMAGE_SUFFIXES)}")
    try:
        known = file.is_file()
    except OSError as error:  # no name of a file, for example too long
        raise _at(path, line, f"the path cannot be used ({one_line(error)})", "the name of an image file") from None
    if not Path(text).is_absolute() and _leads_out(file, root):
        raise _at(path, line, f"{text!r} leads out of the folder {str(root)!r}", "a file in it, or an absolute path")
    if not known:
        raise _at(path, line, f"image {str(file)!r} does not exist", "a file; paths start from the table's folder")
    return file


def _leads_out(file: Path, root: Path) -> bool:
    """Whether a path, or a link on it, goes to somewhere else than below a folder."""
    place = file.resolve() if file.is_symlink() else _resolved(file.parent)
    return not place.is_relative_to(_resolved(root))


@functools.lru_cache(maxsize=1024)
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def _check_labels_agree(path: Path, rows: Sequence[Row]) -> None:
    first: dict[Path, Row] = {}
    for row in rows:
        before = first.setdefault(row.file, row)
        if before.label != row.label:
            raise _at(
                path,
                row.line,
                f"{row.file.name!r} is {row.label!r} here and {before.label!r} in line {before.line}",
                "one label an image",
            )


def _sorted(labels: set[str]) -> tuple[str, ...]:
    if all(label.isascii() and label.isdigit() for label in labels):
        return tuple(sorted(labels, key=lambda label: (len(label.lstrip("0")), label.lstrip("0"), label)))
    return tuple(sorted(labels))


def _at(path: Path, line: int, found: str, expected: str) -> InputError:
    return InputError(f"{str(path)!r} line {line}: {found[:SHOWN_CHARACTERS]}: expected {expected}; correct the line")
