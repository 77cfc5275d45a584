"""Readers of pictures, arrays and tables: what they take, and one line for all that they don't."""
import csv
import os
import re
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

import data
from conftest import write_folder
from formats import arrays, columns, pictures, raw, splits, tables
from machine.files import InputError

LIMIT = 2**24                   # bytes of memory for a refusal


def error_of(read, *arguments, **keywords):
    """The one line of an InputError, which took little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            read(*arguments, **keywords)
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1_000
    return str(caught.value)


def assert_same(one, other):
    """Whether two Raws hold the same, but for the note."""
    for a, b in zip(one[:-1], other[:-1], strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, strict=True)
        else:
            assert a == b


# SHAPE

@pytest.mark.parametrize("text, shape", [
    ("", None), (" ", None), ("28x28", (28, 28)), (" 28x28x3 ", (28, 28, 3)), ("100x6", (100, 6)),
    ("1x100x6", (1, 100, 6))])
def test_shape_is_two_or_three_numbers(text, shape):
    assert raw.parse_shape(text) == shape


@pytest.mark.parametrize("text", ["28", "28x", "0x28", "28x28x3x1", "28X28", "-1x5", "2000x2000",
                                  "9999999x9999999", "1.5x2", "a", "٣x٣", "28 x 28"])
def test_other_shapes_are_refused(text):
    assert "SHAPE" in error_of(raw.parse_shape, text)


# Pictures

def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)


@pytest.fixture
def album(rng, tmp_path):
    """(folder, train [12, 4, 5], test [4, 4, 5]) of two classes of gray pictures, cat and dog."""
    train, test = (rng.integers(0, 256, (n, 4, 5), dtype=np.uint8) for n in (12, 4))
    for split, images in (("train", train), ("test", test)):
        half = len(images) // 2
        for i, image in enumerate(images):
            name = "cat" if i < half else "dog"
            save(tmp_path / "album" / split / name / f"{i:02}.png", image)
    return tmp_path / "album", train, test


def test_folders_of_pictures_are_classes(album):
    folder, train, test = album
    assert pictures.matches(folder)
    found = pictures.read(folder)
    np.testing.assert_array_equal(found.train_x, train[..., None], strict=True)
    np.testing.assert_array_equal(found.test_x, test[..., None], strict=True)
    assert found.train_y.tolist() == [0] * 6 + [1] * 6 and found.test_y.tolist() == [0, 0, 1, 1]
    assert found.shape == (4, 5, 1) and found.classes == ("cat", "dog") and found.groups is None


@pytest.mark.parametrize("inner", ["train", "."])
def test_test_folder_may_be_missing(album, inner):
    folder, train, _ = album
    (folder / "test").rename(folder.parent / "unused")
    found = pictures.read(folder / inner)
    np.testing.assert_array_equal(found.train_x, train[..., None])
    assert found.test_x is found.test_y is None


def test_numbers_as_class_names_are_in_their_order(tmp_path, rng):
    for name in ("10", "9", "-1"):
        save(tmp_path / name / "a.png", rng.integers(0, 256, (3, 3)))
    assert pictures.read(tmp_path).classes == ("-1", "9", "10")


def test_colour_stays_colour(album, rng):
    folder, train, _ = album
    colour = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    save(folder / "train" / "cat" / "00.png", colour)
    found = pictures.read(folder)
    assert found.shape == (4, 5, 3)
    np.testing.assert_array_equal(found.train_x[0], colour)
    np.testing.assert_array_equal(found.train_x[1], np.repeat(train[1][..., None], 3, 2))


def test_gray_saved_as_colour_is_gray(album):
    folder, train, _ = album
    for i in range(12):
        path = folder / "train" / ("cat" if i < 6 else "dog") / f"{i:02}.png"
        save(path, np.repeat(train[i][..., None], 3, 2))
    found = pictures.read(folder)
    np.testing.assert_array_equal(found.train_x, train[..., None])
    assert pictures.read(folder, (4, 5, 3)).shape == (4, 5, 3)


@pytest.mark.parametrize("shape, wanted", [((8, 6), (8, 6, 1)), ((8, 6, 3), (8, 6, 3)),
                                           ((2, 2, 1), (2, 2, 1))])
def test_pictures_are_fitted_to_the_shape(album, shape, wanted):
    folder, *_ = album
    save(folder / "train" / "cat" / "00.png", np.full((9, 50), 77))    # of another size
    found = pictures.read(folder, shape)
    assert found.shape == wanted and (found.train_x[0] == 77).all()


def test_a_size_that_is_the_shape_is_left_as_it_is(album):
    folder, train, _ = album
    np.testing.assert_array_equal(pictures.read(folder, (4, 5)).train_x, train[..., None])


@pytest.mark.parametrize("mode, make", [
    ("1", lambda a: Image.fromarray(a > 127)), ("P", lambda a: Image.fromarray(a).convert("P")),
    ("I;16", lambda a: Image.fromarray(a.astype(np.uint16) * 257)),
    ("LA", lambda a: Image.fromarray(np.stack([a, np.full_like(a, 255)], -1), "LA")),
    ("RGBA", lambda a: Image.fromarray(a).convert("RGBA"))])
def test_every_mode_gives_the_same_bytes(tmp_path, rng, mode, make):
    array = rng.integers(0, 2, (6, 7), dtype=np.uint8) * (255 if mode == "1" else 200)
    image = make(array)
    assert image.mode == mode
    image.save(tmp_path / "a.png")
    found = pictures.read_picture(tmp_path / "a.png", (6, 7, 1))
    np.testing.assert_array_equal(found[..., 0], array)


def test_transparency_is_white(tmp_path):
    save(tmp_path / "a.png", np.dstack([np.zeros((2, 2, 3)), [[255, 0], [255, 255]]]))
    assert pictures.read_picture(tmp_path / "a.png")[..., 0].tolist() == [[0, 255], [0, 0]]


def test_pictures_are_upright_as_exif_says(tmp_path, rng):
    array = rng.integers(0, 256, (4, 5), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6                               # the camera was turned: 90 degrees clockwise
    save(tmp_path / "a.png", array, exif=exif)
    np.testing.assert_array_equal(pictures.read_picture(tmp_path / "a.png")[..., 0],
                                  np.rot90(array, -1))


def test_hidden_files_are_skipped(album):
    folder, train, _ = album
    for place in (folder, folder / "train", folder / "train" / "cat"):
        (place / ".DS_Store").write_bytes(b"no picture")
        (place / ".hidden").mkdir()
        (place / "__MACOSX").mkdir()
        (place / "Thumbs.db").write_bytes(b"")
    (folder / "README.txt").write_text("about")
    assert len(pictures.read(folder).train_y) == 12


def test_recordings_in_a_class_are_groups(tmp_path, rng):
    for name in ("a/r1/0.png", "a/r2/0.png", "a/r2/1.png", "b/r1/0.png"):
        save(tmp_path / name, rng.integers(0, 256, (3, 3)))
    found = pictures.read(tmp_path, group="folder")
    assert found.groups.tolist() == ["r1", "r2", "r2", "r1"]
    assert found.train_y.tolist() == [0, 0, 0, 1]
    assert "GROUP" in error_of(pictures.read, tmp_path)
    save(tmp_path / "a" / "2.png", np.zeros((3, 3)))
    assert "2.png" in error_of(pictures.read, tmp_path, group="folder")


def png_claiming(width, height):
    """A small PNG file that claims a size."""
    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check
    head = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(bytes(1_000))) + chunk(b"IEND", b""))


def spoil_picture(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def link(name, target):
    def make(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
    return make


def many_classes(folder):
    for i in range(257):
        save(folder / "train" / f"c{i}" / "0.png", np.zeros((4, 5)))


def only_cats(folder):
    (folder / "train" / "dog").rename(folder.parent / "dog")
    (folder / "test" / "dog").rename(folder.parent / "dogs")


def empty_class(folder):
    (folder / "train" / "bird").mkdir()


BAD_ALBUMS = {
    "text": (spoil_picture("train/cat/03.png", b"no picture"), "03.png is not a readable image"),
    "cut": (lambda f: (f / "train/cat/03.png").write_bytes(
        (f / "train/cat/03.png").read_bytes()[:-30]), "03.png is not a readable image"),
    "empty file": (spoil_picture("train/dog/x.png", b""), "x.png is not a readable image"),
    "bomb": (spoil_picture("train/cat/00.png", png_claiming(30_000, 30_000)), "00.png is not a"),
    "too large": (spoil_picture("train/cat/00.png", png_claiming(6_000, 5_000)),
                  "00.png has more than"),
    "cut large": (spoil_picture("train/cat/00.png", png_claiming(5_000, 3_999)), "not a readable"),
    "another size": (lambda f: save(f / "train/dog/07.png", np.zeros((4, 6))),
                     "07.png is 4x6 pixels, .*00.png 4x5; SHAPE = 4x5 fits"),
    "test of another size": (lambda f: save(f / "test/dog/02.png", np.zeros((5, 5))),
                             "02.png is 5x5"),
    "floats": (lambda f: Image.fromarray(np.zeros((4, 5), np.float32)).save(
        f / "train/cat/00.png", format="TIFF"), "00.png has numbers of 32 bits"),
    "note": (spoil_picture("train/cat/notes.txt", b"about cats"), "notes.txt is not a readable"),
    "picture beside the classes": (lambda f: save(f / "train/x.png", np.zeros((4, 5))),
                                   "x.png lies beside"),
    "folder inside a class": (lambda f: (f / "train/cat/more").mkdir(), "more is a folder inside"),
    "third split": (lambda f: (f / "valid").mkdir(), "valid is neither train nor test"),
    "empty class": (empty_class, "bird has no pictures"),
    "no classes": (lambda f: [os.rename(f / "train" / c, f.parent / c) for c in ("cat", "dog")],
                   "train has no folders"),
    "one class": (only_cats, "one class only, 'cat'"),
    "class missing in train": (lambda f: save(f / "test/emu/0.png", np.zeros((4, 5))),
                               "class 'emu' has no train example"),
    "257 classes": (many_classes, "classes are the most"),
    "class of a name that tears lines": (lambda f: save(f / "train/a\nb/0.png", np.zeros((4, 5))),
                                         "class 'a"),
    "FIFO": (lambda f: os.mkfifo(f / "train/cat/fifo.png"), "fifo.png is not a regular file"),
    "device": (link("train/cat/zero.png", "/dev/zero"), "zero.png is a link out of"),
    "link to a file outside": (link("train/cat/00.png", "/etc/passwd"), "00.png is a link out of"),
    "link to a folder outside": (link("train/etc", "/etc"), "etc is a link out of"),
    "link loop": (link("train/cat/loop.png", "loop.png"), "loop.png"),
    "link up": (link("train/cat/up", "../.."), "up is a folder inside"),
    "dangling link": (link("train/cat/none.png", "none"), "can't read .*none.png"),
}


@pytest.mark.parametrize("spoil, wanted", BAD_ALBUMS.values(), ids=BAD_ALBUMS)
def test_bad_folder_of_pictures_gives_one_line(album, spoil, wanted):
    folder, *_ = album
    spoil(folder)
    assert re.search(wanted, error_of(pictures.read, folder))


def test_link_inside_the_folder_is_followed(album):
    folder, train, _ = album
    (folder / "train" / "cat" / "05.png").unlink()
    (folder / "train" / "cat" / "05.png").symlink_to("00.png")
    np.testing.assert_array_equal(pictures.read(folder).train_x[5, ..., 0], train[0])


def test_folder_may_itself_be_a_link(album):
    folder, train, _ = album
    (folder.parent / "other").symlink_to(folder)
    assert_same(pictures.read(folder.parent / "other"), pictures.read(folder))


def test_pictures_that_do_not_fit_memory_are_refused_after_the_first(album, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 900)     # 16 of 4x5 take 960 in colour
    assert "16 pictures of 4x5" in error_of(pictures.read, album[0])


@pytest.mark.parametrize("changes, wanted", [
    (dict(shape=(4, 5, 2)), "1 or 3 channels"), (dict(label="species"), "LABEL = 'species'")])
def test_switches_that_do_not_fit_pictures(album, changes, wanted):
    assert wanted in error_of(pictures.read, album[0], **changes)


@pytest.mark.parametrize("make", [lambda p: p / "none", lambda p: p / ("x" * 300),
                                  lambda p: f"{p}/a\0b", lambda p: "/dev/null"])
def test_paths_that_cannot_be_match_no_reader(tmp_path, make):
    assert not any(one.matches(make(tmp_path)) for one in (pictures, arrays, tables))
    assert not any(one.matches(tmp_path) for one in (pictures, arrays, tables))     # it is empty


# Arrays

def keras(rng, **changes):
    """Arrays as Keras ships MNIST, smaller."""
    content = {"x_train": rng.integers(0, 256, (30, 4, 4), dtype=np.uint8),
               "y_train": np.arange(30, dtype=np.uint8) % 10,
               "x_test": rng.integers(0, 256, (20, 4, 4), dtype=np.uint8),
               "y_test": np.arange(20, dtype=np.uint8) % 10}
    content.update(changes)
    return {key: value for key, value in content.items() if value is not None}


def write_npz(folder, content, packed=True):
    path = folder / "data.npz"
    (np.savez_compressed if packed else np.savez)(path, **content)
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_keras_arrays_are_those_of_the_idx_files(rng, tmp_path, packed):
    """And the data set's hash is that of the four files."""
    content = keras(rng)
    path = write_npz(tmp_path, content, packed)
    assert arrays.matches(path) and arrays.matches(tmp_path)
    found = arrays.read(path)
    assert found.shape == (4, 4, 1) and found.classes == tuple("0123456789")
    for x, y, split in ((found.train_x, found.train_y, "train"),
                        (found.test_x, found.test_y, "test")):
        assert x.dtype == np.uint8
        np.testing.assert_array_equal(x[..., 0], content[f"x_{split}"])
        np.testing.assert_array_equal(y, content[f"y_{split}"])
    (tmp_path / "idx").mkdir()
    parts = [data.Split(content[f"x_{s}"].reshape(-1, 16), content[f"y_{s}"])
             for s in ("train", "test")]
    write_folder(tmp_path / "idx", *parts, side=4)
    assert raw.identity(*found[:4]) == data.load(tmp_path / "idx").sha256
    assert_same(found, arrays.read(tmp_path))


