"""ablation: what a study writes is what its runs and files did."""
import json

import numpy as np
import pytest

import ablation
import config
import main_train
import training
from test_scripts import TINY, assert_refused, places


@pytest.fixture(scope="module")
def study(folder, tmp_path_factory):
    """study(main, *arguments) -> the folder that a study, run in-process, wrote."""
    def run(main, *arguments):
        path = tmp_path_factory.mktemp("study")
        main([*arguments, *TINY, *places(folder, path)])
        return path
    return run


def test_learning_rate_study_holds_every_run_and_the_best_rate(study):
    path = study(main_train.main, "--LR_ABLATION_MODE=True", "--LR_ABLATION_RATES=0.1,0.001,1000",
                 "--ABLATION_SEEDS=2", "--LR_ABLATION_MAX_EPOCHS=2", "--QAT_ENABLE=False")
    result = json.loads((path / "lr_ablation.json").read_text())
    assert [(run["rate"], run["seed"]) for run in result["runs"]] == [
        (rate, seed) for rate in (0.1, 0.001, 1000) for seed in (0, 1)]
    assert {run["status"] for run in result["runs"] if run["rate"] == 1000} == {"diverged"}
    means = {rate: np.mean([run["val_loss"] for run in result["runs"] if run["rate"] == rate])
             for rate in (0.1, 0.001)}
    assert result["best_rate"] == min(means, key=means.get)
    for run in result["runs"]:
        assert len(run["history"]["val_loss"]) == run["epochs"] <= 2
    assert result["lane_epochs"] == sum(run["epochs"] for run in result["runs"])
    assert (path / "lr_ablation.png").read_bytes().startswith(b"\x89PNG")


def test_quantization_study_judges_files(study):
    path = study(ablation.main, "quant", "--ABLATION_SEEDS=2")
    result = json.loads((path / "quant_vs_unquant.json").read_text())
    assert set(result["models"]) == {"float32", "ptq", "qat"} and result["seeds"] == [0, 1]
    for name, model in result["models"].items():
        accuracies = [run["test_acc"] for run in model["runs"]]
        assert len(accuracies) == 2
        assert model["test_acc"]["mean"] == pytest.approx(np.mean(accuracies))
        for run in model["runs"]:
            assert 0 <= run["test_acc"] <= 1 and run["file_bytes"] > 0
            assert run.get("reload_change_of_val_loss", 0) == 0
    bytes_of = {name: model["runs"][0]["file_bytes"] for name, model in result["models"].items()}
    assert bytes_of["qat"] < bytes_of["float32"] / 2
    gains = [q["test_acc"] - f["test_acc"] for q, f in zip(result["models"]["qat"]["runs"],
                                                           result["models"]["float32"]["runs"])]
    assert result["against_float32"]["qat"]["test_acc"]["mean"] == pytest.approx(np.mean(gains))
    assert list(path.glob("*.png"))


def test_summary_is_json_whatever_the_run_did():
    run = training.Run(0.1, 3, status="diverged", history=[
        {"train_loss": np.nan, "val_loss": np.inf, "val_acc": 0.1, "seconds": 1.0}])
    found = json.loads(json.dumps(ablation.summary(run), allow_nan=False))
    assert found["history"]["train_loss"] == [None] and found["val_loss"] is None


def test_summary_keeps_every_bit_of_the_best_loss(rng):
    for loss in rng.random(20):
        run = training.Run(0.1, 3, val_loss=float(loss))
        assert json.loads(json.dumps(ablation.summary(run)))["val_loss"] == loss


def test_seeds_of_a_study_count_up_from_the_seed():
    assert ablation.seeds_of(config.load(["--SEED=5", "--ABLATION_SEEDS=3"])) == [5, 6, 7]


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["lr", "extra"], ["quant", "--SEED=x"]])
def test_unknown_study_gives_one_line(script, arguments):
    assert_refused(script(ablation.main, *arguments))


def test_damaged_result_gives_one_line(script, tmp_path):
    (tmp_path / "lr_ablation.json").write_text("{")
    assert_refused(script(ablation.main, "plots", f"--RESULTS_DIR={tmp_path}",
                          f"--PLOTS_DIR={tmp_path}"))
