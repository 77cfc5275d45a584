"""The forward and backward graph of a loss, read off its jaxpr, and its drawing.

A row is one equation of the loss. What differentiating it put on the tape stands in the same row:
`trace` runs part 1 of autodiff.py inside a named scope per row and finds the rows again in the
scopes of the jaxpr that part 1 made.
"""
import math
import re
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from report.style import COLORS
from theory.autodiff import DERIVATIVES, Dual, differentiate, interpret

BLUE, GREEN, ORANGE = (COLORS[i] for i in (0, 2, 5))
GREY = "#777777"


class Value(NamedTuple):
    """An array that the forward pass holds: made in `row`, or the argument `name`."""
    row: int
    name: str
    shape: tuple
    dtype: np.dtype
    number: int                 # tells two values of one row apart

    @property
    def nbytes(self):
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __str__(self):
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Row(NamedTuple):
    """One equation of the loss; layer counts from 1, and the loss itself is the last plus one."""
    name: str
    layer: int
    shape: tuple


class Entry:
    """One tape equation: in forward order, output tangent from input tangents and residuals."""
    def __init__(self, row, name, inputs, shape):
        self.row, self.name, self.inputs, self.shape = row, name, inputs, shape

    @property
    def residuals(self):
        """The Values that this equation's transposition reads (as the rules in autodiff.py do)."""
        reads = {"mul": [0, 1], "dot_general": [0, 1], "div": [1], "gather": [1], "select_n": [0]}
        values = [self.inputs[i] for i in reads.get(self.name, [])]
        return [v for v in values if isinstance(v, Value) and v.shape]


class Graph(NamedTuple):
    rows: list                  # of Row
    entries: list               # of Entry, live ones only, forward order
    edges: set                  # (row or argument name, row): who reads whom in the forward pass
    parameters: dict            # tangent Entry -> parameter name


def _name(eqn):
    """relu and fake_quantize rather than custom_jvp_call."""
    inside = eqn.params.get("call_jaxpr")
    return inside.jaxpr.debug_info.func_name.lstrip("_") if inside else eqn.primitive.name


def trace(fun, params, *batch):
    """The Graph of fun(params, *batch), a loss of a list of (w, b); nothing is computed."""
    leaves, tree = jax.tree.flatten(params)
    names = [f"{kind}{i + 1}" for i in range(len(params)) for kind in "wb"]
    rows, layers = [], len(params)

    def scoped(eqn, inputs):
        dots, last = sum(row.name == "dot_general" for row in rows), rows[-1].name if rows else ""
        layer = rows[-1].layer if rows else 1
        # A layer ends with its relu, the last one with the addition of its bias.
        layer += last == "relu" or (last == "add" and dots == layers == layer)
        rows.append(Row(_name(eqn), layer, eqn.outvars[0].aval.shape))
        with jax.named_scope(f"row{len(rows) - 1}."):
            return differentiate(DERIVATIVES, eqn, inputs)

    def both(leaves, tangents, *batch):
        closed = jax.make_jaxpr(fun)(tree.unflatten(leaves), *batch)
        duals = [Dual(*pair) for pair in zip(leaves, tangents)]
        return interpret(closed, [*duals, *batch], scoped)[0].tangent

    edges, entries = set(), []

    def label(eqn, inputs):
        row = int(re.search(r"row(\d+)\.", str(eqn.source_info.name_stack)).group(1))
        read = [v for v in inputs if isinstance(v, Value) and v.row != row]
        edges.update((v.name or v.row, row) for v in read)
        if any(isinstance(v, Entry) for v in inputs):
            entries.append(Entry(row, eqn.primitive.name, inputs, eqn.outvars[0].aval.shape))
            return [entries[-1]]
        return [Value(row, "", var.aval.shape, var.aval.dtype, id(var)) for var in eqn.outvars]

    arguments = [Value(-1, name, array.shape, array.dtype, 0)
                 for name, array in zip([*names, "images", "labels"], [*leaves, *batch])]
    tangents = [Entry(-1, name, [], leaf.shape) for name, leaf in zip(names, leaves)]
    args = [*arguments[:len(leaves)], *tangents, *arguments[len(leaves):]]
    with jax.disable_jit():                     # equations inside a nested jit have lost the scope
        closed = jax.make_jaxpr(both)(leaves, leaves, *batch)
    (out,) = interpret(closed, args, label)
    live = {out}
    for entry in reversed(entries):
        if entry in live:
            live.update(v for v in entry.inputs if isinstance(v, Entry))
    return Graph(rows, [entry for entry in entries if entry in live], edges,
                 dict(zip(tangents, names)))


def residuals(graph):
    """The distinct Values that the backward pass reads: list of (layer, Value, reader's name)."""
    found = {}
    for entry in graph.entries:
        for value in entry.residuals:
            found.setdefault(value, (graph.rows[entry.row].layer, value, entry.name))
    return list(found.values())


# The drawing: x in inches, y in rows, of 0.3 inches.
WIDTH, ROW = 8.3, 0.3
ARGUMENT, FORWARD, BACKWARD, WEIGHTS, GRADIENT = 0.32, 1.85, 4.72, 6.6, 7.92   # x of the columns
HALF = {ARGUMENT: 0.27, FORWARD: 1.02, BACKWARD: 0.77, WEIGHTS: 0.8, GRADIENT: 0.33}  # box widths
TALL = 0.3                                      # half a box's height, in rows
GAP = (FORWARD + HALF[FORWARD] + BACKWARD - HALF[BACKWARD]) / 2     # x of most residuals' names


def _arrow(axes, start, end, color, curve=0.0, style="-"):
    axes.annotate("", end, start, arrowprops={
        "arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, "lw": 1.1,
        "connectionstyle": f"arc3,rad={curve}", "linestyle": style})


