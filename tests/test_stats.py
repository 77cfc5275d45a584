"""stats: losses one example at a time, tests of difference against their definitions."""
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

import oracle
import stats


@given(logits=arrays(np.float32, (5, 3), elements=st.floats(-1e4, 1e4, width=32)),
       labels=arrays(np.uint8, 5, elements=st.integers(0, 2)))
def test_evaluate_equals_one_example_at_a_time(logits, labels):
    expected = [math.log(math.fsum(math.exp(float(v) - float(row.max())) for v in row))
                + float(row.max()) - float(row[label]) for row, label in zip(logits, labels)]
    loss, accuracy = stats.evaluate(logits, labels)
    # float64 logits of up to 1e4: their differences are exact to 1e-12.
    assert loss == pytest.approx(math.fsum(expected) / 5, rel=1e-12, abs=1e-11)
    assert accuracy == sum(row.tolist().index(max(row)) == label
                           for row, label in zip(logits, labels.tolist())) / 5


def test_evaluate_counts_every_example_once(rng):
    logits, labels = rng.normal(0, 3, (103, 10)).astype(np.float32), rng.integers(0, 10, 103)
    whole = stats.evaluate(logits, labels)
    assert whole[0] == pytest.approx(oracle.loss(logits, labels), rel=1e-12)
    parts = [(stats.evaluate(logits[i:i + 32], labels[i:i + 32]), len(labels[i:i + 32]))
             for i in range(0, 103, 32)]        # the last is short
    for k in (0, 1):
        assert whole[k] == pytest.approx(sum(part[k] * n for part, n in parts) / 103, rel=1e-12)


def test_tie_goes_to_the_lowest_class():
    logits = np.array([[1, 1, 1], [0, 2, 2], [3, 0, 3]], np.float32)
    assert stats.evaluate(logits, np.array([0, 1, 0]))[1] == 1
    assert stats.evaluate(logits, np.array([1, 2, 2]))[1] == 0
    assert stats.evaluate(logits[:1], np.array([2]))[0] == pytest.approx(math.log(3), rel=1e-15)


def test_one_example():
    loss, accuracy = stats.evaluate(np.array([[0, 100]], np.float32), np.array([0], np.uint8))
    assert loss == pytest.approx(100, rel=1e-12) and accuracy == 0


def test_huge_logits_stay_finite_and_nan_shows():
    labels = np.array([0, 1], np.uint8)
    assert stats.evaluate(np.array([[3e38, -3e38], [-3e38, 3e38]], np.float32), labels) == (0, 1)
    assert math.isnan(stats.evaluate(np.array([[np.nan, 0], [0, 0]], np.float32), labels)[0])


def test_shift_of_all_logits_changes_nothing(rng):
    logits = rng.integers(-50, 50, (20, 4)).astype(np.float32)      # integers: the sum is exact
    labels = rng.integers(0, 4, 20)
    assert stats.evaluate(logits + 1024, labels) == stats.evaluate(logits, labels)


def test_summary_has_the_sample_deviation_and_student_interval():
    summary = stats.summarize([1.0, 2.0, 4.0, 5.0])
    std = math.sqrt((4 + 1 + 1 + 4) / 3)
    assert (summary["mean"], summary["n"]) == (3, 4)
    assert summary["std"] == pytest.approx(std, rel=1e-12)
    half = 3.182446305284263 * std / 2          # t at 97.5 % and 3 degrees: any printed table
    assert (summary["low"], summary["high"]) == pytest.approx((3 - half, 3 + half), rel=1e-9)
    assert stats.summarize([2.0]) == {"mean": 2, "std": None, "n": 1, "low": None, "high": None}


def test_interval_covers_the_mean_95_times_in_100(rng):
    hits = sum(s["low"] < 0 < s["high"] for s in map(stats.summarize, rng.normal(0, 1, (2_000, 5))))
    assert abs(hits / 2_000 - 0.95) < 5 * math.sqrt(0.05 * 0.95 / 2_000)


def test_paired_comparison_signs_and_judges_the_difference(rng):
    base = rng.normal(0.98, 0.01, 10)
    better = stats.compare_seeds(base, base + 0.002 + rng.normal(0, 1e-4, 10))
    assert better["measured"] and better["mean"] == pytest.approx(0.002, abs=2e-4)
    worse = stats.compare_seeds(base, base - 0.002 + rng.normal(0, 1e-4, 10))
    assert worse["measured"] and worse["mean"] < 0
    mixed = stats.compare_seeds(base, base + np.array([1, -1] * 5) * 0.001)
    assert not mixed["measured"] and mixed["p"] > 0.9


def test_significance_is_the_interval_without_zero(rng):
    for differences in rng.normal(0.7, 1, (40, 6)):
        comparison = stats.compare_seeds(np.zeros(6), differences)
        assert comparison["measured"] == (comparison["low"] > 0 or comparison["high"] < 0)


def test_comparison_without_spread():
    same = stats.compare_seeds([0.9, 0.8, 0.7], [0.9, 0.8, 0.7])
    assert (same["mean"], same["p"], same["measured"]) == (0, 1, False)
    assert stats.compare_seeds([1, 2, 3], [2, 3, 4])["measured"]    # a constant gain
    alone = stats.compare_seeds([0.9], [0.8])
    assert alone["p"] is None and alone["measured"] is False


@given(a=arrays(bool, 40), b=arrays(bool, 40))
def test_mcnemar_is_a_two_sided_coin_test(a, b):
    result = stats.mcnemar(a, b)
    only_a, only_b = sum(a & ~b), sum(b & ~a)
    assert (result["only_a"], result["only_b"]) == (only_a, only_b)
    n, least = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    assert result["p"] == pytest.approx(min(1, 2 * tail), rel=1e-9)
    assert result["measured"] == (result["p"] < 0.05)


def test_description_says_sign_unit_and_when_nothing_was_measured():
    gain = stats.describe(stats.compare_seeds([0.1, 0.2, 0.3], [0.2, 0.3001, 0.4001]))
    assert gain.startswith("+10.0") and "pp" in gain and "n = 3" in gain
    assert "no difference" not in gain
    loss = stats.describe(stats.compare_seeds([0.2, 0.3], [0.1, 0.25]))
    assert loss.startswith("-7.500 pp") and loss.endswith("no difference measured")
    assert "one seed" in stats.describe(stats.compare_seeds([0.2], [0.1]))
