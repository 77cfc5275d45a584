"""Export a saved quantized model: ONNX, C99 or a web page, the same integers in each.

python3 main_export.py onnx|c|web [recipes/NAME.toml] [--KEY=value ...]

WEIGHTS names the file; empty, it is the one that main_train.py saves. Output goes to deploy/out/.
"""
from pathlib import Path

import checkpoint
import config
from files import InputError, run_script, write_atomically
from main_inference import default_weights

OUT = Path("deploy/out")


def load_quantized(path):
    """Layers and meta of a quantized weights file; InputError for a float32 one."""
    layers, meta = checkpoint.load(path)
    if not meta["quantized"]:
        raise InputError(f"{path} holds float32 weights, which have no integers to export; "
                         "train with QAT_ENABLE = True")
    return layers, meta


def to_onnx(layers, meta):
    """({file name: bytes}, how to use it), as from the two functions below."""
    try:
        from deploy import to_onnx as target
    except ImportError:
        raise InputError("onnx is missing: pip install -r requirements-export.txt") from None
    inputs = meta["layer_sizes"][0]
    return {"mlp.onnx": target.export(layers, meta)}, (
        f"uint8 image [N, {inputs}] in; int32 logits (accumulators) and int64 class out:\n"
        f"  session = onnxruntime.InferenceSession(\"{OUT}/mlp.onnx\")\n"
        "  logits, classes = session.run(None, {\"image\": images})")


def to_c(layers, meta):
    from deploy import to_c as target
    files, flash, ram = target.export(layers, meta)
    return {name: text.encode() for name, text in files.items()}, (
        f"flash {flash:,} bytes of tables, RAM {ram:,} bytes of buffers; code and calls on top\n"
        f"  your program: #include \"mlp.h\", compile mlp.c, call mlp_predict(image, logits)\n"
        f"  try it:       cc -std=c99 -O3 -march=native -DMLP_MAIN {OUT}/mlp.c -o {OUT}/mlp\n"
        f"                {OUT}/mlp IMAGES [LABELS]     uncompressed idx files; one class a line")


def to_web(layers, meta):
    from deploy import to_web as target
    return {"mlp.html": target.export(layers, meta).encode()}, (
        "open it in a browser, from disk; it needs no network and no other file")


FORMATS = {"onnx": to_onnx, "c": to_c, "web": to_web}


def main(argv):
    if not argv or argv[0] not in FORMATS and argv[0] not in ("--help", "-h"):
        raise InputError(f"unknown format {argv[0] if argv else '(none)'}; give "
                         f"{' or '.join(FORMATS)} first")
    settings = config.load(argv[argv[0] in FORMATS:], __doc__)
    if not settings.POWER_OF_TWO_SCALES:
        raise InputError("POWER_OF_TWO_SCALES = False has no integers to export; set it to True")
    path = default_weights(settings)
    layers, meta = load_quantized(path)
    files, usage = FORMATS[argv[0]](layers, meta)       # all of them made before any is written
    for name, content in files.items():
        write_atomically(OUT / name, content)
        print(f"wrote {OUT / name} ({len(content):,} bytes)")
    print(f"{path}: W{meta['weight_bits']}A{meta['activation_bits']}, "
          f"{'-'.join(map(str, meta['layer_sizes']))}\n{usage}")


if __name__ == "__main__":
    run_script(main)
