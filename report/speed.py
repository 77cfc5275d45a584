"""Tables of the benchmarks: training, inference, chips, photos."""
import contextlib

import numpy as np

from machine.files import InputError
from report import results, stats
from report.columns import ACCURACY, SEEDS, first, median, most, source, span, table, times
from report.results import group

# results/NAME.json of the training benchmark, on one processor each (--RESULTS_DIR=results/avx2)
TRAINING = ("training_bench", "avx2/training_bench")


def _medians(rows):
    """{label: median seconds}, of rows of repeats."""
    return {row["label"]: np.median(row["seconds"]) for row in rows}


def _whole_runs(rows):
    """The table of whole runs of main_train.py."""
    columns = {"total (s)": median("seconds", 1), "epochs": span("epochs")}
    for part in rows[0]["parts"]:
        columns[f"{part} (s)"] = lambda own, part=part: median(part, 2)(
            [row["parts"] for row in own])
    columns |= {**ACCURACY, **SEEDS, "memory (MB)": most("peak_memory_bytes", "{:.0f}", 1e6)}
    return table("whole run", group(rows, "label"), columns)


def _side_by_side(title, ratio, measured, part):
    """A table of one part of the benchmark, with two columns for each processor.

    Args:
      title: of the labels' column.
      ratio: header of the second column, and its function from {label: median seconds} and a label.
      measured: {processor: {part: rows}}.
    """
    name, of = ratio
    header, lines = [title], {}
    for processor, parts in measured.items():
        header += [f"{processor} (s)", name]
        lines |= {row["label"]: [] for row in parts[part]}
    for parts in measured.values():
        rows, medians = group(parts[part], "label"), _medians(parts[part])
        for label, cells in lines.items():
            cells += ([times()(rows[label]), f"{of(medians, label):.2f}"] if label in rows
                      else ["–", "–"])
    return results.table(header, [[label, *cells] for label, cells in lines.items()])


def _against_ours(medians, label):
    return medians[label] / medians["QAT epoch"]


def _sweep_against(medians, label):
    (sweep,) = (seconds for name, seconds in medians.items() if name.startswith("sweep"))
    return sweep / medians[label]


def _limits(result, parts):
    """What the tables of one processor don't say, in sentences."""
    epochs, saving = _medians(parts["epoch"]), _medians(parts["saving"])
    libraries = [name for name in epochs if name.startswith("matrix products alone")]
    least = min(libraries, key=epochs.get, default=None)
    limit = "" if least is None else (
        f" The quickest {least}, which no step in float32 undercuts: a float32 epoch takes "
        f"{epochs['float32 epoch'] / epochs[least]:.2f} of it.")
    change = 100 * (saving["saved"] / saving["not saved"] - 1)
    return (f"Ours computes its products in {result['compute']}, which `COMPUTE = \"auto\"` chose; "
            f"a QAT epoch takes {epochs['QAT epoch'] / epochs['float32 epoch']:.2f} of a float32 "
            f"one; the GEMM rate is {result['gemm_gflops']:.0f} GFLOP/s; saving the state as a run "
            f"does changes an epoch's time by {change:+.1f} %.{limit} {source(result)}")


def training(read):
    """The training benchmark, on every processor that it was run on."""
    found = [read(TRAINING[0])]
    for name in TRAINING[1:]:
        with contextlib.suppress(InputError):   # not measured there yet
            found.append(read(name))
    measured = {result["environment"]["cpu"]: group(result["rows"], "part") for result in found}
    blocks = [
        _side_by_side("one epoch of", ("× our QAT epoch", _against_ours), measured, "epoch"), "",
        "Medians and ranges. Epochs are taken in turns, in one process.", "",
        _side_by_side("one lane's epoch in", ("the sweep's against it", _sweep_against), measured,
                      "lane-epoch"), "",
        "Runs evaluate each epoch, too; of products and update alone, every device has a lane."]
    for result, (processor, parts) in zip(found, measured.items()):
        blocks += ["", f"Whole runs on {processor}, one after the other, each in a process of its "
                   "own; seconds are medians:", "", _whole_runs(parts["whole run"]), "",
                   _limits(result, parts)]
    return "\n".join(blocks)


