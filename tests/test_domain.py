"""Domains from arrays, archives and folders: what is read, in which order, and what is refused."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lepton_rl.domain import Domain
from lepton_rl.errors import InputError


def ramp(*shape: int) -> NDArray[np.uint8]:
    return (np.arange(np.prod(shape)) % 256).astype(np.uint8).reshape(shape)


def save(path: Path, array: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def assert_refused(call: Callable[[], object], *parts: str) -> None:
    """The message is one line and holds every part."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# ---------------------------------------------------------------- the class itself


def test_digits_are_the_real_scans() -> None:
    digits = Domain.digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0 of 16
    assert digits.images.max() == 255
    assert digits.labels[:4].tolist() == [0, 1, 2, 3]
    assert digits.classes == tuple("0123456789")
    assert digits.name == "digits"


def test_summary_counts_and_is_json() -> None:
    domain = Domain.from_arrays(ramp(5, 4, 6), [0, 2, 2, -1, 0], name="a")
    assert domain.summary() == {
        "name": "a",
        "n": 5,
        "labelled": 4,
        "per_class": {"0": 2, "1": 0, "2": 2},
        "image_size": [4, 6],
        "channels": 1,
        "duplicates": 0,
        "contradicting": 0,
    }
    json.dumps(domain.summary())


def test_take_labelled_unlabelled_and_hidden() -> None:
    domain = Domain.from_arrays(ramp(4, 2, 2), [1, -1, 0, -1])
    assert domain.has_labels
    assert len(domain) == 4
    assert domain.n_classes == 2
    assert domain.labelled().labels.tolist() == [1, 0]
    assert domain.unlabelled().images.tolist() == domain.images[[1, 3]].tolist()
    assert not domain.unlabelled().has_labels
    assert domain.take([2, 0]).labels.tolist() == [0, 1]
    assert len(domain.take([])) == 0
    assert domain.take([]).classes == ("0", "1")
    assert not domain.without_labels().has_labels
    assert domain.renamed("b").name == "b"
    assert_refused(lambda: domain.take([4]), "4 images")


def test_constructor_refuses_other_layouts() -> None:
    images, labels = ramp(2, 1, 4, 4), np.zeros(2, np.int64)
    with pytest.raises(TypeError, match="numpy"):
        Domain(images=[1], labels=labels, name="", classes=("a",))  # type: ignore[arg-type]
    bad_images: list[NDArray[Any]] = [images[:, 0], images.astype(float), ramp(2, 2, 4, 4), ramp(2, 1, 0, 4)]
    for bad in bad_images:
        with pytest.raises(InputError, match="uint8"):
            Domain(images=bad, labels=labels, name="", classes=("a",))
    bad_labels: list[NDArray[Any]] = [labels[:1], labels.astype(np.int32), labels[:, None]]
    for bad in bad_labels:
        with pytest.raises(InputError, match="int64"):
            Domain(images=images, labels=bad, name="", classes=("a",))
    assert_refused(lambda: Domain(images=images, labels=labels, name="", classes=("a", "a")), "twice")
    assert_refused(lambda: Domain(images=images, labels=labels + 3, name="", classes=("a",)), "label 3")
    assert_refused(lambda: Domain(images=images, labels=labels - 2, name="", classes=("a",)), "label -2")


def test_resized_by_hand() -> None:
    domain = Domain.from_arrays(np.array([[[0, 100], [0, 100]]], np.uint8))
    assert domain.resized(2, 4).images[0, 0, 0].tolist() == [0, 25, 75, 100]  # centres at -.25 .25 .75 1.25
    assert domain.resized(2, 2) is domain
    flat = Domain.from_arrays(np.full((600, 3, 9, 7), 77, np.uint8)).resized(4, 5)  # more than one part
    assert flat.images.shape == (600, 3, 4, 5)
    assert (flat.images == 77).all()
    assert_refused(lambda: domain.resized(0, 4), "1..8192")
    with pytest.raises(TypeError):
        domain.resized(2.5, 4)  # type: ignore[arg-type]


