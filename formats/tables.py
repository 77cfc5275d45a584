"""Tables: train.csv and test.csv in a folder, or one .csv; a row is an example.

Python's own csv module and float read them (formats/columns.py says which column is what).
"""
import os
import re
from array import array
from pathlib import Path

import numpy as np

from formats import columns, raw
from machine.files import InputError, read_bytes

MAX_BYTES = 2**30               # of a file; in memory its numbers take up to twice that
SUFFIXES = (".csv", ".tsv")
IDS = ("id", "index", "idx", "rowid")
TIMES = ("timestamp", "datetime", "date")
LEAST_ROWS = 10                 # fewer say nothing about what a column is
MAX_SHOWN = 5                   # columns in one message


def _files(path):
    """[train file, test file or None] of a path; [] without one."""
    path = Path(path)
    if not os.path.isdir(path):
        return [path, None] if path.suffix.lower() in SUFFIXES else []
    found = sorted(name for name in os.listdir(path) if not name.startswith(".")
                   and name.lower().endswith(SUFFIXES))
    stems = {Path(name).stem.lower(): path / name for name in found}
    if "train" in stems:
        return [stems["train"], stems.get("test")]
    if len(found) > 1:
        raise InputError(f"{path} has {len(found)} tables; call two of them train.csv and "
                         f"test.csv, or name one: DATA_DIR = {str(path / found[0])!r}")
    return [path / found[0], None] if found else []


def matches(path):
    """Whether a path is a .csv or .tsv file, or a folder with one."""
    try:
        return bool(_files(path))
    except InputError:
        return True                             # read says what is wrong with it
    except (OSError, ValueError):
        return False


def _shown(names):
    """Names of columns for a message."""
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(map(repr, names[:MAX_SHOWN])) + more


def _class_name(path, line, name, text):
    """The class that a cell of the label's column names."""
    text = text.strip()
    if text.lower() in ("", "nan"):
        raise InputError(f"{path} line {line} has no label in column {name!r}; fill it in or leave "
                         "the row out")
    whole = re.fullmatch(r"([+-]?[0-9]{1,15})(\.0*)?", text)
    if whole:
        return str(int(whole[1]))
    if columns.is_number(text):
        raise InputError(f"{path} line {line}: the label {text!r} in column {name!r} is no name "
                         "and no whole number; say which column is the label by LABEL")
    return text


def _comma(cell):
    """What to do about a decimal comma; "" where a cell has none."""
    return "write 1.5, not 1,5" if re.fullmatch(r"\s*-?\d+,\d+\s*", cell) else ""


def _refuse_cells(path, content, layout, line, cells):
    """Raise the InputError of a row with a cell that is no number: of its column, or its place."""
    numbers, texts = [0] * len(layout.names), {}
    count = 0
    for _, row in columns.rows(path, content, layout.delimiter):
        count += 1
        for i in [i for i in layout.features() if i < len(row)]:
            if columns.is_number(row[i]):
                numbers[i] += 1
            elif row[i].strip().lower() not in columns.MISSING and count > layout.has_header:
                texts.setdefault(i, row[i])
    wordy = [i for i, _ in sorted(texts.items()) if 2 * numbers[i] < count]
    if wordy:
        stamps = [i for i in wordy if re.search(r"\d[-/.:T]\d{1,2}[-/.:]\d", texts[i])]
        kind = "time stamps" if stamps == wordy else "text"
        advice = _comma(texts[wordy[0]]) or "leave the columns out"
        names = _shown([layout.names[i] for i in wordy])
        raise InputError(f"{path}: {names} hold{'s' * (len(wordy) == 1)} {kind}, such as "
                         f"{texts[wordy[0]][:40]!r}; features are numbers: {advice}")
    for i in layout.features():
        if not columns.is_number(cells[i]):
            what = "is empty" if not cells[i].strip() else f"holds {cells[i][:40]!r}, no number"
            advice = _comma(cells[i]) or "fill it in or leave the row out"
            raise InputError(f"{path} line {line}: column {layout.names[i]!r} {what}; {advice}")


