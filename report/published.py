"""Other people's MNIST results of low-bit networks, to draw and to list beside ours."""
from typing import NamedTuple

BITNETMCU = "https://github.com/cpldcpu/BitNetMCU"
BREVITAS = "https://github.com/Xilinx/brevitas/tree/master/src/brevitas_examples/bnn_pynq"


class Point(NamedTuple):
    """One network, as its authors report it; chosen by its accuracy on the test set."""
    name: str
    network: str
    bytes: int                  # of the weights alone, unless `network` says otherwise
    test_acc: float             # a fraction
    source: str                 # where the accuracy stands


POINTS = (
    Point("BitNetMCU", "256-64-64-64-10, 4 bits", 12_608, 0.9902, BITNETMCU),
    Point("BitNetMCU, small", "multilayer perceptron", 6_000, 0.9813, BITNETMCU),
    Point("BitNetMCU, convolutional", "convolutional; flash of the whole program", 16_000, 0.9955,
          BITNETMCU),
    # Brevitas gives no sizes: these are its weights times their bits.
    Point("Brevitas TFC 1W1A", "784-64-64-64-10, 1 bit", 7_376, 0.9317, BREVITAS),
    Point("Brevitas SFC 1W1A", "784-256-256-256-10, 1 bit", 41_792, 0.9781, BREVITAS),
    Point("Brevitas SFC 2W2A", "784-256-256-256-10, 2 bits", 83_584, 0.9866, BREVITAS),
    Point("Brevitas LFC 1W1A", "784-1024-1024-1024-10, 1 bit", 363_776, 0.9888, BREVITAS),
)
