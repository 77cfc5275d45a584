"""What lies between the data and the classes: the words of LAYERS, their shapes, and the one walk.

NumPy is enough; the walk takes JAX arrays as well.
"""
import functools
import math
import re
from typing import NamedTuple

import numpy as np

MAX_STEPS = 64                  # what a network here may be: config, files and proof use these
MAX_WIDTH = 65_536              # numbers of an image, of a layer's output, of a patch
MAX_WEIGHTS = 2**24
MAX_KERNEL, MAX_STRIDE = 7, 3
BLOCK_BYTES = 2**26             # of patches that an engine holds at a time


class Step(NamedTuple):
    """One word of LAYERS, with the shapes on either side of it."""
    kind: str                   # centre, crop, mean, conv, max or dense
    kernel: tuple               # (rows, columns) of the window; of crop: what is left
    stride: tuple               # (rows, columns) from window to window
    before: tuple               # shape of an example: (H, W, C), or (features,)
    after: tuple

    @property
    def has_weights(self):
        """Whether a Layer belongs to this step."""
        return self.kind in ("conv", "dense")

    @property
    def weights(self):
        """(I, O): a patch of a convolution, or all that comes in, to the channels."""
        if self.kind == "conv":
            return math.prod(self.kernel) * self.before[-1], self.after[-1]
        return math.prod(self.before), self.after[0]


def centred(steps):
    """The steps of training on features: codes less the mean's code come in, -255..255.

    What is subtracted is folded into the first bias when the network is made, so a deployed network
    has no such step.
    """
    shape = steps[0].before
    return Step("centre", (), (), shape, shape), *steps


def is_centred(steps):
    """Whether codes come in less their mean's code."""
    return steps[0].kind == "centre"


