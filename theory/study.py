"""Measure how jax.grad works on this model, and put the output into theory/README.md.

python3 -m theory.study [--draw] [recipes/NAME.toml] [--KEY=value ...]

Writes results/autodiff.json, plots/autodiff_graph.png, plots/autodiff_ste.png, and the blocks
between markers in theory/README.md. About a minute; run it on a quiet machine: it takes times.
--draw measures nothing: it draws the figures again. With switches the README stays as it is.
"""
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))      # also as python3 theory/study.py
if __name__ == "__main__":
    from machine import script
    script.begin()

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import config
import model
from benchmarks import in_turns
from machine import script
from machine.files import check_writable, read_bytes, write_atomically
from report.draw import draw_into
from report.results import MAX_BYTES, fill, group, read_result, table, write_result
from runner import experiment, source
from theory import autodiff, graph, report
from theory.autodiff import DERIVATIVES
from theory.report import EDITED, TRUE, saved_bytes
from training.loop import CALIBRATION_IMAGES

README = Path(__file__).parent / "README.md"
BLOCK = 64                      # forward-mode directions in one vmapped pass
REPEATS = 15                    # of each time
BATCHES = (128, 8192)           # images, for recomputation
STE_EXAMPLES, STE_EPOCHS, STE_RATE = 4096, 8, 0.1


def measure(programs):
    """Median and range of REPEATS calls, in milliseconds.

    Args:
      programs: {name: (compiled function, its arguments)}.
    Returns:
      {name: {"ms", "least", "most"}}.
    """
    def call(function, args):
        return jax.block_until_ready(function(*args))
    seconds = in_turns({name: partial(call, *pair) for name, pair in programs.items()},
                              REPEATS)
    return {name: {"ms": 1e3 * float(np.median(times)), "least": 1e3 * min(times),
                   "most": 1e3 * max(times)} for name, times in seconds.items()}


def unit_directions(params, count):
    """The first `count` unit vectors of parameter space: like params, leaves [count, ...]."""
    leaves, tree = jax.tree.flatten(params)
    first = jnp.eye(count, leaves[0].size).reshape(count, *leaves[0].shape)
    return tree.unflatten([first, *(jnp.zeros((count, *leaf.shape)) for leaf in leaves[1:])])


def measure_modes(case):
    """Rows of times: of the loss, of forward mode and of reverse mode, all under jit."""
    def along(params, t, images, labels):
        return autodiff.jvp(lambda p: case.loss(p, images, labels), params, t).tangent
    along_many = jax.vmap(along, (None, 0, None, None))
    many = unit_directions(case.params, BLOCK)
    one = jax.tree.map(lambda leaf: leaf[0], many)
    batch = case.images, case.labels
    times = measure({
        "loss": (jax.jit(case.loss), (case.params, *batch)),
        "jvp": (jax.jit(along), (case.params, one, *batch)),
        "jvp_block": (jax.jit(along_many), (case.params, many, *batch)),
        "our_grad": (jax.jit(autodiff.grad(case.loss)), (case.params, *batch)),
        "jax_grad": (jax.jit(jax.grad(case.loss)), (case.params, *batch)),
    })
    return [{"part": "mode", "label": name, **row} for name, row in times.items()]


def measure_recomputation(case, train):
    """Per policy and batch: bytes kept by jax.vjp, scratch bytes and time under jit."""
    policies = jax.checkpoint_policies
    losses = {"keep all": case.loss,
              "keep matrix products": jax.checkpoint(case.loss, policy=policies.dots_saveable),
              "keep arguments only": jax.checkpoint(case.loss)}
    rows = []
    for images in BATCHES:
        batch, programs = [jnp.asarray(part[:images]) for part in train], {}
        for name, loss in losses.items():
            # Not grad: without the loss to return, the first forward pass would be dead code.
            program = jax.jit(jax.value_and_grad(loss)).lower(case.params, *batch).compile()
            programs[name] = program, (case.params, *batch)
        times = measure(programs)
        rows += [{"part": "recomputation", "label": name, "batch": images,
                  "kept_bytes": saved_bytes(losses[name], case.params, *batch),
                  "scratch_bytes": program.memory_analysis().temp_size_in_bytes, **times[name]}
                 for name, (program, _) in programs.items()]
    return rows


def train_with(rules, hyper, train, val, settings):
    """Validation loss in nats before training and after each epoch, with our grad under `rules`."""
    layers = model.init(jax.random.key(settings.SEED), hyper)
    steps = STE_EXAMPLES // settings.BATCH_SIZE
    images, labels = (jnp.asarray(part[:steps * settings.BATCH_SIZE]) for part in train)
    loss = jax.jit(model.loss, static_argnames="hyper")

    @jax.jit
    def run_epoch(layers, images, labels):
        def step(params, batch):
            grads = autodiff.grad(report.loss_of, rules)(params, *batch, layers, hyper)
            return jax.tree.map(lambda p, g: p - STE_RATE * g, params, grads), None
        batches = (images.reshape(steps, -1, images.shape[1]), labels.reshape(steps, -1))
        params = jax.lax.scan(step, [(layer.w, layer.b) for layer in layers], batches)[0]
        return [layer._replace(w=w, b=b) for layer, (w, b) in zip(layers, params)]

    losses = []
    for epoch in range(STE_EPOCHS + 1):
        layers = model.calibrate(layers, images[:CALIBRATION_IMAGES], hyper)
        losses.append(float(loss(layers, *val, hyper=hyper)))
        if epoch < STE_EPOCHS:
            layers = run_epoch(layers, images, labels)
    return losses


