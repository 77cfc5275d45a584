"""ablation: what a study writes is what its runs and files did."""
import json
import zlib

import numpy as np
import pytest
from test_scripts import TINY, assert_refused, places

import ablation
import config
import main_train
import plan
from report import draw, figures, published, results, stats, style
from runner import experiment


@pytest.fixture(scope="module")
def study(folder, tmp_path_factory):
    """study(main, *arguments) -> the folder that a study, run in-process, wrote."""
    def run(main, *arguments):
        path = tmp_path_factory.mktemp("study")
        main([*arguments[:1], *TINY, *places(folder, path), *arguments[1:]])
        return path
    return run


@pytest.mark.slow
def test_learning_rate_study_holds_every_run_and_the_best_rate(study):
    path = study(main_train.main, "--LR_ABLATION_MODE=True", "--LR_ABLATION_RATES=0.1,0.001,1000",
                 "--ABLATION_SEEDS=2", "--ABLATION_MAX_EPOCHS=2", "--QAT_ENABLE=False")
    rows = json.loads((path / "lr_ablation.json").read_text())["rows"]
    assert [(row["rate"], row["seed"], row["label"]) for row in rows] == [
        (rate, seed, f"{rate:g}") for rate in (0.1, 0.001, 1000) for seed in (0, 1)]
    assert {row["status"] for row in rows if row["rate"] == 1000} <= {"diverged", "guessing"}
    assert all(row["usable"] == (row["status"] in ("stopped", "capped")) for row in rows)
    means = {rate: np.mean([row["val_loss"] for row in group])
             for rate, group in results.group(rows, "rate").items()
             if all(row["usable"] for row in group)}
    assert stats.best_rate(rows) == min(means, key=means.get)
    for row in rows:
        assert len(row["history"]["val_loss"]) == row["epochs"] <= 2
        assert row["test_acc"] is None or 0 <= row["test_acc"] <= 1
    assert (path / "lr_ablation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.slow
def test_quantization_study_judges_files(study, seeds):
    path = study(ablation.main, "quant", f"--ABLATION_SEEDS={seeds}")
    result = json.loads((path / "quant_vs_unquant.json").read_text())
    models = results.group(result["rows"], "label")
    assert list(models) == ["float32", "W8A8 after training", "W8A8 QAT"]
    for rows in models.values():
        assert [row["seed"] for row in rows] == list(range(seeds))
        for row in rows:
            assert 0 <= row["test_acc"] <= 1 and row["file_bytes"] > 0
            assert row.get("reload_change", 0) == 0
            assert row["network"].endswith("float32" if row["label"] == "float32" else "W8A8")
    float32, rounded, qat = models.values()
    assert qat[0]["file_bytes"] < float32[0]["file_bytes"] / 2
    assert rounded[0]["changes"]["post_training"] and rounded[0]["status"] == float32[0]["status"]
    for label, base, found in stats.comparisons(result["rows"], "test_acc"):
        gains = [a["test_acc"] - b["test_acc"] for a, b in zip(models[label], models[base])]
        assert found["mean"] == pytest.approx(np.mean(gains), abs=1e-12)
        for row, gain in zip(models[label], gains):     # over the 200 test images
            only_base, only_this = row["against"][base]
            assert only_this - only_base == round(200 * gain)
    assert [list(rows[0].get("against", {})) for rows in models.values()] == [
        [], ["float32"], ["float32", "W8A8 after training"]]
    assert list(path.glob("*.png"))


@pytest.mark.slow
def test_free_scales_are_judged_as_they_are_and_have_no_file(study):
    path = study(ablation.main, "quant", "--ABLATION_SEEDS=1", "--POWER_OF_TWO_SCALES=False")
    row = json.loads((path / "quant_vs_unquant.json").read_text())["rows"][-1]
    assert row["label"] == "W8A8 QAT" and "file_bytes" not in row
    assert row["reload_change"] == 0            # the float predictor is the training forward itself


@pytest.mark.slow
def test_study_files_are_those_of_main_train(study, folder, tmp_path):
    """The same switches, the same bytes, so the same size in every table."""
    path = study(ablation.main, "quant", "--ABLATION_SEEDS=1")
    main_train.main([*TINY, *places(folder, tmp_path)])
    row = json.loads((path / "quant_vs_unquant.json").read_text())["rows"][-1]
    (single,) = json.loads((tmp_path / "train.json").read_text())["rows"]
    own = {"changes", "label", "against"}
    assert {key: row[key] for key in row.keys() - own} == {
        key: single[key] for key in single.keys() - own}


def accuracy_of(point):
    """A made-up test accuracy, different for every point."""
    point = {key: value for key, value in point.items() if key != "label"}
    return 1 - (zlib.crc32(str(sorted(point.items())).encode()) % 9_999 + 1) / 100_000


@pytest.fixture
def fake_runs(monkeypatch):
    """experiment.run replaced: made-up rows, the points noted; every 1-bit run of seed 1 fails."""
    calls = []

    def new_row(point, **measured):
        changes = {key: value for key, value in point.items() if key != "label"}
        return {"label": point["label"], "changes": changes, "seed": point["SEED"],
                "status": "stopped", "usable": True,
                "network": f"{point.get('LAYERS', '784-256-128-10')} W8A8", **measured}

    def run(settings, study, points, data):
        calls.append((study, points))
        outcomes = []
        for point in points:
            if point["SEED"] == 1 and point.get("WEIGHT_BITS") == 1:
                row = new_row(point, status="diverged", usable=False, test_acc=None, val_acc=None)
            else:
                row = new_row(point, test_acc=accuracy_of(point), file_bytes=9 + len(outcomes),
                              val_acc=point["SEED"] / 10 + point.get("WEIGHT_BITS", 0) / 100)
            outcomes.append(experiment.Outcome(config.change(settings, **row["changes"]), None,
                                               None, row, np.array([len(outcomes) % 2 == 0])))
        return outcomes, "folder", {"epochs": 1.0}

    def quantize_after(outcome, point, settings, data):
        assert point["SEED"] == outcome.row["seed"] and not outcome.settings.QAT_ENABLE
        assert point["QAT_ENABLE"] and point["SCALES"] == "calibrated"
        row = new_row(point, test_acc=point["WEIGHT_BITS"] / 10 + point["SEED"] / 100)
        return experiment.Outcome(settings, None, None, row, np.array([True]))
    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.setattr(experiment, "quantize_after", quantize_after)
    return calls


def rows_of(study, settings):
    """The rows of a study, by name."""
    name, make_points = ablation.STUDIES[study]
    return ablation.measure(settings, name, make_points(settings), None)[0]


ROUNDED, CALIBRATED, LEARNED = style.ROUNDED, style.CALIBRATED, style.LEARNED


def test_bits_study_compares_models_of_the_same_seeds(fake_runs):
    settings = config.load(["--ABLATION_SEEDS=3", "--FILE_FORMAT=nqat", "--PER_CHANNEL=False"])
    rows = rows_of("bits", settings)
    ((study, points),) = fake_runs
    assert study == "bits" and len(rows) == 3 * (1 + 6 * 5)
    assert len(points) == 3 * (1 + 6 * 4) == len({str(point) for point in points})
    widths = results.group(rows, "WEIGHT_BITS")
    float32 = widths.pop(None)
    assert [row["test_acc"] for row in float32] == [
        accuracy_of({**ablation.FLOAT32, "SEED": seed}) for seed in range(3)]
    assert list(widths) == [8, 6, 4, 3, 2, 1]
    for width, own in widths.items():
        models = results.group(own, "label")
        assert [row["test_acc"] for row in models.pop(ROUNDED)] == [
            width / 10 + seed / 100 for seed in range(3)]
        given = {label: [None if width == 1 and seed == 1 else accuracy_of(
            {**ablation.QAT, **changes, "WEIGHT_BITS": width, "SEED": seed}) for seed in range(3)]
            for label, changes in CHANGES.items()}
        assert {label: stats.values(rows, "test_acc") for label, rows in models.items()} == given
        given[ROUNDED] = [width / 10 + seed / 100 for seed in range(3)]
        pairs = {(label, base): found for label, base, found in stats.comparisons(own, "test_acc")}
        assert pairs == {pair: stats.compare_seeds(given[pair[1]], given[pair[0]]) for pair in (
            (CALIBRATED, ROUNDED), (LEARNED, CALIBRATED), ("QAT, per-tensor scales", LEARNED),
            ("QAT, free scales", LEARNED))}
        assert pairs[CALIBRATED, ROUNDED]["missing"] == (width == 1)


CHANGES = {CALIBRATED: {"SCALES": "calibrated"}, LEARNED: {},
           "QAT, per-tensor scales": {"PER_CHANNEL": False},
           "QAT, free scales": {"POWER_OF_TWO_SCALES": False, **ablation.NO_CODES}}


def test_rows_count_the_images_on_which_two_models_differ(fake_runs):
    """Against the model of the same seed and width that was trained last, in numbers by hand."""
    rows = rows_of("bits", config.load(["--ABLATION_SEEDS=1"]))
    right = {"float32": 1}                      # as in fake_runs: every other run is right
    trained = [row for row in rows if row["label"] != ROUNDED]
    for row in rows:
        right[row["label"]] = 1 if row["label"] == ROUNDED else 1 - trained.index(row) % 2
        for base, counts in row.get("against", {}).items():
            mine, its = right[row["label"]], right[base]
            assert counts == [int(its > mine), int(mine > its)]


def test_models_of_the_bits_study_differ_in_what_they_are_named_after():
    settings = config.load(["--SCALES=calibrated", "--PER_CHANNEL=False"])
    points = {point["label"]: config.change(settings, **{
        key: value for key, value in point.items() if key.isupper()})
        for point in ablation.bits(settings) if point.get("WEIGHT_BITS") == 2}
    learned = points.pop(LEARNED)
    assert (learned.SCALES, learned.PER_CHANNEL, learned.POWER_OF_TWO_SCALES) == (
        "learned", True, True)
    differing = {label: {key for key, a, b in zip(config.Config._fields, learned, other) if a != b}
                 for label, other in points.items()}
    assert differing == {ROUNDED: {"SCALES"}, CALIBRATED: {"SCALES"},
                         "QAT, per-tensor scales": {"PER_CHANNEL"},
                         "QAT, free scales": {"POWER_OF_TWO_SCALES"}}


SMALL = ({"WEIGHT_BITS": 2, "ACTIVATION_BITS": 4, "LAYERS": "crop20 mean2"},
         {"WEIGHT_BITS": 1, "ACTIVATION_BITS": 4, "LAYERS": "8"})


def test_frontier_study_marks_failed_runs_and_keeps_their_networks(fake_runs, monkeypatch):
    monkeypatch.setattr(ablation, "FRONTIER", SMALL)
    networks = results.group(rows_of("frontier", config.load(["--ABLATION_SEEDS=2"])), "LAYERS")
    first, second = networks["crop20 mean2"], networks["8"]
    assert [stats.summarize(rows, "test_acc")["missing"] for rows in (first, second)] == [0, 1]
    assert [row["file_bytes"] for row in first] == [9, 10] and "file_bytes" not in second[1]
    assert second[1]["status"] == "diverged"


@pytest.mark.slow
def test_frontier_study_measures_whole_files(study, monkeypatch):
    monkeypatch.setattr(ablation, "FRONTIER", ({"WEIGHT_BITS": 8, "ACTIVATION_BITS": 8,
                                                "LAYERS": "16"},))     # as in TINY
    monkeypatch.setattr(ablation, "BRIEFLY", {})
    path = study(ablation.main, "frontier", "--ABLATION_SEEDS=1", "--FILE_FORMAT=nqat")
    (row,) = results.read_result(path / "frontier.json")["rows"]
    assert 8_000 < row["file_bytes"] < 13_000   # 12,704 codes, in less than 8 bits each
    assert (path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_averaging_study_differs_in_scales_and_averaging_alone():
    points = ablation.averaging(config.load([]))
    assert [point["SCALES"] for point in points] == 2 * ["calibrated"] + 4 * ["learned"]
    assert [point.get("FREEZE_SCALES") for point in points[2:]] == 2 * [1.0] + 2 * [0.25]
    assert [point["AVERAGING"] for point in points] == 3 * [0.0, 0.998]
    named = {"label", "SCALES", "FREEZE_SCALES", "AVERAGING"}
    assert len({str(sorted((key, value) for key, value in point.items() if key not in named))
                for point in points}) == 1


def test_compute_study_differs_in_the_products_alone():
    points = ablation.compute(config.load([]))
    for a, b in zip(points[::2], points[1::2]):
        assert {key for key in a if a[key] != b[key]} == {"COMPUTE"} and a.keys() == b.keys()
        assert (a["COMPUTE"], b["COMPUTE"], a["MAX_EPOCHS"]) == ("float32", "bfloat16", 30)
    assert [point["label"] for point in points[::2]] == [
        "config.py", "recipes/ternary.toml", "recipes/4kB.toml"]
    assert points[2]["WEIGHT_BITS"] == 2 and "WEIGHT_BITS" not in points[0]


def test_networks_of_the_frontier_fit_mnist():
    assert len(ablation.FRONTIER) == len({str(point) for point in ablation.FRONTIER})
    for switches in ablation.FRONTIER:
        line = config.change(config.load([]), **switches).LAYERS
        assert plan.parse(line, (28, 28, 1), 10)[-1].after == (10,)


@pytest.mark.slow
def test_plots_show_recipes_and_published_points(fake_runs, monkeypatch, script, tmp_path):
    settings = config.load(["--ABLATION_SEEDS=2"])
    for study in ("bits", "frontier"):
        results.write_result(tmp_path / f"{study}.json", settings._asdict(),
                             rows_of(study, settings), dataset={"name": "MNIST", "classes": 10})
    (tmp_path / "recipes.json").write_text(json.dumps({"rows": [
        {"label": "tiny", "test_acc": 0.98, "val_acc": 0.97, "status": "capped",
         "network": "100-10 W3A8", "file_bytes": 3_900}]}))
    drawn, function = [], figures.frontier
    monkeypatch.setitem(draw.FIGURES, "frontier",
                        lambda result: drawn.append(function(result)) or drawn[0])
    code, lines, errors = script(ablation.main, "plots", f"--RESULTS_DIR={tmp_path}",
                                 f"--PLOTS_DIR={tmp_path}")
    assert (code, errors) == (0, [])
    assert lines[-2:] == [f"wrote {tmp_path / name}.png" for name in ("bits", "frontier")]
    for name in ("bits", "frontier"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    letters = "ABCDEFGHIJKL"[:len({point.name for point in published.POINTS})]
    assert [text.get_text() for text in axes.texts] == [*letters, "tiny"]
    (legend,) = [text for text in axes.get_legend().texts if text.get_text().startswith("A")]
    assert legend.get_text().endswith(published.POINTS[0].name)
    assert "selected on the test set; ours were not" in drawn[0].get_supxlabel()
    lines = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    networks = results.group(results.read_result(tmp_path / "frontier.json")["rows"], "label")
    kinds = [[rows for label, rows in networks.items() if ("conv" in label) == is_conv]
             for is_conv in (False, True)]
    assert len(lines) == len(kinds) and all(kinds)
    for line, own in zip(lines, kinds):         # perceptrons, then convolutions
        found = sorted((max(row["file_bytes"] for row in rows), rows) for rows in own)
        chosen, best = [], -1
        for size, rows in found:                # the best on validation of at most this size
            if np.mean([row["val_acc"] for row in rows]) > best:
                best = np.mean([row["val_acc"] for row in rows])
                chosen.append((size, 100 * (1 - np.mean([row["test_acc"] for row in rows]))))
        np.testing.assert_allclose(line.get_xydata(), chosen)


@pytest.mark.slow
def test_a_smaller_study_does_not_replace_a_larger_one(study, script, folder):
    small = ["--PATIENCE=1", "--MAX_EPOCHS=9", "--MIN_DELTA=10"]      # ended by the rule at once
    path = study(ablation.main, "quant", "--ABLATION_SEEDS=2", *small)
    before = (path / "quant_vs_unquant.json").read_bytes()
    code, lines, errors = script(ablation.main, "quant", *TINY, *places(folder, path),
                                 "--ABLATION_SEEDS=1", *small)
    assert code == 0, errors
    assert any("quant_vs_unquant.json stays" in line for line in lines)
    assert (path / "quant_vs_unquant.json").read_bytes() == before


def test_nothing_to_draw_is_said(script, tmp_path):
    result = script(ablation.main, "plots", f"--RESULTS_DIR={tmp_path / 'mistyped'}")
    assert_refused(result)
    assert "no result to draw" in result[2][0]


def test_seeds_of_a_study_count_up_from_the_seed(fake_runs):
    rows = rows_of("lr", config.load(["--SEED=5", "--ABLATION_SEEDS=3", "--LR_ABLATION_RATES=0.1"]))
    assert [row["seed"] for row in rows] == [5, 6, 7]


def test_rates_without_a_usable_model_end_the_study_in_one_line(study, script, folder, tmp_path):
    result = script(ablation.main, "lr", *TINY, *places(folder, tmp_path), "--ABLATION_SEEDS=1",
                    "--LR_ABLATION_RATES=1000", "--QAT_ENABLE=False")
    assert_refused(result)
    assert "1000" in result[2][0] and not list((tmp_path / "runs").glob("*/state*.npz"))


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["lr", "extra"], ["quant", "--SEED=x"]])
def test_unknown_study_gives_one_line(script, arguments):
    assert_refused(script(ablation.main, *arguments))


def test_damaged_result_gives_one_line(script, tmp_path):
    (tmp_path / "lr_ablation.json").write_text("{")
    assert_refused(script(ablation.main, "plots", f"--RESULTS_DIR={tmp_path}",
                          f"--PLOTS_DIR={tmp_path}"))
