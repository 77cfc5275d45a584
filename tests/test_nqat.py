"""nqat: round trips, an independent reader made from docs/format.md, damage and forged files."""
import itertools
import re
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import page_reader
import pytest
from hypothesis import given, strategies as st
from test_checkpoint import assert_same_networks

import config
import integer
import oracle
import plan
from conftest import ROOT
from formats import checkpoint, encode, nqat
from machine.files import InputError

PAGE = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
SIZES = (7, 5, 3)


LINES = [("", (5,)), ("3 2", (1,)), ("4", (3, 3, 1)), ("crop24 mean2 3", (28, 28, 1)),
         ("mean2 conv2x3/2 max2 conv1x2 6", (20, 17, 3)), ("conv7x2/3", (9, 1, 2)),
         ("conv3x4 conv2x3/2 max2 9 8", (1, 15, 2)), ("crop6 conv5x4/2", (9, 8, 1)),
         ("crop300 3", (1, 303, 1))]


@st.composite
def networks(draw):
    """Legal Networks of all widths and steps, with extreme biases and shifts."""
    line, shape = draw(st.sampled_from(LINES))
    steps = plan.parse(line, shape, draw(st.integers(1, 9)))
    network = oracle.random_network(np.random.default_rng(draw(st.integers(0, 99))), steps,
                                    draw(st.integers(1, 8)), draw(st.integers(1, 8)))
    layers = []
    for layer in network.layers:
        bias = draw(st.sampled_from([0, 1, -1, 2**13, 2**22, -(2**22)]))
        shift = draw(st.sampled_from([1, 2, 30]))
        layers.append(layer._replace(b_q=np.resize(np.int32([bias, 0]), len(layer.b_q)),
                                     shift=None if layer.shift is None else
                                     np.resize(np.int8([shift, 1, 30]), len(layer.b_q))))
    return network._replace(layers=draw(st.sampled_from([network.layers, tuple(layers)])),
                            logit_exponent=draw(st.integers(-100, 100)))


@st.composite
def contents(draw):
    """(Network, class names, low, exponent): names of 0..n-1 or others; an encoding or none."""
    network = draw(networks())
    first, count = network.steps[0], network.steps[-1].after[0]
    names = tuple(map(str, range(count)))
    if draw(st.booleans()):
        names = tuple(f"é {name}" for name in names)
    if first.kind in ("crop", "mean") or draw(st.booleans()):
        return network, names, None, None
    features, rng = first.before[-1], np.random.default_rng(0)
    return (network, names, rng.normal(0, 1e3, features).astype(np.float32),
            rng.integers(-100, 122, features).astype(np.int8))


@given(given=contents())
def test_what_is_encoded_is_decoded_and_means_what_the_page_says(given):
    network, names, low, exponent = given
    content = nqat.encode(network, names, low, exponent)
    decoded, *rest = nqat.decode(content)
    assert_same_networks(decoded, network)
    assert nqat.encode(decoded, *rest) == content
    assert checkpoint.digest(decoded) == checkpoint.digest(network)
    model = page_reader.read_nqat(content)
    assert_read_alike(model, network, names, low, exponent)


def assert_read_alike(model, network, names, low, exponent):
    """What the page's reader found is the network and its facts, step by step."""
    assert (model.weight_bits, model.activation_bits, model.logit_exponent) == network[1:4]
    assert model.classes == list(names)
    assert model.shape == list(network.steps[0].before)
    assert model.words == plan.to_line(network.steps).split()
    if low is None:
        assert model.low is None and model.exponent is None
    else:
        assert model.low == low.tolist() and model.exponent == exponent.tolist()
    for layer, (weights, biases, shifts) in zip(network.layers, model.layers, strict=True):
        assert layer.w_q.tolist() == weights and layer.b_q.tolist() == biases
        assert shifts == ([] if layer.shift is None else layer.shift.tolist())


@pytest.mark.parametrize("line, shape", LINES)
@pytest.mark.parametrize("form", ["npz", "nqat"])
def test_reader_made_from_the_page_gives_the_same_accumulators(rng, tmp_path, form, line, shape):
    network = oracle.random_network(rng, plan.parse(line, shape, 4), 3, 5)
    low, exponent = np.float32([0.5] * shape[-1]), np.int8([-3] * shape[-1])
    encoded = not line.startswith(("crop", "mean"))
    facts = checkpoint.Facts("d", "00", tuple("wxyz"), *((low, exponent) if encoded else ()))
    path = tmp_path / f"w.{form}"
    checkpoint.save(path, network, facts, form)
    model = page_reader.read(path)
    assert_read_alike(model, network, tuple("wxyz"), *((low, exponent) if encoded else (None,) * 2))
    for image in rng.integers(0, 256, (3, plan.inputs(network.steps)), dtype=np.uint8):
        assert page_reader.run(model, image.tolist()) == oracle.run_slowly(network, image)
    if encoded:
        values = rng.normal(0, 20, plan.inputs(network.steps)).astype(np.float32)
        wanted = encode.encode(values.reshape(1, *shape),
                               encode.Encoding(low, exponent.astype(int)))
        assert page_reader.to_bytes(model, values.tolist()) == wanted.ravel().tolist()


