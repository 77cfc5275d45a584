"""integer: both engines against int64, rounding against fractions, and no float in between."""
import subprocess
import sys
from fractions import Fraction

import jax
import jax.extend
import numpy as np
import pytest
from hypothesis import example, given, strategies as st

import checkpoint
import integer
import model
import oracle
import stats
from conftest import ROOT

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


@pytest.mark.parametrize("engine", ["numpy", "jax"])
@pytest.mark.parametrize("weight_bits, activation_bits, per_channel, sizes", [
    (8, 8, True, (60, 20, 13, 10)), (4, 8, True, (60, 20, 13, 10)), (2, 4, False, (60, 20, 13, 10)),
    (1, 1, True, (60, 20, 13, 10)), (8, 1, False, (7, 1, 2)), (3, 5, True, (784, 10))])
def test_engine_equals_int64(rng, engine, weight_bits, activation_bits, per_channel, sizes):
    layers = oracle.random_layers(rng, sizes, weight_bits, activation_bits, per_channel)
    images = rng.integers(0, 256, (50, sizes[0]), dtype=np.uint8)
    images[0], images[1] = 0, 255
    acc = integer.make_engine(layers, activation_bits, engine)(images)
    assert acc.dtype == np.int32
    np.testing.assert_array_equal(acc, oracle.run(layers, activation_bits, images))


@pytest.mark.parametrize("engine", ["numpy", "jax"])
def test_shift_beyond_int32_gives_zero_codes(rng, engine):
    layers = oracle.random_layers(rng, (30, 4, 3))
    layers[1]["x_exponent"] = np.int8(40)       # shifts of 54 and more
    images = rng.integers(0, 256, (5, 30), dtype=np.uint8)
    acc = integer.make_engine(layers, 8, engine)(images)
    np.testing.assert_array_equal(acc, np.tile(layers[1]["b_q"], (5, 1)))
    np.testing.assert_array_equal(acc, oracle.run(layers, 8, images))


def test_result_does_not_depend_on_the_batch(trained, mnist):
    images = mnist[1].images[:130]
    for engine in ("numpy", "jax"):
        run = integer.make_engine(trained.layers, 8, engine)
        whole = run(images)
        for batch in (images[:1], images[:7], images[:128]):
            np.testing.assert_array_equal(run(batch), whole[:len(batch)])


def test_all_100000_test_logits_of_a_trained_network_are_exact(trained, mnist):
    test = mnist[1]
    expected = oracle.run(trained.layers, 8, test.images)
    assert expected.shape == (10_000, 10)
    acc = integer.make_engine(trained.layers, 8)(test.images)
    logits = model.predict(trained.run.params, test.images, trained.run.scales, trained.recipe.spec)
    assert np.count_nonzero(acc != expected) == 0
    assert np.count_nonzero(logits != expected * integer.logit_scale(trained.layers)) == 0
    assert np.abs(expected).max() < LIMIT
    # A network that learned nothing would prove little: 1 in 10 is chance.
    assert stats.evaluate(logits, test.labels)[1] > 0.85


def test_numpy_engine_equals_jax_engine_on_a_trained_network(trained, mnist):
    images = mnist[1].images[:500]
    np.testing.assert_array_equal(integer.make_engine(trained.layers, 8, "numpy")(images),
                                  integer.make_engine(trained.layers, 8, "jax")(images))


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


def jitted_path(monkeypatch, layers):
    """The function that make_engine jits, caught at jax.jit."""
    caught, jit = [], jax.jit
    with monkeypatch.context() as patch:
        patch.setattr(jax, "jit", lambda function: caught.append(function) or jit(function))
        integer.make_engine(layers, 8)
    return caught[0]


def test_jax_engine_has_no_float_operation(monkeypatch, trained, mnist):
    function = jitted_path(monkeypatch, trained.layers)
    arguments = integer.prepare(trained.layers), mnist[1].images[:4]
    dtypes = dtypes_of(jax.make_jaxpr(jax.jit(function))(*arguments).jaxpr)
    assert np.dtype(np.int8) in dtypes and np.dtype(np.int32) in dtypes
    assert {dtype.kind for dtype in dtypes} <= set("iub")
    compiled = jax.jit(function).lower(*arguments).compile().as_text()
    assert "s32[" in compiled
    assert not any(name in compiled for name in ("f16[", "f32[", "f64["))


class Integers(np.ndarray):
    """An array that refuses to take part in, or become, anything of floating point."""

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(array) for array in inputs]
        kwargs["out"] = tuple(np.asarray(o) for o in kwargs["out"]) if "out" in kwargs else None
        result = getattr(ufunc, method)(*plain, **kwargs)
        assert {array.dtype.kind for array in (*plain, result)} <= set("iub"), ufunc
        return result.view(Integers)


def test_numpy_engine_has_no_float_operation(rng):
    layers = oracle.random_layers(rng, (20, 5, 3))
    images = rng.integers(0, 256, (4, 20), dtype=np.uint8)
    with pytest.raises(AssertionError):         # the guard works
        images.view(Integers) * np.float32(1)
    acc = integer.make_engine(layers, 8, "numpy")(images.view(Integers))
    assert isinstance(acc, Integers)
    np.testing.assert_array_equal(np.asarray(acc), oracle.run(layers, 8, images))


def test_logit_scale_is_the_units_of_the_last_accumulator(rng):
    layers = oracle.random_layers(rng, (20, 5, 3))
    scale = integer.logit_scale(layers)
    assert scale.dtype == np.float32
    assert scale == 2.0 ** (int(layers[1]["x_exponent"]) + int(layers[1]["w_exponent"][0]))


def test_numpy_inference_runs_where_jax_is_not_installed(trained, tmp_path, folder):
    """Neither the modules nor the metadata of the packages that only training needs are there."""
    path = tmp_path / "weights.npz"
    checkpoint.save(path, trained.layers, trained.meta)
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
import checkpoint, integer, main_inference
main_inference.main(sys.argv[1:])
"""
    done = subprocess.run([sys.executable, "-c", program, f"--WEIGHTS={path}", "--ENGINE=numpy",
                           f"--DATA_DIR={folder}", f"--RESULTS_DIR={tmp_path}"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "integer-only, engine numpy" in done.stdout
