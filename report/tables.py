"""The tables of README.md and docs/: results/*.json in Markdown, between their marks."""
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from formats import checkpoint
from machine.files import InputError, read_bytes, write_atomically
from report import published, results, speed, stats, style
from report.columns import (
    ACCURACY,
    LARGEST,
    PLUS_MINUS,
    SEEDS,
    first,
    mean,
    most,
    paired,
    source,
    span,
    table,
)
from report.results import group
from report.style import CALIBRATED, LEARNED, ROUNDED

SAME_EPOCHS = 20                # after which the learning rates are compared once more
LATE = 20                       # last epochs, whose spread says how much flipping scales disturb


def expected_output(read):
    """What the reference run of main_train.py printed last."""
    result = read("train")
    (row,), switches = result["rows"], result["config"]
    name = checkpoint.default_name(switches["QAT_ENABLE"], switches["WEIGHT_BITS"],
                                   switches["FILE_FORMAT"])
    best = row["history"]["val_loss"][row["best_epoch"] - 1]
    return "\n".join([
        "```",
        f"{row['status']} after {row['epochs']} epochs; best epoch {row['best_epoch']}: "
        f"val loss {best:.6f} nats, val accuracy {100 * row['val_acc']:.2f} %",
        f"saved model: val loss {row['val_loss']:.6f} nats ({row['reload_change']:+g} from "
        f"training), test accuracy {100 * row['test_acc']:.2f} %",
        f"wrote weights/{name} ({row['file_bytes']:,} bytes)",
        f"{result['wall_seconds']:.1f} s from start, {result['seconds']['epochs']:.1f} s of it "
        "epochs",
        "```"])


def quant_vs_unquant(read):
    """Quantized against unquantized."""
    result = read("quant_vs_unquant")

    def size(rows):
        found = stats.summarize(rows, "file_bytes")
        return f"{found['mean']:,.0f}" if found["n"] else "–"

    def reload_change(rows):
        return most("size", "{:g}")([{"size": abs(row["reload_change"])} for row in rows
                                     if "reload_change" in row])

    columns = {**ACCURACY, **SEEDS, "val loss (nats)": mean("val_loss", 4),
               "weights file (bytes)": size, "reloading changes val loss by": reload_change}
    return (f"{table('model', group(result['rows'], 'label'), columns)}\n\n"
            f"{result['dataset']['name']}; {PLUS_MINUS}. {source(result)}")


def lr_ablation(read):
    """The learning-rate ablation."""
    result = read("lr_ablation")

    def ends(rows):
        counts = Counter(row["status"] for row in rows)
        return ", ".join(f"{count} {status}" for status, count in counts.items())

    def early(rows):
        losses = [[loss for loss in row["history"]["val_loss"][:SAME_EPOCHS] if loss is not None]
                  for row in rows]
        return stats.spread(stats.summary([min(kept, default=None) for kept in losses]), 4)

    columns = {"best val loss (nats)": mean("val_loss", 4), **ACCURACY, "epochs": span("epochs"),
               "how the runs ended": ends,
               f"best val loss of the first {SAME_EPOCHS} epochs": early}
    groups = group(sorted(result["rows"], key=lambda row: -row["rate"]), "label")
    return (f"{table('learning rate', groups, columns)}\n\nLeast mean validation loss: "
            f"{stats.best_rate(result['rows']):g}. Mean ± standard deviation over the seeds that "
            f"ended with a usable model. {source(result)}")


def _at_best_rate(rows):
    """{optimizer: its rows at the rate that is best for it}."""
    return {label: group(own, "rate")[stats.best_rate(own)]
            for label, own in group(rows, "label").items()}


def optimizer(read):
    """The optimizer study."""
    result = read("optimizer")
    chosen = _at_best_rate(result["rows"])
    columns = {"best rate": lambda rows: f"{rows[0]['rate']:g}",
               "val loss there (nats)": mean("val_loss", 4), "epochs to stop": mean("epochs", 1),
               **ACCURACY, **SEEDS}
    base, *others = chosen
    found = {label: stats.compare(chosen[base], chosen[label], "val_loss") for label in others}
    lines = [f"- {label} minus {base}, validation loss: {stats.describe(of, 'nats', 1)}."
             for label, of in found.items()]
    return "\n".join([table("optimizer", chosen, columns), "", *lines, "",
                      f"Rates are chosen on validation. {PLUS_MINUS}. {source(result)}"])


def _model(label):
    """A column of one model's accuracy, of groups that hold several models."""
    return lambda rows: mean("test_acc", 2, 100)(group(rows, "label")[label])


def _difference(base, other):
    """A column of a paired difference of accuracies in pp, with its 95 % interval."""
    def cell(rows):
        models = group(rows, "label")
        return paired(models[base], models[other], "test_acc")
    return cell


