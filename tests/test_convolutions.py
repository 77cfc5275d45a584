"""Convolutions, windows and pictures of any shape in every engine on a PC."""
import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from test_firmware import STRICT, host_files
from test_integer import LIMIT, small_steps

import integer
import oracle
import plan
from benchmarks import firmware
from deploy import engines, to_c, to_firmware, to_onnx, to_web
from deploy.windows import windows_of

GREY = (28, 28, 1)
LINES = [
    *[(f"conv{kernel}x3/{stride}", (9, 10, 2)) for kernel, stride in
      zip(range(1, 8), (1, 2, 3, 1, 2, 3, 1))],
    ("conv5x8/2 conv3x16 max2 conv3x16", GREY), ("crop24 mean2 conv3x17 max2 9", GREY),
    ("crop7 conv2x33", (10, 11, 3)), ("crop5 6", (8, 7, 3)), ("mean2 5", (9, 8, 3)),
    ("mean2 conv3x4/2 max2 7", (1, 40, 3)), ("conv3x5 conv7x2/3", (40, 1, 1)), ("4", (5, 4, 3)),
    ("conv1x1", (1, 1, 1)), ("crop9 crop6 conv2x3", (12, 12, 1)), ("crop8 crop7 5", (11, 10, 1)),
    ("crop9 crop6 mean2 conv2x3", (12, 11, 1)),     # the second crop is of what the first one left
    ("conv2x4 conv2x3 conv2x4 conv3x5/2 conv1x6 conv2x4 max2 5", (13, 14, 1))]
WIDTHS = [(8, 8), (7, 3), (4, 4), (3, 8), (2, 1), (1, 8)]
SAME_NEED = [HealthCheck.function_scoped_fixture]       # it keeps nothing
BUILDS = [(*engines.C_FLAGS,), (*engines.C_FLAGS, engines.PLAIN)]


def images_of(rng, steps, count):
    """uint8 [count, I]: as engines outside take them."""
    images = rng.integers(0, 256, (count, math.prod(steps[0].before)), dtype=np.uint8)
    images[0], images[1] = 0, 255
    return images


def cases():
    """Every line, with the widths in turn."""
    return [(line, shape, WIDTHS[i % len(WIDTHS)]) for i, (line, shape) in enumerate(LINES)]


def make(line, shape, bits, classes=4):
    """(a random Network, images, the oracle's accumulators)."""
    rng = np.random.default_rng(len(line))
    network = oracle.random_network(rng, plan.parse(line, shape, classes), *bits)
    images = images_of(rng, network.steps, 19)
    return network, images, oracle.run(network, images)


@pytest.mark.parametrize("line, shape, bits", cases())
def test_onnx_equals_oracle(line, shape, bits):
    network, images, want = make(line, shape, bits)
    np.testing.assert_array_equal(engines.make_onnx(to_onnx.export(network))(images), want)


@settings(max_examples=40)
@given(steps=small_steps(), bits=st.tuples(st.integers(1, 8), st.integers(1, 8)))
@pytest.mark.slow
def test_onnx_equals_oracle_on_any_steps(steps, bits):
    rng = np.random.default_rng(0)
    network, images = oracle.random_network(rng, steps, *bits), images_of(rng, steps, 5)
    np.testing.assert_array_equal(engines.make_onnx(to_onnx.export(network))(images),
                                  oracle.run(network, images))


@pytest.mark.parametrize("build", BUILDS, ids=["native", "plain"])
@pytest.mark.parametrize("line, shape, bits", cases())
@pytest.mark.slow
def test_c_under_sanitizers_equals_oracle(need, tmp_path, line, shape, bits, build):
    network, images, want = make(line, shape, bits)
    run = need(engines.make_c_program, to_c.export(network)[0], tmp_path,
               flags=(*build, "-O1", *engines.SANITIZERS))
    np.testing.assert_array_equal(run(images), want)


