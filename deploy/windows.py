"""Where a network's windows lie in flat arrays: what engines outside of Python move by."""
import math
from typing import NamedTuple

from plan import Step, corner


class Window(NamedTuple):
    """Where a step's windows lie among the codes of its map, as flat arrays have them."""
    start: int                  # where the first one begins
    line: int                   # codes of a line of the map
    down: int                   # codes from a window to the one below
    across: int                 # codes to the one on the right
    rows: int                   # of a window
    width: int                  # codes in each of its rows
    high: int                   # how many windows, down
    wide: int                   # and across


def windows_of(steps):
    """What an engine runs that moves through flat arrays: a crop is where the next window begins.

    Args:
      steps: tuple of Step, of a deployed network.
    Returns:
      list of (Step, Window); a dense step is one window, a crop before it a mean of 1 x 1.
    """
    found, whole, top, left = [], steps[0].before, 0, 0
    for step, following in zip(steps, steps[1:] + (None,)):
        if step.kind == "crop":
            top, left = (at + more for at, more in zip((top, left), corner(step)))
            if following.kind != "dense":
                continue
            step = Step("mean", (1, 1), (1, 1), step.after, step.after)
        if step.kind == "dense":
            count = math.prod(step.before)
            found.append((step, Window(0, count, 0, 0, 1, count, 1, 1)))
            continue
        _, columns, channels = whole
        line = columns * channels
        found.append((step, Window(
            top * line + left * channels, line, step.stride[0] * line, step.stride[1] * channels,
            step.kernel[0], step.kernel[1] * channels, *step.after[:2])))
        whole, top, left = step.after, 0, 0
    return found
