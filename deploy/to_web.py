"""A web page that classifies drawn digits: one HTML file, weights and all."""
import base64
import json
from pathlib import Path

import data
import integer
import plan
from formats import checkpoint


def export(network, dataset="", names=()):
    """The page.

    Args:
      network: integer.Network.
      dataset: the name of what it was trained on, from anywhere.
      names: of its classes; 0, 1, ... and none give way to those known of the data set.
    Returns:
      text of an HTML file that needs no other.
    Raises:
      ValueError: the network does not read 28 x 28 images.
    """
    sizes, bits = plan.sizes(network.steps), network.weight_bits
    pixels = plan.inputs(network.steps)
    if pixels != 28**2:
        raise ValueError(f"the page draws 28 x 28 = 784 pixels, the network reads {pixels}; "
                         "export it to onnx or c")
    embedded, size = [], 0
    for layer in network.layers:
        packed = checkpoint.pack(layer.w_q, bits).tobytes()
        shifts = [] if layer.shift is None else layer.shift.tolist()
        embedded.append({"w": base64.b64encode(packed).decode(), "b": layer.b_q.tolist(),
                         "shift": shifts or None})
        size += len(packed) + layer.b_q.nbytes + len(shifts)
    subject, classes = data.classes(dataset, sizes[-1])
    if names and tuple(names) != tuple(map(str, range(sizes[-1]))):
        classes = names                         # its own; numbers may have known names
    model = {"dataset": dataset, "subject": subject, "classes": classes, "sizes": sizes,
             "input": plan.pooled_side(network.steps), "weightBits": bits,
             "activationBits": network.activation_bits,
             "activationMax": integer.code_range(network.activation_bits, signed=False)[1],
             "bytes": size, "logitScale": 2.0**network.logit_exponent, "layers": embedded}
    template = (Path(__file__).parent / "page.html").read_text("utf-8")
    text = json.dumps(model, separators=(",", ":")).replace("<", "\\u003c")     # no tag in a name
    return template.replace("__MODEL__", text)
