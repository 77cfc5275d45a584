"""The tour's house table against the imports, its line count and our neuron against the code."""
import ast
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

import config
import integer
from conftest import ROOT

TOUR, README = ((ROOT / page).read_text(encoding="utf-8") for page in ("docs/tour.md", "README.md"))
FOLDERS = ("benchmarks", "deploy", "formats", "machine", "report", "runner", "theory",
           "training")


def floors():
    """{module or folder: floor} as the tour's table has it."""
    rows = re.findall(r"^\| (\d) \| (.+?) \|", TOUR, re.MULTILINE)
    return {name.removesuffix(".py").rstrip("/"): int(floor)
            for floor, names in rows for name in re.findall(r"`([\w./]+)`", names)}


def sources():
    """{path from the root: its parsed code} of all code that is not a test."""
    paths = list(ROOT.glob("*.py"))
    for folder in FOLDERS:
        paths += (ROOT / folder).glob("*.py")
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def imported(tree):
    """Every dotted name that a file imports, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows():
    """(importer, imported), as names of the table; within a folder, as dotted module names."""
    for path, tree in sources().items():
        own = path.parts[0].removesuffix(".py")
        for name in imported(tree):
            target = name.split(".")[0]
            if target in floors():
                inside = target == own and len(path.parts) > 1
                yield (".".join(path.with_suffix("").parts), name) if inside else (own, target)


def test_every_file_has_its_place_in_the_table():
    assert {path.parts[0].removesuffix(".py") for path in sources()} == set(floors())


@pytest.mark.slow
def test_imports_only_point_down():
    height = floors()
    wrong = [(a, b) for a, b in arrows() if a in height and height[a] <= height[b]]
    assert not wrong


@pytest.mark.slow
def test_no_folder_imports_in_a_circle():
    inside = {(a, b) for a, b in arrows() if a not in floors()}
    modules = {a for a, _ in inside}
    while modules:
        free = {m for m in modules if not any(a == m and b in modules for a, b in inside)}
        assert free, f"a circle among {sorted(modules)}"
        modules -= free


@pytest.mark.slow
def test_only_the_upper_floors_see_the_switches():
    users = {a for a, b in arrows() if b == "config"}
    assert users <= {name for name, floor in floors().items() if floor >= 7}


def test_core_has_as_many_lines_as_the_tour_says():
    numbered = re.findall(r"^[2-6]\. `([\w/.]+)`", TOUR.partition("## An image")[0], re.MULTILINE)
    sentence = re.search(r"^Files 2 to 6, (.+?) are the core: ([\d,]+) lines", TOUR,
                         re.MULTILINE | re.DOTALL)
    names = numbered + re.findall(r"`([\w/]+\.py)`", sentence[1])
    assert len(names) == 11
    files = [file for name in names for file in
             ((ROOT / name).glob("*.py") if name.endswith("/") else [ROOT / name])]
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    assert lines == int(sentence[2].replace(",", "")) < 2_700


def test_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150
    prose = [line for line in lines
             if not line.startswith(("|", "![")) and " measured it on " not in line]
    assert max(map(len, prose)) <= 104          # a link's address is not broken


def test_links_and_files_of_the_pages_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "theory" / "README.md",
         *sorted((ROOT / "recipes").rglob("*.toml"))]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def commands(page):
    """The commands of a page, [list of words]: of fenced blocks, code in lines, and recipes."""
    text = page.read_text("utf-8")
    fence = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    fences, inline = fence.findall(text), re.findall(r"`([^`]+)`", fence.sub("", text))
    lines = [line for block in fences for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    lines += [" ".join(code.split()) for code in inline]
    lines += re.findall(r"^# .*: (python3 .*)$", text, re.MULTILINE) * (page.suffix == ".toml")
    for command in [part.strip() for line in lines for part in line.split("&&")]:
        if command.startswith(("python3 ", "make ")):
            yield shlex.split(command, comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages_have_their_scripts_switches_and_files(page):
    for tool, *arguments in commands(page):
        if tool == "make":
            if not any("=" in word and word.split("=")[0].isupper() and "ARGS" not in word
                       for word in arguments):      # of the firmware's own Makefile
                assert {word for word in arguments if "=" not in word} <= {*TARGETS}, arguments
            continue
        script, *rest = arguments[1:] if arguments[0] == "-m" else arguments
        path = script if arguments[0] != "-m" else f"{script.replace('.', '/')}.py"
        if script in ("venv", "pytest", "http.server", "...") or script.startswith("-"):
            continue
        assert (ROOT / path).exists(), arguments
        code = (ROOT / path).read_text("utf-8")
        own = {word for word in rest if f'"{word.split("=")[0]}' in code}
        names = {word.strip("[]") for word in rest if word.endswith((".toml", ".toml]"))}
        for name in names | {word.partition("=")[2] for word in rest if "=weights/" in word}:
            assert (ROOT / name).exists() or "NAME" in name, arguments
        config.load([word for word in rest if word.startswith("--") and word not in own
                     and not word.endswith(("...", "]"))])


def test_the_neuron_on_the_page_is_computed_right():
    """Its codes, its float32 sum and its requantized output, from the numbers it starts with."""
    section = (ROOT / "docs/exactness.md").read_text("utf-8").partition("The rules")[0]
    x, w = np.array([200, 50]), np.rint(np.array([0.30, -0.12]) * 2**8).astype(int)
    b = int(np.rint(0.05 * 2**16))
    acc = int(x @ w + b)
    floats = np.float32(x / 2**8) @ np.float32(w / 2**8) + np.float32(b / 2**16)
    assert floats.dtype == np.float32 and float(floats) == acc / 2**16
    out = integer.requantize(np.array([[acc]]), np.array([[9]]), 8)[0, 0]
    for said in (f"= {w[0]} ", f"= {w[1]}.", f"to {b}.", f"= {acc}.", str(float(floats)),
                 f"({acc} + 256) >> 9 = {out}", *(str(v) for v in (*x / 2**8, *w / 2**8))):
        assert said in section, said


@pytest.mark.slow
def test_importing_changes_no_flag_of_jax_or_matplotlib():
    program = """
import sys; sys.path.insert(0, %r)
import jax, matplotlib
before = dict(jax.config.values), dict(matplotlib.rcParams)
import ablation, config, data, integer, model, plan, predict, quant
from training import loop
from formats import checkpoint, photo
from machine import runtime
from report import draw, results, stats
from runner import experiment, keep, state
assert before == (dict(jax.config.values), dict(matplotlib.rcParams))
assert jax._src.xla_bridge._backends == {}
"""
    done = subprocess.run([sys.executable, "-c", program % str(ROOT)], capture_output=True,
                          text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_ruff_finds_nothing():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
