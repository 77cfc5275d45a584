"""Train recipes over seeds: what each claims, in results/, its own header and weights/recipes/.

python3 -m benchmarks.recipes [recipes/NAME.toml ...] [--KEY=value ...]

No recipe named: all of recipes/. ABLATION_SEEDS runs side by side, resumed where they were left.
On another data set (--DATA_DIR=FOLDER) they keep their headers, and the weights files go into a
folder of its own in weights/. A data set's own recipes are in a folder of its name, such as
recipes/fashion_mnist/.
"""
if __name__ == "__main__":
    from machine import script
    script.begin()

import itertools
import time
from pathlib import Path

import config
from machine import facts, script
from machine.files import InputError, check_writable, read_bytes, write_atomically

MAX_BYTES = 10_000               # of a recipe, as config reads it
HOME = "MNIST"                  # the data set that the recipes in recipes/ were tuned on
RESULTS = "recipes"             # results/recipes.json; recipes_NAME.json of another data set
FOLDER = config.at_home("recipes")


def folder_name(dataset):
    """A data set's name in the names of files and folders."""
    return dataset.lower().replace("-", "_")


def result_name(dataset):
    """The stem of the result of all recipes on a data set."""
    return RESULTS if dataset == HOME else f"{RESULTS}_{folder_name(dataset)}"


def _arguments(path, dataset):
    """What names a recipe on a data set, in a command."""
    return f"{path}" if dataset == HOME else f"{path} --DATA_DIR=FOLDER"


def claim(path, dataset, seeds):
    """The command that measures what a recipe claims on a data set."""
    return f"python3 -m benchmarks.recipes {_arguments(path, dataset)} --ABLATION_SEEDS={seeds}"


def header(rows, path, dataset):
    """The comment that opens a recipe: its claim, measured.

    Args:
      rows: of the recipe.
      path: of the recipe.
      dataset: its name.
    Returns:
      str, lines of a comment.
    """
    from report import stats
    accuracy = stats.spread(stats.summarize(rows, "test_acc"), 2, 100)
    return (f"# {accuracy} % of {dataset}'s test images, {len(rows)} seeds, "
            f"{max(row['file_bytes'] for row in rows):,} bytes at most.\n"
            f"# {sum(row['seconds'] for row in rows):.0f} s for all seeds side by side: "
            f"{rows[0]['machine']}.\n"
            f"# One run: python3 main_train.py {_arguments(path, dataset)}\n"
            f"# The claim: {claim(path, dataset, len(rows))}\n")


def _with_header(text, lines):
    """A recipe's text with other lines for the comment that opens it."""
    rest = "".join(itertools.dropwhile(lambda line: line.startswith("#"),
                                       text.splitlines(keepends=True)))
    return f"{lines}\n{rest.lstrip()}"


def measure(path, settings, data):
    """Train a recipe's seeds: its rows, the first seed's Outcome, and the folder."""
    from runner import experiment, keep
    label, default, here = path.stem, config.load([]), facts.environment()
    points = [{"label": label, "SEED": settings.SEED + i} for i in range(settings.ABLATION_SEEDS)]
    outcomes, folder, seconds = experiment.run(settings, f"recipe-{label}", points, data)
    for outcome in outcomes:
        experiment.check_usable(outcome.row, folder)
        changes = {key: value for key, value in outcome.settings._asdict().items()
                   if value != getattr(default, key) and not key.endswith("_DIR")
                   and key not in (*keep.BY_MACHINE, "ABLATION_SEEDS")}
        outcome.row.update(changes=changes, seconds=sum(seconds.values()) / len(points),
                           machine=f"{here['cpu']}, {here['cores']} cores")
    return [outcome.row for outcome in outcomes], outcomes[0], folder


def _others(path, label):
    """The rows of the other recipes that a result holds."""
    from report import results
    if not Path(path).exists():
        return []
    return [row for row in results.read_result(path)["rows"] if row["label"] != label]


def main(argv):
    paths = [Path(word) for word in argv if word.endswith(".toml")]
    switches = [word for word in argv if not word.endswith(".toml")]
    if "--help" in argv:
        config.load(argv, __doc__)
    paths = paths or sorted(Path(FOLDER).glob("*.toml"))
    if not paths:
        raise InputError("no recipe is here; name one: recipes/NAME.toml")
    named = {path: config.load([str(path), *switches], __doc__) for path in paths}
    for path, settings in named.items():
        if not settings.POWER_OF_TWO_SCALES:
            raise InputError(f"{path}: POWER_OF_TWO_SCALES = False has no integers to save")
    from report import results
    from runner import experiment, keep, source
    from runner.state import finish
    settings = named[paths[0]]
    check_writable(settings.RUNS_DIR, settings.RESULTS_DIR, settings.WEIGHTS_DIR)
    experiment.set_up(settings)
    for path, settings in named.items():
        settings = experiment.decide(settings)
        start = time.perf_counter()
        data = source.load_data(settings)
        print(f"{path} on {data.name}")
        home, shelf = path.resolve().parent, Path(FOLDER).resolve()
        if home.parent == shelf and home.name != folder_name(data.name):
            raise InputError(f"{path} is not tuned on {data.name}; give its --DATA_DIR")
        stem = result_name(data.name)
        rows, outcome, folder = measure(path, settings, data)
        target = Path(settings.RESULTS_DIR) / f"{stem}.json"
        every = sorted(_others(target, path.stem) + rows, key=lambda row: row["label"])
        results.write_result(target, {}, every,
                             command=claim("recipes/NAME.toml", data.name, len(rows)),
                             dataset={"name": data.name, "sha256": data.sha256})
        text = header(rows, path, data.name)
        print(f"{text}# {time.perf_counter() - start:.0f} s with all else")
        if home.parent == shelf or (home == shelf and data.name == HOME):
            recipe = read_bytes(path, MAX_BYTES).decode()
            write_atomically(path, _with_header(recipe, text).encode())
        weights = Path(settings.WEIGHTS_DIR) / stem / f"{path.stem}.{settings.FILE_FORMAT}"
        loss = outcome.row["val_loss"]
        keep.write_weights(weights, outcome.content, keep.facts_of(outcome.settings, data, loss))
        print(f"wrote {weights}")
        finish(folder)


if __name__ == "__main__":
    script.run(main)
