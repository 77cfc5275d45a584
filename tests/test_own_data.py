"""Own data from the file to the answer: a table, windows and pictures, in every engine, by name."""
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from test_resume import Crash

import config
import data
import integer
import main_export
import main_inference
import main_train
import oracle
from conftest import CACHE
from deploy import engines, to_c, to_firmware, to_onnx
from formats import checkpoint, encode
from machine.files import InputError
from runner import adapt, experiment, keep, source, state

QUICK = ("--MAX_EPOCHS=40", "--COMPUTE=float32", f"--CACHE_DIR={CACHE}")


def folders(tmp_path):
    """Switches that keep a run's files in a folder of the test."""
    return [f"--{name}_DIR={tmp_path / name.lower()}" for name in ("RUNS", "WEIGHTS", "RESULTS",
                                                                   "PLOTS")]


def write_table(path, rng, count=90):
    """Three classes that two of four features tell apart, on unlike scales; returns the rows."""
    y = rng.integers(0, 3, count)
    x = rng.normal(0, 0.3, (count, 4)) + np.stack([y, -y, 0 * y, 0 * y], 1)
    x = x * [1, 1e-3, 1e4, 1] + [0, 5, -3e5, 0]
    names = np.array(["left", "middle", "right"])[y]
    rows = [",".join([*(repr(float(v)) for v in row), name]) for row, name in zip(x, names)]
    path.write_text("a,b,c,d,class\n" + "\n".join(rows) + "\n", "utf-8")
    return x, names


@pytest.mark.slow
def test_a_table_is_trained_answered_by_name_and_exported(rng, tmp_path, script, monkeypatch):
    """The whole way of a person with a table: two commands, then C that says RIGHT."""
    write_table(tmp_path / "t.csv", rng)
    switches = [f"--DATA_DIR={tmp_path / 't.csv'}", "--LAYERS=32", *QUICK, "--MAX_EPOCHS=100",
                *folders(tmp_path)]
    code, out, err = script(main_train.main, *switches)
    text = "\n".join(out)
    assert code == 0, err
    assert "no test split: 18 examples" in text and "few: OPTIMIZER = adamw" in text
    assert "once more for 100 epochs, on all 72 examples" in text
    assert re.search(r"saved model: loss [+-]0 from training, test accuracy", text)
    (tmp_path / "new.csv").write_text("a,b,c,d\n2,4.998,-3e5,0\n0,5,-3e5,0\n")
    code, out, err = script(main_inference.main, tmp_path / "new.csv", *switches)
    assert code == 0, err
    dataset, weights = data.load(tmp_path / "t.csv"), next(tmp_path.glob("runs/train-*/*.npz"))
    network, facts = checkpoint.load(weights)
    rows = encode.encode(np.float32([[2, 4.998, -3e5, 0], [0, 5, -3e5, 0]]), dataset.encoding)
    best = oracle.run(network, rows).argmax(1)
    assert [re.search(r"line (\d) +(\w+)", line).groups() for line in out] == [
        ("2", facts.classes[best[0]]), ("3", facts.classes[best[1]])]
    code, out, err = script(main_inference.main, *switches)
    assert code == 0, err
    assert any(line.startswith("middle") for line in out)       # a row of the confusion matrix
    monkeypatch.setattr(main_export, "OUT", tmp_path / "out")
    code, out, err = script(main_export.main, "c", *switches)
    assert code == 0, err
    compiler = find_gcc()
    flags = "-std=c99 -Wall -Wextra -Wpedantic -Wconversion -Werror".split()
    subprocess.run([compiler, *flags, "mlp.c", "example.c", "-o", "example"],
                   cwd=tmp_path / "out", check=True)
    done = subprocess.run(["./example"], cwd=tmp_path / "out", capture_output=True, text=True)
    assert done.returncode == 0 and re.fullmatch(r"(left|middle|right): RIGHT\n", done.stdout)
    code, out, err = script(main_export.main, "web", *switches)
    assert code == 0 and "paste numbers" in out[-1], err
    code, out, err = script(main_export.main, "firmware", *switches)
    assert code == 0, err
    for chip in to_firmware.CHIPS:
        assert re.fullmatch(r"(left|middle|right): RIGHT", run_example(tmp_path / "out", chip))


