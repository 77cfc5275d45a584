"""Figures of learning rates: how long runs last, what they reach, and the curves on the way."""
import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure  # not pyplot: no screen is needed, nothing global
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from report import stats
from report.results import group
from report.style import COLORS, guess_loss, plain_log, rate_axis, run_marker, setting


def _by_rate(rows):
    """{rate: its rows}, largest rate first."""
    return group(sorted(rows, key=lambda row: -row["rate"]), "rate")


def _run_look(marker):
    """The look of one run, by the marker that says how it ended."""
    return {"marker": marker, "linestyle": "none", "markersize": 5.5 if marker == "x" else 4.5,
            "markerfacecolor": "white", "zorder": 3}


def _rate_panel(axes, rows, key, worst, color=COLORS[0]):
    """One value per run against learning rate: seeds side by side, a line through their means, a
    band from least to most, a star at the best rate. `worst`: what values are cut at, and what
    stands in for those that failed runs lack."""
    groups = _by_rate(rows)
    values = {rate: [worst if row[key] is None else min(row[key], worst) for row in own]
              for rate, own in groups.items()}
    axes.fill_between(list(values), [min(v) for v in values.values()],
                      [max(v) for v in values.values()], color=color, alpha=0.2, linewidth=0)
    axes.plot(list(values), [np.mean(v) for v in values.values()], color=color, linewidth=1.5)
    for rate, own in groups.items():
        for i, (row, value) in enumerate(zip(own, values[rate])):
            axes.plot(rate * 1.12 ** (i - (len(own) - 1) / 2), value, color=color,
                      **_run_look(run_marker(row)))
    best = stats.best_rate(rows)
    axes.plot(best, np.mean(values[best]), "*", color=color, markersize=15,
              markeredgecolor="white", zorder=4)


def _run_marks(rows):
    """Legend entries, in grey, of the marks of these runs."""
    marks = [Line2D([], [], color="0.35", label="mean over seeds"),
             Patch(facecolor="0.35", alpha=0.25, label="range over seeds")]
    met = {row["status"]: run_marker(row) for row in rows}
    return marks + [Line2D([], [], color="0.35", label=f"run: {status}", **_run_look(marker))
                    for status, marker in met.items()]


def _best_so_far(row, epochs):
    """The least validation loss of a run's first epochs; infinity when all of them diverged."""
    values = [value for value in row["history"]["val_loss"][:epochs] if value is not None]
    return min(values, default=np.inf)


def _same_epochs_panel(axes, groups, worst):
    """What each rate has reached after the same number of epochs; a run that ended keeps its best.
    """
    longest = max(row["epochs"] for own in groups.values() for row in own)
    counts = [count for count in (3, 10, 30, 100, 300, 1000) if count < longest] + [longest]
    colors = matplotlib.colormaps["viridis"](np.linspace(0.85, 0, len(counts)))
    for count, color in zip(counts, colors):
        means = [np.mean([min(_best_so_far(row, count), worst) for row in own])
                 for own in groups.values()]
        axes.plot(list(groups), means, "o-", markersize=3.5, color=color, label=f"{count:,}")
    rate_axis(axes)
    axes.legend(title="epochs", loc="upper right", ncols=2, fontsize=9, title_fontsize=9)


