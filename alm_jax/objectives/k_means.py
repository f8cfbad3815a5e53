"""K-means over frames. Needs scikit-learn (extra ``eval``)."""

import numpy as np
from jaxtyping import Float

from alm_jax.errors import DataError

BATCH_SIZE = 10000
"""Frames of a step of k-means, as HuBERT's."""
NUM_STARTS = 5
"""Draws of initial centroids, of which the best is kept; HuBERT's 20 take longer."""
MAX_EPOCHS = 100
"""Passes over the frames, at most."""


def fit_clusters(
    frames: Float[np.ndarray, "n D"], num_units: int, *, seed: int
) -> dict[str, Float[np.ndarray, "..."]]:
    """``mean`` and ``deviation`` [D] of the frames, and ``centroids`` [units D] of what is left; float32.

    Mini-batch k-means from k-means++ (Sculley 2010, https://doi.org/10.1145/1772690.1772862), with HuBERT's settings
    but for the number of starts. The same frames and seed give the same centroids on the same machine.

    Raises:
        DataError: there are fewer frames than units.
    """
    from sklearn.cluster import MiniBatchKMeans

    if len(frames) < num_units:
        raise DataError(
            f"{len(frames)} frames cannot be the centres of {num_units} units: give more clips "
            "(objective.model.units.num_fit_clips), or make fewer units"
        )
    frames = frames.astype(np.float64)
    mean, deviation = frames.mean(axis=0), frames.std(axis=0)
    # A dimension that never changes separates nothing.
    deviation = np.where(deviation > 0, deviation, 1.0)
    standard = (frames - mean) / deviation
    fitted = MiniBatchKMeans(
        num_units,
        init="k-means++",
        max_iter=MAX_EPOCHS,
        batch_size=BATCH_SIZE,
        tol=0.0,
        max_no_improvement=100,
        n_init=NUM_STARTS,
        reassignment_ratio=0.0,
        random_state=seed,
    ).fit(standard)
    found = {"mean": mean, "deviation": deviation, "centroids": fitted.cluster_centers_}
    return {name: value.astype(np.float32) for name, value in found.items()}
