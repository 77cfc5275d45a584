"""Damaged and hostile files for Hypothesis to draw: valid ones, changed behind their outer checks.

Zips, CRCs and gzip stay right, mostly, so that a change reaches the parser. The functions take the
bytes of a valid file and give those of another; each choice takes the next three bytes of a stream
that Hypothesis draws, because a draw for each would take several times as long as the loaders do.
"""
import contextlib
import gzip
import io
import itertools
import json
import math
import random
import re
import warnings
import zipfile
import zlib

import numpy as np
from hypothesis import strategies as st
from PIL import Image, ImageDraw

import integer
import plan
from formats import checkpoint

INTEGERS = (*range(17), 64, 65, 127, 128, 255, 256, 32_767, 65_535, 65_536, 2**24, 2**26, 2**31 - 1,
            2**31, 2**32 - 1, 2**63)
WORDS = ("[", "]", "{", "}", ",", ":", "=", ".", "\"", "'", "\\", "\n", "\0", "#", "[[", '"""',
         "true", "false", "null", "nan", "inf", "-inf", "NaN", "-Infinity", "-", "1e999", "-1",
         "0x1f", "1_000", "1979-05-27T07:32:00Z", "\\ud800", "\\u0000", "☃", "é", "\r", "1.5",
         "9" * 5_000, "[" * 2_000, "{\"a\":" * 2_000, "a." * 200, "x" * 5_000, "__import__('os')",
         "SEED", "LAYERS", "WEIGHT_BITS", "COORDINATOR", "DATA_DIR", "meta", "facts", "SHA256")
VALUES = (None, True, False, -1, 0, 1, 2, 8, 9, 100, 101, -128, 2**31, 2**63, -2**63, 10**400, 1.5,
          1e308, math.nan, math.inf, -math.inf, "", "x", "a\nb", "\0", "é☃", "\ud800", "9" * 5000,
          [], {}, [[]], [7, 5, 3], [65_536, 65_536], [2**31] * 3, [0, -1], [1] * 66, {"a": {}})
HEADERS = ("|i1", "|u1", "<i4", ">i4", "<f4", "<f8", "|O", "<U9", "<U999999", "|S9", "|b1",
           "<M8[s]", "|V9", "<c16", "[('a', '|i1')]", "()", "(7,)", "(7, 5)", "(-1,)", "(0,)",
           "(99999999999,)", "(4294967296, 4294967296)", "(7L, 5L)", "True", "None", "'shape'",
           "__import__('os').abort()", "(" * 150, "-" * 400 + "1", "{}", "fortran_order")
NAMES = ("meta.npy", "meta", "w0_q.npy", "b0.npy", "leaf0.npy", "leaf99.npy", "../../x.npy",
         "/tmp/x.npy", "..\\x.npy", "", ".npy", "a/../meta.npy", "é☃.npy", "x" * 60_000)
CODES = (b"\x80", b"\0", b"\xff" * 8, b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\0\x80",
         b"\xff\xff\xff\x7f")
CHUNKS = (b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"IDAT")
TAGS = (256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 322, 324, 330, 338, 339, 347)


@st.composite
def changed(draw, files):
    """(path, content) of one of the files, changed; files: {path: (function of here, content)}."""
    stream = io.BytesIO(draw(st.binary(min_size=600, max_size=600)))
    path = pick(stream, list(files))
    change, content = files[path]
    return path, change(stream, content)


def below(stream, count):
    """A number in 0 .. count - 1."""
    return int.from_bytes(stream.read(3), "big") % count


def pick(stream, options):
    return options[below(stream, len(options))]


def noise(stream, size):
    """Random bytes."""
    return random.Random(below(stream, 2**24)).randbytes(size)


def number(stream, content, at, sizes, orders=("little", "big"), more=()):
    """Some bytes at a place set to a number that parsers trip over."""
    size, order = pick(stream, sizes), pick(stream, orders)
    at = max(0, min(at, len(content) - size))
    old = int.from_bytes(content[at:at + size], order)
    new = pick(stream, (*INTEGERS, old + 1, *more)) % 256**size
    return content[:at] + new.to_bytes(size, order) + content[at + size:]


def field(stream, content):
    """A number near the start, where headers are, at the end, where a zip has them, or anywhere."""
    start, anywhere = below(stream, 65), below(stream, len(content) + 1)
    at = pick(stream, (start, start, anywhere, len(content)))
    return number(stream, content, at, (1, 2, 4, 8))


