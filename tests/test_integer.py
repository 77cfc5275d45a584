"""integer: both engines against an oracle, rounding against fractions, and no float in between."""
import re
import subprocess
import sys
from fractions import Fraction

import jax
import jax.extend
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

import convert
import integer
import model
import oracle
import plan
import predict
from conftest import IMAGE, ROOT, best_layers
from formats import checkpoint

LIMIT = 2**24                   # of |accumulator|


def requantize_exactly(acc, shift, bits):
    """Python's round is half to even, and a Fraction is exact."""
    return min(max(round(Fraction(int(acc), 2**shift)), 0), 2**bits - 1)


@given(acc=st.integers(1 - LIMIT, LIMIT - 1), shift=st.integers(1, 30), bits=st.integers(1, 8))
@example(acc=1 - LIMIT, shift=30, bits=8)
@example(acc=LIMIT - 1, shift=1, bits=8)
def test_requantize_equals_exact_rounding(acc, shift, bits):
    codes = integer.requantize(np.array([[acc]], np.int32), np.array([[shift]], np.int32), bits)
    assert codes.dtype == np.int32
    assert codes[0, 0] == requantize_exactly(acc, shift, bits)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_requantize_rounds_ties_to_even(bits):
    shifts = np.arange(1, 31, dtype=np.int32)
    halves = np.arange(-9, 2 ** (bits + 1) + 9)[:, None]           # odd ones are ties
    acc = halves * 2 ** (shifts.astype(np.int64) - 1)
    acc = np.where(np.abs(acc) < LIMIT, acc, 0).astype(np.int32)
    expected = [[requantize_exactly(a, s, bits) for a, s in zip(row, shifts.tolist())]
                for row in acc]
    np.testing.assert_array_equal(integer.requantize(acc, shifts[None], bits), expected)
    on_jax = jax.jit(lambda acc, shift: integer.requantize(acc, shift, bits))(acc, shifts[None])
    np.testing.assert_array_equal(on_jax, expected)


def images_of(rng, steps, count=50):
    """uint8 [N, ...]: random, but for one all black and one all white."""
    images = rng.integers(0, 256, (count, *steps[0].before), dtype=np.uint8)
    images[0], images[1] = 0, 255
    return images


def assert_engine_equals_oracle(rng, engine, steps, bits):
    network, images = oracle.random_network(rng, steps, *bits), images_of(rng, steps)
    acc = integer.make_engine(network, engine)(images)
    assert type(acc) is np.ndarray and acc.dtype == np.int32
    np.testing.assert_array_equal(acc, oracle.run(network, images))


@pytest.mark.parametrize("engine", ["numpy", "jax"])
@pytest.mark.parametrize("bits, line, shape, classes", [
    ((8, 8), "20 13", (60,), 10), ((4, 8), "20 13", (60,), 10), ((2, 4), "20 13", (60,), 10),
    ((1, 1), "20 13", (60,), 10), ((8, 1), "1", (7,), 2), ((3, 5), "", IMAGE, 10),
    ((4, 8), "mean2 13", IMAGE, 10), ((1, 8), "crop24 mean2 13", IMAGE, 10),
    ((2, 4), "crop20 mean2 13", IMAGE, 10)])
@pytest.mark.slow
def test_engine_equals_oracle(rng, engine, bits, line, shape, classes):
    steps = plan.parse(line, shape, classes)
    assert_engine_equals_oracle(rng, engine, steps, bits)
    if "mean2" in line:                         # each sum that four bytes can have
        network = oracle.random_network(rng, steps, *bits)
        images = oracle.images_of_every_sum(rng, steps[line.split().index("mean2")].after[0])
        np.testing.assert_array_equal(integer.make_engine(network, engine)(images),
                                      oracle.run(network, images))


@pytest.mark.parametrize("engine", ["numpy", "jax"])
@pytest.mark.parametrize("bits, line, shape", [
    *[((8, 8), f"conv{kernel}x3/{stride}", (9, 10, 2)) for kernel in range(1, 8)
      for stride in range(1, 4)],               # odd and even lengths
    ((4, 8), "conv5x8/2 conv3x7 max2 conv3x5", (28, 28, 1)),
    ((3, 4), "crop9 mean2 conv2x3 max2", (13, 12, 3)),
    ((8, 1), "conv1x8 max2 max2 6 5", (8, 11, 1)),
    ((2, 3), "mean2 conv3x4/2 max2 7", (1, 40, 3)),             # a sensor's window
    ((1, 8), "conv3x1 conv7x2/3", (40, 1, 1)),
    ((1, 1), "conv1x1", (1, 1, 1)),
    ((5, 6), "conv2x4 conv2x3 conv2x4 conv3x5/2 conv1x6 conv2x4 max2 5", (13, 14, 1))])
