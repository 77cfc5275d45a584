"""Write the tables of README.md and docs/ from results/*.json and config.py, between their marks.

python3 -m report.tables [--check] [--KEY=value ...]

--check changes nothing and exits 1 if a table is stale. RESULTS_DIR says where the results are.
"""
import sys
from collections import Counter
from pathlib import Path

import numpy as np

import config
import integer
from benchmarks import inference, timing
from benchmarks.recipes import result_name
from benchmarks.scaling import LANES_PER_DEVICE
from formats import checkpoint
from machine import script
from machine.files import InputError, read_bytes, write_atomically
from report import published, results, stats
from runner.experiment import USABLE

SAME_EPOCHS = 20                # after which the learning rates are compared once more
WHOLE_RUNS = {"default": "`main_train.py`",
              "default_float32": "the same, `--COMPUTE=float32`", "fast": "`recipes/fast.toml`",
              "fast_again": "the same, compiled before"}


def _source(result):
    """The line under a table: the command that makes it again, and what it was measured on."""
    e = result["environment"]
    machine = (f"{e['cpu']}, {e['cores']} cores; Python {e['python']}, JAX {e['jax']}, "
               f"NumPy {e['numpy']}.")
    return f"`{result['command']}` measured it on {machine}"


def _range(values):
    """"10 to 12", or "10" where they are all the same."""
    low, high = min(values), max(values)
    return f"{low} to {high}" if low < high else str(low)


def _verdict(name, comparison):
    """"QAT minus float32", and what the difference is worth, of a quant_vs_unquant comparison."""
    words = name.replace("ptq", "PTQ").replace("qat", "QAT").replace(" - ", " minus ")
    tests = comparison["mcnemar"]
    return (f"{words}: {stats.describe(comparison['test_acc'])}; McNemar: "
            f"{sum(test['measured'] for test in tests)} of {len(tests)} seeds differ")


def expected_output(read):
    """What the reference run of main_train.py printed last."""
    result = read("train")
    row, switches = result["row"], result["config"]
    name = checkpoint.default_name(switches["QAT_ENABLE"], switches["WEIGHT_BITS"],
                                   switches.get("FILE_FORMAT", "npz"))
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


def models(read):
    """Quantized against unquantized."""
    result, rows = read("quant_vs_unquant"), []
    for entry in result["models"].values():
        sizes = stats.summarize([row.get("file_bytes") for row in entry["rows"]])["mean"]
        changes = [abs(row["reload_change"]) for row in entry["rows"] if "reload_change" in row]
        rows.append([entry["label"].replace("\n", ", "), stats.spread(entry["test_acc"], 2, 100),
                     entry["test_acc"]["n"], stats.spread(entry["val_loss"], 4),
                     "–" if sizes is None else f"{sizes:,.0f}",
                     f"{max(changes):g}" if changes else "–"])
    lines = [results.table(["model", "test accuracy (%)", "seeds", "val loss (nats)",
                            "weights file (bytes)", "reloading changes val loss by"], rows)]
    return "\n".join([*lines, "", f"{result['dataset']['name']}; ± is the standard deviation over "
                      f"seeds. {_source(result)}"])


def learning_rates(read):
    """The learning-rate ablation."""
    result, rows = read("lr_ablation"), []
    for rate in sorted({row["rate"] for row in result["rows"]}, reverse=True):
        group = [row for row in result["rows"] if row["rate"] == rate]
        losses = [row["val_loss"] if row["status"] in USABLE else None for row in group]
        ends = Counter(row["status"] for row in group)
        early = [min((loss for loss in row["history"]["val_loss"][:SAME_EPOCHS]
                      if loss is not None), default=None) for row in group]
        rows.append([f"{rate:g}", stats.spread(stats.summarize(losses), 4),
                     stats.spread(stats.summarize([row["test_acc"] for row in group]), 2, 100),
                     _range([row["epochs"] for row in group]),
                     ", ".join(f"{count} {status}" for status, count in ends.items()),
                     stats.spread(stats.summarize(early), 4)])
    header = ["learning rate", "best val loss (nats)", "test accuracy (%)", "epochs",
              "how the runs ended", f"best val loss of the first {SAME_EPOCHS} epochs"]
    return "\n".join([results.table(header, rows), "",
                      f"Least mean validation loss: {result['best_rate']:g}. Mean ± standard "
                      "deviation over the seeds that ended with a usable model. "
                      f"{_source(result)}"])


