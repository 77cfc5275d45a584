"""A web page that classifies drawn digits: one HTML file, weights and all."""
import base64
import json
from pathlib import Path

import checkpoint
import integer
from files import InputError


def export(layers, meta):
    """The page.

    Args:
      layers, meta: as from checkpoint.load, quantized.
    Returns:
      text of an HTML file that needs no other.
    Raises:
      InputError: the network does not read 28 x 28 images.
    """
    sizes, bits = meta["layer_sizes"], meta["weight_bits"]
    if sizes[0] != 784:
        raise InputError(f"the page draws 28 x 28 = 784 pixels, the network reads {sizes[0]}; "
                         "export it to onnx or c")
    embedded, size = [], 0
    for w_q, b_q, shift in integer.prepare(layers):
        packed = checkpoint.pack(w_q, bits).tobytes()
        shifts = None if shift is None else [int(s) for s in shift[0]] * (
            b_q.shape[1] // shift.shape[1])
        embedded.append({"w": base64.b64encode(packed).decode(), "b": b_q[0].tolist(),
                         "shift": shifts})
        size += len(packed) + b_q.nbytes + len(shifts or [])
    model = {"weightBits": bits, "activationBits": meta["activation_bits"],
             "activationMax": 2 ** meta["activation_bits"] - 1, "sizes": sizes, "bytes": size,
             "logitScale": float(integer.logit_scale(layers)), "layers": embedded}
    template = (Path(__file__).parent / "page.html").read_text()
    return template.replace("__MODEL__", json.dumps(model, separators=(",", ":")))
