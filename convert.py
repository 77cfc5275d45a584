"""Layers to the integers that are deployed, and back.

`hyper` is as in model.py.
"""
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import integer
import plan
import quant
from machine import runtime
from model import Layer, input_qmaxes


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
    x_qmaxes = input_qmaxes(layers, hyper)
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


def to_network(layers, hyper, zero=None):
    """The integers to deploy.

    Args:
      layers: list of Layer, with scales.
      hyper: LAYERS, WEIGHT_BITS, ACTIVATION_BITS.
      zero: int [F], the mean's code of each feature, where LAYERS begin with centring: the first
        bias takes off what training saw less.
    Returns:
      integer.Network of NumPy arrays.
    Raises:
      ValueError: free scales, or integers that float32 could round.
    """
    exponents = [_exponent(layer.x_scale * layer.w_scale)[0] for layer in layers]
    codes = [(np.asarray(w_q).astype(np.int8), np.asarray(b_q).astype(np.int32))
             for w_q, b_q in _codes_jitted()(layers, hyper)]
    steps = hyper.LAYERS
    if plan.is_centred(steps):
        steps = steps[1:]
        w_q, b_q = codes[0]
        inputs = np.resize(np.asarray(zero, np.int64), len(w_q))    # of each position: F is fastest
        folded = b_q - inputs @ w_q.astype(np.int64)
        if np.abs(folded).max() >= integer.ACC_LIMIT:
            raise ValueError("a centred bias leaves the integers that float32 holds")
        codes[0] = w_q, folded.astype(np.int32)
    shifts = [np.broadcast_to(_exponent(following.x_scale)[0] - exponent, b_q.shape)
              for following, exponent, (_, b_q) in zip(layers[1:], exponents, codes)]
    return integer.make_network([integer.Layer(*pair, shift)
                                 for pair, shift in zip(codes, [*shifts, None])],
                                hyper.WEIGHT_BITS, hyper.ACTIVATION_BITS, int(exponents[-1][0]),
                                steps)


def to_float_network(layers, hyper, zero=None):
    """What is saved of float32 Layers: an integer.FloatNetwork; zero as for to_network."""
    pairs, steps = [(layer.w, layer.b) for layer in layers], hyper.LAYERS
    if plan.is_centred(steps):
        steps, (w, b) = steps[1:], pairs[0]
        inputs = np.resize(np.float64(zero), len(w)) * quant.PIXEL_SCALE
        pairs[0] = w, (b - inputs @ np.float64(w)).astype(np.float32)
    return integer.FloatNetwork(tuple(pairs), steps)


class Known(NamedTuple):
    """What forward needs of hyper to run a deployed network."""
    LAYERS: tuple
    WEIGHT_BITS: int = 8
    ACTIVATION_BITS: int = 8
    COMPUTE: str = "float32"


def from_network(network):
    """Layers whose forward computes what a Network or FloatNetwork does.

    Returns:
      (list of Layer of NumPy arrays, the hyper that forward needs). Of a Network the float weights
      of training are gone; code * scale rounds to the same code. The scales between layers are of
      our choice, because only their ratio, the shift, is in the integers.
    """
    if isinstance(network, integer.FloatNetwork):
        return [Layer(*layer) for layer in network.layers], Known(network.steps)
    x_scale, layers = np.full((1, 1), quant.PIXEL_SCALE, np.float32), []
    for layer in network.layers:
        exponent = (np.array([network.logit_exponent + integer.PIXEL_BITS])
                    if layer.shift is None else -layer.shift.astype(np.int32))
        w_scale = np.ldexp(np.float32(1), exponent)[None]
        b = layer.b_q.astype(np.float32) * (x_scale * w_scale)[0]      # |b_q| < 2**24: exact
        layers.append(Layer(layer.w_q * w_scale, b, x_scale, w_scale))
    return layers, Known(network.steps, network.weight_bits, network.activation_bits)
