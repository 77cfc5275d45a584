"""Readers of weights files of earlier versions in plain Python, as their page had them."""
import json
import struct
import zlib

import numpy as np


def _sign(field, width):
    return field - (1 << width) if field >> (width - 1) & 1 else field


def read_nqat(content):
    """Version 1: (input, bits, activation bits, exponent, layers).

    A layer is (weights [I][O], biases, shifts) of lists; the last one's shifts are empty.
    """
    version, side, bits, activation_bits, exponent, count, inputs = struct.unpack(
        "<4BbBH", content[4:12])
    assert content[:4] == b"NQAT" and version == 1
    rows = list(struct.iter_unpack("<HBBB", content[12:12 + 5 * count]))
    start = 12 + 5 * count
    sizes = [inputs + 1, *(row[0] + 1 for row in rows)]
    return side, bits, activation_bits, exponent, read_layers(
        content, start, bits, [row[1:] for row in rows], list(zip(sizes, sizes[1:])))


def read_layers(content, start, bits, rows, sizes):
    """The layers from the stream of bits on, which both versions of an .nqat have.

    Args:
      start: where the stream begins.
      rows: (bits of a bias, least shift, bits of a shift above it) of each layer.
      sizes: (inputs, outputs) of each layer.
    """
    stream, at, numbers = int.from_bytes(content[start:], "little"), 0, []
    for i, ((_, outputs), (width, least, spread)) in enumerate(zip(sizes, rows, strict=True)):
        biases, shifts = [], []
        for _ in range(outputs):
            biases.append(_sign(stream >> at & ((1 << width) - 1), width))
            at += width
        for _ in range(outputs if i + 1 < len(rows) else 0):
            shifts.append(least + (stream >> at & ((1 << spread) - 1)))
            at += spread
        numbers.append((biases, shifts))
    unpacker = zlib.decompressobj(-15)
    symbols = unpacker.decompress(content[start + (at + 7) // 8:])
    assert unpacker.unused_data == content[-4:] == struct.pack("<I", zlib.crc32(content[:-4]))
    fields = (byte >> bits * k & ((1 << bits) - 1) for byte in symbols for k in range(8 // bits))
    return [([[2 * next(fields) - 1 if bits == 1 else _sign(next(fields), bits)
               for _ in range(outputs)] for _ in range(inputs)], biases, shifts)
            for (inputs, outputs), (biases, shifts) in zip(sizes, numbers)]


def read_npz(path):
    """Format 2, of 8 bits: (exponent, layers) as above."""
    with np.load(path, allow_pickle=False) as file:
        meta = json.loads(str(file["meta"]))
        assert meta["format"] == 2 and meta["weight_bits"] == 8
        count = len(meta["layer_sizes"]) - 1
        return meta["logit_exponent"], [
            (file[f"w{i}_q"].tolist(), file[f"b{i}_q"].tolist(),
             file[f"shift{i}"].tolist() if i + 1 < count else []) for i in range(count)]
