"""Retrieval whose first candidates are ranked again by a head that reads audio and text together.

As in BLIP-2 (Li et al. 2023, https://arxiv.org/abs/2301.12597, section 4.4): of each query the candidates that are
nearest are scored by their similarity plus the logit of a match, and stand before all others.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from alm_jax.evaluation.metrics.retrieval import retrieval_metrics


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
    """The figures of `retrieval_metrics` of each way by `rerank`'s scores."""
    metrics: dict[str, float | int] = {}
    for way, scores in (("text_to_audio", to_audio), ("audio_to_text", to_text)):
        found = retrieval_metrics(scores, caption_owner)
        metrics |= {name: value for name, value in found.items() if name.startswith(f"{way}/")}
    return metrics


def _nearest(similarity: np.ndarray, count: int) -> np.ndarray:
    """True at the ``count`` largest of each row; of equal ones the first."""
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    found = np.zeros(similarity.shape, bool)
    np.put_along_axis(found, order, True, axis=1)
    return found
