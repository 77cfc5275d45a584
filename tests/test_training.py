"""training: lanes keep their bits, early stopping keeps the best, every epoch is a permutation."""
import math

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

import config
import data
import main_inference
import model
import stats
import training
from training import Run

SMALL = {"LAYER_SIZES": (784, 32, 10), "BATCH_SIZE": 64, "MAX_EPOCHS": 3}


def make_recipe(**changes):
    return training.recipe_of(config.load([]), **{**SMALL, **changes})


def assert_same_bits(a, b):
    """Every bit of two runs' weights, scales and metrics."""
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True),
                 (a.params, a.scales), (b.params, b.scales))
    for key in ("train_loss", "val_loss", "val_acc"):
        assert [entry[key] for entry in a.history] == [entry[key] for entry in b.history]
    assert (a.status, a.best_epoch, a.val_loss) == (b.status, b.best_epoch, b.val_loss)


@pytest.fixture(scope="module")
def alone(parts):
    """alone(quantized) -> the one run of rate 0.1 and seed 0, trained once."""
    runs = {}

    def get(quantized):
        if quantized not in runs:
            recipe = make_recipe(QAT_ENABLE=quantized)
            (runs[quantized],), _ = training.fit(*parts, [0.1], [0], recipe)
        return runs[quantized]
    return get


def test_same_seed_gives_the_same_bits(parts, alone):
    (again,), _ = training.fit(*parts, [0.1], [0], make_recipe())
    assert_same_bits(again, alone(True))


@pytest.mark.parametrize("quantized, devices, company", [
    (True, 1, [(0.3, 1), (0.01, 2), (0.1, 3)]), (False, None, [(0.3, 1), (0.01, 2)])])
def test_bits_of_a_lane_do_not_depend_on_its_company(parts, alone, monkeypatch, quantized, devices,
                                                     company):
    """On one device, where all lanes share a program, and on all there are."""
    found = jax.devices()[:devices]
    monkeypatch.setattr(jax, "devices", lambda *_: found)
    rates, seeds = zip(*company, (0.1, 0))
    runs, _ = training.fit(*parts, rates, seeds, make_recipe(QAT_ENABLE=quantized))
    assert [(run.rate, run.seed) for run in runs] == [*company, (0.1, 0)]
    assert_same_bits(runs[-1], alone(quantized))


def test_diverged_lane_is_marked_and_the_others_go_on(parts, alone):
    recipe = make_recipe(QAT_ENABLE=False)
    runs, _ = training.fit(*parts, [1e3, 0.1, 1e3], [0, 0, 1], recipe)
    assert [run.status for run in runs] == ["diverged", "capped", "diverged"]
    assert len(runs[1].history) == 3 and np.isfinite(runs[1].val_loss)
    # Equal up to the rounding of other matrix products; the exact claim has its own test.
    assert runs[1].val_loss == pytest.approx(alone(False).val_loss, rel=1e-4)


def test_interrupt_keeps_the_best_so_far(parts, monkeypatch):
    """Whatever the other lanes did: one that diverged at once must not lose the rest."""
    evaluate, calls = stats.evaluate, []

    def interrupted(logits, labels):
        calls.append(1)
        if len(calls) > 2:                      # two lanes in epoch 1, then Ctrl-C in epoch 2
            raise KeyboardInterrupt
        loss, accuracy = evaluate(logits, labels)
        return (math.nan, 0.1) if len(calls) == 1 else (loss, accuracy)

    monkeypatch.setattr(stats, "evaluate", interrupted)
    try:
        runs, _ = training.fit(*parts, [0.1, 0.1], [0, 1], make_recipe(MAX_EPOCHS=5))
    except KeyboardInterrupt:
        pytest.fail("the interrupt lost the runs")
    assert [run.status for run in runs] == ["diverged", "interrupted"]
    assert runs[1].best_epoch == 1 and runs[1].params is not None


@pytest.mark.parametrize("quantized", [True, False])
def test_best_weights_give_the_recorded_loss_exactly(parts, quantized):
    """Overtrained on 200 images, so that the best epoch is long past when patience ends."""
    train, val = (data.Split(*(a[:n] for a in part)) for part, n in zip(parts, (200, 1_000)))
    recipe = make_recipe(QAT_ENABLE=quantized, BATCH_SIZE=10, MAX_EPOCHS=80, PATIENCE=4)
    (run,), _ = training.fit(train, val, [0.3], [0], recipe)
    losses = [entry["val_loss"] for entry in run.history]
    assert run.status == "stopped" and run.best_epoch < len(losses)
    assert run.best_epoch == 1 + int(np.argmin(losses)) and run.val_loss == min(losses)
    assert len(losses) - run.progress[1] == recipe.patience
    meta = {"quantized": quantized, "activation_bits": 8}
    layers = (model.quantize(run.params, run.scales, recipe.spec) if quantized
              else [{"w": w, "b": b} for w, b in run.params])
    logits = main_inference.make_predictor(layers, meta)(val.images)
    loss, accuracy = stats.evaluate(logits, val.labels)
    assert loss - run.val_loss == 0 and accuracy == run.val_acc


