"""nqat: round trips, an independent reader made from docs/format.md, damage and forged files."""
import itertools
import re
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, strategies as st
from test_checkpoint import assert_same_networks

import config
import integer
import main_inference
import oracle
from conftest import ROOT, rows_of
from formats import checkpoint, nqat
from machine.files import InputError
from runner import experiment

PAGE = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
SIZES = (7, 5, 3)


@st.composite
def networks(draw):
    """Legal Networks of all widths and inputs, with extreme biases and shifts."""
    side = draw(st.sampled_from([28, 28, 28, 14, 12, 10]))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    sizes = [draw(st.integers(1, 9)) if side == 28 else side**2, *sizes]
    network = oracle.random_network(np.random.default_rng(draw(st.integers(0, 99))), sizes,
                                    draw(st.integers(1, 8)), draw(st.integers(1, 8)), side)
    layers = []
    for layer in network.layers:
        bias = draw(st.sampled_from([0, 1, -1, 2**13, 2**22, -(2**22)]))
        shift = draw(st.sampled_from([1, 2, 30]))
        layers.append(layer._replace(b_q=np.resize(np.int32([bias, 0]), len(layer.b_q)),
                                     shift=None if layer.shift is None else
                                     np.resize(np.int8([shift, 1, 30]), len(layer.b_q))))
    return network._replace(layers=draw(st.sampled_from([network.layers, tuple(layers)])),
                            logit_exponent=draw(st.integers(-100, 100)))


