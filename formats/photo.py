"""A photo or drawing of a digit, or of some in a row -> the uint8 pixels for an MNIST network.

docs/photos.md says what happens to it, step by step.
"""
import io
import logging
import math
import warnings

import numpy as np
from scipy import ndimage

from machine.files import InputError, read_bytes

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")   # others decode less safely
MAX_BYTES = 2**26               # of an image file
# More is refused before it is decoded: Pillow takes 4 bytes a pixel, and WebP that four times.
MAX_PIXELS, MAX_SIDE = 20_000_000, 20_000
MAX_SCANS = 100                 # a progressive JPEG has 10 or so; each one goes over all pixels
JPEG, JPEG_SCAN = b"\xff\xd8", b"\xff\xda"
LEAST_SIDE, WORK_SIDE = 150, 600    # smaller and larger images are resized by a whole factor
SIDE, BOX = 28, 20              # MNIST: the digit fits 20x20; its mass is centred in 28x28
MIN_CONTRAST = 0.06             # of ink against paper, of the whole range; less is a blank image
NOISE = 0.5 / 255               # more of it is smoothed; smoothing would erase lines of one pixel
FIT_PIXELS = 2_000              # of paper, to fit its brightness by
LINE = 0.9                      # a line or frame is at least that part of the image long
COVERS = 0.8                    # of a side of the image: what covers it is no digit
LEAST = 0.1                     # of the image's shorter side: a digit's longer side
SPECK = 0.05                    # of the largest piece of ink; less is a speck
# What does not look like one digit: a rule that keeps over 99 % of the MNIST train images.
FAINT = 0.25                    # the least ink that counts
MOST_INK = 0.65                 # of the square around it
PIECE = 0.2                     # of the largest piece of ink: a second so large is another sign
MOST_HOLES = 2                  # as an 8 has
LEAST_HOLE = 0.0075             # of the square around the ink
# Several digits in a row, which are read one by one: all of this in parts of the highest.
APART = 0.15                    # the least paper between two
AS_HIGH = 0.6                   # the lowest
BESIDE = 0.3                    # the least height that all have in common
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


def _on_paper(image):
    """An image with transparency in gray, on paper that its ink stands out from."""
    from PIL import Image
    layered = image if image.mode == "RGBA" else image.convert("RGBA")
    gray, alpha = layered.convert("L"), layered.getchannel("A")
    opaque = np.asarray(gray)[np.asarray(alpha) > 127]
    if 2 * opaque.size > gray.width * gray.height:      # a sheet with transparent corners
        level = int(np.median(opaque))
    else:
        level = 255 if opaque.size == 0 or opaque.mean() < 128 else 0
    return Image.composite(gray, Image.new("L", image.size, level), alpha)


def _flatten(image):
    """A Pillow image as float32 [H, W] in 0..1, upright, at most WORK_SIDE pixels a side."""
    from PIL import Image, ImageOps
    if image.mode[0] in "IF":                   # 16 or 32 bits: what range they use, nobody says
        image = image.convert("F")
    elif image.has_transparency_data:
        image = _on_paper(image)
    else:
        image = image.convert("L")
    is_byte = image.mode == "L"
    side = max(image.size)
    if side < LEAST_SIDE:
        image = image.resize([length * math.ceil(LEAST_SIDE / side) for length in image.size],
                             Image.Resampling.BILINEAR)
    image = image.reduce(math.ceil(side / WORK_SIDE))
    gray = np.asarray(ImageOps.exif_transpose(image), np.float32)
    if is_byte:
        return gray / 255
    gray = np.nan_to_num(gray, nan=0.0, posinf=0.0, neginf=0.0)
    return (gray - gray.min()) / (np.ptp(gray) or 1)


