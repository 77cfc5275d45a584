"""What small data are trained with, where neither a recipe nor the command line says it."""
import numpy as np

import config
from data import Split

SMALL = 10_000                  # train examples; from here on config.py's own values serve
EPOCHS = 100
FEW = 1_000                     # validation examples, below which the model is trained on them too


def adapt(settings, given, count):
    """The Config for data that are small, and a line that says what follows from them.

    AdamW with a cosine schedule and a fixed number of epochs, so that no early stopping has to
    judge by a handful of validation examples. Chosen on validation splits of 17 small sets, where
    label smoothing gains 0.8 pp in the mean; more steps, averaged weights and other rates bring
    nothing.

    Args:
      settings: Config.
      given: names of the switches that a recipe or the command line set: they stay.
      count: how many examples there are to train on.
    Returns:
      (Config, line to print; "" where nothing follows).
    """
    if not settings.ADAPT or count >= SMALL:
        return settings, ""
    batch = 8                                   # doubled while an epoch has 16 steps, up to 128
    while batch < 128 and 2 * batch <= count // 16:
        batch *= 2
    batch = min(batch, count)
    if "BATCH_SIZE" in given:
        batch = min(settings.BATCH_SIZE, count)
    epochs = settings.MAX_EPOCHS if "MAX_EPOCHS" in given else EPOCHS
    rule = {"OPTIMIZER": "adamw", "LEARNING_RATE": 0.003, "SCHEDULE": "cosine", "BATCH_SIZE": batch,
            "MAX_EPOCHS": epochs, "PATIENCE": epochs, "METRIC": "train_loss",
            "LABEL_SMOOTHING": 0.1, "AVERAGING": 0.0, "WEIGHT_DECAY": 0.0}
    changes = {name: value for name, value in rule.items() if name not in given}
    changes["BATCH_SIZE"] = batch               # no more than there are
    words = ", ".join(f"{name} = {value}" for name, value in changes.items())
    return config.change(settings, **changes), f"{count:,} train examples are few: {words}"


def takes_all(settings, data):
    """Whether validation examples are so few that the model is trained on them, too, at the end."""
    return settings.ADAPT and len(data.val.labels) < FEW


def with_val(data):
    """The Data whose train split holds the validation examples, too."""
    both = (np.concatenate(parts) for parts in zip(data.train, data.val))
    return data._replace(train=Split(*both))
