"""A reader of weights files in plain Python, written from docs/format.md alone."""
import json
import math
import struct
import zipfile
import zlib
from types import SimpleNamespace

KINDS = ["crop", "mean", "conv", "max", "dense"]


def signed(field, width):
    return field - (1 << width) if field >> (width - 1) & 1 else field


def fields_of(data, width, count):
    """`count` fields of `width` bits from a stream of bits, unsigned."""
    stream = int.from_bytes(data, "little")
    return [stream >> width * k & ((1 << width) - 1) for k in range(count)]


def weight(field, bits):
    return 2 * field - 1 if bits == 1 else signed(field, bits)


def rows_of(flat, inputs, outputs):
    return [flat[i * outputs:(i + 1) * outputs] for i in range(inputs)]


def window(word, shape):
    """(rows, columns) of a step's window and its steps, and the map that comes out, of a word."""
    if word.startswith("crop"):
        size, stride = int(word[4:]), 1
    elif word in ("mean2", "max2"):
        size, stride = 2, 2
    else:
        size, _, rest = word.removeprefix("conv").partition("x")
        size, stride = int(size), int(rest.partition("/")[2] or 1)
    kernel = [1 if length == 1 else size for length in shape[:2]]
    strides = [1 if length == 1 else stride for length in shape[:2]]
    if word.startswith("crop"):
        return kernel, strides, [1, 1]
    return kernel, strides, [(length - k) // s + 1
                             for length, k, s in zip(shape, kernel, strides)]


def chain(words, shape, classes):
    """[(word, shape before, (inputs, outputs) of its weights or None)] of a network."""
    steps = []
    for word in [*words, str(classes)]:
        before, weights = shape, None
        if word.isdigit():
            weights = math.prod(before), int(word)
            shape = [int(word)]
        else:
            kernel, _, count = window(word, before)
            channels = before[2]
            if word.startswith("conv"):
                channels = int(word.partition("x")[2].partition("/")[0])
                weights = math.prod(kernel) * before[2], channels
            shape = [*(kernel if word.startswith("crop") else count), channels]
        steps.append((word, before, weights))
    return steps


def read(path):
    content = path.read_bytes()
    return read_nqat(content) if content[:4] == b"NQAT" else read_npz(path)


def npy(data):
    """(type, shape, bytes) of a .npy of version 1."""
    assert data[:8] == b"\x93NUMPY\1\0"
    length, = struct.unpack("<H", data[8:10])
    header = data[10:10 + length].decode()
    kind = header.split("'descr': '")[1].split("'")[0]
    shape = header.split("'shape': (")[1].split(")")[0]
    return kind, [int(n) for n in shape.split(",") if n.strip()], data[10 + length:]


def numbers(data):
    kind, shape, body = npy(data)
    letter = {"|i1": "b", "<i4": "i", "<f4": "f", "|u1": "B"}[kind]
    return list(struct.unpack(f"<{math.prod(shape)}{letter}", body))


def read_npz(path):
    with zipfile.ZipFile(path) as archive:
        arrays = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    kind, shape, body = npy(arrays["meta"])
    assert kind.startswith("<U") and shape == []
    meta = json.loads(body.decode("utf-32-le").rstrip("\0"))
    assert meta["format"] == 3 and meta["quantized"]
    bits, words = meta["weight_bits"], meta["layers"].split()
    steps, layers = chain(words, meta["shape"], len(meta["classes"])), []
    shapes = [weights for *_, weights in steps if weights]
    for i, (inputs, outputs) in enumerate(shapes):
        codes = numbers(arrays[f"w{i}_q"])
        if bits < 8:
            codes = [weight(field, bits)
                     for field in fields_of(bytes(codes), bits, inputs * outputs)]
        layers.append((rows_of(codes, inputs, outputs), numbers(arrays[f"b{i}_q"]),
                       numbers(arrays[f"shift{i}"]) if i + 1 < len(shapes) else []))
    low = numbers(arrays["low"]) if "features" in meta else None
    exponent = numbers(arrays["exponent"]) if "features" in meta else None
    return SimpleNamespace(
        weight_bits=bits, activation_bits=meta["activation_bits"], steps=steps, words=words,
        logit_exponent=meta["logit_exponent"], classes=meta["classes"], shape=meta["shape"],
        low=low, exponent=exponent, layers=layers, facts=meta["facts"])