def run_example(folder, chip):
    """What a chip's test vector prints in the emulator, by the commands of its README."""
    has, folder = to_firmware.CHIPS[chip], folder / "firmware" / chip
    for tool in (f"{has.tools}gcc", has.emulator.split()[0], "make"):
        if not shutil.which(tool):
            pytest.skip(f"no {tool}")
    subprocess.run(["make", "-s", "-C", folder, "example.elf"], check=True, capture_output=True)
    text = (folder / "README.md").read_text()
    command = text.split("In an emulator:\n")[1].split("On a board")[0].replace("\\\n", " ")
    with subprocess.Popen(command.split(), cwd=folder, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as process:
        try:
            while line := process.stdout.readline():        # QEMU warns of what it does not model
                if "RIGHT" in line or "WRONG" in line:
                    return line.strip()
        finally:
            process.kill()                      # an AVR never ends


def find_gcc():
    """The compiler, or a skip with its reason."""
    try:
        return engines.find_compiler()
    except engines.Missing as error:
        pytest.skip(str(error))


def trained(path, tmp_path, *switches):
    """(network, Facts, Dataset) of a data set, trained briefly."""
    settings = config.load([f"--DATA_DIR={path}", *QUICK, *folders(tmp_path), *switches])
    settings = experiment.decide(settings)
    found = source.load_data(settings)
    (outcome,), _, _ = experiment.run(source.suit(settings, (), found), "own", [{}], found)
    assert outcome.row["reload_change"] == 0
    dataset = keep.read_data(settings)
    return *checkpoint.decode(outcome.content), dataset, found


@pytest.mark.parametrize("kind", ["table", "windows", "pictures"])
@pytest.mark.slow
def test_engines_agree_on_own_data(rng, tmp_path, kind):
    """NumPy, JAX, C and ONNX give the oracle's integers; training's loss is theirs."""
    path, switches = tmp_path / "t.csv", ["--LAYERS=7"]
    if kind == "table":
        write_table(path, rng)
    elif kind == "windows":
        path, y = tmp_path / "w.npz", np.arange(60) % 2
        waves = np.sin(np.arange(20)[None, :, None] * (0.2 + 0.3 * y)[:, None, None])
        np.savez(path, x=np.float32(waves + rng.normal(0, 0.2, (60, 20, 3))), y=y)
    else:
        path = tmp_path / "pictures"
        for i in range(40):
            folder = path / ("red", "blue")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 80, (6, 5, 3), dtype=np.uint8)
            pixels[..., 2 * (i % 2)] += 120
            Image.fromarray(pixels).save(folder / f"{i}.png")
    network, facts, dataset, _ = trained(path, tmp_path, *switches)
    assert facts.classes == dataset.classes and (facts.low is None) == (kind == "pictures")
    images = dataset.test.images
    expected = oracle.run(network, images)
    for engine in ("numpy", "jax"):
        np.testing.assert_array_equal(integer.make_engine(network, engine)(images), expected)
    np.testing.assert_array_equal(engines.make_onnx(to_onnx.export(network))(images), expected)
    if dataset.sample is not None:
        with_features = to_onnx.export(network, encode.Encoding(facts.low, facts.exponent))
        found = engines.make_onnx(with_features)(dataset.sample.reshape(1, -1))
        np.testing.assert_array_equal(found, expected[:1])
    find_gcc()
    files = to_c.export(network, facts, images[0], dataset.sample)[0]
    np.testing.assert_array_equal(engines.make_c(files)(images), expected)
    assert all(f'"{name}"' in files["mlp_weights.h"] for name in facts.classes)


@pytest.mark.slow
def test_convolutions_train_on_windows_and_reload_exactly(rng, tmp_path):
    """A map with an axis of 1, centred channels, folded into the first bias."""
    path, y = tmp_path / "w.npz", np.arange(60) % 2
    waves = np.sin(np.arange(20)[None, :, None] * (0.2 + 0.3 * y)[:, None, None])
    np.savez(path, x=np.float32(5 + waves + rng.normal(0, 0.2, (60, 20, 3))), y=y)
    network, facts, dataset, found = trained(path, tmp_path, "--LAYERS=conv5x4/2 max2")
    assert found.zero is not None and len(facts.low) == 3
    np.testing.assert_array_equal(integer.make_engine(network)(dataset.test.images),
                                  oracle.run(network, dataset.test.images))


@pytest.mark.slow
def test_facts_of_features_survive_both_files(rng, tmp_path):
    write_table(tmp_path / "t.csv", rng)
    network, facts, *_ = trained(tmp_path / "t.csv", tmp_path, "--LAYERS=7")
    for form in ("npz", "nqat"):
        _, again = checkpoint.decode(checkpoint.encode(network, facts, form))
        np.testing.assert_array_equal(again.low, facts.low)
        np.testing.assert_array_equal(again.exponent, facts.exponent)
        assert again.classes == ("left", "middle", "right")