@pytest.mark.slow
def test_engine_equals_oracle_on_convolutions(rng, engine, bits, line, shape):
    assert_engine_equals_oracle(rng, engine, plan.parse(line, shape, 4), bits)


@st.composite
def small_steps(draw):
    """Steps of any words that fit a small map."""
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.sampled_from([1, 3])))
    words = draw(st.sampled_from(["", "mean2", "crop5", "crop6 mean2", "crop7 crop4"])).split()
    convolution = st.builds("conv{}x{}/{}".format, st.integers(1, 7), st.integers(1, 8),
                            st.integers(1, 3))
    words += draw(st.lists(st.one_of(convolution, st.just("max2")), max_size=6))
    words += draw(st.lists(st.integers(1, 8).map(str), max_size=2))
    chosen = []
    for word in words:                          # of all these, what goes on
        try:
            plan.parse(" ".join([*chosen, word]), shape, 3)
        except ValueError:
            continue
        chosen.append(word)
    return plan.parse(" ".join(chosen), shape, 3)


@given(steps=small_steps(), bits=st.tuples(st.integers(1, 8), st.integers(1, 8)),
       seed=st.integers(0, 99))
def test_numpy_engine_and_oracles_agree_on_any_steps(steps, bits, seed):
    """Two of them independent: by float64, and by loops over Python's own integers."""
    rng = np.random.default_rng(seed)
    network, images = oracle.random_network(rng, steps, *bits), images_of(rng, steps, 3)
    expected = oracle.run(network, images)
    np.testing.assert_array_equal(integer.make_engine(network, "numpy")(images), expected)
    assert expected[-1].tolist() == oracle.run_slowly(network, images[-1])


@settings(max_examples=12)                      # each compiles its own program
@given(steps=small_steps(), bits=st.tuples(st.integers(1, 8), st.integers(1, 8)))
@pytest.mark.slow
def test_jax_engine_equals_oracle_on_any_steps(steps, bits):
    assert_engine_equals_oracle(np.random.default_rng(0), "jax", steps, bits)


@pytest.mark.parametrize("bits, line, shape", [
    ((8, 8), "20 13", (60,)), ((3, 2), "20 13", (60,)), ((1, 1), "20 13", (60,)),
    ((4, 8), "mean2 20 13", IMAGE), ((1, 8), "crop24 mean2 20 13", IMAGE),
    ((2, 4), "crop20 mean2 20 13", IMAGE),
    ((4, 4), "conv5x4/3 conv3x3 max2 conv2x4 5", (19, 20, 3)),
    ((3, 8), "mean2 conv3x4 max2", (1, 30, 3))])
def test_oracle_equals_python_integers(rng, bits, line, shape):
    network = oracle.random_network(rng, plan.parse(line, shape, 10), *bits)
    images = images_of(rng, network.steps, 5)
    assert oracle.run(network, images).tolist() == [oracle.run_slowly(network, image)
                                                    for image in images]


@pytest.mark.parametrize("engine", ["numpy", "jax"])
@pytest.mark.slow
def test_blocks_of_a_batch_give_what_the_batch_gives(rng, monkeypatch, engine):
    """Where a batch's patches would take too much memory; a short last block too."""
    steps = plan.parse("conv3x4 max2 conv2x3", (9, 9, 2), 3)
    assert plan.block_size(steps) == plan.BLOCK_BYTES // (4 * 7 * 7 * 18) and not plan.block_size(
        plan.parse("mean2 5", (9, 9, 2), 3))
    network, images = oracle.random_network(rng, steps), images_of(rng, steps, 11)
    whole = integer.make_engine(network, engine)(images)
    sizes, run = [], plan.walk

    def walk(steps, x, apply):
        sizes.append(len(x))
        return run(steps, x, apply)

    monkeypatch.setattr(plan, "walk", walk)
    monkeypatch.setattr(plan, "BLOCK_BYTES", 4 * 4 * 7 * 7 * 18)
    np.testing.assert_array_equal(integer.make_engine(network, engine)(images), whole)
    assert sizes == ([4, 4, 3] if engine == "numpy" else [4, 3])        # one program a shape
    assert integer.make_engine(network, engine)(images[:0]).shape == (0, 3)


