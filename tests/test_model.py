"""model: logits against float64, gradients against differences, integers against an oracle."""
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import example, given, strategies as st

import convert
import integer
import model
import oracle
import plan
import predict
from conftest import IMAGE, make_hyper, rows_of

NET, RAGGED, WIDE = "256 128", "17", "4096"
CONV = "conv5x4/2 conv3x5 max2 6"       # 24 x 24, 5 channels of 5 x 5, then all of them to 6


def bits_hyper(weight_bits=8, activation_bits=8, LAYERS=NET, **changes):
    """make_hyper by widths."""
    return make_hyper(LAYERS, WEIGHT_BITS=weight_bits, ACTIVATION_BITS=activation_bits, **changes)


W8A8, FLOAT = bits_hyper(), bits_hyper(QAT_ENABLE=False)


def _gradient(layers, images, labels, hyper):
    """As in a step of training: calibrated scales have none."""
    return jax.grad(lambda moved: model.loss(
        model.to_layers(model.complete(moved, layers), hyper), images, labels, hyper))(
            model.trainable(layers))


# Jitted: op by op, each shape compiles many small programs.
is_exact, compute_loss, gradient_of = (jax.jit(function, static_argnames="hyper")
                                       for function in (convert.is_exact, model.loss, _gradient))


def make_layers(rng, hyper):
    """He-normal weights, and biases that are not zero, without the seconds that init compiles."""
    shapes = [step.weights for step in hyper.LAYERS if step.has_weights]
    return [model.Layer(rng.normal(0, (2 / i) ** 0.5, (i, o)).astype(np.float32),
                        rng.normal(0, 0.1, o).astype(np.float32)) for i, o in shapes]


def images_for(rng, mnist, hyper, count=128):
    """uint8 [count, I]: MNIST's where they fit, else random."""
    inputs = plan.inputs(hyper.LAYERS)
    if inputs == 784:
        return mnist.test.images[:count]
    return rng.integers(0, 256, (count, inputs), dtype=np.uint8)


def expected_logits(network, images):
    """Float64 logits from the oracle."""
    return oracle.run(network, images) * 2.0**network.logit_exponent


@pytest.fixture(scope="module")
def initial():
    """What three keys give: 3, 3 again and 4, by one compiled program."""
    init = jax.jit(lambda key: model.init(key, W8A8))
    return [jax.device_get(init(jax.random.key(seed))) for seed in (3, 3, 4)]


