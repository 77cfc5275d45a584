"""Examples held out of a split: every class on both sides, recordings whole."""
import numpy as np

from machine.files import InputError


def _counts(total, sizes):
    """How many of each class to hold out: about `total`, in proportion, and some on both sides."""
    exact = total * sizes / sizes.sum()
    counts = np.floor(exact).astype(int)
    # The largest remainders get what is left; of equal ones, the first.
    for c in np.argsort(counts - exact, kind="stable")[:int(total) - counts.sum()]:
        counts[c] += 1
    return np.where(sizes > 1, np.clip(counts, 1, np.maximum(sizes - 1, 1)), 0)


def _hold_examples(y, fraction, rng):
    """bool [N]: which examples to hold out."""
    sizes = np.bincount(y)
    held = np.zeros(len(y), bool)
    for c, count in enumerate(_counts(np.rint(fraction * len(y)), sizes)):
        held[rng.permutation(np.flatnonzero(y == c))[:count]] = True
    return held


def _hold_groups(y, fraction, groups, rng):
    """bool [N]: which examples to hold out, all or none of a group."""
    names, which = np.unique(groups, return_inverse=True)
    table = np.zeros((len(names), y.max() + 1))         # examples of each group and class
    np.add.at(table, (which, y), 1)
    sizes = np.maximum(table.sum(0), 1)
    left, held, taken = table.sum(0), np.zeros(len(sizes)), np.zeros(len(names), bool)

    def loss(counts):               # [..., C]
        return (((counts - fraction * sizes) / sizes)**2).sum(-1)

    def leaves_all(counts):         # whether each class of a group has examples elsewhere
        return ((counts < left) | (counts == 0)).all(-1)

    order = rng.permutation(len(names))
    order = order[np.argsort(-table[order].sum(1), kind="stable")]      # large ones first
    for g in order:
        if leaves_all(table[g]) and loss(held + table[g]) < loss(held):
            taken[g], held, left = True, held + table[g], left - table[g]
    # A class may lie in few and large groups: take the one that costs least.
    for c in range(len(sizes)):
        choices = order[~taken[order] & (table[order, c] > 0) & leaves_all(table[order])]
        if held[c] == 0 and len(choices):
            g = choices[loss(held + table[choices]).argmin()]
            taken[g], held, left = True, held + table[g], left - table[g]
    return taken[which]


def split(y, fraction, seed, groups=None):
    """Hold a part of the examples out, the same in every run.

    Args:
      y: int [N], classes.
      fraction: to hold out, over 0 and under 1; of each class with two or more examples at least
        one is held out and one stays.
      seed: int.
      groups: [N] or None; all examples of a group stay or are held out together. A class that lies
        in one group only is on one side then.
    Returns:
      (indices that stay, indices held out), each shuffled.
    Raises:
      InputError: nothing can be held out.
    """
    rng, y = np.random.default_rng(seed), np.asarray(y)
    if groups is None:
        held = _hold_examples(y, fraction, rng)
    else:
        held = _hold_groups(y, fraction, groups, rng)
    if not held.any():
        raise InputError("the data can't be split: " + (
            "no class has two examples; add some" if groups is None else
            "no recording can be held out so that each class stays; name more of them by GROUP"))
    return tuple(rng.permutation(np.flatnonzero(part)) for part in (~held, held))
