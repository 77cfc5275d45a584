"""Firmware for small chips: a network's bit planes in flash, deploy/chip.c, and what starts it."""
from pathlib import Path
from typing import NamedTuple

import numpy as np

import integer
import plan
from deploy import planes, to_c
from deploy.planes import Map
from formats.encode import Encoding, encode

FOLDER = Path(__file__).parent


class Chip(NamedTuple):
    """A kind of chip, with the memory of one that has little."""
    lanes: tuple                # bits of its words: the first, of convolutions the most that fit
    flash: int                  # bytes
    ram: int
    tools: str                  # before gcc
    package: str                # Debian's, of its compiler
    flags: str
    origins: tuple | None       # where flash and RAM begin in the emulator; None for avr-libc's own
    emulator: str               # its command, before the ELF file
    upload: str                 # how to bring the ELF file to a board
    main: tuple = ("start.c", "main.c")
    code: int = 2_400           # bytes of flash beside the tables, rounded up
    stack: int = 250            # bytes beside the buffers, rounded up
    row: int = 28               # bytes of a layer's row in the table of layers
    maps_code: int = 1_500      # more of both where there are convolutions
    maps_stack: int = 136       # and a quarter of a word's bits


DEBUGGER = """\
    Copy the ELF file by your board's debugger (openocd, pyocd) and turn semihosting on there: this
    main talks through it. In a program of your own mlp_predict needs neither."""
CH32V003 = """\
    make -B FLASH=0x08000000 RAM=0x20000000         # a CH32V003's; the Makefile's are QEMU's
    riscv64-unknown-elf-objcopy -O binary mlp.elf mlp.bin
    minichlink -w mlp.bin flash -b                  # or wlink flash mlp.bin
    This main talks by semihosting; in a program of your own mlp_predict needs none."""
AVRDUDE = """\
    avr-objcopy -O ihex example.elf example.hex
    avrdude -p m328p -c arduino -P /dev/ttyACM0 -U flash:w:example.hex      # 500,000 baud, 8N1"""

SEMIHOSTING = ("-display none -serial none -monitor none "
               "-semihosting-config enable=on,target=native -kernel")
CHIPS = {
    "cortex-m0": Chip((32,), 262_144, 16_384, "arm-none-eabi-", "gcc-arm-none-eabi",
                      "-mcpu=cortex-m0 -mthumb", (0, 0x2000_0000),
                      f"qemu-system-arm -M microbit {SEMIHOSTING}", DEBUGGER),
    "cortex-m3": Chip((32,), 262_144, 65_536, "arm-none-eabi-", "gcc-arm-none-eabi",
                      "-mcpu=cortex-m3 -mthumb", (0, 0x2000_0000),
                      f"qemu-system-arm -M lm3s6965evb {SEMIHOSTING}", DEBUGGER),
    "rv32ec": Chip((32,), 16_384, 2_048, "riscv64-unknown-elf-", "gcc-riscv64-unknown-elf",
                   "-march=rv32ec_zicsr -mabi=ilp32e -fno-tree-pre -DMLP_NO_FLOAT",
                   (0x8000_0000, 0x8001_0000),
                   "qemu-system-riscv32 -M virt -bios none -cpu rv32,e=true,"
                   + ",".join(f"{x}=false" for x in "imafdgush") + f" {SEMIHOSTING}", CH32V003,
                   maps_stack=16),
    "atmega328p": Chip((8, 16), 32_768, 2_048, "avr-", "gcc-avr and avr-libc",
                       "-mmcu=atmega328p", None,
                       "qemu-system-avr -M uno -display none -monitor none -serial stdio -bios",
                       AVRDUDE, ("main_avr.c",), 4_900, 110, 22, 4_300, 80),
}
# Its bootloader takes 512 bytes of flash; Arduino's own code lies beside the engine.
UNO = CHIPS["atmega328p"]._replace(flash=32_256, code=6_900, stack=305)


