"""Exported models compute the integers of the weights file: ONNX Runtime, C and JavaScript."""
import subprocess

import numpy as np
import pytest

import checkpoint
import main_export
import oracle
from benchmarks import parity
from conftest import ROOT, write_idx
from deploy import engines, to_c, to_web

SIZES = (784, 37, 22, 10)       # no multiple of a SIMD width or of the fields in a word
WIDTHS = [(8, 8), (7, 5), (5, 1), (4, 8), (3, 4), (2, 2), (1, 8), (1, 1)]
STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-O2")


def make_network(weight_bits=8, activation_bits=8, sizes=SIZES, per_channel=True):
    """Random legal layers and the meta that checkpoint.load would give with them."""
    layers = oracle.random_layers(np.random.default_rng(weight_bits), sizes, weight_bits,
                                  activation_bits, per_channel)
    return layers, {"quantized": True, "weight_bits": weight_bits, "per_channel": per_channel,
                    "activation_bits": activation_bits, "layer_sizes": list(sizes)}


def random_images(count, inputs=784):
    """Uniform bytes, a quarter of them zero, then an all-zero and an all-255 image."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, inputs), dtype=np.uint8)
    images[rng.random(images.shape) < 0.25] = 0
    extremes = np.repeat(np.array([[0], [255]], np.uint8), inputs, axis=1)
    return np.concatenate([images, extremes])


@pytest.fixture
def need():
    """need(make, ...) -> make(...), or a skip that says what is missing."""
    def call(make, *arguments, **options):
        try:
            return make(*arguments, **options)
        except engines.Missing as missing:
            pytest.skip(str(missing))
    return call


@pytest.fixture
def onnx():
    """The exporter, or a skip."""
    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    pytest.importorskip("onnx", reason="pip install -r requirements-export.txt")
    from deploy import to_onnx
    return to_onnx


@pytest.fixture(scope="module")
def saved():
    """(layers, meta) of the committed weights."""
    return checkpoint.load(ROOT / "weights" / "weights_int8.npz")


@pytest.fixture(scope="module")
def hundred_thousand(saved):
    """100,000 random images and the oracle's logits of the committed weights on them."""
    images = np.random.default_rng(2).integers(0, 256, (100_000, 784), dtype=np.uint8)
    parts = [parity.oracle(saved[0], saved[1]["activation_bits"], images[at:at + 10_000])
             for at in range(0, len(images), 10_000)]
    return images, np.concatenate(parts)


@pytest.fixture(scope="module")
def browser_page(tmp_path_factory, saved):
    """The page of the committed weights in a browser, and its address."""
    path = tmp_path_factory.mktemp("page") / "mlp.html"
    path.write_text(to_web.export(*saved))
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


@pytest.mark.parametrize("weight_bits, activation_bits", WIDTHS)
def test_parity_oracle_equals_int64_oracle(weight_bits, activation_bits):
    layers, meta = make_network(weight_bits, activation_bits)
    images = random_images(200)
    np.testing.assert_array_equal(parity.oracle(layers, activation_bits, images),
                                  oracle.run(layers, activation_bits, images))


@pytest.mark.parametrize("weight_bits, activation_bits", WIDTHS)
def test_training_forward_equals_oracle(weight_bits, activation_bits):
    layers, meta = make_network(weight_bits, activation_bits)
    images = random_images(200)
    np.testing.assert_array_equal(parity.training_forward(layers, meta)(images),
                                  oracle.run(layers, activation_bits, images))


@pytest.mark.parametrize("weight_bits, activation_bits", WIDTHS)
def test_onnx_equals_oracle(onnx, weight_bits, activation_bits):
    layers, meta = make_network(weight_bits, activation_bits)
    images = random_images(500)
    run = engines.make_onnx(onnx.export(layers, meta))
    want = oracle.run(layers, activation_bits, images)
    for batch in (1, 128, len(images)):
        got = parity.in_batches(run, batch)(images)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("sizes, per_channel", [((784, 10), True), ((784, 33, 10), False),
                                                ((5, 3, 2), True)])
def test_any_shape_in_onnx_and_c(onnx, need, sizes, per_channel):
    layers, meta = make_network(8, 8, sizes, per_channel)
    images = random_images(100, sizes[0])
    want = oracle.run(layers, 8, images)
    np.testing.assert_array_equal(engines.make_onnx(onnx.export(layers, meta))(images), want)
    np.testing.assert_array_equal(need(engines.make_c, to_c.export(layers, meta)[0])(images), want)


