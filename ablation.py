"""The studies: each is a list of points; its rows go to results/NAME.json, then into its plot.

python3 ablation.py lr           learning rate against epochs and validation loss
python3 ablation.py quant        quantized against unquantized: loss, accuracy, file size
python3 ablation.py optimizer    SGD, SGD with momentum and AdamW, each over its own rates
python3 ablation.py bits         QAT and post-training quantization from 8 bits a weight to 1
python3 ablation.py frontier     accuracy against whole-file bytes, over shape, bits and input
python3 ablation.py averaging    how much scales that flip disturb the last epochs, and the remedy
python3 ablation.py plots        draw every plot again from results/
"""
if __name__ == "__main__":
    import os
    import sys
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))     # not with PYTHONSAFEPATH
    from machine import script
    script.begin()

from pathlib import Path

import config
from machine.files import InputError, check_writable


def seeds_of(settings):
    """The seeds of a study: SEED, SEED + 1, ..."""
    return [settings.SEED + i for i in range(settings.ABLATION_SEEDS)]


def best_rate(rows, folder):
    """The rate of least mean validation loss, chosen among rates whose runs were all usable.

    Raises:
      InputError: there is none; the run in `folder` has ended.
    """
    import numpy as np

    from runner import experiment, state as runs
    losses = {}
    for row in rows:
        losses.setdefault(row["rate"], []).append(
            row["val_loss"] if row["status"] in experiment.USABLE else np.inf)
    best = min(losses, key=lambda rate: np.mean(losses[rate]))
    if not np.isfinite(np.mean(losses[best])):
        runs.finish(folder)
        raise InputError(f"no learning rate of {', '.join(f'{rate:g}' for rate in losses)} gave a "
                         "usable model with every seed; choose others")
    return best


def learning_rate(settings, data):
    """Epochs to stop and best validation loss against the learning rate."""
    from runner import experiment
    points = [{"LEARNING_RATE": rate, "SEED": seed, "MAX_EPOCHS": settings.ABLATION_MAX_EPOCHS}
              for rate in settings.LR_ABLATION_RATES for seed in seeds_of(settings)]
    outcomes, folder, seconds = experiment.run(settings, "lr_ablation", points, data)
    rows = [outcome.row for outcome in outcomes]
    best = best_rate(rows, folder)
    capped = sum(row["status"] == "capped" for row in rows)
    if capped:
        print(f"{capped} of {len(rows)} runs were cut at ABLATION_MAX_EPOCHS = "
              f"{settings.ABLATION_MAX_EPOCHS}; they would have gone on")
    print(f"best learning rate on validation: {best:g} (mean of {settings.ABLATION_SEEDS} seeds)")
    return "lr_ablation", folder, {"rows": rows, "best_rate": best, "seconds": seconds}


# Each optimizer's switches and learning rates, in half decades around its usual best.
OPTIMIZERS = {
    "SGD": ({"OPTIMIZER": "sgd", "MOMENTUM": 0.0}, (1.0, 0.316, 0.1, 0.0316)),
    "SGD, momentum 0.9": ({"OPTIMIZER": "sgd", "MOMENTUM": 0.9}, (0.1, 0.0316, 0.01, 0.00316)),
    "AdamW": ({"OPTIMIZER": "adamw", "WEIGHT_DECAY": 1e-4}, (0.00316, 0.001, 0.000316, 0.0001)),
}


def optimizer(settings, data):
    """SGD, SGD with momentum and AdamW, each at its own best rate, chosen on validation."""
    from report import stats
    from runner import experiment
    points = [{**switches, "LEARNING_RATE": rate, "SEED": seed,
               "MAX_EPOCHS": settings.ABLATION_MAX_EPOCHS}
              for switches, rates in OPTIMIZERS.values() for rate in rates
              for seed in seeds_of(settings)]
    outcomes, folder, seconds = experiment.run(settings, "optimizer", points, data)
    results, losses, at = {}, {}, 0
    for name, (_, rates) in OPTIMIZERS.items():
        rows = [outcome.row for outcome in outcomes[at:at + len(rates) * settings.ABLATION_SEEDS]]
        at += len(rows)
        best = best_rate(rows, folder)
        chosen = [row for row in rows if row["rate"] == best]
        losses[name] = [row["val_loss"] for row in chosen]
        results[name] = {"rows": rows, "best_rate": best,
                         **{key: stats.summarize([row[key] for row in chosen])
                            for key in ("val_loss", "test_acc", "epochs")}}
    first, *others = results
    comparisons = {name: stats.compare_seeds(losses[first], losses[name]) for name in others}
    for name, entry in results.items():
        print(f"{name}: best rate {entry['best_rate']:g}, val loss "
              f"{stats.spread(entry['val_loss'], 4)} nats, test accuracy "
              f"{stats.spread(entry['test_acc'], 2, 100)} %")
    return "optimizer", folder, {"optimizers": results, "val_loss_against_sgd": comparisons,
                                 "seconds": seconds}


