"""Whether gradients of bfloat16 products cost accuracy: against float32's, the same seeds.

python3 -m benchmarks.compute [recipes/NAME.toml ...] [--KEY=value ...]   writes results/compute.json

No recipe named: the default network and two of few bits. ABLATION_SEEDS runs each, side by side,
resumed where they were left; a recipe measured before keeps its row until it is measured again.
"""
from pathlib import Path

import config
from machine import script
from machine.files import InputError, check_writable
from report import results, stats
from runner import experiment, state as runs

DEFAULT = "config.py"           # what the switches give without a recipe
RECIPES = (DEFAULT, "recipes/ternary.toml", "recipes/4kB.toml")
PAIR = ("float32", "bfloat16")  # int8 gives the bits of bfloat16: tested


def measure(name, settings, data):
    """An entry of the result: the test accuracies of both, by seed, and their paired difference."""
    seeds = range(settings.SEED, settings.SEED + settings.ABLATION_SEEDS)
    points = [{"COMPUTE": compute, "SEED": seed} for compute in PAIR for seed in seeds]
    outcomes, folder, _ = experiment.run(settings, f"compute-{Path(name).stem}", points, data)
    for outcome in outcomes:
        experiment.check_usable(outcome.row, folder)
    accuracies = [outcome.row["test_acc"] for outcome in outcomes]
    full, narrow = accuracies[:len(seeds)], accuracies[len(seeds):]
    runs.finish(folder)
    return {"name": name, "model": experiment.describe(settings), "seeds": list(seeds),
            **dict(zip(PAIR, (full, narrow))), "comparison": stats.compare_seeds(full, narrow)}


def main(argv):
    switches = [argument for argument in argv if not argument.endswith(".toml")]
    names = [argument for argument in argv if argument.endswith(".toml")] or RECIPES
    named = {name: config.load([*([] if name == DEFAULT else [name]), *switches], __doc__)
             for name in names}
    settings = next(iter(named.values()))
    for name, given in named.items():
        if not (given.QAT_ENABLE and given.POWER_OF_TWO_SCALES):
            raise InputError(f"{name}: only QAT_ENABLE and POWER_OF_TWO_SCALES = True has codes to "
                             "compute with")
    check_writable(settings.RUNS_DIR, settings.RESULTS_DIR)
    experiment.set_up(settings)
    path = Path(settings.RESULTS_DIR) / "compute.json"
    for name, given in named.items():
        data = experiment.load_data(given)
        entry = measure(name, given, data)
        print(f"{name}: bfloat16 minus float32: {stats.describe(entry['comparison'])}")
        kept = results.read_result(path)["entries"] if path.exists() else []
        entries = [other for other in kept if other["name"] != name] + [entry]
        results.write_result(path, {}, entries=sorted(entries, key=lambda e: e["name"]),
                             dataset={"name": data.name, "sha256": data.sha256})


if __name__ == "__main__":
    script.run(main)
