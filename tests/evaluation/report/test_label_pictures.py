"""Colours tell labels apart, and pictures have them in their places."""

import io

import numpy as np
from matplotlib.image import imread

from alm_jax.evaluation.report.pictures import draw_labels, label_colours


def test_labels_are_told_apart_and_drawn_in_their_places():
    colours = label_colours(np.arange(128).reshape(32, 4)).reshape(-1, 3)
    distance = np.abs(colours[:, None] - colours[None]).max(axis=-1)
    assert distance[~np.eye(128, dtype=bool)].min() > 0.01
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, (4, 2))
    given = {"title": "a", "frame_sec": 0.1, "mel_frequencies_hz": np.linspace(100, 4000, 16)}
    features = rng.normal(size=(32, 16)).astype(np.float32)
    narrow = imread(io.BytesIO(draw_labels(features, labels, **given)))
    wide = imread(io.BytesIO(draw_labels(features, labels, labels > 4, labels, **given)))
    assert wide.shape[1] > 1.8 * narrow.shape[1]
    for label in np.unique(labels):
        wanted = label_colours(np.array([[label]]))[0, 0]
        assert (np.abs(narrow[..., :3] - wanted).max(axis=-1) < 0.01).sum() > 100
