"""Every switch of nanoQAT. Edit a value here, or pass `recipes/NAME.toml` and `--KEY=value`.

One switch a line: NAME = value  # its reason. `--help` prints exactly these lines.
"""
import re
import tomllib
from collections import namedtuple
from pathlib import Path

from files import InputError

# Mode
QAT_ENABLE = True               # fake-quantize in training and save integers; False: float32
LR_ABLATION_MODE = False        # main_train.py sweeps the learning rate instead of training once

# Model and quantizer
LAYER_SIZES = (784, 256, 128, 10)   # inputs, hidden widths, classes
WEIGHT_BITS = 8                 # 1 ({-1, +1}), 2 (ternary) .. 8
ACTIVATION_BITS = 8             # unsigned codes after ReLU; pixels are always their 8-bit bytes
PER_CHANNEL = True              # one weight scale per output channel in hidden layers; False: one
POWER_OF_TWO_SCALES = True      # exact integer arithmetic; False: free scales, for studies only
COMPUTE_DTYPE = "float32"       # bfloat16 carries the same codes exactly: faster on some devices

# Training
OPTIMIZER = "sgd"               # sgd or adamw, both from optax
MOMENTUM = 0.0                  # of sgd; 0.9 is usual with a schedule
SCHEDULE = "constant"           # constant, or cosine: down to 0 at MAX_EPOCHS
WARMUP_EPOCHS = 0.0             # of the cosine schedule: the rate rises from 0 over these epochs
LEARNING_RATE = 0.1             # usual for plain SGD; the learning-rate ablation compares
BATCH_SIZE = 128                # images a step
MAX_EPOCHS = 100                # early stopping ends the default run long before
PATIENCE = 5                    # epochs without improvement before a run stops
MIN_DELTA = 5e-4                # the least change of METRIC that counts: nats, or a fraction
METRIC = "val_loss"             # val_loss or val_acc: what stops a run and picks its best epoch
SEED = 0                        # initial weights and batch order

# Ablations
LR_ABLATION_RATES = (1.0, 0.316, 0.1, 0.0316, 0.01, 0.00316, 1e-3, 3.16e-4, 1e-4)  # half decades
ABLATION_SEEDS = 3              # runs per point, with seeds SEED, SEED + 1, ...
LR_ABLATION_MAX_EPOCHS = 30     # keeps it under 10 minutes on 2 cores; slow rates meet this cap

# Data
DATASET = "mnist"               # mnist: the idx files in DATA_DIR; others: tensorflow-datasets
DATA_DIR = "datasets/mnist"     # any folder with four idx files, .gz or not
VAL_EXAMPLES = 5_000            # held out of the train split; test is read once, at the end

# Files
WEIGHTS_DIR = "weights"         # weights_int8.npz, weights_unquantized_int8.npz
PLOTS_DIR = "plots"             # PNG figures
RESULTS_DIR = "results"         # JSON: what the figures and tables are made from
WEIGHTS = ""                    # file for main_inference.py; empty: the one these switches save
CACHE_DIR = ".cache"            # compiled programs, for a quicker next start; empty: keep none
ENGINE = "jax"                  # integer inference by jax (int8 dots) or numpy (needs no JAX)

# Several machines: start the same script once in each process
COORDINATOR = ""                # host:port of process 0; auto on SLURM and TPU pods; empty: alone
NUM_PROCESSES = 1               # how many processes there are
PROCESS_ID = 0                  # which one this is, 0 .. NUM_PROCESSES - 1
DATA_PARALLEL = False           # share each batch over all devices; False: they share the lanes

# What each switch may be: inclusive bounds, or a set of words.
_LEGAL = {
    "LAYER_SIZES": (1, 65_536), "WEIGHT_BITS": (1, 8), "ACTIVATION_BITS": (1, 8),
    "COMPUTE_DTYPE": ("float32", "bfloat16"),
    "OPTIMIZER": ("sgd", "adamw"), "MOMENTUM": (0, 0.9999), "SCHEDULE": ("constant", "cosine"),
    "WARMUP_EPOCHS": (0, 1e6), "LEARNING_RATE": (1e-12, 1e3), "BATCH_SIZE": (1, 1_000_000),
    "MAX_EPOCHS": (1, 1_000_000), "PATIENCE": (1, 1_000_000), "MIN_DELTA": (0, 1e3),
    "METRIC": ("val_loss", "val_acc"), "SEED": (0, 2**31 - 1), "LR_ABLATION_RATES": (1e-12, 1e3),
    "ABLATION_SEEDS": (1, 1_000), "LR_ABLATION_MAX_EPOCHS": (1, 1_000_000),
    "VAL_EXAMPLES": (1, 1_000_000),
    "NUM_PROCESSES": (1, 65_536), "PROCESS_ID": (0, 65_535), "ENGINE": ("jax", "numpy"),
}
_DEFAULTS = {key: value for key, value in list(globals().items())
             if key.isupper() and key[0] != "_"}
