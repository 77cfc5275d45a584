"""Parity and speed on whatever device JAX has, in a few minutes: for a machine with a GPU.

python3 -m benchmarks.gpu [--LANES=1,32,256,1024] [--IMAGES=8192] [--KEY=value ...]

Writes results/gpu.json where the device is no CPU, and prints a table. The integer engine must give
NumPy's integers there; then the seconds of a lane-epoch of the default network, of as many lanes
side by side, of the reference sweep's 27, and of a convolutional recipe. Exit 2 if one integer
differs.
"""
if __name__ == "__main__":
    from machine import script
    script.begin()

from pathlib import Path

import config
import data
import integer
from benchmarks import scaling
from formats import checkpoint
from machine import script
from machine.files import InputError, check_writable
from report import columns, results
from runner import experiment, source

NETWORKS = ("weights_int8.npz", "recipes/ternary.npz", "recipes/chip3kB.nqat",
            "recipes/conv13kB.nqat")
LANES = 1, 32, 256, 1_024       # the default
SWEEP = 27                      # lanes of the reference's sweep of learning rates
RECIPE = "recipes/conv2kB.toml"


def parity(settings, images):
    """A row a network: how many of the integers of these images differ from NumPy's."""
    rows = []
    for name in NETWORKS:
        network, _ = checkpoint.load_quantized(Path(settings.WEIGHTS_DIR) / name)
        wrong = integer.make_engine(network)(images) != integer.make_engine(
            network, "numpy")(images)
        rows.append({"label": Path(name).stem, "part": "parity", "values": wrong.size,
                     "mismatches": int(wrong.sum())})
    return rows


def sizes_of(argv):
    """(lanes, images, the rest of the command line)."""
    own, rest = {"LANES": LANES, "IMAGES": (scaling.IMAGES,)}, []
    for word in argv:
        name, _, value = word.removeprefix("--").partition("=")
        if name not in own:
            rest.append(word)
        elif all(part.isdecimal() and 0 < int(part) <= 65_536 for part in value.split(",")):
            own[name] = tuple(map(int, value.split(",")))
        else:
            raise InputError(f"{word}: give whole numbers from 1 on, like --{name}=1,32")
    return own["LANES"], own["IMAGES"][0], rest


def main(argv):
    lanes, images, argv = sizes_of(argv)
    settings = config.load(argv, __doc__)
    check_writable(settings.RESULTS_DIR)
    settings = experiment.set_up(settings)
    import jax
    device = jax.devices()[0].device_kind
    rows = parity(settings, data.load(settings.DATA_DIR).test.images[:images])
    wrong, values = (sum(row[name] for row in rows) for name in ("mismatches", "values"))
    print(f"{device}: {wrong} of {values:,} integers differ from NumPy's")
    recipe = config.load([config.at_home(RECIPE), *argv])
    recipe = experiment.decide(recipe)
    points = [(f"default, lanes: {count}", settings, count) for count in lanes]
    points += [(f"default, the sweep's {SWEEP}", settings, SWEEP)]
    points += [(f"{RECIPE}, lanes: {count}", recipe, count) for count in (1, 8)]
    found = source.load_data(settings)
    for label, chosen, count in points:
        chosen = scaling.briefly(chosen)
        rows.append({"label": label, "part": "lane-epoch", "lanes": count,
                     "seconds": scaling.lane_epoch_seconds(chosen, found, count, images)})
        print(f"{label}: {min(rows[-1]['seconds']):.4f} s a lane-epoch", flush=True)
    timed = {row["label"]: [row] for row in rows if row["part"] == "lane-epoch"}
    print(columns.table("QAT on " + device, timed, {"seconds of a lane-epoch": columns.times()}))
    if jax.default_backend() != "cpu":
        results.write_result(Path(settings.RESULTS_DIR) / "gpu.json", settings._asdict(), rows,
                             device=device, images=images)
    if wrong:
        raise InputError(f"{wrong} integers differ from NumPy's")


if __name__ == "__main__":
    script.run(main)
