"""Independent implementations that the tests compare with: float64 and plain Python."""
from fractions import Fraction

import numpy as np

import integer
import plan
from formats import earlier


def code_range(bits, signed):
    """(qmin, qmax) as design.md's contract has it."""
    if not signed:
        return 0, 2**bits - 1
    return {1: (-1, 1), 2: (-1, 1)}.get(bits, (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1))


def quantize(x, scale, bits, signed=True):
    """Integer codes of float64 x / scale: round half to even, saturate; one bit is a sign."""
    codes = np.asarray(x, np.float64) / np.asarray(scale, np.float64)
    if signed and bits == 1:
        return np.where(codes >= 0, 1, -1)
    return np.clip(np.rint(codes), *code_range(bits, signed)).astype(np.int64)


def _place(step, row, column):
    """[(row, column)] of a map that the window of one place of its outcome covers."""
    (high, wide), (down, across) = step.kernel, step.stride
    top, left = row * down, column * across
    if step.kind == "crop":
        top, left = ((length - kept) // 2 for length, kept in zip(step.before, step.kernel))
    return [(top + i, left + j) for i in range(high) for j in range(wide)]


def _counts(step):
    """How many windows fit along both axes."""
    return [len(range(0, length - size + 1, stride))
            for length, size, stride in zip(step.before, step.kernel, step.stride)]


def _slowly(step, x):
    """A map as nested lists [H][W][C] of Python's integers, after crop, mean or max."""
    if step.kind == "crop":
        places, wide = _place(step, 0, 0), step.kernel[1]
        return [[x[i][j] for i, j in places[at:at + wide]] for at in range(0, len(places), wide)]
    high, wide = _counts(step)
    parts = [[[x[i][j] for i, j in _place(step, row, column)] for column in range(wide)]
             for row in range(high)]
    if step.kind == "max":
        return [[list(map(max, *window, window[0])) for window in row] for row in parts]
    return [[[round(Fraction(sum(values), len(values))) for values in zip(*window)]
             for window in row] for row in parts]


def _nested(image, shape):
    """A flat list of numbers as [H][W][C]; of features as it is."""
    if len(shape) == 1:
        return image
    _, wide, channels = shape
    pixels = [image[at:at + channels] for at in range(0, len(image), channels)]
    return [pixels[at:at + wide] for at in range(0, len(pixels), wide)]


def _flat(x):
    """Nested lists of any depth as one list, in order."""
    return sum(map(_flat, x), []) if isinstance(x, list) else [x]


def pool(image, steps):
    """What crop and mean leave of one image, in Python's own integers, as a flat list."""
    x = _nested(np.asarray(image).ravel().tolist(), steps[0].before)
    for step in steps:
        if step.kind not in ("crop", "mean"):
            break
        x = _slowly(step, x)
    return _flat(x)


def _windows(x, step):
    """float64 [B, H', W', rows, columns, C] of a map [B, H, W, C]."""
    down, across = step.stride
    views = np.lib.stride_tricks.sliding_window_view(x, step.kernel, axis=(1, 2))
    return np.moveaxis(views[:, ::down, ::across], 3, 5)


def _pooled(x, step):
    """A map [B, H, W, C] after crop, mean or max, float64; sums of bytes are exact."""
    if step.kind == "crop":
        top, left = _place(step, 0, 0)[0]
        return x[:, top:top + step.kernel[0], left:left + step.kernel[1]]
    if step.kind == "max":
        return _windows(x, step).max((3, 4))
    return np.rint(_windows(x, step).mean((3, 4)))


def pool_all(images, steps):
    """The same for uint8 [N, ...]: float64 [N, I]."""
    x = np.asarray(images, np.float64).reshape(-1, *steps[0].before)
    for step in steps:
        if step.kind not in ("crop", "mean"):
            break
        x = _pooled(x, step)
    return x.reshape(len(x), -1)


def _through(steps, x, apply):
    """float64 [B, ...] through the steps; apply(index, [..., I]) is the index-th layer."""
    index = 0
    for step in steps:
        if step.kind in ("conv", "dense"):
            if step.kind == "conv":
                x = _windows(x, step)
                x = x.reshape(*x.shape[:3], -1)
            else:
                x = x.reshape(len(x), -1)
            x, index = apply(index, x), index + 1
        else:
            x = _pooled(x, step)
        assert x.shape[1:] == step.after
    return x


def images_of_every_sum(rng, side):
    """uint8 [N, 784]: in their pooled parts each sum of 2 x 2 pixels, 0 to 1020; random borders."""
    sums = np.resize(np.arange(1021), (-(-1021 // side**2), side, side))
    images = rng.integers(0, 256, (len(sums), 28, 28), dtype=np.uint8)
    centre = images[:, 14 - side:14 + side, 14 - side:14 + side]
    for k, (row, column) in enumerate(np.ndindex(2, 2)):
        centre[:, row::2, column::2] = (sums + k) // 4      # four that make the sum
    return images.reshape(-1, 784)


def run(network, images):
    """Accumulators of the last layer as int64, by float64: exact, for no sum comes near 2**53."""
    def apply(i, x):
        layer = network.layers[i]
        acc = x @ layer.w_q.astype(np.float64) + layer.b_q.astype(np.float64)
        if layer.shift is None:
            return acc
        codes = np.rint(acc * 2.0 ** -layer.shift.astype(np.float64))
        return np.clip(codes, 0, 2**network.activation_bits - 1)

    x = np.asarray(images, np.float64).reshape(-1, *network.steps[0].before)
    return _through(network.steps, x, apply).astype(np.int64)


def _layer_slowly(layer, x, bits):
    """One layer on a list of Python's integers; rounds half to even."""
    acc = [sum(a * b for a, b in zip(x, column)) + bias
           for column, bias in zip(layer.w_q.T.tolist(), layer.b_q.tolist())]
    if layer.shift is None:
        return acc
    return [min(max(round(Fraction(a, 2**s)), 0), 2**bits - 1)
            for a, s in zip(acc, layer.shift.tolist())]


def run_slowly(network, image):
    """The same for one image in Python's own integers, as a list."""
    x, layers = _nested(np.asarray(image).ravel().tolist(), network.steps[0].before), network.layers
    for step in network.steps:
        if step.kind == "conv":
            (layer, *layers), (high, wide) = layers, _counts(step)
            x = [[_layer_slowly(layer, _flat([x[i][j] for i, j in _place(step, row, column)]),
                                network.activation_bits) for column in range(wide)]
                 for row in range(high)]
        elif step.kind == "dense":
            layer, *layers = layers
            x = _layer_slowly(layer, _flat(x), network.activation_bits)
        else:
            x = _slowly(step, x)
    return x


def worst_accumulators(network):
    """The largest |accumulator| that input codes can cause, int64 [O] by layer."""
    qmaxes = [255] + [2**network.activation_bits - 1] * (len(network.layers) - 1)
    return [qmax * np.abs(layer.w_q.astype(np.int64)).sum(0) + np.abs(layer.b_q.astype(np.int64))
            for qmax, layer in zip(qmaxes, network.layers)]


def forward(layers, images, steps):
    """Logits of the float network in float64."""
    def apply(i, x):
        w, b, *_ = layers[i]
        x = x / 256 if i == 0 else x
        x = x @ np.asarray(w, np.float64) + np.asarray(b, np.float64)
        return x if i + 1 == len(layers) else np.maximum(x, 0)

    return _through(steps, np.asarray(images, np.float64).reshape(-1, *steps[0].before), apply)


def loss(logits, labels):
    """Mean cross-entropy in nats, float64, one example at a time."""
    total = 0.0
    for row, label in zip(np.asarray(logits, np.float64), labels):
        total += np.log(np.sum(np.exp(row - row[label])))
    return total / len(labels)


def random_network(rng, steps, weight_bits=8, activation_bits=8):
    """A random legal Network made by hand, with every code, many shifts and logits that vary.

    Args:
      rng: NumPy's Generator.
      steps: as from plan.parse; or the sizes of a perceptron, inputs to classes, as ints: its
        images are square where they can be.
      weight_bits, activation_bits: ints.
    """
    if isinstance(steps[0], int):
        line, shape = earlier.from_sizes(28, steps)
        steps = plan.parse(line, shape, steps[-1])
    shapes = [(int(np.prod([*step.kernel, step.before[2]])), step.after[2])
              if step.kind == "conv" else (int(np.prod(step.before)), step.after[0])
              for step in steps if step.kind in ("conv", "dense")]
    layers, x_qmax = [], 255
    for shape in shapes:
        layers.append(_random_layer(rng, *shape, x_qmax, weight_bits, activation_bits))
        x_qmax = 2**activation_bits - 1
    layers[-1] = layers[-1]._replace(shift=None)
    return integer.Network(tuple(layers), weight_bits, activation_bits, int(rng.integers(-20, 5)),
                           steps)


def _random_layer(rng, inputs, outputs, x_qmax, weight_bits, activation_bits):
    """An integer.Layer whose biases and shifts suit its accumulators: few channels are constant."""
    qmax = code_range(weight_bits, True)[1]
    codes = [code for code in range(-qmax, qmax + 1) if code or weight_bits > 1]
    reach = x_qmax * qmax * inputs**0.5
    middle = max(1, round(np.log2(reach / 2**activation_bits)))
    return integer.Layer(
        rng.choice(codes, (inputs, outputs)).astype(np.int8),
        rng.integers(-int(reach / 4) - 1, int(reach / 4) + 2, outputs).astype(np.int32),
        rng.integers(max(1, middle - 5), middle + 3, outputs).astype(np.int8))
