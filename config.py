"""Every switch of nanoQAT. Edit a value here, or pass `recipes/NAME.toml` and `--KEY=value`.

A line reads  NAME: what it may be = VALUE  # its reason.  Edit the VALUE, between = and #; leave
the rest. run(...): a run depends on it, besides its rate and seed. `--help` prints the lines.
"""
from __future__ import annotations  # so that the types can stand below the switches

import ast
import difflib
import inspect
import os
import re
import sys
import tomllib
from collections import namedtuple
from functools import cache
from pathlib import Path

import plan
from machine.files import InputError, read_bytes

# Mode
QAT_ENABLE: run(flag) = True                    # fake-quantize, save integers; False: float32
LR_ABLATION_MODE: flag = False                  # main_train.py sweeps the learning rate instead

# Model and quantizer
LAYERS: run(text) = "256 128"                   # what lies between the data and the classes
WEIGHT_BITS: run(whole(1, 8)) = 8               # 1 ({-1, +1}), 2 (ternary) .. 8
ACTIVATION_BITS: run(whole(1, 8)) = 8           # unsigned, after ReLU; pixels are always bytes
SCALES: run(choice("calibrated", "learned")) = "calibrated"  # by train images, or LSQ's gradient
FREEZE_SCALES: run(number(0, 1)) = 0.25         # learned ones move in this share of epochs, or one
PER_CHANNEL: run(flag) = True                   # one weight scale per hidden channel, or per layer
POWER_OF_TWO_SCALES: run(flag) = True           # exact integers; False: free scales, for studies
COMPUTE: run(choice("auto", "float32", "bfloat16")) = "auto"  # of products; auto: by the processor

# Training
OPTIMIZER: run(choice("sgd", "adamw")) = "sgd"  # both from optax
MOMENTUM: run(number(0, 0.9999)) = 0.0          # of sgd; 0.9 is usual with a schedule
SCHEDULE: run(choice("constant", "cosine")) = "constant"  # cosine: down to 0 at MAX_EPOCHS
WARMUP_EPOCHS: run(number(0, 1e6)) = 0.0        # of cosine: the rate rises from 0 over these epochs
LEARNING_RATE: number(1e-12, 1e3) = 0.316       # the learning-rate ablation's choice, on validation
BATCH_SIZE: run(whole(1, 1_000_000)) = 128      # images a step
WEIGHT_DECAY: run(number(0, 10)) = 3e-4         # of weights, not biases or scales; times the rate
LABEL_SMOOTHING: run(number(0, 0.9)) = 0.0      # share of each target that all classes get alike
AVERAGING: run(number(0, 0.99999)) = 0.99       # decay, by step, of the saved mean; 0: the last
AUGMENT: run(number(0, 10)) = 0.0               # strength of warps of train images; 1 suits digits
PEN: run(number(0, 1)) = 0.0                    # of slants and other strokes: real handwriting
MAX_EPOCHS: run(whole(1, 1_000_000)) = 100      # early stopping ends the default run long before
PATIENCE: run(whole(1, 1_000_000)) = 5          # epochs without improvement before a run stops
MIN_DELTA: run(number(0, 1e3)) = 5e-4           # least gain of METRIC that counts: nats, a fraction
METRIC: run(choice("val_loss", "val_acc", "train_loss")) = "val_loss"  # ends a run, picks its epoch
SEED: whole(0, 2**31 - 1) = 0                   # initial weights and batch order

# Ablations
LR_ABLATION_RATES: list_of(number(1e-12, 1e3)) = (1.0, 0.316, 0.1, 0.0316, 0.01, 0.00316, 1e-3,
                                                  3.16e-4, 1e-4)  # half decades
ABLATION_SEEDS: whole(1, 1_000) = 3             # runs per point, with seeds SEED, SEED + 1, ...
ABLATION_MAX_EPOCHS: whole(1, 1_000_000) = 30   # of some studies: slow rates meet it

