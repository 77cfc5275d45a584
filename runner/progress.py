"""What a run shows while it trains: a bar to the end that is known so far, and lines of metrics.

A terminal gets a line for each epoch; a file or a pipe one a minute and the last. Every epoch is in
the run's history.
"""
import contextlib
import sys
import time

import numpy as np
from tqdm import tqdm

from training import stopping

INTERVAL = 60.0                 # seconds between the lines that nobody watches come


def earliest_end(sweep, hyper):
    """The epoch that ends the last lane if no lane renews its patience from now on."""
    renewed = sweep.renewed[sweep.status == stopping.RUNNING]
    return min(hyper.MAX_EPOCHS,
               hyper.PATIENCE + int(renewed.max(initial=sweep.epoch - hyper.PATIENCE)))


def header(lanes):
    """The names over the columns of `line`."""
    return ("epoch  train loss    val loss    val acc   seconds"
            + "      rate   seed   active" * (lanes > 1))


def line(sweep):
    """An epoch's metrics, of the active run with the least validation loss; whose they are."""
    metrics, lanes = sweep.history[:, -1], len(sweep.rate)
    lane = np.nan_to_num(metrics[:, 1], nan=np.inf).argmin()
    train_loss, val_loss, val_acc = metrics[lane]
    text = (f"{sweep.epoch:5d}  {train_loss:10.4f}  {val_loss:10.4f}  {100 * val_acc:7.2f} %  "
            f"{sweep.seconds[-1]:8.2f}")
    if lanes > 1:
        active = (~np.isnan(metrics).all(1)).sum()
        text += f"  {sweep.rate[lane]:8g}  {sweep.seed[lane]:5d}   {active} of {lanes}"
    return text


@contextlib.contextmanager
def shown(sweep, hyper, part=(1, 1, ""), silent=False):
    """A function to call with the Sweep after each epoch, and whether it is the last.

    Args:
      sweep: Sweep, as training begins or goes on; hyper: MAX_EPOCHS and PATIENCE.
      part: (number, how many there are, what it trains) of the parts of a study.
      silent: for the processes that leave the talking to the first.
    """
    number, parts, what = part
    watched, name = sys.stdout.isatty(), f"part {number} of {parts}" if parts > 1 else ""
    due, titled = 0.0, number > 1 and not watched
    if name and not silent:
        print(f"{name}: {what}", flush=True)
        due = time.monotonic() + INTERVAL

    def place(sweep, end):
        return (f"{name}{', ' * bool(name)}epoch {sweep.epoch} of "
                f"{'at least ' * (end < hyper.MAX_EPOCHS)}{end}")

    end = earliest_end(sweep, hyper)
    with tqdm(total=end, initial=sweep.epoch, desc=place(sweep, end), leave=False,
              bar_format="{desc} |{bar}| {elapsed} gone, {remaining} left",
              disable=True if silent else None) as bar:
        def show(sweep, last):
            nonlocal due, titled
            if silent:
                return
            bar.total = earliest_end(sweep, hyper)
            bar.set_description_str(place(sweep, bar.total), refresh=False)
            bar.update()
            if watched or last or time.monotonic() >= due:
                due = time.monotonic() + INTERVAL
                tqdm.write("\n".join([*[header(len(sweep.rate))] * (not titled), line(sweep)]))
                sys.stdout.flush()
                titled = True
        yield show