def compute(read):
    """Products in bfloat16 against float32, on the same seeds."""
    result = read("compute")

    def accuracy(compute):
        return lambda rows: stats.spread(stats.summarize(group(rows, "COMPUTE")[compute],
                                                         "test_acc"), 2, 100)

    def difference(rows):
        by = group(rows, "COMPUTE")
        return stats.describe(stats.compare(by["float32"], by["bfloat16"], "test_acc"))

    columns = {"network": first("network"), "float32 (%)": accuracy("float32"),
               "bfloat16 (%)": accuracy("bfloat16"), "bfloat16 minus float32": difference}
    named = {f"`{label}`": rows for label, rows in group(result["rows"], "label").items()}
    return f"{table('switches', named, columns)}\n\nTest accuracy. {source(result)}"


def scaling(read):
    """The ends of each axis of the scaling study, and its devices."""
    result = read("scaling")
    ends = [row for axis, rows in group(result["rows"], "axis").items()
            for row in (rows if axis == "devices" else rows[::max(len(rows) - 1, 1)])]
    columns = {"median (range) (s)": times(),
               f"its operations at {result['gemm_gflops']:.0f} GFLOP/s (s)":
                   lambda rows: f"{rows[0]['gemm_limit']:.3f}" if "gemm_limit" in rows[0] else "–",
               "ratio": lambda rows: "{:.1f}".format(
                   np.median(rows[0]["seconds"]) / rows[0]["gemm_limit"]
                   ) if "gemm_limit" in rows[0] else "–",
               "peak memory (MB)": most("peak_memory_bytes", "{:,.0f}", 1e6)}
    named = group(ends, "label")
    return (f"{table('one QAT lane-epoch of 55,000 examples, at', named, columns)}\n\n"
            f"{result['network']}. {source(result)}")


def inference(read):
    """The inference benchmark: latency at batch 1, images a second above it."""
    result, columns = read("inference_bench"), {}

    def cell(batch):
        def show(rows):
            (row,) = group(rows, "batch")[batch]
            seconds = np.array(row["seconds"])
            return (stats.median_range(seconds * 1e6, 1) if batch == 1
                    else stats.median_range(batch / seconds, 0))
        return show

    for batch in group(result["rows"], "batch"):
        header = "latency, batch 1 (µs)" if batch == 1 else f"images/s, batch {batch:,}"
        columns[header] = cell(batch)
    return (f"{table('engine', group(result['rows'], 'label'), columns)}\n\n{result['network']}; "
            f"medians and ranges of {len(result['rows'][0]['seconds'])}. C runs on one core, "
            "called from Python once per batch, plain where a processor has no dot product of "
            f"bytes; the others use every core, unless they say one. {source(result)}")


def convolutions(read):
    """Steps, memory and images of two convolutional networks, against other ways to write them."""
    result, rows = read("convolutions_bench"), []
    for (network, part), own in _pairs(result["rows"]).items():
        if part == "memory":
            megabytes = own[0]["peak_memory_bytes"] / 1e6
            rows.append([f"{network}, {own[0]['label']}", f"{megabytes:,.0f} MB", "–"])
            continue
        base = np.median(own[0]["seconds"])
        for row in own:
            unit, factor = ("ms", 1e3) if part == "step" else ("µs", 1e6)
            rows.append([f"{network}, {part}: {row['label']}", stats.median_range(
                [factor * seconds for seconds in row["seconds"]], 1) + f" {unit}",
                f"{np.median(row['seconds']) / base:.2f}"])
    return "\n".join([results.table(["what", "median and range", "against the first"], rows), "",
                      source(result)])


def _pairs(rows):
    """{(network, part): its rows}."""
    return {(network, part): own for network, mine in group(rows, "network").items()
            for part, own in group(mine, "part").items()}