@pytest.mark.slow
def test_page_reader_and_engine_agree_on_the_shipped_files(mnist):
    for name in ("recipes/3kB.nqat", "recipes/ternary.npz"):
        path = ROOT / "weights" / name
        network, facts = checkpoint.load(path)
        model = page_reader.read(path)
        assert_read_alike(model, network, facts.classes, None, None)
        image = mnist.test.images[0]
        acc = integer.make_engine(network, "numpy")(image[None])[0]
        assert page_reader.run(model, image.tolist()) == acc.tolist()


def test_example_of_the_page_is_what_is_written_and_read():
    listing = PAGE[PAGE.index("**Example.**"):].split("```")[1]
    content = bytes.fromhex(" ".join(re.findall(r"^((?:[0-9a-f]{2} )+)  ", listing, re.MULTILINE)))
    (w0, b0, shift), (w1, b1) = [
        [eval(text) for text in re.findall(r"(?:weights|biases|shifts) (\[.+?\])(?:  |$)", line)]
        for line in listing.strip().splitlines()[:2]]
    network = integer.make_network([
        integer.Layer(np.int8(w0), np.int32(b0), np.int8(shift)),
        integer.Layer(np.int8(w1), np.int32(b1), None)], 3, 4, -9)
    assert nqat.encode(network, ("no", "yes")) == content
    assert_same_networks(nqat.decode(content).network, network)
    image = np.uint8([eval(re.search(r"bytes (\[.+?\])", listing)[1])])
    hidden = image[0] @ network.layers[0].w_q.astype(int) + b0
    codes = integer.requantize(hidden[None], np.array([shift]), 4)[0]
    acc = integer.make_engine(network, "numpy")(image)[0]
    assert (f"accumulators {hidden.tolist()}, the codes {codes.tolist()} and the logits "
            f"{acc.tolist()} / 512") in listing


def test_page_says_how_to_run_it(rng):
    """Its rules, as they stand there, against the oracle."""
    mean, = re.findall(r"sum of the four, `(.+?)`", PAGE)
    acc, x = re.findall(r"^(?:acc|x  ) = (.+)$", PAGE, re.MULTILINE)
    for line in ("9", "mean2 9"):
        network = oracle.random_network(rng, plan.parse(line, (8, 8, 1), 3), 4, 3)
        image = rng.integers(0, 256, 64, dtype=np.uint8)
        names = {"x": image.astype(np.int64), "clip": np.clip, "activation_bits": 3}
        if line.startswith("mean2"):
            part = image.reshape(8, 8).astype(np.int64)
            t = part[::2, ::2] + part[::2, 1::2] + part[1::2, ::2] + part[1::2, 1::2]
            names["x"] = eval(mean, {"t": t}).reshape(-1)
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
    small = 7 + 8 + 2 * 3 + 2 + 3 * 3 + (90 * 12 + 80 * 1 + 7) // 8
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


FORGED_WEIGHTS = deflate(bytes(25))


def forge(version=2, bits=3, activation_bits=8, exponent=-5, shape=(7,), rank=None, classes=3,
          count=1, text=b"", names=None, steps=b"\x80\4\0", features=0, encoding=b"",
          rows=((10, 1, 2), (10, 0, 0)), stream=bytes(12), weights=FORGED_WEIGHTS):
    """An .nqat with a right CRC: 7-5-3 of 3 bits, all its weights and biases 0, shifts of 1."""
    body = b"NQAT" + struct.pack("<BBb", version, bits << 4 | activation_bits, exponent)
    body += struct.pack(f"<B{len(shape)}HHBH", len(shape) if rank is None else rank,
                        *(n - 1 for n in shape), classes - 1, count,
                        len(text) if names is None else names) + text + steps
    body += struct.pack("<H", features) + encoding
    body += b"".join(struct.pack("<3B", *row) for row in rows) + stream + weights
    return body + struct.pack("<I", zlib.crc32(body))


def forge_old(version=1, side=28, bits=3, activation_bits=8, exponent=-5, count=2, inputs=7,
              rows=((5, 10, 1, 2), (3, 10, 0, 0)), stream=bytes(12), weights=FORGED_WEIGHTS):
    """The same as version 1."""
    body = b"NQAT" + struct.pack("<4BbBH", version, side, bits, activation_bits, exponent, count,
                                 inputs - 1)
    body += b"".join(struct.pack("<H3B", row[0] - 1, *row[1:]) for row in rows) + stream + weights
    return body + struct.pack("<I", zlib.crc32(body))


