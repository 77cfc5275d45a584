"""Hostile files: changed ones for every loader (make fuzz), what a loader may not do, and tricks.

A changed file must be accepted, or refused by one InputError of one line. Anything else is a fault:
another exception, a warning or print, over 2 seconds of work, over 512 MB more memory, or a try to
run code, open a socket or write.
"""
import codecs
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import os
import signal
import struct
import sys
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import hostile
import hypothesis
import numpy as np
import pytest
from PIL import Image

import config
import data
import integer
import oracle
import plan
from conftest import ROOT, make_hyper
from formats import checkpoint, idx, npz, photo
from machine import facts
from machine.files import InputError
from report import results
from runner import state as runs
from training import loop, stopping

SECONDS, MEMORY = 2, 512_000_000    # of one input; ten times as long by the clock on the wall
TIMERS = {signal.ITIMER_PROF: (signal.SIGPROF, 1), signal.ITIMER_REAL: (signal.SIGALRM, 10)}
BATCH = 1_000                       # inputs of one Hypothesis test: more take more and more memory
MAX_LINE = 2_000                    # characters of a message
SIZES = (7, 5, 3)                   # a network as small as it can be odd
CODECS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be",
          "cp437")                  # of JSON and zip: imported when first used
RUNS_CODE = ("exec", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.spawn",
             "subprocess.", "socket.", "pickle.", "marshal.", "ctypes.", "os.remove", "os.rename",
             "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "shutil.", "import")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PEAK = Path("/proc/self/clear_refs")    # "5" written there resets this process's peak of memory
LINUX = pytest.mark.skipif(not PEAK.exists(), reason="memory is read from /proc")


class TooSlow(BaseException):
    """Not an Exception: loaders catch those."""


@pytest.fixture(scope="session")
def guard():
    """Records and refuses what a loader may not do, while it is on."""
    guard = SimpleNamespace(on=False, seen=[])

    def hook(event, arguments):
        if not guard.on:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        # NumPy's headers are parsed by ast.literal_eval, which compiles to a tree: no code object.
        compiles = event == "compile" and arguments[1] not in ("<unknown>", b"<unknown>")
        if writes or compiles or event.startswith(RUNS_CODE):
            guard.seen.append(f"{event} {str(arguments)[:100]}")
            raise PermissionError(event)

    sys.addaudithook(hook)                  # it can't be removed, so there is one for all
    return guard


def disarm():
    for timer in TIMERS:
        signal.setitimer(timer, 0)


def on_alarm(*_):
    disarm()                                # the other timer too: this may be raised anywhere
    raise TooSlow


def growth(call, *arguments):
    """The bytes by which a call raises this process's peak of memory; 0 where nothing says it."""
    with contextlib.suppress(OSError):
        PEAK.write_text("5")
    before = facts.peak_memory() or 0
    call(*arguments)
    return (facts.peak_memory() or 0) - before


def attempt(load, guard, seconds=SECONDS, memory=MEMORY):
    """Load one input: ("accepted", "refused" or "failed"; what is wrong, or "")."""
    ending, faults, printed = "accepted", [], io.StringIO()
    previous = {number: signal.signal(number, on_alarm) for number, _ in TIMERS.values()}

    def call():
        nonlocal ending
        guard.on, guard.seen = True, []
        try:
            for timer, (_, factor) in TIMERS.items():
                signal.setitimer(timer, factor * seconds)
            try:
                load()
            finally:
                disarm()
        except InputError as error:
            ending = "refused"
            if len(str(error).splitlines()) != 1 or len(str(error)) > MAX_LINE:
                faults.append(f"message {str(error)[:200]!r}")
        except TooSlow:
            faults.append("too slow")
        except Exception as error:
            faults.append(f"{type(error).__name__}: {str(error)[:200]}")
        finally:
            guard.on = False

    start = time.process_time()
    with (warnings.catch_warnings(record=True, action="always") as warned,
          contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed)):
        grown = growth(call)
    if time.process_time() - start > seconds:       # a signal waits for the end of a call in C
        faults.append("too slow")
    for number, handler in previous.items():
        signal.signal(number, handler)
    faults += [f"took {grown:,} bytes"] * (grown > memory)
    faults += [f"printed {printed.getvalue()[:200]!r}"] * bool(printed.getvalue())
    faults += [f"warning: {warning.message}" for warning in warned] + guard.seen
    return ("failed" if faults else ending), "; ".join(faults)


