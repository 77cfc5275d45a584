"""Every switch of nanoQAT. Edit a value here, or pass `recipes/NAME.toml` and `--KEY=value`.

One switch a line: NAME = value  # its reason. `--help` prints these values and reasons.
"""
import ast
import math
import os
import re
import tokenize
import tomllib
from collections import namedtuple
from pathlib import Path

import integer
from machine.files import InputError, read_bytes

# Mode
QAT_ENABLE = True               # fake-quantize in training and save integers; False: float32
LR_ABLATION_MODE = False        # main_train.py sweeps the learning rate instead of training once

# Model and quantizer
LAYER_SIZES = (784, 256, 128, 10)   # inputs, hidden widths, classes
WEIGHT_BITS = 8                 # 1 ({-1, +1}), 2 (ternary) .. 8
ACTIVATION_BITS = 8             # unsigned codes after ReLU; pixels are always their 8-bit bytes
INPUT = 28                      # side: 28, 14 (2 x 2 means) or of the centre: 12, 10
SCALES = "calibrated"           # by train images, in each epoch; learned: by LSQ's gradient, adamw's
FREEZE_SCALES = 0.25            # learned scales stay after this share of MAX_EPOCHS, or one epoch
PER_CHANNEL = True              # one weight scale per output channel in hidden layers; False: one
POWER_OF_TWO_SCALES = True      # exact integer arithmetic; False: free scales, for studies only
COMPUTE = "auto"                # of products: float32, bfloat16; auto: by the processor

# Training
OPTIMIZER = "sgd"               # sgd or adamw, both from optax
MOMENTUM = 0.0                  # of sgd; 0.9 is usual with a schedule
SCHEDULE = "constant"           # constant, or cosine: down to 0 at MAX_EPOCHS
WARMUP_EPOCHS = 0.0             # of the cosine schedule: the rate rises from 0 over these epochs
LEARNING_RATE = 0.316           # the learning-rate ablation's choice, on validation
BATCH_SIZE = 128                # images a step
WEIGHT_DECAY = 3e-4             # of the weights, not biases or scales; times the rate at each step
LABEL_SMOOTHING = 0.0           # share of each target that goes to all classes alike
AVERAGING = 0.99                # decay, by step, of the mean weights that are saved; 0: the last
AUGMENT = 0.0                   # strength of random warps of the train images; 1 suits digits
MAX_EPOCHS = 100                # early stopping ends the default run long before
PATIENCE = 5                    # epochs without improvement before a run stops
MIN_DELTA = 5e-4                # the least change of METRIC that counts: nats, or a fraction
METRIC = "val_loss"             # stops a run, picks its epoch; val_acc; train_loss: for a schedule
SEED = 0                        # initial weights and batch order

# Ablations
LR_ABLATION_RATES = (1.0, 0.316, 0.1, 0.0316, 0.01, 0.00316, 1e-3, 3.16e-4, 1e-4)  # half decades
ABLATION_SEEDS = 3              # runs per point, with seeds SEED, SEED + 1, ...
ABLATION_MAX_EPOCHS = 30        # epoch cap of the lr and optimizer studies; slow rates meet it

# Data
DATA_DIR = "datasets/mnist"     # four idx files, .gz or not; empty datasets/kmnist: fetched once
VAL_EXAMPLES = 5_000            # held out of the train split; test is read once, at the end

# Files
RUNS_DIR = "runs"               # what each run makes as it runs: state, history, weights, results
RESUME = True                   # go on with an unfinished run of the same switches; False: anew
CHECKPOINT_EVERY = 1            # epochs between two saves of the state
LOG = "csv"                     # csv: history*.csv in the run's folder; tensorboard: events as well
FILE_FORMAT = "npz"             # nqat: as few bytes as possible, without what it was made from
WEIGHTS_DIR = "weights"         # weights_int8.npz, weights_unquantized_int8.npz
PLOTS_DIR = "plots"             # PNG figures
RESULTS_DIR = "results"         # JSON: what the figures and tables are made from
WEIGHTS = ""                    # file for main_inference.py; empty: the one these switches save
SCORES = False                  # main_inference.py shows the shares of all classes, not of two
CACHE_DIR = ".cache"            # compiled programs, for a quicker next start; empty: keep none
ENGINE = "jax"                  # integer inference by jax (int8 dots) or numpy (needs no JAX)

