"""Points -> rows: load the data, train, save as it goes, judge each model from its file's bytes.

Points that share their hyperparameters train side by side as lanes, others in turn.
"""
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import config
import data
import integer
import model
import predict
import training
from formats import checkpoint
from machine import interrupt, runtime
from machine.facts import environment, has_fast_bfloat16
from machine.files import InputError, link, locked, write_atomically
from runner import progress, state as runs

USABLE = ("stopped", "capped")  # how a run ends whose model is worth keeping
SWITCHES = ("LEARNING_RATE", "SEED", "VAL_EXAMPLES")    # besides Hyper, what decides the weights


class Data(NamedTuple):
    """A data set, split."""
    name: str
    sha256: str
    train: data.Split
    val: data.Split
    test: data.Split


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


def load_data(settings, dataset=None):
    """The Data that the switches name; dataset: data.Dataset of DATA_DIR, if it is there already."""
    dataset = dataset or data.load(settings.DATA_DIR)
    data.check_fits(dataset, settings.LAYER_SIZES, settings.INPUT)
    train, val = data.split_val(dataset.train, settings.VAL_EXAMPLES, settings.BATCH_SIZE)
    return Data(dataset.name, dataset.sha256, train, val, dataset.test)


def check_fits(given, settings):
    """InputError: a point's network or batch doesn't fit the Data."""
    data.check_fits(given, settings.LAYER_SIZES, settings.INPUT)
    if settings.BATCH_SIZE > len(given.train.labels):
        raise InputError(f"BATCH_SIZE = {settings.BATCH_SIZE} is more than the "
                         f"{len(given.train.labels)} train images")


def describe(settings):
    """W8A8, or float32: what these switches train."""
    return (integer.kind(settings.WEIGHT_BITS, settings.ACTIVATION_BITS) if settings.QAT_ENABLE
            else integer.kind())


def facts(settings, data):
    """What decides a model's weights, as JSON; it goes into the weights file."""
    switches = config.hyper(settings)._asdict() | {key: getattr(settings, key) for key in SWITCHES}
    return {"dataset": {"name": data.name, "sha256": data.sha256}, "switches": switches}


def _machine():
    """What the bits of training may depend on besides the switches."""
    devices = jax.devices()
    return environment() | {"device": devices[0].device_kind, "devices": len(devices),
                            "processes": jax.process_count()}


def _train(lanes, data, hyper, folder, group, part):
    """The finished Sweep of one group of lanes, resumed where it was left.

    Args:
      lanes: list of Config that share `hyper`; folder: Path of the run; group: number of its state;
      part: as progress.shown takes it.
    Raises:
      interrupt.Stopped: a signal came; the state is saved.
    """
    settings, machine, first = lanes[0], _machine(), runtime.is_first()
    sweep = training.start([lane.LEARNING_RATE for lane in lanes], [lane.SEED for lane in lanes],
                           hyper)
    state, history = folder / f"state{group}.npz", folder / f"history{group}.csv"
    content = runtime.from_first(runs.read_state(state, sweep, hyper.MAX_EPOCHS)
                                 if first and settings.RESUME else b"")
    if content:
        sweep = runs.load_state(state, content, sweep, machine, hyper.MAX_EPOCHS)
        if first:
            print(f"going on after epoch {sweep.epoch}, from {state}")
    with (runs.Recorder(state, history, sweep, machine, settings.LOG) if first
          else nullcontext() as recorder,
          interrupt.after_epoch() as asked,
          progress.shown(sweep, hyper, part, silent=not first) as show):
        for sweep in training.epochs(sweep, data.train, data.val, hyper):
            stop = runtime.any_process(asked())
            ended = not (sweep.status == training.RUNNING).any()
            if recorder:                        # saved before it is shown
                due = sweep.epoch % settings.CHECKPOINT_EVERY == 0
                recorder.record(sweep, due, must=stop or ended)
            show(sweep, last=stop or ended)
            if stop and not ended:
                raise interrupt.Stopped(f"stopped after epoch {sweep.epoch}; the same command goes "
                                        "on from there")
    return sweep


def judge(settings, layers, data, row):
    """An Outcome: the model encoded as its file, read back, and run on val and test.

    Args:
      settings: Config; layers: list of model.Layer, NumPy; row: dict to complete.
    """
    hyper, content = config.hyper(settings), None
    if hyper.QAT_ENABLE and not hyper.POWER_OF_TWO_SCALES:      # free scales have no integers
        predictor = predict.make_predictor(layers, hyper=hyper)
    else:
        network = (model.to_network(layers, hyper) if hyper.QAT_ENABLE
                   else integer.FloatNetwork(tuple((layer.w, layer.b) for layer in layers),
                                             hyper.INPUT))
        known = {"val_loss": row["val_loss"]} if "val_loss" in row else {}
        content = checkpoint.encode(network, facts(settings, data) | known, settings.FILE_FORMAT)
        network, _ = checkpoint.decode(content)
        row = row | {"file_bytes": len(content), "sha256": checkpoint.digest(network)}
        predictor = predict.make_predictor(network, settings.ENGINE)
    metrics, correct = predict.evaluate(predictor, val=data.val, test=data.test)
    if "val_loss" in row:
        metrics["reload_change"] = metrics["val_loss"] - row["val_loss"]
    return Outcome(settings, layers, content, row | metrics, correct["test"])


