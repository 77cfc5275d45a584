"""The generated blocks of README.md and docs/, and the measurements that they show."""
import re
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

import ablation
import config
import main_train
import plan
from benchmarks import in_turns, scaling, training
from conftest import CACHE, ROOT
from machine.files import InputError
from report import results, speed, style, tables

MADE = {"command": "python3 study.py --X=1",
        "environment": {"cpu": "Abacus", "cores": 2, "python": "3.11.7", "jax": "0.10.2",
                        "numpy": "2.4.6"},
        "config": {"QAT_ENABLE": True, "WEIGHT_BITS": 8, "ACTIVATION_BITS": 8},
        "dataset": {"name": "MNIST", "classes": 10}}
FROM_RESULTS = [name for name in tables.TABLES if name not in ("expected_output", "findings")]
TIMES = [0.5, 0.4, 0.6]


def make_rows(label, accuracies, network="784-256-128-10 W8A8", changes=None, **fields):
    """A row by accuracy; None for a seed that failed."""
    return [{"label": label, "changes": changes or {}, "network": network, "seed": seed,
             "status": "diverged" if value is None else "stopped", "usable": value is not None,
             "rate": 0.1, "epochs": 9 + seed, "test_acc": value, "val_acc": value,
             "val_loss": None if value is None else 1 - value, "file_bytes": 3_900 + seed,
             "reload_change": 0.0, "history": {"val_acc": [value] * 30, "val_loss": [value] * 30},
             **fields} for seed, value in enumerate(accuracies)]


def quant_rows(float32, qat):
    """Of results/quant_vs_unquant.json, with these test accuracies; free scales have no file."""
    rounded = make_rows("W8A8 after training", qat)
    for row in rounded:
        del row["file_bytes"], row["reload_change"]
    return [*make_rows("float32", float32, file_bytes=207_041), *rounded,
            *make_rows("W8A8 QAT", qat, file_bytes=207_041,
                       against={"W8A8 after training": [0, 8]})]


def bits_rows(values, learned):
    """Of results/bits.json of one width with these test accuracies; None for a failed seed."""
    rows = make_rows("float32", values)
    for label in (style.ROUNDED, style.CALIBRATED, style.LEARNED, "free"):
        rows += make_rows(label, learned if "learned" in label else values,
                          changes={"WEIGHT_BITS": 2})
    return rows


def network_rows(values, size, label="100-10 W3A4"):
    """A network of results/frontier.json."""
    rows = make_rows(label, values, network=label)
    for row in rows:
        if size is None:
            del row["file_bytes"]
        else:
            row["file_bytes"] = size
    return rows


def recipe_rows(values):
    """Of results/recipes.json, of one recipe."""
    return make_rows("tiny", values, network="100-64-10 W3A4", seconds=61.4 / len(values))


def run_rows(seeds):
    """Whole runs of training_bench."""
    return [{"part": "whole run", "label": label, "seed": seed, "seconds": 20.0,
             "parts": {"imports": 1.0, "epochs": 15.0}, "epochs": 22 + seed,
             "test_acc": 0.98 + seed / 1000, "peak_memory_bytes": None}
            for label in ("`main_train.py`", "`recipes/fast.toml`") for seed in range(seeds)]


