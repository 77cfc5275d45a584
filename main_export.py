"""Export a saved quantized model: ONNX, C99 or a web page, the same integers in each.

python3 main_export.py onnx|c|web [recipes/NAME.toml] [--KEY=value ...]

WEIGHTS names the file; empty, it is the one that main_train.py saves. Output goes to deploy/out/.
"""
import signal

if __name__ == "__main__":      # until run_script takes over, Ctrl-C just ends, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from pathlib import Path

import config
import integer
from files import InputError, write_atomically

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


FORMATS = {"onnx": to_onnx, "c": to_c, "web": to_web}


def main(argv):
    form, switches = (argv[0], argv[1:]) if argv and argv[0] in FORMATS else (None, argv)
    settings = config.load(switches, __doc__)
    if form is None:
        raise InputError(f"name a format first: {' or '.join(FORMATS)}")
    import checkpoint
    path = checkpoint.find(settings.WEIGHTS, (Path(settings.RUNS_DIR) / "latest",
                                              settings.WEIGHTS_DIR), True, settings.WEIGHT_BITS,
                           settings.FILE_FORMAT)
    network, extra = checkpoint.load_quantized(path), {}
    if form == "web":                               # which says what there is to draw
        extra["dataset"] = str(checkpoint.load(path)[1].get("dataset", {}).get("name", ""))
    try:
        files, usage = FORMATS[form](network, **extra)      # all made before any is written
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    for name, content in files.items():
        write_atomically(OUT / name, content)
        print(f"wrote {OUT / name} ({len(content):,} bytes)")
    print(f"{path}: {integer.name(network)}, {'-'.join(map(str, integer.sizes(network)))}\n{usage}")


if __name__ == "__main__":
    config.run_script(main)
