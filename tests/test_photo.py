"""photo: what a photo of a digit becomes, whatever its size, colours and paper."""
import numpy as np
import pytest
from PIL import Image, ImageDraw

import checkpoint
import data
import main_inference
import oracle
import photo
from conftest import ROOT
from files import InputError


def draw_seven(path, ink=0, paper=255, size=(200, 300), offset=(0, 0), mode="L"):
    """A thick 7 as an image file."""
    picture = Image.new("L", size, paper)
    x, y = offset
    ImageDraw.Draw(picture).line([(50 + x, 80 + y), (150 + x, 80 + y), (90 + x, 230 + y)], ink, 18)
    picture.convert(mode).save(path)
    return path


def read(path):
    digit = photo.read_digit(path, 784)
    assert digit.dtype == np.uint8 and digit.shape == (784,)
    return digit.reshape(28, 28)


def centre_of_mass(digit):
    return [(digit.sum(1 - axis) * np.arange(28)).sum() / digit.sum() for axis in (0, 1)]


@pytest.fixture
def seven(tmp_path):
    return read(draw_seven(tmp_path / "seven.png"))


def test_digit_is_light_on_black_in_a_20_by_20_box(seven):
    rows, columns = np.nonzero(seven)
    assert seven.max() == 255 and (seven == 0).mean() > 0.5
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert seven[:4].max() < 255                # nothing drawn upside down: the bar is on top
    assert seven[rows.min() + 1].sum() > 2 * seven[rows.max() - 1].sum()


def test_centre_of_mass_is_in_the_middle(tmp_path):
    for offset in ((0, 0), (-45, -60), (40, 50)):
        digit = read(draw_seven(tmp_path / "a.png", offset=offset))
        np.testing.assert_allclose(centre_of_mass(digit), [14, 14], atol=1)


@pytest.mark.parametrize("change", [
    {"ink": 255, "paper": 0}, {"ink": 10, "paper": 200}, {"ink": 220, "paper": 60}, {"mode": "RGB"},
    {"mode": "RGBA"}, {"mode": "1"}, {"mode": "P"}, {"size": (300, 400), "offset": (70, 33)}],
    ids=str)
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


def test_mnist_images_as_files_get_the_same_class(tmp_path, trained):
    originals = data.load(ROOT / "datasets" / "mnist").test.images[:100]
    digits = []
    for i, image in enumerate(originals):
        Image.fromarray(image.reshape(28, 28)).save(tmp_path / f"{i}.png")
        digits.append(photo.read_digit(tmp_path / f"{i}.png", 784))
    same = trained.predict(np.stack(digits)).argmax(1) == trained.predict(originals).argmax(1)
    assert same.sum() >= 95


def test_pooled_network_reads_photos(tmp_path, script, rng, seven):
    """The script says what the network makes of the photo's 784 bytes."""
    network = oracle.random_network(rng, (144, 20, 10), 4, 8, 12)
    checkpoint.save(tmp_path / "w.npz", network, {})
    code, out, err = script(main_inference.main, tmp_path / "seven.png", "--ENGINE=numpy",
                            f"--WEIGHTS={tmp_path / 'w.npz'}")
    assert (code, err) == (0, [])
    best = oracle.run(network, seven.reshape(1, 784)).argmax()
    assert out[-1].split()[:2] == [str(tmp_path / "seven.png"), str(best)]


@pytest.mark.parametrize("level", [0, 127, 128, 255])
def test_blank_image_is_refused(tmp_path, level):
    Image.new("L", (50, 50), level).save(tmp_path / "blank.png")
    with pytest.raises(InputError, match="blank"):
        photo.read_digit(tmp_path / "blank.png", 784)


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
        photo.read_digit(path, 784)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_network_of_another_size_is_refused(tmp_path):
    with pytest.raises(InputError, match="100 pixels"):
        photo.read_digit(draw_seven(tmp_path / "a.png"), 100)
