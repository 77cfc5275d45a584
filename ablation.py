"""The studies: each is a list of points; its rows go to results/NAME.json, then into its figure.

python3 ablation.py lr           learning rate against epochs and validation loss
python3 ablation.py quant        quantized against unquantized: loss, accuracy, file size
python3 ablation.py optimizer    SGD, SGD with momentum and AdamW, each over its own rates
python3 ablation.py bits         QAT and post-training quantization from 8 bits a weight to 1
python3 ablation.py bits_conv    the same of a convolutional network of 2 kB
python3 ablation.py frontier     accuracy against whole-file bytes, over shape, bits and input
python3 ablation.py factors      what small convolutional nets owe their accuracy to
python3 ablation.py averaging    how much scales that flip disturb the last epochs, and the remedy
python3 ablation.py compute      whether gradients of bfloat16 products cost accuracy
python3 ablation.py plots        draw every figure again from results/
python3 ablation.py tables       write the tables of README.md and docs/; --check: only compare
"""
if __name__ == "__main__":
    import os
    import sys
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))     # not with PYTHONSAFEPATH
    from machine import script
    script.begin()

import sys
from pathlib import Path

import config
from machine.files import InputError, check_writable

# A point is a label and the switches that it changes, and is run with ABLATION_SEEDS seeds. Beside:
AFTER = "after"                 # the label of a point before: its float32 weights are rounded
AGAINST = "against"             # labels of points before, which its rows are compared with


def learning_rates(settings):
    """Epochs to stop and best validation loss against the learning rate."""
    return [{"label": f"{rate:g}", "LEARNING_RATE": rate,
             "MAX_EPOCHS": settings.ABLATION_MAX_EPOCHS} for rate in settings.LR_ABLATION_RATES]


# Each optimizer's switches and learning rates, in half decades around its usual best.
OPTIMIZERS = {
    "SGD": ({"OPTIMIZER": "sgd", "MOMENTUM": 0.0}, (1.0, 0.316, 0.1, 0.0316)),
    "SGD, momentum 0.9": ({"OPTIMIZER": "sgd", "MOMENTUM": 0.9}, (0.1, 0.0316, 0.01, 0.00316)),
    "AdamW": ({"OPTIMIZER": "adamw", "WEIGHT_DECAY": 1e-4}, (0.00316, 0.001, 0.000316, 0.0001)),
}


def optimizers(settings):
    """SGD, SGD with momentum and AdamW, each at its own best rate, chosen on validation."""
    return [{"label": label, **switches, "LEARNING_RATE": rate,
             "MAX_EPOCHS": settings.ABLATION_MAX_EPOCHS}
            for label, (switches, rates) in OPTIMIZERS.items() for rate in rates]


NO_CODES = {"FILE_FORMAT": "npz", "COMPUTE": "float32"}   # what is not integers needs these
FLOAT32 = {"label": "float32", "QAT_ENABLE": False, **NO_CODES}


def quantized_and_not(settings):
    """QAT, post-training quantization and float32 on the same seeds, each judged from its file."""
    from runner import experiment
    kind = experiment.describe(settings._replace(QAT_ENABLE=True))
    rounded, qat = f"{kind} after training", f"{kind} QAT"
    return [FLOAT32,
            {"label": rounded, "QAT_ENABLE": True, AFTER: "float32", AGAINST: ["float32"]},
            {"label": qat, "QAT_ENABLE": True, AGAINST: ["float32", rounded]}]


WIDTHS = (8, 6, 4, 3, 2, 1)     # bits of a weight
# In float32, as free scales must be: then scales are all that differs.
QAT = {"QAT_ENABLE": True, "SCALES": "learned", "FREEZE_SCALES": 0.25, "PER_CHANNEL": True,
       "POWER_OF_TWO_SCALES": True, "COMPUTE": "float32"}


def bits(settings):
    """QAT at each width with learned, calibrated, per-tensor and free scales; float32, rounded."""
    from report.style import CALIBRATED, LEARNED, ROUNDED
    calibrated = {"SCALES": "calibrated"}
    models = [{"label": ROUNDED, **calibrated, AFTER: "float32"},
              {"label": CALIBRATED, **calibrated, AGAINST: [ROUNDED]},
              {"label": LEARNED, AGAINST: [CALIBRATED]},
              {"label": "QAT, per-tensor scales", "PER_CHANNEL": False, AGAINST: [LEARNED]},
              {"label": "QAT, free scales", "POWER_OF_TWO_SCALES": False, **NO_CODES,
               AGAINST: [LEARNED]}]
    return [FLOAT32, *({**QAT, **model, "WEIGHT_BITS": width}
                       for width in WIDTHS for model in models)]


