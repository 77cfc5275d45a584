"""The look of every figure: colours, marks, axes, words, and the names of the files."""
import numpy as np
from matplotlib import patheffects
from matplotlib.ticker import FuncFormatter, NullLocator

FILES = {"lr_ablation": "lr_ablation.png", "optimizer": "optimizer.png", "bits": "bits.png",
         "bits_conv": "bits_conv.png", "frontier": "frontier.png", "firmware": "firmware.png",
         "scaling": "scaling.png",
         "quant_vs_unquant": "quant_vs_unquant_subplots.png"}       # by the result that they show
# Okabe and Ito: distinct for the colour-blind, and in grey.
COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]
STYLE = {"figure.dpi": 130, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True, "legend.frameon": False}
OUTLINE = [patheffects.withStroke(linewidth=2.5, foreground="white")]   # of text over marks
# Labels of the bits study that its figure and its table pick out.
ROUNDED = "rounded after training"
CALIBRATED, LEARNED = "QAT, calibrated scales", "QAT, learned scales"


def run_marker(row):
    """How one run ended: a dot by early stopping, a triangle otherwise, a cross: not usable."""
    if not row.get("usable", True):
        return "x"
    return "o" if row["status"] == "stopped" else "^"


def set_ticks(axis, ticks, text):
    """Ticks at these values only, each of them as text(value)."""
    axis.set_ticks(ticks)
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())


def plain_log(axis):
    """A log axis that ends where its data does, with ticks that read as plain numbers."""
    low, high = axis.get_view_interval()
    steps = ((1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 6, 8) if high > 3 * low
             else range(1, 10))
    ticks = [step * 10.0**power for power in range(-4, 6) for step in steps]
    set_ticks(axis, [tick for tick in ticks if low <= tick <= high], "{:g}".format)


def size_axis(axes, low, high, label):
    """An x axis of bytes, logarithmic."""
    axes.set(xscale="log", xlabel=label)
    set_ticks(axes.xaxis, [1000 * 2**power for power in range(10)],
              lambda size: f"{size / 1000:g} kB")
    axes.set_xlim(low, high)


def accuracy_axis(axes):
    """A y axis of errors in %, logarithmic and upside down, that reads as test accuracy."""
    axes.set_yscale("log")
    axes.invert_yaxis()
    high, low = axes.get_ylim()
    ticks = ((0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 90) if high > 20 * low else
             (0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 30, 50, 90))
    set_ticks(axes.yaxis, [error for error in ticks if low <= error <= high],
              lambda error: f"{100 - error:g}")
    axes.set_ylabel("test accuracy (%)")


def rate_axis(axes):
    """Learning rates from left to right, everything logarithmic."""
    axes.set(xscale="log", yscale="log", xlabel="learning rate")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{round(np.log10(value))}"))
    axes.xaxis.set_minor_locator(NullLocator())
    plain_log(axes.yaxis)


def setting(result):
    """The data set, the network and how many seeds a study has, in words."""
    seeds = len({row["seed"] for row in result["rows"]})
    return f"{result['dataset']['name']}, {shape(result)}, {seeds} seed{'s' if seeds > 1 else ''}"


def shape(result):
    """784-256-128-10: the network of a study of one, without its bits."""
    return result["rows"][0]["network"].rpartition(" ")[0]


def guess_loss(result):
    """The loss in nats of a uniform guess among the classes of a result's data."""
    return np.log(result["dataset"]["classes"])
