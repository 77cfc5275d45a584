"""Training: a run is a lane, a lane is a learning rate and a seed; early stopping per lane."""
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from tqdm import tqdm

import model
import parallel
import quant
import stats

CALIBRATION_IMAGES = 1_024      # of the train split; they set the static activation scales


class Recipe(NamedTuple):
    """What a run depends on besides its rate and seed; hashable, so it is static under jit."""
    layer_sizes: tuple
    spec: quant.Spec | None     # None trains float32
    optimizer: str
    momentum: float
    schedule: str
    warmup_epochs: float
    batch_size: int
    max_epochs: int
    patience: int
    min_delta: float
    metric: str
    data_parallel: bool         # share each batch out over all devices, instead of the lanes


class State(NamedTuple):
    """What one lane carries from epoch to epoch."""
    params: list
    opt_state: tuple
    key: jax.Array


@dataclass
class Run:
    """One lane's outcome; params and scales are NumPy copies of the best epoch's."""
    rate: float
    seed: int
    status: str = "running"     # then stopped, capped, diverged or interrupted
    best_epoch: int = 0
    progress: tuple = (math.inf, 0)     # score and epoch of the last improvement by min_delta
    val_loss: float = math.inf
    val_acc: float = 0.0
    params: list | None = None
    scales: list | None = None
    history: list = field(default_factory=list)     # dicts: train_loss, val_loss, val_acc, seconds


def recipe_of(config, **changes):
    """The Recipe in a Config; `changes` replace switches first."""
    config = config._replace(**changes)
    spec = quant.Spec(config.WEIGHT_BITS, config.ACTIVATION_BITS, config.PER_CHANNEL,
                      config.POWER_OF_TWO_SCALES, config.COMPUTE_DTYPE)
    return Recipe(config.LAYER_SIZES, spec if config.QAT_ENABLE else None, config.OPTIMIZER,
                  config.MOMENTUM, config.SCHEDULE, config.WARMUP_EPOCHS, config.BATCH_SIZE,
                  config.MAX_EPOCHS, config.PATIENCE, config.MIN_DELTA, config.METRIC,
                  config.DATA_PARALLEL)


def make_optimizer(recipe, rate, steps):
    """The optax optimizer of a recipe; rate: float32 [], traced under jit; steps: per epoch."""
    if recipe.optimizer == "sgd":
        optimizer = optax.sgd(rate, recipe.momentum or None)
    else:
        optimizer = optax.adamw(rate)
    if recipe.schedule == "constant":
        return optimizer
    warmup = round(recipe.warmup_epochs * steps)
    total = max(recipe.max_epochs * steps, warmup + 1)     # optax wants a step after the warm-up
    schedule = optax.warmup_cosine_decay_schedule(0.0 if warmup else 1.0, 1.0, warmup, total)
    return optax.chain(optimizer, optax.scale_by_schedule(schedule))


def init_lane(rate, seed, recipe):
    """The State of a lane before its first epoch; rate float32 [], seed uint32 []."""
    init_key, key = jax.random.split(jax.random.PRNGKey(seed))   # raw: it travels as NumPy
    params = model.init(init_key, recipe.layer_sizes)
    return State(params, make_optimizer(recipe, rate, 1).init(params), key)


def train_epoch(state, rate, images, labels, recipe, mesh):
    """One epoch of one lane: calibrate, then one scan over shuffled batches.

    Args:
      state: State; rate: float32 []; images: uint8 [N, I]; labels: uint8 [N]; mesh: its "batch"
        axis, if it has one, shares each batch out.
    Returns:
      (State, scales used in every step or None, mean train loss in nats, float32 []).
      The last N mod batch_size images of the shuffle sit this epoch out.
    """
    scales = None
    if recipe.spec is not None:
        scales = model.calibrate(state.params, images[:CALIBRATION_IMAGES], recipe.spec)
    shuffle_key, key = jax.random.split(state.key)
    steps = len(images) // recipe.batch_size
    optimizer = make_optimizer(recipe, rate, steps)
    # Half the time of jax.random.permutation; a tie of bits only keeps two neighbours in order.
    order = jnp.argsort(jax.random.bits(shuffle_key, len(images)))[:steps * recipe.batch_size]

    def step(carry, rows):
        params, opt_state = carry
        batch = [parallel.share_batch(data[rows], mesh) for data in (images, labels)]
        loss, grads = jax.value_and_grad(model.loss)(params, *batch, scales, recipe.spec)
        with jax.numpy_dtype_promotion("standard"):     # optax mixes its step count with floats
            updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    (params, opt_state), losses = lax.scan(step, (state.params, state.opt_state),
                                           order.reshape(steps, recipe.batch_size))
    return State(params, opt_state, key), scales, jnp.mean(losses)


def _record(run, epoch, entry, params, scales, recipe):
    """Append an epoch to a run: keep the best weights, decide whether it goes on.

    Any improvement is kept; only one of min_delta or more renews the run's patience.
    """
    def score(loss, accuracy):
        return loss if recipe.metric == "val_loss" else -accuracy

    run.history.append(entry)
    now = score(entry["val_loss"], entry["val_acc"])
    if not (math.isfinite(entry["train_loss"]) and math.isfinite(entry["val_loss"])):
        run.status = "diverged"
    elif run.params is None or now < score(run.val_loss, run.val_acc):
        run.best_epoch, run.val_loss, run.val_acc = epoch, entry["val_loss"], entry["val_acc"]
        run.params, run.scales = jax.tree.map(np.copy, (params, scales))
    if now < run.progress[0] - recipe.min_delta:
        run.progress = now, epoch
    if run.status == "running" and epoch - run.progress[1] >= recipe.patience:
        run.status = "stopped"
    if run.status == "running" and epoch == recipe.max_epochs:
        run.status = "capped"
    if run.status != "running" and run.val_loss >= math.log(recipe.layer_sizes[-1]):
        run.status = "diverged"                 # never better than a uniform guess


