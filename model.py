"""The multilayer perceptron: init, forward, loss, calibration, and its integer codes."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import quant


def init(key, layer_sizes):
    """He-normal weights, zero biases.

    Args:
      key: a jax.random key; layer_sizes: ints (inputs, hidden widths, classes).
    Returns:
      list of (w float32 [I, O], b float32 [O]).
    Source: He et al. 2015 (arXiv:1502.01852).
    """
    shapes = list(zip(layer_sizes[:-1], layer_sizes[1:]))
    ends = np.cumsum([i * o for i, o in shapes])
    normal = jax.random.normal(key, (int(ends[-1]),))       # all at once: a third of the compiling
    return [(part.reshape(shape) * (2 / shape[0]) ** 0.5, jnp.zeros(shape[1]))
            for part, shape in zip(jnp.split(normal, ends[:-1]), shapes)]


def pixels(images):
    """uint8 [B, I] bytes to float32 in [0, 1): code times PIXEL_SCALE, exact."""
    return images.astype(jnp.float32) * quant.PIXEL_SCALE


@jax.custom_vjp
def _bfloat16_matmul(x, w):
    """x @ w for fake-quantized operands, the same bits from bfloat16 ones; float32 gradient."""
    return lax.dot(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16),
                   preferred_element_type=jnp.float32)


_bfloat16_matmul.defvjp(lambda x, w: (_bfloat16_matmul(x, w), (x, w)),
                        lambda saved, grad: (grad @ saved[1].T, saved[0].T @ grad))


def _layer(x, w, b, scales, spec, first):
    """acc = x @ w + b, float32 [B, O]; all three fake-quantized when scales are given."""
    b = b[None]
    if scales is not None:
        x_scale, w_scale = scales
        if not first:                           # pixels are codes already
            x = quant.fake_quantize(x, x_scale, spec.activation_bits, False)
        w = quant.fake_quantize(w, w_scale, spec.weight_bits)
        b = quant.fake_quantize(b, x_scale * w_scale, quant.BIAS_BITS)
        if spec.compute_dtype == "bfloat16":
            return _bfloat16_matmul(x, w) + b
    return x @ w + b


def forward(params, images, scales=None, spec=None):
    """Logits of a batch.

    Args:
      params: list of (w, b) as from init.
      images: uint8 [B, I].
      scales: as from calibrate: fake-quantized forward, whose logits are the integer-only
        engine's bit for bit; None: float32 forward.
    Returns:
      float32 [B, classes].
    """
    x = pixels(images)
    for i, (w, b) in enumerate(params):
        x = x if i == 0 else jax.nn.relu(x)
        x = _layer(x, w, b, None if scales is None else scales[i], spec, first=i == 0)
    return x


predict = jax.jit(forward, static_argnames="spec")


def loss(params, images, labels, scales=None, spec=None):
    """Mean cross-entropy of one batch in nats; images uint8 [B, I], labels uint8 [B]."""
    log_probabilities = jax.nn.log_softmax(forward(params, images, scales, spec))
    picked = jnp.take_along_axis(log_probabilities, labels[:, None].astype(jnp.int32), axis=1)
    return -jnp.mean(picked)


def calibrate(params, images, spec):
    """Static-range scales, layer by layer, each seeing the quantized output of those before it.

    Args:
      params: list of (w, b); images: uint8 [N, I], from the train split; spec: quant.Spec.
    Returns:
      list of (x_scale float32 [1, 1], w_scale float32 [1, O] or [1, 1]), one per layer.
    """
    x, x_scale, scales = pixels(images), jnp.full((1, 1), quant.PIXEL_SCALE), []
    for i, (w, b) in enumerate(params):
        first, last = i == 0, i == len(params) - 1
        x_qmax = quant.code_range(8 if first else spec.activation_bits, signed=False)[1]
        w_scale = quant.weight_scale(w, b, x_scale, x_qmax, spec, spec.per_channel and not last)
        scales.append((x_scale, w_scale))
        if not last:
            x = jax.nn.relu(_layer(x, w, b, scales[-1], spec, first))
            x_scale = quant.activation_scale(x, x_scale * w_scale, spec)
    return scales


def _exponent(scale):
    """log2 of powers of two, int8, exact: frexp gives a mantissa of 0.5."""
    return (np.frexp(np.asarray(scale))[1] - 1).astype(np.int8)


@partial(jax.jit, static_argnames="spec")       # one program: op by op, compiling takes 3 s
def _codes(params, scales, spec):
    """The weight and bias codes of each layer, float32 that holds integers."""
    return [(quant.quantize(w, w_scale, spec.weight_bits),
             quant.quantize(b[None], x_scale * w_scale, quant.BIAS_BITS)[0])
            for (w, b), (x_scale, w_scale) in zip(params, scales)]


def quantize(params, scales, spec):
    """The integers to deploy.

    Args:
      params, scales: as from init and calibrate; spec: quant.Spec, powers of two.
    Returns:
      list of dicts of NumPy arrays, one per layer, named as in the weights file: w_q int8 [I, O],
      w_exponent int8 [O] or [1], x_exponent int8 [], b_q int32 [O].
    """
    return [{"w_q": np.asarray(w_q).astype(np.int8), "w_exponent": _exponent(w_scale)[0],
             "x_exponent": _exponent(x_scale)[0, 0], "b_q": np.asarray(b_q).astype(np.int32)}
            for (w_q, b_q), (x_scale, w_scale) in zip(_codes(params, scales, spec), scales)]