def bits_conv(settings):
    """bits of a small convolutional network, trained as it is: rounded, calibrated and learned."""
    from report.style import CALIBRATED, LEARNED, ROUNDED
    short = {"MAX_EPOCHS": 10, "PATIENCE": 10, "LAYERS": SMALL["2 kB"]}
    return [{**BRIEFLY, **SMALL_NET, **point, **short} for point in bits(settings)
            if point["label"] in (FLOAT32["label"], ROUNDED, CALIBRATED, LEARNED)]


# Networks from 1 to 60 kB, as LAYERS and WEIGHT_BITS; and how all of them are trained.
FRONTIER = tuple(
    {"WEIGHT_BITS": weight_bits, "ACTIVATION_BITS": 8, "LAYERS": line} for weight_bits, line in (
        (2, "crop20 mean2 80 56 36"), (3, "crop20 mean2 40 32 20"), (3, "crop20 mean2 62 44 28"),
        (4, "crop20 mean2 40 32 20"), (2, "crop24 mean2 112 72 48"), (3, "crop24 mean2 72 54 32"),
        (4, "crop24 mean2 60 48 28"), (3, "crop24 mean2 104 72 48"), (2, "mean2 200 112 64"),
        (3, "mean2 120 80 52"), (4, "mean2 96 64 48"), (3, "mean2 192 128"), (2, "128 64"),
        (3, "128 64"), (4, "128 64"), (3, "conv5x6/2 conv3x10 max2 conv3x10"),
        (3, "conv5x8/2 conv3x16 max2 conv3x16"), (2, "conv5x12/2 conv3x24 max2 conv3x24"),
        (3, "conv5x12/2 conv3x28 max2 conv3x32")))
BRIEFLY = {"OPTIMIZER": "adamw", "LEARNING_RATE": 0.004, "SCHEDULE": "cosine", "BATCH_SIZE": 256,
           "MAX_EPOCHS": 25, "PATIENCE": 25, "METRIC": "train_loss", "WEIGHT_DECAY": 0.0,
           "SCALES": "calibrated", "AVERAGING": 0.998, "AUGMENT": 0.5, "FILE_FORMAT": "nqat"}


def frontier(settings):
    """Test accuracy against the bytes of the whole file, of each network in FRONTIER."""
    return [{"label": f"{switches['LAYERS']} W{switches['WEIGHT_BITS']}A8", **BRIEFLY, **switches}
            for switches in FRONTIER]


SMALL = {"2 kB": "conv5x8/2 conv3x16 max2 conv3x16", "8 kB": "conv5x16/2 conv3x32 max2 conv3x40"}
SMALL_NET = {"BATCH_SIZE": 128, "MAX_EPOCHS": 15, "PATIENCE": 15}
POOLED = "conv5 with stride 1 and max2, not stride 2"
FACTORS = {                     # the first changes nothing
    "as it is": {}, "activations of 4 bits, not 8": {"ACTIVATION_BITS": 4}, POOLED: {},
    "weights not averaged": {"AVERAGING": 0.0}, "images not warped": {"AUGMENT": 0.0}}


def factors(settings):
    """Small convolutional networks, and each of four things that they owe their accuracy to."""
    points = []
    for size, line in SMALL.items():
        for label, switches in FACTORS.items():
            layers = line.replace("/2", " max2") if label == POOLED else line
            points.append({**BRIEFLY, **SMALL_NET, "SCALES": "learned", "METRIC": "val_loss",
                           "WEIGHT_BITS": 3, "label": f"{size}: {label}", "LAYERS": layers,
                           **switches})
    return points


LONG = {"MAX_EPOCHS": 100, "PATIENCE": 100}     # what flipping costs shows late
SCALES = {"calibrated": {"SCALES": "calibrated"},
          "learned to the end": {"SCALES": "learned", "FREEZE_SCALES": 1.0},
          "learned, then frozen": {"SCALES": "learned", "FREEZE_SCALES": 0.25}}


def averaging(settings):
    """The last epochs of a narrow net with and without averaged weights, by kind of scales."""
    return [{"label": f"{scales}; {words}", **BRIEFLY, **LONG, **FRONTIER[5], **switches,
             "AVERAGING": decay} for scales, switches in SCALES.items()
            for words, decay in (("last weights", 0.0), ("averaged weights", 0.998))]


DEFAULT = "config.py"           # what the switches give without a recipe


