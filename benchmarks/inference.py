"""Images a second and latency of the engines, float32 against integers.

python3 -m benchmarks.inference [--WEIGHTS=FILE] [--KEY=value ...]

Writes results/inference_bench.json and prints a table. Every engine gets the raw bytes as a NumPy
array and gives its logits as one, so what a caller pays is what is timed.
"""
if __name__ == "__main__":
    from machine import script
    script.begin()

from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

import config
import convert
import integer
import plan
import predict
import quant
from benchmarks import in_turns, load_network
from deploy import engines, to_c
from machine import script
from machine.files import check_writable
from report import results, tables
from runner import experiment

REPEATS = 9
CALLS = {1: 500, 128: 50, 10_000: 1}    # per repeat, by batch: long enough for the clock


def float_onnx(network):
    """A float32 ONNX model as bytes: Cast, scale, then Gemm and Relu; of a FloatNetwork."""
    from onnx import TensorProto

    from deploy.to_onnx import Graph
    graph, classes = Graph(), network.steps[-1].after[0]
    scale = graph.constant("pixel_scale", np.float32(quant.PIXEL_SCALE))

    def apply(i, x, operator, arrange):
        if i == 0:
            codes = graph.node("Cast", [x], "bytes", to=TensorProto.FLOAT)
            x = graph.node("Mul", [codes, scale], "x0")
        w, b = network.layers[i]
        operands = [x, graph.constant(f"w{i}", arrange(w)), graph.constant(f"b{i}", b)]
        last = i + 1 == len(network.layers)
        x = graph.node(inputs=operands, output="logits" if last else f"acc{i}", **operator)
        return x if last else graph.node("Relu", [x], f"x{i + 1}")

    graph.walk(network.steps, apply)
    return graph.model("image", TensorProto.UINT8, plan.inputs(network.steps),
                       {"logits": (TensorProto.FLOAT, ["N", classes])})


def make_contenders(network):
    """Name to function from images to logits; engines that are missing are named and left out."""
    unrounded = integer.FloatNetwork(
        tuple((layer.w, layer.b) for layer in convert.from_network(network)[0]), network.steps)

    def onnx_int8(threads=0):
        from deploy import to_onnx
        return engines.make_onnx(to_onnx.export(network), threads)

    makers = {
        "JAX float32": lambda: predict.make_predictor(unrounded),
        "JAX int8": lambda: integer.make_engine(network),
        "ONNX Runtime float32": lambda: engines.make_onnx(float_onnx(unrounded)),
        "ONNX Runtime int8": onnx_int8,
        "ONNX Runtime int8, one core": lambda: onnx_int8(1),
        "C": lambda: engines.make_c(to_c.export(network)[0]),
        "C, plain": lambda: engines.make_c(to_c.export(network)[0],
                                           flags=(*engines.C_FLAGS, engines.PLAIN)),
    }
    contenders = {}
    for name, make in makers.items():
        try:
            contenders[name] = make()
        except (engines.Missing, ImportError) as missing:
            print(f"{name}: skipped: {missing}")
    return contenders


def measure(contenders, images, calls_by_batch=CALLS):
    """A row for each engine and batch: "seconds" of REPEATS calls."""
    rows = []
    for batch, calls in calls_by_batch.items():
        part = np.ascontiguousarray(images[:batch])
        times = in_turns({name: partial(run, part) for name, run in contenders.items()},
                                REPEATS, calls)
        rows += [{"label": name, "batch": batch, "seconds": seconds}
                 for name, seconds in times.items()]
    return rows


def main(argv):
    settings = config.load(argv, __doc__)
    check_writable(settings.RESULTS_DIR)
    settings = experiment.set_up(settings)
    network, dataset, path = load_network(settings)
    rows = measure(make_contenders(network), dataset.test.images)
    versions = {name: metadata.version(name) for name in ("onnx", "onnxruntime")
                if any(row["label"] == "ONNX Runtime int8" for row in rows)}
    result = results.write_result(
        Path(settings.RESULTS_DIR) / "inference_bench.json", settings._asdict(), rows,
        network=f"{plan.describe(network.steps)} {integer.name(network)}", weights=str(path),
        export_versions=versions, c_flags=engines.C_FLAGS)
    print(tables.TABLES["inference"]({"inference_bench": result}.get))


if __name__ == "__main__":
    script.run(main)
