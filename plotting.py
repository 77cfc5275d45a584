"""results/*.json -> plots/*.png; nothing is computed here but means and spreads."""
import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure        # not pyplot: no screen is needed, nothing global
from matplotlib.ticker import FuncFormatter, NullLocator, ScalarFormatter

import figures
import stats
from figures import COLORS, MARKERS, STYLE, plain_log
from files import InputError, write_atomically
from results import read_result

STATUS_WORDS = {"stopped": "stopped early", "capped": "met the epoch cap", "diverged": "diverged",
                "guessing": "got no better than guessing", "inexact": "left the exact integers"}


def save(figure, path):
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
    print(f"wrote {path}")


def _power_ticks(axis):
    """Log ticks that read 1e-4, 1e-3, ... and nothing between."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{round(np.log10(value))}"))
    axis.set_minor_locator(NullLocator())


def _values(rows, key, worst):
    """One value per row, cut at `worst`, which stands in for what a failed run lacks."""
    return [worst if row[key] is None else min(row[key], worst) for row in rows]


def _rate_panel(axes, rows, key, label, worst, color=COLORS[0], name="mean"):
    """One value per run against learning rate: points, and a band from least to most over seeds."""
    rates = sorted({row["rate"] for row in rows})
    by_rate = [_values([row for row in rows if row["rate"] == rate], key, worst) for rate in rates]
    axes.fill_between(rates, [min(v) for v in by_rate], [max(v) for v in by_rate],
                      color=color, alpha=0.2, linewidth=0, label="range over seeds")
    axes.plot(rates, [np.mean(v) for v in by_rate], color=color, label=name)
    for status, marker in MARKERS.items():
        chosen = [row for row in rows if row["status"] == status]
        if chosen:
            axes.plot([row["rate"] for row in chosen], _values(chosen, key, worst), marker,
                      color=color if status == "stopped" else COLORS[5], markersize=5,
                      markerfacecolor="none" if marker != "x" else None, linestyle="none",
                      label=f"run that {STATUS_WORDS[status]}")
    axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel=label)
    _power_ticks(axes.xaxis)


def _by_rate(rows):
    """dict of rate -> its rows, largest rate first."""
    groups = {}
    for row in sorted(rows, key=lambda row: -row["rate"]):
        groups.setdefault(row["rate"], []).append(row)
    return groups


def _best_so_far(row, epochs):
    """The least validation loss of a run's first epochs; NaN when all of them diverged."""
    values = [value for value in row["history"]["val_loss"][:epochs] if value is not None]
    return min(values, default=np.nan)


def _same_epochs_panel(axes, groups, worst):
    """What each rate has reached after the same number of epochs; a run that ended keeps its best.
    """
    longest = max(row["epochs"] for group in groups.values() for row in group)
    counts = [count for count in (3, 10, 30, 100, 300, 1000) if count < longest] + [longest]
    colors = matplotlib.colormaps["viridis"](np.linspace(0.9, 0, len(counts)))
    for count, color in zip(counts, colors):
        means = [np.mean([min(_best_so_far(row, count), worst) for row in group])
                 for group in groups.values()]
        axes.plot(list(groups), means, "o-", markersize=3, color=color, label=f"{count:,}")
    axes.set(xscale="log", yscale="log", xlabel="learning rate",
             ylabel="best validation loss so far (nats)", title="After the same number of epochs")
    _power_ticks(axes.xaxis)
    plain_log(axes.yaxis)
    axes.legend(title="epochs", fontsize=8, title_fontsize=8, loc="upper right")


def _curves_panel(axes, groups, worst):
    """Validation loss by epoch, a line per run, each rate labelled where its first run ends."""
    colors = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(groups)))
    ends = []
    for (rate, group), color in zip(groups.items(), colors):
        for row in group:
            values = [np.nan if v is None else v for v in row["history"]["val_loss"]]
            epochs = range(1, len(values) + 1)
            axes.plot(epochs, values, color=color, linewidth=1)
            if row["best_epoch"]:
                best = row["best_epoch"]
                axes.plot(best, values[best - 1], MARKERS[row["status"]], color=color, markersize=4)
            if not values[-1] <= 1.3 * worst:
                axes.annotate("leaves", (len(values), 1.25 * worst), color=color, fontsize=8)
        ends.append((np.nanmin([min(values[-1], worst)]), len(values), f"{rate:g}", color))
    placed = []                                 # labels in the order of the curves' ends, apart
    for loss, epochs, text, color in sorted(ends, key=lambda end: end[0]):
        height = loss
        while any(0.5 < epochs / x < 2 and height < 1.13 * y for x, y in placed):
            height *= 1.02
        placed.append((epochs, height))
        axes.annotate(text, (epochs, loss), (epochs * 1.1, height), color=color, fontsize=9,
                      va="center", annotation_clip=False,
                      bbox={"facecolor": "white", "alpha": 0.7, "pad": 0.5, "edgecolor": "none"})
    axes.set(xscale="log", yscale="log", xlabel="epoch", ylabel="validation loss (nats)",
             title="The way there: one line per run, labelled with its rate; dots: best epochs")
    axes.set_xlim(1, 1.6 * max(end[1] for end in ends))
    axes.set_ylim(None, 1.3 * worst)            # a diverging run leaves through the top
    plain_log(axes.xaxis)
    plain_log(axes.yaxis)


