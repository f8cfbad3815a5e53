"""Cross-modal retrieval with several captions a clip, as on AudioCaps and Clotho.

N clips, M captions, caption m describing clip ``caption_owner[m]``; R_n captions describe clip n. All ranks
are 0-based and follow ``ranking.stable_ranks``, which defines ties.

- text to audio: each caption is a query over the N clips; r is the rank of its own clip.
  R@k = mean over captions of [r < k]; mAP@10 = mean of [r < 10] / (r + 1), for there is one right answer.
- audio to text: each clip is a query over the M captions; r_1 < r_2 < ... are the ranks of its own.
  R@k = mean over clips of [r_1 < k]; mAP@10 = mean over clips of (1 / R_n) sum_i [r_i < 10] i / (r_i + 1).

Median and mean rank are 1-based, of r and of r_1. Source: the protocol of DCASE's language-based retrieval
and of WavCaps; the ranks are sorted before precision is taken, without which it can pass 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from alm_jax.errors import DataError
from alm_jax.evaluation.metrics.bootstrap import Scores
from alm_jax.evaluation.metrics.ranking import require_finite, stable_ranks

RECALL_AT = (1, 5, 10)
MAP_AT = 10
BLOCK_SCORES = 1 << 22
"""Scores ranked at a time: bounds the memory of the comparisons to some tens of megabytes."""

Rows = Callable[[slice], np.ndarray]
"""A slice of queries -> their scores over all candidates."""


def retrieval_metrics(
    similarity: Float[np.ndarray, "N M"], caption_owner: Int[np.ndarray, " M"]
) -> dict[str, float | int]:
    """R@1, R@5, R@10, mAP@10, median and mean rank, both ways, from a matrix of similarities.

    Args:
      similarity: audio rows by text columns, any scale: only the order counts.
      caption_owner: for each caption, the row of its clip. Every clip has one caption at least.

    Returns:
      A flat dictionary: ``num_clips``, ``num_captions``, ``chance_r@1``
      (1 / N, both ways), and for each of ``text_to_audio`` and ``audio_to_text``
      ``/r@1``, ``/r@5``, ``/r@10``, ``/map@10``, ``/median_rank``, ``/mean_rank``.

    Raises:
      DataError: no clip, a clip without a caption, or similarities that are not finite.
    """
    return rank_similarity(similarity, caption_owner).figures()


class RetrievalRanks(NamedTuple):
    """What every figure of retrieval is made of."""

    num_clips: int
    """N."""
    owner: Int[np.ndarray, " M"]
    """The clip that each caption describes."""
    clip_ranks: Int[np.ndarray, " M"]
    """Text to audio: the rank of each caption's own clip."""
    caption_ranks: Int[np.ndarray, " M"]
    """Audio to text: the rank of each caption for its own clip."""

    @property
    def best_ranks(self) -> Int[np.ndarray, " N"]:
        """Audio to text: the best rank of a caption of each clip."""
        best = np.full(self.num_clips, len(self.owner))
        np.minimum.at(best, self.owner, self.caption_ranks)
        return best

    def figures(self) -> dict[str, float | int]:
        """The dictionary of `retrieval_metrics`."""
        reciprocal = np.where(self.clip_ranks < MAP_AT, 1 / (self.clip_ranks + 1), 0)
        num_own = np.bincount(self.owner, minlength=self.num_clips)
        precision = _average_precision(self.caption_ranks, self.owner, num_own)
        return {
            "num_clips": self.num_clips,
            "num_captions": len(self.owner),
            "chance_r@1": 1.0 / self.num_clips,
            **_summary("text_to_audio", self.clip_ranks, reciprocal),
            **_summary("audio_to_text", self.best_ranks, precision),
        }

    def scores(self) -> dict[str, Scores]:
        """What each R@k is the mean of: right or wrong for every caption, and for every clip."""
        return {
            f"{way}/r@{k}": Scores(np.asarray(ranks < k, np.float64), owner)
            for way, ranks, owner in (
                ("text_to_audio", self.clip_ranks, self.owner),
                ("audio_to_text", self.best_ranks, np.arange(self.num_clips)),
            )
            for k in RECALL_AT
        }


