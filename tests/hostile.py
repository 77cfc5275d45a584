"""Damaged and hostile files for Hypothesis to draw: valid ones, changed behind their outer checks.

Zips, CRCs and gzip stay right, mostly, so that a change reaches the parser. The functions take a
Hypothesis strategy's draw and the bytes of a valid file, and give the bytes of another.
"""
import contextlib
import gzip
import io
import itertools
import json
import math
import random
import re
import struct
import warnings
import zipfile
import zlib

import numpy as np
from hypothesis import strategies as st
from PIL import Image, ImageDraw

import integer
from formats import checkpoint

INTEGERS = (*range(17), 64, 65, 127, 128, 255, 256, 32_767, 65_535, 65_536, 2**24, 2**26, 2**31 - 1,
            2**31, 2**32 - 1, 2**63)
WORDS = ("[", "]", "{", "}", ",", ":", "=", ".", "\"", "'", "\\", "\n", "\0", "#", "[[", '"""',
         "true", "false", "null", "nan", "inf", "-inf", "NaN", "-Infinity", "-", "1e999", "-1",
         "0x1f", "1_000", "1979-05-27T07:32:00Z", "\\ud800", "\\u0000", "☃", "é", "\r", "1.5",
         "9" * 5_000, "[" * 2_000, "{\"a\":" * 2_000, "a." * 200, "x" * 5_000, "__import__('os')",
         "SEED", "LAYER_SIZES", "WEIGHT_BITS", "COORDINATOR", "DATA_DIR", "meta", "facts", "SHA256")
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
    path = pick(draw, list(files))
    change, content = files[path]
    return path, change(draw, content)


def pick(draw, options):
    return draw(st.sampled_from(options))


def below(draw, count):
    return draw(st.integers(0, count - 1))


def noise(draw, size):
    """Random bytes; of itself Hypothesis draws 8 kB for an input at most."""
    if size > 256:
        return random.Random(below(draw, 2**32)).randbytes(size)
    return draw(st.binary(min_size=size, max_size=size))


def number(draw, content, at, sizes, orders=("little", "big"), more=()):
    """Some bytes at a place set to a number that parsers trip over."""
    size, order = pick(draw, sizes), pick(draw, orders)
    at = max(0, min(at, len(content) - size))
    old = int.from_bytes(content[at:at + size], order)
    new = pick(draw, (*INTEGERS, old + 1, *more)) % 256**size
    return content[:at] + new.to_bytes(size, order) + content[at + size:]


def field(draw, content):
    """A number near the start, where headers are, at the end, where a zip has them, or anywhere."""
    at = pick(draw, (below(draw, 65), below(draw, 65), below(draw, len(content) + 1), len(content)))
    return number(draw, content, at, (1, 2, 4, 8))


def raw(draw, content):
    """Bytes flipped, set, inserted, removed, repeated, cut off, or made a number."""
    for _ in range(pick(draw, (1, 1, 2, 8))):
        kind, at = below(draw, 7), below(draw, len(content) + 1)
        length = pick(draw, (1, 1, 2, 4, 16, 200))
        head, part, tail = content[:at], content[at:at + length], content[at + length:]
        if kind < 3:
            new = noise(draw, length)
            flipped = bytes(old ^ 1 << (bit & 7) for old, bit in zip(part, new))
            content = head + (flipped, new[:len(part)], part + new)[kind] + tail
        elif kind < 6:
            content = (head, head + tail, head + pick(draw, (2, 2, 30)) * part + tail)[kind - 3]
        else:
            content = field(draw, content)
    return content


def edit(draw, items, change):
    """A list with one item removed, repeated, copied, changed, or a changed one added.

    change: function of an item: another in its place.
    """
    if not items:
        return items
    at, other, kind = below(draw, len(items)), below(draw, len(items)), below(draw, 10)
    item = items[at]
    if kind < 5:
        new = [change(item)]
    else:
        copies = pick(draw, (1, 1, 30))
        new = ([], copies * [item] + [item], copies * [items[other]] + [item], [item, change(item)],
               items[min(at, other):max(at, other)] + [item])[kind - 5]
    return items[:at] + new + items[at + 1:]