# Data
DATA_DIR: path = "datasets/mnist"               # idx files, pictures, an .npz, a .csv: own_data.md
SHAPE: text = ""                                # of an example, if the data don't say: 28x28, 100x6
LABEL: text = ""                                # column of labels; empty: label, class or the last
GROUP: text = ""                                # column or folder of recordings: each in one split
ADAPT: flag = True                              # small data decide what no recipe or --KEY sets
VAL_EXAMPLES: whole(1, 1_000_000) = 5_000       # held out of train; test is read once, at the end

# Files
RUNS_DIR: path = "runs"                         # of each run: state, history, weights, results
RESUME: flag = True                             # go on with the same unfinished run; False: anew
FILE_FORMAT: choice("npz", "nqat") = "npz"      # nqat: fewest bytes, without what it was made from
WEIGHTS_DIR: path = "weights"                   # weights_int8.npz, weights_unquantized_int8.npz
PLOTS_DIR: path = "plots"                       # PNG figures
RESULTS_DIR: path = "results"                   # JSON: what the figures and tables are made from
WEIGHTS: path = ""                              # for main_inference.py; empty: these switches' file
SCORES: flag = False                            # main_inference.py shows all classes, not just two
CACHE_DIR: path = ".cache"                      # compiled programs, to start quicker; empty: none
ENGINE: choice("jax", "numpy") = "jax"          # of integer inference; numpy needs no JAX

# Several machines: start the same script once in each process
COORDINATOR: text = ""                          # host:port of process 0, auto (SLURM, TPU) or empty
NUM_PROCESSES: whole(1, 65_536) = 1             # how many processes there are
PROCESS_ID: whole(0, 65_535) = 0                # which one this is, 0 .. NUM_PROCESSES - 1
DATA_PARALLEL: run(flag) = False                # devices share each batch; False: share the lanes

# What the types above mean. of: makes one of a value, or of each in a list; in_run: a run depends
# on it, besides its rate and seed; is_path: if it is relative above, then to this folder.
_Type = namedtuple("_Type", "of advice is_legal is_list in_run is_path", defaults=3 * (False,))
flag = _Type(bool, "true or false", lambda value: type(value) is bool)
text = _Type(str, "text without NUL", lambda value: type(value) is str and "\0" not in value)
path = _Type(os.path.expanduser, "text without NUL; after ~ a user's name or nothing", is_path=True,
             is_legal=lambda value: text.is_legal(value) and os.path.expanduser(value)[:1] != "~")


def number(least, most, of=float):
    return _Type(of, f"{of.__name__} in {least}..{most}",
                 lambda value: type(value) in (of, int) and least <= value <= most)


def whole(least, most):
    return number(least, most, int)


def choice(*words):
    return _Type(str, " or ".join(words), lambda value: value in words)


def list_of(kind):
    return kind._replace(is_list=True, advice=f"a list of {kind.advice}")


def run(kind):
    return kind._replace(in_run=True)


def _lost(_, name):
    """In place of a traceback, one line about a switch whose line config.py has lost."""
    if name in _TYPES or not name.isupper():
        raise AttributeError(name)
    raise InputError(f"config.py has no line of {name}; {_AS_IT_WAS}{_nearest(name)}")


_NOTES = inspect.get_annotations(sys.modules[__name__], eval_str=True)
_TYPES = {name: kind for name, kind in _NOTES.items() if isinstance(kind, _Type)}
Config = namedtuple("Config", _TYPES)
Hyper = namedtuple("Hyper", [name for name in _TYPES if _TYPES[name].in_run])
Config.__getattr__ = Hyper.__getattr__ = _lost
_HOME = Path(__file__).resolve().parent
_MAX_RECIPE = 10_000            # bytes; tomllib takes the square of the time for a key of many dots
_GONE = dict.fromkeys(("LAYER_SIZES", "INPUT"), "write LAYERS, as inputs and classes follow from "
                      "the data: '256 128' for 784,256,128,10, 'mean2 ...' for INPUT = 14, "
                      "'crop24 mean2 ...' for 12, 'crop20 mean2 ...' for 10")
