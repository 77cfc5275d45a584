"""training: lanes keep their bits, early stopping keeps the best, every epoch is a permutation."""
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

import convert
import data
import integer
import model
import plan
import predict
from conftest import ROOT, best_layers, make_hyper, rows_of, train
from machine import devices
from training import epoch, loop, stopping

# Plain SGD, whatever the defaults are. Patience of one epoch: a lane that does not learn leaves
# before the others.
SMALL = {"LAYERS": "32", "BATCH_SIZE": 64, "MAX_EPOCHS": 3, "PATIENCE": 1,
         "OPTIMIZER": "sgd", "MOMENTUM": 0.0, "SCHEDULE": "constant", "WEIGHT_DECAY": 0.0,
         "LABEL_SMOOTHING": 0.0, "AVERAGING": 0.0, "AUGMENT": 0.0, "SCALES": "calibrated",
         "FREEZE_SCALES": 1.0, "COMPUTE": "float32"}
KINDS = {"float32": {"QAT_ENABLE": False}, "calibrated": {"AVERAGING": 0.9},
         "everything": {"WEIGHT_BITS": 6, "SCALES": "learned", "FREEZE_SCALES": 0.7,
                        "LAYERS": "crop20 mean2 32", "WEIGHT_DECAY": 0.01, "LABEL_SMOOTHING": 0.1,
                        "AVERAGING": 0.9, "AUGMENT": 1.0, "COMPUTE": "bfloat16"}}


def small_hyper(**changes):
    return make_hyper(**{**SMALL, **changes})


def status_of(sweep):
    return [stopping.STATUS[status] for status in sweep.status]


def lane_of(sweep, lane):
    """All that a Sweep holds of one lane."""
    return jax.tree.map(lambda a: a[lane], sweep._replace(seconds=None, compile_seconds=None))


def assert_same_bits(a, b):
    """Every bit of two lanes, or Sweeps: weights, scales, keys, metrics, verdicts."""
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


@pytest.fixture(scope="module")
def alone(parts):
    """alone(kind) -> the Sweep after each epoch of rate 0.1 and seed 0, trained once."""
    found = {}

    def get(kind):
        if kind not in found:
            hyper = small_hyper(**KINDS[kind])
            begin = loop.start([0.1], [0], hyper)
            found[kind] = list(loop.epochs(begin, *parts, hyper))
        return found[kind]
    return get


