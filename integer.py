"""A deployed network: its integers, the proof that they are exact, and two engines that run them.

No float stands between the input bytes and the class. NumPy is enough; the JAX engine runs real
int8 dots. Both give the same integers.
"""
import functools
import math
from typing import NamedTuple

import numpy as np

import plan

ACC_LIMIT = 2**24               # float32 holds every smaller integer: the proof of exactness
MAX_SHIFT = 30                  # |acc| < 2**24, so from 26 on every shift gives 0
MAX_LOGIT_EXPONENT = 100        # either way: float32 then holds every logit
PIXEL_BITS = 8                  # an input's code is its byte


class Layer(NamedTuple):
    """acc = x_q @ w_q + b_q; then requantize(acc, shift), but in the last layer."""
    w_q: np.ndarray             # int8 [I, O]; of a convolution I is a patch: row, column, channel
    b_q: np.ndarray             # int32 [O], on the accumulator's grid
    shift: np.ndarray | None = None     # int8 [O], 1..MAX_SHIFT; None in the last layer


class Network(NamedTuple):
    """What is deployed. Made by make_network, which proves it exact."""
    layers: tuple               # of Layer, one for each step with weights
    weight_bits: int
    activation_bits: int        # of the codes between layers
    logit_exponent: int         # logits = accumulators of the last layer * 2**logit_exponent
    steps: tuple                # of Step


class FloatNetwork(NamedTuple):
    """What is saved of a float32 model, to compare with."""
    layers: tuple               # of (w float32 [I, O], b float32 [O])
    steps: tuple                # of Step


def code_range(bits, signed=True):
    """(qmin, qmax): symmetric narrow range for signed codes, 0..2**bits-1 for unsigned ones."""
    if not signed:
        return 0, 2**bits - 1
    qmax = max(1, 2 ** (bits - 1) - 1)          # 1 bit: the codes are -1 and +1
    return -qmax, qmax


def check_whole(value, least, most, name):
    """value as an int; ValueError unless it is a whole number in least..most."""
    if not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{name} {value!r} is not in {least}..{most}, a whole number")
    return int(value)


def exactly(values, dtype, name, kinds="iuf"):
    """An array or plain lists as an array of this integer dtype; ValueError if that changes one."""
    array = values if hasattr(values, "astype") else np.asarray(values)
    if array.dtype == dtype:
        return array
    array = np.asarray(array)
    with np.errstate(invalid="ignore"):         # of NaN, which equals nothing
        converted = array.astype(dtype) if array.dtype.kind in kinds else None
    if converted is None or not (converted == array).all():
        raise ValueError(f"{name} of {array.dtype} is not all {np.dtype(dtype)} numbers")
    return converted


def align(scale, x, name):
    """A scale or shift with the rank of x, channels last; ValueError unless it broadcasts to x."""
    shape = (1,) * (x.ndim - scale.ndim) + scale.shape
    if len(shape) != x.ndim or any(s not in (1, n) for s, n in zip(shape, x.shape)):
        raise ValueError(f"{name} {scale.shape} does not fit {x.shape}; give a number, [O], [1, O]")
    return scale.reshape(shape)


def input_qmax(count, activation_bits):
    """The largest input code of each of `count` layers: bytes first, activations then."""
    return [code_range(bits, signed=False)[1]
            for bits in [PIXEL_BITS] + [activation_bits] * (count - 1)]


def requantize(acc, shift, bits):
    """clip(round_half_even(acc * 2**-shift), 0, 2**bits - 1) in integers; NumPy or JAX arrays.

    Args:
      acc: int32 [B, O], |acc| < 2**24. Other integers, in lists too, will do.
      shift: int32 [1, O], [O] or a number, 1..30.
      bits: 1..24.
    Returns:
      int32 [B, O].
    Raises:
      ValueError: no integers, shapes that don't fit, a shift or bits out of range; one line.
    """
    qmin, qmax = code_range(check_whole(bits, 1, 24, "bits"), signed=False)
    acc = exactly(acc, np.int32, "acc")
    shift = align(exactly(shift, np.int32, "shift"), acc, "shift")
    if isinstance(shift, np.ndarray) and not ((shift > 0) & (shift <= MAX_SHIFT)).all():
        raise ValueError(f"shift is not all in 1..{MAX_SHIFT}")
    return plan.shift_half_even(acc, shift).clip(qmin, qmax)


