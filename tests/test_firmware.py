"""The engine for chips gives the integers of the weights file, on this machine and in emulators."""
import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from test_deploy import CASES, drag, make_network, random_images

import integer
import main_export
import oracle
import plan
from benchmarks import firmware
from conftest import ROOT
from deploy import engines, planes, to_c, to_firmware, to_web
from formats import checkpoint, encode

CHIPS = list(to_firmware.CHIPS)
SMALL = plan.parse("crop24 mean2 40 33", (28, 28, 1), 10)       # no multiple of a word
POOLED_9 = plan.parse("crop24 mean2 9", (28, 28, 1), 3)
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-O2")
ARDUINO = Path("/usr/share/arduino/hardware/arduino/avr")
CORE = ("main.cpp", "HardwareSerial.cpp", "HardwareSerial0.cpp", "Print.cpp", "Stream.cpp",
        "WString.cpp", "abi.cpp", "new.cpp")


BATCH = """
void mlp_predict_batch(const uint8_t *images, int32_t *logits, uint32_t count)
{
    for (; count; count--, images += MLP_INPUTS, logits += MLP_CLASSES)
        mlp_predict(images, logits);
}
"""


def host_files(network, lanes):
    """The chips' engine as engines.make_c and make_c_program take it, words of so many bits."""
    engine = (to_firmware.FOLDER / "chip.c").read_text("utf-8")
    header = to_firmware.header(network, planes.make_all_tables(network, lanes), lanes)
    return {"mlp.h": header + BATCH.split("\n{")[0] + ";\n",
            "mlp.c": engine + BATCH}


def extreme_images(pixels=784):
    """Every pattern of digits in all pixels at once: the most rows that a plane can list."""
    codes = np.array([0, 1, 85, 128, 170, 171, 255], np.uint8)
    return np.repeat(codes[:, None], pixels, axis=1)


@pytest.mark.parametrize("lanes", [8, 32])
@pytest.mark.parametrize("weight_bits, activation_bits, input", CASES)
def test_engine_equals_oracle_at_every_width(need, lanes, weight_bits, activation_bits,
                                             input):
    network = make_network(weight_bits, activation_bits, input)
    images = np.concatenate([random_images(150), extreme_images()])
    run = need(engines.make_c, host_files(network, lanes), flags=STRICT)
    np.testing.assert_array_equal(run(images), oracle.run(network, images))


@pytest.mark.parametrize("lanes", [8, 32])
@pytest.mark.parametrize("sign", [-1, 1])
def test_no_carry_is_lost_when_all_weights_pull_one_way(need, lanes, sign):
    """The proof of count_planes at its edge: each sum goes as far as any can."""
    layer = integer.Layer(np.full((144, 9), 3 * sign, np.int8), np.full(9, -500 * sign, np.int32),
                          np.full(9, 9, np.int8))
    last = integer.Layer(np.full((9, 3), -3 * sign, np.int8), np.zeros(3, np.int32), None)
    network = integer.make_network([layer, last], 3, 8, 0, POOLED_9)
    run = need(engines.make_c, host_files(network, lanes), flags=STRICT)
    images = extreme_images()
    np.testing.assert_array_equal(run(images), oracle.run(network, images))


def test_a_byte_has_as_many_signed_digits_as_the_pages_say(mnist):
    """2.8 on average in the pooled pixels that are not 0, 1.2 fewer than bits."""
    def digits(code):
        count = 0
        while code:                             # the definition: an odd number loses 1 or -1
            odd = 2 - code % 4 if code % 2 else 0
            count += odd != 0
            code = (code - odd) // 2
        return count
    table = np.array([digits(code) for code in range(256)])
    codes = oracle.pool_all(mnist.test.images, POOLED_9).astype(np.uint8).ravel()
    codes = codes[codes > 0]
    signed, plain = table[codes].mean(), np.bitwise_count(codes).mean()
    assert (round(signed, 1), round(plain - signed, 1)) == (2.8, 1.2)
    assert "2.8 on average for a pixel, 1.2 fewer" in (ROOT / "deploy/chip.c").read_text("utf-8")
    assert "2.8 digits on average, 1.2 fewer" in (ROOT / "docs/firmware.md").read_text("utf-8")


