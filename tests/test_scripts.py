"""main_train.py and main_inference.py as their user runs them."""
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

import main_inference
import main_train
from conftest import CACHE, ROOT, write_folder

TINY = ["--LAYERS=16", "--VAL_EXAMPLES=200", "--MAX_EPOCHS=1", "--BATCH_SIZE=32", "--ADAPT=False",
        f"--CACHE_DIR={CACHE}"]


def places(folder, tmp_path):
    """Switches that keep a script inside tmp_path, on the small dataset."""
    return [f"--DATA_DIR={folder}", f"--RUNS_DIR={tmp_path / 'runs'}",
            *(f"--{name}_DIR={tmp_path}" for name in ("WEIGHTS", "RESULTS", "PLOTS"))]


def accuracy_in(lines):
    """The test accuracy printed, in percent, as text."""
    return re.search(r"test accuracy +([\d.]+) %", "\n".join(lines))[1]


@pytest.fixture(scope="module")
def shell(folder, tmp_path_factory):
    """Both scripts run once from another folder, in processes of their own."""
    tmp_path = tmp_path_factory.mktemp("shell")
    outputs = []
    for name in ("main_train.py", "main_inference.py"):
        command = [sys.executable, "-W", "error", ROOT / name, *TINY, *places(folder, tmp_path)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.splitlines())
    return SimpleNamespace(path=tmp_path, train=outputs[0], inference=outputs[1])


def test_inference_gives_the_accuracy_that_training_printed(shell):
    assert accuracy_in(shell.train) == accuracy_in(shell.inference)
    assert any("(+0 from training)" in line for line in shell.train)


def test_training_writes_its_weights_and_result_and_nothing_else(shell):
    assert sorted(path.name for path in shell.path.iterdir()) == [
        "runs", "train.json", "weights_int8.npz"]
    run = (shell.path / "runs" / "latest").resolve()
    assert sorted(path.name for path in (shell.path / "runs").iterdir()) == [
        "confusion.png", "inference.json", "latest", run.name]
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock", "history0.csv", "train.json", "weights_int8.npz"]
    for name in ("train.json", "weights_int8.npz"):
        assert (run / name).read_bytes() == (shell.path / name).read_bytes()
    size = (shell.path / "weights_int8.npz").stat().st_size
    assert any(f"weights_int8.npz ({size:,} bytes)" in line for line in shell.train)
    train, inference = (json.loads((shell.path / name).read_text())
                        for name in ("train.json", "runs/inference.json"))
    (row,), (tested,) = train["rows"], inference["rows"]
    assert train["config"]["LAYERS"] == inference["config"]["LAYERS"] == "16"
    assert {"cpu", "python", "jax", "numpy"} <= set(train["environment"])
    assert row["reload_change"] == 0 and row["status"] == "capped"
    for key in ("test_acc", "test_loss", "file_bytes"):
        assert row[key] == tested[key]
    assert row["file_bytes"] == size and train["dataset"] == inference["dataset"]
    assert inference["trained_on"].items() <= inference["dataset"].items()


def test_training_prints_its_last_epoch_under_a_header(shell):
    header, epoch = (line for line in shell.train if re.match(r"epoch|    1 ", line))
    assert header.split()[:2] == ["epoch", "train"] and len(epoch.split()) == 6


@pytest.mark.parametrize("switches, name, kind", [
    (["--QAT_ENABLE=False"], "weights_unquantized_int8.npz", "float32"),
    (["--WEIGHT_BITS=2", "--ACTIVATION_BITS=4"], "weights_int2.npz", "W2A4 integer-only")])
@pytest.mark.slow
def test_other_kinds_of_weights_come_back_the_same(tmp_path, folder, script, switches, name, kind):
    arguments = [*TINY, *switches, *places(folder, tmp_path)]
    code, trained, errors = script(main_train.main, *arguments)
    assert code == 0, errors
    assert (tmp_path / name).exists() and any("(+0 from training)" in line for line in trained)
    for more in ([], [f"--WEIGHTS={tmp_path / name}", "--WEIGHT_BITS=8", "--ENGINE=numpy"]):
        code, lines, errors = script(main_inference.main, *arguments, *more)
        assert code == 0, errors
        assert kind in lines[0] and accuracy_in(lines) == accuracy_in(trained)


