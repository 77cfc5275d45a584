"""Faults put into real runs of the scripts: what is killed, full, lost or damaged costs nothing.

python3 -m benchmarks.drill [--kills=100] [--seed=0]     writes results/drill.json

After each fault the old files are whole, and the same command then gives the very bytes of an
undisturbed run, apart from times, and leaves nothing else behind.
"""
import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path

from tqdm import tqdm

import data
from data import Split
from report import results

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("RUNS", "WEIGHTS", "RESULTS", "PLOTS")
SWITCHES = ("--LAYER_SIZES=784,64,10", "--VAL_EXAMPLES=200", "--BATCH_SIZE=32", "--PATIENCE=100")
RUN = ("main_train.py", "--MAX_EPOCHS=60")
SWEEP = ("ablation.py", "lr", "--LR_ABLATION_RATES=0.1,0.0316", "--ABLATION_SEEDS=2",
         "--ABLATION_MAX_EPOCHS=30")
OLD = {RUN: (*RUN, "--MAX_EPOCHS=1"), SWEEP: (*SWEEP, "--ABLATION_MAX_EPOCHS=1")}
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


class Failed(Exception):
    """The code under test did not survive a fault; the message says what was seen."""


def require(condition, message):
    if not condition:
        raise Failed(message)


def comparable(path):
    """What two runs of the same switches must agree on: all of a file but its times."""
    content = path.read_bytes()
    if path.suffix == ".json":
        result = json.loads(content)
        return {key: result.get(key) for key in ("row", "rows", "best_rate", "dataset", "rank")}
    if path.suffix == ".csv":
        lines = [line.split(",") for line in content.decode().splitlines()]
        return [line[:1] + line[2:] for line in lines]          # without its seconds
    return content


class Home:
    """A folder for the output of one run, with the files of an older one in their places."""

    def __init__(self, folder, command, old=None):
        self.folder, self.command, self.log = folder, command, folder / "log"
        for name in FOLDERS:
            (folder / name).mkdir(parents=True)
        for path in old.files() if old else []:
            if path.parts[0] != "RUNS":
                shutil.copyfile(old.folder / path, folder / path)

    def files(self):
        """Every file but the log, relative, hidden ones too; no links to folders."""
        return sorted(path.relative_to(self.folder) for path in self.folder.rglob("*")
                      if path != self.log and (path.is_file() or path.name.startswith("."))
                      and "latest" not in path.relative_to(self.folder).parts
                      and "cache" not in path.relative_to(self.folder).parts)

    def content(self):
        return {path: comparable(self.folder / path) for path in self.files()}

    def temporary(self, prefix=""):
        """The temporary files of a write that is going on, or was killed."""
        return list(self.folder.glob(f"*/**/.{prefix}*.tmp"))

    def say(self):
        return self.log.read_text() if self.log.exists() else ""


