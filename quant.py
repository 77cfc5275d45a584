"""The quantizer: power-of-two scales, integer codes, fake quantization and its gradient.

Why powers of two: float32 holds every integer up to 2**24 exactly and multiplying by a power of
two is exact, so float32 arithmetic on fake-quantized numbers *is* integer arithmetic, shifted.
"""
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from integer import PIXEL_BITS, align, check_whole, code_range

PIXEL_SCALE = 2.0**-PIXEL_BITS
MIN_SCALE = 2.0**-20        # of an all-zero channel, so that no scale is zero
MAX_EXPONENT = 60.0         # of a learned scale, far above any in use: float32 holds it
BIAS_BITS = 25              # every bias below 2**24, where float32 is exact
COMPUTES = ("float32", "bfloat16")     # what products may be computed in
ACC_TARGET = 2.0**23        # calibration's bound on |accumulator|; a factor 2 is left for drift


def _operands(x, scale, bits, signed=True, name="scale"):
    """(x, scale, bits): float32 arrays of one rank and an int; ValueError unless they are that."""
    bits = check_whole(bits, 1, BIAS_BITS if signed else BIAS_BITS - 1, "bits")
    x, scale = (a if isinstance(a, jax.Array) else np.asarray(a) for a in (x, scale))
    if not (np.can_cast(x.dtype, float) and np.can_cast(scale.dtype, float)):
        raise ValueError(f"x of {x.dtype} and {name} of {scale.dtype} must be real numbers")
    return jnp.asarray(x, jnp.float32), jnp.asarray(align(scale, x, name), jnp.float32), bits


def quantize(x, scale, bits, signed=True):
    """The integer codes of x, round half to even, saturated; float32 that holds integers.

    Args:
      x: [I, O], or any rank with the channels last; numbers of any dtype, taken as float32.
      scale: [1, O] or [O] (per-channel), [1, 1] or a number: units of x per integer step.
      bits: grid width, 1..25, unsigned 1..24: float32 holds all of its codes.
      signed: narrow symmetric range, else 0..2**bits-1.
    Returns:
      float32, shape of x, integers in code_range(bits, signed); one bit gives only -1 and +1.
    Raises:
      ValueError: shapes that don't fit, no real numbers, or no such bits; one line.
    """
    x, scale, bits = _operands(x, scale, bits, signed)
    codes = x * (1 / scale)                     # exact for a power of two
    if signed and bits == 1:
        return jnp.where(jnp.isnan(codes), codes, jnp.where(codes >= 0, 1.0, -1.0))
    return jnp.clip(jnp.round(codes), *code_range(bits, signed))


def fake_quantize(x, scale, bits, signed=True):
    """Round x onto an integer grid and back; straight-through gradient.

    Args:
      x, scale, bits, signed: as for quantize, which raises the same.
    Returns:
      float32, shape of x, within scale/2 of x inside the grid's range, saturated beyond.
      Gradient: 1 where qmin - 0.5 < x/scale < qmax + 0.5, 0 beyond; with respect to scale the
      code less x/scale inside these bounds, the code beyond. Of signed x whose scale has a gradient
      too, 1 everywhere: a weight that it leaves outside could not come back by itself.
    Source: Jacob et al. 2018 (arXiv:1712.05877, sec. 3); Bengio et al. 2013 (arXiv:1308.3432);
      the scale's gradient: Esser et al. 2020 (LSQ, arXiv:1902.08153).
    """
    return _fake_quantize(*_operands(x, scale, bits, signed), signed)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _fake_quantize(x, scale, bits, signed):
    return quantize(x, scale, bits, signed) * scale


@partial(_fake_quantize.defjvp, symbolic_zeros=True)
def _fake_quantize_jvp(bits, signed, primals, tangents):
    x, scale = primals
    x_tangent, scale_tangent = tangents
    qmin, qmax = code_range(bits, signed)
    codes = x * (1 / scale)
    # Not the gradient of jnp.clip: that is 0.5 at the bounds, where every activation that rounds to
    # 0 is and, at 2 bits, every weight but those that round to 0.
    inside = (codes > qmin - 0.5) & (codes < qmax + 0.5)
    is_learned = not isinstance(scale_tangent, SymbolicZero)
    if isinstance(x_tangent, SymbolicZero):
        tangent = jnp.zeros_like(x)
    elif is_learned and signed:
        tangent = x_tangent                     # a weight outside could not come back by itself
    else:
        tangent = jnp.where(inside, x_tangent, 0.0)
    if is_learned:                              # a calibrated scale costs nothing
        rounded = quantize(x, scale, bits, signed)
        tangent += scale_tangent * jnp.where(inside, rounded - codes, rounded)
    return _fake_quantize(x, scale, bits, signed), tangent


