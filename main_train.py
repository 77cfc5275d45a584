"""Train one model and save its weights; with LR_ABLATION_MODE, sweep the learning rate instead.

python3 main_train.py [recipes/NAME.toml] [--KEY=value ...]
"""
if __name__ == "__main__":
    import os
    import sys
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))     # not with PYTHONSAFEPATH
    from machine import script
    script.begin()

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

START = time.perf_counter()     # before the slow imports, so that the printed time is all of it

import config  # JAX is imported below, once the switches are known to be legal
from machine.files import InputError, check_writable


def main(argv):
    settings = config.load(argv, __doc__)
    if settings.LR_ABLATION_MODE:
        import ablation
        ablation.run(ablation.learning_rate, settings)
        return
    check_writable(settings.RUNS_DIR, settings.WEIGHTS_DIR, settings.RESULTS_DIR)
    if settings.QAT_ENABLE and not settings.POWER_OF_TWO_SCALES:
        raise InputError("POWER_OF_TWO_SCALES = False has no integers to save: it is for the "
                         "ablations; set it to True to train a model")
    from data import find, load
    there = all(find(settings.DATA_DIR))        # else TensorFlow makes it, but not beside JAX
    loading = there and ThreadPoolExecutor().submit(load, settings.DATA_DIR)
    from machine.facts import peak_memory
    from report.results import copy, is_of, write_result
    from runner import (
        experiment,  # and with it, meanwhile, JAX
        state as runs,
    )
    settings = experiment.set_up(settings)
    imported = time.perf_counter()
    data = experiment.load_data(settings, loading and loading.result())
    del loading                                 # it holds the images as they were before the split
    print(f"{data.name}: {len(data.train.labels):,} train, {len(data.val.labels):,} val, "
          f"{len(data.test.labels):,} test images; "
          f"{'-'.join(map(str, settings.LAYER_SIZES))}, {experiment.describe(settings)}, "
          f"products in {settings.COMPUTE}")
    loaded = time.perf_counter()
    (outcome,), folder, seconds = experiment.run(settings, "train", [{}], data)
    row = outcome.row
    experiment.check_usable(row, folder)
    print(f"{row['status']} after {row['epochs']} epochs; best epoch {row['best_epoch']}: "
          f"val loss {row['history']['val_loss'][row['best_epoch'] - 1]:.6f} nats, "
          f"val accuracy {100 * row['val_acc']:.2f} %")
    print(f"saved model: val loss {row['val_loss']:.6f} nats ({row['reload_change']:+g} from "
          f"training), test accuracy {100 * row['test_acc']:.2f} %")
    is_reference = experiment.save(outcome, folder, data)
    wall = time.perf_counter() - START
    seconds = {"imports": imported - START, "data": loaded - imported, **seconds,
               "evaluate and save": wall - (loaded - START) - seconds["compile"]
               - seconds["epochs"]}
    print(f"{wall:.1f} s from start, {seconds['epochs']:.1f} s of it epochs")
    write_result(folder / "train.json", settings._asdict(), row=row,
                 dataset={"name": data.name, "sha256": data.sha256}, seconds=seconds,
                 wall_seconds=wall, peak_memory_bytes=peak_memory())
    if is_reference and not is_of(row["sha256"], Path(settings.RESULTS_DIR) / "train.json"):
        copy(folder / "train.json", settings.RESULTS_DIR)
    runs.finish(folder)


if __name__ == "__main__":
    script.run(main)
