"""Domains from tables, data sets and large folders: what is read, kept, streamed, listed and refused."""

import json
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from lepton_rl import Domain, InputError, adapt, storage
from lepton_rl import decode as decoding
from lepton_rl.cli import main
from lepton_rl.data_summary import copies, shared_images
from lepton_rl.decoded_cache import SETTLED_SECONDS, decoded_images
from lepton_rl.pool import ImagePool
from lepton_rl.pretrain import channel_statistics


def picture(path, value, size=(4, 6)):
    """A grey image of one value; `size` is height, width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


def values(domain):
    return domain.images[:, 0, 0, 0].tolist()


def refused(call, *parts):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# ----- tables


@pytest.fixture
def table(tmp_path):
    """A function that writes a table beside three images of the values 10, 20 and 30."""
    for value in (10, 20, 30):
        picture(tmp_path / "in" / f"{value}.png", value)

    def write(text, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_a_table_gives_images_labels_and_sorted_classes(table):
    domain = Domain.from_csv(table("in/20.png,dog\nin/10.png,cat\nin/30.png,\n"))
    assert values(domain) == [20, 10, 30]
    assert domain.classes == ("cat", "dog")
    assert domain.labels.tolist() == [1, 0, -1]
    assert domain.name == "t"


def test_the_first_line_may_name_columns_in_any_order_and_a_split(table):
    text = "\ufeffsplit,label,note,Path\ntrain,cat,x,in/10.png\ntest,dog,,in/20.png\n\ntrain,dog,,in/30.png\n"
    path = table(text)
    assert len(Domain.from_csv(path)) == 3
    train = Domain.from_csv(path, "train", classes=("dog", "cat"))
    assert (values(train), train.labels.tolist()) == ([10, 30], [1, 0])
    refused(lambda: Domain.from_csv(path, "val"), "holds no image of split 'val'")


def test_labels_that_are_numbers_are_sorted_as_numbers(table):
    domain = Domain.from_csv(table("in/10.png,10\nin/20.png,9\nin/30.png,10\n"))
    assert (domain.classes, domain.labels.tolist()) == (("9", "10"), [1, 0, 1])


def test_paths_start_from_the_table_or_from_a_given_folder(table, tmp_path):
    path = table("10.png,a\n", name="other.csv")
    refused(lambda: Domain.from_csv(path), "line 1", "10.png' does not exist")
    assert values(Domain.from_csv(path, root=tmp_path / "in")) == [10]
    assert values(Domain.from_csv(table(f"{tmp_path / 'in' / '20.png'},a\n"))) == [20]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("in/10.png,a\nin/20.png\n", ("line 2", "1 columns: expected 2")),
        ("in/10.png,a\n\nin/20.png,a,b\n", ("line 3", "3 columns")),
        ("path,label\nin/10.png,a\ngone.png,a\n", ("line 3", "does not exist")),
        ("in/10.png,a\n,a\n", ("line 2", "the path is ''")),
        ("in/10.png,a\nin/notes.txt,a\n", ("line 2", "no image by its name")),
        ("in/10.png,a\nin/20.png,b\nin/10.png,b\n", ("line 3", "'10.png' is 'b' here and 'a' in line 1")),
        ("path,label,path\nin/10.png,a,b\n", ("line 1", "'path' stands there twice")),
        ('in/10.png,a\n"in/20.png,a\n', ("line 2", "cannot be read")),
        (b"in/10.png,a\nin/20.png,\xff\xfe\n", ("line 1", "UTF-8")),
        ("", ("holds no image",)),
        ("path,label\n", ("holds no image",)),
    ],
)
def test_a_faulty_line_is_named(table, text, parts):
    path = table(text)
    refused(lambda: Domain.from_csv(path), "t.csv", *parts)


def test_classes_that_the_model_does_not_know_are_refused_with_their_line(table):
    path = table("in/10.png,cat\nin/20.png,emu\n")
    refused(lambda: Domain.from_csv(path, classes=("cat", "dog")), "line 2", "class 'emu'", "'cat', 'dog'")
    refused(lambda: Domain.from_csv(path, "train"), "line 1", "no column 'split'")


# ----- data sets


class Pairs(Dataset):
    classes = ("cat", "dog")

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 3

    def __getitem__(self, i):
        if i == 1 and self.make is None:
            raise OSError("bad sector")
        return (self.make or grey)(10 * (i + 1)), i % 2


def grey(value):
    return Image.fromarray(np.full((4, 6), value, np.uint8))


@pytest.mark.parametrize(
    "make",
    [
        grey,
        lambda v: np.full((4, 6), v, np.uint8),
        lambda v: np.full((4, 6, 3), v, np.uint8),
        lambda v: torch.full((1, 4, 6), v, dtype=torch.uint8),
        lambda v: torch.full((3, 4, 6), v / 255),
        lambda v: np.full((4, 6), v / 255),
    ],
)
def test_a_torch_dataset_may_hold_images_in_any_usual_form(make):
    domain = Domain.from_dataset(Pairs(make))
    assert domain.images.shape == (3, 1, 4, 6)
    assert values(domain) == [10, 20, 30]
    assert domain.labels.tolist() == [0, 1, 0]
    assert (domain.classes, domain.name) == (("cat", "dog"), "Pairs")


def test_tensor_and_iterable_datasets():
    pixels = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 3, 4, 4)
    domain = Domain.from_dataset(TensorDataset(pixels, torch.arange(6) % 3), size=2)
    assert (domain.images.shape, domain.labels.tolist()) == ((6, 1, 2, 2), [0, 1, 2, 0, 1, 2])

    class Stream(IterableDataset):
        def __iter__(self):
            yield from ({"image": np.full((2, 2), i % 256, np.uint8)} for i in range(600))

    stream = Domain.from_dataset(Stream())
    assert values(stream) == [i % 256 for i in range(600)]
    assert not stream.has_labels


@pytest.mark.parametrize(
    ("examples", "parts"),
    [
        (Pairs(None), ("example 1", "bad sector")),
        ([(np.full((2, 2), 1.5), 0)], ("image 0", "holds 1.5 to 1.5", "take the normalisation out")),
        ([(np.full((2, 2), np.nan), 0)], ("image 0", "holds nan")),
        ([(np.zeros((2, 2), np.int64), 0)], ("image 0", "int64")),
        ([(np.zeros((2, 2, 5), np.uint8), 0)], ("image 0", "[2, 2, 5]")),
        ([(np.zeros((2, 2), np.uint8), "cat")], ("example 0", "'cat'", "integer")),
        ([(np.zeros((2, 2), np.uint8), 0, 1)], ("example 0", "3 parts")),
        ([{"pixels": 1}], ("example 0", "'pixels'")),
        ([], ("no example",)),
    ],
)
def test_examples_that_cannot_be_used_are_named(examples, parts):
    refused(lambda: Domain.from_dataset(examples), *parts)


def test_a_hugging_face_data_set_in_memory_and_on_the_disk(tmp_path):
    library = pytest.importorskip("datasets")
    features = library.Features({"id": library.Value("int64"), "picture": library.Image()})
    features["kind"] = library.ClassLabel(names=["cat", "dog"])
    rows = {"id": [1, 2, 3], "picture": [grey(10), grey(20), grey(30)], "kind": [1, 0, -1]}
    made = library.Dataset.from_dict(rows, features=features)
    domain = Domain.from_huggingface(made)
    assert (values(domain), domain.labels.tolist(), domain.classes) == ([10, 20, 30], [1, 0, -1], ("cat", "dog"))
    refused(lambda: Domain.from_huggingface(made, image="gone"), "no image column 'gone'", "'picture'")
    refused(lambda: Domain.from_huggingface(made, "train"), "split 'train' is asked for")

    library.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "saved")
    assert len(Domain.from_huggingface(tmp_path / "saved", "test", size=2)) == 1
    refused(lambda: Domain.from_huggingface(tmp_path / "saved"), "split None is not there", "'train', 'test'")
    (tmp_path / "saved" / "train" / "state.json").write_text("{")
    refused(lambda: Domain.from_huggingface(tmp_path / "saved", "train"), "cannot be read")


# ----- decoded once


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four images that are an hour old, and a cache that keeps anything."""
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lepton_rl.decoded_cache.WORTH_BYTES", 1)
    for i, name in enumerate("abcd"):
        picture(tmp_path / "in" / name / "1.png", 10 * i)
    # The time of the last change of a file's facts cannot be set back, so the clock is set forward.
    now = time.time
    monkeypatch.setattr("lepton_rl.decoded_cache.time.time", lambda: now() + 2 * SETTLED_SECONDS)
    return tmp_path / "in"


