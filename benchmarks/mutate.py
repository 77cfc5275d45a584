"""Changes to valid files that keep their outer checks right, so that the change reaches the parser.

Every function takes a random.Random and bytes and gives bytes.
"""
import contextlib
import gzip
import io
import itertools
import json
import math
import re
import struct
import warnings
import zipfile
import zlib

import numpy as np

INTEGERS = (0, 1, 2, 3, 7, 8, 9, 64, 65, 127, 128, 255, 256, 32_767, 65_535, 65_536, 2**24, 2**26,
            2**31 - 1, 2**31, 2**32 - 1, 2**63)
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
CHUNKS = (b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"IDAT")
TAGS = (256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 322, 324, 330, 338, 339, 347)


def _field(random, content):
    """One to eight bytes set to a number that parsers trip over."""
    code = random.choice("BHIQ")
    order, size = random.choice("<>"), struct.calcsize(f"<{code}")
    if len(content) < size:
        return content
    # Headers are at the start, zip directories at the end.
    near = random.choice((len(content) - size, min(len(content) - size, 64)))
    at = random.randint(0, near)
    if random.random() < 0.2:
        at = len(content) - size - at
    number = random.choice(INTEGERS) % 256**size
    return content[:at] + struct.pack(order + code, number) + content[at + size:]


def raw(random, content):
    """Bytes flipped, set, inserted, removed, repeated or cut off."""
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(len(content) + 1)
        length = random.choice((1, 1, 2, 4, 16, 200))
        part = content[at:at + length]
        match random.randrange(7):
            case 0:
                part = bytes(byte ^ 1 << random.randrange(8) for byte in part)
            case 1:
                part = random.randbytes(len(part))
            case 2:
                part += random.randbytes(length)
            case 3:
                part = b""
            case 4:
                part *= random.choice((2, 2, 30))
            case 5:
                content = _field(random, content)
                continue
            case 6:
                content = content[:at]
                continue
        content = content[:at] + part + content[at + length:]
    return content


def text(random, content):
    """Tokens of TOML, JSON or sums removed, doubled, swapped or replaced; some bytes, too."""
    if random.random() < 0.1:
        return raw(random, content)
    tokens = re.findall(r"\w+|\s+|.", content.decode("utf-8", "replace"), re.DOTALL)
    for _ in range(random.choice((1, 1, 2, 5))):
        at, other = (random.randrange(len(tokens) + 1) for _ in range(2))
        start, end = min(at, other), max(at, other)
        match random.randrange(6):
            case 0:
                tokens[at:at + 1] = []
            case 1:
                tokens[at:at] = [random.choice(WORDS)]
            case 2 | 3:
                tokens[at:at + 1] = [random.choice(WORDS)]
            case 4:
                tokens[at:at] = tokens[start:end]
            case 5:
                tokens[at:at] = tokens[other:other + 1] * random.choice((1, 50))
    return "".join(tokens).encode("utf-8", "surrogatepass")


def _json(random, value):
    """A JSON value with one of its parts replaced, removed or doubled."""
    if random.random() < 0.3 or not isinstance(value, (dict, list)) or not value:
        return random.choice(VALUES)
    if isinstance(value, list):
        value = list(value)
        at = random.randrange(len(value))
        value[at:at + 1] = random.choice(([], [value[at]] * 2, [_json(random, value[at])]))
        return value
    key = random.choice(list(value))
    if random.random() < 0.2:
        return {k: v for k, v in value.items() if k != key}
    return value | {random.choice((key, key, key, "x")): _json(random, value[key])}


