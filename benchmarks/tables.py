"""Write the README's tables from results/*.json and config.py, between its markers.

python3 -m benchmarks.tables [--check]     --check: change nothing, exit 1 if a table is stale
"""
import re
import sys
from pathlib import Path

import numpy as np

import config
import stats
from files import read_result, run_script, write_atomically

README = Path(__file__).parent.parent / "README.md"


def _machine(result):
    """The line under a table: what it was measured on."""
    e = result["environment"]
    return (f"{e['cpu']}, {e['cores']} cores; Python {e['python']}, JAX {e['jax']}, "
            f"NumPy {e['numpy']}.")


def _table(header, rows):
    """A Markdown table; the first column left, the others right."""
    line = "|---|" + "---:|" * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" if row is not None else line
                     for row in (header, None, *rows))


def expected_output():
    """What the committed reference run of main_train.py printed last."""
    result = read_result("results/train.json")
    run, metrics = result["run"], result["metrics"]
    return "\n".join([
        "```",
        f"{run['status']} after {run['epochs']} epochs; best epoch {run['best_epoch']}: "
        f"val loss {run['val_loss']:.6f} nats, val accuracy {100 * run['val_acc']:.2f} %",
        f"saved model: val loss {metrics['val_loss']:.6f} nats "
        f"({metrics['val_loss'] - run['val_loss']:+g} from training), "
        f"test accuracy {100 * metrics['test_acc']:.2f} %",
        f"wrote weights/weights_int8.npz ({result['file_bytes']:,} bytes), "
        f"{result['wall_seconds']:.1f} s from start, {result['seconds']['epochs']:.1f} s of it "
        "epochs",
        "```"])


def models():
    """Quantized against unquantized."""
    result = read_result("results/quant_vs_unquant.json")
    rows = []
    for name, entry in result["models"].items():
        acc, loss = entry["test_acc"], entry["val_loss"]
        size = np.mean([run["file_bytes"] for run in entry["runs"]])
        changes = [run["reload_change_of_val_loss"] for run in entry["runs"]
                   if "reload_change_of_val_loss" in run]
        rows.append([entry["label"].replace("\n", ", "),
                     f"{100 * acc['mean']:.2f} ± {100 * acc['std']:.2f}", str(acc["n"]),
                     f"{loss['mean']:.4f} ± {loss['std']:.4f}", f"{size:,.0f}",
                     f"{max(map(abs, changes)):g}" if changes else "–"])
    lines = [_table(["model", "test accuracy, mean ± std (%)", "seeds", "val loss (nats)",
                     "weights file (bytes)", "reloading changes val loss by"], rows), ""]
    for name, comparison in result["against_float32"].items():
        differing = sum(test["measured"] for test in comparison["mcnemar"])
        lines.append(f"- {name.upper()} minus float32: {stats.describe(comparison['test_acc'])}. "
                     f"Exact McNemar tests on the same 10,000 images: {differing} of "
                     f"{len(comparison['mcnemar'])} seeds differ at 5 %.")
    return "\n".join(lines + ["", f"± is the standard deviation over seeds. {_machine(result)}"])


def learning_rates():
    """The learning-rate ablation."""
    result = read_result("results/lr_ablation.json")
    rows = []
    for rate in sorted({run["rate"] for run in result["runs"]}, reverse=True):
        runs = [run for run in result["runs"] if run["rate"] == rate]
        losses = [run["val_loss"] for run in runs if run["val_loss"] is not None]
        epochs = [run["epochs"] for run in runs]
        kinds = ("stopped", "capped", "interrupted", "diverged")
        ends = ", ".join(f"{n} {status}" for status in kinds
                         if (n := sum(run["status"] == status for run in runs)))
        rows.append([f"{rate:g}", f"{np.mean(losses):.4f} ± {np.std(losses, ddof=1):.4f}",
                     f"{min(epochs)} to {max(epochs)}", ends])
    return "\n".join([_table(["learning rate", "best val loss, mean ± std (nats)", "epochs",
                              "how the runs ended"], rows), "",
                      f"Least mean validation loss: {result['best_rate']:g}. {_machine(result)}"])


