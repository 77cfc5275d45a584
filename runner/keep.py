"""Which model answers for the switches, and what may take the place of a reference.

A reference, a file in WEIGHTS_DIR or RESULTS_DIR, gives way only to the same data, split, network
and recipe, with at least as many seeds, if it is not worse. Everything trained stays in its run's
folder in any case, and that is where these switches find it.
"""
import contextlib
import hashlib
import json
import time
from pathlib import Path

import config
import data
from formats import checkpoint
from machine.files import InputError, link, read_bytes, write_atomically
from report import results
from runner import adapt
from training.stopping import USABLE

SWITCHES = ("LEARNING_RATE", "SEED", "VAL_EXAMPLES")    # besides Hyper, what decides the weights
MAX_FACTS = 100_000             # bytes of what lies beside an .nqat
BY_MACHINE = ("COMPUTE",)       # of the switches, what the processor decides


def switches_of(settings):
    """The switches that decide a model's weights, as JSON; they go into the weights file."""
    switches = config.hyper(settings)._asdict() | {key: getattr(settings, key) for key in SWITCHES}
    return switches | {"LAYERS": " ".join(settings.LAYERS.split())}


def facts_of(settings, given, val_loss):
    """The Facts of a model of these switches, trained on a Data."""
    low, exponent = given.encoding or (None, None)
    return checkpoint.Facts(given.name, given.sha256, given.classes, low, exponent,
                            switches_of(settings), val_loss)


def _facts_path(path):
    """Where the Facts of an .nqat lie, which has no place for them."""
    return Path(f"{path}.json")


def write_weights(path, content, facts):
    """Write a weights file and, of an .nqat, its Facts beside it."""
    write_atomically(path, content)
    if path.suffix == ".nqat":
        kept = {"of": hashlib.sha256(content).hexdigest(), "facts": {
            "dataset": facts.dataset, "sha256": facts.sha256, "switches": facts.switches,
            "val_loss": facts.val_loss}}
        write_atomically(_facts_path(path), (json.dumps(kept) + "\n").encode())


def load(path):
    """checkpoint.load, with the Facts that lie beside an .nqat, if they are of this very file."""
    network, facts = checkpoint.load(path)
    beside = _facts_path(path)
    if facts.sha256 or not beside.exists():
        return network, facts
    try:
        kept = json.loads(read_bytes(beside, MAX_FACTS))
        if kept.get("of") != hashlib.sha256(read_bytes(path, checkpoint.MAX_FILE)).hexdigest():
            return network, facts
        known = checkpoint.parse_facts(kept, facts.classes)
    except (ValueError, RecursionError, AttributeError) as error:
        raise InputError(f"{beside} does not say what {path} was made from: {error}") from None
    return network, known._replace(low=facts.low, exponent=facts.exponent)


def _difference(facts, wanted, sha256):
    """In words, what sets a model apart from the data and switches that are wanted; "": nothing."""
    if sha256 and facts.sha256 != sha256:
        return f"its data are {facts.dataset or 'unknown'}"
    for name, value in wanted.items():
        found = facts.switches.get(name, value)         # files of earlier versions lack some
        if name not in BY_MACHINE and found != value:
            return f"{name} = {found!r:.60} there, {value!r:.60} here"
    return "" if facts.switches else "it does not say what it was made from"


def find(settings, sha256=None):
    """The weights file that these switches name.

    Args:
      settings: Config; WEIGHTS, if given, is the file.
      sha256: of the data set; None where it can't be read: then any will do.
    Returns:
      Path: of the newest model of exactly these switches and data.
    Raises:
      InputError: there is none.
    """
    if settings.WEIGHTS:
        return Path(settings.WEIGHTS)
    name = checkpoint.default_name(settings.QAT_ENABLE, settings.WEIGHT_BITS, settings.FILE_FORMAT)
    trained = Path(settings.RUNS_DIR).glob(f"train-*/{name}")
    reference, wanted = Path(settings.WEIGHTS_DIR) / name, switches_of(settings)
    recipes = sorted(reference.parent.glob(f"recipes*/*{reference.suffix}"))
    for path in [*sorted(trained, key=lambda path: -path.stat().st_mtime), *recipes, reference]:
        why = ""
        with contextlib.suppress(InputError):   # what can't be read answers for nothing
            why = _difference(load(path)[1], wanted, sha256)
            if not why:
                return path
    beside = f" ({reference}: {why})" if why else ""
    raise InputError(f"no model was trained with these switches{beside}; run main_train.py with "
                     "them, or give --WEIGHTS=FILE")


