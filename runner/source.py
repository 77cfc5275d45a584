"""The data of a run and what follows from them: splits, centring, LAYERS as steps, switches."""
from typing import NamedTuple

import numpy as np

import config
import data
import plan
from formats.encode import Encoding
from machine import runtime
from machine.files import InputError
from runner import adapt, keep


class Data(NamedTuple):
    """A data set, split; the rest as in data.Dataset."""
    name: str
    sha256: str
    train: data.Split
    val: data.Split
    test: data.Split
    shape: tuple
    classes: tuple
    encoding: Encoding | None = None
    zero: np.ndarray | None = None      # int16 [F]: the mean's code of each feature; None of images


def load_data(settings, dataset=None):
    """The Data that the switches name; prints what was decided about them.

    Args:
      settings: Config.
      dataset: the data.Dataset of DATA_DIR, if it is there.
    Raises:
      InputError: what is wrong with the data, or LAYERS that don't fit them.
    """
    if dataset is None:
        dataset = keep.read_data(settings)
    train, val = data.split_val(dataset, settings.VAL_EXAMPLES)
    zero = None
    if dataset.encoding is not None:
        features = train.images.reshape(-1, dataset.shape[-1])
        zero = np.rint(features.mean(0)).astype(np.int16)
    found = Data(dataset.name, dataset.sha256, train, val, dataset.test, dataset.shape,
                 dataset.classes, dataset.encoding, zero)
    steps_of(settings, found)                   # before an hour of training
    say(*dataset.notes)
    return found


def say(*lines):
    """Print what was decided, once for all processes."""
    if runtime.is_first():
        for line in lines:
            print(line)


def suit(settings, given, data):
    """The Config that suits the Data: adapt's, which is printed; given: as for adapt."""
    settings, line = adapt.adapt(settings, given, len(data.train.labels))
    if line:
        say(line)
    return settings


def steps_of(settings, data):
    """LAYERS as the steps of a deployed network on these data; InputError where they don't fit."""
    try:
        steps = plan.parse(settings.LAYERS, data.shape, len(data.classes))
    except ValueError as error:
        raise InputError(f"LAYERS = {settings.LAYERS!r}: {error}") from None
    warps = settings.AUGMENT or settings.PEN
    if warps and tuple(data.shape) != (data.shape[0], data.shape[0], 1):
        raise InputError(f"AUGMENT and PEN warp square grey images; {data.name} has none")
    return steps


def hyper_of(settings, data):
    """What a point's run depends on besides rate and seed, LAYERS as steps on these data.

    Raises:
      InputError: the network or the batch doesn't fit the Data.
    """
    if settings.BATCH_SIZE > len(data.train.labels):
        raise InputError(f"BATCH_SIZE = {settings.BATCH_SIZE} is more than the "
                         f"{len(data.train.labels)} train images")
    steps = steps_of(settings, data)
    if data.zero is not None:
        steps = plan.centred(steps)
    return config.hyper(settings)._replace(LAYERS=steps)


def centred(images, data):
    """Images as training takes them: of features int16, less the mean's code of each."""
    if data.zero is None:
        return images
    return images.astype(np.int16) - np.resize(data.zero, images.shape[1])