Config = namedtuple("Config", _DEFAULTS)


def _parse(key, text):
    """The text after --KEY= as the switch's type; as it is, for _check to refuse, if it can't."""
    default = _DEFAULTS[key]
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(type(default[0])(part) for part in text.strip("()").split(",") if part)
        return type(default)(text)
    except (ValueError, KeyError):
        return text


def _check(key, value):
    """The value in the switch's type; InputError names the key, the value and the legal set."""
    default, legal = _DEFAULTS[key], _LEGAL.get(key)
    kind = type(default[0]) if isinstance(default, tuple) else type(default)
    listed = isinstance(default, tuple) and isinstance(value, (list, tuple))
    items = list(value) if listed else [value]
    if kind is float:
        items = [float(item) if type(item) is int else item for item in items]
    typed = all(type(item) is kind for item in items) and len(items) > 0
    if legal is None:
        words, inside = {bool: "true or false", str: "text"}.get(kind), typed
    elif kind is str:
        words, inside = " or ".join(legal), typed and items[0] in legal
    else:
        words = f"{kind.__name__} in {legal[0]}..{legal[1]}"
        inside = typed and all(legal[0] <= item <= legal[1] for item in items)
    if isinstance(default, tuple):
        words, inside = f"a list of {words}", inside and isinstance(value, (list, tuple))
    if not inside:
        raise InputError(f"{key} = {value!r} is not legal; give {words}")
    return tuple(items) if isinstance(default, tuple) else items[0]


def _read_recipe(path):
    """The switches of a TOML recipe, as a dict."""
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"can't read recipe {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"recipe {path} is not TOML: {str(error).splitlines()[0]}") from None


def usage(about):
    """The help text: `about`, then each switch with its value and reason."""
    source = Path(__file__).read_text().split("# What each switch may be")[0]
    rows = re.findall(r"^([A-Z_]+) = (.+?) +# (.+)$", source, re.MULTILINE)
    switches = "\n".join(f"  --{key}={value}\n        {reason}" for key, value, reason in rows)
    return (f"{about.strip()}\n\nArguments: any number of recipes/NAME.toml and --KEY=value; the "
            f"last one wins.\nSwitches of config.py, with their values and reasons:\n\n{switches}")


def load(argv, about=""):
    """The configuration: config.py, then recipes and --KEY=value in the order given.

    Args:
      argv: list of str, the command line without the script; `--help` prints `about` and exits.
    Returns:
      Config, immutable.
    Raises:
      InputError: unknown key, wrong type, value out of range, bad recipe.
    """
    if "--help" in argv or "-h" in argv:
        print(usage(about))
        raise SystemExit(0)
    given = [("config.py", key, value) for key, value in _DEFAULTS.items()]
    for argument in argv:
        if argument.startswith("--"):
            key, equals, text = argument[2:].partition("=")
            if not equals:
                raise InputError(f"{argument}: write --KEY=value; --help lists the switches")
            given.append(("switch", key, _parse(key, text) if key in _DEFAULTS else text))
        elif argument.endswith(".toml"):
            given += [(argument, key, value) for key, value in _read_recipe(argument).items()]
        else:
            raise InputError(f"unknown argument {argument}; give recipes/NAME.toml or --KEY=value")
    values = {}
    for origin, key, value in given:
        if key not in _DEFAULTS:
            raise InputError(f"unknown {origin} {key}; --help lists the switches")
        values[key] = _check(key, value)
    if values["COMPUTE_DTYPE"] == "bfloat16" and not values["POWER_OF_TWO_SCALES"]:
        raise InputError("COMPUTE_DTYPE = 'bfloat16' is exact with POWER_OF_TWO_SCALES = True "
                         "only; set it")
    if values["PROCESS_ID"] >= values["NUM_PROCESSES"]:
        raise InputError(f"PROCESS_ID = {values['PROCESS_ID']} is not legal; give less than "
                         f"NUM_PROCESSES = {values['NUM_PROCESSES']}")
    if not re.fullmatch(r"(auto|[^:\s]+:\d+)?", values["COORDINATOR"]):
        raise InputError(f"COORDINATOR = {values['COORDINATOR']!r} is not legal; give HOST:PORT, "
                         "auto or nothing")
    if values["WARMUP_EPOCHS"] > values["MAX_EPOCHS"]:
        raise InputError(f"WARMUP_EPOCHS = {values['WARMUP_EPOCHS']:g} is not legal; give at most "
                         f"MAX_EPOCHS = {values['MAX_EPOCHS']}")
    if len(values["LAYER_SIZES"]) < 2:
        raise InputError(f"LAYER_SIZES = {values['LAYER_SIZES']} needs inputs and classes at least")
    return Config(**values)
