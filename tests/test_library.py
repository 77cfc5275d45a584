"""quant and integer as a library: plain arguments, one clear refusal, the page that shows it."""
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import integer
import oracle
import quant
from conftest import ROOT

W = np.random.default_rng(0).normal(0, 1, (6, 3)).astype(np.float16)   # every dtype holds these
KINDS = {"lists": np.ndarray.tolist, "NumPy float64": np.float64, "NumPy float16": np.float16,
         "JAX float16": lambda a: jnp.asarray(a, jnp.float16)}
SCALES = {"a number": 0.25, "a list": [0.5, 0.25, 2], "[O]": jnp.array([0.5, 0.25, 2]),
          "[1, O]": np.array([[0.5, 0.25, 2]]), "[1, 1]": [[1]]}


@pytest.fixture(params=["strict", "JAX's defaults"])
def rules(request):
    """The rules of promotion that the importing program has set."""
    strict = request.param == "strict"
    with (jax.numpy_dtype_promotion("strict" if strict else "standard"),
          jax.numpy_rank_promotion("raise" if strict else "allow")):
        yield


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.slow
def test_quantizer_takes_any_real_numbers(rules, kind, scale):
    """And means the same by them: values, float32, and the gradient of a scale of any shape."""
    wide = np.broadcast_to(np.asarray(scale, np.float64), (6, 3))
    codes = oracle.quantize(W.astype(np.float64), wide, 4)
    found = quant.quantize(kind(W), scale, 4), quant.fake_quantize(kind(W), scale, np.int8(4))
    assert [(array.dtype, array.shape) for array in found] == [(np.float32, (6, 3))] * 2
    np.testing.assert_array_equal(found[0], codes)
    np.testing.assert_array_equal(found[1], codes * wide)
    scale = jnp.asarray(scale, jnp.float32)
    x = jnp.asarray(kind(W))
    of_x, of_scale = (jax.grad(lambda *at: jnp.sum(quant.fake_quantize(*at, 4)), moved)(x, scale)
                      for moved in (0, 1))
    assert (of_x.dtype, of_scale.shape) == (x.dtype, scale.shape)
    np.testing.assert_array_equal(of_x, np.abs(W / wide) < 7.5)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.slow
def test_compute_scale_takes_any_real_numbers(rules, kind):
    for bits in (8, 3):
        for per_channel in (False, True):
            want = quant.compute_scale(jnp.float32(W), bits, per_channel=per_channel)
            scale = quant.compute_scale(kind(W), bits=bits, per_channel=per_channel)
            assert scale.dtype == np.float32
            np.testing.assert_array_equal(scale, want)
    np.testing.assert_array_equal(quant.compute_scale(kind(W), 8, True, True, True, [1, 8, 3]),
                                  [[1, 8, 4]])


@pytest.mark.slow
def test_channels_are_last_whatever_the_rank(rng):
    """As in a convolution's kernel: the same numbers as of the matrix that it is."""
    kernel = rng.normal(0, 1, (3, 3, 4, 5)).astype(np.float32)
    scale = quant.compute_scale(kernel, 4, per_channel=True)
    assert scale.shape == (1, 1, 1, 5)
    flat = kernel.reshape(36, 5)
    np.testing.assert_array_equal(scale[0, 0], quant.compute_scale(flat, 4, per_channel=True))
    np.testing.assert_array_equal(quant.quantize(kernel, scale, 4).reshape(36, 5),
                                  quant.quantize(flat, scale.ravel(), 4))


def test_checks_add_nothing_to_a_program():
    """What training passes is traced into the quantizer and its operands alone."""
    traced = jax.make_jaxpr(lambda w, s: quant.fake_quantize(w, s, 8))(
        jnp.ones((6, 3)), jnp.ones((1, 3)))
    assert [equation.primitive.name for equation in traced.eqns] == ["custom_jvp_call"]


