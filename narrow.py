"""The product of 8-bit codes in bfloat16 or int8, and its gradient in bfloat16: quant.dot's, quickly.
"""
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def _bfloat16(codes):
    """Codes, uint8 or float32 and times a power of two, in bfloat16: cut off, they need no rounding,
    which takes a CPU twice as long."""
    bits = lax.bitcast_convert_type(codes.astype(jnp.float32), jnp.uint32) >> 16
    return lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16)


def transposed(x, scale):
    """x.T in bfloat16, on a CPU as an array of its own; scale: traced, positive.

    XLA folds a transposition into the product, and for the folded product its CPU backend has no
    bfloat16 kernel: it converts both operands to float32. A branch, always taken, keeps it apart;
    the other one only has the right shape.
    """
    def apart(x):
        return lax.cond(scale[0, 0] > 0, lambda: x.astype(jnp.bfloat16).T,
                        lambda: x.astype(jnp.bfloat16).reshape(x.shape[::-1]))
    return lax.platform_dependent(x, cpu=apart, default=lambda x: x.astype(jnp.bfloat16).T)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def dot(x, w, w_scale, compute):
    """x @ w of codes x, uint8 or float32 [B, I], and fake-quantized w; the bits of float32's.

    Gradient: products of the same operands in bfloat16, which holds each of them exactly, with the
    incoming gradient rounded to bfloat16; float32 sums. The same bits for both types.
    """
    return _forward(x, w, w_scale, compute)[0]


def _forward(x, w, w_scale, compute):
    narrow_x, narrow_w = _bfloat16(x), _bfloat16(w)
    saved = x if x.dtype == jnp.uint8 else narrow_x, narrow_w, w_scale
    if compute == "bfloat16":
        return lax.dot(narrow_x, narrow_w, preferred_element_type=jnp.float32), saved
    # Codes 0..255 less 128, so that they are signed; what that takes from each channel is the
    # product of a row of zeros.
    x_q = (x.astype(jnp.float32) - 128).astype(jnp.int8)
    x_q = jnp.pad(x_q, ((0, 1), (0, 0)), constant_values=-128)
    acc = lax.dot(x_q, (w * (1 / w_scale)).astype(jnp.int8), preferred_element_type=jnp.int32)
    return (acc[:-1] - acc[-1:]).astype(jnp.float32) * w_scale, saved


def _backward(compute, saved, grad):
    x, w, w_scale = saved
    grad = grad.astype(jnp.bfloat16)
    # Not w.T: only a product written without a transposition keeps its operands narrow.
    to_x = lax.dot_general(grad, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    to_w = lax.dot(transposed(x, w_scale), grad, preferred_element_type=jnp.float32)
    return None if x.dtype == jnp.uint8 else to_x, to_w, None


dot.defvjp(_forward, _backward)