class Drill:
    """The data, the undisturbed runs and a counter of homes, all in one temporary folder."""

    def __init__(self, folder, rng, commands=(RUN, SWEEP)):
        self.folder, self.rng, self.homes, self.resumed = Path(folder), rng, 0, 0
        self.running = {}                       # command -> the Home whose run is being killed
        full = data.load(ROOT / "datasets" / "mnist")
        for pair, split, rows in zip(data.FILES, (full.train, full.test), (1_000, 200)):
            part = Split(split.images[:rows].reshape(-1, 28, 28), split.labels[:rows])
            for name, array in zip(pair, part):
                data.write_idx(self.folder / "data" / name, array)
        self.old, self.new, self.seconds = {}, {}, {}
        for command in commands:
            self.old[command] = self._undisturbed(OLD[command])
            start = time.monotonic()
            self.new[command] = self._undisturbed(command)
            self.seconds[command] = time.monotonic() - start

    def _undisturbed(self, command):
        home = self.home(command)
        self.finish(home)
        return home

    def home(self, command):
        """A new Home, with the output of a shorter run as its old files."""
        self.homes += 1
        return Home(self.folder / f"{self.homes}", command, self.old.get(command))

    def start(self, home, *switches, inject=(), cache=None):
        """The process of a home's command; inject: the fault and pattern of a CHILD."""
        script, *rest = home.command
        child = ["-c", CHILD, *inject] if inject else []
        folders = [f"--{name}_DIR={home.folder / name}" for name in FOLDERS]
        command = [sys.executable, *child, ROOT / script, *rest, *SWITCHES, *folders,
                   f"--DATA_DIR={self.folder / 'data'}",
                   f"--CACHE_DIR={cache or self.folder / 'cache'}", *switches]
        with open(home.log, "a", encoding="utf-8") as log:
            return subprocess.Popen(
                command, cwd=home.folder, stdout=log, stderr=subprocess.PIPE, text=True,
                env=os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONDONTWRITEBYTECODE": "1"})

    def finish(self, home, **how):
        """Run a home's command to its end, which must be a quiet success."""
        self.ends_well(self.start(home, **how))

    def ends_well(self, process):
        _, errors = process.communicate()
        require(process.returncode == 0 and not errors,
                f"exit {process.returncode}, {errors.strip() or 'nothing on stderr'}")

    def is_refused(self, process):
        """One line on stderr and exit 2."""
        _, errors = process.communicate()
        require(process.returncode == 2 and errors.startswith("error: ")
                and errors.count("\n") == 1, f"exit {process.returncode}, {errors.strip()!r}")

    def is_whole(self, home):
        """Each file is the old one or the new one; the state, if there is one, can be read."""
        old, new = self.old[home.command].content(), self.new[home.command].content()
        for path in home.files():
            if path.name.startswith("state"):
                with zipfile.ZipFile(home.folder / path) as state:
                    require(state.testzip() is None, f"{path} is damaged")
            elif path.suffix != ".tmp" and path.suffix != ".csv":
                found = comparable(home.folder / path)
                require(found in (old.get(path), new.get(path)), f"{path} is another")

    def is_complete(self, home):
        """The files are those of the undisturbed run, equal but for times, and no other."""
        found, expected = home.content(), self.new[home.command].content()
        wrong = {str(path) for path in found.keys() | expected.keys()
                 if path not in found or path not in expected or found[path] != expected[path]}
        require(not wrong, f"missing, left over or different: {', '.join(sorted(wrong))}")
        self.resumed += home.say().count("going on after")

    def recovers(self, home):
        """The old files are whole, and the same command now gives the undisturbed bytes."""
        self.is_whole(home)
        self.finish(home)
        self.is_complete(home)

    # The faults. Each is one test of one run, and raises Failed.

    def kill(self, command, in_save, last=False):
        """kill -9 of a run that goes on after each until it ends; the last time, let it end."""
        home = self.running.pop(command, None) or self.home(command)
        while not self._killed(home, in_save):
            self.is_complete(home)
            home = self.home(command)
        self.is_whole(home)
        if last:
            self.recovers(home)
        else:
            self.running[command] = home

    def _killed(self, home, in_save):
        """Whether the kill came before the end; in a save it must have left a temporary file."""
        while True:
            process = self.start(home)
            if in_save:
                _wait_for_save(process, home, self.rng)
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self.rng.uniform(0, self.seconds[home.command]))
            process.kill()
            if process.wait() != -9:
                self.ends_well(process)
                return False
            process.stderr.close()
            if not in_save or home.temporary():
                return True

    def full_disk(self, command, pattern):
        """A write of one kind fails in its middle; later there is room again."""
        home = self.home(command)
        self.is_refused(self.start(home, inject=("disk", pattern)))
        self.recovers(home)

    def small_disk(self, command, name, size):
        """A folder is a tmpfs on which its files fit no second time."""
        home = self.home(command)
        with _tmpfs(home, name):
            _mount("-o", f"remount,size={size}", home.folder / name)
            self.is_refused(self.start(home))
            _mount("-o", "remount,size=64m", home.folder / name)
            self.recovers(home)

    def read_only(self, command, name):
        """A folder becomes read-only after the first epochs."""
        home = self.home(command)
        with _tmpfs(home, name):
            process = self.start(home)
            _wait_for_state(process, home)
            while subprocess.run(["mount", "-o", "remount,ro", home.folder / name],
                                 stderr=subprocess.DEVNULL).returncode:
                time.sleep(0.001)               # busy: a file is being written
            self.is_refused(process)
            _mount("-o", "remount,rw", home.folder / name)
            self.recovers(home)

    def lost_folder(self, command, name):
        """A folder is taken away after the first epochs, and a file stands in its place."""
        home = self.home(command)
        process, folder = self.start(home), home.folder / name
        _wait_for_state(process, home)
        aside = folder.rename(home.folder / "aside")
        while not folder.is_file():             # the run may make the folder again
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.touch(exist_ok=False)
        self.is_refused(process)
        folder.unlink()
        aside.rename(folder)
        self.recovers(home)

    def twins(self, command):
        """The same command twice at once: both end the same way, or one is refused."""
        home = self.home(command)
        pair = [self.start(home) for _ in range(2)]
        said = [process.communicate()[1] for process in pair]
        ends = sorted((process.returncode, text.count("\n")) for process, text in zip(pair, said))
        require(ends in ([(0, 0), (0, 0)], [(0, 0), (2, 1)]), f"{ends}: {said}")
        self.is_complete(home)

    def rivals(self):
        """Runs of two seeds write the same weights at once: one of them wins whole."""
        home = self.home(RUN)
        for process in [self.start(home, f"--SEED={seed}") for seed in (0, 1)]:
            self.ends_well(process)
        for folder, name in (("WEIGHTS", "weights_int8.npz"), ("RESULTS", "train.json")):
            each = [comparable(path) for path in home.folder.glob(f"RUNS/train-*/{name}")]
            require(len(each) == 2 and comparable(home.folder / folder / name) in each,
                    f"{name} is of neither")
        require(not home.temporary(), "a temporary file is left")

    def blow_up(self, quantized):
        """A learning rate that leaves nothing to use."""
        home = self.home(RUN)
        before = home.content()
        self.is_refused(self.start(home, "--LEARNING_RATE=1000", f"--QAT_ENABLE={quantized}"))
        after = {path: content for path, content in home.content().items()
                 if path.suffix != ".csv"}
        require(after == before, f"changed or left: {sorted(map(str, after.keys() ^ before))}")

    def clock(self, command):
        """The time of day goes back an hour at the first save."""
        home = self.home(command)
        self.finish(home, inject=("clock", "state*.npz"))
        self.is_complete(home)

    def damaged_cache(self, damage):
        """Every compiled program is cut off, garbled or emptied, or its writer is killed."""
        home = self.home(RUN)
        cache = home.folder / "cache"
        process = self.start(home, cache=cache)
        if damage == "killed":
            while process.poll() is None and not list(cache.rglob("jit_on_mesh*-cache")):
                time.sleep(0.0001)
            process.kill()
            process.communicate()
        else:
            self.ends_well(process)
            for path in cache.rglob("*-cache"):
                path.write_bytes(_damage(path.read_bytes(), damage, self.rng))
        for _ in range(2):                      # rebuilt by the first, used by the second
            self.finish(home, cache=cache)
            self.is_complete(home)


