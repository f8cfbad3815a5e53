"""The one rule by which every metric here ranks, ties included."""

import numpy as np
from jaxtyping import Float, Int

from alm_jax.errors import DataError


def stable_ranks(scores: Float[np.ndarray, "Q G"], target: Int[np.ndarray, " Q"]) -> Int[np.ndarray, " Q"]:
    """0-based rank of each query's ``target`` in its row of ``scores``, the highest score first.

    Ties stand in index order, as in a stable descending sort: the rank is the number of candidates that
    score strictly more, plus the number of equal ones with a smaller index. So a model that gives every
    candidate the same score gets each rank once over the targets, which is chance, and never a perfect
    score, as counting the strictly larger ones alone would give it.
    """
    own = np.take_along_axis(scores, target[:, None], axis=1)
    earlier = np.arange(scores.shape[1])[None, :] < target[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def require_finite(array: np.ndarray, what: str) -> None:
    """Raises DataError where ``array`` is not finite; compared with NaN, anything would rank first."""
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise DataError(
            f"{bad:,} of {array.size:,} values of the {what} are not finite, and nothing ranks by them. "
            "Has training diverged? See the loss in metrics.jsonl, and evaluate an earlier checkpoint"
        )