NO_CODES = {"FILE_FORMAT": "npz", "COMPUTE": "float32"}   # what is not integers needs these
FLOAT32 = {"QAT_ENABLE": False, **NO_CODES}


def quantized_against_unquantized(settings, data):
    """QAT, post-training quantization and float32 on the same seeds, each judged from its file."""
    from report import stats
    from runner import experiment
    seeds = seeds_of(settings)
    points = [{**switches, "SEED": seed} for switches in (FLOAT32, {"QAT_ENABLE": True})
              for seed in seeds]
    outcomes, folder, seconds = experiment.run(settings, "quant_vs_unquant", points, data)
    for outcome in outcomes:
        experiment.check_usable(outcome.row, folder)
    models = {"float32": outcomes[:len(seeds)], "qat": outcomes[len(seeds):]}
    models["ptq"] = [experiment.quantize_after(outcome, qat.settings, data)
                     for outcome, qat in zip(models["float32"], models["qat"])]
    width = experiment.describe(models["qat"][0].settings)
    labels = {"float32": "float32", "ptq": f"{width}\nafter training", "qat": f"{width}\nQAT"}
    entries = {name: {"label": labels[name], "rows": [outcome.row for outcome in models[name]]}
               for name in labels}
    for entry in entries.values():
        for key in ("test_acc", "val_loss"):
            entry[key] = stats.summarize([row[key] for row in entry["rows"]])
    comparisons = {}
    for name, base in (("ptq", "float32"), ("qat", "float32"), ("qat", "ptq")):
        a, b = ([row["test_acc"] for row in entries[key]["rows"]] for key in (base, name))
        comparisons[f"{name} - {base}"] = {
            "test_acc": stats.compare_seeds(a, b),
            "mcnemar": [stats.mcnemar(x.correct, y.correct)
                        for x, y in zip(models[base], models[name])]}
    for name, entry in entries.items():
        changes = [abs(row["reload_change"]) for row in entry["rows"] if "reload_change" in row]
        sizes = stats.summarize([row.get("file_bytes") for row in entry["rows"]])
        print(f"{name:8s} test accuracy {stats.spread(entry['test_acc'], 3, 100)} %, val loss "
              f"{stats.spread(entry['val_loss'], 6)} nats, {stats.spread(sizes, 0)} bytes"
              + (f", reloading changes val loss by {max(changes):g}" if changes else ""))
    for name, comparison in comparisons.items():
        print(f"{name}: {stats.describe(comparison['test_acc'])}")
    return "quant_vs_unquant", folder, {"seeds": seeds, "models": entries,
                                        "comparisons": comparisons, "seconds": seconds}


WIDTHS = (8, 6, 4, 3, 2, 1)     # bits of a weight
# In float32, as free scales must be: then scales are all that differs.
QAT = {"QAT_ENABLE": True, "SCALES": "learned", "FREEZE_SCALES": 0.25, "PER_CHANNEL": True,
       "POWER_OF_TWO_SCALES": True, "COMPUTE": "float32"}
# What is trained at each width: QAT as above, and with one thing changed.
TRAININGS = {"learned": {}, "calibrated": {"SCALES": "calibrated"},
             "per-tensor": {"PER_CHANNEL": False},
             "free": {"POWER_OF_TWO_SCALES": False, **NO_CODES}}
# Of two models with the same seeds, (base, other): other - base.
DIFFERENCES = {"learned - calibrated": ("calibrated", "learned"),
               "calibrated - PTQ": ("ptq", "calibrated"),
               "free - power-of-two": ("learned", "free"),
               "per-tensor - per-channel": ("learned", "per-tensor")}


