"""The .nqat file: a quantized network in few bytes, with a CRC; docs/format.md specifies it.

A header with the words of LAYERS, biases and shifts bit by bit, the weights Huffman coded. NumPy
and zlib only.
"""
import math
import struct
import zlib
from typing import NamedTuple

import numpy as np

import integer
import plan
from formats import earlier

MAGIC, VERSION = b"NQAT", 2
KINDS = ("crop", "mean", "conv", "max", "dense")    # of a step: the upper three bits of its byte
OLD_HEADER = struct.Struct("<3BbBH")    # version 1: input side, bits of a weight and of an
                                        # activation, logit exponent, layers, inputs - 1
OLD_ROW = struct.Struct("<HBBB")        # outputs - 1, then as ROW
ROW = struct.Struct("<BBB")             # bits of a bias, least shift, bits of a shift above it
BIAS_BITS, SHIFT_BITS = 25, 5           # the most that a network needs: |bias| < 2**24, shift <= 30
CRC_SIZE = 4


class Content(NamedTuple):
    """What an .nqat holds."""
    network: integer.Network
    classes: tuple              # of str: their names
    low: np.ndarray | None      # float32 [F], exponent int8 [F]: how features become bytes
    exponent: np.ndarray | None


class _Reader:
    """Bytes from anywhere, taken from the front; ValueError where they end too early."""

    def __init__(self, content):
        self.content, self.at = content, 0

    def bytes(self, count):
        self.at += count
        if self.at > len(self.content):
            raise ValueError("it ends inside its header")
        return self.content[self.at - count:self.at]

    def numbers(self, layout):
        return struct.unpack(f"<{layout}", self.bytes(struct.calcsize(f"<{layout}")))


def _to_bits(values, width):
    """Integers [N] to uint8 [N * width], 0 or 1: the lowest bit first, two's complement."""
    return ((values[:, None] >> np.arange(width)) & 1).astype(np.uint8).reshape(-1)


def _deflate(codes, bits):
    """int8 [N] to raw DEFLATE, Huffman codes only, of bytes that hold as many codes as fit.

    Several codes in a byte, as Huffman codes have no half bits: a ternary code takes 1.5, not 1.8.
    """
    per = 8 // bits
    fields = (codes > 0 if bits == 1 else codes).astype(np.uint8) & ((1 << bits) - 1)
    fields = np.append(fields, np.zeros(-len(fields) % per, np.uint8))
    symbols = fields.reshape(-1, per) @ (1 << (bits * np.arange(per))).astype(np.uint8)
    packer = zlib.compressobj(wbits=-15, strategy=zlib.Z_HUFFMAN_ONLY)
    return packer.compress(symbols.tobytes()) + packer.flush()


def _inflate(content, bits, count):
    """The inverse of _deflate: int8 [count], from bytes from anywhere."""
    per = 8 // bits
    size, unpacker = math.ceil(count / per), zlib.decompressobj(-15)
    try:
        symbols = unpacker.decompress(content, size + 1)        # 1 more, to see that it ends there
    except zlib.error:
        raise ValueError("its weights are not a DEFLATE stream") from None
    if len(symbols) != size or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"its weights are not {size:,} bytes, deflated, at the end of the file")
    symbols = np.frombuffer(symbols, np.uint8)
    places = (bits * np.arange(per)).astype(np.uint8)
    fields = (symbols[:, None] >> places) & ((1 << bits) - 1)
    fields, padding = np.split(fields.reshape(-1), [count])
    if int(symbols.max()) >> (bits * per) or padding.any():
        raise ValueError("unused bits of its weights are not 0")
    if bits == 1:
        return (2 * fields - 1).view(np.int8)
    return (fields << (8 - bits)).view(np.int8) >> (8 - bits)   # the top bit is the sign


def check_kinds(steps):
    """ValueError unless every step is one that this file, and every export, has a way to say."""
    for step in steps:
        if step.kind not in KINDS:
            raise ValueError(f"its word {step.kind!r} is known to plan.py alone: .npz files and "
                             "engines in Python take it, no .nqat and no export")