def made_up(seeds):
    """Every result that a table shows, with this many seeds."""
    values = [0.97 + seed / 1000 for seed in range(seeds)]
    timed = [{"part": part, "label": label, "seconds": TIMES} for part, labels in (
        ("epoch", ("QAT epoch", "float32 epoch", "matrix products and update alone")),
        ("lane-epoch", ("single run", "sweep of 27 runs")), ("saving", ("not saved", "saved")))
        for label in labels]
    firmware = [{"label": "tiny", "chip": chip, "network": "100-64-10 W3A4", "test_acc": 0.97,
                 "dataset": "MNIST", "flash": 9_000, "ram": 1_784, "image": 784,
                 unit: 32_000.0, "most": 40_000, "images": seeds, "mismatches": 0}
                for chip, unit in (("rv32ec", "instructions"), ("atmega328p", "cycles"))]
    rows = {
        "quant_vs_unquant": quant_rows(values, values[::-1]),
        "lr_ablation": make_rows("0.1", values),
        "optimizer": make_rows("SGD", values) + make_rows("AdamW", values),
        "bits": bits_rows(values, values[::-1]),
        "bits_conv": bits_rows(values, values[::-1]),
        "factors": [row for label in ("as it is", "no warps") for size in ("2 kB", "8 kB")
                    for row in make_rows(f"{size}: {label}", values)],
        "frontier": network_rows(values, 3_900), "averaging": make_rows("calibrated", values),
        "recipes": recipe_rows(values), "recipes_fashion_mnist": recipe_rows(values),
        "training_bench": timed + run_rows(seeds),
        "convolutions_bench": [
            {"part": "step", "network": "8-16", "label": "QAT W4A4", "seconds": TIMES},
            {"part": "image, in batches of 1", "network": "8-16", "label": "C", "seconds": TIMES},
            {"part": "memory", "network": "8-16", "label": "main_train.py", "seconds": TIMES[:1],
             "peak_memory_bytes": 5 * 10**8}],
        "own_data": [{"set": "iris", "label": label, "seed": seed, "test_acc": value, "train": 120,
                      "test": 30, "file_bytes": 900, "mismatches": 0}
                     for label in ("W8A8", "W4A4", "scikit-learn, alpha 0.01")
                     for seed, value in enumerate(values)],
        "compute": [row for compute in ("float32", "bfloat16") for row in make_rows(
            "config.py", values, changes={"COMPUTE": compute})],
        "inference_bench": [{"label": "C", "batch": batch, "seconds": TIMES}
                            for batch in (1, 10_000)],
        "firmware": firmware,
        "scaling": [{"label": "lanes = 1", "axis": "lanes", "value": 1,
                     "seconds": TIMES, "gemm_limit": 0.25, "peak_memory_bytes": 5e8}],
        "photos": [{"label": "clean", "misread": []}, {"label": "a speck", "misread": [3, 5]}]}
    facts = {"training_bench": {"gemm_gflops": 100.0, "compute": "bfloat16"},
             "inference_bench": {"network": "784-10 W8A8"}, "firmware": {"avr_mhz": 16},
             "scaling": {"network": "784-10 W8A8", "gemm_gflops": 100.0},
             "photos": {"drawings": 48, "kept": 0.995, "weights": "tiny.nqat"}}
    made = {name: {"rows": own, **facts.get(name, {}), **MADE} for name, own in rows.items()}
    beside = made["training_bench"] | {"environment": {**MADE["environment"],
                                                       "cpu": "Difference Engine"}}
    return made | {"avx2/training_bench": beside}


def test_every_mark_has_its_table_and_every_table_its_mark():
    for page, names in tables.PAGES.items():
        text = (ROOT / page).read_text("utf-8")
        opened, closed = (re.findall(rf"^<!-- {slash}(\w+) -->$", text, re.MULTILINE)
                          for slash in ("", "/"))
        assert opened == closed and sorted(opened) == sorted(names), page
    assert sorted(sum(tables.PAGES.values(), [])) == sorted(tables.TABLES)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("name", FROM_RESULTS)
def test_table_is_whole_and_says_how_to_make_it_again(name, seeds):
    text = tables.TABLES[name](made_up(seeds).__getitem__)
    assert "nan" not in text and "None" not in text
    assert "`python3 study.py --X=1`" in text and "Abacus, 2 cores" in text
    for part in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        assert len({line.count("|") for line in part.splitlines()}) == 1


