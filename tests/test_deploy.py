"""Exported models compute the integers of the weights file: ONNX Runtime, C and JavaScript."""
import base64
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import photos
import pytest
from PIL import Image

import convert
import data
import integer
import main_export
import oracle
import plan
from benchmarks import inference
from conftest import ROOT, write_idx
from deploy import engines, to_c, to_onnx, to_web
from formats import checkpoint, earlier, photo

SIZES = (784, 37, 22, 10)       # no multiple of a SIMD width or of the fields in a word
WIDTHS = [(8, 8), (7, 5), (5, 1), (4, 8), (3, 4), (2, 2), (1, 8), (1, 1)]
POOLED = [(4, 8, 14), (1, 8, 12), (2, 4, 10)]       # the side that images are pooled to, too
CASES = [(*widths, 28) for widths in WIDTHS] + POOLED
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-O2")
# The instructions of the processor: its widest, half as wide where it has both, none.
BUILDS = [(), ("-mno-avx512f",), (engines.PLAIN,)]


def make_network(weight_bits=8, activation_bits=8, input=28, sizes=SIZES):
    """A random legal Network, the same at every call; pooling sets its number of inputs."""
    sizes = sizes if input == 28 else (input**2, *sizes[1:])
    line, shape = earlier.from_sizes(input, sizes)
    return oracle.random_network(np.random.default_rng(weight_bits),
                                 plan.parse(line, shape, sizes[-1]), weight_bits, activation_bits)


def random_images(count, inputs=784):
    """Uniform bytes, a quarter of them zero, then an all-zero and an all-255 image."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, inputs), dtype=np.uint8)
    images[rng.random(images.shape) < 0.25] = 0
    extremes = np.repeat(np.array([[0], [255]], np.uint8), inputs, axis=1)
    return np.concatenate([images, extremes])


def in_batches(run, size):
    """run, on `size` images at a time."""
    return lambda images: np.concatenate([run(images[at:at + size])
                                          for at in range(0, len(images), size)])


@pytest.fixture(scope="module")
def answers(trained, mnist):
    """The classes that the oracle says the trained network gives the test images."""
    return oracle.run(trained.network, mnist.test.images).argmax(1)


@pytest.fixture(scope="module")
def browser_page(tmp_path_factory, trained):
    """The page of a trained network in a browser, and its address."""
    path = tmp_path_factory.mktemp("page") / "mlp.html"
    path.write_text(to_web.export(trained.network), "utf-8")
    try:
        with engines.open_page(path) as opened:
            yield opened, path.as_uri()
    except engines.Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def page(browser_page):
    """The page, freshly loaded."""
    opened, address = browser_page
    opened.set_viewport_size({"width": 1000, "height": 740})
    opened.goto(address)
    return opened


def drag(page, *points):
    """Draw a line through points given as fractions of the pad's side, with the mouse."""
    box = page.locator("#ink").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


@pytest.mark.parametrize("weight_bits, activation_bits, input", CASES)
def test_onnx_equals_oracle(weight_bits, activation_bits, input):
    network, images = make_network(weight_bits, activation_bits, input), random_images(500)
    run = engines.make_onnx(to_onnx.export(network))
    want = oracle.run(network, images)
    for batch in (1, 128, len(images)):
        got = in_batches(run, batch)(images)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("input, sizes", [(28, (784, 10)), (28, (784, 33, 10)), (28, (5, 3, 2)),
                                          (28, (9, 1, 1, 1, 3)), (12, (144, 10))])
@pytest.mark.slow
def test_any_shape_in_onnx_and_c(need, input, sizes):
    network = make_network(8, 8, input, sizes)
    images = random_images(100, plan.inputs(network.steps))
    want = oracle.run(network, images)
    np.testing.assert_array_equal(engines.make_onnx(to_onnx.export(network))(images), want)
    np.testing.assert_array_equal(need(engines.make_c, to_c.export(network)[0])(images), want)


