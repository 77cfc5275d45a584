"""model: logits against float64, gradients against differences, integers against int64."""
import jax
import numpy as np
import pytest

import checkpoint
import config
import integer
import model
import oracle
import stats
from quant import Spec

NET, RAGGED, WIDE = (784, 256, 128, 10), (784, 17, 10), (784, 4096, 10)


def make_params(rng, sizes):
    """He-normal weights, and biases that are not zero, without the seconds that init compiles."""
    return [(rng.normal(0, (2 / i) ** 0.5, (i, o)).astype(np.float32),
             rng.normal(0, 0.1, o).astype(np.float32)) for i, o in zip(sizes, sizes[1:])]


@pytest.fixture(scope="module")
def initial():
    return model.init(jax.random.key(3), config.load([]).LAYER_SIZES)


def test_default_network_has_235146_float32_parameters(initial):
    assert sum(a.size for a in jax.tree.leaves(initial)) == 235_146
    assert {a.dtype for a in jax.tree.leaves(initial)} == {np.dtype(np.float32)}


def test_init_is_he_normal(initial):
    for w, b in jax.tree.map(np.asarray, initial):
        assert not b.any()
        # 5 standard errors of the mean and of the standard deviation of w.size normal numbers.
        std = (2 / w.shape[0]) ** 0.5
        assert abs(w.mean()) < 5 * std / w.size**0.5
        assert abs(w.std() / std - 1) < 5 / (2 * w.size) ** 0.5


def test_init_depends_on_the_key_alone_and_no_two_layers_share_it(initial):
    again, other = (model.init(jax.random.key(seed), NET) for seed in (3, 4))
    jax.tree.map(np.testing.assert_array_equal, initial, again)
    weights = [np.asarray(w) for w, _ in initial]
    assert all((w != np.asarray(v)).mean() > 0.99 for w, (v, _) in zip(weights, other))
    # Layers drawn from one key would start with the same numbers, up to their He scales.
    first = [w.ravel()[:10] * w.shape[0] ** 0.5 for w in weights]
    assert not any(np.allclose(a, b) for a, b in zip(first, first[1:]))


def test_pixels_are_exact_codes_on_their_grid():
    images = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(model.pixels(images)[0] * 256, np.arange(256))


@pytest.mark.parametrize("sizes", [NET, (784, 10), RAGGED])
def test_float_forward_equals_float64(rng, mnist, sizes):
    params, images = make_params(rng, sizes), mnist[1].images[:50]
    # float32 sums of 784 terms of size 0.1: about 784**0.5 roundings of 1e-8.
    np.testing.assert_allclose(model.forward(params, images), oracle.forward(params, images),
                               rtol=1e-5, atol=1e-5)


def test_loss_equals_float64_and_stats(rng, mnist):
    params, images, labels = make_params(rng, NET), mnist[1].images[:128], mnist[1].labels[:128]
    scales = model.calibrate(params, images, Spec())
    for quantized in ((), (scales, Spec())):
        logits = model.forward(params, images, *quantized)
        expected = oracle.loss(logits, labels)
        # float32 logits of size 3 to 1e-7 relative, averaged over 128 examples.
        loss = model.loss(params, images, labels, *quantized)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(stats.evaluate(logits, labels)[0], expected, rtol=1e-12)


