"""Run exported models: each engine takes uint8 images [N, I] and gives int32 accumulators."""
import base64
import ctypes
import functools
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from machine.files import InputError

C_FLAGS = ("-std=c99", "-O3", "-march=native")
PLAIN = "-DMLP_PORTABLE"        # as where a processor has no dot product of bytes
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Raw images in, int32 logits out; arrays of one image, so that the sanitizer sees a byte too far.
_PIPE = """
#include <stdio.h>
#include "mlp.h"
int main(void)
{
    uint8_t image[MLP_INPUTS];
    int32_t logits[MLP_CLASSES];
    while (fread(image, MLP_INPUTS, 1, stdin)) {
        mlp_predict_batch(image, logits, 1);
        fwrite(logits, sizeof logits, 1, stdout);
    }
    return 0;
}
"""
# As root Chromium refuses its sandbox; the rest keeps it from touching a GPU or the network.
CHROMIUM_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                  "--disable-background-networking", "--disable-component-update", "--disable-sync")


class Missing(InputError):
    """An engine that is not installed here; the message is the reason."""


def make_onnx(model, threads=0):
    """ONNX Runtime, as it comes: default graph optimizations, CPU.

    Args:
      model: bytes, as from to_onnx.export; threads: 0 uses every core.
    Returns:
      a function from images, or features, to the model's first output.
    """
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    source, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    return lambda images: session.run([output], {source: images})[0]


@functools.cache
def find_compiler(name="gcc", flags=()):
    """Path of a C compiler that can link a program with these flags, or Missing."""
    path = shutil.which(name)
    if not path:
        raise Missing(f"no {name}: install it from the system's packages")
    with tempfile.TemporaryDirectory() as folder:
        probe = subprocess.run([path, *flags, "-x", "c", "-", "-o", "probe"], cwd=folder,
                               input=b"int main(void) { return 0; }\n", capture_output=True)
    if probe.returncode:
        raise Missing(f"{name} can't link with {' '.join(flags)}: its libraries are missing")
    return path


def _compile(files, folder, compiler, flags, *more):
    """Write the files to the folder and call the compiler there."""
    compiler = find_compiler(compiler, flags)
    for name, text in files.items():
        (Path(folder) / name).write_text(text, "utf-8")
    subprocess.run([compiler, *flags, *more], cwd=folder, check=True)


def make_c(files, compiler="gcc", flags=C_FLAGS):
    """The C engine, as a shared library.

    Args:
      files: {name: text}, as from to_c.export.
    Returns:
      a function from images to accumulators.
    """
    with tempfile.TemporaryDirectory() as folder:       # a loaded library outlives its file
        _compile(files, folder, compiler, flags, "-shared", "-fPIC", "mlp.c", "-o", "mlp.so")
        batch = ctypes.CDLL(str(Path(folder) / "mlp.so")).mlp_predict_batch
    batch.argtypes, batch.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32), None
    header = files["mlp.h"].split()
    inputs, classes = (int(header[header.index(f"MLP_{name}") + 1])
                       for name in ("INPUTS", "CLASSES"))

    def run(images):
        # The library trusts its caller: wrong shapes would read beyond the array.
        images = np.ascontiguousarray(images, np.uint8).reshape(len(images), inputs)
        logits = np.empty((len(images), classes), np.int32)
        batch(images.ctypes.data, logits.ctypes.data, len(images))
        return logits

    return run


def make_c_program(files, folder, compiler="gcc", flags=(*C_FLAGS, *SANITIZERS)):
    """The C engine, as a program in a folder, which may run under sanitizers; else as make_c."""
    _compile({**files, "pipe.c": _PIPE}, folder, compiler, flags, "mlp.c", "pipe.c", "-o", "pipe")

    def run(images):
        done = subprocess.run([Path(folder) / "pipe"], input=images.tobytes(), check=True,
                              stdout=subprocess.PIPE)
        return np.frombuffer(done.stdout, np.int32).reshape(len(images), -1)

    return run


@contextmanager
def open_page(path, **options):
    """The page in headless Chromium, as a Playwright page that fails on any script error.

    Args:
      path: HTML file; options: for Playwright's new_page, such as color_scheme or viewport.
    """
    from playwright.sync_api import sync_playwright
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        raise Missing("no chromium: install it from the system's packages")
    errors = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        try:
            page = browser.new_page(**options)
            page.on("pageerror", lambda error: errors.append(error))
            page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
            page.goto(Path(path).absolute().as_uri())
            yield page
        finally:
            browser.close()
    if errors:
        raise RuntimeError(f"the page reported: {errors[0]}")


def run_page(page, images):
    """Accumulators of the page's own predictor.

    Args:
      page: as from open_page; images: uint8 [N, 784].
    Returns:
      int32 [N, classes].
    """
    answer = page.evaluate("""text => {
        const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)), logits = [];
        for (let at = 0; at < bytes.length; at += 784)
            logits.push(...predict(bytes.subarray(at, at + 784)));
        const view = new Uint8Array(Int32Array.from(logits).buffer);
        let out = "";
        for (const byte of view) out += String.fromCharCode(byte);
        return btoa(out);
    }""", base64.b64encode(images.tobytes()).decode())
    return np.frombuffer(base64.b64decode(answer), np.int32).reshape(len(images), -1)
