"""How fast training is, against the machine's limit and against other ways to write it.

python3 -m benchmarks.training [--KEY=value ...]   writes results/training_bench.json
"""
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import config
import model
import parallel
import training
from ablation import load_splits
from files import run_script, write_result

REPEATS = 5
LANES = 27                      # of the learning-rate ablation
TORCH_STEPS = 60                # PyTorch's epoch is extrapolated from these many steps


def flops_per_epoch(layer_sizes, batch, steps):
    """Operations of an epoch's matrix products: forward, dw, and dx but the first."""
    products = [i * o for i, o in zip(layer_sizes[:-1], layer_sizes[1:])]
    return 2 * batch * steps * (3 * sum(products) - products[0])


def gemm_rate(size=2048):
    """A timed function: seconds of one float32 [size, size] product, and its operations."""
    a = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(lambda a: a @ a)
    return lambda: multiply(a).block_until_ready(), 2 * size**3


def our_epoch(recipe, rate, train):
    """One epoch of one lane, exactly as training.fit runs it."""
    state = training.init_lane(jnp.float32(rate), jnp.uint32(0), recipe)
    epoch = jax.jit(partial(training.train_epoch, recipe=recipe,
                            mesh=parallel.make_mesh(1, data_parallel=False)))
    images, labels = jnp.asarray(train.images), jnp.asarray(train.labels)
    return lambda: jax.block_until_ready(epoch(state, jnp.float32(rate), images, labels))


def floor_epoch(recipe, steps):
    """An epoch's matrix products and update alone: what no quantizer and no loss can undercut."""
    (w1, _), (w2, _), (w3, _) = model.init(jax.random.key(0), recipe.layer_sizes)
    x = jax.random.uniform(jax.random.key(1), (recipe.batch_size, recipe.layer_sizes[0])) * 1e-2

    def step(weights, _):
        w1, w2, w3 = weights
        h1 = x @ w1
        h2 = h1 @ w2
        d3 = h2 @ w3
        d2 = d3 @ w3.T
        d1 = d2 @ w2.T
        return (w1 - 1e-6 * (x.T @ d1), w2 - 1e-6 * (h1.T @ d2), w3 - 1e-6 * (h2.T @ d3)), None

    epoch = jax.jit(lambda weights: lax.scan(step, weights, length=steps)[0])
    return lambda: jax.block_until_ready(epoch((w1, w2, w3)))


def plain_loop_epoch(recipe, rate, train):
    """A Python loop that feeds float NumPy batches to a jitted float32 step, as tutorials do."""
    params = model.init(jax.random.key(0), recipe.layer_sizes)
    images = train.images.astype(np.float32) / 255

    def loss(params, x, labels):
        for i, (w, b) in enumerate(params):
            x = (x if i == 0 else jax.nn.relu(x)) @ w + b[None]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), labels[:, None], 1))

    @jax.jit
    def step(params, x, labels):
        value, grads = jax.value_and_grad(loss)(params, x, labels)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), value

    def epoch():
        now, losses = params, []
        order = np.random.default_rng(0).permutation(len(images))
        for start in range(0, len(images) - recipe.batch_size + 1, recipe.batch_size):
            rows = order[start:start + recipe.batch_size]
            now, value = step(now, images[rows], train.labels[rows].astype(np.int32))
            losses.append(float(value))
    return epoch