def test_onnx_does_not_saturate_products(onnx):
    """Largest codes everywhere: pairs of products leave int16, where u8 x s8 kernels saturate."""
    layers, meta = make_network(8, 8, (400, 64, 10))
    for layer in layers:
        layer["w_q"] = np.where(layer["w_q"] >= 0, 127, -127).astype(np.int8)
    layers[0]["w_q"][:, ::2] = 127
    images = random_images(50, 400)
    np.testing.assert_array_equal(engines.make_onnx(onnx.export(layers, meta))(images),
                                  oracle.run(layers, 8, images))


def test_onnx_class_is_argmax_and_fuses(onnx, saved, mnist, tmp_path):
    import onnx as format
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3              # it warns that such a file fits this machine only
    session = onnxruntime.InferenceSession(onnx.export(*saved), options,
                                           providers=["CPUExecutionProvider"])
    logits, classes = session.run(None, {"image": mnist[1].images})
    assert classes.dtype == np.int64
    np.testing.assert_array_equal(classes, logits.argmax(1))
    nodes = [node.op_type for node in format.load(options.optimized_model_filepath).graph.node]
    assert nodes == ["QGemm", "QGemm", "MatMulInteger", "Add", "ArgMax"]


def test_onnx_of_committed_weights_on_all_images(onnx, saved, mnist, hundred_thousand):
    run = engines.make_onnx(onnx.export(*saved))
    images, want = hundred_thousand
    np.testing.assert_array_equal(run(images), want)
    want = parity.oracle(saved[0], saved[1]["activation_bits"], mnist[1].images)
    for batch in (1, 128, 10_000):
        np.testing.assert_array_equal(parity.in_batches(run, batch)(mnist[1].images), want)


@pytest.mark.parametrize("weight_bits, activation_bits", WIDTHS)
def test_c_equals_oracle(need, weight_bits, activation_bits):
    layers, meta = make_network(weight_bits, activation_bits)
    images = random_images(500)
    run = need(engines.make_c, to_c.export(layers, meta)[0])
    np.testing.assert_array_equal(run(images), oracle.run(layers, activation_bits, images))


def test_c_of_committed_weights_on_all_images(need, saved, mnist, hundred_thousand):
    run = need(engines.make_c, to_c.export(*saved)[0])
    images, want = hundred_thousand
    np.testing.assert_array_equal(run(images), want)
    np.testing.assert_array_equal(
        run(mnist[1].images), parity.oracle(saved[0], saved[1]["activation_bits"], mnist[1].images))


