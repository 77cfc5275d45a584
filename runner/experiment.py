"""Points -> rows: load the data, train, save as it goes, judge each model from its file's bytes.

Points that share their hyperparameters train side by side as lanes, others in turn.
"""
import json
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import config
import convert
import integer
import model
import plan
import predict
from formats import checkpoint
from machine import interrupt, runtime
from machine.facts import environment, has_fast_bfloat16
from machine.files import InputError, locked
from runner import adapt, keep, progress, source
from runner.state import (
    Recorder,
    announce_others,
    begin,
    end,
    finish,
    folder_name,
    hash_of_code,
    load_state,
    read_state,
    reopen,
)
from training import loop, stopping

REASONS = {"diverged": "the loss left the finite numbers",
           "guessing": "it got no better than guessing",
           "inexact": "its weights outgrew their scales: an accumulator could reach 2**24"}


class Outcome(NamedTuple):
    """One point, trained and judged."""
    settings: config.Config     # with the point's changes
    layers: list | None         # of model.Layer, NumPy: the best epoch's
    content: bytes | None       # of the weights file; None for free scales, which have none
    row: dict                   # for results/*.json, the same keys in every study
    correct: np.ndarray | None  # bool [N]: which test images it gets right


def set_up(settings):
    """JAX's flags, cache and processes, from the switches; the Config with COMPUTE decided."""
    runtime.set_up(settings.CACHE_DIR, settings.COORDINATOR, settings.NUM_PROCESSES,
                   settings.PROCESS_ID)
    return decide(settings)


def decide(settings):
    """The Config with COMPUTE = auto replaced by what the processor is known to be fast at."""
    if settings.COMPUTE != "auto":
        return settings
    fast = (settings.QAT_ENABLE and settings.POWER_OF_TWO_SCALES
            and jax.default_backend() == "cpu" and has_fast_bfloat16())
    # Decided by the first process for all: they may run on unlike processors.
    compute = runtime.from_first(b"bfloat16" if fast else b"float32").decode()
    return config.change(settings, COMPUTE=compute)


def describe(settings):
    """W8A8, or float32: what these switches train."""
    return (integer.kind(settings.WEIGHT_BITS, settings.ACTIVATION_BITS) if settings.QAT_ENABLE
            else integer.kind())


def _machine():
    """What the bits of training may depend on besides the switches."""
    devices = jax.devices()
    mine = environment() | {"device": devices[0].device_kind, "devices": len(devices),
                            "processes": jax.process_count(), "code": hash_of_code()}
    # The first process writes the state; the others may run on unlike processors.
    return json.loads(runtime.from_first(json.dumps(mine).encode()))


def _resume(sweep, path, settings, hyper, machine):
    """The Sweep as it was left in a state file, or as it is where there is none."""
    first = runtime.is_first()
    content = runtime.from_first(read_state(path, sweep, hyper.MAX_EPOCHS)
                                 if first and settings.RESUME else b"")
    if not content:
        return sweep
    sweep = load_state(path, content, sweep, machine, hyper.MAX_EPOCHS)
    if first:
        print(f"going on after epoch {sweep.epoch}, from {path}")
    return sweep


def _train(lanes, data, hyper, folder, group, part):
    """The finished Sweep of one group of lanes, resumed where it was left.

    Args:
      lanes: list of Config that share `hyper`.
      data: Data.
      hyper: as from hyper_of.
      folder: Path of the run.
      group: number of its state.
      part: as progress.shown takes it.
    Raises:
      interrupt.Stopped: a signal came; the state is saved.
    """
    machine, first = _machine(), runtime.is_first()
    path, history = folder / f"state{group}.npz", folder / f"history{group}.csv"
    sweep = loop.start([lane.LEARNING_RATE for lane in lanes], [lane.SEED for lane in lanes], hyper)
    sweep = _resume(sweep, path, lanes[0], hyper, machine)
    with (Recorder(path, history, sweep, machine) if first else nullcontext() as recorder,
          interrupt.after_epoch() as asked,
          progress.shown(sweep, hyper, part, silent=not first) as show):
        train, val = (part._replace(images=source.centred(part.images, data))
                      for part in (data.train, data.val))
        for sweep in loop.epochs(sweep, train, val, hyper):      # noqa: B020 (each goes on)
            stop = runtime.any_process(asked())
            ended = not (sweep.status == stopping.RUNNING).any()
            if recorder:                        # saved before it is shown: output may fail
                recorder.record(sweep, must=stop or ended)
            show(sweep, last=stop or ended)
            if stop and not ended:
                raise interrupt.Stopped(f"stopped after epoch {sweep.epoch}; the same command goes "
                                        "on from there")
    return sweep


