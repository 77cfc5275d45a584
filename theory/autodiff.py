"""How jax.grad works: differentiate a jaxpr, record what is linear, transpose the record.

A jaxpr is a list of equations `outputs = primitive[params] inputs`. `interpret` walks it; parts 1
and 2 are two steps to take at an equation, part 3 walks backwards what part 2 recorded.

Sources: Griewank and Walther, Evaluating Derivatives, 2nd ed. 2008, ch. 3; Baydin et al. 2018
(arXiv:1502.05767); JAX's autodidax page, https://docs.jax.dev/en/latest/autodidax.html.
"""
from collections import namedtuple
from functools import partial

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jax.interpreters.ad import Zero


def interpret(closed, args, step):
    """Walk a ClosedJaxpr, jit calls included: outputs = step(eqn, inputs) at each equation."""
    jaxpr = closed.jaxpr
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))
    def read(atom):
        return atom.val if isinstance(atom, Literal) else env[atom]
    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        nested = eqn.primitive.name == "jit"
        outputs = interpret(eqn.params["jaxpr"], inputs, step) if nested else step(eqn, inputs)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def evaluate(eqn, inputs):
    """The plainest step: apply the primitive to arrays; list of outputs."""
    outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return outputs if eqn.primitive.multiple_results else [outputs]


def find_rule(rules, eqn, kind):
    """The rule of the equation's primitive, or an error that names the primitive."""
    if eqn.primitive.name not in rules:
        raise NotImplementedError(f"no {kind} rule for primitive '{eqn.primitive.name}'")
    return rules[eqn.primitive.name]


# Part 1, forward mode: calculate with dual numbers. A plain array has tangent zero.
Dual = namedtuple("Dual", ["primal", "tangent"])


def differentiate(rules, eqn, inputs):
    """The step on arrays and Duals: outputs, with their tangents by the chain rule."""
    tangents = {i: v.tangent for i, v in enumerate(inputs) if isinstance(v, Dual)}
    xs = [v.primal if isinstance(v, Dual) else v for v in inputs]
    if not tangents or not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return evaluate(eqn, xs)                # constant, or an integer or a truth value
    rule = find_rule(rules, eqn, "derivative")
    if eqn.primitive.multiple_results:          # a custom call computes its outputs itself
        return rule(eqn, xs, tangents)
    (y,) = evaluate(eqn, xs)
    first, *rest = [rule(i, t, y, xs, eqn) for i, t in tangents.items()]
    return [y if first is None else Dual(y, jnp.broadcast_to(sum(rest, first), y.shape))]


def _multilinear(i, t, y, xs, eqn):
    """Linear in each operand alone: the tangent takes the operand's place."""
    return evaluate(eqn, [*xs[:i], t, *xs[i + 1:]])[0]


def _extremum(i, t, y, xs, eqn):
    """The winner's tangent. Ties share it, which is how jnp.clip gets 0.5 at its bounds."""
    axes = eqn.params.get("axes", ())           # max and min compare operands, reduce_max entries
    wins = [jnp.where(x == jnp.expand_dims(y, axes), 1.0, 0.0) for x in xs]
    return jnp.sum(t * wins[i], axes) / jnp.sum(sum(wins), axes)


