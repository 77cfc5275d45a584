"""One .npz of arrays: x_train, y_train, x_test, y_test as Keras ships MNIST, or x and y."""
import os
from pathlib import Path

import numpy as np

from formats import npz, raw
from machine.files import InputError, read_bytes


def _file(path):
    """The .npz that a path is, or that is the only one in a folder; None without one."""
    path = Path(path)
    if os.path.isdir(path):
        found = [name for name in os.listdir(path) if name.lower().endswith(".npz")
                 and not name.startswith(".")]
        return path / found[0] if len(found) == 1 else None
    return path if path.suffix.lower() == ".npz" else None


def matches(path):
    """Whether a path is an .npz file, or a folder with one."""
    try:
        return _file(path) is not None
    except (OSError, ValueError):
        return False


def _members(archive, path):
    """{key in small letters: ZipInfo} of an archive."""
    members = {}
    for info in archive.infolist():
        key = info.filename.removesuffix(".npy").lower()
        if key in members:
            raise InputError(f"{path} has the key {key!r} twice; save it once")
        members[key] = info
    return members


def _array(archive, info, limit):
    """The array of one member, as NumPy saved it, without pickle; ValueError on damage."""
    content = npz.read_member(archive, info, limit)
    shape, is_fortran, dtype, start = npz.parse_header(content, info.filename)
    flat = np.frombuffer(content, dtype, offset=start)
    return flat.reshape(shape[::-1]).T if is_fortran else flat.reshape(shape)


def _keys(members, path, group):
    """The keys of train x and y, test x and y and groups; None for what there is not."""
    keys = ["x_train", "y_train", "x_test", "y_test"]
    if "x_train" not in members:
        keys = ["x", "y", None, None]
    elif not members.keys() & {"x_test", "y_test"}:
        keys[2:] = None, None
    for key in [*filter(None, keys), *([group.lower()] if group else [])]:
        if key not in members:
            raise InputError(f"{path} has no key {key!r}; save x_train, y_train, x_test and "
                             "y_test, or x and y" + (", and what GROUP names" if group else ""))
    return [*keys, group.lower() or None]


def _load(path, group):
    """(train x, train y, test x, test y, groups) as NumPy arrays or None."""
    content = read_bytes(path, raw.MAX_BYTES)
    try:
        with npz.open_archive(content) as archive:
            members = _members(archive, path)
            return [key and _array(archive, members[key], raw.most_bytes(content))
                    for key in _keys(members, path, group)]
    except InputError:
        raise
    except Exception as error:      # zipfile, zlib and NumPy raise many kinds on damage
        advice = "save it by np.savez; text as y.astype(str), so that nothing is pickled"
        raise InputError(f"{path} can't be read: {npz.reason(error)}; {advice}") from None


def _numbers(path, name, x):
    """Examples as uint8, or finite float32."""
    if x.dtype.kind not in "buif" or x.dtype.itemsize > 8:
        raise InputError(f"{path}: {name} holds {x.dtype}, not numbers; save uint8 or float32")
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise InputError(f"{path}: {name} has the shape {x.shape}, not examples first and their "
                         "numbers after; reshape it")
    if x.dtype == np.uint8:
        return x
    with np.errstate(over="ignore"):
        small = x.astype(np.float32)
    bad = np.argwhere(~np.isfinite(small))
    if len(bad):
        place = "".join(f"[{i}]" for i in bad[0])
        raise InputError(f"{path}: {name}{place} is {x[tuple(bad[0])]}, missing or beyond float32; "
                         "fill it in or leave the example out")
    return small


def _texts(path, name, y, count):
    """(distinct labels as text, place of each example's among them)."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise InputError(f"{path}: {name} has the shape {y.shape}, not one label an example; "
                         f"save class numbers, of one-hot rows {name}.argmax(1)")
    if len(y) != count:
        raise InputError(f"{path}: {count} examples but {len(y)} labels in {name}; make them agree")
    if y.dtype.kind == "f":
        bad = np.flatnonzero(~((y == np.rint(y)) & (np.abs(y) < 2**53)))
        if len(bad):
            raise InputError(f"{path}: {name}[{bad[0]}] is {y[bad[0]]}; a class is a name or a "
                             "whole number")
        y = y.astype(np.int64)
    if y.dtype.kind not in "buiSU":
        raise InputError(f"{path}: {name} holds {y.dtype}; save whole numbers or text")
    values, places = np.unique(y.astype(np.uint8) if y.dtype.kind == "b" else y,
                               return_inverse=True)
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
             for value in values.tolist()]
    return [text.strip() for text in texts], places


def _split(path, suffix, x, y):
    """(examples, labels as text and places) of one split."""
    x = _numbers(path, f"x{suffix}", x)
    texts, places = _texts(path, f"y{suffix}", y, len(x))
    if not len(x):
        raise InputError(f"{path}: x{suffix} has no examples; add some")
    raw.check_count(path, texts)
    return x, texts, places


def read(path, shape=None, label="", group=""):
    """The Raw of an .npz file.

    Args:
      path: the file, or a folder with one: x_train, y_train and, if there, x_test, y_test; or x, y.
        x is [N, features], [N, H, W], [N, H, W, C] or [N, T, C]: uint8 are bytes as they are, other
        numbers become float32; y is [N] or [N, 1], whole numbers or text.
      shape: of raw.parse_shape; it cuts flat examples and says what two axes are.
      label: must be empty.
      group: the key of an array [N] that names the recording of each train example.
    Raises:
      InputError: one line, for whatever is wrong.
    """
    path = _file(path) or Path(path)
    raw.refuse_label(path, label)
    *arrays, groups = _load(path, group)
    suffix = "" if arrays[2] is None else "_train"
    train, names, places = _split(path, suffix, *arrays[:2])
    test, test_names, test_places = None, [], None
    if arrays[2] is not None:
        test, test_names, test_places = _split(path, "_test", *arrays[2:])
        if (test.shape[1:], test.dtype) != (train.shape[1:], train.dtype):
            raise InputError(f"{path}: an example of x_train is {train.dtype} {train.shape[1:]}, "
                             f"of x_test {test.dtype} {test.shape[1:]}; make them agree")
    if groups is not None:
        texts, which = _texts(path, group, groups, len(train))
        groups = np.array(texts)[which]
    train, test, shape, note = raw.arrange(path, train, test, shape)
    every = list(dict.fromkeys(names + test_names))
    y = [None if part is None else np.array([every.index(name) for name in texts])[part]
         for texts, part in ((names, places), (test_names, test_places))]
    return raw.make(path, (train, test), y, every, shape, groups, note)
