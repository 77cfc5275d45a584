"""ONNX: a QDQ graph that ONNX Runtime fuses into its int8 kernels, exact on every CPU."""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 28                      # the newest that the pinned onnx and onnxruntime both know
# Weights are stored as uint8 with this zero point, not as int8: for uint8 x int8 on x86 CPUs
# without VNNI, ONNX Runtime adds pairs of products in saturating int16 (2 * 255 * 127 > 32767),
# which changed 98 % of the logits. uint8 x uint8 has no such kernel, and costs no exactness.
WEIGHT_ZERO = 128


def export(layers, meta):
    """The model file.

    Args:
      layers, meta: as from checkpoint.load, quantized.
    Returns:
      bytes of an ONNX model: input image uint8 [N, inputs]; outputs logits int32 [N, classes], the
      accumulators of the last layer, and class int64 [N]; N is free.

    Every scale is a power of two and every |accumulator| is below 2**24, so the float rescaling
    between layers is exact, and rounds half to even. Saturation to uint8 at zero point 0 is the
    ReLU; below 8 bits a Clip saturates lower.
    """
    nodes, constants = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    x = "image"
    for i, layer in enumerate(layers):
        w_q = constant(f"w{i}_q", (layer["w_q"].astype(np.int16) + WEIGHT_ZERO).astype(np.uint8))
        b_q = constant(f"b{i}_q", layer["b_q"])
        if i + 1 == len(layers):
            w_zero = constant(f"w{i}_zero", np.uint8(WEIGHT_ZERO))
            products = node("MatMulInteger", [x, w_q, "", w_zero], "products")
            node("Add", [products, b_q], "logits")
            node("ArgMax", ["logits"], "class", axis=1, keepdims=0)
            break
        outputs = len(layer["b_q"])
        x_scale = np.ldexp(np.float32(1), int(layer["x_exponent"]))
        h_scale = np.ldexp(np.float32(1), int(layers[i + 1]["x_exponent"]))
        w_scale = np.ldexp(np.ones(outputs, np.float32), layer["w_exponent"].astype(np.int32))
        zero = constant(f"x{i}_zero", np.uint8(0))
        w_zero = constant(f"w{i}_zero", np.full(outputs, WEIGHT_ZERO, np.uint8))
        x_parts = [x, constant(f"x{i}_scale", x_scale), zero]
        w_parts = [w_q, constant(f"w{i}_scale", w_scale), w_zero]
        b_parts = [b_q, constant(f"b{i}_scale", x_scale * w_scale)]
        x = node("DequantizeLinear", x_parts, f"x{i}")
        w = node("DequantizeLinear", w_parts, f"w{i}", axis=1)
        b = node("DequantizeLinear", b_parts, f"b{i}", axis=0)
        acc = node("Gemm", [x, w, b], f"acc{i}")
        x = node("QuantizeLinear", [acc, constant(f"h{i}_scale", h_scale), zero], f"h{i}_q")
        if meta["activation_bits"] < 8:
            qmax = constant(f"h{i}_qmax", np.uint8(2 ** meta["activation_bits"] - 1))
            x = node("Clip", [x, "", qmax], f"h{i}_clipped")

    graph = helper.make_graph(
        nodes, "nanoqat", initializer=constants,
        inputs=[helper.make_tensor_value_info("image", TensorProto.UINT8,
                                              ["N", meta["layer_sizes"][0]])],
        outputs=[helper.make_tensor_value_info("logits", TensorProto.INT32,
                                               ["N", meta["layer_sizes"][-1]]),
                 helper.make_tensor_value_info("class", TensorProto.INT64, ["N"])])
    model = helper.make_model(graph, producer_name="nanoQAT",
                              opset_imports=[helper.make_opsetid("", OPSET)])
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
