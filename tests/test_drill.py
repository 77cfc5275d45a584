"""The fault drill of benchmarks/drill.py, in short."""
import random

import pytest

from benchmarks import drill as faults


@pytest.fixture(scope="module")
def drill(tmp_path_factory):
    return faults.Drill(tmp_path_factory.mktemp("drill"), random.Random(0), [faults.RUN])


@pytest.mark.parametrize("in_save", [False, True])
def test_a_killed_run_goes_on_to_the_same_bytes(drill, in_save):
    drill.kill(faults.RUN, in_save, last=True)


@pytest.mark.parametrize("pattern", ["state*.npz", "WEIGHTS/weights*"])
def test_a_full_disk_is_one_line_and_costs_nothing(drill, pattern):
    drill.full_disk(faults.RUN, pattern)


def test_a_lost_folder_is_one_line_and_costs_nothing(drill):
    drill.lost_folder(faults.RUN, "WEIGHTS")


def test_a_rate_that_blows_up_saves_nothing(drill):
    drill.blow_up(quantized=False)


def test_a_drill_notices_what_is_left_over_or_lost(drill):
    """The judge itself: a temporary file, other weights and a missing result are each found."""
    for spoil in (lambda home: (home.folder / "WEIGHTS" / ".x.tmp").touch(),
                  lambda home: (home.folder / "WEIGHTS" / "weights_int8.npz").write_bytes(b""),
                  lambda home: (home.folder / "RESULTS" / "train.json").unlink()):
        home = drill.home(faults.RUN)
        with pytest.raises(faults.Failed, match="missing, left over or different"):
            spoil(home)
            drill.is_complete(home)
