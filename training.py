"""Training: a run is a lane, many lanes are a Sweep; one jitted epoch for all that go on."""
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import augment
import devices
import model
import stats

AUGMENT_SEED = 0                # the warps are the same in every run, whatever SEED is
CALIBRATION_IMAGES = 1_024      # of the train split; they set the static activation scales
STATUS = ("running", "stopped", "capped", "diverged", "guessing", "inexact")
RUNNING, STOPPED, CAPPED, DIVERGED, GUESSING, INEXACT = range(len(STATUS))
METRICS = ("train_loss", "val_loss", "val_acc")     # mean nats, mean nats, fraction


class State(NamedTuple):
    """What one lane carries from epoch to epoch; in a Sweep every leaf has a leading axis K."""
    layers: list                # of model.Layer; of learned scales it holds log2
    average: tuple              # optax's running mean of the layers; () without
    opt_state: tuple
    key: jax.Array


class Sweep(NamedTuple):
    """K runs that share their hyperparameters but not rate and seed: NumPy arrays and nothing else,
    so its leaves, saved, resume it. A finished lane keeps what it had."""
    rate: np.ndarray            # float32 [K]
    seed: np.ndarray            # uint32 [K]
    state: State
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


def make_optimizer(hyper, rate, steps):
    """The optax optimizer of these hyperparameters; rate: float32 [], traced; steps: per epoch."""
    def weights_only(layers):
        return [jax.tree.map(lambda _: False, layer)._replace(w=True) for layer in layers]

    if hyper.OPTIMIZER == "sgd":
        optimizer = optax.chain(
            optax.trace(hyper.MOMENTUM) if hyper.MOMENTUM else optax.identity(),
            optax.add_decayed_weights(hyper.WEIGHT_DECAY, weights_only)
            if hyper.WEIGHT_DECAY else optax.identity(),
            optax.scale_by_learning_rate(rate))
    else:
        optimizer = optax.adamw(rate, weight_decay=hyper.WEIGHT_DECAY, mask=weights_only)
    if hyper.SCHEDULE == "constant":
        return optimizer
    warmup = round(hyper.WARMUP_EPOCHS * steps)
    total = max(hyper.MAX_EPOCHS * steps, warmup + 1)      # optax wants a step after the warm-up
    schedule = optax.warmup_cosine_decay_schedule(0.0 if warmup else 1.0, 1.0, warmup, total)
    return optax.chain(optimizer, optax.scale_by_schedule(schedule))


def init_lane(rate, seed, hyper):
    """The State of a lane before its first epoch; rate float32 [], seed uint32 []."""
    init_key, key = jax.random.split(jax.random.PRNGKey(seed))   # raw: it travels as NumPy
    layers = model.init(init_key, hyper)
    average = optax.ema(hyper.AVERAGING).init(layers) if hyper.AVERAGING else ()
    return State(layers, average, make_optimizer(hyper, rate, 1).init(layers), key)


def publish(state, sample, hyper):
    """The Layers to evaluate and deploy now: averaged, with the scales that belong to them.

    Args:
      state: State; sample: uint8 [N, I], train images to calibrate by.
    Returns:
      list of model.Layer.
    """
    if not hyper.AVERAGING:
        return model.snap(state.layers, hyper)
    with jax.numpy_dtype_promotion("standard"):
        layers = optax.tree.bias_correction(state.average.ema, hyper.AVERAGING,
                                            state.average.count)
    if hyper.SCALES == "calibrated" and hyper.QAT_ENABLE:
        layers = model.calibrate(layers, sample, hyper)
    return model.snap(layers, hyper)