def test_identity_is_the_same_whichever_reader_read_it(album, tmp_path):
    folder, train, test = album
    found = pictures.read(folder)
    labels = np.array(["cat", "dog"])
    path = write_npz(tmp_path, {"x_train": train, "y_train": labels[found.train_y],
                                "x_test": test, "y_test": labels[found.test_y]})
    other = arrays.read(path)
    assert_same(found, other)
    tabled = tmp_path / "table"
    tabled.mkdir()
    for name, x, y in (("train", train, found.train_y), ("test", test, found.test_y)):
        write_csv(tabled / f"{name}.csv", [f"p{i}" for i in range(20)] + ["label"],
                  [[*image.reshape(-1), labels[c]] for image, c in zip(x, y)])
    third = tables.read(tabled, (4, 5))
    assert_same(found, third)
    assert raw.identity(*found[:4]) == raw.identity(*other[:4]) == raw.identity(*third[:4])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_identity_changes_with_any_number_label_or_shape(rng, dtype):
    x = rng.integers(0, 256, (6, 2, 3, 1)).astype(dtype)
    y = np.arange(6) % 3
    seen = {raw.identity(x, y, x, y), raw.identity(x.reshape(6, 3, 2, 1), y, x, y),
            raw.identity(x.reshape(6, 6), y, x, y)}
    for pick in range(4):
        parts = [x.copy(), y.copy(), x.copy(), y.copy()]
        parts[pick].flat[-1] += 1
        seen.add(raw.identity(*parts))
    assert len(seen) == 7
    large = np.tile(x, (3_000, 100, 1, 1))[::2]         # hashed in blocks, not contiguous
    again = raw.identity(large.copy(), y, x, y)
    assert raw.identity(large, y, x, y) == again