def read_data(settings):
    """The data.Dataset that the switches name; raises as data.load."""
    return data.load(settings.DATA_DIR, settings.SHAPE, settings.LABEL, settings.GROUP)


def dataset_of(given):
    """What a result says of its Data or data.Dataset, as JSON."""
    return {"name": given.name, "sha256": given.sha256, "classes": len(given.classes)}


def settle(settings, given):
    """The Config that training would use on the data set that the switches name, and that set.

    Args:
      settings: Config.
      given: as for adapt.
    Returns:
      (Config, data.Dataset; None where nobody asked for it and it can't be read).
    Raises:
      InputError: DATA_DIR is given, no WEIGHTS are, and there is nothing to be read.
    """
    named = "DATA_DIR" in given and not settings.WEIGHTS    # no model of other data may answer
    if not (named or data.is_there(settings.DATA_DIR)):
        return settings, None
    try:
        dataset = read_data(settings)
        count = data.count_train(dataset, settings.VAL_EXAMPLES)
    except InputError:
        if named:
            raise
        return settings, None
    return adapt.adapt(settings, given, count)[0], dataset


def age(path):
    """How long ago a file was written, in words."""
    seconds = max(0, time.time() - Path(path).stat().st_mtime)
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        count = round(seconds / size)
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def save(outcome, folder, given):
    """Write the weights file into the run's folder and, if it may be there, into WEIGHTS_DIR.

    Args:
      outcome: Outcome.
      folder: Path of the run.
      given: Data.
    Returns:
      a line that says where it lies, to print.
    """
    settings, size = outcome.settings, f"{len(outcome.content):,} bytes"
    facts = facts_of(settings, given, outcome.row["val_loss"])
    name = checkpoint.default_name(settings.QAT_ENABLE, settings.WEIGHT_BITS, settings.FILE_FORMAT)
    path = Path(settings.WEIGHTS_DIR) / name
    write_weights(folder / name, outcome.content, facts)
    link(folder.with_name("latest"), folder.name)
    why = ""
    with contextlib.suppress(InputError):       # what is missing or can't be read is not better
        kept = load(path)[1]
        why = _difference(kept, facts.switches, facts.sha256)
        if not why and kept.val_loss is not None and kept.val_loss < facts.val_loss:
            why = f"its val loss {kept.val_loss:.6f} is lower"
    if why:
        return f"wrote {folder / name} ({size}); {path} stays: {why}"
    write_weights(path, outcome.content, facts)
    return f"wrote {path} ({size})"


def _recipe(result, other):
    """What has to agree for two results to be of the same study, the seeds and switches that one
    of them does not know apart."""
    names = {*config.Hyper._fields, *SWITCHES} - {"SEED", *BY_MACHINE}
    names &= result["config"].keys() & other["config"].keys()   # earlier versions' lack some
    switches = {name: result["config"][name] for name in names}
    points = {json.dumps([row.get("label"), {key: value for key, value in row["changes"].items()
                                             if key != "SEED"}], sort_keys=True)
              for row in result["rows"]}
    return result["dataset"]["sha256"], switches, points


def _worth(result):
    """(seeds, runs that ended by the rule itself, -mean val loss): what a result must not lose."""
    rows = result["rows"]
    losses = [row["val_loss"] for row in rows
              if row.get("status") in USABLE and row.get("val_loss") is not None]
    mean = sum(losses) / len(losses) if losses else float("inf")
    return (len({row["seed"] for row in rows}),
            sum(row.get("status") == "stopped" for row in rows), -mean)


def publish(source, folder):
    """Copy a run's result into RESULTS_DIR, if it may take the place of what is there.

    Args:
      source: Path of the JSON file in the run's folder.
      folder: RESULTS_DIR.
    Returns:
      whether it was copied.
    """
    target, made = Path(folder) / source.name, results.read_result(source)
    why = ""
    with contextlib.suppress(InputError, KeyError, TypeError, AttributeError):  # damaged: no better
        kept = results.read_result(target)
        mine, its = _worth(made), _worth(kept)
        if _recipe(kept, made) != _recipe(made, kept):
            why = "it is of other data or switches"
        elif any(a < b for a, b in zip(mine, its)):
            why = "it has more seeds, more finished runs or a lower val loss"
        elif mine == its:                       # so that only its times would change
            why = "it is as good"
    if why:
        print(f"{target} stays: {why}")
        return False
    results.copy(source, folder)
    return True
