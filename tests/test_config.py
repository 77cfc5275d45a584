"""config: every switch can be set in every way that help promises, and every mistake is named."""
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import config
from machine.files import InputError

ROOT = Path(config.__file__).parent
SOURCE = (ROOT / "config.py").read_text(encoding="utf-8")
DEFAULTS = config.load([])
KEYS = DEFAULTS._fields
HYPER = ("QAT_ENABLE", "LAYERS", "WEIGHT_BITS", "ACTIVATION_BITS", "SCALES",
         "FREEZE_SCALES", "PER_CHANNEL", "POWER_OF_TWO_SCALES", "COMPUTE", "OPTIMIZER",
         "MOMENTUM", "SCHEDULE", "WARMUP_EPOCHS", "BATCH_SIZE", "WEIGHT_DECAY", "LABEL_SMOOTHING",
         "AVERAGING", "AUGMENT", "PEN", "MAX_EPOCHS", "PATIENCE", "MIN_DELTA", "METRIC",
         "DATA_PARALLEL")


@pytest.fixture
def recipe(tmp_path):
    """recipe(text) -> path of a TOML file."""
    def write(text, name="recipe.toml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)
    return write


def line(name):
    """A pattern of a switch's line: its left side, its value, its reason."""
    return rf"(?m)^({name}: [^=]+) = ([^#]+?)( *# .*)$"


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """edited((name, line), ...) -> a config module as a person would have edited it.

    In a line, NAME: TYPE, VALUE and REASON stand for what it had.
    """
    def edit(*changes):
        source = SOURCE
        for name, new in changes:
            (left, value, reason), = re.findall(line(name), source)
            new = new.replace("NAME: TYPE", left).replace("VALUE", value).replace("REASON", reason)
            source = re.sub(line(name), lambda match, new=new: new, source)
        (tmp_path / "config.py").write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("edited_config", tmp_path / "config.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "edited_config", module)
        spec.loader.exec_module(module)
        module._HOME = config._HOME
        return module
    return edit


def error_of(*argv, module=config):
    with pytest.raises(InputError) as caught:
        module.load(argv)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    return str(caught.value)


def line_of(name):
    """The number of a constant's line, counted independently of config."""
    return 1 + [text.split(":")[0] for text in SOURCE.splitlines()].index(name)


@pytest.mark.parametrize("key", KEYS)
def test_default_is_legal_in_every_notation(recipe, key):
    """The value of the constant and the one that help shows work as a switch; and in a recipe."""
    default = getattr(DEFAULTS, key)
    assert getattr(config, key) == default
    assert config.load([f"--{key}={default}"]) == DEFAULTS
    assert config.load([f"--{name}={text}" for name, text, _ in config.rows()
                        if name == key]) == DEFAULTS
    toml = (str(list(default)) if isinstance(default, tuple)
            else f'"{default}"' if isinstance(default, str) else str(default).lower())
    assert config.load([recipe(f"{key} = {toml}")]) == DEFAULTS


@pytest.mark.parametrize("key, text, value", [
    ("QAT_ENABLE", "False", False), ("QAT_ENABLE", "0", False), ("LR_ABLATION_MODE", "true", True),
    ("LAYERS", "crop24 mean2 32", "crop24 mean2 32"), ("LAYERS", "", ""), ("LAYERS", "16", "16"),
    ("LR_ABLATION_RATES", "(1,0.5,)", (1.0, 0.5)), ("LR_ABLATION_RATES", "[1e-3]", (1e-3,)),
    ("WEIGHT_BITS", "1", 1), ("LEARNING_RATE", "1e-3", 1e-3), ("LEARNING_RATE", "1", 1.0),
    ("LR_ABLATION_RATES", "1,0.5", (1.0, 0.5)), ("OPTIMIZER", "adamw", "adamw"),
    ("WEIGHTS_DIR", "/tmp/a=b", "/tmp/a=b"), ("ENGINE", "numpy", "numpy")])
def test_switch_sets_one_value_in_its_type(key, text, value):
    changed = config.load([f"--{key}={text}"])
    assert changed == DEFAULTS._replace(**{key: value})
    assert type(getattr(changed, key)) is type(value)


def test_recipe_sets_its_values_in_their_types(recipe):
    path = recipe('LEARNING_RATE = 1\nLAYERS = "mean2"\nQAT_ENABLE = false\n'
                  'ENGINE = "numpy"\nLR_ABLATION_RATES = [1, 0.5]')
    changed = config.load([path])
    assert changed == DEFAULTS._replace(LEARNING_RATE=1.0, LAYERS="mean2", QAT_ENABLE=False,
                                        ENGINE="numpy", LR_ABLATION_RATES=(1.0, 0.5))
    assert type(changed.LEARNING_RATE) is type(changed.LR_ABLATION_RATES[0]) is float


def test_the_last_one_given_wins(recipe):
    a, b = recipe("SEED = 1\nPATIENCE = 3", "a.toml"), recipe("SEED = 2", "b.toml")
    assert [config.load(argv).SEED for argv in (
        [a], [a, b], [b, a], [a, "--SEED=9", b], [b, "--SEED=9"], ["--SEED=8", "--SEED=9"])] == [
        1, 2, 1, 2, 9, 9]
    assert config.load([a, b]).PATIENCE == 3
    assert config.load([]) == DEFAULTS          # nothing is left behind


def test_arguments_of_the_script_itself_are_passed_over():
    argv = ["quant", "--device-axis-only", "--SEED=3"]
    assert config.load(argv, also=argv[:2]) == DEFAULTS._replace(SEED=3)
    assert "quant" in error_of(*argv)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.name)
def test_bundled_recipe_is_legal_and_changes_something(path):
    assert config.load([str(path)]) != DEFAULTS


ILLEGAL = [
    ("WEIGHT_BITS", "0", "1..8"), ("WEIGHT_BITS", "9", "1..8"), ("ACTIVATION_BITS", "0", "1..8"),
    ("ACTIVATION_BITS", "9", "1..8"), ("WEIGHT_BITS", "8.0", "int"),
    ("WEIGHT_BITS", "eight", "int"), ("WEIGHT_BITS", "", "int"),
    ("LEARNING_RATE", "-0.1", "1e-12..1000"), ("LEARNING_RATE", "0", "1e-12..1000"),
    ("LEARNING_RATE", "nan", "float"), ("LEARNING_RATE", "inf", "float"),
    ("LEARNING_RATE", "fast", "float"),
    ("LAYERS", "crop mean2", "'crop' is none of crop24"), ("LAYERS", "0x10", "'0x10'"),
    ("LAYERS", "256,128", "width like 256"), ("LAYERS", "conv5", "conv5x16"),
    ("LAYERS", "mean3", "mean3"), ("LAYERS", "-3", "-3"), ("LAYERS", "1.5", "1.5"),
    ("LR_ABLATION_RATES", "", "list of float"),
    ("LR_ABLATION_RATES", "0.1,-1", "1e-12..1000"), ("QAT_ENABLE", "maybe", "true or false"),
    ("OPTIMIZER", "adam", "sgd or adamw"), ("OPTIMIZER", "", "sgd or adamw"),
    ("METRIC", "test_acc", "val_loss or val_acc"), ("ENGINE", "torch", "jax or numpy"),
    ("BATCH_SIZE", "0", "int in 1"), ("MAX_EPOCHS", "0", "int in 1"), ("SEED", "-1", "int in 0"),
    ("MIN_DELTA", "-1", "float in 0"), ("MOMENTUM", "1", "0.9999"),
    ("WARMUP_EPOCHS", "101", "MAX_EPOCHS"), ("COMPUTE", "float16", "float32 or bfloat16"),
    ("SCALES", "free", "calibrated or learned"), ("FREEZE_SCALES", "1.5", "0..1"),
    ("FILE_FORMAT", "onnx", "npz or nqat"),
    ("WEIGHT_DECAY", "-0.1", "0..10"), ("WEIGHT_DECAY", "11", "0..10"),
    ("LABEL_SMOOTHING", "1", "0..0.9"), ("LABEL_SMOOTHING", "-0.1", "0..0.9"),
    ("AVERAGING", "1", "0..0.99999"), ("AVERAGING", "-0.5", "0..0.99999"),
    ("AUGMENT", "-1", "0..10"), ("AUGMENT", "11", "0..10"), ("AUGMENT", "nan", "float"),
    ("LR_ABLATION_RATES", "1,,2", "list of float"), ("LR_ABLATION_RATES", "1,x", "list of float"),
    ("NUM_PROCESSES", "2", "COORDINATOR"), ("PROCESS_ID", "1", "NUM_PROCESSES"),
    *[("COORDINATOR", text, "HOST:PORT with a port in 1..65535") for text in (
        "host", ":80", "host:", "host:0", "host:65536", "host:99999999999", "host:x", "a b:80")]]


@pytest.mark.parametrize("key, text, legal", ILLEGAL)
def test_illegal_value_names_key_value_and_legal_set(key, text, legal):
    message = error_of(f"--{key}={text}")
    assert key in message and legal in message and all(part in message for part in text.split(","))


@pytest.mark.parametrize("line, legal", [
    ("WEIGHT_BITS = 9", "1..8"), ("WEIGHT_BITS = true", "int"), ("WEIGHT_BITS = 8.0", "int"),
    ("WEIGHT_BITS = [8]", "int"), ('WEIGHT_BITS = "8"', "int"), ("QAT_ENABLE = 1", "true or false"),
    ("LEARNING_RATE = true", "float"), ('LEARNING_RATE = "0.1"', "float"),
    ("LEARNING_RATE = nan", "float"),
    ("LR_ABLATION_RATES = []", "list of float"), ("LR_ABLATION_RATES = 1", "list of float"),
    ('LR_ABLATION_RATES = [1, "2"]', "list of float"), ("LAYERS = 256", "text"),
    ("LAYERS = [256, 128]", "text"), ('LAYERS = "256 wide"', "'wide'"), ("WEIGHTS_DIR = 3", "text"),
    ('WEIGHTS_DIR = "a\\u0000b"', "text without NUL"), ('DATA_DIR = "\\u0000"', "text without NUL"),
    ("SEED = " + 400 * "9", "int in 0..2147483647"),
    ("LEARNING_RATE = " + 400 * "9", "1e-12..1000"),
    ("SEED = 0x" + 9_000 * "f", "int in 0..2147483647"), ("SEED = 1979-05-27", "int"),
    ("LR_ABLATION_RATES = " + 200 * "[" + 200 * "]", "list of float"), ("SEED.a = 1", "int"),
    ("[LR_ABLATION_RATES]\na = 1", "list of float")], ids=lambda text: text[:30])
def test_illegal_recipe_value_names_key_and_legal_set(recipe, line, legal):
    message = error_of(recipe(line))
    assert re.search("[A-Z_]+", line)[0] in message and legal in message
    assert "recipe.toml" in message


@pytest.mark.parametrize("argv, named", [
    (["--COMPUTE=bfloat16", "--POWER_OF_TWO_SCALES=False"], "POWER_OF_TWO_SCALES"),
    (["--WARMUP_EPOCHS=3", "--MAX_EPOCHS=2"], "MAX_EPOCHS = 2"),
    (["--FILE_FORMAT=nqat", "--QAT_ENABLE=False"], "QAT_ENABLE"),
    (["--FILE_FORMAT=nqat", "--POWER_OF_TWO_SCALES=False"], "POWER_OF_TWO_SCALES"),
    (["--COORDINATOR=host:80", "--NUM_PROCESSES=2", "--PROCESS_ID=2"], "NUM_PROCESSES = 2")])
def test_switches_that_do_not_go_together_are_refused_in_any_order(argv, named):
    assert named in error_of(*argv)
    assert error_of(*reversed(argv)) == error_of(*argv)


@pytest.mark.parametrize("argv", [
    ["--COORDINATOR=host:65535", "--NUM_PROCESSES=2", "--PROCESS_ID=1"], ["--COORDINATOR=auto"],
    ["--COORDINATOR=auto", "--NUM_PROCESSES=2"], ["--WARMUP_EPOCHS=100"],
    ["--LAYERS="], ["--LAYERS=crop24 mean2 conv5x16/2 max2 10"], ["--LABEL_SMOOTHING=0.9"],
    ["--AVERAGING=0.99999"], ["--WEIGHT_DECAY=10"], ["--AUGMENT=10"], ["--SCALES=learned"],
    ["--COMPUTE=bfloat16"], ["--ACTIVATION_BITS=1"]])
def test_switches_at_the_edge_are_legal(argv):
    assert config.load(argv) != DEFAULTS


@pytest.mark.parametrize("name, text", [("LAYER_SIZES", "784,32,10"), ("INPUT", "14")])
def test_switch_of_earlier_versions_is_answered_with_the_new_spelling(recipe, edited, name, text):
    path = recipe(f"{name} = [{text}]")
    module = edited(("SEED", f"{name} = {text}\nNAME: TYPE = VALUE"))
    for message in (error_of(f"--{name}={text}"), error_of(path), error_of(module=module)):
        assert f"{name} is no switch any more: write LAYERS" in message
        assert "'256 128' for 784,256,128,10" in message and "'mean2 ...' for INPUT = 14" in message
    assert error_of(path).startswith(path)
    assert error_of(module=module).startswith(f"config.py line {line_of('SEED')}: ")


@pytest.mark.parametrize("argv, named", [
    (["--LEARNING_RAT=0.1"], "LEARNING_RAT; the nearest switch is LEARNING_RATE"),
    (["--learning_rate=0.1"], "learning_rate; the nearest switch is LEARNING_RATE"),
    (["--EPOCHS=3"], "MAX_EPOCHS"), (["--QUANTIZE=1"], "--help"), (["--LOG=csv"], "unknown switch"),
    (["--CHECKPOINT_EVERY=2"], "unknown switch"), (["--" + 9_000 * "SEED" + "=1"], "SEEDSEED"),
    (["--_TYPES=1"], "_TYPES"), (["--SEED"], "--SEED"), (["--"], "--KEY=value"),
    (["SEED=1"], "SEED=1"), (["-SEED=1"], "-SEED=1"), (["none.toml"], "none.toml")])
def test_unknown_argument_is_named(argv, named):
    assert named in error_of(*argv)


@pytest.mark.parametrize("content", ["SEED = ", "SEED = 1\nSEED = 2", "{json: 1}", "\ufeffSEED=1",
                                     "SEED = \0", "SEED = " + 5_000 * "9",
                                     "SEED = " + 50_000 * "[", "SEED = " + 50_000 * "{a="],
                         ids=lambda text: ascii(text[:12]))
def test_malformed_recipe_is_named(recipe, content):
    path = recipe(content)
    assert path in error_of(path)


def test_unknown_recipe_key_names_recipe_and_key(recipe):
    path = recipe("LEARNING_RAT = 0.1")
    assert error_of(path).startswith(f"{path}: unknown switch LEARNING_RAT; ")
    assert "nearest switch is LEARNING_RATE" in error_of(path)


def test_recipe_that_is_not_a_small_text_file_is_named(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "huge.toml").write_bytes(b"#" * 10_001)
    (tmp_path / "device.toml").symlink_to("/dev/zero")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    os.mkfifo(tmp_path / "fifo.toml")
    for path in tmp_path.iterdir():
        assert path.name in error_of(str(path))
    (tmp_path / "huge.toml").write_bytes(b"#" * 10_000)
    assert config.load([str(tmp_path / "huge.toml")]) == DEFAULTS


# What a person types over a line of config.py, and what the one-line message must say.
BAD_EDITS = [
    ("QAT_ENABLE", '"False"', "true or false"), ("SEED", "None", "int in 0..2147483647"),
    ("LAYERS", "(256)", "text"), ("LAYERS", "[256]", "text"), ("LAYERS", '"256 wide"', "'wide'"),
    ("LR_ABLATION_RATES", "(1, None)", "a list of float in 1e-12..1000"),
    ("LR_ABLATION_RATES", "()", "list of float"), ("MAX_EPOCHS", "1e1", "int in 1..1000000"),
    ("MOMENTUM", "1", "float in 0..0.9999"), ("LEARNING_RATE", '"0.1"', "float in 1e-12..1000"),
    ("LEARNING_RATE", "10**400", "float in 1e-12..1000"), ("SEED", "10**5000", "int in 0.."),
    ("SEED", "True", "int in 0.."), ("LEARNING_RATE", 'float("nan")', "float in 1e-12..1000"),
    ("METRIC", '"test_acc"', "val_loss or val_acc"), ("WEIGHTS_DIR", "None", "text"),
    ("WEIGHTS_DIR", r'"a\0b"', "text without NUL"), ("DATA_DIR", "print", "text"),
    ("WARMUP_EPOCHS", "101", "MAX_EPOCHS = 100"), ("NUM_PROCESSES", "2", "COORDINATOR"),
    ("COORDINATOR", '"host:65536"', "1..65535"), ("LR_ABLATION_RATES", "0.1", "list of float")]


@pytest.mark.parametrize("name, text, legal", BAD_EDITS)
def test_bad_edit_names_its_line_and_what_is_legal(edited, name, text, legal):
    message = error_of(module=edited((name, f"NAME: TYPE = {text}REASON")))
    assert message.startswith(f"config.py line {line_of(name)}: {name} = ") and legal in message


def test_bad_edit_message_in_full(edited):
    assert error_of(module=edited(("SEED", "NAME: TYPE = None  # mine"))) == (
        f"config.py line {line_of('SEED')}: SEED = None is not legal; give int in 0..2147483647")


ONE_OF_EACH_TYPE = ("QAT_ENABLE", "LAYERS", "SEED", "LEARNING_RATE", "METRIC", "WEIGHTS_DIR",
                    "LR_ABLATION_RATES", "COORDINATOR", "RESUME", "MOMENTUM")


@pytest.mark.parametrize("name", ONE_OF_EACH_TYPE)
def test_line_without_its_type_says_what_to_write(edited, name):
    """Typed anew as NAME = VALUE, it would have lost its range, and Hyper perhaps a switch."""
    message = error_of(module=edited((name, f"{name} = VALUE")))
    assert message.startswith(f"config.py line {line_of(name)}: {name} has no type; write NAME: "
                              "TYPE = VALUE, as `git diff config.py` shows it")


@pytest.mark.parametrize("text", ["SEED: int = 3", "SEED: 3", "SEED: 0 <= 3 = 3", "SEED: None = 3"])
def test_other_annotations_are_no_types(edited, text):
    message = error_of(module=edited(("SEED", text)))
    assert message.startswith(f"config.py line {line_of('SEED')}: SEED has no type; write ")


def test_line_without_a_value_is_a_bad_edit(edited):
    message = error_of(module=edited(("SEED", "NAME: TYPE")))
    assert message.startswith(f"config.py line {line_of('SEED')}: SEED = None is not legal; ")


@pytest.mark.parametrize("name, text, value", [
    ("LEARNING_RATE", "1", 1.0), ("MOMENTUM", "0", 0.0), ("SEED", "3 * 7", 21),
    ("LAYERS", '"64 " + 2 * "32 "', "64 32 32 "), ("LR_ABLATION_RATES", "[1, 0.5]", (1.0, 0.5))])
def test_edit_gets_the_type_of_its_switch(edited, name, text, value):
    changed = edited((name, f"NAME: TYPE = {text}REASON")).load([])
    assert changed._asdict() == DEFAULTS._asdict() | {name: value}
    assert type(getattr(changed, name)) is type(value)
    assert not isinstance(value, tuple) or type(getattr(changed, name)[0]) is type(value[0])


def test_line_added_below_its_switch_wins_with_the_same_type(edited):
    module = edited(("SEED", "NAME: TYPE = VALUE\nSEED = 3"))
    assert module.load([]).SEED == 3
    message = error_of(module=edited(("SEED", "NAME: TYPE = VALUE\nSEED = -3")))
    assert message.startswith(f"config.py line {line_of('SEED') + 1}: SEED = -3 is not legal; ")


def test_edit_does_not_bend_what_switches_and_recipes_may_be(edited):
    """Types once came from the edited values: an int there refused a float here."""
    module = edited(("LEARNING_RATE", "NAME: TYPE = 1"), ("MOMENTUM", "NAME: TYPE = 0"))
    assert module.load(["--LEARNING_RATE=0.5"]).LEARNING_RATE == 0.5
    assert module.load([str(ROOT / "recipes" / "fast.toml")]).MOMENTUM == 0.9


@pytest.mark.parametrize("name", ["LEARNING_RAT", "Learning_Rate", "learning_rate"])
@pytest.mark.parametrize("annotation", ["", ": int", ": float"])
def test_unknown_constant_names_its_line_and_the_nearest_switch(edited, name, annotation):
    message = error_of(module=edited(("SEED", f"{name}{annotation} = 3\nNAME: TYPE = VALUE")))
    assert message.startswith(f"config.py line {line_of('SEED')}: {name} has no type; ")
    assert message.endswith("the nearest switch is LEARNING_RATE")


def test_private_names_and_imports_are_no_switches(edited):
    module = edited(("SEED", "import math\n_TWO = 2\nNAME: TYPE = math.factorial(3) // _TWOREASON"))
    assert module.load([]).SEED == 3
    assert dict(row[::2] for row in module.rows())["SEED"] == "initial weights and batch order"


@pytest.mark.parametrize("name", ONE_OF_EACH_TYPE)
def test_lost_line_is_named_where_its_switch_is_read(edited, name):
    """Nothing else holds a switch's value: the answer is one line, not a traceback."""
    module = edited((name, "# it was here"))
    with pytest.raises(InputError, match=f"^config.py has no line of {name}; write NAME: TYPE"):
        getattr(module.load([]), name)
    if name in HYPER:
        with pytest.raises(InputError, match=f"^config.py has no line of {name}; write NAME: TYPE"):
            getattr(module.hyper(module.load([])), name)


def test_misspelt_switch_is_named_where_it_is_read(edited):
    module = edited(("LEARNING_RATE", "LEARNING_RAT: number(0, 1) = 0.5"))
    with pytest.raises(InputError, match="no line of LEARNING_RATE; .* switch is LEARNING_RAT$"):
        print(module.load([]).LEARNING_RATE)


def test_attribute_that_is_no_switch_is_a_mistake_of_the_code():
    for name in ("LEARNING_RATE", "shape", "__array__"):
        assert not hasattr(config.hyper(DEFAULTS), name)


def test_rows_are_the_lines_of_the_file(edited):
    lines = {name: re.findall(line(name), SOURCE) for name in KEYS}
    assert [(name, reason) for name, _, reason in config.rows()] == [
        (name, reason.strip("# ")) for name, ((_, _, reason),) in lines.items()]
    assert [line_of(key) for key in KEYS] == sorted(line_of(key) for key in KEYS)
    changed = edited(("SEED", "NAME: TYPE = 5"), ("WEIGHTS_DIR", "NAME: TYPE = 'a # b'  # c # d"),
                     ("LR_ABLATION_RATES", "NAME: TYPE = 1, 0.5REASON"))
    rows = {name: values for name, *values in changed.rows()}
    assert rows["SEED"] == ["5", ""] and rows["LR_ABLATION_RATES"] == ["1.0,0.5", "half decades"]
    assert rows["WEIGHTS_DIR"] == ["a # b", "c # d"]


def test_reasons_stand_in_one_column():
    """A person who looks for what to edit sees a list, not code."""
    for name in KEYS:
        (left, value, reason), = re.findall(line(name), SOURCE)
        code = f"{left} = {value}"
        assert "\n" in value or len(code) + reason.index("#") == max(48, len(code) + 2), name


def test_rows_and_help_refuse_a_bad_edit(edited):
    module = edited(("SEED", "NAME: TYPE = None"))
    assert f"line {line_of('SEED')}" in error_of("--help", module=module)


def test_hyper_holds_its_switches_by_their_names():
    assert config.Hyper._fields == HYPER
    settings = config.load(["--SEED=3", "--MAX_EPOCHS=7", "--WEIGHT_BITS=4"])
    assert config.hyper(settings) == tuple(getattr(settings, name) for name in HYPER)
    changed = config.hyper(settings, WEIGHT_BITS=2, MOMENTUM=0, LAYERS="64")
    assert changed == config.hyper(settings)._replace(WEIGHT_BITS=2, MOMENTUM=0.0, LAYERS="64")
    assert type(changed.MOMENTUM) is float
    assert config.hyper(settings, SEED=9, LEARNING_RATE=1.0) == config.hyper(settings)
    hash(changed)


@pytest.mark.parametrize("changes, named", [
    ({"WEIGHT_BITS": 9}, "1..8"), ({"WEIGHT_BITS": "4"}, "int in 1..8"), ({"SEED": None}, "SEED"),
    ({"MAX_EPOCHS": 2}, "at most MAX_EPOCHS = 2"), ({"LAYERS": (64,)}, "text"),
    ({"COMPUTE": "bfloat16", "POWER_OF_TWO_SCALES": False}, "POWER_OF_TWO_SCALES"),
    ({"NUM_PROCESSES": 2}, "COORDINATOR"), ({"LEARNING_RAT": 1.0}, "LEARNING_RAT")])
def test_change_is_checked_as_load_does(changes, named):
    settings = config.load(["--WARMUP_EPOCHS=3"])
    for function in (config.change, config.hyper):
        with pytest.raises(InputError, match=re.escape(named)):
            function(settings, **changes)


def test_change_sets_its_switches_and_no_other():
    assert config.change(DEFAULTS) == DEFAULTS
    assert config.change(DEFAULTS, SEED=3, MOMENTUM=0) == DEFAULTS._replace(SEED=3, MOMENTUM=0.0)
    assert DEFAULTS == config.load([])


def test_a_path_may_begin_with_a_users_folder(edited, monkeypatch, tmp_path):
    """As a switch, where no shell writes it out, and in config.py from any working directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.load(["--WEIGHTS=~/a.npz"]).WEIGHTS == str(tmp_path / "a.npz")
    assert "user's name" in error_of("--WEIGHTS=~nobody-here/a.npz")
    module = edited(("WEIGHTS", "NAME: TYPE = '~/b.npz'"), ("PLOTS_DIR", "NAME: TYPE = 'c'"))
    monkeypatch.chdir(tmp_path)
    settings = module.load([])
    assert settings.WEIGHTS == str(tmp_path / "b.npz")
    assert settings.PLOTS_DIR == str(ROOT / "c")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_switch_with_its_value(capsys, flag):
    with pytest.raises(SystemExit) as stop:
        config.load([flag, "--NONSENSE=1"], "About this script.")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith("About this script.")
    for key in KEYS:
        lines = text.splitlines()
        at, = (i for i, line in enumerate(lines) if line.strip().startswith(f"--{key}="))
        assert len(lines[at + 1].strip()) > 10  # its reason


def test_config_is_immutable():
    with pytest.raises(AttributeError):
        DEFAULTS.SEED = 1
    with pytest.raises(TypeError):
        DEFAULTS.LR_ABLATION_RATES[0] = 1
    with pytest.raises(AttributeError):
        DEFAULTS.NEW = 1
    hash(DEFAULTS)                              # nothing mutable inside


def start(code, *argv, **options):
    """A process that runs `code` with config, script and sys imported, its output captured."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    code = f"import config, sys\nfrom machine import script\n{code}"
    return subprocess.Popen([sys.executable, "-c", code, *argv], cwd=ROOT, encoding="utf-8",
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=environment | options)


def test_import_is_light():
    out, error = start("print({'jax', 'optax', 'matplotlib'} & set(sys.modules))").communicate()
    assert (out, error) == ("set()\n", "")


def test_help_ends_quietly_in_a_closed_pipe():
    process = start("script.run(lambda argv: config.load(['--help']))")
    process.stdout.close()                      # before the script has come to print
    with process:
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_recipe_is_utf8_in_any_locale(recipe):
    path = recipe('WEIGHTS_DIR = "d\u00e9p\u00f4t"')
    out, error = start("print(ascii(config.load(sys.argv[1:]).WEIGHTS_DIR))", path, LC_ALL="C",
                       PYTHONUTF8="0", PYTHONCOERCECLOCALE="0").communicate()
    assert (out, error) == (r"'d\xe9p\xf4t'" + "\n", "")


def test_script_ends_in_one_line_and_code_2_at_an_input_error():
    process = start("script.run(config.load)", "--SEED=-1")
    assert process.communicate() == (
        "", "error: SEED = -1 is not legal; give int in 0..2147483647\n")
    assert process.returncode == 2


def test_script_ends_in_one_line_and_code_130_at_ctrl_c():
    process = start("import time; "
                    "script.run(lambda argv: (print('on', flush=True), time.sleep(60)))")
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "interrupted\n")
    assert process.returncode == 130


def test_script_that_succeeds_gets_its_arguments_and_just_ends():
    process = start("script.run(print)", "a", "--b")
    assert process.communicate() == ("['a', '--b']\n", "")
    assert process.returncode == 0
