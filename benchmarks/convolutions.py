"""How fast convolutions train and run, against other ways to write them.

python3 -m benchmarks.convolutions [--KEY=value ...]   writes results/convolutions_bench.json

Two networks: a step of training, of batches of 128; the peak memory of a run of one epoch; and an
image through C and through ONNX Runtime's int8 kernels, on one core.
"""
if __name__ == "__main__":
    from machine import script
    script.begin()

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import config
import convert
import integer
import model
import plan
from benchmarks import in_turns
from benchmarks.inference import measure
from benchmarks.training import torch_network, whole_run
from deploy import engines, to_c, to_onnx
from machine import devices, script
from machine.files import check_writable
from report import results, stats
from runner import experiment, source
from training import epoch, loop

NETWORKS = {"8-16-16": "conv5x8/2 conv3x16 max2 conv3x16",
            "16-32-48": "conv5x16/2 conv3x32 max2 conv3x48"}
SWITCHES = {"WEIGHT_BITS": 4, "ACTIVATION_BITS": 4, "WEIGHT_DECAY": 0.0, "AVERAGING": 0.0,
            "BATCH_SIZE": 128, "LEARNING_RATE": 0.01}
STEPS, REPEATS = 40, 9
CALLS = {1: 300, 128: 10}       # per repeat, by batch
RATE = np.float32(SWITCHES["LEARNING_RATE"])


def our_steps(settings, data, **changes):
    """STEPS steps as an epoch of main_train.py has them."""
    hyper = source.hyper_of(config.change(settings, **changes), data)
    mesh = devices.make_mesh(1, data_parallel=False)
    part = [values[:STEPS * hyper.BATCH_SIZE] for values in data.train]
    state = epoch.init_lane(RATE, np.uint32(0), hyper)
    if hyper.QAT_ENABLE:
        layers = model.set_scales(state.layers, data.train.images[:loop.CALIBRATION_IMAGES], hyper)
        state = state._replace(layers=layers)
    run = jax.jit(lambda state, *part: epoch.train(state, RATE, *part, np.int32(0), hyper, mesh))
    return lambda: jax.block_until_ready(run(state, *part))


def plain_steps(steps, data, batch):
    """STEPS steps of float32 as one would write them in plain JAX: patches by slices, in a scan."""
    params = [(jnp.asarray(layer.w), layer.b) for layer in model.init(
        jax.random.key(0), config.hyper(config.load([]), QAT_ENABLE=False)._replace(LAYERS=steps))]
    images = data.train.images[:STEPS * batch].reshape(STEPS, batch, -1)
    labels = data.train.labels[:STEPS * batch].astype(np.int32).reshape(STEPS, batch)

    def loss(params, images, labels):
        x, layers = images.reshape(batch, *steps[0].before).astype(jnp.float32) / 255, iter(params)
        for step in steps:
            if step.kind == "max":
                x = plan.largest(x, step)
                continue
            w, b = next(layers)
            x = (jnp.concatenate(plan.windows(x, step), axis=-1) if step.kind == "conv"
                 else x.reshape(batch, -1))
            x = (x.reshape(-1, len(w)) @ w + b[None]).reshape(*x.shape[:-1], len(b))
            x = x if step is steps[-1] else jax.nn.relu(x)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), labels[:, None], 1))

    def step(params, part):
        value, grads = jax.value_and_grad(loss)(params, *part)
        return jax.tree.map(lambda p, g: p - RATE * g, params, grads), value

    run = jax.jit(lambda *parts: lax.scan(step, params, parts))
    return lambda: jax.block_until_ready(run(images, labels))


