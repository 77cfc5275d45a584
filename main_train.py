"""Train one model, or sweep the learning rate when LR_ABLATION_MODE is on; save its weights.

python3 main_train.py [recipes/NAME.toml] [--KEY=value ...]
"""
import sys

import ablation
import config
from files import run_script


def main(argv):
    settings = config.load(argv, __doc__)
    if settings.LR_ABLATION_MODE:
        ablation.learning_rate(settings)


if __name__ == "__main__":
    run_script(main)