def test_float_gradient_equals_differences_in_float64(rng, mnist):
    sizes = (784, 12, 8, 10)
    params, images, labels = make_params(rng, sizes), mnist[0].images[:16], mnist[0].labels[:16]
    arrays = [np.array(a, np.float64) for a in jax.tree.leaves(params)]
    gradients = jax.tree.leaves(jax.device_get(jax.grad(model.loss)(params, images, labels)))
    for array, gradient in zip(arrays, gradients):
        # The entries of most weight, so that no pixel that is always blank is asked.
        largest = np.argsort(-np.abs(gradient).ravel())[:10]
        for index in (np.unravel_index(i, array.shape) for i in largest):
            losses, centre, step = [], array[index], 1e-6
            for side in (step, -step):
                array[index] = centre + side
                logits = oracle.forward(list(zip(arrays[::2], arrays[1::2])), images)
                losses.append(oracle.loss(logits, labels))
            array[index] = centre
            # Difference of float64 losses: 1e-16 / 1e-6; the float32 gradient: some 1e-7 relative.
            np.testing.assert_allclose(gradient[index], (losses[0] - losses[1]) / (2 * step),
                                       rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bits", [2, 8])
def test_quantized_gradient_is_the_float_gradient_at_the_rounded_weights(rng, mnist, bits):
    (w, b), = params = make_params(rng, (784, 10))
    images, labels, spec = mnist[0].images[:128], mnist[0].labels[:128], Spec(weight_bits=bits)
    (x_scale, w_scale), = scales = jax.device_get(model.calibrate(params, images, spec))
    layer, = model.quantize(params, scales, spec)
    rounded = [tuple(np.float32(a) for a in (layer["w_q"] * w_scale,
                                             layer["b_q"] * (x_scale * w_scale)[0]))]
    gradient, = jax.device_get(jax.grad(model.loss)(params, images, labels, scales, spec))
    straight, = jax.device_get(jax.grad(model.loss)(rounded, images, labels))
    inside = np.abs(w / w_scale) < oracle.code_range(bits, True)[1] + 0.5
    assert inside.any() and (bits == 8 or not inside.all())
    np.testing.assert_allclose(gradient[0], straight[0] * inside, atol=1e-7)
    np.testing.assert_allclose(gradient[1], straight[1], atol=1e-7)


@pytest.mark.parametrize("spec, sizes, batches", [
    (Spec(), NET, (1, 7, 128)), (Spec(4, 8), NET, (7,)), (Spec(2, 4), NET, (7,)),
    (Spec(1, 1), NET, (7,)), (Spec(8, 8, per_channel=False), NET, (7,)),
    (Spec(3, 2, per_channel=False), NET, (7,)), (Spec(1, 8), RAGGED, (1, 128)),
    (Spec(5, 6), (784, 10), (7,)), (Spec(compute_dtype="bfloat16"), NET, (7,)),
    (Spec(2, 3, compute_dtype="bfloat16"), NET, (128,))])
def test_training_logits_are_the_integer_accumulators(rng, mnist, spec, sizes, batches):
    params, images = make_params(rng, sizes), mnist[1].images[:128]
    scales = model.calibrate(params, mnist[0].images[:128], spec)
    layers = model.quantize(params, scales, spec)
    expected = oracle.run(layers, spec.activation_bits, images) * integer.logit_scale(layers)
    assert np.ptp(expected, axis=0).all()       # no logit is a constant
    for batch in batches:
        logits = model.predict(params, images[:batch], scales, spec)
        np.testing.assert_array_equal(logits, expected[:batch])


ADVERSARIES = {
    "all equal and large": lambda w, b: (np.full_like(w, 1e3), b),
    "all equal and tiny": lambda w, b: (np.full_like(w, 1e-4), b),
    "all equal and negative": lambda w, b: (np.full_like(w, -1.0), b),
    "huge bias": lambda w, b: (w, b + 1e6),
    "huge negative bias": lambda w, b: (w, b - 1e6),
    "one huge weight": lambda w, b: (np.where(np.arange(w.size).reshape(w.shape) == 3, 1e4, w), b),
    "all zero": lambda w, b: (np.zeros_like(w), np.zeros_like(b)),
}


@pytest.mark.parametrize("damage", ADVERSARIES.values(), ids=ADVERSARIES)
@pytest.mark.parametrize("spec, sizes", [
    (Spec(), NET), (Spec(8, 8, per_channel=False), WIDE), (Spec(1, 8), WIDE),
    (Spec(2, 4), NET)])
def test_calibration_keeps_every_accumulator_exact(rng, mnist, tmp_path, damage, spec, sizes):
    images = mnist[0].images[:128]
    params = [tuple(np.asarray(a, np.float32) for a in damage(np.asarray(w), np.asarray(b)))
              for w, b in make_params(rng, sizes)]
    scales = model.calibrate(params, images, spec)
    layers = model.quantize(params, scales, spec)
    for i, layer in enumerate(layers):
        qmax = 2 ** (8 if i == 0 else spec.activation_bits) - 1
        worst = (qmax * np.abs(layer["w_q"].astype(np.int64)).sum(0)
                 + np.abs(layer["b_q"].astype(np.int64)))
        assert worst.max() < 2**24
    expected = oracle.run(layers, spec.activation_bits, images[:5]) * integer.logit_scale(layers)
    np.testing.assert_array_equal(model.predict(params, images, scales, spec)[:5], expected)
    meta = {key: getattr(spec, key) for key in ("weight_bits", "activation_bits", "per_channel")}
    checkpoint.save(tmp_path / "w.npz", layers, meta)   # proves the bound again, and every shift
    checkpoint.load(tmp_path / "w.npz")


def test_calibrated_activation_grid_covers_what_it_saw(rng, mnist):
    params, images = make_params(rng, NET), mnist[0].images[:128]
    scales = model.calibrate(params, images, Spec())
    x = images / np.float32(256)
    for (w, b), (x_scale, _) in zip(params, scales[1:]):
        x = np.maximum(x @ w + b, 0)
        # Least power of two that covers; the quantized activations differ by a few percent.
        assert 0.9 * x.max() < 255 * float(x_scale[0, 0]) < 2.2 * x.max()


def test_quantize_gives_the_arrays_of_a_weights_file(rng, mnist):
    params = make_params(rng, NET)
    for per_channel in (True, False):
        spec = Spec(per_channel=per_channel)
        layers = model.quantize(params, model.calibrate(params, mnist[0].images[:128], spec), spec)
        for i, (layer, inputs, outputs) in enumerate(zip(layers, NET, NET[1:])):
            assert {key: (array.dtype.name, array.shape) for key, array in layer.items()} == {
                "w_q": ("int8", (inputs, outputs)), "b_q": ("int32", (outputs,)),
                "w_exponent": ("int8", (outputs if per_channel and i < 2 else 1,)),
                "x_exponent": ("int8", ())}
