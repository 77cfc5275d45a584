"""The network in training: init, forward, loss, calibration, and the integers to deploy.

`hyper` is what a run depends on besides rate and seed; in it LAYERS is the tuple of plan.Step that
the switch of this name stands for on the data.
"""
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import integer
import plan
import quant


class Layer(NamedTuple):
    """One layer as it computes; the scales are None in a float32 network."""
    w: jax.Array                # float32 [I, O]
    b: jax.Array                # float32 [O]
    x_scale: jax.Array | None = None    # float32 [1, 1]: units of the input per integer step
    w_scale: jax.Array | None = None    # float32 [1, O], or [1, 1] for one scale in all channels


class LearnedLayer(NamedTuple):
    """One layer whose scales the optimizer moves: their log2, which to_layers rounds."""
    w: jax.Array
    b: jax.Array
    x_exponent: jax.Array       # float32 [1, 1]
    w_exponent: jax.Array       # float32 [1, O] or [1, 1]


def init(key, hyper):
    """He-normal weights, zero biases, and scales of 1 for calibrate to replace.

    Args:
      key: a jax.random key.
      hyper: LAYERS, QAT_ENABLE, PER_CHANNEL.
    Returns:
      list of Layer.
    Source: He et al. 2015 (arXiv:1502.01852).
    """
    shapes = [step.weights for step in hyper.LAYERS if step.has_weights]
    ends = np.cumsum([i * o for i, o in shapes])
    normal = jax.random.normal(key, (int(ends[-1]),))       # all at once: a third of the compiling
    layers = [Layer(part.reshape(shape) * (2 / shape[0]) ** 0.5, jnp.zeros(shape[1]))
              for part, shape in zip(jnp.split(normal, ends[:-1]), shapes)]
    if not hyper.QAT_ENABLE:
        return layers
    return [layer._replace(x_scale=jnp.ones((1, 1)), w_scale=jnp.ones((1, channels)))
            for layer, channels in zip(layers, _scales_per_layer(layers, hyper))]


def _scales_per_layer(layers, hyper):
    """How many weight scales each layer has: the last has one, so that argmax reads integers."""
    hidden = [layer.w.shape[1] if hyper.PER_CHANNEL else 1 for layer in layers[:-1]]
    return [*hidden, 1]


def input_qmaxes(layers, hyper):
    """The largest |input code| of each layer, as training has to count it.

    Centred features come in as -255..255, and what centring takes is in the deployed bias: together
    at most twice a byte's 255.
    """
    first, *others = integer.input_qmax(len(layers), hyper.ACTIVATION_BITS)
    return [2 * first if plan.is_centred(hyper.LAYERS) else first, *others]


def pixels(codes):
    """Codes to float32 in [0, 1), centred ones in (-1, 1): times PIXEL_SCALE, exact."""
    return codes.astype(jnp.float32) * quant.PIXEL_SCALE


def affine(x, layer, hyper):
    """acc = x @ w + b, float32 [..., O]; w and b fake-quantized where the layer has scales."""
    rows, b = x.reshape(-1, x.shape[-1]), layer.b[None]
    if layer.w_scale is None:
        acc = rows @ layer.w + b
    else:
        acc_scale = lax.stop_gradient(layer.x_scale * layer.w_scale)
        b = quant.fake_quantize(b, acc_scale, quant.BIAS_BITS)
        acc = quant.dot(rows, layer.w, layer.x_scale, layer.w_scale, hyper.WEIGHT_BITS,
                        hyper.COMPUTE) + b
    return acc.reshape(*x.shape[:-1], acc.shape[1])


def activate(acc, scale, hyper):
    """ReLU, fake-quantized to unsigned codes of `scale` unless that is None."""
    x = jax.nn.relu(acc)
    return x if scale is None else quant.fake_quantize(x, scale, hyper.ACTIVATION_BITS, False)


