"""Data sets of Hugging Face `datasets`, an extra: in memory, or saved in a folder; nothing is fetched."""

import importlib
from pathlib import Path
from typing import Any

from lepton_rl.arrays import one_line
from lepton_rl.errors import InputError

SAVED = ("dataset_info.json", "dataset_dict.json")


def is_saved_dataset(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`."""
    return any((path / name).is_file() for name in SAVED)


def open_dataset(dataset: Any, split: str | None) -> Any:  # noqa: ANN401 - a class of an extra
    """Return one split of a data set.

    Args:
        dataset: A `datasets.Dataset`, a `DatasetDict`, or a folder that `save_to_disk` wrote.
        split: Which part of a `DatasetDict`.

    Raises:
        InputError: If the library is missing, the folder damaged, or the split not there.
    """
    if isinstance(dataset, str | Path):
        dataset = _from_disk(Path(dataset))
    if isinstance(dataset, dict):
        if split is None and len(dataset) == 1:
            return next(iter(dataset.values()))
        if split not in dataset:
            raise InputError(f"split {split!r} is not there: expected one of {', '.join(map(repr, dataset))}; name one")
        return dataset[split]
    if split is not None:
        raise InputError(f"split {split!r} is asked for, and the data set has none: leave it out")
    return dataset


def columns(dataset: Any, image: str | None, label: str | None) -> tuple[str, str | None, tuple[str, ...] | None]:  # noqa: ANN401
    """Return the columns of images and labels, and the class names if they are stored.

    Raises:
        InputError: If there is no such column, or nothing tells which one it is.
    """
    features = getattr(dataset, "features", None)
    if not features:
        raise TypeError(f"data set is {type(dataset).__name__}: expected a datasets.Dataset with known features")
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    image = image or next((name for name, kind in kinds.items() if kind == "Image"), None)
    if label is None:
        label = next((name for name, kind in kinds.items() if kind == "ClassLabel"), None)
        label = label or next((name for name in ("label", "labels") if name in kinds), None)
    for what, name in (("image", image), ("label", label)):
        if (name is None and what == "image") or (name is not None and name not in kinds):
            raise InputError(
                f"the data set has no {what} column {name or ''!r}: expected one of {', '.join(map(repr, kinds))}"
            )
    assert image is not None
    names = None if label is None else getattr(features[label], "names", None)
    return image, label, None if names is None else tuple(names)


class Columns:
    """Two columns of a table as examples, pairs of an image and a label or None.

    Args:
        table: A `datasets.Dataset`.
        image: Column of the images.
        label: Column of the labels; None = they are unknown.
    """

    def __init__(self, table: Any, image: str, label: str | None) -> None:  # noqa: ANN401
        self._table = table.select_columns([image] if label is None else [image, label])
        self._image, self._label = image, label

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._table)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        """Return an image, and its label or None."""
        row = self._table[i]
        return row[self._image], None if self._label is None else row[self._label]


def _from_disk(path: Path) -> Any:  # noqa: ANN401
    try:
        library = importlib.import_module("datasets")
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(
            f"{str(path)!r} needs datasets, which cannot be imported ({one_line(error)}): expected the extra datasets; "
            "pip install 'lepton_rl[datasets]'"
        ) from error
    try:
        return library.load_from_disk(str(path))
    except Exception as error:  # arrow's and the library's own errors, each about a damaged folder
        raise InputError(
            f"{str(path)!r} cannot be read ({one_line(error)}): expected a folder that save_to_disk wrote"
        ) from error