def _pack_step(step):
    """A step's byte and, of a crop its side, of weights their outputs - 1."""
    kind = KINDS.index(step.kind) << 5
    if step.kind == "conv":
        kind |= (max(step.kernel) << 2) | (max(step.stride) - 1)
    if step.has_weights:
        return struct.pack("<BH", kind, step.after[-1] - 1)
    return struct.pack("<BH", kind, max(step.kernel)) if step.kind == "crop" else bytes([kind])


def _read_step(reader):
    """The word of LAYERS that a step's bytes stand for."""
    first, = reader.numbers("B")
    if first >> 5 >= len(KINDS):
        raise ValueError("a step of it is of no kind")
    kind = KINDS[first >> 5]
    if kind != "conv" and first & 31:
        raise ValueError(f"a step of it, {kind}, has bits that mean nothing")
    if kind == "crop":
        return f"crop{reader.numbers('H')[0]}"
    if kind in ("mean", "max"):
        return f"{kind}2"
    outputs = reader.numbers("H")[0] + 1
    if kind == "dense":
        return str(outputs)
    return f"conv{(first >> 2) & 7}x{outputs}/{(first & 3) + 1}"


def _pack_header(network, names, low, exponent):
    """All that comes before the rows of the layers."""
    steps, shape = network.steps, network.steps[0].before
    default = names == plan.class_names(len(names))
    text = b"" if default else "\n".join(names).encode()
    if len(text) > 65_535:
        raise ValueError("the names of its classes take more than 65,535 bytes")
    count = 0 if low is None else len(low)
    if count > 65_535:
        raise ValueError(f"an .nqat holds the encoding of 65,535 features at most, not {count:,}")
    parts = [MAGIC, struct.pack("<BBb", VERSION,
                                (network.weight_bits << 4) | network.activation_bits,
                                network.logit_exponent),
             struct.pack(f"<B{len(shape)}HHBH", len(shape), *(n - 1 for n in shape),
                         steps[-1].after[0] - 1, len(steps) - 1, len(text)), text,
             *map(_pack_step, steps[:-1]), struct.pack("<H", count)]
    if count:
        parts += [np.asarray(low, "<f4").tobytes(), np.asarray(exponent, np.int8).tobytes()]
    return b"".join(parts)


def encode(network, classes=None, low=None, exponent=None):
    """The bytes of an .nqat, the same for the same content.

    Args:
      network: integer.Network.
      classes: tuple of str, their names; None: 0, 1, ..., which take no bytes.
      low, exponent: float32 [F] and int8 [F], how features become bytes; None of images.
    Raises:
      ValueError: as from check_kinds.
    """
    check_kinds(network.steps)
    names = tuple(classes or plan.class_names(network.steps[-1].after[0]))
    rows, parts = [], []
    for _, b_q, shift in network.layers:
        least, above = 0, np.zeros(1, np.int8)  # what the last layer has in place of shifts
        if shift is not None:
            least, above = shift.min(), shift - shift.min()
        width = max(int(b_q.max()), ~int(b_q.min())).bit_length() + 1
        spread = int(above.max()).bit_length()
        rows.append(ROW.pack(width, least, spread))
        parts += _to_bits(b_q, width), _to_bits(above, spread)
    codes = np.concatenate([layer.w_q.reshape(-1) for layer in network.layers])
    body = b"".join([
        _pack_header(network, names, low, exponent), *rows,
        np.packbits(np.concatenate(parts), bitorder="little").tobytes(),
        _deflate(codes, network.weight_bits)])
    return body + zlib.crc32(body).to_bytes(CRC_SIZE, "little")


def _read_old_header(reader):
    """Version 1: (line of LAYERS, shape, classes, fields, rows): perceptrons of images alone."""
    side, bits, activation_bits, exponent, count, inputs = reader.numbers(OLD_HEADER.format[1:])
    rows = [reader.numbers(OLD_ROW.format[1:]) for _ in range(count)]
    widths = [row[0] + 1 for row in rows]
    if side not in earlier.OLD_SIDES or not rows:
        raise ValueError(f"it has {count} layers on input side {side}")
    line, shape = earlier.from_sizes(side, (inputs + 1, *widths))
    names = plan.class_names(widths[-1])
    return line, shape, names, (bits, activation_bits, exponent), [row[1:] for row in rows], ()