@pytest.mark.parametrize("engine", ["numpy", "jax"])
def test_longest_shift_gives_zero_codes(rng, engine):
    network = oracle.random_network(rng, (30, 4, 3))
    hidden, last = network.layers
    network = network._replace(layers=(hidden._replace(shift=np.full(4, 30, np.int8)), last))
    images = rng.integers(0, 256, (5, 30), dtype=np.uint8)
    acc = integer.make_engine(network, engine)(images)
    np.testing.assert_array_equal(acc, np.tile(last.b_q, (5, 1)))
    np.testing.assert_array_equal(acc, oracle.run(network, images))


@pytest.mark.slow
def test_result_does_not_depend_on_the_batch(trained, mnist):
    images = mnist.test.images[:130]
    for engine in ("numpy", "jax"):
        run = integer.make_engine(trained.network, engine)
        whole = run(images)
        for batch in (images[:1], images[:7], images[:128]):
            np.testing.assert_array_equal(run(batch), whole[:len(batch)])


def test_networks_of_one_shape_share_a_compiled_program(rng):
    """And still compute their own integers: the weights are arguments, not constants."""
    images = rng.integers(0, 256, (5, 20), dtype=np.uint8)
    for _ in range(2):
        network = oracle.random_network(rng, (20, 5, 3))
        np.testing.assert_array_equal(integer.make_engine(network)(images),
                                      oracle.run(network, images))
    for bits in (8, 4):                         # but the width is a constant of the program
        other = network._replace(activation_bits=bits)
        np.testing.assert_array_equal(integer.make_engine(other)(images),
                                      oracle.run(other, images))


@pytest.mark.slow
def test_all_100000_test_logits_of_a_trained_network_are_exact(trained, mnist):
    test, network = mnist.test, trained.network
    expected = oracle.run(network, test.images)
    assert expected.shape == (10_000, 10)
    acc = integer.make_engine(network)(test.images)
    layers = best_layers(trained.sweep)
    logits = model.predict(layers, test.images, trained.hyper)
    assert np.count_nonzero(acc != expected) == 0
    assert np.count_nonzero(logits != expected * 2.0**network.logit_exponent) == 0
    assert np.count_nonzero(trained.predict(test.images) != logits) == 0
    assert np.abs(expected).max() < LIMIT
    # A network that learned nothing would prove little: 1 in 10 is chance.
    assert predict.score(logits, test.labels)[1] > 0.85


def test_numpy_engine_equals_jax_engine_on_a_trained_network(trained, mnist):
    images = mnist.test.images[:500]
    np.testing.assert_array_equal(integer.make_engine(trained.network, "numpy")(images),
                                  integer.make_engine(trained.network, "jax")(images))


