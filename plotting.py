"""results/*.json -> plots/*.png; nothing is computed here but means and spreads."""
import io
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")           # no screen needed
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter, ScalarFormatter

import stats
from files import read_result, write_atomically

# Okabe and Ito: distinct for the colour-blind, and in grey.
COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]
STYLE = {"figure.dpi": 130, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True, "legend.frameon": False}
MARKERS = {"stopped": "o", "capped": "^", "interrupted": "^", "diverged": "x"}
STATUS_WORDS = {"capped": "met the epoch cap", "interrupted": "was interrupted",
                "diverged": "diverged"}


def _power_ticks(axis):
    """Log ticks that read 1e-4, 1e-3, ... and nothing between."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{round(np.log10(value))}"))
    axis.set_minor_formatter(NullFormatter())


def _plain_log(axis):
    """A log axis that ends where its data does, with ticks that read as plain numbers."""
    low, high = axis.get_view_interval()
    steps = ((1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 6, 8) if high > 3 * low
             else range(1, 10))
    ticks = [step * 10.0**power for power in range(-4, 6) for step in steps]
    axis.set_ticks([tick for tick in ticks if low <= tick <= high])
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _rate_panel(axes, runs, key, label, worst, color=COLORS[0], name="mean"):
    """One value per run against learning rate: points, and a band from least to most over seeds."""
    rates = sorted({run["rate"] for run in runs})
    by_rate = [[worst if run[key] is None else min(run[key], worst) for run in runs
                if run["rate"] == rate] for rate in rates]
    axes.fill_between(rates, [min(v) for v in by_rate], [max(v) for v in by_rate],
                      color=color, alpha=0.2, linewidth=0, label="range over seeds")
    axes.plot(rates, [np.mean(v) for v in by_rate], color=color, label=name)
    for status, marker in MARKERS.items():
        chosen = [run for run in runs if run["status"] == status]
        if chosen:
            axes.plot([run["rate"] for run in chosen],
                      [worst if run[key] is None else min(run[key], worst) for run in chosen],
                      marker, color=color if status == "stopped" else COLORS[5], markersize=5,
                      markerfacecolor="none" if marker != "x" else None, linestyle="none",
                      label=f"run that {STATUS_WORDS[status]}" if status in STATUS_WORDS
                      else "run that stopped early")
    axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel=label)
    _power_ticks(axes.xaxis)


def _lr_ablation(result):
    """Epochs to stop, best validation loss, and the curves, of the learning-rate sweep."""
    runs, best = result["runs"], result["best_rate"]
    figure, (stop, loss, curves) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    _rate_panel(stop, runs, "epochs", "epochs to stop", np.inf)
    stop.set_title("How long a run lasts")
    _plain_log(stop.yaxis)
    worst = np.log(result["config"]["LAYER_SIZES"][-1])     # the loss of a uniform guess
    _rate_panel(loss, runs, "val_loss", "best validation loss (nats)", worst)
    loss.axvline(best, color=COLORS[6], linewidth=1, linestyle=":", label=f"least mean: {best:g}")
    loss.set_title("What it reaches")
    _plain_log(loss.yaxis)
    rates = sorted({run["rate"] for run in runs}, reverse=True)
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(rates)))
    for rate, color in zip(rates, colors):
        for seed, run in enumerate(run for run in runs if run["rate"] == rate):
            values = [np.nan if v is None else v for v in run["history"]["val_loss"]]
            curves.plot(range(1, len(values) + 1), values, color=color, linewidth=1.1, alpha=0.85,
                        label=f"{rate:g}" if seed == 0 else None)
            marker = MARKERS[run["status"]]
            curves.plot(len(values), values[-1], marker, color=color, markersize=5)
    curves.set(xscale="log", yscale="log", xlabel="epoch", ylabel="validation loss (nats)",
               title="The way there, one line per run")
    curves.set_ylim(None, 1.3 * worst)          # a diverging run leaves through the top
    _plain_log(curves.xaxis)
    _plain_log(curves.yaxis)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower left", ncols=6, fontsize=9)
    curves.legend(title="learning rate", fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _optimizer(result):
    """Epochs to stop and best validation loss against learning rate, by optimizer."""
    figure, (stop, loss) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    worst = np.log(result["config"]["LAYER_SIZES"][-1])
    for (name, entry), color in zip(result["optimizers"].items(), COLORS):
        _rate_panel(stop, entry["runs"], "epochs", "epochs to stop", np.inf, color, name)
        _rate_panel(loss, entry["runs"], "val_loss", "best validation loss (nats)", worst, color,
                    name)
    stop.set_title("How long a run lasts")
    loss.set_title("What it reaches")
    _plain_log(stop.yaxis)
    _plain_log(loss.yaxis)
    shown = dict(zip(*reversed(stop.get_legend_handles_labels())))     # each label once
    figure.legend(shown.values(), shown.keys(), loc="outside lower left", ncols=6, fontsize=9)
    return figure


def _quant_vs_unquant(result):
    """Validation loss, test accuracy and whole-file bytes, by kind of model."""
    models = result["models"]
    names = list(models)
    panels = (("val_loss", "validation loss (nats)", 1), ("test_acc", "test accuracy (%)", 100),
              ("file_bytes", "weights file (kB)", 1e-3))
    figure, all_axes = plt.subplots(1, 3, figsize=(12, 4.4), layout="constrained")
    for axes, (key, label, unit) in zip(all_axes, panels):
        values = [np.array([run[key] for run in models[name]["runs"]]) * unit for name in names]
        for x, (v, color) in enumerate(zip(values, COLORS)):
            spread = np.linspace(-0.12, 0.12, len(v)) if len(v) > 1 else [0]
            if key == "file_bytes":
                axes.bar(x, v.mean(), 0.6, color=color)
                axes.annotate(f"{v.mean():,.1f} kB", (x, v.mean()), (0, 4), ha="center",
                              textcoords="offset points")
                continue
            axes.plot(x + spread, v, "o", color=color, alpha=0.55, markersize=5)
            axes.errorbar(x + 0.24, v.mean(), v.std(ddof=1) if len(v) > 1 else 0, fmt="D",
                          color=color, capsize=4, markersize=6)
            axes.annotate(f"{v.mean():.4f}" if unit == 1 else f"{v.mean():.2f} %",
                          (x + 0.24, v.mean()), (7, 0), textcoords="offset points", va="center",
                          fontsize=8.5)
        axes.set_xticks(range(len(names)), [models[name]["label"] for name in names])
        axes.set_xlim(-0.5, len(names) - 0.2)
        axes.set_ylabel(label)
        axes.grid(axis="x", visible=False)
    all_axes[0].set_title("Loss")
    verdicts = [f"{name.upper()} - float32: {stats.describe(comparison['test_acc'])}"
                for name, comparison in result["against_float32"].items()]
    all_axes[1].set_title("Accuracy")
    all_axes[2].set_title("Size of the whole file")
    all_axes[2].margins(y=0.1)
    seeds = len(next(iter(models.values()))["runs"])
    spread = f"dots: {seeds} seeds; diamonds: mean ± standard deviation over seeds"
    figure.supxlabel("\n".join([spread, *verdicts]), fontsize=8.5)
    return figure


def _scaling(result):
    """Seconds per lane-epoch along each axis, with the limit that the GEMM rate sets."""
    figure, all_axes = plt.subplots(1, 4, figsize=(15, 4), layout="constrained")
    labels = {"lanes": "lanes (runs side by side)", "batch": "batch (images)",
              "width": "first hidden width", "devices": "devices (4 lanes on each)"}
    for axes, (axis, points) in zip(all_axes, result["points"].items()):
        x = [point[axis] for point in points]
        axes.fill_between(x, [min(p["seconds"]) for p in points],
                          [max(p["seconds"]) for p in points], color=COLORS[0], alpha=0.2,
                          linewidth=0, label="range of repeats")
        axes.plot(x, [np.median(p["seconds"]) for p in points], "o-", color=COLORS[0], markersize=4,
                  label="QAT W8A8, median")
        axes.plot(x, [p["gemm_limit"] for p in points], "--", color=COLORS[5],
                  label=f"its operations at {result['gemm_gflops']:.0f} GFLOP/s")
        axes.set(xscale="log", yscale="log", xlabel=labels[axis])
        axes.set_xticks(x[::2] if len(x) > 4 else x)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        if axis != "width":
            axes.set_ylim(0.1, 2)
        _plain_log(axes.yaxis)
    all_axes[0].set_ylabel("seconds per lane-epoch")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=3,
                  fontsize=9)
    return figure


PLOTS = {"lr_ablation": (_lr_ablation, "lr_ablation.png"),
         "scaling": (_scaling, "scaling.png"),
         "optimizer": (_optimizer, "optimizer.png"),
         "quant_vs_unquant": (_quant_vs_unquant, "quant_vs_unquant_subplots.png")}


def draw(name, results_dir, plots_dir):
    """Draw results_dir/NAME.json into its PNG in plots_dir."""
    function, file = PLOTS[name]
    result = read_result(Path(results_dir) / f"{name}.json")
    with plt.rc_context(STYLE):
        figure = function(result)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        plt.close(figure)
    path = Path(plots_dir) / file
    write_atomically(path, buffer.getvalue())
    print(f"wrote {path}")
