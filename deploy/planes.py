"""A network in bit planes, as chip.c runs it: tables of rows, windows on maps, their room."""
import itertools
import math
from typing import NamedTuple

import numpy as np

import integer
import plan

FEW = 16                        # positions
PLAIN = 4                       # codes of at most so many bits have no digits of -1


class Map(NamedTuple):
    """How chip.c goes over a convolution's map, in codes unless it says otherwise.

    A set is what one patch gives: positions beside each other, whose outputs share a word. high and
    wide are more than one position where a pooled window takes several patches.
    """
    lines: int                  # of the map that a patch reaches over; 0: not a convolution
    width: int                  # of a patch, in each line
    narrow: int                 # whether the table of weights has half as many lanes
    planned: int                # words of a patch's planes
    kept: int                   # words of the map's lines that are there at a time
    line: int                   # words of such a line
    high: int                   # lines from a row of windows to the next
    down: int                   # lines from a position to the one below
    wide: int                   # as high, along a line
    across: int                 # from a position to the one on the right
    sets: int                   # in a row of outputs
    skip: int                   # from set to set in the map
    end: int                    # where the last one begins
    step: int                   # from set to set among the outputs
    last: int                   # where the last one begins
    piece: int                  # outputs that lie together
    pieces: int                 # pooled windows in a set whose positions share a word; else 0
    codes: int                  # of a row of outputs


NO_MAP = Map(*(0,) * len(Map._fields))


class Stage(NamedTuple):
    """A step with weights, and the pooling after it: how much is pooled, (rows, columns)."""
    step: plan.Step
    pool: tuple
    after: tuple                # shape behind the pooling


class Tables(NamedTuple):
    """A layer as the chip has it. A block is as many outputs as a word has bits: lanes."""
    w: np.ndarray               # words [blocks, inputs + 1, bits of a weight]; the last row is 0
    start: np.ndarray           # words [blocks, planes]: what each sum starts from
    places: np.ndarray          # words [blocks, spread]: what a shift is above the least
    zero: int                   # what start has besides the bias
    shift: int                  # the least; 0 in the last layer
    groups: int                 # of lanes inputs
    code_bits: int              # of an input
    map: Map = NO_MAP


def to_words(values, bits, lanes):
    """Integers [..., N], N a multiple of lanes, as bit planes in words [..., N / lanes, bits].

    Word k of a block holds bit k of each of its numbers, that of the first one lowest.
    """
    blocks = values.reshape(*values.shape[:-1], -1, 1, lanes)
    planes = (blocks >> np.arange(bits)[:, None] & 1).astype(np.uint64)
    return (planes << np.arange(lanes, dtype=np.uint64)).sum(-1, dtype=np.uint64)


def digit_sums(bits):
    """The largest sum of the digits +1, and of -1, that a code of so many bits has."""
    if bits <= PLAIN:
        return 2**bits - 1, 0
    code = np.arange(2**bits)
    tripled, half = code + (code >> 1), code >> 1
    differ = tripled ^ half
    return int((tripled & differ).max()), int((half & differ).max())


def count_planes(layer, fields, x_qmax, weight_bits, least_shift):
    """(planes, zero): how many bits each sum needs, and where it starts, for no carry to get lost.

    A sum starts at its bias plus zero, is lowered by the rows of digits -1, then raised by those
    of digits 1: it must not leave 0..2**planes - 1, nor the accumulator the signed range. zero has
    every second bit set, so that carries do not run far.
    """
    code_bits, step = x_qmax.bit_length(), 2 if weight_bits == 1 else 1
    total = step * fields.sum(0)
    raised, lowered = (int((part * total).max()) for part in digit_sums(code_bits))
    bias_low, bias_high = min(0, int(layer.b_q.min())), max(0, int(layer.b_q.max()))
    bound = int(integer.accumulator_bound(layer, x_qmax).max())
    for count in range(max(code_bits + weight_bits + 3, least_shift + 1), 33):
        zero = 2**count // 3
        if (zero + bias_low >= lowered and zero + bias_high + raised < 2**count
                and bound < 2 ** (count - 1)):
            return count, zero
    raise ValueError("sums of more than 32 bits")