def _apart(function, x):
    """function(x), on a CPU with x as an array of its own and the result as one.

    XLA fuses what makes x into each of its uses, and computes a code again for every patch that it
    is in. A branch, taken by all finite numbers, keeps them apart.
    """
    if not x.size:                              # no image: nothing to look at
        return function(x)
    like = jax.eval_shape(function, x)
    return lax.platform_dependent(x, default=function, cpu=lambda x: lax.cond(
        x.reshape(-1)[0] < np.inf, function, lambda x: jnp.full(like.shape, np.nan, like.dtype), x))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def patches(x, step):
    """plan.patches. Gradient: by adding up shifted maps, ten times as quick as a scatter."""
    if jnp.issubdtype(x.dtype, jnp.integer):    # of the data, there already
        return plan.patches(x, step)
    return _apart(partial(plan.patches, step=step), x)


def _patches_forward(x, step):
    return patches(x, step), len(x)


def _patches_backward(step, count, grad):
    like = jax.ShapeDtypeStruct((count, *step.before), grad.dtype)
    return jax.linear_transpose(lambda x: jnp.concatenate(plan.windows(x, step), axis=-1),
                                like)(grad)


patches.defvjp(_patches_forward, _patches_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def largest(x, step):
    """plan.largest. Gradient: to the first of a window's largest; codes tie often."""
    return plan.largest(x, step)


def _largest_forward(x, step):
    best, *others = plan.windows(x, step)
    which = jnp.zeros(best.shape, jnp.uint8)
    for i, part in enumerate(others, 1):
        which, best = jnp.where(part > best, np.uint8(i), which), jnp.maximum(best, part)
    return best, which


def _largest_backward(step, which, grad):
    (rows, columns), (high, wide, channels) = step.kernel, step.after
    place = np.arange(rows * columns, dtype=np.uint8).reshape(1, 1, rows, 1, columns, 1)
    spread = (-1, high, 1, wide, 1, channels)
    left = [(0, length - k * n) for length, k, n in zip(step.before, step.kernel, step.after)]

    def to_windows(grad):
        to = jnp.where(which.reshape(spread) == place, grad.reshape(spread), 0.0)
        to = to.reshape(-1, rows * high, columns * wide, channels)
        return jnp.pad(to, ((0, 0), *left, (0, 0)))     # what an odd map leaves out gets none

    return (_apart(to_windows, grad),)


largest.defvjp(_largest_forward, _largest_backward)


def forward(layers, images, hyper):
    """Logits of a batch.

    Args:
      layers: list of Layer; with scales the forward is fake-quantized, and its logits are the
        integer-only engines' bit for bit; without, it is float32.
      images: uint8 [B, I].
      hyper: LAYERS and, quantized, WEIGHT_BITS, ACTIVATION_BITS, COMPUTE.
    Returns:
      float32 [B, classes].
    """
    def apply(i, x):
        if layers[i].x_scale is None and i == 0:
            x = pixels(x)                       # quantized, they stay bytes up to the product
        acc = affine(x, layers[i], hyper)
        return acc if i + 1 == len(layers) else activate(acc, layers[i + 1].x_scale, hyper)

    return plan.walk(hyper.LAYERS, images, apply, patches, largest)


predict = jax.jit(forward, static_argnames="hyper")


def loss(layers, images, labels, hyper):
    """Mean cross-entropy of one batch in nats; images uint8 [B, I], labels uint8 [B].

    hyper.LABEL_SMOOTHING is the share of each target that goes to all classes alike.
    """
    log_probabilities = jax.nn.log_softmax(forward(layers, images, hyper))
    picked = jnp.take_along_axis(log_probabilities, labels[:, None].astype(jnp.int32), axis=1)
    if not hyper.LABEL_SMOOTHING:
        return -jnp.mean(picked)
    share = hyper.LABEL_SMOOTHING
    return -(1 - share) * jnp.mean(picked) - share * jnp.mean(log_probabilities)


@partial(jax.jit, static_argnames="hyper")
def calibrate(layers, images, hyper):
    """Static-range scales, layer by layer, each seeing the quantized output of those before it.

    Args:
      layers: list of Layer or LearnedLayer, whose w and b are read.
      images: uint8 [N, I], from the train split.
      hyper: LAYERS, WEIGHT_BITS, ACTIVATION_BITS, PER_CHANNEL, POWER_OF_TWO_SCALES, COMPUTE.
    Returns:
      list of Layer.
    """
    x_scale, calibrated = jnp.full((1, 1), quant.PIXEL_SCALE), []
    x_qmaxes = input_qmaxes(layers, hyper)
    channels = _scales_per_layer(layers, hyper)

    def apply(i, x):
        nonlocal x_scale
        if i == 0:
            x = pixels(x)
        w, b, *_ = layers[i]
        w_scale = quant.compute_scale(w, hyper.WEIGHT_BITS, True, channels[i] > 1,
                                      hyper.POWER_OF_TWO_SCALES,
                                      quant.weight_floor(w, b, x_scale, x_qmaxes[i]))
        calibrated.append(Layer(w, b, x_scale, w_scale))
        if i + 1 == len(layers):
            return x
        acc = affine(x, calibrated[i], hyper)
        x_scale = quant.compute_scale(
            jax.nn.relu(acc), hyper.ACTIVATION_BITS, False, False, hyper.POWER_OF_TWO_SCALES,
            quant.activation_floor(x_scale * w_scale)).reshape(1, 1)
        return activate(acc, x_scale, hyper)

    plan.walk(hyper.LAYERS, images, apply)
    return calibrated


def to_learned(layers):
    """Layers with scales to LearnedLayers: log2 of the scales is what learning moves."""
    return [LearnedLayer(layer.w, layer.b, jnp.log2(layer.x_scale), jnp.log2(layer.w_scale))
            for layer in layers]


def to_layers(layers, hyper):
    """What computes, of what training carries: exponents rounded, within exact integers' bounds.

    The same in every step and in what is deployed.

    Args:
      layers: list of LearnedLayer, or of Layer, which are as they were.
      hyper: LAYERS, WEIGHT_BITS, ACTIVATION_BITS, POWER_OF_TWO_SCALES.
    Returns:
      list of Layer.
    """
    if isinstance(layers[0], Layer):
        return layers
    x_scale, rounded = jnp.full((1, 1), quant.PIXEL_SCALE), []
    x_qmaxes = input_qmaxes(layers, hyper)
    counts = [math.prod(step.after) for step in hyper.LAYERS if step.has_weights]
    qmax = integer.code_range(hyper.WEIGHT_BITS)[1]
    for layer, following, x_qmax, count in zip(layers, [*layers[1:], None], x_qmaxes, counts):
        w, b, _, exponent = layer
        floor = lax.stop_gradient(quant.weight_floor(w, b, x_scale, x_qmax))
        w_scale = quant.learned_scale(exponent, floor, hyper.POWER_OF_TWO_SCALES,
                                      w.size // exponent.size * qmax)
        rounded.append(Layer(w, b, x_scale, w_scale))
        if following is not None:
            floor = lax.stop_gradient(quant.activation_floor(x_scale * w_scale))
            x_scale = quant.learned_scale(following.x_exponent, floor, hyper.POWER_OF_TWO_SCALES,
                                          count * x_qmaxes[-1])
    return rounded


def set_scales(layers, images, hyper):
    """The layers, of their own type, with the scales that calibrate gives them."""
    calibrated = calibrate(layers, images, hyper)
    return calibrated if isinstance(layers[0], Layer) else to_learned(calibrated)


def trainable(layers):
    """What the optimizer moves: LearnedLayers whole, of Layers all but the scales (None)."""
    if isinstance(layers[0], LearnedLayer):
        return layers
    return [layer._replace(x_scale=None, w_scale=None) for layer in layers]


def complete(moved, layers, frozen=False):
    """`moved`, as from trainable, with the scales of `layers`, or its own exponents unless frozen.

    A learned exponent comes to rest at a half, where the steps from either side cancel, and changes
    to and fro until it is frozen, bool []. Source: Jain et al. 2020 (TQT, arXiv:1903.08066).
    """
    if isinstance(layers[0], Layer):
        return [mine._replace(x_scale=layer.x_scale, w_scale=layer.w_scale)
                for mine, layer in zip(moved, layers)]
    return [LearnedLayer(mine.w, mine.b, jnp.where(frozen, layer.x_exponent, mine.x_exponent),
                         jnp.where(frozen, layer.w_exponent, mine.w_exponent))
            for mine, layer in zip(moved, layers)]
