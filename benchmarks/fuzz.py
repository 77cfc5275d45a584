"""Damaged and hostile files for every loader: each must end in success or in one InputError.

python3 -m benchmarks.fuzz [--inputs=100000] [--seed=0] [--KEY=value ...]   writes results/fuzz.json

A failure is any other exception, a message of several lines, a warning or print, over 2 seconds,
over 512 MB more than before, or an attempt to run code, open a socket or write. Input i of a loader
depends on the seed and i only: make_input gives its bytes again.
"""
import codecs
import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from tqdm import tqdm

import config
import data
from benchmarks import mutate
from formats import checkpoint, photo
from machine import facts, script
from machine.files import InputError
from report import results

SECONDS, MEMORY = 2, 512_000_000    # of one input
CODECS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be",
          "cp437")
SIZES = (7, 5, 3)                   # a network as small as it can be odd
HEADER = ("loader", "inputs", "loaded", "refused", "failures", "slowest (ms)",
          "peak memory growth (MB)")
MAX_LINE = 2_000                    # characters of a message
KEPT = 10                           # failures to describe per loader
RUNS_CODE = ("exec", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.spawn",
             "subprocess.", "socket.", "pickle.", "marshal.", "ctypes.", "os.remove", "os.rename",
             "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "shutil.", "import")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Loader(NamedTuple):
    """How one kind of file is made, changed, put where it is read from, and read."""
    seeds: list                 # bytes of valid files
    mutate: Callable            # (random.Random, bytes) -> bytes
    write: Callable             # (bytes)
    load: Callable              # ()


class TooSlow(BaseException):
    """Not an Exception: loaders catch those."""


def make_networks(rng, form="npz"):
    """Weights files: W8, W4, W2 and W1, and as .npz float32."""
    import integer
    files = []
    for bits in (8, 4, 2, 1):
        qmin, qmax = integer.code_range(bits)
        layers = []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(SIZES)):
            w_q = rng.integers(qmin, qmax + 1, (inputs, outputs), np.int8)
            layers.append(integer.Layer(np.where(w_q == 0, int(bits == 1), w_q).astype(np.int8),
                                        rng.integers(-500, 500, outputs, np.int32),
                                        np.full(outputs, 7, np.int8) if i == 0 else None))
        network = integer.make_network(layers, bits, 8, -12)
        files.append(checkpoint.encode(network, {"note": "seed"}, form))
    if form == "nqat":
        return files
    floats = tuple((rng.normal(size=shape).astype(np.float32), np.zeros(shape[1], np.float32))
                   for shape in itertools.pairwise(SIZES))
    return [*files, checkpoint.encode(integer.FloatNetwork(floats), {})]


def weights(folder):
    """checkpoint.load, as main_inference.py calls it."""
    path = folder / "weights.npz"

    def change(random, content):
        # Some are whole files, to reach the proofs behind the parser.
        return (mutate.network if random.random() < 0.3 else mutate.npz)(random, content)

    return Loader(make_networks(np.random.default_rng(0)), change, path.write_bytes,
                  lambda: checkpoint.load(path))


def compact(folder):
    """checkpoint.load of an .nqat."""
    path = folder / "weights.nqat"
    return Loader(make_networks(np.random.default_rng(0), "nqat"), mutate.nqat, path.write_bytes,
                  lambda: checkpoint.load(path))


def state(folder):
    """runs.load_state, as experiment.py calls it."""
    import training
    from runner import state as runs
    path, machine = folder / "state0.npz", {"jax": "1.2.3", "devices": 1}
    hyper = config.hyper(config.load([]), LAYER_SIZES=SIZES, BATCH_SIZE=2, MAX_EPOCHS=9)
    fresh, seeds = training.start([0.1, 0.01], [0, 1], hyper), []
    later = fresh._replace(history=np.ones((2, 3, len(training.METRICS))), seconds=np.ones(3))
    for sweep in (fresh, later):
        with runs.Recorder(path, folder / "history.csv", sweep, machine) as recorder:
            recorder.record(sweep, must=True)
        seeds.append(path.read_bytes())

    def load():
        return runs.load_state(path, runs.read_state(path, fresh, hyper.MAX_EPOCHS), fresh, machine,
                               hyper.MAX_EPOCHS)

    return Loader(seeds, mutate.npz, path.write_bytes, load)


