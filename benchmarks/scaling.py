"""What dominates where: seconds per lane-epoch against lanes, batch, hidden width and devices.

python3 -m benchmarks.scaling [--KEY=value ...]   writes results/scaling.json and plots/scaling.png
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import config
import plotting
import training
from ablation import load_splits
from benchmarks.training import flops_per_epoch, gemm_rate, interleaved
from data import Split
from files import run_script, write_result

IMAGES = 8_192                  # of the train split; times are scaled up to all of it
EPOCHS = 4                      # per point; the first is dropped
AXES = {"lanes": (1, 2, 4, 8, 16, 32, 64), "batch": (64, 128, 256, 512, 1024, 2048, 4096),
        "width": (64, 128, 256, 512, 1024, 2048, 4096)}
LANES_PER_DEVICE = 4            # of the device axis


def lane_epoch_seconds(settings, splits, lanes=1, batch=128, width=256):
    """Seconds of one lane's epoch over the whole train split, one value per repeat."""
    train, val = splits
    recipe = training.recipe_of(settings, LAYER_SIZES=(784, width, width // 2, 10),
                                BATCH_SIZE=batch, MAX_EPOCHS=EPOCHS, PATIENCE=EPOCHS)
    part = Split(train.images[:IMAGES], train.labels[:IMAGES])
    few = Split(val.images[:128], val.labels[:128])
    runs, _ = training.fit(part, few, [1e-3] * lanes, range(lanes), recipe)
    scale = len(train.labels) / IMAGES / lanes
    return [entry["seconds"] * scale for entry in runs[0].history[1:]]


def main(argv):
    settings = config.load([a for a in argv if a != "--device-axis-only"], __doc__)
    splits = load_splits(settings)[:2]
    if "--device-axis-only" in argv:            # the child process, with its own device count
        lanes = LANES_PER_DEVICE * len(jax.devices())
        print(json.dumps(lane_epoch_seconds(settings, splits, lanes)))
        return
    points = {axis: [{axis: value, "seconds": lane_epoch_seconds(settings, splits, **{axis: value})}
                     for value in values] for axis, values in AXES.items()}
    points["devices"] = []
    for count in range(1, len(jax.devices()) + 1):
        child = subprocess.run([sys.executable, "-B", "-m", "benchmarks.scaling", *argv,
                                "--device-axis-only"], check=True, capture_output=True, text=True,
                               env={**os.environ, "JAX_NUM_CPU_DEVICES": str(count)})
        points["devices"].append({"devices": count,
                                  "seconds": json.loads(child.stdout.splitlines()[-1])})
    gemm, gemm_flops = gemm_rate()
    rate = gemm_flops / np.median(interleaved({"gemm": (gemm, 1)})["gemm"])
    for axis, entries in points.items():
        for entry in entries:
            batch, width = entry.get("batch", 128), entry.get("width", 256)
            steps = IMAGES // batch * len(splits[0].labels) / IMAGES
            entry["gemm_limit"] = flops_per_epoch((784, width, width // 2, 10), batch, steps) / rate
    write_result(Path(settings.RESULTS_DIR) / "scaling.json", settings, points=points,
                 gemm_gflops=rate / 1e9)
    plotting.draw("scaling", settings.RESULTS_DIR, settings.PLOTS_DIR)


if __name__ == "__main__":
    run_script(main)
