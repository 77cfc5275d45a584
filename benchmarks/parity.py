"""The same integers in every engine: logits against an int64 oracle; exit 1 if any differ.

python3 -m benchmarks.parity [--WEIGHTS=FILE] [--KEY=value ...]
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
import data
import integer
import model
import quant
from deploy import engines
from files import run_script
from main_export import load_quantized
from main_inference import default_weights

RANDOM_IMAGES = 100_000         # of uniform bytes: codes and accumulators that no digit reaches
SLOW_RANDOM_IMAGES = 10_000     # for JavaScript
CHUNK = 10_000


def oracle(layers, activation_bits, images):
    """Accumulators of the last layer by int64 arithmetic; shares no code with the engines.

    Args:
      layers: as from checkpoint.load; images: uint8 [N, I].
    Returns:
      int64 [N, classes].
    """
    x = images.astype(np.int64)
    for i, layer in enumerate(layers):
        # BLAS has no int64 product; float64 holds these sums, below 2**24, exactly.
        products = x.astype(np.float64) @ layer["w_q"].astype(np.float64)
        acc = products.astype(np.int64) + layer["b_q"]
        if i + 1 == len(layers):
            return acc
        shift = (int(layers[i + 1]["x_exponent"]) - int(layer["x_exponent"])
                 - layer["w_exponent"].astype(np.int64)).clip(None, 40)
        floor, rest = acc >> shift, acc & (1 << shift) - 1
        half = np.int64(1) << shift - 1
        rounds_up = (rest > half) | (rest == half) & (floor % 2 == 1)
        x = np.clip(floor + rounds_up, 0, 2**activation_bits - 1)


def training_forward(layers, meta):
    """model.forward as training runs it, fake-quantized, from weights and scales made of the codes.

    The float weights of training are not in the file; code * scale rounds to the same code, so the
    fake-quantized numbers are the same.
    """
    params, scales = [], []
    for layer in layers:
        x_scale = np.ldexp(np.ones((1, 1), np.float32), int(layer["x_exponent"]))
        w_scale = np.ldexp(np.float32(1), layer["w_exponent"].astype(np.int32))[None]
        b = (layer["b_q"] * (x_scale * w_scale)[0]).astype(np.float32)
        params.append((layer["w_q"] * w_scale, b))
        scales.append((x_scale, w_scale))
    params, scales = jax.device_put((params, scales))
    spec = quant.Spec(meta["weight_bits"], meta["activation_bits"], meta["per_channel"])
    unit = integer.logit_scale(layers)
    return lambda images: np.asarray(model.predict(params, images, scales, spec=spec)) / unit


def in_batches(run, size):
    """run, on `size` images at a time."""
    return lambda images: np.concatenate([run(images[at:at + size])
                                          for at in range(0, len(images), size)])


def make_engines(layers, meta, stack):
    """Name of each engine to (a function that makes it, how many random images it gets).

    stack: ExitStack that closes the browser.
    """
    bits = meta["activation_bits"]

    def onnx(batch):
        try:
            from deploy import to_onnx
        except ImportError:
            raise engines.Missing("no onnx: pip install -r requirements-export.txt") from None
        return in_batches(engines.make_onnx(to_onnx.export(layers, meta)), batch)

    def c():
        from deploy import to_c
        return engines.make_c(to_c.export(layers, meta)[0])

    def javascript():
        from deploy import to_web
        page = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "mlp.html"
        page.write_text(to_web.export(layers, meta))
        return in_batches(partial(engines.run_page, stack.enter_context(engines.open_page(page))),
                          1_000)

    return {
        "training forward (float32)": (lambda: training_forward(layers, meta), RANDOM_IMAGES),
        "NumPy int32": (lambda: in_batches(integer.make_engine(layers, bits, "numpy"), CHUNK), 0),
        "JAX int8": (lambda: integer.make_engine(layers, bits), RANDOM_IMAGES),
        **{f"ONNX Runtime, batch {batch:,}": (partial(onnx, batch), RANDOM_IMAGES)
           for batch in (1, 128, 10_000)},
        "C": (c, RANDOM_IMAGES),
        "JavaScript": (javascript, SLOW_RANDOM_IMAGES),
    }


def main(argv):
    settings = config.load(argv, __doc__)
    layers, meta = load_quantized(default_weights(settings))
    _, test = data.load(settings.DATASET, settings.DATA_DIR, tuple(meta["layer_sizes"]))
    rng = np.random.default_rng(0)
    chunks = [test.images] + [rng.integers(0, 256, (CHUNK, test.images.shape[1]), dtype=np.uint8)
                              for _ in range(RANDOM_IMAGES // CHUNK)]
    start = time.perf_counter()
    wanted = [oracle(layers, meta["activation_bits"], images) for images in chunks]
    print("| engine | images | mismatched logits | seconds |\n|---|---:|---:|---:|\n"
          f"| NumPy int64 (the oracle) | {sum(map(len, chunks)):,} | – | "
          f"{time.perf_counter() - start:.1f} |")
    different = 0
    with ExitStack() as stack:
        for name, (make, random_images) in make_engines(layers, meta, stack).items():
            try:
                run = make()
            except engines.Missing as missing:
                print(f"| {name} | skipped: {missing} | | |")
                continue
            used = 1 + random_images // CHUNK
            start = time.perf_counter()
            logits = [run(images) for images in chunks[:used]]
            seconds = time.perf_counter() - start
            mismatches = sum(int((got != want).sum()) for got, want in zip(logits, wanted))
            different += mismatches
            print(f"| {name} | {sum(map(len, logits)):,} | {mismatches} | {seconds:.1f} |",
                  flush=True)
    print(f"\n{len(test.images):,} test images, the others random bytes; "
          f"{meta['layer_sizes'][-1]} logits an image. Seconds include compiling.")
    sys.exit(different > 0)


if __name__ == "__main__":
    run_script(main)
