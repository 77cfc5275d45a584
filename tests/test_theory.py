"""theory/: our grad against jax.grad, our jvp against jax.jvp, and the README against the code."""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import config
from runner import source
from theory import autodiff, graph, report, study

README = (ROOT / "theory/README.md").read_text("utf-8")
RESULT = json.loads((ROOT / "results/autodiff.json").read_text("utf-8"))
TOLERANCE = 1e-6                # of float32 sums in another order, against the largest entry


@pytest.fixture(scope="module")
def cases():
    """The README's cases: the real model's initial parameters and the first 128 train images."""
    settings = config.load([])
    return report.make_cases(settings, source.load_data(settings))


# The README's blocks are recomputed below, each once; here is what their lines must say.
@pytest.mark.parametrize("line", [*(f"{name:8s} jit(grad): below 1e-6" for name in report.WIDTHS),
                                  "float32  grad, op by op: below 1e-6"])
def test_grad_equals_jax_grad_on_a_real_batch(line):
    assert f"\n{line}\n" in README


def test_the_toy_has_the_derivatives_of_calculus():
    ours = autodiff.grad(lambda w: jnp.log(w[0] * w[1]))((jnp.float32(2), jnp.float32(3)))
    np.testing.assert_allclose(ours, [1 / 2, 1 / 3], rtol=TOLERANCE)        # log a + log b
    assert re.search(r"\na, through mul .* = 0.5\nb, through mul .* = 0.3333\n", README)
    assert "mean of softmax minus one-hot, and our grad: below 1e-6 apart\n" in README


@pytest.mark.slow
def test_jvp_equals_jax_jvp_and_the_pullback_is_its_transpose(cases):
    case = cases["W8A8"]        # it uses every rule that the float32 loss uses
    rng = np.random.default_rng(1)
    t = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), case.params)
    loss = case.of_params()
    y, t_y = jax.jit(lambda p: tuple(autodiff.jvp(loss, p, t)))(case.params)
    want_y, want_t_y = jax.jit(lambda p: jax.jvp(loss, (p,), (t,)))(case.params)
    ct = report.jitted(autodiff.grad, case.loss)(*case[1:])
    assert jax.tree.structure(ct) == jax.tree.structure(case.params)
    terms = np.concatenate([np.ravel(np.float64(a) * b)
                            for a, b in zip(jax.tree.leaves(t), jax.tree.leaves(ct))])
    np.testing.assert_allclose(y, want_y, rtol=TOLERANCE)
    # A tangent is a sum of 235,146 terms of both signs: its error follows their size, not its own.
    np.testing.assert_allclose([t_y, terms.sum()], [want_t_y] * 2, rtol=0,
                               atol=TOLERANCE * np.abs(terms).sum())


