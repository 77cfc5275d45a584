"""Small networks on small chips, in emulators: flash, RAM, and instructions or cycles an image.

python3 -m benchmarks.firmware [--KEY=value ...]

Writes results/firmware.json. Of the default weights and each small recipe that fits a chip; exit 2
if one integer differs from the integer engine's.
"""
if __name__ == "__main__":
    from machine import script
    script.begin()

import os
import pty
import re
import select
import shutil
import subprocess
import tempfile
import tty
from pathlib import Path

import numpy as np

import config
import data
import integer
import plan
from deploy import to_firmware
from deploy.engines import Missing
from formats import checkpoint
from machine import runtime, script
from machine.files import InputError, check_writable
from report import results
from runner import experiment

NETWORKS = ("weights_int8.npz", "recipes/w4a4.npz", "recipes/ternary.npz", "recipes/binary.npz",
            "recipes/12kB.nqat", "recipes/mcu.nqat", "recipes/6kB.nqat", "recipes/4kB.nqat",
            "recipes/3kB.nqat", "recipes/chip5kB.nqat", "recipes/chip3kB.nqat",
            "recipes/chip2kB.nqat", "recipes/conv2kB.nqat")
SEVERAL = 1_000                 # images in simavr, which takes 10 ms and more, and of convolutions
FEATURES = "breast cancer"      # scikit-learn's set of the network that reads features
AVR_MHZ = 16
SHIFTS = {"cortex-m0": 6, "cortex-m3": 6, "rv32ec": 0}    # an instruction takes 2**shift ns there
PACKAGES = {"qemu-system-arm": "qemu-system-arm", "qemu-system-riscv32": "qemu-system-misc",
            "gcc": "gcc", "make": "make"}


def find(tool, package=None):
    """Path of a program, or Missing with Debian's package."""
    path = shutil.which(tool)
    if not path:
        raise Missing(f"no {tool}: install {package or PACKAGES[tool]}")
    return path


