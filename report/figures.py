"""The look of every figure, and two of them: accuracy against a weight's bits and against bytes."""
import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure  # not pyplot: no screen is needed, nothing global
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator
from scipy import optimize

from report.published import POINTS

# Okabe and Ito: distinct for the colour-blind, and in grey.
COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]
STYLE = {"figure.dpi": 130, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True, "legend.frameon": False}
MARKERS = {"stopped": "o", "capped": "^", "diverged": "x", "guessing": "x", "inexact": "x"}
OUTLINE = [patheffects.withStroke(linewidth=2.5, foreground="white")]   # of text over marks
GUESS = 90.0                    # test error in % of a guess among ten classes


def plain_log(axis):
    """A log axis that ends where its data does, with ticks that read as plain numbers."""
    low, high = axis.get_view_interval()
    steps = ((1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 6, 8) if high > 3 * low
             else range(1, 10))
    ticks = [step * 10.0**power for power in range(-4, 6) for step in steps]
    axis.set_ticks([tick for tick in ticks if low <= tick <= high])
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def setting(result, seeds):
    """The data set, the network and how many seeds a study has, in words."""
    return (f"{result['dataset']['name']}, {'-'.join(map(str, result['config']['LAYER_SIZES']))}, "
            f"{seeds} seed{'s' * (seeds != 1)}")


def spread_out(positions, gap):
    """The positions moved as little as it takes to be `gap` apart, in the same order; float [n]."""
    order, steps = np.argsort(positions), gap * np.arange(len(positions))
    apart = np.empty(len(positions))
    apart[order] = optimize.isotonic_regression(np.array(positions)[order] - steps).x + steps
    return apart


PASSES = 3                      # over the names of a figure


def put_names(figure, axes, names, marks):
    """Names beside their points, each on the side where it covers the fewest marks and names.

    Args:
      names: list of (x, y, text, dict for annotate); marks: floats [N, 2], what to keep clear of.
    """
    figure.draw_without_rendering()             # so that positions are known
    marks, places = axes.transData.transform(marks), []
    sides = [(x, y) for y in (-1, 1, 0) for x in (0, 1, -1) if x or y]
    for x, y, text, how in names:
        choices = []
        for at_x, at_y in sides:
            name = axes.annotate(
                text, (x, y), ((4 if at_y else 8) * at_x, 8 * at_y), textcoords="offset points",
                ha=("center", "left", "right")[at_x], va=("center", "bottom", "top")[at_y], **how)
            box = name.get_window_extent().padded(9)
            inside = axes.bbox.fully_containsx(box.x0) and axes.bbox.fully_containsx(
                box.x1) and axes.bbox.fully_containsy(box.y0)
            choices.append((box.count_contains(marks) + 9 * (not inside), name, box))
        places.append(choices)
    best = [min(choices, key=lambda choice: choice[0]) for choices in places]
    for i in PASSES * list(range(len(names))):  # each again, now that the others have their places
        others = [box for j, (_, _, box) in enumerate(best) if j != i]
        best[i] = min(places[i], key=lambda choice: choice[0] + 2 * choice[2].count_overlaps(others))
    for choices, (_, kept, _) in zip(places, best):
        for _, name, _ in choices:
            if name is not kept:
                name.remove()


def _accuracy_axis(axes):
    """A y axis of errors in %, logarithmic and upside down, that reads as test accuracy."""
    axes.set_yscale("log")
    axes.invert_yaxis()
    high, low = axes.get_ylim()
    ticks = ((0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 90) if high > 20 * low else
             (0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 30, 50, 90))
    axes.set_yticks([error for error in ticks if low <= error <= high])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 - error:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("test accuracy (%)")


def _errors(rows):
    """Test errors in %: of the usable runs, and of the others, a guess's for those without any."""
    usable, failed = [], []
    for row in rows:                            # what was rounded after training has no status
        ok = MARKERS[row.get("status", "stopped")] != "x"
        error = GUESS if row["test_acc"] is None else 100 * (1 - row["test_acc"])
        (usable if ok else failed).append(error)
    return usable, failed


