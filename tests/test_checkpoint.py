"""checkpoint: round trips, the packed layout, whole files after any interruption, hostile files."""
import bz2
import io
import json
import lzma
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import old_formats
import pytest

import integer
import oracle
import plan
from conftest import ROOT
from formats import checkpoint, npz
from machine import files
from machine.files import InputError

SIZES = (7, 5, 3)               # odd, so that packed bytes end inside a byte
FACTS = checkpoint.Facts("naïve ☃", "00ff", ("a", "é", "c"), switches={
    "SEED": 3, "LEARNING_RATE": 0.1, "QAT_ENABLE": True, "LAYERS": "5"}, val_loss=0.25)
PAGE = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")


def assert_same_networks(a, b):
    assert a[1:] == b[1:] and len(a.layers) == len(b.layers)
    for layer, other in zip(a.layers, b.layers):
        for array, another in zip(layer, other):
            if array is None or another is None:
                assert array is another
            else:
                np.testing.assert_array_equal(array, another, strict=True)


@pytest.mark.parametrize("sizes", [SIZES, (1, 1), (9, 1, 2, 11)])
@pytest.mark.parametrize("bits", range(1, 9))
def test_load_returns_what_was_saved(rng, tmp_path, bits, sizes):
    path = tmp_path / "w.npz"
    network = oracle.random_network(rng, sizes, bits, 9 - bits)
    given = FACTS._replace(classes=tuple(f"class {i}" for i in range(sizes[-1])))
    size = checkpoint.save(path, network, given)
    loaded, facts = checkpoint.load(path)
    assert_same_networks(loaded, network)
    assert facts == given and size == path.stat().st_size
    assert checkpoint.digest(loaded) == checkpoint.digest(network)


# Steps of all kinds: what lies between images or features and three classes.
LINES = {"perceptron of an image": ("5", (28, 28, 1)), "linear": ("", (7,)),
         "features": ("9 8", (6,)), "pooled": ("crop20 mean2 5", (28, 28, 1)),
         "convolutions": ("conv3x4/2 max2 conv2x5 6", (12, 11, 3)),
         "colour": ("crop6 mean2 conv3x2", (8, 9, 3)), "window": ("conv5x3 max2 4", (1, 30, 2))}
EVERY_LINE = pytest.mark.parametrize("line, shape", LINES.values(), ids=LINES)


def random_floats(rng, line="5", shape=(7,), classes=3):
    steps = plan.parse(line, shape, classes)
    return integer.FloatNetwork(tuple(
        (rng.normal(0, 1, (i, o)).astype(np.float32), rng.normal(0, 1, o).astype(np.float32))
        for i, o in (step.weights for step in steps if step.has_weights)), steps)


@EVERY_LINE
def test_load_returns_the_floats_that_were_saved(rng, tmp_path, line, shape):
    network = random_floats(rng, line, shape)
    checkpoint.save(tmp_path / "w.npz", network, FACTS)
    loaded, facts = checkpoint.load(tmp_path / "w.npz")
    assert facts == FACTS and isinstance(loaded, integer.FloatNetwork)
    assert_same_networks(loaded, network)
    with pytest.raises(InputError, match="float32 weights, which have no integers"):
        checkpoint.load_quantized(tmp_path / "w.npz")


def test_same_model_gives_the_same_bytes(rng):
    """Whenever it is saved: no time of day is in the file."""
    for model in (oracle.random_network(rng, SIZES, 3), random_floats(rng)):
        content = checkpoint.encode(model, FACTS)
        assert content == checkpoint.encode(model, FACTS)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        again, facts = checkpoint.decode(content)
        assert checkpoint.encode(again, facts) == content


@EVERY_LINE
@pytest.mark.parametrize("form", ["npz", "nqat"])
def test_file_says_what_lies_between_the_data_and_the_classes(rng, tmp_path, form, line, shape):
    network = oracle.random_network(rng, plan.parse(line, shape, 3), 4, 5)
    checkpoint.save(tmp_path / "w", network, FACTS, form)
    loaded, facts = checkpoint.load(tmp_path / "w")
    assert_same_networks(loaded, network)
    assert loaded.steps == network.steps and facts.classes == FACTS.classes


