"""Images and labels from a `torch.utils.data.Dataset`, or from anything else that gives examples one by one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from lepton_rl.arrays import UNLABELLED, one_line
from lepton_rl.decode import Pixels, image_pixels, resized, with_channels
from lepton_rl.errors import InputError
from lepton_rl.storage import blank_images, mapped

IMAGE_KEYS = ("image", "img", "pixel_values", "x")
LABEL_KEYS = ("label", "labels", "y")
GROWTH = 256  # images that an array grows by, where the length is not known


def read_examples(
    examples: Any,  # noqa: ANN401 - anything that gives examples
    size: tuple[int, int] | None,
    channels: int | None,
) -> tuple[Pixels, NDArray[np.int64]]:
    """Return the images `[n, c, h, w]` and labels `[n]` of a data set.

    An example is an image, a pair of image and label, or a mapping with `image` and `label`. An image is one of
    pillow, a uint8 array or tensor (`[h, w]`, `[h, w, c]` or `[c, h, w]`, c = 1 or 3), or floats in 0..1.

    Args:
        examples: The data set.
        size: Height and width; default those of the first image.
        channels: 1 or 3; default 1 if all images are grey.

    Raises:
        InputError: If an example is none of these; it names the example.
    """
    labels: list[int] = []
    images: Pixels | None = None
    grey = True
    for i, example in enumerate(_each(examples)):
        image, label = _parts(example, i)
        array = _pixels(image, i, size)
        if images is None:
            size = size or (array.shape[0], array.shape[1])
            total = len(examples) if isinstance(examples, Sized) else GROWTH
            images = blank_images((total, channels or 3, *size))
        if i >= len(images):
            images = _grown(images)
        grey &= array.ndim == 2
        images[i] = with_channels(resized(array, images.shape), images.shape[1])
        labels.append(label)
    if images is None:
        raise InputError("the data set holds no example: expected at least one image")
    images = images[: len(labels)]
    if channels is None and grey:
        images = mapped(images, (1, *images.shape[2:]), lambda part: part[:, :1])
    return images, np.asarray(labels, dtype=np.int64)


def _each(examples: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield examples; by number where there is a length, as map-style data sets need not be iterable."""
    by_number = hasattr(examples, "__getitem__") and isinstance(examples, Sized)
    if not by_number or isinstance(examples, IterableDataset):
        if not isinstance(examples, Iterable):
            raise TypeError(f"data set is {type(examples).__name__}: expected a torch.utils.data.Dataset or a sequence")
        yield from examples
        return
    for i in range(len(examples)):
        try:
            yield examples[i]
        except Exception as error:  # a data set's own reading may fail in any way
            raise InputError(
                f"example {i} of the data set cannot be read ({one_line(error)}): expected an image and its label; "
                "leave it out, for example with torch.utils.data.Subset"
            ) from error


def _parts(example: Any, i: int) -> tuple[Any, int]:  # noqa: ANN401 - whatever a data set gives
    """Return the image and the label of an example."""
    label: Any = None
    if isinstance(example, Mapping):
        found = [key for key in IMAGE_KEYS if key in example]
        if not found:
            raise InputError(f"example {i} has the keys {sorted(map(str, example))[:8]}: expected 'image' and 'label'")
        image = example[found[0]]
        label = next((example[key] for key in LABEL_KEYS if key in example), None)
    elif isinstance(example, Sequence) and not isinstance(example, str):
        if not 1 <= len(example) <= 2:
            raise InputError(f"example {i} has {len(example)} parts: expected an image, or an image and its label")
        image, label = example[0], example[1] if len(example) == 2 else None
    else:
        image = example
    if label is None:
        return image, UNLABELLED
    number = np.asarray(label)
    if number.shape != () or number.dtype.kind not in "iu":
        raise InputError(f"example {i} has the label {str(label)[:40]!r}: expected an integer, -1 where unknown")
    return image, int(number)


def _pixels(image: Any, i: int, size: tuple[int, int] | None) -> Pixels:  # noqa: ANN401
    """Return one image as `[h, w]` or `[h, w, 3]`, resized if a size is given."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        image = Image.fromarray(_array(image, i))
    try:
        pixels = image_pixels(image, size)
    except Exception as error:  # decoders raise many kinds on damaged images
        raise InputError(
            f"image {i} of the data set cannot be read ({one_line(error)}): expected a whole one"
        ) from error
    return pixels


def _array(image: Any, i: int) -> Pixels:  # noqa: ANN401
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] != 3):
        raise InputError(
            f"image {i} of the data set has shape {list(array.shape)}: expected [h, w], [h, w, 1 or 3] or "
            "[1 or 3, h, w]"
        )
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):
            raise InputError(
                f"image {i} of the data set holds {low:.3g} to {high:.3g}: expected 0..1, or uint8 0..255; take the "
                "normalisation out of its transform, as it is done here"
            )
        array = np.rint(array * 255)
    elif array.dtype != np.uint8:
        raise InputError(f"image {i} of the data set is {array.dtype}: expected uint8, or floating-point in 0..1")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _grown(images: Pixels) -> Pixels:
    larger = blank_images((len(images) * 3 // 2 + GROWTH, *images.shape[1:]))
    larger[: len(images)] = images
    return larger