def train_epoch(state, rate, images, labels, epoch, hyper, mesh):
    """One epoch of one lane: calibrate, then one scan over shuffled batches.

    Args:
      state: State; rate: float32 []; images: uint8 [N, I]; labels: uint8 [N]; epoch: int32 [],
        from 0; mesh: its "batch" axis, if it has one, shares each batch out.
    Returns:
      (State; the Layers to evaluate and deploy; mean train loss in nats, float32 []; whether the
      integers of those are exact, bool []).
      The last N mod BATCH_SIZE images of the shuffle sit this epoch out.
    """
    sample = images[:CALIBRATION_IMAGES]
    layers = model.set_scales(state.layers, sample, hyper, first=epoch == 0)
    shuffle_key, key = jax.random.split(state.key)
    steps = len(images) // hyper.BATCH_SIZE
    optimizer = make_optimizer(hyper, rate, steps)
    # Half the time of jax.random.permutation; a tie of bits only keeps two neighbours in order.
    order = jnp.argsort(jax.random.bits(shuffle_key, len(images)))[:steps * hyper.BATCH_SIZE]

    def step(carry, rows):
        layers, opt_state, average = carry
        batch = [devices.share_batch(data[rows], mesh) for data in (images, labels)]
        loss, grads = jax.value_and_grad(
            lambda layers: model.loss(model.snap(layers, hyper), *batch, hyper))(layers)
        with jax.numpy_dtype_promotion("standard"):     # optax mixes its step count with floats
            updates, opt_state = optimizer.update(grads, opt_state, layers)
            layers = optax.apply_updates(layers, updates)
            if hyper.AVERAGING:
                _, average = optax.ema(hyper.AVERAGING).update(layers, average)
        return (layers, opt_state, average), loss

    (layers, opt_state, average), losses = lax.scan(
        step, (layers, state.opt_state, state.average), order.reshape(steps, hyper.BATCH_SIZE))
    state = State(layers, average, opt_state, key)
    published = publish(state, sample, hyper)
    exact = model.is_exact(published, hyper) if hyper.QAT_ENABLE else jnp.bool_(True)
    return state, published, jnp.mean(losses), exact


def start(rates, seeds, hyper):
    """The Sweep before its first epoch.

    Args:
      rates: floats [K]; seeds: ints [K]; hyper: as from config.hyper.
    """
    lanes = len(rates)
    rate, seed = np.asarray(rates, np.float32), np.asarray(seeds, np.uint32)
    init = jax.jit(lambda lanes: lax.map(lambda lane: init_lane(*lane, hyper), lanes))
    state = jax.device_get(init((rate, seed)))
    return Sweep(rate, seed, state, state.layers, np.zeros(lanes, np.int32),
                 np.full(lanes, np.inf), np.zeros(lanes, np.int32), np.zeros(lanes, np.uint8),
                 np.full((lanes, 0, len(METRICS)), np.nan), np.zeros(0), np.zeros(()))


def guess_score(labels, hyper):
    """The score of the best constant answer: no model that ignores its input scores lower."""
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return -shares.max() if hyper.METRIC == "val_acc" else -np.sum(shares * np.log(shares))


def _guess_metric(hyper):
    """The hyper whose score says whether a model guesses: of val, whatever picks the epoch."""
    return hyper._replace(METRIC="val_loss") if hyper.METRIC == "train_loss" else hyper


def _score(metrics, hyper):
    """What early stopping minimizes; metrics float64 [..., 3]."""
    value = metrics[..., METRICS.index(hyper.METRIC)]
    return -value if hyper.METRIC == "val_acc" else value


def judge(sweep, metrics, exact, hyper, guess):
    """The early-stopping rule: record an epoch, find the best, decide which lanes go on.

    Any improvement is kept; only one of MIN_DELTA or more renews a lane's patience. An epoch whose
    integers could not be deployed is never the best.

    Args:
      sweep: Sweep; metrics: float64 [K, 3], of its running lanes; exact: bool [K]; hyper: METRIC,
      MIN_DELTA, PATIENCE, MAX_EPOCHS; guess: the score that a model has to beat.
    Returns:
      (the Sweep but for its state, best and seconds; which lanes have a new best: bool [K]).
    """
    running, epoch = sweep.status == RUNNING, sweep.epoch + 1
    metrics = np.where(running[:, None], metrics, np.nan)
    history = np.concatenate([sweep.history, metrics[:, None]], axis=1)
    finite, lanes = np.isfinite(metrics).all(1), np.arange(len(running))
    score = np.where(finite, _score(metrics, hyper), np.nan)
    had = _score(history[lanes, sweep.best_epoch - 1], hyper)
    improved = running & finite & exact & ((sweep.best_epoch == 0) | (score < had))
    best_epoch = np.where(improved, epoch, sweep.best_epoch)
    renews = running & (score < sweep.mark) & (sweep.mark - score >= hyper.MIN_DELTA)
    mark, renewed = np.where(renews, score, sweep.mark), np.where(renews, epoch, sweep.renewed)

    status = np.where(running & (epoch == hyper.MAX_EPOCHS), CAPPED, sweep.status)
    status = np.where(running & (epoch - renewed >= hyper.PATIENCE), STOPPED, status)
    best = history[lanes, best_epoch - 1]
    ended = running & (status != RUNNING)
    status = np.where(ended & ~(_score(best, _guess_metric(hyper)) < guess), GUESSING, status)
    status = np.where(ended & (best_epoch == 0), INEXACT, status)
    status = np.where(running & ~finite, DIVERGED, status)
    return sweep._replace(best_epoch=best_epoch.astype(np.int32), mark=mark,
                          renewed=renewed.astype(np.int32), status=status.astype(np.uint8),
                          history=history), improved


