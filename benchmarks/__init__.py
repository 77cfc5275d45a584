"""Measurements, and the pages that show them."""
import data
from formats import checkpoint
from runner import keep


def load_network(settings):
    """The quantized network that the switches name, and data to run it on.

    Returns:
      (integer.Network, data.Dataset, the weights file's path).
    Raises:
      InputError: no such file, float32 weights, or images that don't fit it.
    """
    dataset = data.load(settings.DATA_DIR)
    path = keep.find(settings, dataset.sha256)
    network, _ = checkpoint.load_quantized(path)
    data.check_fits(dataset, network.steps)
    return network, dataset, path
