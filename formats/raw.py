"""The user's own data as a reader gives it, and what every reader asks of it.

A reader is a file with `matches(path)` and `read(path, shape, label, group) -> Raw`.
"""
import hashlib
import math
import re
import struct
from typing import NamedTuple

import numpy as np

from formats import encode
from machine.files import InputError

MAX_BYTES = 2**31               # of one file, packed or unpacked; more is refused
SMALL, MAX_RATIO = 2**25, 100   # above SMALL bytes, a packed file may claim MAX_RATIO times its own
MAX_CLASSES = 256
MAX_NAME = 100                  # characters of a class's name
MAX_NUMBERS = 2**20             # of one example


class Raw(NamedTuple):
    """Data of any kind before features become bytes.

    Args:
      train_x: uint8 or float32 [N, *shape]; float32 is finite and still to be encoded.
      train_y: int64 [N], index into classes.
      test_x: like train_x; None where the data have no test split.
      test_y: like train_y, or None.
      shape: (H, W, C) of pictures, (1, T, C) of windows, (features,) of a table.
      classes: tuple of str, 2 to 256; whole numbers in their order, else sorted as text.
      groups: str [N], the recording of each train example, or None.
      note: what the reader decided, in one line to print; "" where there was nothing to decide.
    """
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray | None
    test_y: np.ndarray | None
    shape: tuple
    classes: tuple
    groups: np.ndarray | None
    note: str


def parse_shape(text):
    """SHAPE as a tuple of two or three numbers; None of "", which leaves it to the data."""
    if not text.strip():
        return None
    match = re.fullmatch(r"([0-9]{1,7})x([0-9]{1,7})(?:x([0-9]{1,7}))?", text.strip())
    shape = tuple(int(side) for side in match.groups() if side) if match else ()
    if not shape or not 0 < math.prod(shape) <= MAX_NUMBERS:
        raise InputError(f"SHAPE = {text!r} is not HxW or HxWxC of a picture like 28x28x3, or TxC "
                         f"of a window like 100x6, with at most {MAX_NUMBERS:,} numbers")
    return shape


def show_shape(shape):
    """A shape as SHAPE writes it: 28x28x3."""
    return "x".join(map(str, shape))


def refuse_label(path, label):
    """Raise InputError where LABEL is set for data that have no columns."""
    if label:
        raise InputError(f"{path}: LABEL = {label!r} names a column of a table, and this is none; "
                         "leave LABEL empty")


def most_bytes(content):
    """What a packed file of these bytes may claim to hold."""
    return min(MAX_BYTES, max(SMALL, MAX_RATIO * len(content)))


def _looks_like_picture(parts):
    """Whether numbers are whole and 0..255, or lie in 0..1."""
    low = min(part.min() for part in parts)
    high = max(part.max() for part in parts)
    if low < 0 or high > 255:
        return False
    return high <= 1 or all((part == np.rint(part)).all() for part in parts)


def _arrange(path, parts, shape):
    """The shape of an example, from what is given and SHAPE."""
    given = parts[0].shape[1:]
    if shape is None:
        shape = given
    inner = [side for side in given if side > 1]
    # A flat example is cut by SHAPE; another order of axes would mix up the numbers.
    is_same = len(inner) <= 1 or inner == [side for side in shape if side > 1]
    if math.prod(shape) != math.prod(given) or not is_same:
        raise InputError(f"{path}: SHAPE = {show_shape(shape)} is {math.prod(shape)} numbers, "
                         f"an example has {show_shape(given)}; make them agree")
    if len(shape) > 3 or math.prod(shape) > MAX_NUMBERS:
        raise InputError(f"{path}: an example of {show_shape(shape)} numbers is no row of "
                         f"features, HxW, HxWxC or TxC, at most {MAX_NUMBERS:,}; reshape it")
    if len(shape) == 2:
        is_picture = parts[0].dtype == np.uint8 or _looks_like_picture(parts)
        shape = (*shape, 1) if is_picture else (1, *shape)
    return tuple(map(int, shape))


