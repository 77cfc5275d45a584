"""The generated blocks of README.md and docs/, and the measurements that they show."""
import re
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

import config
import main_train
from benchmarks import scaling, tables, timing, training
from conftest import CACHE, ROOT
from machine.files import InputError
from report import results, stats

MADE = {"command": "python3 study.py --X=1",
        "environment": {"cpu": "Abacus", "cores": 2, "python": "3.11.7", "jax": "0.10.2",
                        "numpy": "2.4.6"},
        "config": {"QAT_ENABLE": True, "WEIGHT_BITS": 8, "ACTIVATION_BITS": 8}}
FROM_RESULTS = [name for name in tables.TABLES if name not in ("expected_output", "switches",
                                                                "findings")]


def entry_of(label, accuracies):
    """A model of quant_vs_unquant with one row by accuracy; None for a seed that failed."""
    rows = [{"test_acc": value, "val_loss": None if value is None else 1 - value,
             "file_bytes": 207_041, "reload_change": 0.0} for value in accuracies]
    return {"label": label, "rows": rows,
            **{key: stats.summarize([row[key] for row in rows])
               for key in ("test_acc", "val_loss")}}


def quant_result(float32, qat):
    """results/quant_vs_unquant.json of these test accuracies; free scales have no file."""
    ptq = entry_of("W8A8\nafter training", qat)
    for row in ptq["rows"]:
        del row["file_bytes"], row["reload_change"]
    tests = [stats.mcnemar(np.array([True, False]), np.array([True, True])) for _ in qat]
    return {"dataset": {"name": "MNIST"}, "seeds": list(range(len(qat))),
            "models": {"float32": entry_of("float32", float32), "ptq": ptq,
                       "qat": entry_of("W8A8\nQAT", qat)},
            "comparisons": {"qat - ptq": {"test_acc": stats.compare_seeds(float32, qat),
                                          "mcnemar": tests}}, **MADE}


def optimizer_result(losses):
    """results/optimizer.json with the same validation losses for both optimizers."""
    entry = {"rows": [], "best_rate": 0.1, **{key: stats.summarize(losses)
                                              for key in ("val_loss", "test_acc", "epochs")}}
    return {"optimizers": {"SGD": entry, "AdamW": entry},
            "val_loss_against_sgd": {"AdamW": stats.compare_seeds(losses, losses)}, **MADE}


def rate_row(rate, seed, val_loss, status="stopped"):
    return {"rate": rate, "seed": seed, "val_loss": val_loss, "status": status, "epochs": 9 + seed,
            "test_acc": None if val_loss is None else 1 - val_loss,
            "history": {"val_loss": [val_loss and 2 * val_loss] * 20 + [val_loss]}}


def run_of(seed):
    """A whole run of training_bench."""
    return {"seed": seed, "start_to_saved_seconds": 20.0, "parts": {"imports": 1.0, "epochs": 15.0},
            "epoch_count": 22 + seed, "test_acc": 0.98 + seed / 1000, "file_bytes": 207_041,
            "peak_memory_bytes": None}


def bits_result(values, learned):
    """results/bits.json of one width with these test accuracies; None for a seed that failed."""
    models = dict.fromkeys(tables.BITS_MODELS, {"test_acc": stats.summarize(values)})
    models["learned"] = {"test_acc": stats.summarize(learned)}
    return {"seeds": list(range(len(values))), "float32": {"test_acc": stats.summarize(values)},
            "widths": [{"weight_bits": 2, "models": models, "comparisons": dict.fromkeys(
                tables.BITS_DIFFERENCES, stats.compare_seeds(values, learned))}],
            "dataset": {"name": "MNIST"},
            **MADE, "config": {**MADE["config"], "LAYER_SIZES": [784, 256, 128, 10]}}


def network_of(values, size):
    """A network of results/frontier.json."""
    return {"LAYER_SIZES": [100, 10], "INPUT": 10, "WEIGHT_BITS": 3, "ACTIVATION_BITS": 4,
            "rows": [{}] * len(values), "test_acc": stats.summarize(values), "file_bytes": size}


def recipes_result(values):
    """results/recipes.json of one recipe."""
    rows = [{"val_acc": value, "test_acc": value, "file_bytes": 3_900 + seed}
            for seed, value in enumerate(values)]
    return {"recipes": [{"name": "tiny", "model": "W3A4", "layer_sizes": [100, 64, 10],
                         "seconds": 61.4, "rows": rows}], **MADE}


