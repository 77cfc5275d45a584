"""Nothing lost: a run that ends at any moment goes on to the same bits, and says so."""
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_scripts import TINY, assert_refused, places

import ablation
import config
import main_train
import plan
from conftest import ROOT, wait_for_epoch
from machine import files
from machine.files import InputError
from runner import experiment, keep, source, state as runs
from training import loop

SHORT = [*TINY, "--MAX_EPOCHS=5", "--ABLATION_MAX_EPOCHS=5", "--ABLATION_SEEDS=2",
         "--COMPUTE=bfloat16"]
STUDIES = {                     # a single run; lanes that end apart; two groups of lanes
    "train": (main_train.main, []),
    "sweep": (ablation.main, ["lr", "--LR_ABLATION_RATES=1000,0.1,0.001", "--PATIENCE=2",
                              "--SCALES=learned", "--AVERAGING=0.9", "--AUGMENT=0.5",
                              "--LAYERS=crop20 mean2 16"]),
    "groups": (ablation.main, ["quant", "--ABLATION_SEEDS=1"]),
}
TIMES = ("seconds", "wall_seconds", "peak_memory_bytes", "command")


class Crash(Exception):
    """Stands for a power cut between two epochs."""


def arguments(study, folder, path):
    main, words = STUDIES[study]
    head = words[:1] if main is ablation.main else []
    return main, [*head, *SHORT, *places(folder, path), *words[len(head):]]


def written(path):
    """{file: content} of what a run leaves, apart from times; weights as bytes."""
    found = {}
    for file in sorted(Path(path).glob("*.*")):
        if file.suffix == ".npz":
            found[file.name] = file.read_bytes()
        elif file.suffix == ".json":
            result = json.loads(file.read_text())
            config = {key: value for key, value in result.pop("config").items()
                      if not key.endswith("_DIR")}
            found[file.name] = config, {key: value for key, value in result.items()
                                        if key not in TIMES}
    assert found
    return found


@pytest.fixture(autouse=True)
def blank_plots(monkeypatch):
    """Figures take longer to draw than these runs to train; other tests look at them."""
    from matplotlib.figure import Figure

    from report import draw
    monkeypatch.setattr(draw, "FIGURES", {name: lambda result: Figure((1, 1))
                                          for name in draw.FIGURES})


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """undisturbed(study) -> what it writes when nothing happens."""
    known = {}

    def get(study):
        if study not in known:
            path = tmp_path_factory.mktemp(study)
            main, words = arguments(study, folder, path)
            main(words)
            known[study] = written(path)
        return known[study]
    return get


@pytest.mark.parametrize("study, epoch", [("train", 1), ("sweep", 3), ("groups", 3)])
@pytest.mark.slow
def test_a_run_that_dies_after_an_epoch_goes_on_to_the_same_bytes(
        study, epoch, folder, tmp_path, monkeypatch, undisturbed, capsys):
    main, words = arguments(study, folder, tmp_path)
    record = runs.Recorder.record

    def dying(self, sweep, must):
        record(self, sweep, must=True)
        if sweep.epoch == epoch:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(runs.Recorder, "record", dying)
        with pytest.raises(Crash):
            main(words)
    assert not list(tmp_path.glob("*.json")) and not list(tmp_path.glob("*.npz"))
    assert list((tmp_path / "runs").glob("*/state0.npz"))
    capsys.readouterr()
    main(words)
    assert f"going on after epoch {epoch}" in capsys.readouterr().out
    assert written(tmp_path) == undisturbed(study)
    assert not list((tmp_path / "runs").glob("*/state*"))
    run, = (path for path in (tmp_path / "runs").iterdir() if not path.is_symlink())
    for file in run.glob("history*.csv"):
        rows = list(csv.DictReader(file.read_text().splitlines()))
        lanes = {}
        for row in rows:
            lanes.setdefault((row["learning_rate"], row["seed"]), []).append(int(row["epoch"]))
        assert lanes and all(epochs == list(range(1, len(epochs) + 1)) for epochs in lanes.values())


@pytest.mark.slow
def test_a_run_that_dies_before_its_results_does_not_train_again(folder, tmp_path, monkeypatch,
                                                                 undisturbed, capsys):
    main, words = arguments("groups", folder, tmp_path)

    def dying(*_):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "judge", dying)
        with pytest.raises(Crash):
            main(words)
    capsys.readouterr()
    main(words)
    assert not re.search(r"^ +\d+ ", capsys.readouterr().out, re.MULTILINE)     # no epoch's line
    assert written(tmp_path) == undisturbed("groups")


