"""The one timing loop: contenders in turns, so that the machine's noise hits all of them alike."""
import time


def in_turns(contenders, repeats, calls=1):
    """Seconds of one call of each contender.

    Args:
      contenders: {name: function without arguments that returns when its work is done}; a first
        call of each, which compiles and warms up, is not timed.
      repeats: values by name; calls: how many calls each of them is the mean of.
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
