"""Training: a run is a lane, many lanes are a Sweep; an epoch is a few jitted programs for all."""
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import lax

import model
import predict
from machine import devices, runtime
from training import augment, epoch
from training.stopping import METRICS, RUNNING, Verdict, guess_score, judge_lane

CALIBRATION_IMAGES = 1_024      # of the train split; they set the static activation scales


class Sweep(NamedTuple):
    """K runs that share their hyperparameters but not rate and seed: NumPy arrays and nothing else,
    so its leaves, saved, resume it. A finished lane keeps what it had."""
    rate: np.ndarray            # float32 [K]
    seed: np.ndarray            # uint32 [K]
    state: epoch.State
    best: list                  # of model.Layer: the best epoch's
    best_epoch: np.ndarray      # int32 [K]; 0: no epoch could be deployed yet
    mark: np.ndarray            # float64 [K], the score that an epoch has to beat by MIN_DELTA
    renewed: np.ndarray         # int32 [K], the epoch that set the mark
    status: np.ndarray          # uint8 [K], of STATUS
    history: np.ndarray         # float64 [K, E, 3], METRICS by epoch; NaN once a lane has ended
    seconds: np.ndarray         # float64 [E], what each epoch took
    compile_seconds: np.ndarray     # float64 []

    @property
    def epoch(self):
        """How many epochs have been run."""
        return len(self.seconds)


def start(rates, seeds, hyper):
    """The Sweep before its first epoch.

    Args:
      rates: floats [K].
      seeds: ints [K].
      hyper: as from config.hyper.
    """
    lanes = len(rates)
    rate, seed = np.asarray(rates, np.float32), np.asarray(seeds, np.uint32)
    init = jax.jit(lambda lanes: lax.map(lambda lane: epoch.init_lane(*lane, hyper), lanes),
                   compiler_options=runtime.compiler_options())
    state = jax.device_get(init((rate, seed)))
    best = [model.Layer(*layer) for layer in state.layers]      # of no use until an epoch is best
    return Sweep(rate, seed, state, best, np.zeros(lanes, np.int32), np.full(lanes, np.inf),
                 np.zeros(lanes, np.int32), np.zeros(lanes, np.uint8),
                 np.full((lanes, 0, len(METRICS)), np.nan), np.zeros(0), np.zeros(()))


def judge(sweep, metrics, exact, hyper, guess):
    """The Sweep after an epoch, but for state, best and seconds; and which lanes have a new best.

    Args:
      sweep: Sweep.
      metrics: float64 [K, 3], of its running lanes.
      exact: bool [K], whether a lane's integers can be deployed.
      hyper: as for judge_lane.
      guess: the score that a model has to beat.
    Returns:
      (Sweep, bool [K]).
    """
    running = sweep.status == RUNNING
    metrics = np.where(running[:, None], metrics, np.nan)
    history = np.concatenate([sweep.history, metrics[:, None]], axis=1)
    judged = {name: np.array(getattr(sweep, name)) for name in Verdict._fields}
    for lane in np.flatnonzero(running):
        before = Verdict(*(judged[name][lane] for name in Verdict._fields))
        after = judge_lane(before, history[lane], exact[lane], hyper, guess)
        for name, value in zip(Verdict._fields, after):
            judged[name][lane] = value
    improved = running & (judged["best_epoch"] == sweep.epoch + 1)
    return sweep._replace(history=history, **judged), improved


def _take(tree, rows):
    """These rows of all arrays in `tree`."""
    return jax.tree.map(lambda a: a[rows], tree)


def _update(tree, rows, new):
    """A copy of the arrays in `tree` [K, ...] with `rows` replaced by those of `new`."""
    def replace(old, part):
        copy = np.array(old)
        copy[rows] = part
        return copy
    return jax.tree.map(replace, tree, new)


class Programs(NamedTuple):
    """What an epoch runs, compiled for one number of slots."""
    train: object               # epoch.train
    publish: object             # epoch.publish
    set_scales: object          # model.set_scales; None in float32
    warp: object                # augment.epoch_warp; None without AUGMENT and PEN