def read_image(path, convert):
    """What `convert` makes of a Pillow image, which is read safely; it may raise InputError."""
    from PIL import Image
    content = read_bytes(path, MAX_BYTES)
    if content.startswith(JPEG) and content.count(JPEG_SCAN) > MAX_SCANS:
        raise InputError(f"{path} has more than {MAX_SCANS} scans; save it as PNG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # the size is judged here
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_size(image, path)
                return convert(image)
    except InputError:
        raise
    except Exception:               # Pillow raises many kinds on damage
        raise InputError(f"{path} is not a readable image; give a PNG or JPEG") from None


def _spread(values):
    """The standard deviation of the bulk of some values, whatever the rest are."""
    return 1.4826 * np.median(np.abs(values - np.median(values)))


def _paper(gray):
    """The brightness of the paper under a drawing: the second-degree polynomial in x and y that
    most pixels are close to; float32 [H, W]."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in gray.shape)
    y, x = np.meshgrid(y, x, indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1)
    step = math.ceil(math.sqrt(gray.size / FIT_PIXELS))
    some, levels = terms[::step, ::step].reshape(-1, 6), gray[::step, ::step].reshape(-1)
    half = len(levels) // 2
    ordered = np.sort(levels)                   # start in the middle of the densest half
    start = (ordered[half:] - ordered[:len(levels) - half]).argmin()
    paper = (ordered[start] + ordered[start + half]) / 2
    for _ in range(10):
        close = np.abs(levels - paper).argsort()[:half + 1]
        factors = np.linalg.lstsq(some[close], levels[close])[0]
        paper = some @ factors
    return terms @ factors


def _threshold(values):
    """Otsu's: where the two classes of values >= 0 differ most."""
    counts, edges = np.histogram(values, 256, (0, values.max()))
    levels = (edges[:-1] + edges[1:]) / 2
    below, sums = counts.cumsum(), (counts * levels).cumsum()
    above = below[-1] - below
    gap = sums / np.maximum(below, 1) - (sums[-1] - sums) / np.maximum(above, 1)
    between = below.astype(float) * above * gap**2
    return edges[between.argmax() + 1]


def _label(mask):
    """The pieces of a mask.

    Returns:
      (int [H, W], 0 outside; box of each piece, two slices; height and width of each, int [N, 2]).
    """
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    spans = [[part.stop - part.start for part in box] for box in boxes]
    return labels, boxes, np.array(spans, int).reshape(-1, 2)


def _is_box(piece):
    """Whether a piece, cropped, is a drawn rectangle: hollow, its four sides straight."""
    bands = [side[:math.ceil(len(side) / 10)].any(0).mean()
             for side in (piece, piece[::-1], piece.T, piece.T[::-1])]
    return min(bands) >= COVERS and piece.mean() < 0.5


def _without_boxes(mask):
    """A mask without drawn rectangles, such as a frame."""
    labels, boxes, spans = _label(mask)
    large = np.flatnonzero(spans.max(1) >= LEAST * min(mask.shape)) + 1
    return mask & ~np.isin(labels, [n for n in large if _is_box(labels[boxes[n - 1]] == n)])


def _without_lines(mask):
    """A mask without ruled lines: thin, nearly level, from edge to edge; strokes over them stay."""
    (height, width), thin = mask.shape, _thin(mask)
    low = mask & (ndimage.grey_opening(mask.view(np.uint8), (thin + 1, 1)) == 0)
    runs = ndimage.grey_opening(low.view(np.uint8), (1, max(3, width // 12)))   # binary_: slower
    # A line goes on behind the strokes that cross it.
    labels, _ = ndimage.label(ndimage.maximum_filter(runs, (thin, width // 2 + 1)))
    for label in range(1, labels.max() + 1):
        y, x = np.nonzero((runs > 0) & (labels == label))
        if np.ptp(x) >= LINE * width:
            level = np.polyval(np.polyfit(x, y, 1), np.arange(width))
            mask = mask & ~(low & (np.abs(np.arange(height)[:, None] - level) <= thin))
    return mask


def _thin(mask):
    """The thickness in pixels up to which a line may be ruled."""
    return max(3, min(mask.shape) // 60)


def _digit(mask):
    """The pieces of a mask that may be a digit: bool [H, W], nothing where none may."""
    mask = _without_boxes(mask)
    mask = _without_lines(_without_lines(mask).T).T
    labels, _, spans = _label(mask)
    edges = labels[0], labels[-1], labels[:, 0], labels[:, -1]
    covers = np.max([np.bincount(edge, minlength=len(spans) + 1)[1:] / len(edge)
                     for edge in edges], 0)
    # The table under the sheet, or the rest of a line that leaves the image.
    keep = (covers < COVERS) & ~((covers > 0) & (spans.min(1) <= _thin(mask)))
    if spans[keep].max(initial=0) < LEAST * min(mask.shape):
        return np.zeros_like(mask)
    sizes = np.bincount(labels.reshape(-1))[1:]
    keep &= sizes >= SPECK * sizes[keep].max()
    return np.append(False, keep)[labels]


def _ink(gray):
    """Strokes of a drawing: float32 [H, W], 0 for paper, 1 for ink; 0 all over without any."""
    noise = _spread(gray - ndimage.uniform_filter(gray, 3))
    if noise > NOISE:
        gray = ndimage.median_filter(gray, 3)
    away = gray - _paper(gray)
    threshold = max(_threshold(np.abs(away)), MIN_CONTRAST, 4 * noise)
    # The side that deviates more is the ink, light or dark; where all of it is unlike a digit, all.
    for clean in (_digit, np.asarray):
        found = [(side, clean(side > threshold)) for side in (away, -away)]
        side, digit = max(found, key=lambda pair: pair[0][pair[1]].sum())
        if digit.any():
            near = ndimage.binary_dilation(digit, np.ones((3, 3)))
            return np.where(near, side / np.quantile(side[digit], 0.8), 0).clip(0, 1)
    return np.zeros_like(gray)


def centre(ink):
    """Crop, scale and centre strokes as MNIST was made.

    Args:
      ink: float32 [H, W], 0 for paper, up to 1 for ink.
    Returns:
      uint8 [28, 28]: the digit's box scaled to 20x20 at most, its centre of mass
      at (14, 14), where the mean of the MNIST digits has it.
    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition".
    """
    from PIL import Image
    if not ink.any():
        return np.zeros((SIDE, SIDE), np.uint8)
    rows, columns = np.nonzero(ink >= ink.max() / 2)    # of several digits one may be paler
    step = (max(np.ptp(rows), np.ptp(columns)) + 1) / BOX
    mass = ink.sum()
    middle = [(ink.sum(1 - axis) * (np.arange(length) + .5)).sum() / mass
              for axis, length in enumerate(ink.shape)]
    edge = math.ceil(step * SIDE)
    padded = np.pad(ink, edge)
    top, left = (place + edge - step * (SIDE / 2 + .5) for place in middle)
    small = np.asarray(Image.fromarray(padded).resize(
        (SIDE, SIDE), Image.Resampling.BOX, (left, top, left + step * SIDE, top + step * SIDE)))
    return np.rint(255 * (small / small.max()).clip(0, 1)).astype(np.uint8)


def doubt(ink):
    """Why strokes do not look like one digit, in a few words; "" where they do.

    Args:
      ink: float [H, W], 0 for paper, up to 1 for ink.
    """
    strokes = ink >= FAINT
    if not strokes.any():
        return "no ink"
    square = (max(map(np.ptp, np.nonzero(strokes))) + 1)**2
    if strokes.sum() > MOST_INK * square:
        return "ink everywhere"
    labels, _ = ndimage.label(strokes, np.ones((3, 3)))
    *_, second, largest = np.sort(np.bincount(labels.reshape(-1), minlength=3)[1:])
    if second > PIECE * largest:
        return "several pieces"
    paper, _ = ndimage.label(np.pad(~strokes, 1, constant_values=True))     # 1 is what is outside
    holes = (np.bincount(paper[paper > 1]) >= LEAST_HOLE * square).sum()
    return "many holes" if holes > MOST_HOLES else ""


def _one_by_one(ink):
    """The digits of a row: their strokes, left to right; the ink as it is where it is no row."""
    if doubt(ink) != "several pieces":
        return [ink]
    columns = np.flatnonzero((ink >= FAINT).any(0))
    paper = np.diff(columns) - 1                # after each of them
    parts = np.split(columns, np.flatnonzero(paper) + 1)
    groups = [ink[:, part[0]:part[-1] + 1] for part in parts]
    rows = [np.flatnonzero((group >= FAINT).any(1)) for group in groups]
    tops, ends = np.array([[own[0], own[-1] + 1] for own in rows]).T
    highest = (ends - tops).max()
    is_row = (len(groups) > 1 and (ends - tops).min() >= AS_HIGH * highest
              and ends.min() - tops.max() >= BESIDE * highest
              and paper[paper > 0].min() >= APART * highest and not any(map(doubt, groups)))
    return groups if is_row else [ink]


def read_digits(path):
    """The digit in an image file, or those that stand clearly apart in one row, as network inputs.

    Args:
      path: a PNG, JPEG, BMP, GIF, WebP, PPM or plain TIFF file; light strokes on dark, or dark on
        light (then inverted).
    Returns:
      [(uint8 [784], all 0 without ink; what `doubt` says of it)], left to right, at least one.
    Raises:
      InputError: not an image, or too large.
    """
    found = _one_by_one(_ink(read_image(path, _flatten)))
    return [(centre(ink).reshape(-1), doubt(ink)) for ink in found]