def arrange(path, train_x, test_x, shape):
    """Numbers as pictures, windows or features.

    Args:
      path: of the data, for messages.
      train_x, test_x: uint8 or finite float32 [N, ...]; test_x may be None.
      shape: of parse_shape. Two numbers are a picture H x W of bytes, of whole numbers in 0..255
        and of numbers in 0..1; of others a window T x C. Three are H x W x C.
    Returns:
      (train_x, test_x, shape, note); pictures in 0..1, 0..16 or whole in 0..255 are uint8 now.
    Raises:
      InputError: SHAPE and an example differ in size.
    """
    parts = [part for part in (train_x, test_x) if part is not None]
    shape = _arrange(path, parts, shape)
    note = "features" if len(shape) == 1 else "pictures" if shape[0] > 1 else "windows"
    note = f"{note} of {show_shape(shape)}"
    if len(shape) == 3 and shape[0] > 1 and train_x.dtype != np.uint8:
        parts, scaled = encode.picture_bytes(parts)
        note = f"{note}, {scaled}"
    parts = [part.reshape(len(part), *shape) for part in parts]
    return parts[0], parts[1] if test_x is not None else None, shape, note


def sort_classes(names):
    """Class names in order: whole numbers by value, anything else as text."""
    if all(re.fullmatch("-?[0-9]{1,15}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def check_count(path, names):
    """Raise InputError for more classes than labels of a byte can name."""
    if len(names) > MAX_CLASSES:
        raise InputError(f"{path} has {len(names)} different labels or more, and {MAX_CLASSES} "
                         "classes are the most; are they labels?")


def check_classes(path, names):
    """Raise InputError unless these can be the names of classes."""
    check_count(path, names)
    if len(names) == 1:
        raise InputError(f"{path} has one class only, {names[0]!r}; give examples of two or more")
    for name in names:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise InputError(f"{path} has the class {name[:MAX_NAME]!r}; a name is 1 to {MAX_NAME} "
                             "printable characters")


def make(path, x, y, names, shape, groups=None, note=""):
    """The Raw of what a reader found.

    Args:
      path: of the data, for messages.
      x: (train_x, test_x) as in Raw.
      y: (train_y, test_y), ints that index names; test_y may be None.
      names: the names of the classes, each once, in any order.
      shape, groups, note: as in Raw.
    Raises:
      InputError: no examples, not 2 to 256 classes, or one without a train example.
    """
    if not len(x[0]) or (x[1] is not None and not len(x[1])):
        raise InputError(f"{path} has no {'test' if len(x[0]) else 'train'} examples; add some")
    check_classes(path, names)
    classes = sort_classes(names)
    place = np.array([classes.index(name) for name in names])
    train_y, test_y = (None if part is None else place[np.asarray(part, np.int64)] for part in y)
    counts = np.bincount(train_y, minlength=len(classes))
    if not counts.all():
        raise InputError(f"{path}: class {classes[counts.argmin()]!r} has no train example; add "
                         "some or leave the class out of the test split")
    groups = None if groups is None else np.asarray(groups, str)
    return Raw(x[0], train_y, x[1], test_y, tuple(shape), tuple(classes), groups, note)


def _digest(array):
    """SHA-256 digest of the idx file that an array would make: uint8, or float32 big-endian."""
    kind = {np.dtype(np.uint8): (8, ">u1"), np.dtype(np.float32): (13, ">f4")}
    code, stored = kind[array.dtype]
    hasher = hashlib.sha256(struct.pack(f">4B{array.ndim}I", 0, 0, code, array.ndim, *array.shape))
    for block in np.array_split(array, max(1, array.nbytes >> 24)):     # 16 MB of copies at a time
        hasher.update(np.ascontiguousarray(block, stored))
    return hasher.digest()


def identity(train_x, train_y, test_x, test_y, groups=None):
    """SHA-256 of a data set, the same whichever reader read it.

    That of the four idx files it would make, as data.load has it: of the digests of train images,
    train labels, test images and test labels. Gray pictures [N, H, W, 1] are [N, H, W] there.

    Args:
      train_x, test_x: uint8 or float32 [N, ...].
      train_y, test_y: ints in 0..255 [N].
      groups: of the train examples, where nothing else says what is held out by them.
    Returns:
      64 hex digits.
    """
    arrays = []
    for x, y in ((train_x, train_y), (test_x, test_y)):
        is_gray = x.ndim == 4 and x.shape[-1] == 1
        arrays += [x[..., 0] if is_gray else x, np.asarray(y).astype(np.uint8)]
    if groups is not None:
        arrays.append(np.unique(groups, return_inverse=True)[1].astype(np.float32))
    return hashlib.sha256(b"".join(map(_digest, arrays))).hexdigest()