# Every loader as (its valid files with what changes them, a function of a path that loads one)

def weights(folder, form="npz", change=hostile.weights):
    """checkpoint.load, as main_inference.py calls it; W8, W4, W2, W1 and, as .npz, float32."""
    rng = np.random.default_rng(0)
    networks = [oracle.random_network(rng, SIZES, bits) for bits in (8, 4, 2, 1)]
    steps = plan.parse("crop6 mean2 conv2x4/2 5", (8, 7, 2), 3)
    networks.append(oracle.random_network(rng, steps, 3, 4))
    if form == "npz":
        networks.append(integer.FloatNetwork(tuple(
            (rng.normal(size=shape).astype(np.float32), np.zeros(shape[1], np.float32))
            for shape in itertools.pairwise(SIZES)), plan.parse("5", (7,), 3)))
    for i, network in enumerate(networks):
        features = network.steps[0].before[-1]
        encoding = (np.ones(features, np.float32), np.full(features, -3, np.int8))
        facts = checkpoint.Facts("é", "00", tuple("a☃c"), *(encoding if i % 2 else (None, None)),
                                 {"SEED": 1, "LAYERS": "5", "AUGMENT": 0.5}, 0.25)
        checkpoint.save(folder / f"{i}.{form}", network, facts, form)
    if form == "nqat":                          # of the earlier version
        (folder / "old.nqat").write_bytes((ROOT / "tests/data/version1.nqat").read_bytes())
    return dict.fromkeys(folder.iterdir(), change), checkpoint.load


def compact_weights(folder):
    """checkpoint.load of an .nqat."""
    return weights(folder, "nqat", hostile.nqat)


def state(folder):
    """runs.load_state, as experiment.py calls it, before the first epoch and after three."""
    hyper = make_hyper("5", (7,), 3, BATCH_SIZE=2, MAX_EPOCHS=9)
    fresh, machine = loop.start([0.1, 0.01], [0, 1], hyper), {"jax": "1.2.3", "devices": 1}
    later = fresh._replace(history=np.ones((2, 3, len(stopping.METRICS))), seconds=np.ones(3))
    for i, sweep in enumerate((fresh, later)):
        with runs.Recorder(folder / f"{i}.npz", folder / "history", sweep, machine) as recorder:
            recorder.record(sweep, must=True)
    return dict.fromkeys(folder.glob("*.npz"), hostile.npz), lambda path: runs.load_state(
        path, runs.read_state(path, fresh, 9), fresh, machine, 9)


def recipes(folder):
    """config.load with a recipe, as every script calls it."""
    texts = [path.read_text() for path in sorted((ROOT / "recipes").glob("*.toml"))]
    # JSON's lists, texts and truth values are TOML's.
    texts.append("".join(f"{name} = {json.dumps(value)}\n"
                         for name, value in config.load([])._asdict().items()))
    texts.append("a.b = {c = [1, 0x1f, 1979-05-27, 'x']}\n[t]\n[[u.v]]\nw = \"\"\"y\"\"\"\n")
    for i, text in enumerate(texts):
        (folder / f"{i}.toml").write_text(text)
    return dict.fromkeys(folder.iterdir(), hostile.text), lambda path: config.load([str(path)])