MODELS = {"learned": ("QAT, learned scales", COLORS[0], "o"),
          "calibrated": ("QAT, calibrated scales", COLORS[1], "s"),
          "ptq": ("rounded after training", COLORS[5], "v")}
DIFFERENCES = {"learned - calibrated": ("learned − calibrated", COLORS[0], "o"),
               "free - power-of-two": ("free − power-of-two", COLORS[2], "D"),
               "per-tensor - per-channel": ("per-tensor − per-channel", COLORS[3], "^")}


def _gains(axes, result):
    """What QAT with calibrated scales gains over rounding: arrows, from one percentage point on."""
    for x, width in enumerate(result["widths"]):
        gain = width["comparisons"]["calibrated - PTQ"]["mean"]
        if gain is not None and gain >= 0.01:
            low, high = (np.mean(_errors(width["models"][key]["rows"])[0])
                         for key in ("ptq", "calibrated"))
            axes.annotate("", (x, high), (x, low), arrowprops={
                "arrowstyle": "->", "color": "0.3", "shrinkA": 7, "shrinkB": 7})
            axes.annotate(f"+{100 * gain:.1f} pp", (x, low**0.7 * high**0.3), (2, 0), va="center",
                          textcoords="offset points", fontsize=8.5)


def _models_panel(axes, result):
    """Accuracy against bits, by kind of model: the mean and range of its usable runs."""
    errors, _ = _errors(result["float32"]["rows"])
    axes.axhspan(min(errors), max(errors), color=COLORS[6], alpha=0.12, linewidth=0)
    axes.axhline(np.mean(errors), color=COLORS[6], linewidth=1, linestyle="--", label="float32")
    for key, (label, color, marker) in MODELS.items():
        groups = [_errors(width["models"][key]["rows"]) for width in result["widths"]]
        kept = {x: usable for x, (usable, _) in enumerate(groups) if usable}
        axes.fill_between(list(kept), [min(v) for v in kept.values()],
                          [max(v) for v in kept.values()], color=color, alpha=0.25, linewidth=0)
        axes.plot(list(kept), [np.mean(v) for v in kept.values()], marker, linestyle="-",
                  color=color, markersize=5, label=label)
        failed = [(x, error) for x, (_, errors) in enumerate(groups) for error in errors]
        if failed:
            axes.plot(*zip(*failed), "x", color=color, label="run without a usable model")
    _accuracy_axis(axes)
    axes.set_title("Accuracy by the bits of a weight")
    _gains(axes, result)
    shown = dict(zip(*reversed(axes.get_legend_handles_labels())))      # each label once
    axes.legend(shown.values(), shown.keys(), loc="lower left", fontsize=9)


def _differences_panel(axes, result):
    """Paired differences over the same seeds, with their 95 % intervals."""
    axes.axhline(0, color=COLORS[6], linewidth=1)
    for shift, (key, (label, color, marker)) in zip((-0.18, 0, 0.18), DIFFERENCES.items()):
        for x, width in enumerate(result["widths"]):
            of = width["comparisons"][key]
            if of["mean"] is not None:
                half = None if of["low"] is None else 100 * (of["high"] - of["mean"])
                axes.errorbar(x + shift, 100 * of["mean"], half, fmt=marker, color=color,
                              markersize=5, capsize=2.5, label=None if x else label,
                              markerfacecolor=color if of["measured"] else "white")
    axes.set_yscale("symlog", linthresh=0.1, linscale=0.7)      # small ones show beside large ones
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(4 * high, 1))        # room for the legend
    axes.set_yticks([tick for tick in (-30, -10, -3, -1, -0.3, -0.1, 0, 0.1, 0.3, 1, 3, 10, 30)
                     if low <= tick <= max(4 * high, 1)])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−")
                                               if value else "0"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("difference in test accuracy (pp)")
    axes.set_title("What the scales change")
    axes.legend(loc="upper left", fontsize=9)


