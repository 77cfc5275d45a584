"""Data sets as bytes, from idx files, pictures, arrays or tables, and their splits.

An empty folder is filled once through tensorflow-datasets, if that knows its name.
"""
import contextlib
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

import plan
from formats import arrays, encode, idx, pictures, raw, splits, tables
from machine.files import InputError

READERS = (pictures, arrays, tables)    # of data that are not four idx files, in this order
TEST_SHARE = VAL_SHARE = 0.2    # of the examples, where the data have no test split; of small data
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
    """Examples, whatever they are: pictures, windows or rows of features."""
    images: np.ndarray          # uint8 [N, numbers]
    labels: np.ndarray          # uint8 [N]


class Dataset(NamedTuple):
    """A data set as networks read it; the same facts travel into weights, results and exports."""
    name: str                   # to print
    sha256: str                 # of the content: of what its four idx files hold unpacked
    train: Split
    test: Split
    shape: tuple                # of an example: (H, W, C), or (features,)
    classes: tuple              # of str: their names
    encoding: encode.Encoding | None = None     # how features became bytes; None of pictures
    groups: np.ndarray | None = None    # of each train example: the recording it belongs to
    is_idx: bool = False        # read from four idx files: split as ever
    sample: np.ndarray | None = None    # float32, features of the first test example, as read
    notes: tuple = ()           # what the reader decided, to print


def classes(dataset, count):
    """(what an image shows, its `count` class names) by a data set's name; 0, 1, ... of others."""
    subject, names = CLASSES.get(re.sub("[^a-z]", "", dataset.lower()), ("", ()))
    if len(names) == count:
        return subject, names
    return "a picture", plan.class_names(count)


def _reader_of(path):
    """The one of READERS that a folder or file is for; None if there is none."""
    with contextlib.suppress(OSError, ValueError):      # a name that no file can have
        return next((reader for reader in READERS if reader.matches(path)), None)


def is_there(path):
    """Whether the data are on the disk; else tensorflow-datasets makes them."""
    path = Path(path)
    return any(idx.find(path)) or _reader_of(path) is not None


def load(path, shape="", label="", group=""):
    """The data set of a folder or file.

    Args:
      path: four idx files, class folders of pictures, an .npz or tables. An empty folder, named as
        tensorflow-datasets names a set, is filled once by it.
      shape: as SHAPE: what an example's numbers are, where the data don't say it.
      label: name of the column of labels.
      group: name of the column or folders of recordings.
    Returns:
      Dataset.
    Raises:
      InputError: what is wrong with the data, one line.
    """
    path = Path(path)
    name = os.path.basename(os.path.abspath(path))
    if os.path.isfile(path):                    # unlike Path's, False for a name too long
        name = path.stem
    if not any(idx.find(path)):
        reader = _reader_of(path)
        if reader is not None:
            return from_raw(name, reader.read(path, raw.parse_shape(shape), label, group))
        _fetch_or_refuse(name, path)
    train_x, train_y, test_x, test_y, found, sha256 = idx.read(path)
    train_x, test_x, found = _reshape(path, train_x, test_x, found, raw.parse_shape(shape))
    count = int(max(train_y.max(), test_y.max())) + 1
    name = KNOWN.get(sha256, name)
    return Dataset(name, sha256, Split(train_x.reshape(len(train_x), -1), train_y),
                   Split(test_x.reshape(len(test_x), -1), test_y), found, classes(name, count)[1],
                   is_idx=True)


def _reshape(path, train_x, test_x, found, shape):
    """(train, test, shape) of idx files, whose examples SHAPE may cut in another way."""
    if shape is None:
        return train_x, test_x, found
    train_x, test_x, found, _ = raw.arrange(path, train_x, test_x, shape)
    return train_x, test_x, found


