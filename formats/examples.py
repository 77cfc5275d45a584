"""What a person gives to be classified: pictures, folders of them, rows of a table; as bytes."""
import os
from pathlib import Path

import numpy as np

from formats import encode, photo, pictures, tables
from machine.files import InputError

DIGITS = tuple("0123456789")


def is_table(path):
    """Whether a path is a table by its name."""
    return Path(path).suffix.lower() in tables.SUFFIXES


def _files(path):
    """The files to read for a path: itself or, of a folder, what is in it and in its folders."""
    path = Path(path)
    if not os.path.isdir(path):                 # unlike Path's, False for what no path can be
        return [path]
    found = sorted(file for file in (*path.glob("*"), *path.glob("*/*"))
                   if os.path.isfile(file) and not file.name.startswith("."))
    if not found:
        raise InputError(f"{path} is a folder without pictures")
    return found


def read(path, shape, classes, encoding, label="", group=""):
    """The examples of a file or folder.

    Args:
      path: a picture, a folder of pictures, or a table (.csv, .tsv) with a row an example.
      shape: of what the network reads: (H, W, C), or (features,).
      classes: its class names. A network of 28 x 28 digits gets photos prepared like digits; any
        other one of pictures gets them fitted to its shape.
      encoding: encode.Encoding of features; None of pictures.
      label, group: LABEL and GROUP, of a table: columns to leave out.
    Yields:
      (name, uint8 [numbers], what makes it doubtful or "") of each; an InputError in place of what
      can't be read.
    """
    if is_table(path) or len(shape) == 1 or encoding is not None:
        yield from _read_rows(path, shape, encoding, label, group)
        return
    is_digits = shape == (28, 28, 1) and tuple(classes) == DIGITS
    for file in _files(path):
        try:
            if is_digits:
                digits = photo.read_digits(file)
                for i, digit in enumerate(digits, 1):
                    yield f"{file} {i}/{len(digits)}" if len(digits) > 1 else str(file), *digit
            else:
                yield str(file), pictures.read_picture(file, shape).reshape(-1), ""
        except InputError as error:
            yield error


def _read_rows(path, shape, encoding, label, group):
    """Each row of a table, as read gives it; its name is the line's number."""
    if not is_table(path):
        raise InputError(f"{path} is no .csv or .tsv, and the network reads features, "
                         f"{int(np.prod(shape))} a row")
    lines, x = tables.read_features(path, int(np.prod(shape)), label, group)
    if encoding is not None:
        x = encode.encode(x.reshape(len(x), *shape), encoding)
    elif ((x < 0) | (x > 255) | (x != np.rint(x))).any():
        raise InputError(f"{path} holds numbers that are no bytes, and the network reads bytes")
    for line, codes in zip(lines, x.astype(np.uint8)):
        yield f"{path} line {line}", codes.reshape(-1), ""
