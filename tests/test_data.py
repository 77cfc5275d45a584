"""data and fetch: the bundled files, every damage, the val split, tensorflow-datasets."""
import gzip
import hashlib
import shutil
import struct
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

import data
import fetch
from conftest import ROOT, write_folder, write_idx
from files import InputError

NET = (16, 10)
MNIST = ROOT / "datasets" / "mnist"


def make_split(rng, count, pixels=16):
    return data.Split(rng.integers(0, 256, (count, pixels), dtype=np.uint8),
                      (np.arange(count) % 10).astype(np.uint8))


@pytest.fixture
def tiny(rng, tmp_path):
    """(folder, train, test): 30 and 20 images of 4x4, packed, in a folder without hashes."""
    train, test = make_split(rng, 30), make_split(rng, 20)
    write_folder(tmp_path, train, test, side=4)
    return tmp_path, train, test


def assert_same_splits(splits, expected):
    for split, wanted in zip(splits, expected, strict=True):
        np.testing.assert_array_equal(split.images, wanted.images, strict=True)
        np.testing.assert_array_equal(split.labels, wanted.labels, strict=True)


def one_line_error(folder, layer_sizes=NET, dataset="mnist"):
    with pytest.raises(InputError) as caught:
        data.load(dataset, folder, layer_sizes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bundled_mnist_is_whole(mnist):
    for split, count in zip(mnist, (60_000, 10_000)):
        assert split.images.shape == (count, 784) and split.labels.shape == (count,)
        assert split.images.dtype == split.labels.dtype == np.uint8
        # About a tenth of each class, by 5 %; strokes cover a fifth of the field.
        assert (np.abs(np.bincount(split.labels, minlength=10) / count - 0.1) < 0.02).all()
        assert 0.1 < (split.images > 0).mean() < 0.3
        assert split.images.any(1).all() and split.images.max() == 255
    train, test = (set(map(bytes, split.images)) for split in mnist)
    assert not train & test                     # no test image is trained on


def test_bundled_files_match_their_hashes():
    lines = (MNIST / "SHA256SUMS").read_text().splitlines()
    assert sorted(line.split()[1] for line in lines) == sorted(p.name for p in MNIST.glob("*.gz"))
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((MNIST / name).read_bytes()).hexdigest() == digest


def test_labels_belong_to_their_images(mnist):
    """A nearest-mean classifier gets 4 of 5 right; shuffled labels would give 1 in 10."""
    train, test = mnist
    means = np.stack([train.images[train.labels == c].mean(0) for c in range(10)])
    nearest = (test.images @ means.T - (means**2).sum(1) / 2).argmax(1)
    assert (nearest == test.labels).mean() > 0.75


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_folder_of_idx_files_is_read_packed_or_not(rng, tmp_path, suffix):
    splits = make_split(rng, 30), make_split(rng, 20)
    write_folder(tmp_path, *splits, side=4, suffix=suffix)
    assert_same_splits(data.load("mnist", tmp_path, NET), splits)


def test_colour_images_are_flattened(rng, tiny):
    folder, train, test = tiny
    colour = rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    for (name, _), images in zip(data.FILES, (colour, colour[:20])):
        write_idx(folder / f"{name}.gz", images)
    loaded, _ = data.load("mnist", folder, (48, 10))
    np.testing.assert_array_equal(loaded.images, colour.reshape(30, 48))


def test_hash_of_a_listed_file_is_checked(tiny):
    folder, *splits = tiny
    files = sorted(folder.glob("*.gz"))
    (folder / "SHA256SUMS").write_text("".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files))
    assert_same_splits(data.load("mnist", folder, NET), splits)
    content = gzip.decompress(files[0].read_bytes())
    files[0].write_bytes(gzip.compress(content[:-1] + bytes([content[-1] ^ 1])))
    assert "SHA-256" in one_line_error(folder) and str(files[0]) in one_line_error(folder)


def header(shape, magic=(0, 0, 8)):
    return struct.pack(f">4B{len(shape)}I", *magic, len(shape), *shape)


