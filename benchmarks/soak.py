"""Many short runs in one process: memory, open files and threads must not grow.

python3 -m benchmarks.soak [--runs=200]     writes results/soak.json; exit code 1 if they grow
"""
import argparse
import contextlib
import gc
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import config
import data
from report import results
from runner import experiment

ROOT = Path(__file__).resolve().parent.parent
WARM = 10                       # runs after which caches have their size
MOST = 0.02                     # growth of memory to accept from then on
SWITCHES = ("--LAYER_SIZES=784,32,10", "--VAL_EXAMPLES=200", "--BATCH_SIZE=100", "--MAX_EPOCHS=1",
            "--RESUME=False")


def measure():
    """What this process holds: bytes resident, open files, threads."""
    gc.collect()
    status = Path("/proc/self/status").read_text("utf-8").splitlines()
    resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return {"memory_bytes": 1024 * resident,
            "files": len(list(Path("/proc/self/fd").iterdir())),
            "threads": len(list(Path("/proc/self/task").iterdir()))}


def small_data():
    """Data of 1,000 train, 200 val and 200 test images of MNIST."""
    full = data.load(ROOT / "datasets" / "mnist")
    parts = [(full.train, 0, 1_000), (full.train, 1_000, 1_200), (full.test, 0, 200)]
    splits = [data.Split(split.images[first:last], split.labels[first:last])
              for split, first, last in parts]
    return experiment.Data("MNIST, a part", full.sha256, *splits)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    options, start, marks = vars(parser.parse_args(argv)), time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        settings = config.load([*SWITCHES, f"--RUNS_DIR={folder}/runs", f"--CACHE_DIR={folder}"])
        settings = experiment.set_up(settings)
        part, first = small_data(), None
        for _ in range(options["runs"]):
            with contextlib.redirect_stdout(io.StringIO()):
                (outcome,), _, _ = experiment.run(settings, "soak", [{}], part)
            first = first or outcome.content
            assert outcome.content == first, "a repeated run gives other weights"
            marks.append(measure())
    before, after = marks[min(WARM, len(marks)) - 1], marks[-1]
    growth = after["memory_bytes"] / before["memory_bytes"] - 1
    print(results.table(["after run", "memory (MB)", "open files", "threads"],
                        [[n, f"{mark['memory_bytes'] / 1e6:.1f}", mark["files"], mark["threads"]]
                         for n, mark in enumerate(marks, 1) if n in (1, WARM, len(marks))
                         or n % 50 == 0]))
    print(f"memory {100 * growth:+.2f} % from run {WARM} on")
    results.write_result(ROOT / "results" / "soak.json", options, growth=growth,
                         memory_bytes=np.array([mark["memory_bytes"] for mark in marks]),
                         before=before, after=after, wall_seconds=time.monotonic() - start)
    return (growth > MOST or after["files"] > before["files"]
            or after["threads"] > before["threads"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