def test_with_channels_by_hand() -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)[:, :, None, None]
    domain = Domain.from_arrays(colours)
    grey = domain.with_channels(1)
    assert grey.images.ravel().tolist() == [76, 150, 29, 255]  # 0.299, 0.587, 0.114
    assert grey.with_channels(3).images[0].ravel().tolist() == [76, 76, 76]
    assert domain.with_channels(3) is domain
    assert_refused(lambda: domain.with_channels(2), "channels is 2")


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 5, 6), (2, 1, 5, 6)),
        ((2, 5, 6, 1), (2, 1, 5, 6)),
        ((2, 5, 6, 3), (2, 3, 5, 6)),
        ((2, 1, 5, 6), (2, 1, 5, 6)),
        ((2, 3, 5, 6), (2, 3, 5, 6)),
        ((2, 3, 5, 3), (2, 3, 5, 3)),  # both fit: channels first
    ],
)
def test_array_layouts(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = ramp(*shape)
    domain = Domain.from_arrays(x)
    assert domain.images.shape == expected
    assert domain.labels.tolist() == [-1, -1]
    assert domain.classes == ()
    moved = np.moveaxis(x, -1, 1) if x.ndim == 4 and expected != shape else x.reshape(expected)
    assert (domain.images == moved).all()


@given(labels=st.lists(st.integers(-1, 300), min_size=1, max_size=20))
def test_default_classes_reach_the_largest_label(labels: list[int]) -> None:
    domain = Domain.from_arrays(np.zeros((len(labels), 2, 2), np.uint8), labels)
    assert domain.classes == tuple(str(i) for i in range(max(labels) + 1))
    assert domain.labels.tolist() == labels
    assert len(domain.labelled()) + len(domain.unlabelled()) == len(labels)


@pytest.mark.parametrize(
    ("x", "parts"),
    [
        (np.zeros((2, 4, 4)), ("float64", "multiply by 255 and convert to uint8")),
        (np.zeros((2, 4, 4), bool), ("bool", "255")),
        (np.zeros((2, 4, 4), np.int64), ("int64", "uint8")),
        (np.zeros((2, 4, 4), np.uint16), ("uint16", "uint8")),
        (np.zeros((2, 4, 4), object), ("object", "uint8")),
        ([np.zeros((4, 4), np.uint8), np.zeros((5, 5), np.uint8)], ("differ in shape",)),
        (np.zeros((2, 16), np.uint8), ("[2, 16]", "[n, h, w]")),
        (np.zeros((2, 4, 4, 4), np.uint8), ("[2, 4, 4, 4]",)),
        (np.zeros((0, 4, 4), np.uint8), ("[0, 4, 4]", "at least one image")),
        (np.zeros((2, 0, 4), np.uint8), ("no pixel",)),
    ],
)
def test_bad_images_are_refused(x: ArrayLike, parts: tuple[str, ...]) -> None:
    assert_refused(lambda: Domain.from_arrays(x), *parts)


@pytest.mark.parametrize(
    ("y", "parts"),
    [
        ([0], ("[1]", "2 images")),
        ([[0, 1], [0, 1]], ("[2, 2]",)),
        ([[0], [0, 1]], ("differ in shape",)),
        ([0.0, 1.0], ("float64", "integers")),
        ([True, False], ("bool",)),
        (["a", "b"], ("integers",)),
        ([0, -2], ("label -2",)),
        ([0, 10**9], ("label 1000000000", "number classes from 0")),
        (np.array([0, 2**64 - 1], np.uint64), ("label 18446744073709551615",)),
    ],
)
def test_bad_labels_are_refused(y: ArrayLike, parts: tuple[str, ...]) -> None:
    assert_refused(lambda: Domain.from_arrays(ramp(2, 4, 4), y), *parts)


def test_classes_are_checked() -> None:
    x = ramp(2, 4, 4)
    assert Domain.from_arrays(x, [0, 1], classes=["cat", "dog", "cow"]).classes == ("cat", "dog", "cow")
    assert_refused(lambda: Domain.from_arrays(x, [0, 2], classes=("cat", "dog")), "label 2", "0..1")
    with pytest.raises(TypeError, match="sequence of strings"):
        Domain.from_arrays(x, [0, 1], classes="ab")


def test_column_labels_are_flattened() -> None:
    assert Domain.from_arrays(ramp(2, 4, 4), [[1], [0]]).labels.tolist() == [1, 0]


# ---------------------------------------------------------------- npz


def test_npz_splits(tmp_path: Path) -> None:
    file = tmp_path / "set.npz"
    x = ramp(5, 4, 4)
    np.savez(file, x_train=x[:3], y_train=np.array([0, 1, 2]), x_test=x[3:], y_test=np.array([[2], [1]]))
    both = Domain.from_npz(file)
    assert both.name == "set"
    assert both.labels.tolist() == [0, 1, 2, 2, 1]
    assert (both.images[:, 0] == x).all()
    assert Domain.from_npz(file, "train").labels.tolist() == [0, 1, 2]
    assert Domain.from_npz(str(file), "test", classes=("a", "b", "c")).classes == ("a", "b", "c")
    assert_refused(lambda: Domain.from_npz(file, "valid"), "'valid'", "'train'")


@pytest.mark.parametrize("keys", [("x", "y"), ("images", "labels")])
def test_npz_single_pair_with_and_without_labels(tmp_path: Path, keys: tuple[str, str]) -> None:
    file = tmp_path / "set.npz"
    np.savez_compressed(file, **{keys[0]: ramp(2, 4, 4), keys[1]: np.array([1, 0])})  # type: ignore[arg-type]
    assert Domain.from_npz(file).labels.tolist() == [1, 0]
    assert_refused(lambda: Domain.from_npz(file, "train"), "x_train", keys[0])
    np.savez(file, **{keys[0]: ramp(2, 4, 4)})  # type: ignore[arg-type]
    assert Domain.from_npz(file).labels.tolist() == [-1, -1]


def test_npz_without_test_labels_is_partly_unlabelled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=ramp(1, 4, 4), y_train=np.array([0]), x_test=ramp(2, 4, 4))
    assert Domain.from_npz(tmp_path / "a.npz").labels.tolist() == [0, -1, -1]