def bits(result):
    """Accuracy against a weight's bits, and what the kind of scale changes."""
    figure = Figure(figsize=(8.3, 4.3), layout="constrained")
    figure.get_layout_engine().set(wspace=0.04)
    panels = figure.subplots(1, 2, width_ratios=(1.1, 1))
    _models_panel(panels[0], result)
    _differences_panel(panels[1], result)
    panels[0].set_xlim(-0.3, len(result["widths"]) - 0.05)      # room for the last gain
    for axes in panels:
        axes.set_xticks(range(len(result["widths"])),
                        [width["weight_bits"] for width in result["widths"]])
        axes.set_xlabel("bits of a weight")
        axes.grid(axis="x", visible=False)
    figure.supxlabel(
        f"{setting(result, len(result['seeds']))}, activations of "
        f"{result['config']['ACTIVATION_BITS']} bits. Left: mean and range over seeds;\n"
        "arrows: what calibrated QAT gains. Right: mean and 95 % interval over the same seeds;\n"
        "filled where p < 0.05. Close to 0 the axis is linear.", fontsize=8.5)
    return figure


WEIGHT_COLORS = {1: COLORS[5], 2: COLORS[2], 3: COLORS[1], 4: COLORS[0]}    # others: COLORS[3]
INPUT_MARKERS = {28: "s", 14: "o", 12: "^", 10: "v"}
PUBLISHED = {"linestyle": "none", "marker": "D", "color": COLORS[6], "markersize": 5,
             "markerfacecolor": "white"}


def _key(axes, networks):
    """The legend of colours and markers."""
    marks = [Line2D([], [], linestyle="none", marker="o", color=WEIGHT_COLORS.get(bits, COLORS[3]),
                    label=f"{bits}-bit weights")
             for bits in sorted({network["WEIGHT_BITS"] for network in networks})]
    marks += [Line2D([], [], **PUBLISHED, label="published")]
    marks += [Line2D([], [], linestyle="none", marker=INPUT_MARKERS[side], color="0.4",
                     markerfacecolor="none", label=f"{side} × {side} pixels")
              for side in sorted({network["INPUT"] for network in networks})]
    axes.legend(handles=marks, loc="lower right", ncols=2, fontsize=9, columnspacing=1.5)


def _network_points(axes, networks):
    """Our networks, a line of the best in so many bytes; returns how many can't be drawn."""
    drawn = []
    for network in networks:
        usable, failed = _errors(network["rows"])
        if network["file_bytes"] is None or not usable:
            continue
        at = network["file_bytes"], np.mean(usable)
        drawn.append((*at, -np.mean([row["val_acc"] for row in network["rows"]
                                     if row["val_acc"] is not None])))
        color = WEIGHT_COLORS.get(network["WEIGHT_BITS"], COLORS[3])
        axes.errorbar(*at, np.std(usable, ddof=1) if len(usable) > 1 else None,
                      fmt=INPUT_MARKERS[network["INPUT"]], capsize=2, elinewidth=1, markersize=6,
                      color=color, markerfacecolor="white" if failed else color)
    best = []                                   # by validation: a choice by test would flatter it
    for point in sorted(drawn):
        if not best or point[2] < best[-1][2]:
            best.append(point)
    if best:
        sizes, errors, _ = zip(*best)
        axes.plot(sizes, errors, color="0.6", linewidth=1.5, drawstyle="steps-post", zorder=1)
    return len(networks) - len(drawn)


