"""results: JSON that says where it came from, hostile results, tables and filled blocks."""
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT
from machine import facts
from machine.files import InputError
from report import results


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(content, settings, argv) -> what json reads back from the file."""
    def call(content=None, settings=None, argv=("main_train.py",)):
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        results.write_result(tmp_path / "a.json", settings or {}, **{"rows": [], **(content or {})})
        return json.loads((tmp_path / "a.json").read_text("utf-8"))
    return call


def test_result_has_its_content_switches_and_environment(write, tmp_path, capsys):
    content = {"rows": [{"seed": 0, "val_loss": 0.1 + 0.2}], "best": None, "text": "é"}
    stored = write(content, {"LAYER_SIZES": (784, 10), "SEED": 3})
    assert capsys.readouterr().out == f"wrote {tmp_path / 'a.json'}\n"
    assert stored.pop("config") == {"LAYER_SIZES": [784, 10], "SEED": 3}
    assert stored.pop("command") == "python3 main_train.py"
    assert stored.pop("environment") == json.loads(json.dumps(facts.environment()))
    assert stored == content                    # floats keep every bit
    assert results.read_result(tmp_path / "a.json")["rows"] == content["rows"]


def test_environment_names_machine_and_versions():
    environment = facts.environment()
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["numpy"] == np.__version__ and environment["cores"] >= 1
    assert {"cpu", "platform", "jax", "jaxlib", "optax"} <= set(environment)


PEAK = """
import sys
sys.path.insert(0, sys.argv[1])
from machine import facts
before = facts.peak_memory()
block = bytearray(b"1") * 100_000_000
del block
print(before or 0, facts.peak_memory() or 0)
"""


def test_peak_memory_remembers_what_was_freed():
    done = subprocess.run([sys.executable, "-B", "-c", PEAK, str(ROOT)], capture_output=True,
                          text=True, check=True)
    before, after = map(int, done.stdout.split())
    if not before:
        pytest.skip("this system does not say its peak memory")
    assert 95e6 < after - before < 130e6        # the block, and a little around it


def test_values_that_json_cannot_say_become_null_or_lists(write):
    stored = write({"a": math.nan, "b": [(1.5, -math.inf)], "c": {"d": np.float32("inf")},
                    "e": np.arange(3, dtype=np.int8), "f": np.float64("nan"), "g": np.bool_(True)},
                   {"RATE": math.inf})
    assert [stored[key] for key in "abcefg"] == [
        None, [[1.5, None]], {"d": None}, [0, 1, 2], None, True]
    assert stored["config"] == {"RATE": None}


@pytest.mark.parametrize("argv, command", [
    (["ablation.py", "lr", "--ABLATION_SEEDS=3"], "python3 ablation.py lr --ABLATION_SEEDS=3"),
    (["elsewhere/main_train.py", "recipes/fast.toml"], "python3 main_train.py recipes/fast.toml"),
    ([ROOT / "ablation.py", "lr"], "python3 ablation.py lr"),
    ([ROOT / "benchmarks" / "training.py", "--SEED=1"], "python3 -m benchmarks.training --SEED=1"),
    (["main_train.py", "--WEIGHTS_DIR=/a", "--DATA_DIR=b", "--CACHE_DIR=", "--SEED=2"],
     "python3 main_train.py --DATA_DIR=b --SEED=2"),    # another data set is another result
    (["main_train.py", "--LAYER_SIZES=(784, 10)", "a b.toml"],
     "python3 main_train.py '--LAYER_SIZES=(784, 10)' 'a b.toml'")])
def test_command_regenerates_the_result_on_any_machine(write, tmp_path, monkeypatch, argv, command):
    monkeypatch.chdir(tmp_path)
    assert write(argv=argv)["command"] == command


def test_result_that_cannot_be_written_gives_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't write"):
        results.write_result(tmp_path / "file" / "a.json", {}, [])


BAD = {"missing": None, "empty": b"", "text": b"not json", "half": b'{"a": [1, 2',
       "without rows": b'{"row": {}}', "rows that are none": b'{"rows": 3}',
       "not UTF-8": b'{"a": "\xff"}', "list": b"[1]", "number": b"3", "null": b"null",
       "nested": b"[" * 100_000, "nested and closed": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
       "long integer": b'{"a": ' + b"9" * 10_000 + b"}", "too large": b" " * 64_000_001}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_bad_result_gives_one_line_that_says_what_to_do(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        results.read_result(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert "run its study" in str(caught.value)


def test_committed_results_can_be_read():
    paths = sorted((ROOT / "results").glob("*.json"))
    assert paths
    for path in paths:
        result = results.read_result(path)
        assert {"config", "environment"} <= set(result)
        assert all(type(row) is dict and row["label"] for row in result["rows"])


def test_rows_are_grouped_by_a_field_or_a_switch_in_their_order():
    rows = [{"label": label, "changes": {"WEIGHT_BITS": bits}} for label, bits in (
        ("b", 8), ("a", 2), ("b", 2))] + [{"label": "c"}]
    assert results.group(rows, "label") == {"b": [rows[0], rows[2]], "a": [rows[1]], "c": [rows[3]]}
    assert list(results.group(rows, "label")) == ["b", "a", "c"]
    assert results.group(rows, "WEIGHT_BITS") == {8: rows[:1], 2: rows[1:3], None: rows[3:]}


def test_table_aligns_the_first_column_left_and_others_right():
    assert results.table(["a", "b", "c"], [["x", 1, "2 ± 1"], ["y", "", None]]) == (
        "| a | b | c |\n|---|---:|---:|\n| x | 1 | 2 ± 1 |\n| y |  | None |")
    assert results.table(["a"], []) == "| a |\n|---|"


def test_filling_replaces_a_block_and_nothing_else():
    text = ("before `<!-- a -->`\n<!-- a -->\nstale\nlines\n<!-- /a -->\nbetween\n<!-- b -->\n"
            "<!-- /b -->\n<!-- c -->\nkept\n<!-- /c -->")
    once = results.fill(text, {"a": r"fresh \1", "b": "new\nlines", "none": "x"})
    assert once == ("before `<!-- a -->`\n<!-- a -->\nfresh \\1\n<!-- /a -->\nbetween\n<!-- b -->\n"
                    "new\nlines\n<!-- /b -->\n<!-- c -->\nkept\n<!-- /c -->")
    assert results.fill(once, {"a": r"fresh \1", "b": "new\nlines"}) == once


@pytest.mark.slow
def test_a_study_of_750_seeds_3_rates_and_70_epochs_can_be_read(tmp_path, monkeypatch):
    """And so can a longer one, without its epochs, which lie in the run's history files."""
    metrics = {name: [0.123456789] * 70 for name in ("train_loss", "val_loss", "val_acc")}
    rows = [{"label": "0.1", "changes": {}, "seed": seed, "history": metrics}
            for seed in range(2_250)]
    results.write_result(tmp_path / "a.json", {}, rows)
    assert (tmp_path / "a.json").stat().st_size > 8_000_000
    assert results.read_result(tmp_path / "a.json")["rows"] == rows
    monkeypatch.setattr(results, "MAX_BYTES", 1_000_000)
    results.write_result(tmp_path / "b.json", {}, rows)
    without = [{key: row[key] for key in ("label", "changes", "seed")} for row in rows]
    assert results.read_result(tmp_path / "b.json")["rows"] == without
    results.copy(tmp_path / "b.json", tmp_path / "there")
    monkeypatch.setattr(results, "MAX_BYTES", 100_000)
    with pytest.raises(InputError, match="more than 100,000"):
        results.write_result(tmp_path / "c.json", {}, rows)
    assert not (tmp_path / "c.json").exists()