def test_npz_bad_contents(tmp_path: Path) -> None:
    file = tmp_path / "bad.npz"
    np.savez(file, pictures=ramp(2, 4, 4))
    assert_refused(lambda: Domain.from_npz(file), "pictures", "x_train")
    np.savez(file, x=ramp(2, 4, 4) / 255)
    assert_refused(lambda: Domain.from_npz(file), "bad.npz", "multiply by 255")
    np.savez(file, x=ramp(2, 4, 4), y=np.array([1]))
    assert_refused(lambda: Domain.from_npz(file), "bad.npz", "2 images")
    np.savez(file, x_train=ramp(2, 4, 4), x_test=ramp(2, 5, 5))
    assert_refused(lambda: Domain.from_npz(file), "differ in size")
    np.savez(file, x=np.array([ramp(2, 2), None], dtype=object))
    assert_refused(lambda: Domain.from_npz(file), "bad.npz", "plain numeric")


@pytest.mark.parametrize("keep", [0, 1, 30, 100, 300, -1, -30])
def test_npz_truncated(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "cut.npz"
    np.savez_compressed(file, x=ramp(20, 8, 8))
    file.write_bytes(file.read_bytes()[:keep])
    assert_refused(lambda: Domain.from_npz(file), "cut.npz", "cannot be read")


@given(place=st.integers(0, 10**6), value=st.integers(1, 255))
def test_npz_with_a_damaged_byte_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    file = tmp_path_factory.mktemp("npz") / "x.npz"
    np.savez_compressed(file, x=ramp(3, 4, 4), y=np.arange(3))
    data = bytearray(file.read_bytes())
    data[place % len(data)] ^= value
    file.write_bytes(data)
    try:
        dtype = Domain.from_npz(file).images.dtype
    except InputError as error:
        dtype, message = np.uint8, str(error)
        assert "x.npz" in message
    assert dtype == np.uint8


def test_npz_other_files(tmp_path: Path) -> None:
    assert_refused(lambda: Domain.from_npz(tmp_path / "no.npz"), "no.npz", "does not exist")
    assert_refused(lambda: Domain.from_npz(tmp_path), "no file")
    (tmp_path / "text.npz").write_text("hello, this is no archive")
    assert_refused(lambda: Domain.from_npz(tmp_path / "text.npz"), "cannot be read")
    np.save(tmp_path / "bare.npy", ramp(2, 4, 4))
    assert_refused(lambda: Domain.from_npz(tmp_path / "bare.npy"), "bare array", "numpy.savez")


# ---------------------------------------------------------------- folders


def test_folder_order_labels_and_names(tmp_path: Path) -> None:
    root = tmp_path / "phone"
    for value, name in enumerate(
        [
            "cat/b.png",
            "cat/a.png",
            "cat/deep/er/c.PNG",
            "dog/a.bmp",
            "unlabelled/z.png",
            "unlabeled/y.png",
            "x.tif",
        ]
    ):
        save(root / name, np.full((4, 6), value, np.uint8))
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    (root / "cat" / ".thumb.png").write_text("")
    domain = Domain.from_folder(root)
    assert domain.name == "phone"
    assert domain.classes == ("cat", "dog")
    assert domain.images.shape == (7, 1, 4, 6)
    assert domain.images[:, 0, 0, 0].tolist() == [1, 0, 2, 3, 5, 4, 6]
    assert domain.labels.tolist() == [0, 0, 0, 1, -1, -1, -1]


def test_folder_of_loose_images_is_unlabelled(tmp_path: Path) -> None:
    save(tmp_path / "b.png", ramp(4, 4))
    save(tmp_path / "a.png", ramp(4, 4) // 2)
    domain = Domain.from_folder(str(tmp_path), classes=("cat", "dog"))
    assert domain.labels.tolist() == [-1, -1]
    assert domain.classes == ("cat", "dog")
    assert (domain.images[1, 0] == ramp(4, 4)).all()


def test_folder_known_classes(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "a.png", ramp(4, 4))
    (tmp_path / "cat").mkdir()  # known but empty: fine
    domain = Domain.from_folder(tmp_path, classes=("dog", "cow", "cat"))
    assert domain.labels.tolist() == [0]
    assert domain.summary()["per_class"] == {"dog": 1, "cow": 0, "cat": 0}
    assert_refused(lambda: Domain.from_folder(tmp_path, classes=("cat",)), "'dog'", "not known", "'cat'")
    assert_refused(lambda: Domain.from_folder(tmp_path), "cat'", "no image")


def test_folder_missing_empty_or_file(tmp_path: Path) -> None:
    assert_refused(lambda: Domain.from_folder(tmp_path / "none"), "none", "does not exist")
    assert_refused(lambda: Domain.from_folder(tmp_path), "holds no image")
    (tmp_path / "unlabelled").mkdir()
    assert_refused(lambda: Domain.from_folder(tmp_path), "holds no image")
    (tmp_path / "f.zip").write_text("")
    assert_refused(lambda: Domain.from_folder(tmp_path / "f.zip"), "is a file")


def test_folder_sizes(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((4, 6), 9, np.uint8))
    save(tmp_path / "b.png", np.full((8, 3), 50, np.uint8))
    assert Domain.from_folder(tmp_path).images.shape == (2, 1, 4, 6)
    assert Domain.from_folder(tmp_path, size=5).images.shape == (2, 1, 5, 5)
    small = Domain.from_folder(tmp_path, size=(2, 3)).images
    assert small.shape == (2, 1, 2, 3)
    assert (small[1] == 50).all()
    assert_refused(lambda: Domain.from_folder(tmp_path, size=0), "size")
    assert_refused(lambda: Domain.from_folder(tmp_path, channels=4), "channels is 4")
    bad_sizes: list[Any] = [True, "8", (1, 2, 3), 2.0]
    for bad in bad_sizes:
        with pytest.raises(TypeError):
            Domain.from_folder(tmp_path, size=bad)


def test_folder_channels(tmp_path: Path) -> None:
    save(tmp_path / "a.png", ramp(4, 4))
    save(tmp_path / "b.png", np.stack([ramp(4, 4)] * 3, axis=2))  # stored as RGB, grey in truth
    assert Domain.from_folder(tmp_path).images.shape[1] == 1
    save(tmp_path / "c.png", np.full((4, 4, 3), (255, 0, 0), np.uint8))
    mixed = Domain.from_folder(tmp_path).images
    assert mixed.shape == (3, 3, 4, 4)
    assert mixed[2, :, 0, 0].tolist() == [255, 0, 0]
    assert mixed[0, :, 0, 3].tolist() == [3, 3, 3]
    assert Domain.from_folder(tmp_path, channels=1).images[2, 0, 0, 0] == 76


def one(path: Path) -> NDArray[np.uint8]:
    image: NDArray[np.uint8] = Domain.from_folder(path).images[0]
    return image


def test_folder_16_bit_grey(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535], [128, 129, 25700]], np.uint16)
    save(tmp_path / "a.png", values)
    assert one(tmp_path)[0].tolist() == [[0, 1, 255], [0, 1, 100]]
    save(tmp_path / "a.png", values[:, :1])
    (tmp_path / "a.png").unlink()
    save(tmp_path / "a.tif", values)
    assert one(tmp_path)[0].tolist() == [[0, 1, 255], [0, 1, 100]]


