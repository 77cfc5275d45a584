"""Two real processes on this machine, over loopback, against one."""
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import config
import parallel
from files import InputError

ROOT = Path(__file__).parent.parent
# Quick, and few steps: summation order makes data-parallel floats drift apart over many.
SWITCHES = ["--LAYER_SIZES=784,16,10", "--VAL_EXAMPLES=57000", "--ABLATION_SEEDS=2",
            "--LR_ABLATION_RATES=0.1,0.01", "--LR_ABLATION_MAX_EPOCHS=2"]


def start(folder, *switches, processes):
    """Start main_train.py in `processes` processes that find each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    joined = ([f"--COORDINATOR={address}", f"--NUM_PROCESSES={processes}"] if processes > 1 else [])
    folders = [f"--{name}_DIR={folder}" for name in ("WEIGHTS", "RESULTS", "PLOTS")]
    return [subprocess.Popen([sys.executable, "-B", "main_train.py", *SWITCHES, *folders, *switches,
                              *joined, *([f"--PROCESS_ID={i}"] if joined else [])],
                             cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for i in range(processes)]


def finish(running):
    """Wait for all; their output, in order."""
    outputs = [process.communicate(timeout=150)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(outputs)
    return outputs


@pytest.mark.parametrize("mode", ["lanes", "batch"])
def test_two_processes_give_the_result_of_one(tmp_path, mode):
    switches = (["--LR_ABLATION_MODE=True"] if mode == "lanes"
                else ["--MAX_EPOCHS=2", "--DATA_PARALLEL=True"])
    one, two = (start(tmp_path / str(n), *switches, processes=n) for n in (1, 2))
    _, first, second = finish(one + two)
    assert re.search(r"^ +2 ", first, re.M) and "wrote" in first
    assert "wrote" not in second and not re.search(r"^ +1 ", second, re.M)   # written once
    file = "lr_ablation.json" if mode == "lanes" else "train.json"
    results = [json.loads((tmp_path / n / file).read_text()) for n in ("1", "2")]
    if mode == "lanes":
        assert results[0]["runs"] == results[1]["runs"]         # bit for bit
    else:
        # The gradient's sum over examples is split differently, so floats round differently.
        losses = [result["run"]["history"]["train_loss"] for result in results]
        np.testing.assert_allclose(losses[0], losses[1], rtol=5e-3)


def test_a_dead_process_stops_the_others_within_a_minute(tmp_path):
    first, second = start(tmp_path, "--LR_ABLATION_MODE=True", "--LR_ABLATION_MAX_EPOCHS=100000",
                          "--PATIENCE=100000", processes=2)
    for line in first.stdout:
        if re.match(r" +2 ", line):
            break
    second.kill()
    killed = time.monotonic()
    output = first.communicate(timeout=60)[0]
    assert first.returncode != 0 and time.monotonic() - killed < 60
    assert re.search("another task died|Connection closed by peer|heartbeat", output)
    second.communicate()


def test_a_missing_coordinator_is_one_line(monkeypatch):
    monkeypatch.setattr(parallel, "JOIN_SECONDS", 0.1)
    settings = config.load(["--COORDINATOR=127.0.0.1:1", "--NUM_PROCESSES=2", "--PROCESS_ID=1",
                            "--CACHE_DIR="])
    with pytest.raises(InputError, match="127.0.0.1:1.* can't be reached"):
        parallel.set_up(settings)


@pytest.mark.parametrize("switch", ["--COORDINATOR=nowhere", "--PROCESS_ID=1"])
def test_switches_that_cannot_work_together_are_refused(switch):
    with pytest.raises(InputError, match=switch[2:].split("=")[0]):
        config.load([switch])
