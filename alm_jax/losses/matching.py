"""Audio-text matching: does this text describe this audio? With hard negatives.

The pairs come from embeddings (`matching_pairs`), a cross-encoder gives each pair a logit, and `audio_text_matching`
is the loss of the logits. Since mining needs only embeddings, whose gradient it never takes, micro-batches accumulate
exactly: embed the batch in pieces, mine once, encode the pairs in pieces.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alm_jax.losses.classification import binary_cross_entropy
from alm_jax.losses.sums import MASKED_LOGIT

_FLOOR = 1e-4
"""Added to every candidate's probability by ALBEF and BLIP, so that a very sharp softmax still explores."""
_BLOCK_ROWS = 256
"""Rows mined at a time: scores are never all in memory."""


class HardNegatives(NamedTuple):
    """One candidate for each query that is not its own partner, but similar."""

    row: Int[Array, " b"]
    """Row of the candidate in the whole batch."""
    found: Bool[Array, " b"]
    """False where the query is padding, or where only positives and padding were available."""


class MatchingPairs(NamedTuple):
    """Three pairs a row, in three runs of b: the row's own, its audio with a wrong text, its text with a wrong audio.

    Indices are rows of the whole batch.
    """

    audio_index: Int[Array, " n"]
    text_index: Int[Array, " n"]
    is_match: Bool[Array, " n"]
    mask: Bool[Array, " n"]
    """True where the pair counts."""


def mine_hard_negatives(
    key: Array,
    query_emb: Float[Array, "b E"],
    candidate_emb: Float[Array, "b E"],
    logit_scale: Float[Array, ""],
    *,
    group: Int[Array, " b"] | None = None,
    mask: Bool[Array, " b"] | None = None,
) -> HardNegatives:
    """Samples a negative for each query, with a probability that grows with similarity: P(j) ~ softmax_j(s q . c_j) +
    1e-4.

    ALBEF (Li et al. 2021, arXiv 2107.07651, section 3.2) and BLIP (arXiv 2201.12086): the softmax runs over all
    real candidates, then the query's own and all of its ``group`` (for example captions of one recording) are left
    out. Carries no gradient.

    Every row samples with its own key, so the negatives do not depend on how rows are placed on devices.
    """
    num_rows = query_emb.shape[0]
    mask = jnp.ones(num_rows, bool) if mask is None else mask
    rows = jnp.arange(num_rows)
    group = rows if group is None else group

    def clean(emb: Array) -> Array:
        return lax.stop_gradient(jnp.where(mask[:, None], emb, 0).astype(jnp.float32))

    candidates = clean(candidate_emb)
    scale = lax.stop_gradient(logit_scale.astype(jnp.float32))

    def draw(query: Array, row: Array, own_group: Array) -> tuple[Array, Array]:
        similarity = scale * jnp.dot(candidates, query, precision=lax.Precision.HIGHEST)
        allowed = mask & (group != own_group)
        return _draw(jax.random.fold_in(key, row), similarity, mask, allowed)

    inputs = (clean(query_emb), rows, group)
    index, found = lax.map(lambda row: draw(*row), inputs, batch_size=min(_BLOCK_ROWS, num_rows))
    return HardNegatives(index, found & mask)


def draw_hard_negatives(
    key: Array,
    scores: Float[Array, "B B"],
    *,
    group: Int[Array, " B"] | None = None,
    mask: Bool[Array, " B"] | None = None,
) -> HardNegatives:
    """`mine_hard_negatives` for scores, queries by rows, that are not products of two embeddings: s sim(q, c)."""
    rows = jnp.arange(scores.shape[0])
    mask = jnp.ones(scores.shape[0], bool) if mask is None else mask
    group = rows if group is None else group
    scores = lax.stop_gradient(scores.astype(jnp.float32))
    allowed = mask[None, :] & (group[:, None] != group[None, :])
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
    index, found = jax.vmap(_draw, in_axes=(0, 0, None, 0))(keys, scores, mask, allowed)
    return HardNegatives(index, found & mask)


def _draw(
    key: Array, scores: Float[Array, " c"], real: Bool[Array, " c"], allowed: Bool[Array, " c"]
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """Samples one of the ``allowed`` candidates of a query, and returns whether there is any."""
    probability = jax.nn.softmax(jnp.where(real, scores, MASKED_LOGIT))
    noise = jax.random.gumbel(key, scores.shape)
    score = jnp.where(allowed, jnp.log(probability + _FLOOR) + noise, -jnp.inf)
    return jnp.argmax(score).astype(jnp.int32), jnp.any(allowed)


def matching_pairs(
    key: Array,
    audio_emb: Float[Array, "b E"],
    text_emb: Float[Array, "b E"],
    logit_scale: Float[Array, ""],
    *,
    group: Int[Array, " b"] | None = None,
    mask: Bool[Array, " b"] | None = None,
) -> MatchingPairs:
    """Makes the pairs of each row for `audio_text_matching`: one true, two with hard negatives
    (`mine_hard_negatives`)."""
    num_rows = audio_emb.shape[0]
    mask = jnp.ones(num_rows, bool) if mask is None else mask
    rows = jnp.arange(num_rows, dtype=jnp.int32)
    key_text, key_audio = jax.random.split(key)
    text = mine_hard_negatives(key_text, audio_emb, text_emb, logit_scale, group=group, mask=mask)
    audio = mine_hard_negatives(key_audio, text_emb, audio_emb, logit_scale, group=group, mask=mask)
    return _join(rows, mask, text, audio)


def matching_pairs_by_scores(
    key: Array,
    scores: Float[Array, "B B"],
    *,
    group: Int[Array, " B"] | None = None,
    mask: Bool[Array, " B"] | None = None,
) -> MatchingPairs:
    """Makes `matching_pairs` from scores, audio rows by text columns (`draw_hard_negatives`)."""
    mask = jnp.ones(scores.shape[0], bool) if mask is None else mask
    key_text, key_audio = jax.random.split(key)
    text = draw_hard_negatives(key_text, scores, group=group, mask=mask)
    audio = draw_hard_negatives(key_audio, scores.T, group=group, mask=mask)
    return _join(jnp.arange(scores.shape[0], dtype=jnp.int32), mask, text, audio)


def _join(
    rows: Int[Array, " b"], mask: Bool[Array, " b"], text: HardNegatives, audio: HardNegatives
) -> MatchingPairs:
    return MatchingPairs(
        audio_index=jnp.concatenate([rows, rows, audio.row]),
        text_index=jnp.concatenate([rows, text.row, rows]),
        is_match=jnp.arange(3 * len(rows)) < len(rows),
        mask=jnp.concatenate([mask, text.found, audio.found]),
    )


def audio_text_matching(
    logits: Float[Array, " n"], is_match: Bool[Array, " n"], *, mask: Bool[Array, " n"] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """-(p log S + (1 - p) log (1 - S)), S = sigmoid(logits), p = 1 where the pair matches; as (sum, weight).

    The survey's L_mat (arXiv 2501.15177, "Discriminative Objectives"; it prints the negative), over the pairs with
    a True ``mask``, in float32. A head of two logits, as ALBEF and BLIP have, with softmax cross-entropy is the
    same loss of the difference ``match - no match``.
    """
    targets = is_match.astype(jnp.float32)[:, None]
    return binary_cross_entropy(logits[:, None], targets, mask=mask)