@pytest.mark.slow
def test_sweep_goes_on_from_any_epoch_with_the_same_bits(parts, alone):
    """It is NumPy arrays and nothing else; the yielded ones are not written to later."""
    first, *_, last = alone("everything")
    hyper = small_hyper(**KINDS["everything"])
    assert first.epoch == 1 and all(isinstance(a, (np.ndarray, np.generic))
                                    for a in jax.tree.leaves(first))
    *_, sweep = loop.epochs(first, *parts, hyper)
    assert_same_bits(lane_of(sweep, 0), lane_of(last, 0))
    assert sweep.state.average.count == 3 * (2_000 // 64)       # one mean of every step
    assert list(loop.epochs(sweep, *parts, hyper)) == []    # nothing goes on


@pytest.mark.parametrize("kind, rates, status", [
    ("everything", [0.3, 1e-7, 0.03, 0.1], ["capped", "guessing", "capped", "capped"]),
    pytest.param("calibrated", [0.3, 0.2, 0.1], 3 * ["capped"], marks=pytest.mark.long),
    ("float32", [1e30, 0.3, 0.1], ["diverged", "capped", "capped"])])
@pytest.mark.slow
def test_bits_of_a_lane_do_not_depend_on_its_company(parts, alone, monkeypatch, kind, rates,
                                                     status):
    """Nor on how many devices share the lanes, nor on when another lane ends: same seed, same bits.
    """
    seeds, everything, last = [*range(1, len(rates)), 0], jax.devices(), len(rates) - 1
    hyper, ends = small_hyper(**KINDS[kind]), []
    for count in ([1, len(everything)] if kind == "everything" else [len(everything)]):
        monkeypatch.setattr(jax, "devices", lambda *_, count=count: everything[:count])
        *_, before, end = loop.epochs(loop.start(rates, seeds, hyper), *parts, hyper)
        assert status_of(end) == status
        assert_same_bits(lane_of(end, last), lane_of(alone(kind)[-1], 0))
        for lane in np.flatnonzero(before.status != stopping.RUNNING):      # it has ended
            then, now = (lane_of(sweep, lane) for sweep in (before, end))
            assert_same_bits(then._replace(history=now.history[:-1]), now._replace(
                history=then.history))
            assert np.isnan(now.history[-1]).all()
        ends.append(end)
    for lane in range(len(rates)):              # slots that pad a device leak into none of them
        assert_same_bits(lane_of(ends[0], lane), lane_of(ends[-1], lane))


@pytest.mark.slow
def test_lanes_side_by_side_agree_with_a_lane_alone(parts, alone, monkeypatch):
    """As on an accelerator, where the slots of a device are vmapped and shrink by halves."""
    monkeypatch.setattr(devices, "_one_by_one", lambda: False)
    sweep = train(*parts, [1e30, 0.1, 1e30], [0, 0, 1], small_hyper(QAT_ENABLE=False))
    assert status_of(sweep) == ["diverged", "capped", "diverged"]
    # Equal up to the rounding of other matrix products.
    np.testing.assert_allclose(sweep.history[1], alone("float32")[-1].history[0], rtol=1e-3)
    assert np.isfinite(sweep.history[1]).all()


@pytest.mark.slow
def test_interrupt_keeps_the_best_so_far(parts, monkeypatch):
    """Whatever the other lanes did: one that diverged at once must not lose the rest."""
    score, calls, sweep = predict.score, [], None

    def interrupted(logits, labels):
        calls.append(1)
        if len(calls) > 2:                      # two lanes in epoch 1, then Ctrl-C in epoch 2
            raise KeyboardInterrupt
        return (math.nan, 0.1) if len(calls) == 1 else score(logits, labels)

    monkeypatch.setattr(predict, "score", interrupted)
    hyper = small_hyper(QAT_ENABLE=False, LAYERS="")
    with pytest.raises(KeyboardInterrupt):
        for after in loop.epochs(loop.start([0.1, 0.1], [0, 1], hyper), *parts, hyper):
            sweep = after
    assert status_of(sweep) == ["diverged", "running"]
    assert sweep.epoch == 1 and sweep.best_epoch.tolist() == [0, 1]
    assert_same_bits(best_layers(sweep, 1), jax.tree.map(lambda a: a[1], sweep.state.layers))


def assert_reloads_exactly(sweep, lane, val, hyper):
    """The deployed network of a lane's best epoch has the very loss that was recorded for it."""
    layers = best_layers(sweep, lane)
    network = (convert.to_network(layers, hyper) if hyper.QAT_ENABLE
               else integer.FloatNetwork(tuple((layer.w, layer.b) for layer in layers),
                                       hyper.LAYERS))
    found = predict.score(predict.make_predictor(network, "numpy")(val.images), val.labels)
    assert found == tuple(sweep.history[lane, sweep.best_epoch[lane] - 1, 1:])


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.slow
def test_best_weights_give_the_recorded_loss_exactly(parts, quantized):
    """Overtrained on 200 images, so that the best epoch is long past when patience ends."""
    small, val = rows_of(parts[0], 0, 200), parts[1]
    hyper = small_hyper(QAT_ENABLE=quantized, BATCH_SIZE=10, MAX_EPOCHS=80, PATIENCE=4)
    sweep = train(small, val, [0.3], [0], hyper)
    losses, best = sweep.history[0, :, 1], sweep.best_epoch[0]
    assert status_of(sweep) == ["stopped"] and best == 1 + losses.argmin() < len(losses)
    assert len(losses) - sweep.renewed[0] == hyper.PATIENCE
    assert_reloads_exactly(sweep, 0, val, hyper)


@pytest.mark.parametrize("changes", [{}, pytest.param(
    {"SCALES": "learned", "WEIGHT_BITS": 3, "OPTIMIZER": "adamw"}, marks=pytest.mark.long)])
@pytest.mark.slow
def test_training_in_bfloat16_has_float32s_accuracy(parts, changes):
    """Rounding the gradient changes little."""
    narrow, full = (train(*parts, [0.1 if not changes else 0.005], [0], small_hyper(
        **changes, COMPUTE=compute, MAX_EPOCHS=2, PATIENCE=2)).history[0]
        for compute in ("bfloat16", "float32"))
    assert narrow[-1, 2] > 0.6 and (narrow != full).any()
    np.testing.assert_allclose(narrow[:, :2], full[:, :2], rtol=0.1)    # as two seeds differ


def test_training_learns(trained):
    train_loss, _, val_acc = trained.sweep.history[0].T
    assert val_acc[-1] > 0.85                   # chance is 0.1
    assert (np.diff(train_loss) < 0).all() and train_loss[0] < math.log(10)


@pytest.mark.slow
def test_every_epoch_uses_each_image_at_most_once():
    """Image i has one lit pixel, i; so row i of a linear model moves once for each use of it."""
    count, batch, rate = 50, 8, 1e-4
    images, labels = np.eye(count, dtype=np.uint8) * 255, (np.arange(count) % 3).astype(np.uint8)
    hyper = small_hyper(QAT_ENABLE=False, LAYERS="", shape=(count,), classes=3, BATCH_SIZE=batch,
                        MAX_EPOCHS=1)
    split, moved = data.Split(images, labels), []
    begin = loop.start([rate, rate], [0, 1], hyper)
    end, = loop.epochs(begin, split, split, hyper)
    for before, after in zip(begin.state.layers[0].w, end.state.layers[0].w):
        scores = np.exp(before * np.float32(255 / 256))
        error = scores / scores.sum(1, keepdims=True) - np.eye(3)[labels]
        step = -rate * error * (255 / 256) / batch
        uses = np.take_along_axis((after - before) / step, labels[:, None].astype(int), 1)[:, 0]
        # float32 steps of 1e-5 on weights of 0.1: a use counts as 1 to within 0.1.
        np.testing.assert_allclose(uses, np.round(uses), atol=0.1)
        assert set(np.round(uses)) == {0, 1} and np.round(uses).sum() == count // batch * batch
        moved.append(np.round(uses))
    assert not np.array_equal(*moved)           # other seeds leave other images out


def feed(losses, accuracies=None, exact=None, **changes):
    """The Sweep that judge makes of these lanes, until all have ended, and the epochs it chose.

    Args:
      losses, accuracies: floats [K, E]; exact: bools [K, E].
    Returns:
      (Sweep, list of [epochs that were a lane's best so far] by lane).
    """
    losses = np.array(losses, np.float64)
    count, epochs = losses.shape
    accuracies = np.full(losses.shape, 0.5) if accuracies is None else np.array(accuracies)
    exact = np.ones(losses.shape, bool) if exact is None else np.array(exact, bool)
    hyper, nothing = small_hyper(**{"MAX_EPOCHS": epochs, **changes}), np.zeros(count, np.int32)
    sweep = loop.Sweep(nothing, nothing, None, None, nothing, np.full(count, np.inf), nothing,
                           nothing.astype(np.uint8), np.full((count, 0, 3), np.nan), np.zeros(0),
                           np.zeros(()))
    bests = [[] for _ in range(count)]
    for number in range(epochs):
        if (sweep.status != stopping.RUNNING).all():
            break
        metrics = np.stack([losses[:, number], losses[:, number], accuracies[:, number]], axis=1)
        sweep, improved = loop.judge(sweep, metrics, exact[:, number], hyper,
                                         -1 / 10 if hyper.METRIC == "val_acc" else math.log(10))
        sweep = sweep._replace(seconds=np.append(sweep.seconds, 0))
        for lane in np.flatnonzero(improved):
            bests[lane].append(number + 1)
    return sweep, bests


def epochs_of(sweep, lane=0):
    """How many epochs a lane ran."""
    return int((~np.isnan(sweep.history[lane, :, 2])).sum())


@pytest.mark.parametrize("losses, status, epochs, best", [
    ([1.0, 0.9, 0.8, 0.7], "capped", 4, 4),
    ([1.0, 0.5, 0.6, 0.7, 0.8, 0.1], "stopped", 5, 2),
    ([1.0, 0.5, 0.6, 0.4, 0.6, 0.6, 0.6], "stopped", 7, 4),
    ([1.0, 0.5, 0.499, 0.498, 0.497, 0.4], "stopped", 5, 5),    # creeps by less than MIN_DELTA
    ([1.0, 0.5, 0.48, 0.46, 0.44, 0.42], "capped", 6, 6),       # but such steps add up
    ([1.0, 1.0, 1.0, 1.0], "stopped", 4, 1),
    ([1.0, 0.5, math.nan], "diverged", 3, 2),
    ([math.nan], "diverged", 1, 0),
    ([math.inf], "diverged", 1, 0),
    ([5.0, 4.0, 3.0], "guessing", 3, 3),        # never better than a uniform guess, ln 10
    ([2.4, 2.4, 2.4, 2.4], "guessing", 4, 1),   # a rate too small to move anything
])
def test_early_stopping(losses, status, epochs, best):
    sweep, bests = feed([losses], PATIENCE=3, MIN_DELTA=0.03)
    assert (status_of(sweep), epochs_of(sweep), sweep.best_epoch.tolist()) == ([status], epochs,
                                                                               [best])
    assert bests[0][-1:] == [best][:best]       # the last epoch whose weights were kept


@pytest.mark.parametrize("delta, status", [(0.25, "capped"), (0.25 + 2**-20, "stopped")])
def test_improvement_of_exactly_min_delta_renews_patience(delta, status):
    """In sums of powers of two, which are exact."""
    losses = [[2.0, 1.75, 1.5, 1.25, 1.0]]
    assert status_of(feed(losses, PATIENCE=1, MIN_DELTA=delta)[0]) == [status]
    accuracies = [[0.25, 0.5, 0.75, 1.0]]
    sweep, _ = feed(np.ones((1, 4)), accuracies, METRIC="val_acc", PATIENCE=1, MIN_DELTA=delta)
    assert status_of(sweep) == [status]


def test_accuracy_as_the_metric_picks_its_own_best():
    sweep, _ = feed([[0.5, 0.4, 0.3, 0.2]], [[0.7, 0.9, 0.8, 0.9]], METRIC="val_acc", PATIENCE=2)
    assert (status_of(sweep), epochs_of(sweep), sweep.best_epoch[0]) == (["stopped"], 4, 2)
    # Its loss is that epoch's, not the least.
    np.testing.assert_array_equal(sweep.history[0, 1], [0.4, 0.4, 0.9])


def test_guessing_is_judged_by_the_metric_alone():
    """86 % accuracy is no guess, whatever its loss; 10 % is one, and a loss of 2 is not."""
    losses, accuracies = [[3.0, 3.0], [2.0, 2.0]], [[0.86, 0.86], [0.1, 0.1]]
    sweep, _ = feed(losses, accuracies, METRIC="val_acc")
    assert status_of(sweep) == ["stopped", "guessing"]
    sweep, _ = feed(losses, accuracies, METRIC="val_loss")
    assert status_of(sweep) == ["guessing", "stopped"]


def test_the_guess_to_beat_is_the_best_constant_answer(rng):
    """Found by search over constant logits; a model that ignores its input can do no better."""
    labels = np.repeat(np.arange(4, dtype=np.uint8), [50, 30, 15, 5])
    constants = rng.normal(0, 2, (20_000, 1, 4))
    losses = np.log(np.exp(constants).sum(2)) - constants[:, 0][:, labels].mean(1, keepdims=True)
    guess = stopping.guess_score(labels, small_hyper())
    assert guess <= losses.min() < guess + 0.02
    assert stopping.guess_score(labels, small_hyper(METRIC="val_acc")) == -0.5


def test_epoch_that_can_not_be_deployed_is_never_the_best():
    losses = [[1.0, 0.5, 0.7, 0.6], [1.0, 0.9, 0.8, 0.7], [1.0, 0.9, math.nan, 0.5]]
    exact = [[True, False, True, False], [False] * 4, [False, True, True, True]]
    sweep, bests = feed(losses, exact=exact, PATIENCE=4)
    assert status_of(sweep) == ["capped", "inexact", "diverged"]
    assert sweep.best_epoch.tolist() == [3, 0, 2] and bests == [[1, 3], [], [2]]


DYADIC = st.integers(0, 12).map(lambda quarters: quarters / 4)      # meets MIN_DELTA exactly
EPOCHS = st.lists(st.tuples(DYADIC | st.floats(0, 3), st.integers(0, 8).map(lambda n: n / 8),
                            st.booleans()), min_size=12, max_size=12)


def expected_end(scores, exact, guess, patience, min_delta):
    """(status, epochs, best epoch) in plain Python.

    A mark is a score that beats the mark before by min_delta; `patience` epochs later it ends.
    """
    mark = last = 0
    while last + 1 < len(scores) and last - mark < patience:
        last += 1
        better = scores[mark] - scores[last]
        mark = last if better > 0 and better >= min_delta else mark
    seen = [(score, i) for i, score in enumerate(scores[:last + 1]) if exact[i]]
    if not seen:
        return "inexact", last + 1, 0
    best, at = min(seen)
    stopped = "stopped" if last - mark == patience else "capped"
    return stopped if best < guess else "guessing", last + 1, at + 1


@given(lanes=st.lists(EPOCHS, min_size=1, max_size=3), patience=st.integers(1, 6),
       min_delta=st.sampled_from([0.0, 0.01, 0.25]), metric=st.sampled_from(stopping.METRICS[1:]))
@pytest.mark.slow
def test_early_stopping_equals_its_definition(lanes, patience, min_delta, metric):
    """For each lane, in any company."""
    losses, accuracies, exact = np.array(lanes, np.float64).transpose(2, 0, 1)
    sweep, _ = feed(losses, accuracies, exact, PATIENCE=patience, MIN_DELTA=min_delta,
                    METRIC=metric)
    scores, guess = (losses, math.log(10)) if metric == "val_loss" else (-accuracies, -0.1)
    for lane in range(len(lanes)):
        found = status_of(sweep)[lane], epochs_of(sweep, lane), sweep.best_epoch[lane]
        assert found == expected_end(scores[lane], exact[lane], guess, patience, min_delta)


def updates(hyper, steps, count, gradient=2.0):
    """What `count` steps on a constant gradient, at rate 0.1, add to a layer whose leaves are 1.

    Returns:
      float64 [count, 4]: of w, b, x_exponent and w_exponent.
    """
    one = np.ones((1, 1), np.float32)
    layers, found = [model.LearnedLayer(one, one[0], one, one)], []
    optimizer = epoch.make_optimizer(hyper, 0.1, steps)
    gradients = jax.tree.map(lambda leaf: np.full_like(leaf, gradient), layers)
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(layers)
        for _ in range(count):
            update, state = optimizer.update(gradients, state, layers)
            found.append([leaf.item() for leaf in update[0]])
    return np.array(found)


@pytest.mark.slow
def test_optimizers_follow_their_definitions():
    np.testing.assert_allclose(updates(small_hyper(), 5, 3), -0.2, rtol=1e-6)
    momentum = updates(small_hyper(MOMENTUM=0.9), 5, 3)
    np.testing.assert_allclose(momentum.T, [-0.2 * np.cumsum([1, 0.9, 0.81])] * 4, rtol=1e-6)
    # Adam on a constant gradient steps by the rate; its float32 means are off by up to 1e-5.
    np.testing.assert_allclose(updates(small_hyper(OPTIMIZER="adamw"), 5, 3), -0.1, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"MOMENTUM": 0.9}, {"OPTIMIZER": "adamw"}])