def test_default_network_has_235146_float32_parameters(initial):
    parameters = [array for layer in initial[0] for array in layer[:2]]
    assert sum(array.size for array in parameters) == 235_146
    assert {array.dtype for array in jax.tree.leaves(initial)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("changes, channels", [
    ({}, [256, 128, 1]), ({"PER_CHANNEL": False}, [1, 1, 1]), ({"QAT_ENABLE": False}, None)])
def test_init_has_the_scales_that_calibrate_replaces(rng, changes, channels):
    """One scale in the last layer, so that argmax reads integers; none in float32."""
    hyper = bits_hyper(**changes)
    layers = jax.eval_shape(lambda key: model.init(key, hyper), jax.random.key(0))
    if channels is None:
        assert all(layer.x_scale is None and layer.w_scale is None for layer in layers)
        return
    images = jax.ShapeDtypeStruct((8, 784), np.uint8)
    calibrated = jax.eval_shape(lambda *a: model.calibrate(*a, hyper), layers, images)
    assert jax.tree.structure(calibrated) == jax.tree.structure(layers)
    for layer, other, count in zip(layers, calibrated, channels):
        assert layer.x_scale.shape == other.x_scale.shape == (1, 1)
        assert layer.w_scale.shape == other.w_scale.shape == (1, count)


def test_init_is_he_normal(initial):
    for w, b, *_ in initial[0]:
        assert not b.any()
        # 5 standard errors of the mean and of the standard deviation of w.size normal numbers.
        std = (2 / w.shape[0]) ** 0.5
        assert abs(w.mean()) < 5 * std / w.size**0.5
        assert abs(w.std() / std - 1) < 5 / (2 * w.size) ** 0.5


def test_init_depends_on_the_key_alone_and_no_two_layers_share_it(initial):
    first, again, other = initial
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert all((layer.w != another.w).mean() > 0.99 for layer, another in zip(first, other))
    # Layers drawn from one key would start with the same numbers, up to their He scales.
    starts = [layer.w.ravel()[:10] * layer.w.shape[0] ** 0.5 for layer in first]
    assert not any(np.allclose(a, b) for a, b in zip(starts, starts[1:]))


def test_pixels_are_exact_codes_on_their_grid():
    images = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(model.pixels(images)[0] * 256, np.arange(256))


@pytest.mark.slow
def test_init_of_a_convolution_counts_its_patch():
    hyper = make_hyper("mean2 conv3x400 max2 8")
    first, *_ = jax.jit(lambda key: model.init(key, hyper))(jax.random.key(0))
    assert first.w.shape == (9, 400) and first.w_scale.shape == (1, 400)
    # 5 standard errors of the standard deviation of 3,600 normal numbers.
    assert abs(np.std(first.w) / (2 / 9) ** 0.5 - 1) < 5 / (2 * 3_600) ** 0.5


@pytest.mark.parametrize("line", [NET, "", RAGGED, CONV, "crop20 mean2 conv2x3/3 max2"])
def test_float_forward_equals_float64(rng, mnist, line):
    hyper = make_hyper(line, QAT_ENABLE=False)
    layers, images = make_layers(rng, hyper), mnist.test.images[:50]
    # float32 sums of 784 terms of size 0.1: about 784**0.5 roundings of 1e-8.
    np.testing.assert_allclose(model.predict(layers, images, hyper),
                               oracle.forward(layers, images, hyper.LAYERS), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_loss_equals_float64_and_stats(rng, mnist):
    layers, (images, labels) = make_layers(rng, W8A8), rows_of(mnist.test, 0, 128)
    for quantized, share in ((layers, 0), (model.calibrate(layers, images, W8A8), 0.3)):
        logits = np.asarray(model.predict(quantized, images, W8A8), np.float64)
        targets = (1 - share) * np.eye(10)[labels] + share / 10
        log_sums = np.log(np.exp(logits).sum(1, keepdims=True))
        # float32 logits of size 3 to 1e-7 relative, averaged over 128 examples.
        np.testing.assert_allclose(
            compute_loss(quantized, images, labels, bits_hyper(LABEL_SMOOTHING=share)),
            (targets * (log_sums - logits)).sum(1).mean(), rtol=1e-6)
        np.testing.assert_allclose(predict.score(np.float32(logits), labels)[0],
                                   oracle.loss(logits, labels), rtol=1e-12)


@pytest.mark.parametrize("line", ["12 8", "conv5x3/2 max2 conv2x4 6", "mean2 conv3x4/3 conv1x3"])
@pytest.mark.slow
def test_float_gradient_equals_differences_in_float64(rng, mnist, line):
    hyper = make_hyper(line, QAT_ENABLE=False)
    layers = make_layers(rng, hyper)
    images, labels = mnist.train.images[:16], mnist.train.labels[:16]
    arrays = [np.array(a, np.float64) for a in jax.tree.leaves(layers)]
    gradients = jax.tree.leaves(jax.device_get(gradient_of(layers, images, labels, hyper)))
    for array, gradient in zip(arrays, gradients, strict=True):
        # The entries of most weight, so that no pixel that is always blank is asked.
        largest = np.argsort(-np.abs(gradient).ravel())[:10]
        for index in (np.unravel_index(i, array.shape) for i in largest):
            losses, centre, step = [], array[index], 1e-6
            for side in (step, -step):
                array[index] = centre + side
                logits = oracle.forward(list(zip(arrays[::2], arrays[1::2])), images,
                                        hyper.LAYERS)
                losses.append(oracle.loss(logits, labels))
            array[index] = centre
            # Difference of float64 losses: 1e-16 / 1e-6; the float32 gradient: some 1e-7 relative.
            np.testing.assert_allclose(gradient[index], (losses[0] - losses[1]) / (2 * step),
                                       rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.slow
def test_quantized_gradient_is_the_float_gradient_at_the_rounded_weights(rng, mnist, bits):
    hyper = bits_hyper(bits, LAYERS="")
    plain, = make_layers(rng, hyper)
    images, labels = mnist.train.images[:128], mnist.train.labels[:128]
    layer, = layers = jax.device_get(model.calibrate([plain], images, hyper))
    rounded = convert.from_network(convert.to_network(layers, hyper))[0][0]
    gradient, = jax.device_get(gradient_of(layers, images, labels, hyper))
    straight, = jax.device_get(gradient_of([model.Layer(rounded.w, rounded.b)], images, labels,
                                           hyper))
    inside = np.abs(layer.w / layer.w_scale) < oracle.code_range(bits, True)[1] + 0.5
    assert inside.any() and (bits == 8 or not inside.all())
    np.testing.assert_allclose(gradient.w, straight.w * inside, atol=1e-7)
    np.testing.assert_allclose(gradient.b, straight.b, atol=1e-7)
    assert gradient.x_scale is gradient.w_scale is None     # calibrated, not learned


def expected_gradient(layers, x, labels, hyper):
    """Backpropagation in float64 by hand, with LSQ's gradient of the exponents, for two layers.

    Args:
      layers: with exponents that no bound holds; x: float64 [B, I], pixels.
    """
    def quantize(x, scale, bits, signed=True):
        """(codes * scale, its slope in x, its slope in the scale)."""
        v, (qmin, qmax) = x / scale, oracle.code_range(bits, signed)
        inside, codes = (v > qmin - 0.5) & (v < qmax + 0.5), oracle.quantize(x, scale, bits, signed)
        return codes * scale, inside, np.where(inside, codes - v, codes)

    def by_exponent(gradient, scale, numbers, qmax):
        return gradient * scale * np.log(2) / (numbers * qmax) ** 0.5

    (w1, b1, _, s1), (w2, b2, sh, s2) = (
        (layer.w, layer.b, *(2 ** np.rint(np.float64(e)) for e in layer[2:])) for layer in layers)
    qmax, qmax_h = oracle.code_range(hyper.WEIGHT_BITS, True)[1], 2**hyper.ACTIVATION_BITS - 1
    (q1, _, by_s1), (q2, _, by_s2) = (
        quantize(np.float64(w), s, hyper.WEIGHT_BITS) for w, s in ((w1, s1), (w2, s2)))
    acc = x @ q1 + np.rint(b1 / (s1 / 256)) * (s1 / 256)
    h, in_h, by_sh = quantize(np.maximum(acc, 0), sh, hyper.ACTIVATION_BITS, False)
    scores = np.exp(h @ q2 + np.rint(b2 / (sh * s2)) * (sh * s2))
    g2 = (scores / scores.sum(1, keepdims=True) - np.eye(10)[labels]) / len(labels)
    gh = g2 @ q2.T
    g1 = gh * in_h * (acc > 0)
    g_q1, g_q2 = x.T @ g1, h.T @ g2
    return [model.LearnedLayer(
                g_q1, g1.sum(0), np.zeros((1, 1)),
                by_exponent((g_q1 * by_s1).sum(0, keepdims=True), s1, len(w1), qmax)),
            model.LearnedLayer(
                g_q2, g2.sum(0), by_exponent((gh * by_sh).sum(keepdims=True), sh, len(w2), qmax_h),
                by_exponent((g_q2 * by_s2).sum(keepdims=True), s2, w2.size, qmax))]


@pytest.mark.slow
def test_gradient_of_learned_scales_equals_backpropagation_in_float64(rng, mnist):
    """For one scale a channel, one a layer and one of activations; the pixels' scale is fixed."""
    hyper = bits_hyper(3, 2, "crop20 mean2 12", SCALES="learned")
    images, labels = mnist.train.images[:64], mnist.train.labels[:64]
    # Some numbers are inside their grid and some beyond.
    layers = [model.LearnedLayer(layer.w, layer.b, np.full((1, 1), -0.7, np.float32), np.float32(
        np.log2(np.abs(layer.w).max() / 3) - rng.uniform(0, 1.4, (1, count))))
        for layer, count in zip(make_layers(rng, hyper), (12, 1))]
    pixels = oracle.pool_all(images, hyper.LAYERS) / 256
    expected = expected_gradient(layers, pixels, labels, hyper)
    found = jax.device_get(gradient_of(layers, images, labels, hyper))
    for name in model.LearnedLayer._fields:
        for layer, other in zip(found, expected):
            array, other = getattr(layer, name), getattr(other, name)
            # float32 sums of 64 and 1,200 terms of both signs.
            np.testing.assert_allclose(array, other, atol=1e-5 * np.abs(other).max(), err_msg=name)
            assert array.all() or name == "w" or not other.any()


PLANS = [("conv3x3", IMAGE), (CONV, IMAGE), ("mean2 conv7x5/3 conv1x9 max2", IMAGE),
         ("crop9 mean2 conv2x3 6", (13, 12, 3)), ("conv3x4/2 max2 7", (1, 40, 3))]
CASES = [
    (W8A8, (1, 7, 128)), (bits_hyper(4, 8, RAGGED), (7,)), (bits_hyper(2, 4, RAGGED), (7,)),
    (bits_hyper(1, 1, RAGGED), (7,)), (bits_hyper(PER_CHANNEL=False), (7,)),
    (bits_hyper(3, 2, RAGGED, PER_CHANNEL=False), (7,)), (bits_hyper(1, 8, RAGGED), (1, 128)),
    (bits_hyper(5, 6, "mean2"), (7,)), (bits_hyper(8, 8, RAGGED, COMPUTE="bfloat16"), (7,)),
    (bits_hyper(2, 3, RAGGED, COMPUTE="bfloat16"), (128,)),
    (bits_hyper(COMPUTE="bfloat16"), (1, 7, 128)),
    (bits_hyper(1, 8, RAGGED, COMPUTE="bfloat16"), (7,)),
    (bits_hyper(5, 6, "mean2", COMPUTE="bfloat16"), (7,)),
    *[(bits_hyper(*bits, line, shape=shape, COMPUTE=compute), (7,))
      for (line, shape), bits in zip(PLANS, [(8, 8), (4, 8), (5, 4), (2, 5), (1, 8)])
      for compute in ("float32", "bfloat16")]]


to_layers = jax.jit(model.to_layers, static_argnames="hyper")


@pytest.mark.parametrize("hyper, batches", CASES, ids=range(len(CASES)))
@pytest.mark.slow
def test_training_logits_are_the_integer_accumulators(rng, mnist, hyper, batches):
    """With calibrated scales, and with learned ones that have moved on from these."""
    images = images_for(rng, mnist, hyper)
    layers = jax.device_get(model.calibrate(make_layers(rng, hyper), images, hyper))
    moved = [layer._replace(x_exponent=layer.x_exponent + np.float32(rng.uniform(0, 0.9)),
                            w_exponent=layer.w_exponent + rng.uniform(
                                -1.2, 0.4, layer.w_exponent.shape).astype(np.float32))
             for layer in model.to_learned(layers)]
    for computing in (layers, jax.device_get(to_layers(moved, hyper))):
        expected = expected_logits(convert.to_network(computing, hyper), images)
        assert np.ptp(expected, axis=0).all()   # no logit is a constant
        for batch in batches:
            logits = model.predict(computing, images[:batch], hyper)
            np.testing.assert_array_equal(logits, expected[:batch])


@pytest.mark.parametrize("line, shape", [("5", (6,)), ("", (6,)), ("conv3x4/2 max2 7", (1, 40, 3))])
@pytest.mark.slow
def test_centred_features_are_folded_into_the_first_bias(rng, line, shape):
    """Training sees codes less the mean's code, a deployed network bytes: the same logits."""
    hyper = bits_hyper(4, 6, line, shape=shape)
    centred = hyper._replace(LAYERS=plan.centred(hyper.LAYERS))
    zero = rng.integers(0, 256, shape[-1])
    zero[:3] = 0, 128, 255
    codes = rng.integers(0, 256, (50, *shape), dtype=np.uint8)
    less = (codes - zero).astype(np.int16)
    layers = model.calibrate(make_layers(rng, hyper), less, centred)
    network = convert.to_network(layers, centred, zero)
    assert network.steps == hyper.LAYERS and bool(is_exact(layers, centred))
    expected = expected_logits(network, codes)
    assert np.ptp(expected, axis=0).all()
    for compute in ("float32", "bfloat16"):
        logits = model.predict(layers, less, centred._replace(COMPUTE=compute))
        np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(integer.make_engine(network, "numpy")(codes),
                                  oracle.run(network, codes))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e4])
@pytest.mark.slow
def test_centred_layer_that_training_takes_is_a_legal_network(rng, scale):
    """Whatever the mean's codes are: its floor counts what centring adds to the bias."""
    hyper = bits_hyper(8, 8, "5", shape=(300,))
    hyper = hyper._replace(LAYERS=plan.centred(hyper.LAYERS))
    layers = [layer._replace(w=np.abs(layer.w) * np.float32(scale))
              for layer in make_layers(rng, hyper)]
    codes = rng.integers(-255, 256, (20, 300)).astype(np.int16)
    layers = model.calibrate(layers, codes, hyper)
    assert bool(is_exact(layers, hyper))
    for zero in (0, 255):
        network = convert.to_network(layers, hyper, np.full(300, zero))
        assert max(map(np.max, oracle.worst_accumulators(network))) < 2**24


@pytest.mark.slow
def test_gradient_of_a_tied_maximum_goes_to_the_first():
    """Codes tie often. What an odd map leaves out gets none."""
    step = plan.parse("conv1x1 max2", (2, 3, 1), 2)[1]

    def largest(x):
        return model.largest(x.reshape(1, 2, 3, 1), step)[0, 0, 0, 0]

    for values, place in (([3, 3, 9, 3, 3, 9], 0), ([1, 3, 9, 2, 0, 9], 1), ([3, 1, 9, 3, 2, 9], 0),
                          ([0, 2, 9, 3, 3, 9], 3), ([0, 2, 9, 1, 3, 9], 4)):
        np.testing.assert_array_equal(jax.grad(largest)(np.float32(values)), np.eye(6)[place])


@pytest.mark.parametrize("line, shape", [("conv3x2 max2", (7, 6, 2)), ("conv5x2/3", (11, 9, 1)),
                                         ("conv3x2 max2", (1, 9, 3)), ("conv1x2", (4, 1, 2))])
@pytest.mark.slow
def test_gradient_of_windows_is_the_one_that_jax_derives(rng, line, shape):
    for step in plan.parse(line, shape, 2)[:-1]:
        x = rng.normal(size=(3, *step.before)).astype(np.float32)
        weights = rng.normal(size=(3, *step.after[:2], step.weights[0] if step.kind == "conv"
                                   else step.after[2])).astype(np.float32)
        mine, theirs = ((model.patches, plan.patches) if step.kind == "conv" else
                        (model.largest, plan.largest))
        found, expected = (jax.grad(lambda x: (of(x, step) * weights).sum())(x)    # noqa: B023
                           for of in (mine, theirs))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradient_of_a_convolutional_network_agrees_with_finite_differences(rng):
    hyper = bits_hyper(8, 8, "conv3x3/2 max2 conv2x4 5", QAT_ENABLE=False)
    layers = model.init(jax.random.PRNGKey(1), hyper)
    images = rng.integers(0, 256, (6, 784), np.uint8)
    labels = rng.integers(0, 10, 6, np.uint8)
    grads = jax.grad(model.loss)(layers, images, labels, hyper)
    loss = jax.jit(model.loss, static_argnames="hyper")
    for i, layer in enumerate(layers):
        direction = rng.normal(size=layer.w.shape).astype(np.float32)
        either = [loss([*layers[:i], layer._replace(w=layer.w + sign * 3e-4 * direction),
                        *layers[i + 1:]], images, labels, hyper) for sign in (1, -1)]
        slope = (float(either[0]) - float(either[1])) / 6e-4
        assert slope == pytest.approx(float((grads[i].w * direction).sum()), rel=0.03, abs=3e-3)


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
@pytest.mark.parametrize("hyper", [
    W8A8, bits_hyper(8, 8, WIDE, PER_CHANNEL=False), bits_hyper(1, 8, WIDE),
    bits_hyper(2, 4, RAGGED), bits_hyper(8, 8, CONV), bits_hyper(1, 8, CONV, PER_CHANNEL=False)],
    ids=range(6))
@pytest.mark.slow
def test_calibration_keeps_every_accumulator_exact(rng, mnist, damage, hyper):
    images = mnist.train.images[:128]
    layers = [model.Layer(*(np.asarray(a, np.float32) for a in damage(layer.w, layer.b)))
              for layer in make_layers(rng, hyper)]
    layers = model.calibrate(layers, images, hyper)
    network = convert.to_network(layers, hyper)   # proves the bound and every shift, as load does
    assert max(worst.max() for worst in oracle.worst_accumulators(network)) < 2**24
    np.testing.assert_array_equal(model.predict(layers, images, hyper)[:5],
                                  expected_logits(network, images[:5]))


LEARNED = [bits_hyper(*bits, line, classes=2, SCALES="learned", PER_CHANNEL=bits != (4, 8))
           for bits, line in (((8, 8), "mean2 4 3"), ((4, 8), "4"), ((3, 4), "crop24 mean2 4"),
                              ((2, 2), "crop20 mean2 4"), ((1, 1), "mean2 4"),
                              ((3, 8), "crop20 mean2 conv3x3/2 max2"),
                              ((8, 8), "mean2 conv5x2/3 conv2x3"))]


@partial(jax.jit, static_argnames="hyper")
def round_and_run(layers, images, hyper):
    """(Layers with rounded scales, whether they are exact, logits)."""
    layers = model.to_layers(layers, hyper)
    return layers, convert.is_exact(layers, hyper), model.forward(layers, images, hyper)


@given(hyper=st.sampled_from(LEARNED), seed=st.integers(0, 99),
       damage=st.sampled_from([lambda w, b: (w, b), *ADVERSARIES.values()]),
       exponents=st.lists(st.floats(-24, 8, width=32) | st.floats(-300, 300, width=32),
                          min_size=6, max_size=6))
@example(hyper=LEARNED[0], seed=0, damage=lambda w, b: (w, b), exponents=[-300.0] * 6)
@example(hyper=LEARNED[0], seed=0, damage=lambda w, b: (w, b), exponents=[300.0] * 6)
@example(hyper=LEARNED[0], seed=0, damage=lambda w, b: (w, b),
         exponents=[0, -9.5, -8.4, -10.2, -7.6, -9.0])
@pytest.mark.slow
def test_learned_scales_of_any_exponents_stay_exact(hyper, seed, damage, exponents):
    """Or is_exact says so; and their training logits are the integers' bit for bit."""
    rng = np.random.default_rng(seed)
    layers = [model.Layer(*(np.asarray(a, np.float32) for a in damage(layer.w, layer.b)))
              for layer in make_layers(rng, hyper)]
    layers = [model.LearnedLayer(layer.w, layer.b, np.full((1, 1), x, np.float32),
                                 np.full((1, layer.w.shape[1]), w, np.float32))
              for layer, x, w in zip(layers, exponents[::2], exponents[1::2])]
    alone = slice(-1 if hyper.PER_CHANNEL else None, None)      # layers of one scale
    layers[alone] = [layer._replace(w_exponent=layer.w_exponent[:, :1]) for layer in layers[alone]]
    images = rng.integers(0, 256, (3, 784), dtype=np.uint8)
    layers, exact, logits = jax.device_get(round_and_run(layers, images, hyper))
    assert exact == accepts(layers, hyper)
    assert exact or max(exponents) > 16         # only scales that nothing could need
    if exact:
        np.testing.assert_array_equal(logits, expected_logits(convert.to_network(layers, hyper),
                                                              images))


def test_calibrated_activation_grid_covers_what_it_saw(rng, mnist):
    images = mnist.train.images[:128]
    layers = jax.device_get(model.calibrate(make_layers(rng, W8A8), images, W8A8))
    x = images / np.float32(256)
    for layer, following in zip(layers, layers[1:]):
        x = np.maximum(x @ layer.w + layer.b, 0)
        # Least power of two that covers; the quantized activations differ by a few percent.
        assert 0.9 * x.max() < 255 * float(following.x_scale[0, 0]) < 2.2 * x.max()


def test_network_has_the_documented_arrays(rng, mnist):
    for per_channel in (True, False):
        hyper = bits_hyper(PER_CHANNEL=per_channel)
        layers = model.calibrate(make_layers(rng, hyper), mnist.train.images[:128], hyper)
        network = convert.to_network(layers, hyper)
        assert network[1:3] == (8, 8) and type(network.logit_exponent) is int
        for layer, (inputs, outputs) in zip(network.layers, [(784, 256), (256, 128), (128, 10)]):
            found = [(type(array), array.dtype.name, array.shape) for array in layer
                     if array is not None]
            expected = [("int8", (inputs, outputs)), ("int32", (outputs,)), ("int8", (outputs,))]
            assert found == [(np.ndarray, *kind) for kind in expected[:len(found)]]
        assert [layer.shift is None for layer in network.layers] == [False, False, True]


FEW = {(bits, line): convert.from_network(oracle.random_network(
    np.random.default_rng(5), plan.parse(line, shape, 2), bits))
    for line, shape in (("4 3", (6,)), ("conv2x2 max2 3", (4, 4, 1)))
    for bits in (1, 8)}         # so small that hypothesis may ask often


def accepts(layers, hyper):
    """Whether to_network takes the layers; its refusals are one line."""
    try:
        convert.to_network(layers, hyper)
    except ValueError as error:
        assert "\n" not in str(error)
        return False
    return True


@given(few=st.sampled_from(list(FEW)), at=st.integers(0, 2), growth=st.floats(1, 1e6, width=32),
       bias=st.floats(-1e6, 1e6, width=32), coarser=st.integers(-16, 16))
@example(few=(8, "4 3"), at=1, growth=1.0, bias=0.0, coarser=0)
@example(few=(8, "4 3"), at=0, growth=1.0, bias=1e6, coarser=0)
@example(few=(8, "4 3"), at=1, growth=1.0, bias=0.0, coarser=16)
@example(few=(8, "4 3"), at=2, growth=1.0, bias=0.0, coarser=120)
@example(few=(8, "conv2x2 max2 3"), at=0, growth=1.0, bias=1e6, coarser=0)
@pytest.mark.slow
def test_is_exact_where_to_network_accepts(few, at, growth, bias, coarser):
    """For weights that an epoch moved after their scale was set, and for scales that don't fit."""
    layers, hyper = FEW[few]
    moved = layers[at]._replace(w=layers[at].w * np.float32(growth),
                                b=layers[at].b + np.float32(bias),
                                w_scale=layers[at].w_scale * np.float32(2.0**coarser))
    layers = [*layers[:at], moved, *layers[at + 1:]]
    assert bool(is_exact(layers, hyper)) == accepts(layers, hyper)


@pytest.mark.parametrize("excess", [-1, 0])
@pytest.mark.parametrize("at", [0, 1])
def test_is_exact_ends_at_the_bound_itself(at, excess):
    """An accumulator of 2**24 - 1 is exact and one of 2**24 is not, whichever layer reaches it."""
    inputs = 600                                # 600 * 127 * 255 is above 2**24
    w_q = np.zeros((inputs, 1), np.int8)
    full, rest = divmod(2**24 + excess, 255)
    w_q[:full // 127] = 127
    w_q[full // 127] = full % 127
    layer = integer.Layer(w_q, np.array([rest], np.int32), np.ones(1, np.int8))
    wide = integer.Layer(np.ones((1, inputs), np.int8), np.zeros(inputs, np.int32),
                         np.ones(inputs, np.int8))
    chain = ([layer, wide] if at == 0 else [wide, layer, wide])
    chain[-1] = chain[-1]._replace(shift=None)
    network = integer.Network(tuple(chain), 8, 8, -20,
                              plan.perceptron([layer.w_q for layer in chain]))
    assert max(map(np.max, oracle.worst_accumulators(network))) == 2**24 + excess
    layers, hyper = convert.from_network(network)
    assert bool(is_exact(layers, hyper)) == accepts(layers, hyper) == (excess < 0)


@pytest.mark.parametrize("bits, line, shape", [
    ((8, 8), "20 13", (60,)), ((4, 2), "mean2 20 13", IMAGE), ((1, 1), "crop20 mean2 20 13", IMAGE),
    ((3, 8), CONV, IMAGE), ((8, 4), "conv3x4/2 max2", (1, 40, 3))])
@pytest.mark.slow
def test_layers_of_a_network_compute_its_integers_and_give_it_back(rng, bits, line, shape):
    network = oracle.random_network(rng, plan.parse(line, shape, 10), *bits)
    layers, hyper = convert.from_network(network)
    images = rng.integers(0, 256, (7, *shape), dtype=np.uint8)
    np.testing.assert_array_equal(model.predict(layers, images, hyper),
                                  expected_logits(network, images))
    again = convert.to_network(layers, hyper)
    assert again[1:] == network[1:] and len(again.layers) == len(network.layers)
    for layer, other in zip(again.layers, network.layers):
        assert (layer.shift is None) == (other.shift is None)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), layer, other)


def test_free_scales_have_no_integers(rng, mnist):
    hyper = bits_hyper(8, 8, RAGGED, POWER_OF_TWO_SCALES=False)
    layers = model.calibrate(make_layers(rng, hyper), mnist.train.images[:128], hyper)
    with pytest.raises(ValueError, match="^free scales have no integers; .*POWER_OF_TWO_SCALES"):
        convert.to_network(layers, hyper)


@pytest.mark.slow
def test_deep_chain_of_dead_layers_is_a_legal_network():
    """Scales stop at their floor, however small what they see becomes."""
    images = np.arange(5, dtype=np.uint8)[:, None]
    hyper = bits_hyper(8, 8, "1 1 1 1 1", shape=(1,), classes=1)
    for weight in (0, 1e-3):
        layers = [model.Layer(np.full((1, 1), weight, np.float32), np.zeros(1, np.float32))] * 6
        network = convert.to_network(model.calibrate(layers, images, hyper), hyper)
        np.testing.assert_array_equal(integer.make_engine(network, "numpy")(images),
                                      oracle.run(network, images))


def test_long_shift_is_cut_to_one_that_gives_zero_too(rng):
    """|accumulator| < 2**24: every shift from 26 on gives code 0."""
    network = oracle.random_network(rng, (6, 4, 2))
    layers, hyper = convert.from_network(network)
    layers = [layers[0], *(layer._replace(x_scale=layer.x_scale * np.float32(2.0**60))
                           for layer in layers[1:])]
    found = convert.to_network(layers, hyper)
    assert set(found.layers[0].shift) == {integer.MAX_SHIFT}
    images = rng.integers(0, 256, (5, 6), dtype=np.uint8)
    np.testing.assert_array_equal(oracle.run(found, images), np.tile(found.layers[1].b_q, (5, 1)))


@pytest.mark.parametrize("line", ["20", CONV])
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.slow
def test_no_image_has_no_logits(rng, line, quantized):
    """However a program asks: an empty batch is one of no rows."""
    hyper = bits_hyper(8, 8, line, QAT_ENABLE=quantized)
    layers, images = make_layers(rng, hyper), np.zeros((0, 784), np.uint8)
    if quantized:
        layers = model.calibrate(layers, rng.integers(0, 256, (9, 784), dtype=np.uint8), hyper)
        network = convert.to_network(layers, hyper)
        for engine in ("numpy", "jax"):
            assert predict.make_predictor(network, engine)(images).shape == (0, 10)
    assert model.predict(layers, images, hyper).shape == (0, 10)


@pytest.mark.slow
def test_prediction_in_blocks_is_that_of_all_at_once(rng, mnist, monkeypatch):
    """Of a float network and of free scales, where each image's sums do not depend on the others
    but for their order."""
    images, steps = mnist.test.images[:11], make_hyper(CONV).LAYERS
    free = bits_hyper(8, 8, CONV, POWER_OF_TWO_SCALES=False)
    layers = make_layers(rng, free)
    floats = integer.FloatNetwork(tuple((layer.w, layer.b) for layer in layers), steps)
    scaled = model.calibrate(layers, images, free)
    whole = [predict.make_predictor(floats)(images), predict.make_predictor(scaled, hyper=free)(
        images)]
    monkeypatch.setattr(plan, "block_size", lambda steps: 4)
    blocks = [predict.make_predictor(floats)(images), predict.make_predictor(scaled, hyper=free)(
        images)]
    for found, expected in zip(blocks, whole):
        assert found.shape == (11, 10)
        # Products of another shape sum float32 in another order.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
