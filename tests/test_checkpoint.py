"""checkpoint: round trips, the packed layout, whole files after any interruption, hostile files."""
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import checkpoint
import files
import oracle
from conftest import ROOT
from files import InputError

SIZES = (7, 5, 3)               # odd, so that packed bytes end inside a byte


def make_meta(weight_bits=8, activation_bits=8, per_channel=True):
    return {"weight_bits": weight_bits, "activation_bits": activation_bits,
            "per_channel": per_channel}


def assert_same_layers(a, b):
    assert [list(layer) for layer in a] == [list(layer) for layer in b]
    for layer, other in zip(a, b):
        for key in layer:
            assert layer[key].dtype == other[key].dtype
            np.testing.assert_array_equal(layer[key], other[key], strict=True)


@pytest.mark.parametrize("sizes", [SIZES, (1, 1), (9, 1, 2, 11)])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_load_returns_what_was_saved(rng, tmp_path, bits, per_channel, sizes):
    path = tmp_path / "w.npz"
    layers = oracle.random_layers(rng, sizes, bits, 8, per_channel)
    meta = {**make_meta(bits, 8, per_channel), "note": "naïve ☃", "number": 0.1}
    size = checkpoint.save(path, layers, meta)
    loaded, loaded_meta = checkpoint.load(path)
    assert_same_layers(loaded, layers)
    assert loaded_meta == {**meta, "format": checkpoint.FORMAT, "quantized": True,
                           "layer_sizes": list(sizes)}
    assert size == path.stat().st_size


def test_load_returns_the_floats_that_were_saved(rng, tmp_path):
    layers = [{"w": rng.normal(0, 1, (i, o)).astype(np.float32),
               "b": rng.normal(0, 1, o).astype(np.float32)} for i, o in zip(SIZES, SIZES[1:])]
    checkpoint.save(tmp_path / "w.npz", layers, {})
    loaded, meta = checkpoint.load(tmp_path / "w.npz")
    assert_same_layers(loaded, layers)
    assert meta["quantized"] is False and meta["layer_sizes"] == list(SIZES)


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
    layers = oracle.random_layers(rng, SIZES, 4)
    checkpoint.save(tmp_path / "w.npz", layers, make_meta(4))
    with np.load(tmp_path / "w.npz", allow_pickle=False) as file:
        assert sorted(file) == ["b0_q", "b1_q", "meta", "w0_exponent", "w0_q", "w1_exponent",
                                "w1_q", "x0_exponent", "x1_exponent"]
        assert json.loads(str(file["meta"]))["layer_sizes"] == list(SIZES)
        assert file["w0_q"].nbytes == (7 * 5 * 4 + 7) // 8


def test_accumulator_bound_is_reached_and_never_passed(rng):
    layer, = oracle.random_layers(rng, (6, 4), activation_bits=4)
    worst = np.zeros(4, np.int64)
    for x in np.ndindex(*[2] * 6):              # the extremes are at the corners: 0 or 15
        acc = 15 * np.array(x) @ layer["w_q"].astype(np.int64)
        worst = np.maximum(worst, np.abs(acc) + np.abs(layer["b_q"]))
    bound = checkpoint.accumulator_bound(layer, 15)
    assert (worst <= bound).all()
    layer["w_q"] = np.abs(layer["w_q"])         # of one sign, the bound is reached
    reached = 15 * layer["w_q"].sum(0, dtype=np.int64) + np.abs(layer["b_q"])
    np.testing.assert_array_equal(checkpoint.accumulator_bound(layer, 15), reached)


def layers_with_bound(bound):
    """One layer whose largest |accumulator| is `bound` exactly."""
    bias = bound - 255 * 2 * 127
    return [{"w_q": np.full((2, 2), 127, np.int8), "w_exponent": np.zeros(1, np.int8),
             "x_exponent": np.array(-8, np.int8), "b_q": np.array([0, bias], np.int32)}]


def test_save_refuses_exactly_the_accumulators_that_float32_may_round(tmp_path):
    path = tmp_path / "w.npz"
    with pytest.raises(InputError, match="layer 0 can reach .* 16777216, not below 2"):
        checkpoint.save(path, layers_with_bound(2**24), make_meta())
    assert not path.exists()
    checkpoint.save(path, layers_with_bound(2**24 - 1), make_meta())
    checkpoint.load(path)


