"""Export a saved quantized model: ONNX, C99, a web page, firmware or an Arduino sketch.

python3 main_export.py onnx|c|web|uno [recipes/NAME.toml] [--KEY=value ...]
python3 main_export.py firmware [CHIP ...] [recipes/NAME.toml] [--KEY=value ...]

The same integers in each. WEIGHTS names the file; empty, it is the one that main_train.py saves.
Output goes to deploy/out/. A CHIP is cortex-m0, cortex-m3, rv32ec or atmega328p; all without one.
"""
if __name__ == "__main__":
    import os
    import sys
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))     # not with PYTHONSAFEPATH
    from machine import script
    script.begin()

from pathlib import Path

import config
import integer
from machine.files import InputError, write_atomically

OUT = Path(config.at_home("deploy/out"))


def to_onnx(network):
    """({file name: bytes}, how to use it), as from the two functions below."""
    try:
        from deploy import to_onnx as target
    except ImportError:
        raise InputError("onnx is missing: pip install -r requirements-export.txt") from None
    pixels = integer.pixels(network.input, integer.sizes(network)[0])
    return {"mlp.onnx": target.export(network)}, (
        f"uint8 image [N, {pixels}] in; int32 logits (accumulators) and "
        "int64 class out:\n"
        f"  session = onnxruntime.InferenceSession(\"{OUT}/mlp.onnx\")\n"
        "  logits, classes = session.run(None, {\"image\": images})")


def to_c(network):
    from deploy import to_c as target
    files, flash, ram = target.export(network)
    compiler = "cc -std=c99 -O3 -march=native"
    return {name: text.encode() for name, text in files.items()}, f"""\
in plain C: flash {flash:,} bytes of tables, and code; stack at most {ram:,} bytes
your program: #include "mlp.h", compile mlp.c, call mlp_predict(image, logits)
a test vector of one image, exit code 0 if right:
  {compiler} {OUT}/mlp.c {OUT}/example.c -o {OUT}/example
  {OUT}/example && echo right
the test images:
  {compiler} {OUT}/mlp.c {OUT}/classify.c -o {OUT}/classify
  gunzip -c datasets/mnist/t10k-images-idx3-ubyte.gz > {OUT}/images
  gunzip -c datasets/mnist/t10k-labels-idx1-ubyte.gz > {OUT}/labels
  {OUT}/classify {OUT}/images {OUT}/labels
C++ and Python call it in ten lines: docs/deploy.md"""


def to_web(network, dataset):
    from deploy import to_web as target
    return {"mlp.html": target.export(network, dataset).encode()}, (
        "open it in a browser, from disk; it needs no network and no other file")


def to_firmware(network, chips):
    """The folders of these chips; {path: bytes} and how to use it."""
    from deploy import to_firmware as target
    lines = []
    for chip in chips or target.CHIPS:
        if chip not in target.CHIPS:
            raise InputError(f"there is no chip {chip!r}; name {', '.join(target.CHIPS)}")
        flash, ram = target.needs(network, chip)
        lines.append(f"  {chip}: at most about {flash:,} bytes of flash, {ram:,} of RAM")
    files = target.export(network, chips or target.CHIPS)
    return {f"firmware/{name}": text.encode() for name, text in files.items()}, "\n".join([
        *lines, f"  build:        make -C {OUT}/firmware/CHIP",
        "  your program: #include \"mlp.h\", compile mlp.c, call mlp_predict(image, logits)"])


def to_uno(network):
    from deploy import to_firmware as target
    return {f"uno/{name}": text.encode() for name, text in target.export_uno(network).items()}, (
        f"open {OUT}/uno/uno.ino in the Arduino IDE and upload it; the web page talks to it")


FORMATS = {"onnx": to_onnx, "c": to_c, "web": to_web, "firmware": to_firmware, "uno": to_uno}


def main(argv):
    words = config.words(argv)
    settings = config.load(argv, __doc__, also=words)
    form, *chips = words or [""]
    if form not in FORMATS or chips and form != "firmware":
        raise InputError(f"name one format: {', '.join(FORMATS)}; after firmware, chips; "
                         f"not {' '.join(words) or 'none'}")
    from formats import checkpoint
    path = checkpoint.find(settings.WEIGHTS, (Path(settings.RUNS_DIR) / "latest",
                                              settings.WEIGHTS_DIR), True, settings.WEIGHT_BITS,
                           settings.FILE_FORMAT)
    network, facts = checkpoint.load_quantized(path)
    extra = {"web": {"dataset": str(facts.get("dataset", {}).get("name", ""))},     # what to draw
             "firmware": {"chips": chips}}.get(form, {})
    try:
        files, usage = FORMATS[form](network, **extra)      # all made before any is written
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    for name, content in files.items():
        write_atomically(OUT / name, content)
        print(f"wrote {OUT / name} ({len(content):,} bytes)")
    print(f"{path}: {integer.name(network)}, {'-'.join(map(str, integer.sizes(network)))}\n{usage}")


if __name__ == "__main__":
    script.run(main)