def test_any_shift_in_onnx_and_c(need):
    """From the least to the largest, which gives 0 whatever the accumulator is."""
    network = make_network(sizes=(20, integer.MAX_SHIFT, 10))
    shifts = np.arange(1, integer.MAX_SHIFT + 1, dtype=np.int8)
    first = network.layers[0]._replace(shift=shifts)
    network = network._replace(layers=(first, network.layers[1]))
    images = random_images(300, 20)
    want = oracle.run(network, images)
    np.testing.assert_array_equal(engines.make_onnx(to_onnx.export(network))(images), want)
    np.testing.assert_array_equal(need(engines.make_c, to_c.export(network)[0])(images), want)


@pytest.mark.parametrize("input, sizes", [(28, SIZES), (28, (784, 10)), (14, (196, 9, 10)),
                                          (12, (144, 10))])
def test_onnx_is_stamped_with_the_least_that_its_operators_need(input, sizes):
    """Runtimes refuse what is newer than they are: opset 13 is of 2020, IR 7 goes with it."""
    model = onnx.load_from_string(to_onnx.export(make_network(4, 4, input, sizes)))
    (opset,) = model.opset_import
    assert (opset.domain, opset.version, model.ir_version) == ("", 13, 7)
    newest = max(onnx.defs.get_schema(node.op_type, max_inclusive_version=opset.version)
                 .since_version for node in model.graph.node)
    assert newest == opset.version


@pytest.mark.parametrize("input, sizes", [(28, SIZES), (28, (784, 10)), (12, (144, 10))])
def test_onnx_has_nothing_that_nobody_reads(input, sizes):
    graph = onnx.load_from_string(to_onnx.export(make_network(4, 4, input, sizes))).graph
    made = [*graph.initializer, *graph.input]
    names = [value.name for value in made] + [name for node in graph.node for name in node.output]
    read = {name for node in graph.node for name in node.input}
    assert sorted(names) == sorted(set(names))
    assert set(names) == read - {""} | {output.name for output in graph.output}


def test_onnx_does_not_saturate_products():
    """Largest codes everywhere: pairs of products leave int16, where u8 x s8 kernels saturate."""
    layers = []
    for i, layer in enumerate(make_network(sizes=(400, 64, 10)).layers):
        w_q = np.where(layer.w_q >= 0, 127, -127).astype(np.int8)
        w_q[:, ::2] = 127 if i == 0 else w_q[:, ::2]
        layers.append(layer._replace(w_q=w_q))
    network, images = integer.make_network(layers, 8, 8, 0), random_images(50, 400)
    np.testing.assert_array_equal(engines.make_onnx(to_onnx.export(network))(images),
                                  oracle.run(network, images))