def _log(epoch, runs, entries):
    """One line per epoch: of the active run with the least validation loss, and how many go on."""
    if epoch == 1:
        tqdm.write("epoch  train loss    val loss    val acc   seconds   active runs")
    best = min(entries, key=lambda entry: (math.isnan(entry["val_loss"]), entry["val_loss"]))
    tqdm.write(f"{epoch:5d}  {best['train_loss']:10.4f}  {best['val_loss']:10.4f}  "
               f"{100 * best['val_acc']:7.2f} %  {best['seconds']:8.2f}   "
               f"{len(entries)} of {len(runs)}")


def fit(train, val, rates, seeds, recipe):
    """Train one run per (rate, seed), all at once, each until its own early stop.

    Args:
      train, val: data.Split; rates: floats [K]; seeds: ints [K]; recipe: Recipe.
    Returns:
      (list of Run [K], dict of seconds: "compile" and "epochs"). A keyboard interrupt ends all
      runs there, marked so, with the best weights they had.
    """
    runs = [Run(float(rate), int(seed)) for rate, seed in zip(rates, seeds, strict=True)]
    seconds = {"compile": 0.0, "epochs": 0.0}
    with tqdm(total=recipe.max_epochs, unit="epoch", leave=False,
              disable=None if jax.process_index() == 0 else True) as bar:
        try:
            _fit(runs, train, val, recipe, seconds, bar)
        except KeyboardInterrupt:
            if all(run.params is None for run in runs):
                raise                           # before the first epoch there is nothing to keep
            for run in runs:
                run.status = "interrupted" if run.status == "running" else run.status
    return runs, seconds


def _fit(runs, train, val, recipe, seconds, bar):
    """The loop of fit: runs and seconds are updated in place, epoch by epoch."""
    mesh = parallel.make_mesh(len(runs), recipe.data_parallel)
    images, labels, val_images = parallel.place((train.images, train.labels, val.images), mesh)
    init = parallel.over_lanes(lambda lane: init_lane(*lane, recipe), mesh)
    train_lanes = parallel.over_lanes(
        lambda lane, *data: train_epoch(*lane, *data, recipe, mesh), mesh)
    # Lane after lane, with the matrix products of a single model, so that the bits are the same.
    predict_lanes = parallel.over_lanes(
        lambda lane, x: model.forward(lane[0], x, lane[1], recipe.spec), mesh, lax.map)

    lanes = runs + [None] * (-len(runs) % mesh.shape.get("lane", 1))    # None: ballast
    rates, seeds = parallel.place((np.array([run.rate if run else 0 for run in lanes], np.float32),
                                   np.array([run.seed if run else 0 for run in lanes], np.uint32)),
                                  mesh, by_lane=True)
    state = init((rates, seeds))

    def compile_for(state, rates):
        """train_lanes and predict_lanes for this many lanes, compiled side by side."""
        epoch = train_lanes.lower((state, rates), images, labels)
        predict = predict_lanes.lower((state.params, epoch.out_info[1]), val_images)
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda lowered: lowered.compile(), (epoch, predict)))

    programs = {}                               # by lane count
    for epoch in range(1, recipe.max_epochs + 1):
        start = time.perf_counter()
        if len(lanes) not in programs:
            programs[len(lanes)] = compile_for(state, rates)
            seconds["compile"] += time.perf_counter() - start
            start = time.perf_counter()
        run_epoch, predict = programs[len(lanes)]
        state, scales, losses = run_epoch((state, rates), images, labels)
        logits, losses, params, scales = parallel.gather(
            (predict((state.params, scales), val_images), losses, state.params, scales))
        metrics = [stats.evaluate(lane, val.labels) if run else None
                   for lane, run in zip(logits, lanes)]
        elapsed = time.perf_counter() - start
        seconds["epochs"] += elapsed
        entries = []
        for i, run in enumerate(lanes):
            if run:
                entries.append({"train_loss": float(losses[i]), "val_loss": metrics[i][0],
                                "val_acc": metrics[i][1], "seconds": elapsed})
                _record(run, epoch, entries[-1], *jax.tree.map(lambda a: a[i], (params, scales)),
                        recipe)
        if jax.process_index() == 0:
            _log(epoch, runs, entries)
        bar.update()
        lanes = [run if run and run.status == "running" else None for run in lanes]
        active = [i for i, run in enumerate(lanes) if run]
        if not active:
            break
        size = parallel.lane_count(len(active), mesh)
        if size < len(lanes):
            keep = np.array((active + [i for i, run in enumerate(lanes) if not run])[:size])
            lanes = [lanes[i] for i in keep]
            kept = jax.tree.map(lambda a: a[keep], parallel.gather((state, rates)))
            state, rates = parallel.place(kept, mesh, by_lane=True)
