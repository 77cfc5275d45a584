"""Measurements, and the pages that show them."""
from pathlib import Path

import data
import integer
from formats import checkpoint


def load_network(settings):
    """The quantized network that the switches name, and data to run it on.

    Returns:
      (integer.Network, data.Dataset, the weights file's path).
    Raises:
      InputError: no such file, float32 weights, or images that don't fit it.
    """
    path = checkpoint.find(settings.WEIGHTS, (Path(settings.RUNS_DIR) / "latest",
                                              settings.WEIGHTS_DIR), True, settings.WEIGHT_BITS,
                           settings.FILE_FORMAT)
    network, _ = checkpoint.load_quantized(path)
    dataset = data.load(settings.DATA_DIR)
    data.check_fits(dataset, integer.sizes(network), network.input)
    return network, dataset, path
