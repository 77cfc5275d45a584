"""Datasets as uint8 arrays, from four idx files in a folder, checked before they are trusted.

A folder without them is filled once through tensorflow-datasets, if that knows its name.
"""
import hashlib
import math
import os
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from formats import idx
from machine.files import InputError, read_bytes

# The file names LeCun gave them, as (images, labels) of the train and the test split.
FILES = (("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"))
MAX_BYTES = 2**31               # of one file, packed or unpacked; more is refused
SMALL, MAX_RATIO = 2**25, 100   # above SMALL bytes, a packed file may claim MAX_RATIO times its own
SPLIT_SEED = 0                  # the val split is the same in every run, whatever SEED is
# Datasets known by their content, wherever they lie; others are named after their folder.
KNOWN = {"e9914cff2ade526da2ab1ac60c072f9173cc53e35b9411692de8207cb1b9009d": "MNIST",
         "4d8e31d2057f6f938ff47097ba334038e7aafbaf24b67665d2dd1ecda01730a3": "Fashion-MNIST"}

# What an image of a known data set shows and what its classes are called, by the name's letters.
CLASSES = {"mnist": ("a digit", tuple("0123456789")),
           "fashionmnist": ("a piece of clothing", (
               "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
               "Bag", "Ankle boot")),
           "kmnist": ("a hiragana", ("お o", "き ki", "す su", "つ tsu", "な na", "は ha", "ま ma",
                                     "や ya", "れ re", "を wo"))}


class Split(NamedTuple):
    """images: uint8 [N, pixels]; labels: uint8 [N]."""
    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A data set as networks read it; the same facts travel into weights, results and exports."""
    name: str                   # to print
    sha256: str                 # of the content: of what its four idx files hold unpacked
    train: Split
    test: Split
    shape: tuple                # of an example: (H, W, C), or (features,)
    classes: tuple              # of str: their names


def classes(dataset, count):
    """(what an image shows, its `count` class names) by a data set's name; 0, 1, ... of others."""
    subject, names = CLASSES.get(re.sub("[^a-z]", "", dataset.lower()), ("", ()))
    if len(names) == count:
        return subject, names
    return "a picture", tuple(map(str, range(count)))


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


def _read_idx(path, ranks, sums):
    """_parse_idx of a file, packed or not; every damage becomes an InputError."""
    content = read_bytes(path, MAX_BYTES)
    expected = sums.get(path.name)
    if expected and hashlib.sha256(content).hexdigest() != expected:
        raise InputError(f"{path} has the wrong SHA-256: truncated or changed; copy it again")
    most = min(MAX_BYTES, max(SMALL, MAX_RATIO * len(content)))
    try:
        return idx.parse(path, content, ranks, most)
    except (EOFError, OSError, zlib.error, struct.error, IndexError):
        raise InputError(f"{path} is truncated or damaged; copy the original again") from None


def is_there(folder):
    """Whether the data are on the disk; else tensorflow-datasets makes them."""
    return all(_find(folder))


def _find(folder):
    """The paths of the four idx files in the order of FILES, packed or not; None for missing."""
    folder = Path(folder)
    choices = [(folder / name, folder / f"{name}.gz") for pair in FILES for name in pair]
    return [next((path for path in both if os.path.lexists(path)), None) for both in choices]


def _find_or_fetch(folder):
    """The paths of the four idx files of a folder, which is filled first when it has none."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder; DATA_DIR needs the four idx files")
    paths, name = _find(folder), _name_of(folder)
    # Files beside a missing one are the user's: they are not replaced.
    fetchable = not any(paths) and re.fullmatch(r"[A-Za-z0-9_]{1,100}", name)
    if fetchable and fetch(name, folder):
        paths = _find(folder)
    if None in paths:
        missing = [name for pair in FILES for name in pair][paths.index(None)]
        raise InputError(f"{folder / missing}[.gz] is missing; DATA_DIR needs the four idx files. "
                         "pip install -r requirements-tfds.txt lets tensorflow-datasets build "
                         "the data set that an empty folder is named after")
    return paths


def _name_of(folder):
    """The last part of a folder's path, also of one like "."."""
    return os.path.basename(os.path.abspath(folder))


