"""Figures of accuracy: quantized or not, by a weight's bits, a file's bytes, a chip's flash."""
import numpy as np
from matplotlib.figure import Figure  # not pyplot: no screen is needed, nothing global
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from report import stats
from report.published import POINTS
from report.results import group, value
from report.style import (
    CALIBRATED,
    COLORS,
    LEARNED,
    OUTLINE,
    ROUNDED,
    accuracy_axis,
    setting,
    size_axis,
)

GUESS = 90.0                    # test error in % of a guess among ten classes


def _errors(rows):
    """Test errors in %: of the usable runs, and of the others, a guess's for those without any."""
    usable, failed = [], []
    for row in rows:
        error = GUESS if row["test_acc"] is None else 100 * (1 - row["test_acc"])
        (usable if row.get("usable", True) else failed).append(error)
    return usable, failed


def _values_panel(axes, groups):
    """One value per seed, mean and standard deviation beside it, and their numbers above."""
    low, high = np.nanmin(np.concatenate(groups)), np.nanmax(np.concatenate(groups))
    room, digits = (high - low) or 1, 4 if high < 1 else 2
    axes.set_ylim(low - 0.08 * room, low + 1.35 * room)
    for x, (values, color) in enumerate(zip(groups, COLORS)):
        dodge = np.linspace(-0.22, 0.06, len(values)) if len(values) > 1 else 0
        axes.plot(x + dodge, values, "o", color=color, alpha=0.55, markersize=4.5)
        found = stats.summary(values)
        if found["n"]:
            axes.errorbar(x + 0.24, found["mean"], found["std"], fmt="D", color=color, capsize=4,
                          markersize=6)
        axes.annotate(stats.spread(found, digits).replace(" ", "\n", 1), (x, 0.985),
                      xycoords=axes.get_xaxis_transform(), ha="center", va="top", fontsize=9,
                      bbox={"facecolor": "white", "linewidth": 0, "pad": 1})


def _sizes_panel(axes, groups):
    """The bytes of each whole file, and how many times smaller than the first it is."""
    sizes = [stats.summary(values)["mean"] for values in groups]
    for x, (size, color) in enumerate(zip(sizes, COLORS)):
        if size is None:                        # free scales have no file
            continue
        axes.bar(x, size, 0.65, color=color)
        text = f"{size:,.1f} kB"
        if x and size < sizes[0]:
            text += f"\n{sizes[0] / size:.1f} times\nsmaller"
        axes.annotate(text, (x, size), (0, 3), ha="center", va="bottom", fontsize=9,
                      textcoords="offset points")
    axes.margins(y=0.1)


def quant_vs_unquant(result):
    """Validation loss, test accuracy and whole-file bytes, by kind of model."""
    groups = group(result["rows"], "label")
    panels = (("val_loss", "Validation loss (nats)", 1), ("test_acc", "Test accuracy (%)", 100),
              ("file_bytes", "Whole file (kB)", 1e-3))
    figure = Figure(figsize=(8.3, 4.4), layout="constrained")
    for axes, (key, title, unit) in zip(figure.subplots(1, 3), panels):
        values = [np.array(stats.values(rows, key), np.float64) * unit for rows in groups.values()]
        (_sizes_panel if key == "file_bytes" else _values_panel)(axes, values)
        axes.set_xticks(range(len(groups)), [label.replace(" ", "\n") for label in groups],
                        fontsize=9)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_title(title, fontsize=11)
        axes.grid(axis="x", visible=False)
    verdicts = [f"{label} − {base}: {stats.describe(found).partition(': ')[0].replace('-', '−')}"
                for label, base, found in stats.comparisons(result["rows"], "test_acc")]
    figure.supxlabel("\n".join([
        f"{setting(result)} (dots); diamonds: mean ± standard deviation. Test accuracy:",
        *verdicts]), fontsize=8.5)
    return figure


def _gains(axes, widths):
    """What QAT with calibrated scales gains over rounding: arrows, from one percentage point on."""
    for x, rows in enumerate(widths.values()):
        models = group(rows, "label")
        gain = stats.compare(models[ROUNDED], models[CALIBRATED], "test_acc")["mean"]
        if gain is not None and gain >= 0.01:
            low, high = (np.mean(_errors(models[label])[0]) for label in (ROUNDED, CALIBRATED))
            axes.annotate("", (x, high), (x, low), arrowprops={
                "arrowstyle": "->", "color": "0.3", "shrinkA": 7, "shrinkB": 7})
            axes.annotate(f"+{100 * gain:.1f} pp", (x, low**0.7 * high**0.3), (2, 0), va="center",
                          textcoords="offset points", fontsize=8.5)


