"""Weights files, .npz or .nqat: a deployed model to bytes and back, read as hostile. NumPy only."""
import hashlib
import math
import os
from typing import NamedTuple

import numpy as np

import integer
import plan
from formats import earlier, encode as encode_features, npz, nqat
from machine.files import InputError, read_bytes, write_atomically

FORMATS = (2, 3)                # of the npz that are read; the last one is written
MAX_FILE = 2**27                # bytes; no network of plan.MAX_WEIGHTS takes more
MAX_TEXT = 200                  # characters of a name, of a switch


class Facts(NamedTuple):
    """What a model was made from, and what its numbers mean; typed when read."""
    dataset: str = ""           # its name; "": unknown, as of an .nqat
    sha256: str = ""            # of the data set's content
    classes: tuple = ()         # of str: their names
    low: np.ndarray | None = None       # float32 [F], exponent int8 [F]: how features become
    exponent: np.ndarray | None = None  # bytes; None of images
    switches: dict = {}         # that the run depended on: numbers, bools and text
    val_loss: float | None = None       # nats


def default_name(quantized, weight_bits, form="npz"):
    """The file that main_train.py saves: weights_int{b}.{form} or weights_unquantized_int8.npz."""
    return f"weights_int{weight_bits}.{form}" if quantized else "weights_unquantized_int8.npz"


def digest(network):
    """SHA-256 of a model's arrays, as hex: the same for the same weights, whatever the file."""
    sha256 = hashlib.sha256()
    for layer in network.layers:
        for array in layer:
            if array is not None:
                sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


def pack(codes, bits):
    """int8 codes, any shape, to uint8 [ceil(N * bits / 8)]: two's complement fields of `bits` bits.

    Little-endian along the flattened array: bit j of code k is bit k * bits + j of the stream. One
    bit: 0 is -1 and 1 is +1.
    """
    codes = codes.reshape(-1, 1)
    fields = codes > 0 if bits == 1 else (codes >> np.arange(bits, dtype=np.int8)) & 1
    return np.packbits(fields.astype(np.uint8), bitorder="little")


def unpack(packed, bits, shape):
    """The inverse of pack: uint8 bytes to int8 codes of `shape`."""
    codes = np.empty(math.prod(shape), np.int8)
    place = (1 << np.arange(bits)).astype(np.int8)
    place[-1] = -(2 ** (bits - 1))              # two's complement: the top bit counts negative
    block = 2**20                               # codes at a time; a multiple of 8 ends on a byte
    for start in range(0, len(codes), block):
        part = codes[start:start + block]
        fields = np.unpackbits(packed[start * bits // 8:], count=len(part) * bits,
                               bitorder="little").reshape(len(part), bits)
        fields = fields.view(np.int8)
        part[:] = 2 * fields[:, 0] - 1 if bits == 1 else fields @ place
    return codes.reshape(shape)


def encode(network, facts=Facts(), form="npz"):         # noqa: B008 (a tuple: nobody changes it)
    """The bytes of a weights file, the same for the same model and facts.

    Args:
      network: integer.Network or integer.FloatNetwork.
      facts: Facts.
      form: npz, or nqat, which holds the classes and the encoding of them only.
    Raises:
      ValueError: an .nqat of a FloatNetwork. What else is wrong with a model, decode says.
    """
    quantized = isinstance(network, integer.Network)
    classes = facts.classes or plan.class_names(network.steps[-1].after[0])
    if form == "nqat":
        if not quantized:
            raise ValueError("an .nqat holds integers, not float32 weights")
        return nqat.encode(network, classes, facts.low, facts.exponent)
    meta = {"format": FORMATS[-1], "quantized": quantized, "layers": plan.to_line(network.steps),
            "shape": network.steps[0].before, "classes": classes, "facts": {
                "dataset": facts.dataset, "sha256": facts.sha256, "switches": facts.switches,
                "val_loss": facts.val_loss}}
    arrays = {}
    if facts.low is not None:
        meta["features"] = len(facts.low)
        arrays = {"low": np.float32(facts.low), "exponent": np.int8(facts.exponent)}
    if quantized:
        meta |= {"weight_bits": network.weight_bits, "activation_bits": network.activation_bits,
                 "logit_exponent": network.logit_exponent}
        packs = network.weight_bits < 8
        for i, layer in enumerate(network.layers):
            arrays[f"w{i}_q"] = pack(layer.w_q, network.weight_bits) if packs else layer.w_q
            arrays[f"b{i}_q"] = layer.b_q
            if layer.shift is not None:
                arrays[f"shift{i}"] = layer.shift
    else:
        arrays |= {f"{name}{i}": np.asarray(array) for i, layer in enumerate(network.layers)
                   for name, array in zip("wb", layer, strict=True)}
    return npz.encode(meta, arrays)


def save(path, network, facts=Facts(), form="npz"):     # noqa: B008 (a tuple: nobody changes it)
    """encode into a file, atomically: its size in bytes.

    Raises:
      ValueError: decode would refuse it, one line; InputError: it can't be written.
    """
    content = encode(network, facts, form)
    decode(content)                             # whatever is saved can be loaded
    write_atomically(path, content)
    return len(content)


def _typed(meta, key, kind, default=None):
    """meta[key] if it is of this type; ValueError names it. bool is no int here."""
    value = meta.get(key, default)
    if type(value) is not kind:
        raise ValueError(f"its {key} is no {kind.__name__}")
    return value


def _text(value):
    """A text from outside as it may reach a terminal: one line, no escape codes, not long."""
    if type(value) is not str or len(value) > MAX_TEXT:
        raise ValueError(f"it holds a name that is no text of at most {MAX_TEXT} characters")
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode()
                   for c in value)


