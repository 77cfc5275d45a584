"""Digits drawn as image files under 21 conditions, and how many of 48 the saved network reads.

python3 -m tests.photos [tuning] [--KEY=value ...]

Prints a table and writes results/photos.json. Every drawing comes from its condition's name and its
number, so it is the same in every run. photo.py was tuned on the fonts, strokes and MNIST train
images of "tuning" alone; what is measured here are those of "judging" and MNIST test images.
"""
import tempfile
import zlib
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import config
import data
import predict
from benchmarks import load_network
from formats import checkpoint, photo
from machine import script
from machine.files import check_writable
from report.results import write_result

COUNT = 48                      # drawings of each condition: a third each of fonts, strokes, MNIST
FLOOR = 46                      # of them that must be read
FONTS = {"tuning": ("DejaVuSans", "STIXGeneralBol", "DejaVuSans-Oblique", "cmtt10"),
         "judging": ("DejaVuSans-Bold", "STIXGeneral", "cmss10", "DejaVuSerif-Italic")}

# Strokes of each digit: corners of lines in a unit square, x to the right and y down.
STROKES = {
    "tuning": (
        (((.5, 0), (.15, .12), (.03, .5), (.15, .88), (.5, 1), (.85, .88), (.97, .5), (.85, .12),
          (.5, 0)),),
        (((.5, 0), (.5, 1)),),
        (((.1, .28), (.2, .05), (.5, 0), (.82, .1), (.85, .35), (.6, .62), (.05, 1)),
         ((.05, 1), (.95, 1))),
        (((.1, .1), (.5, 0), (.88, .12), (.82, .4), (.4, .47)),
         ((.4, .47), (.88, .55), (.95, .85), (.55, 1), (.05, .9))),
        (((.35, 0), (.05, .6)), ((.05, .6), (.95, .6)), ((.7, .25), (.7, 1))),
        (((.85, 0), (.2, 0)), ((.2, 0), (.15, .45)),
         ((.15, .45), (.5, .36), (.88, .5), (.9, .85), (.5, 1), (.1, .92))),
        (((.75, 0), (.35, .2), (.1, .6), (.15, .95), (.5, 1), (.88, .9), (.85, .58), (.5, .5),
          (.15, .72)),),
        (((.05, 0), (.95, 0)), ((.95, 0), (.35, 1))),
        (((.5, .46), (.12, .32), (.2, .02), (.5, 0), (.8, .02), (.88, .32), (.5, .46), (.08, .62),
          (.15, .98), (.5, 1), (.85, .98), (.92, .62), (.5, .46)),),
        (((.88, .25), (.7, .5), (.25, .52), (.1, .25), (.3, 0), (.75, 0), (.88, .25)),
         ((.88, .25), (.8, 1))),
    ),
    "judging": (
        (((.6, .02), (.3, .05), (.1, .4), (.12, .8), (.35, 1), (.65, .95), (.88, .6), (.9, .2),
          (.6, .02)),),
        (((.35, .2), (.6, 0)), ((.6, 0), (.45, 1))),
        (((.15, .2), (.35, 0), (.7, .02), (.8, .25), (.65, .55), (.4, .85), (.15, 1), (.1, .85),
          (.35, .85), (.6, .98), (.9, .95)),),
        (((.2, .05), (.8, .03)), ((.8, .03), (.4, .4)),
         ((.4, .4), (.8, .45), (.9, .75), (.65, 1), (.3, 1), (.1, .88))),
        (((.2, .05), (.15, .5)), ((.15, .5), (.85, .45)), ((.85, 0), (.75, 1))),
        (((.9, .02), (.35, .05)), ((.35, .05), (.25, .42)),
         ((.25, .42), (.65, .4), (.85, .65), (.7, .95), (.35, 1), (.1, .88))),
        (((.55, 0), (.25, .35), (.12, .75), (.3, 1), (.65, 1), (.8, .8), (.65, .6), (.35, .62),
          (.15, .8)),),
        (((.08, .1), (.5, .04), (.92, .05)), ((.92, .05), (.6, .5), (.45, 1))),
        (((.85, .1), (.5, 0), (.2, .15), (.35, .4), (.7, .6), (.85, .85), (.5, 1), (.15, .88),
          (.3, .6), (.7, .38), (.85, .1)),),
        (((.8, .15), (.5, 0), (.2, .15), (.2, .4), (.5, .5), (.78, .35), (.8, .15)),
         ((.8, .15), (.75, .6), (.5, 1))),
    ),
}


