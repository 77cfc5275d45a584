"""The studies: each trains a sweep, writes results/NAME.json, then its plot.

python3 ablation.py lr           learning rate against epochs and validation loss
python3 ablation.py quant        quantized against unquantized: loss, accuracy, file size
python3 ablation.py optimizer    SGD, SGD with momentum and AdamW, each over its own rates
python3 ablation.py plots        draw every plot again from results/
"""
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import checkpoint
import config
import data
import model
import parallel
import stats
import training
from files import InputError, check_writable, environment, run_script, write_result
from main_inference import evaluate_model, make_predictor


def load_splits(settings):
    """(train, val, test) of a Config."""
    train, test = data.load(settings.DATASET, settings.DATA_DIR, settings.LAYER_SIZES)
    return *data.split_val(train, settings.VAL_EXAMPLES, settings.BATCH_SIZE), test


def summary(run):
    """A run as JSON: everything but its weights; a loss that is not finite becomes None."""
    def rounded(value, digits):
        return float(f"{value:.{digits}g}") if np.isfinite(value) else None
    return {"rate": run.rate, "seed": run.seed, "status": run.status, "epochs": len(run.history),
            "best_epoch": run.best_epoch, "val_loss": rounded(run.val_loss, 17),
            "val_acc": run.val_acc,
            "history": {key: [rounded(entry[key], 6) for entry in run.history]
                        for key in ("train_loss", "val_loss", "val_acc")}}


def deploy(params, scales, spec):
    """The layers and meta of a model as its file holds them; spec None: float32, as trained."""
    if spec is None:
        return [{"w": w, "b": b} for w, b in params], {"quantized": False}
    return model.quantize(params, scales, spec), {
        "quantized": True, "weight_bits": spec.weight_bits,
        "activation_bits": spec.activation_bits, "per_channel": spec.per_channel}


def save_run(path, params, scales, spec, settings, **splits):
    """Save a model, judged on the arrays of the file as its user will run them.

    Args:
      params, scales: of the model's best epoch; spec: quant.Spec, or None for float32.
      splits: data.Split by name.
    Returns:
      (file size in bytes, dict of {name}_loss in nats and {name}_acc as a fraction).
    """
    layers, meta = deploy(params, scales, spec)
    metrics = evaluate_model(layers, meta, settings.ENGINE, **splits) if splits else {}
    meta |= {"dataset": settings.DATASET, "metrics": metrics, "config": settings._asdict(),
             "environment": environment()}
    return checkpoint.save(path, layers, meta), metrics


def seeds_of(settings):
    """The seeds of a study: SEED, SEED + 1, ..."""
    return [settings.SEED + i for i in range(settings.ABLATION_SEEDS)]


def draw(name, settings):
    """Draw results/NAME.json, if it has a plot."""
    import plotting             # here: training needs no matplotlib, which is slow to import
    if name in plotting.PLOTS:
        plotting.draw(name, settings.RESULTS_DIR, settings.PLOTS_DIR)


def sweep(settings, rates, train, val, **changes):
    """One run per rate and seed, all in one program; the best rate is chosen on validation.

    Returns:
      (list of training.Run, seconds as from training.fit, the rate of least mean validation loss).
    """
    grid = [(rate, seed) for rate in rates for seed in seeds_of(settings)]
    recipe = training.recipe_of(settings, MAX_EPOCHS=settings.LR_ABLATION_MAX_EPOCHS, **changes)
    runs, seconds = training.fit(train, val, *zip(*grid), recipe)
    losses = {rate: np.mean([run.val_loss for run in runs if run.rate == rate]) for rate in rates}
    return runs, seconds, min(losses, key=losses.get)


def learning_rate(settings):
    """Epochs to stop and best validation loss against the learning rate."""
    train, val, _ = load_splits(settings)
    start = time.perf_counter()
    runs, seconds, best = sweep(settings, settings.LR_ABLATION_RATES, train, val)
    parallel.end_all_but_first()
    write_result(Path(settings.RESULTS_DIR) / "lr_ablation.json", settings, best_rate=best,
                 runs=[summary(run) for run in runs], seconds=seconds,
                 wall_seconds=time.perf_counter() - start,
                 lane_epochs=sum(len(run.history) for run in runs))
    draw("lr_ablation", settings)
    print(f"best learning rate on validation: {best:g} (mean of {settings.ABLATION_SEEDS} seeds)")


# Each optimizer's switches and learning rates, in half decades around its usual best.
OPTIMIZERS = {
    "SGD": ({"OPTIMIZER": "sgd", "MOMENTUM": 0.0}, (1.0, 0.316, 0.1, 0.0316)),
    "SGD, momentum 0.9": ({"OPTIMIZER": "sgd", "MOMENTUM": 0.9}, (0.1, 0.0316, 0.01, 0.00316)),
    "AdamW": ({"OPTIMIZER": "adamw"}, (0.00316, 0.001, 0.000316, 0.0001)),
}