def text(draw, content):
    """Tokens of TOML, JSON or sums edited; some bytes, too."""
    if below(draw, 10) == 9:
        return raw(draw, content)
    tokens = re.findall(r"\w+|\s+|.", content.decode("utf-8", "replace"), re.DOTALL)
    for _ in range(pick(draw, (1, 1, 2, 5))):
        tokens = edit(draw, tokens, lambda _: pick(draw, WORDS))
    return "".join(tokens).encode("utf-8", "surrogatepass")


def value(draw, old):
    """A JSON value in the place of another, or that one with a part edited."""
    if not old or not isinstance(old, (list, dict)) or below(draw, 5) == 4:
        return pick(draw, VALUES)
    if isinstance(old, list):
        return edit(draw, old, lambda item: value(draw, item))
    return dict(edit(draw, list(old.items()), lambda pair: (
        pick(draw, (pair[0], pair[0], pair[0], "x")), value(draw, pair[1]))))


def npy(draw, content):
    """A .npy with changed data, header or JSON."""
    start, kind = 10 + int.from_bytes(content[8:10], "little"), below(draw, 6)
    header, data = content[10:start], content[start:]
    if b"<U" in header and kind < 4:
        with contextlib.suppress(ValueError, RecursionError):   # no JSON, or changed already
            buffer, old = io.BytesIO(), json.loads(data.decode("utf-32-le"))
            np.save(buffer, np.array(json.dumps(value(draw, old))))
            return buffer.getvalue()
    if kind < 2:                                # its codes, biases, shifts or letters
        at, new = below(draw, len(data) + 1), pick(draw, (noise(draw, 4), *CODES))
        return content[:start] + (data[:at] + new + data[at + len(new):])[:len(data)]
    if kind == 2:
        data = raw(draw, data)
    elif kind == 3:
        header = raw(draw, header)
    else:                                       # words, tuples and texts of its dict, and marks
        tokens = re.findall(r"'[^']*'|\([^)]*\)|\w+|.", header.decode("latin-1").rstrip())
        new = pick(draw, HEADERS)
        tokens = edit(draw, tokens, lambda _: pick(draw, (new, repr(new))))
        header = "".join(tokens).encode("latin-1")
    version = pick(draw, (b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\0\0", b"\xff\xff"))
    size = (len(header) % 65_536).to_bytes(4 if version == b"\2\0" else 2, "little")
    return b"\x93NUMPY" + version + size + header + data


def npz(draw, content):
    """An npz with edited members, or with a changed field of its zip."""
    if below(draw, 10) == 9:
        return raw(draw, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]

    def change(member):
        if below(draw, 5) == 4:
            return pick(draw, NAMES), member[1]
        return member[0], npy(draw, member[1]) if len(member[1]) > 99 else b""

    for _ in range(pick(draw, (0, 1, 1, 1, 2, 3))):
        first = pick(draw, (1, 99, 99))         # its meta is the first
        members = edit(draw, members[:first], change) + members[first:]
    buffer, methods = io.BytesIO(), 4 * (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    method = pick(draw, (*methods, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w", method) as archive:
        for name, member in members:
            archive.writestr(zipfile.ZipInfo(name), member, method)
    content = buffer.getvalue()
    if below(draw, 10) < 3:                     # a header of the zip: local, directory or end
        starts = [match.start() for match in re.finditer(b"PK(?:\1\2|\3\4|\5\6)", content)]
        at = pick(draw, starts) + 4 + below(draw, 38)
        content = number(draw, content, at, (1, 2, 4), ("little",))
    return content


def weights(draw, content):
    """npz; or a whole file of right shapes, whose widths, bits and codes are anything."""
    if below(draw, 10) < 7:
        return npz(draw, content)
    count, side = pick(draw, (2, 2, 3, 4, 66)), pick(draw, (28, 28, 28, 14, 13))
    sizes = [pick(draw, (1, 2, 3, 9) if count > 9 else (1, 2, 3, 9, 64, 300)) for _ in range(count)]

    def array(dtype, *shape):
        size = math.prod(shape) * np.dtype(dtype).itemsize
        data = pick(draw, (bytes(size), noise(draw, size), b"\1" * size, b"\x81" * size,
                           b"\1\0\0\0" * (size // 4 + 1)))
        return np.frombuffer(data[:size], dtype).reshape(shape)

    shapes = list(itertools.pairwise(sizes))
    if below(draw, 5) == 4:
        network = integer.FloatNetwork(tuple(
            (array(np.float32, *shape), array(np.float32, shape[1])) for shape in shapes), side)
    else:
        layers = [integer.Layer(array(np.int8, *shape), array(np.int32, shape[1]),
                                array(np.int8, shape[1])) for shape in shapes]
        layers[-1] = layers[-1]._replace(shift=None)
        bits, exponents = below(draw, 8) + 1, (-101, -100, -12, 0, 100, 101)
        network = integer.Network(tuple(layers), bits, pick(draw, (0, 1, 4, 8, 9)),
                                  pick(draw, exponents), side)
    return checkpoint.encode(network, {})


def nqat(draw, content):
    """An .nqat with a changed header, stream of bits or weights, mostly with a right CRC."""
    end = 12 + 5 * content[9]                   # of the rows, as docs/format.md has them
    start = end + -(-sum((outputs + 1) * (width + spread) for outputs, width, _, spread in
                         struct.iter_unpack("<HBBB", content[12:end])) // 8)
    header, stream, codes = content[:end], content[end:start], content[start:-4]
    match below(draw, 8):
        case 0:
            return raw(draw, content)
        case 1 | 2:
            header = field(draw, header)
        case 3:
            stream, codes = raw(draw, stream), pick(draw, (codes, b""))
        case 4:
            stream = noise(draw, len(stream) - 1) + stream[-1:]
        case 5:
            codes = raw(draw, codes)
        case _:                                 # the bytes under DEFLATE
            symbols, more = raw(draw, zlib.decompress(codes, -15)), pick(draw, (0, 0, 0, 1, 10**6))
            codes = zlib.compress(symbols + bytes(more), pick(draw, (0, 1, 9)), -15)
    body = header + stream + codes
    return body + zlib.crc32(body).to_bytes(4, "little")


def idx(draw, content):
    """A packed idx file with a changed header or content, packed again, or damaged as packed."""
    if below(draw, 10) < 3:
        return raw(draw, content)
    plain = gzip.decompress(content)
    if below(draw, 5) < 4:                      # magic, rank and sizes
        plain = number(draw, plain, below(draw, 16), (1, 4), ("big",))
    if below(draw, 5) < 2:
        plain = raw(draw, plain)
    cuts = [0, *pick(draw, ([], [], [below(draw, len(plain) + 1)])), len(plain)]
    packed = b"".join(gzip.compress(plain[start:end], pick(draw, (0, 1, 9)))
                      for start, end in itertools.pairwise(cuts))
    return packed + pick(draw, (b"", b"", b"", b"\0" * 8, b"tail", packed))


def png(draw, content):
    """A PNG with one or two edited chunks, their CRCs right."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at:at + 4], "big")
        chunks.append((content[at + 4:at + 8], content[at + 8:at + 8 + length]))
        at += 12 + length

    def change(chunk):
        kind, body = chunk
        if below(draw, 5) == 4:
            return pick(draw, CHUNKS), pick(draw, (b"", bytes(26), body, zlib.compress(bytes(999))))
        if kind == b"IDAT" and below(draw, 3) == 2:
            with contextlib.suppress(zlib.error):       # pixels that were changed already
                return kind, zlib.compress(raw(draw, zlib.decompress(body)))
        return kind, pick(draw, (raw, field))(draw, body)

    for _ in range(pick(draw, (1, 1, 2))):
        chunks = edit(draw, chunks, change)
    return content[:8] + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks)


def image(draw, content):
    """A changed PNG, TIFF, whose first directory has its fields changed, or other image."""
    kind = below(draw, 10)
    if content.startswith(b"\x89PNG") and kind < 8:
        return png(draw, content)
    if content[:4] in (b"II*\0", b"MM\0*") and kind < 6:
        order = "little" if content[:2] == b"II" else "big"
        start = int.from_bytes(content[4:8], order)
        count = int.from_bytes(content[start:start + 2], order)
        at, size = pick(draw, ((0, 2), (2, 2), (4, 4), (8, 4)))     # tag, kind, length, value
        at += start + 2 + 12 * below(draw, count)
        content = number(draw, content, at, (size,), (order,), TAGS)
        return raw(draw, content) if kind < 1 else content
    return pick(draw, (raw, field))(draw, content)


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
