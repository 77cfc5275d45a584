"""How fast training is, against the machine's limit and against other ways to write it.

python3 -m benchmarks.training [--KEY=value ...]   writes results/training_bench.json

The switches hold for the timed epochs and for the whole runs, which take the seeds from SEED on and
keep their files, and their compiled programs, in temporary folders.
"""
if __name__ == "__main__":
    from machine import script
    script.begin()

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import config
import model
import plan
import quant
from benchmarks import in_turns
from machine import devices, script
from machine.files import InputError, check_writable
from report import results, stats
from runner import experiment, source
from runner.state import Recorder
from training import loop

REPEATS = 7
SAVED_EPOCHS = 5                # in a block with or without saving
SWEEP_EPOCHS = 3                # of the sweep and of the single run beside it
TORCH_STEPS = 60                # PyTorch's epoch is extrapolated from these many steps
PRODUCT_STEPS = 20              # and the products of other libraries from these
FLOOR = "matrix products and update alone"
PRODUCTS = "matrix products alone"
GEMM = "same operations at the GEMM rate"
GEMM_SIZE = 2048
GEMM_FLOPS = 2 * GEMM_SIZE**3
FOLDERS = ("RUNS_DIR", "WEIGHTS_DIR", "RESULTS_DIR", "PLOTS_DIR")


def flops_per_epoch(layer_sizes, batch, steps):
    """Operations of an epoch's matrix products: forward, dw, and dx but the first."""
    products = [i * o for i, o in zip(layer_sizes[:-1], layer_sizes[1:])]
    return 2 * batch * steps * (3 * sum(products) - products[0])


def gemm():
    """A float32 [GEMM_SIZE, GEMM_SIZE] product to time."""
    a, multiply = jnp.ones((GEMM_SIZE, GEMM_SIZE), jnp.float32), jax.jit(lambda a: a @ a)
    return lambda: multiply(a).block_until_ready()


def gemm_rate():
    """Operations a second of gemm, at its median."""
    return GEMM_FLOPS / np.median(in_turns({GEMM: gemm()}, REPEATS)[GEMM])


def hyper_of(settings, data, **changes):
    """What a run with some switches changed depends on."""
    return source.hyper_of(config.change(settings, **changes), data)


def our_epoch(hyper, rate, data):
    """One epoch of one lane as main_train.py runs it, a few val images aside."""
    hyper = hyper._replace(MAX_EPOCHS=1_000_000, PATIENCE=1_000_000)
    few = data.val._replace(images=data.val.images[:128], labels=data.val.labels[:128])
    sweep = loop.start([rate], [0], hyper)
    return partial(next, loop.epochs(sweep, data.train, few, hyper))


def float_params(hyper):
    """The initial float32 network: list of (w, b)."""
    return [(layer.w, layer.b) for layer in model.init(jax.random.key(0), hyper)]


def floor_epoch(hyper, steps, lanes=1, rate=1e-6):
    """A function that does an epoch's matrix products in hyper.COMPUTE and the update alone, for
    lanes side by side, and gives the weights: what no quantizer and no loss can undercut."""
    mesh = devices.make_mesh(lanes, data_parallel=False)
    shape = hyper.BATCH_SIZE, plan.sizes(hyper.LAYERS)[0]
    x = jax.random.uniform(jax.random.key(1), shape) * 1e-2

    def chain(weights, x, scale):
        for w in weights:
            x = x @ w if hyper.COMPUTE == "float32" else quant.narrow_dot(x, w, scale)
        return x

    def lane(weights, x, scale):
        def step(weights, _):
            out, back = jax.vjp(partial(chain, x=x, scale=scale), weights)
            return [w - rate * grad for w, grad in zip(weights, *back(out))], None
        return lax.scan(step, weights, length=steps)[0]

    counts, weights = devices.place(
        (devices.deal(range(lanes), lanes, mesh)[2],
         [np.stack([np.asarray(w)] * lanes) for w, _ in float_params(hyper)]), mesh, by_lane=True)
    epoch = devices.over_lanes(lane, mesh)
    x, scale = devices.place((x, np.ones((1, 1), np.float32)), mesh)
    return lambda: jax.block_until_ready(epoch(counts, weights, x, scale))


def step_products(hyper):
    """[(a, b)], float32: the operands of a step's matrix products, of the same shapes and order of
    axes as ours: forward, dw, and dx but the first."""
    rng, batch, pairs = np.random.default_rng(0), hyper.BATCH_SIZE, []
    sizes = plan.sizes(hyper.LAYERS)
    for layer, (i, o) in enumerate(zip(sizes[:-1], sizes[1:])):
        x, w, dy = (rng.random(shape, np.float32) for shape in ((batch, i), (i, o), (batch, o)))
        pairs += [(x, w), (x.T, dy)]
        if layer > 0:
            pairs.append((dy, w.T))
    return pairs