def _models(axes, widths, float32):
    """Accuracy against bits, by kind of model: the mean and range of its usable runs."""
    errors, _ = _errors(float32)
    axes.axhspan(min(errors), max(errors), color=COLORS[6], alpha=0.12, linewidth=0)
    axes.axhline(np.mean(errors), color=COLORS[6], linewidth=1, linestyle="--", label="float32")
    for label, color, marker in ((LEARNED, COLORS[0], "o"), (CALIBRATED, COLORS[1], "s"),
                                 (ROUNDED, COLORS[5], "v")):
        groups = [_errors(group(rows, "label")[label]) for rows in widths.values()]
        kept = {x: usable for x, (usable, _) in enumerate(groups) if usable}
        axes.fill_between(list(kept), [min(v) for v in kept.values()],
                          [max(v) for v in kept.values()], color=color, alpha=0.25, linewidth=0)
        axes.plot(list(kept), [np.mean(v) for v in kept.values()], marker, linestyle="-",
                  color=color, markersize=5, label=label)
        failed = [(x, error) for x, (_, errors) in enumerate(groups) for error in errors]
        if failed:
            axes.plot(*zip(*failed), "x", color=color, label="run without a usable model")
    accuracy_axis(axes)
    axes.set_title("Accuracy by the bits of a weight")
    _gains(axes, widths)
    shown = dict(zip(*reversed(axes.get_legend_handles_labels())))      # each label once
    axes.legend(shown.values(), shown.keys(), loc="lower left", fontsize=9)


def bits(result):
    """Accuracy against a weight's bits, by how the network was made."""
    widths = group(result["rows"], "WEIGHT_BITS")
    float32 = widths.pop(None)
    figure = Figure(figsize=(7, 4.3), layout="constrained")
    axes = figure.subplots()
    _models(axes, widths, float32)
    axes.set_xlim(-0.3, len(widths) - 0.4)      # room for the last gain
    axes.set_xticks(range(len(widths)), widths)
    axes.set_xlabel("bits of a weight")
    axes.grid(axis="x", visible=False)
    figure.supxlabel(
        f"{setting(result)}, activations of {result['config']['ACTIVATION_BITS']} bits. Lines: "
        "mean; bands: range over seeds;\narrows: what calibrated QAT gains.", fontsize=8.5)
    return figure


WEIGHT_COLORS = {1: COLORS[5], 2: COLORS[2], 3: COLORS[1], 4: COLORS[0]}    # others: COLORS[3]
POOLING_MARKERS = {"": "s", "mean2": "o", "crop24 mean2": "^", "crop20 mean2": "v",
                   "convolutions": "P"}         # others: "X"
PUBLISHED = {"linestyle": "none", "marker": "D", "color": COLORS[6], "markersize": 5,
             "markerfacecolor": "white"}


KINDS = {"perceptrons": COLORS[5], "convolutions": COLORS[0]}    # of recipes


def _kind(row):
    """Which of KINDS a row's network is."""
    return "convolutions" if "conv" in row["network"] else "perceptrons"


def _pooling(row):
    """What a perceptron's LAYERS do before the first weights; or that it is none."""
    if _kind(row) == "convolutions":
        return "convolutions"
    return " ".join(word for word in value(row, "LAYERS").split()
                    if word.startswith(("crop", "mean")))


def _key(axes, rows):
    """The legend of colours and markers."""
    marks = [Line2D([], [], linestyle="none", marker="o", color=WEIGHT_COLORS.get(bits, COLORS[3]),
                    label=f"{bits}-bit weights") for bits in sorted(group(rows, "WEIGHT_BITS"))]
    marks += [Line2D([], [], marker="*", color=color, markersize=11, linewidth=1,
                     label=f"recipes: {kind}") for kind, color in KINDS.items()]
    marks += [Line2D([], [], linestyle="none", marker=POOLING_MARKERS.get(words, "X"), color="0.4",
                     markerfacecolor="none", label=words or "whole image")
              for words in sorted({_pooling(row) for row in rows})]
    axes.add_artist(axes.legend(handles=marks, loc="upper left", bbox_to_anchor=(1, 1), fontsize=9))


def _largest_file(rows):
    """The bytes of the largest file of a network's seeds; None without any."""
    return max((row["file_bytes"] for row in rows if "file_bytes" in row), default=None)


def _best(points):
    """Of (size, error, accuracy on validation) those that are better than all smaller ones, as
    (sizes, errors); by validation: a choice by test would flatter it."""
    best = []
    for point in sorted(points):
        if not best or point[2] > best[-1][2]:
            best.append(point)
    sizes, errors, _ = zip(*best)
    return sizes, errors