def raw(stream, content):
    """Bytes flipped, set, inserted, removed, repeated, cut off, or made a number."""
    for _ in range(pick(stream, (1, 1, 2, 8))):
        kind, at = below(stream, 7), below(stream, len(content) + 1)
        length = pick(stream, (1, 1, 2, 4, 16, 200))
        head, part, tail = content[:at], content[at:at + length], content[at + length:]
        if kind < 3:
            new = noise(stream, length)
            flipped = bytes(old ^ 1 << (bit & 7) for old, bit in zip(part, new))
            content = head + (flipped, new[:len(part)], part + new)[kind] + tail
        elif kind < 6:
            content = (head, head + tail, head + pick(stream, (2, 2, 30)) * part + tail)[kind - 3]
        else:
            content = field(stream, content)
    return content


def edit(stream, items, change):
    """A list with one item removed, repeated, copied, changed, or a changed one added.

    change: function of an item: another in its place.
    """
    if not items:
        return items
    at, other, kind = below(stream, len(items)), below(stream, len(items)), below(stream, 10)
    item = items[at]
    if kind < 5:
        new = [change(item)]
    else:
        copies = pick(stream, (1, 1, 30))
        new = ([], copies * [item] + [item], copies * [items[other]] + [item], [item, change(item)],
               items[min(at, other):max(at, other)] + [item])[kind - 5]
    return items[:at] + new + items[at + 1:]


def text(stream, content):
    """Tokens of TOML, JSON or sums edited; some bytes, too."""
    if below(stream, 10) == 9:
        return raw(stream, content)
    tokens = re.findall(r"\w+|\s+|.", content.decode("utf-8", "replace"), re.DOTALL)
    for _ in range(pick(stream, (1, 1, 2, 5))):
        tokens = edit(stream, tokens, lambda _: pick(stream, WORDS))
    return "".join(tokens).encode("utf-8", "surrogatepass")


def value(stream, old):
    """A JSON value in the place of another, or that one with a part edited."""
    if not old or not isinstance(old, (list, dict)) or below(stream, 5) == 4:
        return pick(stream, VALUES)
    if isinstance(old, list):
        return edit(stream, old, lambda item: value(stream, item))
    return dict(edit(stream, list(old.items()), lambda pair: (
        pick(stream, (pair[0], pair[0], pair[0], "x")), value(stream, pair[1]))))