def read(content):
    """(input, bits, activation bits, exponent, layers) in plain Python, from docs/format.md alone.

    A layer is (weights [I][O], biases, shifts) of lists; the last one's shifts are empty.
    """
    version, side, bits, activation_bits, exponent, count, inputs = struct.unpack(
        "<4BbBH", content[4:12])
    assert content[:4] == b"NQAT" and version == 1
    rows = list(struct.iter_unpack("<HBBB", content[12:12 + 5 * count]))
    start = 12 + 5 * count
    stream, at, numbers = int.from_bytes(content[start:], "little"), 0, []

    def sign(field, width):
        return field - (1 << width) if field >> width - 1 & 1 else field

    for i, (outputs, width, least, spread) in enumerate(rows):
        biases, shifts = [], []
        for _ in range(outputs + 1):
            biases.append(sign(stream >> at & (1 << width) - 1, width))
            at += width
        for _ in range(outputs + 1 if i + 1 < count else 0):
            shifts.append(least + (stream >> at & (1 << spread) - 1))
            at += spread
        numbers.append((biases, shifts))
    unpacker = zlib.decompressobj(-15)
    symbols = unpacker.decompress(content[start + (at + 7) // 8:])
    assert unpacker.unused_data == content[-4:] == struct.pack("<I", zlib.crc32(content[:-4]))
    fields = (byte >> bits * k & (1 << bits) - 1 for byte in symbols for k in range(8 // bits))
    layers, inputs = [], inputs + 1
    for biases, shifts in numbers:
        weights = [[2 * next(fields) - 1 if bits == 1 else sign(next(fields), bits)
                    for _ in biases] for _ in range(inputs)]
        layers.append((weights, biases, shifts))
        inputs = len(biases)
    return side, bits, activation_bits, exponent, layers


@given(network=networks())
def test_what_is_encoded_is_decoded_and_means_what_the_page_says(network):
    content = nqat.encode(network)
    decoded = nqat.decode(content)
    assert_same_networks(decoded, network)
    assert nqat.encode(decoded) == content and checkpoint.digest(decoded) == checkpoint.digest(
        network)
    *header, layers = read(content)
    assert header == [network.input, *network[1:4]]
    for layer, (weights, biases, shifts) in zip(network.layers, layers, strict=True):
        assert layer.w_q.tolist() == weights and layer.b_q.tolist() == biases
        assert shifts == ([] if layer.shift is None else layer.shift.tolist())


def test_example_of_the_page_is_what_is_written_and_read():
    listing = PAGE[PAGE.index("**Example.**"):].split("```")[1]
    content = bytes.fromhex(" ".join(re.findall(r"^((?:[0-9a-f]{2} )+)  ", listing, re.MULTILINE)))
    (w0, b0, shift), (w1, b1) = [
        [eval(text) for text in re.findall(r"(?:weights|biases|shifts) (\[.+?\])(?:  |$)", line)]
        for line in listing.strip().splitlines()[:2]]
    network = integer.make_network([
        integer.Layer(np.int8(w0), np.int32(b0), np.int8(shift)),
        integer.Layer(np.int8(w1), np.int32(b1), None)], 3, 4, -9)
    assert nqat.encode(network) == content
    assert_same_networks(nqat.decode(content), network)
    image = np.uint8([eval(re.search(r"image (\[.+?\])", listing)[1])])
    hidden = image[0] @ network.layers[0].w_q.astype(int) + b0
    codes = integer.requantize(hidden[None], np.array([shift]), 4)[0]
    acc = integer.make_engine(network, "numpy")(image)[0]
    assert (f"accumulators {hidden.tolist()}, the codes {codes.tolist()} and the logits "
            f"{acc.tolist()} / 512") in listing


@pytest.mark.parametrize("side", integer.INPUTS)
def test_page_says_how_to_run_it(rng, side):
    """Its two rules, as they stand there, against the oracle."""
    pooling, = re.findall(r"sum of the four, `(.+?)`", PAGE)
    acc, x = re.findall(r"^(?:acc|x  ) = (.+)$", PAGE, re.MULTILINE)
    network = oracle.random_network(rng, (side**2, 9, 3), 4, 3, side)
    image = rng.integers(0, 256, 784, dtype=np.uint8)
    names = {"x": image.astype(np.int64), "clip": np.clip, "activation_bits": 3}
    if side < 28:
        edge = 14 - side
        centre = image.reshape(28, 28).astype(np.int64)[edge:28 - edge, edge:28 - edge]
        t = centre[::2, ::2] + centre[::2, 1::2] + centre[1::2, ::2] + centre[1::2, 1::2]
        names["x"] = eval(pooling, {"t": t}).reshape(-1)
    for w_q, b_q, shift in network.layers:
        names["acc"] = eval(acc, names, {"w_q": w_q, "b_q": b_q})
        if shift is not None:
            names["x"] = eval(x, names, {"shift": shift.astype(np.int64)})
    assert names["acc"].tolist() == oracle.run_slowly(network, image)


@pytest.mark.parametrize("bits, most", [(1, 1.01), (2, 0.85), (3, 0.9), (4, 0.95), (8, 0.97)])
def test_file_is_about_as_small_as_its_weights_allow(rng, bits, most):
    """Against all of it packed; Gaussian weights of 100-48-32-10, the largest at the last code."""
    qmax, layers = integer.code_range(bits)[1], []
    for inputs, outputs in itertools.pairwise((100, 48, 32, 10)):
        w = rng.normal(size=(inputs, outputs))
        w_q = np.rint(w / abs(w).max(0) * qmax) if bits > 1 else np.sign(w)
        layers.append(integer.Layer(w_q.astype(np.int8),
                                    rng.integers(-2_000, 2_001, outputs, np.int32),
                                    rng.integers(7, 9, outputs, np.int8)))
    layers[-1] = layers[-1]._replace(shift=None)
    network = integer.make_network(layers, bits, 4, -9)
    content = nqat.encode(network)
    small = 12 + 3 * 5 + (90 * 12 + 80 * 1 + 7) // 8
    assert len(content) <= most * (small + 6_656 * bits / 8 + 4)
    symbols = zlib.decompressobj(-15)
    assert len(symbols.decompress(content[small:])) == -(-6_656 // (8 // bits))
    assert len(symbols.unused_data) == 4        # so it is no longer than the page says


def refusal(content):
    """The message of the error that decoding must end in: one line, and little memory."""
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, zipfile.BadZipFile)) as caught:
            checkpoint.decode(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert peak < 2**20 and len(message.splitlines()) == 1
    return message


def test_every_flipped_bit_is_refused(rng):
    content = nqat.encode(oracle.random_network(rng, SIZES, 3))
    for at in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        refusal(bytes(damaged))


def test_every_cut_and_every_tail_is_refused(rng):
    content = nqat.encode(oracle.random_network(rng, SIZES, 3))
    for end in range(len(content)):
        refusal(content[:end])
    for tail in (b"\0", b"\n", content):
        assert "CRC" in refusal(content + tail)


def deflate(content):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


def forge(version=1, side=28, bits=3, activation_bits=8, exponent=-5, count=2, inputs=7,
          rows=((5, 10, 1, 2), (3, 10, 0, 0)), stream=bytes(12), weights=deflate(bytes(25))):
    """An .nqat with a right CRC: 7-5-3 of 3 bits, all its weights and biases 0, shifts of 1."""
    body = b"NQAT" + struct.pack("<4BbBH", version, side, bits, activation_bits, exponent, count,
                                 inputs - 1)
    body += b"".join(struct.pack("<H3B", row[0] - 1, *row[1:]) for row in rows) + stream + weights
    return body + struct.pack("<I", zlib.crc32(body))


def first(outputs=5, width=10, least=1, spread=2):
    return {"rows": ((outputs, width, least, spread), (3, 10, 0, 0))}


def last(outputs=3, width=10, least=0, spread=0):
    return {"rows": ((5, 10, 1, 2), (outputs, width, least, spread))}


FORGED = {
    "version 0": ({"version": 0}, "version"),
    "version 2": ({"version": 2}, "version"),
    "input 0": ({"side": 0}, "input side 0"),
    "input 13": ({"side": 13}, "input side 13"),
    "input of other images": ({"side": 14}, "196 inputs, not 7"),
    "weights of 0 bits": ({"bits": 0}, "not in 1..8"),
    "weights of 9 bits": ({"bits": 9}, "not in 1..8"),
    "other weight bits": ({"bits": 2}, "13 bytes"),
    "activations of 0 bits": ({"activation_bits": 0}, "not in 1..8"),
    "activations of 9 bits": ({"activation_bits": 9}, "not in 1..8"),
    "exponent 101": ({"exponent": 101}, "logit exponent"),
    "exponent -101": ({"exponent": -101}, "logit exponent"),
    "no layers": ({"count": 0, "rows": ()}, "0 layers"),
    "65 layers": ({"count": 65, "rows": ((1, 1, 1, 0),) * 65}, "65 layers"),
    "more layers than rows": ({"count": 255}, "header"),
    "fewer layers than rows": ({"count": 1}, "not legal"),
    "inputs up to the limit": ({"inputs": 65_536}, "bytes, deflated"),
    "too many weights": ({"inputs": 65_536, **first(outputs=257)}, "weights, more than"),
    "many outputs": (first(outputs=65_536), "ends inside its biases"),
    "biases of 0 bits": (first(width=0), "not legal"),
    "biases of 26 bits": (last(width=26), "not legal"),
    "biases of 255 bits": (first(width=255), "not legal"),
    "bias that float32 may round": ({**last(width=25), "stream": bytes(16) + b"\x40"},
                                    "not below 2\\*\\*24"),
    "shift 0": (first(least=0), "shift of 1 or more"),
    "shift 31": (first(least=31), "shift of 31"),
    "shift 255": (first(least=255), "shift of 255"),
    "least shift and more": ({**first(least=30), "stream": b"\xff" * 11 + b"\3"}, "shift of 33"),
    "6 bits above the least shift": (first(spread=6), "not legal"),
    "255 bits above the least shift": (first(spread=255), "not legal"),
    "shift in the last layer": (last(least=1), "not legal"),
    "bits of shifts in the last layer": (last(spread=1), "not legal"),
    "unused bits of the biases": ({"stream": bytes(11) + b"\x80"}, "unused bits of its biases"),
    "nothing after the header": ({"stream": b"", "weights": b""}, "ends inside its biases"),
    "no weights": ({"weights": b""}, "25 bytes, deflated"),
    "no DEFLATE": ({"weights": b"\xff" * 30}, "not a DEFLATE stream"),
    "zlib's header": ({"weights": zlib.compress(bytes(25))}, "DEFLATE"),
    "an end that is missing": ({"weights": deflate(bytes(25))[:-1]}, "deflated"),
    "one weight byte less": ({"weights": deflate(bytes(24))}, "25 bytes, deflated"),
    "one weight byte more": ({"weights": deflate(bytes(26))}, "25 bytes, deflated"),
    "bomb": ({"weights": deflate(bytes(2**26))}, "25 bytes, deflated"),
    "bytes after the weights": ({"weights": deflate(bytes(25)) + b"\0"}, "end of the file"),
    "unused bits of a weight byte": ({"weights": deflate(b"\x40" + bytes(24))}, "not 0"),
    "weights after the last": ({"inputs": 8, "weights": deflate(bytes(27) + b"\x08")}, "not 0"),
    "code -4 of 3 bits": ({"weights": deflate(b"\4" + bytes(24))}, "code that 3 bits do not have"),
    "code -128 of 8 bits": ({"bits": 8, "weights": deflate(bytes(49) + b"\x80")}, "a code that 8"),
}


@pytest.mark.parametrize("changes, reason", FORGED.values(), ids=FORGED)
def test_forged_file_is_refused_in_one_line(changes, reason):
    assert re.search(reason, refusal(forge(**changes)))


def test_what_is_forged_is_legal_but_for_its_change(rng):
    network = nqat.decode(forge())
    assert integer.sizes(network) == SIZES and not network.layers[0].w_q.any()
    for changes in (first(least=28), last(width=11), {"bits": 8, "weights": deflate(bytes(50))},
                    {"inputs": 8, "weights": deflate(bytes(28))}, {"exponent": -100}):
        nqat.decode(forge(**changes))


def test_largest_network_takes_bounded_memory():
    side = 4_096
    assert side**2 == integer.MAX_WEIGHTS
    content = forge(bits=5, count=1, inputs=side, rows=((side, 1, 0, 0),), stream=bytes(side // 8),
                    weights=deflate(bytes(side**2)))
    assert len(content) < 20_000
    tracemalloc.start()
    try:
        nqat.decode(content)
        assert tracemalloc.get_traced_memory()[1] < 150_000_000
    finally:
        tracemalloc.stop()


def test_file_is_saved_found_and_loaded(rng, tmp_path):
    network = oracle.random_network(rng, SIZES, 4, 3)
    path = tmp_path / checkpoint.default_name(True, 4, "nqat")
    assert path.name == "weights_int4.nqat" and checkpoint.default_name(
        False, 8, "nqat") == "weights_unquantized_int8.npz"
    size = checkpoint.save(path, network, {"note": "not kept"}, "nqat")
    assert checkpoint.find("", [tmp_path], True, 4, "nqat") == path and size == path.stat().st_size
    loaded, facts = checkpoint.load(path)
    assert_same_networks(loaded, network)
    assert facts == {}
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="CRC") as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)


def test_only_what_can_be_loaded_is_saved(rng, tmp_path):
    floats = integer.FloatNetwork(((np.ones((7, 3), np.float32), np.zeros(3, np.float32)),))
    heavy = oracle.random_network(rng, SIZES)
    heavy.layers[0].b_q[0] = 2**24
    for network, reason in ((floats, "integers"), (heavy, "not legal")):
        with pytest.raises(ValueError, match=reason):
            checkpoint.save(tmp_path / "w.nqat", network, {}, "nqat")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("switch", ["--QAT_ENABLE=False", "--POWER_OF_TWO_SCALES=False"])
def test_switches_that_make_no_integers_make_no_nqat(switch):
    for argv in (["--FILE_FORMAT=nqat", switch], [switch, "--FILE_FORMAT=nqat"]):
        with pytest.raises(InputError, match="FILE_FORMAT = 'nqat' is not legal; give npz, or QAT"):
            config.load(argv)


@pytest.fixture
def few(rng, mnist, tmp_path):
    """A few images as experiment.Data; an untrained network for them; switches, to save it."""
    val = rows_of(mnist.train, 0, 50)
    network = oracle.random_network(rng, (196, 10), 3, input=14)
    settings = config.load([f"--WEIGHTS_DIR={tmp_path / 'w'}", "--FILE_FORMAT=nqat",
                            "--WEIGHT_BITS=3", "--ENGINE=numpy"])
    return experiment.Data("few", "0" * 64, val, val, val), network, settings


def save(few, network, tmp_path, **row):
    data, _, settings = few
    outcome = experiment.Outcome(settings, None, nqat.encode(network), row, None)
    return experiment.save(outcome, tmp_path / "runs" / "one", data)


def test_kept_file_without_facts_is_judged_on_the_same_images(few, tmp_path, capsys):
    data, network, settings = few
    path = tmp_path / "w" / "weights_int3.nqat"
    assert save(few, network, tmp_path, val_loss=1e9)         # none is there
    loss = experiment._kept_loss(path, data, "numpy")
    other = network._replace(logit_exponent=network.logit_exponent - 1)
    assert save(few, network, tmp_path, val_loss=loss)        # not worse
    assert not save(few, other, tmp_path, val_loss=np.nextafter(loss, np.inf))
    assert f"{path} stays: its val loss {loss:.6f} is lower" in capsys.readouterr().out
    assert path.read_bytes() == nqat.encode(network)
    assert (tmp_path / "runs" / "one" / path.name).read_bytes() == nqat.encode(other)
    for useless in (b"NQAT", nqat.encode(oracle.random_network(np.random.default_rng(0), SIZES))):
        path.write_bytes(useless)
        assert save(few, network, tmp_path, val_loss=1e9)


def test_inference_runs_it_and_says_nothing_of_what_it_was_trained_on(
        few, folder, tmp_path, script):
    checkpoint.save(tmp_path / "w" / "weights_int3.nqat", few[1], {}, "nqat")
    arguments = [f"--{name}={getattr(few[2], name)}" for name in (
        "WEIGHTS_DIR", "FILE_FORMAT", "WEIGHT_BITS", "ENGINE")]
    code, lines, errors = script(main_inference.main, f"--DATA_DIR={folder}",
                                 f"--RUNS_DIR={tmp_path}", *arguments)
    assert code == 0 and errors == [] and "W3A8 integer-only" in lines[0]
    assert not any(line.startswith("note") for line in lines)