def recipes(folder):
    """config.load with a recipe, as every script calls it."""
    path = folder / "recipe.toml"
    seeds = [file.read_bytes() for file in sorted((results.ROOT / "recipes").glob("*.toml"))]
    every = config.load([])._asdict()
    # JSON's lists, texts and truth values are TOML's.
    seeds.append("".join(f"{name} = {json.dumps(every[name])}\n" for name in every).encode())
    seeds.append(b'a.b = {c = [1, 0x1f, 1979-05-27, \'x\']}\n[t]\n[[u.v]]\nw = """y"""\n')
    constants = config._read_constants()        # of config.py itself, 95 % of the time

    def load():
        with mock.patch.object(config, "_read_constants", lambda: constants):
            return config.load([str(path)])

    return Loader(seeds, mutate.text, path.write_bytes, load)


def idx(folder):
    """data.load of a folder in which one file is changed; an input's first byte says which."""
    rng, sums = np.random.default_rng(0), folder / "SHA256SUMS"
    paths = [folder / f"{name}.gz" for pair in data.FILES for name in pair] + [sums]
    arrays = [rng.integers(0, 256, (30, 4, 4), np.uint8), rng.integers(0, 10, 30, np.uint8)] * 2
    for path, array in zip(paths, arrays):
        data.write_idx(path, array)
    sums.write_text("# a comment\n" + "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  "
                                              f"{path.name}\n" for path in paths[:2]))
    valid = [path.read_bytes() for path in paths]

    def change(random, content):
        change = mutate.text if content[0] == paths.index(sums) else mutate.idx
        return content[:1] + change(random, content[1:])

    def write(content):
        for i, path in enumerate(paths):
            path.write_bytes(content[1:] if i == content[0] else valid[i])
        if content[0] != paths.index(sums):
            sums.write_bytes(b"")               # it would refuse every change of a file

    return Loader([bytes([i]) + content for i, content in enumerate(valid)], change, write,
                  lambda: data.load(folder))


def images(folder):
    """photo.read_digit, as main_inference.py calls it."""
    path = folder / "photo.png"
    return Loader(mutate.image_seeds(), mutate.image, path.write_bytes,
                  lambda: photo.read_digit(path, photo.SIDE ** 2))


def result(folder):
    """results.read_result, as the figures and tables call it."""
    path = folder / "result.json"
    with contextlib.redirect_stdout(None):
        results.write_result(path, {"LEARNING_RATE": 0.1}, rows=[{"seed": 0, "acc": [0.5, None]}],
                             text="naïve ☃\n", flag=True)
    seeds = [path.read_bytes(), b'{"a": [1, -2.5e3, {"b": "\\u00e9"}]}']
    return Loader(seeds, mutate.text, path.write_bytes, lambda: results.read_result(path))


LOADERS = {"weights": weights, "compact weights": compact, "training state": state,
           "recipes": recipes, "idx data": idx, "images": images, "results": result}


class Guard:
    """Counts what one call may not do; an audit hook can't be removed, so there is one for all."""

    def __init__(self):
        self.seen = None                        # events of the call in progress; None: look away
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if self.seen is None:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        # NumPy's headers are parsed by ast.literal_eval, which compiles to a tree: no code object.
        compiles = event == "compile" and arguments[1] not in ("<unknown>", b"<unknown>")
        if writes or compiles or event.startswith(RUNS_CODE):
            self.seen.append(f"{event} {str(arguments)[:100]}")
            raise PermissionError(event)

    @contextlib.contextmanager
    def watching(self):
        self.seen = []
        try:
            yield
        finally:
            self.events, self.seen = self.seen, None


@functools.cache
def make_guard():
    return Guard()


def on_alarm(*_):
    raise TooSlow


def make_input(loader, name, seed, number):
    """The bytes of one input; name: of the loader, in LOADERS."""
    chance = random.Random(f"{name} {seed} {number}")
    return loader.mutate(chance, chance.choice(loader.seeds))