def _layer_row(i, table, lanes, with_maps):
    """An initializer of chip.c's struct mlp_layer, and the arrays that it names, as C text."""
    blocks, rows, bits = table.w.shape
    none = (rows - 1) * bits * lanes // 8       # where a block's row of zeros begins
    if max(none, rows * bits, table.start.size) >= 2**16:
        raise ValueError(f"layer {i} is wider than the engine's 16-bit offsets reach; "
                         "export it to c")
    narrow = lanes // 2 if table.map.narrow else lanes

    def array(name, words, bits):
        return to_c.array(f"uint{bits}_t", name, words, " MLP_FLASH")

    arrays, places = [array(f"mlp_w{i}", table.w & (2**narrow - 1), narrow),
                      array(f"mlp_start{i}", table.start, lanes)], "0"
    if table.places.size:
        places = f"mlp_places{i}"
        arrays.append(array(places, table.places, lanes))
    numbers = (table.start.size, rows * bits, none, table.groups, table.code_bits,
               table.start.shape[1], table.shift, table.places.shape[1])
    numbers += table.map if with_maps else ()
    return (f"    {{mlp_w{i}, mlp_start{i}, {places}, {table.zero}u, "
            f"{', '.join(map(str, numbers))}}}"), "".join(arrays)


def _names(facts):
    """(the type of the class names in C, their text): rows of equal length, in flash."""
    length = max(len(name.encode()) for name in facts.classes) + 1
    kind = f"const char mlp_class_names[MLP_CLASSES][{length}] MLP_FLASH"
    return kind, f"{kind} = {{\n" + ",\n".join(
        f"    {to_c.quote(name)}" for name in facts.classes) + "\n};\n"


def header(network, tables, lanes, facts=None):
    """mlp.h: what a caller needs and, for chip.c alone, the tables."""
    facts = facts or to_c.plain_facts(network)
    kind, names = _names(facts)
    more = f"""
/* What the classes are called; on AVR in flash, for pgm_read_byte and strcpy_P. */
extern {kind};
{to_c.encoder(facts)}"""
    room, source = planes.room_of(tables), planes.source_of(network.steps)
    first, maps, fields = tables[0].map, "", ""
    if room.convolutions:
        source = source._replace(rows=planes.stages_of(network.steps)[0].after[0])
        maps = f"""#define MLP_MAPS
#define MLP_CONVOLUTIONS {room.convolutions}
#define MLP_MAP_WORDS {room.maps}
#define MLP_MAX_BLOCKS {room.blocks}
#define MLP_DOWN {first.high * source.line}     /* bytes from a row of windows to the next */
"""
        if any(table.map.narrow for table in tables):
            maps += "#define MLP_NARROW\n"
        fields = f"\n    uint16_t {', '.join(Map._fields)};"
    rows, arrays = zip(*(_layer_row(i, table, lanes, room.convolutions > 0)
                         for i, table in enumerate(tables)))
    return f"""/* {to_c.title(network)} */
#ifndef MLP_H
#define MLP_H
#ifdef __AVR__
#include <avr/pgmspace.h>
#define MLP_FLASH PROGMEM
#else
#define MLP_FLASH
#endif
{to_c.declarations(network, more)}
#ifdef MLP_WEIGHTS                      /* chip.c alone defines it */
typedef uint{lanes}_t mlp_word;

#define MLP_LANES {lanes}
#define MLP_BITS {network.weight_bits}
#define MLP_OFFSET {integer.code_range(network.weight_bits)[1]}u
#define MLP_PLAIN {planes.PLAIN}
#define MLP_QBITS {network.activation_bits}
#define MLP_START {source.start}        /* bytes of the image before the first that counts */
#define MLP_LINE {source.line}          /* from a line of codes to the next */
#define MLP_MEAN {source.mean}          /* of a line whose 2 x 2 are averaged; else 0 */
#define MLP_ROWS {source.rows}
#define MLP_WIDTH {source.width}
#define MLP_MAX_INPUTS {room.inputs}
#define MLP_MAX_GROUPS {room.groups}
#define MLP_X_WORDS {room.x_words}
#define MLP_MAX_PLANES {room.sums}
{maps}
struct mlp_layer {{
    const void *w;
    const mlp_word *start, *places;
    uint32_t zero;
    uint16_t sums, rows, none, groups;
    uint8_t code_bits, planes, shift, spread;{fields}
}};

{names}{to_c.encoding(facts, " MLP_FLASH")}
{''.join(arrays)}
static const struct mlp_layer mlp_layers[] = {{
""" + ",\n".join(rows) + "\n};\n#endif\n#endif\n"