# Several machines: start the same script once in each process
COORDINATOR = ""                # host:port of process 0; auto on SLURM and TPU pods; empty: alone
NUM_PROCESSES = 1               # how many processes there are
PROCESS_ID = 0                  # which one this is, 0 .. NUM_PROCESSES - 1
DATA_PARALLEL = False           # share each batch over all devices; False: they share the lanes

_HOME = Path(__file__).resolve().parent
_PATHS = ("DATA_DIR", "RUNS_DIR", "WEIGHTS_DIR", "PLOTS_DIR", "RESULTS_DIR", "CACHE_DIR", "WEIGHTS")
_MAX_RECIPE = 10_000            # bytes; tomllib takes the square of the time for a key of many dots

# What a switch is, whatever the lines above say. kind: its type, or its items' if the default is a
# tuple; legal: inclusive bounds, or words; hyper: a run depends on it, besides its rate and seed.
_Switch = namedtuple("_Switch", "kind default legal hyper", defaults=(None, False))
_TABLE = {
    "QAT_ENABLE": _Switch(bool, True, hyper=True),
    "LR_ABLATION_MODE": _Switch(bool, False),
    "LAYER_SIZES": _Switch(int, (784, 256, 128, 10), (1, integer.MAX_WIDTH), hyper=True),
    "WEIGHT_BITS": _Switch(int, 8, (1, 8), hyper=True),
    "ACTIVATION_BITS": _Switch(int, 8, (1, 8), hyper=True),
    "INPUT": _Switch(int, 28, (10, 28), hyper=True),
    "SCALES": _Switch(str, "calibrated", ("calibrated", "learned"), hyper=True),
    "FREEZE_SCALES": _Switch(float, 0.25, (0, 1), hyper=True),
    "PER_CHANNEL": _Switch(bool, True, hyper=True),
    "POWER_OF_TWO_SCALES": _Switch(bool, True, hyper=True),
    "COMPUTE": _Switch(str, "auto", ("auto", "float32", "bfloat16"), hyper=True),
    "OPTIMIZER": _Switch(str, "sgd", ("sgd", "adamw"), hyper=True),
    "MOMENTUM": _Switch(float, 0.0, (0, 0.9999), hyper=True),
    "SCHEDULE": _Switch(str, "constant", ("constant", "cosine"), hyper=True),
    "WARMUP_EPOCHS": _Switch(float, 0.0, (0, 1e6), hyper=True),
    "LEARNING_RATE": _Switch(float, 0.316, (1e-12, 1e3)),
    "BATCH_SIZE": _Switch(int, 128, (1, 1_000_000), hyper=True),
    "WEIGHT_DECAY": _Switch(float, 3e-4, (0, 10), hyper=True),
    "LABEL_SMOOTHING": _Switch(float, 0.0, (0, 0.9), hyper=True),
    "AVERAGING": _Switch(float, 0.99, (0, 0.99999), hyper=True),
    "AUGMENT": _Switch(float, 0.0, (0, 10), hyper=True),
    "MAX_EPOCHS": _Switch(int, 100, (1, 1_000_000), hyper=True),
    "PATIENCE": _Switch(int, 5, (1, 1_000_000), hyper=True),
    "MIN_DELTA": _Switch(float, 5e-4, (0, 1e3), hyper=True),
    "METRIC": _Switch(str, "val_loss", ("val_loss", "val_acc", "train_loss"), hyper=True),
    "SEED": _Switch(int, 0, (0, 2**31 - 1)),
    "LR_ABLATION_RATES": _Switch(
        float, (1.0, 0.316, 0.1, 0.0316, 0.01, 0.00316, 1e-3, 3.16e-4, 1e-4), (1e-12, 1e3)),
    "ABLATION_SEEDS": _Switch(int, 3, (1, 1_000)),
    "ABLATION_MAX_EPOCHS": _Switch(int, 30, (1, 1_000_000)),
    "DATA_DIR": _Switch(str, "datasets/mnist"),
    "VAL_EXAMPLES": _Switch(int, 5_000, (1, 1_000_000)),
    "RUNS_DIR": _Switch(str, "runs"),
    "RESUME": _Switch(bool, True),
    "CHECKPOINT_EVERY": _Switch(int, 1, (1, 1_000_000)),
    "LOG": _Switch(str, "csv", ("csv", "tensorboard")),
    "FILE_FORMAT": _Switch(str, "npz", ("npz", "nqat")),
    "WEIGHTS_DIR": _Switch(str, "weights"),
    "PLOTS_DIR": _Switch(str, "plots"),
    "RESULTS_DIR": _Switch(str, "results"),
    "WEIGHTS": _Switch(str, ""),
    "SCORES": _Switch(bool, False),
    "CACHE_DIR": _Switch(str, ".cache"),
    "ENGINE": _Switch(str, "jax", ("jax", "numpy")),
    "COORDINATOR": _Switch(str, ""),
    "NUM_PROCESSES": _Switch(int, 1, (1, 65_536)),
    "PROCESS_ID": _Switch(int, 0, (0, 65_535)),
    "DATA_PARALLEL": _Switch(bool, False, hyper=True),
}
Config = namedtuple("Config", _TABLE)
Hyper = namedtuple("Hyper", [name for name in _TABLE if _TABLE[name].hyper])