def first(width=10, least=1, spread=2):
    return {"rows": ((width, least, spread), (10, 0, 0))}


def last(width=10, least=0, spread=0):
    return {"rows": ((10, 1, 2), (width, least, spread))}


def dense(outputs):
    return b"\x80" + struct.pack("<H", outputs - 1)


FORGED = {
    "version 0": ({"version": 0}, "version"),
    "version 3": ({"version": 3}, "version"),
    "weights of 0 bits": ({"bits": 0}, "not in 1..8"),
    "weights of 9 bits": ({"bits": 9}, "not in 1..8"),
    "other weight bits": ({"bits": 2}, "13 bytes"),
    "activations of 0 bits": ({"activation_bits": 0}, "not in 1..8"),
    "activations of 9 bits": ({"activation_bits": 9}, "not in 1..8"),
    "exponent 101": ({"exponent": 101}, "logit exponent"),
    "exponent -101": ({"exponent": -101}, "logit exponent"),
    "examples of no axis": ({"rank": 0}, "0 axes"),
    "examples of two axes": ({"shape": (7, 1)}, "2 axes"),
    "examples of 255 axes": ({"rank": 255}, "255 axes"),
    "shape up to the limit": ({"shape": (65_536,) * 3}, "leads from"),
    "65 layers": ({"count": 64, "steps": dense(1) * 64, "rows": ((1, 1, 0),) * 65}, "65 steps"),
    "255 steps of no kind": ({"count": 255, "steps": b"\xff" * 255}, "of no kind"),
    "more steps than bytes": ({"count": 255}, "inside its header|no kind|mean nothing|no word|legal"
                               ),
    "a step of no kind": ({"steps": b"\xa0\4\0"}, "of no kind"),
    "a width with bits of a kernel": ({"steps": b"\x81\4\0"}, "bits that mean nothing"),
    "a mean with bits of a kernel": ({"steps": b"\x21", "shape": (7, 7, 1)}, "that mean nothing"),
    "a convolution of features": ({"steps": b"\x4c\4\0"}, "needs a picture"),
    "a kernel of 0": ({"steps": b"\x40\4\0", "shape": (7, 7, 1)}, "a kernel is 1 to 7"),
    "a stride of 4": ({"steps": b"\x4f\4\0", "shape": (7, 7, 1)}, "a stride 1 to 3"),
    "a crop of 0": ({"steps": bytes(3), "shape": (7, 7, 1)}, "does not fit"),
    "a crop of more": ({"steps": b"\0\x08\0", "shape": (7, 7, 1)}, "does not fit"),
    "a maximum without a convolution": ({"steps": b"\x60", "shape": (7, 7, 1)}, "wrong place"),
    "a mean after a width": ({"count": 2, "steps": dense(5) + b"\x20", "shape": (7, 7, 1)},
                             "wrong place"),
    "inputs up to the limit": ({"shape": (65_536,)}, "bytes, deflated"),
    "too many weights": ({"shape": (65_536,), "steps": dense(257)}, "weights, more than"),
    "many outputs": ({"steps": dense(65_536)}, "ends inside its biases"),
    "many classes": ({"classes": 1_000}, "ends inside its biases"),
    "names of fewer classes": ({"text": b"a\nb"}, "names 2 of 3"),
    "names of more classes": ({"text": b"a\nb\nc\n"}, "names 4 of 3"),
    "names that are no text": ({"text": b"a\nb\n\xff"}, "utf-8"),
    "names beyond the end": ({"names": 65_535}, "inside its header"),
    "a name too long": ({"text": b"a\nb\n" + b"c" * 201}, "200 characters"),
    "features beyond the end": ({"features": 65_535}, "inside its header"),
    "features of another count": ({"features": 6, "encoding": bytes(30)}, "6 features of 7"),
    "a low that is not finite": ({"features": 7, "encoding": b"\0\0\xc0\x7f" * 7 + bytes(7)},
                                 "not finite"),
    "a step of 2**-101": ({"features": 7, "encoding": bytes(28) + b"\x9b" * 7}, "out of range"),
    "a step of 2**122": ({"features": 7, "encoding": bytes(28) + b"\x7a" * 7}, "out of range"),
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
    "weights after the last": ({"shape": (8,), "weights": deflate(bytes(27) + b"\x08")}, "not 0"),
    "code -4 of 3 bits": ({"weights": deflate(b"\4" + bytes(24))}, "code that 3 bits do not have"),
    "code -128 of 8 bits": ({"bits": 8, "weights": deflate(bytes(49) + b"\x80")}, "a code that 8"),
}