def optimizers(read):
    """The optimizer study."""
    result = read("optimizer")
    rows = [[name, f"{entry['best_rate']:g}", stats.spread(entry["val_loss"], 4),
             stats.spread(entry["epochs"], 1), stats.spread(entry["test_acc"], 2, 100),
             entry["test_acc"]["n"]] for name, entry in result["optimizers"].items()]
    lines = [results.table(["optimizer", "best rate", "val loss there (nats)", "epochs to stop",
                            "test accuracy (%)", "seeds"], rows), ""]
    lines += [f"- {name} minus SGD, validation loss: {stats.describe(comparison, 'nats', 1)}."
              for name, comparison in result["val_loss_against_sgd"].items()]
    return "\n".join([*lines, "", "Rates are chosen on validation. ± is the standard deviation "
                      f"over seeds. {_source(result)}"])


def _difference(comparison):
    """A paired difference of accuracies in a cell: its mean and 95 % interval, in pp."""
    if comparison["mean"] is None:
        return "–"
    text = f"{100 * comparison['mean']:+.2f}"
    if comparison["low"] is not None:
        text += f" ({100 * comparison['low']:+.2f} to {100 * comparison['high']:+.2f})"
    return text


def _shape(sizes):
    """(784, 256, 128, 10) as 784-256-128-10."""
    return "-".join(map(str, sizes))


BITS_MODELS = {"ptq": "rounded after training (%)", "calibrated": "QAT, calibrated scales (%)",
               "learned": "QAT, learned scales (%)", "per-tensor": "learned, per-tensor (%)",
               "free": "learned, not powers of two (%)"}
BITS_DIFFERENCES = {"learned - calibrated": "learned minus calibrated (pp)",
                    "calibrated - PTQ": "calibrated minus rounded (pp)"}


def bits(read):
    """Accuracy against a weight's bits."""
    result = read("bits")
    rows = [[width["weight_bits"],
             *(stats.spread(width["models"][name]["test_acc"], 2, 100) for name in BITS_MODELS),
             len(result["seeds"]),
             *(_difference(width["comparisons"][name]) for name in BITS_DIFFERENCES)]
            for width in result["widths"]]
    header = ["bits of a weight", *BITS_MODELS.values(), "seeds", *BITS_DIFFERENCES.values()]
    switches = result["config"]
    return "\n".join([
        results.table(header, rows), "",
        f"{result['dataset']['name']}, {_shape(switches['LAYER_SIZES'])}, activations of "
        f"{switches['ACTIVATION_BITS']} bits: test accuracy ± standard deviation over seeds; of "
        "differences over the same seeds the 95 % interval. float32: "
        f"{stats.spread(result['float32']['test_acc'], 2, 100)} %. {_source(result)}"])


def frontier(read):
    """Accuracy against the bytes of the whole file, and the published points drawn beside it."""
    result = read("frontier")
    rows = [[_shape(network["LAYER_SIZES"]), f"{network['INPUT']} × {network['INPUT']}",
             integer.kind(network["WEIGHT_BITS"], network["ACTIVATION_BITS"]),
             "–" if network["file_bytes"] is None else f"{network['file_bytes']:,}",
             stats.spread(network["test_acc"], 2, 100), len(network["rows"])]
            for network in sorted(result["networks"], key=lambda n: n["file_bytes"] or 0)]
    others = [[f"[{point.name}]({point.source})", point.network, f"{point.bytes:,}",
               f"{100 * point.test_acc:.2f}"] for point in published.POINTS]
    return "\n".join([
        results.table(["network", "input", "bits", "largest file (bytes)", "test accuracy (%)",
                       "seeds"], rows), "",
        f"{result['dataset']['name']}; ± is the standard deviation over seeds. {_source(result)}",
        "", results.table(["published", "network", "bytes", "test accuracy (%)"], others), "",
        "Published points were selected on the test set; ours were not. Their bytes are the "
        "weights alone, ours the whole file."])


