"""Loss and accuracy from logits; NumPy only, so every engine is judged by the same code."""
import numpy as np


def evaluate(logits, labels):
    """Mean cross-entropy and accuracy over all examples, as sums divided by the count.

    Args:
      logits: float32 [N, C].
      labels: uint8 [N], classes.
    Returns:
      (loss in nats, accuracy as a fraction), Python floats computed in float64. Equal logits give
      equal bits, whichever engine made them.
    """
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_normalizer = np.log(np.exp(shifted).sum(axis=1))
    losses = log_normalizer - shifted[np.arange(len(labels)), labels]
    correct = logits.argmax(axis=1) == labels
    return float(losses.sum() / len(labels)), float(correct.sum() / len(labels))
