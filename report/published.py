"""Other people's MNIST results of low-bit networks, to draw and to list beside ours."""
from typing import NamedTuple

BITNETMCU = "https://github.com/cpldcpu/BitNetMCU"
EFFICIENT = "https://github.com/JoshWarn/Parameter-Efficient-MNIST"
BREVITAS = "https://github.com/Xilinx/brevitas/tree/master/src/brevitas_examples/bnn_pynq"


class Point(NamedTuple):
    """One network, as its authors report it unless `network` says more; chosen on the test set."""
    name: str
    network: str
    bytes: int                  # of the weights alone
    test_acc: float             # a fraction
    source: str                 # where the accuracy stands


POINTS = (
    Point("BitNetMCU", "256-64-64-64-10, 4 bits", 12_608, 0.9902, BITNETMCU),
    Point("BitNetMCU, small", "multilayer perceptron", 6_000, 0.9813, BITNETMCU),
    # Its convolutional networks as they ship in C, run and counted by us on the 10,000 images.
    *(Point("BitNetMCU, convolutional", "convolutional, counted by running its C", size, accuracy,
            BITNETMCU)
      for size, accuracy in ((3_232, 0.9890), (5_360, 0.9901), (7_328, 0.9927), (9_296, 0.9943),
                             (11_264, 0.9954))),
    Point("BitNetMCU, ternary", "convolutional, ternary, as claimed", 13_357, 0.9958, BITNETMCU),
    Point("Parameter-Efficient-MNIST", "697 parameters, float32", 2_788, 0.9903, EFFICIENT),
    # Brevitas gives no sizes: these are its weights times their bits.
    Point("Brevitas TFC 1W1A", "784-64-64-64-10, 1 bit", 7_376, 0.9317, BREVITAS),
    Point("Brevitas SFC 1W1A", "784-256-256-256-10, 1 bit", 41_792, 0.9781, BREVITAS),
    Point("Brevitas SFC 2W2A", "784-256-256-256-10, 2 bits", 83_584, 0.9866, BREVITAS),
    Point("Brevitas LFC 1W1A", "784-1024-1024-1024-10, 1 bit", 363_776, 0.9888, BREVITAS),
)