def _check_finite(path, layout, x, lines):
    """Raise InputError for the first number that is none, by its line and column."""
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, i = bad[0]
        raise InputError(f"{path} line {lines[row]}: column {layout.names[layout.features()[i]]!r} "
                         f"is {x[row, i]}, missing or beyond float32; fill it in or leave the row "
                         "out")


def _refuse_ids(path, layout, x):
    """Raise InputError for columns that number the rows or tell the time, by name or content."""
    ids, times = [], []
    for name, values in zip([layout.names[i] for i in layout.features()], x.T):
        letters = re.sub("[^a-z]", "", name.lower()) if layout.has_header else ""
        steps = np.diff(values)
        counts_up = len(values) >= LEAST_ROWS and (steps == 1).all()
        rises = len(values) >= LEAST_ROWS and (steps >= 0).all() and steps.any()
        seconds = 1e9 <= values[0] < 1e10 or 1e12 <= values[0] < 1e13   # since 1970: 2001 to 2286
        if letters in IDS or re.search("[ _.-]id$|[a-z]I[dD]$", name) or counts_up:
            ids.append(name)
        elif letters in TIMES or (rises and (seconds or letters == "time")):
            times.append(name)
    for names, kind in ((ids, "number the rows"), (times, "are time stamps")):
        if names:
            raise InputError(f"{path}: the columns {_shown(names)} {kind} and say nothing of new "
                             "data; leave them out, or name one by GROUP if it tells recordings")


def _parse(path, content, layout):
    """(x float32 [N, F], class names [N], recordings [N] or None) of a file."""
    values, lines, names, labels, groups = array("f"), array("q"), {}, [], []
    dropped = sorted({layout.label, layout.group} - {None}, reverse=True)
    for number, (line, cells) in enumerate(columns.rows(path, content, layout.delimiter)):
        if len(cells) != len(layout.names):
            raise InputError(f"{path} line {line} has {len(cells)} columns, not the "
                             f"{len(layout.names)} of the first row; make them agree")
        if number == 0 and layout.has_header:
            continue
        name = _class_name(path, line, layout.names[layout.label], cells[layout.label])
        labels.append(names.setdefault(name, name))
        raw.check_count(path, names)
        if layout.group is not None:
            groups.append(cells[layout.group].strip())
        features = cells[:]
        for i in dropped:
            del features[i]
        try:
            text = "".join(features)
            if not text.isascii() or "_" in text:       # float would take 1_000 and other digits
                raise ValueError
            values.extend(map(float, features))
        except ValueError:
            _refuse_cells(path, content, layout, line, cells)
        lines.append(line)
    if not labels:
        raise InputError(f"{path} has no examples; add a row for each")
    x = np.frombuffer(values, np.float32).reshape(len(labels), -1)
    _check_finite(path, layout, x, lines)
    return x, labels, None if layout.group is None else groups


def _refuse_last(path, layout, labels):
    """Raise InputError where the last column is taken for the label and does not look like one."""
    count = len(set(labels))
    if layout.is_last and len(labels) >= LEAST_ROWS and 2 * count > len(labels):
        raise InputError(f"{path}: the last column, {layout.names[layout.label]!r}, has {count} "
                         f"different values in {len(labels)} rows; say which column is the label "
                         "by LABEL")


def _read_test(path, layout, label, group):
    """_parse of test.csv, whose columns must be those of train.csv."""
    content = read_bytes(path, MAX_BYTES)
    try:
        other = columns.layout(path, content, label, group)
    except InputError as error:
        raise InputError(f"{error}; or remove it: a part of train.csv is held out then") from None
    if other.names != layout.names or other.label != layout.label:
        differ = [name for name in layout.names if name not in other.names] or other.names
        raise InputError(f"{path} does not have the columns of train.csv, in their order: see "
                         f"{_shown(differ)}; make them agree, or remove the file")
    return _parse(path, content, other)


