"""quant: values against float64 rounding, gradients against the contract, scales against search."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

import integer
import oracle
import quant

GRIDS = [(bits, signed) for bits in range(1, 9) for signed in (True, False)]
every_grid = pytest.mark.parametrize("bits, signed", GRIDS)
NUMBERS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
MATRICES = arrays(np.float32, (4, 3), elements=NUMBERS)
ULP = 2.0**-23                  # relative spacing of float32


def grid_points(rng, scale, bits, signed):
    """Every code, every tie, far beyond both ends, and random numbers; float32 [800, 1]."""
    qmin, qmax = oracle.code_range(bits, signed)
    exact = np.concatenate([np.arange(2 * qmin - 4, 2 * qmax + 5) / 2, [1e6, -1e6]])
    spread = rng.normal(0, 2.0**bits, 800 - len(exact))
    return (np.concatenate([exact, spread]) * scale).astype(np.float32)[:, None]


@every_grid
def test_fake_quantize_equals_float64_rounding(rng, bits, signed):
    for exponent in (-20, -7, 0, 5):
        scale = np.full((1, 1), 2.0**exponent, np.float32)
        x = grid_points(rng, 2.0**exponent, bits, signed)
        expected = oracle.quantize(x, scale, bits, signed) * scale.astype(np.float64)
        np.testing.assert_array_equal(quant.fake_quantize(x, scale, bits, signed), expected)


@every_grid
def test_codes_are_integers_inside_the_range(rng, bits, signed):
    x = np.append(grid_points(rng, 1.0, bits, signed), np.float32([[np.inf], [-np.inf]]), axis=0)
    codes = np.asarray(quant.quantize(x, np.ones((1, 1), np.float32), bits, signed))
    qmin, qmax = oracle.code_range(bits, signed)
    assert integer.code_range(bits, signed) == (qmin, qmax)
    missing = {0} if signed and bits == 1 else set()
    assert set(codes.ravel()) == set(range(qmin, qmax + 1)) - missing


@pytest.mark.parametrize("exponent", [-20, 0, 7])
def test_bias_codes_are_all_integers_that_float32_holds(exponent):
    """25 bits: up to 2**24 - 1 either way, where the proof of a network ends."""
    codes = np.array([2**23 - 1, 2**23, 2**23 + 1, 2**24 - 2, 2**24 - 1], np.float64)
    codes = np.concatenate([codes, -codes, [0]])
    x, scale = np.float32(codes * 2.0**exponent)[None], np.float32(2.0**exponent)
    np.testing.assert_array_equal(quant.quantize(x, scale, quant.BIAS_BITS), codes[None])
    np.testing.assert_array_equal(quant.fake_quantize(x, scale, quant.BIAS_BITS), x)
    far = np.float32([2.0**24, -1e30]) * scale
    np.testing.assert_array_equal(quant.quantize(far, scale, quant.BIAS_BITS),
                                  [2**24 - 1, 1 - 2**24])
    unsigned = quant.quantize(np.abs(x), scale, quant.BIAS_BITS - 1, False)
    np.testing.assert_array_equal(unsigned, np.abs(codes)[None])


@given(x=MATRICES, exponent=st.integers(-20, 10), grid=st.sampled_from(GRIDS))
def test_error_is_at_most_half_a_step_inside_the_range(x, exponent, grid):
    bits, signed = grid
    scale = np.full((1, 1), 2.0**exponent, np.float32)
    error = np.abs(np.asarray(quant.fake_quantize(x, scale, bits, signed), np.float64) - x)
    qmin, qmax = oracle.code_range(bits, signed)
    # One bit has no zero, so its error reaches a whole step there.
    step = scale[0, 0] * (1 if signed and bits == 1 else 0.5)
    inside = (x >= qmin * scale) & (x <= qmax * scale)
    assert (error[inside] <= step).all()


def input_gradient(x, scale, bits, signed):
    return jax.grad(lambda x: jnp.sum(quant.fake_quantize(x, scale, bits, signed)))(x)


@every_grid
@pytest.mark.slow
def test_gradient_is_one_strictly_inside_the_bounds_and_zero_beyond(bits, signed):
    qmin, qmax = oracle.code_range(bits, signed)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    for scale in np.float32([2.0**-9, 1, 8]):
        low, high = (qmin - np.float32(0.5)) * scale, (qmax + np.float32(0.5)) * scale
        x = np.array([np.nextafter(low, down), low, np.nextafter(low, up), qmin * scale, 0,
                      qmax * scale, np.nextafter(high, down), high, np.nextafter(high, up)])
        gradient = input_gradient(np.float32(x)[:, None], np.full((1, 1), scale), bits, signed)
        np.testing.assert_array_equal(gradient[:, 0], [0, 0, 1, 1, 1, 1, 1, 0, 0])


@every_grid
@pytest.mark.slow
def test_gradient_with_respect_to_scale_is_lsqs(rng, bits, signed):
    """Esser et al. 2020, eq. 3: round(v) - v inside, the end of the range beyond; the numbers that
    share a scale add up. The gradient of signed x then passes everywhere."""
    qmin, qmax = oracle.code_range(bits, signed)
    for shape in ((1, 2), (1, 1)):
        scale = np.resize(np.float32([2.0**-5, 0.5]), shape)
        x = (grid_points(rng, 1.0, bits, signed).reshape(400, 2) * scale).astype(np.float32)
        v = x.astype(np.float64) / scale
        inside = (v > qmin - 0.5) & (v < qmax + 0.5)
        slope = np.where(inside, oracle.quantize(x, scale, bits, signed) - v,
                         np.where(v > 0, qmax, qmin))

        def quantized(x, scale):
            return quant.fake_quantize(x, scale, bits, signed)

        moves = jax.jvp(quantized, (x, scale), (np.zeros_like(x), np.ones_like(scale)))[1]
        np.testing.assert_array_equal(moves, slope.astype(np.float32))
        upstream = rng.normal(0, 1, x.shape).astype(np.float32)
        of_x, of_scale = jax.vjp(quantized, x, scale)[1](upstream)
        np.testing.assert_array_equal(of_x, upstream * (inside | signed))
        axes = tuple(axis for axis in (0, 1) if shape[axis] == 1)
        # float32 sums of 400 or 800 terms.
        np.testing.assert_allclose(of_scale, (upstream * slope).sum(axes, keepdims=True),
                                   atol=1e-5 * np.abs(upstream * slope).sum())


def test_scale_that_is_not_learned_costs_nothing():
    """No second rounding, for a gradient that nobody wants."""
    x, scale = np.zeros((4, 3), np.float32), np.ones((1, 3), np.float32)

    def roundings(function, *moved):
        program = jax.jit(lambda *moved: jax.jvp(function, moved, moved)).lower(*moved)
        return program.as_text().count("call @round")
    assert roundings(lambda x: quant.fake_quantize(x, scale, 8), x) == 1
    assert roundings(lambda x, scale: quant.fake_quantize(x, scale, 8), x, scale) == 2


@every_grid
def test_nan_goes_through(bits, signed):
    x = np.array([[np.nan, 0.5]], np.float32)
    result = quant.fake_quantize(x, np.ones((1, 1), np.float32), bits, signed)
    np.testing.assert_array_equal(np.isnan(result), [[True, False]])
    scale = quant.compute_scale(x, bits, signed)     # nor may a scale taken from it hide it
    assert np.isnan(quant.fake_quantize(x, scale, bits, signed)[0, 0])


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.slow
def test_zero_channel_has_finite_scale_codes_and_gradient(rng, bits):
    x = rng.normal(0, 0.1, (20, 3)).astype(np.float32)
    x[:, 1] = 0
    scale = quant.compute_scale(x, bits, per_channel=True)
    assert np.isfinite(scale).all() and (np.asarray(scale) > 0).all()
    assert scale[0, 1] == quant.MIN_SCALE
    if bits > 1:                # one bit has no zero: such a channel gets +-2**-20
        np.testing.assert_array_equal(quant.quantize(x, scale, bits)[:, 1], 0)
    np.testing.assert_array_equal(input_gradient(x, scale, bits, True)[:, 1], 1)


def test_ceil_power_of_two_is_exact_at_every_exponent():
    exponents = np.arange(-126, 128)            # all of float32 but its subnormals
    powers = np.ldexp(np.float32(1), exponents)
    np.testing.assert_array_equal(quant.ceil_power_of_two(powers), powers)
    below = np.nextafter(powers, np.float32(0))[1:]
    np.testing.assert_array_equal(quant.ceil_power_of_two(below), powers[1:])
    above = np.nextafter(powers, np.float32(np.inf))[:-1]
    np.testing.assert_array_equal(quant.ceil_power_of_two(above), powers[1:])


@given(x=st.floats(2.0**-120, 2.0**120, width=32))
def test_ceil_power_of_two_is_the_least_not_below(x):
    power = float(quant.ceil_power_of_two(jnp.float32(x)))
    assert np.frexp(power)[0] == 0.5 and power / 2 < x <= power


@pytest.mark.parametrize("bits, signed", [(b, s) for b in (6, 7, 8) for s in (True, False)])
@given(x=MATRICES)
def test_wide_scale_is_the_least_power_of_two_that_covers_absmax(bits, signed, x):
    scale = np.asarray(quant.compute_scale(x, bits, signed), np.float64)
    qmax, absmax = oracle.code_range(bits, signed)[1], np.abs(x).max()
    assert scale.shape == (1, 1) and np.frexp(scale)[0] == 0.5
    # absmax / qmax is rounded to float32, so an absmax within 2 ulp of a power may go either way.
    assert scale * qmax >= absmax * (1 - 2 * ULP)
    assert scale == quant.MIN_SCALE or scale / 2 * qmax < absmax * (1 + 2 * ULP)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.slow
def test_per_channel_scale_is_per_tensor_scale_of_each_column(rng, bits):
    x = (rng.normal(0, 1, (50, 6)) * 2.0 ** rng.integers(-6, 3, 6)).astype(np.float32)
    columns = [quant.compute_scale(x[:, [o]], bits) for o in range(6)]
    np.testing.assert_array_equal(quant.compute_scale(x, bits, per_channel=True),
                                  np.concatenate(columns, 1))


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.slow
def test_scale_of_a_map_is_that_of_its_numbers(rng, bits):
    """Four axes, channels last, as the activations of a convolution: [B, H, W, C]."""
    x = np.abs(rng.normal(0, 1, (3, 4, 5, 6))).astype(np.float32)
    flat = x.reshape(-1, 6)
    whole = quant.compute_scale(x, bits, False)
    assert whole.shape == (1, 1, 1, 1)
    np.testing.assert_array_equal(whole.ravel(), quant.compute_scale(flat, bits, False).ravel())
    channels = quant.compute_scale(x, bits, True, True)
    np.testing.assert_array_equal(channels.ravel(),
                                  quant.compute_scale(flat, bits, True, True).ravel())
    floor = np.full((1, 1), 64, np.float32)     # of a layer, [1, 1]
    np.testing.assert_array_equal(quant.compute_scale(x, bits, False, floor=floor),
                                  np.full((1, 1, 1, 1), 64))
    for scale in (whole.reshape(1, 1), channels.reshape(1, 6)):
        found = quant.fake_quantize(x, scale, bits, False)
        np.testing.assert_array_equal(found.reshape(-1, 6),
                                      quant.fake_quantize(flat, scale, bits, False))
        slope = jax.grad(lambda s: jnp.sum(quant.fake_quantize(x, s, bits, False)))(scale)
        other = jax.grad(lambda s: jnp.sum(quant.fake_quantize(flat, s, bits, False)))(scale)
        np.testing.assert_allclose(slope, other, rtol=1e-5, atol=1e-4)      # float32 sums of 360


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(1, 6))
def test_narrow_scale_has_the_least_squared_error_of_its_halvings(rng, bits, signed):
    for draw in (rng.standard_normal, partial(rng.standard_t, 2), rng.uniform):
        x = draw(size=(300, 1))
        x = (x if signed else np.abs(x)).astype(np.float32)
        chosen = float(quant.compute_scale(x, bits, signed)[0, 0])
        least = np.abs(x).max() / oracle.code_range(bits, signed)[1]
        widest = 2.0 ** np.ceil(np.log2(np.float64(least)))
        candidates = [widest / 2**k for k in range(7 - bits)]
        errors = {scale: ((x - oracle.quantize(x, scale, bits, signed) * scale) ** 2).sum()
                  for scale in candidates}
        assert chosen in errors
        # float32 sums of 300 terms: candidates closer than 1e-5 may tie.
        assert errors[chosen] <= min(errors.values()) * (1 + 1e-5)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("power_of_two", [True, False])
def test_scale_is_its_floor_where_x_is_smaller(rng, bits, power_of_two):
    x = rng.uniform(-1e-7, 1e-7, (20, 3)).astype(np.float32)
    floor = np.array([[2.0**-20, 0.3, 2.0]], np.float32)
    scale = quant.compute_scale(x, bits, True, True, power_of_two, floor)
    np.testing.assert_array_equal(scale, [[2.0**-20, 0.5 if power_of_two else floor[0, 1], 2]])


def test_free_scale_is_absmax_over_qmax(rng):
    x = rng.normal(0, 1, (50, 4)).astype(np.float32)
    scale = quant.compute_scale(x, 8, per_channel=True, power_of_two=False)
    # One float32 division, which XLA may turn into a multiplication: 2 ulp.
    np.testing.assert_allclose(scale[0], np.abs(x).max(0) / 127, rtol=2 * ULP)


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("kind", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("rows, inputs, outputs", [(128, 784, 256), (40, 30, 5), (1, 1, 1)])
@pytest.mark.slow
def test_product_is_the_integer_one_whatever_computes_it(rng, rows, inputs, outputs, kind, bits):
    """The gradient too, of the incoming one as rounded: with codes it has no other rounding."""
    w_scale = np.ldexp(np.float32(1), rng.integers(-9, -4, (1, outputs)))
    x_scale = np.full((1, 1), 2.0**-8, np.float32)
    codes = rng.integers(-255 if kind == "int16" else 0, 256, (rows, inputs))   # centred features
    values = np.ldexp(codes, -8).astype(np.float32)
    w = rng.normal(0, 1, (inputs, outputs)).astype(np.float32)
    grad = rng.normal(0, 1, (rows, outputs)).astype(np.float32)
    rounded = np.asarray(jnp.asarray(grad).astype(jnp.bfloat16), np.float64)
    w_q = oracle.quantize(w, w_scale, bits) * w_scale.astype(np.float64)
    inside = np.abs(w / w_scale) < oracle.code_range(bits, True)[1] + 0.5
    found = {}
    for compute in quant.COMPUTES:
        def dot(x, w, compute=compute):
            return quant.dot(x, w, x_scale, w_scale, bits, compute)

        x = values if kind == "float32" else codes.astype(kind)
        product, back = jax.vjp(partial(dot, x), w)
        np.testing.assert_array_equal(product, values.astype(np.float64) @ w_q)
        to_x = () if kind != "float32" else jax.vjp(partial(dot, w=w), x)[1](grad)
        found[compute] = *back(grad), *to_x
        incoming = grad.astype(np.float64) if compute == "float32" else rounded
        for array, expected in zip(found[compute], (values.T @ incoming * inside,
                                                    incoming @ w_q.T)):
            # float32 sums of up to 256 terms of both signs.
            np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5 * rows)


@pytest.mark.slow
def test_scales_get_no_gradient_from_the_product(rng):
    """A learned scale has all of its gradient from rounding."""
    x_scale, w_scale = np.full((1, 1), 0.5, np.float32), np.full((1, 3), 0.25, np.float32)
    x, w = np.ones((4, 5), np.float32), np.ones((5, 3), np.float32)
    for compute in quant.COMPUTES:
        slope = jax.grad(lambda s, compute=compute: quant.dot(x, w, s, w_scale, 8, compute).sum())(
            x_scale)
        np.testing.assert_array_equal(slope, 0)


def test_compute_that_is_not_decided_is_refused():
    with pytest.raises(ValueError, match="auto"):
        quant.dot(np.ones((2, 3), np.uint8), np.ones((3, 2), np.float32),
                  np.ones((1, 1), np.float32), np.ones((1, 2), np.float32), 8, "auto")


@partial(jax.jit, static_argnames=("bits", "per_channel"))
def calibrated_and_learned(w, b, x_scale, x_qmax, exponent, bits, per_channel):
    """The two scales that a layer's weights may get."""
    floor = quant.weight_floor(w, b, x_scale, x_qmax)
    exponent = jnp.full((1, 3 if per_channel else 1), exponent)
    return (quant.compute_scale(w, bits, True, per_channel, floor=floor),
            quant.learned_scale(exponent, floor, True, 1))


