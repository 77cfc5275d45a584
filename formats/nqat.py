"""The .nqat file: a quantized network in few bytes, with a CRC; docs/format.md specifies it.

A header, the biases and shifts bit by bit, the weights Huffman coded. NumPy and zlib only.
"""
import itertools
import math
import struct
import zlib

import numpy as np

import integer

MAGIC, VERSION = b"NQAT", 1
HEADER = struct.Struct("<4s4BbBH")      # magic, version, input side, bits of a weight and of an
                                        # activation, logit exponent, layers, inputs - 1
ROW = struct.Struct("<HBBB")            # outputs - 1, bits of a bias, least shift, bits above it
BIAS_BITS, SHIFT_BITS = 25, 5           # the most that a network needs: |bias| < 2**24, shift <= 30
CRC_SIZE = 4


def _to_bits(values, width):
    """Integers [N] to uint8 [N * width], 0 or 1: the lowest bit first, two's complement."""
    return (values[:, None] >> np.arange(width) & 1).astype(np.uint8).reshape(-1)


def _deflate(codes, bits):
    """int8 [N] to raw DEFLATE, Huffman codes only, of bytes that hold as many codes as fit.

    Several codes in a byte, as Huffman codes have no half bits: a ternary code takes 1.5, not 1.8.
    """
    per = 8 // bits
    fields = (codes > 0 if bits == 1 else codes).astype(np.uint8) & (1 << bits) - 1
    fields = np.append(fields, np.zeros(-len(fields) % per, np.uint8))
    symbols = fields.reshape(-1, per) @ (1 << bits * np.arange(per)).astype(np.uint8)
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
    fields = symbols[:, None] >> (bits * np.arange(per)).astype(np.uint8) & (1 << bits) - 1
    fields, padding = np.split(fields.reshape(-1), [count])
    if int(symbols.max()) >> bits * per or padding.any():
        raise ValueError("unused bits of its weights are not 0")
    if bits == 1:
        return (2 * fields - 1).view(np.int8)
    return (fields << 8 - bits).view(np.int8) >> 8 - bits       # the top bit is the sign


def encode(network):
    """The bytes of an .nqat, the same for the same integer.Network."""
    rows, parts = [], []
    for _, b_q, shift in network.layers:
        least, above = 0, np.zeros(1, np.int8)  # what the last layer has in place of shifts
        if shift is not None:
            least, above = shift.min(), shift - shift.min()
        width = max(int(b_q.max()), ~int(b_q.min())).bit_length() + 1
        spread = int(above.max()).bit_length()
        rows.append(ROW.pack(len(b_q) - 1, width, least, spread))
        parts += _to_bits(b_q, width), _to_bits(above, spread)
    codes = np.concatenate([layer.w_q.reshape(-1) for layer in network.layers])
    body = b"".join([
        HEADER.pack(MAGIC, VERSION, network.input, network.weight_bits, network.activation_bits,
                    network.logit_exponent, len(rows), integer.sizes(network)[0] - 1), *rows,
        np.packbits(np.concatenate(parts), bitorder="little").tobytes(),
        _deflate(codes, network.weight_bits)])
    return body + zlib.crc32(body).to_bytes(CRC_SIZE, "little")


def _parse(content):
    """(the header's other fields, widths, rows of the layers, bytes between them and the CRC)."""
    if len(content) < HEADER.size + CRC_SIZE or not content.startswith(MAGIC):
        raise ValueError("it is cut off, or no .nqat")
    _, version, *fields, count, inputs = HEADER.unpack_from(content)
    if version != VERSION:
        raise ValueError(f"its version is {version}, not {VERSION}")
    if zlib.crc32(content[:-CRC_SIZE]) != int.from_bytes(content[-CRC_SIZE:], "little"):
        raise ValueError("its CRC is wrong: it is damaged or cut off")
    end = HEADER.size + count * ROW.size
    if end > len(content) - CRC_SIZE:
        raise ValueError("it ends inside its header")
    rows = list(ROW.iter_unpack(content[HEADER.size:end]))
    return fields, [inputs + 1, *(row[0] + 1 for row in rows)], rows, content[end:-CRC_SIZE]


def decode(content):
    """The integer.Network of an .nqat, from bytes from anywhere.

    Raises:
      ValueError: a version, CRC, field, size or padding that is wrong, or what make_network
        refuses; one line. No memory is taken for a network that may not be run.
    """
    (side, bits, activation_bits, exponent), widths, rows, content = _parse(content)
    integer.check_sizes(widths)
    if not 1 <= bits <= 8:
        raise ValueError(f"weights of {bits} bits are not in 1..8")
    shapes = []                                 # of the numbers in the stream of bits
    for i, (outputs, (_, width, least, spread)) in enumerate(zip(widths[1:], rows), 1):
        if (not 1 <= width <= BIAS_BITS or spread > SHIFT_BITS
                or i == len(rows) and least + spread > 0):
            raise ValueError(f"layer {i - 1} has biases or shifts of a size that is not legal")
        shapes += (outputs, width), (outputs, spread)
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    size = math.ceil(ends[-1] / 8)
    if size > len(content):
        raise ValueError("it ends inside its biases and shifts")
    stream = np.unpackbits(np.frombuffer(content, np.uint8, size), bitorder="little")
    *parts, padding = np.split(stream, ends)
    if padding.any():
        raise ValueError("unused bits of its biases and shifts are not 0")
    numbers = [part.reshape(shape) @ (1 << np.arange(shape[1]))
               for part, shape in zip(parts, shapes)]
    ends = np.cumsum([i * o for i, o in itertools.pairwise(widths)])
    weights = np.split(_inflate(content[size:], bits, int(ends[-1])), ends[:-1])
    layers = []
    for (_, width, least, _), w_q, b_q, above in zip(rows, weights, numbers[::2], numbers[1::2]):
        b_q -= b_q >> width - 1 << width        # the top bit is the sign
        shift = least + above
        if shift.max() > integer.MAX_SHIFT:
            raise ValueError(f"a shift of {shift.max()} is more than {integer.MAX_SHIFT}")
        layers.append(integer.Layer(w_q.reshape(-1, len(b_q)), b_q.astype(np.int32), shift))
    layers[-1] = layers[-1]._replace(shift=None)
    return integer.make_network(layers, bits, activation_bits, exponent, side)
