"""The linear probe: how well a logistic regression on frozen features separates the classes."""

import numpy as np
from jaxtyping import Bool, Float, Int

from alm_jax.errors import DataError

MAX_ITERATIONS = 5000


def probe_classes(labels: Int[np.ndarray, " N"], test_labels: Int[np.ndarray, " M"]) -> bool:
    """Whether every clip has a class and the training clips have two: what a linear probe needs."""
    return bool((labels >= 0).all() and (test_labels >= 0).all() and len(np.unique(labels)) > 1)


def linear_probe_hits(
    train_feat: Float[np.ndarray, "N D"],
    train_labels: Int[np.ndarray, " N"],
    test_feat: Float[np.ndarray, "M D"],
    test_labels: Int[np.ndarray, " M"],
) -> Bool[np.ndarray, " M"]:
    """Which test rows a logistic regression, fitted on the training rows, puts in their class.

    scikit-learn's, with its default penalty (C = 1). Features are standardised by the mean and deviation of the
    training rows; one that is constant there is left out. Computed in float64; the same input gives the same figure.

    Raises:
        DataError: the training rows are of fewer than two classes, or a feature is not finite.
    """
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(train_labels)) < 2:
        raise DataError(
            f"a linear probe on {len(train_labels)} clips of {len(np.unique(train_labels))} class(es); it needs two"
        )
    train_feat, test_feat = train_feat.astype(np.float64), test_feat.astype(np.float64)
    if not (np.isfinite(train_feat).all() and np.isfinite(test_feat).all()):
        raise DataError("a linear probe on features that are not finite: has the training diverged?")
    mean, deviation = train_feat.mean(axis=0), train_feat.std(axis=0)
    varies = deviation > 1e-9 * np.abs(mean) + 1e-12
    if not varies.any():
        raise DataError("a linear probe on features that are the same for every clip")

    def standardise(feat: np.ndarray) -> np.ndarray:
        return (feat[:, varies] - mean[varies]) / deviation[varies]

    probe = LogisticRegression(max_iter=MAX_ITERATIONS).fit(standardise(train_feat), train_labels)
    return np.asarray(probe.predict(standardise(test_feat)) == test_labels)