def test_a_folder_is_decoded_once(folder, monkeypatch):
    first = Domain.from_folder(folder)
    entries = sorted((folder.parent / "cache" / "decoded").iterdir())
    assert [entry.suffix for entry in entries] == [".bin", ".json"]
    assert entries[0].stat().st_size == first.images.size

    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr("lepton_rl.decode._read_image", fail)
    again = Domain.from_folder(folder)
    assert values(again) == values(first) == [0, 10, 20, 30]
    assert again.reading.sizes == {"4x6": 4}
    again.images[0] = 7  # the cache is not written to
    assert values(Domain.from_folder(folder)) == [0, 10, 20, 30]


def test_another_size_and_a_changed_file_are_decoded_anew(folder):
    assert Domain.from_folder(folder).images.shape == (4, 1, 4, 6)
    assert Domain.from_folder(folder, size=2).images.shape == (4, 1, 2, 2)
    picture(folder / "b" / "1.png", 99)
    assert values(Domain.from_folder(folder)) == [0, 99, 20, 30]


@pytest.mark.parametrize("damage", [b"", b"x" * 5])
def test_a_damaged_entry_is_made_anew(folder, damage):
    Domain.from_folder(folder)
    for entry in (folder.parent / "cache" / "decoded").iterdir():
        entry.write_bytes(damage)
        assert values(Domain.from_folder(folder)) == [0, 10, 20, 30]