def from_raw(name, given):
    """The Dataset of what a reader gave: split where there is no test split, features as bytes."""
    notes = [given.note] if given.note else []
    train_x, train_y, test_x, test_y, groups = (given.train_x, given.train_y, given.test_x,
                                                given.test_y, given.groups)
    if test_x is None:
        kept, held = splits.split(train_y, TEST_SHARE, SPLIT_SEED, groups)
        notes.append(f"no test split: {len(held):,} examples of all classes are held out for it")
        test_x, test_y = train_x[held], train_y[held]
        train_x, train_y = train_x[kept], train_y[kept]
        groups = None if groups is None else groups[kept]
    sha256 = raw.identity(train_x, train_y, test_x, test_y,
                          None if given.test_x is None else groups)
    encoding = sample = None
    if train_x.dtype != np.uint8:
        encoding, sample = encode.fit(train_x), test_x[0].reshape(-1)
        train_x, test_x = (encode.encode(x, encoding) for x in (train_x, test_x))
    train, test = (Split(x.reshape(len(x), -1), y.astype(np.uint8))
                   for x, y in ((train_x, train_y), (test_x, test_y)))
    return Dataset(KNOWN.get(sha256, name), sha256, train, test, given.shape, given.classes,
                   encoding, groups, sample=sample, notes=tuple(notes))


def _fetch_or_refuse(name, path):
    """Have tensorflow-datasets fill an empty folder; InputError where nothing can be read."""
    if os.path.lexists(path) and (not os.path.isdir(path) or any(os.scandir(path))):
        raise InputError(f"{path} holds no data set: give four idx files, folders of pictures, an "
                         ".npz or a .csv (docs/own_data.md)")
    if not (re.fullmatch(r"[A-Za-z0-9_]{1,100}", name) and fetch(name, path)):
        raise InputError(f"{path} has no data. pip install -r requirements-tfds.txt lets "
                         "tensorflow-datasets build the set that an empty folder is named after")


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
        parts = [tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, as_supervised=True))
                 for split in ("train", "test")]
        found = [_as_uint8(name, *split) for split in parts]
    except InputError:
        raise
    except Exception as error:      # tfds raises its own kinds for unknown names, no network, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder} has no idx files, and tensorflow-datasets can't build "
                         f"{name!r}: {reason}") from None
    for pair, split in zip(idx.FILES, found):
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


def _means_the_same(dataset, facts):
    """Whether a byte and a class number of a dataset mean what they meant in training."""
    low, exponent = dataset.encoding or (None, None)
    names = facts.classes[:len(dataset.classes)]
    return facts.sha256 == dataset.sha256 or (
        np.array_equal(facts.low, low) and np.array_equal(facts.exponent, exponent)
        and names in (dataset.classes, plan.class_names(len(names))))


def check_fits(dataset, steps, facts):
    """Raise InputError unless a network reads and classifies the dataset.

    Args:
      dataset: Dataset.
      steps: as from plan.parse; it may have more classes than the labels.
      facts: checkpoint.Facts of the network: its classes, and how its features became bytes.
    """
    takes, gives = math.prod(steps[0].before), steps[-1].after[0]
    inputs, count = dataset.train.images.shape[1], len(dataset.classes)
    if inputs != takes or count > gives:
        raise InputError(f"a network of {takes} inputs and {gives} classes does not fit "
                         f"{dataset.name}: it has {inputs} and {count}")
    if not _means_the_same(dataset, facts):
        raise InputError(f"the network's classes, or its table from features to bytes, are not "
                         f"those of {dataset.name}; have it answer files, or train on these data")


def _parts(dataset, val_examples):
    """(indices to train on, indices to validate on) of the train split."""
    labels, count = dataset.train.labels, len(dataset.train.labels)
    if dataset.is_idx:
        held = val_examples if 2 * val_examples <= count else int(VAL_SHARE * count)
        order = np.random.default_rng(SPLIT_SEED).permutation(count)
        return order[:count - held], order[count - held:]
    share = min(val_examples / count, VAL_SHARE)
    return splits.split(labels, share, SPLIT_SEED + 1, dataset.groups)


def count_train(dataset, val_examples):
    """How many examples split_val leaves to train on."""
    return len(_parts(dataset, val_examples)[0])


def split_val(dataset, val_examples):
    """Hold examples out of the train split to stop and to choose by.

    Of four idx files the last ones of a fixed permutation, as ever; else a part of each class, with
    recordings whole. VAL_EXAMPLES at most, a fifth of small data.

    Returns:
      (train Split, val Split).
    Raises:
      InputError: all of them are of one class: no model can be told from a guess.
    """
    train = dataset.train
    kept, val = (Split(train.images[part], train.labels[part])
                 for part in _parts(dataset, val_examples))
    for name, part in (("train", kept), ("validation", val)):
        if len(np.unique(part.labels)) < 2:
            raise InputError(f"the {len(part.labels)} {name} examples are all of one class; "
                             "give more, or another VAL_EXAMPLES")
    return kept, val