@settings(max_examples=8, suppress_health_check=SAME_NEED)
@given(steps=small_steps(), bits=st.tuples(st.integers(1, 8), st.integers(1, 8)))
@pytest.mark.slow
def test_c_equals_oracle_on_any_steps(need, steps, bits):
    rng = np.random.default_rng(0)
    network, images = oracle.random_network(rng, steps, *bits), images_of(rng, steps, 5)
    want = oracle.run(network, images)
    for build in BUILDS:
        run = need(engines.make_c, to_c.export(network)[0], flags=(*build, "-O1"))
        np.testing.assert_array_equal(run(images), want)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("line, shape, bits", [cases()[i] for i in (7, 8, 9)])
@pytest.mark.slow
def test_c_is_strict_c99(need, tmp_path, line, shape, bits, compiler):
    network, images, want = make(line, shape, bits)
    flags = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-O2")
    for more in ((), (engines.PLAIN,), ("-march=native",)):
        run = need(engines.make_c, to_c.export(network)[0], compiler, (*flags, *more))
        np.testing.assert_array_equal(run(images), want)


def at_the_limit(rng, line, shape, bits):
    """A Network in which each accumulator of every layer can reach 2**24 - 1, either way."""
    steps, layers, x_qmax = plan.parse(line, shape, 3), [], 255
    for step in steps:
        if not step.has_weights:
            continue
        _, qmax = integer.code_range(bits[0])
        w_q = rng.choice([-qmax, qmax], step.weights)
        most = x_qmax * np.abs(w_q).sum(0)
        b_q = np.where(rng.random(len(most)) < 0.5, 1, -1) * (LIMIT - 1 - most)
        layers.append((w_q, b_q, rng.integers(10, 25, len(most))))
        x_qmax = integer.code_range(bits[1], signed=False)[1]
    layers[-1] = (*layers[-1][:2], None)
    return integer.make_network(layers, *bits, 0, steps)


@settings(max_examples=5, suppress_health_check=SAME_NEED)
@given(seed=st.integers(0, 2**31), line=st.sampled_from(["conv3x16 conv2x3", "conv5x2/2 max2 9"]),
       bits=st.sampled_from([(8, 8), (4, 8), (1, 8)]))
@pytest.mark.slow
def test_networks_at_the_limits_of_the_proof_agree_everywhere(need, seed, line, bits):
    rng = np.random.default_rng(seed)
    network = at_the_limit(rng, line, (9, 9, 1), bits)
    images = np.concatenate([images_of(rng, network.steps, 5), np.full((1, 81), 255, np.uint8),
                             np.where(rng.random((4, 81)) < 0.5, 255, 0).astype(np.uint8)])
    want = oracle.run(network, images)
    for engine in ("numpy", "jax"):
        np.testing.assert_array_equal(integer.make_engine(network, engine)(images), want)
    np.testing.assert_array_equal(engines.make_onnx(to_onnx.export(network))(images), want)
    for build in BUILDS:
        run = need(engines.make_c, to_c.export(network)[0], flags=(*build, "-O1"))
        np.testing.assert_array_equal(run(images), want)


@pytest.mark.parametrize("line, bits", [
    ("conv5x8/2 conv3x16 max2 conv3x16", (4, 4)), ("crop20 mean2 conv3x5/3 conv2x7 6", (8, 8)),
    ("mean2 conv7x9 max2 max2", (1, 3)), ("crop9 12", (3, 8)), ("", (8, 8))])
@pytest.mark.slow
def test_page_equals_oracle(tmp_path, line, bits):
    network, images, want = make(line, GREY, bits)
    path = tmp_path / "mlp.html"
    path.write_text(to_web.export(network), "utf-8")
    try:
        with engines.open_page(path) as page:
            np.testing.assert_array_equal(engines.run_page(page, images), want)
    except engines.Missing as missing:
        pytest.skip(str(missing))


def test_onnx_of_a_convolution_needs_no_newer_runtime():
    import onnx
    model = onnx.load_from_string(to_onnx.export(make(*cases()[8])[0]))
    assert (model.opset_import[0].version, model.ir_version) == (13, 7)