@pytest.mark.parametrize("activation_bits, legal", [(7, True), (8, False)])
def test_bound_of_a_hidden_layer_counts_its_own_input_codes(rng, tmp_path, activation_bits, legal):
    layers = oracle.random_layers(rng, (4, 800, 2))
    layers[1]["w_q"][:] = 127
    layers[1]["b_q"][:] = 0
    assert (127 * 800 * (2**activation_bits - 1) < 2**24) == legal
    try:
        checkpoint.save(tmp_path / "w.npz", layers, make_meta(8, activation_bits))
    except InputError as error:
        assert not legal and "layer 1" in str(error)
    else:
        assert legal


@pytest.mark.parametrize("failing", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_save_leaves_the_old_file_whole(rng, tmp_path, monkeypatch, failing, error):
    path = tmp_path / "w.npz"
    checkpoint.save(path, oracle.random_layers(rng, SIZES), make_meta())
    old = path.read_bytes()

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
            checkpoint.save(path, oracle.random_layers(rng, SIZES, 2), make_meta(2))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]   # no temporary file is left


def test_content_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        def spy(*arguments, name=name, real=getattr(os, name)):
            calls.append(name)
            return real(*arguments)
        monkeypatch.setattr(os, name, spy)
    files.write_atomically(tmp_path / "new" / "file", b"content")
    assert calls == ["fsync", "replace"]
    assert (tmp_path / "new" / "file").read_bytes() == b"content"


def one_line_error(path):
    """The message of the InputError that loading `path` must raise: one line that names it."""
    with pytest.raises(InputError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.fixture
def good(rng, tmp_path):
    """The arrays of a legal file, by key; meta as a dict."""
    checkpoint.save(tmp_path / "good.npz", oracle.random_layers(rng, SIZES), make_meta())
    with np.load(tmp_path / "good.npz") as file:
        arrays = dict(file)
    return {**arrays, "meta": json.loads(str(arrays["meta"]))}


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


def with_byte_changed(data, at):
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1:]


def claiming(data, size):
    """The zip with its first member's unpacked size changed in the directory."""
    at = data.index(b"PK\1\2") + 24
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
    "wrong rank": lambda good: to_npz(good, x0_exponent=good["x0_exponent"][None]),
    "channels where one scale is due": lambda good: to_npz(good, w1_exponent=np.zeros(3, np.int8)),
    "numeric meta": lambda good: to_npz(good, meta=np.zeros(3)),
    "meta of two texts": lambda good: to_npz(good, meta=np.array(["{}", "{}"])),
    "bad JSON": lambda good: to_npz(good, meta=np.array("{format: 1")),
    "JSON list": lambda good: to_npz(good, meta=np.array("[1]")),
    "deep JSON": lambda good: to_npz(good, meta=np.array("[" * 100_000)),
    "other format": lambda good: with_meta(good, format=2),
    "format missing": lambda good: with_meta(good, format=None),
    "no weight_bits": lambda good: with_meta(good, weight_bits=None),
    "weight_bits 0": lambda good: with_meta(good, weight_bits=0),
    "weight_bits 9": lambda good: with_meta(good, weight_bits=9),
    "weight_bits 8.0": lambda good: with_meta(good, weight_bits=8.0),
    "weight_bits true": lambda good: with_meta(good, weight_bits=True),
    "other weight_bits": lambda good: with_meta(good, weight_bits=4),
    "activation_bits 0": lambda good: with_meta(good, activation_bits=0),
    "activation_bits 9": lambda good: with_meta(good, activation_bits=9),
    "per_channel 1": lambda good: with_meta(good, per_channel=1),
    "quantized missing": lambda good: with_meta(good, quantized=None),
    "said to be float": lambda good: with_meta(good, quantized=False),
    "no layers": lambda good: with_meta(good, layer_sizes=[]),
    "one layer too few": lambda good: with_meta(good, layer_sizes=[7, 5]),
    "layer_sizes negative": lambda good: with_meta(good, layer_sizes=[7, -5, 3]),
    "layer_sizes huge": lambda good: with_meta(good, layer_sizes=[7, 2**40, 3]),
    "layer_sizes 65536": lambda good: with_meta(good, layer_sizes=[65_536, 65_536, 65_536]),
    "layer_sizes text": lambda good: with_meta(good, layer_sizes="753"),
    "code -128": lambda good: with_value(good, "w0_q", -128),
    "w_exponent 61": lambda good: with_value(good, "w0_exponent", 61),
    "w_exponent -128": lambda good: with_value(good, "w0_exponent", -128),
    "x_exponent 61": lambda good: with_value(good, "x1_exponent", 61),
    "pixels of another scale": lambda good: with_value(good, "x0_exponent", -7),
    "shift 0": lambda good: to_npz(good, x1_exponent=np.int8(-8 + good["w0_exponent"].max())),
    "bias that float32 may round": lambda good: with_value(good, "b0_q", 2**24),
    "least int32 bias": lambda good: with_value(good, "b1_q", -2**31),
    "claims a terabyte": lambda good: with_member(good, "w0_q", npy((2**40,))),
    "claims a negative shape": lambda good: with_member(good, "w0_q", npy((-1, -1))),
    "claims less than it holds": lambda good: with_member(good, "w0_q", npy((1,), data=bytes(35))),
    "structured dtype": lambda good: to_npz(good, w0_q=np.zeros(35, [("a", "i1")])),
    "header is code": lambda good: with_member(good, "w0_q", npy("__import__('os').abort()")),
    "zip bomb": lambda good: claiming(to_npz(good), 2**32 - 2),
    "lies about its size": lambda good: claiming(to_npz(good), 10),
}