def _outcome(settings, changes, sweep, lane, data):
    """The Outcome of one lane of a finished Sweep."""
    history = sweep.history[lane]
    history = history[~np.isnan(history).all(1)]
    best = int(sweep.best_epoch[lane])
    row = {"changes": changes, "rate": settings.LEARNING_RATE, "seed": settings.SEED,
           "status": training.STATUS[sweep.status[lane]], "epochs": len(history),
           "best_epoch": best, "history": {name: [float(f"{value:.9g}") for value in column]
                                           for name, column in zip(training.METRICS, history.T)}}
    if not best:
        return Outcome(settings, None, None, row | {"val_loss": None, "val_acc": None,
                                                    "test_loss": None, "test_acc": None}, None)
    layers = jax.tree.map(lambda a: a[lane], sweep.best)
    row |= {"val_loss": float(history[best - 1, 1]), "val_acc": float(history[best - 1, 2])}
    return judge(settings, layers, data, row)


def _parts(groups):
    """Of each group of lanes: (number, how many there are, its kind and what sets it apart)."""
    named = ("QAT_ENABLE", "WEIGHT_BITS", "ACTIVATION_BITS")       # by describe
    differing = [name for name, *values in zip(config.Hyper._fields, *groups)
                 if len(set(values)) > 1 and name not in named]
    parts = []
    for number, (hyper, members) in enumerate(groups.items(), 1):
        values = [(name, getattr(hyper, name)) for name in differing]
        words = [f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
                 for name, value in values]
        runs_ = f"{len(members)} run{'s' * (len(members) > 1)}"
        parts.append((number, len(groups), ", ".join([describe(hyper), *words, runs_])))
    return parts


def run(settings, study, points, data):
    """Train and judge every point.

    Args:
      settings: Config; study: name of the run's folder in RUNS_DIR; points: list of dicts of
      switches to change; data: Data.
    Returns:
      (list of Outcome in the points' order; the run's folder; dict of seconds: "compile",
      "epochs"). Only the first process returns.
    Raises:
      interrupt.Stopped: a signal came; the same call goes on from there.
    """
    changed = [config.change(settings, **point) for point in points]
    groups = {}                                 # hyperparameters -> indices of points
    for i, point in enumerate(changed):
        groups.setdefault(config.hyper(point), []).append(i)
    for point in changed:
        check_fits(data, point)
    folder = Path(settings.RUNS_DIR) / runs.name(study, [facts(point, data) for point in changed])
    outcomes, seconds = [None] * len(points), {"compile": 0.0, "epochs": 0.0}
    with locked(folder) if runtime.is_first() else nullcontext():
        if runtime.is_first():
            runs.announce_others(folder, study)
        sweeps = [_train([changed[i] for i in members], data, hyper, folder, group, part)
                  for group, ((hyper, members), part) in enumerate(zip(groups.items(),
                                                                       _parts(groups)))]
        runtime.end_all_but_first()
        for sweep, members in zip(sweeps, groups.values()):
            seconds["compile"] += float(sweep.compile_seconds)
            seconds["epochs"] += float(sweep.seconds.sum())
            for lane, i in enumerate(members):
                outcomes[i] = _outcome(changed[i], points[i], sweep, lane, data)
    return outcomes, folder, seconds


def quantize_after(outcome, settings, data):
    """Post-training quantization of a float32 Outcome: the Outcome of its calibrated integers."""
    hyper = config.hyper(settings)
    layers = jax.device_get(model.calibrate(
        outcome.layers, data.train.images[:training.CALIBRATION_IMAGES], hyper))
    return judge(settings, layers, data, {"changes": {"post_training": True},
                                          "seed": outcome.row["seed"]})


REASONS = {"diverged": "the loss left the finite numbers",
           "guessing": "it got no better than guessing",
           "inexact": "its weights outgrew their scales: an accumulator could reach 2**24"}


def check_usable(row, folder):
    """Raise InputError, and end the run, unless this row ended with a model worth keeping."""
    if row["status"] not in USABLE:
        runs.finish(folder)                     # its state could only fail again
        raise InputError(f"nothing was saved: at LEARNING_RATE = {row['rate']:g}, seed "
                         f"{row['seed']}, {REASONS[row['status']]}; choose another rate")


def completed(content):
    """How many runs in a study's content were ended by the early-stopping rule itself."""
    if isinstance(content, dict):
        return (content.get("status") == "stopped") + sum(map(completed, content.values()))
    return sum(map(completed, content)) if isinstance(content, list) else 0


def _kept_loss(path, given, engine):
    """The validation loss of the weights file at path, for a run on the Data `given`.

    As the file has it or, where it holds no facts, measured; inf: no model of this data.
    """
    try:
        network, known = checkpoint.load(path)
        if "val_loss" in known:
            is_of = known.get("dataset", {}).get("sha256") == given.sha256
            return known["val_loss"] if is_of else np.inf
        data.check_fits(given, integer.sizes(network), network.input)
    except InputError:                          # what can't be read is not better
        return np.inf
    return predict.evaluate(predict.make_predictor(network, engine), val=given.val)[0]["val_loss"]


def save(outcome, folder, data):
    """Write the weights file into the run's folder and, unless a better one is there, WEIGHTS_DIR.

    Better: for the same data set, with a lower validation loss.
    Args:
      outcome: Outcome; folder: Path of the run; data: the Data it was trained on.
    Returns:
      whether WEIGHTS_DIR now holds this model.
    """
    settings, size = outcome.settings, f"{len(outcome.content):,} bytes"
    name = checkpoint.default_name(settings.QAT_ENABLE, settings.WEIGHT_BITS, settings.FILE_FORMAT)
    path = Path(settings.WEIGHTS_DIR) / name
    write_atomically(folder / name, outcome.content)
    link(folder.with_name("latest"), folder.name)
    kept = _kept_loss(path, data, settings.ENGINE)
    if kept < outcome.row["val_loss"]:
        print(f"wrote {folder / name} ({size}); {path} stays: its val loss {kept:.6f} is lower")
        return False
    write_atomically(path, outcome.content)
    print(f"wrote {path} ({size})")
    return True
