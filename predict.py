"""A deployed model -> logits, loss and accuracy: the only place that does this.

score needs NumPy only, so every engine is judged by the same code, JAX installed or not.
"""
import numpy as np

import integer
import plan


def score(logits, labels):
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


def make_predictor(network, engine="jax", hyper=None):
    """A function from uint8 images [N, I] to float32 logits [N, classes], as NumPy.

    Args:
      network: integer.Network, which runs integer-only up to the last accumulator; or an
        integer.FloatNetwork or list of model.Layer with free scales, which JAX runs in float32.
      engine: "jax" or "numpy", for a Network.
      hyper: for Layers with scales.
    """
    if isinstance(network, integer.Network):
        options = None
        if engine == "jax":
            from machine import runtime
            options = runtime.compiler_options()
        run = integer.make_engine(network, engine, options)
        return lambda images: integer.logits(network, run(images))
    import jax

    import convert
    import model
    if isinstance(network, integer.FloatNetwork):
        network, hyper = convert.from_network(network)
    layers, block = jax.device_put(network), plan.block_size(hyper.LAYERS)
    return lambda images: np.concatenate([
        np.asarray(model.predict(layers, part, hyper)) for part in plan.blocks(images, block)])


def evaluate(predictor, **splits):
    """Loss and accuracy by split: {name}_loss in nats, {name}_acc as a fraction.

    Args:
      predictor: as from make_predictor; splits: data.Split by name.
    Returns:
      (dict of those, {name: bool [N], which examples it gets right}).
    """
    images = np.concatenate([split.images for split in splits.values()])    # one shape to compile
    logits = predictor(images)
    metrics, correct, end = {}, {}, 0
    for name, (_, labels) in splits.items():
        start, end = end, end + len(labels)
        part = logits[start:end]
        metrics[f"{name}_loss"], metrics[f"{name}_acc"] = score(part, labels)
        correct[name] = part.argmax(1) == labels
    return metrics, correct


def confusion(logits, labels, count):
    """int64 [count, count]: how many examples of each class, by row, got each answer."""
    table = np.zeros((count, count), np.int64)
    np.add.at(table, (labels, logits.argmax(1)), 1)
    return table