def _damage(content, kind, rng):
    """The bytes of a file, damaged."""
    if kind == "truncated":
        return content[:rng.randrange(len(content))]
    if kind == "garbled":
        return rng.randbytes(64) + content[64:]
    if kind == "one bit":
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]
    return b""


def _wait_for_state(process, home):
    """Until a first state is saved, or the run has ended."""
    while process.poll() is None and not list(home.folder.glob("RUNS/*/state*.npz")):
        time.sleep(0.001)


def _wait_for_save(process, home, rng):
    """Until a file is being written: mostly a state, one of the first; else what comes last."""
    prefix, skip = rng.choice([("state", 0), ("state", 1), ("state", 1), ("state", 2),
                               ("weights" if home.command == RUN else "lr_ablation", 0)])
    seen = set()
    while process.poll() is None and len(seen) <= skip:
        seen.update(home.temporary(prefix))
        time.sleep(0.0002)


def _mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


@contextlib.contextmanager
def _tmpfs(home, name):
    """A tmpfs in the place of one of a home's folders, with the same files."""
    folder, copy = home.folder / name, home.folder / "copy"
    shutil.copytree(folder, copy)
    _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", folder)
    try:
        shutil.copytree(copy, folder, dirs_exist_ok=True)
        shutil.rmtree(copy)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def can_mount():
    """Whether this process may mount a tmpfs."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _mount("-t", "tmpfs", "tmpfs", folder)
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", folder], check=True)
        return True


def plan(drill, kills):
    """[(fault, its tests)], the whole drill."""
    late = {RUN: ("WEIGHTS/weights*", "RUNS/*/train.json", "RESULTS/train.json"),
            SWEEP: ("RUNS/*/*.json", "RUNS/*/*.png", "RESULTS/*.json", "PLOTS/*.png")}
    sizes = {"RUNS": "128k", "WEIGHTS": "64k", "RESULTS": "4k"}     # less than twice what is there
    plans = []
    for what, command in (("a run", RUN), ("a sweep", SWEEP)):
        for in_save, moment in ((False, "at a random moment"), (True, "inside a save")):
            times = kills // 2
            plans.append((f"kill -9 of {what} {moment}",
                          [partial(drill.kill, command, in_save, last=i == times - 1)
                           for i in range(times)]))
        plans.append((f"disk full in {what} (file size limit)",
                      [partial(drill.full_disk, command, pattern)
                       for pattern in ("state*.npz", "history*.csv", "append", *late[command])]))
    if can_mount():
        plans += [("disk full in a run (small tmpfs)",
                   [partial(drill.small_disk, RUN, *size) for size in sizes.items()]),
                  ("folder turns read-only in a run",
                   [partial(drill.read_only, RUN, name) for name in sizes])]
    else:
        print("small tmpfs and read-only folders: skipped, because mounting needs root")
    return plans + [
        ("folder lost in a run", [partial(drill.lost_folder, RUN, name) for name in sizes]),
        ("the same run twice at once", [partial(drill.twins, RUN)] * 5),
        ("two runs, the same weights file at once", [drill.rivals] * 5),
        ("learning rate that blows up", [partial(drill.blow_up, flag) for flag in (True, False)]),
        ("clock that goes back an hour", [partial(drill.clock, RUN), partial(drill.clock, SWEEP)]),
        ("damaged compile cache", [partial(drill.damaged_cache, damage) for damage in
                                   ("truncated", "emptied", "garbled", "one bit", "killed")])]


def run(plans, bar):
    """[{fault, times, survived, failures}] of a plan."""
    rows = []
    for fault, tests in plans:
        failures = []
        for test in tests:
            try:
                test()
            except (Failed, OSError, ValueError, zipfile.BadZipFile) as error:
                failures.append(f"{type(error).__name__}: {error}")
                bar.write(f"{fault}: {failures[-1]}")
            bar.update()
        rows.append({"fault": fault, "times": len(tests), "survived": len(tests) - len(failures),
                     "failures": failures})
    return rows


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    settings, start = vars(parser.parse_args(argv)), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        drill = Drill(folder, random.Random(settings["seed"]))
        plans = plan(drill, settings["kills"])
        with tqdm(total=sum(len(tests) for _, tests in plans), unit="fault") as bar:
            rows = run(plans, bar)
    print(results.table(["fault", "times", "survived"],
                        [[row["fault"], row["times"], row["survived"]] for row in rows]))
    print(f"{drill.resumed} times a run went on from a saved state")
    results.write_result(ROOT / "results" / "drill.json", settings, rows=rows,
                         resumed=drill.resumed, wall_seconds=time.monotonic() - start)
    return any(row["failures"] for row in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
