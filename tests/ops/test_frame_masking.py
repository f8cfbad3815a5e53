"""Spans of masked frames: their number, length and place, and what happens to them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.ops.frame_masking import mask_frame_spans

NUM_ROWS, NUM_FRAMES = 1600, 120
LENGTHS = np.array([120, 100, 67, 20])[np.arange(NUM_ROWS) % 4]
MASK = np.arange(NUM_FRAMES)[None, :] < LENGTHS[:, None]


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """The first bin of a frame says where it stands, the second in which row."""
    frame, row = np.arange(1, NUM_FRAMES + 1)[None, :], np.arange(NUM_ROWS)[:, None]
    return np.stack(np.broadcast_arrays(frame, row), axis=-1).astype(np.float32)


@functools.cache
def draw(span: tuple[int, int], proportion: float = 0.15):
    min_span, max_span = span
    return jax.jit(
        functools.partial(mask_frame_spans, proportion=proportion, min_span=min_span, max_span=max_span)
    )


@pytest.fixture(scope="module")
def masked(features):
    """Spans of exactly five frames."""
    return jax.tree.map(np.asarray, draw((5, 5))(features, MASK, jax.random.key(0)))


def runs(chosen: np.ndarray) -> list[int]:
    """Lengths of the runs of chosen frames of a row."""
    edges = np.flatnonzero(np.diff(np.pad(chosen.astype(int), 1)))
    return (edges[1::2] - edges[::2]).tolist()


def test_as_many_spans_as_published_lie_among_real_frames(masked):
    """int(length * 0.15 / 5) of them, so that overlaps choose less: 3, 3, 2 and 0."""
    for chosen, length in zip(masked.chosen, LENGTHS, strict=True):
        num_spans = int(length * 0.15 / 5)
        assert num_spans <= chosen.sum() <= 5 * num_spans
        assert not chosen[length:].any()
        assert all(run >= 5 for run in runs(chosen))
        assert len(runs(chosen)) <= num_spans
    whole = masked.chosen[LENGTHS == 120].sum(axis=1)
    assert (whole == 15).mean() > 0.6  # three spans of 5 among 116 starts seldom touch
    # The first and the last real frames are reached as well.
    assert masked.chosen[LENGTHS == 67][:, [0, 66]].any(axis=0).all()


def test_rows_are_zeroed_replaced_or_left_alone_in_the_published_shares(masked, features):
    rows = masked.chosen.any(axis=1)
    zeroed = (masked.features == 0).all(axis=2) & masked.chosen
    same = (masked.features == features).all(axis=2)
    np.testing.assert_array_equal(same[~masked.chosen], True)
    is_zero = zeroed.any(axis=1)
    np.testing.assert_array_equal(zeroed[is_zero], masked.chosen[is_zero])
    left_alone = rows & ~is_zero & same.all(axis=1)
    replaced = rows & ~is_zero & ~same.all(axis=1)
    total = rows.sum()
    assert total == 1200
    for count, share in ((is_zero.sum(), 0.8), (left_alone.sum(), 0.1), (replaced.sum(), 0.1)):
        assert abs(count - share * total) < 4 * np.sqrt(total * share * (1 - share))


def test_replaced_spans_are_other_real_spans_of_the_same_row(masked, features):
    same = (masked.features == features).all(axis=2)
    zeroed = ((masked.features == 0).all(axis=2) & masked.chosen).any(axis=1)
    replaced = np.flatnonzero(~same.all(axis=1) & ~zeroed)
    for row in replaced:
        frames = masked.features[row, masked.chosen[row]]
        assert (frames[:, 1] == row).all()
        assert frames[:, 0].min() >= 1
        assert frames[:, 0].max() <= LENGTHS[row]
        if runs(masked.chosen[row]) == [5] * (int(LENGTHS[row] * 0.15) // 5):
            steps = np.diff(frames[:, 0].reshape(-1, 5), axis=1)
            np.testing.assert_array_equal(steps, np.ones_like(steps))


def test_span_lengths_are_drawn_from_their_range(features):
    chosen = np.asarray(draw((4, 9))(features, MASK, jax.random.key(1)).chosen)
    # A row of 67 frames has room for 10: two spans of up to 5, one of 6 to 9.
    single = {max(runs(row)) for row in chosen[LENGTHS == 67] if len(runs(row)) == 1}
    assert {6, 7, 8, 9} <= single
    shortest = {min(runs(row)) for row in chosen[LENGTHS == 120]}
    assert min(shortest) == 4


def test_a_key_is_a_mask(masked, features):
    again = draw((5, 5))(features, MASK, jax.random.key(0))
    np.testing.assert_array_equal(again.chosen, masked.chosen)
    other = draw((5, 5))(features, MASK, jax.random.key(1))
    assert np.any(other.chosen != masked.chosen)
    assert len({row.tobytes() for row in masked.chosen[LENGTHS == 120]}) > 390


def test_every_frame_can_be_chosen(features):
    chosen = draw((1, 1), 1.0)(features, MASK, jax.random.key(0)).chosen
    np.testing.assert_array_equal(chosen, MASK)


@pytest.mark.parametrize(
    "changes", [{"min_span": 0}, {"min_span": 9, "max_span": 8}, {"proportion": 0.0}, {"proportion": 1.1}]
)
def test_spans_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match="proportion in"):
        mask_frame_spans(jnp.zeros((1, 4, 2)), jnp.ones((1, 4), bool), jax.random.key(0), **changes)
