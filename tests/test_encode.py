"""encode: the same codes in NumPy, C, ONNX and JavaScript; what fit makes of outliers."""
import fractions
import re
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, strategies as st
from onnx import TensorProto

from conftest import ROOT
from deploy import engines, to_c, to_onnx
from formats import encode
from formats.encode import LEAST, MOST, Encoding

# What ships, each case as the only feature of a network.
C_MAIN = r"""
#include <stdint.h>
#include <stdio.h>
#define MLP_INPUTS 1
#define MLP_FEATURES 1
static float mlp_low[1], mlp_scale[1];
uint8_t mlp_encode_one(float value, uint32_t feature);
void mlp_encode(const float features[MLP_INPUTS], uint8_t bytes[MLP_INPUTS]);
""" + to_c.ENCODE + r"""
int main(void)
{
    float values[3];
    while (fread(values, sizeof values, 1, stdin) == 1) {
        uint8_t byte;
        mlp_low[0] = values[1];
        mlp_scale[0] = values[2];
        mlp_encode(values, &byte);
        putchar(byte);
    }
    return 0;
}
"""
PAGE = (ROOT / "deploy/page.html").read_text("utf-8")
JAVASCRIPT = re.search(r"^function encode\(.*?^}\n", PAGE, re.MULTILINE | re.DOTALL)[0]
JAVASCRIPT_MAIN = JAVASCRIPT + r"""
const bytes = require("fs").readFileSync(process.argv[2]);
const floats = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
const codes = new Uint8Array(floats.length / 3);
for (let i = 0; i < codes.length; i++)
  codes[i] = encode(floats[3 * i], floats[3 * i + 1], floats[3 * i + 2]);
require("fs").writeFileSync(process.argv[3], codes);
"""


def codes_of(cases):
    """NumPy's codes of (v, low, exponent) cases, each a feature of its own."""
    values, lows, exponents = (np.array(column) for column in zip(*cases))
    encoding = Encoding(lows.astype(np.float32), exponents)
    return encode.encode(values.astype(np.float32)[None], encoding)[0]


def to_float32(number):
    """A Fraction rounded once to float32, half to even: from bits, not by any float arithmetic."""
    if number == 0:
        return fractions.Fraction(0)
    sign, size = (-1 if number < 0 else 1), abs(number)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if fractions.Fraction(2)**exponent > size:
        exponent -= 1
    step = fractions.Fraction(2)**max(exponent - 23, -149)
    return sign * round(size / step) * step         # Fraction.__round__ is half to even


def oracle(v, low, exponent):
    """The code by rational numbers; beyond float32 the difference is so large that it saturates."""
    if np.isnan(v):
        return 0
    if np.isinf(v):
        return 255 if v > 0 else 0
    difference = to_float32(fractions.Fraction(float(v)) - fractions.Fraction(float(low)))
    return min(max(round(difference / fractions.Fraction(2)**exponent), 0), 255)


LARGEST, LEAST_FLOAT = float(np.finfo(np.float32).max), 2.0**-149
SPECIAL = [0.0, -0.0, LEAST_FLOAT, -LEAST_FLOAT, 2.0**-126, 255 * LEAST_FLOAT, 1.0, -1.0, 0.1,
           255.5, 2.0**24 + 2, 1e20, -1e20, LARGEST, -LARGEST, np.inf, -np.inf, np.nan]
floats = st.floats(width=32) | st.sampled_from(SPECIAL)
lows = st.floats(width=32, allow_nan=False, allow_infinity=False)
exponents = st.integers(LEAST, MOST)


@st.composite
def near_half(draw):
    """A value at, or one float beside, the middle of two codes."""
    exponent, low = draw(exponents), draw(lows | st.just(0.0))
    half = draw(st.integers(-1, 511)) / 2
    with np.errstate(over="ignore"):
        v = np.float32(low + half * 2.0**exponent)
        v = np.nextafter(v, np.float32(draw(st.sampled_from([-np.inf, np.inf, float(v)]))))
    return float(v), low, exponent


cases = st.tuples(floats, lows | st.sampled_from(SPECIAL[:-3]), exponents) | near_half()


@given(st.lists(cases, min_size=1, max_size=40))
def test_codes_are_those_of_exact_arithmetic(some):
    some = [(np.float32(v), np.float32(low), e) for v, low, e in some]
    assert codes_of(some).tolist() == [oracle(*case) for case in some]


