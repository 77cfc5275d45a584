"""What the products of a training step take by type, alone and with their conversions.

python3 -m benchmarks.products   writes results/products.json; `taskset -c 0` before it: one thread
"""
from collections import namedtuple
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import config
import narrow
import quant
import results
import runtime
from benchmarks import timing
from files import check_writable

BATCH, INPUTS, OUTPUTS = 128, 784, 256      # of the default network's first layer
REPEATS, CALLS = 9, 50


def contenders():
    """{kernel: {type: function}}: of bytes x, float32 weights w and gradient g, as in a step."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (BATCH, INPUTS)).astype(np.uint8)
    w = rng.normal(0, 0.05, (INPUTS, OUTPUTS)).astype(np.float32)
    g = rng.normal(0, 1e-3, (BATCH, OUTPUTS)).astype(np.float32)
    x_scale, w_scale = np.full((1, 1), 2.0**-8, np.float32), np.full((1, OUTPUTS), 2.0**-9, np.float32)
    product = partial(lax.dot, preferred_element_type=jnp.float32)

    def forward(compute):
        hyper = namedtuple("Hyper", "WEIGHT_BITS COMPUTE")(8, compute)
        return lambda x, w, g, x_scale, w_scale: quant.dot(x, w, x_scale, w_scale, hyper)

    def folded(dtype):
        return lambda x, w, g, x_scale, w_scale: product(x.astype(dtype).T, g.astype(dtype))

    def apart(x, w, g, x_scale, w_scale):
        return product(narrow.transposed(x, w_scale), g.astype(jnp.bfloat16))

    arrays = jax.device_put((x, w, g, x_scale, w_scale))
    kernels = {"`x w`": {compute: forward(compute) for compute in quant.COMPUTES},
               "`x^T g`": {"float32": folded(jnp.float32), "bfloat16": folded(jnp.bfloat16)},
               "`x^T g` of a transposed copy": {"bfloat16": apart}}

    def ready(function):
        run = jax.jit(function)
        return lambda: jax.block_until_ready(run(*arrays))

    return {kernel: {name: ready(function) for name, function in by_type.items()}
            for kernel, by_type in kernels.items()}


def main(argv):
    settings = config.load(argv, __doc__)
    check_writable(settings.RESULTS_DIR)
    runtime.set_up(settings.CACHE_DIR)
    flat = {(kernel, name): function for kernel, by_type in contenders().items()
            for name, function in by_type.items()}
    times, seconds = timing.in_turns(flat, REPEATS, CALLS), {}
    for (kernel, name), values in times.items():
        seconds.setdefault(kernel, {})[name] = values
        print(f"{kernel:30s} {name:9s} {timing.spread([1e6 * value for value in values], 0)} us")
    results.write_result(Path(settings.RESULTS_DIR) / "products.json", {}, seconds=seconds,
                         shape=[BATCH, INPUTS, OUTPUTS])


if __name__ == "__main__":
    config.run_script(main)
