"""runs/NAME/: what a run makes while it runs: the state that resumes it, and its history.

One state file for each group of lanes that share their hyperparameters.
"""
import ast
import csv
import functools
import hashlib
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from formats import npz
from machine.files import InputError, read_bytes, write_atomically
from training import stopping

FORMAT = 3                      # of the state file
FINISHED = "finished"           # a file in the folder of a study whose runs are all judged
# What decides a run's bits, besides the libraries.
CODE = ("quant.py", "plan.py", "integer.py", "model.py", "convert.py", "data.py", "predict.py",
        "training/*.py", "formats/encode.py", "formats/splits.py", "machine/devices.py",
        "machine/runtime.py", "runner/source.py", "runner/adapt.py")


def folder_name(study, sha256, switches):
    """The folder of a run: the same data and switches of its points give the same name."""
    text = json.dumps([sha256, *switches], sort_keys=True)
    return f"{study}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _without_docstrings(tree):
    """A syntax tree in which what only explains is gone: docstrings; comments never are in one."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first = node.body[0] if node.body else None
            if (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                    and isinstance(first.value.value, str)):
                node.body = node.body[1:]
    return tree


@functools.cache
def hash_of_code():
    """SHA-256 of the code that decides a run's bits, whatever its comments and docstrings say."""
    home, sha256 = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for pattern in CODE:
        for path in sorted(home.glob(pattern)):
            tree = _without_docstrings(ast.parse(path.read_text("utf-8")))
            sha256.update(f"{path.name} {ast.dump(tree)}".encode())
    return sha256.hexdigest()[:16]


def announce_others(folder, study):
    """Say which unfinished runs of this study stay aside because their switches differ."""
    folder = Path(folder)
    others = sorted({path.parent for path in folder.parent.glob(f"{study}-*/state*.npz")})
    for other in others:
        if other != folder:
            print(f"{other} is unfinished and stays: other switches; here begins {folder}")


def finish(folder):
    """Remove what a run that has ended well could be resumed from."""
    for path in [*Path(folder).rglob("state*.npz"), *Path(folder).rglob(FINISHED)]:
        path.unlink(missing_ok=True)


def _encode(sweep, machine):
    """A Sweep as the bytes of a state file."""
    leaves = jax.tree.leaves(sweep)
    return npz.encode({"format": FORMAT, "epochs": sweep.epoch, "machine": machine},
                      {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}, compress=False)


def _decode(content, fresh, machine, max_epochs):
    """The Sweep in the bytes of a state file.

    Args:
      fresh: the Sweep before its first epoch, whose leaves have the shapes to expect.
    Raises:
      InputError: made elsewhere; ValueError and others: damaged.
    """
    leaves, structure = jax.tree.flatten(fresh)

    def claim(meta):
        if meta.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if meta.get("machine") != machine:
            raise InputError(_difference(meta.get("machine"), machine))
        epochs = meta.get("epochs")
        if type(epochs) is not int or not 0 <= epochs <= max_epochs:
            raise ValueError(f"its epochs are not in 0..{max_epochs}")
        grown = fresh._replace(history=np.empty((len(fresh.rate), epochs, len(stopping.METRICS))),
                               seconds=np.empty(epochs))
        return {f"leaf{i}": (leaf.dtype, leaf.shape)
                for i, leaf in enumerate(jax.tree.leaves(grown))}

    _, arrays = npz.decode(content, claim)
    sweep = jax.tree.unflatten(structure, [arrays[f"leaf{i}"] for i in range(len(leaves))])
    if not (np.array_equal(sweep.rate, fresh.rate) and np.array_equal(sweep.seed, fresh.seed)):
        raise ValueError("its rates or seeds are others")
    if (sweep.status.max() >= len(stopping.STATUS) or sweep.best_epoch.min() < 0
            or max(sweep.best_epoch.max(), sweep.renewed.max()) > sweep.epoch):
        raise ValueError("its status or epochs are out of range")
    return sweep


