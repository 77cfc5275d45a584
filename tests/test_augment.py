"""augment: warps against a slow float64 resampling, and maps that can be told in advance."""
import jax
import numpy as np
import pytest
from scipy import ndimage

from training import augment

warp = jax.jit(augment.warp, static_argnames=("strength", "pen"))
resample = jax.jit(jax.vmap(augment._resample))
COUNT = augment.BLOCK + 3       # one full block and the rest


def expected(image, displacement):
    """One image [side, side] at its pixels displaced by [2, side, side], in float64, slowly."""
    side, out = len(image), np.zeros(image.shape)
    for row, column in np.ndindex(out.shape):
        x, y = (min(max(float(at + d[row, column]), 0.0), side - 1.0)
                for at, d in zip((column, row), displacement))
        for i in (int(y), min(int(y) + 1, side - 1)):
            for j in (int(x), min(int(x) + 1, side - 1)):
                share = (1 - abs(x - j)) * (1 - abs(y - i))
                # At the edge both neighbours are one pixel, whose other half would count twice.
                out[row, column] += image[i, j] * share * (0.5 if i == y == side - 1 else 1) * (
                    0.5 if j == x == side - 1 else 1)
    return out


def fields(key, strength, side):
    """The displacements that warp draws: float64 [COUNT, 2, side, side], from cosine bumps."""
    at = np.arange(side) - (side - 1) / 2
    knots = np.arange(5) * (side - 1) / 4
    bumps = [np.cos(np.pi / 2 * np.clip((np.arange(side) - knot) / (knots[1] - knots[0]), -1, 1))**2
             for knot in knots]
    basis = [np.ones((side, side)), np.tile(at, (side, 1)), np.tile(at[:, None], side)]
    basis += [np.outer(down, along) for down in bumps for along in bumps]
    draws = np.float64(augment._draw(key, COUNT, strength))
    return np.tensordot(draws, basis, 1)


@pytest.fixture
def digits(mnist):
    """images(side) -> uint8 [COUNT, side**2]: the centres of digits."""
    def images(side):
        edge = (28 - side) // 2
        rows = mnist.train.images[:COUNT].reshape(-1, 28, 28)
        return rows[:, edge:edge + side, edge:edge + side].reshape(COUNT, -1)
    return images


@pytest.mark.parametrize("side", [28, 10])
@pytest.mark.slow
def test_warp_is_bilinear_resampling_of_its_displacements(digits, side):
    """The same, last block included, as drawn for a key; every image has a map of its own."""
    images, key = digits(side), jax.random.key(3)
    warped = np.asarray(warp(images, key, 0.5))
    assert warped.dtype == np.uint8 and warped.shape == images.shape
    displacements = fields(key, 0.5, side)
    for i in (0, 1, COUNT - 1):
        slow = expected(images[i].reshape(side, side), displacements[i])
        # Half a grey level of rounding, and float32 displacements of some pixels.
        np.testing.assert_allclose(warped[i].reshape(side, side), slow, rtol=0, atol=0.51)
    assert (warped != images).mean(1).min() > 0
    same = np.asarray(warp(np.repeat(images[:1], COUNT, 0), key, 0.5))
    assert len(np.unique(same, axis=0)) == COUNT
    assert (warp(images, jax.random.key(4), 0.5) != warped).any(1).all()


@pytest.mark.slow
def test_strength_0_leaves_every_image_as_it_is(rng):
    images = rng.integers(0, 256, (COUNT, 784), dtype=np.uint8)
    np.testing.assert_array_equal(warp(images, jax.random.key(0), 0.0), images)


@pytest.mark.parametrize("side", [10, 28])
def test_shift_moves_pixels_and_the_edge_goes_on(rng, side):
    images = rng.integers(0, 256, (7, side**2), dtype=np.uint8)
    shifts = np.array([(0, 0), (1, 0), (-2, 0), (0, 3), (-1, -1), (1e6, 0), (-1e6, 1e6)])
    moved = resample(images, np.tile(np.float32(shifts)[:, :, None], side**2))
    at = np.arange(side)
    for image, found, (x, y) in zip(images.reshape(7, side, side), moved, shifts):
        rows, columns = (np.clip(at + d, 0, side - 1).astype(int) for d in (y, x))
        np.testing.assert_array_equal(found.reshape(side, side), image[np.ix_(rows, columns)])