def _network_points(axes, networks):
    """Our networks, a line of the best in so many bytes of perceptrons and one of convolutions;
    returns how many can't be drawn."""
    drawn = {}
    for rows in networks.values():
        (usable, failed), size = _errors(rows), _largest_file(rows)
        if size is None or not usable:
            continue
        drawn.setdefault(_kind(rows[0]), []).append(
            (size, np.mean(usable), stats.summarize(rows, "val_acc")["mean"]))
        color = WEIGHT_COLORS.get(value(rows[0], "WEIGHT_BITS"), COLORS[3])
        axes.errorbar(size, np.mean(usable), stats.summary(usable)["std"],
                      fmt=POOLING_MARKERS.get(_pooling(rows[0]), "X"), capsize=2, elinewidth=1,
                      markersize=6, color=color, markerfacecolor="white" if failed else color)
    for points in drawn.values():
        axes.plot(*_best(points), color="0.6", linewidth=1.5, drawstyle="steps-post", zorder=1)
    return len(networks) - sum(map(len, drawn.values()))


def _published_points(axes):
    """Other people's networks: those of one name have a line, and a letter in the legend."""
    names = dict.fromkeys(point.name for point in POINTS)
    for letter, name in zip("ABCDEFGHIJKLM", names):
        sizes, errors = zip(*((point.bytes, 100 * (1 - point.test_acc)) for point in POINTS
                              if point.name == name))
        axes.plot(sizes, errors, color=COLORS[6], linewidth=0.8, linestyle=":", zorder=1)
        axes.plot(sizes, errors, label=f"{letter}  {name}", **PUBLISHED)
        axes.annotate(letter, (sizes[0], errors[0]), (4, -4), textcoords="offset points", va="top",
                      fontsize=9, path_effects=OUTLINE)
    axes.legend(title="published", loc="lower left", bbox_to_anchor=(1, 0), fontsize=9,
                title_fontsize=9, handlelength=1, alignment="left")


ASIDE = (0, 9, -9, 18, -18)     # points up


def _keep_apart(axes, labels, first=8):
    """Put labels beside their points, where they cover none of these and no text or label.

    Args:
      axes: of a figure that is complete: it is laid out, once, so that each point has its place.
      labels: its annotations to be moved.
      first: points to the right, or left, that are tried first.
    """
    axes.figure.draw_without_rendering()
    axes.figure.set_layout_engine("none")
    boxes = [text.get_window_extent() for text in axes.texts if text not in labels]
    for x, y in (axes.transData.transform(label.xy) for label in labels):
        boxes.append(Bbox.from_extents(x - 4, y - 4, x + 4, y + 4))
    for label in labels:
        for side in ((x, y) for y in ASIDE for x in (first, -first)):
            label.set(position=side, ha="left" if side[0] > 0 else "right")
            box = label.get_window_extent()
            if not box.count_overlaps(boxes):
                break
        boxes.append(box)


def _recipe_points(axes, recipes):
    """The recipes, a line for each kind of network; returns their labels, still to be placed."""
    labels = []
    for kind, color in KINDS.items():
        own = {name: rows for name, rows in recipes.items() if _kind(rows[0]) == kind}
        by_size = sorted(own.items(), key=lambda item: _largest_file(item[1]))
        points = []
        for name, rows in by_size:
            at = _largest_file(rows), np.mean(_errors(rows)[0])
            points.append((*at, stats.summarize(rows, "val_acc")["mean"]))
            axes.errorbar(*at, stats.summary(_errors(rows)[0])["std"], fmt="*", color=color,
                          markersize=13, capsize=2, markeredgecolor="white", zorder=3)
            labels.append(axes.annotate(name, at, (0, 0), textcoords="offset points", va="center",
                                        color=color, fontweight="bold", fontsize=9,
                                        path_effects=OUTLINE, zorder=4))
        if points:
            axes.plot(*_best(points), color=color, linewidth=1, alpha=0.5, zorder=2)
    return labels