@given(w=MATRICES, b=arrays(np.float32, 3, elements=NUMBERS), exponent=st.integers(-20, 5),
       grid=st.sampled_from([(1, True), (8, True), (8, False)]), x_qmax=st.sampled_from([1, 255]),
       learned=st.floats(-300, 300, width=32))
@pytest.mark.slow
def test_weight_scale_keeps_the_accumulator_exact(w, b, exponent, grid, x_qmax, learned):
    """Calibrated, or learned: from any exponent at all."""
    bits, per_channel = grid
    x_scale = np.full((1, 1), 2.0**exponent, np.float32)
    for scale in calibrated_and_learned(w, b, x_scale, np.float32(x_qmax), np.float32(learned),
                                        bits, per_channel):
        scale = np.asarray(scale, np.float64)
        assert scale.shape == (1, 3 if per_channel else 1)
        w_q = oracle.quantize(w, scale, bits)
        b_q = np.rint(b / (x_scale * scale)[0])
        assert (x_qmax * np.abs(w_q).sum(0) + np.abs(b_q)).max() < 2**24


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.slow
def test_activation_scale_is_twice_the_accumulators_at_least(rng, bits, power_of_two):
    """So that a requantizing shift is 1 or more, however small the activations are."""
    acc_scale = np.array([[2.0**-9, 2.0**-3, 2.0**-12]], np.float32)
    floor = quant.activation_floor(acc_scale)
    np.testing.assert_array_equal(floor, [[2.0**-2]])
    np.testing.assert_array_equal(quant.activation_floor(acc_scale * np.float32(2.0**-30)),
                                  [[quant.MIN_SCALE]])
    for size in (0, 1e-6, 1, 1e3):
        x = np.abs(rng.normal(0, size, (20, 3))).astype(np.float32)
        exponent = np.log2(np.full((1, 1), size + 1e-30, np.float32))
        for scale in (quant.compute_scale(x, bits, False, False, power_of_two, floor),
                      quant.learned_scale(exponent, floor, power_of_two, 1)):
            assert scale.shape == (1, 1) and scale[0, 0] >= floor[0, 0]