@pytest.mark.parametrize("y, classes", [
    (np.array(["b", "a"] * 3), ("a", "b")), (np.array([b"b", b"a"] * 3), ("a", "b")),
    (np.array([2, 1] * 3), ("1", "2")), (np.array([[2], [10]] * 3), ("2", "10")),
    (np.array([2.0, 1.0] * 3), ("1", "2")), (np.array([True, False] * 3), ("0", "1")),
    (np.array([-5, 300] * 3), ("-5", "300")), (np.array(["é ", "ü"] * 3), ("é", "ü"))])
def test_labels_may_be_numbers_or_text(tmp_path, rng, y, classes):
    found = arrays.read(write_npz(tmp_path, {"x": rng.normal(size=(6, 4)), "y": y}))
    assert found.classes == classes and found.test_x is None
    texts = [str(v.decode() if isinstance(v, bytes) else v).strip() for v in y.reshape(-1)]
    names = np.array(found.classes)[found.train_y].tolist()
    if y.dtype.kind not in "fb":
        assert names == texts
    else:
        assert [float(name) for name in names] == y.tolist()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8", "i1", "i8", "?", ">u2"])
def test_numbers_of_any_type_become_float32(tmp_path, rng, dtype):
    x = (rng.normal(size=(6, 4)) * 50).astype(dtype)
    found = arrays.read(write_npz(tmp_path, {"x": x, "y": [0, 1] * 3}))
    np.testing.assert_array_equal(found.train_x, x.astype(np.float32), strict=True)
    assert found.shape == (4,)


def test_fortran_order_and_capital_keys_are_read(tmp_path, rng):
    x = np.asfortranarray(rng.normal(size=(6, 4, 2)).astype(np.float32))
    found = arrays.read(write_npz(tmp_path, {"X": x, "Y": [0, 1] * 3}))
    np.testing.assert_array_equal(found.train_x, x.reshape(6, 1, 4, 2))