def pad_outputs(layer, weight_bits, lanes):
    """A layer with whole blocks: outputs whose codes are 0, as their weights are, fill up the last.

    One bit has no weight of 0: there they are -1.
    """
    pad = -len(layer.b_q) % lanes
    w_q = np.pad(layer.w_q, ((0, 0), (0, pad)), constant_values=-1 if weight_bits == 1 else 0)
    # Any shift gives 0; the least takes no room.
    shift = None if layer.shift is None else np.pad(layer.shift, (0, pad), "minimum")
    return integer.Layer(w_q, np.pad(layer.b_q, (0, pad)), shift)


def make_tables(layer, weight_bits, x_qmax, lanes):
    """The Tables of an integer.Layer, its input codes being 0..x_qmax."""
    layer = pad_outputs(layer, weight_bits, lanes)
    if weight_bits == 1:
        fields = (layer.w_q > 0).astype(np.int64)
    else:
        fields = layer.w_q.astype(np.int64) + integer.code_range(weight_bits)[1]
    shift = np.zeros(len(layer.b_q), np.int64) if layer.shift is None else np.int64(layer.shift)
    # From a shift that no accumulator reaches half of on, every code is 0.
    bound = int(integer.accumulator_bound(layer, x_qmax).max())
    shift = np.minimum(shift, bound.bit_length() + 1)
    least, above = int(shift.min()), shift - shift.min()
    planes, zero = count_planes(layer, fields, x_qmax, weight_bits, least)
    rows = np.pad(fields, ((0, 1), (0, 0)))
    return Tables(w=to_words(rows, weight_bits, lanes).swapaxes(0, 1),
                  start=to_words(layer.b_q.astype(np.int64) + zero, planes, lanes),
                  places=to_words(above, int(above.max()).bit_length(), lanes),
                  zero=zero, shift=least, groups=math.ceil(len(layer.w_q) / lanes),
                  code_bits=x_qmax.bit_length())


def stages_of(steps):
    """The Stages of a network; poolings after each other are one."""
    stages = []
    for step in steps:
        if step.has_weights:
            stages.append(Stage(step, (1, 1), step.after))
        elif stages:
            pool = tuple(a * b for a, b in zip(stages[-1].pool, step.kernel))
            stages[-1] = Stage(stages[-1].step, pool, step.after)
    return stages