@pytest.mark.parametrize("form", ["npz", "nqat"])
@pytest.mark.parametrize("shape", [(6,), (1, 20, 6)])
def test_encoding_of_features_comes_back(rng, tmp_path, form, shape):
    """Low and step of each feature, or of each channel of a window, to the bit."""
    network = oracle.random_network(rng, plan.parse("4", shape, 3), 4, 5)
    low = np.float32([0, -0.0, 1e-45, -3.4e38, 0.1, 2**24])
    exponent = np.int8([0, -100, 121, 5, -1, 7])
    facts = FACTS._replace(low=low, exponent=exponent)
    checkpoint.save(tmp_path / "w", network, facts, form)
    found = checkpoint.load(tmp_path / "w")[1]
    assert found.low.tobytes() == low.tobytes() and found.low.dtype == np.float32
    np.testing.assert_array_equal(found.exponent, exponent, strict=True)


# Files that earlier versions shipped, and what their readers made of them: the sides of the pooled
# image, sizes, bits, and the SHA-256 of the arrays, layer by layer.
OLD_FILES = {"version1.nqat": (10, (100, 50, 38, 24, 10), 3, 8),
             "format2.npz": (28, (784, 256, 128, 10), 8, 8)}


@pytest.mark.parametrize("name", OLD_FILES)
def test_files_of_earlier_formats_load_to_the_same_integers(name):
    """As an independent reader of the format of then has them."""
    side, sizes, bits, activation_bits = OLD_FILES[name]
    path = ROOT / "tests" / "data" / name
    network, facts = checkpoint.load(path)
    assert network[1:3] == (bits, activation_bits) and plan.sizes(network.steps) == sizes
    assert plan.inputs(network.steps) == 784 and sizes[0] == side**2
    assert network.steps[0].before == (28, 28, 1)
    assert facts.classes == tuple("0123456789") and facts.low is None
    if name.endswith(".nqat"):
        *_, exponent, layers = old_formats.read_nqat(path.read_bytes())
    else:
        exponent, layers = old_formats.read_npz(path)
        assert facts.switches["LAYERS"] == "256 128"
        assert facts.val_loss == pytest.approx(0.1093, 1e-3)
        assert not {"LAYER_SIZES", "INPUT"} & set(facts.switches)
    assert network.logit_exponent == exponent
    for layer, (weights, biases, shifts) in zip(network.layers, layers, strict=True):
        assert layer.w_q.tolist() == weights and layer.b_q.tolist() == biases
        assert shifts == ([] if layer.shift is None else layer.shift.tolist())


def test_file_of_format_2_without_an_input_reads_images_as_they_are(good, good_floats):
    for arrays in (good, good_floats):
        content = old_npz(arrays, SIZES)
        network, _ = checkpoint.decode(content)
        assert plan.sizes(network.steps) == SIZES and network.steps[0].before == (7,)
        assert checkpoint.decode(old_npz(arrays, SIZES, input=28))[0].steps == network.steps


