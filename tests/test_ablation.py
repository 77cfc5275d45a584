"""ablation: what a study writes is what its runs and files did."""
import json
import zlib

import numpy as np
import pytest
from test_scripts import TINY, assert_refused, places

import ablation
import config
import main_train
from machine.files import InputError
from report import draw, figures, published, results, stats
from runner import experiment


@pytest.fixture(scope="module")
def study(folder, tmp_path_factory):
    """study(main, *arguments) -> the folder that a study, run in-process, wrote."""
    def run(main, *arguments):
        path = tmp_path_factory.mktemp("study")
        main([*arguments[:1], *TINY, *places(folder, path), *arguments[1:]])
        return path
    return run


def test_learning_rate_study_holds_every_run_and_the_best_rate(study):
    path = study(main_train.main, "--LR_ABLATION_MODE=True", "--LR_ABLATION_RATES=0.1,0.001,1000",
                 "--ABLATION_SEEDS=2", "--ABLATION_MAX_EPOCHS=2", "--QAT_ENABLE=False")
    result = json.loads((path / "lr_ablation.json").read_text())
    rows = result["rows"]
    assert [(row["rate"], row["seed"]) for row in rows] == [
        (rate, seed) for rate in (0.1, 0.001, 1000) for seed in (0, 1)]
    assert {row["status"] for row in rows if row["rate"] == 1000} <= {"diverged", "guessing"}
    means = {rate: np.mean([row["val_loss"] for row in rows if row["rate"] == rate])
             for rate in (0.1, 0.001)}
    assert result["best_rate"] == min(means, key=means.get)
    for row in rows:
        assert len(row["history"]["val_loss"]) == row["epochs"] <= 2
        assert row["test_acc"] is None or 0 <= row["test_acc"] <= 1
    assert (path / "lr_ablation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("seeds", [1, 2])
def test_quantization_study_judges_files(study, seeds):
    path = study(ablation.main, "quant", f"--ABLATION_SEEDS={seeds}")
    result = json.loads((path / "quant_vs_unquant.json").read_text())
    assert set(result["models"]) == {"float32", "ptq", "qat"}
    assert result["seeds"] == list(range(seeds))
    for name, model in result["models"].items():
        accuracies = [row["test_acc"] for row in model["rows"]]
        assert len(accuracies) == seeds
        assert model["test_acc"]["mean"] == pytest.approx(np.mean(accuracies))
        for row in model["rows"]:
            assert 0 <= row["test_acc"] <= 1 and row["file_bytes"] > 0
            assert row.get("reload_change", 0) == 0
    bytes_of = {name: model["rows"][0]["file_bytes"] for name, model in result["models"].items()}
    assert bytes_of["qat"] < bytes_of["float32"] / 2
    for pair, comparison in result["comparisons"].items():
        name, base = pair.split(" - ")
        gains = [a["test_acc"] - b["test_acc"] for a, b in zip(result["models"][name]["rows"],
                                                               result["models"][base]["rows"])]
        assert comparison["test_acc"]["mean"] == pytest.approx(np.mean(gains))
    assert list(result["comparisons"]) == ["ptq - float32", "qat - float32", "qat - ptq"]
    assert list(path.glob("*.png"))


def test_free_scales_are_judged_as_they_are_and_have_no_file(study):
    path = study(ablation.main, "quant", "--ABLATION_SEEDS=1", "--POWER_OF_TWO_SCALES=False")
    models = json.loads((path / "quant_vs_unquant.json").read_text())["models"]
    assert "file_bytes" not in models["qat"]["rows"][0]
    # The float predictor is the training forward itself.
    assert models["qat"]["rows"][0]["reload_change"] == 0


def test_study_files_are_those_of_main_train(study, folder, tmp_path):
    """The same switches, the same bytes, so the same size in every table."""
    path = study(ablation.main, "quant", "--ABLATION_SEEDS=1")
    main_train.main([*TINY, *places(folder, tmp_path)])
    row = json.loads((path / "quant_vs_unquant.json").read_text())["models"]["qat"]["rows"][0]
    single = json.loads((tmp_path / "train.json").read_text())["row"]
    assert {**row, "changes": {}} == {**single, "changes": {}}


def accuracy_of(point):
    """A made-up test accuracy, different for every point."""
    return 1 - (zlib.crc32(str(sorted(point.items())).encode()) % 9_999 + 1) / 100_000


@pytest.fixture
def fake_runs(monkeypatch):
    """experiment.run replaced: made-up rows, the points noted; every 1-bit run of seed 1 fails."""
    calls = []

    def run(settings, study, points, data):
        calls.append((study, points))
        outcomes = []
        for point in points:
            failed = point["SEED"] == 1 and point.get("WEIGHT_BITS") == 1
            row = {"seed": point["SEED"], "status": "diverged", "test_acc": None,
                   "val_acc": None}
            if not failed:
                row |= {"status": "stopped", "test_acc": accuracy_of(point),
                        "val_acc": point["SEED"] / 10 + point.get("INPUT", 0) / 100,
                        "file_bytes": 9 + len(outcomes)}
            outcomes.append(experiment.Outcome(config.change(settings, **point), None, None, row,
                                               None))
        return outcomes, "folder", {"epochs": 1.0}

    def quantize_after(outcome, settings, data):
        assert settings.SEED == outcome.row["seed"] and not outcome.settings.QAT_ENABLE
        assert settings.QAT_ENABLE and settings.SCALES == "calibrated"
        row = {"seed": settings.SEED, "test_acc": settings.WEIGHT_BITS / 10 + settings.SEED / 100}
        return experiment.Outcome(settings, None, None, row, None)
    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.setattr(experiment, "quantize_after", quantize_after)
    return calls


def test_bits_study_compares_models_of_the_same_seeds(fake_runs):
    settings = config.load(["--ABLATION_SEEDS=3", "--FILE_FORMAT=nqat", "--PER_CHANNEL=False"])
    name, _, content = ablation.bits(settings, None)
    ((study, points),) = fake_runs
    assert name == study == "bits" and content["seeds"] == [0, 1, 2]
    assert len(points) == 3 * (1 + 6 * 4) == len({str(point) for point in points})
    assert [row["test_acc"] for row in content["float32"]["rows"]] == [
        accuracy_of({"QAT_ENABLE": False, **ablation.NO_CODES, "SEED": seed}) for seed in range(3)]
    assert [width["weight_bits"] for width in content["widths"]] == [8, 6, 4, 3, 2, 1]
    for width in content["widths"]:
        given = {}
        for kind, changes in ablation.TRAININGS.items():
            point = {**ablation.QAT, **changes, "WEIGHT_BITS": width["weight_bits"]}
            given[kind] = [None if width["weight_bits"] == 1 and seed == 1
                           else accuracy_of({**point, "SEED": seed}) for seed in range(3)]
        given["ptq"] = [width["weight_bits"] / 10 + seed / 100 for seed in range(3)]
        assert set(width["models"]) == set(given)
        for kind, entry in width["models"].items():
            assert [row["test_acc"] for row in entry["rows"]] == given[kind]
            assert entry["test_acc"] == stats.summarize(given[kind])
        assert width["comparisons"] == {
            "learned - calibrated": stats.compare_seeds(given["calibrated"], given["learned"]),
            "calibrated - PTQ": stats.compare_seeds(given["ptq"], given["calibrated"]),
            "free - power-of-two": stats.compare_seeds(given["learned"], given["free"]),
            "per-tensor - per-channel": stats.compare_seeds(given["learned"], given["per-tensor"])}
        assert width["comparisons"]["calibrated - PTQ"]["missing"] == (width["weight_bits"] == 1)


def test_models_of_the_bits_study_differ_in_what_they_are_named_after():
    settings = config.load(["--SCALES=calibrated", "--PER_CHANNEL=False"])
    learned, *others = [config.change(settings, **ablation.QAT, WEIGHT_BITS=2)._replace(**changes)
                        for changes in ablation.TRAININGS.values()]
    assert (learned.SCALES, learned.PER_CHANNEL, learned.POWER_OF_TWO_SCALES) == (
        "learned", True, True)
    assert [{key for key, a, b in zip(config.Config._fields, learned, other) if a != b}
            for other in others] == [{"SCALES"}, {"PER_CHANNEL"}, {"POWER_OF_TWO_SCALES"}]


SMALL = ({"INPUT": 10, "WEIGHT_BITS": 2, "ACTIVATION_BITS": 4, "LAYER_SIZES": (100, 10)},
         {"INPUT": 28, "WEIGHT_BITS": 1, "ACTIVATION_BITS": 4, "LAYER_SIZES": (784, 8, 10)})


def test_frontier_study_marks_failed_runs_and_keeps_their_networks(fake_runs, monkeypatch):
    monkeypatch.setattr(ablation, "FRONTIER", SMALL)
    name, _, content = ablation.frontier(config.load(["--ABLATION_SEEDS=2"]), None)
    first, second = content["networks"]
    assert name == "frontier" and [first["LAYER_SIZES"], second["INPUT"]] == [(100, 10), 28]
    assert first["file_bytes"] == 10 and second["file_bytes"] == 11     # the largest that there is
    assert (first["test_acc"]["n"], second["test_acc"]["missing"]) == (2, 1)
    assert second["rows"][1]["status"] == "diverged"


def test_frontier_study_measures_whole_files(study, monkeypatch):
    monkeypatch.setattr(ablation, "FRONTIER", ({"WEIGHT_BITS": 8, "ACTIVATION_BITS": 8, "INPUT": 28,
                                                "LAYER_SIZES": (784, 16, 10)},))    # as in TINY
    monkeypatch.setattr(ablation, "BRIEFLY", {})
    path = study(ablation.main, "frontier", "--ABLATION_SEEDS=1", "--FILE_FORMAT=nqat")
    (network,) = results.read_result(path / "frontier.json")["networks"]
    assert 8_000 < network["file_bytes"] < 13_000           # 12,704 codes, in less than 8 bits each
    assert network["rows"][0]["file_bytes"] == network["file_bytes"]
    assert (path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_averaging_study_measures_the_last_epochs(monkeypatch):
    """Their mean and spread, by hand."""
    histories = iter(np.random.default_rng(0).uniform(0.9, 1, (12, 22)))

    def run(settings, study, points, data):
        assert [point["SCALES"] for point in points] == 4 * ["calibrated"] + 8 * ["learned"]
        assert [point.get("FREEZE_SCALES") for point in points[4:]] == 4 * [1.0] + 4 * [0.25]
        return [experiment.Outcome(settings, None, None, {
            "status": "capped", "test_acc": 0.9, "history": {"val_acc": list(next(histories))}},
            None) for _ in points], "folder", {}
    monkeypatch.setattr(experiment, "run", run)
    _, _, content = ablation.averaging(config.load(["--ABLATION_SEEDS=2"]), None)
    expected = np.random.default_rng(0).uniform(0.9, 1, (12, 22))[:2, 2:]
    first = content["models"][0]
    assert first["late_mean"]["mean"] == pytest.approx(expected.mean())
    assert first["late_std"]["mean"] == pytest.approx(expected.std(axis=1).mean())


def test_networks_of_the_frontier_fit_mnist():
    settings = config.load([])
    assert len(ablation.FRONTIER) == len({str(point) for point in ablation.FRONTIER})
    for switches in ablation.FRONTIER:
        assert config.change(settings, **switches).LAYER_SIZES[-1] == 10


def test_plots_show_recipes_and_published_points(fake_runs, monkeypatch, script, tmp_path):
    settings = config.load(["--ABLATION_SEEDS=2"])
    for study in (ablation.bits, ablation.frontier):
        name, _, content = study(settings, None)
        results.write_result(tmp_path / f"{name}.json", settings._asdict(), **content,
                             dataset={"name": "MNIST"})
    (tmp_path / "recipes.json").write_text(json.dumps({"recipes": [
        {"name": "tiny", "rows": [{"test_acc": 0.98, "status": "capped", "file_bytes": 3_900}]}]}))
    drawn, function = [], figures.frontier
    monkeypatch.setitem(draw.PLOTS, "frontier",
                        (lambda result: drawn.append(function(result)) or drawn[0], "frontier.png"))
    code, lines, errors = script(ablation.main, "plots", f"--RESULTS_DIR={tmp_path}",
                                 f"--PLOTS_DIR={tmp_path}")
    assert (code, errors) == (0, [])
    assert lines[-2:] == [f"wrote {tmp_path / name}.png" for name in ("bits", "frontier")]
    for name in ("bits", "frontier"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    texts = [text.get_text() for text in axes.texts]
    assert sorted(texts) == sorted(["tiny", *(point.name for point in published.POINTS)])
    assert "selected on the test set; ours were not" in drawn[0].get_supxlabel()
    (line,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    networks = results.read_result(tmp_path / "frontier.json")["networks"]
    chosen = [min((n for n in networks if n["INPUT"] == side), key=lambda n: n["file_bytes"])
              for side in (10, 12, 14, 28)]     # the made-up validation accuracy grows with INPUT
    np.testing.assert_array_equal(line.get_xdata(), [n["file_bytes"] for n in chosen])
    np.testing.assert_allclose(line.get_ydata(), [100 * (1 - n["test_acc"]["mean"])
                                                  for n in chosen])


def make_row(rate, val_loss, status="stopped"):
    return {"rate": rate, "val_loss": val_loss, "status": status}


def test_best_rate_needs_a_usable_run_of_every_seed(tmp_path):
    rows = [make_row(1.0, 0.1), make_row(1.0, None, "diverged"), make_row(0.1, 0.3),
            make_row(0.1, 0.2), make_row(500.0, 5.0, "guessing"), make_row(500.0, 5.0, "guessing")]
    assert ablation.best_rate(rows, tmp_path) == 0.1
    with pytest.raises(InputError, match="500"):
        ablation.best_rate(rows[4:], tmp_path)


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


def test_seeds_of_a_study_count_up_from_the_seed():
    assert ablation.seeds_of(config.load(["--SEED=5", "--ABLATION_SEEDS=3"])) == [5, 6, 7]


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["lr", "extra"], ["quant", "--SEED=x"]])
def test_unknown_study_gives_one_line(script, arguments):
    assert_refused(script(ablation.main, *arguments))


def test_damaged_result_gives_one_line(script, tmp_path):
    (tmp_path / "lr_ablation.json").write_text("{")
    assert_refused(script(ablation.main, "plots", f"--RESULTS_DIR={tmp_path}",
                          f"--PLOTS_DIR={tmp_path}"))