def optimizer(settings):
    """SGD, SGD with momentum and AdamW, each at its own best rate, chosen on validation."""
    train, val, test = load_splits(settings)
    start, results, finalists = time.perf_counter(), {}, {}
    for name, (changes, rates) in OPTIMIZERS.items():
        runs, seconds, best = sweep(settings, rates, train, val, **changes)
        finalists[name] = [run for run in runs if run.rate == best]
        results[name] = {"runs": [summary(run) for run in runs], "best_rate": best,
                         "seconds": seconds}
    parallel.end_all_but_first()
    spec = training.recipe_of(settings).spec
    for name, runs in finalists.items():
        entries = [evaluate_model(*deploy(run.params, run.scales, spec), settings.ENGINE,
                                  test=test)["test_acc"] for run in runs]
        results[name] |= {"test_acc": stats.summarize(entries), "test_accs": entries,
                          "val_loss": stats.summarize([run.val_loss for run in runs]),
                          "epochs": stats.summarize([len(run.history) for run in runs])}
    losses = {name: [run.val_loss for run in runs] for name, runs in finalists.items()}
    comparisons = {name: stats.compare_seeds(losses["SGD"], losses[name])
                   for name in list(OPTIMIZERS)[1:]}
    write_result(Path(settings.RESULTS_DIR) / "optimizer.json", settings, optimizers=results,
                 val_loss_against_sgd=comparisons, wall_seconds=time.perf_counter() - start)
    draw("optimizer", settings)
    for name, comparison in comparisons.items():
        print(f"{name} - SGD, best validation loss: {stats.describe(comparison, 'nats', 1)}")


def _judge_file(folder, params, scales, spec, settings, val, test):
    """Save a model into folder, load it back, and measure the file: dict, and correct bool [N]."""
    path = Path(folder) / "model.npz"
    file_bytes, _ = save_run(path, params, scales, spec, settings)
    predict = make_predictor(*checkpoint.load(path), settings.ENGINE)
    val_loss, val_acc = stats.evaluate(predict(val.images), val.labels)
    logits = predict(test.images)
    test_loss, test_acc = stats.evaluate(logits, test.labels)
    return {"val_loss": val_loss, "val_acc": val_acc, "test_loss": test_loss,
            "test_acc": test_acc, "file_bytes": file_bytes}, logits.argmax(1) == test.labels


def quantized_against_unquantized(settings):
    """QAT, post-training quantization and float32 on the same seeds, each judged from its file."""
    train, val, test = load_splits(settings)
    seeds = seeds_of(settings)
    recipes = {"float32": training.recipe_of(settings, QAT_ENABLE=False),
               "qat": training.recipe_of(settings, QAT_ENABLE=True)}
    spec = recipes["qat"].spec
    width = f"W{spec.weight_bits}A{spec.activation_bits}"
    start = time.perf_counter()
    runs = {name: training.fit(train, val, [settings.LEARNING_RATE] * len(seeds), seeds, recipe)[0]
            for name, recipe in recipes.items()}
    parallel.end_all_but_first()
    if any(run.status == "diverged" for group in runs.values() for run in group):
        raise InputError(f"a run diverged at LEARNING_RATE = {settings.LEARNING_RATE:g}; choose "
                         "another")
    calibrate = jax.jit(model.calibrate, static_argnames="spec")
    sample = train.images[:training.CALIBRATION_IMAGES]
    results, correct = {"float32": [], "ptq": [], "qat": []}, {"float32": [], "ptq": [], "qat": []}
    with tempfile.TemporaryDirectory() as folder:
        for float_run, qat_run in zip(runs["float32"], runs["qat"]):
            scales = calibrate(float_run.params, sample, spec)
            for name, run, parts in (("float32", float_run, (float_run.params, None, None)),
                                     ("ptq", None, (float_run.params, scales, spec)),
                                     ("qat", qat_run, (qat_run.params, qat_run.scales, spec))):
                entry, right = _judge_file(folder, *parts, settings, val, test)
                if run is not None:
                    entry |= {"epochs": len(run.history), "status": run.status,
                              "reload_change_of_val_loss": entry["val_loss"] - run.val_loss}
                results[name].append(entry)
                correct[name].append(right)
    accuracies = {name: [entry["test_acc"] for entry in entries]
                  for name, entries in results.items()}
    comparisons = {name: {"test_acc": stats.compare_seeds(accuracies["float32"], accuracies[name]),
                          "mcnemar": [stats.mcnemar(a, b) for a, b in zip(correct["float32"],
                                                                          correct[name])]}
                   for name in ("ptq", "qat")}
    labels = {"float32": "float32", "ptq": f"{width}\nafter training", "qat": f"{width}\nQAT"}
    write_result(Path(settings.RESULTS_DIR) / "quant_vs_unquant.json", settings, seeds=seeds,
                 models={name: {"label": labels[name], "runs": entries,
                                "test_acc": stats.summarize(accuracies[name]),
                                "val_loss": stats.summarize([e["val_loss"] for e in entries])}
                         for name, entries in results.items()},
                 against_float32=comparisons, wall_seconds=time.perf_counter() - start)
    draw("quant_vs_unquant", settings)
    for name, entries in results.items():
        changes = [abs(e["reload_change_of_val_loss"]) for e in entries if name != "ptq"]
        print(f"{name:8s} test accuracy {100 * np.mean(accuracies[name]):.3f} %, "
              f"val loss {np.mean([e['val_loss'] for e in entries]):.6f} nats, "
              f"{np.mean([e['file_bytes'] for e in entries]):,.0f} bytes"
              + (f", reloading changes val loss by {max(changes):g}" if changes else ""))
    for name, comparison in comparisons.items():
        print(f"{name} - float32: {stats.describe(comparison['test_acc'])}")


def draw_all(settings):
    """Draw every plot whose result is there."""
    for result in sorted(Path(settings.RESULTS_DIR).glob("*.json")):
        draw(result.stem, settings)


STUDIES = {"lr": learning_rate, "quant": quantized_against_unquantized, "optimizer": optimizer,
           "plots": draw_all}


def main(argv):
    settings = config.load(argv[1:] if argv and argv[0] in STUDIES else argv, __doc__)
    if not argv or argv[0] not in STUDIES:
        raise InputError(f"name a study first: {', '.join(STUDIES)}")
    check_writable(settings.RESULTS_DIR, settings.PLOTS_DIR)
    parallel.set_up(settings)
    STUDIES[argv[0]](settings)


if __name__ == "__main__":
    run_script(main)
