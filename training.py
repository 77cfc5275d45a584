"""Training: a run is a lane, many lanes are a Sweep; an epoch is a few jitted programs for all."""
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import augment
import model
import predict
from machine import devices, runtime

CALIBRATION_IMAGES = 1_024      # of the train split; they set the static activation scales
STATUS = ("running", "stopped", "capped", "diverged", "guessing", "inexact")
RUNNING, STOPPED, CAPPED, DIVERGED, GUESSING, INEXACT = range(len(STATUS))
METRICS = ("train_loss", "val_loss", "val_acc")     # mean nats, mean nats, fraction


class State(NamedTuple):
    """What one lane carries from epoch to epoch; in a Sweep every leaf has a leading axis K."""
    layers: list                # of model.Layer; of learned scales it holds log2
    average: tuple              # optax's running mean of what is learned; () without
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
    learned = model.learned(layers, hyper)
    average = optax.ema(hyper.AVERAGING).init(learned) if hyper.AVERAGING else ()
    return State(layers, average, make_optimizer(hyper, rate, 1).init(learned), key)


def train_epoch(state, rate, images, labels, epoch, hyper, mesh):
    """One epoch of one lane: one scan over shuffled batches.

    Args:
      state: State, with the scales that the epoch begins with; rate: float32 []; images: uint8
        [N, I]; labels: uint8 [N]; epoch: int32 [], from 0; mesh: a "batch" axis shares batches out.
    Returns:
      (State; its Layers, averaged where they are; mean train loss in nats, float32 []).
      The last N mod BATCH_SIZE images of the shuffle sit this epoch out.
    """
    shuffle_key, key = jax.random.split(state.key)
    share, steps = hyper.FREEZE_SCALES, len(images) // hyper.BATCH_SIZE
    optimizer = make_optimizer(hyper, rate, steps)
    frozen = epoch >= (round(share * hyper.MAX_EPOCHS) or int(share > 0))
    # Half the time of jax.random.permutation; a tie of bits only keeps two neighbours in order.
    order = jnp.argsort(jax.random.bits(shuffle_key, len(images)))[:steps * hyper.BATCH_SIZE]
    whole = partial(model.with_scales, layers=state.layers, frozen=frozen)

    def step(carry, rows):
        learned, opt_state, average = carry
        batch = [devices.share_batch(data[rows], mesh) for data in (images, labels)]
        loss, grads = jax.value_and_grad(
            lambda learned: model.loss(model.snap(whole(learned), hyper), *batch, hyper))(learned)
        with jax.numpy_dtype_promotion("standard"):     # optax mixes its step count with floats
            updates, opt_state = optimizer.update(grads, opt_state, learned)
            learned = optax.apply_updates(learned, updates)
            if hyper.AVERAGING:
                _, average = optax.ema(hyper.AVERAGING).update(learned, average)
        return (learned, opt_state, average), loss

    (learned, opt_state, average), losses = lax.scan(
        step, (model.learned(state.layers, hyper), state.opt_state, state.average),
        order.reshape(steps, hyper.BATCH_SIZE))
    state = State(whole(learned), average, opt_state, key)
    if hyper.AVERAGING:
        with jax.numpy_dtype_promotion("standard"):
            learned = optax.tree.bias_correction(average.ema, hyper.AVERAGING, average.count)
    return state, whole(learned), jnp.mean(losses)


def publish(layers, images, hyper):
    """What an epoch of one lane is judged by, and deployed if it is the best.

    Args:
      layers: list of Layer, as training carries them; images: uint8 [N, I].
    Returns:
      (the Layers to deploy; whether their integers are exact, bool []; logits float32 [N, O]).
    """
    layers = model.snap(layers, hyper)
    exact = model.is_exact(layers, hyper) if hyper.QAT_ENABLE else jnp.bool_(True)
    return layers, exact, model.forward(layers, images, hyper)


def start(rates, seeds, hyper):
    """The Sweep before its first epoch.

    Args:
      rates: floats [K]; seeds: ints [K]; hyper: as from config.hyper.
    """
    lanes = len(rates)
    rate, seed = np.asarray(rates, np.float32), np.asarray(seeds, np.uint32)
    init = jax.jit(lambda lanes: lax.map(lambda lane: init_lane(*lane, hyper), lanes),
                   compiler_options=runtime.compiler_options())
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