def torch_epoch(recipe, rate, train, qat):
    """Some steps of eager PyTorch, float32 or its own QAT (torch.ao); None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    import warnings
    warnings.filterwarnings("ignore")           # torch.ao announces its own retirement
    torch.manual_seed(0)
    sizes, layers = recipe.layer_sizes, []
    for i, o in zip(sizes[:-1], sizes[1:]):
        layers += [torch.nn.Linear(i, o), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1])
    if qat:
        net = torch.nn.Sequential(torch.ao.quantization.QuantStub(), *net)
        net.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        net = torch.ao.quantization.prepare_qat(net.train())
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    images = torch.from_numpy(train.images.astype(np.float32) / 255)
    labels = torch.from_numpy(train.labels.astype(np.int64))

    def steps():
        order = torch.randperm(len(images))[:TORCH_STEPS * recipe.batch_size]
        for rows in order.reshape(TORCH_STEPS, recipe.batch_size):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    return steps


def interleaved(contenders):
    """Seconds by name, REPEATS each, taken in turns so that noise hits all alike.

    contenders: dict of name to (function, factor from its time to the reported one).
    """
    times = {name: [] for name in contenders}
    for function, _ in contenders.values():
        function()                              # compiles, warms up
    for _ in range(REPEATS):
        for name, (function, factor) in contenders.items():
            start = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - start) * factor)
    return times


def whole_run(*arguments, runs, cache=""):
    """main_train.py in its own process, `runs` times: its seconds by part, and its results.

    cache: folder of compiled programs; empty: a cold start each time.
    """
    results = []
    for seed in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-B", "main_train.py", *arguments, f"--SEED={seed}",
                            f"--CACHE_DIR={cache}",
                            *(f"--{key}_DIR={folder}" for key in ("WEIGHTS", "RESULTS", "PLOTS"))],
                           check=True, capture_output=True)
            wall = time.perf_counter() - start
            result = json.loads((Path(folder) / "train.json").read_text())
        seconds = result["seconds"]
        parts = {name: seconds[name] for name in ("imports", "data", "compile", "epochs",
                                                  "evaluate and save")}
        results.append({"process_seconds": wall, "start_to_saved_seconds": result["wall_seconds"],
                        "epoch_count": result["run"]["epochs"], "parts": parts,
                        "peak_memory_bytes": result["peak_memory_bytes"],
                        "file_bytes": result["file_bytes"], **result["metrics"]})
        print(f"  {' '.join(arguments) or 'default'} seed {seed}: {result['wall_seconds']:.1f} s, "
              f"test {100 * result['metrics']['test_acc']:.2f} %", flush=True)
    return results


def compiled_before(recipe):
    """whole_run of a recipe whose programs an earlier run has compiled."""
    with tempfile.TemporaryDirectory() as cache:
        return whole_run(recipe, runs=4, cache=cache)[1:]


def main(argv):
    settings = config.load(argv, __doc__)
    train, val, _ = load_splits(settings)
    recipes = {name: training.recipe_of(settings, QAT_ENABLE=name == "qat")
               for name in ("qat", "float")}
    fast = "recipes/fast.toml"
    rate, batch = settings.LEARNING_RATE, settings.BATCH_SIZE
    steps = len(train.labels) // batch
    gemm, gemm_flops = gemm_rate()
    flops = flops_per_epoch(settings.LAYER_SIZES, batch, steps)
    contenders = {
        "QAT epoch": (our_epoch(recipes["qat"], rate, train), 1),
        "QAT epoch, bfloat16 operands": (our_epoch(recipes["qat"]._replace(
            spec=recipes["qat"].spec._replace(compute_dtype="bfloat16")), rate, train), 1),
        "float32 epoch": (our_epoch(recipes["float"], rate, train), 1),
        "matrix products and update alone": (floor_epoch(recipes["float"], steps), 1),
        "same operations at the GEMM rate": (gemm, flops / gemm_flops),
        "plain JAX loop, float32": (plain_loop_epoch(recipes["float"], rate, train), 1),
    }
    for name, qat in (("PyTorch eager, float32", False), ("PyTorch QAT (torch.ao)", True)):
        function = torch_epoch(recipes["float"], rate, train, qat)
        if function:
            contenders[name] = function, steps / TORCH_STEPS
    epochs = interleaved(contenders)
    for name, times in epochs.items():
        print(f"{name:34s} {np.median(times):7.3f} s  ({min(times):.3f} to {max(times):.3f})")

    sweeps = {}
    for name, lanes in (("single run", 1), ("sweep", LANES)):
        recipe = recipes["qat"]._replace(max_epochs=3)
        runs, _ = training.fit(train, val, [rate] * lanes, range(lanes), recipe)
        sweeps[name] = [entry["seconds"] / lanes for entry in runs[0].history]
        print(f"{name}: {np.median(sweeps[name]):.3f} s per lane-epoch, with its evaluation")
    write_result(Path(settings.RESULTS_DIR) / "training_bench.json", settings, epochs=epochs,
                 gemm_gflops=flops / np.median(epochs["same operations at the GEMM rate"]) / 1e9,
                 lane_epochs=sweeps, default=whole_run(runs=3), fast=whole_run(fast, runs=5),
                 fast_again=compiled_before(fast))


if __name__ == "__main__":
    run_script(main)