@pytest.mark.parametrize("shifts", [[30] * 9, [1] * 8 + [30], [14] * 9])
def test_shifts_beyond_the_sums_give_zeros(need, shifts):
    rng = np.random.default_rng(5)
    layer = integer.Layer(rng.integers(-3, 4, (144, 9), np.int8), np.full(9, 900, np.int32),
                          np.array(shifts, np.int8))
    last = integer.Layer(rng.integers(-3, 4, (9, 3), np.int8), np.arange(3, dtype=np.int32), None)
    network = integer.make_network([layer, last], 3, 8, 0, POOLED_9)
    run = need(engines.make_c, host_files(network, 32), flags=STRICT)
    images = random_images(200)
    np.testing.assert_array_equal(run(images), oracle.run(network, images))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("lanes, bits", [(8, 3), (32, 1), (32, 3)])
@pytest.mark.slow
def test_engine_is_clean_under_sanitizers(need, tmp_path, compiler, lanes, bits):
    network = make_network(bits, 8, 12)
    images = np.concatenate([random_images(200), extreme_images()])
    flags = ("-std=c99", "-O1", *engines.SANITIZERS)
    built = host_files(network, lanes), tmp_path, compiler, flags
    run = need(engines.make_c_program, *built)
    np.testing.assert_array_equal(run(images), oracle.run(network, images))


@pytest.mark.parametrize("line", ["crop24 mean2 9", "conv5x8/2 conv3x9 max2 conv3x20 12"])
@pytest.mark.slow
def test_engine_multiplies_nothing_and_takes_nothing_from_libraries(need, tmp_path, line):
    """On RV32E the multiplication would be libgcc's: an undefined symbol."""
    steps = plan.parse(line, (28, 28, 1), 10)
    network = oracle.random_network(np.random.default_rng(3), steps, 3, 4)
    for chip in CHIPS:
        has = to_firmware.CHIPS[chip]
        compiler = need(firmware.find, f"{has.tools}gcc", has.package)
        for name, text in to_firmware.export(network, [chip])[0].items():
            (tmp_path / Path(name).name).write_text(text, "utf-8")
        flags = [*has.flags.split(), *STRICT, "-ffreestanding",
                 "-fno-tree-loop-distribute-patterns"]
        subprocess.run([compiler, *flags, "-c", "mlp.c", "-o", "mlp.o"], cwd=tmp_path, check=True)
        listed = subprocess.run([f"{has.tools}nm", "-u", "mlp.o"], cwd=tmp_path, check=True,
                                capture_output=True, text=True).stdout.split()
        # avr-gcc counts on the start-up code to copy the layers' table and clear registers.
        assert set(listed) - {"U", "__do_copy_data", "__do_clear_bss"} <= {"memcpy", "memset"}, chip
        code = subprocess.run([f"{has.tools}objdump", "-d", "mlp.o"], cwd=tmp_path, check=True,
                              capture_output=True, text=True).stdout
        if chip != "atmega328p":            # there mul shifts by constants and makes addresses
            assert not re.search(r"\t(mul|muls|mla|f[a-z]+\.[sd])\b", code), chip


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.slow
def test_chip_gives_the_oracles_integers_and_needs_what_was_said(need, tmp_path, chip):
    network = oracle.random_network(np.random.default_rng(3), SMALL, 3, 8)
    images = np.concatenate([random_images(6), extreme_images()])
    got = need(firmware.measure, network, chip, images, tmp_path)
    assert got["mismatches"] == 0 and got["images"] == len(images)
    flash, ram = to_firmware.export(network, [chip])[1][chip]
    assert flash - 1_500 < got["flash"] <= flash
    assert ram - 200 < got["ram"] <= ram
    assert 1_000 < got.get("instructions", got.get("cycles")) <= got["most"] < 1_000_000


# What a network may have much of, as layer sizes.
SHAPES = {"classes": lambda n: (16, n), "inputs": lambda n: (n, 10), "hidden": lambda n: (8, n, 4),
          "layers": lambda n: (8,) * n + (10,)}     # n of them
MOST = {"classes": plan.MAX_WIDTH, "inputs": plan.MAX_WIDTH, "hidden": plan.MAX_WIDTH,
        "layers": plan.MAX_STEPS}


