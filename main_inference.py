"""Run a saved model: on the test split, or on image files.

python3 main_inference.py [photo.png ...] [recipes/NAME.toml] [--KEY=value ...]
"""
import time
from pathlib import Path

import numpy as np

import checkpoint
import config
import data
import images
import integer
import stats
from files import run_script, write_result


def make_predictor(layers, meta, engine="jax"):
    """A function from uint8 images [N, I] to float32 logits [N, classes].

    Args:
      layers, meta: as from checkpoint.load; quantized ones run integer-only up to the last
        accumulator, float32 ones through model.predict.
      engine: "jax" or "numpy", for quantized layers.
    """
    if meta["quantized"]:
        run = integer.make_engine(layers, meta["activation_bits"], engine)
        scale = integer.logit_scale(layers)
        return lambda images: run(images).astype(np.float32) * scale    # exact: a power of two
    import jax

    import model
    params = jax.device_put([(layer["w"], layer["b"]) for layer in layers])
    return lambda images: np.asarray(model.predict(params, images))


def evaluate_model(layers, meta, engine, **splits):
    """Loss and accuracy by split: {name}_loss in nats, {name}_acc as a fraction."""
    images = np.concatenate([split.images for split in splits.values()])    # one shape to compile
    logits = make_predictor(layers, meta, engine)(images)
    metrics, end = {}, 0
    for name, (_, labels) in splits.items():
        start, end = end, end + len(labels)
        metrics[f"{name}_loss"], metrics[f"{name}_acc"] = stats.evaluate(logits[start:end], labels)
    return metrics


def evaluate_file(path, settings):
    """Print and write what the file at `path` does on the test split."""
    layers, meta = checkpoint.load(path)
    _, test = data.load(settings.DATASET, settings.DATA_DIR, tuple(meta["layer_sizes"]))
    predict = make_predictor(layers, meta, settings.ENGINE)
    start = time.perf_counter()
    logits = predict(test.images)
    first = time.perf_counter() - start         # compiles, for JAX
    repeats = []
    for _ in range(5 if settings.ENGINE == "jax" else 1):
        start = time.perf_counter()
        predict(test.images)
        repeats.append(time.perf_counter() - start)
    loss, accuracy = stats.evaluate(logits, test.labels)
    size = Path(path).stat().st_size
    kind = (f"W{meta['weight_bits']}A{meta['activation_bits']} integer-only" if meta["quantized"]
            else "float32")
    speed = len(test.labels) / np.median(repeats)
    print(f"{path}: {kind}, engine {settings.ENGINE if meta['quantized'] else 'jax'}\n"
          f"test accuracy  {100 * accuracy:.2f} %\ntest loss      {loss:.6f} nats\n"
          f"speed          {speed:,.0f} images/s ({first:.2f} s for the first call)\n"
          f"file           {size:,} bytes")
    write_result(Path(settings.RESULTS_DIR) / "inference.json", settings, file=str(path), kind=kind,
                 test_acc=accuracy, test_loss=loss, images=len(test.labels), file_bytes=size,
                 first_call_seconds=first, seconds=repeats)


def classify(path, files, settings):
    """Print the class and the ten scores of image files."""
    layers, meta = checkpoint.load(path)
    inputs = np.stack([images.read_digit(file, meta["layer_sizes"][0]) for file in files])
    logits = make_predictor(layers, meta, settings.ENGINE)(inputs).astype(np.float64)
    scores = np.exp(logits - logits.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    width = max(len(file) for file in files)
    print(" " * width, " is", "".join(f"{digit:7d}" for digit in range(scores.shape[1])))
    for file, row in zip(files, scores):
        print(f"{file:{width}}  {row.argmax():2d}", "".join(f"{100 * p:6.1f}%" for p in row))


def default_weights(settings):
    """The file that WEIGHTS names; empty, the one that main_train.py saves with these switches."""
    return settings.WEIGHTS or checkpoint.default_path(settings.WEIGHTS_DIR, settings.QAT_ENABLE,
                                                       settings.WEIGHT_BITS)


def main(argv):
    files = [a for a in argv if not a.startswith("-") and not a.endswith(".toml")]
    settings = config.load([a for a in argv if a not in files], __doc__)
    path = default_weights(settings)
    if settings.ENGINE == "jax":
        import parallel
        parallel.set_up(settings)
    if files:
        classify(path, files, settings)
    else:
        evaluate_file(path, settings)


if __name__ == "__main__":
    run_script(main)