@pytest.fixture
def unfinished(folder, tmp_path, monkeypatch):
    """(words, state file) of a single run that died after its third epoch."""
    _, words = arguments("train", folder, tmp_path)
    record = runs.Recorder.record

    def dying(self, sweep, must):
        record(self, sweep, must=True)
        if sweep.epoch == 3:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(runs.Recorder, "record", dying)
        with pytest.raises(Crash):
            main_train.main(words)
    state, = (tmp_path / "runs").glob("*/state0.npz")
    return words, state


@pytest.mark.slow
def test_other_switches_start_anew_and_leave_the_old_state(unfinished, script):
    words, state = unfinished
    before = state.read_bytes()
    code, lines, errors = script(main_train.main, *words, "--SEED=1")
    assert code == 0, errors
    assert any(str(state.parent) in line and "stays" in line for line in lines)
    assert state.read_bytes() == before


@pytest.mark.slow
def test_resume_can_be_switched_off(unfinished, script, undisturbed, tmp_path):
    words, _ = unfinished
    code, lines, errors = script(main_train.main, *words, "--RESUME=False")
    assert code == 0, errors
    assert not any("going on" in line for line in lines)
    assert written(tmp_path)["weights_int8.npz"] == undisturbed("train")["weights_int8.npz"]


@pytest.mark.parametrize("change", [{"jax": "0.0.1"}, {"devices": 64}])
def test_state_of_another_machine_is_refused_with_the_reason(unfinished, script, monkeypatch,
                                                             change):
    words, state = unfinished
    here = experiment._machine()
    monkeypatch.setattr(experiment, "_machine", lambda: here | change)
    result = script(main_train.main, *words)
    assert_refused(result)
    (key, value), = change.items()
    assert key in result[2][0] and repr(value) in result[2][0] and "--RESUME=False" in result[2][0]
    assert state.exists()


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: b"",
                                    lambda data: data[:200] + bytes(50) + data[250:],
                                    lambda data: b"\x89PNG" * 1000],
                         ids=["half", "empty", "zeros", "other"])
def test_damaged_state_is_refused_in_one_line(unfinished, script, damage):
    words, state = unfinished
    state.write_bytes(damage(state.read_bytes()) or b"?")
    result = script(main_train.main, *words)
    assert_refused(result)
    assert str(state) in result[2][0] and "--RESUME=False" in result[2][0]


def test_a_second_process_with_the_same_switches_is_refused(folder, tmp_path, script):
    words = [*SHORT, *places(folder, tmp_path), "--ADAPT=False"]
    settings = config.load(words)
    data = source.load_data(settings)
    name = runs.folder_name("train", data.sha256, [keep.switches_of(settings)])
    with files.locked(tmp_path / "runs" / name):
        result = script(main_train.main, *words)
    assert_refused(result)
    assert "in use" in result[2][0]


def test_a_state_that_takes_long_to_write_is_written_seldom(tmp_path, monkeypatch):
    """At most MAX_COST of the time goes into saving, whatever a save takes."""
    clock, writes = [0.0], []

    def slow_write(path, content):
        writes.append(clock[0])
        clock[0] += 1.0                         # a save takes a second

    monkeypatch.setattr(runs.time, "monotonic", lambda: clock[0])
    settings = config.load(SHORT)
    steps = plan.parse(settings.LAYERS, (28, 28, 1), 10)
    sweep = loop.start([0.1], [0], config.hyper(settings)._replace(LAYERS=steps))
    with runs.Recorder(tmp_path / "s.npz", tmp_path / "h.csv", sweep, {}) as recorder:
        monkeypatch.setattr(runs, "write_atomically", slow_write)
        for _ in range(300):
            clock[0] += 1.0                     # and so does an epoch
            recorder.record(sweep, must=False)
            recorder.writer.submit(int).result()        # let the writer finish
    assert 300 * 0.02 < len(writes) <= clock[0] * runs.Recorder.MAX_COST + 1


def begin(folder, path, *words):
    """main_train.py in a process of its own, with more epochs than anybody waits for."""
    switches = [*TINY, *places(folder, path), "--MAX_EPOCHS=100000", "--PATIENCE=100000",
                *words]
    return subprocess.Popen([sys.executable, "-B", "main_train.py", *switches], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_a_signal_ends_after_the_epoch_with_the_state_saved(folder, tmp_path, number):
    process = begin(folder, tmp_path)
    wait_for_epoch(process, tmp_path / "runs", 3)
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    first, last = errors.splitlines()
    stopped = int(re.search(r"stopped after epoch (\d+); the same command goes on", last)[1])
    assert "once more ends at once" in first and stopped >= 3
    assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob("*.json"))
    settings = config.load([*TINY, *places(folder, tmp_path), "--MAX_EPOCHS=100000",
                            "--PATIENCE=100000"])
    fresh = loop.start([settings.LEARNING_RATE], [settings.SEED],
                       source.hyper_of(settings, source.load_data(settings)))
    state, = (tmp_path / "runs").glob("*/state0.npz")
    machine = json.loads(str(np.load(state)["meta"]))["machine"]
    sweep = runs.load_state(state, runs.read_state(state, fresh, 100_000), fresh, machine, 100_000)
    assert sweep.epoch == stopped