def _box(axes, x, y, text, color):
    axes.add_patch(Rectangle((x - HALF[x], y - TALL), 2 * HALF[x], 2 * TALL, facecolor="white",
                             edgecolor=color, zorder=2))
    axes.text(x, y, text, ha="center", va="center", fontsize=7.5, zorder=3)


def _text(shape):
    return f"[{','.join(map(str, shape))}]"


def _typed(value):
    """A Value's type as a jaxpr writes it: f32[128,784]."""
    kind = value.dtype.name if value.dtype == bool else (
        f"{value.dtype.kind}{8 * value.dtype.itemsize}")
    return f"{kind}{_text(value.shape)}"


def _draw_forward(axes, graph, height):
    """The equations of the loss, the arguments beside their first readers, and who reads whom."""
    active = {entry.row for entry in graph.entries}
    for name in {source for source, _ in graph.edges if isinstance(source, str)}:
        y = height(min(row for source, row in graph.edges if source == name))
        _box(axes, ARGUMENT, y, name, GREY)
        _arrow(axes, (ARGUMENT + HALF[ARGUMENT], y), (FORWARD - HALF[FORWARD], y), GREY)
    for source, row in graph.edges:
        if source == row - 1:
            _arrow(axes, (FORWARD, height(source) - TALL), (FORWARD, height(row) + TALL), BLUE)
        elif not isinstance(source, str):
            x = FORWARD - HALF[FORWARD]
            _arrow(axes, (x, height(source) - 0.1), (x, height(row) + 0.1), BLUE,
                   0.6 / (row - source) ** 0.8)
    for i, row in enumerate(graph.rows):
        color = BLUE if i in active else GREY
        _box(axes, FORWARD, height(i), f"{row.name} {_text(row.shape)}", color)


def _draw_backward(axes, graph, height):
    """The transposed tape: cotangents go up, residuals come in from the forward side."""
    def targets(entry):
        """Where cotangents go; sums that the product rule made are left out, they only fork."""
        for v in entry.inputs:
            if isinstance(v, Entry):
                yield from [v] if v in spots or v in graph.parameters else targets(v)

    spots = {}
    for entry in graph.entries:
        if entry.name != "add" or graph.rows[entry.row].name == "add":
            to_parameter = all(v in graph.parameters for v in entry.inputs if isinstance(v, Entry))
            spots[entry] = WEIGHTS if to_parameter else BACKWARD, height(entry.row)
    taken = {y for x, y in spots.values() if x == BACKWARD}
    for entry, (x, y) in spots.items():
        for target in targets(entry):
            if target in graph.parameters:
                _arrow(axes, (x + HALF[x], y), (GRADIENT - HALF[GRADIENT], y), ORANGE)
                _box(axes, GRADIENT, y, f"ct of {graph.parameters[target]}", ORANGE)
                continue
            to_x, to_y = spots[target]
            if to_x != x:
                _arrow(axes, (x + HALF[x], y), (to_x - HALF[to_x], to_y - 0.1), ORANGE)
            elif any(y < between < to_y for between in taken):
                _arrow(axes, (x + HALF[x], y), (x + HALF[x], to_y - 0.1), ORANGE, 0.15)
            else:
                _arrow(axes, (x, y + TALL), (x, to_y - TALL), ORANGE)
        for value in entry.residuals:
            source = height(value.row if value.row >= 0 else entry.row)
            start, end = (FORWARD + HALF[FORWARD], source - 0.05), (x - HALF[x], y - 0.05)
            if x != BACKWARD:                   # on its way down through the backward column
                end = end[0], y + 0.15
            _arrow(axes, start, end, GREEN, style="--")
            at = GAP if x == BACKWARD else BACKWARD - 0.45      # beside the cotangents' way
            slope = (end[1] - start[1]) / (end[0] - start[0])
            axes.text(at, start[1] + slope * (at - start[0]) + 0.06, _typed(value), fontsize=7,
                      color=GREEN, ha="center", va="bottom", rotation_mode="anchor",
                      rotation=math.degrees(math.atan(slope * ROW)))    # along the arrow, above it
        shape = next(v.shape for v in entry.inputs if isinstance(v, Entry))
        _box(axes, x, y, f"{entry.name}$^T$ {_text(shape)}", ORANGE)


def draw(graph):
    """The Figure of a Graph: forward pass down the left, backward pass up the right."""
    count = len(graph.rows)
    figure = Figure(figsize=(WIDTH, ROW * (count + 1.2)), dpi=130)
    axes = figure.add_axes((0, 0, 1, 1))

    def height(row):
        return count - row

    for layer in range(1, graph.rows[-1].layer + 1):
        inside = [height(i) for i, row in enumerate(graph.rows) if row.layer == layer]
        axes.axhspan(min(inside) - 0.5, max(inside) + 0.5, color=("#F3F3F3", "white")[layer % 2],
                     zorder=0)
        title = f"layer {layer}" if layer < graph.rows[-1].layer else "loss"
        axes.text(WIDTH - 0.05, min(inside), title, fontsize=10, ha="right", va="center",
                  weight="bold")
    _draw_forward(axes, graph, height)
    _draw_backward(axes, graph, height)
    for x, title, color in ((FORWARD, "forward pass, downwards", BLUE), (GAP, "residuals", GREEN),
                            ((BACKWARD + WEIGHTS) / 2, "backward pass, upwards", ORANGE)):
        axes.text(x, count + 0.95, title, color=color, ha="center", va="center", fontsize=10)
    axes.set(xlim=(0, WIDTH), ylim=(0.4, count + 1.6))
    axes.axis("off")
    return figure