def averaging(read):
    """The last epochs of training with and without averaged weights."""
    result = read("averaging")
    rows = [[entry["scales"], entry["weights"], stats.spread(entry["late_mean"], 2, 100),
             stats.spread(entry["late_std"], 3, 100), stats.spread(entry["test_acc"], 2, 100),
             entry["test_acc"]["n"]] for entry in result["models"]]
    late = result["late_epochs"]
    return "\n".join([
        results.table(["scales", "weights", f"val accuracy of the last {late} epochs (%)",
                       "their standard deviation (pp)", "test accuracy (%)", "seeds"], rows), "",
        f"{_shape(result['network']['LAYER_SIZES'])} W{result['network']['WEIGHT_BITS']}A"
        f"{result['network']['ACTIVATION_BITS']}. ± is the standard deviation over seeds. "
        f"{_source(result)}"])


def _largest(entry):
    """The bytes of the largest weights file of a recipe's seeds."""
    return max(row["file_bytes"] for row in entry["rows"])


def recipes(read):
    """What each recipe reaches, on MNIST and on Fashion-MNIST."""
    result = read(result_name("MNIST"))
    try:
        elsewhere = {entry["name"]: stats.summarize([row["test_acc"] for row in entry["rows"]])
                     for entry in read(result_name("Fashion-MNIST"))["recipes"]}
    except InputError:                          # not measured there yet
        elsewhere = {}
    rows = []
    for entry in sorted(result["recipes"], key=_largest, reverse=True):
        accuracies = [stats.summarize([row[key] for row in entry["rows"]])
                      for key in ("val_acc", "test_acc")]
        rows.append([f"`recipes/{entry['name']}.toml`",
                     f"{_shape(entry['layer_sizes'])} {entry['model']}",
                     f"{_largest(entry):,}",
                     *(stats.spread(accuracy, 2, 100) for accuracy in accuracies),
                     len(entry["rows"]), f"{entry['seconds']:.0f}",
                     stats.spread(elsewhere[entry["name"]], 2, 100)
                     if entry["name"] in elsewhere else "–"])
    least = min(elsewhere.values(), key=lambda accuracy: accuracy["n"], default=None)
    header = ["recipe", "network", "largest file (bytes)", "val accuracy (%)", "test accuracy (%)",
              "seeds", "seconds for all",
              "Fashion-MNIST (%)" + (f", {least['n']} seeds" if elsewhere else "")]
    return "\n".join([results.table(header, rows), "", "± is the standard deviation over seeds, "
                      f"which train side by side. {_source(result)}"])


def _whole_runs(result):
    """The table of whole runs of main_train.py."""
    rows, parts = [], result["default"][0]["parts"]
    for key, label in WHOLE_RUNS.items():
        runs = result[key]
        accuracies = stats.summarize([run["test_acc"] for run in runs])
        peaks = [run["peak_memory_bytes"] for run in runs if run["peak_memory_bytes"]]
        rows.append([label, f"{np.median([run['start_to_saved_seconds'] for run in runs]):.1f}",
                     _range([run["epoch_count"] for run in runs]),
                     *(f"{np.median([run['parts'][part] for run in runs]):.2f}" for part in parts),
                     stats.spread(accuracies, 2, 100), len(runs),
                     f"{max(peaks) / 1e6:.0f}" if peaks else "–"])
    return results.table(["whole run", "total (s)", "epochs", *(f"{part} (s)" for part in parts),
                          "test accuracy (%)", "seeds", "memory (MB)"], rows)


def training_speed(read):
    """The training benchmark."""
    result = read("training_bench")
    ours = np.median(result["epochs"]["QAT epoch"])
    rows = [[name, timing.spread(times, 3), f"{np.median(times) / ours:.2f}"]
            for name, times in result["epochs"].items()]
    sweep = np.median(result["lane_epochs"]["sweep"])
    lanes = [[{"sweep": f"sweep of {result['lanes']} runs"}.get(name, name),
              timing.spread(times, 3), f"{sweep / np.median(times):.2f}"]
             for name, times in result["lane_epochs"].items()]
    saved, unsaved = (np.median(result["saving"][name]) for name in ("saved", "not saved"))
    return "\n".join([
        results.table(["one epoch of", "median (range) (s)", "× our QAT epoch"], rows), "",
        "Epochs are taken in turns, in one process. Ours computes its products in "
        f"{result['compute']}, which `COMPUTE = \"auto\"` chose.", "",
        results.table(["one lane's epoch in", "median (range) (s)",
                       "the sweep's against it"], lanes), "",
        "Runs evaluate each epoch, too; of products and update alone, every device has a lane. "
        f"Measured GEMM rate: {result['gemm_gflops']:.0f} GFLOP/s. Saving the state after every "
        f"epoch changes its time by {100 * (saved / unsaved - 1):+.1f} %.", "", _whole_runs(result), "",
        "Whole runs follow one another, each in a process of its own; seconds are medians. "
        f"{_source(result)}"])


