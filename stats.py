"""Loss and accuracy from logits, and what a difference between models is worth.

evaluate needs NumPy only, so every engine is judged by the same code, JAX installed or not.
"""
import numpy as np


def evaluate(logits, labels):
    """Mean cross-entropy and accuracy over all examples, as sums divided by the count.

    Args:
      logits: float32 [N, C].
      labels: uint8 [N], classes.
    Returns:
      (loss in nats, accuracy as a fraction), Python floats computed in float64. Equal logits give
      equal bits, whichever engine made them.
    """
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_normalizer = np.log(np.exp(shifted).sum(axis=1))
    losses = log_normalizer - shifted[np.arange(len(labels)), labels]
    correct = logits.argmax(axis=1) == labels
    return float(losses.sum() / len(labels)), float(correct.sum() / len(labels))


def summarize(values):
    """Mean, sample standard deviation, n and 95 % confidence interval of the mean (Student's t).

    Args:
      values: floats [n], one per seed.
    Returns:
      dict of mean, std, n, low, high; std, low and high are None for a single value.
    """
    from scipy import stats as distributions
    values = np.asarray(values, np.float64)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return {"mean": mean, "std": None, "n": n, "low": None, "high": None}
    std = float(values.std(ddof=1))
    half = float(distributions.t.ppf(0.975, n - 1)) * std / n**0.5
    return {"mean": mean, "std": std, "n": n, "low": mean - half, "high": mean + half}


def compare_seeds(a, b):
    """Paired t-test over seeds of b - a: the summary of the differences, and its p-value.

    Args:
      a, b: floats [n], the same seeds in the same order.
    Returns:
      summarize's dict plus p (two-sided; 1 when all differences are zero, None for n < 2) and
      measured: whether p < 0.05.
    """
    from scipy import stats as distributions
    difference = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    summary = summarize(difference)
    p = None
    if len(difference) > 1:
        constant = np.ptp(difference) == 0      # the t statistic would be 0/0 or x/0
        p = float(difference[0] == 0) if constant else float(distributions.ttest_1samp(difference,
                                                                                      0).pvalue)
    return {**summary, "p": p, "measured": p is not None and p < 0.05}


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
    text = f"{factor * comparison['mean']:+.3f} {unit}"
    if comparison["p"] is None:
        return f"{text}, one seed: no spread known"
    text += (f" (95 % interval {factor * comparison['low']:+.3f} to "
             f"{factor * comparison['high']:+.3f}, n = {comparison['n']}, "
             f"p = {comparison['p']:.2g})")
    return text if comparison["measured"] else f"{text}: no difference measured"
