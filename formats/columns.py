"""The rows of a CSV file, and which of its columns is the label; read as hostile.

The csv module of Python's library takes rows apart.
"""
import csv
import io
from functools import partial
from typing import NamedTuple

from machine.files import InputError

MAX_ROW = 2**22                 # characters of a row: a million numbers
DELIMITERS = "\t;,"             # of several that fit, the first: numbers may have decimal commas
SAMPLE = 20                     # rows that say what the delimiter is
LABELS = ("label", "class", "target", "species")        # and y, where no x or z is beside it
MISSING = ("", "?", "na", "n/a", "nan", "null", "none")


class Layout(NamedTuple):
    """How a file is read.

    Args:
      names: of all columns, in order; "1", "2" and so on where there is no header.
      has_header: bool.
      delimiter: one character.
      label: index of the column with the classes; None in rows without one.
      group: index of the column with the recordings, or None.
      is_last: whether nothing says what the label is, so that it is the last column.
    """
    names: list
    has_header: bool
    delimiter: str
    label: int | None
    group: int | None
    is_last: bool

    def features(self):
        """The indices of the other columns."""
        return [i for i in range(len(self.names)) if i not in (self.label, self.group)]


def rows(path, content, delimiter):
    """(number of its last line, cells) of each row that is not empty; InputError on damage."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path} is UTF-16; save it as CSV in UTF-8")
    # newline="": the csv module knows \n, \r\n and \r, also inside quotes.
    text = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")
    used = 0

    def lines():
        nonlocal used
        for line in iter(partial(text.readline, MAX_ROW + 1), ""):
            used += len(line)
            if used > MAX_ROW:
                raise InputError(f"{path} has a row of over {MAX_ROW:,} characters after line "
                                 f"{reader.line_num}; end its lines, or close its quotes")
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            used = 0
            if len(cells) > 1 or (cells and cells[0].strip()):
                yield reader.line_num, cells
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 after line {reader.line_num}; save it as CSV in "
                         "UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: {error}; close the quotes, and double "
                         "those inside") from None


def _sample(path, content, delimiter):
    """The cells of the first rows."""
    return [cells for _, (_, cells) in zip(range(SAMPLE), rows(path, content, delimiter))]


def _cut(path, content):
    """(delimiter, cells of the first rows): the most columns, the same in all rows if possible."""
    best, damage = None, None
    for delimiter in DELIMITERS:
        try:
            sample = _sample(path, content, delimiter)
        except InputError as error:             # quotes look damaged with another delimiter
            damage = error
            continue
        widths = [len(cells) for cells in sample] or [0]
        rank = (len(set(widths)) == 1 and widths[0] > 1, widths[0])
        if best is None or rank > best[0]:
            best = rank, delimiter, sample
    if best is None:
        raise damage
    _, delimiter, sample = best
    if not sample:
        raise InputError(f"{path} has no rows; give a header, or none, and a row for each example")
    if len(sample[0]) < 2:
        raise damage or InputError(f"{path} has one column in its first row; separate columns by "
                                   "commas, semicolons or tabs")
    return delimiter, sample


def is_number(cell):
    """Whether a cell holds a number, as a table writes it."""
    try:
        float(cell)
    except ValueError:
        return False
    return cell.isascii() and "_" not in cell


def _is_header(first, second, wanted):
    """Whether the first row names the columns.

    Args:
      first, second: stripped cells of the first two rows; second may be [].
      wanted: LABEL and GROUP.
    """
    numbers = [cell for cell in first if is_number(cell)]
    if not numbers or any(name in first and not is_number(name) for name in wanted if name):
        return True
    if not all(cell.isdigit() for cell in numbers):
        return False
    if len(numbers) > 2 and numbers == [str(i) for i in range(len(numbers))]:
        return True                             # as pandas numbers columns without a name
    # A word over a number is a name; a missing value is not.
    return any(not is_number(name) and name.lower() not in MISSING and is_number(cell)
               for name, cell in zip(first, second))


def place(path, names, has_header, key, value):
    """The index of the column that LABEL or GROUP names."""
    if not has_header:
        if value.isdecimal() and 0 < int(value[:9]) <= len(names):
            return int(value) - 1
        raise InputError(f"{path} has no header; {key} = {value!r} must be a column's number, "
                         f"1 to {len(names)}")
    found = [i for i, name in enumerate(names) if name == value]
    found = found or [i for i, name in enumerate(names) if name.lower() == value.lower()]
    if len(found) != 1:
        shown = ", ".join(map(repr, names[:20]))
        raise InputError(f"{path} has no column {key} = {value!r}; its columns are {shown}")
    return found[0]


def _find_label(path, names, group):
    """(index of the label's column, whether only its place says so), from a header."""
    lower = ["" if i == group else name.lower() for i, name in enumerate(names)]
    found = [i for i, name in enumerate(lower) if name in LABELS]
    if len(found) > 1:
        first, second = (names[i] for i in found[:2])
        raise InputError(f"{path}: {first!r} and {second!r} may both be the label; say which by "
                         "LABEL, and leave the other out if it says the same")
    if not found and "y" in lower and not {"x", "z"} & set(lower):      # not an axis
        found = [lower.index("y")]
    if found:
        return found[0], False
    return len(names) - (2 if group == len(names) - 1 else 1), True


def top(path, content, wanted=()):
    """(delimiter, cells of the first row, whether they are a header); wanted: LABEL and GROUP."""
    delimiter, sample = _cut(path, content)
    first, second = ([cell.strip() for cell in cells] for cells in (*sample, [])[:2])
    return delimiter, first, _is_header(first, second, wanted)


def layout(path, content, label, group):
    """The Layout of a file."""
    delimiter, first, has_header = top(path, content, (label, group))
    names = first if has_header else [str(i + 1) for i in range(len(first))]
    for i, name in enumerate(names):
        if not name:
            raise InputError(f"{path}: column {i + 1} has no name; is it an index? Leave it "
                             "out, in pandas by to_csv(index=False)")
        if name in names[:i]:
            raise InputError(f"{path} has two columns {name!r}; rename or remove one")
    which = None if not group else place(path, names, has_header, "GROUP", group)
    if label:
        at, is_last = place(path, names, has_header, "LABEL", label), False
    else:
        at, is_last = _find_label(path, names, which)
    if at == which:
        raise InputError(f"{path}: column {names[at]!r} is both label and GROUP; name another")
    found = Layout(names, has_header, delimiter, at, which, is_last)
    if not found.features():
        raise InputError(f"{path} has no column of features beside the label; add some")
    return found
