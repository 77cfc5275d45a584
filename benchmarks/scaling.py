"""What dominates where: seconds per lane-epoch against lanes, batch, hidden width and devices.

python3 -m benchmarks.scaling [--KEY=value ...]   writes results/scaling.json

Each axis varies one thing of the model that the switches describe.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import jax

import config
import plan
from benchmarks.training import flops_per_epoch, gemm_rate, hyper_of
from data import Split
from machine import script
from machine.files import InputError, check_writable
from report import results, tables
from runner import experiment, source
from training import loop

IMAGES = 8_192                  # of the train split; times are scaled up to all of it
EPOCHS = 4                      # per point; the first is dropped
AXES = {"lanes": (1, 2, 4, 8, 16, 32, 64), "batch": (64, 128, 256, 512, 1024, 2048, 4096),
        "width": (64, 128, 256, 512, 1024, 2048, 4096)}
LANES_PER_DEVICE = 4            # of the device axis
CHILD = "--device-axis-only"    # the child process, with its own device count


def changes(settings, batch=None, width=None):
    """The switches of a point; with a width the network has so many units, then half as many."""
    return {"BATCH_SIZE": batch or settings.BATCH_SIZE,
            "LAYERS": f"{width} {width // 2}" if width else settings.LAYERS}


def briefly(settings):
    """Switches for a few epochs at a small rate, so that no width diverges and ends early."""
    return config.change(settings, MAX_EPOCHS=EPOCHS, PATIENCE=EPOCHS, WARMUP_EPOCHS=0.0,
                         LEARNING_RATE=1e-3)


def lane_epoch_seconds(settings, data, lanes=1, images=IMAGES, **axis):
    """Seconds of one lane's epoch over the whole train split, one value per repeat."""
    hyper = hyper_of(settings, data, QAT_ENABLE=True, **changes(settings, **axis))
    part = Split(data.train.images[:images], data.train.labels[:images])
    few = Split(data.val.images[:128], data.val.labels[:128])
    start = loop.start([settings.LEARNING_RATE] * lanes, range(lanes), hyper)
    *_, sweep = loop.epochs(start, part, few, hyper)
    scale = len(data.train.labels) / len(part.labels) / lanes
    return (sweep.seconds[1:] * scale).tolist()


def device_rows(argv):
    """The rows of the device axis, each measured in a process of its own."""
    rows = []
    for count in range(1, len(jax.devices()) + 1):
        child = subprocess.run([sys.executable, "-B", "-m", "benchmarks.scaling", *argv, CHILD],
                               capture_output=True, text=True, cwd=results.ROOT,
                               env={**os.environ, "JAX_NUM_CPU_DEVICES": str(count)})
        if child.returncode:
            raise InputError(f"with {count} devices: {child.stderr.strip().splitlines()[-1]}")
        rows.append({"label": f"devices = {count}, {LANES_PER_DEVICE} lanes on each",
                     "axis": "devices", "value": count,
                     "seconds": json.loads(child.stdout.splitlines()[-1])})
    return rows


def main(argv):
    settings = briefly(config.load(argv, __doc__, also=(CHILD,)))
    if CHILD not in argv:
        check_writable(settings.RESULTS_DIR)
    settings = experiment.set_up(settings)
    data = source.load_data(settings)
    if CHILD in argv:
        print(json.dumps(lane_epoch_seconds(settings, data, LANES_PER_DEVICE * len(jax.devices()))))
        return
    rows = [{"label": f"{axis} = {value}", "axis": axis, "value": value,
             "seconds": lane_epoch_seconds(settings, data, **{axis: value})}
            for axis, values in AXES.items() for value in values] + device_rows(argv)
    rate = gemm_rate()
    for row in rows:
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


if __name__ == "__main__":
    script.run(main)
