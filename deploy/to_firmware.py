"""Firmware for small chips: a network's bit planes in flash, deploy/chip.c, and what starts it."""
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

import integer
from deploy import to_c

FOLDER = Path(__file__).parent


class Chip(NamedTuple):
    """A kind of chip, with the memory of one that has little."""
    lanes: int                  # bits of its words
    flash: int                  # bytes
    ram: int
    tools: str                  # before gcc
    package: str                # Debian's, of its compiler
    flags: str
    origins: tuple | None       # where flash and RAM begin in the emulator; None for avr-libc's own


CHIPS = {
    "cortex-m0": Chip(32, 262_144, 16_384, "arm-none-eabi-", "gcc-arm-none-eabi",
                      "-mcpu=cortex-m0 -mthumb", (0, 0x2000_0000)),
    "cortex-m3": Chip(32, 262_144, 65_536, "arm-none-eabi-", "gcc-arm-none-eabi",
                      "-mcpu=cortex-m3 -mthumb", (0, 0x2000_0000)),
    "rv32ec": Chip(32, 16_384, 2_048, "riscv64-unknown-elf-", "gcc-riscv64-unknown-elf",
                   "-march=rv32ec_zicsr -mabi=ilp32e", (0x8000_0000, 0x8001_0000)),
    "atmega328p": Chip(8, 32_768, 2_048, "avr-", "gcc-avr and avr-libc", "-mmcu=atmega328p", None),
}
MAIN = {"atmega328p": ("main_avr.c",)}          # the others' main reads by semihosting
# Bytes of flash beside the tables and of stack beside the buffers, rounded up.
CODE = {"atmega328p": (5_000, 200)}
OTHER_CODE = (2_500, 250)


def planes(values, count):
    """Bits 0..count-1 of integers [N], each as uint8 0 or 1: [count, N]."""
    return (values[None] >> np.arange(count)[:, None] & 1).astype(np.uint8)