def build(network, chip, folder, *flags):
    """Export to a folder and run its Makefile.

    Args:
      network: integer.Network; chip: of to_firmware.CHIPS; folder: Path; flags: more for gcc.
    Returns:
      (path of the ELF file, bytes of flash, bytes of .data and .bss).
    Raises:
      Missing: no compiler; ValueError: the network doesn't fit.
    """
    has = to_firmware.CHIPS[chip]
    find(f"{has.tools}gcc", has.package)
    for name, text in to_firmware.export(network, [chip])[0].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    made = subprocess.run([find("make"), "-s", "-B", "-C", folder / chip,
                           f"MORE={' '.join(flags)}", "mlp.elf"],
                          capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(made.stderr)
    text, data_bytes, bss = map(int, made.stdout.splitlines()[-1].split()[:3])
    return folder / chip / "mlp.elf", text + data_bytes, data_bytes + bss


def run_qemu(chip, elf, images):
    """The firmware's answers, built with -DMEASURE.

    Returns:
      (int64 [N, 1 + classes], class and logits; instructions [N]; bytes of stack).
    """
    command, *options = to_firmware.CHIPS[chip].emulator.split()
    (elf.parent / "images.bin").write_bytes(images.tobytes())
    ran = subprocess.run([find(command), "-icount", f"shift={SHIFTS[chip]}", *options, elf.name],
                         cwd=elf.parent, stdin=subprocess.DEVNULL,
                         check=True, capture_output=True, text=True, timeout=600)
    lines = [line.split() for line in (ran.stdout + ran.stderr).splitlines()
             if re.fullmatch(r"[-\d ]+", line)]
    answers, (unit, stack) = np.array(lines[:-1], np.int64), map(int, lines[-1])
    counts = np.rint(answers[:, 1] * (100_000 / unit)).astype(np.int64)
    return np.delete(answers, 1, axis=1), counts, stack


def read_line(port, seconds=60):
    """A line of text from an unbuffered port, without its end."""
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([port], [], [], seconds)[0]:
            raise RuntimeError(f"no answer for {seconds} s after {line!r}")
        line += port.read(1)
    return line.decode().strip()


def start_simavr(elf, ram, folder):
    """Firmware in simavr, its UART on a pseudo-terminal: (process, our side as a file, the other).

    It has said that it is ready.
    """
    binary = folder / "simavr"
    if not binary.exists():
        source = Path(__file__).with_name("simavr.c")
        made = subprocess.run([find("gcc"), "-O2", source, "-lsimavr", "-o", binary],
                              capture_output=True)
        if made.returncode:
            raise Missing("no libsimavr: install libsimavr-dev")
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    process = subprocess.Popen([binary, elf, os.ttyname(theirs), str(ram)], text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    port = os.fdopen(ours, "r+b", 0)
    if read_line(port) != "ready":
        raise RuntimeError("the firmware did not start")
    return process, port, theirs


def run_simavr(elf, ram, images, folder):
    """As run_qemu, with cycles in place of instructions."""
    process, port, theirs = start_simavr(elf, ram, folder)
    answers = []
    for image in images:
        port.write(image.tobytes())
        answers.append(read_line(port).split())
    os.close(theirs)
    port.close()
    lines = process.communicate(timeout=60)[0].splitlines()
    cycles = [int(line) for line in lines if line.isdecimal()]      # others are simavr's own
    return np.array(answers, np.int64), np.array(cycles), int(lines[-1].removeprefix("stack "))


def measure(network, chip, images, folder):
    """One network on one chip: a dict of what it takes, and whether its integers agree.

    Args:
      network: integer.Network; images: uint8 [N, pixels]; folder: Path, for the builds.
    """
    elf, flash, static = build(network, chip, folder)
    if chip in SHIFTS:
        elf, _, static = build(network, chip, folder, "-DMEASURE")
        got, counts, stack = run_qemu(chip, elf, images)
        unit = "instructions"
    else:
        got, counts, stack = run_simavr(elf, static, images, folder)
        unit = "cycles"
    want = integer.make_engine(network, "numpy")(images)
    want = np.concatenate([want.argmax(1)[:, None], want], axis=1)
    return {"flash": flash, "ram": static + stack, "image": images.shape[1], unit: counts.mean(),
            "most": counts.max(), "images": len(images), "mismatches": (got != want).sum()}


def _words(row):
    """A row in a line."""
    if "flash" not in row:
        return row.get("refused") or row["missing"]
    unit = "cycles" if "cycles" in row else "instructions"
    return (f"{row['flash']:,} bytes of flash, {row['ram'] - row['image']:,} of RAM beside the "
            f"image, {row[unit]:,.0f} {unit} an image, "
            f"{row['mismatches']} of {row['images']:,} differ")


def feature_network(settings):
    """(integer.Network, test accuracy, all its examples) of a small table of features, W4A4."""
    from benchmarks import own_data
    settings = experiment.set_up(config.change(settings, LAYERS="32 16"))     # for all chips
    split = own_data.splits_of(FEATURES)[0]
    outcome, _ = own_data.train(FEATURES, split, 0, settings, 4, 4)
    dataset = own_data.to_dataset(FEATURES, *split)
    images = np.concatenate([dataset.test.images, dataset.train.images])
    return checkpoint.decode(outcome.content)[0], outcome.row["test_acc"], images


def run(networks, count=None):
    """Rows of all networks on all chips.

    Args:
      networks: {name: (integer.Network, test accuracy, uint8 images [N, inputs], data set)};
      count: images a run; None for as many as each emulator is quick enough for.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (network, accuracy, images, dataset) in networks.items():
            is_slow = plan.convolves(network.steps)
            for chip in to_firmware.CHIPS:
                row = {"label": name, "chip": chip, "test_acc": accuracy, "dataset": dataset,
                       "network": f"{plan.describe(network.steps)} {integer.name(network)}"}
                try:
                    some = SEVERAL if is_slow or chip not in SHIFTS else len(images)
                    part = images[:count or some]
                    row |= measure(network, chip, part, Path(folder))
                except ValueError as reason:
                    row["refused"] = str(reason)
                except Missing as reason:
                    row["missing"] = str(reason)
                rows.append(row)
                print(f"{name}, {chip}: {_words(row)}", flush=True)
    return rows


def main(argv):
    settings = config.load(argv, __doc__)
    check_writable(settings.RESULTS_DIR)
    runtime.set_up(settings.CACHE_DIR)
    dataset, networks = data.load(settings.DATA_DIR), {}
    for name in NETWORKS:
        network, facts = checkpoint.load_quantized(Path(settings.WEIGHTS_DIR) / name)
        data.check_fits(dataset, network.steps, facts)
        acc = integer.make_engine(network)(dataset.test.images)
        label = Path(name).stem.replace("weights_int8", "default")
        accuracy = (acc.argmax(1) == dataset.test.labels).mean()
        networks[label] = network, accuracy, dataset.test.images, dataset.name
    networks[FEATURES] = *feature_network(settings), FEATURES
    rows = run(networks)
    missing = sorted({row["missing"] for row in rows if "missing" in row})
    if missing:
        raise InputError(f"nothing is written, some rows lack their numbers: {'; '.join(missing)}")
    results.write_result(Path(settings.RESULTS_DIR) / "firmware.json", settings._asdict(),
                         rows, avr_mhz=AVR_MHZ,
                         chips={name: {"flash": chip.flash, "ram": chip.ram}
                                for name, chip in to_firmware.CHIPS.items()})
    wrong = sum(row.get("mismatches", 0) for row in rows)
    if wrong:
        raise InputError(f"{wrong} integers differ from the integer engine's")


if __name__ == "__main__":
    script.run(main)