@pytest.mark.slow
def test_image_files_are_classified(shell, mnist, tmp_path, script):
    files = []
    for i, image in enumerate(mnist.test.images[:3]):
        files.append(tmp_path / f"digit {i}.png")
        Image.fromarray(255 - image.reshape(28, 28)).resize((140, 140)).save(files[-1])
    code, lines, errors = script(main_inference.main, *files, "--CACHE_DIR=",
                                 f"--WEIGHTS={shell.path / 'weights_int8.npz'}")
    assert code == 0, errors
    assert len(lines) == 3 and max(map(len, lines)) <= 80
    code, detailed, errors = script(main_inference.main, *files, "--CACHE_DIR=", "--SCORES=True",
                                    f"--WEIGHTS={shell.path / 'weights_int8.npz'}")
    assert code == 0 and len(detailed) == 9 and max(map(len, detailed)) <= 80
    for i, (file, line) in enumerate(zip(files, lines)):
        name, best, share, next_best, next_share = re.fullmatch(
            r"…?(.+?)  (\d) +([\d.]+) %, then (\d) +([\d.]+) %", line).groups()
        assert str(file).endswith(name) and line == detailed[3 * i]
        assert detailed[3 * i + 1].split() == list("0123456789")
        shares = detailed[3 * i + 2].replace("%", " ").split()
        assert sum(map(float, shares)) == pytest.approx(100, abs=0.6)
        assert (shares[int(best)], shares[int(next_best)]) == (share, next_share)
        assert sorted(map(float, shares))[-2:] == [float(next_share), float(share)]


def test_unreadable_file_among_several_is_named_and_the_others_answer(tmp_path, script):
    for name in ("a.png", "b.png"):
        Image.new("L", (30, 30), 255).save(tmp_path / name)
    write(tmp_path / "bad.png", b"text")
    code, lines, errors = script(main_inference.main, tmp_path / "a.png", tmp_path / "bad.png",
                                 tmp_path / "none.png", tmp_path / "b.png", "--ENGINE=numpy",
                                 f"--WEIGHTS={ROOT / 'weights' / 'weights_int8.npz'}")
    assert code == 2 and len(lines) == len(errors) == 2
    assert all(line.endswith("doubtful: no ink") and len(line) <= 80 for line in lines)
    assert "bad.png" in errors[0] and "none.png" in errors[1]


