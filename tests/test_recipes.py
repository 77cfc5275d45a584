"""recipes: each loads, and its header says what results/recipes.json holds; measured on small data."""
import json
from pathlib import Path

import pytest

import config
import integer
from benchmarks import recipes
from conftest import ROOT
from formats import checkpoint
from machine.files import InputError

PATHS = sorted((ROOT / "recipes").glob("*.toml"))
RESULT = json.loads((ROOT / "results" / "recipes.json").read_text("utf-8"))
ENTRIES = {entry["name"]: entry for entry in RESULT["recipes"]}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_header_of_a_recipe_is_its_result(path):
    text = path.read_text("utf-8")
    entry = ENTRIES[path.stem]
    assert text.startswith(recipes.header(entry, Path("recipes") / path.name, recipes.HOME,
                                          entry["environment"]) + "\n")
    settings = config.load([str(path)])
    assert entry["layer_sizes"] == list(settings.LAYER_SIZES)
    assert entry["input"] == settings.INPUT
    assert len({row["seed"] for row in entry["rows"]}) == len(entry["rows"]) >= 5


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_weights_of_a_recipe_are_its_first_seeds(path):
    row = ENTRIES[path.stem]["rows"][0]
    (weights,) = (ROOT / "weights" / "recipes").glob(f"{path.stem}.*")
    network, _ = checkpoint.load(weights)
    assert checkpoint.digest(network) == row["sha256"]
    assert weights.stat().st_size == row["file_bytes"]
    settings = config.load([str(path)])
    assert integer.sizes(network) == settings.LAYER_SIZES and network.input == settings.INPUT


def test_recipe_is_measured_into_result_header_and_weights(folder, tmp_path, script, monkeypatch):
    """On another data set the header and the weights file stay."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "_HOME", tmp_path)
    Path("recipes").mkdir()
    Path("recipes/small.toml").write_text("# old claim\n\n# why\nMAX_EPOCHS = 1\n"
                                          "LAYER_SIZES = [100, 10]\nINPUT = 10\n"
                                          'FILE_FORMAT = "nqat"\nVAL_EXAMPLES = 200\n')
    before = Path("recipes/small.toml").read_text()
    arguments = ["recipes/small.toml", f"--DATA_DIR={folder}", "--ABLATION_SEEDS=2",
                 "--CACHE_DIR="]
    code, _, errors = script(recipes.main, *arguments)
    assert (code, errors) == (0, [])
    (path,) = Path("results").glob("recipes_*.json")
    (entry,) = json.loads(path.read_text())["recipes"]
    assert [row["seed"] for row in entry["rows"]] == [0, 1] and entry["name"] == "small"
    assert Path("recipes/small.toml").read_text() == before and not Path("weights/recipes").exists()
    network, _ = checkpoint.load(Path("weights") / path.stem / "small.nqat")
    assert checkpoint.digest(network) == entry["rows"][0]["sha256"]

    monkeypatch.setattr(recipes, "HOME", json.loads(path.read_text())["dataset"]["name"])
    assert script(recipes.main, *arguments)[0] == 0
    text = Path("recipes/small.toml").read_text()
    assert text.endswith("\n\n" + before.split("\n\n", 1)[1])
    assert "2 seeds" in text.splitlines()[0] and f"{entry['rows'][0]['file_bytes']:,}" in text
    network, _ = checkpoint.load("weights/recipes/small.nqat")
    assert checkpoint.digest(network) == entry["rows"][0]["sha256"]


def test_recipe_that_learns_nothing_is_refused_in_one_line(folder, tmp_path, script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "_HOME", tmp_path)
    Path("bad.toml").write_text("MAX_EPOCHS = 1\nLEARNING_RATE = 900\nVAL_EXAMPLES = 200\n")
    code, _, errors = script(recipes.main, "bad.toml", f"--DATA_DIR={folder}", "--CACHE_DIR=")
    assert code == 2 and len(errors) == 1 and "LEARNING_RATE" in errors[0]
    with pytest.raises(InputError):
        recipes.main(["missing.toml"])
