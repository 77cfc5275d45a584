"""How time and memory grow: with examples, lanes, batch, hidden width, channels and devices.

python3 -m benchmarks.scaling [--KEY=value ...]   writes results/scaling.json and plots/scaling.png

Each axis varies one thing of the model that the switches describe, each point in a process of its
own, whose peak memory counts.
"""
if __name__ == "__main__":
    from machine import script
    script.begin()

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

import config
import plan
from benchmarks.training import flops_per_epoch, gemm_rate, hyper_of
from data import Split
from machine import facts, script
from machine.files import InputError, check_writable
from report import draw, results, tables
from runner import experiment, source
from training import loop

IMAGES = 8_192                  # of the train split; times are scaled up to all of it
EPOCHS = 4                      # per point; the first is dropped
AXES = {"examples": (6_000, 20_000, 60_000, 200_000, 600_000), "lanes": (1, 4, 16, 64),
        "batch": (64, 256, 1_024, 4_096), "width": (64, 256, 1_024, 4_096),
        "channels": (4, 8, 16, 32)}
LANES_PER_DEVICE = 4            # of the device axis
POINT = "--POINT="              # AXIS:VALUE, of the child process


def changes(settings, batch=None, width=None, channels=None):
    """The switches of a point; with a width the network has so many units, then half as many; with
    channels three convolutions, of so many and then twice as many."""
    layers = settings.LAYERS
    if width:
        layers = f"{width} {width // 2}"
    if channels:
        layers = f"conv5x{channels}/2 conv3x{2 * channels} max2 conv3x{2 * channels}"
    return {"BATCH_SIZE": batch or settings.BATCH_SIZE, "LAYERS": layers}


def briefly(settings):
    """Switches for a few epochs at a small rate, so that no width diverges and ends early."""
    return config.change(settings, MAX_EPOCHS=EPOCHS, PATIENCE=EPOCHS, WARMUP_EPOCHS=0.0,
                         LEARNING_RATE=1e-3)


def lane_epoch_seconds(settings, data, lanes=1, images=IMAGES, **axis):
    """Seconds of one lane's epoch over the whole train split, one value per repeat."""
    hyper = hyper_of(settings, data, QAT_ENABLE=True, **changes(settings, **axis))
    index = np.arange(images) % len(data.train.labels)      # more than there are: repeated
    part = Split(data.train.images[index], data.train.labels[index])
    few = Split(data.val.images[:128], data.val.labels[:128])
    start = loop.start([settings.LEARNING_RATE] * lanes, range(lanes), hyper)
    *_, sweep = loop.epochs(start, part, few, hyper)
    scale = len(data.train.labels) / len(part.labels) / lanes
    return (sweep.seconds[1:] * scale).tolist()


def measure(settings, data, axis, value):
    """{seconds: a value a repeat, peak_memory_bytes of this process} of one point."""
    changed = {"devices": {"lanes": LANES_PER_DEVICE * value},
               "examples": {"images": value}}.get(axis, {axis: value})
    return {"seconds": lane_epoch_seconds(settings, data, **changed),
            "peak_memory_bytes": facts.peak_memory()}


def run_point(argv, axis, value):
    """The row of one point, measured in a process of its own."""
    is_devices = axis == "devices"
    devices = {"JAX_NUM_CPU_DEVICES": str(value)} if is_devices else {}
    label = f"{axis} = {value:,}" + f", {LANES_PER_DEVICE} lanes on each" * is_devices
    child = subprocess.run([sys.executable, "-B", "-m", "benchmarks.scaling", *argv,
                            f"{POINT}{axis}:{value}"], capture_output=True, text=True,
                           cwd=results.ROOT, env={**os.environ, **devices})
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"with {value} {axis}: {reason}")
    return {"label": label, "axis": axis, "value": value,
            **json.loads(child.stdout.splitlines()[-1])}


def main(argv):
    points = [word for word in argv if word.startswith(POINT)]
    settings = briefly(config.load(argv, __doc__, also=points))
    if not points:
        check_writable(settings.RESULTS_DIR, settings.PLOTS_DIR)
    settings = experiment.set_up(settings)
    data = source.load_data(settings)
    if points:
        axis, _, value = points[0].removeprefix(POINT).partition(":")
        print(json.dumps(measure(settings, data, axis, int(value))))
        return
    axes = dict(AXES)
    if jax.default_backend() == "cpu":          # whose devices are cores, as many as are asked for
        axes["devices"] = range(1, len(jax.devices()) + 1)
    todo = [(axis, value) for axis, values in axes.items() for value in values]
    rows = [run_point(argv, *point) for point in tqdm(todo, "points", leave=False)]
    rate = gemm_rate()
    for row in rows:
        if row["axis"] == "channels":
            continue                            # patches, too: products alone are no limit
        changed = {row["axis"]: row["value"]} if row["axis"] in ("batch", "width") else {}
        hyper = hyper_of(settings, data, **changes(settings, **changed))
        steps = IMAGES // hyper.BATCH_SIZE * len(data.train.labels) / IMAGES
        row["gemm_limit"] = flops_per_epoch(plan.sizes(hyper.LAYERS), hyper.BATCH_SIZE,
                                            steps) / rate
    settings = config.change(settings, QAT_ENABLE=True)
    result = results.write_result(
        Path(settings.RESULTS_DIR) / "scaling.json", settings._asdict(), rows,
        network=experiment.network_name(settings, hyper_of(settings, data).LAYERS),
        gemm_gflops=rate / 1e9)
    print(tables.TABLES["scaling"]({"scaling": result}.get))
    draw.draw("scaling", settings.RESULTS_DIR, settings.PLOTS_DIR)


if __name__ == "__main__":
    script.run(main)