def test_training_learns(trained):
    assert trained.run.val_acc > 0.85           # chance is 0.1
    losses = [entry["train_loss"] for entry in trained.run.history]
    assert losses == sorted(losses, reverse=True) and losses[0] < math.log(10)


def test_every_epoch_uses_each_image_at_most_once():
    """Image i has one lit pixel, i; so row i of a linear model moves once for each use of it."""
    count, batch, rate = 50, 8, 1e-4
    images, labels = np.eye(count, dtype=np.uint8) * 255, (np.arange(count) % 3).astype(np.uint8)
    recipe = make_recipe(QAT_ENABLE=False, LAYER_SIZES=(count, 3), BATCH_SIZE=batch, MAX_EPOCHS=1)
    split, moved = data.Split(images, labels), []
    runs, _ = training.fit(split, split, [rate, rate], [0, 1], recipe)
    for run in runs:
        state = training.init_lane(np.float32(run.rate), np.uint32(run.seed), recipe)
        (before, _), = jax.device_get(state.params)
        (after, _), = run.params
        scores = np.exp(before * np.float32(255 / 256))
        error = scores / scores.sum(1, keepdims=True) - np.eye(3)[labels]
        step = -rate * error * (255 / 256) / batch
        uses = np.take_along_axis((after - before) / step, labels[:, None].astype(int), 1)[:, 0]
        # float32 steps of 1e-5 on weights of 0.1: a use counts as 1 to within 0.1.
        np.testing.assert_allclose(uses, np.round(uses), atol=0.1)
        assert set(np.round(uses)) == {0, 1} and np.round(uses).sum() == count // batch * batch
        moved.append(np.round(uses))
    assert not np.array_equal(*moved)           # other seeds leave other images out


def feed(losses, accuracies=None, **changes):
    """A Run after these validation losses, or until it stops; its params name their epoch."""
    recipe, run = make_recipe(**{"MAX_EPOCHS": len(losses), **changes}), Run(0.1, 0)
    for epoch, loss in enumerate(losses, 1):
        entry = {"train_loss": loss, "val_loss": loss, "seconds": 0.0,
                 "val_acc": 0.5 if accuracies is None else accuracies[epoch - 1]}
        training._record(run, epoch, entry, [np.array(epoch)], None, recipe)
        if run.status != "running":
            break
    return run


@pytest.mark.parametrize("losses, status, epochs, best", [
    ([1.0, 0.9, 0.8, 0.7], "capped", 4, 4),
    ([1.0, 0.5, 0.6, 0.7, 0.8, 0.1], "stopped", 5, 2),
    ([1.0, 0.5, 0.6, 0.4, 0.6, 0.6, 0.6], "stopped", 7, 4),
    ([1.0, 0.5, 0.499, 0.498, 0.497, 0.4], "stopped", 5, 5),    # creeps by less than min_delta
    ([1.0, 0.5, 0.48, 0.46, 0.44, 0.42], "capped", 6, 6),       # but such steps add up
    ([1.0, 1.0, 1.0, 1.0], "stopped", 4, 1),
    ([1.0, 0.5, math.nan], "diverged", 3, 2),
    ([math.nan], "diverged", 1, 0),
    ([math.inf], "diverged", 1, 0),
    ([5.0, 4.0, 3.0], "diverged", 3, 3),        # never better than a uniform guess, ln 10
])
def test_early_stopping(losses, status, epochs, best):
    run = feed(losses, PATIENCE=3, MIN_DELTA=0.03)
    assert (run.status, len(run.history), run.best_epoch) == (status, epochs, best)
    if best:
        assert run.params[0] == best and run.val_loss == losses[best - 1]
    else:
        assert run.params is None


def test_accuracy_as_the_metric_picks_its_own_best():
    run = feed([0.5, 0.4, 0.3, 0.2], [0.7, 0.9, 0.8, 0.9], METRIC="val_acc", PATIENCE=2)
    assert (run.status, len(run.history), run.best_epoch, run.val_acc) == ("stopped", 4, 2, 0.9)
    assert run.val_loss == 0.4                  # that epoch's, not the least