def _parse(switch, text):
    """The text after --NAME= in the switch's type; as it is, for _check to refuse, if it can't."""
    try:
        if switch.kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(switch.default, tuple):
            parts = text.strip("()[] ").rstrip(", ").split(",")
            return tuple(switch.kind(part) for part in parts)
        return switch.kind(text)
    except (ValueError, KeyError):
        return text


def _is_legal(item, kind, legal):
    """Whether one value has its type, or is an int for a float, and is within `legal`."""
    if type(item) is not kind and not (kind is float and type(item) is int):
        return False
    if kind is str:
        return item in legal if legal else "\0" not in item
    return legal is None or legal[0] <= item <= legal[1]


def _advice(switch):
    """What to give a switch."""
    if switch.kind is bool:
        words = "true or false"
    elif switch.kind is str:
        words = " or ".join(switch.legal) if switch.legal else "text without NUL"
    else:
        words = f"{switch.kind.__name__} in {switch.legal[0]}..{switch.legal[1]}"
    return f"a list of {words}" if isinstance(switch.default, tuple) else words


def _refuse(origin, name, value, advice):
    try:
        shown = repr(value)
    except (ValueError, RecursionError):        # an int of over 4,300 digits; deep nesting
        shown = "this value"
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise InputError(f"{origin}{name} = {shown} is not legal; give {advice}")


def _check(name, value, origin):
    """The value in the switch's type; InputError names the origin, the value and what to give."""
    if name not in _TABLE:
        raise InputError(f"{origin}unknown switch {name[:80]}; --help lists the switches")
    switch = _TABLE[name]
    is_list = isinstance(switch.default, tuple)
    items = value if is_list else [value]
    if (not isinstance(items, (list, tuple)) or not items
            or not all(_is_legal(item, switch.kind, switch.legal) for item in items)):
        _refuse(origin, name, value, _advice(switch))
    if name in _PATHS:
        value = os.path.expanduser(value)       # no shell does it after --KEY=
        if value.startswith("~"):
            _refuse(origin, name, value, "a user's folder that is there, or ./~NAME")
    return tuple(map(switch.kind, items)) if is_list else switch.kind(value)