def test_folder_one_bit_and_wide_pixels(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "a.png")
    assert one(tmp_path).tolist() == [[[0, 255]]]
    (tmp_path / "a.png").unlink()
    save(tmp_path / "a.tif", np.array([[0, 70000]], np.int32))
    assert_refused(lambda: Domain.from_folder(tmp_path), "a.tif", "16 bits")
    save(tmp_path / "a.tif", np.array([[0.5]], np.float32))
    assert_refused(lambda: Domain.from_folder(tmp_path), "a.tif", "floating-point")


def test_folder_transparency_lies_on_white(tmp_path: Path) -> None:
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    save(tmp_path / "a.png", rgba)
    assert one(tmp_path)[:, 0].T.tolist() == [[200, 0, 0], [255, 255, 255], [204, 204, 204]]
    grey = Image.fromarray(rgba).convert("LA")
    grey.save(tmp_path / "a.png")
    assert one(tmp_path)[0, 0, 1:].tolist() == [255, 204]


def test_folder_palette(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image = image.convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "a.png")
    assert one(tmp_path)[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    image.save(tmp_path / "a.png", transparency=1)
    assert one(tmp_path)[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]


def test_folder_exif_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the stored image turned 90 degrees clockwise
    Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert one(tmp_path)[0].tolist() == [[4, 1], [5, 2], [6, 3]]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp", "tiff", "bmp", "png"])
def test_folder_formats(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"a.{suffix}", np.full((16, 16, 3), (200, 40, 90), np.uint8))
    assert np.abs(one(tmp_path).astype(int).mean(axis=(1, 2)) - (200, 40, 90)).max() < 6


def test_folder_other_modes(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    pixel = one(tmp_path)[:, 0, 0].astype(int)
    assert pixel[0] > 200 > 60 > pixel[1:].max()


@pytest.mark.parametrize("keep", [0, 1, 20, 45, 70, -40])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_folder_truncated_image(tmp_path: Path, suffix: str, keep: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    file = save(tmp_path / "cat" / f"cut.{suffix}", noise)
    file.write_bytes(file.read_bytes()[:keep])
    assert_refused(lambda: Domain.from_folder(tmp_path), f"cut.{suffix}", "cannot be read", "replace or delete")


def test_folder_garbage_and_foreign_formats(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image at all")
    assert_refused(lambda: Domain.from_folder(tmp_path), "a.png", "cannot be read")
    Image.new("L", (4, 4)).save(tmp_path / "a.png", format="GIF")
    assert_refused(lambda: Domain.from_folder(tmp_path), "a.png", "PNG")


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8200, 10_000, 30_000])  # above our limit, pillow's warning, pillow's error
def test_folder_decompression_bomb(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_claiming(side, side))
    assert_refused(lambda: Domain.from_folder(tmp_path), "bomb.png", "pixels")


def test_folder_links(tmp_path: Path) -> None:
    root = tmp_path / "in"
    save(root / "cat" / "a.png", ramp(4, 4))
    save(tmp_path / "out" / "b.png", ramp(4, 4))
    inside = root / "cat" / "again.png"
    inside.symlink_to(root / "cat" / "a.png")
    assert len(Domain.from_folder(root)) == 2
    (tmp_path / "link").symlink_to(root)  # the folder itself may be a link
    assert len(Domain.from_folder(tmp_path / "link")) == 2
    targets = {
        "file.png": tmp_path / "out" / "b.png",
        "folder": tmp_path / "out",
        "gone.png": tmp_path / "gone.png",
    }
    for name, target in targets.items():
        link = root / "cat" / name
        link.symlink_to(target)
        assert_refused(lambda: Domain.from_folder(root), name, "leads out")
        link.unlink()
    for name, target in {"loop": root / "cat", "self.png": root / "cat" / "self.png"}.items():
        link = root / "cat" / name
        link.symlink_to(target)
        assert_refused(lambda: Domain.from_folder(root), name, "link")
        link.unlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_folder_named_pipe_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path / "a.png", ramp(4, 4))
    os.mkfifo(tmp_path / "pipe.png")
    assert len(Domain.from_folder(tmp_path)) == 1


def test_file_name_with_a_line_break_stays_one_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb.png").write_bytes(b"")
    assert_refused(lambda: Domain.from_folder(tmp_path), "0 bytes")


def test_printing_a_domain_says_what_it_is_in_one_line() -> None:
    domain = Domain(images=ramp(3, 1, 2, 4), labels=np.array([0, -1, 1]), name="ones", classes=("a", "b"))
    assert repr(domain) == "Domain('ones', 3 images 1x2x4, 2 labelled, 2 classes)"