def accumulator_bound(layer, x_qmax):
    """The largest |accumulator| that any input can cause, per channel: int64 [O]."""
    total = np.abs(layer.w_q).sum(0, dtype=np.int64)    # |codes| <= 127: int8 holds them
    return x_qmax * total + np.abs(layer.b_q.astype(np.int64))


def _arrays(i, layer):
    """Layer i of NumPy arrays, from arrays or lists of whole numbers of any dtype."""
    layer = Layer(*(values if values is None else np.asarray(exactly(values, dtype, f"layer {i}"))
                    for values, dtype in zip(layer, (np.int8, np.int32, np.int64))))
    if layer.w_q.ndim != 2 or any(array is not None and array.shape != layer.w_q.shape[1:]
                                  for array in layer[1:]):
        raise ValueError(f"layer {i} is not codes [I, O], a bias and a shift an output")
    return layer


def _check_layer(i, layer, x_qmax, weight_bits, last):
    """A Layer proved exact, its shifts int8; ValueError where float32 and integers could differ."""
    qmin, qmax = code_range(weight_bits)
    if (layer.shift is None) != last:
        raise ValueError(f"layer {i} {'needs no' if last else 'lacks its'} requantizing shift")
    if (layer.w_q.min() < qmin or layer.w_q.max() > qmax
            or (weight_bits == 1 and not layer.w_q.all())):
        raise ValueError(f"layer {i} holds a code that {weight_bits} bits do not have")
    bound = accumulator_bound(layer, x_qmax).max()
    if bound >= ACC_LIMIT:
        raise ValueError(f"layer {i} can reach |accumulator| {bound}, not below 2**24; "
                         "lower WEIGHT_BITS, ACTIVATION_BITS or the layer's inputs")
    if last:
        return layer
    if layer.shift.min() < 1:
        raise ValueError(f"layer {i} needs a requantizing shift of 1 or more, has "
                         f"{layer.shift.min()}")
    return layer._replace(shift=np.minimum(layer.shift, MAX_SHIFT).astype(np.int8))


def make_network(layers, weight_bits, activation_bits, logit_exponent, steps=None):
    """Prove that float32 and integer arithmetic agree on these layers, and put them together.

    Args:
      layers: Layers or tuples like them, of arrays or lists of whole numbers of any dtype; shifts
        above MAX_SHIFT are cut to it.
      weight_bits: 1..8.
      activation_bits: 1..8.
      logit_exponent: int.
      steps: as from plan.parse; None: every layer takes all outputs of the one before.
    Returns:
      Network.
    Raises:
      ValueError: shapes that don't chain, codes out of range, a shift below 1, or an accumulator
        that could reach 2**24; one line.
    """
    weight_bits = check_whole(weight_bits, 1, 8, "weight bits")
    activation_bits = check_whole(activation_bits, 1, 8, "activation bits")
    logit_exponent = check_whole(logit_exponent, -MAX_LOGIT_EXPONENT, MAX_LOGIT_EXPONENT,
                                 "logit exponent")
    layers = [_arrays(i, Layer(*layer)) for i, layer in enumerate(layers)]
    steps = steps or plan.perceptron([layer.w_q for layer in layers])
    shapes = [step.weights for step in steps if step.has_weights]
    found = [layer.w_q.shape for layer in layers]
    if found != shapes:
        raise ValueError(f"layers of {found} do not chain: {plan.to_line(steps)!r} takes {shapes}")
    x_qmaxes = input_qmax(len(layers), activation_bits)
    checked = tuple(_check_layer(i, layer, x_qmaxes[i], weight_bits, i + 1 == len(layers))
                    for i, layer in enumerate(layers))
    return Network(checked, weight_bits, activation_bits, logit_exponent, steps)