@pytest.fixture
def compiled(tmp_path, need):
    """compiled(compiler, *flags, bits) -> (C program of a random network, its layers)."""
    def build(compiler, *flags, bits=8):
        compiler = need(engines.find_compiler, compiler)
        probe = subprocess.run([compiler, *flags, "-x", "c", "-", "-o", tmp_path / "probe"],
                               input=b"#include <stdio.h>\nint main(void) { return 0; }\n",
                               capture_output=True)
        if probe.returncode:
            pytest.skip(f"{compiler} can't link {' '.join(flags)}: its libraries are missing")
        layers, meta = make_network(bits)
        for name, text in to_c.export(layers, meta)[0].items():
            (tmp_path / name).write_text(text)
        built = subprocess.run([compiler, *STRICT, *flags, "-DMLP_MAIN", "mlp.c", "-o", "mlp"],
                               cwd=tmp_path, capture_output=True, text=True)
        assert (built.returncode, built.stderr) == (0, "")
        return tmp_path / "mlp", layers
    return build


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("flags", [(), ("-m32",),
                                   ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")])
@pytest.mark.parametrize("bits", [8, 3, 1])
def test_c_program_is_clean_and_classifies(compiled, tmp_path, compiler, flags, bits):
    program, layers = compiled(compiler, *flags, bits=bits)
    images = random_images(60)
    classes = oracle.run(layers, 8, images).argmax(1)
    write_idx(tmp_path / "images", images.reshape(-1, 28, 28))
    half_wrong = classes + (np.arange(len(classes)) >= 31)
    write_idx(tmp_path / "labels", half_wrong.astype(np.uint8))
    ran = subprocess.run([program, tmp_path / "images"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.split() == [str(c) for c in classes]
    ran = subprocess.run([program, tmp_path / "images", tmp_path / "labels"], capture_output=True,
                         text=True)
    assert (ran.returncode, ran.stdout) == (0, "accuracy 50.00 % (31 of 62)\n")


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


def test_c_engine_uses_no_floating_point_and_no_heap():
    engine, program = (ROOT / "deploy" / "engine.c").read_text().split("#ifdef MLP_MAIN")
    assert len(engine.splitlines()) < 150
    for word in ("float", "double", "malloc", "#include <", "%"):
        assert word not in engine.replace("no floating point", "")


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_words_hold_every_code(bits):
    layers, _ = make_network(bits)
    width = to_c.FIELD_BITS[bits]
    for layer in layers:
        words = to_c.pack_words(layer["w_q"], bits)
        inputs, outputs = layer["w_q"].shape
        places = np.arange(0, 32, width, dtype=np.uint32)[:, None]
        fields = words[:, None] >> places & (1 << width) - 1
        fields = fields.reshape(inputs, -1)[:, :outputs].astype(np.int16)
        codes = 2 * fields - 1 if bits == 1 else fields - 2 ** (bits - 1)
        np.testing.assert_array_equal(codes, layer["w_q"])


def test_page_equals_oracle_on_test_images(page, saved, mnist):
    images = mnist[1].images[:1_000]
    np.testing.assert_array_equal(engines.run_page(page, images),
                                  parity.oracle(saved[0], saved[1]["activation_bits"], images))


def test_page_equals_oracle_at_every_width(page, tmp_path):
    images = random_images(20)
    for weight_bits, activation_bits in WIDTHS:
        layers, meta = make_network(weight_bits, activation_bits)
        (tmp_path / "other.html").write_text(to_web.export(layers, meta))
        page.goto((tmp_path / "other.html").as_uri())
        np.testing.assert_array_equal(engines.run_page(page, images),
                                      oracle.run(layers, activation_bits, images))


def test_page_reads_a_drawn_stroke(page, tmp_path):
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
    assert "bytes" in page.locator("#size").inner_text()
    page.screenshot(path=tmp_path / "web_demo.png")


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
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "clear"


def test_page_needs_no_network_and_fits_a_phone(page):
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]


def test_page_centres_as_mnist_does(page, saved, mnist):
    """Digits nine times larger, in a corner of the pad, come back as they were, only blurred."""
    images, labels = mnist[1].images[:100], mnist[1].labels[:100]
    centred = page.evaluate("""images => images.map(image => centre(Uint8Array.from(
        {length: 280 * 280}, (_, i) => {
            const x = Math.floor(i % 280 / 9), y = Math.floor(i / 280 / 9);
            return x < 28 && y < 28 ? image[28 * y + x] : 0;
        }), 280)).map(image => Array.from(image))""", images.tolist())
    direct, drawn = (parity.oracle(saved[0], saved[1]["activation_bits"], x).argmax(1) == labels
                     for x in (images, np.array(centred, np.uint8)))
    assert drawn.mean() >= direct.mean() - 0.03


@pytest.mark.parametrize("form, names", [("onnx", ["mlp.onnx"]), ("c", ["mlp.c", "mlp.h"]),
                                         ("web", ["mlp.html"])])
def test_script_writes_a_saved_file_whole(script, tmp_path, monkeypatch, onnx, form, names):
    monkeypatch.chdir(tmp_path)
    layers, meta = make_network(3, 4)
    checkpoint.save("w.npz", layers, meta)
    code, out, err = script(main_export.main, form, "--WEIGHTS=w.npz")
    assert (code, err) == (0, [])
    folder = tmp_path / "deploy" / "out"
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        size = (folder / name).stat().st_size
        assert any(name in line and f"{size:,} bytes" in line for line in out)


def test_script_refuses_in_one_line_and_writes_nothing(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layers, meta = make_network()
    checkpoint.save("w.npz", layers, meta)
    checkpoint.save("wide.npz", *make_network(sizes=(100, 10)))
    checkpoint.save("float.npz", [{"w": np.zeros((784, 10), np.float32),
                                   "b": np.zeros(10, np.float32)}], {})
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "w.npz").read_bytes()[:-100])
    cases = [("c", "--WEIGHTS=float.npz"), ("c", "--WEIGHTS=damaged.npz"),
             ("c", "--WEIGHTS=absent.npz"), ("c", "--WEIGHTS=w.npz", "--POWER_OF_TWO_SCALES=False"),
             ("web", "--WEIGHTS=wide.npz"), ("tflite", "--WEIGHTS=w.npz"), (),
             ("c", "--WEIGHTZ=w.npz")]
    for arguments in cases:
        code, out, err = script(main_export.main, *arguments)
        assert (code, out, len(err)) == (2, [], 1), arguments
        assert err[0].startswith("error: ")
    assert not (tmp_path / "deploy").exists()