def test_records_are_the_best_on_validation_and_the_smallest_that_are_good_enough():
    def rows(label, size, test, val):
        return [{"label": label, "network": "8-10 W3A8", "file_bytes": size, "test_acc": test,
                 "val_acc": val}]

    found = rows("large", 9_000, 0.993, 0.995) + rows("lucky", 9_500, 0.999, 0.994)
    found += rows("small", 2_000, 0.991, 0.99) + rows("tiny", 900, 0.981, 0.98)
    found += rows("poor", 100, 0.9, 0.9)
    text = tables.records({"recipes": {"rows": found, **MADE}}.get)
    lines = [line.split(" | ")[:2] for line in text.splitlines()[2:5]]
    assert lines == [["| the most accurate", "`recipes/large.toml`"],
                     ["| 99 % in the fewest bytes", "`recipes/small.toml`"],
                     ["| 98 % in the fewest bytes", "`recipes/tiny.toml`"]]


def test_one_seed_has_no_spread():
    read = made_up(1).__getitem__
    text = tables.quant_vs_unquant(read)
    assert "| float32 | 97.00 | 1 | 0.0300 | 207,041 | 0 |" in text
    assert "| W8A8 after training | 97.00 | 1 | 0.0300 | – | – |" in text
    assert "| 0.1 | 0.0300 | 97.00 | 9 | 1 stopped | 0.9700 |" in tables.lr_ablation(read)
    assert "| 98.00 | 1 | – |" in speed.training(read)


def test_only_surviving_seeds_are_averaged_and_the_table_says_so():
    rows = quant_rows([0.97, 0.98, 0.99], [0.97, None, 0.99])
    text = tables.quant_vs_unquant({"quant_vs_unquant": {"rows": rows, **MADE}}.get)
    assert "| W8A8 QAT | 98.00 ± 1.41 (2 of 3) | 3 | 0.0200 ± 0.0141 (2 of 3) |" in text
    rows = make_rows("1", [0.1, None], rate=1.0, status="diverged", usable=False)
    rows += make_rows("0.1", [0.9, 0.7]) + make_rows("0.0001", [0.2], rate=1e-4, status="guessing",
                                                     usable=False)
    rows[3]["status"] = "capped"
    rows[2]["history"]["val_loss"] = [None] * 3 + [0.4] * 20 + [0.1]
    text = tables.lr_ablation({"lr_ablation": {"rows": rows, **MADE}}.get)
    assert "| 1 | – | – | 9 to 10 | 2 diverged | 0.1000 (1 of 2) |" in text
    assert ("| 0.1 | 0.2000 ± 0.1414 | 80.00 ± 14.14 | 9 to 10 | 1 stopped, 1 capped | "
            "0.5500 ± 0.2121 |") in text
    assert "| 0.0001 | – | – | 9 | 1 guessing | 0.2000 |" in text
    assert "Least mean validation loss: 0.1." in text


def test_optimizers_are_compared_at_the_rates_that_are_best_for_them():
    rows = make_rows("SGD", [0.5, 0.6], rate=1.0) + make_rows("SGD", [0.9, 0.8], rate=0.1)
    rows += make_rows("AdamW", [0.9, 0.7], rate=0.01) + make_rows("AdamW", [0.99, None], rate=0.02)
    text = tables.optimizer({"optimizer": {"rows": rows, **MADE}}.get)
    assert "| SGD | 0.1 | 0.1500 ± 0.0707 | 9.5 ± 0.7 | 85.00 ± 7.07 | 2 |" in text
    assert "| AdamW | 0.01 | 0.2000 ± 0.1414 |" in text
    assert "- AdamW minus SGD, validation loss: +0.050 nats (" in text


