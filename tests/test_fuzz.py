"""Hostile files: a quick part of benchmarks.fuzz, what it must notice, and each known trick."""
import gzip
import io
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import config
import data
import integer
import training
from benchmarks import fuzz, mutate
from conftest import ROOT
from formats import checkpoint, npz, photo
from machine.files import InputError
from report import results
from runner import state as runs

LIMIT = 512_000_000             # bytes of memory for any file


@pytest.mark.parametrize("name", fuzz.LOADERS)
def test_changed_files_load_or_give_one_line(name):
    row = fuzz.fuzz(name, 300, seed=1)
    assert row["failures"] == []
    assert row["loaded"] + row["refused"] == 300
    assert min(row["loaded"], row["refused"]) >= 20     # so that the changes are not all too wild


def test_an_input_depends_on_its_number_and_the_seed_only(tmp_path):
    loader = fuzz.LOADERS["results"](tmp_path)
    texts = [[fuzz.make_input(loader, "results", seed, i) for i in range(50)] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def raise_(error):
    raise error


FAULTS = {
    "traceback": (lambda: [][1], "IndexError"),
    "too slow": (lambda: time.sleep(9), "over 0.05 s"),
    "caught, but slow": (lambda: raise_(InputError(time.sleep(9))), "over 0.05 s"),
    "eval": (lambda: eval("1"), "compile"),
    "exec of compiled code": (lambda code=compile("1", "x", "exec"): exec(code), "exec"),
    "shell": (lambda: os.system("true"), "os.system"),
    "writing": (lambda: open(os.devnull, "w"), "open"),
    "swallowed": (lambda: pytest.raises(PermissionError, os.system, "true"), "os.system"),
    "print": (lambda: print("look"), "look"),
    "warning": (lambda: warnings.warn("look"), "look"),
    "two lines": (lambda: raise_(InputError("a\u2028b" * 1_000)), "message"),
}


@pytest.mark.parametrize("load, detail", FAULTS.values(), ids=FAULTS)
def test_each_kind_of_fault_is_noticed(monkeypatch, load, detail):
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    previous = fuzz.signal.signal(fuzz.signal.SIGALRM, fuzz.on_alarm)
    try:
        ending, what, seconds = fuzz.attempt(load, fuzz.make_guard())
    finally:
        fuzz.signal.signal(fuzz.signal.SIGALRM, previous)
    assert ending == "failure" and detail in what and seconds < 5


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
    content = fuzz.make_networks(np.random.default_rng(0))[0]
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
    assert side**2 == integer.MAX_WEIGHTS
    meta = {"format": checkpoint.FORMAT, "quantized": True, "layer_sizes": [side, side],
            "facts": {}, "weight_bits": 1, "activation_bits": 8, "logit_exponent": 0}
    path.write_bytes(npz.encode(meta, {"w0_q": np.zeros(side**2 // 8, np.uint8),
                                       "b0_q": np.zeros(side, np.int32)}))
    assert path.stat().st_size < 35_000
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
    hyper = config.hyper(config.load([]), LAYER_SIZES=(7, 5, 3), BATCH_SIZE=2, MAX_EPOCHS=100)
    return training.start([0.1, 0.01], [0, 1], hyper)


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
def test_largest_result_takes_bounded_memory(tmp_path, item):
    path, part = tmp_path / "r.json", results.MAX_BYTES // 16
    path.write_bytes(b'{"a":[' + item * (part // len(item)) + b"0]}")
    assert 16 * peak_of(results.read_result, path) < LIMIT
    with open(path, "wb") as file:
        file.truncate(results.MAX_BYTES + 1)
    assert "larger" in one_line(path, results.read_result, path)


# Data

def test_labels_and_images_that_claim_a_thousand_times_their_file_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    for pair in data.FILES:
        data.write_idx(tmp_path / pair[0], rng.integers(0, 256, (30, 4, 4), np.uint8))
        data.write_idx(tmp_path / pair[1], np.zeros(30, np.uint8))
    data.load(tmp_path)
    (tmp_path / data.FILES[0][0]).unlink()
    shape = 2**14, 64, 64                       # 67 MB, as honest as its file of 65 kB can be
    path = tmp_path / f"{data.FILES[0][0]}.gz"
    path.write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, *shape) + bytes(2**26), 9))
    assert path.stat().st_size < 100_000
    assert peak_of(one_line, path, data.load, tmp_path) < 2**21


# Images

def write_png(path, width, height, bits=1, color=0, data=b""):
    """A PNG of these claims with right checksums."""
    chunks = [(b"IHDR", struct.pack(">2I5B", width, height, bits, color, 0, 0, 0)),
              (b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks))


def growth(path):
    """(message or "", bytes of memory that reading an image adds at its peak), in a new process."""
    program = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from formats import photo
from machine import facts
from report import results
from machine.files import InputError
for path in sys.argv[1:]:
    before, message = facts.peak_memory(), ""
    try:
        photo.read_digit(path, 784)
    except InputError as error:
        message = str(error)
print(facts.peak_memory() - before)
print(message)
"""
    small = path.with_name("small.png")         # it loads Pillow before anything is measured
    Image.new("L", (30, 30)).save(small)
    done = subprocess.run([sys.executable, "-c", program, small, path], capture_output=True,
                          text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    size, message = done.stdout.splitlines()
    return message, int(size)


CLAIMS = {"100,000 x 100,000": (100_000, 100_000), "1 x 50,000,000": (1, 50_000_000),
          "50,000,000 x 1": (50_000_000, 1), "2**31 - 1": (2**31 - 1, 2**31 - 1),
          "just too wide": (photo.MAX_SIDE + 1, 1), "just too many": (20_000, 1_001)}


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
@pytest.mark.parametrize("width, height", CLAIMS.values(), ids=CLAIMS)
def test_image_that_claims_too_much_is_refused_before_it_is_decoded(tmp_path, width, height):
    path = tmp_path / "claim.png"
    write_png(path, width, height, data=zlib.compress(bytes(min(2 * height, 10**8)), 1))
    message, size = growth(path)
    assert str(path) in message and size < 50_000_000


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
@pytest.mark.parametrize("suffix, mode, options", [
    ("png", "RGBA", {}), ("jpg", "CMYK", {"progressive": True}), ("webp", "RGBA", {"quality": 0}),
    ("gif", "P", {}), ("bmp", "RGB", {})], ids=str)
def test_largest_image_takes_bounded_memory(tmp_path, suffix, mode, options):
    path, side = tmp_path / f"large.{suffix}", (5_000, photo.MAX_PIXELS // 5_000)
    picture = Image.new(mode, side)
    picture.paste(Image.new(mode, (500, 2_000), (255,) * len(picture.getbands())), (2_000, 1_000))
    picture.save(path, **options, **({"method": 0} if suffix == "webp" else {}))
    message, size = growth(path)
    assert size < LIMIT and (message == "" or "blank" in message)


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
        assert "not a readable image" in one_line(path, photo.read_digit, path, 784)


def test_damaged_tiff_gives_one_line_and_nothing_on_stderr(tmp_path, capfd):
    path, content = tmp_path / "a.tif", saved("TIFF", "L")
    path.write_bytes(content)
    photo.read_digit(path, 784)
    start, = struct.unpack("<I", content[4:8])
    for at in range(start, len(content)):
        for byte in (0, 1, 255):
            path.write_bytes(content[:at] + bytes([byte]) + content[at + 1:])
            try:
                photo.read_digit(path, 784)
            except InputError as error:
                assert len(str(error).splitlines()) == 1
    path.write_bytes(saved("TIFF", "L", compression="tiff_lzw"))
    assert "packed" in one_line(path, photo.read_digit, path, 784)
    assert capfd.readouterr() == ("", "")


def test_encodings_that_pillow_reads_in_python_are_refused(tmp_path):
    """One byte at a time: a few MB took minutes."""
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P3 2 2 255\n" + b"0 0 0 255 255 255 " * 2)
    assert "packed" in one_line(path, photo.read_digit, path, 784)
    rows = bytearray(saved("BMP", "L"))
    rows[30] = 1                                # its header's compression: run lengths
    path.write_bytes(rows)
    one_line(path, photo.read_digit, path, 784)


def test_jpeg_of_a_thousand_scans_is_refused(tmp_path):
    path, content = tmp_path / "a.jpg", saved("JPEG", "L", progressive=True)
    path.write_bytes(content)
    photo.read_digit(path, 784)
    scan = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\x10"
    path.write_bytes(content[:-2] + 1_000 * scan + content[-2:])
    assert "scans" in one_line(path, photo.read_digit, path, 784)


def test_every_format_that_is_read_is_fuzzed():
    formats = {Image.open(io.BytesIO(seed)).format for seed in mutate.image_seeds()}
    assert formats >= set(photo.FORMATS)
