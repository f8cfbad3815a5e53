"""What sequences of audio units look like."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def describe_units(units: Sequence[Int[np.ndarray, "_"]], num_units: int) -> dict[str, float | int]:
    """Of the units of some clips: how many a clip has, how many different ones there are, and their perplexity.

    Perplexity is exp of the entropy of how often each unit is said: ``num_units`` where all are equally.
    """
    said = np.concatenate([np.zeros(0, np.int32), *units])
    share = np.bincount(said, minlength=num_units) / max(len(said), 1)
    entropy = -np.sum(share[share > 0] * np.log(share[share > 0]))
    return {
        "units/per_clip": len(said) / max(len(units), 1),
        "units/used": int(np.count_nonzero(share)),
        "units/perplexity": float(np.exp(entropy)),
    }
