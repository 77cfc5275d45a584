"""The studies: each is a list of points; its rows go to results/NAME.json, then into its plot.

python3 ablation.py lr           learning rate against epochs and validation loss
python3 ablation.py quant        quantized against unquantized: loss, accuracy, file size
python3 ablation.py optimizer    SGD, SGD with momentum and AdamW, each over its own rates
python3 ablation.py plots        draw every plot again from results/
"""
import signal

if __name__ == "__main__":      # until run_script takes over, Ctrl-C just ends, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from pathlib import Path

import config
from files import InputError, check_writable


def seeds_of(settings):
    """The seeds of a study: SEED, SEED + 1, ..."""
    return [settings.SEED + i for i in range(settings.ABLATION_SEEDS)]


def best_rate(rows, folder):
    """The rate of least mean validation loss, chosen among rates whose runs were all usable.

    Raises:
      InputError: there is none; the run in `folder` has ended.
    """
    import numpy as np

    import experiment
    import runs
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
    import experiment
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
    "AdamW": ({"OPTIMIZER": "adamw"}, (0.00316, 0.001, 0.000316, 0.0001)),
}


def optimizer(settings, data):
    """SGD, SGD with momentum and AdamW, each at its own best rate, chosen on validation."""
    import experiment
    import stats
    points = [{**switches, "LEARNING_RATE": rate, "SEED": seed,
               "MAX_EPOCHS": settings.ABLATION_MAX_EPOCHS}
              for switches, rates in OPTIMIZERS.values() for rate in rates
              for seed in seeds_of(settings)]
    outcomes, folder, seconds = experiment.run(settings, "optimizer", points, data)
    results, at = {}, 0
    for name, (_, rates) in OPTIMIZERS.items():
        rows = [outcome.row for outcome in outcomes[at:at + len(rates) * settings.ABLATION_SEEDS]]
        at += len(rows)
        best = best_rate(rows, folder)
        chosen = [row for row in rows if row["rate"] == best]
        results[name] = {"rows": rows, "best_rate": best,
                         **{key: stats.summarize([row[key] for row in chosen])
                            for key in ("val_loss", "test_acc", "epochs")},
                         "chosen": [row["val_loss"] for row in chosen]}
    first, *others = results
    comparisons = {name: stats.compare_seeds(results[first]["chosen"], results[name]["chosen"])
                   for name in others}
    for name, entry in results.items():
        del entry["chosen"]
        print(f"{name}: best rate {entry['best_rate']:g}, val loss "
              f"{stats.spread(entry['val_loss'], 4)} nats, test accuracy "
              f"{stats.spread(entry['test_acc'], 2, 100)} %")
    return "optimizer", folder, {"optimizers": results, "val_loss_against_sgd": comparisons,
                                 "seconds": seconds}


def quantized_against_unquantized(settings, data):
    """QAT, post-training quantization and float32 on the same seeds, each judged from its file."""
    import experiment
    import stats
    seeds = seeds_of(settings)
    points = [{"QAT_ENABLE": quantized, "SEED": seed} for quantized in (False, True)
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


def run(study, settings):
    """Run one study: its result and plot go to its folder in RUNS_DIR and, unless a better result
    is there, to RESULTS_DIR and PLOTS_DIR."""
    import experiment
    import plotting
    import results
    import runs
    check_writable(settings.RUNS_DIR, settings.RESULTS_DIR, settings.PLOTS_DIR)
    experiment.set_up(settings)
    data = experiment.load_data(settings)
    name, folder, content = study(settings, data)
    results.write_result(folder / f"{name}.json", settings._asdict(),
                         rank=experiment.completed(content), **content,
                         dataset={"name": data.name, "sha256": data.sha256})
    plot = plotting.draw(name, folder, folder)
    if results.publish(folder / f"{name}.json", settings.RESULTS_DIR):
        results.copy(plot, settings.PLOTS_DIR)
    runs.finish(folder)


def draw_all(settings):
    """Draw every plot whose result is there."""
    import plotting
    found = [name for name in plotting.PLOTS
             if (Path(settings.RESULTS_DIR) / f"{name}.json").exists()]
    if not found:
        raise InputError(f"{settings.RESULTS_DIR} holds no result to draw; run a study first")
    for name in found:
        plotting.draw(name, settings.RESULTS_DIR, settings.PLOTS_DIR)


STUDIES = {"lr": learning_rate, "quant": quantized_against_unquantized, "optimizer": optimizer}


def main(argv):
    name, switches = (argv[0], argv[1:]) if argv and argv[0] in [*STUDIES, "plots"] else ("", argv)
    settings = config.load(switches, __doc__)
    if not name:
        raise InputError(f"name a study first: {', '.join([*STUDIES, 'plots'])}")
    if name == "plots":
        draw_all(settings)
    else:
        run(STUDIES[name], settings)


if __name__ == "__main__":
    config.run_script(main)
