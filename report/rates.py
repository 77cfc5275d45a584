"""Figures of learning rates: how long runs last, what they reach, and the curves on the way."""
import matplotlib
import numpy as np
from matplotlib.figure import Figure  # not pyplot: no screen is needed, nothing global
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from report.figures import COLORS, MARKERS, plain_log, setting, spread_out

STATUS_WORDS = {"stopped": "stopped early", "capped": "met the epoch cap", "diverged": "diverged",
                "guessing": "got no better than guessing", "inexact": "left the exact integers"}


def _power_ticks(axis):
    """Log ticks that read 1e-4, 1e-3, ... and nothing between."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{round(np.log10(value))}"))
    axis.set_minor_locator(NullLocator())


def _rate_axis(axes):
    """Learning rates from left to right, everything logarithmic."""
    axes.set(xscale="log", yscale="log", xlabel="learning rate")
    _power_ticks(axes.xaxis)
    plain_log(axes.yaxis)


def _by_rate(rows):
    """dict of rate -> its rows, largest rate first."""
    groups = {}
    for row in sorted(rows, key=lambda row: -row["rate"]):
        groups.setdefault(row["rate"], []).append(row)
    return groups


def _values(rows, key, worst):
    """One value per row, cut at `worst`, which stands in for what a failed run lacks."""
    return [worst if row[key] is None else min(row[key], worst) for row in rows]


def _rate_panel(axes, rows, key, worst, color=COLORS[0], best=None):
    """One value per run against learning rate: seeds side by side, a line through their means, a
    band from least to most, a star at the best rate."""
    groups = {rate: _values(group, key, worst) for rate, group in _by_rate(rows).items()}
    axes.fill_between(list(groups), [min(v) for v in groups.values()],
                      [max(v) for v in groups.values()], color=color, alpha=0.2, linewidth=0)
    axes.plot(list(groups), [np.mean(v) for v in groups.values()], color=color, linewidth=1.5)
    for group, values in zip(_by_rate(rows).values(), groups.values()):
        for i, (row, value) in enumerate(zip(group, values)):
            axes.plot(row["rate"] * 1.12 ** (i - (len(group) - 1) / 2), value, color=color,
                      **_run_marker(row["status"]))
    if best is not None:
        axes.plot(best, np.mean(groups[best]), "*", color=color, markersize=15,
                  markeredgecolor="white", zorder=4)


def _run_marker(status):
    """The look of one run, which says how it ended."""
    marker = MARKERS[status]
    return {"marker": marker, "linestyle": "none", "markersize": 5.5 if marker == "x" else 4.5,
            "markerfacecolor": "white", "zorder": 3}


def _run_marks(rows):
    """Legend entries, in grey, of the marks of these runs."""
    marks = [Line2D([], [], color="0.35", label="mean over seeds"),
             Patch(facecolor="0.35", alpha=0.25, label="range over seeds")]
    met = {row["status"] for row in rows}
    return marks + [Line2D([], [], color="0.35", label=f"run that {words}", **_run_marker(status))
                    for status, words in STATUS_WORDS.items() if status in met]


def _best_so_far(row, epochs):
    """The least validation loss of a run's first epochs; infinity when all of them diverged."""
    values = [value for value in row["history"]["val_loss"][:epochs] if value is not None]
    return min(values, default=np.inf)


def _end_labels(axes, ends, x, **how):
    """Name curves beside the axes, in the order of their ends and apart.

    Args:
      ends: list of (x, y, text, color); x: of the names, as a part of the axes' width.
    """
    low, high = np.log(axes.get_ylim())
    heights = spread_out([np.log(end[1]) for end in ends], 0.15 * (high - low) / _inches(axes))
    for (end_x, end_y, text, color), height in zip(ends, heights):
        axes.annotate(text, (end_x, end_y), (x, np.exp(height)), color=color, fontsize=9.5,
                      textcoords=axes.get_yaxis_transform(), va="center", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "linestyle": ":", "color": color,
                                  "shrinkA": 1, "shrinkB": 3, "linewidth": 1}, **how)


def _inches(axes):
    """About how high a panel is; the layout is not known yet."""
    spec = axes.get_gridspec()
    share = axes.get_subplotspec().rowspan.start
    ratios = spec.get_height_ratios()
    return 0.85 * axes.figure.get_figheight() * ratios[share] / sum(ratios)


def _same_epochs_panel(axes, groups, worst):
    """What each rate has reached after the same number of epochs; a run that ended keeps its best.
    """
    longest = max(row["epochs"] for group in groups.values() for row in group)
    counts = [count for count in (3, 10, 30, 100, 300, 1000) if count < longest] + [longest]
    colors = matplotlib.colormaps["viridis"](np.linspace(0.85, 0, len(counts)))
    ends = []
    for count, color in zip(counts, colors):
        means = [np.mean([min(_best_so_far(row, count), worst) for row in group])
                 for group in groups.values()]
        axes.plot(list(groups), means, "o-", markersize=3.5, color=color)
        ends.append((min(groups), means[-1], f"{count:,} epochs", color))
    _rate_axis(axes)
    _end_labels(axes, ends, 0.115, ha="right")