def compute(read):
    """Products in bfloat16 against float32, on the same seeds."""
    result, rows = read("compute"), []
    for entry in result["entries"]:
        full, narrow = (stats.spread(stats.summarize(entry[name]), 2, 100)
                        for name in ("float32", "bfloat16"))
        rows.append([f"`{entry['name']}`", entry["model"], full, narrow,
                     stats.describe(entry["comparison"])])
    header = ["switches", "network", "float32 (%)", "bfloat16 (%)", "bfloat16 minus float32"]
    return f"{results.table(header, rows)}\n\nTest accuracy. {_source(result)}"


def scaling(read):
    """The ends of each axis of the scaling study, and its devices."""
    result = read("scaling")

    def row(name, point):
        return [name, timing.spread(point["seconds"], 3), f"{point['gemm_limit']:.3f}",
                f"{np.median(point['seconds']) / point['gemm_limit']:.1f}"]

    rows = [row(f"{axis} = {point[axis]}", point) for axis, points in result["points"].items()
            for point in (points if axis == "devices" else points[::max(len(points) - 1, 1)])]
    switches = result["config"]
    header = [f"QAT {integer.kind(switches['WEIGHT_BITS'], switches['ACTIVATION_BITS'])}, one "
              "lane-epoch at", "median (range) (s)",
              f"its operations at {result['gemm_gflops']:.0f} GFLOP/s (s)", "ratio"]
    return "\n".join([results.table(header, rows), "",
                      f"Each device trains {LANES_PER_DEVICE} lanes. {_source(result)}"])


def inference_speed(read):
    """The inference benchmark, as its own module prints it."""
    result = read("inference_bench")
    return "\n".join([inference.table(result["seconds"]), "",
                      f"{integer.kind(*result['bits'])}; medians and ranges of "
                      f"{result['repeats']}. {inference.NOTE} {_source(result)}"])


def findings(read):
    """The studies in a line each."""
    quant, sweep, optimizer = read("quant_vs_unquant"), read("lr_ablation"), read("optimizer")
    speed, engines = read("training_bench"), read("inference_bench")
    epochs = {name: np.median(times) for name, times in speed["epochs"].items()}
    names = list(optimizer["optimizers"])
    losses = [f"{name} {stats.spread(optimizer['optimizers'][name]['val_loss'], 4)}"
              for name in names]
    by_batch = engines["seconds"]["C"]
    largest = max(by_batch, key=int)
    images = int(largest) / np.median(by_batch[largest])
    width = quant["models"]["qat"]["label"].replace("\n", " ")
    default = quant["models"]["qat"]["test_acc"]
    return "\n".join([
        f"- The default run, {width}: {stats.spread(default, 2, 100)} % of the test images, "
        f"{default['n']} seeds.",
        f"- {width}, {_verdict('qat - ptq', quant['comparisons']['qat - ptq'])}.",
        f"- Learning rate: {sweep['best_rate']:g} has the least mean validation loss.",
        f"- Optimizers, each at its best rate, val loss in nats: {'; '.join(losses)}.",
        f"- A QAT epoch takes {epochs['QAT epoch']:.2f} s, "
        f"{epochs['QAT epoch'] / epochs['matrix products and update alone']:.2f} times its matrix "
        "products and update alone in float32.",
        f"- The C engine classifies {images:,.0f} images a second on one core, {int(largest):,} at a "
        "time."])


def photos(read):
    """How many drawings of each condition are read."""
    result = read("photos")
    count = result["drawings"]
    rows = [[condition, f"{count - len(misread)} of {count}"]
            for condition, misread in result["misread"].items()]
    return "\n".join([results.table(["drawings", "read"], rows), "",
                      "Of the MNIST test images, the rule that doubts what is not one digit keeps "
                      f"{100 * result['kept']:.2f} %. {_source(result)}"])


