"""A web page that classifies drawn digits: one HTML file, weights and all."""
import base64
import json
from pathlib import Path

import data
import integer
import plan
from deploy.windows import windows_of
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
    classes, bits = network.steps[-1].after[0], network.weight_bits
    if network.steps[0].before != (28, 28, 1):
        shape = "x".join(map(str, network.steps[0].before))
        raise ValueError(f"the page draws 28x28 grey pixels, the network reads {shape}; export it "
                         "to onnx or c")
    embedded, size, layers = [], 0, iter(network.layers)
    for step, window in windows_of(network.steps):
        entry = {**window._asdict(), "outputs": step.after[-1], "isMax": step.kind == "max"}
        if step.has_weights:
            layer = next(layers)
            packed = checkpoint.pack(layer.w_q, bits).tobytes()
            shifts = [] if layer.shift is None else layer.shift.tolist()
            entry |= {"w": base64.b64encode(packed).decode(), "b": layer.b_q.tolist(),
                      "shift": shifts or None}
            size += len(packed) + layer.b_q.nbytes + len(shifts)
        embedded.append(entry)
    subject, known = data.classes(dataset, classes)
    if names and tuple(names) != tuple(map(str, range(classes))):
        known = names                           # its own; numbers may have known names
    model = {"dataset": dataset, "subject": subject, "classes": known,
             "layers": plan.describe(network.steps), "weightBits": bits,
             "activationBits": network.activation_bits,
             "activationMax": integer.code_range(network.activation_bits, signed=False)[1],
             "bytes": size, "logitScale": 2.0**network.logit_exponent, "steps": embedded}
    template = (Path(__file__).parent / "page.html").read_text("utf-8")
    text = json.dumps(model, separators=(",", ":")).replace("<", "\\u003c")     # no tag in a name
    return template.replace("__MODEL__", text)