def _old_layers(meta):
    """(line of LAYERS, shape, number of classes) of a meta of format 2."""
    sizes, side = meta.get("layer_sizes"), meta.get("input", 28)
    if (type(sizes) is not list or not all(type(n) is int for n in sizes) or len(sizes) < 2
            or type(side) is not int or side not in earlier.OLD_SIDES):
        raise ValueError("layer_sizes is no list of widths, or input no side of an image")
    return *earlier.from_sizes(side, sizes), sizes[-1]


def parse_facts(meta, names):
    """Facts without arrays, from a file's JSON of any format; ValueError says what is wrong."""
    facts = _typed(meta, "facts", dict)
    dataset, switches = facts.get("dataset", ""), _typed(facts, "switches", dict, {})
    sha256 = facts.get("sha256", "")
    if meta.get("format") == 2:
        dataset = _typed(facts, "dataset", dict, {})
        dataset, sha256 = dataset.get("name", ""), dataset.get("sha256", "")
        if switches:                            # what LAYERS says now
            switches = switches | {"LAYERS": _old_layers(meta)[0]}
            switches = {name: value for name, value in switches.items()
                        if name not in ("LAYER_SIZES", "INPUT")}
    val_loss = facts.get("val_loss")
    if val_loss is not None:
        if type(val_loss) not in (int, float) or not 0 <= val_loss <= 1e30:
            raise ValueError("its val_loss is no loss: a number of nats in 0..1e30")
        val_loss = float(val_loss)
    checked = {}
    for name, value in switches.items():
        if type(value) is str:
            value = _text(value)
        elif type(value) not in (bool, int, float):
            raise ValueError(f"its switch {_text(name)} is no number, bool or text")
        checked[_text(name)] = value
    return Facts(_text(dataset), _text(sha256), names, None, None, checked, val_loss)


def _check_meta(meta):
    """(steps, class names) that the meta describes; ValueError unless this code can run it."""
    if meta.get("format") not in FORMATS:
        raise ValueError(f"its format is not {' or '.join(map(str, FORMATS))}")
    if meta["format"] == 2:
        line, shape, classes = _old_layers(meta)
        names = plan.class_names(min(classes, plan.MAX_WIDTH))
    else:
        line, shape = _typed(meta, "layers", str), _typed(meta, "shape", list)
        if len(line) > 2_000 or len(shape) not in (1, 3) or not all(
                type(n) is int and n > 0 for n in shape):
            raise ValueError("its layers are too long, or its shape is not 1 or 3 counts")
        names = tuple(map(_text, _typed(meta, "classes", list)))
        classes = len(names)
    if type(meta.get("quantized")) is not bool:
        raise ValueError("it does not say whether it is quantized")
    if meta["quantized"]:
        for key in ("weight_bits", "activation_bits", "logit_exponent"):
            _typed(meta, key, int)
        if not 1 <= meta["weight_bits"] <= 8:
            raise ValueError(f"weight_bits = {meta['weight_bits']} is not in 1..8")
    return plan.parse(line, tuple(shape), classes), names


