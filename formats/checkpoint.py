"""Weights files, .npz or .nqat: a deployed model to bytes and back, read as hostile.

A deployed model is an integer.Network or, in float32, an integer.FloatNetwork. NumPy only.
"""
import hashlib
import math
import os
from pathlib import Path

import numpy as np

import integer
from formats import npz, nqat
from machine.files import InputError, read_bytes, write_atomically

FORMAT = 2                      # of the npz; a reader refuses other numbers
MAX_FILE = 2**27                # bytes; no network of integer.MAX_WEIGHTS takes more


def default_name(quantized, weight_bits, form="npz"):
    """The file that main_train.py saves: weights_int{b}.{form} or weights_unquantized_int8.npz."""
    return f"weights_int{weight_bits}.{form}" if quantized else "weights_unquantized_int8.npz"


def find(weights, folders, quantized, weight_bits, form="npz"):
    """The weights file to use: `weights` if given, else the first of the folders that has it."""
    paths = [Path(folder) / default_name(quantized, weight_bits, form) for folder in folders]
    return Path(weights) if weights else next(filter(os.path.exists, paths), paths[-1])


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
    fields = (codes.reshape(-1, 1) > 0 if bits == 1
              else codes.reshape(-1, 1) >> np.arange(bits, dtype=np.int8) & 1)
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


def encode(network, facts, form="npz"):
    """The bytes of a weights file, the same for the same model and facts.

    Args:
      network: integer.Network or integer.FloatNetwork; facts: dict for JSON: what the model was
        made from; form: npz or nqat, which has no place for them.
    Raises:
      ValueError: an .nqat of a FloatNetwork. What else is wrong with a model, decode says.
    """
    quantized = isinstance(network, integer.Network)
    if form == "nqat":
        if not quantized:
            raise ValueError("an .nqat holds integers, not float32 weights")
        return nqat.encode(network)
    meta = {"format": FORMAT, "quantized": quantized, "layer_sizes": integer.sizes(network),
            "input": network.input, "facts": facts}
    if quantized:
        meta |= {"weight_bits": network.weight_bits, "activation_bits": network.activation_bits,
                 "logit_exponent": network.logit_exponent}
        arrays = {}
        for i, layer in enumerate(network.layers):
            packs = network.weight_bits < 8
            arrays[f"w{i}_q"] = pack(layer.w_q, network.weight_bits) if packs else layer.w_q
            arrays[f"b{i}_q"] = layer.b_q
            if layer.shift is not None:
                arrays[f"shift{i}"] = layer.shift
    else:
        arrays = {f"{name}{i}": np.asarray(array) for i, layer in enumerate(network.layers)
                  for name, array in zip("wb", layer, strict=True)}
    return npz.encode(meta, arrays)


def save(path, network, facts, form="npz"):
    """encode into a file, atomically: its size in bytes.

    Raises:
      ValueError: decode would refuse it, one line; InputError: it can't be written.
    """
    content = encode(network, facts, form)
    decode(content)                             # whatever is saved can be loaded
    write_atomically(path, content)
    return len(content)


def _check_meta(meta):
    """Raise ValueError unless the meta describes a network that this code can run."""
    if meta.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    sizes = meta.get("layer_sizes")
    if not isinstance(sizes, list) or not all(type(n) is int for n in sizes):
        raise ValueError("layer_sizes is not a list of widths")
    integer.check_sizes(sizes)
    if type(meta.setdefault("input", integer.IMAGE_SIDE)) is not int:   # older files lack it
        raise ValueError("input is not an integer")
    integer.check_input(meta["input"], sizes[0])
    facts = meta.get("facts")
    if (type(meta.get("quantized")) is not bool or not isinstance(facts, dict)
            or not isinstance(facts.get("dataset", {}), dict)
            or type(facts.get("val_loss", 0.0)) not in (int, float)):
        raise ValueError("it does not say whether it is quantized, or from what it was made")
    if meta["quantized"]:
        for key in ("weight_bits", "activation_bits", "logit_exponent"):
            if type(meta.get(key)) is not int:
                raise ValueError(f"{key} is not an integer")
        if not 1 <= meta["weight_bits"] <= 8:
            raise ValueError(f"weight_bits = {meta['weight_bits']} is not in 1..8")


def _claim(meta):
    """The (dtype, shape) of every array that a file with this meta must hold, by its name."""
    _check_meta(meta)
    sizes, arrays = meta["layer_sizes"], {}
    for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
        if not meta["quantized"]:
            arrays |= {f"w{i}": (np.float32, (inputs, outputs)), f"b{i}": (np.float32, (outputs,))}
            continue
        packed = np.uint8, (math.ceil(inputs * outputs * meta["weight_bits"] / 8),)
        arrays |= {f"w{i}_q": packed if meta["weight_bits"] < 8 else (np.int8, (inputs, outputs)),
                   f"b{i}_q": (np.int32, (outputs,))}
        if i + 2 < len(sizes):
            arrays[f"shift{i}"] = np.int8, (outputs,)
    return arrays


def decode(content):
    """A deployed model and its facts, from the bytes of a weights file from anywhere.

    Returns:
      (network, facts), as given to encode; codes unpacked to int8; facts {} of an .nqat.
    Raises:
      ValueError with a reason, or what zipfile, zlib and NumPy raise on damage.
    """
    if content.startswith(nqat.MAGIC):
        return nqat.decode(content), {}
    meta, arrays = npz.decode(content, _claim)
    sizes = meta["layer_sizes"]
    if not meta["quantized"]:
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("it holds a weight that is not finite")
        layers = tuple((arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(len(sizes) - 1))
        return integer.FloatNetwork(layers, meta["input"]), meta["facts"]
    bits, layers = meta["weight_bits"], []
    for i, shape in enumerate(zip(sizes, sizes[1:])):
        w_q = arrays[f"w{i}_q"]
        layers.append(integer.Layer(unpack(w_q, bits, shape) if bits < 8 else w_q,
                                    arrays[f"b{i}_q"], arrays.get(f"shift{i}")))
    return integer.make_network(layers, bits, meta["activation_bits"],
                                meta["logit_exponent"], meta["input"]), meta["facts"]


def load(path):
    """Read a weights file from anywhere.

    Returns:
      (network, facts): as given to save.
    Raises:
      InputError: missing, truncated, no npz or nqat, a pickle, wrong keys, shapes, dtypes, bits,
        codes or CRC, non-finite floats, an accumulator that is not exact, or larger than a network
        of integer.MAX_WEIGHTS.
    """
    if not os.path.exists(path):                # unlike Path's, False for a name too long
        raise InputError(f"{path} is missing; run main_train.py or give --WEIGHTS=FILE")
    content = read_bytes(path, MAX_FILE)
    try:
        return decode(content)
    except Exception as error:
        raise InputError(f"{path} is not a weights file: {npz.reason(error)}; train it "
                         "again") from None


def load_quantized(path):
    """As load; InputError, too, unless the network is an integer.Network."""
    network, facts = load(path)
    if not isinstance(network, integer.Network):
        raise InputError(f"{path} holds float32 weights, which have no integers to export; "
                         "train with QAT_ENABLE = True")
    return network, facts