RULES = {"true gradient of rounding": TRUE, "round edited": EDITED,
         "project's estimator": DERIVATIVES}


def measure_training(data, settings):
    """Rows of validation losses in nats, one per epoch from 0, by width and rule."""
    val = jax.device_put(tuple(data.val))
    return [{"part": "training", "label": rule, "network": name, "val_loss": train_with(
                rules, report.hyper_of(settings, name, data), data.train, val, settings)}
            for name in ("W8A8", "W2A4") for rule, rules in RULES.items()]


def draw_training(rows):
    """The Figure of validation loss by epoch under each rule, one panel per width."""
    figure = Figure(figsize=(8.3, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    styles = [(graph.GREY, "s", 5, ":"), (graph.BLUE, "o", 9, "--"), (graph.ORANGE, "o", 4, "-")]
    for axes, (name, own) in zip(panels, group(rows, "network").items()):
        for row, (color, marker, size, line) in zip(own, styles):
            axes.plot(row["val_loss"], color=color, marker=marker, markersize=size, linestyle=line,
                      markerfacecolor="none" if size == 9 else color, label=row["label"])
        axes.set(title=name, xlabel="epoch (32 steps of 128 images)", ylim=(0, None))
    panels[0].set_ylabel("validation loss (nats)")
    panels[1].legend(loc="center right")
    return figure


def draw(case, rows, folder):
    """Both figures, as PNG in a folder: of a Case's graph, and of training losses."""
    draw_into(folder / "autodiff_graph.png", lambda: graph.draw(graph.trace(case.loss, *case[1:])))
    draw_into(folder / "autodiff_ste.png", lambda: draw_training(group(rows, "part")["training"]))


def modes_table(result):
    modes, parameters = group(result["rows"], "label"), result["parameters"]

    def row(label, key, count):
        (time_,) = modes[key]
        total = time_["ms"] * count / 1e3
        text = f"{total / 60:.1f} min, extrapolated" if count > 1 else f"{time_['ms']:.2f} ms"
        return [label, f"{time_['ms']:.2f} ({time_['least']:.2f} to {time_['most']:.2f})", text]
    return table(
        ["under jit, float32, B = 128", "one pass, ms: median (range)",
         f"all {parameters:,} derivatives"],
        [[*row("the loss alone", "loss", 1)[:2], "none"],
         row("forward mode, one direction", "jvp", parameters),
         row(f"forward mode, {BLOCK} directions by vmap", "jvp_block", parameters / BLOCK),
         row("reverse mode, our grad", "our_grad", 1),
         row("reverse mode, jax.grad", "jax_grad", 1)])


def recomputation_table(result):
    return table(["jax.checkpoint", "B", "bytes kept by jax.vjp", "scratch bytes under jit",
                  "loss and gradient under jit, ms: median (range)"],
                 [[r["label"], r["batch"], f"{r['kept_bytes']:,}", f"{r['scratch_bytes']:,}",
                   f"{r['ms']:.1f} ({r['least']:.1f} to {r['most']:.1f})"]
                  for r in group(result["rows"], "part")["recomputation"]])


def training_table(result):
    rows = [[row["network"], row["label"], *(f"{row['val_loss'][at]:.3f}" for at in (0, -1))]
            for row in group(result["rows"], "part")["training"]]
    return table(["width", "rule", "validation loss before, nats", f"after {STE_EPOCHS} epochs"],
                 rows)


TABLES = {"modes": modes_table, "recomputation": recomputation_table, "training": training_table}


def main(argv):
    settings = config.load(argv, __doc__, also=("--draw",))
    check_writable(settings.RESULTS_DIR, settings.PLOTS_DIR)
    settings = experiment.set_up(settings)
    data = source.load_data(settings)
    cases = report.make_cases(settings, data)
    plots, path = Path(settings.PLOTS_DIR), Path(settings.RESULTS_DIR) / "autodiff.json"
    case = cases["float32"]
    if "--draw" in argv:
        draw(case, read_result(path)["rows"], plots)
        return
    rows = [*measure_modes(case), *measure_recomputation(case, data.train),
            *measure_training(data, settings)]
    write_result(path, settings._asdict(), rows, repeats=REPEATS, block=BLOCK,
                 parameters=report.parameter_count(case))
    draw(case, rows, plots)
    if argv:
        return                                  # the README tells of the default configuration
    blocks = {name: make(cases) for name, make in report.BLOCKS.items()}
    blocks |= {name: make(read_result(path)) for name, make in TABLES.items()}
    text = read_bytes(README, MAX_BYTES).decode("utf-8")
    write_atomically(README, fill(text, blocks).encode())
    print(f"wrote {README}")


if __name__ == "__main__":
    script.run(main)
