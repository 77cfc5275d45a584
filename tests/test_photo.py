"""photo: what a photo of a digit becomes, whatever its size, colours and paper."""
import numpy as np
import photos
import pytest
from PIL import Image, ImageDraw

import data
import main_inference
import oracle
import plan
import predict
from conftest import ROOT, rows_of
from formats import checkpoint, examples, photo
from machine.files import InputError


def draw_seven(path, ink=0, paper=255, size=(200, 300), offset=(0, 0), mode="L"):
    """A thick 7 as an image file."""
    picture = Image.new("L", size, paper)
    x, y = offset
    ImageDraw.Draw(picture).line([(50 + x, 80 + y), (150 + x, 80 + y), (90 + x, 230 + y)], ink, 18)
    picture.convert(mode).save(path)
    return path


def read(path):
    ((digit, _),) = photo.read_digits(path)
    assert digit.dtype == np.uint8 and digit.shape == (784,)
    return digit.reshape(28, 28)


def centre_of_mass(digit):
    return [(digit.sum(1 - axis) * np.arange(28)).sum() / digit.sum() for axis in (0, 1)]


@pytest.fixture
def seven(tmp_path):
    return read(draw_seven(tmp_path / "seven.png"))


def test_digit_is_light_on_black_in_a_20_by_20_box(seven):
    rows, columns = np.nonzero(seven > 127)
    assert seven.max() == 255 and (seven == 0).mean() > 0.5
    assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20    # it may begin between two pixels
    assert seven[:4].max() < 255                # nothing drawn upside down: the bar is on top
    assert seven[rows.min() + 1].sum() > 2 * seven[rows.max() - 1].sum()


def test_centre_of_mass_is_in_the_middle(tmp_path):
    for offset in ((0, 0), (-45, -60), (40, 50)):
        digit = read(draw_seven(tmp_path / "a.png", offset=offset))
        np.testing.assert_allclose(centre_of_mass(digit), [14, 14], atol=1)


@pytest.mark.parametrize("change", [
    {"ink": 255, "paper": 0}, {"ink": 10, "paper": 200}, {"ink": 220, "paper": 60},
    {"ink": 0, "paper": 127}, {"ink": 255, "paper": 128}, {"ink": 90, "paper": 128},
    {"mode": "RGB"}, {"mode": "RGBA"}, {"mode": "1"}, {"mode": "P"},
    {"size": (300, 400), "offset": (70, 33)}], ids=str)
def test_paper_ink_mode_and_place_do_not_matter(tmp_path, seven, change):
    other = read(draw_seven(tmp_path / "other.png", **change))
    # Grey levels are rounded twice: in the file and after stretching its contrast to 0..255.
    assert np.abs(other.astype(int) - seven).max() <= 3


def test_transparent_paper_is_paper(tmp_path, seven):
    gray = np.asarray(Image.open(draw_seven(tmp_path / "a.png")))
    layered = np.dstack([np.zeros((*gray.shape, 3), np.uint8), 255 - gray])
    Image.fromarray(layered).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read(tmp_path / "b.png"), seven)


@pytest.mark.parametrize("factor", [0.2, 0.5, 3])
def test_size_of_the_photo_hardly_matters(tmp_path, seven, factor):
    picture = Image.open(draw_seven(tmp_path / "a.png"))
    picture.resize([round(side * factor) for side in picture.size]).save(tmp_path / "b.png")
    a, b = seven.astype(float), read(tmp_path / "b.png").astype(float)
    # Rounding of the box may move the digit by a pixel; then cosine similarity.
    likeness = [(a * np.roll(b, shift, (0, 1))).sum() / np.linalg.norm(a) / np.linalg.norm(b)
                for shift in np.array(list(np.ndindex(3, 3))) - 1]
    assert max(likeness) > 0.95


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp"])
def test_file_formats_agree(tmp_path, seven, suffix):
    other = read(draw_seven(tmp_path / f"other.{suffix}")).astype(float)
    # JPEG and WebP lose a little at the edges.
    assert np.abs(other - seven).mean() < 5


def test_single_dot_and_thin_stroke_fit(tmp_path):
    for box in ((100, 100, 100, 100), (100, 20, 101, 180), (20, 100, 180, 101)):
        picture = Image.new("L", (200, 200), 255)
        ImageDraw.Draw(picture).rectangle(box, 0)
        picture.save(tmp_path / "thin.png")
        digit = read(tmp_path / "thin.png")
        assert digit.max() == 255
        np.testing.assert_allclose(centre_of_mass(digit), [14, 14], atol=1)


@pytest.mark.slow
def test_mnist_images_as_files_get_the_same_class(tmp_path, trained):
    originals = data.load(ROOT / "datasets" / "mnist").test.images[:100]
    digits = []
    for i, image in enumerate(originals):
        Image.fromarray(image.reshape(28, 28)).save(tmp_path / f"{i}.png")
        ((digit, _),) = photo.read_digits(tmp_path / f"{i}.png")
        digits.append(digit)
    same = trained.predict(np.stack(digits)).argmax(1) == trained.predict(originals).argmax(1)
    assert same.sum() >= 95


