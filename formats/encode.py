"""Features become bytes by a table of one low and one power of two each; the same bits anywhere."""
from typing import NamedTuple

import numpy as np

LEAST, MOST = -100, 121         # exponents for which 2^-e is a normal float32, and covers float32
REACH, SHARE = 2, 0.9           # of fit: codes reach REACH times as far as SHARE of the values


class Encoding(NamedTuple):
    """code = clip(round_half_even((v - low) * 2^-exponent), 0, 255) of a feature or a channel.

    Args:
      low: float32 [F]; F is the number of features, or of a map's channels.
      exponent: int64 [F], -100..121.
    """
    low: np.ndarray
    exponent: np.ndarray


def _side(distances):
    """How far codes reach on one side of the median; ascending distances over 0."""
    if len(distances) == 0:
        return 0.0
    return min(distances[-1], REACH * distances[int(SHARE * (len(distances) - 1))])


def _fit_one(values):
    """(low, exponent) of one feature's values, float32 [N]."""
    values = np.sort(values).astype(np.float64)
    middle = values[(len(values) - 1) // 2]
    below = _side(middle - values[values < middle][::-1])
    above = _side(values[values > middle] - middle)
    if below + above == 0:
        # Whatever it is some day, training has not seen it: a step so large that the code is 0.
        return middle, MOST
    # The least e with 255 * 2^e >= the reach: frexp gives the power of two above a number.
    mantissa, exponent = np.frexp((below + above) / 255)
    exponent = int(np.clip(exponent - (mantissa == 0.5), LEAST, MOST))
    step = 2.0**exponent
    spare = max(255 * step - (below + above), 0)
    # A multiple of the step, so that whole numbers stay exact; the spare codes go to both sides.
    return np.rint((middle - below - spare / 2) / step) * step, exponent


def fit(train_x):
    """The Encoding of features, robust to outliers.

    On each side of the median, codes reach as far as the values do, but at most twice as far as
    nine tenths of the values on that side: of normal, uniform and exponential values 99 % or more
    are covered, an outlier saturates instead of squeezing the others into few codes. Values equal
    to the median don't count, so rare ones among many zeros keep their codes. The step is the next
    power of two, so that the reach takes 128 to 255 codes, in the middle of 0..255. A feature that
    is constant gets code 0, also for other values later.

    Twice: on iris, wine, breast cancer and digits, codes cost a linear model and 5 nearest
    neighbours nothing measurable with 1.5 to 4 or without a limit; with 0.5 % of outliers they cost
    it 20 pp without one, and on log-normal features 2 is among the best.

    Args:
      train_x: float32 [N, ..., F], finite: rows of F features, or maps of F channels.
    Returns:
      Encoding.
    """
    flat = train_x.reshape(-1, train_x.shape[-1])
    table = [_fit_one(flat[:, f]) for f in range(flat.shape[1])]
    low, exponent = (np.array(column) for column in zip(*table))
    largest = np.finfo(np.float32).max
    return Encoding(np.clip(low, -largest, largest).astype(np.float32), exponent.astype(np.int64))


def encode(x, encoding):
    """Codes of features.

    One float32 subtraction rounds; its product with a power of two is exact, or so large or small
    that the code is 0 or 255 anyway. NumPy, not JAX: XLA flushes denormals.

    Args:
      x: float32 [N, ..., F]. NaN, which readers refuse, gives 0, as in C and JavaScript.
      encoding: Encoding of F features or channels.
    Returns:
      uint8 of x's shape.
    """
    with np.errstate(all="ignore"):             # inf saturates; what underflows is code 0
        codes = np.asarray(x, np.float32) - encoding.low
        # float64 first: of int8 exponents NumPy would make float16, which ends at 2**15.
        codes *= np.exp2(-encoding.exponent.astype(np.float64)).astype(np.float32)
        np.rint(codes, out=codes)
    return np.where(codes > 0, np.minimum(codes, 255), 0).astype(np.uint8)


def picture_bytes(parts):
    """Pictures of numbers as bytes, where they use a scale of bytes.

    Args:
      parts: list of finite float32 arrays, train and test.
    Returns:
      (parts, how): uint8 where all numbers lie in 0..1, in 0..16, or are whole and in 0..255; else
      as they were, for fit.
    """
    low, high = min(part.min() for part in parts), max(part.max() for part in parts)
    is_whole = all((part == np.rint(part)).all() for part in parts)
    if low < 0 or high > (255 if is_whole else 16):
        return parts, "numbers of any scale"
    scale, how = 1.0, "bytes"
    if high <= 1:
        scale, how = 255.0, "0..1 times 255"
    elif high <= 16:
        scale, how = 15.9375, "0..16 times 15.9375"
    return [_scale(part, scale) for part in parts], how


def _scale(x, scale):
    """round_half_even(scale * x) as uint8, exactly: float64 holds 24 bits times 8."""
    codes = np.empty(x.shape, np.uint8)
    for code, example in zip(codes, x):
        code[...] = np.rint(example.astype(np.float64) * scale)
    return codes
