"""Taking turns, and the memory of a process: against what was done."""

import numpy as np
import pytest

from alm_jax.bench.resident import growth_of
from alm_jax.bench.timing import Timing, take_turns
from alm_jax.errors import UserError

MEBIBYTE = 2**20


def allocate(mebibytes: int, kept: int):
    """For ``growth_of``: the inputs exist before, the scratch only while it runs."""
    inputs = np.ones(kept * MEBIBYTE, np.uint8)
    # What was needed to prepare is no part of the run.
    np.ones(3 * mebibytes * MEBIBYTE, np.uint8)

    def run() -> int:
        return int(np.ones(mebibytes * MEBIBYTE, np.uint8)[-1]) + int(inputs[0])

    return run


def fail():
    raise RuntimeError("no such thing")


def test_candidates_take_turns():
    order = []
    timings = take_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warmups=1
    )
    assert order == ["a", "b"] * 4
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]
    assert all(seconds >= 0 for seconds in timings["a"].cpu_seconds)
    with pytest.raises(ValueError, match="at least 1"):
        take_turns({}, repeats=0)


def test_figures_of_a_timing():
    timing = Timing((3.0, 1.0, 2.0, 6.0), (0.0,) * 4)
    assert (timing.min, timing.median, timing.spread) == (1.0, 2.5, 5.0)
    assert timing.ratios(Timing((6.0, 1.0, 1.0, 3.0), (0.0,) * 4)) == (2.0, 1.0, 0.5, 0.5)


def test_memory_is_that_of_the_run_alone():
    growth = growth_of("tests.bench.test_timing:allocate", mebibytes=96, kept=64)
    # The kernel's count lags by some pages.
    assert 95 * MEBIBYTE <= growth < 104 * MEBIBYTE


def test_a_failure_is_told():
    with pytest.raises(UserError, match="no such thing"):
        growth_of("tests.bench.test_timing:fail")
