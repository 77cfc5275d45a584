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
import integer
import model
import plotting
import stats
import training
from files import InputError, check_writable, read_result, run_script, write_result


def load_splits(settings):
    """(train, val, test) of a Config."""
    train, test = data.load(settings.DATASET, settings.DATA_DIR, settings.LAYER_SIZES)
    return *data.split_val(train, settings.VAL_EXAMPLES, settings.BATCH_SIZE), test


def _summary(run):
    """A run as JSON: everything but its weights; a loss that is not finite becomes None."""
    def rounded(value, digits):
        return float(f"{value:.{digits}g}") if np.isfinite(value) else None
    return {"rate": run.rate, "seed": run.seed, "status": run.status, "epochs": len(run.history),
            "best_epoch": run.best_epoch, "val_loss": rounded(run.val_loss, 17),
            "val_acc": run.val_acc,
            "history": {key: [rounded(entry[key], 6) for entry in run.history]
                        for key in ("train_loss", "val_loss", "val_acc")}}


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
                 runs=[_summary(run) for run in runs], seconds=seconds,
                 wall_seconds=time.perf_counter() - start,
                 lane_epochs=sum(len(run.history) for run in runs))
    plotting.draw("lr_ablation", settings.RESULTS_DIR, settings.PLOTS_DIR)
    print(f"best learning rate on validation: {best:g} (mean loss {losses[best]:.4f} nats, "
          f"{settings.LR_ABLATION_SEEDS} seeds)")