def dtypes_of(jaxpr):
    """The dtypes of every value of a jaxpr, and of the jaxprs inside its equations."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {variable.aval.dtype for variable in (*equation.invars, *equation.outvars)}
        for value in jax.tree.leaves(list(equation.params.values())):   # cond keeps a tuple of them
            value = getattr(value, "jaxpr", value)
            found |= dtypes_of(value) if isinstance(value, jax.extend.core.Jaxpr) else set()
    return found


def test_dtypes_of_sees_a_float_inside_a_nested_function():
    nested = jax.jit(lambda x: jax.lax.cond(x[0] > 0, lambda: x, lambda: (x * 0.5).astype(int)))
    with jax.numpy_dtype_promotion("standard"):
        traced = jax.make_jaxpr(nested)(np.arange(3, dtype=np.int32))
    assert np.dtype(np.float32) in dtypes_of(traced.jaxpr)


every_kind = pytest.mark.parametrize("line", ["20 13", "crop20 mean2 20 13",
                                              "mean2 conv3x5/2 max2 conv2x3 13"])


def jitted_path(monkeypatch, network, images):
    """The function that make_engine jits, caught at jax.jit, and what it is called with."""
    caught, jit = [], jax.jit

    def spy(function, **options):
        jitted = jit(function, **options)

        def call(*arguments, **keywords):
            caught.append((jitted, arguments, keywords))
            return jitted(*arguments, **keywords)
        return call

    integer._jax_run.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(jax, "jit", spy)
        integer.make_engine(network)(images)
    integer._jax_run.cache_clear()
    (path,) = caught
    return path


@every_kind
@pytest.mark.slow
def test_jax_engine_has_no_float_operation(rng, monkeypatch, line):
    network = oracle.random_network(rng, plan.parse(line, IMAGE, 10))
    images = rng.integers(0, 256, (4, 784), dtype=np.uint8)
    function, arguments, keywords = jitted_path(monkeypatch, network, images)
    traced = function.trace(*arguments, **keywords)
    dtypes = dtypes_of(traced.jaxpr.jaxpr)
    assert np.dtype(np.int8) in dtypes and np.dtype(np.int32) in dtypes
    assert {dtype.kind for dtype in dtypes} <= set("iub")
    compiled = traced.lower().compile().as_text()
    assert "s32[" in compiled
    assert not any(name in compiled for name in ("f16[", "f32[", "f64["))


class Integers(np.ndarray):
    """An array that refuses to take part in, or become, anything of floating point."""
    __array_priority__ = 1.0                    # so that what is concatenated stays one

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(array) for array in inputs]
        kwargs["out"] = tuple(np.asarray(o) for o in kwargs["out"]) if "out" in kwargs else None
        result = getattr(ufunc, method)(*plain, **kwargs)
        assert {array.dtype.kind for array in (*plain, result)} <= set("iub"), ufunc
        return result.view(Integers)


@every_kind
def test_numpy_engine_has_no_float_operation(rng, monkeypatch, line):
    network = oracle.random_network(rng, plan.parse(line, IMAGE, 10))
    images = rng.integers(0, 256, (4, 784), dtype=np.uint8)
    with pytest.raises(AssertionError):         # the guard works
        images.view(Integers) * np.float32(1)
    run, outcomes = integer._run, []
    monkeypatch.setattr(integer, "_run", lambda *a, **named: outcomes.append(run(*a, **named)) or (
        outcomes[-1]))
    acc = integer.make_engine(network, "numpy")(images.view(Integers))
    assert [type(outcome) for outcome in outcomes] == [Integers]    # it was watched to the end
    np.testing.assert_array_equal(acc, oracle.run(network, images))


@pytest.mark.parametrize("exponent", [-100, -20, 0, 100])
def test_logits_are_exact_at_every_legal_exponent(rng, exponent):
    network = oracle.random_network(rng, (20, 5, 3))._replace(logit_exponent=exponent)
    acc = rng.integers(1 - LIMIT, LIMIT, (50, 3)).astype(np.int32)
    acc[0] = 1 - LIMIT, LIMIT - 1, 1
    logits = integer.logits(network, acc)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, acc * 2.0**exponent)      # float64


def test_code_range_is_the_contracts():
    for bits in range(1, 9):
        for signed in (True, False):
            assert integer.code_range(bits, signed) == oracle.code_range(bits, signed)


def test_accumulator_bound_is_reached_and_never_passed(rng):
    layer = oracle.random_network(rng, (6, 4), activation_bits=4).layers[0]
    worst = np.zeros(4, np.int64)
    for x in np.ndindex(*[2] * 6):              # the extremes are at the corners: 0 or 15
        acc = 15 * np.array(x) @ layer.w_q.astype(np.int64)
        worst = np.maximum(worst, np.abs(acc) + np.abs(layer.b_q))
    assert (worst <= integer.accumulator_bound(layer, 15)).all()
    layer = layer._replace(w_q=np.abs(layer.w_q))       # of one sign, the bound is reached
    reached = 15 * layer.w_q.sum(0, dtype=np.int64) + np.abs(layer.b_q)
    np.testing.assert_array_equal(integer.accumulator_bound(layer, 15), reached)


def one_line_refusal(layers, weight_bits=8, activation_bits=8, logit_exponent=0, steps=None):
    """The message of the ValueError that make_network must raise."""
    with pytest.raises(ValueError) as caught:
        integer.make_network(layers, weight_bits, activation_bits, logit_exponent, steps)
    message = str(caught.value)
    assert "\n" not in message
    return message


def layers_with_bound(bound):
    """One layer whose largest |accumulator| is `bound` exactly."""
    bias = bound - 255 * 2 * 127
    return [integer.Layer(np.full((2, 2), 127, np.int8), np.array([0, bias], np.int32), None)]


@pytest.mark.parametrize("sign", [1, -1])
def test_network_refuses_exactly_the_accumulators_that_float32_may_round(sign):
    layer, = layers_with_bound(2**24)
    message = one_line_refusal([layer._replace(b_q=sign * layer.b_q)])
    assert re.search("layer 0 can reach .* 16777216, not below 2", message)
    layer, = layers_with_bound(2**24 - 1)
    integer.make_network([layer._replace(b_q=sign * layer.b_q)], 8, 8, 0)


@pytest.mark.parametrize("activation_bits, legal", [(7, True), (8, False)])
def test_bound_of_a_hidden_layer_counts_its_own_input_codes(rng, activation_bits, legal):
    hidden, last = oracle.random_network(rng, (4, 800, 2)).layers
    layers = [hidden, last._replace(w_q=np.full((800, 2), 127, np.int8),
                                    b_q=np.zeros(2, np.int32))]
    assert (127 * 800 * (2**activation_bits - 1) < 2**24) == legal
    if legal:
        integer.make_network(layers, 8, activation_bits, 0)
    else:
        assert "layer 1" in one_line_refusal(layers, 8, activation_bits)


@pytest.mark.parametrize("bits", range(1, 9))
def test_network_refuses_codes_that_its_width_does_not_have(rng, bits):
    layers = list(oracle.random_network(rng, (6, 4, 2), bits).layers)
    integer.make_network(layers, bits, 8, 0)
    qmin, qmax = oracle.code_range(bits, True)
    for code in {qmin - 1, qmax + 1, *([0] if bits == 1 else [])} & set(range(-128, 128)):
        w_q = layers[1].w_q.copy()
        w_q[2, 1] = code
        assert "layer 1 holds a code" in one_line_refusal([layers[0], layers[1]._replace(w_q=w_q)],
                                                          bits)


@pytest.mark.parametrize("shift", [0, -1, -180])
def test_shift_below_one_is_refused_whatever_its_size(rng, shift):
    """-180 must not pass as the int8 76; a shift of 180 is cut to one that gives 0 too."""
    hidden, last = oracle.random_network(rng, (4, 3, 2)).layers
    assert f"has {shift}" in one_line_refusal([hidden._replace(shift=np.array([5, shift, 9])),
                                               last])
    network = integer.make_network([hidden._replace(shift=np.array([5, 180, 30])), last], 8, 8, 0)
    assert network.layers[0].shift.dtype == np.int8
    assert network.layers[0].shift.tolist() == [5, integer.MAX_SHIFT, 30]


def test_what_does_not_fit_together_is_refused(rng):
    first, second, last = oracle.random_network(rng, (6, 5, 4, 3)).layers
    assert "[(6, 5), (4, 3)] do not chain: '5' takes [(6, 5), (5, 3)]" in one_line_refusal(
        [first, last])
    assert "one layer or more" in one_line_refusal([])
    assert "layer 1 lacks its" in one_line_refusal([first, second._replace(shift=None), last])
    assert "layer 1 needs no" in one_line_refusal([first, second])
    for fault in ({"b_q": np.zeros(1, np.int32)}, {"b_q": np.full(4, 0.5)}, {"w_q": [1, 2]},
                  {"shift": np.ones(1, np.int8)}, {"w_q": second.w_q.astype(np.int16) + 999}):
        assert "layer 1" in one_line_refusal([first, second._replace(**fault), last])
    for bits in ((0, 8), (9, 8), (8, 0), (8, 9)):
        assert "bits" in one_line_refusal([first, second, last], *bits)
    for exponent in (-101, 101):
        assert "logit exponent" in one_line_refusal([last], logit_exponent=exponent)
    for exponent in (-100, 100):
        integer.make_network([last], 8, 8, exponent)


@pytest.mark.parametrize("line, shapes", [
    ("mean2 5", [(196, 5), (5, 3)]), ("crop20 mean2 5", [(100, 5), (5, 3)]),
    ("conv5x4/2 5", [(25, 4), (576, 5), (5, 3)]), ("conv3x2 max2", [(9, 2), (338, 3)])])
def test_network_takes_the_layers_that_its_steps_need(rng, line, shapes):
    """Without steps they are a perceptron."""
    steps = plan.parse(line, IMAGE, 3)
    layers = oracle.random_network(rng, steps).layers
    assert [layer.w_q.shape for layer in layers] == shapes
    assert integer.make_network(layers, 8, 8, 0, steps).steps == steps
    assert "do not chain" in one_line_refusal(layers[1:], steps=steps)
    for at, wrong in ((0, slice(1, None)), (len(layers) - 1, slice(-1))):
        others = list(layers)
        others[at] = layers[at]._replace(w_q=layers[at].w_q[wrong])
        assert f"{line!r} takes {shapes}" in one_line_refusal(others, steps=steps)
    if "conv" in line:
        assert "do not chain" in one_line_refusal(layers)
    else:
        assert integer.make_network(layers, 8, 8, 0).steps == plan.parse("5", shapes[0][:1], 3)


def test_bound_of_a_convolution_is_that_of_one_patch(rng):
    """However many places the patch has; each of them reaches it."""
    steps = plan.parse("conv3x1", (9, 9, 2), 2)
    hidden, last = oracle.random_network(rng, steps).layers
    for bias, legal in ((2**24 - 1 - 18 * 127 * 255, True), (2**24 - 18 * 127 * 255, False)):
        layers = [integer.Layer(np.full((18, 1), 127), [bias], [16]), last]
        if legal:
            network = integer.make_network(layers, 8, 8, 0, steps)
            acc = network._replace(layers=(network.layers[0]._replace(shift=None),),
                                   steps=steps[:1])
            for engine in ("numpy", "jax"):
                found = integer.make_engine(acc, engine)(np.full((1, 9, 9, 2), 255))
                np.testing.assert_array_equal(found, np.full((1, 7, 7, 1), 2**24 - 1))
        else:
            assert "layer 0 can reach" in one_line_refusal(layers, steps=steps)


@pytest.mark.parametrize("bias", [2**23 - 1, 2**23, 2**23 + 8, 2**24 - 1])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.slow
def test_bias_of_25_bits_is_exact_in_every_engine(bias, sign):
    """All that the proof allows; once the float forward stopped at 2**23 - 1."""
    w_q = [[1, -1], [0, 1]] if bias + 255 < 2**24 else [[0, 0], [0, 0]]
    bias *= sign
    network = integer.make_network([(w_q, [bias, -5])], 8, 8, -9)
    layers, hyper = convert.from_network(network)
    images = np.array([[0, 0], [3, 7]], np.uint8)
    expected = np.array([[bias, -5], np.array([3, 7]) @ w_q + [bias, -5]])
    for engine in ("numpy", "jax"):
        np.testing.assert_array_equal(integer.make_engine(network, engine)(images), expected)
    np.testing.assert_array_equal(model.predict(layers, images, hyper), expected * 2.0**-9)
    again = convert.to_network(layers, hyper)
    np.testing.assert_array_equal(again.layers[0].b_q, [bias, -5])
    assert bool(convert.is_exact(layers, hyper))


def test_name_is_that_of_the_model(rng):
    network = oracle.random_network(rng, (6, 5, 4), 2, 4)
    assert integer.name(network) == "W2A4"
    floats = integer.FloatNetwork(((np.zeros((6, 5)), np.zeros(5)),
                                   (np.zeros((5, 4)), np.zeros(4))), network.steps)
    assert integer.name(floats) == "float32"


def test_numpy_inference_runs_where_jax_is_not_installed(trained, tmp_path, folder):
    """Neither the modules nor the metadata of the packages that only training needs are there."""
    path = tmp_path / "weights.npz"
    checkpoint.save(path, trained.network, checkpoint.Facts())
    program = f"sys_path = {str(ROOT)!r}" + """
import sys
from importlib import metadata
sys.path.insert(0, sys_path)
absent = ("jax", "jaxlib", "optax", "tqdm", "matplotlib", "scipy", "tensorflow")
sys.modules.update(dict.fromkeys(absent))
found = metadata.version
def version(name):
    if name in absent:
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
import integer, main_inference
from formats import checkpoint
main_inference.main(sys.argv[1:])
"""
    done = subprocess.run([sys.executable, "-c", program, f"--WEIGHTS={path}", "--ENGINE=numpy",
                           f"--DATA_DIR={folder}", f"--RUNS_DIR={tmp_path}"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "integer-only, engine numpy" in done.stdout
