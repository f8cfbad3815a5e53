"""Compaction and runs against Python loops."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.ops.compaction import compact, first_of_runs, plan_compaction


@pytest.mark.parametrize("length", [5, 12, 30])
def test_entries_that_count_come_first_in_their_order(length):
    rng = np.random.default_rng(length)
    x = rng.integers(1, 100, (20, 17)).astype(np.int32)
    mask = rng.random((20, 17)) < rng.random((20, 1))
    mask[0], mask[1] = False, True
    plan = plan_compaction(jnp.asarray(mask), length)
    found = np.asarray(compact(jnp.asarray(x), plan))
    for row in range(20):
        expected = x[row][mask[row]][:length]
        np.testing.assert_array_equal(found[row], np.pad(expected, (0, length - len(expected))))
        np.testing.assert_array_equal(plan.mask[row], np.arange(length) < len(expected))


def test_a_run_is_said_once():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 3, (10, 15)).astype(np.int32)
    lengths = np.r_[0, 15, rng.integers(0, 16, 8)]
    keep = np.asarray(first_of_runs(jnp.asarray(ids), jnp.asarray(np.arange(15) < lengths[:, None])))
    for row, length in enumerate(lengths):
        assert ids[row][keep[row]].tolist() == [unit for unit, _ in itertools.groupby(ids[row, :length])]
