"""Independent implementations that the tests compare with: float64 and plain Python."""
from fractions import Fraction

import numpy as np

import integer


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


def pool(image, side):
    """The first layer's codes of one image in Python's own integers, as a list."""
    if side == 28:
        return image.tolist()
    rows, span = image.reshape(28, 28).tolist(), range(14 - side, 14 + side, 2)
    return [round(Fraction(rows[y][x] + rows[y][x + 1] + rows[y + 1][x] + rows[y + 1][x + 1], 4))
            for y in span for x in span]


def pool_all(images, side):
    """The same for uint8 [N, I], as float64, by a matrix of each pixel's share in each code."""
    if side == 28:
        return np.asarray(images).astype(np.float64)
    share = np.zeros((28, 28, side, side))
    for y, x in np.ndindex(2 * side, 2 * side):
        share[14 - side + y, 14 - side + x, y // 2, x // 2] = 0.25
    return np.rint(images.astype(np.float64) @ share.reshape(28**2, side**2))


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
    x = pool_all(images, network.input)
    for layer in network.layers:
        acc = x @ layer.w_q.astype(np.float64) + layer.b_q.astype(np.float64)
        if layer.shift is not None:
            codes = np.rint(acc * 2.0 ** -layer.shift.astype(np.float64))
            x = np.clip(codes, 0, 2**network.activation_bits - 1)
    return acc.astype(np.int64)


def run_slowly(network, image):
    """The same for one image in Python's own integers, as a list; rounds half to even."""
    x = pool(image, network.input)
    for w_q, b_q, shift in network.layers:
        acc = [sum(a * b for a, b in zip(x, column)) + bias
               for column, bias in zip(w_q.T.tolist(), b_q.tolist())]
        if shift is not None:
            x = [min(max(round(Fraction(a, 2**s)), 0), 2**network.activation_bits - 1)
                 for a, s in zip(acc, shift.tolist())]
    return acc


def worst_accumulators(network):
    """The largest |accumulator| that input codes can cause, int64 [O] by layer."""
    qmaxes = [255] + [2**network.activation_bits - 1] * (len(network.layers) - 1)
    return [qmax * np.abs(layer.w_q.astype(np.int64)).sum(0) + np.abs(layer.b_q.astype(np.int64))
            for qmax, layer in zip(qmaxes, network.layers)]


def forward(layers, images):
    """Logits of the float network in float64."""
    x = np.asarray(images, np.float64) / 256
    for i, (w, b, *_) in enumerate(layers):
        x = np.maximum(x, 0) if i else x
        x = x @ np.asarray(w, np.float64) + np.asarray(b, np.float64)
    return x


def loss(logits, labels):
    """Mean cross-entropy in nats, float64, one example at a time."""
    total = 0.0
    for row, label in zip(np.asarray(logits, np.float64), labels):
        total += np.log(np.sum(np.exp(row - row[label])))
    return total / len(labels)


def random_network(rng, sizes, weight_bits=8, activation_bits=8, input=28):
    """A random legal Network made by hand, with every code and many shifts."""
    qmax = code_range(weight_bits, True)[1]
    codes = [code for code in range(-qmax, qmax + 1) if code or weight_bits > 1]
    layers = [integer.Layer(rng.choice(codes, (inputs, outputs)).astype(np.int8),
                            rng.integers(-5_000, 5_001, outputs).astype(np.int32),
                            rng.integers(1, 13, outputs).astype(np.int8))
              for inputs, outputs in zip(sizes, sizes[1:])]
    layers[-1] = layers[-1]._replace(shift=None)
    return integer.Network(tuple(layers), weight_bits, activation_bits, int(rng.integers(-20, 5)),
                           input)