def made_up(seeds):
    """Every result that a table shows, with this many seeds."""
    values = [0.97 + seed / 1000 for seed in range(seeds)]
    times = [0.5, 0.4, 0.6]
    runs = [run_of(seed) for seed in range(seeds)]
    return {
        "quant_vs_unquant": quant_result(values, values[::-1]),
        "lr_ablation": {"rows": [rate_row(0.1, seed, value) for seed, value in enumerate(values)],
                        "best_rate": 0.1, **MADE},
        "optimizer": optimizer_result(values),
        "bits": bits_result(values, values[::-1]),
        "frontier": {"networks": [network_of(values, 3_900)], "dataset": {"name": "MNIST"}, **MADE},
        "averaging": {"models": [{"scales": "calibrated", "weights": "last", **dict.fromkeys(
                          ("late_mean", "late_std", "test_acc"), stats.summarize(values))}],
                      "late_epochs": 10, "network": network_of(values, 1), **MADE},
        "recipes": recipes_result(values), "recipes_fashion_mnist": recipes_result(values),
        "training_bench": {"epochs": dict.fromkeys(
                               ("QAT epoch", "matrix products and update alone"), times),
                           "lane_epochs": {"single run": times, "sweep": times}, "lanes": 27,
                           "saving": {"saved": times, "not saved": times},
                           "gemm_gflops": 100.0, "default": runs, "default_float32": runs, "fast": runs,
                           "fast_again": runs, "compute": "bfloat16", **MADE},
        "compute": {"entries": [{"name": "config.py", "model": "W8A8", "seeds": list(range(seeds)),
                                 "float32": values, "bfloat16": values[::-1],
                                 "comparison": stats.compare_seeds(values, values[::-1])}], **MADE},
        "inference_bench": {"seconds": {"C": {"1": times, "10000": times}}, "bits": [8, 8],
                            "repeats": 3, **MADE},
        "firmware": {"rows": [{"name": "recipes/tiny.nqat", "chip": chip, "model": "W3A4",
                               "layer_sizes": [100, 64, 10], "test_acc": 0.97, "flash": 9_000,
                               "ram": 1_784, "image": 784, unit: 32_000.0, "most": 40_000,
                               "images": seeds, "mismatches": 0}
                              for chip, unit in (("rv32ec", "instructions"),
                                                 ("atmega328p", "cycles"))], "avr_mhz": 16,
                     "sanitized": [{"images": 5, "mismatches": 0}] * 2, **MADE},
        "scaling": {"points": {"lanes": [{"lanes": 1, "seconds": times, "gemm_limit": 0.25}]},
                    "gemm_gflops": 100.0, **MADE},
        "photos": {"drawings": 48, "misread": {"clean": [], "a speck": [3, 5]}, "kept": 0.995,
                   **MADE},
    }


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


def test_one_seed_has_no_spread():
    read = made_up(1).__getitem__
    assert "| float32 | 97.00 | 1 | 0.0300 | 207,041 | 0 |" in tables.models(read)
    assert "| W8A8, after training | 97.00 | 1 | 0.0300 | – | – |" in tables.models(read)
    assert "| 0.1 | 0.9700 | 3.00 | 9 | 1 stopped | 1.9400 |" in tables.learning_rates(read)
    assert "| 98.00 | 1 | – |" in tables.training_speed(read)


def test_only_surviving_seeds_are_averaged_and_the_table_says_so():
    quant = quant_result([0.97, 0.98, 0.99], [0.97, None, 0.99])
    text = tables.models({"quant_vs_unquant": quant}.__getitem__)
    assert "| W8A8, QAT | 98.00 ± 1.41 (2 of 3) | 2 | 0.0200 ± 0.0141 (2 of 3) |" in text
    rows = [rate_row(1.0, 0, None, "diverged"), rate_row(1.0, 1, 0.9, "diverged"),
            rate_row(0.1, 0, 0.1), rate_row(0.1, 1, 0.3, "capped"),
            rate_row(0.1, 2, None, "inexact"), rate_row(1e-4, 0, 2.3, "guessing")]
    text = tables.learning_rates({"lr_ablation": {"rows": rows, "best_rate": 0.1, **MADE}}.get)
    assert "| 1 | – | 10.00 (1 of 2) | 9 to 10 | 2 diverged | 1.8000 (1 of 2) |" in text
    assert ("| 0.1 | 0.2000 ± 0.1414 (2 of 3) | 80.00 ± 14.14 (2 of 3) | 9 to 11 | "
            "1 stopped, 1 capped, 1 inexact | 0.4000 ± 0.2828 (2 of 3) |") in text
    assert "| 0.0001 | – | -130.00 | 9 | 1 guessing | 4.6000 |" in text