def count_positions(stage, weight_bits, lanes):
    """How many positions beside each other share a word."""
    channels, columns = stage.after[-1], stage.pool[1]
    # One bit has no weight of 0; a few positions are not worth the wider patch's table.
    if (stage.step.kind != "conv" or weight_bits == 1 or columns > 2
            or math.prod(stage.step.after[:2]) < FEW):
        return 1
    fit = min(lanes // channels, stage.after[1] * columns)
    return max(1, fit // columns * columns)


def share_word(layer, step, positions):
    """A Layer of a wider patch, whose outputs are those of so many positions side by side."""
    if positions == 1:
        return layer
    (rows, columns), channels, across = step.kernel, step.before[-1], step.stride[1]
    w_q = layer.w_q.reshape(rows, columns, channels, -1)
    wider = np.zeros((rows, columns + (positions - 1) * across, channels, positions,
                      w_q.shape[3]), np.int8)
    for position in range(positions):
        start = position * across
        wider[:, start:start + columns, :, position] = w_q
    return integer.Layer(wider.reshape(-1, positions * w_q.shape[3]),
                         *(np.tile(part, positions) for part in layer[1:]))


def make_map(stage, positions, bits, lanes):
    """The Map of a convolution, whose map has codes of so many bits; narrow and planned are 0."""
    step, (pool_rows, pool_columns) = stage.step, stage.pool
    (rows, columns), (down, across) = step.kernel, step.stride
    _, wide, channels = stage.after
    together = positions // pool_columns if positions > 1 else 1    # outputs of a set
    is_folded = positions > 1 and pool_columns > 1
    line = math.ceil(step.before[1] * step.before[2] / lanes) * bits
    return Map(
        lines=rows, width=(columns + (positions - 1) * across) * step.before[-1],
        narrow=0, planned=0, kept=(rows + (pool_rows - 1) * down) * line, line=line,
        high=pool_rows * down, down=down,
        wide=(1 if positions > 1 else pool_columns) * across * step.before[-1],
        across=across * step.before[-1], sets=math.ceil(wide / together),
        skip=together * pool_columns * across * step.before[-1],
        end=(wide - together) * pool_columns * across * step.before[-1],
        step=together * channels, last=(wide - together) * channels,
        piece=channels if is_folded else together * channels,
        pieces=together if is_folded else 0, codes=wide * channels)


def count_code_planes(table):
    """The planes of a layer's inputs: codes that have digits of -1 need two of zeros."""
    return table.code_bits + (2 if table.code_bits > PLAIN else 0)


def make_all_tables(network, lanes):
    """The Tables of each layer, for words of so many bits."""
    x_qmaxes = integer.input_qmax(len(network.layers), network.activation_bits)
    stages, tables, bits = stages_of(network.steps), [], network.activation_bits
    if stages[0].step.kind == "dense":
        return [make_tables(layer, network.weight_bits, x_qmax, lanes)
                for layer, x_qmax in zip(network.layers, x_qmaxes)]
    for i, (layer, stage, x_qmax) in enumerate(zip(network.layers, stages, x_qmaxes)):
        positions, way = count_positions(stage, network.weight_bits, lanes), NO_MAP
        if stage.step.kind == "conv":
            way = make_map(stage, positions, bits, lanes)
        elif stages[i - 1].step.kind == "conv":             # one long line
            words = math.ceil(stage.step.weights[0] / lanes) * bits
            way = NO_MAP._replace(kept=words, line=words)
        if i == 0:                              # the image itself is there
            way = way._replace(kept=0, line=0)
        layer = share_word(layer, stage.step, positions)
        table = make_tables(layer, network.weight_bits, x_qmax, lanes)
        # Lanes without an output are not 0 there: only where nobody reads them.
        narrow = lanes == 32 and positions * stage.after[-1] <= 16 and (
            stage.step.kind == "conv" or layer.shift is None)
        tables.append(table._replace(map=way._replace(
            planned=table.groups * count_code_planes(table), narrow=int(narrow))))
    return tables


class Source(NamedTuple):
    """Where chip.c reads the codes of the first layer, in bytes of the image."""
    start: int                  # the first one
    line: int                   # from a line of codes to the next
    mean: int                   # bytes of a line whose 2 x 2 are averaged; else 0
    rows: int                   # of codes
    width: int                  # codes in a row


def source_of(steps):
    """The Source of a network."""
    before = list(itertools.takewhile(lambda step: not step.has_weights, steps))
    inputs = plan.inputs(steps)
    if not before and len(steps[0].before) == 1:
        return Source(0, inputs, 0, 1, inputs)
    _, columns, channels = steps[0].before
    line, top, left = columns * channels, 0, 0
    for step in before:
        if step.kind == "crop":
            top, left = (at + more for at, more in zip((top, left), plan.corner(step)))
        elif step.kernel != (2, 2) or channels > 1 or step is not before[-1]:
            begin = plan.to_line((*before, steps[-1]))
            raise ValueError(f"it begins with {begin!r}, which firmware does not do; export it to "
                             "c")
    shape = steps[len(before)].before
    mean = line if before and before[-1].kind == "mean" else 0
    return Source(top * line + left * channels, line * (2 if mean else 1), mean, shape[0],
                  shape[1] * channels)


class Room(NamedTuple):
    """How much chip.c needs of what, for all layers; words are of so many lanes."""
    inputs: int                 # of a layer
    groups: int                 # of lanes inputs
    x_words: int                # planes of a layer's inputs
    sums: int                   # words of sums
    blocks: int                 # of a convolution's outputs
    maps: int                   # words of the maps' lines
    convolutions: int


def room_of(tables):
    """The Room of a network."""
    convolutions = sum(table.map.lines > 0 for table in tables)
    return Room(
        inputs=max(t.w.shape[1] - 1 for t in tables), groups=max(t.groups for t in tables),
        # A perceptron's planes are ten apart, whatever its codes: a constant is faster.
        x_words=max(t.groups * (count_code_planes(t) if convolutions else 10) for t in tables),
        sums=max(t.start.size for t in tables),
        blocks=max((len(t.start) for t in tables if t.map.lines), default=0),
        maps=sum(t.map.kept for t in tables), convolutions=convolutions)