def test_differences_are_of_the_seeds_that_survived():
    result = {"rows": bits_rows([0.97, 0.98, 0.99], [0.98, None, 0.998]), **MADE}
    text = tables.bits({"bits": result}.get)
    assert ("| 2 | 98.00 ± 1.00 | 98.00 ± 1.00 | 98.90 ± 1.27 (2 of 3) | 98.00 ± 1.00 | 3 | "
            "+0.90 (-0.37 to +2.17) | +0.00 (+0.00 to +0.00) |") in text
    assert "784-256-128-10, activations of 8 bits" in text and "float32: 98.00 ± 1.00 %" in text
    text = tables.bits({"bits": {"rows": bits_rows([0.9], [None]), **MADE}}.get)
    assert "| 90.00 | 90.00 | – | 90.00 | 1 | – | +0.00 |" in text


def test_last_epochs_are_averaged_and_their_spread_is_measured():
    histories = np.random.default_rng(0).uniform(0.9, 1, (2, 22))
    rows = make_rows("calibrated", [0.9, 0.9])
    for row, values in zip(rows, histories):
        row["history"] = {"val_acc": list(values)}
    late = histories[:, 2:]
    means, stds = 100 * late.mean(1), 100 * late.std(1)
    assert (f"| {means.mean():.2f} ± {means.std(ddof=1):.2f} | {stds.mean():.3f} ± "
            f"{stds.std(ddof=1):.3f} |") in tables.averaging({"averaging": {"rows": rows,
                                                                            **MADE}}.get)


def test_frontier_lists_networks_by_size_and_those_without_a_file():
    rows = [*network_rows([0.98, 0.99], 3_900, "a"), *network_rows([None, None], None, "b"),
            *network_rows([0.97, None], 2_500, "c")]
    lines = tables.frontier({"frontier": {"rows": rows, **MADE}}.get).splitlines()
    assert lines[2:5] == ["| b | – | – | 2 |", "| c | 2,500 | 97.00 (1 of 2) | 2 |",
                          "| a | 3,900 | 98.50 ± 0.71 | 2 |"]
    assert "| 12,608 | 99.02 |" in lines[lines.index("") + 5]
    assert "selected on the test set; ours were not" in lines[-1]


def test_photos_are_counted():
    text = speed.photos(made_up(1).__getitem__)
    assert "| clean | 48 of 48 |" in text and "| a speck | 46 of 48 |" in text
    assert "keeps 99.50 %" in text


def test_recipes_need_no_other_data_set():
    mnist = {"rows": recipe_rows([0.97, 0.98]), **MADE}

    def read(name):
        if name != "recipes":
            raise InputError("no such file")
        return mnist
    row = ("| `recipes/tiny.toml` | 100-64-10 W3A4 | 3,901 | 97.50 ± 0.71 | 97.50 ± 0.71 | 2 | 61 "
           "| {} |")
    assert row.format("–") in tables.recipes(read)
    fashion = {"rows": recipe_rows([0.97, 0.971]), **MADE}
    assert row.format("97.05 ± 0.07") in tables.recipes(
        {"recipes": mnist, "recipes_fashion_mnist": fashion}.get)


def test_processors_stand_side_by_side_and_one_alone_is_enough():
    """What is absent on the second, timed without the first label, is a dash."""
    made = made_up(2)
    made["avx2/training_bench"]["rows"] = [
        row for row in made["training_bench"]["rows"] if row["label"] != "float32 epoch"] + [
        {"part": "epoch", "label": "float32 epoch", "seconds": [4.0]},
        {"part": "epoch", "label": "only there", "seconds": [6.0]}]
    text = speed.training(made.__getitem__)
    assert "| one epoch of | Abacus (s) | × our QAT epoch | Difference Engine (s) | × our" in text
    assert re.search(r"\| only there \| – \| – \| 6.000 .*\|", text)
    assert "Whole runs on Difference Engine" in text

    def read(name):
        if name.startswith("avx2"):
            raise InputError("not measured")
        return made[name]

    text = speed.training(read)
    assert "Whole runs on Abacus" in text and "Difference Engine" not in text


def test_a_finding_is_a_line():
    lines = tables.findings(made_up(3).__getitem__).splitlines()
    assert len(lines) == 6 and all(line.startswith("- ") for line in lines)