def test_differences_are_of_the_seeds_that_survived():
    result = bits_result([0.97, 0.98, 0.99], [0.98, None, 0.998])
    text = tables.bits({"bits": result}.get)
    assert ("| 2 | 98.00 ± 1.00 | 98.00 ± 1.00 | 98.90 ± 1.27 (2 of 3) | 98.00 ± 1.00 | "
            "98.00 ± 1.00 | 3 | +0.90 (-0.37 to +2.17) | +0.90 (-0.37 to +2.17) |") in text
    assert "784-256-128-10, activations of 8 bits" in text and "float32: 98.00 ± 1.00 %" in text
    text = tables.bits({"bits": bits_result([0.9], [None])}.get)
    assert "| 90.00 | – | 90.00 | 90.00 | 1 | – | – |" in text


def test_frontier_lists_networks_by_size_and_those_without_a_file():
    networks = [network_of([0.98, 0.99], 3_900), network_of([None, None], None),
                network_of([0.97, None], 2_500)]
    result = {"networks": networks, "dataset": {"name": "MNIST"}, **MADE}
    lines = tables.frontier({"frontier": result}.get).splitlines()
    assert lines[2:5] == ["| 100-10 | 10 × 10 | W3A4 | – | – | 2 |",
                          "| 100-10 | 10 × 10 | W3A4 | 2,500 | 97.00 (1 of 2) | 2 |",
                          "| 100-10 | 10 × 10 | W3A4 | 3,900 | 98.50 ± 0.71 | 2 |"]
    assert "| 12,608 | 99.02 |" in lines[lines.index("") + 5]
    assert "selected on the test set; ours were not" in lines[-1]


def test_photos_are_counted():
    text = tables.photos(made_up(1).__getitem__)
    assert "| clean | 48 of 48 |" in text and "| a speck | 46 of 48 |" in text
    assert "keeps 99.50 %" in text


def test_recipes_need_no_other_data_set():
    def read(name):
        if name != "recipes":
            raise InputError("no such file")
        return recipes_result([0.97, 0.98])
    row = ("| `recipes/tiny.toml` | 100-64-10 W3A4 | 3,901 | 97.50 ± 0.71 | 97.50 ± 0.71 | 2 | 61 "
           "| {} |")
    assert row.format("–") in tables.recipes(read)
    assert row.format("97.05 ± 0.07") in tables.recipes(
        {"recipes": recipes_result([0.97, 0.98]),
         "recipes_fashion_mnist": recipes_result([0.97, 0.971])}.get)


def test_a_finding_is_a_line():
    lines = tables.findings(made_up(3).__getitem__).splitlines()
    assert len(lines) == 6 and all(line.startswith("- ") for line in lines)


def test_switches_are_those_of_the_configuration():
    lines = tables.switches(None).splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == list(config.Config._fields)


def test_result_without_what_a_table_shows_is_an_input_error():
    with pytest.raises(InputError, match="table scaling") as caught:
        tables.render("", ["scaling"], {"scaling": {"points": {}}}.__getitem__)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("page", tables.PAGES)
def test_results_in_the_project_have_what_their_tables_show(page):
    def read(name):
        return results.read_result(ROOT / "results" / f"{name}.json")
    text = (ROOT / page).read_text(encoding="utf-8")
    assert set(re.findall("<!-- /(.+) -->", text)) == set(tables.PAGES[page])
    assert "|" in tables.render(text, tables.PAGES[page], read)


def test_rendering_replaces_a_block_and_nothing_else(monkeypatch):
    monkeypatch.setitem(tables.TABLES, "models", lambda read: "fresh")
    text = "before\n<!-- models -->\nstale\nlines\n<!-- /models -->\nafter"
    once = tables.render(text, ["models"], None)
    assert once == "before\n<!-- models -->\nfresh\n<!-- /models -->\nafter"
    assert tables.render(once, ["models"], None) == once