def widest(much, weight_bits, export):
    """The largest network, much of one thing, that `export` does not refuse; and how much."""
    fits, fails, network = 0, MOST[much] + 1, None
    while fails - fits > 1:
        n = (fits + fails) // 2
        try:
            tried = oracle.random_network(np.random.default_rng(n), SHAPES[much](n), weight_bits)
            export(tried)
            fits, network = n, tried
        except ValueError:
            fails = n
    return fits, network


@pytest.mark.parametrize("much", SHAPES)
@pytest.mark.parametrize("chip", ["atmega328p", *(pytest.param(chip, marks=pytest.mark.long)
                                                  for chip in CHIPS[:-1])])
@pytest.mark.slow
def test_widest_network_that_fits_a_chip_runs_there(need, tmp_path, chip, much):
    """No counter in it is narrower than what it counts; each of them counts beyond a byte."""
    n, network = widest(much, 1, lambda network: to_firmware.export(network, [chip]))
    assert n == plan.MAX_STEPS if much == "layers" else n > 256
    inputs = plan.inputs(network.steps)
    images = np.concatenate([random_images(2, inputs), extreme_images(inputs)[-2:]])
    got = need(firmware.measure, network, chip, images, tmp_path)
    assert got["mismatches"] == 0 and got["images"] == len(images)
    flash, ram = to_firmware.export(network, [chip])[1][chip]
    assert got["flash"] <= flash and got["ram"] <= ram


@pytest.mark.long
@pytest.mark.parametrize("lanes", [8, 32])
@pytest.mark.parametrize("much, bits", [("classes", 1), ("inputs", 8), ("inputs", 1),
                                        ("hidden", 1)])
def test_widest_network_that_the_offsets_reach_equals_oracle(need, lanes, much, bits):
    n, network = widest(much, bits, lambda network: host_files(network, lanes))
    assert 1_000 < n <= plan.MAX_WIDTH
    images = random_images(2, plan.inputs(network.steps))
    run = need(engines.make_c, host_files(network, lanes), flags=STRICT)
    np.testing.assert_array_equal(run(images), oracle.run(network, images))


@pytest.mark.slow
def test_fewer_bits_take_fewer_instructions_and_less_flash(need, tmp_path):
    images, took, steps = random_images(4), [], plan.parse("crop24 mean2 24", (28, 28, 1), 10)
    for bits in (1, 2, 4):
        network = oracle.random_network(np.random.default_rng(3), steps, bits, 8)
        row = need(firmware.measure, network, "rv32ec", images, tmp_path)
        took.append((row["instructions"], row["flash"]))
    assert took == sorted(took)


