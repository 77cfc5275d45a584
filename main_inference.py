"""Run a saved model: on the test split, or on image files.

python3 main_inference.py [photo.png ...] [recipes/NAME.toml] [--KEY=value ...]
"""
if __name__ == "__main__":
    import os
    import sys
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))     # not with PYTHONSAFEPATH
    from machine import script
    script.begin()

import sys
import time
from pathlib import Path

import numpy as np

import config  # JAX is imported below, if it is needed at all
import data
import integer
import plan
import predict
from formats import checkpoint
from machine.files import InputError
from report.results import write_result
from runner import keep

NAME_WIDTH = 28                 # of a file in a line of 80 columns; of a longer one the end


def evaluate_file(path, network, facts, dataset, settings):
    """Print and write what the model does on the test split."""
    data.check_fits(dataset, network.steps)
    predictor = predict.make_predictor(network, settings.ENGINE)
    start = time.perf_counter()
    metrics, correct = predict.evaluate(predictor, test=dataset.test)
    first = time.perf_counter() - start         # compiles, for JAX
    repeats = []
    for _ in range(5 if settings.ENGINE == "jax" else 1):
        start = time.perf_counter()
        predictor(dataset.test.images)
        repeats.append(time.perf_counter() - start)
    count = len(correct["test"])
    quantized = isinstance(network, integer.Network)
    kind = f"{integer.name(network)}{' integer-only' if quantized else ''}"
    size = Path(path).stat().st_size
    speed = count / np.median(repeats)
    engine = settings.ENGINE if quantized else "jax"
    print(f"{path}, written {keep.age(path)}: {kind}, engine {engine}\n"
          f"data           {dataset.name}, {count:,} test images\n"
          f"test accuracy  {100 * metrics['test_acc']:.2f} %\n"
          f"test loss      {metrics['test_loss']:.6f} nats\n"
          f"speed          {speed:,.0f} images/s ({first:.2f} s for the first call)\n"
          f"file           {size:,} bytes")
    if facts.sha256 and facts.sha256 != dataset.sha256:         # an .nqat does not say
        print(f"note: this model was trained on {facts.dataset}, not on {dataset.name}")
    row = {"label": kind, "file": str(path), "engine": engine, **metrics, "images": count,
           "file_bytes": size, "first_call_seconds": first, "seconds": repeats}
    try:
        write_result(Path(settings.RUNS_DIR) / "inference.json", facts.switches, [row],
                     trained_on={"name": facts.dataset, "sha256": facts.sha256},
                     dataset={"name": dataset.name, "sha256": dataset.sha256,
                              "classes": len(dataset.classes)})
    except InputError as error:                 # the answer is on the screen: a read-only folder
        print(f"note: {error}", file=sys.stderr)


def classify(network, files, settings):
    """Print what the network makes of image files, in 80 columns.

    Returns:
      whether all of them could be read; each of the others is a line on stderr.
    """
    from formats import photo  # SciPy, which only photos need
    pixels, inputs, doubts = plan.inputs(network.steps), {}, {}
    for file in files:
        try:
            inputs[file], doubts[file] = photo.read_digit(file, pixels)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
    if not inputs:
        return False
    logits = predict.make_predictor(network, settings.ENGINE)(np.stack([*inputs.values()]))
    scores = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    scores *= 100 / scores.sum(1, keepdims=True)
    width = min(max(map(len, inputs)), NAME_WIDTH)
    digits = len(str(scores.shape[1] - 1))
    for file, row in zip(inputs, scores):
        name = file if len(file) <= width else f"…{file[1 - width:]}"
        best = [f"{i:{digits}d} {row[i]:5.1f} %" for i in np.argsort(-row, kind="stable")[:2]]
        doubt = f"  doubtful: {doubts[file]}" if doubts[file] else ""
        print(f"{name:{width}}  {', then '.join(best)}{doubt}")
        for start in range(0, len(row) if settings.SCORES else 0, 10):
            part = row[start:start + 10]
            print("".join(f"{start + i:8d}" for i in range(len(part))))
            print("".join(f"{score:7.1f}%" for score in part))
    return len(inputs) == len(set(files))


def main(argv):
    files = config.words(argv)
    settings = config.load(argv, __doc__, also=files)
    dataset = None
    if not files:
        dataset = data.load(settings.DATA_DIR)
    path = keep.find(settings, dataset.sha256 if dataset else keep.hash_of_data(settings))
    network, facts = checkpoint.load(path)
    if settings.ENGINE == "jax":
        from machine import runtime
        runtime.set_up(settings.CACHE_DIR)
    if files:
        if not classify(network, files, settings):
            sys.exit(2)
    else:
        evaluate_file(path, network, facts, dataset, settings)


if __name__ == "__main__":
    script.run(main)
