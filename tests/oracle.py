"""Independent implementations that the tests compare with: int64, float64, plain Python."""
import numpy as np


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


def run(layers, activation_bits, images):
    """Accumulators of the last layer in int64; the codes between are rounded in exact float64."""
    x = np.asarray(images).astype(np.int64)
    for layer, following in zip(layers, [*layers[1:], None]):
        acc = x @ layer["w_q"].astype(np.int64) + layer["b_q"].astype(np.int64)
        if following is None:
            return acc
        shift = (int(following["x_exponent"]) - int(layer["x_exponent"])
                 - layer["w_exponent"].astype(np.int64))
        x = np.clip(np.rint(acc * 2.0**-shift), 0, 2**activation_bits - 1).astype(np.int64)


def forward(params, images):
    """Logits of the float network in float64."""
    x = np.asarray(images, np.float64) / 256
    for i, (w, b) in enumerate(params):
        x = np.maximum(x, 0) if i else x
        x = x @ np.asarray(w, np.float64) + np.asarray(b, np.float64)
    return x


def loss(logits, labels):
    """Mean cross-entropy in nats, float64, one example at a time."""
    total = 0.0
    for row, label in zip(np.asarray(logits, np.float64), labels):
        total += np.log(np.sum(np.exp(row - row[label])))
    return total / len(labels)


def random_layers(rng, sizes, weight_bits=8, activation_bits=8, per_channel=True):
    """Random legal layers as model.quantize gives them, with every code and many shifts."""
    layers, x_exponent = [], -8
    for i, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:])):
        codes = [c for c in range(-127, 128) if abs(c) <= code_range(weight_bits, True)[1]
                 and (c or weight_bits > 1)]
        channels = outputs if per_channel and i + 2 < len(sizes) else 1
        w_exponent = rng.integers(-12, -5, channels)
        layers.append({"w_q": rng.choice(codes, (inputs, outputs)).astype(np.int8),
                       "w_exponent": w_exponent.astype(np.int8),
                       "x_exponent": np.array(x_exponent, np.int8),
                       "b_q": rng.integers(-5_000, 5_001, outputs).astype(np.int32)})
        x_exponent += int(w_exponent.max()) + int(rng.integers(1, 12))
    return layers
