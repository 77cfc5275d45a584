"""The multilayer perceptron: init, forward, loss, calibration, and the integers to deploy."""
from collections import namedtuple
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import integer
import quant
from machine import runtime


class Layer(NamedTuple):
    """One layer in training; the scales are None in a float32 network."""
    w: jax.Array                # float32 [I, O]
    b: jax.Array                # float32 [O]
    x_scale: jax.Array | None = None    # float32 [1, 1]: units of the input per integer step
    w_scale: jax.Array | None = None    # float32 [1, O], or [1, 1] for one scale in all channels


def init(key, hyper):
    """He-normal weights, zero biases, and scales of 1 for calibrate to replace.

    Args:
      key: a jax.random key; hyper: LAYER_SIZES (inputs, hidden widths, classes), QAT_ENABLE,
      PER_CHANNEL.
    Returns:
      list of Layer.
    Source: He et al. 2015 (arXiv:1502.01852).
    """
    shapes = list(zip(hyper.LAYER_SIZES, hyper.LAYER_SIZES[1:]))
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


def pixels(images, hyper=None):
    """uint8 images to float32 [B, I] in [0, 1): pooled codes times PIXEL_SCALE, exact."""
    codes = integer.pool(images, integer.IMAGE_SIDE if hyper is None else hyper.INPUT)
    return codes.astype(jnp.float32) * quant.PIXEL_SCALE


def affine(x, layer, hyper):
    """acc = x @ w + b, float32 [B, O]; w and b fake-quantized where the layer has scales."""
    b = layer.b[None]
    if layer.w_scale is not None:
        acc_scale = lax.stop_gradient(layer.x_scale * layer.w_scale)
        b = quant.fake_quantize(b, acc_scale, quant.BIAS_BITS)
    if layer.w_scale is None:
        return x @ layer.w + b
    return quant.dot(x, layer.w, layer.x_scale, layer.w_scale, hyper.WEIGHT_BITS,
                     hyper.COMPUTE) + b


def activate(acc, scale, hyper):
    """ReLU, fake-quantized to unsigned codes of `scale` unless that is None."""
    x = jax.nn.relu(acc)
    return x if scale is None else quant.fake_quantize(x, scale, hyper.ACTIVATION_BITS, False)


def forward(layers, images, hyper=None):
    """Logits of a batch.

    Args:
      layers: list of Layer; with scales the forward is fake-quantized, and its logits are the
        integer-only engines' bit for bit; without, it is float32 and needs no hyper.
      images: uint8 [B, I]; hyper: INPUT, WEIGHT_BITS, ACTIVATION_BITS, COMPUTE.
    Returns:
      float32 [B, classes].
    """
    # Quantized, the images stay bytes up to the product.
    x = (pixels(images, hyper) if layers[0].x_scale is None
         else integer.pool(images, hyper.INPUT))
    for layer, following in zip(layers, layers[1:]):
        x = activate(affine(x, layer, hyper), following.x_scale, hyper)
    return affine(x, layers[-1], hyper)


predict = jax.jit(forward, static_argnames="hyper")


def loss(layers, images, labels, hyper=None):
    """Mean cross-entropy of one batch in nats; images uint8 [B, I], labels uint8 [B].

    hyper.LABEL_SMOOTHING is the share of each target that goes to all classes alike.
    """
    log_probabilities = jax.nn.log_softmax(forward(layers, images, hyper))
    picked = jnp.take_along_axis(log_probabilities, labels[:, None].astype(jnp.int32), axis=1)
    if hyper is None or not hyper.LABEL_SMOOTHING:
        return -jnp.mean(picked)
    share = hyper.LABEL_SMOOTHING
    return -(1 - share) * jnp.mean(picked) - share * jnp.mean(log_probabilities)


