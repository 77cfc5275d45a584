"""devices and runtime: lanes dealt; two real processes on this machine against one."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, strategies as st

import config
import main_train
from conftest import CACHE, ROOT, wait_for_epoch
from machine import devices, facts, runtime
from machine.files import InputError
from machine.script import forget_environment
from runner import experiment, state

# Quick, and few steps: summation order makes data-parallel floats drift apart over many.
SWITCHES = ["--LAYERS=16", "--VAL_EXAMPLES=200", "--ABLATION_SEEDS=2", "--ADAPT=False",
            "--LR_ABLATION_RATES=0.1,0.01", "--ABLATION_MAX_EPOCHS=2", f"--CACHE_DIR={CACHE}"]
LONG = ["--LR_ABLATION_MODE=True", "--ABLATION_MAX_EPOCHS=100000", "--PATIENCE=100000"]


@given(lanes=st.integers(1, 40), count=st.integers(1, 5), one_by_one=st.booleans(), data=st.data())
def test_lanes_are_dealt_evenly_and_once(lanes, count, one_by_one, data):
    active = sorted(data.draw(st.sets(st.integers(0, lanes - 1), min_size=1)))
    mesh = SimpleNamespace(shape={"lane": count})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "_one_by_one", lambda: one_by_one)
        rows, real, counts = devices.deal(active, lanes, mesh)
    assert sorted(rows[real]) == active and set(rows) <= set(active)
    assert len(rows) % count == 0 and len(rows) <= 2 * max(lanes, count)
    by_device = real.reshape(count, -1)
    np.testing.assert_array_equal(by_device.sum(1), counts)
    assert counts.max() - counts.min() <= 1
    for slots, lanes_there in zip(by_device, counts):
        assert slots[:lanes_there].all() and not slots[lanes_there:].any()


def test_a_finished_lane_is_not_computed():
    """A slot beyond its device's count never runs: its function would not end."""
    import jax
    import jax.numpy as jnp
    mesh = devices.make_mesh(1, False)

    def count_down(n):                          # endless for the number that is not real
        return jax.lax.while_loop(lambda n: n != 0, lambda n: n - 2, n)

    run = devices.over_lanes(count_down, mesh, one_by_one=True)
    lanes = jnp.array([4, 1], jnp.int32)
    result = run(jnp.array([1], jnp.int32), lanes)
    assert result[0] == 0


@pytest.fixture
def start(folder):
    """start(path, *switches, processes) -> processes of main_train.py that find each other."""
    def call(path, *switches, processes):
        return begin(path, f"--DATA_DIR={folder}", *switches, processes=processes)
    return call


