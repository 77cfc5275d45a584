"""results/*.json -> plots/*.png; nothing is computed here but means and spreads."""
import io
from pathlib import Path

import matplotlib

from machine.files import InputError, write_atomically
from report import figures, rates
from report.results import read_result
from report.style import COLORS as COLORS, FILES, STYLE

FIGURES = {"lr_ablation": rates.learning_rates, "optimizer": rates.optimizers,
           "bits": figures.bits, "bits_conv": figures.bits, "frontier": figures.frontier,
           "firmware": figures.firmware, "scaling": figures.scaling,
           "quant_vs_unquant": figures.quant_vs_unquant}


def save(figure, path):
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
    print(f"wrote {path}")


def draw_into(path, make):
    """Write the figure that make() gives, in our own settings whatever the user's matplotlibrc is.

    A figure that fails is one line: what it shows is in a result already.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        try:
            save(make(), path)
        except InputError:
            raise
        except Exception as error:              # fonts, backends: matplotlib raises many kinds
            raise InputError(f"{path} can't be drawn: {type(error).__name__}: {error}; its numbers "
                             "are in the result") from None


def draw(name, results_dir, plots_dir):
    """Draw results_dir/NAME.json into its PNG in plots_dir."""
    result = read_result(Path(results_dir) / f"{name}.json")
    recipes = Path(results_dir) / "recipes.json"
    if name == "frontier" and recipes.exists():
        result["recipes"] = read_result(recipes)["rows"]        # of MNIST

    def make():
        try:
            return FIGURES[name](result)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"{Path(results_dir) / name}.json lacks what its plot shows "
                             f"({error!r}); run its study again") from None

    draw_into(Path(plots_dir) / FILES[name], make)