def test_digest_is_of_the_arrays_alone(rng):
    network = oracle.random_network(rng, SIZES)
    first = network.layers[0]
    changed = [network._replace(layers=(first._replace(**{name: array}), *network.layers[1:]))
               for name, array in (("w_q", -first.w_q), ("b_q", first.b_q + 1),
                                   ("shift", first.shift[::-1] + np.int8(1)))]
    assert len({checkpoint.digest(one) for one in (network, *changed)}) == 4


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 35])
@pytest.mark.parametrize("bits", range(1, 8))
def test_packed_bytes_are_the_documented_bits(rng, bits, count):
    qmax = oracle.code_range(bits, True)[1]
    codes = rng.integers(-qmax, qmax + 1, count).astype(np.int8)
    codes[codes == 0] = 1 if bits == 1 else 0
    stream = bytearray(-(-count * bits // 8))
    for k, code in enumerate(codes.tolist()):
        field = int(code > 0) if bits == 1 else code % 2**bits      # two's complement
        for j in range(bits):
            stream[(k * bits + j) // 8] |= (field >> j & 1) << (k * bits + j) % 8
    packed = checkpoint.pack(codes, bits)
    assert packed.dtype == np.uint8 and packed.tobytes() == bytes(stream)
    np.testing.assert_array_equal(checkpoint.unpack(packed, bits, (count,)), codes)


def test_file_is_an_npz_without_pickle_that_numpy_reads(rng, tmp_path):
    network = oracle.random_network(rng, SIZES, 4, 3)
    checkpoint.save(tmp_path / "w.npz", network, FACTS)
    with np.load(tmp_path / "w.npz", allow_pickle=False) as file:
        assert sorted(file) == ["b0_q", "b1_q", "meta", "shift0", "w0_q", "w1_q"]
        assert json.loads(str(file["meta"])) == {
            "format": 3, "quantized": True, "layers": "5", "shape": [7], "classes": ["a", "é", "c"],
            "facts": {"dataset": FACTS.dataset, "sha256": FACTS.sha256, "val_loss": 0.25,
                      "switches": FACTS.switches},
            "weight_bits": 4, "activation_bits": 3, "logit_exponent": network.logit_exponent}
        assert file["w0_q"].nbytes == (7 * 5 * 4 + 7) // 8
        np.testing.assert_array_equal(file["shift0"], network.layers[0].shift)


@pytest.mark.parametrize("failing", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_save_leaves_the_old_file_whole(rng, tmp_path, monkeypatch, failing, error):
    path = tmp_path / "w.npz"
    checkpoint.save(path, oracle.random_network(rng, SIZES), FACTS)
    old = path.read_bytes()

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
            checkpoint.save(path, oracle.random_network(rng, SIZES, 2), FACTS)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]   # no temporary file is left


def test_content_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *arguments, name=name, real=real: (
            calls.append(name), real(*arguments))[1])
    files.write_atomically(tmp_path / "new" / "file", b"content")
    assert calls == ["fsync", "replace", "fsync"]       # the file, its name, the folder
    assert (tmp_path / "new" / "file").read_bytes() == b"content"


def one_line_error(path):
    """The message of the InputError that loading `path` must raise: one line that names it."""
    with pytest.raises(InputError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.fixture
def good(rng):
    """The arrays of a legal file, by key; meta as a dict."""
    content = checkpoint.encode(oracle.random_network(rng, SIZES), FACTS)
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    return {**arrays, "meta": json.loads(str(arrays["meta"]))}


@pytest.fixture
def good_floats(rng):
    """The same of a float32 file."""
    arrays = {f"{name}{i}": array for i, pair in enumerate(random_floats(rng).layers)
              for name, array in zip("wb", pair)}
    return {**arrays, "meta": {"format": 3, "quantized": False, "layers": "5", "shape": [7],
                               "classes": ["0", "1", "2"], "facts": {}}}


def to_npz(arrays, **more):
    """Bytes of an npz; meta becomes JSON when it is a dict."""
    arrays = {**arrays, **more}
    if isinstance(arrays.get("meta"), dict):
        arrays["meta"] = np.array(json.dumps(arrays["meta"]))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=True, **arrays)
    return buffer.getvalue()


def with_meta(arrays, **changes):
    return to_npz(arrays, meta={**arrays["meta"], **changes})


def old_npz(arrays, sizes, facts=None, **more):
    """The same as a file of format 2."""
    meta = {key: value for key, value in arrays["meta"].items()
            if key not in ("layers", "shape", "classes")}
    return to_npz(arrays, meta={**meta, "format": 2, "layer_sizes": list(sizes),
                                "facts": facts or {}, **more})


def without(arrays, key):
    return to_npz({k: v for k, v in arrays.items() if k != key})


def with_value(arrays, key, value):
    """The array of `key` with its first element replaced."""
    array = arrays[key].copy()
    array.reshape(-1)[0] = value
    return to_npz(arrays, **{key: array})


def with_member(arrays, key, content):
    """The npz with the bytes of one member replaced."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(to_npz(arrays))) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name == f"{key}.npy" else old.read(name))
    return buffer.getvalue()


def npy(shape, descr="|i1", data=b"\0"):
    """A .npy whose header claims `shape`, whatever the data."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


def recompressed(arrays, method):
    """The npz with every member compressed by another method of zip files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(to_npz(arrays))) as old, zipfile.ZipFile(buffer, "w",
                                                                              method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


def with_byte_changed(data, at):
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1:]


def claiming(arrays, key, size):
    """The npz with the unpacked size of one member changed in the directory."""
    data = to_npz(arrays)
    at = data.index(f"{key}.npy".encode(), data.index(b"PK\1\2")) - 46 + 24
    return data[:at] + struct.pack("<I", size) + data[at + 4:]


def repeated(arrays):
    """The zip with one member twice."""
    buffer = io.BytesIO(to_npz(arrays))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("w0_q.npy", archive.read("w0_q.npy"))
    return buffer.getvalue()


HOSTILE = {
    "empty": lambda good: b"",
    "truncated": lambda good: to_npz(good)[:-40],
    "first half": lambda good: to_npz(good)[:len(to_npz(good)) // 2],
    "not a zip": lambda good: b"\x89PNG\r\n" * 100,
    "bare npy": lambda good: npy((1,)),
    "pickle": lambda good: pickle.dumps({"w0_q": 1}),
    "object array": lambda good: to_npz(good, w0_q=np.array([{"a": 1}, None], object)),
    "object meta": lambda good: to_npz(good, meta=np.array({"format": 1}, object)),
    "changed byte": lambda good: with_byte_changed(to_npz(good), 80),
    "no meta": lambda good: without(good, "meta"),
    "no weights": lambda good: without(good, "w1_q"),
    "extra key": lambda good: to_npz(good, w2_q=good["w1_q"]),
    "member twice": repeated,
    "wrong dtype": lambda good: to_npz(good, w0_q=good["w0_q"].astype(np.int16)),
    "wrong byte order": lambda good: to_npz(good, b0_q=good["b0_q"].astype(">i4")),
    "wrong shape": lambda good: to_npz(good, w0_q=good["w0_q"].T.copy()),
    "wrong rank": lambda good: to_npz(good, b0_q=good["b0_q"][None]),
    "one shift for all channels": lambda good: to_npz(good, shift0=np.ones(1, np.int8)),
    "shift in the last layer": lambda good: to_npz(good, shift1=np.ones(3, np.int8)),
    "no shift": lambda good: without(good, "shift0"),
    "Fortran order": lambda good: to_npz(good, w0_q=np.asfortranarray(good["w0_q"])),
    "numeric meta": lambda good: to_npz(good, meta=np.zeros(3)),
    "meta of two texts": lambda good: to_npz(good, meta=np.array(["{}", "{}"])),
    "bad JSON": lambda good: to_npz(good, meta=np.array("{format: 1")),
    "JSON list": lambda good: to_npz(good, meta=np.array("[1]")),
    "deep JSON": lambda good: to_npz(good, meta=np.array("[" * 100_000)),
    "JSON integer of 5000 digits": lambda good: to_npz(good, meta=np.array("9" * 5_000)),
    "meta of 8 MB": lambda good: with_meta(good, facts={"dataset": "x" * 2**21}),
    "format 1": lambda good: with_meta(good, format=1),
    "format 4": lambda good: with_meta(good, format=4),
    "format text": lambda good: with_meta(good, format="3"),
    "format a list": lambda good: with_meta(good, format=[3]),
    "facts missing": lambda good: with_meta(good, facts=None),
    "facts are text": lambda good: with_meta(good, facts="none"),
    "format missing": lambda good: with_meta(good, format=None),
    "no weight_bits": lambda good: with_meta(good, weight_bits=None),
    "weight_bits 0": lambda good: with_meta(good, weight_bits=0),
    "weight_bits 9": lambda good: with_meta(good, weight_bits=9),
    "weight_bits 8.0": lambda good: with_meta(good, weight_bits=8.0),
    "weight_bits true": lambda good: with_meta(good, weight_bits=True),
    "other weight_bits": lambda good: with_meta(good, weight_bits=4),
    "activation_bits 0": lambda good: with_meta(good, activation_bits=0),
    "activation_bits 9": lambda good: with_meta(good, activation_bits=9),
    "activation_bits true": lambda good: with_meta(good, activation_bits=True),
    "logit_exponent missing": lambda good: with_meta(good, logit_exponent=None),
    "logit_exponent 0.5": lambda good: with_meta(good, logit_exponent=0.5),
    "logit_exponent 101": lambda good: with_meta(good, logit_exponent=101),
    "logit_exponent -10**30": lambda good: with_meta(good, logit_exponent=-10**30),
    "quantized missing": lambda good: with_meta(good, quantized=None),
    "said to be float": lambda good: with_meta(good, quantized=False),
    "layers missing": lambda good: with_meta(good, layers=None),
    "one layer too few": lambda good: with_meta(good, layers=""),
    "layers of another width": lambda good: with_meta(good, layers="6"),
    "layers of no word": lambda good: with_meta(good, layers="relu"),
    "layers negative": lambda good: with_meta(good, layers="-5"),
    "layers huge": lambda good: with_meta(good, layers=str(2**40)),
    "layers of a width of 0": lambda good: with_meta(good, layers="0"),
    "layers 65536": lambda good: with_meta(good, layers="65536 65536"),
    "layers a list": lambda good: with_meta(good, layers=["5"]),
    "layers of 20,000 words": lambda good: with_meta(good, layers="5 " * 20_000),
    "64 layers and the classes": lambda good: with_meta(good, layers="1 " * 64),
    "crop of features": lambda good: with_meta(good, layers="crop2 5"),
    "shape missing": lambda good: with_meta(good, shape=None),
    "shape of two axes": lambda good: with_meta(good, shape=[7, 1]),
    "shape of floats": lambda good: with_meta(good, shape=[7.0]),
    "shape of booleans": lambda good: with_meta(good, shape=[True, True, True]),
    "shape 0": lambda good: with_meta(good, shape=[0]),
    "shape negative": lambda good: with_meta(good, shape=[-7, -1, 1]),
    "shape huge": lambda good: with_meta(good, shape=[2**40, 2**40, 2**40]),
    "shape text": lambda good: with_meta(good, shape="7"),
    "shape of other inputs": lambda good: with_meta(good, shape=[8]),
    "classes missing": lambda good: with_meta(good, classes=None),
    "no classes": lambda good: with_meta(good, classes=[]),
    "other count of classes": lambda good: with_meta(good, classes=["a", "b"]),
    "classes that are numbers": lambda good: with_meta(good, classes=[0, 1, 2]),
    "class with a long name": lambda good: with_meta(good, classes=["a", "b", "c" * 201]),
    "classes a dict": lambda good: with_meta(good, classes={"a": 0, "b": 1, "c": 2}),
    "features without an encoding": lambda good: with_meta(good, features=7),
    "features of another count": lambda good: to_npz(
        good, meta={**good["meta"], "features": 6}, low=np.zeros(6, np.float32),
        exponent=np.zeros(6, np.int8)),
    "features true": lambda good: with_meta(good, features=True),
    "encoding without features": lambda good: to_npz(
        good, low=np.zeros(7, np.float32), exponent=np.zeros(7, np.int8)),
    "encoding that is not finite": lambda good: to_npz(
        good, meta={**good["meta"], "features": 7}, low=np.full(7, np.nan, np.float32),
        exponent=np.zeros(7, np.int8)),
    "encoding too fine": lambda good: to_npz(
        good, meta={**good["meta"], "features": 7}, low=np.zeros(7, np.float32),
        exponent=np.full(7, -101, np.int8)),
    "encoding too coarse": lambda good: to_npz(
        good, meta={**good["meta"], "features": 7}, low=np.zeros(7, np.float32),
        exponent=np.full(7, 122, np.int8)),
    "input null": lambda good: old_npz(good, SIZES, input=None),
    "input 28.0": lambda good: old_npz(good, SIZES, input=28.0),
    "input true": lambda good: old_npz(good, SIZES, input=True),
    "input text": lambda good: old_npz(good, SIZES, input="28"),
    "input a list": lambda good: old_npz(good, SIZES, input=[28]),
    "input 13": lambda good: old_npz(good, SIZES, input=13),
    "input -28": lambda good: old_npz(good, SIZES, input=-28),
    "input of other images": lambda good: old_npz(good, SIZES, input=14),
    "no layers": lambda good: old_npz(good, []),
    "layer_sizes of one layer too few": lambda good: old_npz(good, [7, 5]),
    "layer_sizes negative": lambda good: old_npz(good, [7, -5, 3]),
    "inputs negative": lambda good: old_npz(good, [-7, 5, 3]),
    "layer_sizes huge": lambda good: old_npz(good, [7, 2**40, 3]),
    "layer_sizes 65536": lambda good: old_npz(good, [65_536, 65_536, 65_536]),
    "layer_sizes text": lambda good: old_npz(good, "753"),
    "layer_sizes null": lambda good: old_npz(good, SIZES, layer_sizes=None),
    "layer_sizes of floats": lambda good: old_npz(good, [7.0, 5.0, 3.0]),
    "layer_sizes of booleans": lambda good: old_npz(good, [True, True]),
    "65 layers": lambda good: old_npz(good, [1] * 66),
    "code -128": lambda good: with_value(good, "w0_q", -128),
    "shift 0": lambda good: with_value(good, "shift0", 0),
    "shift -128": lambda good: with_value(good, "shift0", -128),
    "bias that float32 may round": lambda good: with_value(good, "b0_q", 2**24),
    "least int32 bias": lambda good: with_value(good, "b1_q", -2**31),
    "claims a terabyte": lambda good: with_member(good, "w0_q", npy((2**40,))),
    "claims a negative shape": lambda good: with_member(good, "w0_q", npy((-1, -1))),
    "claims less than it holds": lambda good: with_member(good, "w0_q", npy((1,), data=bytes(35))),
    "structured dtype": lambda good: to_npz(good, w0_q=np.zeros(35, [("a", "i1")])),
    "header is code": lambda good: with_member(good, "w0_q", npy("__import__('os').abort()")),
    "zip bomb": lambda good: claiming(good, "w0_q", 2**32 - 2),
    "bomb in meta": lambda good: claiming(good, "meta", 2**32 - 2),
    "says it holds less": lambda good: claiming(good, "w0_q", 10),
    "says it holds more": lambda good: claiming(good, "w0_q", 200),
    "bz2": lambda good: recompressed(good, zipfile.ZIP_BZIP2),
    "lzma": lambda good: recompressed(good, zipfile.ZIP_LZMA),
}


@pytest.mark.parametrize("damage", HOSTILE.values(), ids=HOSTILE)
def test_hostile_file_gives_one_line(tmp_path, good, damage):
    path = tmp_path / "hostile.npz"
    path.write_bytes(damage(good))
    one_line_error(path)


def test_undamaged_arrays_load(tmp_path, good, good_floats):
    """So that each refusal above is of its damage."""
    path = tmp_path / "copy.npz"
    for content in (to_npz(good), recompressed(good, zipfile.ZIP_STORED), to_npz(good_floats),
                    with_member(good, "shift0", npy((5,), data=bytes([1, 2, 3, 4, 30])))):
        path.write_bytes(content)
        checkpoint.load(path)


def test_other_compressions_are_refused_by_name(good, monkeypatch):
    """Before a byte is unpacked: their libraries are not to meet hostile bytes."""
    for module in (bz2, lzma):
        monkeypatch.setattr(module, f"{module.__name__.upper()}Decompressor", None)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        content = recompressed(good, method)
        with pytest.raises(ValueError, match="compressed by a method that npz files do not use"):
            checkpoint.decode(content)


@pytest.mark.parametrize("key", ["meta", "w0_q", "b1_q"])
def test_member_whose_size_in_the_directory_lies_is_refused(good, key):
    """One byte less or more than it holds; zlib would stop or read on."""
    with zipfile.ZipFile(io.BytesIO(to_npz(good))) as archive:
        size = archive.getinfo(f"{key}.npy").file_size
    for lie in (size - 1, size + 1):
        with pytest.raises((ValueError, zipfile.BadZipFile)):
            checkpoint.decode(claiming(good, key, lie))
    checkpoint.decode(claiming(good, key, size))


def peak_of(call):
    """The most bytes that Python and NumPy held at once during a call that must be refused."""
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, InputError)):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sizes", [[1] * 66, [4_096, 4_097], [65_536, 256, 1], [2**40, 2]])
def test_limits_are_refused_before_memory_is_taken(good, good_floats, sizes):
    line = " ".join(map(str, sizes[1:]))
    for arrays in (good, good_floats):
        for content in (old_npz(arrays, sizes), with_meta(arrays, layers=line, shape=sizes[:1])):
            assert peak_of(lambda content=content: checkpoint.decode(content)) < 2**20


def test_array_larger_than_meta_says_is_refused_before_it_is_unpacked(good):
    bomb = to_npz(good, w0_q=np.zeros((2**13, 2**13), np.int8))         # 64 MB in 65 kB
    assert len(bomb) < 2**17
    assert peak_of(lambda: checkpoint.decode(bomb)) < 2**20


def test_directory_of_many_members_is_not_read():
    """Each would take 500 bytes of memory for 50 of file."""
    count = 20_000
    member = b"PK\1\2" + struct.pack("<6H3L5H2L", 20, 20, *[0] * 13, 0) + b"a"
    entries = b"".join(member[:28] + struct.pack("<H", 1) + member[30:] for _ in range(count))
    end = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, count, count, len(entries), 0, 0)
    assert peak_of(lambda: checkpoint.decode(entries + end)) < 2**20


def test_file_larger_than_any_network_is_not_read(tmp_path):
    path = tmp_path / "w.npz"
    with open(path, "wb") as file:
        file.truncate(checkpoint.MAX_FILE + 1)  # sparse: takes no room on disk
    assert peak_of(lambda: checkpoint.load(path)) < 2**20
    assert "larger than" in one_line_error(path)


def test_what_is_not_a_file_is_refused(tmp_path):
    assert "missing" in one_line_error(tmp_path / "none.npz")
    assert "not a regular file" in one_line_error(tmp_path)
    assert "not a regular file" in one_line_error("/dev/zero")
    os.mkfifo(tmp_path / "fifo")                # without a writer, opening it would wait
    assert "not a regular file" in one_line_error(tmp_path / "fifo")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_name_that_no_file_can_have_gives_one_line(tmp_path, name):
    with pytest.raises(InputError) as caught:
        checkpoint.load(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["w1", "b0"])
def test_float_that_is_not_finite_is_refused(tmp_path, good_floats, key, value):
    (tmp_path / "w.npz").write_bytes(with_value(good_floats, key, value))
    assert "finite" in one_line_error(tmp_path / "w.npz")


def test_accumulator_that_is_not_exact_is_refused(tmp_path, good):
    path = tmp_path / "w.npz"
    path.write_bytes(with_value(good, "b0_q", 2**24))
    assert "not below 2**24" in one_line_error(path)


@pytest.mark.parametrize("sizes", [(1,) * 65, (4_096, 4_096), (65_536, 1), (1, 65_536, 1)])
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.slow
def test_whatever_save_accepts_load_accepts(tmp_path, sizes, quantized):
    """At the limits of a network; test_integer has what lies beyond."""
    path, pairs = tmp_path / "w.npz", list(zip(sizes, sizes[1:]))
    if quantized:
        layers = [integer.Layer(np.ones(shape, np.int8), np.zeros(shape[1], np.int32),
                                np.full(shape[1], 90)) for shape in pairs]
        layers[-1] = layers[-1]._replace(shift=None)
        network = integer.make_network(layers, 2, 8, -100)
        checkpoint.save(path, network)
        assert_same_networks(checkpoint.load(path)[0], network)
    else:
        checkpoint.save(path, float_network(*pairs))
        assert plan.sizes(checkpoint.load(path)[0].steps) == sizes


def float_network(*shapes, dtype=np.float32, value=1, steps=None):
    arrays = [(np.full(shape, value, dtype), np.zeros(shape[1], dtype)) for shape in shapes]
    if steps is None:                           # by hand: plan.parse would refuse some of them
        steps = tuple(plan.Step("dense", (), (), (i,), (o,)) for i, o in shapes)
    return integer.FloatNetwork(tuple(arrays), steps)


REFUSED = {
    "65 layers": (float_network(*[(1, 1)] * 65), {}),
    "too many weights": (float_network((4_096, 4_097)), {}),
    "too wide": (float_network((65_537, 1)), {}),
    "layers that don't chain": (float_network((4, 3), (2, 1)), {}),
    "float64": (float_network((4, 3), dtype=np.float64), {}),
    "NaN": (float_network((4, 3), value=np.nan), {}),
    "steps that do not fit": (float_network((4, 3), steps=plan.parse("", (5,), 3)), {}),
    "a name of 8 MB": (float_network((4, 3)), {"dataset": "x" * 2**21}),
    "a switch that is a list": (float_network((4, 3)), {"switches": {"a": [1]}}),
    "switches are no dict": (float_network((4, 3)), {"switches": "none"}),
    "a loss of NaN": (float_network((4, 3)), {"val_loss": float("nan")}),
    "one class too many": (float_network((4, 3)), {"classes": tuple("abcd")}),
}


@pytest.mark.parametrize("model, facts", REFUSED.values(), ids=REFUSED)
def test_save_refuses_what_load_refuses(tmp_path, model, facts):
    with pytest.raises(ValueError) as caught:
        checkpoint.save(tmp_path / "w.npz", model, checkpoint.Facts(**facts))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_arrays_in_column_order_come_back(rng, tmp_path):
    network = oracle.random_network(rng, SIZES)
    layers = [layer._replace(w_q=np.asfortranarray(layer.w_q)) for layer in network.layers]
    checkpoint.save(tmp_path / "w.npz", network._replace(layers=tuple(layers)), FACTS)
    assert_same_networks(checkpoint.load(tmp_path / "w.npz")[0], network)


@pytest.mark.parametrize("quantized, bits, form, name", [
    (True, 8, "npz", "weights_int8.npz"), (True, 2, "npz", "weights_int2.npz"),
    (True, 3, "nqat", "weights_int3.nqat"), (False, 8, "npz", "weights_unquantized_int8.npz")])
def test_file_is_named_after_its_width(quantized, bits, form, name):
    assert checkpoint.default_name(quantized, bits, form) == name


def test_npz_holds_what_was_given_and_nothing_larger_is_read(rng):
    """The layer below, which state files use too."""
    arrays = {"a": rng.normal(0, 1, (3, 2)), "b": np.zeros(0, np.uint8), "c": np.array(1.5)}
    kinds = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    for compress in (True, False):
        content = npz.encode({"epochs": 3}, arrays, compress)
        meta, found = npz.decode(content, lambda meta: kinds)
        assert meta == {"epochs": 3} and list(found) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
            assert not found[name].flags.writeable
        for wrong in ({**kinds, "a": (np.float64, (2, 3))}, {**kinds, "a": (np.float32, (3, 2))},
                      {**kinds, "d": (np.float64, ())}, {"a": kinds["a"]}):
            with pytest.raises(ValueError):
                npz.decode(content, lambda meta, wrong=wrong: wrong)


def test_weights_run_where_jax_cannot_be_imported(rng, tmp_path):
    network = oracle.random_network(rng, SIZES, 3)
    images = rng.integers(0, 256, (4, 7), dtype=np.uint8)
    checkpoint.save(tmp_path / "w.npz", network, FACTS)
    np.save(tmp_path / "images.npy", images)
    program = f"""
import sys
sys.modules["jax"] = None
sys.path.insert(0, {str(ROOT)!r})
import numpy, integer
from formats import checkpoint
network, facts = checkpoint.load("w.npz")
engine = integer.make_engine(network, "numpy")
numpy.save("acc.npy", engine(numpy.load("images.npy")))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "acc.npy"), oracle.run(network, images))