def rank_similarity(
    similarity: Float[np.ndarray, "N M"], caption_owner: Int[np.ndarray, " M"]
) -> RetrievalRanks:
    """The ranks of `retrieval_metrics`, whose arguments and errors it has."""
    num_clips, num_captions = similarity.shape
    require_finite(similarity, "similarity matrix")
    return _rank(num_clips, num_captions, caption_owner, lambda s: similarity[s], lambda s: similarity.T[s])


def rank_embeddings(
    audio_emb: Float[np.ndarray, "N E"],
    text_emb: Float[np.ndarray, "M E"],
    caption_owner: Int[np.ndarray, " M"],
) -> RetrievalRanks:
    """`rank_similarity` of ``audio_emb @ text_emb.T``, which is never held as a whole."""
    require_finite(audio_emb, "audio embeddings")
    require_finite(text_emb, "text embeddings")
    return _rank(
        len(audio_emb),
        len(text_emb),
        caption_owner,
        lambda s: audio_emb[s] @ text_emb.T,
        lambda s: text_emb[s] @ audio_emb.T,
    )


def _rank(
    num_clips: int, num_captions: int, caption_owner: np.ndarray, audio_rows: Rows, text_rows: Rows
) -> RetrievalRanks:
    _require_captions(num_clips, num_captions, caption_owner)
    clip_ranks = _ranks(text_rows, np.arange(num_captions), caption_owner, num_clips)
    # Captions in the order of their clips, so that a block of audio rows is made once for all of them.
    by_clip = np.argsort(caption_owner, kind="stable")
    caption_ranks = np.empty(num_captions, np.int64)
    caption_ranks[by_clip] = _ranks(audio_rows, caption_owner[by_clip], by_clip, num_captions)
    return RetrievalRanks(num_clips, caption_owner, clip_ranks, caption_ranks)


def _require_captions(num_clips: int, num_captions: int, caption_owner: np.ndarray) -> None:
    if num_clips == 0 or num_captions == 0:
        raise DataError(f"retrieval needs clips and captions; got {num_clips} and {num_captions}")
    if caption_owner.min() < 0 or caption_owner.max() >= num_clips:
        raise ValueError(f"caption_owner must lie in [0, {num_clips}); got up to {caption_owner.max()}")
    silent = np.setdiff1d(np.arange(num_clips), caption_owner)
    if len(silent):
        raise DataError(
            f"{len(silent)} of {num_clips} clips have no caption (the first is clip {silent[0]}); audio-to-"
            "text retrieval is undefined for them. Leave them out of the evaluation, or caption them"
        )


def _ranks(rows: Rows, query: np.ndarray, target: np.ndarray, num_candidates: int) -> np.ndarray:
    """Rank of candidate ``target[i]`` for ``query[i]``, block by block. ``query`` is sorted."""
    ranks = np.empty(len(query), np.int64)
    block = max(1, BLOCK_SCORES // num_candidates)
    for start in range(0, len(query), block):
        part = slice(start, start + block)
        first, last = query[part][0], query[part][-1]
        scores = rows(slice(first, last + 1))[query[part] - first]
        ranks[part] = stable_ranks(scores, target[part])
    return ranks


def _average_precision(ranks: np.ndarray, owner: np.ndarray, num_own: np.ndarray) -> np.ndarray:
    """Average precision at 10 of each clip, from the ranks of all captions."""
    order = np.lexsort((ranks, owner))
    ranks, owner = ranks[order], owner[order]
    first_of_clip = np.cumsum(num_own) - num_own
    i = np.arange(len(ranks)) - first_of_clip[owner] + 1
    return np.bincount(owner, np.where(ranks < MAP_AT, i / (ranks + 1), 0)) / num_own


def _summary(prefix: str, ranks: np.ndarray, precision: np.ndarray) -> dict[str, float | int]:
    return {
        **{f"{prefix}/r@{k}": float(np.mean(ranks < k)) for k in RECALL_AT},
        f"{prefix}/map@{MAP_AT}": float(np.mean(precision)),
        f"{prefix}/median_rank": float(np.median(ranks) + 1),
        f"{prefix}/mean_rank": float(np.mean(ranks) + 1),
    }