def _accuracies(rows):
    """The test accuracy of each row; None for a run without a usable model."""
    from runner import experiment
    return [row["test_acc"] if row.get("status", "stopped") in experiment.USABLE else None
            for row in rows]


def _entry(outcomes):
    """The rows of one model's seeds, and their test accuracy."""
    from report import stats
    rows = [outcome.row for outcome in outcomes]
    return {"rows": rows, "test_acc": stats.summarize(_accuracies(rows))}


def bits(settings, data):
    """QAT at each width with learned, calibrated, per-tensor and free scales; float32, rounded."""
    from report import stats
    from runner import experiment
    seeds = seeds_of(settings)
    cells = [(width, name) for width in WIDTHS for name in TRAININGS]
    points = [{**FLOAT32, "SEED": seed} for seed in seeds]
    points += [{**QAT, **TRAININGS[name], "WEIGHT_BITS": width, "SEED": seed}
               for width, name in cells for seed in seeds]
    outcomes, folder, seconds = experiment.run(settings, "bits", points, data)
    float32, *groups = [outcomes[at:at + len(seeds)] for at in range(0, len(points), len(seeds))]
    trained, widths = dict(zip(cells, groups)), []
    for outcome in float32:                     # without it there is nothing to round
        experiment.check_usable(outcome.row, folder)
    for width in WIDTHS:
        models = {name: trained[width, name] for name in TRAININGS}
        models["ptq"] = [experiment.quantize_after(outcome, qat.settings, data)
                         for outcome, qat in zip(float32, models["calibrated"])]
        entries = {name: _entry(group) for name, group in models.items()}
        comparisons = {words: stats.compare_seeds(*(_accuracies(entries[name]["rows"])
                                                    for name in pair))
                       for words, pair in DIFFERENCES.items()}
        widths.append({"weight_bits": width, "models": entries, "comparisons": comparisons})
        print(f"{width} bits: test accuracy in %: " + ", ".join(
            f"{name} {stats.spread(entry['test_acc'], 2, 100)}" for name, entry in entries.items()))
        for words, comparison in comparisons.items():
            print(f"  {words}: {stats.describe(comparison)}")
    return "bits", folder, {"seeds": seeds, "float32": _entry(float32), "widths": widths,
                            "seconds": seconds}


# Networks from 2 to 60 kB: INPUT, WEIGHT_BITS, hidden widths; and how all of them are trained.
FRONTIER = tuple(
    {"INPUT": side, "WEIGHT_BITS": weight_bits, "ACTIVATION_BITS": 8,
     "LAYER_SIZES": (side**2, *hidden, 10)} for side, weight_bits, hidden in (
        (10, 2, (80, 56, 36)), (10, 3, (40, 32, 20)), (10, 3, (62, 44, 28)), (10, 4, (40, 32, 20)),
        (12, 2, (112, 72, 48)), (12, 3, (72, 54, 32)), (12, 4, (60, 48, 28)),
        (12, 3, (104, 72, 48)), (14, 2, (200, 112, 64)), (14, 3, (120, 80, 52)),
        (14, 4, (96, 64, 48)), (14, 3, (192, 128)), (28, 2, (128, 64)), (28, 3, (128, 64)),
        (28, 4, (128, 64))))
BRIEFLY = {"OPTIMIZER": "adamw", "LEARNING_RATE": 0.004, "SCHEDULE": "cosine", "BATCH_SIZE": 256,
           "MAX_EPOCHS": 25, "PATIENCE": 25, "METRIC": "train_loss", "WEIGHT_DECAY": 0.0,
           "SCALES": "calibrated", "AVERAGING": 0.998, "AUGMENT": 0.5, "FILE_FORMAT": "nqat"}


def frontier(settings, data):
    """Test accuracy against the bytes of the whole file, of each network in FRONTIER."""
    from report import stats
    from runner import experiment
    seeds = seeds_of(settings)
    points = [{**BRIEFLY, **switches, "SEED": seed} for switches in FRONTIER for seed in seeds]
    outcomes, folder, seconds = experiment.run(settings, "frontier", points, data)
    networks = []
    for i, switches in enumerate(FRONTIER):
        group = outcomes[i * len(seeds):(i + 1) * len(seeds)]
        largest = max((outcome.row["file_bytes"] for outcome in group
                       if "file_bytes" in outcome.row), default=None)   # None: no run made a file
        networks.append({**switches, **_entry(group), "file_bytes": largest})
        print(f"{switches['LAYER_SIZES']} {experiment.describe(group[0].settings)}: test accuracy "
              f"{stats.spread(networks[-1]['test_acc'], 2, 100)} %, {largest} bytes")
    return "frontier", folder, {"seeds": seeds, "networks": networks, "seconds": seconds}


