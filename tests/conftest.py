"""What the tests share: the import path, strict JAX, MNIST, and one small trained network."""
import contextlib
import gzip
import os
import re
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from machine.script import forget_environment

forget_environment()            # before JAX reads it

import hypothesis
import jax
import numpy as np
import pytest

import config
import convert
import data
import plan
import predict
from deploy import engines
from formats import idx
from machine import runtime
from machine.script import run
from training import loop

# Programs compiled in this session, shared by its workers and the scripts they start.
RUN = os.environ.setdefault("NANOQAT_TESTS", str(os.getpid()))
CACHE = Path(tempfile.gettempdir()) / f"nanoqat-tests-{RUN}"
runtime.set_up(str(CACHE))      # before any other use of JAX: it sets the number of host devices
# The same examples in every run, and no deadline: the first call of a JAX function compiles.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None,
                                       max_examples=50)
hypothesis.settings.load_profile("fixed")


def pytest_addoption(parser):
    parser.addoption("--inputs", type=int, default=300, help="hostile files for each loader")
    parser.addoption("--faults", type=int, default=2, help="faults of each kind in the drill")
    parser.addoption("--runs", type=int, default=30, help="runs whose memory may not grow")


def pytest_sessionfinish(session):
    if "PYTEST_XDIST_WORKER" not in os.environ:         # the process that ends last
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def mnist():
    """The Dataset as bundled."""
    return data.load(ROOT / "datasets" / "mnist")


def rows_of(split, start, end):
    """The Split of some of a Split's rows."""
    return data.Split(split.images[start:end], split.labels[start:end])


@pytest.fixture(scope="session")
def parts(mnist):
    """A small train and val Split of the real train split: 2,000 and 1,000 images."""
    return rows_of(mnist.train, 0, 2_000), rows_of(mnist.train, 2_000, 3_000)


def write_idx(path, array, magic=8):
    """Write uint8 as an idx file, packed when the path ends in .gz."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, magic, array.ndim, *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


def write_folder(folder, train, test, side=28, suffix=".gz"):
    """Write two Splits as the four files of a dataset."""
    for (images_name, labels_name), split in zip(idx.FILES, (train, test)):
        write_idx(folder / f"{images_name}{suffix}", split.images.reshape(-1, side, side))
        write_idx(folder / f"{labels_name}{suffix}", split.labels)


@pytest.fixture(scope="session")
def folder(mnist, tmp_path_factory):
    """A dataset folder of 1,000 train and 200 test images of MNIST, without hashes."""
    folder = tmp_path_factory.mktemp("small")
    write_folder(folder, rows_of(mnist.train, 0, 1_000), rows_of(mnist.test, 0, 200))
    return folder


IMAGE = 28, 28, 1               # shape of MNIST's


def make_hyper(LAYERS="32", shape=IMAGE, classes=10, **changes):
    """What config and the data make of the switches: those of config.py, but for the changes."""
    hyper = config.hyper(config.load([]), **{"COMPUTE": "float32", **changes})
    return hyper._replace(LAYERS=plan.parse(LAYERS, shape, classes))


def train(train_split, val_split, rates, seeds, hyper):
    """The finished Sweep of these lanes."""
    *_, last = loop.epochs(loop.start(rates, seeds, hyper), train_split, val_split, hyper)
    return last


def best_layers(sweep, lane=0):
    """The model.Layers of a lane's best epoch."""
    return jax.tree.map(lambda a: a[lane], sweep.best)


@pytest.fixture(scope="session")
def trained(mnist):
    """The default W8A8 network after 3 epochs on 10,000 images, and its deployed integers."""
    val = rows_of(mnist.train, 10_000, 12_000)
    hyper = make_hyper("256 128", MAX_EPOCHS=3)
    sweep = train(rows_of(mnist.train, 0, 10_000), val, [0.1], [0], hyper)
    network = convert.to_network(best_layers(sweep), hyper)
    return SimpleNamespace(network=network, hyper=hyper, sweep=sweep, val=val,
                           predict=predict.make_predictor(network))


def wait_for_epoch(process, runs_dir, epoch):
    """Until the history of a process's run, in its RUNS_DIR, has this epoch."""
    while not any(re.search(rf"^{epoch},", path.read_text(), re.MULTILINE)
                  for path in Path(runs_dir).glob("*/history0.csv")):
        if process.poll() is not None:
            pytest.fail("".join(filter(None, process.communicate())))
        time.sleep(0.002)


@pytest.fixture
def script(monkeypatch, capsys):
    """script(main, *arguments) -> (exit code, stdout lines, stderr lines), as from a shell."""
    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
        code = 0
        try:
            run(main)
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()
    return call


@pytest.fixture
def need():
    """need(make, ...) -> make(...), or a skip that says what is missing."""
    def call(make, *arguments, **options):
        try:
            return make(*arguments, **options)
        except engines.Missing as missing:
            pytest.skip(str(missing))
    return call


@pytest.fixture
def exits():
    """An ExitStack that the test's end closes."""
    with contextlib.ExitStack() as stack:
        yield stack