def test_result_without_what_a_table_shows_is_an_input_error():
    with pytest.raises(InputError, match="table scaling") as caught:
        tables.render("", ["scaling"], {"scaling": {"rows": [{}]}}.__getitem__)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("page", tables.PAGES)
def test_results_in_the_project_have_what_their_tables_show(page):
    def read(name):
        return results.read_result(ROOT / "results" / f"{name}.json")
    text = (ROOT / page).read_text(encoding="utf-8")
    assert set(re.findall("<!-- /(.+) -->", text)) == set(tables.PAGES[page])
    assert tables.render(text, tables.PAGES[page], read) == text        # generated, never typed


def test_rendering_replaces_a_block_and_nothing_else(monkeypatch):
    monkeypatch.setitem(tables.TABLES, "bits", lambda read: "fresh")
    text = "before\n<!-- bits -->\nstale\nlines\n<!-- /bits -->\nafter"
    once = tables.render(text, ["bits"], None)
    assert once == "before\n<!-- bits -->\nfresh\n<!-- /bits -->\nafter"
    assert tables.render(once, ["bits"], None) == once


def test_check_tells_a_stale_page_and_writing_mends_it(script, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "PAGES", {"docs/photos.md": ["photos"]})
    (tmp_path / "docs").mkdir()
    page = Path(shutil.copy(ROOT / "docs" / "photos.md", tmp_path / "docs"))
    assert script(ablation.main, "tables")[0] == 0
    fresh = page.read_text("utf-8")
    assert "| clean |" in fresh and script(ablation.main, "tables", "--check") == (0, [], [])
    page.write_text(fresh.replace("| clean |", "| dirty |"), "utf-8")
    assert script(ablation.main, "tables", "--check") == (1, [], [f"{page} is stale"])
    assert "| dirty |" in page.read_text("utf-8")
    assert script(ablation.main, "tables") == (0, [f"wrote {page}"], [])
    assert page.read_text("utf-8") == fresh


@pytest.mark.slow
def test_expected_output_is_what_training_prints(script, folder, tmp_path):
    code, out, _ = script(
        main_train.main, "--LAYERS=", "--VAL_EXAMPLES=200", "--MAX_EPOCHS=1",
        "--BATCH_SIZE=32", "--ADAPT=False", f"--CACHE_DIR={CACHE}", f"--DATA_DIR={folder}",
        *(f"--{name}={tmp_path / name}" for name in training.FOLDERS))
    path = tmp_path / "RESULTS_DIR" / "train.json"
    text = tables.expected_output({"train": results.read_result(path)}.get)
    text = text.replace("weights/", f"{tmp_path / 'WEIGHTS_DIR'}/")
    end = next(i for i, line in enumerate(out) if line.startswith("capped"))
    assert code == 0 and text.splitlines()[1:-1] == [
        line for line in out[end:] if not line.endswith("train.json")]


def test_contenders_take_turns_after_a_first_call_each():
    calls = []
    times = in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 2, 3)
    assert "".join(calls) == "ab" + 2 * "aaabbb"
    assert [len(times[name]) for name in "ab"] == [2, 2]