@pytest.mark.slow
def test_a_pen_makes_strokes_wider_or_thinner_by_its_share(rng):
    """Against SciPy's filters; a share of 0 changes nothing."""
    images = rng.integers(0, 256, (5, 12, 12), dtype=np.uint8)
    share = np.float32([[1], [-1], [0], [0.5], [-0.25]])
    found = np.asarray(augment._press(images.reshape(5, -1), share)).reshape(images.shape)
    for image, got, amount in zip(images.astype(np.float64), found, share[:, 0]):
        extreme = ndimage.maximum_filter if amount > 0 else ndimage.minimum_filter
        other = extreme(image, 3, mode="nearest")
        np.testing.assert_allclose(got, image + abs(amount) * (other - image), rtol=0, atol=0.51)


@pytest.mark.slow
def test_a_pen_slants_and_leaves_all_else_as_it_is_drawn():
    key = jax.random.key(5)
    plain, slanted = (np.float64(augment._draw(key, 2_000, 0.5, pen)) for pen in (0.0, 0.6))
    change = slanted - plain
    shear = change[:, 0, 2].copy()
    change[:, 0, 2] = 0
    assert not change.any()
    assert abs(shear.std() / (0.6 * augment.SLANT) - 1) < 0.05 and abs(shear.mean()) < 0.02
    images = np.tile(np.arange(784, dtype=np.uint8), (4, 1))
    assert (warp(images, key, 0.0, pen=1.0) != images).any(1).all()
    np.testing.assert_array_equal(warp(images, key, 0.5), warp(images, key, 0.5, pen=0.0))


def test_constant_image_stays_constant(rng):
    """Whatever the map: the shares of four neighbours sum to 1."""
    images = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 784, 1)
    displacements = rng.normal(0, 9, (256, 2, 784)).astype(np.float32)
    np.testing.assert_array_equal(resample(images, displacements), images)


@pytest.mark.parametrize("side", [10, 28])
def test_basis_is_affine_and_bumps_that_sum_to_one(side):
    ones, x, y, *knots = augment._basis(side).astype(np.float64).reshape(-1, side, side)
    np.testing.assert_array_equal(ones, 1)
    assert x.sum() == y.sum() == 0              # turns and stretches leave the centre in place
    np.testing.assert_array_equal(np.diff(x, axis=1), 1)
    np.testing.assert_array_equal(y, x.T)
    np.testing.assert_allclose(sum(knots), 1, rtol=1e-6)
    assert len(knots) == augment.KNOTS**2 and min(map(np.min, knots)) >= 0
    assert [knot.argmax() for knot in (knots[0], knots[-1])] == [0, side**2 - 1]


def test_draws_have_the_documented_deviations():
    """Uniform: none beyond 1.73 of them; proportional to the strength."""
    draws = np.float64(jax.jit(augment._draw, static_argnums=(1, 2))(jax.random.key(1), 2_000, 0.5))
    found = draws / 0.5
    (shift_x, stretch_x, across, *elastic_x), (shift_y, turn, stretch_y, *elastic_y) = (
        found.transpose(1, 2, 0))
    documented = [(shift_x, augment.SHIFT), (shift_y, augment.SHIFT), (turn, augment.ROTATION),
                  (stretch_x, augment.SCALING), (stretch_y, augment.SCALING),
                  (across + turn, augment.SCALING),
                  *((knot, augment.ELASTIC) for knot in (*elastic_x, *elastic_y))]
    for values, deviation in documented:
        # 5 standard errors, of 2,000 uniform numbers.
        assert abs(values.mean()) < 5 * deviation / 2_000**0.5
        assert abs(values.std() / deviation - 1) < 5 * (0.8 / 4 / 2_000) ** 0.5
        assert np.abs(values).max() <= 3**0.5 * deviation * (1 + 1e-6)
    table = np.corrcoef([values for values, _ in documented])
    assert np.abs(table - np.eye(len(table))).max() < 5.5 / 2_000**0.5      # drawn independently
