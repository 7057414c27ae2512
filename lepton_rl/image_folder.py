"""Folders of images: which files belong to which class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lepton_rl.arrays import UNLABELLED, one_line
from lepton_rl.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")


def list_folder(root: Path, known: tuple[str, ...] | None) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Return the image files in order, their labels and the class names."""
    if not root.is_dir():
        hint = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{str(root)!r} {hint}: expected a folder with one sub-folder of images a class")
    top = root.resolve()
    entries = list(_entries(root, top))
    folders = [entry for entry in entries if entry.is_dir()]
    named = [folder for folder in folders if folder.name.lower() not in UNLABELLED_FOLDERS]
    names = tuple(folder.name for folder in named) if known is None else known
    files: list[Path] = []
    labels: list[int] = []
    for folder in sorted(folders, key=lambda item: (item not in named, item.name)):
        found = list(_walk(folder, top, (top,)))
        if folder in named and folder.name not in names:
            raise InputError(
                f"class {folder.name!r} in {str(root)!r} is not known to the model: expected {_some(names)}; "
                f"rename the folder, or move its images to 'unlabelled'"
            )
        if folder in named and known is None and not found:
            raise InputError(
                f"class folder {str(folder)!r} holds no image: add {'/'.join(IMAGE_SUFFIXES)} or remove it"
            )
        files += found
        labels += [names.index(folder.name) if folder in named else UNLABELLED] * len(found)
    loose = [entry for entry in entries if _is_image(entry)]
    if not files and not loose:
        raise InputError(
            f"folder {str(root)!r} holds no image: expected {', '.join(IMAGE_SUFFIXES)} in class sub-folders"
        )
    return files + loose, labels + [UNLABELLED] * len(loose), names


def _entries(folder: Path, top: Path) -> Iterator[Path]:
    """Yield the visible entries sorted by name; refuse links that lead out of `top` or nowhere."""
    try:
        entries = sorted(folder.iterdir(), key=lambda item: item.name)
    except OSError as error:
        raise InputError(f"folder {str(folder)!r} cannot be read ({one_line(error)}): check its permissions") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_symlink():
            target = Path(_real(entry))
            if not target.exists() or not target.is_relative_to(top):
                raise InputError(f"link {str(entry)!r} leads out of the folder or nowhere: put the file itself there")
        yield entry


def _real(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise InputError(f"link {str(link)!r} leads to itself: remove it") from error


def _walk(folder: Path, top: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield all image files below `folder`, sorted; `above` holds the real folders on the way down."""
    real = folder.resolve()
    if real in above:
        raise InputError(f"link {str(folder)!r} leads back to a folder above it: remove it")
    for entry in _entries(folder, top):
        if entry.is_dir():
            yield from _walk(entry, top, (*above, real))
        elif _is_image(entry):
            yield entry


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _some(names: Sequence[str], limit: int = 10) -> str:
    return ", ".join(map(repr, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")