def many_cases():
    """20,000 cases of every kind, float32 [N, 2] and int [N]."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, (12_000, 2), dtype=np.uint32).view(np.float32)
    bits[:, 1] = np.where(np.isfinite(bits[:, 1]), bits[:, 1], 0)
    halves = np.float32(rng.integers(-1, 512, (8_000, 2)) / 2)
    halves[:, 1] = np.float32(rng.integers(0, 2, 8_000) * rng.normal(size=8_000))
    exponents = rng.integers(LEAST, MOST + 1, 20_000)
    with np.errstate(over="ignore", under="ignore"):
        halves[:, 0] = halves[:, 1] + np.ldexp(halves[:, 0], exponents[12_000:])
    pairs = np.concatenate([bits, halves])
    special = np.float32([(v, low) for v in SPECIAL for low in SPECIAL[:-3]])
    pairs[:len(special)] = special
    # Half of them where neither all nor nothing saturates: a difference of up to 2^8 steps.
    with np.errstate(all="ignore"):
        size = np.frexp(pairs[:, 0] - pairs[:, 1])[1]
    use = rng.random(20_000) < 0.5
    exponents[use] = np.clip(size[use] - rng.integers(0, 10, 20_000)[use], LEAST, MOST)
    return pairs, exponents


@pytest.fixture(scope="module")
def expected():
    """(bytes of float32 triples v, low, 2^-exponent; their codes by NumPy)."""
    pairs, exponents = many_cases()
    codes = codes_of([(v, low, e) for (v, low), e in zip(pairs, exponents)])
    assert (np.bincount(codes, minlength=256) > 0).all()        # every code is there
    scales = np.exp2(-exponents.astype(np.float64)).astype(np.float32)
    assert (np.frexp(scales)[0] == 0.5).all()                   # none is denormal or infinite
    return np.column_stack([pairs, scales]).astype("<f4").tobytes(), codes


def test_many_codes_are_those_of_exact_arithmetic(expected):
    pairs, exponents = many_cases()
    for i in range(0, 20_000, 7):
        assert expected[1][i] == oracle(*pairs[i], int(exponents[i]))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("flags", [
    ("-O3",), ("-O0",), ("-O3", "-march=native", "-ffp-contract=fast"),
    ("-O2", "-m32", "-mfpmath=387"), ("-O2", "-fsanitize=undefined,float-cast-overflow",
                                      "-fno-sanitize-recover=all")], ids=" ".join)
def test_c_gives_the_same_codes(expected, tmp_path, compiler, flags):
    source, program = tmp_path / "encode.c", tmp_path / "encode"
    source.write_text(C_MAIN)
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler}: install it from the system's packages")
    command = [compiler, "-std=gnu99", "-Wall", "-Wextra", "-Werror", *flags, source, "-o", program]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode and flags[1:] and "-m32" in flags:
        pytest.skip(f"{compiler} has no 32-bit library: install gcc-multilib")
    assert made.returncode == 0, made.stderr
    done = subprocess.run([program], input=expected[0], capture_output=True, check=True)
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.uint8), expected[1])


def test_onnx_gives_the_same_codes(expected):
    """Each case is a feature of its own."""
    pairs, exponents = many_cases()
    graph = to_onnx.Graph()
    graph.encode(pairs[:, 1], exponents)
    model = graph.model("features", TensorProto.FLOAT, len(pairs),
                        {"image": (TensorProto.UINT8, ["N", len(pairs)])})
    np.testing.assert_array_equal(engines.make_onnx(model)(pairs[None, :, 0])[0], expected[1])


def test_javascript_gives_the_same_codes(expected, tmp_path):
    if not shutil.which("node"):
        pytest.skip("no node: install it from the system's packages")
    script, values, codes = (tmp_path / name for name in ("encode.js", "values", "codes"))
    script.write_text(JAVASCRIPT_MAIN)
    values.write_bytes(expected[0])
    subprocess.run(["node", script, values, codes], check=True, capture_output=True)
    np.testing.assert_array_equal(np.frombuffer(codes.read_bytes(), np.uint8), expected[1])


def test_jax_is_loaded_and_denormals_are_kept():
    """XLA flushes denormals in its own threads only: conftest has started it."""
    assert codes_of([(3 * LEAST_FLOAT, 0.0, LEAST), (2.0**-101, 0.0, LEAST)]).tolist() == [0, 0]
    assert codes_of([(2.0**-126 + 200 * LEAST_FLOAT, 2.0**-126, -100)]).tolist() == [0]
    low = np.float32(2.0**-101)                 # a difference of 3 * 2^-101, halfway to 2 steps
    assert codes_of([(low + 3 * low, low, LEAST)]).tolist() == [2]
    assert np.float32(LEAST_FLOAT) + np.float32(0) > 0


def used(x):
    """Codes of one feature by its own fit, int [N]."""
    x = np.asarray(x, np.float32)[:, None]
    return encode.encode(x, encode.fit(x))[:, 0].astype(int)


@pytest.mark.parametrize("draw", ["normal", "uniform", "exponential"])
@pytest.mark.parametrize("scale, shift", [(1, 0), (1e-20, 0), (1e30, 0), (1, 1000), (-3, 7)])
def test_usual_values_take_most_codes_and_do_not_saturate(rng, draw, scale, shift):
    x = getattr(rng, draw)(size=2_000) * scale + shift
    codes = used(x)
    assert np.ptp(codes) >= 125
    low, high = (codes == 0) & (x > x.min()), (codes == 255) & (x < x.max())
    assert low.sum() + high.sum() <= (0.01 if draw == "exponential" else 0.002) * len(x)
    middle = np.clip(codes, 1, 254) == codes
    order = np.argsort(x[middle])
    assert (np.diff(codes[middle][order]) >= 0).all()


@pytest.mark.parametrize("size", [20, 60, 1_000])
@pytest.mark.parametrize("outlier", [1e2, 1e6, -1e6, 3e38])
def test_an_outlier_does_not_squeeze_the_others(rng, size, outlier):
    x = rng.normal(size=size)
    alone = np.ptp(used(x))
    codes = used(np.append(x, outlier))
    assert codes[-1] in (0, 255)
    assert np.ptp(codes[:-1]) >= alone // 2 >= 60


def test_rare_values_among_zeros_keep_their_codes(rng):
    rare = np.zeros(10_000)
    rare[:30] = 1
    assert set(used(rare)) == {used(rare)[-1], used(rare)[0]} and np.ptp(used(rare)) >= 125
    rare[:30] = rng.uniform(1, 2, 30)
    assert np.ptp(used(rare)) >= 125


@pytest.mark.parametrize("value", [0, 1, -1e30, 3e38, 1e-45])
def test_a_constant_gets_code_0_then_and_later(value):
    encoding = encode.fit(np.full((5, 1), value, np.float32))
    later = np.float32([[value], [0], [1e6], [-1e6]])
    assert not encode.encode(later, encoding).any()


@pytest.mark.parametrize("step", [1, 0.5, 4])
def test_whole_numbers_stay_apart(rng, step):
    x = np.arange(0, 128) * step - 50
    codes = used(x)
    assert (np.diff(codes) == np.diff(codes)[0]).all() and np.diff(codes)[0] > 0
    np.testing.assert_array_equal(used(np.arange(256)), np.arange(256))


def test_channels_of_a_window_have_one_encoding_each(rng):
    x = (rng.normal(size=(50, 1, 20, 3)) * [1, 1000, 1e-5]).astype(np.float32)
    encoding = encode.fit(x)
    assert encoding.low.shape == encoding.exponent.shape == (3,)
    for c in range(3):
        one = encode.fit(x[..., c].reshape(-1, 1))
        assert (one.low[0], one.exponent[0]) == (encoding.low[c], encoding.exponent[c])
        np.testing.assert_array_equal(encode.encode(x, encoding)[..., c],
                                      encode.encode(x[..., c:c + 1], one)[..., 0])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1,
                max_size=30))
def test_any_finite_feature_has_a_table_in_range(values):
    x = np.float32(values)[:, None]
    encoding = encode.fit(x)
    assert encoding.low.dtype == np.float32 and np.isfinite(encoding.low).all()
    assert LEAST <= encoding.exponent[0] <= MOST
    codes = encode.encode(x, encoding)[:, 0].astype(int)
    order = np.argsort(x[:, 0])
    assert (np.diff(codes[order]) >= 0).all()


def test_the_test_split_does_not_change_the_table(rng):
    """fit sees train only; the order of its rows does not matter either."""
    x = rng.normal(size=(100, 4)).astype(np.float32)
    for one, other in zip(encode.fit(x), encode.fit(x[::-1])):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("scale, most", [(255, 1), (15.9375, 16)])
def test_pictures_of_numbers_become_bytes_by_half_even_rounding(scale, most):
    v = np.float32(np.concatenate([np.arange(0, 511) / 510, np.arange(256) / 255])) * most
    v[-1] = most
    v = v[:, None]
    codes, how = encode.picture_bytes([v])
    assert codes[0].dtype == np.uint8 and str(scale) in how
    exact = [round(fractions.Fraction(float(one)) * fractions.Fraction(scale)) for one in v[:, 0]]
    assert codes[0][:, 0].tolist() == exact
    assert codes[0][511:, 0].tolist() == list(range(256))


def test_pictures_of_other_scales_are_left_to_fit():
    x = [np.float32([[0.5], [16.5]])]
    assert encode.picture_bytes(x)[0] is x
    assert encode.picture_bytes([np.float32([[-1]])])[0][0].dtype == np.float32
    assert encode.picture_bytes([np.float32([[0], [255]])])[0][0].tolist() == [[0], [255]]
    assert encode.picture_bytes([np.float32([[0], [256]])])[0][0].dtype == np.float32
