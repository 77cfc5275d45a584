"""A confusion matrix, in text and drawn: which class is taken for which."""
import numpy as np

MOST = 12                       # classes that a matrix of text or numbers has room for
WORST = 10                      # of more classes, so many confusions are listed


def recalls(table):
    """The share of each class that is answered right; NaN of a class without examples."""
    counts = table.sum(1)
    return np.where(counts, np.diag(table) / np.maximum(counts, 1), np.nan)


def text(table, classes):
    """Recall by class, and the matrix or, of many classes, the most frequent confusions."""
    width = min(max(map(len, classes)), 20)
    names = [name if len(name) <= width else f"{name[:width - 1]}." for name in classes]
    lines = []
    if len(classes) <= MOST:
        cell = max(len(str(table.max())), 4) + 2
        lines.append(" " * (width + 10) + "answered")
        lines.append(f"{'class':{width}}   recall  " + "".join(f"{name[:cell - 1]:>{cell}}"
                                                             for name in names))
        for name, recall, row in zip(names, recalls(table), table):
            lines.append(f"{name:{width}}  {100 * recall:5.1f} %  "
                         + "".join(f"{count:{cell}d}" for count in row))
        return "\n".join(lines)
    order = np.argsort(recalls(table))
    lines.append("least recall: " + ", ".join(
        f"{names[c]} {100 * recalls(table)[c]:.1f} %" for c in order[:WORST]))
    wrong = table - np.diag(np.diag(table))
    for at in np.argsort(-wrong, axis=None, kind="stable")[:WORST]:
        row, column = divmod(int(at), len(classes))
        if wrong[row, column]:
            lines.append(f"{wrong[row, column]} times {names[row]} taken for {names[column]}")
    return "\n".join(lines)


def draw(table, classes, title):
    """The matrix as a figure: shares of each class's examples, with their counts."""
    from matplotlib.figure import Figure  # the text needs NumPy alone
    count = len(classes)
    size = min(4 + 0.35 * count, 14)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(count), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
    axes.set_yticks(range(count), classes)
    axes.set(xlabel="answered", ylabel="class", title=title)
    axes.grid(False)
    if count <= 2 * MOST:
        for row, column in np.argwhere(table):
            axes.annotate(str(table[row, column]), (column, row), ha="center", va="center",
                          fontsize=8, color="white" if shares[row, column] > 0.5 else "black")
    return figure