def training_speed():
    """The training benchmark."""
    result = read_result("results/training_bench.json")
    ours = np.median(result["epochs"]["QAT epoch"])
    rows = [[name, f"{np.median(times):.3f}", f"{min(times):.3f} to {max(times):.3f}",
             f"{np.median(times) / ours:.2f}"] for name, times in result["epochs"].items()]
    single, sweep = (np.median(result["lane_epochs"][name]) for name in ("single run", "sweep"))
    lines = [_table(["one epoch of", "median (s)", "range (s)", "× our QAT epoch"], rows), "",
             f"A lane-epoch takes {sweep:.3f} s in a sweep of 27 runs and {single:.3f} s in a "
             f"single run ({sweep / single:.2f} times). Measured GEMM rate: "
             f"{result['gemm_gflops']:.0f} GFLOP/s.", ""]
    rows = []
    for name, label in (("default", "`main_train.py`"), ("fast", "`recipes/fast.toml`"),
                        ("fast_again", "the same, compiled before")):
        runs = result[name]
        parts = {part: np.median([run["parts"][part] for run in runs]) for part in runs[0]["parts"]}
        rows.append([label, f"{np.median([run['start_to_saved_seconds'] for run in runs]):.1f}",
                     str(round(np.median([run["epoch_count"] for run in runs]))),
                     *(f"{seconds:.2f}" for seconds in parts.values()),
                     f"{np.mean([100 * run['test_acc'] for run in runs]):.2f}", str(len(runs)),
                     f"{max(run['peak_memory_bytes'] for run in runs) / 1e6:.0f}"])
    lines.append(_table(["whole run", "total (s)", "epochs", *(f"{part} (s)" for part in parts),
                         "mean test accuracy (%)", "seeds", "memory (MB)"], rows))
    return "\n".join(lines + ["", f"Medians, taken in turns in one process. {_machine(result)}"])


def optimizers():
    """The optimizer study."""
    result = read_result("results/optimizer.json")
    rows = [[name, f"{entry['best_rate']:g}",
             f"{entry['val_loss']['mean']:.4f} ± {entry['val_loss']['std']:.4f}",
             f"{entry['epochs']['mean']:.1f}", f"{100 * entry['test_acc']['mean']:.2f}",
             str(entry["test_acc"]["n"])] for name, entry in result["optimizers"].items()]
    lines = [_table(["optimizer", "best rate", "val loss there (nats)", "epochs to stop",
                     "test accuracy (%)", "seeds"], rows), ""]
    lines += [f"- {name} minus SGD, validation loss: {stats.describe(comparison, 'nats', 1)}."
              for name, comparison in result["val_loss_against_sgd"].items()]
    return "\n".join(lines + ["", f"Rates are chosen on validation. {_machine(result)}"])


def scaling():
    """The ends of each axis of the scaling study."""
    result = read_result("results/scaling.json")
    rows = []
    for axis, points in result["points"].items():
        for point in (points[0], points[-1]):
            seconds = np.median(point["seconds"])
            rows.append([f"{axis} = {point[axis]}", f"{seconds:.3f}", f"{point['gemm_limit']:.3f}",
                         f"{seconds / point['gemm_limit']:.1f}"])
    return "\n".join([_table(["QAT W8A8, one lane-epoch at", "median (s)",
                              f"its operations at {result['gemm_gflops']:.0f} GFLOP/s (s)",
                              "ratio"],
                             rows), "", _machine(result)])


def inference_speed():
    """The inference benchmark, as its own module prints it."""
    from benchmarks import inference
    result = read_result("results/inference_bench.json")
    seconds = {name: {int(batch): times for batch, times in by_batch.items()}
               for name, by_batch in result["seconds"].items()}
    return "\n".join([inference.table(seconds), "",
                      f"W{result['bits'][0]}A{result['bits'][1]}; medians and ranges of "
                      f"{result['repeats']}. C runs on one core, an image at a time; the others "
                      f"use every core. {_machine(result)}"])


def switches():
    """Every switch of config.py."""
    rows = re.findall(r"^  --([A-Z_]+)=(.+)\n +(.+)$", config.usage(""), re.MULTILINE)
    return _table(["switch", "value", "what it does"],
                  [[f"`{key}`", f"`{value}`", reason] for key, value, reason in rows])


TABLES = {table.__name__: table for table in (
    expected_output, models, learning_rates, optimizers, inference_speed, training_speed, scaling,
    switches)}


def render(text):
    """The README with every marked block replaced by its table."""
    for name, table in TABLES.items():
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
                      lambda match: f"{match[1]}{table()}\n{match[2]}", text, flags=re.DOTALL)
    return text


def main(argv):
    if "--help" in argv:
        print(__doc__)
        return
    text = README.read_text()
    fresh = render(text)
    if "--check" in argv:
        sys.exit(fresh != text)
    write_atomically(README, fresh.encode())
    print(f"wrote {README}")


if __name__ == "__main__":
    run_script(main)
