"""What a mean over seeds and a difference between models are worth."""
import numpy as np

TIE = 1e-9      # differences within this part of their size are equal: the rest is rounding


def summarize(values):
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
    summary = {"mean": float(values.mean()) if n else None, "std": None, "n": n, "low": None,
               "high": None, "missing": len(given) - n}
    if n > 1:
        summary["std"] = float(values.std(ddof=1))
        half = float(distributions.t.ppf(0.975, n - 1)) * summary["std"] / n**0.5
        summary["low"], summary["high"] = summary["mean"] - half, summary["mean"] + half
    return summary


def spread(summary, digits, factor=1):
    """summarize in a table's cell: "97.93 ± 0.08", with " (2 of 3)" when seeds are missing.

    Args:
      summary: summarize's dict.
      digits: decimals.
      factor: what to multiply by, 100 for percent.
    """
    if summary["mean"] is None:
        return "–"
    text = f"{factor * summary['mean']:.{digits}f}"
    if summary["std"] is not None:
        text += f" ± {factor * summary['std']:.{digits}f}"
    missing = summary.get("missing", 0)         # results of earlier versions don't say
    if missing:
        text += f" ({summary['n']} of {summary['n'] + missing})"
    return text


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
      summarize's dict plus
      p: two-sided; 1 when all differences are zero, None for n < 2 or when all are equal up to
        rounding, because then nothing says how much they vary.
      measured: whether p < 0.05.
      detectable: least_detectable of their spread; None where p is None or there is no spread.
    """
    from scipy import stats as distributions
    difference = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    summary = summarize(difference)
    difference = difference[np.isfinite(difference)]
    p = detectable = None
    if len(difference) > 1:
        if not difference.any():
            p = 1.0
        elif np.ptp(difference) > TIE * np.abs(difference).max():
            p = float(distributions.ttest_1samp(difference, 0).pvalue)
            detectable = least_detectable(summary["std"], summary["n"])
    return {**summary, "p": p, "measured": p is not None and p < 0.05, "detectable": detectable}


def mcnemar(correct_a, correct_b):
    """Exact McNemar test of two models on the same examples.

    Args:
      correct_a, correct_b: bool [N], which examples each model gets right.
    Returns:
      dict: only_a, only_b (examples that one alone gets right), p (two-sided, exact binomial) and
      measured: whether p < 0.05.
    Source: McNemar 1947, Psychometrika 12; Dietterich 1998, Neural Computation 10(7).
    """
    from scipy import stats as distributions
    only_a = int(np.sum(correct_a & ~correct_b))
    only_b = int(np.sum(correct_b & ~correct_a))
    p = 1.0
    if only_a + only_b:
        p = float(distributions.binomtest(only_a, only_a + only_b).pvalue)
    return {"only_a": only_a, "only_b": only_b, "p": p, "measured": p < 0.05}


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