def _make_split(folder, names, images, labels):
    """A Split of two arrays that must agree in their number."""
    if len(images) != len(labels):
        raise InputError(f"{folder}: {len(images)} images in {names[0]} but {len(labels)} "
                         f"labels in {names[1]}; take both from one dataset")
    return Split(images.reshape(len(images), -1), labels)


def _shape_of(images):
    """(H, W, C) of images [N, H, W] or [N, H, W, C], (features,) of [N, features]."""
    return images.shape[1:] if images.ndim != 3 else (*images.shape[1:], 1)


def load(folder):
    """The dataset of a folder of four idx files, packed (.gz) or not.

    Args:
      folder: where they are. One without any of them, named as tensorflow-datasets names a set,
        is filled once by it.
    Returns:
      Dataset. Its sha256 is of the unpacked content: packed or plain, the same data agree.
    Raises:
      InputError: files missing, damaged, or of another hash than SHA256SUMS says.
    """
    folder = Path(folder)
    paths = _find_or_fetch(folder)
    sums = _read_sums(folder)
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(_read_idx, path, ranks, sums)
                for path, ranks in zip(paths, ((2, 3, 4), (1,), (2, 3, 4), (1,)))]
        arrays, digests = zip(*(job.result() for job in jobs))
    train, test = (_make_split(folder, pair, *arrays[i:i + 2]) for pair, i in zip(FILES, (0, 2)))
    shape = _shape_of(arrays[0])
    if shape != _shape_of(arrays[2]):
        raise InputError(f"{folder}: train and test images differ in size; take one dataset")
    sha256 = hashlib.sha256(b"".join(digests)).hexdigest()
    name = KNOWN.get(sha256, _name_of(folder))
    count = int(max(train.labels.max(), test.labels.max())) + 1
    return Dataset(name, sha256, train, test, shape, classes(name, count)[1])


def fetch(name, folder, builder=None):
    """Load a dataset through tensorflow-datasets and keep it in `folder` as four idx files.

    Args:
      name: a tensorflow-datasets image classification set with train and test splits.
      folder: Path to write to; later runs read it without TensorFlow.
      builder: a tfds builder to use instead of tfds.builder(name), already prepared.
    Returns:
      False when TensorFlow or tensorflow-datasets is not installed, else True.
    Raises:
      InputError: the name is unknown, or its images are not uint8.
    """
    try:
        import tensorflow  # noqa: F401  (tensorflow-datasets needs it to build and to read)
        import tensorflow_datasets as tfds
    except ImportError:
        return False
    try:
        if builder is None:
            builder = tfds.builder(name)
            builder.download_and_prepare()
        splits = [tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, as_supervised=True))
                  for split in ("train", "test")]
        arrays = [_as_uint8(name, *split) for split in splits]
    except InputError:
        raise
    except Exception as error:      # tfds raises its own kinds for unknown names, no network, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder} has no idx files, and tensorflow-datasets can't build "
                         f"{name!r}: {reason}") from None
    for pair, split in zip(FILES, arrays):
        for file, array in zip(pair, split):
            idx.write(folder / f"{file}.gz", array)
    return True


def _as_uint8(name, images, labels):
    """Images [N, H, W] or [N, H, W, C] and labels [N] of tensorflow-datasets, as idx holds them."""
    if images.dtype != np.uint8 or images.ndim != 4 or labels.min() < 0 or labels.max() > 255:
        raise InputError(f"the dataset {name!r} is not uint8 images in at most 256 classes")
    if images.shape[-1] == 1:
        images = images[..., 0]
    return images, labels.astype(np.uint8)


def check_fits(dataset, steps):
    """Raise InputError unless a network reads and classifies the dataset.

    Args:
      dataset: Dataset.
      steps: as from plan.parse; it may have more classes than the labels.
    """
    takes, gives = math.prod(steps[0].before), steps[-1].after[0]
    inputs, count = dataset.train.images.shape[1], len(dataset.classes)
    if inputs != takes or count > gives:
        raise InputError(f"a network of {takes} inputs and {gives} classes does not fit "
                         f"{dataset.name}: it has {inputs} and {count}")


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
