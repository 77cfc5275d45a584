"""data: the bundled files, their identity, every damage, the val split, tensorflow-datasets."""
import gzip
import hashlib
import os
import struct
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

import data
import plan
from conftest import ROOT, write_folder, write_idx
from formats import checkpoint, idx, raw, tables
from machine.files import InputError

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


@pytest.fixture(scope="module")
def mnist():
    return data.load(MNIST)


@pytest.fixture(autouse=True)
def no_tensorflow(monkeypatch):
    """As without requirements-tfds.txt, so that no test asks the network for a dataset."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)


def splits_of(dataset):
    return dataset.train, dataset.test


def one_line_error(folder):
    with pytest.raises(InputError) as caught:
        data.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bundled_mnist_is_whole(mnist):
    for split, count in zip(splits_of(mnist), (60_000, 10_000)):
        assert split.images.shape == (count, 784) and split.labels.shape == (count,)
        assert split.images.dtype == split.labels.dtype == np.uint8
        # About a tenth of each class, by 5 %; strokes cover a fifth of the field.
        assert (np.abs(np.bincount(split.labels, minlength=10) / count - 0.1) < 0.02).all()
        assert 0.1 < (split.images > 0).mean() < 0.3
        assert split.images.any(1).all() and split.images.max() == 255
    train, test = (set(map(bytes, split.images)) for split in splits_of(mnist))
    assert not train & test                     # no test image is trained on


def test_bundled_files_match_their_hashes():
    lines = (MNIST / "SHA256SUMS").read_text().splitlines()
    assert sorted(line.split()[1] for line in lines) == sorted(p.name for p in MNIST.glob("*.gz"))
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((MNIST / name).read_bytes()).hexdigest() == digest


def test_labels_belong_to_their_images(mnist):
    """A nearest-mean classifier gets 4 of 5 right; shuffled labels would give 1 in 10."""
    train, test = splits_of(mnist)
    means = np.stack([train.images[train.labels == c].mean(0) for c in range(10)])
    nearest = (test.images @ means.T - (means**2).sum(1) / 2).argmax(1)
    assert (nearest == test.labels).mean() > 0.75


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_folder_of_idx_files_is_read_packed_or_not(rng, tmp_path, suffix):
    splits = make_split(rng, 30), make_split(rng, 20)
    write_folder(tmp_path, *splits, side=4, suffix=suffix)
    assert_same_splits(splits_of(data.load(tmp_path)), splits)


def test_colour_images_are_flattened(rng, tiny):
    folder, train, test = tiny
    colour = rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    for (name, _), images in zip(idx.FILES, (colour, colour[:20])):
        write_idx(folder / f"{name}.gz", images)
    loaded = data.load(folder).train
    np.testing.assert_array_equal(loaded.images, colour.reshape(30, 48))


def test_known_data_has_its_name_wherever_it_lies(mnist, tmp_path):
    assert mnist.name == "MNIST"
    (tmp_path / "other").symlink_to(MNIST)
    assert data.load(tmp_path / "other")[:2] == mnist[:2]


def test_identity_is_the_hash_of_the_unpacked_files(rng, tmp_path):
    splits = make_split(rng, 30), make_split(rng, 20)
    identities = []
    for suffix in (".gz", ""):
        folder = tmp_path / f"data{suffix}"
        folder.mkdir()
        write_folder(folder, *splits, side=4, suffix=suffix)
        identities.append(data.load(folder)[:2])
    digests = [hashlib.sha256((folder / name).read_bytes()).digest()
               for pair in idx.FILES for name in pair]
    sha256 = hashlib.sha256(b"".join(digests)).hexdigest()
    assert identities == [("data.gz", sha256), ("data", sha256)]


def test_identity_changes_with_any_pixel_or_label(tiny):
    folder, train, test = tiny
    seen = {data.load(folder).sha256}
    for pick in range(4):
        arrays = [train.images.copy(), train.labels.copy(), test.images.copy(), test.labels.copy()]
        arrays[pick].flat[-1] ^= 1
        write_folder(folder, data.Split(*arrays[:2]), data.Split(*arrays[2:]), side=4)
        seen.add(data.load(folder).sha256)
    assert len(seen) == 5


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_file_written_is_the_one_an_independent_writer_makes(rng, tmp_path, suffix):
    array = rng.integers(0, 256, (5, 3, 2), dtype=np.uint8)
    ours, theirs = tmp_path / f"ours{suffix}", tmp_path / f"theirs{suffix}"
    idx.write(ours, array)
    write_idx(theirs, array)
    unpack = gzip.decompress if suffix else bytes
    assert unpack(ours.read_bytes()) == unpack(theirs.read_bytes())


@pytest.mark.parametrize("line", ["{hash}  {name}\n", "{hash} *{name}\n", "{hash}  ./{name}\n",
                                  "{hash} *./{name}\r\n", "# a comment\n\n{hash}  {name}"])
def test_hash_of_a_listed_file_is_checked(tiny, line):
    folder, *splits = tiny
    path = folder / f"{idx.FILES[0][0]}.gz"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    sums = folder / "SHA256SUMS"
    for listed in (digest, digest.upper()):
        sums.write_text(line.format(hash=listed, name=path.name))
        assert_same_splits(splits_of(data.load(folder)), splits)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:-1] + bytes([content[-1] ^ 1])))
    assert "SHA-256" in one_line_error(folder) and str(path) in one_line_error(folder)


@pytest.mark.parametrize("line", ["nonsense", "SHA256 (a) = " + "0" * 64, "0" * 63 + "  a",
                                  "0" * 64])
def test_other_lines_beside_the_hashes_are_refused(tiny, line):
    (tiny[0] / "SHA256SUMS").write_text(line + "\n")
    assert line[:20] in one_line_error(tiny[0])


def test_gzip_of_several_members_is_read_whole(tiny):
    folder, *splits = tiny
    path = folder / f"{idx.FILES[0][0]}.gz"
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(b"".join(map(gzip.compress, (content[:3], b"", content[3:100],
                                                  content[100:]))))
    assert_same_splits(splits_of(data.load(folder)), splits)


def loop_in(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return tmp_path / "loop"


@pytest.mark.parametrize("make", [
    lambda tmp_path: "x" * 300, lambda tmp_path: f"{tmp_path}/a\0b", loop_in, lambda tmp_path: "",
    lambda tmp_path: f"{tmp_path}/a\nb", lambda tmp_path: "/dev/null", lambda tmp_path: "/"],
    ids=["300 characters", "NUL", "symlink loop", "empty", "newline", "device", "root"])
def test_folder_that_cannot_be_gives_one_line(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    one_line_error(make(tmp_path))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path),
                                  lambda path: os.symlink(path, path)],
                         ids=["FIFO", "folder", "endless device", "symlink loop"])
@pytest.mark.parametrize("name", [f"{idx.FILES[0][1]}.gz", "SHA256SUMS"])
def test_only_regular_files_are_read(tiny, make, name):
    path = tiny[0] / name
    path.unlink(missing_ok=True)
    make(path)
    assert str(path) in one_line_error(tiny[0])


def header(shape, magic=(0, 0, 8)):
    return struct.pack(f">4B{len(shape)}I", *magic, len(shape), *shape)


IMAGES = bytes(30 * 16)
DAMAGES = {
    "empty": b"",
    "truncated gz": gzip.compress(header((30, 4, 4)) + np.random.default_rng(1).bytes(480))[:-100],
    "two members, the second cut": gzip.compress(header((30, 4, 4))) + gzip.compress(IMAGES)[:-9],
    "bytes after the members": gzip.compress(header((30, 4, 4)) + IMAGES) + b"tail",
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
    (folder / f"{idx.FILES[0][0]}.gz").write_bytes(content)
    assert str(folder) in one_line_error(folder)


def test_decompression_bomb_takes_little_memory(tiny):
    folder, *_ = tiny
    bomb = gzip.compress(header((30, 4, 4)) + bytes(2**26), 1)      # 64 MB where 480 bytes are due
    (folder / f"{idx.FILES[0][0]}.gz").write_bytes(bomb)
    tracemalloc.start()
    try:
        one_line_error(folder)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_wrong_magic_is_seen_before_the_file_is_unpacked(tiny):
    """Of one that does not pack, so that its bytes are as many unpacked; they are read once."""
    folder, *_ = tiny
    noise = np.random.default_rng(0).bytes(2**23)
    (folder / f"{idx.FILES[0][0]}.gz").write_bytes(gzip.compress(noise, 1))
    tracemalloc.start()
    try:
        one_line_error(folder)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [name for pair in idx.FILES for name in pair])
def test_missing_file_is_named(tiny, name):
    folder, *_ = tiny
    (folder / f"{name}.gz").unlink()
    assert name in one_line_error(folder)


def test_missing_folder_gives_one_line(tmp_path):
    one_line_error(tmp_path / "none")


def test_label_counts_must_match(tiny):
    folder, train, _ = tiny
    write_idx(folder / f"{idx.FILES[0][1]}.gz", train.labels[:-1])
    message = one_line_error(folder)
    assert "30 images" in message and "29 labels" in message


def steps_of(line, inputs, classes):
    return plan.parse(line, (inputs,), classes)


@pytest.mark.parametrize("line, inputs, classes", [("", 15, 10), ("", 17, 10), ("", 16, 9),
                                                   ("4", 16, 9)])
def test_network_must_fit_the_data(tiny, line, inputs, classes):
    with pytest.raises(InputError, match=f"{inputs} inputs and {classes} classes .*: it has 16"):
        data.check_fits(data.load(tiny[0]), steps_of(line, inputs, classes), checkpoint.Facts())


def test_network_may_have_more_classes_than_the_data(tiny):
    data.check_fits(data.load(tiny[0]), steps_of("", 16, 12), checkpoint.Facts())


def features(seed, names=("a", "b")):
    """A Dataset of five features whose table from numbers to bytes is of this seed."""
    x = np.random.default_rng(seed).normal(size=(40, 5)).astype(np.float32)
    y = np.arange(40) % 2
    return data.from_raw("made", raw.Raw(x, y, x, y, (5,), names, None, ""))


def test_a_class_or_a_byte_of_other_data_means_something_else():
    """A network of features answers for its own table and names alone, or for the same data."""
    mine, others, renamed = features(0), features(1), features(0, ("b", "a"))
    facts = checkpoint.Facts("made", mine.sha256, mine.classes, *mine.encoding)
    steps, unsaid = steps_of("", 5, 2), facts._replace(sha256="")       # as of an .nqat
    data.check_fits(mine, steps, facts)
    data.check_fits(mine, steps, unsaid)
    data.check_fits(renamed, steps, unsaid._replace(classes=("0", "1")))
    for wrong in (others, renamed):
        with pytest.raises(InputError, match="not those of made"):
            data.check_fits(wrong, steps, unsaid)
    with pytest.raises(InputError, match="not those of made"):
        data.check_fits(mine, steps, unsaid._replace(low=None, exponent=None))


def whole(count, labels=None, **more):
    """A Dataset of idx files whose images are their numbers."""
    index = np.arange(count, dtype=np.uint8)
    train = data.Split(index[:, None], np.resize(index % 10 if labels is None else labels, count))
    return data.Dataset("d", "0", train, train, (1,), tuple(map(str, range(10))),
                        **{"is_idx": True, **more})


def test_val_split_is_a_disjoint_fixed_partition():
    dataset = whole(200)
    np.random.seed(1)
    train, val = data.split_val(dataset, 50)
    assert len(val.labels) == 50 and len(train.labels) == 150
    numbers = [split.images[:, 0] for split in (train, val)]
    assert sorted(np.concatenate(numbers)) == list(range(200))
    for split, index in zip((train, val), numbers):
        np.testing.assert_array_equal(split.labels, index % 10)
    assert not np.array_equal(numbers[1], np.sort(numbers[1]))      # shuffled, not the last 50
    np.random.seed(2)
    assert_same_splits(data.split_val(dataset, 50), (train, val))
    larger = data.split_val(dataset, 80)[1]
    assert set(numbers[1]) < set(larger.images[:, 0])   # always the end of one permutation


def test_val_split_of_mnist_is_the_one_of_earlier_versions(mnist):
    order = np.random.default_rng(0).permutation(60_000)
    train, val = data.split_val(mnist, 5_000)
    for split, part in ((train, order[:-5_000]), (val, order[-5_000:])):
        np.testing.assert_array_equal(split.labels, mnist.train.labels[part])
        np.testing.assert_array_equal(split.images[::997], mnist.train.images[part[::997]])


@pytest.mark.parametrize("val_examples, held", [(50, 50), (100, 100), (101, 40), (200, 40),
                                                (1_000_000, 40)])
def test_val_split_leaves_most_of_small_data_to_train_on(val_examples, held):
    """More than half of it is never held out: then a fifth is."""
    train, val = data.split_val(whole(200), val_examples)
    assert (len(train.labels), len(val.labels)) == (200 - held, held)


@pytest.mark.parametrize("is_idx", [True, False])
@pytest.mark.parametrize("labels, val_examples, which", [
    ([3], 50, "train"), ([0] * 199 + [1], 50, "train|validation"), (None, 1, "validation")])
def test_split_of_one_class_is_refused_before_training(labels, val_examples, which, is_idx):
    """No model can be told from a guess by it."""
    if labels is None and not is_idx:
        val_examples = 1                        # one of 200 examples; a part of each class is held
        _, val = data.split_val(whole(200, is_idx=False), val_examples)
        assert len(set(val.labels)) > 1
        return
    with pytest.raises(InputError, match=rf"(?s)^the \d+ ({which}) examples are all of one class"):
        data.split_val(whole(200, labels, is_idx=is_idx), val_examples)


def test_missing_tensorflow_says_what_has_no_data_and_what_to_install(tmp_path):
    message = one_line_error(tmp_path / "fashion_mnist")
    assert str(tmp_path / "fashion_mnist") in message
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


def random_arrays(rng, channels=1):
    return [(rng.integers(0, 256, (count, 4, 4, channels), dtype=np.uint8),
             np.arange(count, dtype=np.int64) % 10) for count in (30, 20)]


@pytest.mark.parametrize("channels", [1, 3])
def test_fetched_dataset_is_read_back_the_same(rng, tmp_path, fake_tfds, channels):
    arrays = random_arrays(rng, channels)
    assert data.fetch("shapes", tmp_path / "shapes", FakeBuilder(arrays))
    assert_same_splits(splits_of(data.load(tmp_path / "shapes")), [
        data.Split(images.reshape(len(images), -1), labels.astype(np.uint8))
        for images, labels in arrays])


def test_folder_without_files_is_fetched_once(rng, tmp_path, fake_tfds):
    builder = FakeBuilder(random_arrays(rng))
    builder.download_and_prepare = lambda: None
    fake_tfds.builder = {"shapes_2": builder}.pop    # a second call would raise
    first = data.load(tmp_path / "shapes_2")
    assert first.name == "shapes_2"
    assert_same_splits(splits_of(data.load(tmp_path / "shapes_2")), splits_of(first))


def test_folder_with_some_files_is_left_as_it_is(tiny, fake_tfds):
    folder, *_ = tiny
    (folder / f"{idx.FILES[1][1]}.gz").unlink()
    before = sorted(folder.iterdir())
    assert idx.FILES[1][1] in one_line_error(folder)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", ["mnist:1", "x y", "a-b", "é", "a" * 200])
def test_only_a_legal_name_is_asked_of_tfds(tmp_path, fake_tfds, name):
    assert "has no data" in one_line_error(tmp_path / name)    # fake_tfds has no builder to call


@pytest.mark.parametrize("images, labels", [
    (np.zeros((3, 4, 4, 1), np.float32), np.arange(3)),
    (np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, 256])),
    (np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, -1])),
    (np.zeros((3, 4), np.uint8), np.arange(3))])
def test_fetch_refuses_what_idx_files_cannot_hold(tmp_path, fake_tfds, images, labels):
    with pytest.raises(InputError, match="uint8"):
        data.fetch("shapes", tmp_path, FakeBuilder([(images, labels)] * 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text, shown", [
    ("Dataset shapes not found.\nAvailable datasets:\n- mnist", "Dataset shapes not found."),
    ("\n", "RuntimeError")])
def test_failure_inside_tfds_gives_one_line(tmp_path, fake_tfds, text, shown):
    def builder(name):
        raise RuntimeError(text)

    fake_tfds.builder = builder
    assert shown in one_line_error(tmp_path / "shapes")


def test_tfds_builds_the_same_mnist_offline(mnist, tmp_path, monkeypatch):
    """The bundled files are those that tfds would download, so it needs no network; a minute."""
    monkeypatch.undo()                          # the real TensorFlow, where there is one
    pytest.importorskip("tensorflow", reason="TensorFlow is optional: requirements-tfds.txt")
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder("mnist", data_dir=tmp_path / "tfds")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=MNIST))
    data.fetch("built", tmp_path / "built", builder)
    for split, bundled in zip(splits_of(data.load(tmp_path / "built")), splits_of(mnist)):
        # tfds shuffles: sort both by pixels and label.
        rows, wanted = (sorted(map(bytes, np.column_stack([s.images, s.labels])))
                        for s in (split, bundled))
        assert rows == wanted


ROWS = {                        # of two features: the text of a file, LABEL, GROUP
    "nothing beside": ("a,b\n1,2\n3,4\n", "", ""),
    "a label last": ("a,b,class\n1,2,x\n3,4,y\n", "", ""),
    "a label first, by name": ("kind,a,b\n7,1,2\n8,3,4\n", "kind", ""),
    "a label first, by number": ("7,1,2\n8,3,4\n", "1", ""),
    "a recording, no label": ("a,who,b\n1,5,2\n3,6,4\n", "kind", "who"),
    "a label, no recording": ("kind,a,b\n7,1,2\n8,3,4\n", "kind", "who"),
    "both": ("who,a,kind,b\n5,1,7,2\n6,3,8,4\n", "kind", "who"),
    "both, by number": ("5,1,7,2\n6,3,8,4\n", "3", "1"),
}


@pytest.mark.parametrize("text, label, group", ROWS.values(), ids=ROWS)
def test_rows_to_answer_leave_out_what_training_left_out(tmp_path, text, label, group):
    """A numeric label in its place would shift every feature."""
    (tmp_path / "new.csv").write_text(text)
    lines, x = tables.read_features(tmp_path / "new.csv", 2, label, group)
    np.testing.assert_array_equal(x, [[1, 2], [3, 4]])
    assert len(lines) == 2


@pytest.mark.parametrize("text, label, group", [
    ("5,1,2\n6,3,4\n", "", "1"),              # the label, or the recording?
    ("a,kind\n1,7\n", "kind", ""), ("a,Class\n1,7\n", "", ""),       # a feature is missing
    ("a,b,c\n1,2,7\n", "kind", ""), ("a,b,c,d\n1,2,3,4\n", "", "")])
def test_rows_that_may_be_read_in_two_ways_are_refused(tmp_path, text, label, group):
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(InputError, match="new.csv"):
        tables.read_features(tmp_path / "new.csv", 2, label, group)


def test_recordings_that_decide_the_validation_split_are_of_the_identity(rng):
    """Of data with a test split of their own: nothing else tells one choice from the other."""
    x, y = rng.integers(0, 256, (60, 4, 4, 1), dtype=np.uint8), np.arange(60) % 2
    who = np.repeat([f"p{i}" for i in range(12)], 5)

    def sha256(groups, test_x=x):
        return data.from_raw("some", raw.Raw(x, y, test_x, y, (4, 4, 1), ("a", "b"), groups,
                                             "")).sha256

    assert len({sha256(None), sha256(who), sha256(np.roll(who, 1))}) == 3
    renamed = np.array([f"q{name}" for name in who])
    assert sha256(who) == sha256(renamed)