def _npy(random, content):
    """A .npy with a changed header, or changed data."""
    length = struct.unpack("<H", content[8:10])[0]
    header, values = content[10:10 + length].decode("latin-1"), content[10 + length:]
    match random.randrange(6):
        case 0 | 1:                             # its codes, biases, shifts or letters
            at = random.randrange(len(values) + 1)
            new = random.choice((random.randbytes(4), b"\x80", b"\0", b"\xff" * 8, b"\0\0\xc0\x7f",
                                 b"\0\0\x80\x7f", b"\0\0\0\x80", b"\xff\xff\xff\x7f"))
            changed = values[:at] + new + values[at + len(new):]
            return content[:10 + length] + changed[:len(values)]
        case 2:
            values = raw(random, values)
        case 3 | 4:                             # a value, or any token
            tokens = re.findall(r"'[^']*'|\([^)]*\)|\w+|.", header.rstrip())
            wide = [i for i, token in enumerate(tokens) if len(token) > 1] or [len(tokens)]
            at, new = random.choice(wide), random.choice(HEADERS)
            tokens[at:at + 1] = [random.choice((new, repr(new)))]
            header = "".join(tokens)
        case 5:
            header = raw(random, header.encode("latin-1")).decode("latin-1")
    version = random.choice((b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\0\0", b"\xff\xff"))
    size = struct.pack("<I" if version == b"\2\0" else "<H", len(header) % 65_536)
    return b"\x93NUMPY" + version + size + header.encode("latin-1") + values


def npy_of_text(value):
    """The .npy member of a JSON value as npz.py stores its meta."""
    buffer = io.BytesIO()
    np.save(buffer, np.array(json.dumps(value)))
    return buffer.getvalue()


def _members(random, members):
    """A list of (name, bytes) with one member changed, removed, doubled, renamed or added."""
    at = random.randrange(len(members))
    name, content = members[at]
    match random.randrange(10):
        case 0:
            new = []
        case 1:
            new = [(random.choice(NAMES), content)]
        case 2:
            new = [(name, content), (random.choice((name, *NAMES)), content)]
        case 3 | 4 | 5:
            at = next((i for i, member in enumerate(members) if member[0] == "meta.npy"), at)
            name, content = members[at]
            length = int.from_bytes(content[8:10], "little")
            try:
                meta = json.loads(content[10 + length:].decode("utf-32-le"))
                new = [(name, npy_of_text(_json(random, meta)))]
            except (ValueError, RecursionError):    # no JSON, or changed already
                new = [(name, b"")]
        case _:
            new = [(name, _npy(random, content) if len(content) > 99 else b"")]
    return members[:at] + new + members[at + 1:]


def zipped(random, members):
    """A zip of (name, bytes), stored, deflated or otherwise, its checksums right."""
    buffer, method = io.BytesIO(), zipfile.ZIP_STORED
    if random.random() < 0.6:
        method = random.choice((zipfile.ZIP_DEFLATED,) * 4 + (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def npz(random, content):
    """An npz with changed members, or with the fields of its zip changed."""
    if random.random() < 0.1:
        return raw(random, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        if members:
            members = _members(random, members)
    content = zipped(random, members)
    if random.random() < 0.3:                   # a header of the zip: local, directory or end
        starts = [match.start() for match in re.finditer(b"PK(?:\1\2|\3\4|\5\6)", content)]
        at = random.choice(starts) + random.randrange(4, 42)
        size = random.choice((1, 2, 4))
        number = (random.choice(INTEGERS) % 256**size).to_bytes(size, "little")
        content = content[:at] + number + content[at + size:]
    return content


def network(random, _):
    """A weights file that is whole and of the right shapes, its widths, codes and bits anything."""
    sizes = [random.choice((1, 2, 3, 9, 64, 300)) for _ in range(random.choice((2, 2, 3, 4, 66)))]
    sizes = sizes if len(sizes) < 9 else [min(size, 9) for size in sizes]
    bits, quantized = random.randint(1, 8), random.random() < 0.8
    meta = {"format": 2, "quantized": quantized, "layer_sizes": sizes, "facts": {},
            "input": random.choice((28, 28, 28, 14, 13))}
    meta |= {"weight_bits": bits, "activation_bits": random.choice((0, 1, 4, 8, 9)),
             "logit_exponent": random.choice((-101, -100, -12, 0, 100, 101))} if quantized else {}
    members = [("meta.npy", npy_of_text(meta))]

    def add(name, dtype, *shape):
        count = math.prod(shape) * np.dtype(dtype).itemsize
        values = random.choice((bytes(count), random.randbytes(count), b"\1" * count,
                                b"\x81" * count, b"\1\0\0\0" * (count // 4 + 1)))
        buffer = io.BytesIO()
        np.save(buffer, np.frombuffer(values[:count], dtype).reshape(shape))
        members.append((f"{name}.npy", buffer.getvalue()))

    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        if not quantized:
            add(f"w{i}", np.float32, inputs, outputs)
        elif bits < 8:
            add(f"w{i}_q", np.uint8, -(-inputs * outputs * bits // 8))
        else:
            add(f"w{i}_q", np.int8, inputs, outputs)
        add(f"b{i}_q" if quantized else f"b{i}", np.int32 if quantized else np.float32, outputs)
        if quantized and i + 2 < len(sizes):
            add(f"shift{i}", np.int8, outputs)
    return zipped(random, members)


def nqat(random, content):
    """An .nqat with a changed header, stream of bits or weights, mostly with a right CRC."""
    end = 12 + 5 * content[9]                   # of the rows, as docs/format.md has them
    start = end + -(-sum((outputs + 1) * (width + spread) for outputs, width, _, spread in
                         struct.iter_unpack("<HBBB", content[12:end])) // 8)
    header, stream, weights = content[:end], content[end:start], content[start:-4]
    match random.randrange(8):
        case 0:
            return raw(random, content)
        case 1 | 2:
            header = _field(random, header)
        case 3:
            stream, weights = raw(random, stream), random.choice((weights, b""))
        case 4:
            stream = random.randbytes(len(stream) - 1) + stream[-1:]
        case 5:
            weights = raw(random, weights)
        case 6 | 7:                             # the bytes under DEFLATE
            symbols = raw(random, zlib.decompress(weights, -15))
            symbols += bytes(random.choice((0, 0, 0, 1, 10**6)))
            weights = zlib.compress(symbols, random.choice((0, 1, 9)), -15)
    body = header + stream + weights
    return body + zlib.crc32(body).to_bytes(4, "little")


def idx(random, content):
    """A packed idx file with a changed header or content, packed again, or damaged as packed."""
    if random.random() < 0.3:
        return raw(random, content)
    plain = gzip.decompress(content)
    if random.random() < 0.8:                   # magic, rank and sizes
        at, size = random.randrange(16), random.choice((1, 4))
        number = (random.choice(INTEGERS) % 256**size).to_bytes(size, "big")
        plain = plain[:at] + number + plain[at + size:]
    if random.random() < 0.4:
        plain = raw(random, plain)
    cut = random.randrange(len(plain) + 1)
    members = [plain[:cut], plain[cut:]] if random.random() < 0.3 else [plain]
    content = b"".join(gzip.compress(member, random.choice((0, 1, 9))) for member in members)
    return content + random.choice((b"", b"", b"", b"\0" * 8, b"tail", content))


def _png(random, content):
    """A PNG with a changed chunk, its CRC right."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at:at + 4], "big")
        chunks.append((content[at + 4:at + 8], content[at + 8:at + 8 + length]))
        at += 12 + length
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(chunks))
        kind, body = chunks[at]
        match random.randrange(6):
            case 0:
                new = []
            case 1:
                new = [(kind, body)] * 2
            case 2:
                more = random.choice((b"", bytes(26), body, zlib.compress(bytes(999))))
                new = [(kind, body), (random.choice(CHUNKS), more)]
            case 3 if kind == b"IDAT":          # the pixels; none if they were changed already
                with contextlib.suppress(zlib.error):
                    body = zlib.decompress(body)
                new = [(kind, zlib.compress(raw(random, body)))]
            case _:
                new = [(kind, (raw if random.random() < 0.5 else _field)(random, body))]
        chunks[at:at + 1] = new
        if not chunks:
            break
    return content[:8] + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks)


def _tiff(random, content):
    """A TIFF with one field of its first directory changed."""
    order = "<" if content[:2] == b"II" else ">"
    start, = struct.unpack(f"{order}I", content[4:8])
    count, = struct.unpack(f"{order}H", content[start:start + 2])
    at = start + 2 + 12 * random.randrange(count)
    tag, kind, length, value = struct.unpack(f"{order}HHII", content[at:at + 12])
    match random.randrange(4):
        case 0:
            tag = random.choice(TAGS)
        case 1:
            kind = random.randrange(16)
        case 2:
            length = random.choice(INTEGERS) % 2**32
        case 3:
            value = random.choice((*INTEGERS, value + 1)) % 2**32
    return content[:at] + struct.pack(f"{order}HHII", tag, kind, length, value) + content[at + 12:]


def image(random, content):
    """A changed image file."""
    kind = random.random()
    if content.startswith(b"\x89PNG") and kind < 0.8:
        return _png(random, content)
    if content[:4] in (b"II*\0", b"MM\0*") and kind < 0.6:
        return raw(random, _tiff(random, content)) if kind < 0.1 else _tiff(random, content)
    return _field(random, content) if kind < 0.5 else raw(random, content)


def image_seeds():
    """A small stroke in every format and mode that is read, and in some that are not."""
    from PIL import Image, ImageDraw
    drawn = Image.new("L", (12, 12), 255)
    ImageDraw.Draw(drawn).line([(3, 2), (8, 2), (5, 9)], 0, 2)
    clear = drawn.convert("RGBA")
    clear.putalpha(drawn.point(lambda level: 255 - level))
    wanted = [("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    wanted += [("JPEG", "L", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "CMYK", {})]
    wanted += [("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")]
    wanted += [("GIF", "L", {}), ("GIF", "P", {"interlace": 1}), ("GIF", "RGBA", {})]
    wanted += [("TIFF", "L", {"compression": name}) for name in
               ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")]
    wanted += [("TIFF", "1", {"compression": "group4"}), ("TIFF", "RGBA", {}), ("TIFF", "F", {})]
    wanted += [("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True})]
    wanted += [("PPM", mode, {}) for mode in ("1", "L", "RGB", "F")]
    wanted += [(name, "RGB", {}) for name in ("DDS", "AVIF", "TGA", "ICO", "PCX", "JPEG2000")]
    wanted += [("SPIDER", "F", {}), ("BLP", "P", {})]
    seeds = [b"P3 2 2 255\n0 0 0 255 255 255 9 9 9 0 0 0\n", b"P2 2 1 9 1 2\n", b"P1 2 1 1 0\n",
             b"P5 2 2 65535\n\0\0\xff\xff\0\0\xff\xff"]
    for name, mode, options in wanted:
        buffer = io.BytesIO()
        (clear if mode in ("RGBA", "LA") else drawn).convert(mode).save(buffer, name, **options)
        seeds.append(buffer.getvalue())
    return seeds