def test_decay_is_of_the_weights_alone_and_zero_means_none(changes):
    """Neither biases nor scales; rate * WEIGHT_DECAY of a weight at each step, momentum or not."""
    decayed = updates(small_hyper(**changes, WEIGHT_DECAY=0.01), 5, 3, gradient=0.0)
    np.testing.assert_allclose(decayed, [[-0.1 * 0.01, 0, 0, 0]] * 3, rtol=1e-6)
    np.testing.assert_array_equal(updates(small_hyper(**changes), 5, 3, gradient=0.0), 0)


@pytest.mark.slow
def test_cosine_schedule_warms_up_and_ends_at_zero():
    hyper = small_hyper(SCHEDULE="cosine", WARMUP_EPOCHS=0.5, MAX_EPOCHS=4)
    found = updates(hyper, 10, 41)[:, 0]       # 5 steps of warm-up, 35 of cosine, then nothing
    step = np.arange(41)
    factor = np.where(step < 5, step / 5, (1 + np.cos(np.pi * (step - 5) / 35)) / 2)
    np.testing.assert_allclose(found, -0.2 * factor, rtol=1e-5, atol=1e-8)
    plain = updates(small_hyper(SCHEDULE="cosine", MAX_EPOCHS=4), 10, 40)[:, 0]
    np.testing.assert_allclose(plain, -0.1 * (1 + np.cos(np.pi * step[:40] / 40)),
                               rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("warmup, epochs", [(0, 1), (0.5, 1), (0.9, 1), (1, 1), (1.6, 2), (3, 4)])
def test_every_legal_schedule_trains(warmup, epochs, optimizer):
    hyper = make_hyper(SCHEDULE="cosine", OPTIMIZER=optimizer, WARMUP_EPOCHS=warmup,
                       MAX_EPOCHS=epochs)
    for steps in (1, 468):                      # init_lane asks for 1 step an epoch
        assert np.isfinite(updates(hyper, steps, 2)).all()
    assert (updates(hyper, 468, 3)[-1] < 0).all()


@pytest.mark.parametrize("rate, changes", [
    (3e-3, {"OPTIMIZER": "adamw", "SCHEDULE": "cosine", "WARMUP_EPOCHS": 0.5, "SCALES": "learned",
            "WEIGHT_BITS": 3, "LAYERS": "mean2 32", "WEIGHT_DECAY": 0.01}),
    (0.1, {"MOMENTUM": 0.5, "POWER_OF_TWO_SCALES": False, "WEIGHT_BITS": 3})])
@pytest.mark.slow
def test_other_switches_train(parts, rate, changes):
    """Without AVERAGING, an epoch publishes its last weights."""
    hyper = small_hyper(MAX_EPOCHS=2, **changes)
    sweep = train(*parts, [rate], [0], hyper)
    assert sweep.best_epoch[0] == 2 and sweep.history[0, -1, 2] > 0.5   # chance is 0.1
    for best, layer in zip(sweep.best, sweep.state.layers):
        assert_same_bits(best[:2], layer[:2])
    if hyper.POWER_OF_TWO_SCALES:
        assert_reloads_exactly(sweep, 0, parts[1], hyper)


@pytest.mark.slow
def test_published_weights_are_the_mean_of_those_after_each_step(parts):
    """With its bias removed; in float64 from the steps of epochs of one step. Scales that are not
    learned are calibrated to the mean, and its integers give the loss on record."""
    split = rows_of(parts[0], 0, 64)
    hyper = small_hyper(AVERAGING=0.7, MAX_EPOCHS=4, PATIENCE=4)
    steps = []
    for sweep in loop.epochs(loop.start([0.1], [0], hyper), split, split, hyper):
        steps.append([np.float64(a) for layer in sweep.state.layers for a in layer[:2]])
        share = 0.7 ** np.arange(len(steps))[::-1]
        expected = [np.tensordot(share / share.sum(), arrays, 1) for arrays in zip(*steps)]
        assert sweep.best_epoch[0] == len(steps)
        for array, other in zip([a for layer in sweep.best for a in layer[:2]], expected):
            # A few roundings of float32.
            np.testing.assert_allclose(array, other, rtol=0, atol=1e-6 * np.abs(other).max())
        layers = best_layers(sweep)
        assert_same_bits(jax.device_get(model.calibrate(layers, split.images, hyper)), layers)
        assert_reloads_exactly(sweep, 0, split, hyper)


@pytest.mark.slow
def test_learned_exponents_are_averaged_like_weights(parts, alone):
    """And rounded, held by their bounds, only then: what is published is rounded from the mean."""
    hyper = small_hyper(**KINDS["everything"])
    sweep = alone("everything")[1]              # of the three, the last one before they are frozen
    average, count = jax.tree.map(lambda a: np.float64(a[0]), sweep.state.average.ema), 62
    mean = jax.tree.map(lambda a: np.float32(a / (1 - 0.9**count)), average)
    rounded = jax.device_get(jax.jit(model.to_layers, static_argnames="hyper")(mean, hyper))
    assert sweep.best_epoch[0] == 2
    for layer, other in zip(rounded, best_layers(sweep)):
        np.testing.assert_array_equal(layer.x_scale, other.x_scale)
        np.testing.assert_array_equal(layer.w_scale, other.w_scale)
        np.testing.assert_allclose(layer.w, other.w, rtol=1e-6)
    # From where calibration began them.
    moved = [layer.w_exponent for layer in sweep.state.layers]
    assert all((np.rint(exponent) != exponent).mean() > 0.5 for exponent in moved)
    assert_reloads_exactly(sweep, 0, parts[1], hyper)


@pytest.mark.slow
def test_frozen_exponents_hold_in_each_step_and_in_what_is_deployed(parts, alone):
    """On a state whose exponents and their average round to other numbers than the frozen ones."""
    hyper = small_hyper(**KINDS["everything"])   # frozen after 0.7 of three epochs
    second = alone("everything")[1]

    def moved(layers, by):
        return [layer._replace(x_exponent=np.rint(layer.x_exponent) + np.float32(by),
                               w_exponent=np.rint(layer.w_exponent) + np.float32(by))
                for layer in layers]

    average = second.state.average
    # What is learned goes on from there, and is not used.
    average = average._replace(ema=moved(average.ema, 0.8))
    outcomes = []
    for by in (0.0, 0.49):                      # both round to the same exponents
        state = second.state._replace(layers=moved(second.state.layers, by), average=average)
        outcomes.append(next(loop.epochs(second._replace(state=state), *parts, hyper)))
        for begun, kept in zip(state.layers, outcomes[-1].state.layers):
            assert_same_bits(begun[2:], kept[2:])
            assert (begun.w != kept.w).any()
    rounded, beside = outcomes
    assert_same_bits(rounded.history, beside.history)
    assert rounded.best_epoch[0] == beside.best_epoch[0] == 3
    assert_same_bits(rounded.best, beside.best)
    for layer, exponent in zip(rounded.best, rounded.state.layers):     # 6 bits: no bound holds any
        assert_same_bits(layer.w_scale, np.exp2(exponent.w_exponent))
        assert_same_bits(layer.x_scale[1:], np.exp2(exponent.x_exponent)[1:])


@pytest.mark.slow
def test_scales_learn_however_few_epochs_there_are(parts):
    """A share of one epoch is one epoch; of none, none."""
    changes = {"SCALES": "learned", "OPTIMIZER": "adamw", "MAX_EPOCHS": 1, "LAYERS": ""}
    for share, learns in ((0.25, True), (0.0, False)):
        sweep = train(*parts, [1e-2], [0], small_hyper(FREEZE_SCALES=share, **changes))
        exponent = sweep.state.layers[0].w_exponent
        assert (exponent != np.rint(exponent)).all() == learns


@pytest.mark.slow
def test_all_zero_images_train_without_nan(parts):
    """Every activation and most gradients are zero; scales must not be."""
    blank = data.Split(np.zeros((128, 784), np.uint8), parts[0].labels[:128])
    sweep = train(blank, blank, [0.1], [0], small_hyper(MAX_EPOCHS=2))
    assert np.isfinite(sweep.history).all() and sweep.best_epoch[0]
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(sweep.best))


