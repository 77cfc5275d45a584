"""What tables are built of: a line for each group of rows, a column for each function of them."""
import numpy as np

from report import results, stats

PLUS_MINUS = "± is the standard deviation over seeds"


def table(first, groups, columns):
    """A line for each group of rows, as Markdown.

    Args:
      first: header of the groups' names.
      groups: {name: rows}.
      columns: {header: function from the rows to a cell}.
    """
    return results.table([first, *columns], [[name, *(cell(rows) for cell in columns.values())]
                                             for name, rows in groups.items()])


def source(result):
    """The line under a table: the command that makes it again, and what it was measured on."""
    e = result["environment"]
    return (f"`{result['command']}` measured it on {e['cpu']}, {e['cores']} cores; Python "
            f"{e['python']}, JAX {e['jax']}, NumPy {e['numpy']}.")


def mean(key, digits, factor=1):
    """A column of a field's mean and standard deviation."""
    return lambda rows: stats.spread(stats.summarize(rows, key), digits, factor)


def first(key):
    """A column of a field that is the same in all rows of a group."""
    return lambda rows: rows[0][key]


def paired(base, other, key):
    """A cell: the difference in pp over the same seeds of two groups, with its 95 % interval."""
    found = stats.compare(base, other, key)
    if found["mean"] is None:
        return "–"
    text = f"{100 * found['mean']:+.2f}"
    if found["low"] is not None:
        text += f" ({100 * found['low']:+.2f} to {100 * found['high']:+.2f})"
    return text


def median(key, digits):
    """A column of a field's median."""
    return lambda rows: f"{np.median([row[key] for row in rows]):.{digits}f}"


def span(key):
    """A column of "10 to 12", or "10" where a field is the same in all rows."""
    def cell(rows):
        low, high = (limit(row[key] for row in rows) for limit in (min, max))
        return f"{low} to {high}" if low < high else str(low)
    return cell


def most(key, form="{:,}", unit=1):
    """A column of a field's largest value; – where no row has one."""
    def cell(rows):
        given = [row[key] for row in rows if row.get(key) is not None]
        return form.format(max(given) / unit if unit > 1 else max(given)) if given else "–"
    return cell


def times(key="seconds", digits=3):
    """A column of median and range of the repeats in the one row of a group."""
    return lambda rows: stats.median_range(rows[0][key], digits)


ACCURACY = {"test accuracy (%)": mean("test_acc", 2, 100)}
SEEDS = {"seeds": len}
LARGEST = {"largest file (bytes)": most("file_bytes")}
