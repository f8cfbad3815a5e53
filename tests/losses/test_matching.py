"""Matching: the loss against PyTorch, the mined negatives against the distribution that they are drawn from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alm_jax.losses.matching import audio_text_matching, matching_pairs, mine_hard_negatives

EMBED_DIM = 8
MINE = jax.jit(mine_hard_negatives)
ALL, OWN = jnp.ones(8, bool), jnp.arange(8)


def embeddings(num_rows: int = 8, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Unit vectors for audio and texts."""
    rows = np.random.default_rng(seed).normal(size=(2, num_rows, EMBED_DIM))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    return jnp.asarray(rows[0], jnp.float32), jnp.asarray(rows[1], jnp.float32)


def probabilities(audio, text, scale, group, mask) -> np.ndarray:
    """ALBEF's, in float64: softmax over real texts, plus 1e-4, then without one's own group."""
    logits = np.where(mask[None, :], scale * np.asarray(audio, np.float64) @ np.asarray(text).T, -np.inf)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights = weights / weights.sum(1, keepdims=True) + 1e-4
    weights[(group[:, None] == group[None, :]) | ~mask[None, :]] = 0
    return weights / weights.sum(1, keepdims=True)


GROUP = np.array([0, 1, 1, 2, 3, 4, 4, 4])
MASK = np.arange(8) != 3


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, None, None))
def draw(key, audio, text, scale):
    group, mask = jnp.asarray(GROUP), jnp.asarray(MASK)
    return mine_hard_negatives(key, audio, text, scale, group=group, mask=mask)


@pytest.mark.parametrize(("scale", "certain"), [(3.0, False), (1e3, True)], ids=["spread", "certain"])
def test_negatives_are_drawn_from_the_published_distribution(scale, certain):
    """Where the own text takes the whole softmax, the floor alone is left, and the rest are alike."""
    audio, text = embeddings()
    text = audio if certain else text
    want = probabilities(audio, text, scale, GROUP, MASK)[MASK]
    num_draws = 4000
    index, found = draw(jax.random.split(jax.random.key(0), num_draws), audio, text, jnp.float32(scale))
    np.testing.assert_array_equal(found, np.broadcast_to(MASK, (num_draws, 8)))
    counts = np.stack([np.bincount(index[:, row], minlength=8) for row in range(8)])[MASK]
    assert (counts[want == 0] == 0).all()
    # Pearson's statistic: its mean is the number of free cells, its deviation the root of twice that.
    expected = want[want > 0] * num_draws
    statistic = np.sum((counts[want > 0] - expected) ** 2 / expected)
    num_free = np.sum(want > 0) - len(want)
    assert abs(statistic - num_free) < 4 * np.sqrt(2 * num_free)
    # Rows draw independently of one another.
    agreement = np.mean(np.asarray(index)[:, 0] == np.asarray(index)[:, 2])
    assert abs(agreement - np.sum(want[0] * want[2])) < 4 * np.sqrt(0.25 / num_draws)


def test_a_sharp_softmax_finds_the_most_similar_wrong_text():
    audio, _ = embeddings()
    text = jnp.roll(audio, 1, axis=0)  # row i is nearest to text i + 1, and its own text to another
    # All but certain: each of the others keeps the floor of 1e-4.
    index, found = MINE(jax.random.key(0), audio, text, jnp.float32(1e3), group=OWN, mask=ALL)
    np.testing.assert_array_equal(index, (np.arange(8) + 1) % 8)
    assert found.all()


def test_what_cannot_be_mined_is_said():
    audio, text = embeddings()
    key, scale = jax.random.key(0), jnp.float32(1.0)
    alike = MINE(key, audio, text, scale, group=jnp.zeros_like(OWN), mask=ALL)
    alone = MINE(key, audio, text, scale, group=OWN, mask=jnp.arange(8) == 2)
    for negatives in (alike, alone):
        assert not negatives.found.any()
        assert np.isin(np.asarray(negatives.row), np.arange(8)).all()


def test_a_batch_of_one_has_no_negatives():
    audio, text = embeddings(1)
    assert not MINE(jax.random.key(0), audio, text, jnp.float32(1.0)).found.any()