def needs(network, facts, tables, lanes, name, has):
    """(bytes of flash, bytes of RAM) that a network takes on a Chip, image and all; rounded up.

    facts: checkpoint.Facts: names and the table of features take flash, too.

    Raises:
      ValueError: the chip of this name has less; one line with both numbers.
    """
    room, word = planes.room_of(tables), lanes // 8
    row, code, stack, listed = has.row, has.code, has.stack, room.inputs
    if room.convolutions:
        row += 2 * len(Map._fields)
        code += has.maps_code
        # Wide rows have no room in registers.
        stack += has.maps_stack + 2 * lanes + 2 * word * max(network.weight_bits - 3, 0)
        listed = lanes + lanes // 2
    words = sum(t.w.size // (1 + t.map.narrow) + t.start.size + t.places.size for t in tables)
    names = len(facts.classes) * (1 + max(len(name.encode()) for name in facts.classes))
    flash = (code + words * word + len(tables) * row + names
             + (0 if facts.low is None else 8 * len(facts.low)))
    ram = ((room.groups + room.x_words + room.sums + room.maps
            + room.blocks * network.activation_bits) * word + 2 * (listed + 1)
           + 4 * network.steps[-1].after[0] + stack + plan.inputs(network.steps))
    if not has.origins:
        ram += len(tables) * row                # AVR's start-up code copies the table of layers
    for need, there, kind in ((flash, has.flash, "flash"), (ram, has.ram, "ram")):
        if need > there:
            raise ValueError(f"it needs about {need:,} bytes of {kind}, {name} has {there:,}")
    return flash, ram


def fit(network, facts, name, has):
    """(lanes, tables, needs) of a network on a Chip, in the widest words that fit."""
    convolves = plan.convolves(network.steps)
    for lanes in has.lanes[::-1] if convolves else has.lanes[:1]:
        tables = planes.make_all_tables(network, lanes)
        try:
            return lanes, tables, needs(network, facts, tables, lanes, name, has)
        except ValueError as error:
            reason = error
    raise reason


def makefile(chip):
    """The Makefile of a chip's folder."""
    has, text, places = CHIPS[chip], "", ""
    if has.origins:
        flash, ram = has.origins
        places = f"FLASH = 0x{flash:x}\nRAM = 0x{ram:x}\n"
        text = (" -nostdlib -Wl,-T,link.ld -Wl,--defsym=FLASH=$(FLASH)"
                f" -Wl,--defsym=FLASH_SIZE=0x{has.flash:x} -Wl,--defsym=RAM=$(RAM)"
                f" -Wl,--defsym=RAM_SIZE=0x{has.ram:x}")
    sources = " ".join((*has.main[:-1], "mlp.c"))
    return f"""# {chip}: {has.flash:,} bytes of flash, {has.ram:,} of RAM.
{places}CC = {has.tools}gcc
CFLAGS = -std=c99 -O2 {has.flags} -fno-schedule-insns -ffreestanding -ffunction-sections \\
 -fdata-sections -fno-inline-small-functions -fno-tree-loop-distribute-patterns \\
 -Wall -Wextra -Wpedantic -Wconversion
LDFLAGS = -Wl,--gc-sections{text}

mlp.elf: {has.main[-1]}
example.elf: example.c example.h
%.elf: {sources} mlp.h console.h
\t@command -v $(CC) >/dev/null || \\
\t  {{ echo "{chip}: skipped: no $(CC); install {has.package}"; exit 0; }}; \\
\t  set -x; $(CC) $(CFLAGS) $(MORE) $(filter %.c,$^) -o $@ $(LDFLAGS) -lgcc && {has.tools}size $@
"""


def example_header(network, image, features):
    """example.h: an example, the features that it encodes or None, and its logits by NumPy."""
    logits = integer.make_engine(network, "numpy")(image[None])[0]
    parts = [to_c.array("uint8_t", "example_bytes", image, " MLP_FLASH"),
             to_c.array("int32_t", "example_logits", logits, " MLP_FLASH")]
    if features is not None:
        parts.append(to_c.floats("example_features", features, " MLP_FLASH"))
    return "".join(parts)


def readme(network, chip, flash, ram):
    """README.md of a chip's folder."""
    has = CHIPS[chip]
    return f"""# {to_c.title(network)[:-1]}

For {chip}: at most about {flash:,} bytes of flash and {ram:,} of RAM, input and stack included.

Build (Debian: {has.package}), `make example.elf mlp.elf`; `example.elf` classifies one example and
prints its class and RIGHT if every integer is Python's. In an emulator:

    {has.emulator} example.elf

On a board:

{has.upload}

In your own program: `#include "mlp.h"`, compile `mlp.c` with the Makefile's flags, call
`mlp_predict(image, logits)`: from {plan.inputs(network.steps):,} bytes to the class, whose name is
in `mlp_class_names`. Features are made bytes by `mlp_encode` first, where mlp.h has it.
"""


def export(network, chips, facts=None, image=None, features=None):
    """What each chip's folder holds.

    Args:
      network: integer.Network.
      chips: names of CHIPS.
      facts: checkpoint.Facts: names and encoding; None: 0, 1, ... and bytes.
      image: uint8 [inputs] of the example; None: made up.
      features: float32 [inputs] that image encodes, or None.
    Returns:
      ({path in the output folder: text}, {chip: (bytes of flash, of RAM) it takes at most}).
    Raises:
      ValueError: the network does not fit one of them; one line.
    """
    facts = facts or to_c.plain_facts(network)
    fitted = {chip: fit(network, facts, chip, CHIPS[chip]) for chip in chips}
    engine, files = (FOLDER / "chip.c").read_text("utf-8"), {}
    if image is None:
        image, features = to_c.make_example(network), None
    if facts.low is not None and features is None:          # no real example: what these codes mean
        largest = np.finfo(np.float32).max
        made = facts.low + np.exp2(facts.exponent.astype(np.float64)) * image.reshape(
            -1, len(facts.low))
        made = made.clip(-largest, largest).astype(np.float32)
        image = encode(made, Encoding(facts.low, facts.exponent)).ravel()   # float32 has rounded
        features = made.ravel()
    example = example_header(network, image, features)
    for chip in chips:
        has, (lanes, tables, needed) = CHIPS[chip], fitted[chip]
        files[f"{chip}/mlp.h"] = header(network, tables, lanes, facts)
        files[f"{chip}/mlp.c"] = engine
        files[f"{chip}/Makefile"] = makefile(chip)
        files[f"{chip}/README.md"] = readme(network, chip, *needed)
        files[f"{chip}/example.h"] = example
        for name in (*has.main, "console.h", "example.c", *(("link.ld",) if has.origins else ())):
            files[f"{chip}/{name}"] = (FOLDER / "firmware" / name).read_text("utf-8")
    return files, {chip: needed for chip, (_, _, needed) in fitted.items()}


def export_uno(network, facts=None):
    """An Arduino sketch for the Uno: {name: text}; raises as export.

    Of features it reads the analog inputs; else it takes images from the serial port.
    """
    facts = facts or to_c.plain_facts(network)
    lanes, tables, _ = fit(network, facts, "an Uno", UNO)
    sketch = "uno.ino" if facts.low is None else "window.ino"
    return {"uno.ino": (FOLDER / "firmware" / sketch).read_text("utf-8"),
            "mlp.h": header(network, tables, lanes, facts),
            "mlp.c": (FOLDER / "chip.c").read_text("utf-8")}