def idx_data(folder):
    """data.load of a folder in which one file is changed: a packed one, or the hashes."""
    rng, files = np.random.default_rng(0), {}
    for part in (folder / "plain", folder / "hashed"):
        paths = [part / f"{name}.gz" for pair in idx.FILES for name in pair]
        for path, shape, most in zip(paths, 2 * [(30, 4, 4), 30], 2 * [256, 10]):
            idx.write(path, rng.integers(0, most, shape, np.uint8))
        files |= dict.fromkeys(paths, hostile.idx) if part.name == "plain" else {}
    sums = folder / "hashed" / "SHA256SUMS"
    sums.write_text("# a comment\n" + "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths[:2]))
    return files | {sums: hostile.text}, lambda path: data.load(path.parent)


def images(folder):
    """photo.read_digits, as main_inference.py calls it."""
    for i, content in enumerate(hostile.image_seeds()):
        (folder / f"{i}.png").write_bytes(content)
    return (dict.fromkeys(folder.iterdir(), hostile.image),
            lambda path: photo.read_digits(path))


def study_results(folder):
    """results.read_result, as the figures and tables call it."""
    results.write_result(folder / "0.json", {"LEARNING_RATE": 0.1}, text="naïve ☃\n", flag=True,
                         rows=[{"seed": 0, "acc": [0.5, None]}])
    (folder / "1.json").write_text('{"a": [1, -2.5e3, {"b": "\\u00e9"}]}')
    return dict.fromkeys(folder.iterdir(), hostile.text), results.read_result


LOADERS = (weights, compact_weights, state, recipes, idx_data, images, study_results)


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__name__)
@pytest.mark.slow
def test_changed_files_are_accepted_or_refused_in_one_line(loader, tmp_path, guard, pytestconfig,
                                                           monkeypatch):
    inputs, counts = pytestconfig.getoption("inputs"), Counter()
    files, load = loader(tmp_path)
    files = {path: (change, path.read_bytes()) for path, change in sorted(files.items())}
    constants = config._read_constants()        # of config.py itself, 95 % of a recipe's time
    monkeypatch.setattr(config, "_read_constants", lambda: constants)
    for name in CODECS:
        codecs.lookup(name)
    for path in files:                          # imports and caches, before anything is watched
        with contextlib.suppress(InputError):
            load(path)

    def check(changed):
        path, content = changed
        path.write_bytes(content)
        ending, fault = attempt(lambda: load(path), guard)
        path.write_bytes(files[path][1])
        if not counts["failed"]:                # not what Hypothesis then tries to make it smaller
            counts[ending] += 1
        assert not fault, fault

    try:
        for seed in range(0, inputs, BATCH):
            limits = hypothesis.settings(max_examples=min(BATCH, inputs - seed),
                                         suppress_health_check=hypothesis.HealthCheck)
            test = limits(hypothesis.given(hostile.changed(files))(check))
            hypothesis.seed(seed)(test)()
    finally:
        print(f"{loader.__name__}: {counts.total():,} inputs, " + ", ".join(
            f"{counts[ending]:,} {ending}" for ending in ("accepted", "refused", "failed")))
    # So that the changes are not all too wild.
    assert min(counts["accepted"], counts["refused"]) >= inputs // 15


def raise_(error):
    raise error


CODE = compile("1", "x", "exec")
FAULTS = {
    "traceback": (lambda: [][1], "IndexError"),
    "waiting": (lambda: time.sleep(9), "too slow"),
    "working": (lambda: any(number < 0 for number in itertools.count()), "too slow"),
    "in one call of C": (lambda: sum(range(10**7)), "too slow"),
    "caught, but slow": (lambda: raise_(InputError(time.sleep(9))), "too slow"),
    "eval": (lambda: eval("1"), "compile"),
    "exec of compiled code": (lambda: exec(CODE), "exec"),
    "shell": (lambda: os.system("true"), "os.system"),
    "writing": (lambda: open(os.devnull, "w"), "open"),
    "swallowed": (lambda: pytest.raises(PermissionError, os.system, "true"), "os.system"),
    "print": (lambda: print("look"), "look"),
    "warning": (lambda: warnings.warn("look", stacklevel=1), "look"),
    "two lines": (lambda: raise_(InputError("a\u2028b" * 1_000)), "message"),
    "memory": (lambda: b"x" * 100_000_000, "took"),
}


