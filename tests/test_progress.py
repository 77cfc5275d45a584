"""progress: the bar ends where patience would, and a log is short but says how each part ended."""
import re

import numpy as np
import pytest

from conftest import make_hyper
from runner import experiment, progress
from training import loop, stopping


def sweep_of(lanes, epochs, hyper, rng):
    """A Sweep judged on made-up losses that mostly fall; some lanes end before the others."""
    sweep = loop.Sweep(
        np.float32(range(1, lanes + 1)), np.arange(lanes, dtype=np.uint32), None, None,
        np.zeros(lanes, np.int32), np.full(lanes, np.inf), np.zeros(lanes, np.int32),
        np.zeros(lanes, np.uint8), np.zeros((lanes, 0, 3)), np.zeros(0), np.zeros(()))
    for epoch in range(epochs):
        metrics = np.stack([rng.uniform(0, 2 / (epoch + 1), lanes)] * 3, 1)
        sweep = judged(sweep, metrics, hyper)
    return sweep


def judged(sweep, metrics, hyper):
    lanes = len(sweep.rate)
    return loop.judge(sweep, metrics, np.ones(lanes, bool), hyper, 3.0)[0]._replace(
        seconds=np.append(sweep.seconds, 0.5))


@pytest.mark.parametrize("patience, max_epochs", [(3, 1_000), (3, 6), (50, 6), (6, 6)])
@pytest.mark.parametrize("seed", range(4))
def test_the_bar_ends_where_early_stopping_would_without_improvement(patience, max_epochs, seed):
    hyper = make_hyper(PATIENCE=patience, MAX_EPOCHS=max_epochs)
    sweep = sweep_of(4, 5, hyper, np.random.default_rng(seed))
    promised = progress.earliest_end(sweep, hyper)
    while (sweep.status == stopping.RUNNING).any():
        sweep = judged(sweep, np.full((4, 3), 2.5), hyper)
    assert sweep.epoch == promised == progress.earliest_end(sweep, hyper)


@pytest.fixture
def shown(monkeypatch, capsys):
    """shown(epochs, seconds, terminal) -> the lines of a run whose epochs take these seconds."""
    def run(epochs, seconds, terminal=False, part=(1, 1, ""), lanes=2):
        hyper, clock = make_hyper(), [0.0]
        monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: terminal, raising=False)
        sweep = sweep_of(lanes, 0, hyper, None)
        with progress.shown(sweep, hyper, part) as show:
            for epoch in range(1, epochs + 1):
                clock[0] += seconds
                losses = np.linspace(1.0, 0.5, lanes) / epoch
                sweep = judged(sweep, np.stack([losses, losses, losses], 1), hyper)
                show(sweep, last=epoch == epochs)
        return capsys.readouterr().out.splitlines()
    return run


def epochs_in(lines):
    return [int(match[1]) for match in (re.match(r" +(\d+) ", line) for line in lines) if match]


def test_a_log_gets_a_line_a_minute_and_the_last(shown):
    assert epochs_in(shown(100, 7.0)) == [1, 10, 19, 28, 37, 46, 55, 64, 73, 82, 91, 100]
    assert epochs_in(shown(3, 100.0)) == [1, 2, 3]
    assert epochs_in(shown(40, 0.1)) == [1, 40]


def test_a_terminal_gets_every_epoch(shown):
    assert epochs_in(shown(40, 0.1, terminal=True)) == list(range(1, 41))


def test_a_part_is_named_and_its_end_is_told(shown):
    first, *rest = shown(5, 1.0, part=(1, 2, "W8A8, 2 runs"))
    assert first == "part 1 of 2: W8A8, 2 runs" and rest[0].startswith("epoch ")
    assert epochs_in(rest) == [5]
    first, *rest = shown(5, 1.0, part=(2, 2, "float32, 2 runs"))
    assert first == "part 2 of 2: float32, 2 runs" and epochs_in(rest) == [5] and len(rest) == 1


def test_a_line_of_a_sweep_says_whose_it_is(shown):
    title, line = shown(1, 1.0)
    assert title.split()[-3:] == ["rate", "seed", "active"]
    assert line.split() == ["1", "0.5000", "0.5000", "50.00", "%", "0.50", "2", "1", "2", "of", "2"]
    title, line = shown(1, 1.0, lanes=1)
    assert title.split()[-1] == "seconds" and len(line.split()) == 6


def test_parts_are_named_by_what_sets_them_apart():
    groups = {make_hyper("256 128", **changes): [0] * runs for changes, runs in (
        ({}, 3), ({"WEIGHT_BITS": 4}, 2))}
    groups[make_hyper("mean2 conv3x8", WEIGHT_BITS=2)] = [0]
    one, two, three = experiment._parts(groups)
    assert one == (1, 3, "W8A8, LAYERS=256 128, 3 runs")
    assert two == (2, 3, "W4A8, LAYERS=256 128, 2 runs")
    assert three == (3, 3, "W2A8, LAYERS=mean2 conv3x8, 1 run")
    assert experiment._parts({make_hyper(): [0]}) == [(1, 1, "W8A8, 1 run")]
