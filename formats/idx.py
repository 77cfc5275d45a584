"""Idx files, packed or not: their bytes to a uint8 array and back, read as hostile."""
import gzip
import hashlib
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from machine.files import InputError, write_atomically

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