@pytest.mark.slow
def test_script_refuses_what_does_not_fit_and_writes_nothing(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save("w.npz", make_network(8))
    for arguments in (("firmware", "rv32ec"), ("firmware", "cortex-m3", "atmega328p"), ("uno",),
                      ("firmware",)):
        code, out, err = script(main_export.main, *arguments, "--WEIGHTS=w.npz")
        assert (code, out, len(err)) == (2, [], 1)
        needed, has = re.findall(r"(\d[\d,]+) ?(?:bytes|$)", err[0])
        assert int(needed.replace(",", "")) > int(has.replace(",", "")) in (16_384, 32_256, 32_768)
    code, out, err = script(main_export.main, "firmware", "z80", "--WEIGHTS=w.npz")
    assert (code, out) == (2, []) and "cortex-m0, cortex-m3, rv32ec, atmega328p" in err[0]
    assert not (tmp_path / "deploy").exists()


def test_script_writes_folders_that_name_a_missing_compiler(script, tmp_path, monkeypatch, need):
    monkeypatch.chdir(tmp_path)
    checkpoint.save("w.npz", oracle.random_network(np.random.default_rng(3), SMALL, 2, 4))
    code, out, err = script(main_export.main, "firmware", "rv32ec", "cortex-m0", "--WEIGHTS=w.npz")
    assert (code, err) == (0, [])
    folder = tmp_path / "deploy" / "out" / "firmware"
    assert sorted(path.name for path in folder.iterdir()) == ["cortex-m0", "rv32ec"]
    make = need(firmware.find, "make", "make")
    made = subprocess.run([make, "-s", "-C", folder / "rv32ec", "CC=no-such-gcc"],
                          capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout == ("rv32ec: skipped: no no-such-gcc; install gcc-riscv64-unknown-elf\n")


def build_sketch(network, folder, facts=None):
    """The Uno's sketch, by Arduino's own core: (ELF file, bytes of flash, of .data and .bss)."""
    compiler = firmware.find("avr-gcc", "gcc-avr and avr-libc")
    if not ARDUINO.is_dir():
        raise engines.Missing("no Arduino core: install arduino-core-avr")
    for name, text in to_firmware.export_uno(network, facts).items():
        (folder / name).write_text(text, "utf-8")
    core = ARDUINO / "cores" / "arduino"
    flags = ["-mmcu=atmega328p", "-DF_CPU=16000000L", "-DARDUINO=10819", "-DARDUINO_AVR_UNO", "-Os",
             "-DARDUINO_ARCH_AVR", "-DDECIMAL_DIG=__DECIMAL_DIG__", f"-I{core}",
             f"-I{ARDUINO / 'variants' / 'standard'}", "-w", "-ffunction-sections",
             "-fdata-sections", "-Wl,--gc-sections", "-c"]
    both = ((["-std=gnu11"], ["mlp.c", *(core / name for name in (
                "wiring.c", "wiring_analog.c", "hooks.c"))]),
            (["-std=gnu++11", "-fno-exceptions", "-fno-threadsafe-statics"],
             [*(core / name for name in CORE), "-include", "Arduino.h", "-x", "c++", "uno.ino"]))
    for more, sources in both:
        subprocess.run([compiler, *flags, *more, *sources], cwd=folder, check=True)
    subprocess.run([compiler, "-mmcu=atmega328p", "-Wl,--gc-sections", *folder.glob("*.o"), "-o",
                    "uno.elf"], cwd=folder, check=True)
    sizes = subprocess.run(["avr-size", "uno.elf"], cwd=folder, check=True, capture_output=True,
                           text=True).stdout.splitlines()[-1].split()
    text, data, bss = map(int, sizes[:3])
    return folder / "uno.elf", text + data, data + bss


# A serial port in the page whose other end is Python's function uno(bytes) -> line.
PORT = """
let portLines;
const port = {
    open: async () => {}, writable: { getWriter: () => ({ write: async image => {
        portLines.enqueue(new TextEncoder().encode(await uno(Array.from(image)))); } }) },
    readable: new ReadableStream({ start: lines => {
        portLines = lines; lines.enqueue(new TextEncoder().encode("ready\\r\\n")); } }) };
Object.defineProperty(navigator, "serial", { value: { requestPort: async () => port } });
"""


@pytest.fixture(params=["6kB", "classes", *(pytest.param(much, marks=pytest.mark.long)
                                            for much in ("inputs", "hidden", "layers"))])
def sketch(need, tmp_path, request):
    """(a network, its sketch's port in simavr, how to end it: -> bytes of RAM that it took).

    The network is a recipe's, or the widest that fits.
    """
    if request.param in SHAPES:
        _, network = widest(request.param, 1, to_firmware.export_uno)
    else:
        network, _ = checkpoint.load_quantized(ROOT / f"weights/recipes/{request.param}.nqat")
    elf, flash, static = need(build_sketch, network, tmp_path)
    assert flash < 32_768 - 512                 # the bootloader's
    process, port, theirs = need(firmware.start_simavr, elf, static, tmp_path)

    def end():
        if not port.closed:
            os.close(theirs)
            port.close()
            return static + int(process.communicate(timeout=60)[0].split()[-1])
    yield network, port, end
    end()


def test_unos_sketch_answers_over_a_serial_port(sketch):
    network, port, end = sketch
    inputs = plan.inputs(network.steps)
    images, answers = random_images(1, inputs), []
    for image in images:
        port.write(image.tobytes())
        answers.append([int(word) for word in firmware.read_line(port).split()])
    *got, microseconds = np.array(answers).T
    want = oracle.run(network, images)
    np.testing.assert_array_equal(np.transpose(got), np.c_[want.argmax(1), want])
    assert (1_000 < microseconds).all() and (microseconds < 60_000).all()
    assert end() < 2_048                        # else the stack would have met the data


@pytest.mark.parametrize("line, shape", [("conv3x5 max2 9", (1, 12, 2)), ("7", (3,))])
def test_unos_sketch_reads_sensors_and_prints_the_class(need, tmp_path, line, shape):
    """simavr's analog inputs read 0 where nothing is connected."""
    network = oracle.random_network(np.random.default_rng(5), plan.parse(line, shape, 3), 4, 4)
    low, exponent = np.float32([-90, -7, -130][:shape[-1]]), np.array([0, -2, 1][:shape[-1]])
    facts = checkpoint.Facts(classes=("sit", "wälk", "run away"), low=low, exponent=exponent)
    codes = np.resize(encode.encode(np.zeros((1, shape[-1]), np.float32),
                                    encode.Encoding(low, exponent)), (1, int(np.prod(shape))))
    want = facts.classes[oracle.run(network, codes).argmax()]
    elf, flash, static = need(build_sketch, network, tmp_path, facts)
    process, port, theirs = need(firmware.start_simavr, elf, static, tmp_path)
    try:
        assert flash < 32_768 - 512
        assert [firmware.read_line(port) for _ in range(2)] == [want, want]
    finally:
        process.kill()
        process.communicate()
        os.close(theirs)
        port.close()


@pytest.mark.parametrize("sketch", ["6kB"], indirect=True)
@pytest.mark.slow
def test_page_and_sketch_agree_on_a_drawing(need, sketch, tmp_path):
    """The page's own script, a port in place of the browser's, simavr behind it."""
    network, port, _ = sketch
    asked = []

    def uno(image):
        asked.append(image)
        port.write(bytes(image))
        return firmware.read_line(port) + "\r\n"
    (tmp_path / "mlp.html").write_text(to_web.export(network), "utf-8")
    stack = ExitStack()
    page = need(stack.enter_context, engines.open_page(tmp_path / "mlp.html"))
    with stack:
        page.expose_function("uno", uno)
        page.add_init_script(PORT)
        page.reload()
        page.get_by_role("button", name="Connect an Arduino").click()
        page.wait_for_function("find('uno').textContent.includes('ready')")
        drag(page, (.3, .25), (.6, .2), (.4, .8))
        page.wait_for_function("find('uno').textContent.includes('ms')")
        page.wait_for_timeout(300)
        said, digit = page.locator("#uno").inner_text(), page.locator("#digit").inner_text()
    assert re.fullmatch(rf"It reads {digit} in \d+\.\d ms; every integer is the same\.", said)
    assert asked and len(asked[-1]) == 784


def test_an_example_made_up_of_features_is_what_its_codes_say(monkeypatch):
    """Of a constant feature, whose step is the largest, and one whose float32 is coarser."""
    low, exponent = np.float32([0, 101_325, 3]), np.array([encode.MOST, -8, 0])
    network = oracle.random_network(np.random.default_rng(1), plan.parse("5", (3,), 3), 4, 4)
    facts, seen = checkpoint.Facts(classes=("a", "b", "c"), low=low, exponent=exponent), []
    monkeypatch.setattr(to_c, "make_example", lambda network: np.uint8([200, 77, 255]))
    kept = to_firmware.example_header
    monkeypatch.setattr(to_firmware, "example_header", lambda network, image, features: (
        seen.append((image, features)), kept(network, image, features))[1])
    files, _ = to_firmware.export(network, ["rv32ec"], facts)
    (image, features), = seen
    assert np.isfinite(features).all() and "inf" not in files["rv32ec/example.h"]
    np.testing.assert_array_equal(image, encode.encode(features, encode.Encoding(low, exponent)))


def test_names_and_the_table_of_features_count_as_flash():
    network = oracle.random_network(np.random.default_rng(1), plan.parse("5", (3,), 3), 4, 4)
    plain = checkpoint.Facts(classes=("0", "1", "2"))
    facts = plain._replace(classes=("0", "1", "x" * 99), low=np.zeros(3, np.float32),
                           exponent=np.zeros(3, int))
    _, few = to_firmware.export(network, ["rv32ec"], plain)
    _, more = to_firmware.export(network, ["rv32ec"], facts)
    assert more["rv32ec"][0] - few["rv32ec"][0] == 3 * 98 + 3 * 8