@pytest.mark.parametrize("kind", [list, np.int64, np.int8, jnp.int32, np.float32])
def test_integers_of_any_dtype_make_the_same_network(rules, kind):
    """Those of docs/format.md, with its accumulators."""
    def plain(values):
        return values if kind is list else kind(np.array(values))
    layers = [tuple(map(plain, ([[3, -1], [0, 2]], [5, -7], [6, 7]))),
              tuple(map(plain, ([[1, -3], [-2, 1]], [0, 100])))]
    network = integer.make_network(layers, np.int64(3), 4, -9)
    assert [(array.dtype, type(array)) for array in network.layers[0]] == [
        (dtype, np.ndarray) for dtype in (np.int8, np.int32, np.int8)]
    for engine in ("jax", "numpy"):
        run = integer.make_engine(network, engine)
        for images in ([[200, 50]], np.array([[[200], [50]]]), jnp.array([[200, 50]], jnp.uint8)):
            np.testing.assert_array_equal(run(images), [[9, 73]])
    codes = integer.requantize(plain([[100, -107]]), plain([6, 7]), 4)
    assert codes.dtype == np.int32 and codes.tolist() == [[2, 0]]
    assert integer.requantize(plain([[100, 104]]), 3, 8).tolist() == [[12, 13]]     # 12.5 is a tie


ONE = [([[1, 2]], [3, 4])]          # a network of one layer
REFUSED = {
    "scale of I": (lambda: quant.fake_quantize(W, np.ones(6), 4), r"scale \(6,\).*\(6, 3\)"),
    "a column's scale": (lambda: quant.fake_quantize(W[:, :1], np.ones((1, 3)), 4), "does not fit"),
    "scale of more axes": (lambda: quant.quantize(W, np.ones((1, 1, 3)), 4), "does not fit"),
    "floor": (lambda: quant.compute_scale(W, 8, floor=np.ones(4)), r"floor \(4,\)"),
    "0 bits": (lambda: quant.fake_quantize(W, 1, 0), "bits 0 is not in 1..25"),
    "26 bits": (lambda: quant.compute_scale(W, 26), "bits 26"),
    "25 bits of codes without sign": (lambda: quant.quantize(W, 1, 25, False), r"25 .* 1\.\.24"),
    "4.0 bits": (lambda: quant.quantize(W, 1, 4.0), "bits 4.0"),
    "traced bits": (lambda: jax.jit(quant.fake_quantize)(W, 1, 4), "bits"),
    "complex x": (lambda: quant.fake_quantize(W * 1j, 1, 4), "x of complex"),
    "no x": (lambda: quant.compute_scale(None), "x of object"),
    "text as scale": (lambda: quant.fake_quantize(W, "1", 4), "scale of <U1"),
    "rows of two lengths": (lambda: quant.quantize([[1], [1, 2]], 1, 4), "inhomogeneous"),
    "nothing to scale": (lambda: quant.compute_scale(np.zeros((0, 3))), "zero-size"),
    "no layers": (lambda: integer.make_network([], 8, 8, 0), "one layer or more"),
    "half a bias": (lambda: integer.make_network([([[1]], [0.5])], 8, 8, 0), "layer 0 of float64"),
    "NaN": (lambda: integer.make_network([([[np.nan]], [1])], 8, 8, 0), "not all int8"),
    "code above int8": (lambda: integer.make_network([([[300]], [1])], 8, 8, 0), "not all int8"),
    "flat codes": (lambda: integer.make_network([([1], [1])], 8, 8, 0), r"not codes \[I, O\]"),
    "8.0 bits": (lambda: integer.make_network(ONE, 8.0, 8, 0), "weight bits 8.0"),
    "half an exponent": (lambda: integer.make_network(ONE, 8, 8, 0.5), "logit exponent 0.5"),
    "half an accumulator": (lambda: integer.requantize([[0.5]], 1, 8), "acc of float64"),
    "accumulator above int32": (lambda: integer.requantize([[2**40]], 1, 8), "acc of int64"),
    "shift of 0": (lambda: integer.requantize([[1]], 0, 8), "shift is not all in 1..30"),
    "shift of 31": (lambda: integer.requantize([[1]], [31], 8), "shift is not all in 1..30"),
    "shifts of others": (lambda: integer.requantize([[1, 2]], [1, 2, 3], 8), r"shift \(3,\)"),
    "codes of 0 bits": (lambda: integer.requantize([[1]], 1, 0), "bits 0"),
    "engine": (lambda: integer.make_engine(integer.make_network(ONE, 8, 8, 0), "C"), "'C'")}
IMAGES = {"floats": (np.ones((2, 784)), "images of float64"), "256": ([[256] * 784], "images"),
          "one image": (np.ones(784, np.uint8), r"\(784,\) are not \[B, 784\]"),
          "few pixels": (np.ones((2, 100), np.uint8), r"are not \[B, 784\]"),
          "text": ([["a"] * 784], "images of <U1"), "none": ([], "images of float64")}