def library_products(hyper):
    """{library: a function that computes PRODUCT_STEPS steps' products alone, into the same
    arrays}: NumPy's and, where it is installed, PyTorch's."""
    pairs = step_products(hyper)
    outs = [np.empty((len(a), b.shape[1]), np.float32) for a, b in pairs]

    def numpy_steps():
        for _ in range(PRODUCT_STEPS):
            for (a, b), out in zip(pairs, outs):
                np.matmul(a, b, out=out)

    found = {"NumPy": numpy_steps}
    try:
        import torch
    except ImportError:
        return found
    tensors = [tuple(map(torch.from_numpy, (a, b, out))) for (a, b), out in zip(pairs, outs)]

    def torch_steps():
        for _ in range(PRODUCT_STEPS):
            for a, b, out in tensors:
                torch.mm(a, b, out=out)

    return found | {"PyTorch": torch_steps}


def plain_loop_epoch(hyper, rate, train):
    """A Python loop that feeds float NumPy batches to a jitted float32 step, as tutorials do."""
    params = float_params(hyper)
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
        for start in range(0, len(images) - hyper.BATCH_SIZE + 1, hyper.BATCH_SIZE):
            rows = order[start:start + hyper.BATCH_SIZE]
            now, value = step(now, images[rows], train.labels[rows].astype(np.int32))
            losses.append(float(value))
    return epoch


def torch_network(layers, qat):
    """A PyTorch network of these layers; qat: with the fake quantization of torch.ao."""
    import warnings

    import torch
    net = torch.nn.Sequential(*layers)
    if not qat:
        return net
    warnings.filterwarnings("ignore")           # torch.ao announces its own retirement
    net = torch.nn.Sequential(torch.ao.quantization.QuantStub(), *net)
    net.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(net.train())


def torch_epoch(hyper, rate, train, qat, count):
    """`count` steps of eager PyTorch, float32 or its own QAT (torch.ao); None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    torch.manual_seed(0)
    sizes, layers = plan.sizes(hyper.LAYERS), []
    for i, o in zip(sizes[:-1], sizes[1:]):
        layers += [torch.nn.Linear(i, o), torch.nn.ReLU()]
    net = torch_network(layers[:-1], qat)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    images = torch.from_numpy(train.images.astype(np.float32) / 255)
    labels = torch.from_numpy(train.labels.astype(np.int64))

    def steps():
        order = torch.randperm(len(images))[:count * hyper.BATCH_SIZE]
        for rows in order.reshape(count, hyper.BATCH_SIZE):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    return steps


def epoch_contenders(settings, data):
    """{name: (function, factor from its time to that of one epoch)}."""
    train = data.train
    # The same work for all: the other loops neither average nor decay their weights.
    settings = config.change(settings, WEIGHT_DECAY=0.0, AVERAGING=0.0)
    floats = hyper_of(settings, data, QAT_ENABLE=False, COMPUTE="float32")
    rate, steps = settings.LEARNING_RATE, len(train.labels) // settings.BATCH_SIZE
    ours = flops_per_epoch(plan.sizes(floats.LAYERS), settings.BATCH_SIZE, steps)
    # Free scales have no codes to carry: float32 alone.
    computes = quant.COMPUTES if settings.POWER_OF_TWO_SCALES else ("float32",)
    contenders = {f"QAT epoch, products in {compute}": (
        our_epoch(hyper_of(settings, data, QAT_ENABLE=True, COMPUTE=compute), rate, data), 1)
        for compute in computes}
    contenders |= {
        "float32 epoch": (our_epoch(floats, rate, data), 1),
        FLOOR: (floor_epoch(floats, steps), 1),
        GEMM: (gemm(), ours / GEMM_FLOPS),
        "plain JAX loop, float32": (plain_loop_epoch(floats, rate, train), 1),
    }
    if settings.COMPUTE != "float32":
        contenders[f"{FLOOR}, in {settings.COMPUTE}"] = floor_epoch(
            floats._replace(COMPUTE=settings.COMPUTE), steps), 1
    contenders |= {f"{PRODUCTS}, {library}": (function, steps / PRODUCT_STEPS)
                   for library, function in library_products(floats).items()}
    count = min(TORCH_STEPS, steps)
    for name, qat in (("PyTorch eager, float32", False), ("PyTorch QAT (torch.ao)", True)):
        function = torch_epoch(floats, rate, train, qat, count)
        if function:
            contenders[name] = function, steps / count
    return contenders


def lane_epochs(settings, data, lanes):
    """Seconds of a lane-epoch, evaluation included, of `lanes` runs side by side; one by epoch."""
    hyper = hyper_of(settings, data, QAT_ENABLE=True, MAX_EPOCHS=SWEEP_EPOCHS,
                     PATIENCE=SWEEP_EPOCHS,
                     WARMUP_EPOCHS=min(settings.WARMUP_EPOCHS, SWEEP_EPOCHS))
    start = loop.start([settings.LEARNING_RATE] * lanes, range(lanes), hyper)
    *_, sweep = loop.epochs(start, data.train, data.val, hyper)
    return (sweep.seconds / lanes).tolist()


def lane_floors(settings, data):
    """Seconds of a lane's FLOOR, a lane on every device, in float32 and in settings.COMPUTE."""
    count, steps = len(jax.devices()), len(data.train.labels) // settings.BATCH_SIZE
    floors = {f"{FLOOR}, in {compute}": floor_epoch(hyper_of(settings, data, COMPUTE=compute),
                                                    steps, count)
              for compute in dict.fromkeys(("float32", settings.COMPUTE))}
    return {name: [seconds / count for seconds in times]
            for name, times in in_turns(floors, REPEATS).items()}