def bits(read, name="bits"):
    """Accuracy against a weight's bits."""
    result = read(name)
    switches, widths = result["config"], group(result["rows"], "WEIGHT_BITS")
    float32 = widths.pop(None)
    labels = group(sum(widths.values(), []), "label")
    columns = {f"{label} (%)": _model(label) for label in labels}
    columns |= {"seeds": lambda rows: len(group(rows, "seed")),
                "learned minus calibrated (pp)": _difference(CALIBRATED, LEARNED),
                "calibrated minus rounded (pp)": _difference(ROUNDED, CALIBRATED)}
    for label in labels:
        if label not in (ROUNDED, CALIBRATED, LEARNED):
            kind = label.removeprefix("QAT, ").removesuffix(" scales")
            columns[f"{kind} minus learned (pp)"] = _difference(LEARNED, label)
    return (f"{table('bits of a weight', widths, columns)}\n\n{result['dataset']['name']}, "
            f"{style.shape(result)}, activations of {switches['ACTIVATION_BITS']} bits: test "
            "accuracy ± standard deviation over seeds; of differences over the same seeds the 95 % "
            "interval. float32: "
            f"{mean('test_acc', 2, 100)(float32)} %. {source(result)}")


def bits_conv(read):
    """The same of a convolutional network."""
    return bits(read, "bits_conv")


def factors(read):
    """What small convolutional networks owe their accuracy to, on validation."""
    result = read("factors")
    sizes = {}
    for label, rows in group(result["rows"], "label").items():
        size, factor = label.split(": ")
        sizes.setdefault(size, {})[factor] = rows
    base, *others = next(iter(sizes.values()))
    columns = {}
    for size, own in sizes.items():
        columns[f"{size}, val accuracy (%)"] = lambda name, own=own: mean(
            "val_acc", 2, 100)(own[name])
        columns[f"{size}, change (pp)"] = lambda name, own=own: "" if name == base else paired(
            own[base], own[name], "val_acc")
    networks = ", ".join(f"{size} is {own[base][0]['network']}" for size, own in sizes.items())
    return (f"{table('what is changed', {name: name for name in (base, *others)}, columns)}\n\n"
            f"{networks}; {PLUS_MINUS}, in parentheses the 95 % interval of the difference over "
            f"the same seeds. {source(result)}")


def frontier(read):
    """Accuracy against the bytes of the whole file, and the published points drawn beside it."""
    result = read("frontier")
    networks = group(result["rows"], "label")
    by_size = dict(sorted(networks.items(), key=lambda item: max(
        row.get("file_bytes", 0) for row in item[1])))
    columns = {**LARGEST, **ACCURACY, **SEEDS}
    others = [[f"[{point.name}]({point.source})", point.network, f"{point.bytes:,}",
               f"{100 * point.test_acc:.2f}"] for point in published.POINTS]
    return "\n".join([
        table("network", by_size, columns), "",
        f"{result['dataset']['name']}; {PLUS_MINUS}. {source(result)}",
        "", results.table(["published", "network", "bytes", "test accuracy (%)"], others), "",
        "Published points were selected on the test set; ours were not. Their bytes are the "
        "weights alone, ours the whole file."])


def averaging(read):
    """The last epochs of training with and without averaged weights."""
    result = read("averaging")

    def late(statistic, digits):
        return lambda rows: stats.spread(stats.summary(
            [statistic(row["history"]["val_acc"][-LATE:]) for row in rows]), digits, 100)

    columns = {f"val accuracy of the last {LATE} epochs (%)": late(np.mean, 2),
               "their standard deviation (pp)": late(np.std, 3), **ACCURACY, **SEEDS}
    return (f"{table('scales; weights', group(result['rows'], 'label'), columns)}\n\n"
            f"{result['rows'][0]['network']}. {PLUS_MINUS}. {source(result)}")


def recipes(read):
    """What each recipe reaches, on MNIST and on Fashion-MNIST."""
    result = read("recipes")
    try:
        others = group(read("recipes_fashion_mnist")["rows"], "label")
    except InputError:                          # not measured there yet
        others = {}
    groups = dict(sorted(group(result["rows"], "label").items(), reverse=True,
                         key=lambda item: max(row["file_bytes"] for row in item[1])))
    tuned = sorted(others.keys() - groups.keys())      # there
    own = {f"`recipes/fashion_mnist/{name}.toml`": others.pop(name) for name in tuned}
    seeds = min(map(len, others.values()), default=0)
    columns = {"network": first("network"), **LARGEST, "val accuracy (%)": mean("val_acc", 2, 100),
               **ACCURACY, **SEEDS,
               "seconds for all": lambda rows: f"{sum(row['seconds'] for row in rows):.0f}"}
    elsewhere = {"Fashion-MNIST (%)" + f", {seeds} seeds" * bool(others): lambda rows: mean(
        "test_acc", 2, 100)(others.get(rows[0]["label"], []))}
    named = {f"`recipes/{name}.toml`": rows for name, rows in groups.items()}
    text = table("recipe", named, {**columns, **elsewhere})
    if own:
        text += f"\n\n{table('recipe tuned on Fashion-MNIST', own, columns)}"
    return f"{text}\n\n{PLUS_MINUS}, which train side by side. {source(result)}"