def _smooth(points):
    """Round the corners of a line, but not its ends (Chaikin, three times)."""
    points = np.array(points)
    for _ in range(3 if len(points) > 2 else 0):
        a, b = points[:-1], points[1:]
        cut = np.stack([.75 * a + .25 * b, .25 * a + .75 * b], 1).reshape(-1, 2)
        points = np.concatenate([points[:1], cut, points[-1:]])
    return points


def stroke_digit(kind, digit, random, pen=None):
    """A digit drawn with a round pen: uint8 [400, 400], 255 where there is ink."""
    pen = pen or random.uniform(.08, .15)       # of its height
    picture = Image.new("L", (400, 400))
    draw, width, radius = ImageDraw.Draw(picture), random.uniform(130, 190), 125 * pen
    for points in STROKES[kind][digit]:
        points = np.array([200, 200]) + (_smooth(points) - .5) * (width, 250)
        points += random.normal(0, 3, points[:1].shape)
        corners = [tuple(point) for point in points]
        draw.line(corners, 255, round(2 * radius), joint="curve")
        for x, y in corners:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    return np.asarray(picture)


def font_digit(name, digit):
    """A printed digit: uint8 [400, 400], 255 where there is ink."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    picture = Image.new("L", (400, 400))
    ImageDraw.Draw(picture).text((200, 200), str(digit), 255, ImageFont.truetype(str(path), 300),
                                 anchor="mm")
    return np.asarray(picture)


def ink(kind, index, random, mnist, pen=None):
    """(digit, uint8 [400, 400] of its ink) of a drawing, a little turned."""
    source, number = ("strokes", index) if pen else (index % 3, index // 3)
    digit = number % 10
    if source == 0:
        picture = font_digit(FONTS[kind][number % len(FONTS[kind])], digit)
    elif source == 1:
        split = mnist.train if kind == "tuning" else mnist.test
        image = split.images[random.choice(np.flatnonzero(split.labels == digit))].reshape(28, 28)
        picture = np.asarray(Image.fromarray(image).resize((400, 400), Image.Resampling.BICUBIC))
    else:
        picture = stroke_digit(kind, digit, random, pen)
    turned = Image.fromarray(picture).rotate(random.uniform(-8, 8), Image.Resampling.BICUBIC)
    return digit, np.asarray(turned.crop(turned.getbbox()))


def place(picture, random, share=None):
    """That ink somewhere on a sheet: float64 [H, W], 0 for paper, 1 for ink.

    share: its longest side as a part of the width, then in a corner.
    """
    height, width = random.integers(240, 640, 2)
    longest = width * share if share else min(height, width) * random.uniform(.35, .7)
    size = [max(1, round(side * longest / max(picture.shape))) for side in picture.shape[::-1]]
    small = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
    room = np.array([width, height]) - size
    at = random.uniform(.1, .9, 2) if share is None else random.choice([.04, .96], 2)
    sheet = Image.new("L", (int(width), int(height)))
    sheet.paste(small, tuple(int(x) for x in room * at))
    return np.asarray(sheet) / 255


def _grey(sheet, paper=250, ink=20):
    return paper + (ink - paper) * sheet


def _save(levels, path, form="PNG", **options):
    Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8)).save(path, form, **options)


def _noise(sigma):
    return lambda sheet, random, path: _save(_grey(sheet) + random.normal(0, sigma, sheet.shape),
                                             path)


def _axes(sheet):
    """y and x from -1 to 1 over a sheet."""
    return np.ogrid[-1:1:sheet.shape[0] * 1j, -1:1:sheet.shape[1] * 1j]


def _gradient(share):
    def make(sheet, random, path):
        (y, x), angle = _axes(sheet), random.uniform(0, 2 * np.pi)
        slope = y * np.sin(angle) + x * np.cos(angle)
        light = 1 - share * (slope - slope.min()) / np.ptp(slope)
        _save(_grey(sheet) * light, path)
    return make


def _vignette(share):
    def make(sheet, random, path):
        y, x = _axes(sheet)
        _save(_grey(sheet) * (1 - share * (x**2 + y**2) / 2), path)
    return make


def _levels(paper, ink):
    """Paper and ink of grey levels drawn from these ranges."""
    return lambda sheet, random, path: _save(
        _grey(sheet, random.integers(*paper), random.integers(*ink)), path)


def _exif(sheet, random, path):
    """Stored turned or mirrored, with the tag that says so."""
    T = Image.Transpose
    undone = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE,
              6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
    orientation = int(random.integers(2, 9))
    picture = Image.fromarray(_grey(sheet).astype(np.uint8)).transpose(undone[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, random.choice(["PNG", "JPEG"]), exif=exif)


def _coloured(sheet, random, path):
    """Light paper and dark ink of any hue."""
    paper, ink = random.uniform(130, 255, 3), random.uniform(0, 90, 3)
    _save(_grey(sheet[..., None], paper, ink), path)


def _speck(sheet, random, path):
    y, x = (int(random.integers(1, side - 3)) for side in sheet.shape)
    sheet[y:y + 2, x:x + 2] = 1
    _save(_grey(sheet), path)


def _ruled(sheet, random, path):
    """Lines a tenth of the height apart, two pixels wide, up to half a degree off, below ink."""
    levels, (height, width) = np.full(sheet.shape, 250.0), sheet.shape
    picture = Image.fromarray(levels.astype(np.uint8))
    drop, level = np.tan(random.uniform(-.009, .009)) * width, int(random.integers(80, 190))
    for y in np.arange(random.uniform(0, height / 10), height, height / random.uniform(8, 12)):
        ImageDraw.Draw(picture).line((0, y, width, y + drop), level, 2)
    paper = np.asarray(picture).astype(float)
    _save(paper + (20 - paper) * sheet, path)


def _frame(sheet, random, path):
    """At the edge of the image, or a little inside."""
    inset, wide = (round(share * min(sheet.shape)) for share in random.uniform((0, .01),
                                                                                (.03, .04)))
    inset *= random.integers(2)
    frame = np.zeros(sheet.shape, bool)
    frame[inset:len(frame) - inset, inset:frame.shape[1] - inset] = True
    frame[inset + wide:-inset - wide, inset + wide:-inset - wide] = False
    _save(np.where(frame, random.integers(0, 80), _grey(sheet)), path)


def _sixteen_bits(sheet, random, path):
    """As scanners write it: all 16 bits used, or 12 of them."""
    top = random.choice([4_095, 65_535])
    Image.fromarray((_grey(sheet, .95, .1) * top).astype(np.uint16)).save(path, "PNG")


def _transparent(sheet, random, path):
    """White or black ink on nothing."""
    colours = np.full((*sheet.shape, 4), random.choice([0, 255]), np.uint8)
    colours[..., 3] = np.rint(255 * sheet)
    Image.fromarray(colours).save(path, "PNG")


# name: (how a sheet becomes a file, the pen's width by the digit's height, its share of the width)
CONDITIONS = {
    "clean": (_levels((250, 251), (20, 21)), None, None),
    "noise of 2 grey levels": (_noise(2), None, None),
    "noise of 10 grey levels": (_noise(10), None, None),
    "gradient of 10 %": (_gradient(.1), None, None),
    "gradient of 40 %": (_gradient(.4), None, None),
    "vignette of 5 %": (_vignette(.05), None, None),
    "vignette of 20 %": (_vignette(.2), None, None),
    "in a corner, a sixth of the width": (_noise(2), None, 1 / 6),
    "turned or mirrored by EXIF": (_exif, None, None),
    "thin strokes": (_noise(2), .03, None),
    "thick strokes": (_noise(2), .22, None),
    "light on dark": (_levels((0, 50), (200, 256)), None, None),
    "coloured paper and ink": (_coloured, None, None),
    "dark ink on mid-grey paper": (_levels((100, 128), (0, 30)), None, None),
    "light ink on mid-grey paper": (_levels((128, 156), (225, 256)), None, None),
    "a speck of 4 pixels": (_speck, None, None),
    "ruled lines": (_ruled, None, None),
    "a dark frame": (_frame, None, None),
    "16-bit PNG": (_sixteen_bits, None, None),
    "transparent PNG": (_transparent, None, None),
    "JPEG of quality 20": (lambda sheet, random, path: _save(_grey(sheet), path, "JPEG",
                                                             quality=20), None, None),
}


def draw(kind, condition, index, mnist, path):
    """Write a drawing as an image file.

    Args:
      kind: "tuning" or "judging"; condition: of CONDITIONS; index: 0..COUNT - 1; mnist:
        data.Dataset; path: of the file, whatever its suffix.
    Returns:
      the digit.
    """
    random = np.random.default_rng([zlib.crc32(condition.encode()), index])
    make, pen, share = CONDITIONS[condition]
    digit, picture = ink(kind, index, random, mnist, pen)
    make(place(picture, random, share), random, path)
    return digit


def readable(split, predictor):
    """The Split of the images that the network reads as they are: its own errors are known, what
    is measured here is how a drawing becomes its input."""
    right = predictor(split.images).argmax(1) == split.labels
    return data.Split(split.images[right], split.labels[right])


def measure(predictor, mnist, kind="judging", indices=range(COUNT)):
    """{condition: which drawings are read, a list of bool in the order of indices}.

    Args:
      predictor: as from predict.make_predictor; mnist: data.Dataset; kind: as for draw.
    """
    mnist = mnist._replace(train=readable(mnist.train, predictor),
                           test=readable(mnist.test, predictor))
    read = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawing"
        for condition in CONDITIONS:
            digits = [draw(kind, condition, index, mnist, path.with_suffix(f".{index}"))
                      for index in indices]
            found = [photo.read_digits(path.with_suffix(f".{index}")) for index in indices]
            answers = predictor(np.stack([image for (image, _), *_ in found])).argmax(1)
            read[condition] = [len(own) == 1 and bool(answer == digit)
                               for own, answer, digit in zip(found, answers, digits)]
    return read


def kept(images):
    """The share of images, uint8 [N, 784], that photo.py takes for one digit."""
    return float(np.mean([photo.doubt(image) == "" and len(photo._one_by_one(image)) == 1
                          for image in images.reshape(-1, photo.SIDE, photo.SIDE) / 255]))


def main(argv):
    settings = config.load(argv, __doc__, also=("tuning",))
    check_writable(settings.RESULTS_DIR)
    network, mnist, path = load_network(settings)
    predictor = predict.make_predictor(network, "numpy")
    read = measure(predictor, mnist, "tuning" if "tuning" in argv else "judging")
    print("\n".join(f"{condition:36s}{sum(right):3d} of {COUNT}"
                    for condition, right in read.items()))
    share = kept(mnist.test.images)
    print(f"test images that look like one digit: {100 * share:.2f} %")
    if "tuning" not in argv:
        rows = [{"label": condition,
                 "misread": [i for i, was_read in enumerate(right) if not was_read]}
                for condition, right in read.items()]
        write_result(Path(settings.RESULTS_DIR) / "photos.json", settings._asdict(), rows,
                     weights=path.name, sha256=checkpoint.digest(network), drawings=COUNT,
                     kept=share)


if __name__ == "__main__":
    script.run(main)
