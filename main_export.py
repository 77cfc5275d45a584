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
import data
import integer
import plan
from deploy import to_c, to_firmware, to_web
from formats import checkpoint, nqat
from formats.encode import Encoding
from machine.files import InputError, write_atomically
from runner import keep

OUT = Path(config.at_home("deploy/out"))


def export_onnx(network, facts, dataset, chips):
    """({file name: bytes}, how to use them), as all functions here."""
    try:
        from deploy import to_onnx
    except ImportError:
        raise InputError("onnx is missing: pip install -r requirements-dev.txt") from None
    files, features = {"mlp.onnx": to_onnx.export(network)}, ""
    if facts.low is not None:
        encoding = Encoding(facts.low, facts.exponent)
        files["mlp_features.onnx"] = to_onnx.export(network, encoding)
        features = "\nmlp_features.onnx: the readings in, {\"features\": float32 of the same shape}"
    return files, f"""\
uint8 image [N, {plan.inputs(network.steps)}] in; int32 logits (accumulators) and int64 class out:
  session = onnxruntime.InferenceSession("{OUT}/mlp.onnx")
  logits, classes = session.run(None, {{"image": images}}){features}"""


def _example(network, facts, dataset):
    """(image, features) of a test example, as exports take them; None of what there is not."""
    if dataset is None:
        return None, None
    try:
        data.check_fits(dataset, network.steps, facts)
    except InputError:                          # the file was made from other data
        return None, None
    return dataset.test.images[0], dataset.sample if facts.low is not None else None


def export_c(network, facts, dataset, chips):
    files, flash, ram = to_c.export(network, facts, *_example(network, facts, dataset))
    compiler, lines = "cc -std=c99 -O3 -march=native", []
    if facts.low is not None:
        lines = ["features: mlp_encode(features, bytes) first; mlp_class_names says the class"]
    elif dataset is not None and dataset.name == "MNIST":
        lines = ["the test images:",
                 f"  {compiler} {OUT}/mlp.c {OUT}/classify.c -o {OUT}/classify",
                 f"  gunzip -c datasets/mnist/t10k-images-idx3-ubyte.gz > {OUT}/images",
                 f"  gunzip -c datasets/mnist/t10k-labels-idx1-ubyte.gz > {OUT}/labels",
                 f"  {OUT}/classify {OUT}/images {OUT}/labels"]
    return {name: text.encode() for name, text in files.items()}, "\n".join([
        f"in plain C: flash {flash:,} bytes of tables, and code; stack at most {ram:,} bytes",
        'your program: #include "mlp.h", compile mlp.c, call mlp_predict(image, logits)',
        "a test vector of one example, which says RIGHT:",
        f"  {compiler} {OUT}/mlp.c {OUT}/example.c -o {OUT}/example",
        f"  {OUT}/example", *lines, "C++ and Python call it in ten lines: docs/deploy.md"])


def export_web(network, facts, dataset, chips):
    what = {"draw": "draw there", "picture": "drop a picture there",
            "numbers": "paste numbers there"}[to_web.taken(network, facts)]
    _, features = _example(network, facts, dataset)
    return {"mlp.html": to_web.export(network, facts, features).encode()}, (
        f"open it in a browser, from disk, and {what}; it needs no network and no other file")


def export_firmware(network, facts, dataset, chips):
    files, needed = to_firmware.export(network, chips or list(to_firmware.CHIPS), facts,
                                       *_example(network, facts, dataset))
    lines = [f"  {chip}: at most about {flash:,} bytes of flash, {ram:,} of RAM"
             for chip, (flash, ram) in needed.items()]
    return {f"firmware/{name}": text.encode() for name, text in files.items()}, "\n".join([
        *lines, f"  build:        make -C {OUT}/firmware/CHIP; README.md there says how to run it",
        "  your program: #include \"mlp.h\", compile mlp.c, call mlp_predict(image, logits)"])


def export_uno(network, facts, dataset, chips):
    files = to_firmware.export_uno(network, facts)
    what = ("it reads its features from A0, A1, ...: write your own read_channel" if
            facts.low is not None else "the web page talks to it")
    return {f"uno/{name}": text.encode() for name, text in files.items()}, (
        f"open {OUT}/uno/uno.ino in the Arduino IDE and upload it; {what}")


FORMATS = {"onnx": export_onnx, "c": export_c, "web": export_web, "firmware": export_firmware,
           "uno": export_uno}


def main(argv):
    words = config.words(argv)
    settings = config.load(argv, __doc__, also=words)
    form, *chips = words or [""]
    if form not in FORMATS or chips and form != "firmware":
        raise InputError(f"name one format: {', '.join(FORMATS)}; after firmware, chips; "
                         f"not {' '.join(words) or 'none'}")
    for chip in chips:
        if chip not in to_firmware.CHIPS:
            raise InputError(f"there is no chip {chip!r}; name {', '.join(to_firmware.CHIPS)}")
    settings, dataset = keep.settle(settings, config.given(argv))
    path = keep.find(settings, dataset and dataset.sha256)
    network, facts = keep.load(path)
    checkpoint.check_quantized(network, path)
    try:
        nqat.check_kinds(network.steps)
        files, usage = FORMATS[form](network, facts, dataset, chips)    # all made, then written
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    for name, content in files.items():
        write_atomically(OUT / name, content)
        print(f"wrote {OUT / name} ({len(content):,} bytes)")
    print(f"{path}: {integer.name(network)}, {plan.describe(network.steps)}\n{usage}")


if __name__ == "__main__":
    script.run(main)