def _update(tree, rows, new):
    """A copy of the arrays in `tree` [K, ...] with `rows` replaced by those of `new`."""
    def replace(old, part):
        copy = np.array(old)
        copy[rows] = part
        return copy
    return jax.tree.map(replace, tree, new)


def epochs(sweep, train, val, hyper):
    """Run a Sweep on, epoch by epoch, until every lane has ended.

    Args:
      sweep: as from start or an earlier yield; train, val: data.Split; hyper: as from config.hyper.
    Yields:
      the Sweep after each epoch. The caller logs, saves or breaks.
    """
    lanes = len(sweep.rate)
    mesh = devices.make_mesh(lanes, hyper.DATA_PARALLEL)
    data = devices.place((train.images, train.labels), mesh)
    val_images = devices.place(val.images, mesh)
    def warp(images, labels, epoch):
        """Before the lanes of a device, once: in a sweep of small nets it costs most of the time.
        The warps depend on the epoch alone, so that a lane's bits don't depend on its company."""
        if hyper.AUGMENT:
            key = jax.random.fold_in(jax.random.PRNGKey(AUGMENT_SEED), epoch)
            images = augment.warp(images, key, hyper.AUGMENT)
        return images, labels, epoch

    train_lanes = devices.over_lanes(
        lambda lane, *data: train_epoch(*lane, *data, hyper, mesh), mesh, prepare=warp)
    # Lane after lane, with the matrix products of a single model, so that the bits are the same.
    predict_lanes = devices.over_lanes(
        lambda layers, images: model.forward(layers, images, hyper), mesh, one_by_one=True)

    def compile_for(counts, placed):
        """Both programs for this many slots, compiled side by side."""
        epoch = train_lanes.lower(counts, placed, *data, np.int32(0))
        predict = predict_lanes.lower(counts, epoch.out_info[1], val_images)
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda lowered: lowered.compile(), (epoch, predict)))

    guess = guess_score(val.labels, hyper)
    programs, dealt = {}, None                  # programs by the number of slots
    while (sweep.status == RUNNING).any():
        begin, compile_seconds = time.perf_counter(), 0.0
        rows, real, counts = devices.deal(np.flatnonzero(sweep.status == RUNNING), lanes, mesh)
        if dealt is None or not np.array_equal(rows, dealt):    # else they are on the devices
            state, rate, counts_there = devices.place(
                (*jax.tree.map(lambda a: a[rows], (sweep.state, sweep.rate)), counts), mesh,
                by_lane=True)
            dealt = rows
        if len(rows) not in programs:
            programs[len(rows)] = compile_for(counts_there, (state, rate))
            compile_seconds = time.perf_counter() - begin
        run_epoch, predict = programs[len(rows)]
        state, published, train_loss, exact = run_epoch(
            counts_there, (state, rate), *data, np.int32(sweep.epoch))
        logits = predict(counts_there, published, val_images)
        logits, published, train_loss, exact, new = jax.tree.map(
            lambda a: a[real], devices.gather((logits, published, train_loss, exact, state)))
        rows = rows[real]
        metrics, can_deploy = np.full((lanes, len(METRICS)), np.nan), np.zeros(lanes, bool)
        for row, loss, lane_logits in zip(rows, train_loss, logits):
            metrics[row] = loss, *stats.evaluate(lane_logits, val.labels)
        can_deploy[rows] = exact
        judged, improved = judge(sweep, metrics, can_deploy, hyper, guess)
        chosen = improved[rows]
        seconds = time.perf_counter() - begin - compile_seconds
        sweep = judged._replace(
            state=_update(sweep.state, rows, new),
            best=_update(sweep.best, rows[chosen], jax.tree.map(lambda a: a[chosen], published)),
            seconds=np.append(sweep.seconds, seconds),
            compile_seconds=sweep.compile_seconds + compile_seconds)
        yield sweep