@pytest.mark.parametrize("x, shape, wanted", [
    (lambda r: r.normal(size=(6, 10, 3)), None, (1, 10, 3)),                # a window T x C
    (lambda r: r.normal(size=(6, 30)), "10x3", (1, 10, 3)),
    (lambda r: r.normal(size=(6, 30)), "1x10x3", (1, 10, 3)),
    (lambda r: r.normal(size=(6, 30)), "5x6x1", (5, 6, 1)),
    (lambda r: r.normal(size=(6, 30)), None, (30,)),
    (lambda r: r.integers(0, 256, (6, 30)).astype(np.uint8), None, (30,)),
    (lambda r: r.integers(0, 256, (6, 30)), "5x6", (5, 6, 1)),              # whole: a picture
    (lambda r: r.integers(0, 256, (6, 5, 6)), "1x5x6", (1, 5, 6)),
    (lambda r: r.random((6, 5, 6)), None, (5, 6, 1)),                       # 0..1: a picture
    (lambda r: r.random((6, 5, 6, 3)), None, (5, 6, 3))])
def test_shape_of_an_example(tmp_path, rng, x, shape, wanted):
    x = x(rng)
    path = write_npz(tmp_path, {"x": x, "y": [0, 1] * 3})
    found = arrays.read(path, raw.parse_shape(shape or ""))
    assert found.shape == wanted and found.train_x.shape == (6, *wanted)
    assert raw.show_shape(wanted) in found.note
    is_bytes = x.dtype == np.uint8 or (len(wanted) == 3 and wanted[0] > 1 and x.min() >= 0)
    assert found.train_x.dtype == (np.uint8 if is_bytes else np.float32)
    if not is_bytes:                            # C fastest
        np.testing.assert_array_equal(found.train_x.reshape(6, -1), np.float32(x).reshape(6, -1))


@pytest.mark.parametrize("most, scale", [(1, 255), (16, 15.9375), (255, 1)])
def test_pictures_of_numbers_become_bytes(tmp_path, rng, most, scale):
    x = rng.integers(0, most + 1, (6, 8, 8)).astype(np.float64)
    x[0, 0, 0] = most
    found = arrays.read(write_npz(tmp_path, {"x": x, "y": [0, 1] * 3}), (8, 8, 1))
    np.testing.assert_array_equal(found.train_x[..., 0], np.rint(x * scale).astype(np.uint8),
                                  strict=True)


def test_key_of_recordings_is_groups(tmp_path, rng):
    groups = np.repeat(np.arange(300), 2)       # more than there may be classes
    path = write_npz(tmp_path, {"x": rng.normal(size=(600, 4)), "y": [0, 1] * 300,
                                "Person": groups})
    assert arrays.read(path, group="person").groups.tolist() == list(map(str, groups))
    assert arrays.read(path).groups is None
    assert "'who'" in error_of(arrays.read, path, group="who")


def with_nan(rng):
    x = rng.normal(size=(30, 4, 4))
    x[3, 1, 2] = np.nan
    return x


BAD_ARRAYS = {
    "pickled labels": (dict(y_train=np.array(["a", 3] * 15, object)), "holds a pickle"),
    "pickled examples": (dict(x_train=np.array([[1], [2, 3]], object)), "holds a pickle"),
    "no labels": (dict(y_train=None), "no key 'y_train'"),
    "no test labels": (dict(y_test=None), "no key 'y_test'"),
    "no examples' key": (dict(x_train=None), "no key 'x'"),
    "one-hot": (dict(y_train=np.eye(10)[np.arange(30) % 10]), r"y_train.argmax\(1\)"),
    "fewer labels": (dict(y_train=np.arange(29) % 10), "30 examples but 29 labels"),
    "fractions": (dict(y_train=np.linspace(0, 1, 30)), r"y_train\[1\] is 0.03"),
    "labels of nan": (dict(y_train=np.full(30, np.nan)), r"y_train\[0\] is nan"),
    "complex": (dict(x_train=np.zeros((30, 4, 4), complex)), "complex128"),
    "dates": (dict(y_train=np.zeros(30, "M8[s]")), "datetime64"),
    "long double": (dict(x_train=np.zeros((30, 4), np.longdouble)), "float128"),
    "one axis": (dict(x_train=np.zeros(30, np.uint8)), "has the shape"),
    "a number": (dict(x_train=np.uint8(3)), "has the shape"),
    "examples of nothing": (dict(x_train=np.zeros((30, 0), np.uint8)), "has the shape"),
    "no train examples": (dict(x_train=np.zeros((0, 4, 4), np.uint8), y_train=np.zeros(0, int)),
                          "x_train has no examples"),
    "no test examples": (dict(x_test=np.zeros((0, 4, 4), np.uint8), y_test=np.zeros(0, int)),
                         "x_test has no examples"),
    "five axes": (dict(x_train=np.zeros((30, 1, 2, 2, 4), np.uint8),
                       x_test=np.zeros((20, 1, 2, 2, 4), np.uint8)), "1x2x2x4"),
    "unequal sizes": (dict(x_test=np.zeros((20, 4, 5), np.uint8)), "make them agree"),
    "bytes and floats": (dict(x_test=np.zeros((20, 4, 4), np.float32)), "make them agree"),
    "one class": (dict(y_train=np.zeros(30, int), y_test=np.zeros(20, int)), "one class only, '0'"),
    "class missing in train": (dict(y_test=np.arange(20)), "class '10' has no train example"),
    "257 classes": (dict(x_train=np.zeros((257, 4, 4), np.uint8), y_train=np.arange(257)),
                    "257 different labels"),
    "257 classes in both": (dict(x_train=np.zeros((250, 4, 4), np.uint8), y_train=np.arange(250),
                                 y_test=np.arange(240, 260)), "260 different labels"),
    "label of two lines": (dict(y_train=np.array(["a\nb", "c"] * 15)), "printable"),
    "empty label": (dict(y_train=np.array(["", "c"] * 15)), "printable"),
    "long label": (dict(y_train=np.array(["a" * 101, "c"] * 15)), "1 to 100"),
}