def _run(layers, steps, activation_bits, images, int_matmul):
    """Accumulators of the last layer: int32 [B, classes], by the given int_matmul(x_q, w_q)."""
    def apply(i, x_q):
        layer, rows = layers[i], x_q.reshape(-1, x_q.shape[-1])
        acc = int_matmul(rows, layer.w_q) + layer.b_q[None]
        if layer.shift is not None:
            shift = layer.shift[None].astype(np.int32)
            acc = requantize(acc, shift, activation_bits).astype(np.uint8)
        return acc.reshape(*x_q.shape[:-1], acc.shape[1])

    return plan.walk(steps, images, apply)


def _numpy_int_matmul(x_q, w_q):
    """uint8 [B, I] @ int8 [I, O] -> int32 [B, O]; exact, |acc| < 2**24."""
    return x_q.astype(np.int32) @ w_q.astype(np.int32)


def make_engine(network, engine="jax", compiler_options=None):
    """A function from uint8 images [B, I] to int32 accumulators [B, classes], as NumPy.

    Args:
      network: Network.
      engine: "jax" (jitted int8 dots) or "numpy".
      compiler_options: dict for jax.jit, or None.
    Returns:
      the function; any other integers 0..255 will do, [B, 28, 28] too; else it raises ValueError.
    """
    if engine not in ("jax", "numpy"):
        raise ValueError(f"engine {engine!r} is neither jax nor numpy")
    count, block = math.prod(network.steps[0].before), plan.block_size(network.steps)
    static = {"activation_bits": network.activation_bits, "steps": network.steps}
    if engine == "numpy":
        run = functools.partial(_run, network.layers, int_matmul=_numpy_int_matmul, **static)
    else:
        import jax
        options = tuple((compiler_options or {}).items())
        run = functools.partial(_jax_run(options), jax.device_put(network.layers), **static)

    def engine_of(images):
        images = exactly(images, np.uint8, "the array of images", kinds="iu")
        if images.ndim < 2 or math.prod(images.shape[1:]) != count:
            raise ValueError(f"images {images.shape} are not [B, {count}]")
        images = images.reshape(len(images), count)
        return np.concatenate([np.asarray(run(images=part))
                               for part in plan.blocks(images, block)])

    return engine_of


@functools.cache                # one function, so that networks of one shape compile once
def _jax_run(options):
    """_run by real int8 dots, jitted; options: items of the compiler's options."""
    import jax
    from jax import lax

    def int_matmul(x_q, w_q):
        # x_q - 128 as int8, because only int8 x int8 has a fast path; 128 * sum(w_q) gives it back.
        shifted = lax.bitcast_convert_type(x_q ^ np.uint8(128), np.int8)
        acc = lax.dot(shifted, w_q, preferred_element_type=np.int32)
        return acc + 128 * w_q.astype(np.int32).sum(0, keepdims=True)

    def run(layers, images, activation_bits, steps):
        return _run(layers, steps, activation_bits, images, int_matmul)

    return jax.jit(run, static_argnames=("activation_bits", "steps"),
                   compiler_options=dict(options) or None)


def logits(network, acc):
    """float32 [B, classes] from the last accumulators; exact: times a power of two."""
    return acc.astype(np.float32) * np.ldexp(np.float32(1), network.logit_exponent)


def kind(weight_bits=None, activation_bits=None):
    """W8A8, or float32: what a table calls a model of these widths."""
    return f"W{weight_bits}A{activation_bits}" if weight_bits else "float32"


def name(network):
    """kind of a Network or FloatNetwork."""
    return kind(*network[1:3]) if isinstance(network, Network) else kind()
