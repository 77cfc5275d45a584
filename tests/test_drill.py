"""Faults put into real runs of the scripts: what is killed, full, lost or damaged costs nothing.

`make drill` has many of each kind (--faults). After a fault the old files are whole, and the same
command then gives the very bytes of an undisturbed run, apart from times, and leaves nothing else.
"""
import contextlib
import gc
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import main_train
from conftest import CACHE, ROOT
from formats import checkpoint
from runner.state import FINISHED

pytestmark = pytest.mark.long
FOLDERS = ("RUNS", "WEIGHTS", "RESULTS", "PLOTS")
SWITCHES = ("--LAYERS=64", "--VAL_EXAMPLES=200", "--BATCH_SIZE=32", "--PATIENCE=100",
            "--ADAPT=False")
RUN = ("main_train.py", "--MAX_EPOCHS=60")
SWEEP = ("ablation.py", "lr", "--LR_ABLATION_RATES=0.1,0.0316", "--ABLATION_SEEDS=2",
         "--ABLATION_MAX_EPOCHS=30")
OLD = {RUN: (*RUN, "--MAX_EPOCHS=1"), SWEEP: (*SWEEP, "--ABLATION_MAX_EPOCHS=1")}
EPOCHS = {RUN: 60, SWEEP: 30}
BOTH = pytest.mark.parametrize("command", [RUN, SWEEP], ids=["run", "sweep"])
WRITES = {RUN: ("WEIGHTS/weights*", "state*.npz", "history*.csv", "append", "RUNS/*/train.json",
                "RESULTS/train.json"),
          SWEEP: ("RESULTS/*.json", "state*.npz", "history*.csv", "append", "RUNS/*/*.json",
                  "RUNS/*/*.png", "PLOTS/*.png")}
