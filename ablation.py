"""The studies: each trains a sweep, writes results/NAME.json, then its plot.

python3 ablation.py lr       learning rate against epochs and validation loss
python3 ablation.py quant    quantized against unquantized: loss, accuracy, file size
python3 ablation.py plots    draw every plot again from results/
"""
import time
from pathlib import Path

import numpy as np

import checkpoint
import config
import data
import model
import plotting
import training
from files import InputError, check_writable, environment, read_result, run_script, write_result
from main_inference import evaluate_model


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


def save_run(path, params, scales, spec, settings, **splits):
    """Save a model, judged on the arrays of the file as its user will run them.

    Args:
      params, scales: of the model's best epoch; spec: quant.Spec, or None for float32.
      splits: data.Split by name.
    Returns:
      (file size in bytes, dict of {name}_loss in nats and {name}_acc as a fraction).
    """
    layers, meta = [{"w": w, "b": b} for w, b in params], {"quantized": spec is not None}
    if spec is not None:
        layers = model.quantize(params, scales, spec)
        meta |= {"weight_bits": spec.weight_bits, "activation_bits": spec.activation_bits,
                 "per_channel": spec.per_channel}
    metrics = evaluate_model(layers, meta, settings.ENGINE, **splits)
    meta |= {"dataset": settings.DATASET, "metrics": metrics, "config": settings._asdict(),
             "environment": environment()}
    return checkpoint.save(path, layers, meta), metrics


def learning_rate(settings):
    """Sweep the learning rate, all runs in one program; the best rate is chosen on validation."""
    train, val, _ = load_splits(settings)
    grid = [(rate, settings.SEED + seed) for rate in settings.LR_ABLATION_RATES
            for seed in range(settings.LR_ABLATION_SEEDS)]
    recipe = training.recipe_of(settings, MAX_EPOCHS=settings.LR_ABLATION_MAX_EPOCHS)
    start = time.perf_counter()
    runs, seconds = training.fit(train, val, *zip(*grid), recipe)
    losses = {rate: np.mean([run.val_loss for run in runs if run.rate == rate])
              for rate in settings.LR_ABLATION_RATES}
    best = min(losses, key=losses.get)
    write_result(Path(settings.RESULTS_DIR) / "lr_ablation.json", settings, best_rate=best,
                 runs=[summary(run) for run in runs], seconds=seconds,
                 wall_seconds=time.perf_counter() - start,
                 lane_epochs=sum(len(run.history) for run in runs))
    plotting.draw("lr_ablation", settings.RESULTS_DIR, settings.PLOTS_DIR)
    print(f"best learning rate on validation: {best:g} (mean loss {losses[best]:.4f} nats, "
          f"{settings.LR_ABLATION_SEEDS} seeds)")
