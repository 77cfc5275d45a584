"""script and streams: a run ends well whatever becomes of its output, reader and signals."""
import os
import signal
import subprocess
import sys
import time

import pytest
from test_scripts import TINY, places

from conftest import ROOT

START = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from machine import script
script.begin()
def main(argv):
    import os, signal, time
    exec(argv[0])
script.run(main)
"""


def call(code, *, before="", **options):
    """(exit code, stdout, stderr) of a script of ours, started by sh; before: sh's own words."""
    command = ["sh", "-c", f'{before} exec "$@" {options.pop("to", "")}', "sh", sys.executable,
               "-B", "-c", START, code]
    done = subprocess.run(command, capture_output=True, timeout=60, **options)
    return done.returncode, done.stdout, done.stderr


WRITE = "print('shown', flush=True); open(os.environ['FILE'], 'w').write('saved')"
SINKS = {                       # where output goes -> exit code, what stderr says
    "": (0, b""), ">&-": (0, b""), ">&- 2>&-": (0, b""), "<&- >&- 2>&-": (0, b""),
    ">/dev/full": (1, b"note: standard output is lost: No space left on device\n"),
    ">/dev/full 2>&1": (1, b""), "2>&-": (0, b""), "2>/dev/full": (0, b"")}


@pytest.mark.parametrize("sink", SINKS)
def test_what_cannot_be_shown_does_not_end_a_run(tmp_path, sink):
    environment = os.environ | {"FILE": str(tmp_path / "file")}
    code, out, error = call(WRITE, to=sink, env=environment)
    assert (code, error) == SINKS[sink]
    assert out == (b"" if ">&-" in sink.split() or "full" in sink and "2>/" not in sink
                   else b"shown\n")
    assert (tmp_path / "file").read_text() == "saved"   # and no print went into it


@pytest.mark.parametrize("sink", [">&-", "2>&-", ">/dev/full", ">/dev/full 2>&1", "2>/dev/full"])
def test_a_wrong_input_is_still_code_2(sink):
    code, _, error = call("from machine import files; raise files.InputError('wrong')", to=sink)
    assert code == 2 and error in (b"", b"error: wrong\n")


def test_what_a_disk_took_before_it_was_full_stays(tmp_path):
    """And the loss is told once."""
    code, _, error = call("""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for i in range(300):
    print('line', flush=True)
""", to=f">{tmp_path / 'log'}")
    assert code == 1 and error.count(b"note: ") == len(error.splitlines()) == 1
    assert (tmp_path / "log").read_bytes() == b"line\n" * 200


def test_a_reader_that_is_slow_gets_everything():
    """A pipe that doesn't block, as a terminal's other programs leave it."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    process = subprocess.Popen([sys.executable, "-B", "-c", START, "print('x' * 1_000_000)"],
                               stdout=write)
    os.close(write)
    time.sleep(0.5)                             # the pipe is full
    with open(read, "rb") as reader:
        assert len(reader.read()) == 1_000_001
    assert process.wait() == 0


TEXT = "± … é \udce9 \ud800"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-8:strict", "cp1252"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_cannot_say_a_character_escapes_it(encoding, stream):
    code, out, error = call(f"print({TEXT!r}, file=sys.{stream}); print('on')",
                            env=os.environ | {"PYTHONIOENCODING": encoding})
    assert code == 0
    name = encoding.split(":")[0]
    want = TEXT.encode(name, "backslashreplace") + b"\n"
    assert (out, error) == ((want + b"on\n", b"") if stream == "stdout" else (b"on\n", want))


@pytest.mark.slow
def test_a_name_that_is_no_text_is_printed_and_read(tmp_path):
    photo = os.fsencode(tmp_path) + b"/caf\xe9 \xff.png"
    with open(ROOT / "plots" / "bits.png", "rb") as file, open(photo, "wb") as copy:
        copy.write(file.read())
    command = [sys.executable, "-B", ROOT / "main_inference.py", "--ENGINE=numpy", photo]
    done = subprocess.run(command, capture_output=True,
                          env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf\\udce9 \\udcff.png" in done.stdout


@pytest.mark.slow
def test_training_into_a_full_disk_saves_its_model(tmp_path, folder):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-B", ROOT / "main_train.py", *TINY,
                               *places(folder, tmp_path)], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "weights_int8.npz").exists() and (tmp_path / "train.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_our_parent_ignores_stays_ignored(number):
    """`sh` ignores SIGINT for a job with `&`, so that Ctrl-C ends only what is in front."""
    code, out, error = call(f"os.kill(os.getpid(), {number:d}); time.sleep(0.3); print('on')",
                            before=f"trap '' {number:d};")
    assert (code, out, error) == (0, b"on\n", b"")


def test_a_second_signal_ends_at_once_though_nothing_can_be_said():
    code, _, _ = call("""
from machine import interrupt
with interrupt.after_epoch() as asked:
    os.kill(os.getpid(), signal.SIGINT)
    while not asked():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
""", to=">/dev/full 2>&1")
    assert code == 130


def start(*arguments, **environment):
    return subprocess.run([sys.executable, "-B", *arguments], capture_output=True, text=True,
                          env=os.environ | environment, cwd="/")


@pytest.mark.parametrize("name", ["main_train.py", "main_inference.py", "main_export.py",
                                  "ablation.py"])
@pytest.mark.slow
def test_scripts_start_with_any_of_pythons_own_switches(name):
    """-OO leaves no docstrings, PYTHONSAFEPATH leaves the script's folder out."""
    done = start("-OO", ROOT / name, "--help", PYTHONSAFEPATH="1")
    assert (done.returncode, done.stderr) == (0, "") and "--WEIGHT_BITS=8" in done.stdout


@pytest.mark.parametrize("name", ["main_train.py", "main_inference.py", "main_export.py",
                                  "ablation.py"])
def test_a_python_without_the_packages_is_one_line(name):
    done = start("-I", "-S", ROOT / name)
    assert (done.returncode, done.stdout) == (2, "")
    line, = done.stderr.splitlines()
    assert "numpy" in line and "`make`" in line and f".venv/bin/python {name}" in line


def test_a_python_that_lacks_jax_is_one_line(script):
    def main(argv):
        raise ModuleNotFoundError("No module named 'jax'", name="jax")
    code, out, errors = script(main)
    assert code == 2 and out == [] and len(errors) == 1 and "jax" in errors[0]