def attempt(load, guard):
    """Load the one input that is on disk.

    Returns:
      ("loaded", "refused" or "failure"; what went wrong, or ""; seconds).
    """
    ending, detail, printed = "loaded", "", io.StringIO()
    start = time.perf_counter()
    with (warnings.catch_warnings(record=True, action="always") as warned,
          contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed),
          guard.watching()):
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            load()
        except InputError as error:
            ending = "refused"
            if len(str(error).splitlines()) != 1 or len(str(error)) > MAX_LINE:
                detail = f"message {str(error)[:200]!r}"
        except TooSlow:
            detail = f"over {SECONDS} s"
        except Exception as error:
            detail = f"{type(error).__name__}: {str(error)[:200]}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.perf_counter() - start
    if seconds > SECONDS:                       # an alarm waits for the end of a call in C
        detail = f"over {SECONDS} s"
    if printed.getvalue():
        detail = f"printed: {printed.getvalue()[:200]!r}"
    if warned:
        detail = f"warning: {str(warned[0].message)[:200]}"
    if guard.events:
        detail = f"forbidden: {guard.events[0]}"
    return "failure" if detail else ending, detail, seconds


def fuzz(name, inputs, seed):
    """Feed one loader.

    Args:
      name: in LOADERS; inputs: how many; seed: of the changes.
    Returns:
      dict of counts, the slowest input in ms, peak memory growth in bytes, and failures as
      [[input, what], ...], the first KEPT of them.
    """
    guard, counts, failures, slowest = make_guard(), Counter(), [], 0.0
    previous = signal.signal(signal.SIGALRM, on_alarm)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        loader = LOADERS[name](Path(folder))
        for codec in CODECS:                    # of JSON and zip: imported when first used
            codecs.lookup(codec)
        for content in loader.seeds:            # imports and caches, before anything is watched
            loader.write(content)
            with contextlib.suppress(InputError):
                loader.load()
        before = peak = facts.peak_memory() or 0
        for number in tqdm(range(inputs), name, unit="input", mininterval=1, disable=None):
            loader.write(make_input(loader, name, seed, number))
            ending, detail, seconds = attempt(loader.load, guard)
            reached = facts.peak_memory() or 0
            if reached > max(peak, before + MEMORY):
                ending, detail = "failure", f"took {reached - before:,} bytes"
            peak, slowest = max(peak, reached), max(slowest, seconds)
            counts[ending] += 1
            if ending == "failure" and len(failures) < KEPT:
                failures.append([number, detail])
    signal.signal(signal.SIGALRM, previous)
    return {"loader": name, "inputs": inputs, "loaded": counts["loaded"],
            "refused": counts["refused"], "failed": counts["failure"], "slowest_ms": 1e3 * slowest,
            "memory_growth": peak - before, "failures": failures}


def fuzz_apart(name, inputs, seed):
    """fuzz in a process of its own: its memory is the loader's, and a crash is a failure."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(fuzz, name, inputs, seed).result()
        except BrokenProcessPool:
            return {"loader": name, "inputs": inputs, "loaded": 0, "refused": 0, "failed": 1,
                    "slowest_ms": 0.0, "memory_growth": 0, "failures": [[None, "process died"]]}


def main(argv):
    given = {}
    for word in [word for word in argv if re.fullmatch(r"--(inputs|seed)=[0-9]{1,9}", word)]:
        given[word[2:].split("=")[0]] = int(word.split("=")[1])
        argv = [other for other in argv if other != word]
    settings = config.load(argv, __doc__)
    inputs, seed = given.get("inputs", 100_000), given.get("seed", 0)
    rows = [fuzz_apart(name, inputs, seed) for name in LOADERS]
    print(results.table(HEADER, [
        [row["loader"], f"{row['inputs']:,}", f"{row['loaded']:,}", f"{row['refused']:,}",
         row["failed"], f"{row['slowest_ms']:.0f}", f"{row['memory_growth'] / 1e6:.0f}"]
        for row in rows]))
    for row in rows:
        for number, detail in row["failures"]:
            print(f"{row['loader']}, input {number}: {detail}")
    results.write_result(Path(settings.RESULTS_DIR) / "fuzz.json", settings._asdict(),
                         inputs=inputs, seed=seed, loaders=rows)
    if any(row["failed"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    script.run(main)