@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_the_state_before_is_whole(folder, tmp_path):
    process = begin(folder, tmp_path, "--LAYERS=2000")
    wait_for_epoch(process, tmp_path / "runs", 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - start < 5 and process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in errors
    for state in (tmp_path / "runs").glob("*/state0.npz"):
        assert files.read_bytes(state, 2**30)
        np.load(state)["leaf0"]


@pytest.mark.parametrize("delay", [0.3, 1.0])
@pytest.mark.slow
def test_a_signal_before_training_is_one_line(folder, tmp_path, delay):
    process = begin(folder, tmp_path)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)  # the latter before Python has begun
    assert "main_train" not in errors           # no traceback through our code


@pytest.mark.slow
def test_the_same_switches_give_the_same_hash_alone_and_in_a_sweep(folder, tmp_path):
    settings = config.load([*SHORT, *places(folder, tmp_path), "--RESUME=False"])
    data = source.load_data(settings)
    hashes = []
    for points in ([{}], [{}], [{"SEED": 1}, {}, {"LEARNING_RATE": 0.3}]):
        outcomes, _, _ = experiment.run(settings, "train", points, data)
        hashes += [outcome.row["sha256"] for outcome in outcomes if not outcome.row["changes"]]
    assert len(hashes) == 3 and len(set(hashes)) == 1


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_in_mid_run_is_one_line(folder, tmp_path, script,
                                                                monkeypatch):
    def full(*_):
        raise InputError("can't write state0.npz: No space left on device; choose another folder")

    monkeypatch.setattr(runs, "_encode", full)
    result = script(main_train.main, *SHORT, *places(folder, tmp_path))
    assert_refused(result)
    assert "No space left" in result[2][0] and not os.listdir(tmp_path) == []


def edited(tmp_path, monkeypatch, name, old, new):
    """hash_of_code() of a copy of the project in which one file has another text."""
    home = tmp_path / "copy"
    if not home.exists():
        for pattern in runs.CODE:
            for path in ROOT.glob(pattern):
                target = home / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    path = home / name
    source = path.read_text()
    assert old in source
    with monkeypatch.context() as patch:
        patch.setattr(runs, "__file__", str(home / "runner" / "state.py"))
        path.write_text(source.replace(old, new, 1))
        found = runs.hash_of_code.__wrapped__()
        path.write_text(source)
    return found


@pytest.mark.slow
def test_the_hash_of_the_code_is_of_what_it_does(tmp_path, monkeypatch):
    """Not of its comments and docstrings, nor of blank lines."""
    same = runs.hash_of_code()
    for name, old, new in (("quant.py", '"""', '"""Said otherwise. '),
                           ("quant.py", "import jax\n", "import jax  # a comment\n\n\n"),
                           ("training/loop.py", '"""', '"""Said otherwise. ')):
        assert edited(tmp_path, monkeypatch, name, old, new) == same
    others = [edited(tmp_path, monkeypatch, name, old, new) for name, old, new in (
        ("quant.py", "import jax\n", "import jax\nX = 1\n"),
        ("model.py", "import math\n", "import math\nX = 1\n"),
        ("training/loop.py", "def ", "def x_"),
        ("training/stopping.py", "METRICS = ", "METRICS = () or "), ("plan.py", "7, 3", "7, 2"),
        ("formats/encode.py", "-100, 121", "-100, 120"))]
    assert same not in others and len(set(others)) == len(others)


def test_a_state_of_other_code_is_refused(unfinished, script, monkeypatch):
    words, state = unfinished
    monkeypatch.setattr(experiment, "hash_of_code", lambda: "0" * 16)
    result = script(main_train.main, *words)
    assert_refused(result)
    assert "code" in result[2][0] and "--RESUME=False" in result[2][0] and state.exists()


@pytest.mark.slow
def test_a_finished_study_is_never_resumed(folder, tmp_path, capsys):
    """The same points again, in one process, are trained anew."""
    settings = config.load([*SHORT, *places(folder, tmp_path), "--ADAPT=False"])
    data, said = source.load_data(settings), []
    for _ in range(2):
        (outcome,), run, _ = experiment.run(settings, "mine", [{}], data)
        said.append(capsys.readouterr().out)
        assert list(run.glob("state*.npz"))     # its caller finishes it, once its result is written
    assert not any("going on" in text for text in said)
    runs.finish(run)
    assert not list(run.glob("state*")) and not (run / runs.FINISHED).exists()