IMAGES = bytes(30 * 16)
DAMAGES = {
    "empty": b"",
    "truncated gz": gzip.compress(header((30, 4, 4)) + np.random.default_rng(1).bytes(480))[:-100],
    "gz without its checksum": gzip.compress(header((30, 4, 4)) + IMAGES)[:-8],
    "wrong checksum": gzip.compress(header((30, 4, 4)) + IMAGES)[:-8] + bytes(8),
    "not gz": header((30, 4, 4)) + IMAGES,
    "text": b"<html>not found</html>",
    "gz of nothing": gzip.compress(b""),
    "gz of half a header": gzip.compress(header((30, 4, 4))[:9]),
    "wrong magic": gzip.compress(header((30, 4, 4), (1, 0, 8)) + IMAGES),
    "floats": gzip.compress(header((30, 4, 4), (0, 0, 13)) + IMAGES),
    "labels for images": gzip.compress(header((30,)) + bytes(30)),
    "rank 2": gzip.compress(header((30, 16)) + IMAGES),
    "claims more than it holds": gzip.compress(header((31, 4, 4)) + IMAGES),
    "claims less than it holds": gzip.compress(header((29, 4, 4)) + IMAGES),
    "claims a terabyte": gzip.compress(header((2**30, 2**10, 2**0)) + IMAGES),
    "claims 2**96 bytes": gzip.compress(header((2**32 - 1,) * 3) + IMAGES),
    "claims no image": gzip.compress(header((0, 4, 4))),
    "other image count": gzip.compress(header((20, 4, 4)) + bytes(320)),
    "other image size": gzip.compress(header((30, 4, 5)) + bytes(600)),
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_damaged_file_gives_one_line(tiny, content):
    folder, *_ = tiny
    (folder / f"{data.FILES[0][0]}.gz").write_bytes(content)
    assert str(folder) in one_line_error(folder)


def test_decompression_bomb_takes_little_memory(tiny):
    folder, *_ = tiny
    bomb = gzip.compress(header((30, 4, 4)) + bytes(2**26), 1)      # 64 MB where 480 bytes are due
    (folder / f"{data.FILES[0][0]}.gz").write_bytes(bomb)
    tracemalloc.start()
    try:
        one_line_error(folder)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [name for pair in data.FILES for name in pair])
def test_missing_file_is_named(tiny, name):
    folder, *_ = tiny
    (folder / f"{name}.gz").unlink()
    assert name in one_line_error(folder)


def test_missing_folder_gives_one_line(tmp_path):
    one_line_error(tmp_path / "none")


def test_folder_in_place_of_a_file_gives_one_line(tiny):
    folder, *_ = tiny
    (folder / f"{data.FILES[0][0]}.gz").unlink()
    (folder / f"{data.FILES[0][0]}.gz").mkdir()
    one_line_error(folder)


def test_label_counts_must_match(tiny):
    folder, train, _ = tiny
    write_idx(folder / f"{data.FILES[0][1]}.gz", train.labels[:-1])
    message = one_line_error(folder)
    assert "30 images" in message and "29 labels" in message


@pytest.mark.parametrize("layer_sizes", [(15, 10), (17, 10), (16, 9), (16, 4, 9)])
def test_network_must_fit_the_data(tiny, layer_sizes):
    assert "LAYER_SIZES" in one_line_error(tiny[0], layer_sizes)


def test_network_may_have_more_classes_than_the_data(tiny):
    assert_same_splits(data.load("mnist", tiny[0], (16, 12)), tiny[1:])


def test_val_split_is_a_disjoint_fixed_partition():
    index = np.arange(200, dtype=np.uint8)
    whole = data.Split(index[:, None], index)   # image and label are the example's number
    np.random.seed(1)
    train, val = data.split_val(whole, 50, 10)
    assert len(val.labels) == 50 and len(train.labels) == 150
    assert sorted([*train.labels, *val.labels]) == list(range(200))
    for split in (train, val):
        np.testing.assert_array_equal(split.images[:, 0], split.labels)
    assert not np.array_equal(val.labels, np.sort(val.labels))      # shuffled, not the last 50
    np.random.seed(2)
    assert_same_splits(data.split_val(whole, 50, 20), (train, val))
    larger = data.split_val(whole, 80, 10)[1]
    assert set(val.labels) < set(larger.labels)  # always the end of one permutation


