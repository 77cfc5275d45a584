"""Every engine gives the oracle's integers, on every quantized weights file that is shipped."""
import functools

import jax
import numpy as np
import pytest
from test_deploy import BUILDS, CASES, in_batches, make_network, random_images
from test_firmware import host_files

import convert
import data
import integer
import model
import oracle
from conftest import ROOT
from deploy import engines, to_c, to_onnx, to_web
from formats import checkpoint

FILES = ["weights_int8.npz", *sorted(f"recipes/{path.name}"
                                     for path in (ROOT / "weights/recipes").iterdir()
                                     if path.suffix in (".npz", ".nqat"))]
CHUNK = 10_000
# (file, how many test images, how many of uniform bytes: codes and accumulators of no picture).
SOME = [(file, 500, 500) for file in FILES]
ALL = [pytest.param(file, 10_000, 100_000 if file == FILES[0] else 10_000, marks=pytest.mark.long)
       for file in FILES]
ON_CHIPS = [pytest.param(file, 10_000, 100_000, marks=pytest.mark.long)
            for file in FILES if file.endswith(".nqat")]


@functools.cache
def load(file):
    """The integer.Network of a shipped file."""
    return checkpoint.load_quantized(ROOT / "weights" / file)[0]


@functools.cache
def chunk(number):
    """uint8 [CHUNK, 784]: the test images for 0, else uniform bytes."""
    if number == 0:
        return data.load(ROOT / "datasets/mnist").test.images
    return np.random.default_rng(number).integers(0, 256, (CHUNK, 784), dtype=np.uint8)


@functools.cache
def wanted(file, number, count):
    """The oracle's accumulators of the first `count` images of a chunk."""
    return oracle.run(load(file), chunk(number)[:count])


def check(run, file, test_images, random_images):
    """Fail unless run gives the oracle's integers of so many images of either kind."""
    counts = [test_images, *np.diff([*range(0, random_images, CHUNK), random_images])]
    for number, count in enumerate(counts):
        np.testing.assert_array_equal(run(chunk(number)[:count]), wanted(file, number, count))


def training_forward(network):
    """model.forward as training runs it, fake-quantized: images to accumulators, float32."""
    layers, hyper = convert.from_network(network)
    layers, unit = jax.device_put(layers), np.ldexp(np.float32(1), network.logit_exponent)
    return lambda images: np.asarray(model.predict(layers, images, hyper=hyper)) / unit


@pytest.mark.parametrize("weight_bits, activation_bits, input", CASES[:-2])
def test_training_forward_equals_oracle(weight_bits, activation_bits, input):
    network, images = make_network(weight_bits, activation_bits, input), random_images(200)
    np.testing.assert_array_equal(training_forward(network)(images), oracle.run(network, images))


@pytest.mark.parametrize("file, test_images, random_images", SOME + ALL)
@pytest.mark.slow
def test_training_and_jax_and_numpy(file, test_images, random_images):
    network = load(file)
    for run in (training_forward(network), integer.make_engine(network)):
        check(run, file, test_images, random_images)
    check(integer.make_engine(network, "numpy"), file, test_images, min(random_images, CHUNK))


@pytest.mark.parametrize("file, test_images, random_images", SOME + ALL)
def test_onnx_in_any_batch(file, test_images, random_images):
    run = engines.make_onnx(to_onnx.export(load(file)))
    for batch in (1, 128, CHUNK):
        check(in_batches(run, batch), file, test_images, random_images)


@pytest.mark.parametrize("build", [(), (engines.PLAIN,)])
@pytest.mark.parametrize("file, test_images, random_images", SOME)
@pytest.mark.slow
def test_c(need, file, test_images, random_images, build):
    flags = "-std=c99", "-O1", "-march=native", *build      # compiled in half of -O3's time
    run = need(engines.make_c, to_c.export(load(file))[0], flags=flags)
    check(run, file, test_images, random_images)


@pytest.mark.parametrize("build", [*BUILDS, engines.SANITIZERS,
                                   (engines.PLAIN, *engines.SANITIZERS)])
@pytest.mark.parametrize("file, test_images, random_images", ALL)
def test_c_as_it_is_used_and_under_sanitizers(need, tmp_path, file, test_images, random_images,
                                              build):
    run = need(engines.make_c_program, to_c.export(load(file))[0], tmp_path,
               flags=(*engines.C_FLAGS, *build))
    check(run, file, test_images, random_images)


@pytest.mark.parametrize("lanes", [8, 32])
@pytest.mark.parametrize("file, test_images, random_images", ON_CHIPS)
def test_engine_for_chips_under_sanitizers(need, tmp_path, file, test_images, random_images, lanes):
    run = need(engines.make_c_program, host_files(load(file), lanes), tmp_path)
    check(run, file, test_images, random_images)


@pytest.mark.parametrize("test_images, random_images",
                         [(500, 500), pytest.param(10_000, 10_000, marks=pytest.mark.long)])
@pytest.mark.slow
def test_javascript(need, tmp_path, exits, test_images, random_images):
    paths = [tmp_path / f"{i}.html" for i in range(len(FILES))]
    for path, file in zip(paths, FILES):
        path.write_text(to_web.export(load(file)), "utf-8")
    page = need(exits.enter_context, engines.open_page(paths[0]))
    for path, file in zip(paths, FILES):
        page.goto(path.as_uri())
        check(in_batches(functools.partial(engines.run_page, page), 1_000), file,
              test_images, random_images)