@pytest.mark.slow
def test_rate_that_outgrows_the_integers_ends_inexact_not_in_an_error(parts):
    """One big step: float32 learns, but its integers pass 2**24 in an epoch of stale scales."""
    hyper = small_hyper(OPTIMIZER="adamw", MAX_EPOCHS=1, LAYERS="")
    sweep = train(*parts, [3.0], [0], hyper)
    layers = jax.tree.map(lambda a: a[0], sweep.state.layers)
    with pytest.raises(ValueError, match="not below"):
        convert.to_network(layers, hyper)
    assert status_of(sweep) == ["inexact"] and sweep.best_epoch[0] == 0


CONVOLUTIONS = {"LAYERS": "mean2 conv3x6/2 max2 16", "OPTIMIZER": "adamw", "WEIGHT_BITS": 4,
                "SCALES": "learned", "AVERAGING": 0.9, "AUGMENT": 0.3, "COMPUTE": "bfloat16",
                "MAX_EPOCHS": 3, "PATIENCE": 3}


@pytest.mark.parametrize("changes", [{}, pytest.param(
    {"SCALES": "calibrated", "COMPUTE": "float32", "MAX_EPOCHS": 2}, marks=pytest.mark.long)])
@pytest.mark.slow
def test_sweep_of_convolutions_learns_resumes_and_reloads(parts, changes):
    """The network deployed of its best epoch has the loss on record."""
    hyper = small_hyper(**CONVOLUTIONS | changes)
    first, *_, last = loop.epochs(loop.start([0.02, 0.01], [0, 1], hyper), *parts, hyper)
    assert status_of(last) == ["capped"] * 2
    assert (last.history[:, -1, 2] > 0.5).all()                 # chance is 0.1
    *_, again = loop.epochs(first, *parts, hyper)
    for lane in range(2):
        assert_reloads_exactly(last, lane, parts[1], hyper)
        assert_same_bits(lane_of(again, lane), lane_of(last, lane))