@pytest.mark.slow
def test_scripts_find_their_folders_from_anywhere(tmp_path):
    """The shipped weights and data."""
    done = subprocess.run([sys.executable, "-B", ROOT / "main_inference.py", "--ENGINE=numpy",
                           f"--RUNS_DIR={tmp_path / 'runs'}"], cwd="/", capture_output=True,
                          text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(ROOT / "weights" / "weights_int8.npz") in done.stdout
    assert "MNIST, 10,000 test examples" in done.stdout


@pytest.mark.slow
def test_reader_that_leaves_ends_a_script_quietly(tmp_path):
    image = tmp_path / "a.png"
    Image.new("L", (30, 30), 255).save(image)
    command = [sys.executable, "-B", ROOT / "main_inference.py", "--ENGINE=numpy", image]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as script:
        script.stdout.close()
        assert script.stderr.read() == b"" and script.wait() == 1


def in_a_file(tmp_path):
    """A folder that nobody can make, root included: its parent is a regular file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "folder"


def write(path, content):
    path.write_bytes(content)
    return path


BAD_TRAINING = {
    "unknown switch": lambda path: "--LEARNING_RAT=0.1",
    "wrong type": lambda path: "--SEED=one",
    "out of range": lambda path: "--WEIGHT_BITS=9",
    "no value": lambda path: "--SEED",
    "unknown argument": lambda path: "train",
    "missing recipe": lambda path: path / "none.toml",
    "malformed recipe": lambda path: write(path / "bad.toml", b"SEED = = 1"),
    "unwritable weights": lambda path: f"--WEIGHTS_DIR={in_a_file(path)}",
    "unwritable results": lambda path: f"--RESULTS_DIR={in_a_file(path)}",
    "unwritable runs": lambda path: f"--RUNS_DIR={in_a_file(path)}",
    "missing data": lambda path: f"--DATA_DIR={path / 'none'}",
    "batch larger than data": lambda path: "--BATCH_SIZE=801",
    "network that does not fit": lambda path: "--LAYERS=crop30 16",
    "free scales": lambda path: "--POWER_OF_TWO_SCALES=False",
}


def assert_refused(result):
    """Exit code 2, nothing but one line on stderr, and that line is ours."""
    code, _, errors = result
    assert code == 2 and len(errors) == 1 and errors[0].startswith("error: "), result


@pytest.mark.parametrize("argument", BAD_TRAINING.values(), ids=BAD_TRAINING)
def test_bad_training_input_gives_one_line(tmp_path, folder, script, argument):
    usual = [*TINY, *places(folder, tmp_path)]
    assert_refused(script(main_train.main, *usual, argument(tmp_path)))
    assert not list(tmp_path.glob("weights*.npz"))


@pytest.mark.slow
def test_diverging_training_saves_nothing(tmp_path, folder, script):
    old = write(tmp_path / "weights_unquantized_int8.npz", b"old")
    result = script(main_train.main, *TINY, *places(folder, tmp_path), "--QAT_ENABLE=False",
                    "--LEARNING_RATE=1000")
    assert_refused(result)
    assert "LEARNING_RATE = 1000" in result[2][0] and old.read_bytes() == b"old"


BAD_INFERENCE = {
    "missing weights": lambda path: f"--WEIGHTS={path / 'none.npz'}",
    "damaged weights": lambda path: f"--WEIGHTS={write(path / 'bad.npz', b'PK')}",
    "weights are a folder": lambda path: f"--WEIGHTS={path}",
    "unknown switch": lambda path: "--WEIGHT=x",
    "missing recipe": lambda path: path / "none.toml",
    "missing image": lambda path: path / "none.png",
    "text as image": lambda path: write(path / "text.png", b"text"),
    "missing data": lambda path: f"--DATA_DIR={path / 'none'}",
}


@pytest.mark.parametrize("engine", ["jax", "numpy"])
@pytest.mark.parametrize("argument", BAD_INFERENCE.values(), ids=BAD_INFERENCE)
def test_bad_inference_input_gives_one_line(shell, tmp_path, folder, script, argument, engine):
    usual = [f"--WEIGHTS={shell.path / 'weights_int8.npz'}", f"--DATA_DIR={folder}", "--CACHE_DIR=",
             f"--RUNS_DIR={tmp_path}", f"--ENGINE={engine}"]
    assert_refused(script(main_inference.main, *usual, argument(tmp_path)))


@pytest.mark.slow
def test_an_answer_that_cannot_be_recorded_is_an_answer(shell, tmp_path, folder, script):
    """As on a read-only checkout."""
    code, lines, errors = script(
        main_inference.main, f"--WEIGHTS={shell.path / 'weights_int8.npz'}", "--ENGINE=numpy",
        f"--DATA_DIR={folder}", f"--RUNS_DIR={in_a_file(tmp_path)}")
    assert code == 0 and accuracy_in(lines) == accuracy_in(shell.inference)
    line, = errors
    assert line.startswith("note: can't write")


def test_bad_input_exits_with_2_in_a_shell(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "main_inference.py", "--WEIGHT_BITS=9"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert_refused((done.returncode, done.stdout, done.stderr.splitlines()))
    assert "WEIGHT_BITS = 9" in done.stderr and "1..8" in done.stderr and done.stdout == ""


@pytest.mark.parametrize("main", [main_train.main, main_inference.main])
def test_help_names_the_script_and_every_switch(script, main):
    code, lines, errors = script(main, "--help")
    assert (code, errors) == (0, [])
    assert "python3 main_" in "\n".join(lines) and "  --WEIGHT_BITS=8" in lines


def test_weights_file_is_readable_by_others(shell):
    assert os.stat(shell.path / "weights_int8.npz").st_mode & 0o777 == 0o644


@pytest.mark.slow
def test_a_worse_run_stays_in_its_folder_and_is_the_one_that_inference_takes(tmp_path, folder,
                                                                             script):
    usual = places(folder, tmp_path)
    _, first, _ = script(main_train.main, *TINY, "--MAX_EPOCHS=2", *usual)
    better = (tmp_path / "weights_int8.npz").read_bytes()
    code, lines, errors = script(main_train.main, *TINY, "--LEARNING_RATE=0.02", *usual)
    assert code == 0, errors
    assert any("stays" in line and "weights_int8.npz" in line for line in lines)
    assert (tmp_path / "weights_int8.npz").read_bytes() == better
    assert json.loads((tmp_path / "train.json").read_text())["rows"][0]["epochs"] == 2
    assert (tmp_path / "runs" / "latest" / "weights_int8.npz").read_bytes() != better
    _, tested, _ = script(main_inference.main, *TINY, "--LEARNING_RATE=0.02", *usual)
    assert accuracy_in(tested) == accuracy_in(lines)


@pytest.mark.slow
def test_the_same_run_again_changes_no_file_of_the_reference(tmp_path, folder, script):
    usual = [*TINY, *places(folder, tmp_path)]
    script(main_train.main, *usual)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    script(main_train.main, *usual)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before
    (tmp_path / "train.json").unlink()          # as a run leaves it that died before its result
    script(main_train.main, *usual)
    assert sorted(path.name for path in tmp_path.glob("*.*")) == sorted(p.name for p in before)


@pytest.mark.slow
def test_a_model_of_other_data_is_named(tmp_path, folder, script, mnist):
    usual = places(folder, tmp_path)
    script(main_train.main, *TINY, *usual)
    other = tmp_path / "other"
    other.mkdir()
    write_folder(other, *(type(split)(split.images[50:150], split.labels[50:150])
                          for split in (mnist.train, mnist.test)))
    _, same, _ = script(main_inference.main, *TINY, *usual)
    elsewhere = [*TINY, *usual, f"--DATA_DIR={other}"]
    assert_refused(script(main_inference.main, *elsewhere))     # no model of these data
    _, lines, _ = script(main_inference.main, *elsewhere,
                         f"--WEIGHTS={tmp_path / 'weights_int8.npz'}")
    assert not any("note:" in line for line in same)
    assert f"note: this model was trained on {folder.name}, not on other" in lines


def test_a_network_of_more_classes_than_the_data_may_answer_any(tmp_path, mnist, script):
    """Ten rows of the confusion matrix, of which some have no example."""
    few = [split.labels[:300] < 5 for split in (mnist.train, mnist.test)]
    write_folder(tmp_path, *(type(split)(split.images[:300][of], split.labels[:300][of])
                             for split, of in zip((mnist.train, mnist.test), few)))
    code, out, errors = script(main_inference.main, f"--DATA_DIR={tmp_path}", "--ENGINE=numpy",
                               f"--WEIGHTS={ROOT / 'weights/recipes/smallest98.nqat'}",
                               f"--RUNS_DIR={tmp_path / 'runs'}")
    assert (code, errors) == (0, [])
    assert (tmp_path / "runs" / "inference.json").exists()


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "no/such.png", "a\0b.png"])
def test_a_path_that_cannot_be_is_one_line_and_the_others_are_answered(tmp_path, script, name):
    Image.new("L", (28, 28), 255).save(tmp_path / "blank.png")
    code, out, errors = script(main_inference.main, tmp_path / "blank.png", name,
                               f"--WEIGHTS={ROOT / 'weights/recipes/smallest98.nqat'}",
                               "--ENGINE=numpy")
    assert code == 2 and len(errors) == 1 and len(out) == 1