@pytest.mark.parametrize("val_examples, batch_size, legal", [
    (50, 150, True), (50, 151, False), (200, 1, False), (199, 1, True), (201, 1, False)])
def test_val_split_leaves_at_least_one_batch(val_examples, batch_size, legal):
    whole = data.Split(np.zeros((200, 1), np.uint8), np.zeros(200, np.uint8))
    if legal:
        train, val = data.split_val(whole, val_examples, batch_size)
        assert (len(train.labels), len(val.labels)) == (200 - val_examples, val_examples)
    else:
        with pytest.raises(InputError, match=f"BATCH_SIZE = {batch_size} .*= {val_examples}"):
            data.split_val(whole, val_examples, batch_size)


def test_other_dataset_is_read_from_the_folder_beside(tiny):
    folder, *splits = tiny
    shutil.copytree(folder, folder / "shapes")
    assert_same_splits(data.load("shapes", folder / "mnist", NET), splits)


@pytest.mark.parametrize("name", ["../mnist", "a/b", "", "mnist:1", "x y"])
def test_dataset_name_cannot_leave_the_folder(tmp_path, name):
    assert "DATASET" in one_line_error(tmp_path / "mnist", dataset=name)


def test_missing_tensorflow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    message = one_line_error(tmp_path / "mnist", dataset="fashion_mnist")
    assert "pip install -r requirements-tfds.txt" in message
    assert (ROOT / "requirements-tfds.txt").exists()


class FakeBuilder:
    """The part of a tfds builder that fetch uses."""

    def __init__(self, splits):
        self.splits = dict(zip(("train", "test"), splits))

    def as_dataset(self, split, batch_size, as_supervised):
        assert batch_size == -1 and as_supervised
        return self.splits[split]


@pytest.fixture
def fake_tfds(monkeypatch):
    module = SimpleNamespace(as_numpy=lambda dataset: dataset)
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return module


@pytest.mark.parametrize("channels", [1, 3])
def test_fetched_dataset_is_read_back_the_same(rng, tmp_path, fake_tfds, channels):
    splits = [(rng.integers(0, 256, (count, 4, 4, channels), dtype=np.uint8),
               np.arange(count, dtype=np.int64) % 10) for count in (30, 20)]
    fetch.fetch("shapes", tmp_path / "shapes", FakeBuilder(splits))
    loaded = data.load("shapes", tmp_path / "mnist", (16 * channels, 10))
    assert_same_splits(loaded, [data.Split(images.reshape(len(images), -1), labels.astype(np.uint8))
                                for images, labels in splits])


@pytest.mark.parametrize("images, labels", [
    (np.zeros((3, 4, 4, 1), np.float32), np.arange(3)),
    (np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, 256]))])
def test_fetch_refuses_what_idx_files_cannot_hold(tmp_path, fake_tfds, images, labels):
    with pytest.raises(InputError, match="uint8"):
        fetch.fetch("shapes", tmp_path, FakeBuilder([(images, labels)] * 2))


def test_failure_inside_tfds_gives_one_line(tmp_path, fake_tfds):
    def builder(name):
        raise RuntimeError("Dataset shapes not found.\nAvailable datasets:\n- mnist")

    fake_tfds.builder = builder
    assert "Dataset shapes not found." in one_line_error(tmp_path / "mnist", dataset="shapes")


def test_tfds_builds_the_same_mnist_offline(mnist, tmp_path):
    """The bundled files are those that tfds would download, so it needs no network; a minute."""
    pytest.importorskip("tensorflow", reason="TensorFlow is optional: requirements-tfds.txt")
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder("mnist", data_dir=tmp_path / "tfds")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=MNIST))
    fetch.fetch("built", tmp_path / "built", builder)
    for split, bundled in zip(data.load("built", tmp_path / "mnist", (784, 10)), mnist):
        # tfds shuffles: sort both by pixels and label.
        rows, wanted = (sorted(map(bytes, np.column_stack([s.images, s.labels])))
                        for s in (split, bundled))
        assert rows == wanted