def whole_run(arguments, seed, label="", cache=""):
    """main_train.py in its own process: a row with its seconds by part, and what it reached.

    cache is a folder of compiled programs, empty for a cold start. InputError if the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-B", "main_train.py", *arguments, f"--SEED={seed}",
                               f"--CACHE_DIR={cache}",
                               *(f"--{name}={folder}/{name}" for name in FOLDERS)],
                              capture_output=True, text=True, cwd=results.ROOT)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise InputError(f"main_train.py {' '.join(arguments)}: {reason}")
        result = results.read_result(Path(folder) / "RESULTS_DIR" / "train.json")
    (row,) = result["rows"]
    print(f"  {' '.join(arguments) or 'default'} seed {seed}: {result['wall_seconds']:.1f} s, "
          f"test {100 * row['test_acc']:.2f} %", flush=True)
    return {"part": "whole run", "label": label, "seed": seed, "seconds": result["wall_seconds"],
            "parts": result["seconds"], "epochs": row["epochs"], "test_acc": row["test_acc"],
            "file_bytes": row["file_bytes"], "peak_memory_bytes": result["peak_memory_bytes"]}


def whole_runs(label, arguments, seeds, cached=False):
    """whole_run with each seed in turn; cached: after one that fills a cache of programs."""
    with tempfile.TemporaryDirectory() as folder:
        cache = folder if cached else ""
        if cached:
            whole_run(arguments, seeds[0], label, cache)
        return [whole_run(arguments, seed, label, cache) for seed in seeds]


def saving_cost(settings, data):
    """{"not saved" or "saved", as a run does: seconds an epoch, of REPEATS blocks of SAVED_EPOCHS};
    a block ends when its last save has."""
    hyper = hyper_of(settings, data, MAX_EPOCHS=1_000_000, PATIENCE=1_000_000)
    epochs = loop.epochs(loop.start([settings.LEARNING_RATE], [settings.SEED], hyper), data.train,
                         data.val, hyper)
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / "state.npz", Path(folder) / "history.csv"
        with Recorder(*names, next(epochs), {}) as recorder:

            def block(save):
                for _ in range(SAVED_EPOCHS):
                    sweep = next(epochs)
                    if save:
                        recorder.record(sweep, must=False)
                recorder.wait()

            times = in_turns({"not saved": partial(block, False),
                                     "saved": partial(block, True)}, REPEATS)
    return {name: [seconds / SAVED_EPOCHS for seconds in values] for name, values in times.items()}


def main(argv):
    settings = config.load(argv, __doc__)
    if settings.LR_ABLATION_MODE or settings.COORDINATOR:
        raise InputError("this times runs of a single model on one machine; leave LR_ABLATION_MODE "
                         "and COORDINATOR as they are")
    check_writable(settings.RESULTS_DIR)
    settings = experiment.set_up(settings)
    data = source.load_data(settings)
    contenders = epoch_contenders(settings, data)
    times = in_turns({name: function for name, (function, _) in contenders.items()}, REPEATS)
    epochs = {name: [seconds * factor for seconds in times[name]]
              for name, (_, factor) in contenders.items()}
    ours = f"QAT epoch, products in {settings.COMPUTE}"         # what a run here uses
    epochs = {"QAT epoch": epochs.pop(ours), **epochs}
    lanes = len(settings.LR_ABLATION_RATES) * settings.ABLATION_SEEDS
    sweeps = {"single run": lane_epochs(settings, data, 1),
              f"sweep of {lanes} runs": lane_epochs(settings, data, lanes),
              **lane_floors(settings, data)}
    measured = {"epoch": epochs, "lane-epoch": sweeps, "saving": saving_cost(settings, data)}
    rows = [{"part": part, "label": label, "seconds": seconds}
            for part, contenders in measured.items() for label, seconds in contenders.items()]
    for row in rows:
        print(f"{row['part']}: {row['label']}: {stats.median_range(row['seconds'], 3)} s")
    seeds = range(settings.SEED, settings.SEED + 5)
    fast, fast99 = (["recipes/fast.toml", *argv], ["recipes/fast99.toml", *argv])
    rows += [*whole_runs("`main_train.py`", argv, seeds[:3]),
             *whole_runs("the same, `--COMPUTE=float32`", [*argv, "--COMPUTE=float32"], seeds[:3]),
             *whole_runs("`recipes/fast.toml`", fast, seeds),
             *whole_runs("the same, compiled before", fast, seeds, cached=True),
             *whole_runs("`recipes/fast99.toml`", fast99, seeds)]
    rate = GEMM_FLOPS / np.median(times[GEMM])
    results.write_result(Path(settings.RESULTS_DIR) / "training_bench.json", settings._asdict(),
                         rows, compute=settings.COMPUTE, gemm_gflops=rate / 1e9)


if __name__ == "__main__":
    script.run(main)