@given(losses=st.lists(st.floats(0, 2), min_size=1, max_size=30), patience=st.integers(1, 6),
       min_delta=st.sampled_from([0.0, 0.01, 0.3]))
def test_early_stopping_equals_its_definition(losses, patience, min_delta):
    """A mark is a loss that beats the mark before by min_delta; `patience` epochs later it ends."""
    run = feed(losses, PATIENCE=patience, MIN_DELTA=min_delta)
    mark = last = 0
    while last + 1 < len(losses) and last - mark < patience:
        last += 1
        mark = last if losses[last] < losses[mark] - min_delta else mark
    seen = losses[:last + 1]
    assert len(run.history) == len(seen) and run.val_loss == min(seen)
    assert run.best_epoch == 1 + seen.index(min(seen))
    assert run.status == ("stopped" if last - mark == patience else "capped")


def updates(recipe, steps, count):
    """What `count` steps on a constant gradient of 2 add to a weight of 1, at rate 0.1."""
    optimizer, params, found = training.make_optimizer(recipe, 0.1, steps), np.float32(1), []
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for _ in range(count):
            update, state = optimizer.update(np.float32(2), state, params)
            found.append(float(update))
    return np.array(found)


def test_optimizers_follow_their_definitions():
    np.testing.assert_allclose(updates(make_recipe(), 5, 3), -0.2, rtol=1e-6)
    momentum = updates(make_recipe(MOMENTUM=0.9), 5, 3)
    np.testing.assert_allclose(momentum, -0.2 * np.cumsum([1, 0.9, 0.81]), rtol=1e-6)
    # Adam on a constant gradient steps by the rate; optax decays weights by 1e-4 of it besides.
    adamw = updates(make_recipe(OPTIMIZER="adamw"), 5, 3)
    np.testing.assert_allclose(adamw, -0.1 * (1 + 1e-4), rtol=1e-4)


def test_cosine_schedule_warms_up_and_ends_at_zero():
    recipe = make_recipe(SCHEDULE="cosine", WARMUP_EPOCHS=0.5, MAX_EPOCHS=4)
    found = updates(recipe, 10, 41)             # 5 steps of warm-up, 35 of cosine, then nothing
    step = np.arange(41)
    factor = np.where(step < 5, step / 5, (1 + np.cos(np.pi * (step - 5) / 35)) / 2)
    np.testing.assert_allclose(found, -0.2 * factor, rtol=1e-5, atol=1e-8)
    plain = updates(make_recipe(SCHEDULE="cosine", MAX_EPOCHS=4), 10, 40)
    np.testing.assert_allclose(plain, -0.1 * (1 + np.cos(np.pi * step[:40] / 40)),
                               rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("warmup, epochs", [(0, 1), (0.5, 1), (0.9, 1), (1, 1), (1.6, 2), (3, 4)])
def test_every_legal_schedule_trains(warmup, epochs, optimizer):
    settings = config.load(["--SCHEDULE=cosine", f"--OPTIMIZER={optimizer}",
                            f"--WARMUP_EPOCHS={warmup}", f"--MAX_EPOCHS={epochs}"])
    recipe = training.recipe_of(settings)
    for steps in (1, 468):                      # init_lane asks for 1 step an epoch
        assert np.isfinite(updates(recipe, steps, 2)).all()
    assert (updates(recipe, 468, 3)[-1] < 0).all()


@pytest.mark.parametrize("rate, changes", [
    (3e-3, {"OPTIMIZER": "adamw", "SCHEDULE": "cosine", "WARMUP_EPOCHS": 0.5}),
    (0.1, {"MOMENTUM": 0.5, "POWER_OF_TWO_SCALES": False, "WEIGHT_BITS": 3})])
def test_other_switches_train(parts, rate, changes):
    (run,), _ = training.fit(*parts, [rate], [0], make_recipe(MAX_EPOCHS=2, **changes))
    assert run.val_acc > 0.5                    # chance is 0.1


def test_all_zero_images_train_without_nan(parts):
    """Every activation and most gradients are zero; scales must not be."""
    blank = data.Split(np.zeros((128, 784), np.uint8), parts[0].labels[:128])
    (run,), _ = training.fit(blank, blank, [0.1], [0], make_recipe(MAX_EPOCHS=2))
    assert np.isfinite(run.val_loss)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((run.params, run.scales)))
