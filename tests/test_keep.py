"""keep: which model answers for the switches, and what may replace a reference."""
import json
import os

import numpy as np
import pytest
from test_scripts import TINY, accuracy_in, assert_refused, places

import config
import main_export
import main_inference
import main_train
import oracle
from conftest import ROOT
from formats import checkpoint
from machine.files import InputError
from report import results
from runner import experiment, keep, source

SHA = "a" * 64
MADE = {"LAYERS": "3"}          # switches of what is trained here


@pytest.fixture
def home(tmp_path):
    """home(**switches) -> the Config of a project in tmp_path."""
    def settings(**changes):
        places = {f"{name}_DIR": str(tmp_path / name) for name in ("RUNS", "WEIGHTS", "RESULTS")}
        return config.change(config.load([]), **(places | MADE | changes))
    return settings


def given(sha256=SHA):
    """A Data of this content, no examples needed."""
    return source.Data("some", sha256, *[None] * 3, (7,), tuple("012"))


def make(settings, loss, run="train-1", sha256=SHA, seed=0):
    """keep.save of a model of these switches that ended with this loss: (its line, its bytes)."""
    network = oracle.random_network(np.random.default_rng(seed), (7, 3, 3), settings.WEIGHT_BITS)
    facts = keep.facts_of(settings, given(sha256), loss)
    content = checkpoint.encode(network, facts, settings.FILE_FORMAT)
    outcome = experiment.Outcome(settings, None, content, {"val_loss": loss}, None)
    folder = results.Path(settings.RUNS_DIR) / run
    folder.mkdir(parents=True, exist_ok=True)
    return keep.save(outcome, folder, given(sha256)), content


def reference(settings):
    name = checkpoint.default_name(settings.QAT_ENABLE, settings.WEIGHT_BITS, settings.FILE_FORMAT)
    return results.Path(settings.WEIGHTS_DIR) / name


# What is made after a reference of val loss 0.5; whether it replaces it, or why not.
SITUATIONS = {
    "better": ({}, 0.4, SHA, ""),
    "equal": ({}, 0.5, SHA, ""),
    "worse": ({}, 0.6, SHA, "its val loss 0.500000 is lower"),
    "other data": ({}, 0.1, "b" * 64, "its data are some"),
    "another VAL_EXAMPLES": ({"VAL_EXAMPLES": 5}, 0.006, SHA, "VAL_EXAMPLES = 5000 there, 5 here"),
    "another recipe": ({"AUGMENT": 1.0}, 0.1, SHA, "AUGMENT = 0.0 there, 1.0 here"),
    "other epochs": ({"MAX_EPOCHS": 1}, 0.1, SHA, "MAX_EPOCHS = 100 there, 1 here"),
    "another network": ({"LAYERS": "4"}, 0.1, SHA, "LAYERS = '3' there, '4' here"),
    "another rate": ({"LEARNING_RATE": 0.1}, 0.1, SHA, "LEARNING_RATE"),
    "another seed": ({"SEED": 7}, 0.1, SHA, "SEED = 0 there, 7 here"),
    "another processor's products": ({"COMPUTE": "bfloat16"}, 0.4, SHA, ""),
    "the same words, spaced": ({"LAYERS": " 3 "}, 0.4, SHA, ""),
}


@pytest.mark.parametrize("form", ["npz", "nqat"])
@pytest.mark.parametrize("changes, loss, sha256, why", SITUATIONS.values(), ids=SITUATIONS)
def test_a_reference_gives_way_to_its_own_kind_alone(home, form, changes, loss, sha256, why):
    first, later = (home(**{"COMPUTE": "float32", "FILE_FORMAT": form, **more})
                    for more in ({}, changes))
    path = reference(first)
    line, old = make(first, 0.5)
    assert str(path) in line and path.read_bytes() == old
    line, new = make(later, loss, "train-2", sha256, seed=1)
    assert path.read_bytes() == (old if why else new) and old != new
    assert (f"{path} stays: {why}" in line) == bool(why) and "\n" not in line
    assert (results.Path(later.RUNS_DIR) / "train-2" / path.name).read_bytes() == new
    # And what was just trained is what its switches find.
    assert keep.find(later, sha256).read_bytes() == new
    is_other = why and "val loss" not in why
    assert keep.find(first, SHA).read_bytes() == (old if is_other else new)