def _difference(found, machine):
    """In words, what differs between the machine of a state file and this one."""
    found = found if isinstance(found, dict) else {}
    changed = [f"{key:.40} {found.get(key)!r:.80} there, {value!r:.80} here"
               for key, value in (dict.fromkeys(found) | machine).items()
               if found.get(key) != value]
    return f"it was begun with {', '.join(changed)}, so that the bits could differ"


def read_state(path, fresh, max_epochs):
    """The bytes of a state file, none where there is no such file; no larger than it may be."""
    rows = fresh.history.itemsize * (len(fresh.rate) * len(stopping.METRICS) + 1)
    limit = sum(leaf.nbytes for leaf in jax.tree.leaves(fresh)) + max_epochs * rows + 2**20
    return read_bytes(path, limit) if Path(path).exists() else b""


def begin(folder):
    """Remove what a finished study left: it is never resumed. Of one that is not, nothing."""
    if (Path(folder) / FINISHED).exists():
        finish(folder)


def end(folder):
    """Say that every run of a study is judged."""
    (Path(folder) / FINISHED).touch()


def reopen(folder):
    """Take that back: one more run belongs to the study, and what was judged must not be lost."""
    (Path(folder) / FINISHED).unlink(missing_ok=True)


def load_state(path, content, fresh, machine, max_epochs):
    """The unfinished Sweep in the bytes of a state file.

    Args:
      path: to name in errors.
      content: bytes.
      fresh: the Sweep before its first epoch.
      machine: dict of versions, devices and code that the bits may depend on.
      max_epochs: the most that it can have run.
    Raises:
      InputError: the file is damaged, or of another machine.
    """
    again = "--RESUME=False starts anew"
    try:
        return _decode(content, fresh, machine, max_epochs)
    except InputError as error:
        raise InputError(f"{path} can't be resumed here: {error}; {again}") from None
    except Exception as error:
        raise InputError(f"{path} is not a saved state: {npz.reason(error)}; {again}") from None


class Recorder:
    """Writes a Sweep's state and history, the state beside the training of the next epoch.

    A large state takes long to write: it is written seldom enough to cost MAX_COST of the time.
    """
    MAX_COST = 0.03

    def __init__(self, state_path, history_path, sweep, machine):
        self.state_path, self.history_path, self.machine = state_path, history_path, machine
        self.writer, self.pending, self.epoch = ThreadPoolExecutor(1), None, sweep.epoch
        self.next_save = 0.0                    # on the monotonic clock
        write_atomically(history_path, _history_lines(sweep, 0, header=True).encode())

    def record(self, sweep, must):
        """Append the new epochs to the history; write the state if it must be, or is due."""
        if must or self.pending is None or self.pending.done():
            self.wait()
            if must or time.monotonic() >= self.next_save:
                self.pending = self.writer.submit(self._save, sweep)
        try:
            with open(self.history_path, "a", encoding="utf-8") as file:
                file.write(_history_lines(sweep, self.epoch))
        except OSError as error:
            raise InputError(f"can't write {self.history_path}: {error.strerror}") from None
        self.epoch = sweep.epoch

    def _save(self, sweep):
        start = time.monotonic()
        write_atomically(self.state_path, _encode(sweep, self.machine))
        now = time.monotonic()
        self.next_save = now + (now - start) / self.MAX_COST

    def wait(self):
        """Until the last state is on disk; raises what went wrong with it."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.writer.shutdown()
        self.wait()


def _history_lines(sweep, first, header=False):
    """CSV text: a line for each epoch from `first` on and each lane that ran it."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    if header:
        lines.writerow(["epoch", "seconds", "learning_rate", "seed", *stopping.METRICS])
    for epoch in range(first, sweep.epoch):
        for lane, (rate, seed) in enumerate(zip(sweep.rate, sweep.seed)):
            metrics = sweep.history[lane, epoch]
            if not np.isnan(metrics).all():
                lines.writerow([epoch + 1, f"{sweep.seconds[epoch]:.3f}", f"{rate:g}", seed,
                                *(f"{value:.9g}" for value in metrics)])
    return text.getvalue()