LONG = {"MAX_EPOCHS": 100, "PATIENCE": 100}     # what flipping costs shows late
LATE = 20                       # last epochs, whose spread says how much flipping scales disturb
SCALES = {"calibrated": {"SCALES": "calibrated"},
          "learned to the end": {"SCALES": "learned", "FREEZE_SCALES": 1.0},
          "learned, then frozen": {"SCALES": "learned", "FREEZE_SCALES": 0.25}}
AVERAGING = {(scales, words): {**switches, "AVERAGING": decay}
             for scales, switches in SCALES.items()
             for words, decay in (("last", 0.0), ("averaged", 0.998))}


def averaging(settings, data):
    """The last epochs of a narrow net with and without averaged weights, by kind of scales."""
    import numpy as np

    from report import stats
    from runner import experiment
    seeds = seeds_of(settings)
    points = [{**BRIEFLY, **LONG, **FRONTIER[5], **switches, "SEED": seed}
              for switches in AVERAGING.values() for seed in seeds]
    outcomes, folder, seconds = experiment.run(settings, "averaging", points, data)
    models = []
    for i, name in enumerate(AVERAGING):
        entry = _entry(outcomes[i * len(seeds):(i + 1) * len(seeds)])
        late = [row["history"]["val_acc"][-LATE:] for row in entry["rows"]]
        models.append({**entry, "scales": name[0], "weights": name[1],
                       "late_mean": stats.summarize([np.mean(part) for part in late]),
                       "late_std": stats.summarize([np.std(part) for part in late])})
        print(f"scales {name[0]}, weights {name[1]}: val accuracy of the last {LATE} epochs "
              f"{stats.spread(models[i]['late_mean'], 2, 100)} %, which vary by "
              f"{stats.spread(models[i]['late_std'], 3, 100)} pp")
    return "averaging", folder, {"seeds": seeds, "models": models, "seconds": seconds,
                                 "late_epochs": LATE, "network": FRONTIER[5]}


def run(study, settings):
    """Run one study: its result and plot go to its folder in RUNS_DIR and, unless a better result
    is there, to RESULTS_DIR and PLOTS_DIR."""
    from report import draw, results
    from runner import experiment, state as runs
    check_writable(settings.RUNS_DIR, settings.RESULTS_DIR, settings.PLOTS_DIR)
    settings = experiment.set_up(settings)
    data = experiment.load_data(settings)
    name, folder, content = study(settings, data)
    results.write_result(folder / f"{name}.json", settings._asdict(),
                         rank=experiment.completed(content), **content,
                         dataset={"name": data.name, "sha256": data.sha256})
    drawn = name in draw.PLOTS
    if drawn:
        draw.draw(name, folder, folder)
    if results.publish(folder / f"{name}.json", settings.RESULTS_DIR) and drawn:
        draw.draw(name, settings.RESULTS_DIR, settings.PLOTS_DIR)   # beside the recipes there
    runs.finish(folder)


def draw_all(settings):
    """Draw every plot whose result is there."""
    from report import draw
    found = [name for name in draw.PLOTS
             if (Path(settings.RESULTS_DIR) / f"{name}.json").exists()]
    if not found:
        raise InputError(f"{settings.RESULTS_DIR} holds no result to draw; run a study first")
    for name in found:
        draw.draw(name, settings.RESULTS_DIR, settings.PLOTS_DIR)


STUDIES = {"lr": learning_rate, "quant": quantized_against_unquantized, "optimizer": optimizer,
           "bits": bits, "frontier": frontier, "averaging": averaging}


def main(argv):
    words = config.words(argv)
    settings = config.load(argv, __doc__, also=words)
    if len(words) != 1 or words[0] not in (*STUDIES, "plots"):
        raise InputError(f"name one study: {', '.join(STUDIES)}, or plots; "
                         f"not {' '.join(words) or 'none'}")
    if words == ["plots"]:
        draw_all(settings)
    else:
        run(STUDIES[words[0]], settings)


if __name__ == "__main__":
    script.run(main)