def _read_header(reader):
    """(line of LAYERS, shape, class names, (weight, activation bits, exponent), rows, encoding)."""
    version, = reader.numbers("B")
    if version == 1:
        return _read_old_header(reader)
    if version != VERSION:
        raise ValueError(f"its version is {version}, not 1 or {VERSION}")
    bits, exponent, rank = reader.numbers("BbB")
    if rank not in (1, 3):
        raise ValueError(f"its examples have {rank} axes, not 1 or 3")
    *shape, classes, count, length = reader.numbers(f"{rank}HHBH")
    names = plan.class_names(classes + 1)
    if length:
        names = tuple(reader.bytes(length).decode("utf-8").split("\n"))
        if len(names) != classes + 1:
            raise ValueError(f"it names {len(names)} of {classes + 1} classes")
    line = " ".join(_read_step(reader) for _ in range(count))
    features, = reader.numbers("H")
    encoding = ()
    if features:
        encoding = (np.frombuffer(reader.bytes(4 * features), "<f4").astype(np.float32),
                    np.frombuffer(reader.bytes(features), np.int8))
    layers = 1 + sum(not word.startswith(("crop", "mean", "max")) for word in line.split())
    rows = [reader.numbers(ROW.format[1:]) for _ in range(layers)]
    return (line, tuple(n + 1 for n in shape), names, (bits >> 4, bits & 15, exponent), rows,
            encoding)


def _read_numbers(content, rows, outputs):
    """Biases and shifts from the stream of bits.

    Returns:
      (list of int64 arrays: a bias, then what a shift has above the least one, of each layer; how
      many bytes they took).
    """
    shapes = []
    for i, (count, (width, least, spread)) in enumerate(zip(outputs, rows, strict=True), 1):
        if (not 1 <= width <= BIAS_BITS or spread > SHIFT_BITS
                or (i == len(rows) and least + spread > 0)):
            raise ValueError(f"layer {i - 1} has biases or shifts of a size that is not legal")
        shapes += (count, width), (count, spread)
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    size = math.ceil(ends[-1] / 8)
    if size > len(content):
        raise ValueError("it ends inside its biases and shifts")
    stream = np.unpackbits(np.frombuffer(content, np.uint8, size), bitorder="little")
    *parts, padding = np.split(stream, ends)
    if padding.any():
        raise ValueError("unused bits of its biases and shifts are not 0")
    return [part.reshape(shape) @ (1 << np.arange(shape[1]))
            for part, shape in zip(parts, shapes)], size


def decode(content):
    """The Content of an .nqat, from bytes from anywhere.

    Raises:
      ValueError: a version, CRC, field, size or padding that is wrong, or what plan.parse or
        make_network refuse; one line. No memory is taken for a network that may not be run.
    """
    if len(content) <= len(MAGIC) + CRC_SIZE or not content.startswith(MAGIC):
        raise ValueError("it is cut off, or no .nqat")
    if zlib.crc32(content[:-CRC_SIZE]) != int.from_bytes(content[-CRC_SIZE:], "little"):
        raise ValueError("its CRC is wrong: it is damaged or cut off")
    reader = _Reader(content[len(MAGIC):-CRC_SIZE])
    line, shape, names, (bits, activation_bits, exponent), rows, encoding = _read_header(reader)
    if not 1 <= bits <= 8:
        raise ValueError(f"weights of {bits} bits are not in 1..8")
    steps = plan.parse(line, shape, len(names))
    shapes = [step.weights for step in steps if step.has_weights]
    rest = reader.content[reader.at:]
    numbers, size = _read_numbers(rest, rows, [outputs for _, outputs in shapes])
    ends = np.cumsum([i * o for i, o in shapes])
    weights = np.split(_inflate(rest[size:], bits, int(ends[-1])), ends[:-1])
    layers = []
    for (width, least, _), w_q, b_q, above in zip(rows, weights, numbers[::2], numbers[1::2]):
        sign = b_q >> (width - 1)               # the top bit
        shift = least + above
        if shift.max() > integer.MAX_SHIFT:
            raise ValueError(f"a shift of {shift.max()} is more than {integer.MAX_SHIFT}")
        layers.append(integer.Layer(w_q.reshape(-1, len(b_q)),
                                    (b_q - (sign << width)).astype(np.int32), shift))
    layers[-1] = layers[-1]._replace(shift=None)
    network = integer.make_network(layers, bits, activation_bits, exponent, steps)
    return Content(network, names, *(encoding or (None, None)))