FLOORS = np.array([[2.0**-20, 0.3, 2.0**-3]], np.float32)
LEAST = np.array([-20, -1, -3])                 # log2 of the powers of two that they need
EXPONENTS = arrays(np.float32, (1, 3), elements=st.floats(-200, 200, width=32)
                   | st.integers(-90, 140).map(lambda halves: halves / 2))     # ties among them


@given(exponent=EXPONENTS, per_channel=st.booleans())
@pytest.mark.slow
def test_learned_scale_is_the_nearest_power_of_two_not_below_its_floor(exponent, per_channel):
    """Nearest in log2, a tie to the even exponent; one scale of all channels meets all floors."""
    exponent, least = (exponent, LEAST) if per_channel else (exponent[:, :1], LEAST.max())
    scale = quant.learned_scale(exponent, FLOORS, True, 7)
    expected = np.clip(np.rint(exponent.astype(np.float64)), least, quant.MAX_EXPONENT)
    np.testing.assert_array_equal(scale, 2.0**expected)
    free = quant.learned_scale(exponent, FLOORS, False, 7)
    expected = np.clip(exponent.astype(np.float64), least, quant.MAX_EXPONENT)
    # float32 exp2 of up to 60: half an ulp of 60 times ln 2, and its own error.
    np.testing.assert_allclose(free, 2.0**expected, rtol=40 * ULP)