def test_pooled_network_reads_photos(tmp_path, script, rng, seven):
    """The script says what the network makes of the photo's 784 bytes."""
    network = oracle.random_network(rng, plan.parse("crop24 mean2 20", (28, 28, 1), 10), 4, 8)
    checkpoint.save(tmp_path / "w.npz", network)
    code, out, err = script(main_inference.main, tmp_path / "seven.png", "--ENGINE=numpy",
                            f"--WEIGHTS={tmp_path / 'w.npz'}")
    assert (code, err) == (0, [])
    best = oracle.run(network, seven.reshape(1, 784)).argmax()
    assert out[-1].split("seven.png")[1].split()[0] == str(best)


@pytest.mark.long
def test_drawings_are_read_under_every_condition(mnist):
    """Every fifth of the drawings of results/photos.json's kind, by the network that is shipped."""
    network, _ = checkpoint.load(ROOT / "weights" / "weights_int8.npz")
    small = mnist._replace(train=rows_of(mnist.train, 0, 1), test=rows_of(mnist.test, 0, 2_000))
    read = photos.measure(predict.make_predictor(network, "numpy"), small,
                          indices=range(0, photos.COUNT, 5))
    assert len(read) == 21
    assert min(map(sum, read.values())) >= 9, {name: sum(right) for name, right in read.items()}
    assert np.mean(list(read.values())) >= photos.FLOOR / photos.COUNT


def test_tuning_and_judging_share_no_font_and_no_stroke():
    for drawn in (photos.FONTS, photos.STROKES):
        assert not set(drawn["tuning"]) & set(drawn["judging"])


def save(tmp_path, levels):
    Image.fromarray(np.asarray(levels).clip(0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def sheet(level=230):
    return np.full((200, 300), level)


def doubtful(rng):
    """{what is doubted: image}."""
    y, x = np.mgrid[:200, :300]
    disk = (x - 150)**2 + (y - 100)**2 < 60**2
    two = (abs(y - 100) < 50) & (abs(x - 80) < 8) | (abs(y - 130) < 20) & (abs(x - 200) < 8)
    net = (abs(y - 100) < 60) & (abs(x - 150) < 60) & ((y % 20 < 4) | (x % 20 < 4))
    return [("no ink", sheet(0)), ("no ink", sheet(127)), ("no ink", sheet(255)),
            ("no ink", sheet() + rng.normal(0, 10, y.shape)),
            ("no ink", rng.integers(0, 256, y.shape)), ("no ink", sheet() - x / 3),
            ("ink everywhere", np.where(disk, 20, 230)), ("several pieces", np.where(two, 20, 230)),
            ("many holes", np.where(net, 20, 230))]


def test_what_is_not_one_digit_is_doubted(tmp_path, rng):
    for why, levels in doubtful(rng):
        ((digit, doubt),) = photo.read_digits(save(tmp_path, levels))
        assert doubt == why and digit.any() == (why != "no ink")


def test_digits_apart_in_a_row_are_read_as_each_is_alone(mnist, tmp_path):
    """Three enlarged images on a sheet; touching ones stay one doubted picture."""
    images = 255 - mnist.test.images[[0, 1, 4]].reshape(-1, 28, 28).repeat(4, 1).repeat(4, 2)
    alone = [photo.read_digits(save(tmp_path, image))[0] for image in images]
    row = photo.read_digits(save(tmp_path, np.concatenate(images, 1)))
    assert [doubt for _, doubt in row] == [""] * 3
    for (digit, _), (own, _) in zip(row, alone):
        assert np.abs(digit.astype(int) - own).mean() < 4       # of 255: paper and threshold differ
    names = [name for name, *_ in examples.read(tmp_path / "a.png", (28, 28, 1), examples.DIGITS,
                                                None)]
    assert [name[-3:] for name in names] == ["1/3", "2/3", "3/3"]
    below, aside = (np.concatenate(images[:2], axis) for axis in (0, 1))
    steps = np.pad(aside, ((0, 80), (0, 0)), constant_values=255)
    steps[:, 112:] = np.roll(steps[:, 112:], 80, 0)
    for image in (below, steps):                # one below the other; and in no row
        ((_, doubt),) = photo.read_digits(save(tmp_path, image))
        assert doubt == "several pieces"


def test_a_paler_digit_of_a_row_is_read_as_alone(mnist, tmp_path):
    """Darkness is measured over the whole row: of the paler digit no point is half as dark."""
    ink = mnist.test.images[[0, 1]].reshape(-1, 28, 28).repeat(4, 1).repeat(4, 2).astype(float)
    alone = photo.read_digits(save(tmp_path, 255 - ink[1]))[0][0]
    for share in (0.6, 0.45, 0.4):
        row = photo.read_digits(save(tmp_path, 255 - np.concatenate([ink[0], share * ink[1]], 1)))
        if len(row) == 2:                       # a pale stroke may count as paper
            assert np.corrcoef(row[1][0], alone)[0, 1] > 0.9
    pale = np.zeros((40, 40), np.float32)
    pale[10:30, 18:22] = 0.4
    np.testing.assert_array_equal(photo.centre(pale), photo.centre(pale / 0.4))


@pytest.mark.slow
def test_digits_are_not_doubted(mnist, tmp_path):
    assert photos.kept(mnist.test.images) >= 0.99
    assert photo.read_digits(draw_seven(tmp_path / "a.png"))[0][1] == ""


@pytest.mark.parametrize("mode, levels", [("I;16", (0, 65_535)), ("I;16", (3_000, 4_095)),
                                          ("I", (0, 10**9)), ("F", (-0.5, 1e-3)),
                                          ("F", (0, 1e30))], ids=str)
def test_deep_images_are_scaled_not_clipped(tmp_path, seven, mode, levels):
    gray = np.asarray(Image.open(draw_seven(tmp_path / "a.png"))) / 255
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    deep = (levels[0] + gray * (levels[1] - levels[0])).astype(kind)
    path = tmp_path / "deep.tif"
    Image.fromarray(deep).save(path)
    with Image.open(path) as written:
        assert written.mode == mode
    assert np.abs(read(path).astype(int) - seven).max() <= 3


def test_float_image_of_nonsense_is_read(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[np.nan, np.inf], [-np.inf, 1]], np.float32)).save(path)
    photo.read_digits(path)


