"""Weights files: .npz without pickle, written atomically, read as hostile; NumPy only."""
import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np

from files import InputError, write_atomically

FORMAT = 1                      # of the file; a reader refuses other numbers
MAX_BYTES = 2**30               # of all members unpacked; more is refused before memory is taken
MAX_EXPONENT = 60               # of a scale, either way: float32 can hold products of two
ACC_LIMIT = 2**24               # float32 holds every smaller integer: the proof of exactness


def default_path(folder, quantized, weight_bits):
    """Where main_train.py saves: weights_int{b}.npz or weights_unquantized_int8.npz."""
    return Path(folder) / (f"weights_int{weight_bits}.npz" if quantized
                           else "weights_unquantized_int8.npz")


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
    count = math.prod(shape)
    fields = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    if bits == 1:
        return (2 * fields.astype(np.int8) - 1).reshape(shape)
    place = 1 << np.arange(bits, dtype=np.int16)
    place[-1] *= -1                             # two's complement: the top bit counts negative
    return (fields @ place).astype(np.int8).reshape(shape)


def accumulator_bound(layer, x_qmax):
    """The largest |accumulator| that any input can cause, per channel: int64 [O]."""
    return (x_qmax * np.abs(layer["w_q"].astype(np.int64)).sum(0)
            + np.abs(layer["b_q"].astype(np.int64)))


def _check_exact(layers, activation_bits):
    """Raise InputError unless every accumulator stays below 2**24 and every shift is 1 or more."""
    for i, layer in enumerate(layers):
        for name in ("w_exponent", "x_exponent"):
            if np.abs(layer[name].astype(int)).max() > MAX_EXPONENT:
                raise InputError(f"{_key(name, i)} is not in -{MAX_EXPONENT}..{MAX_EXPONENT}")
        bound = accumulator_bound(layer, 255 if i == 0 else 2**activation_bits - 1).max()
        if bound >= ACC_LIMIT:
            raise InputError(f"layer {i} can reach |accumulator| {bound}, not below 2**24; "
                             "lower WEIGHT_BITS, ACTIVATION_BITS or the layer's inputs")
        if i + 1 < len(layers):
            shift = (int(layers[i + 1]["x_exponent"]) - int(layer["x_exponent"])
                     - layer["w_exponent"].astype(int))
            if shift.min() < 1:
                raise InputError(f"layer {i} needs a requantizing shift of 1 or more, "
                                 f"has {shift.min()}")


def save(path, layers, meta):
    """Write a weights file; the old file stays whole until the new one is.

    Args:
      path: .npz to write.
      layers: list of dicts: quantized ones as from model.quantize, or {"w": float32 [I, O],
        "b": float32 [O]}.
      meta: dict for JSON, without the keys that this function adds; quantized files need
        weight_bits and activation_bits.
    Returns:
      the file's size in bytes.
    Raises:
      InputError: an accumulator could leave float32's exact integers, or the path can't be written.
    """
    meta = {"format": FORMAT, "quantized": "w_q" in layers[0], **meta}
    if meta["quantized"]:
        _check_exact(layers, meta["activation_bits"])
    sizes = [next(iter(layer.values())).shape[0] for layer in layers]
    meta["layer_sizes"] = [*sizes, len(layers[-1].get("b", layers[-1].get("b_q")))]
    arrays = {"meta": np.array(json.dumps(meta))}
    for i, layer in enumerate(layers):
        for name, array in layer.items():
            packs = name == "w_q" and meta["weight_bits"] < 8
            arrays[_key(name, i)] = pack(array, meta["weight_bits"]) if packs else array
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
    return len(buffer.getvalue())


def _key(name, i):
    """w_q of layer 0 is w0_q; b of layer 2 is b2."""
    return f"{name[0]}{i}{name[1:]}"


def _expected(meta):
    """The (key, dtype, shape) of every array that a file with this meta must hold, per layer."""
    bits, sizes = meta.get("weight_bits"), meta["layer_sizes"]
    for i, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:])):
        if not meta["quantized"]:
            yield {"w": (np.float32, (inputs, outputs)), "b": (np.float32, (outputs,))}
            continue
        packed = (np.uint8, (math.ceil(inputs * outputs * bits / 8),))
        per_channel = meta["per_channel"] and i + 2 < len(sizes)
        yield {"w_q": packed if bits < 8 else (np.int8, (inputs, outputs)),
               "w_exponent": (np.int8, (outputs if per_channel else 1,)),
               "x_exponent": (np.int8, ()), "b_q": (np.int32, (outputs,))}


