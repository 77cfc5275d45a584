"""What files of earlier versions say of a network's input, in today's words."""
import math

# What files of earlier versions call the input: the side of the pooled image.
OLD_SIDES = {28: "", 14: "mean2", 12: "crop24 mean2", 10: "crop20 mean2"}


def from_sizes(side, sizes):
    """(line, shape) of a perceptron from a file of an earlier version.

    Args:
      side: of OLD_SIDES; 28 takes images of any size as they are.
      sizes: inputs, hidden widths, classes.
    """
    inputs, *hidden, _ = sizes
    if side != 28:
        shape = 28, 28, 1
        if inputs != side**2:
            raise ValueError(f"input side {side} gives {side**2} inputs, not {inputs}")
    else:
        square = math.isqrt(inputs)
        shape = (square, square, 1) if square**2 == inputs else (inputs,)
    return " ".join([*OLD_SIDES[side].split(), *map(str, hidden)]), shape