@partial(jax.jit, static_argnames="power_of_two")
def scale_and_gradient(exponent, power_of_two):
    """The learned scale of 784 * 127 terms, and its gradient by its exponent."""
    scale, back = jax.vjp(lambda e: quant.learned_scale(e, FLOORS, power_of_two, 784 * 127),
                          exponent)
    return scale, *back(jnp.ones_like(scale))


@given(exponent=EXPONENTS, power_of_two=st.booleans())
@pytest.mark.slow
def test_gradient_of_a_learned_scale_is_lsqs_and_0_where_the_floor_holds(exponent, power_of_two):
    """d 2**e / de = 2**e ln 2, straight through the rounding, over sqrt(N qmax) as in sec. 2.2."""
    scale, gradient = scale_and_gradient(exponent, power_of_two)
    expected = np.asarray(scale, np.float64) * np.log(2) / (784 * 127) ** 0.5
    free = (exponent >= LEAST) & (exponent < quant.MAX_EXPONENT)
    held = (exponent < LEAST) | (exponent > quant.MAX_EXPONENT)
    np.testing.assert_allclose(gradient[free], expected[free], rtol=4 * ULP)
    np.testing.assert_array_equal(gradient[held], 0)


@pytest.mark.parametrize("power_of_two", [True, False])
def test_learned_scale_of_no_number_is_no_number(power_of_two):
    """So that the loss of a run that blew up says so; infinity meets the bounds like any other."""
    exponent = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    scale = quant.learned_scale(exponent, FLOORS, power_of_two, 1)
    # A free scale is float32's exp2 of 60.
    np.testing.assert_allclose(scale, [[np.nan, 2.0**60, 2.0**-3]],
                               rtol=0 if power_of_two else 40 * ULP)


def test_mixed_types_and_ranks_are_errors_once_strict():
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(2, jnp.float32) + jnp.ones(2, jnp.int32)
    with pytest.raises(ValueError, match="rank"):
        jnp.ones((2, 2), jnp.float32) + jnp.ones(2, jnp.float32)