def photos(read):
    """How many drawings of each condition are read."""
    result = read("photos")
    count = result["drawings"]
    rows = [[row["label"], f"{count - len(row['misread'])} of {count}"] for row in result["rows"]]
    return "\n".join([results.table(["drawings", f"read by {result['weights']}"], rows), "",
                      "Of the MNIST test images, the rule that doubts what is not one digit keeps "
                      f"{100 * result['kept']:.2f} %. {source(result)}"])


def _of(rows):
    """"0 of 880,000": answers that differ."""
    return " of ".join(f"{sum(row.get(key, 0) for row in rows):,}" for key in ("mismatches",
                                                                              "images"))


def firmware(read):
    """Every network on every chip, in emulators."""
    result, rows = read("firmware"), []
    for row in result["rows"]:
        cells = [f"{row['label']}, {row['network']}", row["chip"]]
        if "flash" in row:
            unit = "instructions" if "instructions" in row else "cycles"
            time = f"{row[unit] / 1000 / result['avr_mhz']:.1f}" if unit == "cycles" else "–"
            cells += [f"{row['flash']:,}", f"{row['ram'] - row['image']:,}",
                      f"{row[unit]:,.0f} {unit}", f"{row['most']:,}", time, _of([row])]
        else:
            cells += [row.get("refused") or row["missing"], *["–"] * 5]
        rows.append(cells)
    return "\n".join([
        results.table(["network", "chip", "flash (bytes)", "RAM beside the image (bytes)",
                       "an image takes, mean", "at most",
                       f"ms at {result['avr_mhz']} MHz", "images that differ"], rows), "",
        "Flash is text, rodata and data of the whole program; RAM is data, bss and the most stack "
        f"that was used. {source(result)}"])


def chips(read):
    """On the two smallest chips: the most accurate network, the smallest and the quickest."""
    result = read("firmware")
    fits = [row for row in result["rows"] if "flash" in row]

    def on(chip, show):
        return lambda rows: next((show(row) for row in rows if row["chip"] == chip), "–")

    columns = {
        "network": first("network"),
        "test accuracy (%)": lambda rows: f"{100 * rows[0]['test_acc']:.2f}",
        "RV32EC: flash (bytes)": on("rv32ec", lambda row: f"{row['flash']:,}"),
        "instructions an image": on("rv32ec", lambda row: f"{row['instructions']:,.0f}"),
        "ATmega328P: flash (bytes)": on("atmega328p", lambda row: f"{row['flash']:,}"),
        f"ms an image at {result['avr_mhz']} MHz": on(
            "atmega328p", lambda row: f"{row['cycles'] / 1000 / result['avr_mhz']:.1f}")}
    own = [row for row in fits if row["chip"] == "rv32ec" and row["dataset"] == fits[0]["dataset"]]
    best = [max(own, key=lambda row: row["test_acc"]), min(own, key=lambda row: row["flash"]),
            min(own, key=lambda row: row["instructions"])]
    chosen = {row["label"] for row in best}
    small = {label: rows for label, rows in group(fits, "label").items() if label in chosen}
    return (f"{table('file', small, columns)}\n\nIn emulators, {_of(fits)} answers differ from the "
            f"integer engine's. {source(result)}")


def findings(read):
    """Training and inference in a line each."""
    epochs = _medians(group(read("training_bench")["rows"], "part")["epoch"])
    engines = group(read("inference_bench")["rows"], "label")
    fastest = max(engines["C"], key=lambda row: row["batch"])
    rate = fastest["batch"] / np.median(fastest["seconds"])
    return [
        f"- A QAT epoch takes {epochs['QAT epoch']:.2f} s, "
        f"{epochs['QAT epoch'] / epochs['matrix products and update alone']:.2f} times its matrix "
        "products and update alone in float32.",
        f"- The C engine classifies {rate:,.0f} images a second on one core, "
        f"{fastest['batch']:,} at a time."]
