"""The same integers in every engine: logits against an int64 oracle; exit 1 if any differ.

python3 -m benchmarks.parity [--WEIGHTS=FILE] [--KEY=value ...]

Of the model that the switches name and, unless WEIGHTS names a file, of one of each recipe.
"""
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax
import numpy as np

import config
import integer
import model
from benchmarks import load_network
from deploy import engines, to_c
from machine import runtime, script
from report import results

RANDOM_IMAGES = 100_000         # of uniform bytes: codes and accumulators that no digit reaches
SLOW_RANDOM_IMAGES = 10_000     # for JavaScript
CHUNK = 10_000


def round_half_even(acc, shift):
    """acc * 2**-shift to the nearest integer, int64."""
    floor, rest = acc >> shift, acc & (1 << shift) - 1
    half = np.int64(1) << shift - 1
    return floor + ((rest > half) | (rest == half) & (floor % 2 == 1))


def oracle(network, images):
    """Accumulators of the last layer by int64 arithmetic; shares no code with the engines.

    Args:
      network: integer.Network; images: uint8 [N, pixels].
    Returns:
      int64 [N, classes].
    """
    x = images.astype(np.int64)
    if network.input < 28:
        start, end = 14 - network.input, 14 + network.input
        x = x.reshape(-1, 28, 28)
        sums = sum(x[:, start + row:end:2, start + column:end:2]
                   for row, column in np.ndindex(2, 2))
        x = round_half_even(sums, 2).reshape(-1, network.input**2)
    for layer in network.layers:
        # BLAS has no int64 product; float64 holds these sums, below 2**24, exactly.
        products = x.astype(np.float64) @ layer.w_q.astype(np.float64)
        acc = products.astype(np.int64) + layer.b_q
        if layer.shift is None:
            return acc
        codes = round_half_even(acc, layer.shift.astype(np.int64))
        x = np.clip(codes, 0, 2**network.activation_bits - 1)


def training_forward(network):
    """model.forward as training runs it, fake-quantized: images to accumulators, float32."""
    layers, hyper = model.from_network(network)
    layers, unit = jax.device_put(layers), np.ldexp(np.float32(1), network.logit_exponent)
    return lambda images: np.asarray(model.predict(layers, images, hyper=hyper)) / unit


def in_batches(run, size):
    """run, on `size` images at a time."""
    return lambda images: np.concatenate([run(images[at:at + size])
                                          for at in range(0, len(images), size)])


def make_onnx(network, batch):
    """ONNX Runtime, on `batch` images at a time."""
    try:
        from deploy import to_onnx
    except ImportError:
        raise engines.Missing("no onnx: pip install -r requirements-export.txt") from None
    return in_batches(engines.make_onnx(to_onnx.export(network)), batch)


def make_c(network, *flags):
    """The C engine; flags: compiler's, besides the usual ones."""
    return engines.make_c(to_c.export(network)[0], flags=(*engines.C_FLAGS, *flags))


def make_sanitized_c(network, stack, *flags):
    """The C engine under sanitizers of addresses and undefined behaviour, which end it."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    return engines.make_c_program(to_c.export(network)[0], folder,
                                  flags=(*engines.C_FLAGS, *engines.SANITIZERS, *flags))


def make_javascript(network, stack):
    """The web page's predictor, in a browser that the ExitStack closes."""
    from deploy import to_web
    try:
        text = to_web.export(network)
    except ValueError as error:                 # the page draws 28 x 28 pixels only
        raise engines.Missing(str(error)) from None
    page = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "mlp.html"
    page.write_text(text, encoding="utf-8")
    return in_batches(partial(engines.run_page, stack.enter_context(engines.open_page(page))),
                      1_000)


def make_engines(network, stack, random_images):
    """Name of each engine to (a function that makes it, how many random images it gets)."""
    return {
        "training forward (float32)": (partial(training_forward, network), random_images),
        "NumPy int32": (lambda: in_batches(integer.make_engine(network, "numpy"), CHUNK), 0),
        "JAX int8": (partial(integer.make_engine, network), random_images),
        **{f"ONNX Runtime, batch {batch:,}": (partial(make_onnx, network, batch), random_images)
           for batch in (1, 128, 10_000)},
        "C": (partial(make_c, network), random_images),
        "C, plain": (partial(make_c, network, engines.PLAIN), random_images),
        "C, sanitized": (partial(make_sanitized_c, network, stack), random_images),
        "C, plain, sanitized": (partial(make_sanitized_c, network, stack, engines.PLAIN),
                                random_images),
        "JavaScript": (partial(make_javascript, network, stack), SLOW_RANDOM_IMAGES),
    }


def compare(network, test_images, random_images):
    """Run every engine that is here on the test images and random ones.

    Args:
      network: integer.Network; test_images: uint8 [N, pixels]; random_images: how many more.
    Returns:
      (rows of the table, how many logits differ from the oracle's).
    """
    rng = np.random.default_rng(0)
    chunks = [test_images] + [rng.integers(0, 256, (CHUNK, test_images.shape[1]), dtype=np.uint8)
                              for _ in range(random_images // CHUNK)]
    start = time.perf_counter()
    wanted = [oracle(network, images) for images in chunks]
    rows = [["NumPy int64 (the oracle)", f"{sum(map(len, chunks)):,}", "–",
             f"{time.perf_counter() - start:.1f}"]]
    different = 0
    with ExitStack() as stack:
        for name, (make, random_count) in make_engines(network, stack, random_images).items():
            start = time.perf_counter()
            try:
                run = make()
            except engines.Missing as missing:
                rows.append([name, f"skipped: {missing}", "–", "–"])
                continue
            logits = [run(images) for images in chunks[:1 + random_count // CHUNK]]
            mismatches = sum(int((got != want).sum()) for got, want in zip(logits, wanted))
            different += mismatches
            rows.append([name, f"{sum(map(len, logits)):,}", mismatches,
                         f"{time.perf_counter() - start:.1f}"])
    return rows, different


def main(argv):
    settings = config.load(argv, __doc__)
    runtime.set_up(settings.CACHE_DIR)
    paths = [settings.WEIGHTS]
    if not settings.WEIGHTS:
        paths += sorted(map(str, Path(settings.WEIGHTS_DIR).glob("recipes/*")))
    wrong = 0
    for name, random_images in zip(paths, [RANDOM_IMAGES] + [CHUNK] * len(paths)):
        network, dataset, path = load_network(settings._replace(WEIGHTS=name))
        rows, different = compare(network, dataset.test.images,
                                  random_images)
        wrong += different
        print(results.table(["engine", "images", "mismatched logits", "seconds"], rows))
        print(f"\n{path}, {integer.name(network)}: {len(dataset.test.images):,} test images, the "
              f"others random bytes; {integer.sizes(network)[-1]} logits an image. "
              "Seconds include compiling. C is plain where a processor has no dot product of "
              "bytes.\n")
    print(f"{len(paths)} models, {wrong} mismatched logits")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    script.run(main)