def npy(stream, content):
    """A .npy with changed data, header or JSON."""
    start, kind = 10 + int.from_bytes(content[8:10], "little"), below(stream, 6)
    header, data = content[10:start], content[start:]
    if b"<U" in header and kind < 4:
        with contextlib.suppress(ValueError, RecursionError):   # no JSON, or changed already
            buffer, old = io.BytesIO(), json.loads(data.decode("utf-32-le"))
            np.save(buffer, np.array(json.dumps(value(stream, old))))
            return buffer.getvalue()
    if kind < 2:                                # its codes, biases, shifts or letters
        at, new = below(stream, len(data) + 1), pick(stream, (noise(stream, 4), *CODES))
        return content[:start] + (data[:at] + new + data[at + len(new):])[:len(data)]
    if kind == 2:
        data = raw(stream, data)
    elif kind == 3:
        header = raw(stream, header)
    else:                                       # words, tuples and texts of its dict, and marks
        tokens = re.findall(r"'[^']*'|\([^)]*\)|\w+|.", header.decode("latin-1").rstrip())
        new = pick(stream, HEADERS)
        tokens = edit(stream, tokens, lambda _: pick(stream, (new, repr(new))))
        header = "".join(tokens).encode("latin-1")
    version = pick(stream, (b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\0\0", b"\xff\xff"))
    size = (len(header) % 65_536).to_bytes(4 if version == b"\2\0" else 2, "little")
    return b"\x93NUMPY" + version + size + header + data


def npz(stream, content):
    """An npz with edited members, or with a changed field of its zip."""
    if below(stream, 10) == 9:
        return raw(stream, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]

    def change(member):
        if below(stream, 5) == 4:
            return pick(stream, NAMES), member[1]
        return member[0], npy(stream, member[1]) if len(member[1]) > 99 else b""

    for _ in range(pick(stream, (0, 1, 1, 1, 2, 3))):
        first = pick(stream, (1, 99, 99))         # its meta is the first
        members = edit(stream, members[:first], change) + members[first:]
    buffer, methods = io.BytesIO(), 4 * (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    method = pick(stream, (*methods, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w", method) as archive:
        for name, member in members:
            archive.writestr(zipfile.ZipInfo(name), member, method)
    content = buffer.getvalue()
    if below(stream, 10) < 3:                     # a header of the zip: local, directory or end
        starts = [match.start() for match in re.finditer(b"PK(?:\1\2|\3\4|\5\6)", content)]
        at = pick(stream, starts) + 4 + below(stream, 38)
        content = number(stream, content, at, (1, 2, 4), ("little",))
    return content


def steps_of(stream, sizes):
    """Steps of these widths, now and then with one among them that may not fit."""
    steps = [plan.Step("dense", (), (), (i,), (o,)) for i, o in itertools.pairwise(sizes)]
    if below(stream, 3) == 0:
        kind = pick(stream, ("crop", "mean", "conv", "max"))
        kernel, stride = (pick(stream, ((1, 1), (2, 2), (5, 5), (9, 1), (300, 300)))
                          for _ in range(2))
        before, after = (pick(stream, ((28, 28, 1), (1, 9, 2), (2**16, 1, 1), (1, 1, 1)))
                         for _ in range(2))
        steps.insert(below(stream, len(steps)), plan.Step(kind, kernel, stride, before, after))
    return tuple(steps)


def weights(stream, content):
    """npz; or a whole file of right shapes, whose widths, bits and codes are anything."""
    if below(stream, 10) < 7:
        return npz(stream, content)
    count = pick(stream, (2, 2, 3, 4, 66))
    widths = (1, 2, 3, 9) if count > 9 else (1, 2, 3, 9, 64, 300)
    sizes = [pick(stream, widths) for _ in range(count)]
    steps = steps_of(stream, sizes)

    def array(dtype, *shape):
        size = math.prod(shape) * np.dtype(dtype).itemsize
        data = pick(stream, (bytes(size), noise(stream, size), b"\1" * size, b"\x81" * size,
                           b"\1\0\0\0" * (size // 4 + 1)))
        return np.frombuffer(data[:size], dtype).reshape(shape)

    shapes = list(itertools.pairwise(sizes))
    if below(stream, 5) == 4:
        network = integer.FloatNetwork(tuple(
            (array(np.float32, *shape), array(np.float32, shape[1])) for shape in shapes), steps)
    else:
        layers = [integer.Layer(array(np.int8, *shape), array(np.int32, shape[1]),
                                array(np.int8, shape[1])) for shape in shapes]
        layers[-1] = layers[-1]._replace(shift=None)
        bits, exponents = below(stream, 8) + 1, (-101, -100, -12, 0, 100, 101)
        network = integer.Network(tuple(layers), bits, pick(stream, (0, 1, 4, 8, 9)),
                                  pick(stream, exponents), steps)
    return checkpoint.encode(network)


def parts_of_nqat(content):
    """Where the bits of biases and shifts, and the weights, of a valid .nqat begin."""
    network, bits = checkpoint.decode(content)[0], 0
    for layer in network.layers:                # as docs/format.md packs them
        above = 0 if layer.shift is None else int(np.ptp(layer.shift)).bit_length()
        width = max(int(layer.b_q.max()), ~int(layer.b_q.min())).bit_length() + 1
        bits += len(layer.b_q) * (width + above)
    size = -(-sum(layer.w_q.size for layer in network.layers) // (8 // network.weight_bits))
    for start in range(12, len(content)):
        unpacker = zlib.decompressobj(-15)
        with contextlib.suppress(zlib.error):
            if len(unpacker.decompress(content[start:-4])) == size and unpacker.eof:
                return start - -(-bits // 8), start
    raise ValueError("no weights are in it")


def nqat(stream, content):
    """An .nqat with a changed header, numbers or weights, mostly with a right CRC."""
    end, start = parts_of_nqat(content)
    header, numbers, codes = content[:end], content[end:start], content[start:-4]
    match below(stream, 8):
        case 0:
            return raw(stream, content)
        case 1 | 2:
            header = field(stream, header)
        case 3:
            numbers, codes = raw(stream, numbers), pick(stream, (codes, b""))
        case 4:
            numbers = noise(stream, len(numbers) - 1) + numbers[-1:]
        case 5:
            codes = raw(stream, codes)
        case _:                                 # the bytes under DEFLATE
            symbols = raw(stream, zlib.decompress(codes, -15))
            symbols += bytes(pick(stream, (0, 0, 0, 1, 10**6)))
            codes = zlib.compress(symbols, pick(stream, (0, 1, 9)), -15)
    body = header + numbers + codes
    return body + zlib.crc32(body).to_bytes(4, "little")


def idx(stream, content):
    """A packed idx file with a changed header or content, packed again, or damaged as packed."""
    if below(stream, 10) < 3:
        return raw(stream, content)
    plain = gzip.decompress(content)
    if below(stream, 5) < 4:                      # magic, rank and sizes
        plain = number(stream, plain, below(stream, 16), (1, 4), ("big",))
    if below(stream, 5) < 2:
        plain = raw(stream, plain)
    cuts = [0, *pick(stream, ([], [], [below(stream, len(plain) + 1)])), len(plain)]
    packed = b"".join(gzip.compress(plain[start:end], pick(stream, (0, 1, 9)))
                      for start, end in itertools.pairwise(cuts))
    return packed + pick(stream, (b"", b"", b"", b"\0" * 8, b"tail", packed))


def png(stream, content):
    """A PNG with one or two edited chunks, their CRCs right."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at:at + 4], "big")
        chunks.append((content[at + 4:at + 8], content[at + 8:at + 8 + length]))
        at += 12 + length

    def change(chunk):
        kind, body = chunk
        if below(stream, 5) == 4:
            more = (b"", bytes(26), body, zlib.compress(bytes(999)))
            return pick(stream, CHUNKS), pick(stream, more)
        if kind == b"IDAT" and below(stream, 3) == 2:
            with contextlib.suppress(zlib.error):       # pixels that were changed already
                return kind, zlib.compress(raw(stream, zlib.decompress(body)))
        return kind, pick(stream, (raw, field))(stream, body)

    for _ in range(pick(stream, (1, 1, 2))):
        chunks = edit(stream, chunks, change)
    return content[:8] + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks)


def image(stream, content):
    """A changed PNG, TIFF, whose first directory has its fields changed, or other image."""
    kind = below(stream, 10)
    if content.startswith(b"\x89PNG") and kind < 8:
        return png(stream, content)
    if content[:4] in (b"II*\0", b"MM\0*") and kind < 6:
        order = "little" if content[:2] == b"II" else "big"
        start = int.from_bytes(content[4:8], order)
        count = int.from_bytes(content[start:start + 2], order)
        at, size = pick(stream, ((0, 2), (2, 2), (4, 4), (8, 4)))     # tag, kind, length, value
        at += start + 2 + 12 * below(stream, count)
        content = number(stream, content, at, (size,), (order,), TAGS)
        return raw(stream, content) if kind < 1 else content
    return pick(stream, (raw, field))(stream, content)


def image_seeds():
    """A small stroke in every format and mode that is read, and in some that are not."""
    drawn = Image.new("L", (12, 12), 255)
    ImageDraw.Draw(drawn).line([(3, 2), (8, 2), (5, 9)], 0, 2)
    clear = drawn.convert("RGBA")
    clear.putalpha(drawn.point(lambda level: 255 - level))
    modes = {"PNG": "1 L LA P RGB RGBA I;16", "JPEG": "L CMYK", "BMP": "1 L P RGB RGBA",
             "GIF": "L RGBA", "TIFF": "RGBA F", "WEBP": "RGB", "PPM": "1 L RGB F", "DDS": "RGB",
             "AVIF": "RGB", "TGA": "RGB", "ICO": "RGB", "PCX": "RGB", "JPEG2000": "RGB",
             "SPIDER": "F", "BLP": "P"}
    wanted = [(name, mode, {}) for name, some in modes.items() for mode in some.split()]
    wanted += [("JPEG", "RGB", {"progressive": True}), ("GIF", "P", {"interlace": 1}),
               ("TIFF", "1", {"compression": "group4"}), ("WEBP", "RGBA", {"lossless": True})]
    wanted += [("TIFF", "L", {"compression": name}) for name in
               ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")]
    seeds = [b"P3 2 2 255\n0 0 0 255 255 255 9 9 9 0 0 0\n", b"P2 2 1 9 1 2\n", b"P1 2 1 1 0\n",
             b"P5 2 2 65535\n\0\0\xff\xff\0\0\xff\xff"]
    for name, mode, options in wanted:
        buffer = io.BytesIO()
        (clear if mode in ("RGBA", "LA") else drawn).convert(mode).save(buffer, name, **options)
        seeds.append(buffer.getvalue())
    return seeds
