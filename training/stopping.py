"""Early stopping: which epoch is the best one, and when a run ends."""
from typing import NamedTuple

import numpy as np

STATUS = ("running", "stopped", "capped", "diverged", "guessing", "inexact")
RUNNING, STOPPED, CAPPED, DIVERGED, GUESSING, INEXACT = range(len(STATUS))
USABLE = ("stopped", "capped")  # how a run ends whose model is worth keeping
METRICS = ("train_loss", "val_loss", "val_acc")     # mean nats, mean nats, fraction


def guess_score(labels, hyper):
    """The score of the best constant answer: no model that ignores its input scores lower."""
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return -shares.max() if hyper.METRIC == "val_acc" else -np.sum(shares * np.log(shares))


def _score(metrics, metric):
    """What early stopping minimizes; metrics float64 [3]."""
    value = metrics[METRICS.index(metric)]
    return -value if metric == "val_acc" else value


class Verdict(NamedTuple):
    """What is known of one lane after an epoch; the fields of this name in Sweep."""
    best_epoch: int
    mark: float
    renewed: int
    status: int


def judge_lane(verdict, history, exact, hyper, guess):
    """The early-stopping rule, for one running lane.

    Any improvement is kept; only one of MIN_DELTA or more renews a lane's patience. An epoch whose
    integers could not be deployed is never the best.

    Args:
      verdict: Verdict before this epoch.
      history: float64 [E, 3], METRICS by epoch, this one's last.
      exact: whether this epoch's integers can be deployed.
      hyper: METRIC, MIN_DELTA, PATIENCE, MAX_EPOCHS.
      guess: the score that a model has to beat.
    Returns:
      Verdict; the lane has a new best if best_epoch is E.
    """
    epoch, metrics = len(history), history[-1]
    best_epoch, mark, renewed, _ = verdict
    if not np.isfinite(metrics).all():
        return verdict._replace(status=DIVERGED)
    score = _score(metrics, hyper.METRIC)
    if exact and (not best_epoch or score < _score(history[best_epoch - 1], hyper.METRIC)):
        best_epoch = epoch
    if score < mark and mark - score >= hyper.MIN_DELTA:
        mark, renewed = score, epoch
    if epoch - renewed >= hyper.PATIENCE:
        status = STOPPED
    elif epoch == hyper.MAX_EPOCHS:
        status = CAPPED
    else:
        return Verdict(best_epoch, mark, renewed, RUNNING)
    # A guess is one on the validation images, whatever picks the epoch.
    metric = "val_loss" if hyper.METRIC == "train_loss" else hyper.METRIC
    if not best_epoch:
        status = INEXACT
    elif not _score(history[best_epoch - 1], metric) < guess:
        status = GUESSING
    return Verdict(best_epoch, mark, renewed, status)