@pytest.mark.parametrize("lanes, line, shape, bits", [
    (lanes, *case) for i, case in enumerate(cases())
    for lanes in ((8, 16, 32) if case[1] == GREY else ((32, 16, 8)[i % 3],))])
def test_chips_engine_equals_oracle(need, lanes, line, shape, bits):
    network, images, want = make(line, shape, bits)
    images[2:4] = [[170], [85]]                 # the most digits of one sign
    if "mean2" in line and shape[2] > 1:
        with pytest.raises(ValueError, match="begins with .*, which firmware does not do; export"):
            host_files(network, lanes)
        return
    run = need(engines.make_c, host_files(network, lanes), flags=STRICT)
    np.testing.assert_array_equal(run(images), oracle.run(network, images))


@settings(max_examples=15, suppress_health_check=SAME_NEED)
@given(steps=small_steps(), bits=st.tuples(st.integers(1, 8), st.integers(1, 8)),
       lanes=st.sampled_from([8, 16, 32]))
def test_chips_engine_equals_oracle_on_any_steps(need, steps, bits, lanes):
    rng = np.random.default_rng(0)
    network = oracle.random_network(rng, steps, *bits)
    images = images_of(rng, steps, 9)
    try:
        files = host_files(network, lanes)
    except ValueError as error:
        assert "which firmware does not do" in str(error)
        return
    np.testing.assert_array_equal(need(engines.make_c, files)(images), oracle.run(network, images))


@pytest.mark.parametrize("compiler, lanes", [("gcc", 8), ("clang", 16), ("gcc", 32), ("clang", 32)])
def test_chips_engine_is_clean_under_sanitizers(need, tmp_path, compiler, lanes):
    network, images, want = make("conv5x6/2 conv3x16 max2 conv3x9 20", GREY, (3, 4))
    flags = ("-std=c99", "-O1", *engines.SANITIZERS)
    run = need(engines.make_c_program, host_files(network, lanes), tmp_path, compiler, flags)
    np.testing.assert_array_equal(run(images), want)


@pytest.mark.parametrize("line, shape, bits", [
    ("crop24 conv5x8/2 conv3x16 max2 conv3x12", GREY, (3, 4)),
    ("conv3x5 max2 9", (1, 30, 2), (4, 8)), ("conv3x6/2 max2", (16, 17, 3), (1, 5))])
@pytest.mark.parametrize("chip", to_firmware.CHIPS)
def test_chip_gives_the_oracles_integers_and_needs_what_was_said(need, tmp_path, chip, line, shape,
                                                                 bits):
    network, images, _ = make(line, shape, bits)
    got = need(firmware.measure, network, chip, images[:4], tmp_path)
    assert got["mismatches"] == 0 and got["images"] == 4
    flash, ram = to_firmware.export(network, [chip])[1][chip]
    assert got["flash"] <= flash and ram - 300 < got["ram"] <= ram


def test_windows_tell_every_code_once(rng):
    """The flat windows that engines read are the walk's patches."""
    for line, shape in LINES:
        steps = plan.parse(line, shape, 4)
        step, window = windows_of(steps)[0]
        x = rng.permutation(math.prod(shape)).astype(np.int32)
        start = window.start + np.arange(window.high)[:, None] * window.down
        start = start + np.arange(window.wide) * window.across
        inside = np.arange(window.rows)[:, None] * window.line + np.arange(window.width)
        found = x[start[:, :, None, None] + inside]
        seen = x.reshape(1, *shape)
        for crop in itertools.takewhile(lambda step: step.kind == "crop", steps):
            seen = plan._crop(seen, crop)
        if step.kind == "conv":
            expected = plan.patches(seen.reshape(1, *step.before), step)
        elif step.kind == "dense":
            expected = x
        else:
            expected = np.stack(plan.windows(seen.reshape(1, *step.before), step), axis=-2)
        np.testing.assert_array_equal(found.ravel(), expected.ravel())