def read_nqat(content):
    assert content[:4] == b"NQAT" and content[4] == 2
    assert struct.unpack("<I", content[-4:])[0] == zlib.crc32(content[:-4])
    at = 5

    def take(layout):
        nonlocal at
        found = struct.unpack_from(f"<{layout}", content, at)
        at += struct.calcsize(f"<{layout}")
        return list(found)

    bits, exponent, axes = take("BbB")
    shape = [n + 1 for n in take(f"{axes}H")]
    classes, steps, length = take("HBH")
    names = [str(i) for i in range(classes + 1)]
    if length:
        names = bytes(take(f"{length}B")).decode().split("\n")
    words = []
    for _ in range(steps):
        first, = take("B")
        kind = KINDS[first >> 5]
        if kind in ("mean", "max"):
            words.append(f"{kind}2")
            continue
        number, = take("H")
        stride = (first & 3) + 1
        words.append({"crop": f"crop{number}", "dense": str(number + 1),
                      "conv": f"conv{first >> 2 & 7}x{number + 1}"
                      + (f"/{stride}" if stride > 1 else "")}[kind])
    features, = take("H")
    low = take(f"{features}f") if features else None
    step = take(f"{features}b") if features else None
    chained = chain(words, shape, len(names))
    shapes = [weights for *_, weights in chained if weights]
    rows = [take("BBB") for _ in shapes]
    stream, place, parts = int.from_bytes(content[at:-4], "little"), 0, []

    def field(width):
        nonlocal place
        place += width
        return stream >> (place - width) & ((1 << width) - 1)

    for i, ((_, outputs), (width, least, above)) in enumerate(zip(shapes, rows)):
        biases = [signed(field(width), width) for _ in range(outputs)]
        shifts = [least + field(above) for _ in range(outputs if i + 1 < len(shapes) else 0)]
        parts.append((biases, shifts))
    unpacker = zlib.decompressobj(-15)
    symbols = unpacker.decompress(content[at + (place + 7) // 8:-4])
    assert unpacker.eof and not unpacker.unused_data
    weight_bits, layers = bits >> 4, []
    codes = [weight(byte >> weight_bits * k & ((1 << weight_bits) - 1), weight_bits)
             for byte in symbols for k in range(8 // weight_bits)]
    for (inputs, outputs), (biases, shifts) in zip(shapes, parts):
        layers.append((rows_of(codes, inputs, outputs), biases, shifts))
        codes = codes[inputs * outputs:]
    return SimpleNamespace(
        weight_bits=weight_bits, activation_bits=bits & 15, logit_exponent=exponent, steps=chained,
        words=words, classes=names, shape=shape, low=low, exponent=step, layers=layers, facts={})


def to_bytes(model, values):
    """Features, float32, as codes."""
    codes = []
    for i, value in enumerate(values):
        low, step = model.low[i % len(model.low)], model.exponent[i % len(model.low)]
        difference = struct.unpack("<f", struct.pack("<f", value - low))[0]
        codes.append(min(max(round(difference * 2.0**-step), 0), 255))
    return codes


def through(layer, x, activation_bits):
    weights, biases, shifts = layer
    acc = [sum(a * row[o] for a, row in zip(x, weights)) + bias for o, bias in enumerate(biases)]
    if not shifts:
        return acc
    return [min(max((a + (1 << (s - 1)) - 1 + (a >> s & 1)) >> s, 0), 2**activation_bits - 1)
            for a, s in zip(acc, shifts)]


def run(model, x):
    """The accumulators of the last layer, of an example's bytes as a flat list."""
    layers = iter(model.layers)
    for word, shape, _ in model.steps:
        if word.isdigit():
            x = through(next(layers), x, model.activation_bits)
            continue
        rows, columns, channels = shape
        kernel, strides, count = window(word, shape)
        top = left = 0
        if word.startswith("crop"):
            top, left = (rows - kernel[0]) // 2, (columns - kernel[1]) // 2
        layer = next(layers) if word.startswith("conv") else None
        out = []
        for i in range(count[0]):
            for j in range(count[1]):
                patch = [x[((top + i * strides[0] + a) * columns + left + j * strides[1] + b)
                           * channels:][:channels]
                         for a in range(kernel[0]) for b in range(kernel[1])]
                if layer:
                    out += through(layer, sum(patch, []), model.activation_bits)
                elif word.startswith("crop"):
                    out += sum(patch, [])
                elif word == "max2":
                    out += [max(values) for values in zip(*patch)]
                else:
                    shift = len(patch).bit_length() - 1
                    out += [(t + (1 << shift) // 2 - 1 + (t >> shift & 1)) >> shift if shift else t
                            for t in map(sum, zip(*patch))]
        x = out
    return x