@partial(jax.jit, static_argnames="hyper")
def calibrate(layers, images, hyper):
    """Static-range scales, layer by layer, each seeing the quantized output of those before it.

    Args:
      layers: list of Layer, with scales or without; images: uint8 [N, I], from the train split;
      hyper: INPUT, WEIGHT_BITS, ACTIVATION_BITS, PER_CHANNEL, POWER_OF_TWO_SCALES, COMPUTE.
    Returns:
      list of Layer with new scales.
    """
    x, x_scale, calibrated = pixels(images, hyper), jnp.full((1, 1), quant.PIXEL_SCALE), []
    x_qmaxes = integer.input_qmax(len(layers), hyper.ACTIVATION_BITS)
    for layer, x_qmax, channels in zip(layers, x_qmaxes, _scales_per_layer(layers, hyper)):
        w_scale = quant.compute_scale(
            layer.w, hyper.WEIGHT_BITS, True, channels > 1, hyper.POWER_OF_TWO_SCALES,
            quant.weight_floor(layer.w, layer.b, x_scale, x_qmax))
        layer = layer._replace(x_scale=x_scale, w_scale=w_scale)
        calibrated.append(layer)
        if len(calibrated) < len(layers):
            acc = affine(x, layer, hyper)
            x_scale = quant.compute_scale(
                jax.nn.relu(acc), hyper.ACTIVATION_BITS, False, False, hyper.POWER_OF_TWO_SCALES,
                quant.activation_floor(x_scale * w_scale))
            x = activate(acc, x_scale, hyper)
    return calibrated


def learned(layers, hyper):
    """The leaves that the optimizer moves: all but calibrated scales, which become None."""
    return layers if hyper.SCALES == "learned" else [
        layer._replace(x_scale=None, w_scale=None) for layer in layers]


def with_scales(learned, layers, frozen=False):
    """`learned` with the scales of `layers`: where it has none of its own, or if frozen, bool [].

    A learned exponent comes to rest at a half, where the steps from either side cancel, and changes
    to and fro until it is frozen. Source: Jain et al. 2020 (TQT, arXiv:1903.08066).
    """
    def choose(mine, its):
        return its if mine is None else jnp.where(frozen, its, mine)

    return [mine._replace(x_scale=choose(mine.x_scale, layer.x_scale),
                          w_scale=choose(mine.w_scale, layer.w_scale))
            for mine, layer in zip(learned, layers)]


def set_scales(layers, images, hyper):
    """Layers with the scales for an epoch to begin with, or for averaged weights; learned: at first.

    Args:
      as of calibrate; hyper: SCALES, too.
    Returns:
      list of Layer, calibrated. If SCALES is learned, the leaves hold log2 of the scales: that is
      what learning moves from then on.
    """
    layers = calibrate(layers, images, hyper)
    return layers if hyper.SCALES == "calibrated" else [
        layer._replace(x_scale=jnp.log2(layer.x_scale), w_scale=jnp.log2(layer.w_scale))
        for layer in layers]


