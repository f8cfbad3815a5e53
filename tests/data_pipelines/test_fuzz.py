"""Damaged recordings, tables and tars are read or refused, never a crash, an endless loop or an unclear error."""

import numpy as np
import pytest

from data_pipelines.fuzz import damage, fuzz, fuzz_block, read_input, whole_inputs


def test_whole_inputs_are_read(tmp_path):
    for ending, content in whole_inputs().items():
        read_input(ending, content, tmp_path)


def test_the_same_seed_makes_the_same_inputs():
    whole = whole_inputs()["flac"]
    first, second = (damage(whole, np.random.default_rng([1, 2])) for _ in range(2))
    assert first == second
    assert damage(whole, np.random.default_rng([1, 3])) != first


def test_a_few_hundred_damaged_inputs():
    outcome = fuzz_block(0, 600, seed=1)
    assert outcome.failures == ()
    assert sum(outcome.counts.values()) == 600
    assert outcome.slowest_sec < 5
    kinds = {kind.partition(" ")[0] for kind in outcome.counts if kind.endswith("read")}
    assert len(kinds) >= 10, "nearly every kind is read at times, so the damage is not too much"


@pytest.mark.slow
def test_damaged_inputs_at_length():
    outcomes = list(fuzz(20_000, seed=2))
    assert [failure for outcome in outcomes for failure in outcome.failures] == []
