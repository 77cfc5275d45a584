"""results/*.json -> plots/*.png; nothing is computed here but means and spreads."""
import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure  # not pyplot: no screen is needed, nothing global
from matplotlib.ticker import NullLocator

from machine.files import InputError, write_atomically
from report import figures, rates, stats
from report.figures import COLORS, STYLE, plain_log, setting
from report.results import read_result


def save(figure, path):
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
    print(f"wrote {path}")


def _values_panel(axes, groups):
    """One value per seed, mean and standard deviation beside it, and their numbers above."""
    digits = 4 if max(np.mean(v) for v in groups) < 1 else 2
    low, high = min(map(min, groups)), max(map(max, groups))
    room = (high - low) or 1
    axes.set_ylim(low - 0.08 * room, high + 0.35 * room)
    for x, (values, color) in enumerate(zip(groups, COLORS)):
        dodge = np.linspace(-0.22, 0.06, len(values)) if len(values) > 1 else np.zeros(1)
        axes.plot(x + dodge, values, "o", color=color, alpha=0.55, markersize=4.5)
        std = np.std(values, ddof=1) if len(values) > 1 else None
        axes.errorbar(x + 0.24, np.mean(values), std, fmt="D", color=color, capsize=4, markersize=6)
        text = f"{np.mean(values):.{digits}f}"
        if std is not None:
            text += f"\n± {std:.{digits}f}"
        axes.annotate(text, (x, 0.985), xycoords=axes.get_xaxis_transform(), ha="center", va="top",
                      fontsize=9, bbox={"facecolor": "white", "linewidth": 0, "pad": 1})


def _sizes_panel(axes, sizes):
    """The bytes of each whole file, and how many times smaller than the first it is."""
    for x, (size, color) in enumerate(zip(sizes, COLORS)):
        if not np.isfinite(size):               # free scales have no file
            continue
        axes.bar(x, size, 0.65, color=color)
        text = f"{size:,.1f} kB"
        if x and size < sizes[0]:
            text += f"\n{sizes[0] / size:.1f} times\nsmaller"
        axes.annotate(text, (x, size), (0, 3), ha="center", va="bottom", fontsize=9,
                      textcoords="offset points")
    axes.margins(y=0.1)


def _quant_vs_unquant(result):
    """Validation loss, test accuracy and whole-file bytes, by kind of model."""
    models = result["models"]
    panels = (("val_loss", "Validation loss (nats)", 1), ("test_acc", "Test accuracy (%)", 100),
              ("file_bytes", "Whole file (kB)", 1e-3))
    figure = Figure(figsize=(8.3, 4.4), layout="constrained")
    for axes, (key, title, unit) in zip(figure.subplots(1, 3), panels):
        values = [np.array([row.get(key, np.nan) for row in model["rows"]]) * unit
                  for model in models.values()]
        if key == "file_bytes":
            _sizes_panel(axes, [v.mean() for v in values])
        else:
            _values_panel(axes, values)
        axes.set_xticks(range(len(models)), [model["label"].replace(" training", "\ntraining")
                                             for model in models.values()], fontsize=9)
        axes.set_xlim(-0.5, len(models) - 0.5)
        axes.set_title(title, fontsize=11)
        axes.grid(axis="x", visible=False)
    names = str.maketrans({"-": "−"})
    verdicts = [f"{pair.replace('ptq', 'PTQ').replace('qat', 'QAT')}: "
                f"{stats.describe(of['test_acc']).partition(': ')[0]}".translate(names)
                for pair, of in result["comparisons"].items()]
    figure.supxlabel("\n".join([
        f"{setting(result, len(result['seeds']))} (dots); diamonds: mean ± standard deviation. "
        "Test accuracy:", *verdicts]), fontsize=8.5)
    return figure


SCALING_AXES = {"lanes": ("Runs side by side", "lanes"), "batch": ("Images in a batch", "images"),
                "width": ("Width of the network", "units of the first hidden layer")}


def _scaling(result):
    """Seconds per lane-epoch along each axis, with the limit that the GEMM rate sets."""
    figure = Figure(figsize=(8.3, 3.8), layout="constrained")
    shown = {axis: points for axis, points in result["points"].items() if axis in SCALING_AXES}
    all_axes = figure.subplots(1, len(shown), squeeze=False)[0]
    narrow = [seconds for axis, points in shown.items() if axis != "width" for point in points
              for seconds in (*point["seconds"], point["gemm_limit"])]
    for axes, (axis, points) in zip(all_axes, shown.items()):
        x, (title, label) = [point[axis] for point in points], SCALING_AXES[axis]
        axes.fill_between(x, [min(p["seconds"]) for p in points],
                          [max(p["seconds"]) for p in points], color=COLORS[0], alpha=0.25,
                          linewidth=0, label="range of repeats")
        axes.plot(x, [np.median(p["seconds"]) for p in points], "o-", color=COLORS[0], markersize=5,
                  label="a QAT lane-epoch, median")
        axes.plot(x, [p["gemm_limit"] for p in points], "--", color=COLORS[5],
                  label=f"its operations at {result['gemm_gflops']:.0f} GFLOP/s")
        axes.set(xscale="log", yscale="log", xlabel=label, title=title)
        axes.set_xticks(x[::2], [f"{value:,}" for value in x[::2]])
        axes.xaxis.set_minor_locator(NullLocator())
        if axis != "width":
            axes.set_ylim(min(narrow) / 2, max(narrow) * 2)     # the same, to compare
        plain_log(axes.yaxis)
    all_axes[0].set_ylabel("seconds per lane-epoch")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


PLOTS = {"lr_ablation": (rates.learning_rates, "lr_ablation.png"),
         "scaling": (_scaling, "scaling.png"),
         "optimizer": (rates.optimizers, "optimizer.png"),
         "bits": (figures.bits, "bits.png"),
         "frontier": (figures.frontier, "frontier.png"),
         "firmware": (figures.firmware, "firmware.png"),
         "quant_vs_unquant": (_quant_vs_unquant, "quant_vs_unquant_subplots.png")}


def draw(name, results_dir, plots_dir):
    """Draw results_dir/NAME.json into its PNG in plots_dir; returns the PNG's path."""
    function, file = PLOTS[name]
    result, path = read_result(Path(results_dir) / f"{name}.json"), Path(plots_dir) / file
    recipes = Path(results_dir) / "recipes.json"
    if name == "frontier" and recipes.exists():
        result["recipes"] = read_result(recipes).get("recipes", [])     # of MNIST
    with matplotlib.rc_context(STYLE):
        try:
            figure = function(result)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"{Path(results_dir) / name}.json lacks what its plot shows "
                             f"({error!r}); run its study again") from None
        save(figure, path)
    return path
