"""Run a saved model: on the test split, or on pictures, folders of them or rows of a table.

python3 main_inference.py [photo.png FOLDER new.csv ...] [recipes/NAME.toml] [--KEY=value ...]

--INFO says of a weights file what it is, what it was made from and how; no data set is needed.
"""
if __name__ == "__main__":
    import os
    import sys
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))     # not with PYTHONSAFEPATH
    from machine import script
    script.begin()

import shlex
import sys
import time
from pathlib import Path

import numpy as np

import config  # JAX is imported below, if it is needed at all
import data
import integer
import plan
import predict
from formats.encode import Encoding
from machine.files import InputError
from report.results import write_result
from runner import keep

NAME_WIDTH = 28                 # of a file in a line of 80 columns; of a longer one the end


def evaluate_file(path, network, facts, dataset, settings):
    """Print and write what the model does on the test split."""
    data.check_fits(dataset, network.steps, facts)
    predictor = predict.make_predictor(network, settings.ENGINE)
    start = time.perf_counter()
    metrics, correct = predict.evaluate(predictor, test=dataset.test)
    first = time.perf_counter() - start         # compiles, for JAX
    repeats = []
    for _ in range(5 if settings.ENGINE == "jax" else 1):
        start = time.perf_counter()
        logits = predictor(dataset.test.images)
        repeats.append(time.perf_counter() - start)
    count = len(correct["test"])
    quantized = isinstance(network, integer.Network)
    kind = f"{integer.name(network)}{' integer-only' if quantized else ''}"
    size = Path(path).stat().st_size
    speed = count / np.median(repeats)
    engine = settings.ENGINE if quantized else "jax"
    print(f"{path}, written {keep.age(path)}: {kind}, engine {engine}\n"
          f"data           {dataset.name}, {count:,} test examples\n"
          f"test accuracy  {100 * metrics['test_acc']:.2f} %\n"
          f"test loss      {metrics['test_loss']:.6f} nats\n"
          f"speed          {speed:,.0f} examples/s ({first:.2f} s for the first call)\n"
          f"file           {size:,} bytes")
    if facts.sha256 and facts.sha256 != dataset.sha256:         # an .nqat does not say
        print(f"note: this model was trained on {facts.dataset}, not on {dataset.name}")
    row = {"label": kind, "file": str(path), "engine": engine, **metrics, "images": count,
           "file_bytes": size, "first_call_seconds": first, "seconds": repeats}
    try:
        show_confusion(logits, dataset, facts.classes, settings)
        write_result(Path(settings.RUNS_DIR) / "inference.json", facts.switches, [row],
                     trained_on={"name": facts.dataset, "sha256": facts.sha256},
                     dataset=keep.dataset_of(dataset))
    except InputError as error:                 # the answer is on the screen: a read-only folder
        print(f"note: {error}", file=sys.stderr)


def show_confusion(logits, dataset, known, settings):
    """Print which class is taken for which, and draw it where matplotlib is.

    known: the network's own class names; it may know more classes than the data have.
    """
    from report import confusion
    names = (*dataset.classes, *known[len(dataset.classes):])
    table = predict.confusion(logits, dataset.test.labels, len(names))
    print(confusion.text(table, names))
    title = f"{dataset.name}, {table.sum():,} test examples"
    try:
        from report import draw  # a second to come; inference needs NumPy alone
    except (ImportError, ValueError) as error:  # ValueError: of MPLBACKEND
        print(f"note: no figure: {error}", file=sys.stderr)
        return
    draw.draw_into(Path(settings.RUNS_DIR) / "confusion.png",
                   lambda: confusion.draw(table, names, title))


def read_examples(words, network, facts, settings):
    """(name, uint8 [numbers], doubt) of all that is to be classified, and what can't be read."""
    from formats import examples  # SciPy and Pillow, which only pictures need
    shape = network.steps[0].before
    encoding = None if facts.low is None else Encoding(facts.low, facts.exponent)
    found, errors = [], []
    for word in words:
        try:
            for example in examples.read(word, shape, facts.classes, encoding, settings.LABEL,
                                         settings.GROUP):
                (errors if isinstance(example, InputError) else found).append(example)
        except InputError as error:
            errors.append(error)
    return found, errors


def show_scores(classes, row):
    """Print the share of every class: ten in a line or, of long names, a line each."""
    if max(map(len, classes)) > 7:
        print("\n".join(f"  {name}  {score:.1f} %" for name, score in zip(classes, row)))
        return
    for start in range(0, len(row), 10):
        print("".join(f"{name:>8}" for name in classes[start:start + 10]))
        print("".join(f"{score:7.1f}%" for score in row[start:start + 10]))


def classify(network, facts, words, settings):
    """Print what the network makes of pictures or rows, a line each, in 80 columns.

    Returns:
      whether all of them could be read; each of the others is a line on stderr.
    """
    found, errors = read_examples(words, network, facts, settings)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if not found:
        return False
    names, codes, doubts = zip(*found)
    logits = predict.make_predictor(network, settings.ENGINE)(np.stack(codes))
    scores = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    scores *= 100 / scores.sum(1, keepdims=True)
    width, digits = min(max(map(len, names)), NAME_WIDTH), max(map(len, facts.classes))
    for name, row, doubt in zip(names, scores, doubts):
        name = name if len(name) <= width else f"…{name[1 - width:]}"
        best = [f"{facts.classes[i]:>{digits}} {row[i]:5.1f} %"
                for i in np.argsort(-row, kind="stable")[:2]]
        print(f"{name:{width}}  {', then '.join(best)}" + (f"  doubtful: {doubt}" if doubt else ""))
        if settings.SCORES:
            show_scores(facts.classes, row)
    return not errors


def describe(path, network, facts):
    """What a weights file says of itself: a few lines."""
    shape, default = network.steps[0].before, config.load([])._asdict()
    switches = [f"--{name}={value}" for name, value in facts.switches.items()
                if value != default.get(name)]
    made = f"python3 main_train.py {shlex.join(switches)}" if facts.switches else "not said"
    loss = "not said" if facts.val_loss is None else f"{facts.val_loss:.6f} nats"
    names = ", ".join(facts.classes)
    return "\n".join([
        f"{path}, written {keep.age(path)}: {Path(path).stat().st_size:,} bytes",
        f"network          {plan.describe(network.steps)}, {integer.name(network)}",
        f"reads            {'x'.join(map(str, shape))} "
        + ("bytes" if facts.low is None else f"numbers, {len(facts.low)} features"),
        f"classes          {len(facts.classes)}: {names[:60]}{'…' * (len(names) > 60)}",
        f"trained on       {facts.dataset or 'not said'}",
        f"validation loss  {loss}", f"made by          {made}"])


def main(argv):
    files, info = config.words(argv), "--INFO" in argv
    settings = config.load(argv, __doc__, also=(*files, "--INFO"))
    settings, dataset = keep.settle(settings, config.given(argv))
    if not (files or info or dataset):          # say what is wrong with the data, or fetch them
        dataset = keep.read_data(settings)
    path = keep.find(settings, dataset and dataset.sha256)
    network, facts = keep.load(path)
    if info:
        print(describe(path, network, facts))
        return
    if settings.ENGINE == "jax":
        from machine import runtime
        runtime.set_up(settings.CACHE_DIR)
    if files:
        if sys.stdout.isatty():                 # a pipe gets the answers alone
            print(f"read by {path}, {integer.name(network)}")
        if not classify(network, facts, files, settings):
            sys.exit(2)
    else:
        evaluate_file(path, network, facts, dataset, settings)


if __name__ == "__main__":
    script.run(main)