def test_onnx_class_is_argmax_and_fuses(trained, mnist, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3              # it warns that such a file fits this machine only
    session = onnxruntime.InferenceSession(to_onnx.export(trained.network), options,
                                           providers=["CPUExecutionProvider"])
    logits, classes = session.run(None, {"image": mnist.test.images})
    assert classes.dtype == np.int64
    np.testing.assert_array_equal(classes, logits.argmax(1))
    nodes = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert nodes == ["QGemm", "QGemm", "MatMulInteger", "Add", "ArgMax"]


@pytest.mark.parametrize("build", [BUILDS[0], BUILDS[-1]])
@pytest.mark.parametrize("weight_bits, activation_bits, input", CASES)
@pytest.mark.slow
def test_c_equals_oracle(need, weight_bits, activation_bits, input, build):
    network, images = make_network(weight_bits, activation_bits, input), random_images(500)
    run = need(engines.make_c, to_c.export(network)[0], flags=(*engines.C_FLAGS, *build))
    np.testing.assert_array_equal(run(images), oracle.run(network, images))


@pytest.mark.long
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("sizes", [(784, 256, 128, 10), (255, 64, 65, 3), (257, 1, 2),
                                   (4100, 9, 2)])
def test_c_equals_oracle_at_every_remainder(need, sizes, build):
    """Inputs that are no whole number of fours or chunks, outputs of no whole number of lanes."""
    network, images = make_network(8, 8, 28, sizes), random_images(50, sizes[0])
    run = need(engines.make_c, to_c.export(network)[0], flags=(*engines.C_FLAGS, *build))
    np.testing.assert_array_equal(run(images), oracle.run(network, images))


@pytest.fixture
def compiled(tmp_path, need):
    """compiled(compiler, *flags, bits, input) -> (C program of a random network, the network)."""
    def build(compiler, *flags, bits=8, input=28, source="classify.c"):
        compiler = need(engines.find_compiler, compiler, flags)
        network = make_network(bits, input=input)
        for name, text in to_c.export(network)[0].items():
            (tmp_path / name).write_text(text, "utf-8")
        built = subprocess.run([compiler, *STRICT, *flags, "mlp.c", source, "-o", "program"],
                               cwd=tmp_path, capture_output=True, text=True)
        assert (built.returncode, built.stderr) == (0, "")
        return tmp_path / "program", network
    return build


# clang's sanitizers need libraries that are often missing; its traps need none.
@pytest.mark.long
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("flags", [(), ("-m32",), ("-march=native",), engines.SANITIZERS,
                                   ("-march=native", *engines.SANITIZERS),
                                   ("-march=native", "-fsanitize=undefined",
                                    "-fsanitize-trap=all")])
@pytest.mark.parametrize("bits, input", [(8, 28), (3, 12)])
def test_c_program_is_clean_and_classifies(compiled, tmp_path, compiler, flags, bits, input):
    program, network = compiled(compiler, *flags, bits=bits, input=input)
    images = random_images(60)
    classes = oracle.run(network, images).argmax(1)
    write_idx(tmp_path / "images", images.reshape(-1, 28, 28))
    half_wrong = classes + (np.arange(len(classes)) >= 31)
    write_idx(tmp_path / "labels", half_wrong.astype(np.uint8))
    ran = subprocess.run([program, tmp_path / "images"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.split() == [str(c) for c in classes]
    ran = subprocess.run([program, tmp_path / "images", tmp_path / "labels"], capture_output=True,
                         text=True)
    assert (ran.returncode, ran.stdout) == (0, "accuracy 50.00 % (31 of 62)\n")


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("bits, input, inputs", [(8, 28, 37), (3, 12, 144)])
@pytest.mark.slow
def test_c_reads_and_writes_no_byte_too_far(need, tmp_path, bits, input, inputs, build):
    network = make_network(bits, 8, input, (inputs, 66, 5, 3))
    images = random_images(1_000, plan.inputs(network.steps))
    run = need(engines.make_c_program, to_c.export(network)[0], tmp_path,
               flags=(*engines.C_FLAGS, *engines.SANITIZERS, *build))
    np.testing.assert_array_equal(run(images), oracle.run(network, images))


def test_c_program_refuses_bad_files_in_one_line(compiled, tmp_path):
    program, _ = compiled("gcc")
    images = random_images(3)
    write_idx(tmp_path / "images", images.reshape(-1, 28, 28))
    write_idx(tmp_path / "few", np.zeros(4, np.uint8))
    write_idx(tmp_path / "large", np.zeros((2, 30, 30), np.uint8))
    whole = (tmp_path / "images").read_bytes()
    for name, content in (("cut", whole[:-1]), ("long", whole + b"\0"), ("head", whole[:7]),
                          ("empty", b""), ("huge", whole[:4] + b"\xff" * 12 + whole[16:])):
        (tmp_path / name).write_bytes(content)
    cases = [["cut"], ["long"], ["head"], ["empty"], ["huge"], ["large"], ["few"], ["absent"], [],
             ["images", "few"], ["images", "images"], ["."]]
    for names in cases:
        ran = subprocess.run([program, *(tmp_path / name for name in names)], capture_output=True,
                             text=True)
        assert (ran.returncode, ran.stdout) == (2, ""), names
        assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1, names


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("flags", [(), ("-march=native",)])
@pytest.mark.slow
def test_test_vector_passes_and_fails_on_one_wrong_logit(compiled, tmp_path, compiler, flags):
    program, _ = compiled(compiler, *flags, source="example.c")
    assert subprocess.run([program]).returncode == 0
    head, logits = (tmp_path / "example.c").read_text().split("expected[] = {\n")
    first = logits.split(",")[0]
    (tmp_path / "example.c").write_text(f"{head}expected[] = {{\n{int(first) + 1}"
                                        f"{logits.removeprefix(first)}")
    subprocess.run([compiler, "mlp.c", "example.c", "-o", "other"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "other"]).returncode == 1


def compile_object(folder, compiler, flags, bits=8, input=28, sizes=SIZES):
    """mlp.o of a random network in a folder; returns the stack that its export promises."""
    files, _, ram = to_c.export(make_network(bits, 8, input, sizes))
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    subprocess.run([compiler, "-std=c99", *flags, "-c", "mlp.c"], cwd=folder, check=True)
    return ram


@pytest.mark.parametrize("flags", [("-O2",), ("-O3", "-march=native")])
@pytest.mark.slow
def test_c_engine_calls_nothing_but_memory_functions(need, tmp_path, flags):
    compile_object(tmp_path, need(engines.find_compiler), ("-fno-stack-protector", *flags))
    listed = subprocess.run(["nm", "-u", "mlp.o"], cwd=tmp_path, capture_output=True, text=True)
    assert {line.split()[-1] for line in listed.stdout.splitlines()} <= {
        "memcpy", "memset", "_GLOBAL_OFFSET_TABLE_"}


def test_c_engine_has_no_floating_point(need, tmp_path):
    """GCC compiles it without any register of such numbers; the word scan sees both ways."""
    compiler = need(engines.find_compiler, "gcc", ("-mgeneral-regs-only",))
    compile_object(tmp_path, compiler, ("-O2", "-mgeneral-regs-only"))
    engine = (ROOT / "deploy" / "engine.c").read_text("utf-8")
    for word in ("float", "double", "_ps", "_pd", "f32", "f64"):
        assert word not in engine.replace("no floating point", "")


@pytest.mark.parametrize("compiler, flags", [
    ("gcc", ("-m32",)), ("arm-none-eabi-gcc", ("-mcpu=cortex-m0", "-mthumb")),
    ("arm-none-eabi-gcc", ("-mcpu=cortex-m4", "-mthumb")), ("avr-gcc", ("-mmcu=atmega328p",)),
    ("riscv64-unknown-elf-gcc", ("-march=rv32ec", "-mabi=ilp32e"))])
@pytest.mark.slow
def test_stack_is_no_more_than_promised(need, tmp_path, compiler, flags):
    if compiler == "gcc":
        need(engines.find_compiler, compiler, flags)        # Arm's has no -m32
    elif not shutil.which(compiler):
        pytest.skip(f"no {compiler}")
    for bits, input, sizes in ((8, 28, (300, 37, 10)), (1, 12, SIZES)):
        for level in ("-Os", "-O2", "-O3"):
            ram = compile_object(tmp_path, compiler, (level, *flags, "-ffreestanding",
                                                      "-fstack-usage"), bits, input, sizes)
            used = {line.split("\t")[0].split(":")[-1]: int(line.split("\t")[1])
                    for line in (tmp_path / "mlp.su").read_text().splitlines()}
            assert ram - 150 <= sum(used.values()) <= ram, (bits, level, used)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_words_hold_every_code(bits):
    width = to_c.FIELD_BITS[bits]
    for layer in make_network(bits).layers:
        words = to_c.pack_words(layer.w_q, bits)
        inputs, outputs = layer.w_q.shape
        places = np.arange(0, 32, width, dtype=np.uint32)[:, None]
        fields = words[:, None] >> places & (1 << width) - 1
        fields = fields.reshape(inputs, -1)[:, :outputs].astype(np.int16)
        codes = 2 * fields - 1 if bits == 1 else fields - 2 ** (bits - 1)
        np.testing.assert_array_equal(codes, layer.w_q)


def test_lane_words_hold_four_inputs_of_each_output():
    for layer in make_network(sizes=(30, 17, 10)).layers:
        words = to_c.lane_words(layer.w_q)
        inputs, outputs = layer.w_q.shape
        assert words.shape == (-(-inputs // 4), -(-outputs // 64) * 64)
        codes = words.astype("<u4").view(np.int8).reshape(*words.shape, 4).swapaxes(1, 2)
        codes = codes.reshape(-1, words.shape[1])
        np.testing.assert_array_equal(codes[:inputs, :outputs], layer.w_q)
        assert not codes[inputs:].any() and not codes[:, outputs:].any()


@pytest.mark.slow
def test_page_equals_oracle_at_every_width(page, tmp_path):
    images = random_images(20)
    for network in (*(make_network(*case) for case in CASES), make_network(sizes=(784, 256))):
        (tmp_path / "other.html").write_text(to_web.export(network), "utf-8")
        page.goto((tmp_path / "other.html").as_uri())
        np.testing.assert_array_equal(engines.run_page(page, images),
                                      oracle.run(network, images))


@pytest.mark.slow
def test_page_reads_a_drawn_stroke(page, trained):
    digit = page.locator("#digit")
    assert digit.inner_text() == "–"
    drag(page, (.3, .25), (.45, .15), (.62, .2), (.68, .32), (.58, .45), (.45, .48), (.6, .52),
         (.7, .66), (.6, .82), (.44, .86), (.3, .78))
    page.wait_for_function("find('digit').textContent !== '–'")
    page.wait_for_timeout(100)
    seen = np.array(page.evaluate("Array.from(seen.getImageData(0, 0, 28, 28).data)"))
    seen = seen.reshape(28, 28, 4)[..., 0].astype(np.uint8)
    rows, columns = np.nonzero(seen > 127)
    assert 18 <= np.ptp(rows) + 1 <= 20                 # the longest side; blur dims its ends
    mass = seen / seen.sum()
    assert np.abs((mass.sum(1) @ np.arange(28), mass.sum(0) @ np.arange(28))
                  - np.array(14)).max() < 0.6
    assert digit.inner_text() == str(engines.run_page(page, seen.reshape(1, 784)).argmax())
    assert page.locator("#scores li").count() == 10
    assert page.locator("#time").inner_text().endswith("µs")
    layers = trained.network.layers             # of 8 bits: a byte a weight and a shift, 4 a bias
    count = sum(layer.w_q.size + 4 * layer.b_q.size + (layer.shift is not None) * layer.b_q.size
                for layer in layers)
    assert page.locator("#size").inner_text() == f"{count:,} bytes"
    assert page.locator("dt", has_text="Weights, biases, shifts").count() == 1
    logits = oracle.run(trained.network, seen.reshape(1, 784))[0]
    shares = np.exp((logits - logits.max()) * 2.0**trained.network.logit_exponent)
    shares = 100 * shares / shares.sum()
    for row, logit, share in zip(page.locator("#scores li").all(), logits, shares):
        assert row.inner_text().split("\n")[1:] == [f"{share:.1f} %", f"{logit:,}"]


@pytest.mark.slow
def test_page_shows_what_a_pooled_network_sees(page, tmp_path):
    (tmp_path / "pooled.html").write_text(to_web.export(make_network(4, 8, 12)), "utf-8")
    page.goto((tmp_path / "pooled.html").as_uri())
    drag(page, (.3, .25), (.6, .2), (.4, .8))
    page.wait_for_function("find('digit').textContent !== '–'")
    image, codes, best = page.evaluate("""() => {
        const pixels = paper.getImageData(0, 0, side, side).data.filter((_, i) => i % 4 === 3);
        const image = centre(pixels, side), { data } = seen.getImageData(0, 0, 12, 12);
        show();
        return [Array.from(image), Array.from(data), find("digit").textContent];
    }""")
    network = make_network(4, 8, 12)
    assert codes[::4] == oracle.pool(np.array(image), network.steps) and max(codes[::4]) > 99
    logits = oracle.run(network, np.array([image]))
    assert best == str(logits.argmax())


@pytest.mark.slow
def test_page_survives_empty_dot_and_scribble(page):
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#digit").inner_text() == "–"
    drag(page, (.5, .5))
    page.wait_for_function("find('digit').textContent !== '–'")
    places = np.random.default_rng(0).random((15, 2)) * 1.4 - 0.2       # leaves the pad, too
    drag(page, (.5, .5), *places)
    page.wait_for_timeout(100)
    assert page.locator("#digit").inner_text() in list("0123456789")
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#digit").inner_text() == "–"


def test_page_works_by_keyboard(page):
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    for _ in range(12):
        page.keyboard.press("ArrowDown")
    page.wait_for_function("find('digit').textContent !== '–'")
    page.keyboard.press("Escape")
    assert page.locator("#digit").inner_text() == "–"
    for name in ("undo", "clear"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name


def picture(page):
    """The bytes that the network gets."""
    page.wait_for_timeout(50)
    return page.evaluate("Array.from(drawnImage() ?? [])")


@pytest.mark.slow
def test_undo_takes_back_a_stroke_at_a_time(page):
    """By button and keys, of mouse and pen, and to the same bytes; even while drawing."""
    pictures = [picture(page)]
    for x in (.3, .5, .7):
        drag(page, (x, .2), (x + .1, .8))
        pictures.append(picture(page))
    page.locator("#ink").press("Space")
    page.locator("#ink").press("ArrowUp")
    assert picture(page) != pictures[3]
    page.keyboard.press("Control+z")
    page.keyboard.press("ArrowUp")              # the pen is up again
    assert picture(page) == pictures[3]
    page.mouse.down()
    page.keyboard.press("Control+z")
    page.mouse.move(10, 10)                     # and so is the mouse
    assert picture(page) == pictures[3]
    page.mouse.up()
    for before in pictures[2::-1]:
        page.get_by_role("button", name="Undo").click()
        assert picture(page) == before
    page.get_by_role("button", name="Undo").click()     # nothing left: nothing happens
    assert page.locator("#digit").inner_text() == "–"


@pytest.mark.slow
def test_edges_of_a_stroke_are_smooth_in_both_themes(page):
    """Each pixel is as dark as the share of it that a tenth of the pad beside the line covers,
    however many points the line has, at the screen's own resolution."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.get_by_role("button", name="Clear").click()
        side, shown, pixels = page.evaluate("""() => {
            strokes.push(Array.from({length: 200}, (_, i) => [.2 + .003 * i, .3 + .001 * i]));
            show();
            const { data } = screen.getImageData(pad.width / 2, 0, 50, pad.width);
            return [pad.width, pad.clientWidth, Array.from(data).filter((_, i) => i % 4 % 3 === 0)];
        }""")
        assert side == shown                    # one pixel of the screen a CSS pixel here
        red, alpha = np.array(pixels).reshape(side, 50, 2).transpose(2, 0, 1)
        y, x = (np.mgrid[:side, side // 2:side // 2 + 50] + 0.5) / side     # far from its ends
        distance = side * np.abs((y - 0.3) * 0.003 - (x - 0.2) * 0.001) / np.hypot(0.003, 0.001)
        covered = np.clip(side / 20 - distance + 0.5, 0, 1)     # of a pixel that the edge crosses
        # The edge is slanted, the rasterizer counts samples: a tenth of a pixel either way.
        np.testing.assert_allclose(alpha / 255, covered, atol=0.12)
        assert (red[alpha == 255].min() > 200) == (scheme == "dark")


@pytest.mark.parametrize("width, height", [(844, 390), (667, 375)])
def test_phone_on_its_side_shows_the_whole_pad_and_scrolls(page, width, height):
    page.set_viewport_size({"width": width, "height": height})
    box = page.locator("#pad").bounding_box()
    assert box["width"] == pytest.approx(box["height"]) and box["height"] <= 0.6 * height + 1
    assert box["y"] + box["height"] < height and box["width"] > 200
    drag(page, (.3, .2), (.5, .8))
    page.wait_for_function("find('digit').textContent !== '–'")
    size, _ = page.evaluate("[document.documentElement.scrollHeight, scrollBy(0, 9999)]")
    assert size > height and page.evaluate("scrollY") == size - height
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#layers").is_visible()


@pytest.mark.parametrize("dataset, title, names", [
    ("MNIST", "Draw a digit", list("0123456789")),
    ("Fashion-MNIST", "Draw a piece of clothing", "T-shirt/top Trouser Pullover Dress Coat Sandal "
     "Shirt Sneaker Bag Ankle_boot".split()),
    ("kmnist", "Draw a hiragana", [f"{kana}_{sound}" for kana, sound in zip(
        "おきすつなはまやれを", "o ki su tsu na ha ma ya re wo".split())]),
    ("</script><img src=x onerror=alert(1)>", "Draw a picture", list("0123456789")),
    ("", "Draw a picture", list("0123456789"))])
@pytest.mark.slow
def test_page_names_the_classes_of_its_data_set(page, tmp_path, dataset, title, names):
    """Whatever a file says it is; an unknown one has its labels."""
    network = make_network(4, 8, 12)
    (tmp_path / "other.html").write_text(to_web.export(network, checkpoint.Facts(dataset)), "utf-8")
    page.goto((tmp_path / "other.html").as_uri())
    assert page.locator("h1").inner_text() == title
    shown = [row.inner_text().split("\n")[0] for row in page.locator("#scores li").all()]
    assert shown == [name.replace("_", " ") for name in names]
    assert page.locator("#dataset").is_visible() == bool(dataset)
    drag(page, (.3, .2), (.5, .8))
    page.wait_for_function("find('digit').textContent !== '–'")
    best = oracle.run(network, np.array([picture(page)])).argmax()
    assert page.locator("#digit").inner_text() == shown[best]


def test_classes_of_another_number_are_numbered():
    assert data.classes("MNIST", 12) == ("a picture", tuple(map(str, range(12))))


def test_page_needs_no_network_and_fits_a_phone(page):
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]


@pytest.mark.slow
def test_page_centres_as_mnist_does(page, trained, mnist):
    """Digits nine times larger, in a corner of the pad, come back as they were, only blurred."""
    images, labels = mnist.test.images[:100], mnist.test.labels[:100]
    centred = page.evaluate("""images => images.map(image => centre(Uint8Array.from(
        {length: 280 * 280}, (_, i) => {
            const x = Math.floor(i % 280 / 9), y = Math.floor(i / 280 / 9);
            return x < 28 && y < 28 ? image[28 * y + x] : 0;
        }), 280)).map(image => Array.from(image))""", images.tolist())
    direct, drawn = (oracle.run(trained.network, x).argmax(1) == labels
                     for x in (images, np.array(centred, np.uint8)))
    assert drawn.mean() >= direct.mean() - 0.03


def test_page_prepares_ink_as_photo_does(page):
    """Strokes of any size and place: no pixel is a grey level off, but for roundings."""
    random = np.random.default_rng(0)
    for digit in range(10):
        picture = Image.fromarray(photos.stroke_digit("judging", digit, random))
        size, corner = int(random.integers(60, 270)), random.integers(-20, 60, 2)
        pad = Image.new("L", (280, 280))
        pad.paste(picture.resize((size, size)), tuple(map(int, corner)))
        ink = np.asarray(pad)
        page_image = np.array(page.evaluate("""text => Array.from(
            centre(Uint8Array.from(atob(text), c => c.charCodeAt(0)), 280))""",
                                            base64.b64encode(ink.tobytes()).decode()))
        ours = photo.centre((ink / 255).astype(np.float32)).reshape(-1)
        assert ours.max() == 255 and np.abs(page_image - ours).max() <= 1


@pytest.mark.parametrize("form, names", [
    ("onnx", ["mlp.onnx"]), ("web", ["mlp.html"]),
    ("c", ["classify.c", "example.c", "mlp.c", "mlp.h", "mlp_weights.h"])])
def test_script_writes_a_saved_file_whole(script, tmp_path, monkeypatch, form, names):
    monkeypatch.chdir(tmp_path)
    checkpoint.save("w.npz", make_network(3, 4))
    code, out, err = script(main_export.main, form, "--WEIGHTS=w.npz")
    assert (code, err) == (0, [])
    folder = tmp_path / "deploy" / "out"
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        size = (folder / name).stat().st_size
        assert any(name in line and f"{size:,} bytes" in line for line in out)


@pytest.fixture
def exported(script, need, tmp_path, monkeypatch, trained):
    """(folder, lines): a working folder as a clone's, a trained network exported there to C."""
    need(engines.find_compiler, "cc")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    checkpoint.save("w.npz", trained.network)
    code, out, err = script(main_export.main, "c", "--WEIGHTS=w.npz")
    assert (code, err) == (0, [])
    return tmp_path, out


@pytest.mark.slow
def test_what_the_script_prints_works_as_printed(exported, mnist, answers):
    folder, out = exported
    commands = "\n".join(line.strip() for line in out if line.startswith("  "))
    ran = subprocess.run(["sh", "-e"], input=commands, cwd=folder, capture_output=True, text=True)
    right = int((answers == mnist.test.labels).sum())
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"{answers[0]}: RIGHT\naccuracy {right / 100:.2f} % ({right} of 10000)\n"


@pytest.mark.slow
def test_callers_in_the_docs_run_and_answer_right(exported, need, answers):
    folder, _ = exported
    need(engines.find_compiler, "c++")
    section = (ROOT / "docs" / "deploy.md").read_text("utf-8").split("## Callers")[1]
    blocks = dict(re.findall(r"^```(cpp|sh|python)\n(.*?)^```", section.split("\n## ")[0],
                             re.MULTILINE | re.DOTALL))
    want = "".join(f"{best}\n" for best in answers)
    (folder / "main.cpp").write_text(blocks["cpp"], "utf-8")
    for program, text in (("sh", blocks["sh"]), (sys.executable, blocks["python"])):
        ran = subprocess.run([program], input=text, cwd=folder, capture_output=True, text=True)
        assert (ran.stderr, ran.stdout) == ("", want)


@pytest.mark.parametrize("name, title", [("Fashion-MNIST", "clothing"), ("", "picture")])
def test_script_tells_the_page_what_a_file_says_of_its_data_set(script, tmp_path, monkeypatch, page,
                                                                name, title):
    monkeypatch.chdir(tmp_path)
    checkpoint.save("w.npz", make_network(3, 4), checkpoint.Facts(dataset=name))
    assert script(main_export.main, "web", "--WEIGHTS=w.npz")[0] == 0
    page.goto((tmp_path / "deploy" / "out" / "mlp.html").as_uri())
    assert page.locator("h1").inner_text().endswith(title)


@pytest.mark.slow
def test_script_refuses_in_one_line_and_writes_nothing(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save("w.npz", make_network())
    floats = integer.FloatNetwork(((np.zeros((784, 10), np.float32), np.zeros(10, np.float32)),),
                                  plan.parse("", (28, 28, 1), 10))
    checkpoint.save("float.npz", floats)
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "w.npz").read_bytes()[:-100])
    cases = [("c", "--WEIGHTS=float.npz"), ("c", "--WEIGHTS=damaged.npz"),
             ("c", "--WEIGHTS=absent.npz"),
             ("tflite", "--WEIGHTS=w.npz"), (),
             ("c", "--WEIGHTZ=w.npz")]
    for arguments in cases:
        code, out, err = script(main_export.main, *arguments)
        assert (code, out, len(err)) == (2, [], 1), arguments
        assert err[0].startswith("error: ")
    assert not (tmp_path / "deploy").exists()


@pytest.mark.parametrize("input, inputs", [(28, 30), (10, 100)])
@pytest.mark.slow
def test_benchmarked_engines_give_the_logits_of_their_network(need, input, inputs):
    """The integer ones exactly; the float32 ones those of its unrounded weights."""
    need(engines.find_compiler)
    network = make_network(input=input, sizes=(inputs, 8, 3))
    images = random_images(20, plan.inputs(network.steps))
    got = {name: run(images) for name, run in inference.make_contenders(network).items()}
    for name in ("JAX int8", "ONNX Runtime int8", "C"):
        np.testing.assert_array_equal(got[name], oracle.run(network, images))
    want = oracle.forward(convert.from_network(network)[0], images, network.steps)
    for name in ("JAX float32", "ONNX Runtime float32"):
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
