"""Integer-only inference from integer codes: no float between the pixel bytes and the class.

NumPy needs nothing else; the JAX engine runs real int8 dots. Both give the same integers.
"""
import numpy as np


def prepare(layers):
    """The arrays that inference reads, from the layers of a weights file.

    Args:
      layers: list of dicts as from model.quantize or checkpoint.load.
    Returns:
      list of (w_q int8 [I, O], b_q int32 [1, O], shift int32 [1, O] or [1, 1]); the last layer's
      shift is None.
    """
    prepared = []
    for layer, following in zip(layers, [*layers[1:], None]):
        shift = None
        if following is not None:
            shift = (following["x_exponent"].astype(np.int32) - layer["x_exponent"]
                     - layer["w_exponent"])[None]
            # |acc| < 2**24, so from 26 on every shift gives 0: int32 needs no longer ones.
            shift = np.minimum(shift, 30)
        prepared.append((layer["w_q"], layer["b_q"][None], shift))
    return prepared


def requantize(acc, shift, bits):
    """clip(round_half_even(acc * 2**-shift), 0, 2**bits - 1) in integers; NumPy or JAX arrays.

    Args:
      acc: int32 or int64 [B, O], |acc| < 2**24; shift: int32 [1, O] or [1, 1], 1..30.
    Returns:
      [B, O] of acc's dtype.
    """
    codes = (acc + (1 << (shift - 1)) - 1 + ((acc >> shift) & 1)) >> shift
    return codes.clip(0, 2**bits - 1)


def run(prepared, x_q, bits, int_matmul):
    """Accumulators of the last layer: int32 [B, classes], by the given int_matmul(x_q, w_q)."""
    for w_q, b_q, shift in prepared[:-1]:
        x_q = requantize(int_matmul(x_q, w_q) + b_q, shift, bits).astype(np.uint8)
    w_q, b_q, _ = prepared[-1]
    return int_matmul(x_q, w_q) + b_q


def numpy_int_matmul(x_q, w_q):
    """uint8 [B, I] @ int8 [I, O] -> int32 [B, O]; exact, |acc| < 2**24."""
    return x_q.astype(np.int32) @ w_q.astype(np.int32)


def make_engine(layers, bits, engine="jax"):
    """A function from uint8 images [B, I] to int32 accumulators [B, classes], as NumPy.

    Args:
      layers: list of dicts as from checkpoint.load; bits: of the activations;
      engine: "jax" (jitted int8 dots) or "numpy".
    """
    prepared = prepare(layers)
    if engine == "numpy":
        return lambda images: run(prepared, images, bits, numpy_int_matmul)

    import jax
    from jax import lax

    def int_matmul(x_q, w_q):
        # x_q - 128 as int8, because only int8 x int8 has a fast path; 128 * sum(w_q) gives it back.
        shifted = lax.bitcast_convert_type(x_q ^ np.uint8(128), np.int8)
        acc = lax.dot(shifted, w_q, preferred_element_type=np.int32)
        return acc + 128 * w_q.astype(np.int32).sum(0, keepdims=True)

    jitted = jax.jit(lambda prepared, images: run(prepared, images, bits, int_matmul))
    on_device = jax.device_put(prepared)
    return lambda images: np.asarray(jitted(on_device, images))


def logit_scale(layers):
    """Units of logits per step of the last accumulator: a power of two, float32."""
    exponent = int(layers[-1]["x_exponent"]) + int(layers[-1]["w_exponent"][0])
    return np.ldexp(np.float32(1), exponent)