def compute(settings):
    """Products in bfloat16 against float32, of the default network and two of few bits."""
    plain, points = config.load([]), []
    for name in (DEFAULT, "recipes/ternary.toml", "recipes/4kB.toml"):
        recipe = config.load([config.at_home(name)] if name != DEFAULT else [])
        switches = {key: value for key, value in recipe._asdict().items()
                    if value != getattr(plain, key)}
        points += [{"label": name, **switches, "MAX_EPOCHS": settings.ABLATION_MAX_EPOCHS,
                    "COMPUTE": products} for products in ("float32", "bfloat16")]
    return points


STUDIES = {"lr": ("lr_ablation", learning_rates), "quant": ("quant_vs_unquant", quantized_and_not),
           "optimizer": ("optimizer", optimizers), "bits": ("bits", bits),
           "bits_conv": ("bits_conv", bits_conv), "factors": ("factors", factors),
           "frontier": ("frontier", frontier), "averaging": ("averaging", averaging),
           "compute": ("compute", compute)}


def measure(settings, name, points, data):
    """Every point with every seed, trained or rounded.

    Returns:
      (rows in the order of the points, the run's folder, dict of seconds).
    Raises:
      InputError: float32 weights that are to be rounded are not usable; the run has ended.
    """
    from report import stats
    from runner import experiment
    seeds = range(settings.SEED, settings.SEED + settings.ABLATION_SEEDS)
    bare = [{key: value for key, value in point.items() if key not in (AFTER, AGAINST)}
            for point in points]
    outcomes, folder, seconds = experiment.run(
        settings, name, [{**one, "SEED": seed} for one, point in zip(bare, points)
                         if AFTER not in point for seed in seeds], data)
    rows, trained, latest = [], iter(outcomes), {}      # latest: (label, seed) -> Outcome
    for one, point in zip(bare, points):
        for seed in seeds:
            if AFTER in point:
                base = latest[point[AFTER], seed]
                experiment.check_usable(base.row, folder)
                outcome = experiment.quantize_after(base, {**one, "SEED": seed}, settings, data)
            else:
                outcome = next(trained)
            latest[point["label"], seed] = outcome
            rows.append(outcome.row)
            if AGAINST in point:
                rows[-1][AGAINST] = {
                    label: stats.disagreements(latest[label, seed].correct, outcome.correct)
                    for label in point[AGAINST]}
    return rows, folder, seconds


def run(study, settings, given=()):
    """Run one study: its result and figure go to its folder in RUNS_DIR and, unless a better result
    is there, to RESULTS_DIR and PLOTS_DIR."""
    from report import draw, results, tables
    from runner import experiment, keep, source
    from runner.state import finish
    check_writable(settings.RUNS_DIR, settings.RESULTS_DIR, settings.PLOTS_DIR)
    settings = experiment.set_up(settings)
    data = source.load_data(settings)
    settings = source.suit(settings, given, data)
    name, make_points = STUDIES[study]
    rows, folder, seconds = measure(settings, name, make_points(settings), data)
    result = results.write_result(folder / f"{name}.json", settings._asdict(), rows,
                                  seconds=seconds,
                                  dataset=keep.dataset_of(data))
    try:
        print(tables.TABLES[name]({name: result}.get))
    except InputError:                          # no rate is good, and would be the next time
        finish(folder)
        raise
    published = keep.publish(folder / f"{name}.json", settings.RESULTS_DIR)
    finish(folder)                              # all is written: a figure that fails loses nothing
    if name in draw.FIGURES:
        draw.draw(name, folder, folder)
    if published and name in draw.FIGURES:
        draw.draw(name, settings.RESULTS_DIR, settings.PLOTS_DIR)   # beside the recipes there


def draw_all(settings):
    """Draw every figure whose result is there."""
    from report import draw
    found = [name for name in draw.FIGURES
             if (Path(settings.RESULTS_DIR) / f"{name}.json").exists()]
    if not found:
        raise InputError(f"{settings.RESULTS_DIR} holds no result to draw; run a study first")
    for name in found:
        draw.draw(name, settings.RESULTS_DIR, settings.PLOTS_DIR)


def main(argv):
    words = config.words(argv)
    settings = config.load(argv, __doc__, also=(*words, "--check"))
    if len(words) != 1 or words[0] not in (*STUDIES, "plots", "tables"):
        raise InputError(f"name one study: {', '.join(STUDIES)}, or plots or tables; "
                         f"not {' '.join(words) or 'none'}")
    if words == ["plots"]:
        draw_all(settings)
    elif words == ["tables"]:
        from report import results, tables
        sys.exit(tables.update(results.ROOT, settings.RESULTS_DIR, check="--check" in argv))
    else:
        run(words[0], settings, config.given(argv))


if __name__ == "__main__":
    script.run(main)
