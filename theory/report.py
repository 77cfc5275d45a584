"""What theory/README.md quotes and every machine computes alike: its blocks of output.

Times and training curves are not here: theory/study.py measures those.
"""
from collections import Counter
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import config
import model
import quant
from report.results import table
from runner import source
from theory import autodiff, graph
from theory.autodiff import DERIVATIVES, TRANSPOSITIONS, Dual, differentiate, interpret
from training.loop import CALIBRATION_IMAGES

WIDTHS = {"float32": None, "W8A8": (8, 8), "W2A4": (2, 4)}      # of weights and activations


def loss_of(params, images, labels, layers, hyper):
    """model.loss as a function of its list of (w, b); the scales are those of `layers`."""
    layers = [layer._replace(w=w, b=b) for layer, (w, b) in zip(layers, params)]
    return model.loss(layers, images, labels, hyper)


class Case(NamedTuple):
    """A loss(params, images, labels) with arguments to call it on."""
    loss: Any                   # loss_of with its layers and hyper given
    params: list                # of (w, b)
    images: jax.Array           # uint8 [B, I]
    labels: jax.Array           # uint8 [B]

    def of_params(self):
        """The loss as a function of the parameters only."""
        return lambda params: self.loss(params, self.images, self.labels)


def hyper_of(settings, name, data):
    """The Hyper of a name in WIDTHS; images are rows of bytes, so that nothing reshapes them."""
    bits, rows = WIDTHS[name], data._replace(shape=data.train.images.shape[1:])
    widths = dict(zip(("WEIGHT_BITS", "ACTIVATION_BITS"), bits or ()))
    return source.hyper_of(config.change(settings, QAT_ENABLE=bits is not None,
                                             COMPUTE="float32", **widths), rows)


def make_cases(settings, data):
    """dict of name -> Case: initial parameters, scales calibrated on train images, first batch."""
    batch = [jnp.asarray(part[:settings.BATCH_SIZE]) for part in data.train]
    cases = {}
    for name in WIDTHS:
        hyper = hyper_of(settings, name, data)
        layers = model.init(jax.random.key(settings.SEED), hyper)
        if hyper.QAT_ENABLE:
            layers = model.calibrate(layers, data.train.images[:CALIBRATION_IMAGES], hyper)
        params = [(layer.w, layer.b) for layer in layers]
        cases[name] = Case(partial(loss_of, layers=layers, hyper=hyper), params, *batch)
    return cases


@cache
def jitted(grad, loss):
    """jit(grad(loss)), compiled once however often it is asked for."""
    return jax.jit(grad(loss))


def parameter_count(case):
    return sum(leaf.size for leaf in jax.tree.leaves(case.params))