def _lr_ablation(result):
    """Epochs to stop, best validation loss, progress, and the curves, by learning rate."""
    rows, best, config = result["rows"], result["best_rate"], result["config"]
    groups, worst = _by_rate(rows), np.log(config["LAYER_SIZES"][-1])   # a uniform guess's loss
    figure = Figure(figsize=(8.3, 10.5), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=(1, 1, 1.5))
    stop, loss = (figure.add_subplot(grid[0, column]) for column in (0, 1))
    _rate_panel(stop, rows, "epochs", "epochs to stop", np.inf)
    stop.set_title("How long a run lasts")
    plain_log(stop.yaxis)
    _rate_panel(loss, rows, "val_loss", "best validation loss (nats)", worst)
    loss.axvline(best, color=COLORS[6], linewidth=1, linestyle=":", label=f"least mean: {best:g}")
    loss.set_title("What it has reached then")
    plain_log(loss.yaxis)
    _same_epochs_panel(figure.add_subplot(grid[1, 0]), groups, worst)
    words = figure.add_subplot(grid[1, 1])
    words.axis("off")
    words.legend(*loss.get_legend_handles_labels(), loc="upper left", fontsize=9)
    words.text(0.02, 0.02, f"The rule: a run stops when {config['PATIENCE']} epochs bring less\n"
               f"than {config['MIN_DELTA']:g} nats. So a slow rate stops where its\n"
               "progress per epoch becomes small, not where\nit has converged.",
               fontsize=9, va="bottom", transform=words.transAxes)
    _curves_panel(figure.add_subplot(grid[2, :]), groups, worst)
    return figure


def _optimizer(result):
    """Epochs to stop and best validation loss against learning rate, by optimizer."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    stop, loss = figure.subplots(1, 2)
    worst = np.log(result["config"]["LAYER_SIZES"][-1])
    for (name, entry), color in zip(result["optimizers"].items(), COLORS):
        _rate_panel(stop, entry["rows"], "epochs", "epochs to stop", np.inf, color, name)
        _rate_panel(loss, entry["rows"], "val_loss", "best validation loss (nats)", worst, color,
                    name)
    stop.set_title("How long a run lasts")
    loss.set_title("What it reaches")
    plain_log(stop.yaxis)
    plain_log(loss.yaxis)
    shown = dict(zip(*reversed(stop.get_legend_handles_labels())))     # each label once
    figure.legend(shown.values(), shown.keys(), loc="outside lower left", ncols=6, fontsize=9)
    return figure


def _quant_vs_unquant(result):
    """Validation loss, test accuracy and whole-file bytes, by kind of model."""
    models = result["models"]
    names = list(models)
    panels = (("val_loss", "validation loss (nats)", 1), ("test_acc", "test accuracy (%)", 100),
              ("file_bytes", "weights file (kB)", 1e-3))
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    all_axes = figure.subplots(1, 3)
    for axes, (key, label, unit) in zip(all_axes, panels):
        values = [np.array([row.get(key, np.nan) for row in models[name]["rows"]]) * unit
                  for name in names]      # a model with free scales has no file
        for x, (v, color) in enumerate(zip(values, COLORS)):
            spread = np.linspace(-0.12, 0.12, len(v)) if len(v) > 1 else np.zeros(1)
            if key == "file_bytes":
                axes.bar(x, v.mean(), 0.6, color=color)
                if np.isfinite(v).all():
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
    verdicts = [f"{name.replace('ptq', 'PTQ').replace('qat', 'QAT')}: "
                f"{stats.describe(comparison['test_acc'])}"
                for name, comparison in result["comparisons"].items()]
    all_axes[1].set_title("Accuracy")
    all_axes[2].set_title("Size of the whole file")
    all_axes[2].margins(y=0.1)
    note = (f"{result['dataset']['name']}; dots: {len(result['seeds'])} seeds; "
            "diamonds: mean ± standard deviation over seeds")
    figure.supxlabel("\n".join([note, *verdicts]), fontsize=8.5)
    return figure


def _scaling(result):
    """Seconds per lane-epoch along each axis, with the limit that the GEMM rate sets."""
    figure = Figure(figsize=(15, 4), layout="constrained")
    all_axes = figure.subplots(1, 4)
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
        axes.xaxis.set_minor_locator(NullLocator())
        if axis != "width":
            axes.set_ylim(0.1, 2)
        plain_log(axes.yaxis)
    all_axes[0].set_ylabel("seconds per lane-epoch")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=3,
                  fontsize=9)
    return figure


PLOTS = {"lr_ablation": (_lr_ablation, "lr_ablation.png"),
         "scaling": (_scaling, "scaling.png"),
         "optimizer": (_optimizer, "optimizer.png"),
         "bits": (figures.bits, "bits.png"),
         "frontier": (figures.frontier, "frontier.png"),
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