def words(bits, lanes):
    """Bits [..., N], N a multiple of lanes, as words [..., N / lanes], number 0 lowest."""
    shaped = bits.reshape(*bits.shape[:-1], bits.shape[-1] // lanes, lanes).astype(np.uint64)
    return (shaped << np.arange(lanes, dtype=np.uint64)).sum(-1, dtype=np.uint64)


def digit_sums(bits):
    """The largest sum of the digits +1, and of -1, that a code of so many bits has."""
    code = np.arange(2**bits)
    tripled, half = code + (code >> 1), code >> 1
    differ = tripled ^ half
    return int((tripled & differ).max()), int((half & differ).max())


def count_planes(layer, fields, code_bits, weight_bits, least_shift):
    """(planes, zero): how many bits each sum needs, and where it starts, for no carry to get lost.

    A sum starts at its bias plus zero, is lowered by the rows of digits -1, then raised by those
    of digits 1: it must not leave 0..2**planes - 1, nor the accumulator the signed range. zero has
    every second bit set, so that carries do not run far.
    """
    step = 2 if weight_bits == 1 else 1
    total = step * fields.sum(0)
    raised, lowered = (int((part * total).max()) for part in digit_sums(code_bits))
    bias_low, bias_high = min(0, int(layer.b_q.min())), max(0, int(layer.b_q.max()))
    bound = int(integer.accumulator_bound(layer, 2**code_bits - 1).max())
    for count in range(max(code_bits + weight_bits + 3, least_shift + 1), 33):
        zero = 2**count // 3
        if (zero + bias_low >= lowered and zero + bias_high + raised < 2**count
                and bound < 2 ** (count - 1)):
            return count, zero
    raise ValueError("sums of more than 32 bits")


class Tables(NamedTuple):
    """A layer as the chip has it: all words, least bits first."""
    inputs: int
    blocks: int                 # of lanes outputs
    groups: int                 # of lanes inputs
    code_bits: int
    planes: int
    zero: int
    shift: int                  # the least of the outputs' shifts; 0 in the last layer
    spread: int                 # bits of what the others have more
    w: np.ndarray               # [blocks, inputs, bits]
    start: np.ndarray           # [blocks, planes]
    places: np.ndarray          # [blocks, bits of spread]


def make_tables(network, lanes):
    """The Tables of each layer, for words of so many bits."""
    tables, bits = [], network.weight_bits
    offset = 2 ** (bits - 1)
    x_qmaxes = integer.input_qmax(len(network.layers), network.activation_bits)
    for layer, x_qmax in zip(network.layers, x_qmaxes):
        width = x_qmax.bit_length()
        inputs, outputs = layer.w_q.shape
        blocks = math.ceil(outputs / lanes)
        pad = blocks * lanes - outputs
        fields = np.int64(layer.w_q > 0) if bits == 1 else layer.w_q.astype(np.int64) + offset
        # Outputs that fill the last block have weights of 0, so that their codes are 0.
        fields = np.pad(fields, ((0, 0), (0, pad)), constant_values=0 if bits == 1 else offset)
        least, spread, places = 0, 0, np.zeros((blocks, 0), np.uint64)
        if layer.shift is not None:
            # From a shift that no accumulator reaches half of on, every code is 0.
            most = int(integer.accumulator_bound(layer, x_qmax).max()).bit_length() + 1
            shift = np.minimum(layer.shift.astype(np.int64), most)
            least, spread = int(shift.min()), int(shift.max() - shift.min()).bit_length()
            places = words(planes(np.pad(shift - least, (0, pad)), spread), lanes).T
        count, zero = count_planes(layer, fields, width, bits, least)
        fields = np.pad(fields, ((0, 1), (0, 0)))       # a row of zeros ends each block
        rows = words((fields[..., None] >> np.arange(bits) & 1).transpose(0, 2, 1), lanes)
        start = words(planes(np.pad(layer.b_q.astype(np.int64), (0, pad)) + zero, count), lanes)
        tables.append(Tables(inputs, blocks, math.ceil(inputs / lanes), width, count, zero, least,
                             spread, rows.transpose(2, 0, 1), start.T, places))
    return tables


def _array(name, values, lanes):
    """A constant array of words as C text."""
    end = "u" if lanes == 32 else ""
    text = [f"0x{value:0{lanes // 4}x}{end}" for value in values.ravel().tolist()]
    rows = [", ".join(text[start:start + 8]) for start in range(0, len(text), 8)]
    return f"static const mlp_word {name}[] MLP_FLASH = {{\n" + ",\n".join(rows) + "\n};\n"


def header(network, lanes):
    """mlp.h: what a caller needs and, for chip.c alone, the tables."""
    tables, sizes = make_tables(network, lanes), integer.sizes(network)
    arrays, rows, bits = [], [], network.weight_bits
    for i, t in enumerate(tables):
        arrays += [_array(f"mlp_w{i}", t.w, lanes), _array(f"mlp_start{i}", t.start, lanes)]
        if t.places.size:
            arrays.append(_array(f"mlp_places{i}", t.places, lanes))
        none = t.inputs * bits * lanes // 8     # where a block's row of zeros begins
        if max(none, t.start.size) >= 2**16:
            raise ValueError(f"layer {i} is wider than the engine's 16-bit offsets reach; "
                             "export it to c")
        places = f"mlp_places{i}" if t.places.size else "0"
        rows.append(f"    {{mlp_w{i}, mlp_start{i}, {places}, {t.zero}u, {t.start.size}, "
                    f"{(t.inputs + 1) * bits}, {none}, {t.groups}, {t.code_bits}, {t.planes}, "
                    f"{t.shift}, {t.spread}}}")
    return f"""/* {to_c.title(network)} */
#ifndef MLP_H
#define MLP_H
{to_c.declarations(network)}
#ifdef MLP_WEIGHTS                      /* chip.c alone defines it */
#ifdef __AVR__
#include <avr/pgmspace.h>
#define MLP_FLASH PROGMEM
#else
#define MLP_FLASH
#endif
typedef uint{lanes}_t mlp_word;

{to_c.pooling(network)}#define MLP_LANES {lanes}
#define MLP_BITS {bits}
#define MLP_OFFSET {2 ** (bits - 1)}u
#define MLP_QBITS {network.activation_bits}
#define MLP_MAX_INPUTS {max(sizes[:-1])}
#define MLP_MAX_GROUPS {max(t.groups for t in tables)}
#define MLP_MAX_PLANES {max(t.blocks * t.planes for t in tables)}

struct mlp_layer {{
    const mlp_word *w, *start, *places;
    uint32_t zero;
    uint16_t sums, rows, none, groups;
    uint8_t code_bits, planes, shift, spread;
}};

{''.join(arrays)}
static const struct mlp_layer mlp_layers[] = {{
""" + ",\n".join(rows) + "\n};\n#endif\n#endif\n"


def needs(network, chip):
    """(bytes of flash, bytes of RAM) that a network takes on a chip, image and all; rounded up."""
    tables, lanes = make_tables(network, CHIPS[chip].lanes), CHIPS[chip].lanes
    code, stack = CODE.get(chip, OTHER_CODE)
    flash = code + sum((t.w.size + t.start.size + t.places.size) * lanes // 8 for t in tables)
    groups, sizes = max(t.groups for t in tables), integer.sizes(network)
    ram = ((10 * groups + groups + max(t.start.size for t in tables)) * lanes // 8
           + 2 * (max(sizes[:-1]) + 1) + 4 * sizes[-1] + stack
           + integer.pixels(network.input, sizes[0]))
    return flash, ram


def check_fits(network, chip):
    """Raise ValueError, with both numbers, unless a network fits a chip."""
    has = CHIPS[chip]
    for need, kind in zip(needs(network, chip), ("flash", "ram")):
        if need > getattr(has, kind):
            raise ValueError(f"it needs about {need:,} bytes of {kind}, {chip} has "
                             f"{getattr(has, kind):,}")


def makefile(chip):
    """The Makefile of a chip's folder."""
    has, text = CHIPS[chip], ""
    if has.origins:
        text = "".join(f" -Wl,--defsym={name}=0x{value:x}" for name, value in zip(
            ("FLASH", "FLASH_SIZE", "RAM", "RAM_SIZE"),
            (has.origins[0], has.flash, has.origins[1], has.ram)))
        text = " -nostdlib -Wl,-T,link.ld" + text
    sources = " ".join(MAIN.get(chip, ("start.c", "main.c")) + ("mlp.c",))
    return f"""# {chip}: {has.flash:,} bytes of flash, {has.ram:,} of RAM.
CC = {has.tools}gcc
CFLAGS = -std=c99 -O2 {has.flags} -fno-schedule-insns -ffreestanding -ffunction-sections \\
 -fno-tree-loop-distribute-patterns -Wall -Wextra -Wpedantic -Wconversion
LDFLAGS = -Wl,--gc-sections{text}

mlp.elf: {sources} mlp.h
\t@command -v $(CC) >/dev/null || \\
\t  {{ echo "{chip}: skipped: no $(CC); install {has.package}"; exit 0; }}; \\
\t  set -x; $(CC) $(CFLAGS) $(MORE) {sources} -o $@ $(LDFLAGS) -lgcc && {has.tools}size $@
"""


def export(network, chips):
    """What each chip's folder holds.

    Args:
      network: integer.Network; chips: names of CHIPS.
    Returns:
      {path in the output folder: text}.
    Raises:
      ValueError: the network does not fit one of them; one line.
    """
    for chip in chips:
        check_fits(network, chip)
    engine, files = (FOLDER / "chip.c").read_text("utf-8"), {}
    for chip in chips:
        files[f"{chip}/mlp.h"] = header(network, CHIPS[chip].lanes)
        files[f"{chip}/mlp.c"] = engine
        files[f"{chip}/Makefile"] = makefile(chip)
        for name in MAIN.get(chip, ("start.c", "main.c", "link.ld")):
            files[f"{chip}/{name}"] = (FOLDER / "firmware" / name).read_text("utf-8")
    return files


def export_uno(network):
    """An Arduino sketch for the Uno, as export."""
    check_fits(network, "atmega328p")
    return {"uno.ino": (FOLDER / "firmware" / "uno.ino").read_text("utf-8"),
            "mlp.h": header(network, CHIPS["atmega328p"].lanes),
            "mlp.c": (FOLDER / "chip.c").read_text("utf-8")}