def _faults(config):
    """(name, what to give) of each switch whose value doesn't work, mostly beside another one."""
    try:
        integer.check_sizes(config.LAYER_SIZES)
    except ValueError as error:
        yield "LAYER_SIZES", f"inputs, hidden widths and classes that fit: these are {error}"
    try:
        integer.check_input(config.INPUT, config.LAYER_SIZES[0])
    except ValueError as error:
        yield "INPUT", f"a side that fits LAYER_SIZES: {error}"
    side = math.isqrt(config.LAYER_SIZES[0])
    if config.AUGMENT and config.INPUT == integer.IMAGE_SIDE and (
            side < 2 or side**2 != config.LAYER_SIZES[0]):
        yield "AUGMENT", "0, or LAYER_SIZES that read square images"
    if config.COMPUTE == "bfloat16" and not config.POWER_OF_TWO_SCALES:
        yield "COMPUTE", "auto or float32, or POWER_OF_TWO_SCALES = True: then its products are exact"
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


def _read_constants():
    """{name: (line number, reason)} of the lines NAME = value in this file, as it is edited."""
    with tokenize.open(__file__) as file:
        statements = ast.parse(file.read()).body
        file.seek(0)
        comments = {token.start[0]: token.string.lstrip("# ")
                    for token in tokenize.generate_tokens(file.readline)
                    if token.type == tokenize.COMMENT}
    constants = {}
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                if name[0] != "_" and name not in ("Config", "Hyper"):
                    constants[name] = statement.lineno, comments.get(statement.end_lineno, "")
    return constants


def _given_here():
    """[(origin, name, value)] of this file's constants; a removed one has the table's default."""
    constants = _read_constants()
    values = {name: switch.default for name, switch in _TABLE.items()}
    values |= {name: value for name, value in globals().items()
               if name in _TABLE or name in constants}
    return [(f"config.py line {constants[name][0]}: " if name in constants else "config.py: ",
             name, value) for name, value in values.items()]


def at_home(path):
    """A path of the project's own, which means the same from any working directory."""
    return path if not path or os.path.samefile(os.curdir, _HOME) else str(_HOME / path)


def _read_recipe(path):
    """The switches of a TOML recipe, as a dict."""
    data = read_bytes(path, _MAX_RECIPE)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except ValueError as error:
        raise InputError(f"recipe {path} is not TOML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise InputError(f"recipe {path} is nested too deeply; give NAME = value lines") from None


def rows():
    """[(name, value as --NAME=value takes it, reason)] of every switch, as config.py sets it."""
    constants = _read_constants()
    values = [(name, value if isinstance(value, tuple) else [value])
              for name, value in _make(_given_here())._asdict().items()]
    return [(name, ",".join(map(str, items)), constants.get(name, (0, "the default"))[1])
            for name, items in values]


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
        about = (about or "").strip()           # python -OO has no docstrings
        print(f"{about}\n\nArguments: any number of recipes/NAME.toml and --KEY=value; the "
              "last one wins.\nSwitches of config.py, with their values and reasons:\n")
        print("\n".join(f"  --{name}={text}\n        {reason}" for name, text, reason in rows()),
              flush=True)                       # a closed pipe shows here, not at the exit
        raise SystemExit(0)
    given = [(origin, name, at_home(value) if name in _PATHS and isinstance(value, str) else value)
             for origin, name, value in _given_here()]
    for argument in [argument for argument in argv if argument not in also]:
        if argument.startswith("--"):
            name, equals, text = argument[2:].partition("=")
            if not equals:
                raise InputError(f"{argument}: write --KEY=value; --help lists the switches")
            given.append(("", name, _parse(_TABLE[name], text) if name in _TABLE else text))
        elif argument.endswith(".toml") and not argument.startswith("-"):
            given += [(f"{argument}: ", *item) for item in _read_recipe(argument).items()]
        else:
            raise InputError(f"unknown argument {argument}; give recipes/NAME.toml or --KEY=value")
    return _make(given)


def words(argv):
    """The arguments that are neither switches nor recipes; what they mean, the script knows."""
    return [word for word in argv if not word.startswith("-") and not word.endswith(".toml")]


def change(settings, **changes):
    """Config: `settings` with some switches changed, checked as load does (InputError)."""
    return _make([("", *item) for item in (settings._asdict() | changes).items()])


def hyper(settings, **changes):
    """Hyper of `settings` with some switches changed, checked as load does (InputError)."""
    config = change(settings, **changes)
    return Hyper(*(getattr(config, name) for name in Hyper._fields))