_AS_IT_WAS = "write NAME: TYPE = VALUE, as `git diff config.py` shows it"


def _nearest(name):
    """Words that name the switch that may be meant."""
    near = difflib.get_close_matches(name[:80].upper(), _TYPES, 1)
    return f"; the nearest switch is {near[0]}" if near else ""


def _parse(kind, given):
    """The text after --NAME= in the switch's type; as it is, for _check to refuse, if it can't."""
    try:
        if kind.of is bool:
            return {"true": True, "1": True, "false": False, "0": False}[given.lower()]
        if kind.is_list:
            return tuple(map(kind.of, given.strip("()[] ").rstrip(", ").split(",")))
        return kind.of(given)
    except (ValueError, KeyError):
        return given


def _refuse(origin, name, value, advice):
    try:
        shown = repr(value)
    except (ValueError, RecursionError):        # an int of over 4,300 digits; deep nesting
        shown = "this value"
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise InputError(f"{origin}{name} = {shown} is not legal; give {advice}")


def _check(name, value, origin):
    """The value in the switch's type; InputError names the origin, the value and what to give."""
    if name in _GONE:
        raise InputError(f"{origin}{name} is no switch any more: {_GONE[name]}")
    if name not in _TYPES:
        raise InputError(f"{origin}unknown switch {name[:80]}{_nearest(name)}; --help lists all")
    kind = _TYPES[name]
    items = value if kind.is_list else [value]
    if not isinstance(items, (list, tuple)) or not items or not all(map(kind.is_legal, items)):
        _refuse(origin, name, value, kind.advice)
    return tuple(map(kind.of, items)) if kind.is_list else kind.of(value)


def _faults(config):
    """(name, what to give) of each switch whose value doesn't work, mostly beside another one."""
    try:
        plan.check_words(config.LAYERS)
    except ValueError as error:
        yield "LAYERS", f"words that fit the data: {error}"
    if config.COMPUTE == "bfloat16" and not config.POWER_OF_TWO_SCALES:
        yield "COMPUTE", "auto or float32, or POWER_OF_TWO_SCALES = True: its products are exact"
    if config.FILE_FORMAT == "nqat" and not (config.QAT_ENABLE and config.POWER_OF_TWO_SCALES):
        yield "FILE_FORMAT", "npz, or QAT_ENABLE and POWER_OF_TWO_SCALES = True: it holds integers"
    if config.WARMUP_EPOCHS > config.MAX_EPOCHS:
        yield "WARMUP_EPOCHS", f"at most MAX_EPOCHS = {config.MAX_EPOCHS}"
    address = re.fullmatch(r"[^:\s]+:([0-9]{1,5})", config.COORDINATOR)
    if config.COORDINATOR not in ("", "auto") and not (address and 1 <= int(address[1]) <= 65_535):
        yield "COORDINATOR", "HOST:PORT with a port in 1..65535, auto or nothing"
    if config.NUM_PROCESSES > 1 and not config.COORDINATOR:
        yield "NUM_PROCESSES", "1, or COORDINATOR = HOST:PORT of process 0 too"
    if config.PROCESS_ID >= config.NUM_PROCESSES:
        yield "PROCESS_ID", f"less than NUM_PROCESSES = {config.NUM_PROCESSES}"


def _make(given):
    """Config of [(origin, name, value)], all of them checked; the last one of a name wins."""
    values, origins = {}, {}
    for origin, name, value in given:
        values[name], origins[name] = _check(name, value, origin), origin
    config = Config(**values)
    for name, advice in _faults(config):
        _refuse(origins[name], name, values[name], advice)
    return config


