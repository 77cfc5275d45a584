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

    def window(self, step, x, name):
        """A step without weights, on codes uint8 [N, C, H, W]."""
        if step.kind == "crop":
            edges = list(zip(plan.corner(step), step.kernel))
            places = [self.constant(f"{name}_{end}", np.array(at)) for end, at in (
                ("start", [at for at, _ in edges]), ("end", [at + kept for at, kept in edges]),
                ("axes", [2, 3]))]
            return self.node("Slice", [x, *places], name)
        window = {"kernel_shape": step.kernel, "strides": step.stride}
        if step.kind == "max":
            return self.node("MaxPool", [x], name, **window)
        # Sums of four bytes and their quarters are exact in float32; Round is half to even.
        x = self.node("Cast", [x], f"{name}_pixels", to=TensorProto.FLOAT)
        x = self.node("Round", [self.node("AveragePool", [x], f"{name}_means", **window)],
                      f"{name}_rounded")
        return self.node("Cast", [x], name, to=TensorProto.UINT8)

    def walk(self, steps, apply):
        """The nodes of all steps.

        Args:
          steps: tuple of Step.
          apply: function of (index, x, operator, arrange) -> output: adds the index-th step with
            weights: a Conv or Gemm node, by its attributes, of weights arrange(w), w [I, O].
        """
        x, index, is_map = "image", 0, steps[0].kind != "dense"
        if is_map:                              # ONNX has channels first
            shape = self.constant("image_shape", [-1, *steps[0].before])
            x = self.node("Reshape", [x, shape], "map")
            x = self.node("Transpose", [x], "channels", perm=[0, 3, 1, 2])
        for number, step in enumerate(steps):
            if not step.has_weights:
                x = self.window(step, x, f"{step.kind}{number}")
                continue
            inputs = (*step.kernel, step.before[-1]) if step.kind == "conv" else step.before
            is_flat = not is_map or len(inputs) == 1
            if is_map and step.kind == "dense":
                x, is_map = self.node("Flatten", [x], "flat"), False

            def arrange(w, inputs=inputs, is_flat=is_flat, kind=step.kind):
                if is_flat:
                    return w
                w = w.reshape(*inputs, -1).transpose(2, 0, 1, 3)
                return w.transpose(3, 0, 1, 2) if kind == "conv" else w.reshape(-1, w.shape[3])

            attributes = {"strides": step.stride} if step.kind == "conv" else {}
            x = apply(index, x, {"op": "Conv" if attributes else "Gemm", **attributes}, arrange)
            index += 1

    def encode(self, low, exponent):
        """The codes, uint8, of features float32 [N, len(low)], as formats.encode has them."""
        codes = self.node("Sub", ["features", self.constant("low", low)], "differences")
        step = self.constant("per_step", np.exp2(-exponent.astype(np.float64)).astype(np.float32))
        codes = self.node("Round", [self.node("Mul", [codes, step], "steps")], "rounded")
        zero, most = (self.constant(name, np.float32(value))
                      for name, value in (("least", 0), ("most", 255)))
        codes = self.node("Clip", [codes, zero, most], "clipped")
        missing = self.node("IsNaN", ["features"], "missing")
        codes = self.node("Where", [missing, zero, codes], "known")
        return self.node("Cast", [codes], "image", to=TensorProto.UINT8)

    def model(self, name, kind, inputs, outputs):
        """The checked model, as bytes.

        Args:
          name, kind: of what comes in, [N, inputs]; outputs: (type, shape) by name.
        """
        graph = helper.make_graph(
            self.nodes, "nanoqat", initializer=self.constants,
            inputs=[helper.make_tensor_value_info(name, kind, ["N", inputs])],
            outputs=[helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()])
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, producer_name="nanoQAT", opset_imports=opsets,
                                  ir_version=helper.find_min_ir_version_for(opsets))
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()


def export(network, encoding=None):
    """The model file.

    Args:
      network: integer.Network.
      encoding: formats.encode.Encoding; None: bytes come in.
    Returns:
      bytes of an ONNX model: input image uint8 [N, pixels], or with an encoding features float32
      [N, features], of a map's channels last; outputs logits int32 [N, classes], the
      accumulators of the last layer, and class int64 [N]; N is free.

    Codes have the scale 1, weights and biases 2**-shift: a power of two, and every |accumulator| is
    below 2**24, so the float rescaling between layers is exact, and rounds half to even. Saturation
    to uint8 at zero point 0 is the ReLU; below 8 bits a Clip saturates lower.
    """
    graph, classes = Graph(), network.steps[-1].after[0]
    node, constant = graph.node, graph.constant
    inputs, source = plan.inputs(network.steps), ("image", TensorProto.UINT8)
    if encoding is not None:
        source = "features", TensorProto.FLOAT
        graph.encode(*(np.tile(part, inputs // len(part)) for part in encoding))
    qmax = integer.code_range(network.activation_bits, signed=False)[1]
    if len(network.layers) > 1:
        x_scale, x_zero = constant("x_scale", np.float32(1)), constant("x_zero", np.uint8(0))

    def apply(i, x, operator, arrange):
        layer = network.layers[i]
        w_q = arrange((layer.w_q.astype(np.int16) + WEIGHT_ZERO).astype(np.uint8))
        w_q, b_q = constant(f"w{i}_q", w_q), constant(f"b{i}_q", layer.b_q)
        if layer.shift is None:
            w_zero = constant(f"w{i}_zero", np.uint8(WEIGHT_ZERO))
            products = node("MatMulInteger", [x, w_q, "", w_zero], "products")
            node("Add", [products, b_q], "logits")
            return node("ArgMax", ["logits"], "class", axis=1, keepdims=0)
        scale = constant(f"w{i}_scale", np.ldexp(np.float32(1), -layer.shift.astype(np.int32)))
        w_zero = constant(f"w{i}_zero", np.full(len(layer.shift), WEIGHT_ZERO, np.uint8))
        x = node("DequantizeLinear", [x, x_scale, x_zero], f"x{i}")
        w = node("DequantizeLinear", [w_q, scale, w_zero], f"w{i}",
                 axis=0 if operator["op"] == "Conv" else 1)
        b = node("DequantizeLinear", [b_q, scale], f"b{i}", axis=0)
        acc = node(inputs=[x, w, b], output=f"acc{i}", **operator)
        x = node("QuantizeLinear", [acc, x_scale, x_zero], f"h{i}_q")
        if qmax < 255:
            x = node("Clip", [x, "", constant(f"h{i}_qmax", np.uint8(qmax))], f"h{i}_clipped")
        return x

    graph.walk(network.steps, apply)
    return graph.model(*source, inputs, {
        "logits": (TensorProto.INT32, ["N", classes]), "class": (TensorProto.INT64, ["N"])})
