"""ablation: what a study writes is what its runs and files did."""
import json

import numpy as np
import pytest

import ablation
import config
import main_train
from files import InputError
from test_scripts import TINY, assert_refused, places


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