@pytest.mark.parametrize("compute, tolerance", [("float32", 1e-4), ("bfloat16", 5e-2)])
@pytest.mark.parametrize("sizes", [(6, 3), (6, 5, 4, 3)])
@pytest.mark.slow
def test_floor_epoch_computes_every_layers_update(sizes, compute, tolerance):
    """Two steps against the same products in float64, in the order of the chain rule."""
    steps = plan.parse(" ".join(map(str, sizes[1:-1])), sizes[:1], sizes[-1])
    hyper = config.hyper(config.load([]), BATCH_SIZE=7, QAT_ENABLE=False,
                         COMPUTE=compute)._replace(LAYERS=steps)
    x = np.float64(jax.random.uniform(jax.random.key(1), (7, 6))) * 1e-2
    weights = [np.float64(w) for w, _ in training.float_params(hyper)]
    for _ in range(2):
        inputs = [x]
        for w in weights:
            inputs.append(inputs[-1] @ w)
        d, updates = inputs.pop(), []
        for h, w in zip(inputs[::-1], weights[::-1]):
            updates.insert(0, h.T @ d)
            d = d @ w.T
        weights = [w - 20 * update for w, update in zip(weights, updates)]
    epoch = training.floor_epoch(hyper, 2, lanes=2, rate=20)
    before = training.float_params(hyper)
    for ours, want, (initial, _) in zip(epoch(), weights, before, strict=True):
        moved = np.abs(want - initial).max()
        assert moved > 0.01                     # else this would say nothing
        np.testing.assert_allclose(ours[1], want, rtol=0, atol=tolerance * moved)


def test_operations_of_an_epoch_are_those_of_its_products():
    """Forward and dw for each layer, dx for all but the first: 2 operations a multiply-add."""
    assert training.flops_per_epoch((5, 3), 2, 7) == 2 * 7 * 2 * (2 * 15)
    assert training.flops_per_epoch((5, 3, 4), 2, 7) == 2 * 7 * 2 * (2 * 15 + 3 * 12)


@pytest.fixture
def fake_training(monkeypatch):
    """main_train.py replaced: it notes its arguments and writes the train.json it is asked for."""
    calls = []

    def run(command, **options):
        given = dict(word[2:].split("=", 1) for word in command if word.startswith("--"))
        calls.append((command, given))
        if given["SEED"] == "13":
            return subprocess.CompletedProcess(command, 2, "", "noise\nerror: bad luck\n")
        row = {"epochs": 4, "test_acc": 0.98, "file_bytes": 1}
        results.write_result(f"{given['RESULTS_DIR']}/train.json", {}, [row],
                             seconds={"data": 1.0}, wall_seconds=2.0, peak_memory_bytes=3)
        return subprocess.CompletedProcess(command, 0, "", "")
    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_whole_runs_use_the_given_switches_and_folders_of_their_own(fake_training):
    arguments = ["recipes/fast.toml", "--WEIGHT_BITS=4", "--RESULTS_DIR=mine"]
    runs = training.whole_runs("fast", arguments, range(5, 7))
    assert [(run["label"], run["seed"]) for run in runs] == [("fast", 5), ("fast", 6)]
    assert runs[0]["epochs"] == 4
    for command, given in fake_training:
        assert "recipes/fast.toml" in command and given["WEIGHT_BITS"] == "4"
        assert given["CACHE_DIR"] == ""
        places = {given[name] for name in training.FOLDERS}
        assert len(places) == 4 and not any(ROOT.is_relative_to(p) or p == "mine" for p in places)


def test_cached_runs_share_a_cache_that_one_more_run_fills(fake_training):
    assert len(training.whole_runs("", [], range(2), cached=True)) == 2
    caches = [given["CACHE_DIR"] for _, given in fake_training]
    assert len(caches) == 3 and len(set(caches)) == 1 and caches[0]


def test_a_failed_run_is_an_input_error_with_its_reason(fake_training):
    with pytest.raises(InputError, match="bad luck") as caught:
        training.whole_run([], 13)
    assert len(str(caught.value).splitlines()) == 1


def test_a_point_of_the_scaling_study_changes_its_axis_alone():
    settings = config.load(["--LAYERS=7 5", "--BATCH_SIZE=32"])
    assert scaling.changes(settings) == {"BATCH_SIZE": 32, "LAYERS": "7 5"}
    assert scaling.changes(settings, batch=64)["BATCH_SIZE"] == 64
    assert scaling.changes(settings, width=64)["LAYERS"] == "64 32"
    layers = scaling.changes(settings, channels=8)["LAYERS"]
    assert layers == "conv5x8/2 conv3x16 max2 conv3x16"