def test_what_is_given_stays_and_large_data_keep_the_defaults():
    settings = config.load([])
    assert adapt.adapt(settings, (), 10_000) == (settings, "")
    assert adapt.adapt(config.load(["--ADAPT=False"]), (), 50)[0].OPTIMIZER == settings.OPTIMIZER
    given = config.load(["--OPTIMIZER=sgd", "--BATCH_SIZE=64"])
    changed, line = adapt.adapt(given, config.given(["--OPTIMIZER=sgd", "--BATCH_SIZE=64"]), 50)
    assert (changed.OPTIMIZER, changed.BATCH_SIZE) == ("sgd", 50) and "OPTIMIZER" not in line
    assert changed.MAX_EPOCHS == changed.PATIENCE == adapt.EPOCHS


@pytest.mark.parametrize("count, batch", [(5, 5), (100, 8), (255, 8), (256, 16), (9_999, 128)])
def test_an_epoch_of_small_data_has_sixteen_steps_or_more(count, batch):
    assert adapt.adapt(config.load([]), (), count)[0].BATCH_SIZE == batch


def test_codes_of_the_sample_are_the_first_test_example(rng, tmp_path):
    write_table(tmp_path / "t.csv", rng)
    dataset = data.load(tmp_path / "t.csv")
    np.testing.assert_array_equal(encode.encode(dataset.sample, dataset.encoding),
                                  dataset.test.images[0])


def test_data_that_are_named_and_not_there_are_refused(tmp_path, script, monkeypatch):
    """Else the model of other data would answer, or be exported."""
    monkeypatch.setattr(main_export, "OUT", tmp_path / "out")
    (tmp_path / "bad.csv").write_text("a,class\n1,x\n?,y\n")
    for name in ("typo.csv", "bad.csv"):
        given = f"--DATA_DIR={tmp_path / name}"
        for main, words in ((main_export.main, ["c"]), (main_inference.main, ["new.csv"])):
            code, _, errors = script(main, *words, given)
            assert code == 2 and len(errors) == 1 and name in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_was_trained_on_all_examples_is_found_by_its_switches(rng, tmp_path, script):
    """The second pass trains by other switches, and its loss is of examples that it has seen."""
    write_table(tmp_path / "t.csv", rng)
    switches = [f"--DATA_DIR={tmp_path / 't.csv'}", "--LAYERS=16", *QUICK, "--METRIC=val_loss",
                "--WARMUP_EPOCHS=30", "--PATIENCE=2", "--MIN_DELTA=0.2", *folders(tmp_path)]
    code, out, err = script(main_train.main, *switches)
    assert code == 0, err
    loss = re.search(r"best epoch (\d+): val loss ([\d.]+) nats", "\n".join(out))
    assert int(loss[1]) < 30                    # so that the second pass is shorter than a warm-up
    weights = next(tmp_path.glob("runs/train-*/*.npz"))
    _, facts = checkpoint.load(weights)
    assert f"{facts.val_loss:.6f}" == loss[2] and facts.switches["METRIC"] == "val_loss"
    (row,) = json.loads((tmp_path / "results" / "train.json").read_text())["rows"]
    assert row["file_bytes"] == weights.stat().st_size
    code, _, err = script(main_inference.main, *switches)
    assert code == 0, err


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 25])
def test_a_power_cut_in_the_second_pass_loses_neither(rng, tmp_path, script, monkeypatch, epoch):
    write_table(tmp_path / "t.csv", rng)
    switches = [f"--DATA_DIR={tmp_path / 't.csv'}", "--LAYERS=16", *QUICK]
    assert script(main_train.main, *switches, *folders(tmp_path / "whole"))[0] == 0
    record = state.Recorder.record

    def dying(self, sweep, must):
        record(self, sweep, must=True)
        if self.state_path.parent.name == "all" and sweep.epoch == epoch:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(state.Recorder, "record", dying)
        with pytest.raises(Crash):
            main_train.main([*switches, *folders(tmp_path / "cut")])
    code, out, err = script(main_train.main, *switches, *folders(tmp_path / "cut"))
    assert code == 0, err
    text = "\n".join(out)
    assert "going on after epoch 40" in text and f"going on after epoch {epoch}," in text
    whole, cut = (next((tmp_path / name / "weights").glob("*.npz")).read_bytes()
                  for name in ("whole", "cut"))
    assert whole == cut


def test_few_validation_examples_and_several_processes_are_refused(rng, tmp_path):
    """Only the first one would train the second pass, and wait for the others for ever."""
    write_table(tmp_path / "t.csv", rng)
    words = [f"--DATA_DIR={tmp_path / 't.csv'}", "--COORDINATOR=127.0.0.1:1", *QUICK]
    settings = config.load([*words, *folders(tmp_path)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "set_up", experiment.decide)      # no others to wait for
        with pytest.raises(InputError, match="COORDINATOR"):
            main_train.train(settings, config.given(words))
