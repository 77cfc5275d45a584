"""results/*.json -> plots/*.png; nothing is computed here but means and spreads."""
import io
from pathlib import Path

import matplotlib

from machine.files import InputError, write_atomically
from report import figures, rates
from report.results import read_result
from report.style import COLORS as COLORS, FILES, STYLE

FIGURES = {"lr_ablation": rates.learning_rates, "optimizer": rates.optimizers,
           "bits": figures.bits, "frontier": figures.frontier, "firmware": figures.firmware,
           "quant_vs_unquant": figures.quant_vs_unquant}


def save(figure, path):
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
    print(f"wrote {path}")


def draw(name, results_dir, plots_dir):
    """Draw results_dir/NAME.json into its PNG in plots_dir."""
    result = read_result(Path(results_dir) / f"{name}.json")
    recipes = Path(results_dir) / "recipes.json"
    if name == "frontier" and recipes.exists():
        result["recipes"] = read_result(recipes)["rows"]        # of MNIST
    with matplotlib.rc_context(STYLE):
        try:
            figure = FIGURES[name](result)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"{Path(results_dir) / name}.json lacks what its plot shows "
                             f"({error!r}); run its study again") from None
        save(figure, Path(plots_dir) / FILES[name])