def snap(layers, hyper):
    """Layers with the scales that compute, from those that training carries.

    Learned exponents are rounded here and meet the bounds that keep the integers exact, in every
    step and in what is deployed.

    Args:
      layers: list of Layer; hyper: QAT_ENABLE, SCALES, WEIGHT_BITS, ACTIVATION_BITS,
      POWER_OF_TWO_SCALES.
    Returns:
      list of Layer; calibrated scales are as they were.
    """
    if not hyper.QAT_ENABLE or hyper.SCALES == "calibrated":
        return layers
    x_scale, snapped = jnp.full((1, 1), quant.PIXEL_SCALE), []
    x_qmaxes = integer.input_qmax(len(layers), hyper.ACTIVATION_BITS)
    qmax = integer.code_range(hyper.WEIGHT_BITS)[1]
    for layer, following, x_qmax in zip(layers, [*layers[1:], None], x_qmaxes):
        w, b, _, exponent = layer
        floor = lax.stop_gradient(quant.weight_floor(w, b, x_scale, x_qmax))
        w_scale = quant.learned_scale(exponent, floor, hyper.POWER_OF_TWO_SCALES,
                                      w.size // exponent.size * qmax)
        snapped.append(Layer(w, b, x_scale, w_scale))
        if following is not None:
            floor = lax.stop_gradient(quant.activation_floor(x_scale * w_scale))
            x_scale = quant.learned_scale(following.x_scale, floor, hyper.POWER_OF_TWO_SCALES,
                                          w.shape[1] * x_qmaxes[-1])
    return snapped


def _codes(layers, hyper):
    """The weight and bias codes of each layer, float32 that holds integers. Slow op by op."""
    return [(quant.quantize(layer.w, layer.w_scale, hyper.WEIGHT_BITS),
             quant.quantize(layer.b[None], layer.x_scale * layer.w_scale, quant.BIAS_BITS)[0])
            for layer in layers]


@cache                          # not at the import, which starts no backend
def _codes_jitted():
    return jax.jit(_codes, static_argnames="hyper", compiler_options=runtime.compiler_options())


def is_exact(layers, hyper):
    """Whether to_network would accept these layers; bool [], for the epochs of a run.

    A scale is set for the weights at an epoch's start; the epoch may let them outgrow it.
    """
    x_qmaxes = integer.input_qmax(len(layers), hyper.ACTIVATION_BITS)
    bounds = [x_qmax * jnp.sum(jnp.abs(w_q), 0) + jnp.abs(b_q)
              for (w_q, b_q), x_qmax in zip(_codes(layers, hyper), x_qmaxes)]
    acc_scales = [layer.x_scale * layer.w_scale for layer in layers]
    shifts = [following.x_scale / acc for following, acc in zip(layers[1:], acc_scales)]
    limit = 2.0**integer.MAX_LOGIT_EXPONENT
    return (jnp.all(jnp.stack([jnp.max(bound) < integer.ACC_LIMIT for bound in bounds]))
            & jnp.all(jnp.stack([jnp.min(shift) >= 2 for shift in shifts] or [jnp.bool_(True)]))
            & jnp.all((acc_scales[-1] <= limit) & (acc_scales[-1] >= 1 / limit)))


def _exponent(scale):
    """log2 of powers of two, int, exact: frexp gives them a mantissa of 0.5."""
    mantissa, exponent = np.frexp(np.asarray(scale))
    if (mantissa != 0.5).any():
        raise ValueError("free scales have no integers; set POWER_OF_TWO_SCALES = True")
    return exponent.astype(np.int64) - 1


def to_network(layers, hyper):
    """The integers to deploy.

    Args:
      layers: list of Layer, with scales; hyper: WEIGHT_BITS, ACTIVATION_BITS, INPUT.
    Returns:
      integer.Network of NumPy arrays.
    Raises:
      ValueError: free scales, or integers that float32 could round.
    """
    exponents = [_exponent(layer.x_scale * layer.w_scale)[0] for layer in layers]
    codes = [(np.asarray(w_q).astype(np.int8), np.asarray(b_q).astype(np.int32))
             for w_q, b_q in _codes_jitted()(layers, hyper)]
    shifts = [np.broadcast_to(_exponent(following.x_scale)[0] - exponent, b_q.shape)
              for following, exponent, (_, b_q) in zip(layers[1:], exponents, codes)]
    return integer.make_network([integer.Layer(*pair, shift)
                                 for pair, shift in zip(codes, [*shifts, None])],
                                hyper.WEIGHT_BITS, hyper.ACTIVATION_BITS, int(exponents[-1][0]),
                                hyper.INPUT)


def from_network(network):
    """Layers whose forward computes what a Network or FloatNetwork does.

    Returns:
      (list of Layer of NumPy arrays, the hyper that forward needs). Of a Network the float weights
      of training are gone; code * scale rounds to the same code. The scales between layers are of
      our choice, because only their ratio, the shift, is in the integers.
    """
    if isinstance(network, integer.FloatNetwork):
        return [Layer(*layer) for layer in network.layers], namedtuple("Hyper", "INPUT")(
            network.input)
    x_scale, layers = np.full((1, 1), quant.PIXEL_SCALE, np.float32), []
    for layer in network.layers:
        exponent = (np.array([network.logit_exponent + integer.PIXEL_BITS])
                    if layer.shift is None else -layer.shift.astype(np.int32))
        w_scale = np.ldexp(np.float32(1), exponent)[None]
        b = layer.b_q.astype(np.float32) * (x_scale * w_scale)[0]      # |b_q| < 2**24: exact
        layers.append(Layer(layer.w_q * w_scale, b, x_scale, w_scale))
    hyper = namedtuple("Hyper", "WEIGHT_BITS ACTIVATION_BITS INPUT COMPUTE")
    return layers, hyper(network.weight_bits, network.activation_bits, network.input, "float32")
