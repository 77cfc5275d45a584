"""stats: losses one example at a time, tests of difference against their definitions."""
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

import oracle
import predict
from machine.files import InputError
from report import stats


@given(logits=arrays(np.float32, (5, 3), elements=st.floats(-1e4, 1e4, width=32)),
       labels=arrays(np.uint8, 5, elements=st.integers(0, 2)))
def test_evaluate_equals_one_example_at_a_time(logits, labels):
    expected = [math.log(math.fsum(math.exp(float(v) - float(row.max())) for v in row))
                + float(row.max()) - float(row[label]) for row, label in zip(logits, labels)]
    loss, accuracy = predict.score(logits, labels)
    # float64 logits of up to 1e4: their differences are exact to 1e-12.
    assert loss == pytest.approx(math.fsum(expected) / 5, rel=1e-12, abs=1e-11)
    assert accuracy == sum(row.tolist().index(max(row)) == label
                           for row, label in zip(logits, labels.tolist())) / 5


def test_evaluate_counts_every_example_once(rng):
    logits, labels = rng.normal(0, 3, (103, 10)).astype(np.float32), rng.integers(0, 10, 103)
    whole = predict.score(logits, labels)
    assert whole[0] == pytest.approx(oracle.loss(logits, labels), rel=1e-12)
    parts = [(predict.score(logits[i:i + 32], labels[i:i + 32]), len(labels[i:i + 32]))
             for i in range(0, 103, 32)]        # the last is short
    for k in (0, 1):
        assert whole[k] == pytest.approx(sum(part[k] * n for part, n in parts) / 103, rel=1e-12)


def test_tie_goes_to_the_lowest_class():
    logits = np.array([[1, 1, 1], [0, 2, 2], [3, 0, 3]], np.float32)
    assert predict.score(logits, np.array([0, 1, 0]))[1] == 1
    assert predict.score(logits, np.array([1, 2, 2]))[1] == 0
    assert predict.score(logits[:1], np.array([2]))[0] == pytest.approx(math.log(3), rel=1e-15)


def test_one_example():
    loss, accuracy = predict.score(np.array([[0, 100]], np.float32), np.array([0], np.uint8))
    assert loss == pytest.approx(100, rel=1e-12) and accuracy == 0


def test_huge_logits_stay_finite_and_nan_shows():
    labels = np.array([0, 1], np.uint8)
    assert predict.score(np.array([[3e38, -3e38], [-3e38, 3e38]], np.float32), labels) == (0, 1)
    assert math.isnan(predict.score(np.array([[np.nan, 0], [0, 0]], np.float32), labels)[0])


def test_shift_of_all_logits_changes_nothing(rng):
    logits = rng.integers(-50, 50, (20, 4)).astype(np.float32)      # integers: the sum is exact
    labels = rng.integers(0, 4, 20)
    assert predict.score(logits + 1024, labels) == predict.score(logits, labels)


def test_summary_has_the_sample_deviation_and_student_interval():
    summary = stats.summary([1.0, 2.0, 4.0, 5.0])
    std = math.sqrt((4 + 1 + 1 + 4) / 3)
    assert (summary["mean"], summary["n"]) == (3, 4)
    assert summary["std"] == pytest.approx(std, rel=1e-12)
    half = 3.182446305284263 * std / 2          # t at 97.5 % and 3 degrees: any printed table
    assert (summary["low"], summary["high"]) == pytest.approx((3 - half, 3 + half), rel=1e-9)
    assert stats.summary([2.0]) == {"mean": 2, "std": None, "n": 1, "low": None, "high": None,
                                      "missing": 0}


def test_summary_is_of_the_surviving_values_and_counts_the_others():
    whole = stats.summary([1.0, 2.0, 4.0])
    assert stats.summary([1.0, None, 2.0, math.nan, 4.0, math.inf]) == {**whole, "missing": 3}
    for nothing in ([None], [math.nan, None], []):
        summary = stats.summary(nothing)
        assert (summary["n"], summary["missing"]) == (0, len(nothing))
        assert all(summary[key] is None for key in ("mean", "std", "low", "high"))


@pytest.mark.parametrize("values, text", [
    ([0.979, 0.9796], "97.93 ± 0.04"), ([0.9793], "97.93"), ([None, math.nan], "–"),
    ([0.979, None, 0.9796], "97.93 ± 0.04 (2 of 3)"), ([0.9793, None], "97.93 (1 of 2)")])
def test_spread_shows_mean_deviation_and_missing_seeds(values, text):
    assert stats.spread(stats.summary(values), 2, 100) == text


def test_spread_has_the_digits_asked_for():
    assert stats.spread(stats.summary([1.0, 2.0]), 4) == "1.5000 ± 0.7071"


def test_interval_covers_the_mean_95_times_in_100(rng):
    hits = sum(s["low"] < 0 < s["high"] for s in map(stats.summary, rng.normal(0, 1, (2_000, 5))))
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


def test_comparison_without_spread_claims_nothing():
    same = stats.compare_seeds([0.9, 0.8, 0.7], [0.9, 0.8, 0.7])
    assert (same["mean"], same["p"], same["measured"]) == (0, 1, False)
    alone = stats.compare_seeds([0.9], [0.8])
    assert alone["p"] is None and alone["measured"] is False and alone["detectable"] is None