def _compile(mesh, hyper, counts, lanes, data, val_images):
    """The Programs of a Sweep; each is compiled while the next is traced.

    Args:
      counts, lanes: as Deal's counts and (State, rate) lie on the devices.
      data: (images, labels) to train on.
    """
    quick, first = runtime.compiler_options(), np.int32(0)
    images, layers = data[0], lanes[0].layers

    def train(lane, images, labels, number):
        return epoch.train(*lane, images, labels, number, hyper, mesh)

    def set_scales(layers, images):
        return model.set_scales(layers, images[:CALIBRATION_IMAGES], hyper)

    with ThreadPoolExecutor(1) as pool:         # XLA uses every core; more would take memory
        def begin(program, *args, options=None):
            return pool.submit(program.lower(*args).compile, options)

        trains = begin(devices.over_lanes(train, mesh), counts, lanes, *data, first)
        # Lane after lane, with the products of a single model, so that the bits are the same.
        publish = devices.over_lanes(partial(epoch.publish, hyper=hyper), mesh, one_by_one=True)
        publishes = begin(publish, counts, layers, val_images, options=quick)
        sets = warps = None
        if hyper.QAT_ENABLE:    # apart, because calibration comes before an epoch and after it
            sets = begin(devices.over_lanes(set_scales, mesh), counts, layers, images,
                         options=quick)
        if hyper.AUGMENT or hyper.PEN:
            warp = partial(augment.epoch_warp, strength=hyper.AUGMENT, pen=hyper.PEN)
            warps = begin(jax.jit(warp, out_shardings=images.sharding), images, first)
        return Programs(*(job and job.result() for job in (trains, publishes, sets, warps)))


def _run_epoch(run, counts, lanes, data, val_images, number, hyper):
    """One epoch of the lanes on the devices.

    Args:
      run: Programs.
      counts, lanes: as from Deal, placed.
      number: int32 [], of the epoch, from 0.
    Returns:
      (State, what is published: as from publish, mean train losses), still on the devices.
    """
    (state, rate), (images, labels) = lanes, data
    learns_scales = isinstance(state.layers[0], model.LearnedLayer)
    if run.warp:
        images = run.warp(images, number)
    if run.set_scales and not (learns_scales and number):        # learned ones begin calibrated
        state = state._replace(layers=run.set_scales(counts, state.layers, images))
    state, layers, train_loss = run.train(counts, (state, rate), images, labels, number)
    if run.set_scales and hyper.AVERAGING and not learns_scales:
        layers = run.set_scales(counts, layers, images)
    return state, run.publish(counts, layers, val_images), train_loss


def _record(sweep, rows, ended, val_labels, hyper, guess):
    """The Sweep with an epoch's outcome, but for its seconds.

    Args:
      rows: ints, the lanes that ran.
      ended: as from _run_epoch, NumPy, of these lanes.
    """
    state, (published, exact, logits), train_loss = ended
    metrics = np.full((len(sweep.rate), len(METRICS)), np.nan)
    can_deploy = np.zeros(len(sweep.rate), bool)
    can_deploy[rows] = exact
    for row, loss, lane_logits in zip(rows, train_loss, logits):
        metrics[row] = loss, *predict.score(lane_logits, val_labels)
    judged, improved = judge(sweep, metrics, can_deploy, hyper, guess)
    chosen = improved[rows]
    return judged._replace(
        state=_update(sweep.state, rows, state),
        best=_update(sweep.best, rows[chosen], _take(published, chosen)))


def epochs(sweep, train, val, hyper):
    """Run a Sweep on, epoch by epoch, until every lane has ended.

    Args:
      sweep: as from start or an earlier yield.
      train, val: data.Split.
      hyper: as from config.hyper.
    Yields:
      the Sweep after each epoch. The caller logs, saves or breaks.
    """
    mesh = devices.make_mesh(len(sweep.rate), hyper.DATA_PARALLEL)
    *data, val_images = devices.place((*train, val.images), mesh)
    guess = guess_score(val.labels, hyper)
    programs, dealt = {}, None                  # programs by the number of slots
    while (active := np.flatnonzero(sweep.status == RUNNING)).size:
        begin, compile_seconds = time.perf_counter(), 0.0
        deal = devices.deal(active, len(sweep.rate), mesh)
        if dealt is None or not np.array_equal(deal.rows, dealt):   # else they are on the devices
            lanes = _take((sweep.state, sweep.rate), deal.rows)
            (state, rate), counts = devices.place((lanes, deal.counts), mesh, by_lane=True)
            dealt = deal.rows
        slots = len(deal.rows)
        if slots not in programs:
            programs[slots] = _compile(mesh, hyper, counts, (state, rate), data, val_images)
            compile_seconds = time.perf_counter() - begin
        ended = _run_epoch(programs[slots], counts, (state, rate), data, val_images,
                           np.int32(sweep.epoch), hyper)
        state = ended[0]
        ended = _take(devices.gather(ended), deal.real)
        recorded = _record(sweep, deal.rows[deal.real], ended, val.labels, hyper, guess)
        seconds = time.perf_counter() - begin - compile_seconds
        sweep = recorded._replace(seconds=np.append(sweep.seconds, seconds),
                                  compile_seconds=sweep.compile_seconds + compile_seconds)
        yield sweep