@pytest.mark.parametrize("level", [0, 255])
def test_ink_on_transparent_paper_is_ink_whatever_its_colour(tmp_path, seven, level):
    gray = np.asarray(Image.open(draw_seven(tmp_path / "a.png")))
    layered = np.dstack([np.full((*gray.shape, 3), level, np.uint8), 255 - gray])
    Image.fromarray(layered).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read(tmp_path / "b.png"), seven)


def test_opaque_sheet_with_transparent_corners_is_paper(tmp_path, seven):
    gray = np.asarray(Image.open(draw_seven(tmp_path / "a.png")))
    alpha = np.full(gray.shape, 255, np.uint8)
    alpha[:20, :20] = alpha[-20:, -20:] = 0
    Image.fromarray(np.dstack([gray, gray, gray, alpha])).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read(tmp_path / "b.png"), seven)


def with_line(levels):
    levels[120:122] = 90
    levels[:, 30:32] = 90
    return levels


def with_box(levels):
    for part in (levels[20:24, 20:180], levels[270:274, 20:180], levels[20:274, 20:24],
                 levels[20:274, 176:180]):
        part[:] = 30
    return levels


def with_table(levels):
    levels[:, :30] = 60
    levels[-25:] = 60
    return levels


@pytest.mark.parametrize("spoil", [with_line, with_box, with_table])
def test_lines_boxes_and_what_is_beside_the_sheet_leave_the_digit_alone(tmp_path, seven, spoil):
    levels = np.array(Image.open(draw_seven(tmp_path / "a.png")))
    other = read(save(tmp_path, spoil(levels)))
    # Where a line runs along an edge of a stroke, that edge may move by a pixel of the photo.
    assert np.abs(other.astype(int) - seven).mean() < 2


def test_a_frame_alone_is_ink(tmp_path):
    assert read(save(tmp_path, with_box(sheet()[:, :].repeat(2, 0)[:300, :200]))).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (1, 700), (20_000, 1), (2, 149)])
def test_any_shape_of_image_is_read(tmp_path, rng, size):
    for levels in (np.zeros(size), rng.integers(0, 256, size)):
        photo.read_digits(save(tmp_path, levels))


def write_truncated(path):
    draw_seven(path)
    path.write_bytes(path.read_bytes()[:150])


UNREADABLE = {
    "missing": lambda path: None,
    "text": lambda path: path.write_text("not an image"),
    "empty": lambda path: path.write_bytes(b""),
    "folder": lambda path: path.mkdir(),
    "truncated": write_truncated,
    "too large": lambda path: Image.new("1", (10_000, 6_000)).save(path),
    "no pixel": lambda path: path.write_bytes(b"P5 0 0 255\n"),
}


@pytest.mark.parametrize("make", UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_image_gives_one_line(tmp_path, make):
    path = tmp_path / "digit.png"
    make(path)
    with pytest.raises(InputError) as caught:
        photo.read_digits(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_network_of_another_size_gets_pictures_fitted_to_its_shape(tmp_path):
    """Only a network of 28 x 28 digits gets them prepared like digits."""
    path = draw_seven(tmp_path / "a.png")
    digits = tuple("0123456789")
    ((_, small, _),) = examples.read(path, (10, 10, 1), digits, None)
    ((_, digit, _),) = examples.read(path, (28, 28, 1), digits, None)
    ((_, other, _),) = examples.read(path, (28, 28, 1), ("a", "b"), None)
    assert small.shape == (100,) and digit.shape == other.shape == (784,)
    np.testing.assert_array_equal(digit, photo.read_digits(path)[0][0])
    assert (digit != other).any()
