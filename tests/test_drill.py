"""The fault drill of benchmarks/drill.py, in short."""
import random

import pytest

from benchmarks import drill as faults


@pytest.fixture(scope="module")
def drill(tmp_path_factory):
    return faults.Drill(tmp_path_factory.mktemp("drill"), random.Random(0), [faults.RUN])


def test_a_run_killed_inside_a_save_goes_on_to_the_same_bytes(drill):
    drill.kill(faults.RUN, in_save=True, last=True)


def test_a_full_disk_is_one_line_and_costs_nothing(drill):
    drill.full_disk(faults.RUN, "WEIGHTS/weights*")


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
