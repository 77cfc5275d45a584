"""A photo or drawing of one digit -> the uint8 pixels that an MNIST network reads."""
import io
import logging
import math
import warnings

import numpy as np

from files import InputError, read_bytes

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")   # others decode less safely
MAX_BYTES = 2**26               # of an image file
# More is refused before it is decoded: Pillow takes 4 bytes a pixel, and WebP that four times.
MAX_PIXELS, MAX_SIDE = 20_000_000, 20_000
MAX_SCANS = 100                 # a progressive JPEG has 10 or so; each one goes over all pixels
JPEG, JPEG_SCAN = b"\xff\xd8", b"\xff\xda"
WORK_SIDE = 1_000               # larger images are shrunk to this first, by a whole factor
SIDE, BOX = 28, 20              # MNIST: the digit fits 20x20; its mass is centred in 28x28
MIN_CONTRAST = 32               # grey levels between ink and paper; less is a blank image
INK = 0.02                      # of the darkest stroke: what counts as ink when cropping
# Pillow logs some damage before it raises: a second line where nobody has set logging up.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def _check_size(image, path):
    """Raise InputError unless an opened image decodes within bounded memory and time."""
    from PIL import Image
    if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
        raise InputError(f"{path} has more than {MAX_SIDE:,} pixels a side or {MAX_PIXELS:,} in "
                         "all; make it smaller")
    # Pillow decodes a few encodings in Python, minutes for some hostile megabytes, and packed TIFF
    # by libtiff, which writes on stderr itself.
    if any(tile.codec_name in {*Image.DECODERS, "libtiff"} for tile in image.tile):
        raise InputError(f"{path} is packed in a way that is not read here; save it as PNG")


def _flatten(image):
    """A Pillow image in gray, at most WORK_SIDE pixels a side; transparency becomes white paper."""
    from PIL import Image
    if image.has_transparency_data:
        layered = image if image.mode == "RGBA" else image.convert("RGBA")
        paper = Image.new("L", image.size, "white")
        gray = Image.composite(layered.convert("L"), paper, layered.getchannel("A"))
    else:
        gray = image.convert("L")
    return gray.reduce(math.ceil(max(gray.size) / WORK_SIDE))


def _open_gray(path):
    """The image as uint8 [H, W], for the arithmetic in float32 at most 1,000 x 1,000."""
    from PIL import Image
    content = read_bytes(path, MAX_BYTES)
    if content.startswith(JPEG) and content.count(JPEG_SCAN) > MAX_SCANS:
        raise InputError(f"{path} has more than {MAX_SCANS} scans; save it as PNG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # the size is judged here
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_size(image, path)
                return np.asarray(_flatten(image))
    except InputError:
        raise
    except Exception:               # Pillow raises many kinds on damage
        raise InputError(f"{path} is not a readable image; give a PNG or JPEG") from None


def centre(ink):
    """Crop, scale and centre strokes as MNIST was made.

    Args:
      ink: float32 [H, W], 0 for paper, up to 1 for ink, with some ink.
    Returns:
      uint8 [28, 28]: the digit's box scaled to 20x20 at most, its centre of mass
      at (14, 14), where the mean of the MNIST digits has it.
    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition".
    """
    from PIL import Image
    rows, columns = np.nonzero(ink >= INK)
    crop = ink[rows.min():rows.max() + 1, columns.min():columns.max() + 1]
    scale = BOX / max(crop.shape)
    size = [max(1, round(side * scale)) for side in reversed(crop.shape)]
    small = np.asarray(Image.fromarray(crop).resize(size, Image.Resampling.BOX if scale < 1
                                                    else Image.Resampling.BILINEAR))
    mass = small.sum()
    corner = []
    for axis, length in enumerate(small.shape):
        middle = (small.sum(1 - axis) * np.arange(length)).sum() / mass
        corner.append(int(np.clip(round(SIDE / 2 - middle), 0, SIDE - length)))
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    canvas[corner[0]:corner[0] + small.shape[0], corner[1]:corner[1] + small.shape[1]] = np.rint(
        255 * small / small.max())
    return canvas


def read_digit(path, pixels):
    """One image file as a network input.

    Args:
      path: a PNG, JPEG, BMP, GIF, WebP, PPM or plain TIFF file; light strokes on dark, or dark on
        light (then inverted).
      pixels: bytes of the images that the network reads, which must be 784.
    Returns:
      uint8 [784].
    Raises:
      InputError: not an image, too large, blank, or a network of another size.
    """
    if pixels != SIDE * SIDE:
        raise InputError(f"this network reads {pixels} pixels, image files give {SIDE * SIDE}; "
                         "train with LAYER_SIZES[0] = 784")
    gray = _open_gray(path).astype(np.float32)
    edge = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    paper = np.median(edge)                     # the border is paper, whatever its brightness
    ink = paper - gray if paper > 127 else gray - paper
    if ink.max() < MIN_CONTRAST:
        raise InputError(f"{path} is blank; give an image of one digit with some contrast")
    return centre((ink / ink.max()).clip(0, 1)).reshape(-1)