def frontier(result):
    """Accuracy against the bytes of the whole file: our networks, recipes, and published ones."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes, rows = figure.subplots(), result["rows"]
    lost, labels = _network_points(axes, group(rows, "label")), []
    _key(axes, rows)
    if result["dataset"]["name"] == "MNIST":    # as are the published points and the recipes
        _published_points(axes)
        labels = _recipe_points(axes, group(result.get("recipes", []), "label"))
    size_axis(axes, min(2_000, 0.75 * axes.dataLim.x0), 700_000,
              "whole file (of published networks: the weights alone)")
    accuracy_axis(axes)
    axes.set_title("Accuracy in so many bytes")
    note = (f"{result['dataset']['name']}; colours: mean ± standard deviation over "
            f"{len(group(rows, 'seed'))} seeds; line: the best on validation of at most this size."
            "\nPublished points were selected on the test set; ours were not.")
    if not all(row.get("usable", True) for row in rows):
        note += f" Hollow: some runs failed; not drawn, as all did: {lost}."
    figure.supxlabel(note, fontsize=8.5)
    _keep_apart(axes, labels)
    return figure


CHIP_STYLES = {"cortex-m0": ("o", COLORS[0]), "rv32ec": ("^", COLORS[5]),
               "atmega328p": ("v", COLORS[2])}
PEER = ("BitNetMCU, 4 bits", 14_500, 0.9902)    # its flash of all, as its authors give it


def firmware(result):
    """Accuracy against the flash of the whole program, the chips' sizes as lines."""
    figure = Figure(figsize=(8.3, 4.6), layout="constrained")
    axes = figure.subplots()
    fits = [row for row in result["rows"] if "flash" in row]
    small = {row["label"] for row in fits if row["chip"] == "rv32ec"}
    # The other chips of 32 bits take as much flash to a hundred bytes.
    rows = sorted((row for row in fits if row["dataset"] == fits[0]["dataset"]
                   and row["chip"] in CHIP_STYLES
                   and (row["chip"] != "cortex-m0" or row["label"] not in small)),
                  key=lambda row: row["flash"])
    for chip, (marker, color) in CHIP_STYLES.items():
        own = [row for row in rows if row["chip"] == chip]
        axes.plot([row["flash"] for row in own], [100 * (1 - row["test_acc"]) for row in own],
                  marker, color=color, markersize=6, alpha=0.8, label=chip)
    labels = [axes.annotate(label, (own[0]["flash"], 100 * (1 - own[0]["test_acc"])), (0, 0),
                            va="center", textcoords="offset points", fontsize=9,
                            path_effects=OUTLINE)
              for label, own in group(rows, "label").items()]       # beside its smallest program
    name, size, accuracy = PEER
    axes.plot(size, 100 * (1 - accuracy), label=f"published: {name}", **PUBLISHED)
    axes.margins(y=0.1)
    chips = {}
    for chip, memory in result["chips"].items():
        chips.setdefault(memory["flash"], []).append(chip)
    for size, names in chips.items():
        axes.axvline(size, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(f"{', '.join(names)}: {size // 1024} KiB", (size, 0.03), (3, 0),
                      xycoords=("data", "axes fraction"), textcoords="offset points", rotation=90,
                      va="bottom", fontsize=8.5, color="0.3")
    size_axis(axes, 4_000, 500_000, "flash of the whole program")
    accuracy_axis(axes)
    axes.set_title("Accuracy in so much flash")
    axes.legend(loc="lower left", bbox_to_anchor=(0.5, 0), fontsize=9)
    _keep_apart(axes, labels, -8)               # to the right are its programs on other chips
    return figure


AXES = {"examples": "examples of 784 bytes", "lanes": "lanes side by side",
        "batch": "batch size", "width": "hidden width", "channels": "channels",
        "devices": "devices"}


def scaling(result):
    """Seconds of a lane-epoch, and the process's peak memory, against what grows."""
    axes_rows = group(result["rows"], "axis")
    figure = Figure(figsize=(1.9 * len(axes_rows), 5.2), layout="constrained")
    panels = figure.subplots(2, len(axes_rows), sharex="col", sharey="row", squeeze=False)
    for (time, memory), (axis, rows) in zip(panels.T, axes_rows.items()):
        values = [row["value"] for row in rows]
        seconds = [np.median(row["seconds"]) for row in rows]
        spans = [[middle - min(row["seconds"]) for middle, row in zip(seconds, rows)],
                 [max(row["seconds"]) - middle for middle, row in zip(seconds, rows)]]
        time.errorbar(values, seconds, spans, marker="o", color=COLORS[0], capsize=2,
                      label="measured")
        if all("gemm_limit" in row for row in rows):
            time.plot(values, [row["gemm_limit"] for row in rows], "--", color=COLORS[5],
                      label="products alone, at\nthe GEMM rate")
        memory.plot(values, [(row["peak_memory_bytes"] or np.nan) / 1e6 for row in rows], "o-",
                    color=COLORS[2])
        for panel in (time, memory):
            panel.set_xscale("log")
            panel.set_xticks(values, [f"{value:,}" for value in values], fontsize=8, rotation=45)
            panel.xaxis.minorticks_off()
        memory.set_xlabel(AXES[axis])
    panels[0, 0].set_yscale("log")
    panels[0, 0].yaxis.set_major_formatter("{x:g}")
    panels[0, 0].set_ylabel("one lane-epoch of\n55,000 examples (s)")
    panels[1, 0].set_ylim(0)
    panels[1, 0].set_ylabel("peak memory (MB)")
    panels[0, 0].legend(fontsize=7.5, loc="lower left", bbox_to_anchor=(0, 0.6))
    figure.suptitle(f"How time and memory grow, one thing at a time: {result['network']}")
    return figure