@pytest.mark.parametrize("changes, wanted", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays_give_one_line(rng, tmp_path, changes, wanted):
    path = write_npz(tmp_path, keras(rng, **changes))
    message = error_of(arrays.read, path)
    assert re.search(wanted, message) and str(path) in message


@pytest.mark.parametrize("value, wanted", [(np.nan, "is nan"), (np.inf, "is inf"),
                                           (1e300, "is 1e.300")])
def test_number_that_is_none_is_named(rng, tmp_path, value, wanted):
    x = rng.normal(size=(30, 4, 4))
    x[3, 1, 2] = value
    message = error_of(arrays.read, write_npz(tmp_path, {"x": x, "y": np.arange(30) % 3}))
    assert re.search(rf"x\[3\]\[1\]\[2\] {wanted}", message)


@pytest.mark.parametrize("shape, wanted", [((4, 5), "SHAPE = 4x5 is 20 numbers"),
                                           ((2, 8), "an example has 4x4"), ((2, 2, 4), "4x4")])
def test_shape_that_does_not_fit_the_arrays(rng, tmp_path, shape, wanted):
    """Nor does one of another order of axes: it would mix up the numbers."""
    assert wanted in error_of(arrays.read, write_npz(tmp_path, keras(rng)), shape)


def npy(shape, dtype, content, order="False"):
    head = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}"
    head = head.ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head.encode() + content


