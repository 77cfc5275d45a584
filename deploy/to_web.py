"""A web page that classifies drawings, pictures or numbers: one HTML file, weights and all."""
import base64
import json
from pathlib import Path

import data
import integer
import plan
from deploy.windows import windows_of
from formats import checkpoint
from formats.checkpoint import Facts

DRAWN = (28, 28, 1)             # as photo.py and the page centre ink


def taken(network, facts):
    """What the page asks for: draw, picture or numbers."""
    shape = network.steps[0].before
    if facts.low is not None or len(shape) == 1 or shape[2] not in (1, 3) or 1 in shape[:2]:
        return "numbers"
    return "draw" if shape == DRAWN else "picture"


def export(network, facts=None, sample=None):
    """The page.

    Args:
      network: integer.Network.
      facts: checkpoint.Facts; of the class names 0, 1, ... and none give way to those known of
        the data set.
      sample: [inputs], the numbers that it begins with where it takes numbers; None: none.
    Returns:
      text of an HTML file that needs no other.
    """
    classes, bits, facts = network.steps[-1].after[0], network.weight_bits, facts or Facts()
    dataset, names, shape = facts.dataset, facts.classes, network.steps[0].before
    low, exponent = (0,), (0,)                  # bytes are their own codes
    if facts.low is not None:
        low, exponent = facts.low, facts.exponent
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
    if names and tuple(names) != plan.class_names(classes):
        known = names                           # its own; numbers may have known names
    model = {"takes": taken(network, facts), "shape": (1, 1, *shape)[-3:], "dataset": dataset,
             "low": [float(value) for value in low], "exponent": [int(e) for e in exponent],
             "sample": [] if sample is None else [float(value) for value in sample],
             "subject": subject, "classes": known,
             "layers": plan.describe(network.steps), "weightBits": bits,
             "activationBits": network.activation_bits,
             "activationMax": integer.code_range(network.activation_bits, signed=False)[1],
             "bytes": size, "logitScale": 2.0**network.logit_exponent, "steps": embedded}
    template = (Path(__file__).parent / "page.html").read_text("utf-8")
    text = json.dumps(model, separators=(",", ":")).replace("<", "\\u003c")     # no tag in a name
    return template.replace("__MODEL__", text)
