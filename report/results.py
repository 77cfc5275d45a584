"""Results: flat rows, as JSON with what they came from; Markdown tables and filled blocks."""
import json
import math
import os
import re
import shlex
import sys
from pathlib import Path

from machine.facts import environment
from machine.files import InputError, read_bytes, write_atomically

MAX_BYTES = 19_000_000          # of a result; JSON takes up to 24 times its size in memory
ROOT = Path(__file__).resolve().parent.parent


def _command():
    """The command that makes this result again, without the folders that it fills."""
    script = Path(os.path.realpath(sys.argv[0]))
    words = [script.name]
    if script.parent != ROOT and script.is_relative_to(ROOT):
        words = ["-m", ".".join(script.relative_to(ROOT).with_suffix("").parts)]
    words += [word for word in sys.argv[1:]
              if not re.match(r"--(RUNS|WEIGHTS|PLOTS|RESULTS|CACHE)_DIR=", word)]
    return shlex.join(["python3", *words])


def _plain(value):
    """A value as JSON can say it: NaN and infinity become None, arrays become lists."""
    if hasattr(value, "tolist"):                # NumPy's arrays and numbers
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def value(row, key):
    """A field of a row or, without one, the switch that its point changed; None for neither."""
    return row[key] if key in row else row.get("changes", {}).get(key)


def group(rows, key):
    """{value: its rows}, in the order in which the values come; key as for value."""
    groups = {}
    for row in rows:
        groups.setdefault(value(row, key), []).append(row)
    return groups


def _to_json(result):
    return (json.dumps(result, indent=1, allow_nan=False) + "\n").encode()


def write_result(path, settings, rows, **facts):
    """Write a study as JSON, with the switches, the command and the environment it came from.

    Args:
      path: results/NAME.json.
      settings: dict of the switches, stored as "config".
      rows: list of flat dicts: "label", "changes", "seed", "status" and what was measured; NaN and
        infinity become null.
      **facts: what holds for all rows: dataset, seconds; a command in place of this process's.
    Returns:
      the dict, as read_result would give it.
    Raises:
      InputError: path can't be written, or the rows are more than read_result reads.
    """
    result = _plain({"rows": rows, "config": settings, "command": _command(), **facts,
                     "environment": environment()})
    content = _to_json(result)
    if len(content) > MAX_BYTES:                # a thousand seeds of a hundred epochs
        print(f"{path} leaves the epochs out: with them it is larger than {MAX_BYTES:,} bytes")
        result["rows"] = [{key: value for key, value in row.items() if key != "history"}
                          for row in result["rows"]]
        content = _to_json(result)
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} takes {len(content):,} bytes, more than {MAX_BYTES:,}; measure "
                         "less in one study")
    write_atomically(path, content)
    print(f"wrote {path}")
    return result


def read_result(path):
    """The dict in a results/*.json file; InputError when it is missing or is none."""
    try:
        data = read_bytes(path, MAX_BYTES)
    except InputError as error:
        raise InputError(f"{error}; run its study first") from None
    try:
        result = json.loads(data)
    except (ValueError, RecursionError):        # RecursionError: nested too deep
        raise InputError(f"{path} is not JSON; run its study again") from None
    if not isinstance(result, dict) or not isinstance(result.get("rows"), list):
        raise InputError(f"{path} is not the result of a study; run its study again")
    return result


def copy(source, folder):
    """Copy a file into a folder, atomically."""
    target = Path(folder) / source.name
    write_atomically(target, read_bytes(source, MAX_BYTES))
    print(f"wrote {target}")


def table(header, rows):
    """A Markdown table; the first column left, the others right.

    Args:
      header: names of the columns.
      rows: lists of as many cells.
    Returns:
      str, without a newline at its end.
    """
    line = "|---|" + "---:|" * (len(header) - 1)
    texts = ["| " + " | ".join(map(str, row)) + " |" for row in (header, *rows)]
    return "\n".join([texts[0], line, *texts[1:]])


def fill(text, blocks):
    """Markdown with its marked blocks replaced.

    Args:
      text: lines `<!-- NAME -->` and `<!-- /NAME -->` mark the ends of a block.
      blocks: dict of NAME -> what shall stand between them; a NAME without marks is left out.
    Returns:
      str.
    """
    for name, block in blocks.items():
        mark = re.escape(name)
        text = re.sub(rf"^(<!-- {mark} -->\n)(?:.*?\n)??(<!-- /{mark} -->)$",
                      lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text,
                      flags=re.DOTALL | re.MULTILINE)
    return text