def _custom_jvp(eqn, xs, tangents):
    """Call the rule that came with the function, and do not look inside."""
    _, rule = eqn.primitive.get_bind_params(eqn.params)["subfuns"]
    zero = jax.custom_derivatives.SymbolicZero if eqn.params["symbolic_zeros"] else jnp.zeros_like
    ts = [tangents[i] if i in tangents else zero(jax.typeof(x)) for i, x in enumerate(xs)]
    outputs = rule.call_wrapped(*xs, *ts)       # all primals, then all tangents
    return [Dual(*pair) for pair in zip(outputs, outputs[len(outputs) // 2:])]


def _custom_vjp(eqn, xs, tangents):
    """Only a backward pass is given: y's tangent is the gradient, in ct, of <backward(ct), t>."""
    _, forward, backward = eqn.primitive.get_bind_params(eqn.params)["subfuns"]
    outputs = iter(forward.call_wrapped(*(v for x in xs for v in (x, True))))
    sources = eqn.params["out_trees"]()[2]      # of each residual: an input's number; None: new
    residuals = [next(outputs) if source is None else xs[source] for source in sources]
    ys = list(outputs)
    def product(*cts):
        x_cts = backward.call_wrapped(*residuals, *cts)                # None became a Zero
        x_cts = x_cts[0] if isinstance(x_cts[0], list) else x_cts      # with logs, since JAX 0.12
        return sum(jnp.sum(ct * tangents[i]) for i, ct in enumerate(x_cts)
                   if i in tangents and not isinstance(ct, Zero))
    (s,), tape, unknowns = linearize(product, *ys)
    ts = transpose(tape, {s: jnp.ones(())})
    return [Dual(y, ts[u]) if u in ts else y for y, u in zip(ys, unknowns)]


# rule(i, t, y, xs, eqn): how far output y moves when operand i of xs moves by t; None: not at all.
DERIVATIVES = {
    "add": lambda i, t, *_: t,
    "sub": lambda i, t, *_: -t if i else t,
    "div": lambda i, t, y, xs, _: (-t * y if i else t) / xs[1],
    "exp": lambda i, t, y, *_: t * y,
    "log": lambda i, t, y, xs, _: t / xs[0],
    "round": lambda *_: None, "stop_gradient": lambda *_: None,
    "custom_jvp_call": _custom_jvp, "custom_vjp_call": _custom_vjp,
    **dict.fromkeys("max min reduce_max".split(), _extremum),
    **dict.fromkeys("neg mul dot_general reduce_sum broadcast_in_dim gather".split(), _multilinear),
}


def jvp(fun, x, t, rules=DERIVATIVES):
    """Dual(fun(x), derivative along t); x and t: alike pytrees of float32; fun(x): one array."""
    duals = [Dual(*pair) for pair in zip(jax.tree.leaves(x), jax.tree.leaves(t), strict=True)]
    (y,) = interpret(jax.make_jaxpr(fun)(x), duals, partial(differentiate, rules))
    return y if isinstance(y, Dual) else Dual(y, jnp.zeros_like(y))


# Part 2: walk what part 1 did, the input tangents unknown. What needs them is linear in them and
# goes on the tape, a list of (eqn, inputs, output); the arrays among its inputs are residuals.
class Unknown:
    def __init__(self, aval):
        self.shape = aval.shape


def linearize(fun, *avals):
    """Run fun on Unknowns shaped like avals: (list of its outputs, the tape, the Unknowns)."""
    tape, unknowns = [], [Unknown(aval) for aval in avals]
    def record(eqn, inputs):
        if not any(isinstance(v, Unknown) for v in inputs):
            return evaluate(eqn, inputs)
        tape.append((eqn, inputs, Unknown(eqn.outvars[0].aval)))
        return [tape[-1][-1]]
    return interpret(jax.make_jaxpr(fun)(*avals), unknowns, record), tape, unknowns


# Part 3, reverse mode: where the tape computes A t from t, its transpose computes A^T ct from ct.
def _fit(ct, shape):
    """Sum ct over the axes along which an operand of this shape was stretched."""
    axes = [a for a, size in enumerate(shape or (0,) * ct.ndim) if size < ct.shape[a]]
    return jnp.sum(ct, axes, keepdims=True).reshape(shape) if axes else ct


def _matmul(i, ct, xs, eqn):
    """ct float32 [B, O] of x @ w, to x [B, I] or to w [I, O]."""
    if eqn.params["dimension_numbers"] != (((1,), (0,)), ((), ())):
        raise NotImplementedError("primitive 'dot_general' is transposed as x @ w only")
    return xs[0].T @ ct if i else ct @ xs[1].T


# rule(i, ct, xs, eqn): the cotangent of operand i, which is Unknown, from the output's.
TRANSPOSITIONS = {
    "add": lambda i, ct, *_: ct,
    "neg": lambda i, ct, *_: -ct,
    "mul": lambda i, ct, xs, _: ct * xs[1 - i],
    "div": lambda i, ct, xs, _: ct / xs[1],
    "dot_general": _matmul,
    "select_n": lambda i, ct, xs, _: jax.lax.select_n(
        xs[0], *(ct if n == i else jnp.zeros_like(ct) for n in range(1, len(xs)))),
    "reduce_sum": lambda i, ct, xs, eqn: jnp.broadcast_to(
        jnp.expand_dims(ct, eqn.params["axes"]), xs[0].shape),
    "broadcast_in_dim": lambda i, ct, xs, eqn: jnp.sum(
        ct, sorted({*range(ct.ndim)} - {*eqn.params["broadcast_dimensions"]})),
    "gather": lambda i, ct, xs, eqn: jax.lax.scatter_add(  # back to the places it was picked from
        jnp.zeros(xs[0].shape), xs[1], ct, mode=eqn.params["mode"],
        dimension_numbers=jax.lax.ScatterDimensionNumbers(*eqn.params["dimension_numbers"])),
}


def transpose(tape, cotangents):
    """Carry cotangents, a dict Unknown -> array, from the end of a tape to its start."""
    for eqn, inputs, output in reversed(tape):
        for i, v in enumerate(inputs):
            if isinstance(v, Unknown) and output in cotangents:
                rule = find_rule(TRANSPOSITIONS, eqn, "transposition")
                ct = _fit(rule(i, cotangents[output], inputs, eqn), v.shape)
                cotangents[v] = cotangents[v] + ct if v in cotangents else ct
    return cotangents


def vjp(fun, x, rules=DERIVATIVES):
    """(fun(x), pullback): pullback(cotangent of fun(x)) is the cotangent of all of x."""
    leaves, tree = jax.tree.flatten(x)
    (y, t_y), tape, unknowns = linearize(
        lambda *ts: jvp(fun, x, tree.unflatten(ts), rules), *leaves)
    def pullback(ct):
        cts = transpose(tape, {t_y: ct} if isinstance(t_y, Unknown) else {})
        return tree.unflatten([cts[u] if u in cts else jnp.zeros(u.shape) for u in unknowns])
    return y, pullback


def grad(fun, rules=DERIVATIVES):
    """Like jax.grad: a function of (x, *rest) whose value is a pytree like x."""
    def gradient(x, *rest):
        y, pullback = vjp(lambda x: fun(x, *rest), x, rules)
        return pullback(jnp.ones_like(y))
    return gradient