def _curves_panel(axes, groups, worst):
    """Validation loss by epoch: a line per run, a colour and a name per rate, dots at best epochs.

    A run that leaves the axes through the top has a triangle there; returns whether one does.
    """
    top, ends, leaves = 1.3 * worst, [], False
    for i, (rate, group) in enumerate(groups.items()):
        color, dashes = COLORS[i % len(COLORS)], ("-", "--")[i // len(COLORS) % 2]
        for row in group:
            values = np.array([top * 2 if v is None else v for v in row["history"]["val_loss"]])
            epochs = np.arange(1, len(values) + 1)
            axes.plot(epochs, values, color=color, linewidth=1, linestyle=dashes)
            if row["best_epoch"]:
                axes.plot(row["best_epoch"], values[row["best_epoch"] - 1], "o", color=color,
                          markersize=5.5, markeredgecolor="white")
            if (values > top).any():
                leaves = True
                axes.plot(epochs[np.argmax(values > top)], 0.93 * top, "^", color=color,
                          markersize=9)
        # The longest run of the rate carries its name.
        last = max(group, key=lambda row: row["epochs"])
        loss = last["history"]["val_loss"][-1]
        loss = top if loss is None else min(loss, top)
        ends.append((last["epochs"], loss, f"{rate:g}{' ▲' if loss == top else ''}", color))
    axes.set(xscale="log", yscale="log", xlabel="epoch", ylabel="validation loss (nats)")
    axes.set_xlim(1, 1.1 * max(end[0] for end in ends))
    axes.set_ylim(0.7 * min(end[1] for end in ends), top)
    plain_log(axes.xaxis)
    plain_log(axes.yaxis)
    _end_labels(axes, ends, 1.015)
    return leaves


def learning_rates(result):
    """Epochs to stop, best validation loss, progress, and the curves, by learning rate."""
    rows, best, config = result["rows"], result["best_rate"], result["config"]
    groups, worst = _by_rate(rows), np.log(config["LAYER_SIZES"][-1])   # a uniform guess's loss
    figure = Figure(figsize=(8.3, 11.5), layout="constrained")
    stop, loss, same, curves = figure.subplots(4, 1, height_ratios=(1, 1, 1.2, 1.8))
    for axes in (loss, same):
        axes.sharex(stop)
    _rate_panel(stop, rows, "epochs", np.inf, best=best)
    _rate_panel(loss, rows, "val_loss", worst, best=best)
    star = Line2D([], [], linestyle="none", marker="*", markersize=12, color="0.35",
                  label=f"least mean loss: {best:g}")
    marks = [*_run_marks(rows), star]
    figure.legend(handles=marks, loc="outside upper center", ncols=4 if len(marks) < 5 else 3,
                  fontsize=9)
    for axes, label in ((stop, "epochs to stop"), (loss, "best loss (nats)")):
        _rate_axis(axes)
        axes.set(xlabel="", ylabel=label)
    stop.set_xlim(min(groups) / 5, 1.6 * max(groups))       # room for the names of the third panel
    _same_epochs_panel(same, groups, worst)
    same.set_ylabel("best loss so far (nats)")
    leaves = " ▲: leaves the axes." * _curves_panel(curves, groups, worst)
    for axes, title in ((stop, "How long a run lasts"),
                        (loss, "The best validation loss that it has reached then"),
                        (same, "What each rate has reached after the same number of epochs"),
                        (curves, "The way there: a line per run, named by its rate in the order of "
                         "the ends; dots: best epochs")):
        axes.set_title(title, loc="left", fontsize=11)
    figure.supxlabel(
        f"{setting(result, len({row['seed'] for row in rows}))}. A run stops when "
        f"{config['PATIENCE']} epochs bring less than {config['MIN_DELTA']:g} nats: a slow rate "
        "stops\nwhere its progress per epoch becomes small, not where it has converged." + leaves,
        fontsize=8.5)
    return figure


def optimizers(result):
    """Epochs to stop and best validation loss against learning rate, by optimizer."""
    figure = Figure(figsize=(8.3, 4.8), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 0.24))
    stop, loss = (figure.add_subplot(grid[0, column]) for column in (0, 1))
    worst = np.log(result["config"]["LAYER_SIZES"][-1])
    entries = result["optimizers"]
    for entry, color in zip(entries.values(), COLORS):
        _rate_panel(stop, entry["rows"], "epochs", np.inf, color, entry["best_rate"])
        _rate_panel(loss, entry["rows"], "val_loss", worst, color, entry["best_rate"])
    for axes, label, title in ((stop, "epochs to stop", "How long a run lasts"),
                               (loss, "best validation loss (nats)", "What it reaches")):
        _rate_axis(axes)
        axes.set(ylabel=label, title=title)
    kinds = [Line2D([], [], color=color, marker="*", markersize=12, markeredgecolor="white",
                    label=f"{name}: {entry['best_rate']:g}")
             for (name, entry), color in zip(entries.items(), COLORS)]
    every = [row for entry in entries.values() for row in entry["rows"]]
    for column, handles, title in ((0, kinds, "Optimizer; star: its best rate on validation"),
                                   (1, _run_marks(every), "Each rate")):
        words = figure.add_subplot(grid[1, column])
        words.axis("off")
        words.legend(handles=handles, title=title, loc="upper left", fontsize=9, title_fontsize=9,
                     ncols=1 + column, alignment="left", borderaxespad=0)
    figure.supxlabel(setting(result, len({row["seed"] for row in every})), fontsize=8.5)
    return figure