def read(path, shape=None, label="", group=""):
    """The Raw of a table, or of two.

    Args:
      path: a .csv or .tsv file, or a folder with train.csv, and test.csv where there is one.
        Commas, semicolons or tabs; a header or none.
      shape: of raw.parse_shape; the columns in order are then the pixels row by row, or the window
        moment by moment. None: the columns are features.
      label: name of the column with the classes, or its number from 1 without a header. "": label,
        class, target, species or y, else the last one.
      group: name or number of the column that tells recordings; "" without.
    Raises:
      InputError: one line, for whatever is wrong.
    """
    train_path, test_path = _files(path)
    content = read_bytes(train_path, MAX_BYTES)
    layout = columns.layout(train_path, content, label, group)
    x, labels, groups = _parse(train_path, content, layout)
    _refuse_ids(train_path, layout, x)
    _refuse_last(train_path, layout, labels)
    test_x, test_labels = None, None
    if test_path is not None:
        test_x, test_labels, _ = _read_test(test_path, layout, label, group)
    x, test_x, shape, note = raw.arrange(path, x, test_x, shape)
    names = list(dict.fromkeys(labels + (test_labels or [])))
    place = {name: i for i, name in enumerate(names)}
    y = [part and [place[name] for name in part] for part in (labels, test_labels)]
    note = f"{note}; the label is column {layout.names[layout.label]!r}"
    return raw.make(path, (x, test_x), y, names, shape, groups, note)


def _features_layout(path, content, count, label, group):
    """The Layout of rows to be classified: what is beside their `count` numbers is left out."""
    delimiter, first, has_header = columns.top(path, content, (label, group))
    beside = len(first) - count
    known = {label.lower()} if label else set(columns.LABELS)
    if beside == 0:
        if has_header and (known | {group.lower()}) & {name.lower() for name in first}:
            raise InputError(f"{path} has {len(first)} columns, one of them no feature; the "
                             f"network reads {count} numbers")
        return columns.Layout(first, has_header, delimiter, None, None, False)
    if beside == 2 and group:
        return columns.layout(path, content, label, group)
    if beside == 1 and group and has_header and group.lower() in map(str.lower, first):
        place = columns.place(path, first, has_header, "GROUP", group)
        return columns.Layout(first, has_header, delimiter, None, place, False)
    if beside == 1 and (has_header or not group):       # of numbered columns both are possible
        return columns.layout(path, content, label, "")
    raise InputError(f"{path} has {len(first)} columns; the network reads {count} numbers, and "
                     f"a column of labels{' and one of GROUP' * bool(group)} may be beside them")


def read_features(path, count, label="", group=""):
    """The rows of a table that are to be classified.

    Args:
      path: a .csv or .tsv file of `count` columns; beside them a column of labels, and one of
        recordings, are left out.
      count: numbers of an example.
      label, group: as for read.
    Returns:
      (numbers of the lines, float32 [N, count]).
    Raises:
      InputError: one line, for whatever is wrong.
    """
    content = read_bytes(path, MAX_BYTES)
    layout = _features_layout(path, content, count, label, group)
    width = len(layout.names)
    lines, values = [], array("f")
    for number, (line, cells) in enumerate(columns.rows(path, content, layout.delimiter)):
        if len(cells) != width:
            raise InputError(f"{path} line {line} has {len(cells)} columns, not {width}")
        if number or not layout.has_header:
            if not all(columns.is_number(cells[i]) for i in layout.features()):
                _refuse_cells(path, content, layout, line, cells)
            values.extend(float(cells[i]) for i in layout.features())
            lines.append(line)
    if not lines:
        raise InputError(f"{path} has no examples; add a row for each")
    x = np.frombuffer(values, np.float32).reshape(len(lines), -1)
    _check_finite(path, layout, x, lines)
    return lines, x