def judge(settings, layers, data, row):
    """An Outcome: the model encoded as its file, read back, and run on val and test.

    Args:
      settings: Config.
      layers: list of model.Layer, NumPy.
      data: Data.
      row: dict to complete.
    """
    hyper, content = source.hyper_of(settings, data), None
    if hyper.QAT_ENABLE and not hyper.POWER_OF_TWO_SCALES:      # free scales have no integers
        run = predict.make_predictor(layers, hyper=hyper)

        def predictor(images):
            return run(source.centred(images, data))
    else:
        network = (convert.to_network(layers, hyper, data.zero) if hyper.QAT_ENABLE
                   else convert.to_float_network(layers, hyper, data.zero))
        facts = keep.facts_of(settings, data, row.get("val_loss"))
        content = checkpoint.encode(network, facts, settings.FILE_FORMAT)
        network, _ = checkpoint.decode(content)
        row = row | {"file_bytes": len(content), "sha256": checkpoint.digest(network)}
        predictor = predict.make_predictor(network, settings.ENGINE)
    metrics, correct = predict.evaluate(predictor, val=data.val, test=data.test)
    if "val_loss" in row:
        metrics["reload_change"] = metrics["val_loss"] - row["val_loss"]
    return Outcome(settings, layers, content, row | metrics, correct["test"])


def _switches(point):
    """A point's switches, without its label."""
    return {key: value for key, value in point.items() if key != "label"}


def network_name(settings, steps):
    """784-256-128-10 W8A8: the network that these switches train."""
    return f"{plan.describe(steps)} {describe(settings)}"


def _new_row(settings, point, status, data):
    """What is known of a run before its model is judged."""
    name = network_name(settings, source.hyper_of(settings, data).LAYERS)
    return {"label": point.get("label", name), "changes": _switches(point), "network": name,
            "rate": settings.LEARNING_RATE, "seed": settings.SEED, "status": status,
            "usable": status in stopping.USABLE}


def _outcome(settings, point, sweep, lane, data):
    """The Outcome of one lane of a finished Sweep."""
    history = sweep.history[lane]
    history = history[~np.isnan(history).all(1)]
    best = int(sweep.best_epoch[lane])
    row = _new_row(settings, point, stopping.STATUS[sweep.status[lane]], data) | {
        "epochs": len(history), "best_epoch": best,
        "history": {name: [float(f"{value:.9g}") for value in column]
                    for name, column in zip(stopping.METRICS, history.T)}}
    if not best:
        return Outcome(settings, None, None, row | {"val_loss": None, "val_acc": None,
                                                    "test_loss": None, "test_acc": None}, None)
    layers = jax.tree.map(lambda a: a[lane], sweep.best)
    row |= {"val_loss": float(history[best - 1, 1]), "val_acc": float(history[best - 1, 2])}
    return judge(settings, layers, data, row)


def _parts(groups):
    """Of each group of lanes: (number, how many there are, its kind and what sets it apart).

    Args:
      groups: dict of hyper (LAYERS as steps) -> indices of points.
    """
    named = ("QAT_ENABLE", "WEIGHT_BITS", "ACTIVATION_BITS")       # by describe
    differing = [name for name, *values in zip(config.Hyper._fields, *groups)
                 if len(set(values)) > 1 and name not in named]
    parts = []
    for number, (hyper, members) in enumerate(groups.items(), 1):
        values = [(name, plan.to_line(hyper.LAYERS) if name == "LAYERS" else getattr(hyper, name))
                  for name in differing]
        plural = "s" if len(members) > 1 else ""
        parts.append((number, len(groups), ", ".join([
            describe(hyper), *(f"{name}={value}" for name, value in values),
            f"{len(members)} run{plural}"])))
    return parts


