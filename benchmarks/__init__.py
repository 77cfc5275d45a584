"""Measurements: the one timing loop, and what they measure."""
import time

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
    dataset = keep.read_data(settings)
    path = keep.find(settings, dataset.sha256)
    network, facts = checkpoint.load_quantized(path)
    data.check_fits(dataset, network.steps, facts)
    return network, dataset, path


def in_turns(contenders, repeats, calls=1):
    """Seconds of one call of each contender; in turns, so that noise hits all of them alike.

    Args:
      contenders: {name: function without arguments that returns when its work is done}; a first
        call of each, which compiles and warms up, is not timed.
      repeats: values by name.
      calls: how many calls each of them is the mean of.
    Returns:
      {name: list of `repeats` seconds}.
    """
    for function in contenders.values():
        function()
    seconds = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            seconds[name].append((time.perf_counter() - start) / calls)
    return seconds
