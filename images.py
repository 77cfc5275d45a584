"""A photo or drawing of one digit -> the uint8 pixels that an MNIST network reads."""
import warnings
from pathlib import Path

import numpy as np

from files import InputError

MAX_PIXELS = 50_000_000         # of an image file; more is refused before it is decoded
SIDE, BOX = 28, 20              # MNIST: the digit fits 20x20; its mass is centred in 28x28
MIN_CONTRAST = 32               # grey levels between ink and paper; less is a blank image
INK = 0.02                       # of the darkest stroke: what counts as ink when cropping


def _open_gray(path):
    """The image as uint8 [H, W]; transparency becomes white paper."""
    from PIL import Image, UnidentifiedImageError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # the size is judged here
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(f"{path} has more than {MAX_PIXELS:,} pixels; make it smaller")
                layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        return np.asarray(Image.alpha_composite(paper, layered).convert("L"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; give an image file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
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
      path: any format Pillow reads; light strokes on dark, or dark on light (then inverted).
      pixels: the network's inputs, which must be 784.
    Returns:
      uint8 [784].
    Raises:
      InputError: not an image, too large, blank, or a network of another size.
    """
    if pixels != SIDE * SIDE:
        raise InputError(f"this network reads {pixels} pixels, image files give {SIDE * SIDE}; "
                         "train with LAYER_SIZES[0] = 784")
    gray = _open_gray(Path(path)).astype(np.float32)
    edge = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    paper = np.median(edge)                     # the border is paper, whatever its brightness
    ink = paper - gray if paper > 127 else gray - paper
    if ink.max() < MIN_CONTRAST:
        raise InputError(f"{path} is blank; give an image of one digit with some contrast")
    return centre((ink / ink.max()).clip(0, 1)).reshape(-1)
