"""Figures: names stand apart; what they say is in the results."""
import matplotlib
import numpy as np
import pytest

from conftest import ROOT
from report import draw, figures, rates, results, style

MADE = {"config": {"PATIENCE": 5, "MIN_DELTA": 0.0005},
        "dataset": {"name": "MNIST", "classes": 10}}


def row_of(rate, seed, losses, status="stopped"):
    kept = [loss for loss in losses if loss is not None]
    return {"label": f"{rate:g}", "rate": rate, "seed": seed, "status": status,
            "usable": status in ("stopped", "capped"), "epochs": len(losses),
            "network": "784-8-10 W8A8",
            "val_loss": min(kept, default=None), "best_epoch": int(np.argmin(kept)) + 1,
            "history": {"val_loss": losses}}


@pytest.fixture
def sweep():
    """results/lr_ablation.json of three rates and two seeds; the largest rate diverges."""
    rows = [row_of(1.0, seed, [1.5, 7.0, None], "diverged") for seed in (0, 1)]
    rows += [row_of(0.1, seed, [1.0, 0.3 + seed / 100, 0.31], "stopped") for seed in (0, 1)]
    rows += [row_of(0.01, seed, [1.2, 0.9, 0.7, 0.5, 0.29], "capped") for seed in (0, 1)]
    return {"rows": rows, **MADE}


@pytest.mark.slow
def test_curves_are_named_by_rate_and_those_that_leave_are_marked(sweep):
    *_, curves = rates.learning_rates(sweep).axes
    handles, names = curves.get_legend_handles_labels()
    assert names == ["1 ▲", "0.1", "0.01"]
    assert len({handle.get_color() for handle in handles}) == 3
    triangles = [line for line in curves.lines if line.get_marker() == "^"
                 and line.get_color() == handles[0].get_color()]
    assert [line.get_xdata()[0] for line in triangles] == [2, 2]    # the epoch that leaves
    dots = [line for line in curves.lines if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in dots] == [
        (1, 1.5), (1, 1.5), (2, 0.3), (2, 0.31), (5, 0.29), (5, 0.29)]
    sweep["rows"] = sweep["rows"][2:]
    *_, curves = rates.learning_rates(sweep).axes
    assert curves.get_legend_handles_labels()[1] == ["0.1", "0.01"]


def test_marks_say_how_a_run_ended(sweep):
    figure = rates.learning_rates(sweep)
    (legend,) = figure.legends
    marks = {text.get_text(): handle.get_marker() for text, handle in zip(
        legend.texts, legend.legend_handles) if text.get_text().startswith("run: ")}
    assert marks == {"run: diverged": "x", "run: stopped": "o", "run: capped": "^"}
    assert "2 seeds" in figure.get_supxlabel()


def test_runs_of_a_rate_stand_side_by_side_and_the_best_rate_is_starred(sweep):
    _, loss, *_ = rates.learning_rates(sweep).axes
    runs = [(line.get_xdata()[0], line.get_ydata()[0]) for line in loss.lines
            if line.get_marker() in ("o", "^", "x")]
    assert len(runs) == len({x for x, _ in runs}) == 6
    (star,) = [line for line in loss.lines if line.get_marker() == "*"]
    assert star.get_xdata() == [0.01] and star.get_ydata()[0] == pytest.approx(0.29)


def test_quantization_figure_says_its_differences_and_how_many_times_smaller():
    accuracies = {"float32": [0.98, 0.981], "rounded": [0.979, 0.981], "QAT": [0.982, 0.9825]}
    rows = [{"label": label, "seed": seed, "val_loss": 1 - value, "test_acc": value,
             "network": "784-8-10 W8A8", "file_bytes": 84_000 if label == "float32" else 20_000,
             "against": {"rounded": None} if label == "QAT" else {}}
            for label, values in accuracies.items() for seed, value in enumerate(values)]
    figure = figures.quant_vs_unquant({"rows": rows, **MADE})
    figure.draw_without_rendering()
    *values, sizes = figure.axes
    texts = [text.get_text() for text in sizes.texts]
    assert texts[0] == "84.0 kB" and texts[1:] == ["20.0 kB\n4.2 times\nsmaller"] * 2
    assert "MNIST, 784-8-10, 2 seeds" in figure.get_supxlabel()
    assert "QAT − rounded: +0.225 pp (95 % interval −" in figure.get_supxlabel()
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent()
            assert axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1, text.get_text()


def test_a_failed_run_is_left_out_of_the_quantization_figure():
    rows = [{"label": label, "seed": seed, "val_loss": value, "test_acc": value,
             "network": "784-8-10 W8A8", "usable": value is not None, "file_bytes": 9_000}
            for label, values in {"a": [0.5, 0.6], "b": [0.4, None], "c": [None, None]}.items()
            for seed, value in enumerate(values)]
    losses, _, sizes = figures.quant_vs_unquant({"rows": rows, **MADE}).axes
    assert [text.get_text() for text in losses.texts] == [
        "0.5500\n± 0.0707", "0.4000\n(1 of 2)", "–"]
    assert len(sizes.patches) == 2


@pytest.mark.parametrize("name", draw.FIGURES)
def test_names_in_the_figures_of_the_project_do_not_cover_each_other(name):
    """Of the committed results; of studies that this figure draws."""
    result = results.read_result(ROOT / "results" / f"{name}.json")
    result["recipes"] = results.read_result(ROOT / "results" / "recipes.json")["rows"]
    with matplotlib.rc_context(style.STYLE):
        figure = draw.FIGURES[name](result)
        figure.draw_without_rendering()
        for axes in figure.axes:
            texts = [text for text in axes.texts if text.get_text()]
            texts += axes.get_legend().texts if axes.get_legend() else []
            boxes = [text.get_window_extent() for text in texts]
            for i, box in enumerate(boxes):
                assert not box.count_overlaps(boxes[:i]), texts[i].get_text()


def test_every_figure_has_its_file():
    assert draw.FIGURES.keys() == style.FILES.keys()
