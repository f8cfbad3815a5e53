"""Evaluation of a Q-Former: similarities by its queries, and the first candidates ranked again by its match head.

Re-ranking as in BLIP-2 (Li et al. 2023, https://arxiv.org/abs/2301.12597, section 4.4): of each query the candidates
that are nearest are scored by their similarity plus the logit of a match, and stand before all others.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from alm_jax.evaluation.metrics.retrieval import retrieval_metrics


def similarity_of(
    query_emb: Float[np.ndarray, "N K E"], text_emb: Float[np.ndarray, "M E"]
) -> Float[np.ndarray, "N M"]:
    """max_k q_ik . t_j, audio rows by text columns, a clip at a time."""
    return np.stack([np.max(clip @ text_emb.T, axis=0) for clip in query_emb])


def rerank(
    similarity: Float[np.ndarray, "N M"],
    match: Callable[[np.ndarray, np.ndarray], np.ndarray],
    num_candidates: int,
) -> tuple[Float[np.ndarray, "N M"], Float[np.ndarray, "N M"]]:
    """Scores of the texts of each audio (rows), and of the audios of each text (columns).

    The ``num_candidates`` that are nearest have the sum of similarity and logit, and all others less than any of these,
    in their order.

    Args:
        match: rows of audios and of texts [P] -> the logits of these pairs.
    """
    to_text, to_audio = (_nearest(x, num_candidates) for x in (similarity, similarity.T))
    to_audio = to_audio.T
    rows, columns = np.nonzero(to_text | to_audio)
    scores = np.zeros(similarity.shape, np.float32)
    scores[rows, columns] = match(rows, columns) + similarity[rows, columns]
    # Cosines lie within one of 0.
    behind = similarity + scores.min(initial=0.0) - 3.0
    return np.where(to_text, scores, behind), np.where(to_audio, scores, behind)


def reranked_metrics(
    to_text: Float[np.ndarray, "N M"],
    to_audio: Float[np.ndarray, "N M"],
    caption_owner: Int[np.ndarray, " M"],
) -> dict[str, float | int]:
    """Retrieval by `rerank`'s scores: ``reranked/...``, as `retrieval_metrics` has ``retrieval/...``."""
    metrics: dict[str, float | int] = {}
    for way, scores in (("text_to_audio", to_audio), ("audio_to_text", to_text)):
        found = retrieval_metrics(scores, caption_owner)
        start = f"retrieval/{way}/"
        metrics |= {
            name.replace("retrieval/", "reranked/"): value
            for name, value in found.items()
            if name.startswith(start)
        }
    return metrics


def _nearest(similarity: np.ndarray, count: int) -> np.ndarray:
    """True at the ``count`` largest of each row; of equal ones the first."""
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    found = np.zeros(similarity.shape, bool)
    np.put_along_axis(found, order, True, axis=1)
    return found