def _curves_panel(axes, groups, worst):
    """Validation loss by epoch: a line per run, a colour per rate, dots at best epochs.

    A run that leaves the axes through the top has a triangle there, and so has its rate's name.
    """
    top, least = 1.3 * worst, worst
    colors = map(to_hex, matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(groups))))
    for i, ((rate, own), color) in enumerate(zip(groups.items(), colors)):
        look = {"color": color, "linestyle": ("-", "--")[i % 2]}
        leaves = False
        for row in own:
            values = np.array([top * 2 if v is None else v for v in row["history"]["val_loss"]])
            epochs, least = np.arange(1, len(values) + 1), min(least, values.min())
            axes.plot(epochs, values, linewidth=1, **look)
            if row["best_epoch"]:
                axes.plot(row["best_epoch"], values[row["best_epoch"] - 1], "o", markersize=5.5,
                          markeredgecolor="white", color=look["color"])
            if (values > top).any():
                leaves = True
                axes.plot(epochs[np.argmax(values > top)], 0.93 * top, "^", markersize=9,
                          color=look["color"])
        axes.plot([], [], label=f"{rate:g}{' ▲' if leaves else ''}", **look)
    axes.set(xscale="log", yscale="log", xlabel="epoch", ylabel="validation loss (nats)")
    axes.set_xlim(1, 1.1 * max(row["epochs"] for own in groups.values() for row in own))
    axes.set_ylim(0.8 * least, top)
    plain_log(axes.xaxis)
    plain_log(axes.yaxis)
    axes.legend(title="learning rate", loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9,
                title_fontsize=9)


def learning_rates(result):
    """Epochs to stop, best validation loss, progress, and the curves, by learning rate."""
    rows, config = result["rows"], result["config"]
    groups, worst = _by_rate(rows), guess_loss(result)
    figure = Figure(figsize=(8.3, 11.5), layout="constrained")
    stop, loss, same, curves = figure.subplots(4, 1, height_ratios=(1, 1, 1.2, 1.8))
    for axes in (loss, same):
        axes.sharex(stop)
    _rate_panel(stop, rows, "epochs", np.inf)
    _rate_panel(loss, rows, "val_loss", worst)
    star = Line2D([], [], linestyle="none", marker="*", markersize=12, color="0.35",
                  label=f"least mean loss: {stats.best_rate(rows):g}")
    marks = [*_run_marks(rows), star]
    figure.legend(handles=marks, loc="outside upper center", ncols=4 if len(marks) < 5 else 3,
                  fontsize=9)
    for axes, label in ((stop, "epochs to stop"), (loss, "best loss (nats)")):
        rate_axis(axes)
        axes.set(xlabel="", ylabel=label)
    _same_epochs_panel(same, groups, worst)
    same.set_ylabel("best loss so far (nats)")
    _curves_panel(curves, groups, worst)
    for axes, title in ((stop, "How long a run lasts"),
                        (loss, "The best validation loss that it has reached then"),
                        (same, "What each rate has reached after the same number of epochs"),
                        (curves, "The way there: a line per run; dots: best epochs; ▲: leaves the "
                         "axes")):
        axes.set_title(title, loc="left", fontsize=11)
    figure.supxlabel(
        f"{setting(result)}. A run stops when "
        f"{config['PATIENCE']} epochs bring less than {config['MIN_DELTA']:g} nats: a slow rate "
        "stops\nwhere its progress per epoch becomes small, not where it has converged.",
        fontsize=8.5)
    return figure


def optimizers(result):
    """Epochs to stop and best validation loss against learning rate, by optimizer."""
    figure = Figure(figsize=(8.3, 4.8), layout="constrained")
    stop, loss = figure.subplots(1, 2)
    worst, kinds = guess_loss(result), []
    for (label, rows), color in zip(group(result["rows"], "label").items(), COLORS):
        _rate_panel(stop, rows, "epochs", np.inf, color)
        _rate_panel(loss, rows, "val_loss", worst, color)
        kinds.append(Line2D([], [], color=color, marker="*", markersize=12,
                            markeredgecolor="white", label=f"{label}: {stats.best_rate(rows):g}"))
    for axes, label, title in ((stop, "epochs to stop", "How long a run lasts"),
                               (loss, "best validation loss (nats)", "What it reaches")):
        rate_axis(axes)
        axes.set(ylabel=label, title=title)
    figure.legend(handles=kinds + _run_marks(result["rows"]), loc="outside upper center", ncols=3,
                  fontsize=9)
    figure.supxlabel(f"{setting(result)}; stars: best rates on validation", fontsize=8.5)
    return figure