def zipped(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


GOOD_Y = npy((4,), "|u1", bytes([0, 1, 0, 1]))
BAD_FILES = {
    "empty": b"", "text": b"<html>", "cut": None,
    "claims a terabyte": [("x.npy", npy((4, 2**38), "|u1", b"")), ("y.npy", GOOD_Y)],
    "claims nothing, much": [("x.npy", npy((2**60, 4), "|V0", b"")), ("y.npy", GOOD_Y)],
    "claims less": [("x.npy", npy((4, 2), "|u1", bytes(9))), ("y.npy", GOOD_Y)],
    "negative": [("x.npy", npy((-4, -2), "|u1", bytes(8))), ("y.npy", GOOD_Y)],
    "no npy": [("x.npy", b"\x93NUMPX"), ("y.npy", GOOD_Y)],
    "code for a header": [("x.npy", npy((4, 2), "|u1", bytes(8), "__import__('os')")),
                          ("y.npy", GOOD_Y)],
    "key twice": [("x.npy", npy((4, 2), "|u1", bytes(8))), ("X.npy", b""), ("y.npy", GOOD_Y)],
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_damaged_npz_gives_one_line(rng, tmp_path, content):
    path = tmp_path / "data.npz"
    if isinstance(content, list):
        zipped(path, content)
    else:
        whole = write_npz(tmp_path, keras(rng)).read_bytes()
        path.write_bytes(whole[:-200] if content is None else content)
    assert str(path) in error_of(arrays.read, path)


@pytest.mark.slow
def test_zip_bomb_takes_no_memory(tmp_path):
    content = npy((2**27, 1), "|u1", bytes(2**27))          # 134 MB of zeros in 130 kB
    path = zipped(tmp_path / "data.npz", [("x.npy", content), ("y.npy", GOOD_Y)],
                  compression=zipfile.ZIP_DEFLATED)
    assert "claims" in error_of(arrays.read, path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("name, read", [("a.npz", arrays.read), ("a.csv", tables.read)])
def test_only_regular_files_are_read(tmp_path, make, name, read):
    make(tmp_path / name)
    if (tmp_path / name).is_dir():
        assert not arrays.matches(tmp_path / name) and not tables.matches(tmp_path / name)
    else:
        assert "not a regular file" in error_of(read, tmp_path / name)


def test_label_switch_is_of_tables(rng, tmp_path):
    assert "LABEL" in error_of(arrays.read, write_npz(tmp_path, keras(rng)), label="y")


# Tables

def write_csv(path, header, rows, **options):
    with open(path, "w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.writer(file, **options)
        writer.writerows(([header] if header else []) + rows)
    return path


X = np.float32(np.random.default_rng(5).normal(size=(30, 3)).round(3))
Y = [["setosa", "virginica", "versi color"][i % 3] for i in range(30)]
ROWS = [[*map(str, x), y] for x, y in zip(X, Y)]
NAMES = ["a", "b c", "d", "species"]


def assert_is_the_table(found, x=X, y=Y):
    np.testing.assert_array_equal(found.train_x, x, strict=True)
    assert found.classes == tuple(sorted(set(y))) and found.shape == (3,)
    assert [found.classes[c] for c in found.train_y] == y
    assert found.test_x is found.test_y is None


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", [NAMES, None])
@pytest.mark.parametrize("options", [
    {}, {"encoding": "utf-8-sig"}, {"quoting": csv.QUOTE_ALL}, {"lineterminator": "\n"},
    {"lineterminator": "\r"}, {"encoding": "utf-8-sig", "quoting": csv.QUOTE_ALL}], ids=str)
def test_dialects_agree(tmp_path, delimiter, header, options):
    path = write_csv(tmp_path / "iris.csv", header, ROWS, delimiter=delimiter, **options)
    assert tables.matches(path) and tables.matches(tmp_path)
    assert_is_the_table(tables.read(path))
    assert_same(tables.read(tmp_path), tables.read(path))


@pytest.mark.parametrize("end", ["", "\n\n", "\r\n\r\n", "\n  \n"])
def test_empty_lines_are_skipped(tmp_path, end):
    path = write_csv(tmp_path / "iris.csv", NAMES, ROWS)
    text = path.read_bytes().decode()
    path.write_bytes(("\r\n" + text.rstrip("\r\n") + end).encode())
    assert_is_the_table(tables.read(path))


def test_spaces_around_cells_do_not_matter(tmp_path):
    text = "\n".join(" , ".join([f"  {cell}" for cell in row]) for row in [NAMES, *ROWS])
    (tmp_path / "iris.csv").write_text(text)
    assert_is_the_table(tables.read(tmp_path))


def test_quotes_hold_delimiters_and_lines(tmp_path):
    rows = [[*row[:3], row[3] + ',"x"'] for row in ROWS]
    names = ["a\nunit", "b,c", 'd"', "species"]
    found = tables.read(write_csv(tmp_path / "iris.csv", names, rows))
    assert_is_the_table(found, y=[y + ',"x"' for y in Y])


@pytest.mark.parametrize("name", ["label", "Class", "TARGET", "species", "y"])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_label_is_found_by_its_name(tmp_path, name, place):
    rows = [[*row[:3][:place], row[3], *row[:3][place:]] for row in ROWS]
    names = ["a", "b", "d"]
    names.insert(place, name)
    assert_is_the_table(tables.read(write_csv(tmp_path / "t.csv", names, rows)))


def test_other_label_is_the_last_column_or_as_said(tmp_path):
    names = ["a", "b", "d", "variety"]
    path = write_csv(tmp_path / "t.csv", names, ROWS)
    assert_is_the_table(tables.read(path))
    assert "'variety'" in tables.read(path).note
    assert_is_the_table(tables.read(path, label="Variety"))
    rows = [row[-1:] + row[:3] for row in ROWS]
    path = write_csv(tmp_path / "t.csv", ["kind", "a", "b", "d"], rows)
    assert_is_the_table(tables.read(path, label="kind"))
    path = write_csv(tmp_path / "t.csv", None, rows)
    assert_is_the_table(tables.read(path, label="1"))


def test_axis_called_y_is_no_label(tmp_path):
    path = write_csv(tmp_path / "t.csv", ["x", "y", "z", "activity"], ROWS)
    assert_is_the_table(tables.read(path))


@pytest.mark.parametrize("names, header", [
    (["0", "1", "2", "target"], True), (["0", "1", "2", "3"], True),
    (["a1", "b", "7", "x"], True), (["1", "2", "4", "3"], False), (["nan", "2", "4", "3"], None),
    (["", "2", "4", "3"], None), (["0.5", "1", "2", "setosa"], False)])
def test_header_is_told_from_numbers(names, header):
    """A missing value in the first row is no name: the row is read as an example, and refused."""
    second = ["1.5", "2.5", "3.5", "1"]
    assert columns._is_header(names, second, ("", "")) == bool(header)


def test_train_and_test_tables(tmp_path):
    write_csv(tmp_path / "train.csv", NAMES, ROWS[:20])
    write_csv(tmp_path / "test.csv", NAMES, ROWS[20:], delimiter=";")
    write_csv(tmp_path / "other.csv", NAMES, [])
    found = tables.read(tmp_path)
    np.testing.assert_array_equal(found.train_x, X[:20])
    np.testing.assert_array_equal(found.test_x, X[20:])
    assert [found.classes[c] for c in found.test_y] == Y[20:]
    (tmp_path / "test.csv").unlink()
    assert tables.read(tmp_path).test_x is None


def test_numbers_as_labels_are_whole(tmp_path):
    rows = [[*row[:3], label] for row, label in zip(ROWS, ["10", "2.0", "-1", "+2", "010."] * 6)]
    found = tables.read(write_csv(tmp_path / "t.csv", NAMES, rows))
    assert found.classes == ("-1", "2", "10")
    assert found.train_y.tolist() == [2, 1, 0, 1, 2] * 6


@pytest.mark.parametrize("header", [True, False])
def test_column_of_recordings_is_groups(tmp_path, header):
    groups = [f"walk {i // 4}" for i in range(30)]
    rows = [[row[0], group, *row[1:]] for row, group in zip(ROWS, groups)]
    names = ["a", "subject_id", "b", "d", "species"]
    path = write_csv(tmp_path / "t.csv", names if header else None, rows)
    found = tables.read(path, group="subject_id" if header else "2")
    assert_is_the_table(found)
    assert found.groups.tolist() == groups
    last = write_csv(tmp_path / "t.csv", ["a", "b", "d", "kind", "who"],
                     [[*row, group] for row, group in zip(ROWS, groups)])
    assert_is_the_table(tables.read(last, group="who"))
    assert "both label and GROUP" in error_of(tables.read, last, group="kind", label="kind")


def test_windows_in_rows(tmp_path, rng):
    x = rng.normal(size=(12, 5, 2)).round(3)
    path = write_csv(tmp_path / "t.csv", None,
                     [[*one.reshape(-1), i % 2] for i, one in enumerate(x)])
    found = tables.read(path, (5, 2))
    assert found.shape == (1, 5, 2) and found.train_x.dtype == np.float32
    np.testing.assert_array_equal(found.train_x[:, 0], np.float32(x))


def test_pixels_in_rows_are_pictures(tmp_path, rng):
    """As Kaggle ships MNIST: the label first, then the bytes."""
    x = rng.integers(0, 256, (12, 4, 4))
    path = write_csv(tmp_path / "train.csv", ["label", *(f"pixel{i}" for i in range(16))],
                     [[i % 3, *one.reshape(-1)] for i, one in enumerate(x)])
    found = tables.read(path, (4, 4))
    np.testing.assert_array_equal(found.train_x[..., 0], x.astype(np.uint8), strict=True)
    assert tables.read(path).train_x.dtype == np.float32       # features, unless SHAPE says more


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3,
                         max_size=3), min_size=4, max_size=9), st.sampled_from([",", ";", "\t"]))
@settings(max_examples=30)
def test_numbers_survive_the_way_through_text(tmp_path_factory, values, delimiter):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    names = ["a", "b", "d", "label"]
    write_csv(path, names, [[*row, i % 2] for i, row in enumerate(values)], delimiter=delimiter)
    np.testing.assert_array_equal(tables.read(path).train_x, np.float32(values), strict=True)


def change(row, column, cell):
    """Rows with one cell changed; row 0 is the first example, on line 2."""
    rows = [list(one) for one in ROWS]
    rows[row][column] = cell
    return rows


def add(name, cells):
    """(names, rows) with a column in front."""
    return [name, *NAMES], [[cell, *row] for cell, row in zip(cells, ROWS)]


BAD_TABLES = {
    "ragged, long": (NAMES, ROWS[:5] + [ROWS[5] + ["1"]] + ROWS[6:],
                     "line 7 has 5 columns, not the 4"),
    "ragged, short": (NAMES, ROWS[:28] + [ROWS[28][:2]], "line 30 has 2 columns, not the 4"),
    "missing": (NAMES, change(3, 1, ""), "line 5: column 'b c' is empty"),
    "missing in words": (NAMES, change(3, 1, "NA"), "line 5: column 'b c' holds 'NA'"),
    "missing in the first row": (None, change(0, 0, "?"), "line 1: column '1' holds '?'"),
    "nan": (NAMES, change(3, 2, "nan"), "line 5: column 'd' is nan"),
    "infinite": (NAMES, change(4, 0, "-inf"), "line 6: column 'a' is -inf"),
    "beyond float32": (NAMES, change(4, 0, "1e39"), "line 6: column 'a' is inf, .*beyond float32"),
    "underscore": (NAMES, change(4, 0, "1_000"), "line 6: column 'a' holds '1_000'"),
    "other digits": (NAMES, change(4, 0, "١٢"), "line 6: column 'a' holds"),
    "decimal comma": (NAMES, change(4, 0, "1,5"), "write 1.5, not 1,5"),
    "decimal commas": (NAMES, [[cell.replace(".", ",") for cell in row] for row in ROWS],
                       "'a', 'b c', 'd' hold text.* write 1.5, not 1,5"),
    "missing label": (NAMES, change(4, 3, " "), "line 6 has no label in column 'species'"),
    "nan for a label": (NAMES, change(4, 3, "NaN"), "line 6 has no label"),
    "fractions for labels": (["a", "b", "d", "e"], [row[:3] + ["0.5"] for row in ROWS],
                             "line 2: the label '0.5' in column 'e'"),
    "text": (*add("name", [f"Anna {i}" for i in range(30)]), "'name' holds text, such as 'Anna 0'"),
    "two of text": (["who", *add("name", "ABCDE" * 6)[0]],
                    [["x", *row] for row in add("name", "ABCDE" * 6)[1]],
                    "'who', 'name' hold text"),
    "time stamps": (*add("when", [f"2024-01-{i + 1:02} 10:00:00" for i in range(30)]),
                    "'when' holds time stamps"),
    "clock": (*add("when", [f"10:00:{i:02}" for i in range(30)]), "'when' holds time stamps"),
    "seconds": (*add("t", [1_700_000_000 + 500 * i for i in range(30)]), "'t' are time stamps"),
    "milliseconds": (*add("t", [1_700_000_000_000 + 2**20 * i for i in range(30)]),
                     "'t' are time stamps"),
    "time that rises": (*add("Time", [i * 0.1 for i in range(30)]), "'Time' are time stamps"),
    "date": (*add("date", [20240101] * 30), "'date' are time stamps"),
    "id": (*add("Id", [5] * 30), "'Id' number the rows"),
    "id of something": (*add("patient_id", [5] * 30), "'patient_id' number the rows"),
    "id in camel's case": (*add("PassengerId", [5] * 30), "'PassengerId' number the rows"),
    "counts up": (*add("n", range(7, 37)), "'n' number the rows"),
    "counts up without a header": (None, add("", range(30))[1], "'1' number the rows"),
    "pandas's index": (*add("", range(30)), r"column 1 has no name.*to_csv\(index=False\)"),
    "pandas's index by name": (*add("Unnamed: 0", range(30)), "'Unnamed: 0' number the rows"),
    "two labels": (["class", "b", "d", "species"], ROWS, "'class' and 'species' may both"),
    "duplicate header": (["a", "b", "a", "species"], ROWS, "two columns 'a'"),
    "wrong last column": (["kind", "b", "d", "price"], [[*row[:3], 1_000 + i] for i, row in
                                                       enumerate(ROWS)],
                          "'price', has 30 different values in 30 rows"),
    "257 classes": (NAMES, [[*row, f"c{i}"] for i, row in enumerate(X[:1].tolist() * 257)],
                    "257 different labels"),
    "one class": (NAMES, [row[:3] + ["cat"] for row in ROWS], "one class only, 'cat'"),
    "no examples": (NAMES, [], "no examples"),
    "one column": (["a"], [["1"], ["2"]], "one column"),
    "label only": (["label", "who"], [["a", "b"]] * 20, "holds text"),
    "label of two lines": (NAMES, change(4, 3, "a\nb"), "printable"),
    "long label": (NAMES, change(4, 3, "a" * 101), "1 to 100"),
}


@pytest.mark.parametrize("names, rows, wanted", BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_table_gives_one_line(tmp_path, names, rows, wanted):
    path = write_csv(tmp_path / "t.csv", names, rows)
    message = error_of(tables.read, path)
    assert re.search(wanted, message) and str(path) in message


BAD_TEXTS = {
    "empty": (b"", "no rows"), "blank": (b"\n \n", "no rows"),
    "BOM only": ("\ufeff".encode(), "no rows"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
    "Latin-1": ("a,species\n1,caf\xe9\n".encode("latin-1"), "not UTF-8"),
    "NUL": (b"a,b,species\n1,\0,x\n1,2,y\n", "holds text"),
    "open quotes": (b'a,b,species\n1,"2,x\n1,2,y\n', "close the quotes"),
    "words after quotes": (b'a,b,species\n1,"2"2,x\n', "line 2"),
    "spaces": (b"1 2 3\n4 5 6\n", "one column"),
    "giant cell": (b"a,b\n1," + b"9" * 200_000 + b"\n", "field larger"),
    "giant number": (b"a,b,c\n1," + b"9" * 100_000 + b",x\n2,1,y\n", "is inf"),
}


@pytest.mark.parametrize("content, wanted", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_bad_text_gives_one_line(tmp_path, content, wanted):
    (tmp_path / "t.csv").write_bytes(content)
    assert re.search(wanted, error_of(tables.read, tmp_path / "t.csv"))


@pytest.mark.parametrize("unit", [b"1,", b'"\n",', b'"\r",'], ids=["one line", "in quotes", "CR"])
def test_giant_row_takes_bounded_memory(tmp_path, monkeypatch, unit):
    monkeypatch.setattr(columns, "MAX_ROW", 2**14)
    (tmp_path / "t.csv").write_bytes(unit * 2**20)
    assert "a row of over" in error_of(tables.read, tmp_path / "t.csv")


def test_file_beyond_the_limit_is_refused_unread(tmp_path):
    with open(tmp_path / "t.csv", "wb") as file:
        file.truncate(tables.MAX_BYTES + 1)
    assert "larger than" in error_of(tables.read, tmp_path / "t.csv")


@pytest.mark.parametrize("names, rows, wanted", [
    (NAMES[:3], [row[:3] for row in ROWS], "'species'"),
    (["a", "d", "b c", "species"], ROWS, "in their order"), (None, ROWS, "columns of train.csv"),
    (NAMES, [], "no examples"), (NAMES, change(3, 1, ""), "line 5"),
    (NAMES, change(3, 3, "emu"), "class 'emu' has no train example")])
def test_test_table_must_be_like_train(tmp_path, names, rows, wanted):
    write_csv(tmp_path / "train.csv", NAMES, ROWS)
    write_csv(tmp_path / "test.csv", names, rows)
    assert re.search(wanted, error_of(tables.read, tmp_path))


def test_several_tables_in_a_folder_are_ambiguous(tmp_path):
    for name in ("a.csv", "b.csv"):
        write_csv(tmp_path / name, NAMES, ROWS)
    assert tables.matches(tmp_path)
    assert "train.csv and test.csv" in error_of(tables.read, tmp_path)


@pytest.mark.parametrize("changes, wanted", [
    (dict(label="kind"), "no column LABEL = 'kind'; its columns are 'a', 'b c'"),
    (dict(group="who"), "no column GROUP = 'who'"),
    (dict(shape=(2, 2)), "SHAPE = 2x2 is 4 numbers")])
def test_switches_that_do_not_fit_a_table(tmp_path, changes, wanted):
    path = write_csv(tmp_path / "t.csv", NAMES, ROWS)
    assert wanted in error_of(tables.read, path, **changes)
    path = write_csv(tmp_path / "t.csv", None, ROWS)
    if "shape" not in changes:
        assert "has no header" in error_of(tables.read, path, **changes)
        assert "1 to 4" in error_of(tables.read, path, **dict.fromkeys(changes, "5"))


@given(st.binary(max_size=200) | st.text("0123456789.,;\t\n\r\"ab-e", max_size=200).map(str.encode))
@settings(max_examples=300)
@pytest.mark.slow
def test_any_bytes_are_a_table_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content)
    try:
        found = tables.read(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(found.train_x).all() and len(found.classes) > 1


# Splits

@given(st.lists(st.integers(0, 4), min_size=4, max_size=60), st.sampled_from([0.05, 0.2, 0.5, 0.9]))
def test_every_class_is_on_both_sides(y, fraction):
    y = np.array(y)
    sizes = np.bincount(y)
    if sizes.max() < 2:
        with pytest.raises(InputError):
            splits.split(y, fraction, 0)
        return
    kept, held = splits.split(y, fraction, 0)
    assert sorted([*kept, *held]) == list(range(len(y)))
    for c in np.flatnonzero(sizes):
        assert (y[kept] == c).any()
        assert (y[held] == c).any() == (sizes[c] > 1)
        assert abs((y[held] == c).sum() - fraction * sizes[c]) <= 1 or sizes[c] < 3
    again = splits.split(y, fraction, 0)
    assert all((a == b).all() for a, b in zip((kept, held), again))


def test_split_is_of_the_size_asked_for_and_mixed(rng):
    y = rng.permutation(np.repeat(np.arange(10), 600))
    kept, held = splits.split(y, 0.1, 0)
    assert len(held) == 600 and (np.bincount(y[held]) == 60).all()
    assert not (np.diff(held) > 0).all() and len(set(y[kept[:100]])) == 10
    assert not np.array_equal(held, splits.split(y, 0.1, 1)[1])


def test_groups_are_whole_and_classes_on_both_sides(rng):
    groups = rng.integers(0, 40, 2_000)
    y = (groups % 3 + (rng.random(2_000) < 0.3)) % 3
    kept, held = splits.split(y, 0.2, 0, groups.astype(str))
    assert not set(groups[kept]) & set(groups[held])
    assert sorted([*kept, *held]) == list(range(2_000))
    share = np.bincount(y[held]) / np.bincount(y)
    assert (np.abs(share - 0.2) < 0.06).all()


def test_each_class_of_two_recordings_has_one_on_each_side():
    """Four persons who do one thing each, twice: half of each class is held out, not nothing."""
    y = np.repeat([0, 0, 1, 1, 2, 2, 3, 3], 10)
    groups = np.repeat(np.arange(8), 10)
    kept, held = splits.split(y, 0.2, 0, groups)
    assert set(y[kept]) == set(y[held]) == {0, 1, 2, 3}
    assert not set(groups[kept]) & set(groups[held])


def test_class_of_one_recording_stays_in_train():
    y, groups = np.repeat([0, 1, 0, 0], 10), np.repeat([0, 1, 2, 3], 10)
    kept, held = splits.split(y, 0.3, 0, groups)
    assert set(y[kept]) == {0, 1} and set(y[held]) == {0}
    assert "GROUP" in error_of(splits.split, y, 0.2, 0, np.zeros(40))


def test_a_group_for_each_example_takes_little_time():
    y = np.arange(20_000) % 7
    kept, held = splits.split(y, 0.2, 0, np.arange(20_000))
    assert abs(len(held) - 4_000) < 20