SIZES = {"RUNS": "128k", "WEIGHTS": "64k", "RESULTS": "4k"}     # less than twice what is there
WARM, MOST = 20, 0.02           # runs after which caches have their size; growth from then on
# The program of a child whose disk is full from half of a certain write on, or whose clock goes
# back an hour then: python -c CHILD disk|clock PATTERN SCRIPT ...
CHILD = """
import builtins, pathlib, resource, runpy, sys, time
fault, pattern, *sys.argv = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
from machine import files
write, opened, clock = files.write_atomically, builtins.open, time.time
def strike(size):
    if fault == "disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    else:
        time.time = lambda: clock() - 3600
def write_some(path, content):
    if pathlib.Path(path).match(pattern):
        strike(len(content) // 2)
    write(path, content)
def open_some(path, mode="r", *args, **named):
    if "a" in mode and pattern == "append":
        strike(pathlib.Path(path).stat().st_size + 10)
    return opened(path, mode, *args, **named)
files.write_atomically, builtins.open = write_some, open_some
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def comparable(path):
    """What two runs of the same switches must agree on: all of a file but its times."""
    content = path.read_bytes()
    if path.suffix == ".json":
        result = json.loads(content)
        return {key: result.get(key) for key in ("rows", "dataset")}
    if path.suffix == ".csv":
        lines = [line.split(",") for line in content.decode().splitlines()]
        return [line[:1] + line[2:] for line in lines]          # without its seconds
    return content


def ends_well(process):
    errors = process.communicate()[1]
    assert process.returncode == 0 and not errors, errors


def is_refused(process):
    errors = process.communicate()[1]
    assert process.returncode == 2 and errors.startswith("error: ") and errors.count("\n") == 1, (
        process.returncode, errors)


class Home:
    """A folder for the output of a command's runs, and the data and cache that they share.

    old, new: content() of a shorter run, whose files stand here already, and of an undisturbed one,
    which took so many seconds.
    """

    def __init__(self, folder, command, data, cache):
        self.folder, self.command, self.data, self.cache = folder, command, data, cache
        self.old, self.new, self.seconds = {}, {}, 0.0
        for name in FOLDERS:
            (folder / name).mkdir(parents=True)

    def start(self, *switches, inject=(), command=None):
        """The process of the command; inject: the fault and pattern of a CHILD."""
        script, *rest = command or self.command
        child = ["-c", CHILD, *inject] if inject else []
        folders = [f"--{name}_DIR={self.folder / name}" for name in FOLDERS]
        with open(self.folder / "log", "a", encoding="utf-8") as log:
            return subprocess.Popen(
                [sys.executable, *child, ROOT / script, *rest, *SWITCHES, *folders,
                 f"--DATA_DIR={self.data}", f"--CACHE_DIR={self.cache}", *switches],
                cwd=self.folder, stdout=log, stderr=subprocess.PIPE, text=True,
                env=os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONDONTWRITEBYTECODE": "1"})

    def files(self):
        """Every file but the log and caches, relative, hidden ones too; no links to folders."""
        paths = [path.relative_to(self.folder) for name in FOLDERS
                 for path in (self.folder / name).rglob("*")
                 if path.is_file() or path.name.startswith(".")]
        return sorted(path for path in paths if "latest" not in path.parts)

    def content(self):
        return {path: comparable(self.folder / path) for path in self.files()}

    def temporary(self, prefix=""):
        """The temporary files of a write that is going on, or was killed."""
        return list(self.folder.glob(f"*/**/.{prefix}*.tmp"))

    def is_whole(self):
        """Each file is the old one or the new one; the state, if there is one, can be read."""
        for path in self.files():
            if path.name.startswith("state"):
                with zipfile.ZipFile(self.folder / path) as state:
                    assert state.testzip() is None, path
            elif path.suffix not in (".tmp", ".csv") and path.name != FINISHED:
                found = comparable(self.folder / path)
                assert found in (self.old.get(path), self.new.get(path)), path

    def is_complete(self):
        """The files are those of the undisturbed run, equal but for times, and no other."""
        found = self.content()
        wrong = [str(path) for path in found.keys() | self.new.keys()
                 if path not in found or path not in self.new or found[path] != self.new[path]]
        assert not wrong, f"missing, left over or different: {', '.join(wrong)}"

    def recovers(self):
        """The old files are whole, and the same command now gives the undisturbed bytes."""
        self.is_whole()
        ends_well(self.start())
        self.is_complete()


def grow_worse(folder, epochs):
    """Let the files of a shorter run say that they are of the longer one's switches.

    Of other switches they would rightly stay; so they are just worse, and what a run replaces.
    """
    for path in (folder / "RESULTS").glob("*.json"):
        result = json.loads(path.read_text())
        for switches in (result["config"], *(row["changes"] for row in result["rows"])):
            switches |= {key: epochs for key, value in switches.items()
                         if key.endswith("MAX_EPOCHS") and value == 1}
        path.write_text(json.dumps(result))
    for path in (folder / "WEIGHTS").glob("weights*.npz"):
        network, facts = checkpoint.load(path)
        content = checkpoint.encode(network, facts._replace(
            switches=facts.switches | {"MAX_EPOCHS": epochs}))
        path.write_bytes(content)


@pytest.fixture(scope="module")
def make_home(folder, tmp_path_factory):
    """make_home(command) -> a Home with the files of a shorter run."""
    known = {}

    def new(command):
        return Home(tmp_path_factory.mktemp("home"), command, folder, CACHE)

    def make(command):
        if command not in known:
            old, undisturbed = new(OLD[command]), new(command)
            ends_well(old.start())
            grow_worse(old.folder, EPOCHS[command])
            start = time.monotonic()
            ends_well(undisturbed.start())
            known[command] = old, undisturbed.content(), time.monotonic() - start
        old, finished, seconds = known[command]
        home = new(command)
        home.old, home.new, home.seconds = old.content(), finished, seconds
        for path in home.old:
            if path.parts[0] != "RUNS":
                shutil.copyfile(old.folder / path, home.folder / path)
        return home

    return make


@pytest.fixture(scope="module")
def faults(pytestconfig):
    """How many faults of each kind."""
    return pytestconfig.getoption("faults")


@pytest.fixture(scope="module")
def chance():
    return random.Random(0)


def killed(home, in_save, chance):
    """Whether kill -9 came before the end; in a save it must have left a temporary file."""
    while True:
        process, seen = home.start(), set()
        # Mostly of a state, one of the first; else of what comes last.
        name, skip = chance.choice([("state", 0), ("state", 1), ("state", 1), ("state", 2),
                                    ("weights" if home.command == RUN else "lr_ablation", 0)])
        end = time.monotonic() + chance.uniform(0, home.seconds)
        while process.poll() is None and (
                len(seen) <= skip if in_save else time.monotonic() < end):
            seen.update(home.temporary(name))
            time.sleep(0.0002)
        process.kill()
        if process.wait() != -9:
            ends_well(process)
            return False
        process.stderr.close()
        if not in_save or home.temporary():
            return True


@BOTH
@pytest.mark.parametrize("in_save", [False, True], ids=["anywhere", "in a save"])
def test_a_killed_run_goes_on_to_the_same_bytes(make_home, command, in_save, faults, chance):
    homes, kills = [make_home(command)], 0
    while kills < max(1, faults // 2):
        if killed(homes[-1], in_save, chance):
            homes[-1].is_whole()
            kills += 1
        else:
            homes[-1].is_complete()
            homes.append(make_home(command))
    homes[-1].recovers()
    resumed = sum((home.folder / "log").read_text().count("going on after") for home in homes)
    print(f"{command[0]}: {kills} times kill -9, {'in a save' if in_save else 'anywhere'}; "
          f"{resumed} times it went on from a saved state")


@BOTH
def test_a_full_disk_is_one_line_and_costs_nothing(make_home, command, faults):
    """A write of one kind fails in its middle; later there is room again."""
    for pattern in WRITES[command][:faults]:
        home = make_home(command)
        is_refused(home.start(inject=("disk", pattern)))
        home.recovers()


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode == 0


@contextlib.contextmanager
def tmpfs(home, name):
    """A tmpfs in the place of one of a home's folders, with the same files."""
    folder = home.folder / name
    copy = shutil.copytree(folder, home.folder / "copy")
    if not mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", folder):
        pytest.skip("mounting needs root")
    try:
        shutil.copytree(copy, folder, dirs_exist_ok=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_small_disk_is_one_line_and_costs_nothing(make_home, faults):
    """A folder is a file system on which its files fit no second time."""
    for name, size in list(SIZES.items())[:faults]:
        home = make_home(RUN)
        with tmpfs(home, name) as folder:
            assert mount("-o", f"remount,size={size}", folder)
            is_refused(home.start())
            assert mount("-o", "remount,size=64m", folder)
            home.recovers()


def started(home):
    """A process of a home's command that has saved its first state."""
    process = home.start()
    while process.poll() is None and not list(home.folder.glob("RUNS/*/state*.npz")):
        time.sleep(0.001)
    return process


def test_a_folder_that_turns_read_only_is_one_line_and_costs_nothing(make_home, faults):
    for name in list(SIZES)[:faults]:
        home = make_home(RUN)
        with tmpfs(home, name) as folder:
            process = started(home)
            while not mount("-o", "remount,ro", folder):
                time.sleep(0.001)               # busy: a file is being written
            is_refused(process)
            assert mount("-o", "remount,rw", folder)
            home.recovers()


def test_a_lost_folder_is_one_line_and_costs_nothing(make_home, faults):
    """It is taken away after the first epochs, and a file stands in its place."""
    for name in list(SIZES)[:faults]:
        home = make_home(RUN)
        process, folder = started(home), home.folder / name
        aside = folder.rename(home.folder / "aside")
        while not folder.is_file():             # the run may make the folder again
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.touch(exist_ok=False)
        is_refused(process)
        folder.unlink()
        aside.rename(folder)
        home.recovers()


def test_the_same_run_twice_at_once_ends_the_same_or_is_refused(make_home, faults):
    for _ in range(min(faults, 5)):
        home = make_home(RUN)
        pair = [home.start() for _ in range(2)]
        said = [process.communicate()[1] for process in pair]
        ends = sorted((process.returncode, text.count("\n")) for process, text in zip(pair, said))
        assert ends in ([(0, 0), (0, 0)], [(0, 0), (2, 1)]), said
        home.is_complete()


def test_of_two_runs_that_write_the_same_weights_one_wins_whole(make_home, faults):
    for _ in range(min(faults, 5)):
        home = make_home(RUN)
        for process in [home.start(f"--SEED={seed}") for seed in (0, 1)]:
            ends_well(process)
        for folder, name in (("WEIGHTS", "weights_int8.npz"), ("RESULTS", "train.json")):
            each = [comparable(path) for path in home.folder.glob(f"RUNS/train-*/{name}")]
            assert len(each) == 2 and comparable(home.folder / folder / name) in each
        assert not home.temporary()


@pytest.mark.parametrize("quantized", [True, False])
def test_a_rate_that_blows_up_is_one_line_and_saves_nothing(make_home, quantized):
    home = make_home(RUN)
    before = home.content()
    is_refused(home.start("--LEARNING_RATE=1000", f"--QAT_ENABLE={quantized}"))
    after = home.content()
    assert before == {path: after[path] for path in after if path.suffix != ".csv"}


@BOTH
def test_a_clock_that_goes_back_an_hour_costs_nothing(make_home, command):
    """At the first save."""
    home = make_home(command)
    ends_well(home.start(inject=("clock", "state*.npz")))
    home.is_complete()


DAMAGE = {"cut off": lambda content, chance: content[:chance.randrange(len(content))],
          "emptied": lambda content, chance: b"",
          "garbled": lambda content, chance: chance.randbytes(64) + content[64:],
          "one bit": lambda content, chance: (content[:len(content) // 2]
                                              + bytes([content[len(content) // 2] ^ 1])
                                              + content[len(content) // 2 + 1:])}


@pytest.mark.parametrize("damage", [*DAMAGE, "writer killed"])
def test_a_damaged_compile_cache_costs_nothing(make_home, damage, chance):
    home = make_home(RUN)
    home.cache = home.folder / "cache"
    process = home.start()
    if damage == "writer killed":
        while process.poll() is None and not list(home.cache.rglob("jit_on_mesh*-cache")):
            time.sleep(0.0001)
        process.kill()
        process.communicate()
    else:
        ends_well(process)
        for path in home.cache.rglob("*-cache"):
            path.write_bytes(DAMAGE[damage](path.read_bytes(), chance))
    for _ in range(2):                          # rebuilt by the first, used by the second
        ends_well(home.start())
        home.is_complete()


@pytest.mark.parametrize("spoil", [
    lambda home: (home.folder / "WEIGHTS" / ".x.tmp").touch(),
    lambda home: (home.folder / "WEIGHTS" / "weights_int8.npz").write_bytes(b""),
    lambda home: (home.folder / "RESULTS" / "train.json").unlink()],
    ids=["left over", "other weights", "missing"])
def test_a_drill_notices_what_is_left_over_different_or_lost(make_home, spoil):
    home = make_home(RUN)
    ends_well(home.start())
    home.is_complete()
    spoil(home)
    with pytest.raises(AssertionError, match="missing, left over or different"):
        home.is_complete()


def held():
    """What this process holds: bytes resident, open files, threads."""
    gc.collect()
    status = Path("/proc/self/status").read_text("utf-8").splitlines()
    resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return (1024 * resident, len(list(Path("/proc/self/fd").iterdir())),
            len(list(Path("/proc/self/task").iterdir())))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_files_and_threads_do_not_grow_over_many_runs(folder, tmp_path, pytestconfig):
    marks, contents = [], set()
    for _ in range(max(WARM + 1, pytestconfig.getoption("runs"))):
        with contextlib.redirect_stdout(io.StringIO()):
            main_train.main([*SWITCHES, "--MAX_EPOCHS=1", "--RESUME=False", f"--DATA_DIR={folder}",
                             f"--CACHE_DIR={CACHE}",
                             *(f"--{name}_DIR={tmp_path / name}" for name in FOLDERS)])
        contents.add((tmp_path / "WEIGHTS" / "weights_int8.npz").read_bytes())
        marks.append(held())
    (before, *few), (after, *many) = marks[WARM - 1], marks[-1]
    print(f"{len(marks)} runs: memory {100 * (after / before - 1):+.2f} % from run {WARM} on, "
          f"{few} and {many} open files and threads")
    assert len(contents) == 1                   # the same weights each time
    assert after / before - 1 <= MOST and many[0] <= few[0] and many[1] <= few[1]
