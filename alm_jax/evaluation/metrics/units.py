"""What the discrete units of recordings look like: how many, how different, how evenly used."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def describe_units(units: Sequence[Int[np.ndarray, "_"]], num_units: int) -> dict[str, float | int]:
    """``per_clip``, the mean number of units of a clip; ``used``, how many different ones occur; ``perplexity``.

    Perplexity is exp of the entropy of how often each unit occurs: ``num_units`` where all occur equally often.
    """
    all_units = np.concatenate([np.zeros(0, np.int32), *units])
    counts = np.bincount(all_units, minlength=num_units)
    return {
        "per_clip": len(all_units) / max(len(units), 1),
        "used": int(np.count_nonzero(counts)),
        "perplexity": perplexity(counts),
    }


def perplexity(counts: Int[np.ndarray, " V"]) -> float:
    """exp of the entropy of how often each of V things occurs: V where all occur equally often, 1 where one does."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-np.sum(share * np.log(share))))