def test_padding_may_hold_anything_and_no_gradient_flows():
    audio, text = embeddings()
    mask = jnp.asarray(MASK)
    spoilt = jnp.where(mask[:, None], audio, jnp.nan), jnp.where(mask[:, None], text, jnp.inf)
    key, scale = jax.random.key(0), jnp.float32(5.0)
    want = MINE(key, audio, text, scale, group=OWN, mask=mask)
    got = MINE(key, *spoilt, scale, group=OWN, mask=mask)
    np.testing.assert_array_equal(got.row[MASK], want.row[MASK])
    np.testing.assert_array_equal(got.found, MASK)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def differentiate(audio, text, scale):
        return jnp.sum(mine_hard_negatives(key, audio, text, scale).row.astype(jnp.float32))

    for grad in differentiate(audio, text, scale):
        np.testing.assert_array_equal(grad, np.zeros(grad.shape))


def test_mining_takes_memory_linear_in_the_batch():
    key = jax.eval_shape(lambda: jax.random.key(0))

    def temp_bytes(num_rows: int) -> int:
        rows = jax.ShapeDtypeStruct((num_rows, EMBED_DIM), jnp.bfloat16)
        compiled = MINE.lower(key, rows, rows, jax.ShapeDtypeStruct((), jnp.float32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temp_bytes(2048), temp_bytes(4096)
    assert large <= 2.05 * small
    assert large < 4096 * 4096 * 4 / 2


NUM_ROWS = 272  # a whole block on one device, and a rest


@functools.cache
def place(num_devices: int):
    """The pairs of a batch, its rows on ``num_devices``."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",), axis_types=(AxisType.Auto,))

    def pairs(key, audio, text, scale, group, mask):
        return matching_pairs(key, audio, text, scale, group=group, mask=mask)

    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    return jax.jit(pairs, in_shardings=(whole, rows, rows, whole, rows, rows), out_shardings=whole)


@pytest.mark.parametrize("num_devices", [2, 8])
def test_every_number_of_devices_mines_the_same_pairs(num_devices):
    audio, text = embeddings(NUM_ROWS)
    group = jnp.asarray(np.repeat(np.arange(NUM_ROWS // 2), 2), jnp.int32)
    mask = jnp.arange(NUM_ROWS) != 5
    inputs = (jax.random.key(3), audio, text, jnp.float32(4.0), group, mask)
    alone, together = place(1)(*inputs), place(num_devices)(*inputs)
    for want, got in zip(alone, together, strict=True):
        np.testing.assert_array_equal(got, want)


def test_pairs_are_one_match_and_two_hard_negatives_a_row():
    audio, text = embeddings(NUM_ROWS)
    group, is_real = np.tile(GROUP, NUM_ROWS // 8), np.tile(MASK, NUM_ROWS // 8)
    pairs = place(1)(
        jax.random.key(0), audio, text, jnp.float32(4.0), jnp.asarray(group), jnp.asarray(is_real)
    )
    audio_index, text_index, is_match, mask = map(np.asarray, pairs)
    np.testing.assert_array_equal(is_match, np.arange(3 * NUM_ROWS) < NUM_ROWS)
    np.testing.assert_array_equal(mask, np.tile(is_real, 3))
    np.testing.assert_array_equal(audio_index[: 2 * NUM_ROWS], np.tile(np.arange(NUM_ROWS), 2))
    np.testing.assert_array_equal(text_index[:NUM_ROWS], np.arange(NUM_ROWS))
    np.testing.assert_array_equal(text_index[2 * NUM_ROWS :], np.arange(NUM_ROWS))
    np.testing.assert_array_equal((group[audio_index] == group[text_index])[mask], is_match[mask])
    assert is_real[audio_index[mask]].all()
    assert is_real[text_index[mask]].all()


def test_the_loss_equals_a_head_of_two_logits_in_pytorch():
    rng = np.random.default_rng(0)
    two_way = (3 * rng.normal(size=(9, 2))).astype(np.float32)
    is_match, mask = np.arange(9) < 3, np.arange(9) != 4
    leaf = torch.tensor(two_way, dtype=torch.float64, requires_grad=True)
    want = torch.nn.functional.cross_entropy(leaf[torch.tensor(mask)], torch.tensor(is_match[mask]).long())
    want.backward()
    two_way[4] = np.nan

    def mean(logits):
        difference = logits[:, 1] - logits[:, 0]
        total, weight = audio_text_matching(difference, jnp.asarray(is_match), mask=jnp.asarray(mask))
        return total / weight

    value, grad = jax.jit(jax.value_and_grad(mean))(two_way)
    np.testing.assert_allclose(value, want.item(), rtol=1e-6)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-5, atol=1e-7)