@pytest.mark.parametrize("form", ["npz", "nqat"])
@pytest.mark.parametrize("damage", [b"", b"PK", b"NQAT" + bytes(30)])
def test_a_damaged_reference_is_replaced(home, form, damage):
    settings = home(FILE_FORMAT=form)
    make(settings, 0.5)
    reference(settings).write_bytes(damage)
    _, new = make(settings, 0.9, "train-2", seed=1)
    assert reference(settings).read_bytes() == new


def test_an_nqat_has_its_facts_beside_it_and_of_no_other_file(home):
    settings = home(FILE_FORMAT="nqat")
    make(settings, 0.5)
    path = reference(settings)
    network, facts = keep.load(path)
    assert facts.val_loss == 0.5 and facts.sha256 == SHA
    assert facts.switches == keep.switches_of(settings)
    other = oracle.random_network(np.random.default_rng(9), (7, 3, 3))
    checkpoint.save(path, other, form="nqat")   # as somebody copies a file over it
    assert keep.load(path)[1] == checkpoint.Facts(classes=tuple("012"))
    line, _ = make(settings, 0.1, "train-2", seed=1)
    assert f"{path} stays: its data are unknown" in line
    beside = results.Path(f"{path}.json")
    for content in ("{", "[]", "[" * 10**5, '{"of": 1}', '{"facts": {}}'):
        beside.write_text(content)
        try:
            assert not keep.load(path)[1].switches
        except InputError as error:
            assert len(str(error).splitlines()) == 1 and str(beside) in str(error)


def test_the_newest_of_equal_switches_answers(home):
    settings = home()
    for run, loss in (("train-1", 0.5), ("train-2", 0.4), ("train-3", 0.9)):
        make(settings, loss, run, seed=int(run[-1]))
    runs = results.Path(settings.RUNS_DIR)
    for age, run in enumerate(("train-2", "train-3", "train-1")):
        os.utime(runs / run / reference(settings).name, (10**9 - age, 10**9 - age))
    assert keep.find(settings, SHA).parent.name == "train-2"


@pytest.mark.parametrize("changes, sha256", [
    ({"WEIGHT_BITS": 4}, SHA), ({"SEED": 1}, SHA), ({"LAYERS": "4"}, SHA), ({}, "b" * 64),
    ({"FILE_FORMAT": "nqat"}, SHA), ({"QAT_ENABLE": False}, SHA)])
def test_switches_never_trained_get_one_line(home, changes, sha256):
    make(home(), 0.5)
    with pytest.raises(InputError, match="no model was trained with these switches") as caught:
        keep.find(home(**changes), sha256)
    assert len(str(caught.value).splitlines()) == 1


def test_where_the_data_are_not_here_the_switches_alone_decide(home):
    _, content = make(home(), 0.5)
    assert keep.find(home(), None).read_bytes() == content
    assert keep.find(home(WEIGHTS="mine.npz"), SHA).name == "mine.npz"


def test_shipped_weights_answer_for_the_default_switches_and_each_recipe(mnist, tmp_path):
    recipes = sorted((ROOT / "recipes").glob("*.toml"))
    assert len(recipes) > 5
    for recipe in [None, *recipes]:
        settings = config.load([str(recipe)] * bool(recipe) + [f"--RUNS_DIR={tmp_path}"])
        path = keep.find(settings, mnist.sha256)
        stem = recipe.stem if recipe else "weights_int8"
        assert path.stem == stem and path.resolve().is_relative_to(ROOT / "weights")
        network, facts = keep.load(path)
        assert facts.switches.keys() <= keep.switches_of(settings).keys()
        assert facts.dataset == "MNIST" and facts.val_loss is not None


