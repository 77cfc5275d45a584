"""config: every switch can be set in every way that help promises, and every mistake is named."""
import pytest

import config
from conftest import ROOT
from files import InputError

DEFAULTS = config.load([])
KEYS = DEFAULTS._fields


@pytest.fixture
def recipe(tmp_path):
    """recipe(text) -> path of a TOML file."""
    def write(text, name="recipe.toml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)
    return write


def error_of(*argv):
    with pytest.raises(InputError) as caught:
        config.load(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", KEYS)
def test_default_is_legal_in_every_notation(recipe, key):
    """The value that help shows works as a switch; the same in a recipe."""
    default = getattr(DEFAULTS, key)
    assert getattr(config, key) == default
    assert config.load([f"--{key}={default}"]) == DEFAULTS
    toml = (str(list(default)) if isinstance(default, tuple)
            else f'"{default}"' if isinstance(default, str) else str(default).lower())
    assert config.load([recipe(f"{key} = {toml}")]) == DEFAULTS


@pytest.mark.parametrize("key, text, value", [
    ("QAT_ENABLE", "False", False), ("QAT_ENABLE", "0", False), ("LR_ABLATION_MODE", "true", True),
    ("LAYER_SIZES", "784,32,10", (784, 32, 10)), ("LAYER_SIZES", "(784,10)", (784, 10)),
    ("WEIGHT_BITS", "1", 1), ("LEARNING_RATE", "1e-3", 1e-3), ("LEARNING_RATE", "1", 1.0),
    ("LR_ABLATION_RATES", "1,0.5", (1.0, 0.5)), ("OPTIMIZER", "adamw", "adamw"),
    ("WEIGHTS_DIR", "/tmp/a=b", "/tmp/a=b"), ("ENGINE", "numpy", "numpy")])
def test_switch_sets_one_value_in_its_type(key, text, value):
    changed = config.load([f"--{key}={text}"])
    assert changed == DEFAULTS._replace(**{key: value})
    assert type(getattr(changed, key)) is type(value)


def test_recipe_sets_its_values_in_their_types(recipe):
    path = recipe("LEARNING_RATE = 1\nLAYER_SIZES = [784, 10]\nQAT_ENABLE = false\n"
                  'ENGINE = "numpy"\nLR_ABLATION_RATES = [1, 0.5]')
    changed = config.load([path])
    assert changed == DEFAULTS._replace(LEARNING_RATE=1.0, LAYER_SIZES=(784, 10), QAT_ENABLE=False,
                                        ENGINE="numpy", LR_ABLATION_RATES=(1.0, 0.5))
    assert type(changed.LEARNING_RATE) is type(changed.LR_ABLATION_RATES[0]) is float


def test_the_last_one_given_wins(recipe):
    a, b = recipe("SEED = 1\nPATIENCE = 3", "a.toml"), recipe("SEED = 2", "b.toml")
    assert [config.load(argv).SEED for argv in (
        [a], [a, b], [b, a], [a, "--SEED=9", b], [b, "--SEED=9"], ["--SEED=8", "--SEED=9"])] == [
        1, 2, 1, 2, 9, 9]
    assert config.load([a, b]).PATIENCE == 3
    assert config.load([]) == DEFAULTS          # nothing is left behind


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.name)
def test_bundled_recipe_is_legal_and_changes_something(path):
    assert config.load([str(path)]) != DEFAULTS


ILLEGAL = [
    ("WEIGHT_BITS", "0", "1..8"), ("WEIGHT_BITS", "9", "1..8"), ("ACTIVATION_BITS", "0", "1..8"),
    ("ACTIVATION_BITS", "9", "1..8"), ("WEIGHT_BITS", "8.0", "int"),
    ("WEIGHT_BITS", "eight", "int"), ("WEIGHT_BITS", "", "int"),
    ("LEARNING_RATE", "-0.1", "1e-12..1000"), ("LEARNING_RATE", "0", "1e-12..1000"),
    ("LEARNING_RATE", "nan", "float"),
    ("LEARNING_RATE", "inf", "float"), ("LEARNING_RATE", "fast", "float"),
    ("LAYER_SIZES", "", "list of int"), ("LAYER_SIZES", "784,0,10", "1..65536"),
    ("LAYER_SIZES", "784,-3,10", "1..65536"), ("LAYER_SIZES", "784,x", "int"),
    ("LAYER_SIZES", "784", "inputs and classes"), ("LR_ABLATION_RATES", "", "list of float"),
    ("LR_ABLATION_RATES", "0.1,-1", "1e-12..1000"), ("QAT_ENABLE", "maybe", "true or false"),
    ("OPTIMIZER", "adam", "sgd or adamw"), ("OPTIMIZER", "", "sgd or adamw"),
    ("METRIC", "test_acc", "val_loss or val_acc"), ("ENGINE", "torch", "jax or numpy"),
    ("BATCH_SIZE", "0", "int in 1"), ("MAX_EPOCHS", "0", "int in 1"), ("SEED", "-1", "int in 0"),
    ("MIN_DELTA", "-1", "float in 0"), ("MOMENTUM", "1", "0.9999"),
    ("WARMUP_EPOCHS", "101", "MAX_EPOCHS")]


@pytest.mark.parametrize("key, text, legal", ILLEGAL)
def test_illegal_value_names_key_value_and_legal_set(key, text, legal):
    message = error_of(f"--{key}={text}")
    assert key in message and legal in message and all(part in message for part in text.split(","))


@pytest.mark.parametrize("line, legal", [
    ("WEIGHT_BITS = 9", "1..8"), ("WEIGHT_BITS = true", "int"), ("WEIGHT_BITS = 8.0", "int"),
    ("WEIGHT_BITS = [8]", "int"), ('WEIGHT_BITS = "8"', "int"), ("QAT_ENABLE = 1", "true or false"),
    ("LEARNING_RATE = true", "float"), ('LEARNING_RATE = "0.1"', "float"),
    ("LEARNING_RATE = nan", "float"),
    ("LAYER_SIZES = []", "list of int"), ("LAYER_SIZES = 784", "list of int"),
    ("LAYER_SIZES = [784, 10.0]", "list of int"), ("WEIGHTS_DIR = 3", "text"),
    ("[LAYER_SIZES]\na = 1", "list of int")])
def test_illegal_recipe_value_names_key_and_legal_set(recipe, line, legal):
    message = error_of(recipe(line))
    assert line.strip("[").split()[0].strip("]") in message and legal in message


@pytest.mark.parametrize("argv, named", [
    (["--LEARNING_RAT=0.1"], "LEARNING_RAT"), (["--learning_rate=0.1"], "learning_rate"),
    (["--_LEGAL=1"], "_LEGAL"), (["--SEED"], "--SEED"), (["--"], "--KEY=value"),
    (["SEED=1"], "SEED=1"), (["-SEED=1"], "-SEED=1"), (["none.toml"], "none.toml")])
def test_unknown_argument_is_named(argv, named):
    assert named in error_of(*argv)


@pytest.mark.parametrize("content", ["SEED = ", "SEED = 1\nSEED = 2", "{json: 1}", "\ufeffSEED=1"])
def test_malformed_recipe_is_named(recipe, content):
    path = recipe(content)
    assert path in error_of(path)


def test_unknown_recipe_key_names_recipe_and_key(recipe):
    path = recipe("LEARNING_RAT = 0.1")
    assert path in error_of(path) and "LEARNING_RAT" in error_of(path)


def test_binary_recipe_and_folder_are_named(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.toml").mkdir()
    for name in ("binary.toml", "folder.toml"):
        assert name in error_of(str(tmp_path / name))


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
        DEFAULTS.LAYER_SIZES[0] = 1
    with pytest.raises(AttributeError):
        DEFAULTS.NEW = 1
    hash(DEFAULTS)                              # nothing mutable inside