def begin(folder, *switches, processes):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    joined = ([f"--COORDINATOR={address}", f"--NUM_PROCESSES={processes}"] if processes > 1 else [])
    folders = [f"--{name}_DIR={folder}" for name in ("RUNS", "WEIGHTS", "RESULTS", "PLOTS")]
    return [subprocess.Popen([sys.executable, "-B", "main_train.py", *SWITCHES, *folders, *switches,
                              *joined, *([f"--PROCESS_ID={i}"] if joined else [])],
                             cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for i in range(processes)]


def finish(running):
    """Wait for all; their output, in order."""
    outputs = [process.communicate(timeout=150)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(outputs)
    return outputs


@pytest.mark.parametrize("mode", ["lanes", "convolutions", "batch"])
@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path, start, mode):
    switches = (["--MAX_EPOCHS=2", "--DATA_PARALLEL=True"] if mode == "batch"
                else ["--LR_ABLATION_MODE=True", "--AUGMENT=0.5"])
    if mode == "convolutions":
        switches += ["--LAYERS=conv5x4/2 conv3x8 max2 conv3x8", "--WEIGHT_BITS=3",
                     "--SCALES=learned", "--FILE_FORMAT=nqat"]
    one, two = (start(tmp_path / str(n), *switches, processes=n) for n in (1, 2))
    _, first, second = finish(one + two)
    assert re.search(r"^ +2 ", first, re.M) and "wrote" in first
    assert "wrote" not in second and not re.search(r"^ +1 ", second, re.M)   # written once
    file = "train.json" if mode == "batch" else "lr_ablation.json"
    results = [json.loads((tmp_path / n / file).read_text()) for n in ("1", "2")]
    if mode != "batch":
        assert results[0]["rows"] == results[1]["rows"]         # bit for bit, hashes too
    else:
        # The gradient's sum over examples is split differently, so floats round differently.
        losses = [result["rows"][0]["history"]["train_loss"] for result in results]
        np.testing.assert_allclose(losses[0], losses[1], rtol=5e-3)


@pytest.mark.long
def test_a_signal_to_one_of_two_processes_ends_both_and_both_go_on(tmp_path, start):
    switches = ["--LR_ABLATION_MODE=True", "--ABLATION_MAX_EPOCHS=50", "--PATIENCE=1000"]
    alone, = start(tmp_path / "alone", *switches, processes=1)
    first, second = start(tmp_path / "both", *switches, processes=2)
    wait_for_epoch(first, tmp_path / "both", 2)
    second.send_signal(signal.SIGINT)
    sent = time.monotonic()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert time.monotonic() - sent < 15
    assert [process.returncode for process in (first, second)] == [130, 130], outputs
    for output in outputs:
        assert len(re.findall(r"^stopped after epoch", output, re.M)) == 1
        assert "Traceback" not in output
    assert not list((tmp_path / "both").glob("*.json"))
    again, _ = finish(start(tmp_path / "both", *switches, processes=2))
    assert "going on after epoch" in again
    finish([alone])
    rows = [json.loads((tmp_path / name / "lr_ablation.json").read_text())["rows"]
            for name in ("alone", "both")]
    assert rows[0] == rows[1]


@pytest.mark.long
def test_a_dead_process_stops_the_others_within_a_minute(tmp_path, start):
    first, second = start(tmp_path, *LONG, processes=2)
    wait_for_epoch(first, tmp_path, 9)
    second.kill()
    killed = time.monotonic()
    output = first.communicate(timeout=60)[0]
    assert first.returncode != 0 and time.monotonic() - killed < 60
    assert re.search("another task died|Connection closed by peer|heartbeat", output)
    assert list(tmp_path.glob("lr_ablation-*/state0.npz"))      # from which both can go on
    second.communicate()


def test_a_missing_coordinator_is_one_line(monkeypatch):
    monkeypatch.setattr(runtime, "JOIN_SECONDS", 0.1)
    with pytest.raises(InputError, match="127.0.0.1:1.* can't be reached"):
        runtime.set_up("", "127.0.0.1:1", 2, 1)


def test_a_busy_coordinator_port_is_one_line(tmp_path):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(InputError, match="in use"):
            runtime.set_up("", f"127.0.0.1:{busy.getsockname()[1]}", 2, 0)


@pytest.mark.parametrize("place", ["loop", "file", "file/below", "nul\0"])
def test_a_cache_that_cannot_be_is_one_line_and_not_needed(place, tmp_path, capsys):
    """A read-only checkout has none."""
    import jax
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    (tmp_path / "file").touch()
    before = jax.config.jax_compilation_cache_dir
    runtime.set_up(str(tmp_path / place))
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("note: CACHE_DIR") and line.isprintable()
    assert jax.config.jax_compilation_cache_dir == before


HEARD = {"JAX_NUM_CPU_DEVICES": "2"}
DEAF = {"JAX_ENABLE_X64": "1", "JAX_DISABLE_JIT": "1", "JAX_THREEFRY_PARTITIONABLE": "0",
        "JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_RANDOM_SEED_OFFSET": "7", "JAX_DEBUG_NANS": "1",
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_NUMPY_RANK_PROMOTION": "nonsense", "JAX_LOG_COMPILES": "neither",
        "JAX_TRANSFER_GUARD": "disallow", "JAX_USE_DIRECT_LINEARIZE": "0",
        "EAGER_CONSTANT_FOLDING": "1", "JAX_OF_ANOTHER_VERSION": "1"}


@pytest.mark.slow
def test_the_environment_changes_no_bit_of_training(tmp_path, folder, script):
    """All at once; two of them are no values at all."""
    switches = [*SWITCHES, f"--DATA_DIR={folder}", "--MAX_EPOCHS=1"]
    places = {name: [f"--{kind}_DIR={tmp_path / name}" for kind in ("RUNS", "WEIGHTS", "RESULTS")]
              for name in ("deaf", "plain")}
    done = subprocess.run([sys.executable, "-B", ROOT / "main_train.py", *switches,
                           *places["deaf"]], env=os.environ | DEAF | HEARD, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    line, = done.stderr.splitlines()
    assert all(name in line for name in DEAF) and not any(name in line for name in HEARD)
    assert script(main_train.main, *switches, *places["plain"])[0] == 0
    deaf, plain = ((tmp_path / name / "weights_int8.npz").read_bytes() for name in places)
    assert deaf == plain


@pytest.mark.parametrize("count", ["abc", "", "0", "-1", "1.5", "10000"])
def test_a_number_of_devices_that_is_none_is_one_line(count, monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", count)
    with pytest.raises(SystemExit) as stop:
        forget_environment()
    line, = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: JAX_NUM_CPU_DEVICES")


@pytest.mark.parametrize("name", ["cuda", "nonsense"])
@pytest.mark.slow
def test_a_device_that_is_not_there_is_one_line(name):
    environment = os.environ | {"JAX_PLATFORMS": name, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-B", ROOT / "main_inference.py", "--CACHE_DIR="],
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    line, = done.stderr.splitlines()
    assert line.startswith("error: JAX can't start on JAX_PLATFORMS") and name in line


def test_flags_that_may_change_bits_are_part_of_the_machine(monkeypatch):
    plain = facts.environment()
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/x  --xla_cpu_enable_fast_math=true")
    monkeypatch.setenv("NPROC", "1")
    flagged = facts.environment()
    assert flagged == plain | {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true", "NPROC": "1"}
    for there, here in ((plain, flagged), (flagged, plain)):    # named whichever side has them
        assert "XLA_FLAGS" in state._difference(there, here)


@pytest.fixture
def fresh_options():
    runtime.compiler_options.cache_clear()
    yield
    runtime.compiler_options.cache_clear()


def test_compiler_options_are_those_that_this_version_takes(fresh_options, monkeypatch):
    """XLA 0.10 takes what we ask for; of an option that no version has, nothing is left."""
    import jax
    options = runtime.compiler_options()
    assert options == (runtime.QUICK if jax.__version__.startswith("0.10.") else {})
    assert jax.jit(lambda: 3, compiler_options=options)() == 3
    runtime.compiler_options.cache_clear()
    monkeypatch.setattr(runtime, "QUICK", {"xla_no_such_option": False})
    assert runtime.compiler_options() == {}


def test_a_compiler_that_fails_otherwise_says_why(fresh_options, monkeypatch):
    monkeypatch.setattr(runtime, "QUICK", {"xla_cpu_enable_fast_math": "neither"})
    with pytest.raises(Exception, match="xla_cpu_enable_fast_math"):
        runtime.compiler_options()


@pytest.mark.parametrize("lines, fast", [
    ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f avx512_bf16 rdseed\n", True),
    ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512f avx512_bf16 rdseed\n", False),
    ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512_bf16x\n", False),
    ("CPU implementer\t: 0x41\nFeatures\t: bf16\n", False), ("", False)])
def test_bfloat16_is_taken_on_the_processors_where_it_was_measured_to_pay(lines, fast, monkeypatch,
                                                                          tmp_path):
    (tmp_path / "cpuinfo").write_text(lines)
    monkeypatch.setattr(facts, "CPUINFO", tmp_path / "cpuinfo")
    decided = [experiment.decide(config.load([f"--{name}"])).COMPUTE for name in (
        "COMPUTE=auto", "COMPUTE=bfloat16", "QAT_ENABLE=False", "POWER_OF_TWO_SCALES=False")]
    assert decided == ["bfloat16" if fast else "float32", "bfloat16", "float32", "float32"]


@pytest.mark.parametrize("lines, name", [
    ("model name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f avx512_bf16\n",
     "AMD EPYC with AVX-512 BF16"),
    ("model name\t: AMD EPYC\nflags\t\t: fpu avx avx2\n", "AMD EPYC with AVX2"),
    ("model name\t: Old\nflags\t\t: fpu sse2\n", "Old")])
def test_processors_of_one_name_are_told_apart_by_their_vectors(lines, name, monkeypatch, tmp_path):
    """Clouds call unlike processors "AMD EPYC": XLA compiles other code for each, whose sums are
    of other bits. So neither a state nor a compiled program goes from one to the other."""
    (tmp_path / "cpuinfo").write_text(lines)
    monkeypatch.setattr(facts, "CPUINFO", tmp_path / "cpuinfo")
    assert facts.environment()["cpu"] == name


@pytest.mark.parametrize("switch", ["--COORDINATOR=nowhere", "--PROCESS_ID=1",
                                    "--NUM_PROCESSES=2"])
def test_switches_that_cannot_work_together_are_refused(switch):
    with pytest.raises(InputError, match=switch[2:].split("=")[0]):
        config.load([switch])
