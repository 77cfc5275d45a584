"""Run exported models: each engine takes uint8 images [N, I] and gives int32 accumulators."""
import base64
import ctypes
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

C_FLAGS = ("-std=c99", "-O3", "-march=native")
# As root Chromium refuses its sandbox; the rest keeps it from touching a GPU or the network.
CHROMIUM_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                  "--disable-background-networking", "--disable-component-update", "--disable-sync")


class Missing(Exception):
    """An engine that is not installed here; the message is the reason."""


def make_onnx(model):
    """ONNX Runtime, as it comes: default graph optimizations, CPU.

    Args:
      model: bytes, as from to_onnx.export.
    Returns:
      a function from images to the model's first output.
    """
    try:
        import onnxruntime
    except ImportError:
        raise Missing("no onnxruntime: pip install -r requirements-export.txt") from None
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    output = session.get_outputs()[0].name
    return lambda images: session.run([output], {"image": images})[0]


def find_compiler(name="gcc"):
    """Path of a C compiler, or Missing."""
    path = shutil.which(name)
    if not path:
        raise Missing(f"no {name}: install it from the system's packages")
    return path


def make_c(files, compiler="gcc", flags=C_FLAGS):
    """The C engine, as a shared library.

    Args:
      files: {name: text}, as from to_c.export.
    Returns:
      a function from images to accumulators.
    """
    compiler = find_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:       # a loaded library outlives its file
        for name, text in files.items():
            (Path(folder) / name).write_text(text, "utf-8")
        library = Path(folder) / "mlp.so"
        subprocess.run([compiler, *flags, "-shared", "-fPIC", "mlp.c", "-o", library], cwd=folder,
                       check=True)
        batch = ctypes.CDLL(str(library)).mlp_predict_batch
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


@contextmanager
def open_page(path, **options):
    """The page in headless Chromium, as a Playwright page that fails on any script error.

    Args:
      path: HTML file; options: for Playwright's new_page, such as color_scheme or viewport.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise Missing("no playwright: pip install -r requirements-export.txt") from None
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