def test_files_of_this_moment_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lepton_rl.decoded_cache.WORTH_BYTES", 1)
    picture(tmp_path / "in" / "a.png", 1)
    assert values(Domain.from_folder(tmp_path / "in")) == [1]
    picture(tmp_path / "in" / "a.png", 2)
    assert values(Domain.from_folder(tmp_path / "in")) == [2]
    assert not (tmp_path / "cache").exists()


def test_the_entries_not_used_for_longest_go_first(folder, monkeypatch):
    monkeypatch.setattr("lepton_rl.decoded_cache.KEEP_BYTES", 4 * 4 * 6 + 4 * 2 * 2)
    Domain.from_folder(folder)
    entries = folder.parent / "cache" / "decoded"
    (oldest,) = entries.glob("*.json")
    os.utime(oldest, (1, 1))
    Domain.from_folder(folder, size=2)
    assert oldest.exists()
    os.utime(oldest, (1, 1))
    Domain.from_folder(folder, size=1)
    assert not oldest.exists()
    assert len(list(entries.iterdir())) == 4


def test_a_cache_that_cannot_be_written_is_done_without(folder, monkeypatch):
    (folder.parent / "cache").write_text("a file")
    assert values(Domain.from_folder(folder)) == [0, 10, 20, 30]


def test_what_cannot_be_read_is_skipped_on_demand_and_listed(folder):
    (folder / "a" / "0.png").write_bytes(b"")
    (folder / "b" / "2.png").write_bytes(b"no image")
    refused(lambda: Domain.from_folder(folder), "0.png", "0 bytes", "corrupt='skip'")
    for _ in range(2):  # the second time from the cache
        domain = Domain.from_folder(folder, corrupt="skip")
        assert (values(domain), domain.labels.tolist()) == ([0, 10, 20, 30], [0, 1, 2, 3])
        skipped = domain.summary()["skipped"]
        assert [os.path.basename(line.split("'")[1]) for line in skipped] == ["0.png", "2.png"]
        assert "it has 0 bytes" in skipped[0]
    for name in "abcd":
        (folder / name / "1.png").write_bytes(b"")
    refused(lambda: Domain.from_folder(folder, corrupt="skip"), "none of 6 images can be read")
    refused(lambda: Domain.from_folder(folder, corrupt="drop"), "expected 'refuse' or 'skip'")


# ----- larger than memory


@pytest.fixture
def small_memory(tmp_path, monkeypatch):
    """Memory for 1000 bytes of images, worked on 200 at a time."""
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "MEMORY_BYTES", 1000)
    monkeypatch.setattr(storage, "CHUNK_BYTES", 200)


def on_disk(array):
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


def test_large_arrays_lie_on_the_disk_and_hold_the_same(small_memory):
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 5, 7), dtype=np.uint8)
    domain = Domain.from_arrays(images, np.arange(60) % 3)
    order = np.random.default_rng(1).permutation(60)
    taken = domain.take(order)
    assert on_disk(taken.images)
    assert np.array_equal(taken.images, images[order])
    coloured = domain.with_channels(3)
    assert on_disk(coloured.images)
    assert np.array_equal(coloured.images, np.repeat(images, 3, axis=1))
    assert np.array_equal(coloured.with_channels(1).images, images)
    large = domain.resized(10, 14)
    assert on_disk(large.images)
    assert not on_disk(domain.take(range(10)).images)
    one = torch.nn.functional.interpolate(torch.from_numpy(images).float(), (10, 14), mode="bilinear", antialias=True)
    assert np.array_equal(large.images, one.round().clamp(0, 255).numpy().astype(np.uint8))


def test_the_pool_of_an_engine_lies_on_the_disk_when_it_is_large(small_memory, monkeypatch):
    made = []

    def recorded(shape):
        made.append(storage.blank_images(shape))
        return made[-1]

    monkeypatch.setattr("lepton_rl.pool.blank_images", recorded)
    pool = ImagePool((1, 5, 7), torch.device("cpu"))
    domains = [Domain.from_arrays(np.full((20, 5, 7), k, np.uint8), np.arange(20) % 2) for k in range(4)]
    segments = [pool.hold(domain) for domain in domains]
    assert on_disk(made[-1])
    assert pool.images.data_ptr() == made[-1].ctypes.data
    for k, segment in enumerate(segments):
        rows = pool.images[segment.offset : segment.offset + segment.length]
        assert (rows == k).all()
    assert not list((storage.cache_folder() / "scratch").iterdir())  # nothing is left of a killed process


