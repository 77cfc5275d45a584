"""Folders of pictures, one folder a class: `train/cat/1.png`, or `cat/1.png` without a test split.

Pictures are opened as photos are (formats/photo.py): sizes first, safe formats only.
"""
import os
from pathlib import Path

import numpy as np

from formats import raw
from machine.files import InputError

MAX_BYTES = 2**30               # of all pictures together, as bytes in memory
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
NOT_DATA = ("Thumbs.db", "desktop.ini", "__MACOSX")     # what systems leave in folders


def _is_inside(path, root):
    """Whether a link leads to something in root."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _entries(folder, root):
    """(folders, files) of a folder, sorted, without hidden ones; links must stay in root."""
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.name.startswith(".") or entry.name in NOT_DATA:
                continue
            if entry.is_symlink() and not _is_inside(entry.path, root):
                raise InputError(f"{entry.path} is a link out of {root}; copy what it points to")
            (folders if entry.is_dir() else files).append(Path(entry.path))
    except (OSError, ValueError) as error:
        place = getattr(error, "filename", None) or folder
        raise InputError(f"can't read {place}: {getattr(error, 'strerror', error)}") from None
    return folders, files


def matches(path):
    """Whether a path is a folder with folders in it, which may be classes."""
    try:
        with os.scandir(path) as entries:
            return any(entry.is_dir() and not entry.name.startswith(".")
                       and entry.name not in NOT_DATA for entry in entries)
    except (OSError, ValueError):
        return False


def _class_files(folder, root, group):
    """(files, recordings or None) of one class's folder."""
    folders, files = _entries(folder, root)
    if not group:
        if folders:
            raise InputError(f"{folders[0]} is a folder inside a class's folder; move its pictures "
                             "up, or set GROUP = \"folder\" if it is a recording to keep together")
        return files, [None] * len(files)
    if files:
        raise InputError(f"{files[0]} lies beside the folders of recordings that GROUP = {group!r} "
                         "asks for; move it into one, or leave GROUP empty")
    found = []
    for recording in folders:
        inner, files = _entries(recording, root)
        if inner:
            raise InputError(f"{inner[0]} is a folder inside a recording's; move its pictures up")
        found += [(file, recording.name) for file in files]
    return [file for file, _ in found], [name for _, name in found]


def _find(folder, root, group):
    """(files, class name of each, recording of each) of a split's folder."""
    folders, files = _entries(folder, root)
    stray = [file for file in files if file.suffix.lower() in SUFFIXES]
    if stray:
        raise InputError(f"{stray[0]} lies beside the classes' folders; move it into one")
    if not folders:
        raise InputError(f"{folder} has no folders; give each class one with its pictures")
    found = []
    for one in folders:
        files, recordings = _class_files(one, root, group)
        if not files:
            raise InputError(f"{one} has no pictures; add some or remove the folder")
        found += [(file, one.name, recording) for file, recording in zip(files, recordings)]
    return tuple(zip(*found))


def _splits(path, group):
    """_find of train and of test, or of the folder itself and None."""
    folders, _ = _entries(path, path)
    names = [folder.name for folder in folders]
    if "train" not in names:
        return _find(path, path, group), None
    other = [folder for folder in folders if folder.name not in ("train", "test")]
    if other:
        raise InputError(f"{other[0]} is neither train nor test; move it elsewhere, or its "
                         "pictures into one of them")
    train = _find(path / "train", path, group)
    return train, _find(path / "test", path, group) if "test" in names else None


def _to_bytes(image, path):
    """A Pillow image, upright, as one of 8 bits: "L", or "RGB" in colour; transparency is white."""
    from PIL import Image, ImageOps
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode[0] in "IF":                   # what range they use, nobody says
        raise InputError(f"{path} has numbers of 32 bits as pixels; save it with 8 bits")
    gray = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layered)
    return image.convert("L" if gray else "RGB")


def read_picture(path, shape=None):
    """One picture, fitted to a shape.

    Args:
      path: of a PNG, JPEG, BMP, GIF, WebP, PPM or plain TIFF file.
      shape: (H, W), (H, W, 1) or (H, W, 3): scaled to it, whatever its proportions, then gray or
        colour as asked. None: as it is.
    Returns:
      uint8 [H, W, C]; C is 1 for gray and 3 for colour where the shape does not say.
    Raises:
      InputError: no picture, a damaged or too large one.
    """
    def convert(image):
        from PIL import Image
        image = _to_bytes(image, path)
        if shape:
            image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
        if shape and len(shape) == 3:
            image = image.convert("L" if shape[2] == 1 else "RGB")
        return np.asarray(image).reshape(image.height, image.width, -1)

    from formats import photo  # SciPy, which no other kind of data needs
    return photo.read_image(path, convert)


def _read_all(files, shape):
    """uint8 [N, H, W, 1 or 3] of many pictures, which must agree in size."""
    pictures = []
    for file in files:
        pictures.append(read_picture(file, shape))
        height, width, _ = pictures[-1].shape
        first = pictures[0].shape[:2]
        if (height, width) != first:
            raise InputError(f"{file} is {height}x{width} pixels, {files[0]} "
                             f"{raw.show_shape(first)}; SHAPE = {raw.show_shape(first)} fits all "
                             "to one size")
        if height * width * 3 * len(files) > MAX_BYTES:
            raise InputError(f"{len(files)} pictures of {height}x{width} take over {MAX_BYTES:,} "
                             "bytes; SHAPE = 32x32, say, fits them to a smaller size")
    channels = max(picture.shape[2] for picture in pictures)
    return np.stack([np.broadcast_to(picture, (*picture.shape[:2], channels))
                     for picture in pictures])


def read(path, shape=None, label="", group=""):
    """The Raw of a folder of pictures.

    Args:
      path: folder with train/CLASS/* and test/CLASS/*, train/CLASS/* alone, or CLASS/* alone.
      shape: of raw.parse_shape, which every picture is fitted to; two numbers leave gray gray and
        colour colour. None: all must be of one size.
      label: must be empty.
      group: anything: CLASS/RECORDING/*, and the pictures of one recording belong in one split.
    Raises:
      InputError: one line, for whatever is wrong.
    """
    path = Path(path)
    raw.refuse_label(path, label)
    if shape and len(shape) == 3 and shape[2] not in (1, 3):
        raise InputError(f"SHAPE = {raw.show_shape(shape)}: pictures have 1 or 3 channels")
    train, test = _splits(path, group)
    names = list(dict.fromkeys(train[1] + (test[1] if test else ())))
    raw.check_classes(path, names)
    count = len(train[0])
    x = _read_all(train[0] + (test[0] if test else ()), shape)
    if x.shape[-1] == 3 and not (shape and len(shape) == 3) and (x == x[..., :1]).all():
        x = x[..., :1]                          # gray, saved as if it were colour
    y = [names.index(name) for name in train[1] + (test[1] if test else ())]
    both = [(x[:count], x[count:]), (y[:count], y[count:])] if test else [(x, None), (y, None)]
    note = f"pictures of {raw.show_shape(x.shape[1:])}" + (", fitted" if shape else "")
    return raw.make(path, *both, names, x.shape[1:], train[2] if group else None, note)
