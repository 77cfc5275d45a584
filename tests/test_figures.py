"""Figures: names stand apart, in order and on free ground; what they say is in the results."""
import numpy as np
import pytest
from hypothesis import given, strategies as st
from matplotlib.figure import Figure

from report import draw, figures, rates, stats

CONFIG = {"LAYER_SIZES": [784, 8, 10], "PATIENCE": 5, "MIN_DELTA": 0.0005}


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=12), st.floats(0.01, 2))
def test_names_are_spread_out_in_their_order_and_no_further_than_it_takes(positions, gap):
    apart = figures.spread_out(positions, gap)
    order = np.argsort(positions)
    assert (np.diff(apart[order]) >= gap - 1e-9).all()
    assert np.mean(apart) == pytest.approx(np.mean(positions), abs=1e-9)
    np.testing.assert_allclose(figures.spread_out(apart, gap), apart, atol=1e-9)


def test_crowded_names_cover_neither_each_other_nor_the_marks(rng):
    figure = Figure(figsize=(8.3, 5.6), layout="constrained")
    axes = figure.subplots()
    marks = np.stack(np.meshgrid([0.1, 0.5, 0.9], [0.1, 0.15, 0.9]), -1).reshape(-1, 2)
    axes.plot(*marks.T, "o")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    figures.put_names(figure, axes, [(*mark, "a name", {}) for mark in marks], marks)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(marks)
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:i])
        assert not box.count_contains(axes.transData.transform(marks))
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1


def row_of(rate, seed, losses, status="stopped"):
    kept = [loss for loss in losses if loss is not None]
    return {"rate": rate, "seed": seed, "status": status, "epochs": len(losses),
            "val_loss": min(kept, default=None), "best_epoch": int(np.argmin(kept)) + 1,
            "history": {"val_loss": losses}}


@pytest.fixture
def sweep():
    """results/lr_ablation.json of three rates and two seeds; the largest rate diverges."""
    rows = [row_of(1.0, seed, [1.5, 7.0, None], "diverged") for seed in (0, 1)]
    rows += [row_of(0.1, seed, [1.0, 0.3 + seed / 100, 0.31], "stopped") for seed in (0, 1)]
    rows += [row_of(0.01, seed, [1.2, 0.9, 0.7, 0.5, 0.29], "capped") for seed in (0, 1)]
    return {"rows": rows, "best_rate": 0.1, "config": CONFIG, "dataset": {"name": "MNIST"}}


def test_curves_are_named_in_the_order_of_their_ends_and_those_that_leave_are_marked(sweep):
    figure = rates.learning_rates(sweep)
    figure.draw_without_rendering()
    *_, curves = figure.axes
    names = sorted(curves.texts, key=lambda text: text.get_window_extent().y0)
    assert [name.get_text() for name in names] == ["0.01", "0.1", "1 ▲"]
    assert len({name.get_color() for name in names}) == 3
    triangles = [line for line in curves.lines if line.get_marker() == "^"
                 and line.get_color() == names[2].get_color()]
    assert [line.get_xdata()[0] for line in triangles] == [2, 2]    # the epoch that leaves
    dots = [line for line in curves.lines if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in dots] == [
        (1, 1.5), (1, 1.5), (2, 0.3), (2, 0.31), (5, 0.29), (5, 0.29)]
    assert "▲: leaves the axes" in figure.get_supxlabel() and "2 seeds" in figure.get_supxlabel()
    sweep["rows"] = sweep["rows"][2:]
    assert "▲" not in rates.learning_rates(sweep).get_supxlabel()


def test_runs_of_a_rate_stand_side_by_side_and_the_best_rate_is_starred(sweep):
    _, loss, *_ = rates.learning_rates(sweep).axes
    runs = [(line.get_xdata()[0], line.get_ydata()[0]) for line in loss.lines
            if line.get_marker() in ("o", "^", "x")]
    assert len(runs) == len({x for x, _ in runs}) == 6
    (star,) = [line for line in loss.lines if line.get_marker() == "*"]
    assert star.get_xdata() == [0.1] and star.get_ydata()[0] == pytest.approx(0.305)


def test_quantization_figure_says_its_differences_and_how_many_times_smaller():
    accuracies = {"float32": [0.98, 0.981], "ptq": [0.979, 0.981], "qat": [0.982, 0.9825]}
    models = {name: {"label": name, "rows": [
        {"val_loss": 1 - value, "test_acc": value, "file_bytes": 84_000 if name == "float32"
         else 20_000} for value in values]} for name, values in accuracies.items()}
    difference = stats.compare_seeds(accuracies["ptq"], accuracies["qat"])
    function, _ = draw.PLOTS["quant_vs_unquant"]
    figure = function({"models": models, "seeds": [0, 1], "dataset": {"name": "MNIST"},
                   "config": CONFIG, "comparisons": {"qat - ptq": {"test_acc": difference}}})
    figure.draw_without_rendering()
    *values, sizes = figure.axes
    texts = [text.get_text() for text in sizes.texts]
    assert texts[0] == "84.0 kB" and texts[1:] == ["20.0 kB\n4.2 times\nsmaller"] * 2
    assert "MNIST, 784-8-10, 2 seeds" in figure.get_supxlabel()
    assert "QAT − PTQ: +0.225 pp (95 % interval −" in figure.get_supxlabel()
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent()
            assert axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1, text.get_text()
