"""ONNX: a QDQ graph that ONNX Runtime fuses into its int8 kernels, exact on every CPU."""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import integer
import plan

OPSET = 13                      # the least that the operators need: older runtimes read it, too
# Weights are stored as uint8 with this zero point, not as int8: for uint8 x int8 on x86 CPUs
# without VNNI, ONNX Runtime adds pairs of products in saturating int16 (2 * 255 * 127 > 32767),
# which changed 98 % of the logits. uint8 x uint8 has no such kernel, and costs no exactness.
WEIGHT_ZERO = 128


class Graph:
    """An ONNX graph that grows by nodes and constants; what adds one returns its name."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, name, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def pool(self, side):
        """`image`, uint8 [N, 784], to the first layer's codes, uint8 [N, side**2]."""
        if side == 28:
            return "image"
        middle = 28 // 2
        shape = self.constant("image_shape", [-1, 1, 28, 28])
        crop = [self.constant(name, np.full(2, at)) for name, at in
                (("crop_start", middle - side), ("crop_end", middle + side))]
        square = self.node("Reshape", ["image", shape], "square")
        centre = self.node("Slice", [square, *crop, self.constant("crop_axes", [2, 3])], "centre")
        pixels = self.node("Cast", [centre], "pixels", to=TensorProto.FLOAT)
        # Sums of four bytes and their quarters are exact in float32; Round is half to even.
        means = self.node("AveragePool", [pixels], "means", kernel_shape=[2, 2], strides=[2, 2])
        codes = self.node("Cast", [self.node("Round", [means], "rounded")], "codes",
                          to=TensorProto.UINT8)
        return self.node("Flatten", [codes], "pooled")

    def model(self, pixels, outputs):
        """The checked model, as bytes; pixels: of an image; outputs: (type, shape) by name."""
        graph = helper.make_graph(
            self.nodes, "nanoqat", initializer=self.constants,
            inputs=[helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", pixels])],
            outputs=[helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()])
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, producer_name="nanoQAT", opset_imports=opsets,
                                  ir_version=helper.find_min_ir_version_for(opsets))
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()


def export(network):
    """The model file.

    Args:
      network: integer.Network.
    Returns:
      bytes of an ONNX model: input image uint8 [N, pixels]; outputs logits int32 [N, classes], the
      accumulators of the last layer, and class int64 [N]; N is free.

    Codes have the scale 1, weights and biases 2**-shift: a power of two, and every |accumulator| is
    below 2**24, so the float rescaling between layers is exact, and rounds half to even. Saturation
    to uint8 at zero point 0 is the ReLU; below 8 bits a Clip saturates lower.
    """
    graph, classes = Graph(), network.steps[-1].after[0]
    node, constant = graph.node, graph.constant
    qmax = integer.code_range(network.activation_bits, signed=False)[1]
    x = graph.pool(plan.pooled_side(network.steps))
    if len(network.layers) > 1:
        x_scale, x_zero = constant("x_scale", np.float32(1)), constant("x_zero", np.uint8(0))
    for i, layer in enumerate(network.layers):
        w_q = constant(f"w{i}_q", (layer.w_q.astype(np.int16) + WEIGHT_ZERO).astype(np.uint8))
        b_q = constant(f"b{i}_q", layer.b_q)
        if layer.shift is None:
            w_zero = constant(f"w{i}_zero", np.uint8(WEIGHT_ZERO))
            products = node("MatMulInteger", [x, w_q, "", w_zero], "products")
            node("Add", [products, b_q], "logits")
            node("ArgMax", ["logits"], "class", axis=1, keepdims=0)
            break
        scale = constant(f"w{i}_scale", np.ldexp(np.float32(1), -layer.shift.astype(np.int32)))
        w_zero = constant(f"w{i}_zero", np.full(len(layer.shift), WEIGHT_ZERO, np.uint8))
        x = node("DequantizeLinear", [x, x_scale, x_zero], f"x{i}")
        w = node("DequantizeLinear", [w_q, scale, w_zero], f"w{i}", axis=1)
        b = node("DequantizeLinear", [b_q, scale], f"b{i}", axis=0)
        acc = node("Gemm", [x, w, b], f"acc{i}")
        x = node("QuantizeLinear", [acc, x_scale, x_zero], f"h{i}_q")
        if qmax < 255:
            x = node("Clip", [x, "", constant(f"h{i}_qmax", np.uint8(qmax))], f"h{i}_clipped")
    return graph.model(plan.inputs(network.steps), {
        "logits": (TensorProto.INT32, ["N", classes]), "class": (TensorProto.INT64, ["N"])})
