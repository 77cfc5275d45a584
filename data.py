"""Datasets as uint8 arrays, from four idx files in a folder, checked before they are trusted."""
import hashlib
import math
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from files import InputError

# The file names LeCun gave them, as (images, labels) of the train and the test split.
FILES = (("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"))
MAX_BYTES = 2**31               # of one file, packed or unpacked; more is refused
SPLIT_SEED = 0                  # the val split is the same in every run, whatever SEED is


class Split(NamedTuple):
    """images: uint8 [N, pixels]; labels: uint8 [N]."""
    images: np.ndarray
    labels: np.ndarray


def _inflate(packed, limit, path):
    """At most `limit` unpacked bytes of a .gz file; of another file, the bytes themselves."""
    if path.suffix != ".gz":
        return packed[:limit]
    stream = zlib.decompressobj(wbits=31)       # 31: gzip header and checksum
    content = stream.decompress(packed, limit)
    if len(content) < limit and not stream.eof:
        raise zlib.error
    return content


def _parse_idx(path, ranks):
    """One idx file of uint8 as an array; its rank must be one of `ranks`.

    The header's claim is checked before memory is taken for it.
    """
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES} bytes; give the original file")
    packed = path.read_bytes()
    sums = path.parent / "SHA256SUMS"
    known = sums.read_text().splitlines() if sums.exists() else []
    known = dict(reversed(line.split()) for line in known)
    if path.name in known and hashlib.sha256(packed).hexdigest() != known[path.name]:
        raise InputError(f"{path} has the wrong SHA-256: truncated or changed; copy it again")
    head = _inflate(packed, 20, path)
    if head[:3] != b"\0\0\x08" or head[3] not in ranks:
        raise InputError(f"{path} has the wrong magic 0x{head[:4].hex()}; give an idx file")
    shape = struct.unpack_from(f">{head[3]}I", head, 4)
    start, count = 4 + 4 * len(shape), math.prod(shape)
    if not 0 < count <= MAX_BYTES:
        raise InputError(f"{path} claims {count} bytes; 1 to {MAX_BYTES} are accepted")
    content = _inflate(packed, start + count + 1, path)
    if len(content) != start + count:
        raise InputError(f"{path} holds {len(content) - start} bytes or more, its header "
                         f"says {count}; copy the original again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_idx(folder, name, ranks):
    """The array in folder/name or folder/name.gz; every damage becomes an InputError."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
    if path is None:
        raise InputError(f"{folder / name}[.gz] is missing; DATA_DIR needs the four idx files")
    try:
        return _parse_idx(path, ranks)
    except (zlib.error, struct.error, IndexError):
        raise InputError(f"{path} is truncated or damaged; copy the original again") from None
    except (OSError, ValueError) as error:
        raise InputError(f"can't read {path}: {error}") from None


def _read_folder(folder):
    """The train and test Split of a folder of four idx files; the four are read in parallel."""
    with ThreadPoolExecutor() as pool:
        arrays = list(pool.map(lambda job: _read_idx(folder, *job),
                               [(name, ranks) for images, labels in FILES
                                for name, ranks in ((images, (3, 4)), (labels, (1,)))]))
    splits = []
    for images, labels, names in zip(arrays[::2], arrays[1::2], FILES):
        if len(images) != len(labels):
            raise InputError(f"{folder}: {len(images)} images in {names[0]} but {len(labels)} "
                             f"labels in {names[1]}; take both from one dataset")
        splits.append(Split(images.reshape(len(images), -1), labels))
    if splits[0].images.shape[1] != splits[1].images.shape[1]:
        raise InputError(f"{folder}: train and test images differ in size; take one dataset")
    return splits


def load(dataset, folder, layer_sizes):
    """The train and test split of a dataset, as stored.

    Args:
      dataset: "mnist" reads the four idx files of `folder`; another name is fetched once through
        tensorflow-datasets into a folder of that name beside it.
      layer_sizes: the network, whose inputs and classes must fit the images and labels.
    Returns:
      (train Split, test Split).
    Raises:
      InputError: files missing, damaged, of the wrong hash, or not fitting the network.
    """
    folder = Path(folder)
    if dataset != "mnist":
        if not dataset.replace("_", "").isalnum():
            raise InputError(f"DATASET = {dataset!r} is not a tensorflow-datasets name")
        folder = folder.parent / dataset
        if not all((folder / f"{name}.gz").exists() for pair in FILES for name in pair):
            import fetch
            fetch.fetch(dataset, folder)
    train, test = _read_folder(folder)
    inputs, classes = train.images.shape[1], int(max(train.labels.max(), test.labels.max())) + 1
    if inputs != layer_sizes[0] or classes > layer_sizes[-1]:
        raise InputError(f"LAYER_SIZES = {layer_sizes} does not fit {folder}: it has {inputs} "
                         f"pixels and {classes} classes")
    return train, test


def split_val(train, val_examples, batch_size):
    """Hold the last `val_examples` of a fixed permutation out of the train split.

    Returns:
      (train Split, val Split).
    Raises:
      InputError: fewer than one batch would be left to train on.
    """
    left = len(train.labels) - val_examples
    if left < batch_size:
        raise InputError(f"BATCH_SIZE = {batch_size} with VAL_EXAMPLES = {val_examples} is more "
                         f"than the {len(train.labels)} train images; make one smaller")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train.labels))
    return tuple(Split(train.images[part], train.labels[part])
                 for part in (order[:left], order[left:]))