def test_read_only_images_can_be_used(tmp_path):
    np.save(tmp_path / "x.npy", np.full((4, 5, 7), 9, np.uint8))
    domain = Domain.from_arrays(np.load(tmp_path / "x.npy", mmap_mode="r"))
    pool = ImagePool((1, 5, 7), torch.device("cpu"))
    pool.hold(domain)
    assert (pool.images[:4] == 9).all()


def test_a_full_disk_is_said_before_anything_is_written(small_memory, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    domain = Domain.from_arrays(np.zeros((60, 5, 7), np.uint8))
    refused(lambda: domain.with_channels(3), "do not fit into", "No space left", "LEPTON_CACHE")


def test_statistics_of_many_images_equal_those_of_few(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 5, 7), dtype=np.uint8)
    whole = channel_statistics(images)
    monkeypatch.setattr("lepton_rl.pretrain.AT_ONCE", 10)
    monkeypatch.setattr(storage, "CHUNK_BYTES", 200)
    parts = channel_statistics(images)
    assert np.allclose(whole[0], parts[0], rtol=1e-12)
    assert np.allclose(whole[1], parts[1], rtol=1e-12)


# ----- what a person looks at first


def test_copies_and_contradicting_labels_are_counted():
    images = np.array([1, 2, 1, 3, 2, 2, 4], np.uint8).reshape(7, 1, 1, 1)
    # 1 twice with labels 0 and 1; 2 three times with labels 0, -1 and 0
    found = copies(images, [0, 0, 1, 0, -1, 0, 1])
    assert (found.duplicates, found.contradicting) == (3, 1)
    assert shared_images(images, images[[0, 6]]) == 3


def test_inspect_shows_counts_sizes_copies_and_faults(tmp_path, capsys):
    for name, value in (("cat/1", 1), ("cat/2", 2), ("dog/1", 3), ("dog/2", 1), ("unlabelled/1", 5)):
        picture(tmp_path / "studio" / f"{name}.png", value, (8, 6))
    (tmp_path / "studio" / "cat" / "bad.png").write_bytes(b"")
    picture(tmp_path / "phone" / "emu" / "1.png", 2, (4, 4))
    assert main(["inspect", str(tmp_path / "studio"), "--against", str(tmp_path / "phone"), "--image-size", "8"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "studio: height x width 8x6 (5)",
        "studio: 1 copies of earlier images, 1 images with two labels",
        "studio: 1 files cannot be read:",
        "in both: 1 images",
        "the two name different classes",
    ):
        assert line in shown
    assert "bad.png' cannot be read (it has 0 bytes)" in shown.replace("\n", "")
    table = [line.split() for line in shown.splitlines()]
    assert ["cat", "2", "-"] in table
    assert ["emu", "-", "1"] in table
    assert ["(unlabelled)", "1", "0"] in table
    assert ["all", "5", "1"] in table


def test_jpeg_photographs_are_decoded_small_and_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    left = np.zeros((400, 800, 3), np.uint8)
    left[:, :400] = 255
    Image.fromarray(left).save(tmp_path / "a.jpg", exif=exif)
    domain = Domain.from_folder(tmp_path, size=10)
    assert domain.reading.sizes == {"800x400": 1}
    image = domain.images[0, 0].astype(int)
    assert image[:4].min() > 250  # turned clockwise, the bright left half is on top
    assert image[6:].max() < 5
    json.dumps(domain.summary())


def test_threads_keep_the_order_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "AT_ONCE", 3)
    files = [picture(tmp_path / f"{i:02}.png", i) for i in range(20)]
    found = decoded_images(files, None, None, "refuse")
    assert found.images[:, 0, 0, 0].tolist() == list(range(20))
    assert found.kept.tolist() == list(range(20))


def test_a_run_over_domains_larger_than_memory_gives_the_same_weights(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    source = Domain.from_arrays(rng.integers(0, 256, (40, 6, 6), dtype=np.uint8), labels)
    target = Domain.from_arrays(rng.integers(0, 256, (40, 9, 9), dtype=np.uint8), np.where(labels, 1, -1), name="t")
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(64, 2))
    model = torch.nn.Sequential(*layers).eval()

    def run():
        found = adapt(model, source=source, target=target, classes=("0", "1"), policy="tuned-default", budget=5)
        return found.model.state_dict()

    in_memory = run()
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "MEMORY_BYTES", 300)
    monkeypatch.setattr(storage, "CHUNK_BYTES", 100)
    mapped = run()
    assert (tmp_path / "cache" / "scratch").is_dir()
    assert all(torch.equal(value, mapped[name]) for name, value in in_memory.items())