def _read_member(archive, key):
    """One array of the zip, its header's claim checked against the member's size first."""
    info = archive.getinfo(f"{key}.npy")
    content = io.BytesIO(archive.read(info))
    version = np.lib.format.read_magic(content)
    reader = {(1, 0): np.lib.format.read_array_header_1_0,
              (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = reader(content)
    if dtype.hasobject:
        raise InputError(f"{key} holds a pickle")
    data = content.read()
    if math.prod(shape) * dtype.itemsize != len(data):
        raise InputError(f"{key} claims shape {shape} of {dtype} in {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _check_meta(meta):
    """Raise InputError unless the meta describes a network that this code can run."""
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"its format is not {FORMAT}")
    sizes = meta.get("layer_sizes")
    if not (isinstance(sizes, list) and 2 <= len(sizes) <= 64
            and all(type(n) is int and 1 <= n <= 65_536 for n in sizes)):
        raise InputError(f"layer_sizes {sizes!r} is not a list of at least 2 widths")
    if type(meta.get("quantized")) is not bool:
        raise InputError("it does not say whether it is quantized")
    if meta["quantized"]:
        for key in ("weight_bits", "activation_bits"):
            if type(meta.get(key)) is not int or not 1 <= meta[key] <= 8:
                raise InputError(f"{key} = {meta.get(key)!r} is not in 1..8")
        if type(meta.get("per_channel")) is not bool:
            raise InputError("it does not say whether it is per channel")


def _read(path):
    """load without the path in its errors."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(info.filename for info in archive.infolist())
        total = sum(info.file_size for info in archive.infolist())
        if total > MAX_BYTES:
            raise InputError(f"it unpacks to {total} bytes, more than {MAX_BYTES}")
        if "meta.npy" not in names:
            raise InputError("the key meta is missing")
        meta = _read_member(archive, "meta")
        if meta.dtype.kind != "U" or meta.shape != ():
            raise InputError("meta is not text")
        meta = json.loads(str(meta))
        _check_meta(meta)
        expected = list(_expected(meta))
        keys = ["meta"] + [_key(name, i) for i, layer in enumerate(expected) for name in layer]
        if names != sorted(f"{key}.npy" for key in keys):
            raise InputError(f"its keys are not {', '.join(sorted(keys))}")
        layers = []
        for i, wanted in enumerate(expected):
            layers.append({name: _read_member(archive, _key(name, i)) for name in wanted})
            for name, (dtype, shape) in wanted.items():
                array = layers[i][name]
                if array.dtype != dtype or array.shape != shape:
                    raise InputError(f"{_key(name, i)} is {array.dtype} {array.shape}, not "
                                     f"{np.dtype(dtype)} {shape}")
    return layers, meta


def load(path):
    """Read a weights file from anywhere.

    Returns:
      (layers, meta): as given to save, codes unpacked to int8.
    Raises:
      InputError: missing, truncated, not an npz, a pickle, wrong keys, shapes, dtypes, bits or
        codes, non-finite floats, an accumulator bound that is not exact, larger than MAX_BYTES.
    """
    try:
        layers, meta = _read(path)
        if not meta["quantized"]:
            if not all(np.isfinite(array).all() for layer in layers for array in layer.values()):
                raise InputError("it holds a weight that is not finite")
            return layers, meta
        bits, sizes = meta["weight_bits"], meta["layer_sizes"]
        qmax = max(1, 2 ** (bits - 1) - 1)
        for i, layer in enumerate(layers):
            if bits < 8:
                layer["w_q"] = unpack(layer["w_q"], bits, (sizes[i], sizes[i + 1]))
            if np.abs(layer["w_q"].astype(np.int16)).max() > qmax:
                raise InputError(f"w{i}_q holds a code beyond {qmax}")
        if layers[0]["x_exponent"] != -8:
            raise InputError("x0_exponent is not -8, the scale of pixel bytes")
        _check_exact(layers, meta["activation_bits"])
        return layers, meta
    except InputError as error:
        raise InputError(f"{path} is not a weights file: {error}; train it again") from None
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run main_train.py or give --WEIGHTS=FILE") from None
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from None
    except Exception as error:      # zipfile, zlib, NumPy and JSON raise many kinds on damage
        raise InputError(f"{path} is not a readable npz ({type(error).__name__}); train it "
                         "again") from None