# Results

def write(path, capsys, **changes):
    """A result of 2 seeds, changed: its path."""
    given = {"seeds": 2, "loss": 0.5, "status": "stopped", "sha256": SHA, "label": "W8A8"} | changes
    settings = config.load([])._asdict() | {"WEIGHT_BITS": given.get("bits", 8),
                                            "VAL_EXAMPLES": given.get("val", 5_000)}
    results.write_result(path, settings, [
        {"label": given["label"], "changes": {"SEED": seed}, "seed": seed,
         "status": given["status"], "val_loss": given["loss"]} for seed in range(given["seeds"])],
        dataset={"name": "some", "sha256": given["sha256"]}, wall_seconds=given.get("wall", 1))
    capsys.readouterr()
    return path


RESULTS = {
    "better": ({"loss": 0.4}, True),
    "more seeds": ({"seeds": 3}, True),
    "equal but for its times": ({"wall": 9}, False),
    "worse": ({"loss": 0.6}, False),
    "fewer seeds, better": ({"seeds": 1, "loss": 0.1}, False),
    "more seeds, worse": ({"seeds": 9, "loss": 0.6}, False),
    "better, not ended": ({"loss": 0.1, "status": "capped"}, False),
    "better, failed": ({"loss": 0.1, "status": "diverged"}, False),
    "other data": ({"loss": 0.1, "seeds": 9, "sha256": "b" * 64}, False),
    "another VAL_EXAMPLES": ({"loss": 0.1, "val": 5}, False),
    "other bits": ({"loss": 0.1, "bits": 4}, False),
    "other points": ({"loss": 0.1, "label": "W4A4"}, False),
}


@pytest.mark.parametrize("changes, replaces", RESULTS.values(), ids=RESULTS)
def test_a_result_gives_way_to_its_own_kind_alone(tmp_path, capsys, changes, replaces):
    old = write(tmp_path / "kept" / "a.json", capsys)
    new, before = write(tmp_path / "run" / "a.json", capsys, **changes), old.read_bytes()
    assert keep.publish(new, old.parent) == replaces
    assert old.read_bytes() == (new.read_bytes() if replaces else before)
    (line,) = capsys.readouterr().out.splitlines()
    assert (f"{old} stays: " in line) != replaces


def test_a_result_of_an_earlier_version_gives_way_to_its_own_kind(tmp_path, capsys):
    """It lacks the switches that came since, as the committed results do."""
    old = write(tmp_path / "kept" / "a.json", capsys)
    result = json.loads(old.read_text())
    del result["config"]["PEN"]
    old.write_text(json.dumps(result))
    worse = write(tmp_path / "worse" / "a.json", capsys, loss=0.6)
    better = write(tmp_path / "better" / "a.json", capsys, loss=0.4)
    assert not keep.publish(worse, old.parent) and keep.publish(better, old.parent)


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"rows": [], "config": {}}',
                                    '{"rows": [1], "config": [], "dataset": 3}'])
def test_a_damaged_or_missing_result_is_replaced(tmp_path, capsys, damage):
    new = write(tmp_path / "run" / "a.json", capsys)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a.json").write_text(damage)
    assert keep.publish(new, tmp_path / "kept") and keep.publish(new, tmp_path / "none")
    assert (tmp_path / "kept" / "a.json").read_bytes() == new.read_bytes()


# The scripts

