"""What a mean over seeds and a difference between models are worth."""
import numpy as np

from machine.files import InputError
from report.results import group

TIE = 1e-9      # differences within this part of their size are equal: the rest is rounding


def values(rows, key):
    """A field of each row; None for a run that ended without a usable model."""
    return [row.get(key) if row.get("usable", True) else None for row in rows]


def summarize(rows, key):
    """summary of a field of rows."""
    return summary(values(rows, key))


def summary(values):
    """Mean, sample standard deviation, n and 95 % confidence interval of the mean (Student's t).

    Args:
      values: floats [n], one per seed; None, NaN or infinity for a seed that did not survive.
    Returns:
      dict of mean, std, n, low, high over the surviving values, and missing: how many did not.
      mean is None without a value; std, low and high are None for fewer than two.
    """
    from scipy import stats as distributions
    given = np.asarray(values, np.float64)      # None becomes NaN
    values = given[np.isfinite(given)]
    n = len(values)
    found = {"mean": float(values.mean()) if n else None, "std": None, "n": n, "low": None,
             "high": None, "missing": len(given) - n}
    if n > 1:
        found["std"] = float(values.std(ddof=1))
        half = float(distributions.t.ppf(0.975, n - 1)) * found["std"] / n**0.5
        found["low"], found["high"] = found["mean"] - half, found["mean"] + half
    return found


def spread(summary, digits, factor=1):
    """summary in a table's cell: "97.93 ± 0.08", with " (2 of 3)" when seeds are missing.

    Args:
      summary: as from summary or summarize.
      digits: decimals.
      factor: what to multiply by, 100 for percent.
    """
    if summary["mean"] is None:
        return "–"
    text = f"{factor * summary['mean']:.{digits}f}"
    if summary["std"] is not None:
        text += f" ± {factor * summary['std']:.{digits}f}"
    if summary["missing"]:
        text += f" ({summary['n']} of {summary['n'] + summary['missing']})"
    return text


def median_range(values, digits):
    """Median and range in a table's cell: "1.03 (0.82 to 1.57)"."""
    return (f"{np.median(values):,.{digits}f} "
            f"({min(values):,.{digits}f} to {max(values):,.{digits}f})")


def best_rate(rows):
    """The rate of least mean validation loss, among rates whose runs were all usable.

    Raises:
      InputError: there is none.
    """
    losses = {rate: summarize(own, "val_loss") for rate, own in group(rows, "rate").items()}
    usable = [rate for rate, loss in losses.items() if loss["n"] and not loss["missing"]]
    if not usable:
        raise InputError(f"no learning rate of {', '.join(f'{rate:g}' for rate in losses)} gave a "
                         "usable model with every seed; choose others")
    return min(usable, key=lambda rate: losses[rate]["mean"])


def least_detectable(std, n):
    """The least mean of n paired differences of this spread that has p < 0.05; None for n < 2."""
    from scipy import stats as distributions
    if n < 2:
        return None
    return float(distributions.t.ppf(0.975, n - 1)) * std / n**0.5


def compare_seeds(a, b):
    """Paired t-test over seeds of b - a: the summary of the differences, and its p-value.

    Args:
      a, b: floats [n], the same seeds in the same order; a pair with a missing value is left out.
    Returns:
      summary's dict plus
      p: two-sided; 1 when all differences are zero, None for n < 2 or when all are equal up to
        rounding, because then nothing says how much they vary.
      measured: whether p < 0.05.
      detectable: least_detectable of their spread; None where p is None or there is no spread.
    """
    from scipy import stats as distributions
    difference = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    found = summary(difference)
    difference = difference[np.isfinite(difference)]
    p = detectable = None
    if len(difference) > 1:
        if not difference.any():
            p = 1.0
        elif np.ptp(difference) > TIE * np.abs(difference).max():
            p = float(distributions.ttest_1samp(difference, 0).pvalue)
            detectable = least_detectable(found["std"], found["n"])
    return {**found, "p": p, "measured": p is not None and p < 0.05, "detectable": detectable}


def compare(base, other, key):
    """compare_seeds of a field of two groups of rows: other - base."""
    pairs = {}
    for i, rows in enumerate((base, other)):
        for row, value in zip(rows, values(rows, key)):
            pairs.setdefault(row["seed"], [None, None])[i] = value
    return compare_seeds(*zip(*pairs.values()))


def comparisons(rows, key):
    """[(label, base's label, compare)] of all that rows of this label are compared with."""
    groups = group(rows, "label")
    return [(label, base, compare(groups[base], own, key)) for label, own in groups.items()
            for base in own[0].get("against", {})]


def disagreements(base, other):
    """[examples that base alone gets right, that other alone does], for a row's "against".

    Args:
      base, other: bool [N], which examples each model gets right; None for a run without a model.
    """
    if base is None or other is None:
        return None
    return [int(np.sum(base & ~other)), int(np.sum(other & ~base))]


def mcnemar(only_base, only_other):
    """Exact two-sided p of McNemar's test of two models on the same examples.

    Args:
      only_base, only_other: disagreements.
    Source: McNemar 1947, Psychometrika 12; Dietterich 1998, Neural Computation 10(7).
    """
    from scipy import stats as distributions
    count = only_base + only_other
    return float(distributions.binomtest(only_base, count).pvalue) if count else 1.0


def describe(comparison, unit="pp", factor=100):
    """compare_seeds in words: the signed difference, its 95 % interval, and what it is worth."""
    n, mean, p = comparison["n"], comparison["mean"], comparison["p"]
    if n == 0:
        return "no pair of seeds survived"
    text = f"{factor * mean:+.3f} {unit}"
    if n == 1:
        return f"{text}, one seed: no spread known"
    if p is None or comparison["std"] == 0:
        return f"{text} in each of {n} seeds: no spread to judge it by"
    text += (f" (95 % interval {factor * comparison['low']:+.3f} to "
             f"{factor * comparison['high']:+.3f}, n = {n}, p = {p:.2g})")
    if comparison["measured"]:
        return text
    least = least_detectable(comparison["std"], n)
    return (f"{text}: not significant with n = {n}, which shows differences from "
            f"{factor * least:.3f} {unit}")