@pytest.mark.parametrize("damage", HOSTILE.values(), ids=HOSTILE)
def test_hostile_file_gives_one_line(tmp_path, good, damage):
    path = tmp_path / "hostile.npz"
    path.write_bytes(damage(good))
    one_line_error(path)


def test_undamaged_arrays_load(tmp_path, good):
    """So that each refusal above is of its damage."""
    path = tmp_path / "copy.npz"
    path.write_bytes(to_npz(good))
    checkpoint.load(path)
    path.write_bytes(with_member(good, "x0_exponent", npy((), data=b"\xf8")))
    checkpoint.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["w", "b"])
def test_float_that_is_not_finite_is_refused(tmp_path, key, value):
    layer = {"w": np.ones((4, 2), np.float32), "b": np.ones(2, np.float32)}
    layer[key].reshape(-1)[1] = value
    arrays = {"w0": layer["w"], "b0": layer["b"],
              "meta": {"format": checkpoint.FORMAT, "quantized": False, "layer_sizes": [4, 2]}}
    (tmp_path / "w.npz").write_bytes(to_npz(arrays))
    assert "finite" in one_line_error(tmp_path / "w.npz")


def test_missing_file_and_folder_give_one_line(tmp_path):
    assert "missing" in one_line_error(tmp_path / "none.npz")
    one_line_error(tmp_path)


@pytest.mark.parametrize("exponents", [(60, 60, -60), (60, 20, -60), (40, 60, -30)])
def test_negative_shift_is_refused_whatever_its_size(rng, tmp_path, exponents):
    """x1 - x2 - w1 leaves int8; a shift of -180 must not pass as 76."""
    x1, w1, x2 = exponents
    layers = oracle.random_layers(rng, (4, 3, 3, 2), per_channel=False)
    layers[1].update(x_exponent=np.array(x1, np.int8), w_exponent=np.full(1, w1, np.int8))
    layers[2].update(x_exponent=np.array(x2, np.int8))
    with pytest.raises(InputError, match=f"has {x2 - x1 - w1}"):
        checkpoint.save(tmp_path / "w.npz", layers, make_meta(per_channel=False))


def test_whatever_save_accepts_load_accepts(rng, tmp_path):
    """A long shift is legal; an exponent that load refuses must be refused before training ends."""
    path = tmp_path / "w.npz"
    for x1 in (30, 60, 61, 127):
        layers = oracle.random_layers(rng, (4, 3, 2))
        layers[1]["x_exponent"] = np.array(x1, np.int8)
        layers[0]["w_exponent"][:] = -60
        try:
            checkpoint.save(path, layers, make_meta())
        except InputError:
            assert x1 > 60
        else:
            assert_same_layers(checkpoint.load(path)[0], layers)


@pytest.mark.parametrize("quantized, bits, name", [
    (True, 8, "weights_int8.npz"), (True, 2, "weights_int2.npz"),
    (False, 8, "weights_unquantized_int8.npz")])
def test_default_path_names_the_width(tmp_path, quantized, bits, name):
    assert checkpoint.default_path(tmp_path, quantized, bits) == tmp_path / name


def test_weights_run_where_jax_cannot_be_imported(rng, tmp_path):
    layers = oracle.random_layers(rng, SIZES, 3)
    images = rng.integers(0, 256, (4, 7), dtype=np.uint8)
    checkpoint.save(tmp_path / "w.npz", layers, make_meta(3))
    np.save(tmp_path / "images.npy", images)
    program = f"""
import sys
sys.modules["jax"] = None
sys.path.insert(0, {str(ROOT)!r})
import numpy, checkpoint, integer
layers, meta = checkpoint.load("w.npz")
engine = integer.make_engine(layers, meta["activation_bits"], "numpy")
numpy.save("acc.npy", engine(numpy.load("images.npy")))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "acc.npy"), oracle.run(layers, 8, images))
