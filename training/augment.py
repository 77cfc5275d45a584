"""Random warps of the train images: affine, elastic, other pens; new for every image and epoch."""
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Standard deviations at strength 1; each draw is uniform, so that none is beyond 1.73 of them.
ROTATION = 0.1                  # radians
SCALING = 0.08                  # of each axis, and the shear
SHIFT = 1.0                     # pixels
ELASTIC = 1.0                   # pixels, at each knot
SLANT = 0.25                    # shear of handwriting, pixels a row; at pen 1
KNOTS = 5                       # the elastic displacement has KNOTS x KNOTS of them
BLOCK = 512                     # images at a time: what they need then stays in the cache


def _basis(side):
    """float32 [3 + KNOTS**2, side**2]: 1, x, y and a bump for each knot, over an image's pixels.

    Every displacement field is a combination of these rows. The bumps are cosines that sum to 1.
    """
    at = np.arange(side) - (side - 1) / 2
    distance = np.abs(np.linspace(0, KNOTS - 1, side)[None] - np.arange(KNOTS)[:, None])
    bump = np.where(distance < 1, 0.5 + 0.5 * np.cos(np.pi * distance), 0)
    knots = np.einsum("iy,jx->ijyx", bump, bump).reshape(KNOTS**2, -1)
    y, x = (grid.reshape(1, -1) for grid in np.meshgrid(at, at, indexing="ij"))
    return np.concatenate([np.ones_like(x), x, y, knots]).astype(np.float32)


def _draw(key, count, strength, pen=0.0):
    """float32 [count, 2, 3 + KNOTS**2]: displacements in x and in y as combinations of _basis."""
    sizes = np.array([SHIFT, SHIFT, ROTATION, SCALING, SCALING, SCALING] + [ELASTIC] * 2 * KNOTS**2)
    limit = (strength * 3**0.5 * sizes).astype(np.float32)[None]
    draws = limit * jax.random.uniform(key, (count, len(sizes)), minval=-1.0)
    shift_x, shift_y, angle, stretch_x, stretch_y, shear = jnp.split(draws[:, :6], 6, axis=1)
    if pen:
        shear += np.float32(pen * 3**0.5 * SLANT) * _either_way(key, 1, count)
    elastic_x, elastic_y = jnp.split(draws[:, 6:], 2, axis=1)
    return jnp.stack([jnp.concatenate([shift_x, stretch_x, shear - angle, elastic_x], axis=1),
                      jnp.concatenate([shift_y, angle, stretch_y, elastic_y], axis=1)], axis=1)


def _either_way(key, number, count):
    """float32 [count, 1], uniform in -1..1, of a key of its own."""
    return jax.random.uniform(jax.random.fold_in(key, number), (count, 1), minval=-1.0)


def _press(images, share):
    """Images [N, I] with wider or thinner strokes: blended with each pixel's brightest or darkest
    neighbour of 3 x 3, as float32 share [N, 1] says, 1 to -1."""
    side = round(images.shape[1] ** 0.5)
    padded = jnp.pad(images.reshape(-1, side, side), ((0, 0), (1, 1), (1, 1)), mode="edge")

    def extreme(of):
        rows = of(of(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
        return of(of(rows[:, :, :-2], rows[:, :, 1:-1]), rows[:, :, 2:]).reshape(images.shape)

    other = jnp.where(share > 0, extreme(jnp.maximum), extreme(jnp.minimum)).astype(jnp.float32)
    own = images.astype(jnp.float32)
    return jnp.round(own + jnp.abs(share) * (other - own)).astype(jnp.uint8)


@jax.custom_batching.sequential_vmap    # an image after the other is the quickest way to gather
def _gather(words, index):
    """words[index], both [I]; every index is there."""
    return words.at[index].get(mode="promise_in_bounds")


def _resample(image, displacement):
    """uint8 [I] at its pixels displaced by float32 [2, I]: bilinear; the image's edge goes on."""
    inputs, side = len(image), round(len(image) ** 0.5)
    # A pixel and its right, lower and diagonal neighbour in one word: one gather instead of four.
    wide, end = image.astype(jnp.uint32), inputs - side - 1
    words = (wide[:end] | (wide[1:1 + end] << 8) | (wide[side:side + end] << 16)
             | (wide[side + 1:] << 24))
    at = np.arange(inputs, dtype=np.float32)
    x = jnp.clip(displacement[0] + at % side, 0, side - 1)
    y = jnp.clip(displacement[1] + at // side, 0, side - 1)
    left, top = jnp.minimum(jnp.floor(x), side - 2), jnp.minimum(jnp.floor(y), side - 2)
    word = _gather(words, (top * side + left).astype(jnp.int32))
    right, down = x - left, y - top
    a, b, c, d = (((word >> place) & 255).astype(jnp.float32) for place in (0, 8, 16, 24))
    upper, lower = a + (b - a) * right, c + (d - c) * right
    return jnp.round(upper + (lower - upper) * down).astype(jnp.uint8)


def warp(images, key, strength, pen=0.0):
    """Each image under its own random map.

    Args:
      images: uint8 [N, I], squares of I pixels; key: a jax.random key; strength: float, 0 leaves
      them as they are, 1 suits digits; pen: 0..1, of slants, and of wider and thinner strokes.
    Returns:
      uint8 [N, I].
    Source: Simard et al. 2003 (doi 10.1109/ICDAR.2003.1227801), with random knots in place of
      filtered noise.
    """
    basis = jnp.asarray(_basis(round(images.shape[1] ** 0.5)))
    if pen:
        images = _press(images, np.float32(pen) * _either_way(key, 2, len(images)))
    return lax.map(lambda one: _resample(one[0], one[1] @ basis),
                   (images, _draw(key, len(images), strength, pen)), batch_size=BLOCK)


def epoch_warp(images, epoch, strength, pen):
    """warp with an epoch's own key; epoch: int32 [], from 0.

    It depends on nothing else: the same in every run, whatever its SEED and its company.
    """
    return warp(images, jax.random.fold_in(jax.random.PRNGKey(0), epoch), strength, pen)