@pytest.mark.parametrize("load, detail", [
    pytest.param(*fault, id=name, marks=LINUX if name == "memory" else ())
    for name, fault in FAULTS.items()])
def test_each_kind_of_fault_is_noticed(guard, load, detail):
    start = time.perf_counter()
    ending, fault = attempt(load, guard, 0.05, 10_000_000)
    assert ending == "failed" and detail in fault and time.perf_counter() - start < 5


def one_line(path, call, *arguments):
    """The message of the InputError that a call must raise: one line that names the path."""
    with pytest.raises(InputError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and str(path) in message
    return message


def peak_of(call, *arguments):
    """The most bytes that Python and NumPy held at once during a call."""
    tracemalloc.start()
    try:
        call(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Weights

@pytest.fixture
def good():
    """The members of a legal weights file."""
    network = oracle.random_network(np.random.default_rng(0), SIZES)
    content = checkpoint.encode(network)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("name", ["../w0_q.npy", "/w0_q.npy", "..\\w0_q.npy", "a/../w0_q.npy",
                                  "w0_q.npy/", "w0_q.npy.npy", "W0_q.npy"])
def test_member_with_another_path_is_refused_and_written_nowhere(tmp_path, good, name):
    path = tmp_path / "in" / "w.npz"
    path.parent.mkdir()
    write_zip(path, good)
    checkpoint.load(path)                       # so that the refusal is of the name
    members = {name if key == "w0_q.npy" else key: content for key, content in good.items()}
    write_zip(path, members)
    one_line(path, checkpoint.load, path)
    write_zip(path, good | {name: good["w0_q.npy"]})
    one_line(path, checkpoint.load, path)
    assert list(tmp_path.rglob("*.*")) == [path]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("key", ["meta.npy", "w0_q.npy", "b1_q.npy"])
@pytest.mark.slow
def test_zip_bomb_takes_little_memory(tmp_path, good, method, key):
    path, size = tmp_path / "w.npz", 2**26
    write_zip(path, good | {key: good[key] + bytes(size)}, method)
    honest = path.read_bytes()
    assert len(honest) < 100_000
    # The directory may also hide what is in the member.
    told, hidden = (struct.pack("<I", len(good[key]) + more) for more in (size, 0))
    lying = honest.replace(told, hidden)
    assert lying != honest
    for content in (honest, lying):
        path.write_bytes(content)
        assert peak_of(one_line, path, checkpoint.load, path) < 2**21


def test_largest_honest_network_of_one_bit_takes_bounded_memory(tmp_path):
    """35 kB of it once took 4.4 GB."""
    path, side = tmp_path / "w.npz", 4_096
    assert side**2 == plan.MAX_WEIGHTS
    meta = {"format": 3, "quantized": True, "layers": "", "shape": [side],
            "classes": list(map(str, range(side))), "facts": {},
            "weight_bits": 1, "activation_bits": 8, "logit_exponent": 0}
    path.write_bytes(npz.encode(meta, {"w0_q": np.zeros(side**2 // 8, np.uint8),
                                       "b0_q": np.zeros(side, np.int32)}))
    assert path.stat().st_size < 50_000
    assert peak_of(checkpoint.load, path) < 150_000_000


def test_header_that_python_2_wrote_is_refused_without_a_warning(tmp_path, good):
    path, member = tmp_path / "w.npz", good["w0_q.npy"]
    changed = member.replace(b"(7, 5), }  ", b"(7L, 5L), }")
    assert changed != member
    write_zip(path, good | {"w0_q.npy": changed})
    one_line(path, checkpoint.load, path)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/stdin"])
def test_device_is_not_read_as_weights(device):
    if not os.path.exists(device):
        pytest.skip("not here")
    assert "not a regular file" in one_line(device, checkpoint.load, device)


# Training state

@pytest.fixture(scope="module")
def fresh():
    hyper = make_hyper("5", (7,), 3, BATCH_SIZE=2, MAX_EPOCHS=100)
    return loop.start([0.1, 0.01], [0, 1], hyper)


@pytest.mark.parametrize("epochs", [-1, 101, 2**31, 2**63, 10**400, True, 1.0, None, [1]])
def test_state_that_claims_other_epochs_is_refused(fresh, epochs):
    content = npz.encode({"format": runs.FORMAT, "epochs": epochs, "machine": {}}, {})
    arguments = "state0.npz", content, fresh, {}, 100
    assert "epochs" in one_line("state0.npz", runs.load_state, *arguments)


def test_state_with_more_than_its_sweep_has_is_refused_before_it_is_unpacked(fresh):
    bomb = npz.encode({"format": runs.FORMAT, "epochs": 100, "machine": {}},
                      {"leaf0": np.zeros(2**23)})
    arguments = "state0.npz", bomb, fresh, {}, 100
    assert len(bomb) < 100_000
    assert peak_of(one_line, "state0.npz", runs.load_state, *arguments) < 2**21


# Recipes

@pytest.mark.parametrize("content", [
    "a = " + "[" * 5_000, "a = " + "[" * 2_000 + "]" * 2_000, "a = " + "{a=" * 3_000,
    "[" + "a." * 2_000 + "a]", "a." * 2_000 + "a = 1", "SEED = " + "9" * 5_000,
    "WEIGHTS = '''" + "x" * 9_000, "SEED = nan", "LEARNING_RATE = inf", "LEARNING_RATE = nan",
    "SEED." + "a." * 4_900 + "a = 1", "a." * 499_999 + "a=1",
    "\n".join(f"[[a{i}]]" for i in range(1_000))],
    ids=lambda content: content[:12])
def test_deep_and_large_recipe_gives_one_line(tmp_path, content):
    path = tmp_path / "deep.toml"
    path.write_text(content)
    start = time.process_time()
    assert len(one_line(path, config.load, [str(path)])) < 400
    assert time.process_time() - start < 2


# Results

@pytest.mark.parametrize("item", [b"[],", b"{},", b"0,", b"1.5,", b'"a",', b'{"a":1},'])
@pytest.mark.slow
def test_largest_result_takes_bounded_memory(tmp_path, item):
    path, part = tmp_path / "r.json", results.MAX_BYTES // 16
    path.write_bytes(b'{"rows":[' + item * (part // len(item)) + b"0]}")
    assert 16 * peak_of(results.read_result, path) < MEMORY
    with open(path, "wb") as file:
        file.truncate(results.MAX_BYTES + 1)
    assert "larger" in one_line(path, results.read_result, path)


# Data

def test_labels_and_images_that_claim_a_thousand_times_their_file_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    for pair in idx.FILES:
        idx.write(tmp_path / pair[0], rng.integers(0, 256, (30, 4, 4), np.uint8))
        idx.write(tmp_path / pair[1], np.zeros(30, np.uint8))
    data.load(tmp_path)
    (tmp_path / idx.FILES[0][0]).unlink()
    shape = 2**14, 64, 64                       # 67 MB, as honest as its file of 65 kB can be
    path = tmp_path / f"{idx.FILES[0][0]}.gz"
    path.write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, *shape) + bytes(2**26), 9))
    assert path.stat().st_size < 100_000
    assert peak_of(one_line, path, data.load, tmp_path) < 2**21


# Images

def write_png(path, width, height, data):
    """A black and white PNG of these claims with right checksums."""
    chunks = [(b"IHDR", struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)),
              (b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks))


CLAIMS = {"100,000 x 100,000": (100_000, 100_000), "1 x 50,000,000": (1, 50_000_000),
          "50,000,000 x 1": (50_000_000, 1), "2**31 - 1": (2**31 - 1, 2**31 - 1),
          "just too wide": (photo.MAX_SIDE + 1, 1), "just too many": (20_000, 1_001)}


@LINUX
@pytest.mark.parametrize("width, height", CLAIMS.values(), ids=CLAIMS)
@pytest.mark.slow
def test_image_that_claims_too_much_is_refused_before_it_is_decoded(tmp_path, width, height):
    path = tmp_path / "claim.png"
    write_png(path, width, height, zlib.compress(bytes(min(2 * height, 10**8)), 1))
    assert growth(one_line, path, photo.read_digits, path) < 50_000_000


@LINUX
@pytest.mark.parametrize("suffix, mode, options", [
    ("png", "RGBA", {}), ("jpg", "CMYK", {"progressive": True}), ("webp", "RGBA", {"quality": 0}),
    ("gif", "P", {}), ("bmp", "RGB", {})], ids=str)
@pytest.mark.slow
def test_largest_image_takes_bounded_memory(tmp_path, suffix, mode, options):
    path, side = tmp_path / f"large.{suffix}", (5_000, photo.MAX_PIXELS // 5_000)
    picture = Image.new(mode, side)
    picture.paste(Image.new(mode, (500, 2_000), (255,) * len(picture.getbands())), (2_000, 1_000))
    picture.save(path, **options, **({"method": 0} if suffix == "webp" else {}))
    assert growth(photo.read_digits, path) < MEMORY


def saved(name, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.effect_noise((12, 12), 90).convert(mode).save(buffer, name, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name, mode", [
    ("DDS", "RGBA"), ("AVIF", "RGB"), ("SPIDER", "F"), ("BLP", "P"), ("TGA", "RGB"), ("ICO", "RGB"),
    ("JPEG2000", "RGB"), ("PCX", "L"), ("SGI", "L"), ("EPS", "L"), ("PDF", "L"),
    ("ICNS", "RGB"), ("MSP", "1"), ("XBM", "1")])
def test_format_that_few_use_is_refused_whole_or_damaged(tmp_path, name, mode):
    """The loaders of several raise what nobody expects, and EPS runs Ghostscript."""
    Image.init()
    if name not in Image.SAVE:
        pytest.skip("this Pillow does not write it")
    path, content = tmp_path / "a.png", saved(name, mode)
    for damaged in (content, content[:60], content[:4] + b"\xff" * 60):
        path.write_bytes(damaged)
        assert "not a readable image" in one_line(path, photo.read_digits, path)


@pytest.mark.slow
def test_damaged_tiff_gives_one_line_and_nothing_on_stderr(tmp_path, capfd):
    path, content = tmp_path / "a.tif", saved("TIFF", "L")
    path.write_bytes(content)
    photo.read_digits(path)
    start, = struct.unpack("<I", content[4:8])
    for at in range(start, len(content)):
        for byte in (0, 1, 255):
            path.write_bytes(content[:at] + bytes([byte]) + content[at + 1:])
            try:
                photo.read_digits(path)
            except InputError as error:
                assert len(str(error).splitlines()) == 1
    path.write_bytes(saved("TIFF", "L", compression="tiff_lzw"))
    assert "packed" in one_line(path, photo.read_digits, path)
    assert capfd.readouterr() == ("", "")


def test_encodings_that_pillow_reads_in_python_are_refused(tmp_path):
    """One byte at a time: a few MB took minutes."""
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P3 2 2 255\n" + b"0 0 0 255 255 255 " * 2)
    assert "packed" in one_line(path, photo.read_digits, path)
    rows = bytearray(saved("BMP", "L"))
    rows[30] = 1                                # its header's compression: run lengths
    path.write_bytes(rows)
    one_line(path, photo.read_digits, path)


def test_jpeg_of_a_thousand_scans_is_refused(tmp_path):
    path, content = tmp_path / "a.jpg", saved("JPEG", "L", progressive=True)
    path.write_bytes(content)
    photo.read_digits(path)
    scan = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\x10"
    path.write_bytes(content[:-2] + 1_000 * scan + content[-2:])
    assert "scans" in one_line(path, photo.read_digits, path)


def test_every_format_that_is_read_is_fuzzed():
    formats = {Image.open(io.BytesIO(seed)).format for seed in hostile.image_seeds()}
    assert formats >= set(photo.FORMATS)