def relative_difference(ours, theirs):
    """The largest, over the leaves, of max |ours - theirs| / max |theirs|."""
    pairs = zip(*(map(np.asarray, jax.tree.leaves(side)) for side in (ours, theirs)), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


def below(difference):
    """A text that is the same on every machine: the bound, not the rounding error itself."""
    return "below 1e-6" if difference < 1e-6 else f"{difference:.1e}, NOT BELOW 1e-6"


def look_inside(rules):
    """`rules`, but with fake_quantize differentiated through its own round and clip."""
    def custom_jvp(eqn, xs, tangents):
        if eqn.params["call_jaxpr"].jaxpr.debug_info.func_name != "_fake_quantize":
            return rules["custom_jvp_call"](eqn, xs, tangents)
        duals = [Dual(x, tangents[i]) if i in tangents else x for i, x in enumerate(xs)]
        return interpret(eqn.params["call_jaxpr"], duals, partial(differentiate, rules))
    return {**rules, "custom_jvp_call": custom_jvp}


TRUE = look_inside(DERIVATIVES)
EDITED = look_inside({**DERIVATIVES, "round": lambda i, t, *_: t})
WHOLE_TIES = dict.fromkeys(["max", "min"], lambda i, t, y, xs, _: jnp.where(xs[i] == y, t, 0.0))
EDITED_TIES = look_inside({**DERIVATIVES, "round": lambda i, t, *_: t, **WHOLE_TIES})


def fence(*lines):
    """A Markdown code block."""
    return "\n".join(["```text", *lines, "```"])


def toy_block(cases):
    """log(a * b) at a = 2, b = 3 in both modes; then the real loss's first step backwards."""
    at, unit = (jnp.float32(2), jnp.float32(3)), (jnp.float32(1), jnp.float32(0))
    (a, b), product, loss = at, lambda w: w[0] * w[1], lambda w: jnp.log(w[0] * w[1])
    (c, c_a), (_, c_b) = (autodiff.jvp(product, at, t) for t in (unit, unit[::-1]))
    (d, d_a), (_, d_b) = (autodiff.jvp(loss, at, t) for t in (unit, unit[::-1]))
    ct_c, (ct_a, ct_b) = autodiff.grad(jnp.log)(c), autodiff.grad(loss)(at)
    case = cases["float32"]
    logits = model.forward(case.loss.keywords["layers"], case.images, case.loss.keywords["hyper"])
    by_hand = jnp.mean(jax.nn.softmax(logits) - jax.nn.one_hot(case.labels, 10), 0)
    ours = jitted(autodiff.grad, case.loss)(*case[1:])[-1][1]
    return fence(
        "log(a * b) at a = 2, b = 3   value    tangent along a   tangent along b",
        f"c = mul a b                  {c:<9g}1 * {b:g} = {c_a:<10g}{a:g} * 1 = {c_b:g}",
        f"d = log c                    {d:<9.4f}{c_a:g} / {c:g} = {d_a:<10.4g}"
        f"{c_b:g} / {c:g} = {d_b:.4g}", "",
        "backwards                    cotangent",
        "d                            1",
        f"c, through log               1 / {c:g} = {ct_c:.4g}",
        f"a, through mul               {ct_c:.4g} * {b:g} = {ct_a:.4g}",
        f"b, through mul               {a:g} * {ct_c:.4g} = {ct_b:.4g}", "",
        f"{len(case.images)} images, b3: mean of softmax minus one-hot, and our grad: "
        f"{below(relative_difference(ours, by_hand))} apart")


def jaxpr_block(cases):
    case = cases["float32"]
    text = str(jax.make_jaxpr(case.loss)(*case[1:]))
    text = text.replace(" out_sharding=None", "")       # versions differ in where they say this
    return fence(*(line if len(line) <= 100 else line[:99] + "…" for line in text.splitlines()))


FORMULAS = {                    # what the rule tables in autodiff.py compute: dy, then transposed
    "add": ("da + db", "ct to each"), "sub": ("da - db", ""), "neg": ("-da", "-ct"),
    "mul": ("da b + a db", "ct times the residual"), "div": ("(da - y db) / b", "ct / b"),
    "exp": ("y da", ""), "log": ("da / a", ""),
    "max": ("the winner's; halves at a tie", ""), "min": ("the winner's; halves at a tie", ""),
    "reduce_max": ("the winner's; shares at a tie", ""),
    "round": ("0", ""), "stop_gradient": ("0", ""),
    "dot_general": ("da @ b + a @ db", "ct @ b^T and a^T @ ct"),
    "reduce_sum": ("sum of da", "ct broadcast"), "broadcast_in_dim": ("da broadcast", "sum of ct"),
    "gather": ("da at the same places", "ct scattered back"),
    "select_n": ("", "ct where chosen, else 0"),
    "custom_jvp_call": ("the function's own rule", ""),
    "custom_vjp_call": ("the function's own rule", ""),
}


def rule_uses(case, rules=DERIVATIVES):
    """(derivative, transposition): Counters of the equations a primitive serves in one grad."""
    uses = Counter()

    def counting(eqn, inputs):
        uses[eqn.primitive.name] += any(isinstance(v, Dual) for v in inputs)
        return differentiate(rules, eqn, inputs)

    def run(params):
        duals = [Dual(leaf, leaf) for leaf in jax.tree.leaves(params)]
        return interpret(jax.make_jaxpr(case.of_params())(params), duals, counting)[0].tangent
    jax.eval_shape(run, case.params)
    return +uses, Counter(entry.name for entry in graph.trace(case.loss, *case[1:]).entries)


def rules_block(cases):
    counts = [rule_uses(cases[name]) for name in ("float32", "W8A8")]
    rows = []
    for name in sorted({**DERIVATIVES, **TRANSPOSITIONS}):
        used = [f"{uses[name]}, {transposed[name]}" for uses, transposed in counts]
        rows.append([f"`{name}`", *FORMULAS[name], *used])
    return table(["primitive", "derivative: dy of y = f(a, b)", "transposition: from ct of dy",
                  "float32 uses", "W8A8 uses"], rows)


def reverse_block(cases):
    lines = []
    for name, case in cases.items():
        ours = jitted(autodiff.grad, case.loss)(*case[1:])
        theirs = jitted(jax.grad, case.loss)(*case[1:])
        lines.append(f"{name:8s} jit(grad): {below(relative_difference(ours, theirs))}")
    case = cases["float32"]
    theirs = jitted(jax.grad, case.loss)(*case[1:])
    ours = autodiff.grad(case.loss)(*case[1:])
    lines.append(f"float32  grad, op by op: {below(relative_difference(ours, theirs))}")
    traced = graph.trace(case.loss, *case[1:])
    directions = jax.tree.map(lambda leaf: np.zeros((10, *leaf.shape), np.float32), case.params)
    directions[-1][1][:] = np.eye(10)           # the ten unit vectors of b3
    along = jax.vmap(lambda t: autodiff.jvp(case.of_params(), case.params, t).tangent)
    agree = below(relative_difference(jax.jit(along)(directions), theirs[-1][1]))
    lines += [f"the float32 loss: {len(traced.rows)} equations, {len(traced.entries)} on its tape",
              f"all {parameter_count(case):,} derivatives: 1 backward pass; "
              f"the 10 of b3: 10 forward passes, {agree}",
              "multiply-adds: {:,} in the loss, {:,} in its tape".format(*matmul_sizes(traced))]
    try:
        autodiff.grad(lambda x: jnp.sum(jnp.sin(x)))(jnp.ones(3))
    except NotImplementedError as error:
        lines.append(f"NotImplementedError: {error}")
    return fence(*lines)


def grads_under_rules(loss):
    """Like grad, but the three gradients under the true and the edited rules."""
    grads = [autodiff.grad(loss, rules) for rules in (TRUE, EDITED, EDITED_TIES)]
    return lambda *args: [grad(*args) for grad in grads]


def ste_block(cases):
    lines = []
    for name in ("W8A8", "W2A4"):
        case = cases[name]
        project = jitted(jax.grad, case.loss)(*case[1:])
        true, edited, ties = jitted(grads_under_rules, case.loss)(*case[1:])
        moved = sum(np.count_nonzero(leaf) for leaf in jax.tree.leaves(true))
        bits = WIDTHS[name][0]
        codes = [np.asarray(quant.quantize(layer.w, layer.w_scale, bits))
                 for layer in case.loss.keywords["layers"]]
        last = quant.code_range(bits)[1]
        ends = sum(np.count_nonzero(np.abs(q) == last) for q in codes) / sum(q.size for q in codes)
        lines += [f"{name}: {100 * ends:.1f} % of the weight codes stand at an end of their range",
                  f"{name}: true gradient of rounding: {moved} of {parameter_count(case):,} "
                  "entries are not zero",
                  f"{name}: `round` edited: {relative_difference(edited, project):.2f} from the "
                  "project's gradient",
                  f"{name}: `round` edited, clip's ties whole: "
                  f"{below(relative_difference(ties, project))}"]
    return fence(*lines)


def residual_bytes(case, images):
    """dict of layer -> bytes that the backward pass reads for a batch of this many images."""
    batch = [jax.ShapeDtypeStruct((images, *part.shape[1:]), part.dtype) for part in case[2:]]
    totals = {}
    for layer, value, _ in graph.residuals(graph.trace(case.loss, case.params, *batch)):
        totals[layer] = totals.get(layer, 0) + value.nbytes
    return totals


def residuals_block(cases):
    columns = []
    for name in ("float32", "W8A8"):
        least, more = (residual_bytes(cases[name], images) for images in (128, 129))
        pairs = [(least[layer], more[layer] - least[layer]) for layer in sorted(least)]
        columns.append([*pairs, tuple(map(sum, zip(*pairs)))])
    rows = [[name, *(f"{number:,}" for pair in pairs for number in pair)] for name, *pairs in
            zip(("layer 1", "layer 2", "layer 3", "loss", "all"), *columns, strict=True)]
    return table(["residuals, bytes", "float32, B = 128", "per further image", "W8A8, B = 128",
                  "per further image"], rows)


def largest_residuals_block(cases):
    rows = []
    for name in ("float32", "W8A8"):
        case = cases[name]
        found = sorted(graph.residuals(graph.trace(case.loss, *case[1:])),
                       key=lambda item: -item[1].nbytes)
        rows += [f"{name:8s} layer {layer}  {str(value):18s} {value.nbytes:8,} bytes  for "
                 f"{reader}^T{', a parameter' * bool(value.name)}"
                 for layer, value, reader in found[:5]]
    return fence(*rows)


def pullback_of(loss):
    """A function of a loss's arguments that returns its pullback to the parameters by jax.vjp."""
    return lambda params, *batch: jax.vjp(lambda p: loss(p, *batch), params)[1]


def saved_bytes(loss, params, images, labels):
    """Bytes in the pullback that jax.vjp returns: what JAX itself keeps, op by op."""
    kept = jax.eval_shape(pullback_of(loss), params, images, labels)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def matmul_sizes(traced):
    """Multiply-adds of the matrix products in (the loss, its transposed tape)."""
    sizes = [(entry.row, entry.inputs[0].shape[0] * entry.inputs[0].shape[1] * entry.shape[1])
             for entry in traced.entries if entry.name == "dot_general"]
    return sum(dict(sizes).values()), sum(size for _, size in sizes)


def jax_bytes_block(cases):
    lines = []
    for name in ("float32", "W8A8"):
        case = cases[name]
        read = sum(residual_bytes(case, len(case.images)).values())
        leaves = jax.tree.leaves(jax.jit(pullback_of(case.loss))(*case[1:]))
        kept = saved_bytes(case.loss, *case[1:])
        zeros = sum(leaf.nbytes for leaf in leaves if leaf.dtype == np.float32 and not np.any(leaf))
        lines.append(f"{name:8s} our pullback reads {read:9,} bytes; jax.vjp keeps {kept:9,}, "
                     f"{zeros:9,} of them zeros")
    return fence(*lines)


BLOCKS = {"toy": toy_block, "jaxpr": jaxpr_block, "rules": rules_block, "reverse": reverse_block,
          "ste": ste_block, "residuals": residuals_block, "largest": largest_residuals_block,
          "jax-bytes": jax_bytes_block}