def _window(shape, kernel, stride):
    """(kernels, strides, counts) of windows along both axes of a map; 1 along an axis of 1."""
    sizes = [(1, 1, 1) if length == 1 else (kernel, stride, (length - kernel) // stride + 1)
             for length in shape[:2]]
    return tuple(zip(*sizes))


WORD = re.compile(r"(?P<crop>crop(?P<side>\d{1,3}))|(?P<mean>mean2)|(?P<max>max2)|"
                  r"(?P<conv>conv(?P<kernel>\d)x(?P<channels>\d{1,5})(?:/(?P<stride>\d))?)|"
                  r"(?P<dense>\d{1,6})", re.ASCII)
AFTER_THESE = {"crop": {"conv", "dense", "mean"}, "mean": {"conv", "dense"}, "conv": {"dense"},
               "max": {"dense"}, "dense": set()}    # where a word may no longer stand


def _step(word, before, earlier):
    """The Step of one word; ValueError where it can't stand: earlier are the kinds before it."""
    match = WORD.fullmatch(word)
    kind = match.lastgroup if match.lastgroup in AFTER_THESE else "conv"
    if kind == "dense":
        return Step(kind, (), (), before, (int(word),))
    if AFTER_THESE[kind] & earlier or (kind == "max" and "conv" not in earlier):
        raise ValueError(f"{word} stands in the wrong place: crop and mean2 come first, then "
                         "convolutions, max2 after one of them, widths last")
    if len(before) != 3:
        raise ValueError(f"{word} needs a picture or a window, not {before[0]} features")
    size, channels, stride = 2, before[2], 2
    if kind == "crop":
        size, stride = int(match["side"]), 1
    elif kind == "conv":
        size, channels = int(match["kernel"]), int(match["channels"])
        stride = int(match["stride"] or 1)
        if not (1 <= size <= MAX_KERNEL and 1 <= stride <= MAX_STRIDE):
            raise ValueError(f"{word}: a kernel is 1 to {MAX_KERNEL} wide, a stride 1 to "
                             f"{MAX_STRIDE}")
    rows, columns, _ = before
    if size < 1 or any(1 < length < size for length in (rows, columns)):
        raise ValueError(f"{word} does not fit a map of {rows} x {columns}")
    kernel, strides, count = _window(before, size, stride)
    after = kernel if kind == "crop" else count
    return Step(kind, kernel, strides, before, (*after, channels))


def check_words(line):
    """Raise ValueError unless every word of LAYERS is one, whatever the data are."""
    for word in line.split():
        if not WORD.fullmatch(word):
            raise ValueError(f"{word[:40]!r} is none of crop24, mean2, conv5x16, conv5x16/2, "
                             "max2 or a width like 256")


@functools.cache
def parse(line, shape, classes):
    """The steps that a line of LAYERS stands for.

    Args:
      line: words, as the README explains them: "crop24 mean2 134 80 54", "conv5x8/2 max2".
      shape: of an example: (H, W, C), or (features,).
      classes: how many there are; the last step leads to them.
    Returns:
      tuple of Step.
    Raises:
      ValueError: a word is unknown, does not fit its map or stands in the wrong place, or the
        network is larger than one may be here; one line.
    """
    check_words(line)
    steps, weights, words = [], 0, [*line.split(), str(classes)]
    if len(words) > MAX_STEPS:
        raise ValueError(f"{len(words)} steps are more than {MAX_STEPS}")
    for word in words:
        before = steps[-1].after if steps else tuple(shape)
        step = _step(word, before, {step.kind for step in steps})
        numbers = [math.prod(step.before), math.prod(step.after)]
        if step.has_weights:
            numbers.append(step.weights[0])
            weights += math.prod(step.weights)
        if min(numbers) < 1 or max(numbers) > MAX_WIDTH:
            raise ValueError(f"{word} leads from {numbers[0]:,} numbers to {numbers[1]:,}; give "
                             f"1 to {MAX_WIDTH:,}")
        steps.append(step)
    if weights > MAX_WEIGHTS:
        raise ValueError(f"{weights:,} weights, more than {MAX_WEIGHTS:,}")
    return tuple(steps)


def to_line(steps):
    """The words of LAYERS that these steps stand for; the last one is implied."""
    words = []
    for step in steps[is_centred(steps):-1]:
        size = max(step.kernel, default=0)
        if step.kind == "dense":
            words.append(str(step.after[0]))
        elif step.kind == "crop":
            words.append(f"crop{size}")
        elif step.kind == "conv":
            stride = max(step.stride)
            words.append(f"conv{size}x{step.after[2]}" + (f"/{stride}" if stride > 1 else ""))
        else:
            words.append(f"{step.kind}2")
    return " ".join(words)


def perceptron(weights):
    """The steps of a network of dense layers alone; weights: list of arrays [I, O]."""
    if not weights:
        raise ValueError("a network has one layer or more")
    return parse(" ".join(str(w.shape[1]) for w in weights[:-1]), (weights[0].shape[0],),
                weights[-1].shape[1])


def class_names(count):
    """The names of classes that nobody named: "0", "1", ..."""
    return tuple(map(str, range(count)))


def inputs(steps):
    """How many bytes an example has."""
    return math.prod(steps[0].before)


def convolves(steps):
    """Whether a network has convolutions."""
    return any(step.kind == "conv" for step in steps)


def sizes(steps):
    """(inputs of the first weights, hidden widths, classes) of a network of dense layers."""
    dense = [step for step in steps if step.has_weights]
    if convolves(steps):
        raise ValueError("it has convolutions")
    return dense[0].weights[0], *(step.after[0] for step in dense)


def describe(steps):
    """784-256-128-10, or the words of LAYERS where there are convolutions: what a table says."""
    if convolves(steps):
        return to_line(steps)
    return "-".join(map(str, sizes(steps)))


def shift_half_even(acc, shift):
    """acc * 2**-shift, rounded half to even, in integers; shift 1 or more; NumPy or JAX."""
    return (acc + (1 << (shift - 1)) - 1 + ((acc >> shift) & 1)) >> shift


def windows(x, step):
    """List of [B, H', W', C]: each place in a step's window, row by row, of a map [B, H, W, C]."""
    (rows, columns), (down, across) = step.kernel, step.stride
    high, wide = step.after[:2]
    return [x[:, i:i + down * (high - 1) + 1:down, j:j + across * (wide - 1) + 1:across]
            for i in range(rows) for j in range(columns)]


def _mean(x, step):
    """Means of bytes, rounded half to even like every code: uint8."""
    parts = windows(x, step)
    sums = sum(part.astype(np.int32) for part in parts)
    if len(parts) == 1:                         # both axes are 1
        return x
    return shift_half_even(sums, len(parts).bit_length() - 1).astype(np.uint8)


def corner(step):
    """(row, column) where a crop begins; of an odd margin the smaller half is before it."""
    return tuple((length - kept) // 2 for length, kept in zip(step.before, step.kernel))


def _crop(x, step):
    """The centre of a map."""
    top, left = corner(step)
    return x[:, top:top + step.kernel[0], left:left + step.kernel[1]]


@functools.cache
def _places(step):
    """int64 [H' * W' * rows * columns]: which pixels each patch takes, of a map's H * W."""
    at = [np.arange(count)[:, None] * stride + np.arange(size)
          for count, stride, size in zip(step.after, step.stride, step.kernel)]
    return (at[0][:, None, :, None] * step.before[1] + at[1][None, :, None, :]).reshape(-1)


def patches(x, step):
    """[B, H, W, C] to what a convolution multiplies: [B, H', W', rows * columns * C], C fastest."""
    rows, columns, channels = step.before
    pixels = x.reshape(len(x), rows * columns, channels)
    taken = x.__array_namespace__().take(pixels, _places(step), axis=1, mode="clip")
    return taken.reshape(len(x), *step.after[:2], step.weights[0])


def largest(x, step):
    """The maximum of each window: [B, H, W, C] to [B, H', W', C]."""
    return functools.reduce(x.__array_namespace__().maximum, windows(x, step))


def walk(steps, x, apply, patches=patches, largest=largest):
    """A batch through a network: the one way, for inference, training and calibration.

    Args:
      steps: tuple of Step.
      x: [B, ...], NumPy or JAX, as many numbers as the first step takes.
      apply: function of (index, x [..., I]) -> [..., O]: the layer of the index-th step with
        weights, up to its output's codes.
      patches, largest: functions of (x, step), as those above; training has a gradient of its own.
    Returns:
      what apply gives for the last step: [B, classes].
    """
    x, index = x.reshape(-1, *steps[0].before), 0
    for step in steps:
        if step.kind == "centre":               # done once, for all examples
            continue
        if step.kind == "crop":
            x = _crop(x, step)
        elif step.kind == "mean":
            x = _mean(x, step)
        elif step.kind == "max":                # after requantizing as before it: that is monotone
            x = largest(x, step)
        else:
            if step.kind == "conv":             # a patch is the inputs of a position
                x = patches(x, step)
            else:
                x = x.reshape(len(x), math.prod(step.before))
            x = apply(index, x)
            index += 1
    return x


def block_size(steps):
    """How many images an engine takes at a time: so many that their patches fit BLOCK_BYTES; all at
    once where there are no convolutions, 0."""
    most = max((4 * math.prod(step.after[:2]) * step.weights[0] for step in steps
                if step.kind == "conv"), default=0)
    return max(1, BLOCK_BYTES // most) if most else 0


def blocks(images, block):
    """The parts of a batch that are taken at a time: `block` images each, 0: all of them."""
    if not block or len(images) <= block:
        return [images]
    return [images[i:i + block] for i in range(0, len(images), block)]