@cache
def _read_constants():
    """{name: (line number, reason)} of the lines NAME: TYPE = VALUE in this file, as edited."""
    source = Path(__file__).read_bytes()
    lines, constants = source.splitlines(), {}
    for statement in ast.parse(source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                comment = lines[statement.end_lineno - 1][statement.end_col_offset:].decode()
                constants[name] = statement.lineno, comment.lstrip("# ")
    return constants


def _given_here():
    """[(origin, name, value)] of the switches above, as they are edited."""
    given = []
    for name, (line, _) in _read_constants().items():
        origin, value = f"config.py line {line}: ", globals().get(name)
        if name in _TYPES and _TYPES[name].is_path and isinstance(value, str):
            value = at_home(value)
        if name in _TYPES or name in _GONE:
            given.append((origin, name, value))
        elif name[0] != "_" and not isinstance(value, (_Type, type)):
            raise InputError(f"{origin}{name} has no type; {_AS_IT_WAS}{_nearest(name)}")
    return given


def at_home(path):
    """A path of the project's own, which means the same from any working directory."""
    stays = path[:1] in ("", "~") or os.path.samefile(os.curdir, _HOME)
    return path if stays else str(_HOME / path)


def _read_recipe(path):
    """The switches of a TOML recipe, as a dict."""
    data = read_bytes(path, _MAX_RECIPE)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"recipe {path} is not TOML: {str(error).splitlines()[0]}") from None


def rows():
    """[(name, value as --NAME=value takes it, reason)] of every switch, as config.py sets it."""
    return [(name, ",".join(map(str, value)) if _TYPES[name].is_list else str(value),
             _read_constants()[name][1]) for name, value in _make(_given_here())._asdict().items()]


def load(argv, about="", also=()):
    """The configuration: config.py, then recipes and --KEY=value in the order given.

    Args:
      argv: list of str, the command line without the script; `--help` prints `about` and exits.
      also: arguments in it that the script reads itself.
    Returns:
      Config.
    Raises:
      InputError: a bad edit of config.py, unknown switch, wrong type, value out of range, bad
        recipe, or switches that don't go together.
    """
    if "--help" in argv or "-h" in argv:
        print(f"{(about or '').strip()}\n\nArguments: any number of recipes/NAME.toml and "
              "--KEY=value; the last one wins.\nSwitches of config.py, values and reasons:\n")
        print("\n".join(f"  --{name}={text}\n        {reason}" for name, text, reason in rows()),
              flush=True)                       # a closed pipe shows here, not at the exit
        raise SystemExit(0)
    given = _given_here()
    for argument in [argument for argument in argv if argument not in also]:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            if not equals:
                raise InputError(f"{argument}: write --KEY=value; --help lists the switches")
            given.append(("", name, _parse(_TYPES[name], value) if name in _TYPES else value))
        elif argument.endswith(".toml") and not argument.startswith("-"):
            given += [(f"{argument}: ", *item) for item in _read_recipe(argument).items()]
        else:
            raise InputError(f"unknown argument {argument}; give recipes/NAME.toml or --KEY=value")
    return _make(given)


def given(argv):
    """The names of the switches that recipes and --KEY=value set, as load takes them."""
    names = {argument[2:].partition("=")[0] for argument in argv if argument.startswith("--")}
    for argument in argv:
        if argument.endswith(".toml") and not argument.startswith("-"):
            names |= set(_read_recipe(argument))
    return names


def words(argv):
    """The arguments that are neither switches nor recipes; what they mean, the script knows."""
    return [word for word in argv if not word.startswith("-") and not word.endswith(".toml")]


def change(settings, **changes):
    """Config: `settings` with some switches changed, checked as load does (InputError)."""
    return _make([("", *item) for item in (settings._asdict() | changes).items()])


def hyper(settings, **changes):
    """Hyper of `settings` with some switches changed, checked as load does (InputError)."""
    values = change(settings, **changes)._asdict()
    return Hyper(*map(values.get, Hyper._fields))