def _compile(mesh, hyper, counts, state, rate, images, labels, val_images):
    """What an epoch of a Sweep runs, by name: each program is compiled while the next is traced."""
    def begin(function, *args, seldom=True, one_by_one=None):
        lowered = devices.over_lanes(function, mesh, one_by_one).lower(counts, *args)
        return pool.submit(lowered.compile, runtime.compiler_options() if seldom else None)

    with ThreadPoolExecutor(1) as pool:         # XLA itself uses every core; more would take memory
        jobs = {"train": begin(lambda lane, *data: train_epoch(*lane, *data, hyper, mesh),
                               (state, rate), images, labels, np.int32(0), seldom=False)}
        # Lane after lane, with the products of a single model, so that the bits are the same.
        jobs["publish"] = begin(lambda layers, images: publish(layers, images, hyper),
                                state.layers, val_images, one_by_one=True)
        if hyper.QAT_ENABLE:    # apart, because calibration comes before an epoch and after it
            jobs["set_scales"] = begin(lambda layers, images: model.set_scales(
                layers, images[:CALIBRATION_IMAGES], hyper), state.layers, images)
        if hyper.AUGMENT:
            warp = jax.jit(partial(augment.epoch_warp, strength=hyper.AUGMENT),
                           out_shardings=images.sharding)
            jobs["warp"] = pool.submit(warp.lower(images, np.int32(0)).compile)
        return {name: job.result() for name, job in jobs.items()}


def epochs(sweep, train, val, hyper):
    """Run a Sweep on, epoch by epoch, until every lane has ended.

    Args:
      sweep: as from start or an earlier yield; train, val: data.Split; hyper: as from config.hyper.
    Yields:
      the Sweep after each epoch. The caller logs, saves or breaks.
    """
    lanes, learns_scales = len(sweep.rate), hyper.SCALES == "learned"
    mesh = devices.make_mesh(lanes, hyper.DATA_PARALLEL)
    train_images, labels, val_images = devices.place((*train, val.images), mesh)
    guess = guess_score(val.labels, hyper)
    compiled, dealt = {}, None                  # programs by the number of slots
    while (sweep.status == RUNNING).any():
        begin, compile_seconds = time.perf_counter(), 0.0
        rows, real, counts = devices.deal(np.flatnonzero(sweep.status == RUNNING), lanes, mesh)
        if dealt is None or not np.array_equal(rows, dealt):    # else they are on the devices
            state, rate, counts_there = devices.place(
                (*jax.tree.map(lambda a: a[rows], (sweep.state, sweep.rate)), counts), mesh,
                by_lane=True)
            dealt = rows
        if len(rows) not in compiled:
            compiled[len(rows)] = _compile(mesh, hyper, counts_there, state, rate, train_images,
                                           labels, val_images)
            compile_seconds = time.perf_counter() - begin
        run, epoch = compiled[len(rows)], np.int32(sweep.epoch)
        images = run["warp"](train_images, epoch) if hyper.AUGMENT else train_images
        if hyper.QAT_ENABLE and not (learns_scales and sweep.epoch):
            state = state._replace(layers=run["set_scales"](counts_there, state.layers, images))
        state, layers, train_loss = run["train"](counts_there, (state, rate), images, labels, epoch)
        if hyper.QAT_ENABLE and hyper.AVERAGING and not learns_scales:
            layers = run["set_scales"](counts_there, layers, images)
        published, exact, logits = run["publish"](counts_there, layers, val_images)
        logits, published, train_loss, exact, new = jax.tree.map(
            lambda a: a[real], devices.gather((logits, published, train_loss, exact, state)))
        rows = rows[real]
        metrics, can_deploy = np.full((lanes, len(METRICS)), np.nan), np.zeros(lanes, bool)
        for row, loss, lane_logits in zip(rows, train_loss, logits):
            metrics[row] = loss, *predict.score(lane_logits, val.labels)
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