FORGED_OLD = {
    "input 0": ({"side": 0}, "input side 0"),
    "input 13": ({"side": 13}, "input side 13"),
    "input of other images": ({"side": 14}, "196 inputs, not 7"),
    "weights of 0 bits": ({"bits": 0}, "not in 1..8"),
    "activations of 9 bits": ({"activation_bits": 9}, "not in 1..8"),
    "exponent 101": ({"exponent": 101}, "logit exponent"),
    "no layers": ({"count": 0, "rows": ()}, "0 layers"),
    "65 layers": ({"count": 65, "rows": ((1, 1, 1, 0),) * 65}, "65 steps"),
    "more layers than rows": ({"count": 255}, "header"),
    "fewer layers than rows": ({"count": 1}, "not legal"),
    "inputs up to the limit": ({"inputs": 65_536}, "bytes, deflated"),
    "too many weights": ({"inputs": 65_536, "rows": ((257, 10, 1, 2), (3, 10, 0, 0))},
                         "weights, more than"),
    "many outputs": ({"rows": ((65_536, 10, 1, 2), (3, 10, 0, 0))}, "ends inside its biases"),
    "biases of 26 bits": ({"rows": ((5, 26, 1, 2), (3, 10, 0, 0))}, "not legal"),
}


@pytest.mark.parametrize("changes, reason", FORGED.values(), ids=FORGED)
def test_forged_file_is_refused_in_one_line(changes, reason):
    assert re.search(reason, refusal(forge(**changes)))


@pytest.mark.parametrize("changes, reason", FORGED_OLD.values(), ids=FORGED_OLD)
def test_forged_file_of_version_1_is_refused_in_one_line(changes, reason):
    assert re.search(reason, refusal(forge_old(**changes)))


def test_what_is_forged_is_legal_but_for_its_change():
    for content in (forge(), forge_old()):
        network, facts = checkpoint.decode(content)
        assert plan.sizes(network.steps) == SIZES and not network.layers[0].w_q.any()
        assert facts.classes == ("0", "1", "2")
    for changes in (first(least=28), last(width=11), {"bits": 8, "weights": deflate(bytes(50))},
                    {"shape": (8,), "weights": deflate(bytes(28))}, {"exponent": -100},
                    {"text": "é\nb\nc".encode()}, {"steps": b"\x80\4\0"},
                    {"features": 7, "encoding": bytes(35)}):
        checkpoint.decode(forge(**changes))


def test_largest_network_takes_bounded_memory():
    side = 4_096
    assert side**2 == plan.MAX_WEIGHTS
    content = forge(bits=5, count=0, steps=b"", shape=(side,), classes=side, rows=((1, 0, 0),),
                    stream=bytes(side // 8), weights=deflate(bytes(side**2)))
    assert len(content) < 20_000
    tracemalloc.start()
    try:
        nqat.decode(content)
        assert tracemalloc.get_traced_memory()[1] < 150_000_000
    finally:
        tracemalloc.stop()


def test_file_is_saved_and_loaded(rng, tmp_path):
    network = oracle.random_network(rng, SIZES, 4, 3)
    path = tmp_path / checkpoint.default_name(True, 4, "nqat")
    facts = checkpoint.Facts("not kept", "00", tuple("abc"), switches={"SEED": 1}, val_loss=0.5)
    size = checkpoint.save(path, network, facts, "nqat")
    assert size == path.stat().st_size
    loaded, found = checkpoint.load(path)
    assert_same_networks(loaded, network)
    assert found == checkpoint.Facts(classes=tuple("abc"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="CRC") as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)


def test_names_that_count_up_take_no_bytes(rng):
    network = oracle.random_network(rng, SIZES, 4, 3)
    plain = nqat.encode(network)
    assert nqat.encode(network, ("0", "1", "2")) == plain
    assert len(nqat.encode(network, ("0", "1", "é"))) == len(plain) + len("0\n1\né".encode())


def test_only_what_can_be_loaded_is_saved(rng, tmp_path):
    floats = integer.FloatNetwork(((np.ones((7, 3), np.float32), np.zeros(3, np.float32)),),
                                  plan.parse("", (7,), 3))
    heavy = oracle.random_network(rng, SIZES)
    heavy.layers[0].b_q[0] = 2**24
    for network, reason in ((floats, "integers"), (heavy, "not legal")):
        with pytest.raises(ValueError, match=reason):
            checkpoint.save(tmp_path / "w.nqat", network, form="nqat")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("switch", ["--QAT_ENABLE=False", "--POWER_OF_TWO_SCALES=False"])
def test_switches_that_make_no_integers_make_no_nqat(switch):
    for argv in (["--FILE_FORMAT=nqat", switch], [switch, "--FILE_FORMAT=nqat"]):
        with pytest.raises(InputError, match="FILE_FORMAT = 'nqat' is not legal; give npz, or QAT"):
            config.load(argv)