def test_check_tells_a_stale_page_and_writing_mends_it(script, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "PAGES", {"docs/switches.md": ["switches"]})
    (tmp_path / "docs").mkdir()
    page = Path(shutil.copy(ROOT / "docs" / "switches.md", tmp_path / "docs"))
    assert script(tables.main)[0] == 0
    fresh = page.read_text("utf-8")
    assert "`LEARNING_RATE`" in fresh and script(tables.main, "--check") == (0, [], [])
    page.write_text(fresh.replace("LEARNING_RATE", "OLD_RATE"), "utf-8")
    assert script(tables.main, "--check") == (1, [], [f"{page} is stale"])
    assert "OLD_RATE" in page.read_text("utf-8")
    assert script(tables.main) == (0, [f"wrote {page}"], []) and page.read_text("utf-8") == fresh


def test_expected_output_is_what_training_prints(script, folder, tmp_path):
    code, out, _ = script(
        main_train.main, "--LAYER_SIZES=784,10", "--VAL_EXAMPLES=200", "--MAX_EPOCHS=1",
        "--BATCH_SIZE=32", f"--CACHE_DIR={CACHE}", f"--DATA_DIR={folder}",
        *(f"--{name}={tmp_path / name}" for name in training.FOLDERS))
    path = tmp_path / "RESULTS_DIR" / "train.json"
    text = tables.expected_output({"train": results.read_result(path)}.get)
    text = text.replace("weights/", f"{tmp_path / 'WEIGHTS_DIR'}/")
    end = next(i for i, line in enumerate(out) if line.startswith("capped"))
    assert code == 0 and text.splitlines()[1:-1] == out[end:end + 4]


def test_contenders_take_turns_after_a_first_call_each():
    calls = []
    times = timing.in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 2, 3)
    assert "".join(calls) == "ab" + 2 * "aaabbb"
    assert [len(times[name]) for name in "ab"] == [2, 2]


@pytest.mark.parametrize("compute, tolerance", [("float32", 1e-4), ("bfloat16", 5e-2)])
@pytest.mark.parametrize("sizes", [(6, 3), (6, 5, 4, 3)])
def test_floor_epoch_computes_every_layers_update(sizes, compute, tolerance):
    """Two steps against the same products in float64, in the order of the chain rule."""
    hyper = config.hyper(config.load([]), LAYER_SIZES=sizes, BATCH_SIZE=7, QAT_ENABLE=False,
                         COMPUTE=compute)
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
    for ours, want, (initial, _) in zip(epoch(), weights, training.float_params(hyper), strict=True):
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
        results.write_result(f"{given['RESULTS_DIR']}/train.json", {}, row=row,
                             seconds={"data": 1.0}, wall_seconds=2.0, peak_memory_bytes=3)
        return subprocess.CompletedProcess(command, 0, "", "")
    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_whole_runs_use_the_given_switches_and_folders_of_their_own(fake_training):
    runs = training.whole_runs(["recipes/fast.toml", "--WEIGHT_BITS=4", "--RESULTS_DIR=mine"],
                               range(5, 7))
    assert [run["seed"] for run in runs] == [5, 6] and runs[0]["epoch_count"] == 4
    for command, given in fake_training:
        assert "recipes/fast.toml" in command and given["WEIGHT_BITS"] == "4"
        assert given["CACHE_DIR"] == ""
        places = {given[name] for name in training.FOLDERS}
        assert len(places) == 4 and not any(ROOT.is_relative_to(p) or p == "mine" for p in places)


def test_cached_runs_share_a_cache_that_one_more_run_fills(fake_training):
    assert len(training.whole_runs([], range(2), cached=True)) == 2
    caches = [given["CACHE_DIR"] for _, given in fake_training]
    assert len(caches) == 3 and len(set(caches)) == 1 and caches[0]


def test_a_failed_run_is_an_input_error_with_its_reason(fake_training):
    with pytest.raises(InputError, match="bad luck") as caught:
        training.whole_run([], 13)
    assert len(str(caught.value).splitlines()) == 1


def test_a_point_of_the_scaling_study_changes_its_axis_alone():
    settings = config.load(["--LAYER_SIZES=100,7,5,3", "--BATCH_SIZE=32"])
    assert scaling.changes(settings) == {"BATCH_SIZE": 32, "LAYER_SIZES": (100, 7, 5, 3)}
    assert scaling.changes(settings, batch=64)["BATCH_SIZE"] == 64
    assert scaling.changes(settings, width=64)["LAYER_SIZES"] == (100, 64, 32, 3)