def ceil_power_of_two(x):
    """The least power of two that is not below x; float32, any shape, exact.

    Args:
      x: float32, normal and positive. Carrying any mantissa bit into the exponent rounds it up;
        jnp.exp2 and ceil(log2(x)) are wrong at some powers, and frexp compiles ten times as slowly.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return lax.bitcast_convert_type(((bits + 0x007FFFFF) >> 23) << 23, jnp.float32)


def dot(x, w, x_scale, w_scale, bits=8, compute="float32"):
    """The only matrix product of training: x @ fake_quantize(w).

    Args:
      x: [B, I], float32, fake-quantized, or the codes of that: uint8, or int16 -255..255.
      w: float32 [I, O].
      x_scale: float32 [1, 1].
      w_scale: float32 [1, O] or [1, 1].
      bits: of a weight, 1..8.
      compute: "float32" or, with powers of two as scales, "bfloat16". The result has the same bits;
        bfloat16 rounds the incoming gradient to that type.
    Returns:
      float32 [B, O].
    """
    if compute not in COMPUTES:
        raise ValueError(f"COMPUTE = {compute!r} is none of {', '.join(COMPUTES)}; scripts decide "
                         "auto at their start")
    w, x_scale = fake_quantize(w, w_scale, bits), lax.stop_gradient(x_scale)
    if compute == "bfloat16":
        codes = x if jnp.issubdtype(x.dtype, jnp.integer) else x * (1 / x_scale)
        return narrow_dot(codes, w, w_scale) * x_scale
    if jnp.issubdtype(x.dtype, jnp.integer):
        x = x.astype(jnp.float32) * x_scale
    return x @ w


@jax.custom_vjp
def narrow_dot(x, w, w_scale):
    """x @ w of codes x, integers or float32 [B, I], and fake-quantized w; the bits of float32's.

    Gradient: products of the same operands in bfloat16, which holds each of them exactly, with the
    incoming gradient rounded to bfloat16; float32 sums.
    """
    return _narrow_forward(x, w, w_scale)[0]


def _narrow_forward(x, w, w_scale):
    narrow_x, narrow_w = _to_bfloat16(x), _to_bfloat16(w)
    # Integers take less room than what they become.
    saved = x if jnp.issubdtype(x.dtype, jnp.integer) else narrow_x, narrow_w, w_scale
    return lax.dot(narrow_x, narrow_w, preferred_element_type=jnp.float32), saved


def _narrow_backward(saved, grad):
    x, w, w_scale = saved
    grad = grad.astype(jnp.bfloat16)
    to_w = lax.dot(_transpose(x, w_scale), grad, preferred_element_type=jnp.float32)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return None, to_w, None
    # Not w.T: only a product written without a transposition keeps its operands narrow.
    to_x = lax.dot_general(grad, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return to_x, to_w, None


narrow_dot.defvjp(_narrow_forward, _narrow_backward)


def _to_bfloat16(codes):
    """Codes, integers or float32 and times a power of two, in bfloat16: cut off, as they need no
    rounding, which takes a CPU twice as long."""
    bits = lax.bitcast_convert_type(codes.astype(jnp.float32), jnp.uint32) >> 16
    return lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16)


def _transpose(x, scale):
    """x.T in bfloat16, on a CPU as an array of its own; scale: traced, positive.

    XLA folds a transposition into the product, and for the folded product its CPU backend has no
    bfloat16 kernel: it converts both operands to float32. A branch, always taken, keeps it apart;
    the other one only has the right shape.
    """
    def apart(x):
        return lax.cond(scale[0, 0] > 0, lambda: x.astype(jnp.bfloat16).T,
                        lambda: x.astype(jnp.bfloat16).reshape(x.shape[::-1]))
    return lax.platform_dependent(x, cpu=apart, default=lambda x: x.astype(jnp.bfloat16).T)


def compute_scale(x, bits=8, signed=True, per_channel=False, power_of_two=True, floor=MIN_SCALE):
    """The scale that covers x, or for narrow grids the one with the least squared error.

    Args:
      x: as for quantize.
      bits: of the grid. From 6 on the scale covers absmax; below, where covering the tail wastes
        the few codes, up to 5 halvings of that scale compete by squared error.
      signed: as for quantize.
      per_channel: one scale per channel, else one for all.
      power_of_two: exact integer arithmetic; False: absmax / qmax as it is.
      floor: the least scale allowed, of the shapes of a scale.
    Returns:
      float32 [1, O] or [1, 1], of the rank of x.
    """
    x, floor, bits = _operands(x, floor, bits, signed, "floor")
    axis = tuple(range(x.ndim - 1 if per_channel else x.ndim))
    floor = jnp.max(floor, axis, keepdims=True)
    absmax = jnp.max(jnp.abs(x), axis, keepdims=True)
    widest = jnp.maximum(absmax / code_range(bits, signed)[1], floor)
    if power_of_two:
        widest, floor = ceil_power_of_two(widest), ceil_power_of_two(floor)

    def squared_error(scale):
        return jnp.sum((x - quantize(x, scale, bits, signed) * scale) ** 2, axis, keepdims=True)

    best = widest
    for halvings in range(1, 7 - bits):
        scale = jnp.maximum(widest * 2.0**-halvings, floor)
        best = jnp.where(squared_error(scale) < squared_error(best), scale, best)
    return best


def weight_floor(w, b, x_scale, x_qmax):
    """The least scale of each channel's weights whose accumulators stay exact in float32.

    Args:
      w: float32 [I, O].
      b: float32 [O].
      x_scale: float32 [1, 1], of the layer's input.
      x_qmax: largest input code.
    Returns:
      float32 [1, O]: above it, x_qmax * sum|w_q| + |b_q| is about 2**23 at most.
    """
    worst = x_qmax * jnp.sum(jnp.abs(w), 0, keepdims=True) + jnp.abs(b)[None] * (1 / x_scale)
    return jnp.maximum(worst / ACC_TARGET, MIN_SCALE)


def activation_floor(acc_scale):
    """The least scale of a hidden layer's output, float32 [1, 1], from its accumulator's [1, O].

    The factor 2 keeps every requantizing shift at 1 or more.
    """
    return jnp.maximum(2 * jnp.max(acc_scale, keepdims=True), MIN_SCALE)


def _exponent_of(scale):
    """log2 of powers of two, exact; float32, any shape. frexp compiles ten times as slowly."""
    biased = lax.bitcast_convert_type(scale, jnp.int32) >> 23
    return (biased - 127).astype(jnp.float32)


def _power_of_two(exponent):
    """2**exponent of whole exponents, -126..127, float32, exact; jnp.exp2 is off by an ulp."""
    biased = exponent.astype(jnp.int32) + 127
    return lax.bitcast_convert_type(biased << 23, jnp.float32)


def learned_scale(exponent, floor, power_of_two, terms):
    """The scale of a learned exponent: 2**exponent, rounded to a power of two.

    Args:
      exponent: float32 [1, O] or [1, 1], log2 of the scale.
      floor: float32 [1, O] or [1, 1], the least scale allowed.
      power_of_two: False: free scales.
      terms: int, N * qmax for the N numbers that share the scale.
    Returns:
      float32, the shape of exponent. Gradient: of 2**exponent, straight through the rounding, times
      LSQ's 1 / sqrt(terms); 0 where the floor holds it. It is small: adamw moves by it, plain SGD
      hardly.
    Source: Esser et al. 2020 (LSQ, arXiv:1902.08153, sec. 2.2); log2 scales: Jain et al. 2020
      (TQT, arXiv:1903.08066).
    """
    if exponent.shape[1] == 1:                  # one scale for all channels
        floor = jnp.max(floor, 1, keepdims=True)
    least = _exponent_of(ceil_power_of_two(floor))
    # Not jnp.clip: half a gradient where it begins.
    exponent = jnp.where(exponent < least, least, jnp.minimum(exponent, MAX_EXPONENT))
    if power_of_two:
        scale = _power_of_two(lax.stop_gradient(jnp.round(exponent)))
    else:
        scale = lax.stop_gradient(jnp.exp2(exponent))
    slope = scale * (math.log(2) / math.sqrt(terms))
    return scale + slope * (exponent - lax.stop_gradient(exponent))     # + 0: exact