def test_grad_equals_finite_differences():
    a = np.linspace(0.5, 2.0, 4, dtype=np.float32)

    @jax.jit
    def smooth(x):
        return jnp.sum(jnp.exp(x) * jnp.log(a + x * x) / (a - x))

    x = np.array([-0.3, 0.1, 0.2, -1.0], np.float32)
    step = 1e-2                 # central differences: error step**2, rounding 1e-7 / step
    rows = np.eye(4, dtype=np.float32) * step
    differences = [(smooth(x + row) - smooth(x - row)) / (2 * step) for row in rows]
    ours = jax.jit(autodiff.grad(smooth))(x)
    np.testing.assert_allclose(ours, differences, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("function", [
    lambda x: jnp.sum(jnp.clip(x, 0.0, 1.0)),                   # ties of max and min
    lambda x: jnp.max(x) - jnp.max(x * 0.0),                    # ties of reduce_max
    lambda x: jnp.sum(jax.nn.relu(x)),                          # custom_jvp, at its kink too
    lambda x: jnp.sum(jnp.sum(x) * jnp.ones((3, 5))),           # a stretched scalar
    lambda x: jnp.sum(jnp.ones((3, 5)) * x[None]),              # a stretched row
    lambda x: jnp.sum(jnp.round(x) * x),                        # piecewise constant times smooth
    lambda x: jnp.sum(jax.jit(lambda x: jax.jit(jnp.exp)(x) * x)(x)),   # jit in jit
    lambda x: jnp.float32(3),                                   # no dependence at all
    lambda x: jnp.sum((x > 0).astype(jnp.float32)),             # only through a truth value
], ids=range(9))
@pytest.mark.slow
def test_grad_equals_jax_grad_at_the_edges(function):
    x = jnp.array([-1.0, 0.0, 0.5, 1.0, 2.0])
    np.testing.assert_array_equal(autodiff.grad(function)(x), jax.grad(function)(x))


@pytest.mark.slow
def test_custom_vjp_runs_the_given_backward_pass():
    @jax.custom_vjp
    def product(x, y):
        return jnp.round(x * y), x

    # One residual is an input, one is new, and the second cotangent is not used.
    product.defvjp(lambda x, y: ((jnp.round(x * y), x), (y, x * x)),
                   lambda kept, cts: (cts[0] * kept[0], cts[0] * kept[1]))

    def function(x):
        first, second = product(x, 3.0 * x)
        return jnp.sum(first * second)

    x = jnp.array([-1.0, 0.3, 2.0])
    np.testing.assert_allclose(autodiff.grad(function)(x), jax.grad(function)(x), rtol=TOLERANCE)
    np.testing.assert_allclose(jax.jit(autodiff.grad(function))(x), jax.grad(function)(x),
                               rtol=TOLERANCE)


def test_custom_vjp_without_cotangent_for_an_input():
    @jax.custom_vjp
    def product(x, y):
        return x * y

    product.defvjp(lambda x, y: (x * y, x), lambda x, ct: (None, ct * x))
    x = jnp.array([-1.0, 0.3, 2.0])
    np.testing.assert_array_equal(autodiff.grad(lambda x: jnp.sum(product(x, x)))(x), x)


@pytest.mark.parametrize("function, name", [
    (lambda x: jnp.sum(jnp.sin(x)), "sin"),
    (lambda x: jnp.sum(jnp.cumsum(x)), "cumsum"),
    (lambda x: jnp.dot(x, x), "dot_general"),                   # x @ w is the only product
    (lambda x: jax.lax.while_loop(lambda y: y < 9.0, lambda y: y + x[0], 0.0), "while"),
])
def test_primitive_without_a_rule_is_an_error_that_names_it(function, name):
    with pytest.raises(NotImplementedError, match=f"'{name}'"):
        autodiff.grad(function)(jnp.ones(3))


def test_there_are_rules_for_just_what_the_losses_use(cases):
    uses = [report.rule_uses(cases[name]) for name in ("float32", "W8A8")]
    derivatives = {name for pair in uses for name in pair[0]}
    # The first three are inside fake_quantize, where section 4 looks; the last has its own tests.
    derivatives |= {"mul", "min", "round", "custom_vjp_call"}
    assert derivatives == autodiff.DERIVATIVES.keys()
    assert {name for pair in uses for name in pair[1]} == autodiff.TRANSPOSITIONS.keys()
    assert report.FORMULAS.keys() == derivatives | autodiff.TRANSPOSITIONS.keys()


@pytest.mark.parametrize("name", ["W8A8", "W2A4"])
def test_true_gradient_of_rounding_is_zero_and_edited_rules_are_the_estimator(name):
    assert f"\n{name}: true gradient of rounding: 0 of 235,146 entries are not zero\n" in README
    assert f"\n{name}: `round` edited, clip's ties whole: below 1e-6\n" in README


@pytest.mark.parametrize("name", ["float32", "W8A8"])
def test_residuals_of_the_graph_are_what_the_pullback_reads(cases, name):
    case = cases[name]
    sizes = []

    def backward(params):
        y, pullback = autodiff.vjp(case.of_params(), params)
        sizes.extend(array.size * array.dtype.itemsize
                     for array in jax.make_jaxpr(pullback)(y).consts)
        return y
    jax.eval_shape(backward, case.params)
    traced = graph.trace(case.loss, *case[1:])
    assert sum(value.nbytes for _, value, _ in graph.residuals(traced)) == sum(sizes)


def test_checkpoint_keeps_the_arguments_only():
    rows = {(row["label"], row["batch"]): row for row in RESULT["rows"]
            if row["part"] == "recomputation"}
    parameters, pixels, labels = 4 * 235_146, 8192 * 784, 8192
    assert rows["keep arguments only", 8192]["kept_bytes"] == parameters + pixels + labels
    for number in (parameters, pixels, labels, parameters + pixels + labels):
        assert f"{number:,}" in README


def test_no_name_in_the_graph_touches_another_or_the_edge_of_a_box(cases):
    case = cases["float32"]
    figure = graph.draw(graph.trace(case.loss, *case[1:]))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [patch.get_window_extent() for patch in axes.patches if patch.get_zorder() == 2]
    names = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) > 60 and len(names) > len(boxes)
    for i, name in enumerate(names):
        assert not name.count_overlaps(names[:i])
        assert figure.bbox.contains(*name.min) and figure.bbox.contains(*name.max)
        for box in boxes:
            inside = box.padded(-3)
            assert not box.overlaps(name) or (inside.contains(*name.min)
                                              and inside.contains(*name.max))


@pytest.mark.parametrize("name", report.BLOCKS)
@pytest.mark.slow
def test_readme_block_is_what_the_code_prints(cases, name):
    block = report.BLOCKS[name](cases)
    assert "NOT BELOW" not in block
    assert f"<!-- {name} -->\n{block}\n<!-- /{name} -->" in README


@pytest.mark.parametrize("name", study.TABLES)
def test_readme_table_is_what_the_results_say(name):
    assert f"<!-- {name} -->\n{study.TABLES[name](RESULT)}\n<!-- /{name} -->" in README


def test_autodiff_is_short_and_the_readme_within_its_budget():
    assert len((ROOT / "theory/autodiff.py").read_text().splitlines()) <= 200
    prose = re.sub(r"<!-- ([\w-]+) -->.*?<!-- /\1 -->|```.*?```", "", README, flags=re.DOTALL)
    assert 1_200 <= len(prose.split()) <= 1_800