@pytest.mark.slow
def test_edit_train_infer_and_export_answer_with_what_was_just_trained(folder, tmp_path, script,
                                                                       monkeypatch):
    monkeypatch.setattr(main_export, "OUT", tmp_path / "out")
    usual = [*TINY, *places(folder, tmp_path), "--ADAPT=False"]
    answers = {}
    for switches in ([], ["--WEIGHT_BITS=4", "--MAX_EPOCHS=2"], ["--LEARNING_RATE=0.05"]):
        code, trained, errors = script(main_train.main, *usual, *switches)
        assert code == 0, errors
        answers[tuple(switches)] = accuracy_in(trained)
    result = json.loads((tmp_path / "train.json").read_text())
    assert result["rows"][0]["network"].endswith("W8A8")
    for switches, accuracy in answers.items():
        code, lines, errors = script(main_inference.main, *usual, *switches)
        assert code == 0, errors
        assert accuracy_in(lines) == accuracy and "just now" in lines[0]
        code, lines, errors = script(main_export.main, "c", *usual, *switches)
        assert code == 0, errors
        assert ("W4A8" if switches[:1] == ("--WEIGHT_BITS=4",) else "W8A8") in "\n".join(lines)
    before = sorted((tmp_path / "out").iterdir())
    for main, words in ((main_inference.main, []), (main_export.main, ["c"])):
        result = script(main, *words, *usual, "--WEIGHT_BITS=3")
        assert_refused(result)
        assert "no model was trained with these switches" in result[2][0]
    assert sorted((tmp_path / "out").iterdir()) == before


def hostile_facts():
    nested = []
    for _ in range(600):
        nested = [nested]
    dataset = {"surrogate": "\ud800x", "escape": "\x1b[2J\x1b[31mX\n\x07", "long": "x" * 10_000}
    for name, text in dataset.items():
        yield name, {"dataset": text}
    yield "class", {"classes": ["\x1b[31m0", "\n", "\ud800"]}
    yield "switch", {"switches": {"\x1b[31m": "\x1b[31m"}}
    yield "nested", {"switches": {"a": nested}}
    for value in (-10**400, -1e300, float("nan"), float("inf"), 10**400, True, "0.1", [0.1]):
        yield f"val loss {str(value)[:8]}", {"val_loss": value}


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize("changes", [pytest.param(changes, id=name)
                                     for name, changes in hostile_facts()])
def test_hostile_facts_are_one_line_or_a_harmless_name(folder, tmp_path, script, form, changes):
    """A network of 784 inputs, so that what is accepted runs to the end."""
    network = oracle.random_network(np.random.default_rng(0), (784, 10))
    with np.load(results_of(tmp_path, network), allow_pickle=False) as file:
        arrays = dict(file)
    meta, changes = json.loads(str(arrays.pop("meta"))), dict(changes)
    if "classes" in changes:
        meta["classes"] = (changes.pop("classes") * 4)[:10]
    if form == 2:
        meta = {key: value for key, value in meta.items()
                if key not in ("layers", "shape", "classes")}
        meta |= {"format": 2, "layer_sizes": [784, 10]}
        if "dataset" in changes:
            changes["dataset"] = {"name": changes["dataset"], "sha256": "00"}
    meta["facts"] |= changes
    path = tmp_path / "hostile.npz"
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)
    result = script(main_inference.main, f"--WEIGHTS={path}", f"--DATA_DIR={folder}",
                    f"--RUNS_DIR={tmp_path}", "--ENGINE=numpy")
    code, lines, errors = result
    if code:
        assert_refused(result)
    else:
        assert not errors and "val_loss" not in changes
    assert all(line.isprintable() for line in lines + errors)


def results_of(tmp_path, network):
    """A good file of the network."""
    facts = checkpoint.Facts("some", "00", tuple("0123456789"), switches={"SEED": 0}, val_loss=0.5)
    checkpoint.save(tmp_path / "good.npz", network, facts)
    return tmp_path / "good.npz"


@pytest.mark.parametrize("loss", [-10**400, -1e300, float("nan"), float("inf"), -0.1])
def test_a_reference_with_an_impossible_loss_pins_nothing(home, loss):
    """Nor does it end a training; it is replaced."""
    settings = home()
    make(settings, 0.5)
    path = reference(settings)
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    meta["facts"]["val_loss"] = loss
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)
    _, new = make(settings, 0.9, "train-2", seed=1)
    assert path.read_bytes() == new
