"""recipes: each loads, its header says what results/recipes.json holds; measured on small data."""
import json
from pathlib import Path

import pytest

import config
import integer
import plan
from benchmarks import recipes
from conftest import ROOT
from formats import checkpoint
from machine.files import InputError
from report import results

RECIPES = ROOT / "recipes"
PATHS = [*sorted(RECIPES.glob("*.toml")), *sorted(RECIPES.glob("*/*.toml"))]
RESULTS = {folder: json.loads((ROOT / "results" / f"{name}.json").read_text("utf-8"))
           for folder, name in (("recipes", "recipes"), ("fashion_mnist", "recipes_fashion_mnist"))}


def rows_of(path):
    """The rows of a recipe on the data set that it was tuned on, and that one's name."""
    result = RESULTS[path.parent.name]
    return results.group(result["rows"], "label")[path.stem], result["dataset"]["name"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_header_of_a_recipe_is_its_result(path):
    text, (rows, dataset) = path.read_text("utf-8"), rows_of(path)
    assert text.startswith(recipes.header(rows, path.relative_to(ROOT), dataset) + "\n")
    settings = config.load([str(path)])
    steps = plan.parse(settings.LAYERS, (28, 28, 1), 10)
    kind = integer.kind(settings.WEIGHT_BITS, settings.ACTIVATION_BITS)
    assert {row["network"] for row in rows} == {f"{plan.describe(steps)} {kind}"}
    for row in rows:
        given = {**row["changes"], "SEED": 0}
        assert given == {**{key: value for key, value in settings._asdict().items()
                            if key in given}, "SEED": 0}
    default = config.load([])._asdict()
    ours = {key for key, value in settings._asdict().items() if value != default[key]}
    assert ours - {"COMPUTE", "ABLATION_SEEDS"} <= rows[0]["changes"].keys()
    assert len({row["seed"] for row in rows}) == len(rows) >= 5


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_weights_of_a_recipe_are_its_first_seeds(path):
    (row, *_), dataset = rows_of(path)
    (weights,) = (ROOT / "weights" / recipes.result_name(dataset)).glob(f"{path.stem}.n[pq]*[zt]")
    network, _ = checkpoint.load(weights)
    assert checkpoint.digest(network) == row["sha256"]
    # The header of today's files names the steps and classes: some bytes more than was measured.
    assert 0 <= weights.stat().st_size - row["file_bytes"] < 64
    steps = plan.parse(config.load([str(path)]).LAYERS, (28, 28, 1), 10)
    assert network.steps == steps


@pytest.mark.slow
def test_recipe_is_measured_into_result_header_and_weights(folder, tmp_path, script, monkeypatch):
    """On another data set the header and the weights file stay."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "_HOME", tmp_path)
    Path("recipes").mkdir()
    Path("recipes/small.toml").write_text("# old claim\n\n# why\nMAX_EPOCHS = 1\n"
                                          'LAYERS = "crop20 mean2"\n'
                                          'FILE_FORMAT = "nqat"\nVAL_EXAMPLES = 200\n')
    before = Path("recipes/small.toml").read_text()
    arguments = ["recipes/small.toml", f"--DATA_DIR={folder}", "--ABLATION_SEEDS=2",
                 "--CACHE_DIR="]
    code, _, errors = script(recipes.main, *arguments)
    assert (code, errors) == (0, [])
    (path,) = Path("results").glob("recipes_*.json")
    result = json.loads(path.read_text())
    rows = result["rows"]
    assert result["command"] == ("python3 -m benchmarks.recipes recipes/NAME.toml "
                                 "--DATA_DIR=FOLDER --ABLATION_SEEDS=2")      # of every row
    assert [(row["label"], row["seed"]) for row in rows] == [("small", 0), ("small", 1)]
    assert rows[0]["changes"]["LAYERS"] == "crop20 mean2"
    assert Path("recipes/small.toml").read_text() == before and not Path("weights/recipes").exists()
    network, _ = checkpoint.load(Path("weights") / path.stem / "small.nqat")
    assert checkpoint.digest(network) == rows[0]["sha256"]

    monkeypatch.setattr(recipes, "HOME", json.loads(path.read_text())["dataset"]["name"])
    assert script(recipes.main, *arguments)[0] == 0
    text = Path("recipes/small.toml").read_text()
    assert text.endswith("\n\n" + before.split("\n\n", 1)[1])
    assert f"2 seeds, {max(row['file_bytes'] for row in rows):,} bytes" in text.splitlines()[0]
    network, _ = checkpoint.load("weights/recipes/small.nqat")
    assert checkpoint.digest(network) == rows[0]["sha256"]


@pytest.mark.slow
def test_recipe_that_learns_nothing_is_refused_in_one_line(folder, tmp_path, script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "_HOME", tmp_path)
    Path("bad.toml").write_text("MAX_EPOCHS = 1\nLEARNING_RATE = 900\nVAL_EXAMPLES = 200\n")
    code, _, errors = script(recipes.main, "bad.toml", f"--DATA_DIR={folder}", "--CACHE_DIR=")
    assert code == 2 and len(errors) == 1 and "LEARNING_RATE" in errors[0]
    with pytest.raises(InputError):
        recipes.main(["missing.toml"])


def test_a_damaged_result_of_all_recipes_is_not_begun_anew(tmp_path):
    """It may hold hours of the others' training."""
    assert recipes._others(tmp_path / "none.json", "small") == []
    (tmp_path / "damaged.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        recipes._others(tmp_path / "damaged.json", "small")