for _name, (_images, _reason) in IMAGES.items():
    for _engine in ("jax", "numpy"):
        REFUSED[f"{_name} to {_engine}"] = (
            lambda images=_images, engine=_engine: integer.make_engine(oracle.random_network(
                np.random.default_rng(0), (784, 10)), engine)(images), _reason)


@pytest.mark.parametrize("call, reason", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_one_clear_line(rules, call, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        call()
    assert "\n" not in str(caught.value)


# What the page asks its reader for: a network with ReLU trained elsewhere, in JAX as it comes.
THEIRS = """
import sys; sys.path.insert(0, {root!r})
import jax, jax.numpy as jnp, numpy as np
import data
train = data.load({root!r} + "/datasets/mnist").train
images, labels = train.images[:4000], train.labels[:4000]
x, y = images[:2000] / np.float32(255), jax.nn.one_hot(labels[:2000], 10)

def logits(p, x):
    return jax.nn.relu(x @ p[0] + p[1]) @ p[2] + p[3]

@jax.jit
def step(p):
    grads = jax.grad(lambda p: -jnp.mean(jnp.sum(y * jax.nn.log_softmax(logits(p, x)), 1)))(p)
    return [a - 0.5 * g for a, g in zip(p, grads)]

keys = jax.random.split(jax.random.key(0))
params = [jax.random.normal(keys[0], (784, 32)) * 0.05, jnp.zeros(32),
          jax.random.normal(keys[1], (32, 10)) * 0.2, jnp.zeros(10)]
for _ in range(100):
    params = step(params)
w1, b1, w2, b2 = map(np.asarray, params)
w = w1
before = dict(jax.config.values)
{page}
assert dict(jax.config.values) == before
assert abs(w_q).max() == 7 and (w_near == w_q * scale).all()
floats = logits(params, images[2000:] / np.float32(255)).argmax(1)
print((floats == labels[2000:]).mean(), (theirs[2000:].argmax(1) == labels[2000:]).mean())
assert acc.tolist() == [[9, 73]] and x_q.tolist() == [[9, 0]]
"""


def page_blocks():
    """The Python blocks of docs/library.md."""
    page = (ROOT / "docs" / "library.md").read_text("utf-8")
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


@pytest.mark.slow
def test_the_page_runs_in_a_program_that_has_used_jax(tmp_path):
    """Its code as it stands; the integers keep what a network rounded to 4 bits can keep."""
    page = (ROOT / "docs" / "library.md").read_text("utf-8")
    blocks = page_blocks()[:3]
    assert len(list(filter(None, blocks[1].splitlines()))) == 10
    saving, = re.findall(r"`(checkpoint.save\(.*?\))`", page)
    blocks.insert(2, f"theirs = acc\nfrom formats import checkpoint\n{saving}")
    program = THEIRS.format(root=str(ROOT), page="\n".join(blocks))
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    floats, integers = map(float, done.stdout.split())
    assert floats > 0.8 and integers > floats - 0.02


@pytest.mark.slow
def test_the_pages_sweep_runs_and_is_plotted_in_five_lines(folder, tmp_path):
    """Its code as it stands, but for the switches that make it quick and keep it here."""
    sweep, plot = page_blocks()[3:5]
    assert len(plot.splitlines()) == 5
    switches = ["--MAX_EPOCHS=1", f"--DATA_DIR={folder}", f"--RUNS_DIR={tmp_path}", "--CACHE_DIR=",
                "--VAL_EXAMPLES=200", "--LAYERS=16"]
    quick = re.sub(r"config.load\(\[.*?\]", lambda _: f"config.load({switches}", sweep)
    assert quick != sweep
    program = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
{quick.replace("range(3)", "range(2)")}
{plot}
assert [(row["label"], row["seed"]) for row in rows] == [
    (f"{{bits}} bits", seed) for bits in (8, 4, 2) for seed in (0, 1)]
mean = (rows[-2]["test_acc"] + rows[-1]["test_acc"]) / 2
assert rows[-1]["changes"]["WEIGHT_BITS"] == 2
assert abs(found["mean"] - mean) < 1e-9 or found["missing"]
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_citation_says_what_it_must():
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    said = dict(re.findall(r"^([\w-]+):(?: (.*))?$", text, re.MULTILINE))
    assert {"cff-version", "message", "title", "authors", "version"} <= set(said)
    assert re.fullmatch(r"\d+\.\d+\.\d+", said["version"]) and said["license"] == "MIT"


def test_every_cell_about_a_peer_has_its_source():
    text = (ROOT / "docs" / "peers.md").read_text("utf-8")
    sources = dict(re.findall(r"^\[([\w-]+)\]: (https://\S+)$", text, re.MULTILINE))
    used = re.findall(r"\]\[([\w-]+)\]", text)
    assert set(used) == set(sources)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| [")]
    assert len(rows) == 7 and {len(row) for row in rows} == {8}
    for name, framework, *cells in rows:
        assert "](https://" in name and framework
        assert all("][" in cell or cell == "–" for cell in cells), name


@pytest.mark.slow
def test_an_own_quantizer_tried_twice_trains_anew(folder, tmp_path):
    """By the page's lines as they stand, in one process."""
    block = page_blocks()[5]
    *imports, replace, forget = block.strip().splitlines()
    switches = ["--MAX_EPOCHS=1", f"--DATA_DIR={folder}", f"--RUNS_DIR={tmp_path}", "--CACHE_DIR=",
                "--VAL_EXAMPLES=200", "--LAYERS=16", "--ADAPT=False", "--COMPUTE=float32"]
    program = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import config
{chr(10).join(imports)}
settings = experiment.set_up(config.load({switches}))
data, theirs, hashes = source.load_data(settings), quant.compute_scale, []
def coarser(*args, **named):
    return 2 * theirs(*args, **named)
for mine in (theirs, coarser, theirs):
    {replace}
    {forget}
    (outcome,), _, _ = experiment.run(settings, "mine", [{{}}], data)
    hashes.append(outcome.row["sha256"])
assert hashes[0] == hashes[2] != hashes[1], hashes
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_quantizers_and_an_own_loss_by_the_pages_lines(folder, tmp_path):
    """The loss is NumPy's; one quantizer compared with itself does not differ."""
    compare, loss = page_blocks()[6:8]
    switches = ["--MAX_EPOCHS=8", f"--DATA_DIR={folder}", f"--RUNS_DIR={tmp_path}", "--CACHE_DIR=",
                "--VAL_EXAMPLES=200", "--LAYERS=16", "--ADAPT=False", "--COMPUTE=float32",
                "--OPTIMIZER=adamw", "--LEARNING_RATE=0.01"]
    program = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import config
import numpy as np
import quant
from report import stats
from runner import experiment, source
settings = experiment.set_up(config.load({switches}))
points, mine = [{{"SEED": seed}} for seed in range(3)], quant.compute_scale
{loss}
{compare}
assert rows["shipped"] is not rows["mine"]
hyper = source.hyper_of(settings, data)
layers = outcomes[0].layers
logits = np.float64(model.forward(layers, data.test.images, hyper))
p = np.exp(logits - logits.max(1, keepdims=True))
p /= p.sum(1, keepdims=True)
want = np.mean((p - np.eye(10)[data.test.labels]) ** 2)
assert abs(float(model.loss(layers, data.test.images, data.test.labels, hyper)) - want) < 1e-5
assert rows["mine"][0]["history"]["train_loss"][0] < 0.1       # cross-entropy begins at 2.3
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "+0.000 pp in each of 3 seeds" in done.stdout


@pytest.mark.slow
def test_a_word_of_ones_own_is_four_lines_of_plan(folder, tmp_path):
    """Those of the page; the saved integers give the loss of training, exports refuse."""
    page, text = (path.read_text("utf-8") for path in (ROOT / "docs" / "library.md",
                                                       ROOT / "plan.py"))
    for before, added in (("(?P<max>max2)|", "(?P<pick>pick2)|"),
                          ('"max": {"dense"},', '"pick": {"dense"},'),
                          ("            x = _crop(x, step)\n", page_blocks()[8])):
        assert before in text and added in page
        text = text.replace(before, before + added)
    (tmp_path / "plan.py").write_text(text)
    switches = [f"--DATA_DIR={folder}", "--LAYERS=conv5x4 pick2 32", "--ADAPT=False",
                "--VAL_EXAMPLES=200", "--CACHE_DIR=", "--MAX_EPOCHS=1",
                *(f"--{name}_DIR={tmp_path}" for name in ("RUNS", "WEIGHTS", "RESULTS", "PLOTS"))]
    program = f"""
import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]
import main_train, main_export
from machine.files import InputError
main_train.main({switches})
for call in (lambda: main_export.main(["c", *{switches}]),
             lambda: main_train.main({[*switches, "--FILE_FORMAT=nqat"]})):
    try:
        call()
    except (InputError, ValueError) as error:
        print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(+0 from training)" in done.stdout
    assert len(re.findall("refused: .*'pick' is known to plan.py alone", done.stdout)) == 2