def frontier(result):
    """Accuracy against the bytes of the whole file: our networks, recipes, and published ones."""
    figure = Figure(figsize=(8.3, 5.6), layout="constrained")
    axes = figure.subplots()
    lost, names = _network_points(axes, result["networks"]), []
    home = result["dataset"]["name"] == "MNIST"     # as are the published points and the recipes
    for point in POINTS if home else ():
        at = point.bytes, 100 * (1 - point.test_acc)
        axes.plot(*at, **PUBLISHED)
        names.append((*at, point.name, {"fontsize": 8.5, "path_effects": OUTLINE}))
    for recipe in result.get("recipes", []) if home else ():
        usable, _ = _errors(recipe["rows"])
        at = max(row["file_bytes"] for row in recipe["rows"]), np.mean(usable)
        axes.errorbar(*at, np.std(usable, ddof=1) if len(usable) > 1 else None, fmt="*",
                      color=COLORS[5], markersize=13, capsize=2, markeredgecolor="white", zorder=3)
        names.append((*at, recipe["name"], {"color": COLORS[5], "fontweight": "bold", "fontsize": 9,
                                            "path_effects": OUTLINE}))
    axes.set_xscale("log")
    axes.set_xticks([1000 * 2**power for power in range(10)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / 1000:g} kB"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min(2_000, 0.9 * axes.dataLim.x0), 700_000)
    _accuracy_axis(axes)
    axes.set_xlabel("whole file (of published networks: the weights; if convolutional: all flash)")
    _key(axes, result["networks"])
    axes.set_title("Accuracy in so many bytes")
    note = (f"{result['dataset']['name']}; colours: mean ± standard deviation over "
            f"{len(result['seeds'])} seeds; line: the best on validation of at most this size; "
            "stars: recipes.\n"
            "Published points were selected on the test set; ours were not.")
    if any(network["test_acc"]["missing"] for network in result["networks"]):
        note += f" Hollow: some runs failed; not drawn, as all did: {lost}."
    figure.supxlabel(note, fontsize=8.5)
    marks = [(x, y) for line in axes.lines for x, y in line.get_xydata()]
    put_names(figure, axes, names, np.array(marks))
    return figure


CHIP_STYLES = {"cortex-m0": ("o", COLORS[0]), "cortex-m3": ("s", COLORS[4]),
               "rv32ec": ("^", COLORS[5]), "atmega328p": ("v", COLORS[2])}
PEER = ("BitNetMCU, 4 bits", 14_500, 0.9902)    # its flash of all, as its authors give it


def firmware(result):
    """Accuracy against the flash of the whole program, the chips' sizes as lines."""
    figure = Figure(figsize=(8.3, 4.6), layout="constrained")
    axes, named, names = figure.subplots(), set(), []
    for row in sorted((row for row in result["rows"] if "flash" in row), key=lambda r: r["flash"]):
        marker, color = CHIP_STYLES[row["chip"]]
        error = 100 * (1 - row["test_acc"])
        axes.plot(row["flash"], error, marker, color=color, markersize=6, alpha=0.8)
        if row["name"] not in named:
            named.add(row["name"])
            label = row["name"].split("/")[-1].split(".")[0].replace("weights_int8", "default")
            names.append((row["flash"], error, label, {"fontsize": 9, "path_effects": OUTLINE}))
    name, size, accuracy = PEER
    axes.plot(size, 100 * (1 - accuracy), **PUBLISHED)
    names.append((size, 100 * (1 - accuracy), name, {"fontsize": 9, "path_effects": OUTLINE}))
    axes.margins(y=0.1)
    axes.set_xscale("log")
    axes.set_xlim(4_000, 500_000)
    sizes = {}
    for chip, memory in result["chips"].items():
        sizes.setdefault(memory["flash"], []).append(chip)
    for size, chips in sizes.items():
        axes.axvline(size, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(f"{', '.join(chips)}: {size // 1024} KiB", (size, 0.03), (3, 0),
                      xycoords=("data", "axes fraction"), textcoords="offset points", rotation=90,
                      va="bottom", fontsize=8.5, color="0.3")
    axes.set_xticks([1000 * 2**power for power in range(2, 9)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / 1000:g} kB"))
    axes.xaxis.set_minor_locator(NullLocator())
    _accuracy_axis(axes)
    axes.set_xlabel("flash of the whole program")
    axes.set_title("Accuracy in so much flash")
    axes.legend(handles=[Line2D([], [], linestyle="none", marker=marker, color=color, label=chip)
                         for chip, (marker, color) in CHIP_STYLES.items()]
                + [Line2D([], [], **PUBLISHED, label="published")], loc="lower left",
                bbox_to_anchor=(0.5, 0), fontsize=9)
    marks = [(x, y) for line in axes.lines if len(line.get_xdata()) == 1
             for x, y in line.get_xydata()]
    low, high = axes.get_ylim()
    marks += [(size, y) for size in sizes for y in np.geomspace(low, high, 40)]     # the lines
    put_names(figure, axes, names, np.array(marks))
    return figure
