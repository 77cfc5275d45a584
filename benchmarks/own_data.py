"""Small sets of other kinds with the bare command's rule, against scikit-learn's perceptron.

python3 -m benchmarks.own_data [SET ...] [--KEY=value ...]   writes results/own_data.json

pip install scikit-learn; pip install --no-deps aeon: its wheel holds three sets of sensor windows.
Accuracy is of the test part, which nothing is chosen by: five splits, or five seeds where a set has
a test part of its own.
"""
if __name__ == "__main__":
    from machine import script
    script.begin()

import importlib.util
from pathlib import Path

import numpy as np

import config
import data
import integer
from deploy import engines, to_c, to_onnx
from formats import checkpoint, raw
from machine import script
from machine.files import InputError, check_writable
from report import results, stats
from runner import adapt, experiment, source, state

SPLITS = 5
TABLES = {"iris": "load_iris", "wine": "load_wine", "breast cancer": "load_breast_cancer",
          "digits 8x8": "load_digits"}
WINDOWS = ("ItalyPowerDemand", "GunPoint", "BasicMotions")
WIDTHS = ((8, 8), (4, 4))


def read_ts(path):
    """(windows float32 [N, T, C], labels) of a .ts file of equal lengths."""
    x, labels, begun = [], [], False
    for line in path.read_text("utf-8", "replace").splitlines():
        if begun and line.strip():
            *channels, label = line.strip().split(":")
            x.append(np.array([channel.split(",") for channel in channels], np.float32).T)
            labels.append(label)
        begun = begun or line.lower().startswith("@data")
    return np.stack(x), labels


def read_windows(name):
    """(train x, train labels, test x, test labels) of a set inside aeon's package."""
    spec = importlib.util.find_spec("aeon")
    if spec is None:
        raise InputError(f"{name} comes with aeon: pip install --no-deps aeon")
    folder = Path(spec.origin).parent / "datasets" / "data" / name
    return sum((read_ts(folder / f"{name}_{part}.ts") for part in ("TRAIN", "TEST")), ())


def splits_of(name):
    """[(train x, train y, test x, test y)], x float32, y text, of a set's five splits."""
    if name in WINDOWS:
        return [read_windows(name)] * SPLITS
    from sklearn import datasets
    from sklearn.model_selection import StratifiedShuffleSplit
    loaded = getattr(datasets, TABLES[name])()
    x = loaded.images if name == "digits 8x8" else loaded.data
    x, y = x.astype(np.float32), loaded.target.astype(str)
    cut = StratifiedShuffleSplit(SPLITS, test_size=0.2, random_state=0).split(x, y)
    return [(x[train], y[train], x[test], y[test]) for train, test in cut]


def to_dataset(name, train_x, train_y, test_x, test_y):
    """The data.Dataset of a split, as a reader would make it."""
    names = sorted({*train_y, *test_y})
    train_x, test_x, shape, note = raw.arrange(name, train_x, test_x, None)
    y = [[names.index(label) for label in labels] for labels in (train_y, test_y)]
    return data.from_raw(name, raw.make(name, (train_x, test_x), y, names, shape, None, note))


def mismatches(content, images):
    """How many logits differ from NumPy's in JAX, ONNX Runtime and C, of a weights file's bytes."""
    network, facts = checkpoint.decode(content)
    expected = integer.make_engine(network, "numpy")(images)
    others = [integer.make_engine(network), engines.make_onnx(to_onnx.export(network)),
              engines.make_c(to_c.export(network, facts)[0])]
    return int(sum((engine(images) != expected).sum() for engine in others))


def train(name, split, seed, settings, weight_bits, activation_bits):
    """(Outcome, training.Data) of what the bare command makes of a split."""
    chosen = config.change(settings, WEIGHT_BITS=weight_bits, ACTIVATION_BITS=activation_bits,
                           SEED=seed)
    found = source.load_data(chosen, to_dataset(name, *split))
    chosen = source.suit(chosen, (), found)
    (outcome,), folder, _ = experiment.run(chosen, "own-data", [{}], found)
    experiment.check_usable(outcome.row, folder)
    if adapt.takes_all(chosen, found):
        outcome = experiment.train_on_all(outcome, chosen, found, folder)
    state.finish(folder)
    return outcome, found


def ours(name, split, seed, settings):
    """A row of each width: what the bare command reaches."""
    rows = []
    for weight_bits, activation_bits in WIDTHS:
        outcome, found = train(name, split, seed, settings, weight_bits, activation_bits)
        kept = {key: outcome.row[key] for key in ("seed", "val_acc", "test_acc", "file_bytes",
                                                  "reload_change", "epochs")}
        rows.append({"label": f"W{weight_bits}A{activation_bits}", "set": name, **kept,
                     "mismatches": mismatches(outcome.content, found.test.images),
                     "train": len(split[0]), "test": len(split[2])})
    return rows


def theirs(name, split, seed):
    """A row of each alpha of scikit-learn's perceptron on standardized features."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler
    train_x, train_y, test_x, test_y = (part.reshape(len(part), -1) if i % 2 == 0 else part
                                        for i, part in enumerate(split))
    scale, rows = StandardScaler().fit(train_x), []
    for alpha in (1e-4, 1e-2):
        model = MLPClassifier((256, 128), max_iter=300, alpha=alpha, random_state=seed)
        model.fit(scale.transform(train_x), train_y)
        rows.append({"label": f"scikit-learn, alpha {alpha:g}", "set": name, "seed": seed,
                     "test_acc": float(model.score(scale.transform(test_x), test_y)),
                     "train": len(train_x), "test": len(test_x)})
    return rows


def main(argv):
    names = [word for word in argv if word in (*TABLES, *WINDOWS)]
    settings = config.load(argv, __doc__, also=names)
    check_writable(settings.RESULTS_DIR, settings.RUNS_DIR)
    settings, rows = experiment.set_up(settings), []
    for name in names or (*TABLES, *WINDOWS):
        for seed, split in enumerate(splits_of(name)):
            rows += ours(name, split, seed, settings) + theirs(name, split, seed)
        for label, group in results.group([row for row in rows if row["set"] == name],
                                          "label").items():
            accuracy = stats.spread(stats.summarize(group, "test_acc"), 2, 100)
            print(f"{name}: {label} {accuracy} % of {group[0]['test']} test examples")
    wrong = sum(row.get("mismatches", 0) for row in rows)
    print(f"logits of JAX, ONNX Runtime and C that differ from NumPy's: {wrong}")
    results.write_result(Path(settings.RESULTS_DIR) / "own_data.json", settings._asdict(), rows)


if __name__ == "__main__":
    script.run(main)