def records(read):
    """The recipes that a first reader wants: the most accurate, and the smallest of two kinds."""
    result = read("recipes")
    groups = group(result["rows"], "label")
    accuracy, size = ({name: of(rows) for name, rows in groups.items()} for of in (
        lambda rows: np.mean([row["test_acc"] for row in rows]),
        lambda rows: max(row["file_bytes"] for row in rows)))
    val = {name: np.mean([row["val_acc"] for row in rows]) for name, rows in groups.items()}
    chosen = {"the most accurate": max(val, key=val.get)}
    for least in (99, 98):
        enough = [name for name in groups if accuracy[name] >= least / 100]
        if enough:
            chosen[f"{least} % in the fewest bytes"] = min(enough, key=size.get)
    columns = {"file": lambda rows: f"`recipes/{rows[0]['label']}.toml`",
               "network": first("network"), **LARGEST, **ACCURACY}
    lines = table("recipe for", {what: groups[name] for what, name in chosen.items()}, columns)
    return f"{lines}\n\n{PLUS_MINUS}. {source(result)}"


def own_data(read):
    """Small sets of other kinds, against scikit-learn's perceptron."""
    result = read("own_data")
    sets = group(result["rows"], "set")

    def cell(label):
        return lambda rows: mean("test_acc", 2, 100)(group(rows, "label")[label])

    def theirs(rows):                           # the better of the two, by this very accuracy
        found = [own for label, own in group(rows, "label").items() if label.startswith("scikit")]
        return mean("test_acc", 2, 100)(max(found, key=lambda own: np.mean(
            [row["test_acc"] for row in own])))

    columns = {"train examples": first("train"), "test": first("test"),
               "W8A8, test accuracy (%)": cell("W8A8"), "W4A4 (%)": cell("W4A4"),
               "scikit-learn (%)": theirs,
               "largest W4A4 file (bytes)": lambda rows: most("file_bytes")(
                   group(rows, "label")["W4A4"]),
               "logits that differ": lambda rows: sum(row.get("mismatches", 0) for row in rows)}
    return (f"{table('data set', sets, columns)}\n\n± is the standard deviation over five splits, "
            "or seeds where a set has a test part of its own. Logits of JAX, ONNX Runtime and C "
            f"against NumPy's. {source(result)}")


def findings(read):
    """The studies in a line each."""
    quant, rates, chosen = (read(name)["rows"] for name in (
        "quant_vs_unquant", "lr_ablation", "optimizer"))
    (label, base, found), models = stats.comparisons(quant, "test_acc")[-1], group(quant, "label")
    images = [row["against"][base] for row in models[label]]
    differ = sum(stats.mcnemar(*counts) < 0.05 for counts in images if counts)
    losses = [f"{name} {mean('val_loss', 4)(rows)}"
              for name, rows in _at_best_rate(chosen).items()]
    return "\n".join([
        f"- The default run, {label}: {mean('test_acc', 2, 100)(models[label])} % of the test "
        f"images, {len(models[label])} seeds.",
        f"- {label} minus {base}: {stats.describe(found)}; McNemar: {differ} of {len(images)} "
        "seeds differ.",
        f"- Learning rate: {stats.best_rate(rates):g} has the least mean validation loss.",
        f"- Optimizers, each at its best rate, val loss in nats: {'; '.join(losses)}.",
        *speed.findings(read)])


TABLES = {table.__name__: table for table in (
    expected_output, findings, quant_vs_unquant, lr_ablation, optimizer, bits, bits_conv, factors,
    frontier, averaging, recipes, records, own_data, speed.training, speed.compute,
    speed.inference, speed.convolutions, speed.scaling, speed.photos, speed.firmware, speed.chips)}
PAGES = {"README.md": ["records", "expected_output", "chips"],
         "docs/own_data.md": ["own_data"],
         "docs/results.md": ["findings", "recipes", "quant_vs_unquant", "bits", "bits_conv",
                             "averaging", "factors", "frontier", "lr_ablation", "optimizer"],
         "docs/photos.md": ["photos"],
         "docs/speed.md": ["training", "compute", "inference", "convolutions", "scaling"],
         "docs/firmware.md": ["firmware"]}


def render(text, names, read):
    """A page with its tables.

    Args:
      text: of the page.
      names: of its tables.
      read: function from a result's name to its dict.
    Raises:
      InputError: a result is missing, or lacks what its table shows.
    """
    blocks = {}
    for name in names:
        try:
            blocks[name] = TABLES[name](read)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise InputError(f"the results lack what table {name} shows ({error!r}); run its study "
                             "again") from None
    return results.fill(text, blocks)


def update(root, results_dir, check):
    """Bring the pages below `root` up to date.

    Args:
      check: only say which are stale.
    Returns:
      1 when `check` has found one, else 0.
    """
    def read(name):
        return results.read_result(Path(results_dir) / f"{name}.json")

    stale = {}
    for page, names in PAGES.items():
        path = Path(root) / page
        text = read_bytes(path, results.MAX_BYTES).decode("utf-8")
        fresh = render(text, names, read)
        if fresh != text:
            stale[path] = fresh
    for path, fresh in stale.items():
        if check:
            print(f"{path} is stale", file=sys.stderr)
        else:
            write_atomically(path, fresh.encode())
            print(f"wrote {path}")
    return int(check and bool(stale))