def _claim(meta):
    """The (dtype, shape) of every array that a file with this meta must hold, by its name."""
    steps, _ = _check_meta(meta)
    shapes, arrays = [step.weights for step in steps if step.has_weights], {}
    features = _typed(meta, "features", int, 0)
    if features:
        if features > plan.MAX_WIDTH:           # before memory is taken for them
            raise ValueError(f"it encodes {features} features")
        arrays = {"low": (np.float32, (features,)), "exponent": (np.int8, (features,))}
    for i, (inputs, outputs) in enumerate(shapes):
        if not meta["quantized"]:
            arrays |= {f"w{i}": (np.float32, (inputs, outputs)), f"b{i}": (np.float32, (outputs,))}
            continue
        packed = np.uint8, (math.ceil(inputs * outputs * meta["weight_bits"] / 8),)
        arrays |= {f"w{i}_q": packed if meta["weight_bits"] < 8 else (np.int8, (inputs, outputs)),
                   f"b{i}_q": (np.int32, (outputs,))}
        if i + 1 < len(shapes):
            arrays[f"shift{i}"] = np.int8, (outputs,)
    return arrays


def _check_encoding(facts, steps):
    """The Facts; ValueError unless what encodes their features, if anything, can be run."""
    if facts.low is not None:
        if len(facts.low) != steps[0].before[-1]:
            raise ValueError(f"it encodes {len(facts.low)} features of {steps[0].before[-1]}")
        if (not np.isfinite(facts.low).all() or facts.exponent.min() < encode_features.LEAST
                or facts.exponent.max() > encode_features.MOST):
            raise ValueError("an encoding of it is not finite, or its step is out of range")
    return facts


def decode(content):
    """A deployed model and its Facts, from the bytes of a weights file from anywhere.

    Returns:
      (network, facts), as given to encode; codes unpacked to int8.
    Raises:
      ValueError with a reason, or what zipfile, zlib and NumPy raise on damage.
    """
    if content.startswith(nqat.MAGIC):
        network, names, low, exponent = nqat.decode(content)
        facts = Facts(classes=tuple(map(_text, names)), low=low, exponent=exponent)
        return network, _check_encoding(facts, network.steps)
    meta, arrays = npz.decode(content, _claim)
    steps, names = _check_meta(meta)
    facts = parse_facts(meta, names)._replace(low=arrays.get("low"),
                                              exponent=arrays.get("exponent"))
    _check_encoding(facts, steps)
    if not all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f"):
        raise ValueError("it holds a number that is not finite")
    shapes = [step.weights for step in steps if step.has_weights]
    if not meta["quantized"]:
        layers = tuple((arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(len(shapes)))
        return integer.FloatNetwork(layers, steps), facts
    bits, layers = meta["weight_bits"], []
    for i, shape in enumerate(shapes):
        w_q = arrays[f"w{i}_q"]
        layers.append(integer.Layer(unpack(w_q, bits, shape) if bits < 8 else w_q,
                                    arrays[f"b{i}_q"], arrays.get(f"shift{i}")))
    return integer.make_network(layers, bits, meta["activation_bits"],
                                meta["logit_exponent"], steps), facts


def load(path):
    """Read a weights file from anywhere.

    Returns:
      (network, Facts): as given to save.
    Raises:
      InputError: missing, truncated, no npz or nqat, a pickle, wrong keys, shapes, dtypes, bits,
        codes, facts or CRC, non-finite floats, an accumulator that is not exact, or larger than a
        network of plan.MAX_WEIGHTS.
    """
    if not os.path.exists(path):                # unlike Path's, False for a name too long
        raise InputError(f"{path} is missing; run main_train.py or give --WEIGHTS=FILE")
    content = read_bytes(path, MAX_FILE)
    try:
        return decode(content)
    except Exception as error:
        raise InputError(f"{path} is not a weights file: {npz.reason(error)}; train it "
                         "again") from None


def check_quantized(network, path):
    """InputError unless what a file holds is an integer.Network."""
    if not isinstance(network, integer.Network):
        raise InputError(f"{path} holds float32 weights, which have no integers to export; "
                         "train with QAT_ENABLE = True")


def load_quantized(path):
    """As load, then check_quantized."""
    network, facts = load(path)
    check_quantized(network, path)
    return network, facts