@pytest.mark.slow
def test_logits_in_blocks_are_those_of_all_at_once(parts, monkeypatch):
    """The last block is whole too: it begins inside the one before it. And an epoch that is judged
    in blocks ends with the same bits."""
    hyper = small_hyper(LAYERS="mean2 conv3x6/2 max2", MAX_EPOCHS=1)
    images = parts[1].images[:23]
    layers = jax.device_get(model.calibrate(
        best_layers(loop.start([0.1], [0], hyper)), images, hyper))

    def run(block):
        monkeypatch.setattr(plan, "block_size", lambda steps: block)
        sizes = []

        def function(part):
            sizes.append(len(part))
            return model.forward(layers, part, hyper)

        return jax.jit(lambda images: epoch.in_blocks(function, images, hyper))(images), set(sizes)

    whole, sizes = run(0)
    assert sizes == {23} and run(23)[1] == {23} and run(24)[1] == {23}
    for block in (1, 5, 11, 22):
        logits, sizes = run(block)
        assert sizes == {block}                 # one shape to compile
        np.testing.assert_array_equal(logits, whole)
    ends = []
    for block in (0, 300):                      # of 1,000 images
        monkeypatch.setattr(plan, "block_size", lambda steps, block=block: block)
        ends.append(train(*parts, [0.1], [0], hyper))
    assert_same_bits(*(lane_of(end, 0) for end in ends))


@pytest.mark.slow
def test_importing_our_modules_changes_nothing_in_jax():
    """Flags are set by set_strict alone, which scripts call, and which needs an unused backend."""
    names = sorted({path.stem for path in ROOT.glob("*.py")} | {
        f"{path.parent.name}.{path.stem}" for folder in ("training", "machine", "runner")
        for path in (ROOT / folder).glob("*.py")})
    assert {"quant", "integer", "model", "training.loop", "machine.runtime"} <= set(names)
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import jax
before = dict(jax.config.values)
import {", ".join(names)}
assert dict(jax.config.values) == before
machine.runtime.set_strict()
assert dict(jax.config.values) != before
"""
    subprocess.run([sys.executable, "-B", "-c", program], check=True)
