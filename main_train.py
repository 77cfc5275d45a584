"""Train one model and save its weights; with LR_ABLATION_MODE, sweep the learning rate instead.

python3 main_train.py [recipes/NAME.toml] [--KEY=value ...]
"""
import time

START = time.perf_counter()     # before the slow imports, so that the printed time is all of it

from pathlib import Path

import ablation
import checkpoint
import config
import parallel
import training
from files import InputError, check_writable, peak_memory, run_script, write_result


def main(argv):
    settings = config.load(argv, __doc__)
    check_writable(settings.WEIGHTS_DIR, settings.RESULTS_DIR, settings.PLOTS_DIR)
    parallel.set_up(settings)
    if settings.LR_ABLATION_MODE:
        ablation.learning_rate(settings)
        return
    if settings.QAT_ENABLE and not settings.POWER_OF_TWO_SCALES:
        raise InputError("POWER_OF_TWO_SCALES = False has no integers to save: it is for the "
                         "ablations; set it to True to train a model")
    marks = [("imports", time.perf_counter())]
    train, val, test = ablation.load_splits(settings)
    recipe = training.recipe_of(settings)
    kind = (f"W{settings.WEIGHT_BITS}A{settings.ACTIVATION_BITS}" if settings.QAT_ENABLE
            else "float32")
    print(f"{settings.DATASET}: {len(train.labels):,} train, {len(val.labels):,} val, "
          f"{len(test.labels):,} test images; {'-'.join(map(str, settings.LAYER_SIZES))}, {kind}")
    marks.append(("data", time.perf_counter()))
    (run,), fit_seconds = training.fit(train, val, [settings.LEARNING_RATE], [settings.SEED],
                                       recipe)
    parallel.end_all_but_first()
    if run.status == "diverged":
        raise InputError(f"training diverged, or got no better than guessing, at LEARNING_RATE = "
                         f"{settings.LEARNING_RATE:g}; nothing was saved, choose another rate")
    print(f"{run.status} after {len(run.history)} epochs; best epoch {run.best_epoch}: "
          f"val loss {run.val_loss:.6f} nats, val accuracy {100 * run.val_acc:.2f} %")
    marks.append(("fit", time.perf_counter()))
    path = checkpoint.default_path(settings.WEIGHTS_DIR, settings.QAT_ENABLE, settings.WEIGHT_BITS)
    size, metrics = ablation.save_run(path, run.params, run.scales, recipe.spec, settings,
                                      val=val, test=test)
    marks.append(("evaluate and save", time.perf_counter()))
    print(f"saved model: val loss {metrics['val_loss']:.6f} nats "
          f"({metrics['val_loss'] - run.val_loss:+g} from training), "
          f"test accuracy {100 * metrics['test_acc']:.2f} %")
    starts = [START, *(mark for _, mark in marks)]
    seconds = {name: mark - start for (name, mark), start in zip(marks, starts)} | fit_seconds
    print(f"wrote {path} ({size:,} bytes), {starts[-1] - START:.1f} s from start, "
          f"{fit_seconds['epochs']:.1f} s of it epochs")
    write_result(Path(settings.RESULTS_DIR) / "train.json", settings, run=ablation.summary(run),
                 metrics=metrics, file_bytes=size, seconds=seconds, wall_seconds=starts[-1] - START,
                 peak_memory_bytes=peak_memory())


if __name__ == "__main__":
    run_script(main)