def firmware(read):
    """Every network on every chip, in emulators."""
    result, rows = read("firmware"), []
    for row in result["rows"]:
        cells = [_network(row), row["chip"]]
        if "flash" in row:
            unit = "instructions" if "instructions" in row else "cycles"
            time = f"{row[unit] / 1000 / result['avr_mhz']:.1f}" if unit == "cycles" else "–"
            cells += [f"{row['flash']:,}", f"{row['ram'] - row['image']:,}",
                      f"{row[unit]:,.0f} {unit}", f"{row['most']:,}", time,
                      f"{row['mismatches']} of {row['images']:,}"]
        else:
            cells += [row.get("refused") or row["missing"], *["–"] * 5]
        rows.append(cells)
    return "\n".join([
        results.table(["network", "chip", "flash (bytes)", "RAM beside the image (bytes)",
                       "an image takes, mean", "at most",
                       f"ms at {result['avr_mhz']} MHz", "images that differ"], rows), "",
        "Flash is text, rodata and data of the whole program; RAM is data, bss and the most stack "
        f"that was used. Under the sanitizers on this machine {_host(result)} answers differ. "
        f"{_source(result)}"])


def _host(result):
    """"0 of 880,000": answers of this machine's builds under the sanitizers."""
    return " of ".join(f"{sum(row[key] for row in result['sanitized']):,}"
                       for key in ("mismatches", "images"))


def _network(row):
    """A network of results/firmware.json in a cell."""
    name = Path(row["name"]).stem.replace("weights_int8", "default")
    return f"{name}, {_shape(row['layer_sizes'])} {row['model']}"


def chips(read):
    """The two smallest chips in a line a network."""
    result, by_network = read("firmware"), {}
    for row in result["rows"]:
        if "flash" in row:
            by_network.setdefault(_network(row), {})[row["chip"]] = row
    rows = []
    for name, on in by_network.items():
        cells = [f"{on['rv32ec']['flash']:,}", f"{on['rv32ec']['instructions']:,.0f}"] if (
            "rv32ec" in on) else ["–"] * 2
        cells += [f"{on['atmega328p']['flash']:,}", "{:.1f}".format(
            on["atmega328p"]["cycles"] / 1000 / result["avr_mhz"])] if (
            "atmega328p" in on) else ["–"] * 2
        if cells != ["–"] * 4:
            rows.append([name, f"{100 * next(iter(on.values()))['test_acc']:.2f}", *cells])
    return "\n".join([results.table(
        ["network", "test accuracy (%)", "RV32EC: flash (bytes)", "instructions an image",
         "ATmega328P: flash (bytes)", f"ms an image at {result['avr_mhz']} MHz"], rows), "",
        f"In emulators, {sum(row.get('mismatches', 0) for row in result['rows'])} of "
        f"{sum(row.get('images', 0) for row in result['rows']):,} answers differ from the integer "
        f"engine's. {_source(result)}"])


def switches(_):
    """Every switch of config.py."""
    rows = [[f"`{name}`", f"`{text}`", reason] for name, text, reason in config.rows()]
    return results.table(["switch", "value", "what it does"], rows)


TABLES = {table.__name__: table for table in (
    expected_output, models, findings, learning_rates, optimizers, bits, frontier, averaging,
    recipes, training_speed, compute, inference_speed, scaling, switches,
    photos, firmware, chips)}
PAGES = {"README.md": ["recipes", "expected_output", "chips", "findings"],
         "docs/results.md": ["models", "bits", "averaging", "frontier", "learning_rates",
                             "optimizers"],
         "docs/photos.md": ["photos"],
         "docs/speed.md": ["training_speed", "compute", "inference_speed", "scaling"],
         "docs/firmware.md": ["firmware"],
         "docs/switches.md": ["switches"]}


def render(text, names, read):
    """A page with its tables.

    Args:
      text: of the page; names: of its tables; read: function from a result's name to its dict.
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


def main(argv):
    settings = config.load(argv, __doc__, also=("--check",))

    def read(name):
        return results.read_result(Path(settings.RESULTS_DIR) / f"{name}.json")

    stale = {}
    for page, names in PAGES.items():
        path = results.ROOT / page
        text = read_bytes(path, results.MAX_BYTES).decode("utf-8")
        fresh = render(text, names, read)
        if fresh != text:
            stale[path] = fresh
    for path, fresh in stale.items():
        if "--check" in argv:
            print(f"{path} is stale", file=sys.stderr)
        else:
            write_atomically(path, fresh.encode())
            print(f"wrote {path}")
    sys.exit(1 if stale and "--check" in argv else 0)


if __name__ == "__main__":
    script.run(main)