@pytest.mark.parametrize("a, b", [
    ([1, 2, 3], [2, 3, 4]), ([0.9801, 0.9772], [0.9802, 0.9773]),       # one image of 10,000 each
    ([0.1, 0.7, 0.35], [0.2, 0.8, 0.45])])
def test_differences_that_tie_up_to_rounding_have_no_p(a, b):
    tie = stats.compare_seeds(a, b)
    assert tie["p"] is None and tie["measured"] is False and tie["detectable"] is None
    assert f"in each of {len(a)} seeds" in stats.describe(tie)


def test_differences_just_apart_have_their_p():
    near = stats.compare_seeds([0, 0], [1, 1 + 1e-6])
    assert near["measured"] and 0 < near["p"] < 1e-5


def test_pairs_with_a_missing_seed_are_left_out():
    a, b = [0.1, None, 0.3, 0.2, math.nan], [0.2, 0.5, None, 0.25, 0.1]
    assert stats.compare_seeds(a, b) == {**stats.compare_seeds([0.1, 0.2], [0.2, 0.25]),
                                         "missing": 3}
    nothing = stats.compare_seeds([None, 0.1], [0.2, None])
    assert (nothing["n"], nothing["mean"], nothing["p"]) == (0, None, None)
    assert stats.describe(nothing) == "no pair of seeds survived"


def test_least_detectable_difference_is_where_significance_begins(rng):
    for n in (2, 3, 10):
        noise = rng.normal(0, 1, n)
        noise -= noise.mean()
        least = stats.compare_seeds(np.zeros(n), noise + 0.1)["detectable"]
        assert least == pytest.approx(stats.least_detectable(noise.std(ddof=1), n), rel=1e-9)
        assert not stats.compare_seeds(np.zeros(n), noise + 0.999 * least)["measured"]
        assert stats.compare_seeds(np.zeros(n), noise + 1.001 * least)["measured"]
    assert stats.least_detectable(None, 1) is None


@given(a=arrays(bool, 40), b=arrays(bool, 40))
def test_mcnemar_is_a_two_sided_coin_test(a, b):
    only_a, only_b = sum(a & ~b), sum(b & ~a)
    assert stats.disagreements(a, b) == [only_a, only_b]
    n, least = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    assert stats.mcnemar(only_a, only_b) == pytest.approx(min(1, 2 * tail), rel=1e-9)
    assert stats.disagreements(None, b) is stats.disagreements(a, None) is None


def make_rows(label, accuracies, **fields):
    return [{"label": label, "seed": seed, "test_acc": value, **fields}
            for seed, value in enumerate(accuracies)]


def test_rows_are_summarized_without_those_that_are_not_usable():
    rows = make_rows("a", [0.1, 0.3]) + make_rows("a", [0.9], usable=False)
    assert stats.summarize(rows, "test_acc") == stats.summary([0.1, 0.3, None])
    assert stats.summarize(rows, "file_bytes") == stats.summary([None] * 3)


def test_rows_are_compared_by_seed_in_any_order():
    base, other = make_rows("a", [0.1, 0.2, 0.5]), make_rows("b", [0.2, 0.25, 0.3, 0.9])
    other[2]["usable"] = False
    other[0]["against"] = {"a": None}
    want = {**stats.compare_seeds([0.1, 0.2], [0.2, 0.25]), "missing": 2}
    assert stats.compare(base, other[::-1], "test_acc") == want
    assert stats.comparisons(base + other, "test_acc") == [("b", "a", want)]


def test_best_rate_needs_a_usable_run_of_every_seed():
    rows = [{"rate": rate, "val_loss": loss, "usable": usable} for rate, loss, usable in (
        (1.0, 0.1, True), (1.0, 0.01, False), (0.1, 0.3, True), (0.1, 0.2, True), (0.2, 0.3, True),
        (500.0, 0.05, False), (500.0, None, False))]
    assert stats.best_rate(rows) == 0.1
    with pytest.raises(InputError, match="500"):
        stats.best_rate(rows[5:])


def test_times_show_median_and_range():
    assert stats.median_range([0.5, 0.25, 1.5, 0.75], 2) == "0.62 (0.25 to 1.50)"


def test_description_says_sign_unit_and_what_could_have_been_seen():
    gain = stats.describe(stats.compare_seeds([0.1, 0.2, 0.3], [0.2, 0.3001, 0.4001]))
    assert gain.startswith("+10.0") and "pp" in gain and "n = 3" in gain
    assert "not significant" not in gain
    comparison = stats.compare_seeds([0.2, 0.3], [0.1, 0.25])
    loss = stats.describe(comparison)
    assert loss.startswith("-7.500 pp") and loss.endswith(
        f": not significant with n = 2, which shows differences from "
        f"{100 * comparison['detectable']:.3f} pp")
    assert "one seed" in stats.describe(stats.compare_seeds([0.2], [0.1]))
    same = stats.describe(stats.compare_seeds([0.2, 0.3], [0.2, 0.3]))
    assert same == "+0.000 pp in each of 2 seeds: no spread to judge it by"