def run(settings, study, points, data, folder=None):
    """Train and judge every point.

    Args:
      settings: Config.
      study: name of the run's folder in RUNS_DIR.
      points: list of dicts of switches to change and, if it has one, the "label" of its row.
      data: Data.
      folder: Path to work in; None: one named after the study, its data and switches.
    Returns:
      (list of Outcome in the points' order; the run's folder; dict of seconds: "compile",
      "epochs"). Only the first process returns.
    Raises:
      interrupt.Stopped: a signal came; the same call goes on from there.
    """
    changed = [config.change(settings, **_switches(point)) for point in points]
    groups = {}                                 # hyperparameters -> indices of points
    for i, point in enumerate(changed):
        groups.setdefault(source.hyper_of(point, data), []).append(i)
    name = folder_name(study, data.sha256, map(keep.switches_of, changed))
    folder = folder or Path(settings.RUNS_DIR) / name
    outcomes, seconds = [None] * len(points), {"compile": 0.0, "epochs": 0.0}
    with locked(folder) if runtime.is_first() else nullcontext():
        if runtime.is_first():
            announce_others(folder, study)
            begin(folder)
        sweeps = [_train([changed[i] for i in members], data, hyper, folder, group, part)
                  for group, ((hyper, members), part) in enumerate(zip(groups.items(),
                                                                       _parts(groups)))]
        runtime.end_all_but_first()
        for sweep, members in zip(sweeps, groups.values()):
            seconds["compile"] += float(sweep.compile_seconds)
            seconds["epochs"] += float(sweep.seconds.sum())
            for lane, i in enumerate(members):
                outcomes[i] = _outcome(changed[i], points[i], sweep, lane, data)
        end(folder)
    return outcomes, folder, seconds


def train_on_all(outcome, settings, data, folder):
    """The model trained once more, on the validation examples too: where they are few, they count.

    Args:
      outcome: Outcome of the run that held them out; what it says of validation stays.
      settings: Config.
      data: Data.
      folder: Path of the run.
    Returns:
      Outcome.
    """
    # A fixed number of steps judged nothing by validation; else it chose the epochs.
    by_train = settings.METRIC == "train_loss"
    epochs = settings.MAX_EPOCHS if by_train else outcome.row["best_epoch"]
    changes = {"METRIC": "train_loss", "MAX_EPOCHS": epochs, "PATIENCE": epochs,
               "WARMUP_EPOCHS": min(settings.WARMUP_EPOCHS, epochs)}
    both = adapt.with_val(data)
    source.say(f"once more for {epochs} epochs, on all {len(both.train.labels):,} examples")
    reopen(folder)
    (last,), _, _ = run(settings, "train", [changes], both, folder / "all")
    check_usable(last.row, folder / "all")
    names = ("changes", "status", "epochs", "best_epoch", "history", "val_loss", "val_acc")
    row = last.row | {name: outcome.row[name] for name in names}
    network, _ = checkpoint.decode(last.content)        # the file says what it is found by
    facts = keep.facts_of(outcome.settings, data, row["val_loss"])
    content = checkpoint.encode(network, facts, settings.FILE_FORMAT)
    return last._replace(settings=outcome.settings, content=content,
                         row=row | {"file_bytes": len(content)})


def quantize_after(outcome, point, settings, data):
    """Post-training quantization of a float32 Outcome: the Outcome of its calibrated integers.

    Args:
      outcome: Outcome.
      point: as run takes it.
      settings: Config that the point changes.
      data: Data.
    """
    settings = config.change(settings, **_switches(point))
    layers = jax.device_get(model.calibrate(
        outcome.layers, source.centred(data.train.images[:loop.CALIBRATION_IMAGES], data),
        source.hyper_of(settings, data)))
    row = _new_row(settings, point, outcome.row["status"], data)
    row["changes"]["post_training"] = True
    return judge(settings, layers, data, row)


def check_usable(row, folder):
    """Raise InputError, and end the run, unless this row ended with a model worth keeping."""
    if row["status"] not in stopping.USABLE:
        finish(folder)                          # its state could only fail again
        raise InputError(f"nothing was saved: at LEARNING_RATE = {row['rate']:g}, seed "
                         f"{row['seed']}, {REASONS[row['status']]}; choose another rate")
