"""Images a second and latency of the engines, float32 against integers.

python3 -m benchmarks.inference [--WEIGHTS=FILE] [--KEY=value ...]

Writes results/inference_bench.json and prints a table. Every engine gets the raw bytes as a NumPy
array and gives its logits as one, so what a caller pays is what is timed.
"""
import time
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

import config
import data
import integer
import model
from deploy import engines, to_c
from files import environment, run_script, write_result
from main_export import load_quantized
from main_inference import default_weights

REPEATS = 9
CALLS = {1: 500, 128: 50, 10_000: 1}    # per repeat, by batch: long enough for the clock


def dequantize(layers):
    """The float32 network of the same size: list of (w [I, O], b [O])."""
    return [(np.ldexp(layer["w_q"].astype(np.float32), layer["w_exponent"].astype(np.int32)),
             np.ldexp(layer["b_q"].astype(np.float32),
                      layer["x_exponent"].astype(np.int32) + layer["w_exponent"]))
            for layer in layers]


def float_onnx(params):
    """A float32 ONNX model as bytes: Cast, scale, then Gemm and Relu."""
    from onnx import TensorProto, helper, numpy_helper

    from deploy.to_onnx import OPSET
    constants = [numpy_helper.from_array(np.float32(2**-8), "pixel_scale")]
    nodes = [helper.make_node("Cast", ["image"], ["bytes"], to=TensorProto.FLOAT),
             helper.make_node("Mul", ["bytes", "pixel_scale"], ["x0"])]
    for i, (w, b) in enumerate(params):
        last = i + 1 == len(params)
        constants += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(b, f"b{i}")]
        nodes.append(helper.make_node("Gemm", [f"x{i}", f"w{i}", f"b{i}"],
                                      ["logits" if last else f"acc{i}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"acc{i}"], [f"x{i + 1}"]))
    inputs, classes = len(params[0][0]), len(params[-1][1])
    graph = helper.make_graph(
        nodes, "float32", initializer=constants,
        inputs=[helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", inputs])],
        outputs=[helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])])
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset]).SerializeToString()


def make_contenders(layers, meta):
    """Name to function from images to logits; engines that are missing are named and left out."""
    params = dequantize(layers)
    on_device = jax.device_put(params)

    def onnx_int8():
        from deploy import to_onnx
        return engines.make_onnx(to_onnx.export(layers, meta))

    makers = {
        "JAX float32": lambda: lambda images: np.asarray(model.predict(on_device, images)),
        "JAX int8": lambda: integer.make_engine(layers, meta["activation_bits"]),
        "ONNX Runtime float32": lambda: engines.make_onnx(float_onnx(params)),
        "ONNX Runtime int8": onnx_int8,
        "C": lambda: engines.make_c(to_c.export(layers, meta)[0]),
    }
    contenders = {}
    for name, make in makers.items():
        try:
            contenders[name] = make()
        except (engines.Missing, ImportError) as missing:
            print(f"{name}: skipped: {missing}")
    return contenders


def measure(contenders, images):
    """Seconds per call: {name: {batch: list of REPEATS}}, taken in turns so that noise hits all."""
    seconds = {name: {batch: [] for batch in CALLS} for name in contenders}
    for batch, calls in CALLS.items():
        part = np.ascontiguousarray(images[:batch])
        for run in contenders.values():
            run(part)                           # compiles, warms up
        for _ in range(REPEATS):
            for name, run in contenders.items():
                start = time.perf_counter()
                for _ in range(calls):
                    run(part)
                seconds[name][batch].append((time.perf_counter() - start) / calls)
    return seconds


def table(seconds):
    """Markdown: latency at batch 1 and images a second above it, medians and ranges."""
    heads = ["latency, batch 1 (µs)" if batch == 1 else f"images/s, batch {batch:,}"
             for batch in CALLS]
    lines = ["| engine | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(CALLS)]
    for name, by_batch in seconds.items():
        cells = []
        for batch, times in by_batch.items():
            values = np.array(times) * 1e6 if batch == 1 else batch / np.array(times)
            cells.append(f"{np.median(values):,.0f} ({values.min():,.0f} to {values.max():,.0f})")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def main(argv):
    settings = config.load(argv, __doc__)
    path = default_weights(settings)
    layers, meta = load_quantized(path)
    _, test = data.load(settings.DATASET, settings.DATA_DIR, tuple(meta["layer_sizes"]))
    contenders = make_contenders(layers, meta)
    seconds = measure(contenders, test.images)
    machine = environment()
    print(f"{table(seconds)}\n\n{machine['cpu']}, {machine['cores']} cores; medians and ranges of "
          f"{REPEATS}, taken in turns. C runs on one core, an image at a time, called from Python "
          "once per batch; the others use every core.")
    versions = {name: metadata.version(name) for name in ("onnx", "onnxruntime")
                if "ONNX Runtime int8" in contenders}
    write_result(Path(settings.RESULTS_DIR) / "inference_bench.json", settings, weights=str(path),
                 bits=[meta["weight_bits"], meta["activation_bits"]], repeats=REPEATS,
                 seconds=seconds, export_versions=versions, c_flags=engines.C_FLAGS)


if __name__ == "__main__":
    run_script(main)