def torch_steps(steps, data, batch, qat):
    """STEPS steps of eager PyTorch, float32 or its own QAT (torch.ao); None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    layers = []
    for step in steps[:-1]:
        layers += ([torch.nn.MaxPool2d(2)] if step.kind == "max" else
                   [torch.nn.Conv2d(step.before[2], step.after[2], step.kernel, step.stride),
                    torch.nn.ReLU()])
    layers += [torch.nn.Flatten(), torch.nn.Linear(*steps[-1].weights)]
    net = torch_network(layers, qat)
    optimizer = torch.optim.SGD(net.parameters(), lr=float(RATE))
    images = torch.from_numpy(data.train.images[:STEPS * batch].astype(np.float32) / 255)
    labels = torch.from_numpy(data.train.labels[:STEPS * batch].astype(np.int64))

    def run():
        for x, y in zip(images.reshape(STEPS, batch, 1, 28, 28), labels.reshape(STEPS, batch)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return run


def step_rows(name, settings, data, steps):
    """Rows of a network's steps, "seconds" of one step by repeat."""
    batch = settings.BATCH_SIZE
    contenders = {"QAT W4A4": our_steps(settings, data),
                  "QAT W4A4, learned scales": our_steps(settings, data, SCALES="learned"),
                  "float32": our_steps(settings, data, QAT_ENABLE=False, COMPUTE="float32"),
                  "plain JAX, float32": plain_steps(steps, data, batch)}
    for label, qat in (("PyTorch eager, float32", False), ("PyTorch QAT (torch.ao)", True)):
        function = torch_steps(steps, data, batch, qat)
        if function:
            contenders[label] = function
    return [{"part": "step", "network": name, "label": label,
             "seconds": [seconds / STEPS for seconds in times]}
            for label, times in in_turns(contenders, REPEATS).items()]


def engine_rows(name, settings, data):
    """Rows of an image through C and ONNX Runtime on one core, "seconds" of an image by repeat."""
    hyper = source.hyper_of(settings, data)
    images = data.train.images[:loop.CALIBRATION_IMAGES]
    layers = model.calibrate(model.init(jax.random.key(0), hyper), images, hyper)
    network = convert.to_network(jax.device_get(layers), hyper)
    want = integer.make_engine(network, "numpy")(data.test.images[:128])
    contenders = {"ONNX Runtime int8": engines.make_onnx(to_onnx.export(network), 1),
                  "C": engines.make_c(to_c.export(network)[0])}
    for engine in contenders.values():
        np.testing.assert_array_equal(engine(data.test.images[:128]), want)
    return [{"part": f"image, in batches of {row['batch']}", "network": name, "label": row["label"],
             "seconds": [seconds / row["batch"] for seconds in row["seconds"]]}
            for row in measure(contenders, data.test.images, CALLS)]


def main(argv):
    settings = config.change(config.load(argv, __doc__), **SWITCHES)
    check_writable(settings.RESULTS_DIR)
    settings, rows = experiment.set_up(settings), []
    data = source.load_data(settings)
    for name, line in NETWORKS.items():
        chosen = config.change(settings, LAYERS=line)
        rows += step_rows(name, chosen, data, source.steps_of(chosen, data))
        rows += engine_rows(name, chosen, data)
        changes = [f"--{key}={value}" for key, value in SWITCHES.items()]
        run = whole_run([*argv, *changes, f"--LAYERS={line}", "--MAX_EPOCHS=1"], 0, name)
        rows.append({"part": "memory", "network": name, "label": "main_train.py, one epoch",
                     "seconds": [run["seconds"]], "peak_memory_bytes": run["peak_memory_bytes"]})
    for row in rows:
        if "peak_memory_bytes" in row:
            print(f"{row['network']}: {row['peak_memory_bytes'] / 1e6:,.0f} MB at most")
            continue
        print(f"{row['network']}, {row['part']}: {row['label']}: "
              f"{stats.median_range([1e3 * value for value in row['seconds']], 3)} ms")
    results.write_result(Path(settings.RESULTS_DIR) / "convolutions_bench.json",
                         settings._asdict(), rows)


if __name__ == "__main__":
    script.run(main)
