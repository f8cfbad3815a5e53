"""Packing against Python loops, with lengths drawn at random."""

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.ops.packing import cut_to_budget, pack, plan_packing, same_segment, segment_mean, unpack

LENGTHS = np.random.default_rng(0).integers(1, 30, (200, 3))


def test_rows_are_cut_to_the_largest_common_length_that_fits():
    budget = 40
    cut = np.asarray(cut_to_budget(jnp.asarray(LENGTHS), budget))
    is_over = LENGTHS.sum(axis=1) > budget
    assert 20 < is_over.sum() < 180
    for before, after in zip(LENGTHS, cut, strict=True):
        cap = max(c for c in range(1, budget + 1) if np.minimum(before, c).sum() <= budget)
        np.testing.assert_array_equal(after, np.minimum(before, cap))
    assert (cut.sum(axis=1)[is_over] > budget - 3).all()


def test_clips_lie_one_after_another_and_come_back():
    rng = np.random.default_rng(1)
    lengths, budget = LENGTHS[:8] % 7 + 1, 24
    x = rng.normal(size=(8, 3, 9, 2, 5)).astype(np.float32)
    packing = plan_packing(jnp.asarray(lengths), budget)
    packed = np.asarray(pack(jnp.asarray(x), packing))
    for row in range(8):
        expected = np.concatenate([x[row, k, : lengths[row, k]] for k in range(3)])
        np.testing.assert_array_equal(packed[row, : len(expected)], expected)
        np.testing.assert_array_equal(packed[row, len(expected) :], 0.0)
        owner = np.repeat(np.arange(3), lengths[row])
        np.testing.assert_array_equal(
            packing.segment[row], np.pad(owner, (0, 24 - len(owner)), constant_values=3)
        )
    there = np.arange(9) < lengths[:, :, None]
    back = unpack(jnp.asarray(packed), packing, 3, 9)
    np.testing.assert_array_equal(back, np.where(there[..., None, None], x, 0))
    mean = segment_mean(jnp.asarray(packed[:, :, 0]), packing.segment, 3)
    expected = [[x[row, k, : lengths[row, k], 0].mean(axis=0) for k in range(3)] for row in range(8)]
    np.testing.assert_allclose(mean, expected, atol=1e-6)


def test_no_token_sees_another_clip():
    packing = plan_packing(jnp.asarray([[2, 1]]), 4)
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(same_segment(packing.segment)[0], np.array(expected, bool))


def test_the_plan_compiles_once_for_all_lengths():
    plan = jax.jit(plan_packing, static_argnums=1)
    for lengths in LENGTHS[:4]:
        plan(jnp.asarray(lengths[None] % 8 + 1), 24)
    assert plan._cache_size() == 1
