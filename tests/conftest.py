"""What the tests share: the import path, strict JAX, MNIST, and one small trained network."""
import gzip
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import hypothesis
import numpy as np
import pytest

import quant    # before any other use of JAX: it sets the number of host devices
import jax

import config
import data
import main_inference
import model
import training
from files import run_script

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The same examples in every run, and no deadline: the first call of a JAX function compiles.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None,
                                       max_examples=50)
hypothesis.settings.load_profile("fixed")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def mnist():
    """(train Split, test Split) as bundled."""
    return data.load("mnist", ROOT / "datasets" / "mnist", (784, 10))


@pytest.fixture(scope="session")
def parts(mnist):
    """A small train and val Split of the real train split: 2,000 and 1,000 images."""
    train, _ = mnist
    return (data.Split(train.images[:2_000], train.labels[:2_000]),
            data.Split(train.images[2_000:3_000], train.labels[2_000:3_000]))


def write_idx(path, array, magic=8):
    """Write uint8 as an idx file, packed when the path ends in .gz."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, magic, array.ndim, *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


def write_folder(folder, train, test, side=28, suffix=".gz"):
    """Write two Splits as the four files of a dataset."""
    for (images_name, labels_name), split in zip(data.FILES, (train, test)):
        write_idx(folder / f"{images_name}{suffix}", split.images.reshape(-1, side, side))
        write_idx(folder / f"{labels_name}{suffix}", split.labels)


@pytest.fixture(scope="session")
def folder(mnist, tmp_path_factory):
    """A dataset folder of 1,000 train and 200 test images of MNIST, without hashes."""
    folder = tmp_path_factory.mktemp("small")
    write_folder(folder, *(data.Split(split.images[:n], split.labels[:n])
                           for split, n in zip(mnist, (1_000, 200))))
    return folder


@pytest.fixture(scope="session")
def trained(mnist):
    """The default W8A8 network after 3 epochs on 10,000 images, and its deployed integers."""
    train, val = (data.Split(mnist[0].images[rows], mnist[0].labels[rows])
                  for rows in (slice(10_000), slice(10_000, 12_000)))
    recipe = training.recipe_of(config.load([]), MAX_EPOCHS=3)
    (run,), _ = training.fit(train, val, [0.1], [0], recipe)
    layers = model.quantize(run.params, run.scales, recipe.spec)
    meta = {"quantized": True, "weight_bits": 8, "activation_bits": 8, "per_channel": True}
    return SimpleNamespace(run=run, recipe=recipe, val=val, layers=layers, meta=meta,
                           predict=main_inference.make_predictor(layers, meta))


@pytest.fixture
def script(monkeypatch, capsys):
    """script(main, *arguments) -> (exit code, stdout lines, stderr lines), as from a shell."""
    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
        code = 0
        try:
            run_script(main)
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()
    return call
