"""One epoch of one run, as it is jitted: the optimizer, its steps, and what is judged after."""
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import convert
import model
import plan
from machine import devices


class State(NamedTuple):
    """What one lane carries from epoch to epoch; in a Sweep every leaf has a leading axis K."""
    layers: list                # of model.Layer or, where scales are learned, LearnedLayer
    average: tuple              # optax's running mean of what is learned; () without
    opt_state: tuple
    key: jax.Array


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
    if hyper.QAT_ENABLE and hyper.SCALES == "learned":
        layers = model.to_learned(layers)
    moved = model.trainable(layers)
    average = optax.ema(hyper.AVERAGING).init(moved) if hyper.AVERAGING else ()
    return State(layers, average, make_optimizer(hyper, rate, 1).init(moved), key)


def first_frozen_epoch(hyper):
    """The epoch, from 0, from which learned scales stay; one epoch learns if any shall."""
    if not hyper.FREEZE_SCALES:
        return 0
    return max(1, round(hyper.FREEZE_SCALES * hyper.MAX_EPOCHS))


def train(state, rate, images, labels, epoch, hyper, mesh):
    """One epoch of one lane: one scan over shuffled batches.

    Args:
      state: State, with the scales that the epoch begins with.
      rate: float32 [].
      images: uint8 [N, I].
      labels: uint8 [N].
      epoch: int32 [], from 0.
      hyper: as from config.hyper.
      mesh: a "batch" axis shares batches out.
    Returns:
      (State; its layers, averaged where they are; mean train loss in nats, float32 []).
      The last N mod BATCH_SIZE images of the shuffle sit this epoch out.
    """
    shuffle_key, key = jax.random.split(state.key)
    steps = len(images) // hyper.BATCH_SIZE
    optimizer = make_optimizer(hyper, rate, steps)
    frozen = epoch >= first_frozen_epoch(hyper)
    # Half the time of jax.random.permutation; a tie of bits only keeps two neighbours in order.
    order = jnp.argsort(jax.random.bits(shuffle_key, len(images)))[:steps * hyper.BATCH_SIZE]
    complete = partial(model.complete, layers=state.layers, frozen=frozen)

    def batch_loss(moved, batch):
        return model.loss(model.to_layers(complete(moved), hyper), *batch, hyper)

    def step(carry, rows):
        moved, opt_state, average = carry
        batch = [devices.share_batch(data[rows], mesh) for data in (images, labels)]
        loss, grads = jax.value_and_grad(batch_loss)(moved, batch)
        with jax.numpy_dtype_promotion("standard"):     # optax mixes its step count with floats
            updates, opt_state = optimizer.update(grads, opt_state, moved)
            moved = optax.apply_updates(moved, updates)
            if hyper.AVERAGING:
                _, average = optax.ema(hyper.AVERAGING).update(moved, average)
        return (moved, opt_state, average), loss

    begin = model.trainable(state.layers), state.opt_state, state.average
    (moved, opt_state, average), losses = lax.scan(step, begin,
                                                   order.reshape(steps, hyper.BATCH_SIZE))
    state = State(complete(moved), average, opt_state, key)
    if hyper.AVERAGING:
        with jax.numpy_dtype_promotion("standard"):
            moved = optax.tree.bias_correction(average.ema, hyper.AVERAGING, average.count)
    return state, complete(moved), jnp.mean(losses)


def publish(layers, images, hyper):
    """What an epoch of one lane is judged by, and deployed if it is the best.

    Args:
      layers: list of model.Layer or LearnedLayer, as training carries them.
      images: uint8 [N, I].
      hyper: as from config.hyper.
    Returns:
      (the Layers to deploy; whether their integers are exact, bool []; logits float32 [N, O]).
    """
    layers = model.to_layers(layers, hyper)
    exact = convert.is_exact(layers, hyper) if hyper.QAT_ENABLE else jnp.bool_(True)
    return layers, exact, in_blocks(partial(model.forward, layers, hyper=hyper), images, hyper)


def in_blocks(function, images, hyper):
    """function(images) by blocks under jit, where all patches at once would take too much memory.

    The last block begins early enough to be whole: what two of them cover is computed twice.
    """
    count, block = len(images), plan.block_size(hyper.LAYERS)
    if not block or block >= count:
        return function(images)
    starts = np.minimum(np.arange(0, count, block), count - block)
    logits = lax.map(lambda start: function(lax.dynamic_slice_in_dim(images, start, block)), starts)
    kept = [part if start == i * block else part[i * block - start:]
            for i, (start, part) in enumerate(zip(starts, logits))]
    return jnp.concatenate(kept)
