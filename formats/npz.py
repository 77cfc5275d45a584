"""An .npz without pickle: JSON and arrays, the same bytes for the same content, read as hostile."""
import io
import json
import math
import warnings
import zipfile

import numpy as np

MAX_META = 2**22                # bytes of JSON as NumPy stores text, four a character
HEADER = 2**10                  # more than a .npy header takes
MAX_MEMBERS = 2**13             # zipfile takes 1 kB for each before any can be judged


def encode(meta, arrays, compress=True):
    """The bytes of an .npz.

    Args:
      meta: dict for JSON, stored as text under "meta"; arrays: dict of NumPy arrays.
    """
    buffer = io.BytesIO()
    write = np.savez_compressed if compress else np.savez
    write(buffer, meta=np.array(json.dumps(meta)),
          **{name: np.asarray(array, order="C") for name, array in arrays.items()})
    return buffer.getvalue()


def read_member(archive, info, limit):
    """The bytes of one member: stored or deflated, at most `limit`, and as many as it claims."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed by a method that npz files do not use")
    if info.file_size > limit:
        raise ValueError(f"{info.filename} claims {info.file_size} bytes, not {limit} at most")
    with archive.open(info) as member:
        content = member.read(info.file_size + 1)       # the directory's size may be a lie
    if len(content) != info.file_size:
        raise ValueError(f"{info.filename} does not hold the {info.file_size} bytes it claims")
    return content


def parse_header(content, name):
    """(shape, whether in Fortran's order, dtype, where the numbers start) of .npy bytes."""
    stream = io.BytesIO(content[:2 * HEADER])
    version = np.lib.format.read_magic(stream)
    reader = {(1, 0): np.lib.format.read_array_header_1_0,
              (2, 0): np.lib.format.read_array_header_2_0}[version]
    with warnings.catch_warnings(action="error"):       # Python 2's headers are not ours
        claimed, fortran, kind = reader(stream, max_header_size=HEADER)
    if kind.hasobject:
        raise ValueError(f"{name} holds a pickle")
    if math.prod(claimed) * kind.itemsize != len(content) - stream.tell():
        raise ValueError(f"{name} claims {claimed} of {kind} in "
                         f"{len(content) - stream.tell()} bytes")
    return claimed, fortran, kind, stream.tell()


def _parse_npy(content, name, dtype=None, shape=()):
    """An array from .npy bytes, of exactly this dtype and shape; without a dtype, one text."""
    claimed, fortran, kind, start = parse_header(content, name)
    if claimed != shape or fortran or (kind.kind != "U" if dtype is None else kind != dtype):
        wanted = "text" if dtype is None else f"{np.dtype(dtype)} {shape}"
        raise ValueError(f"{name} is {kind} {claimed}, not {wanted}")
    return np.frombuffer(content, kind, offset=start).reshape(claimed)


def reason(error):
    """Why decode failed, in one line: zipfile, zlib, NumPy and JSON raise many kinds on damage."""
    text = str(error) if isinstance(error, ValueError) else f"damaged ({type(error).__name__})"
    return text.splitlines()[0] if text else "damaged"


def open_archive(content):
    """A ZipFile of bytes from anywhere, of so many members that it does not take long to open."""
    if content.count(b"PK\1\2") > MAX_MEMBERS:         # each entry of the directory starts so
        raise ValueError(f"it has more than {MAX_MEMBERS:,} members")
    return zipfile.ZipFile(io.BytesIO(content))


def _open(content):
    """(an open ZipFile, {array's name: ZipInfo}, meta) of bytes from anywhere."""
    archive = open_archive(content)
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if len(members) != len(archive.infolist()) or "meta" not in members:
        raise ValueError("a key is there twice, or meta is missing")
    text = _parse_npy(read_member(archive, members.pop("meta"), MAX_META), "meta")
    meta = json.loads(str(text))
    if not isinstance(meta, dict):
        raise ValueError("meta is not a JSON object")
    return archive, members, meta


def decode(content, claim):
    """The inverse of encode, for bytes from anywhere.

    Args:
      content: bytes.
      claim: function of the meta (a dict) that checks it and gives {name: (dtype, shape)} of every
        array there must be. Nothing larger is read.
    Returns:
      (meta, arrays), arrays read-only.
    Raises:
      ValueError with a reason, or what zipfile, zlib and NumPy raise on damage.
    """
    archive, members, meta = _open(content)
    wanted = claim(meta)
    if set(members) != set(wanted):
        raise ValueError(f"its keys are not meta, {', '.join(wanted)}")
    arrays = {}
    for name, (dtype, shape) in wanted.items():
        limit = math.prod(shape) * np.dtype(dtype).itemsize + HEADER
        arrays[name] = _parse_npy(read_member(archive, members[name], limit), name, dtype, shape)
    return meta, arrays
