"""Idx files, packed or not: their bytes to a uint8 array and back, read as hostile."""
import gzip
import hashlib
import io
import math
import os
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from formats import raw
from machine.files import InputError, read_bytes, write_atomically

# The file names LeCun gave them, as (images, labels) of the train and the test split.
FILES = (("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"))
HEAD = 2**16                    # bytes of a packed file that are sure to hold its header


def write(path, array):
    """Write a uint8 array as an idx file, packed when path ends in .gz."""
    content = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    packed = Path(path).suffix == ".gz"
    write_atomically(path, gzip.compress(content, 6, mtime=0) if packed else content)


def _take(content, limit):
    """The first `limit` bytes of a file that is not packed."""
    return content[:limit]


def _unpack(content, limit):
    """The first `limit` bytes, or fewer, of what gzip packed, taking memory only as they come."""
    unpacker = zlib.decompressobj(wbits=31)     # at one go, so that other threads run meanwhile
    unpacked = unpacker.decompress(content, limit)
    if len(unpacked) < limit and unpacker.unused_data:      # rare: several members
        pieces, stream = [], gzip.GzipFile(fileobj=io.BytesIO(content))
        while limit > 0 and (piece := stream.read(min(limit, 2**20))):
            pieces.append(piece)
            limit -= len(piece)
        return b"".join(pieces)
    if len(unpacked) < limit and not unpacker.eof:
        raise EOFError
    return unpacked


def parse(path, content, ranks, most):
    """(array of uint8, SHA-256 digest of the unpacked file) of the bytes of an idx file.

    The header's claim is checked before memory is taken for it.

    Args:
      path: of the file; .gz says that it is packed.
      content: its bytes.
      ranks: the numbers of dimensions to accept.
      most: the most bytes of content that the header may claim.
    Raises:
      InputError: another magic, claim or length; EOFError, OSError, zlib.error, struct.error or
        IndexError: damaged.
    """
    unpack = _unpack if path.suffix == ".gz" else _take
    head = unpack(memoryview(content)[:HEAD], 4 + 4 * max(ranks))
    if head[:3] != b"\0\0\x08" or head[3] not in ranks:
        raise InputError(f"{path} has the wrong magic 0x{head[:4].hex()}; give an idx file")
    header = bytes(head[:4 + 4 * head[3]])
    shape = struct.unpack(f">{header[3]}I", header[4:])
    count = math.prod(shape)
    if not 0 < count <= most:
        raise InputError(f"{path} claims {count} bytes; 1 to {most} are accepted")
    content = unpack(content, len(header) + count + 1)
    if len(content) != len(header) + count:
        raise InputError(f"{path} holds {len(content) - len(header)} bytes or more, its header "
                         f"says {count}; copy the original again")
    return (np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape),
            hashlib.sha256(content).digest())


def _read_sums(folder):
    """dict of file name -> SHA-256 from SHA256SUMS, as `sha256sum` and `sha256sum -b` write it."""
    path = folder / "SHA256SUMS"
    if not os.path.lexists(path):
        return {}
    sums = {}
    for line in read_bytes(path, 1_000_000).decode("utf-8", "replace").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?(?:\./)?(\S.*)", line)
        if match is None:
            raise InputError(f"{path} has the line {line[:80]!r}; write `sha256sum FILE` lines")
        sums[match[2]] = match[1].lower()
    return sums


def _read_file(path, ranks, sums):
    """parse of a file, packed or not; every damage becomes an InputError."""
    content = read_bytes(path, raw.MAX_BYTES)
    expected = sums.get(path.name)
    if expected and hashlib.sha256(content).hexdigest() != expected:
        raise InputError(f"{path} has the wrong SHA-256: truncated or changed; copy it again")
    most = raw.most_bytes(content)
    try:
        return parse(path, content, ranks, most)
    except (EOFError, OSError, zlib.error, struct.error, IndexError):
        raise InputError(f"{path} is truncated or damaged; copy the original again") from None


def find(folder):
    """The paths of the four idx files in the order of FILES, packed or not; None for missing."""
    folder = Path(folder)
    choices = [(folder / name, folder / f"{name}.gz") for pair in FILES for name in pair]
    return [next((path for path in both if os.path.lexists(path)), None) for both in choices]


def _shape_of(images):
    """(H, W, C) of images [N, H, W] or [N, H, W, C], (features,) of [N, features]."""
    return images.shape[1:] if images.ndim != 3 else (*images.shape[1:], 1)


def read(folder):
    """What the four idx files of a folder hold.

    Args:
      folder: Path.
    Returns:
      (train images uint8 [N, ...], train labels, test images, test labels; the shape of an
      example; SHA-256 of the unpacked content: packed or plain, the same data agree).
    Raises:
      InputError: files missing, damaged, unlike each other, or not as SHA256SUMS says.
    """
    paths, sums = find(folder), _read_sums(folder)
    if None in paths:
        missing = [name for pair in FILES for name in pair][paths.index(None)]
        raise InputError(f"{folder / missing}[.gz] is missing; give all four idx files")
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(_read_file, path, ranks, sums)
                for path, ranks in zip(paths, ((2, 3, 4), (1,), (2, 3, 4), (1,)))]
        arrays, digests = zip(*(job.result() for job in jobs))
    for i, pair in zip((0, 2), FILES):
        if len(arrays[i]) != len(arrays[i + 1]):
            raise InputError(f"{folder}: {len(arrays[i])} images in {pair[0]} but "
                             f"{len(arrays[i + 1])} labels in {pair[1]}; take both from one set")
    shape = _shape_of(arrays[0])
    if shape != _shape_of(arrays[2]):
        raise InputError(f"{folder}: train and test images differ in size; take one dataset")
    return (*arrays, shape, hashlib.sha256(b"".join(digests)).hexdigest())
