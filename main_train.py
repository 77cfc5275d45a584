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

START = time.perf_counter()     # before the slow imports, so that the printed time is all of it

import config  # JAX is imported below, once the switches are known to be legal
import data
import plan
from machine.facts import peak_memory
from machine.files import InputError, check_writable
from report.results import write_result
from runner import keep


def train(settings, given):
    """Train, judge and save the model of these switches; print what it reaches.

    Args:
      settings: Config.
      given: names of the switches that a recipe or the command line set.
    """
    with ThreadPoolExecutor() as pool:          # data are unpacked while JAX is imported
        there = data.is_there(settings.DATA_DIR)        # else TensorFlow makes it, not beside JAX
        loading = pool.submit(keep.read_data, settings) if there else None
        from runner import adapt, experiment, source, state
    settings = experiment.set_up(settings)
    imported = time.perf_counter()
    found = source.load_data(settings, loading.result() if loading else None)
    settings = source.suit(settings, given, found)
    del loading                                 # it holds the images as they were before the split
    hyper = source.hyper_of(settings, found)
    source.say(f"{found.name}: {len(found.train.labels):,} train, {len(found.val.labels):,} val, "
               f"{len(found.test.labels):,} test examples; "
               f"{plan.describe(hyper.LAYERS)}, {experiment.describe(settings)}, "
               f"products in {settings.COMPUTE}")
    if settings.COORDINATOR and adapt.takes_all(settings, found):
        raise InputError(f"{len(found.val.labels)} validation examples are so few that the model "
                         "is trained on them, too, by one process; leave COORDINATOR empty, or set "
                         "ADAPT = False")
    loaded = time.perf_counter()
    (outcome,), folder, seconds = experiment.run(settings, "train", [{}], found)
    experiment.check_usable(outcome.row, folder)
    row = outcome.row
    print(f"{row['status']} after {row['epochs']} epochs; best epoch {row['best_epoch']}: "
          f"val loss {row['val_loss']:.6f} nats, val accuracy {100 * row['val_acc']:.2f} %")
    words = f"val loss {row['val_loss']:.6f} nats ({row['reload_change']:+g} from training), "
    if adapt.takes_all(settings, found):
        outcome = experiment.train_on_all(outcome, settings, found, folder)
        row, words = outcome.row, f"loss {outcome.row['reload_change']:+g} from training, "
    saved = keep.save(outcome, folder, found)
    print(f"saved model: {words}test accuracy {100 * row['test_acc']:.2f} %\n{saved}")
    wall = time.perf_counter() - START
    seconds = {"imports": imported - START, "data": loaded - imported, **seconds,
               "evaluate and save": wall - (loaded - START) - seconds["compile"]
               - seconds["epochs"]}
    write_result(folder / "train.json", settings._asdict(), [row],
                 dataset=keep.dataset_of(found), seconds=seconds, wall_seconds=wall,
                 peak_memory_bytes=peak_memory())
    keep.publish(folder / "train.json", settings.RESULTS_DIR)
    state.finish(folder)
    print(f"{wall:.1f} s from start, {seconds['epochs']:.1f} s of it epochs")


def main(argv):
    settings = config.load(argv, __doc__)
    if settings.LR_ABLATION_MODE:
        import ablation
        ablation.run("lr", settings, config.given(argv))
        return
    check_writable(settings.RUNS_DIR, settings.WEIGHTS_DIR, settings.RESULTS_DIR)
    if settings.QAT_ENABLE and not settings.POWER_OF_TWO_SCALES:
        raise InputError("POWER_OF_TWO_SCALES = False has no integers to save: it is for the "
                         "ablations; set it to True to train a model")
    train(settings, config.given(argv))


if __name__ == "__main__":
    script.run(main)
