"""Figures and pictures of labels: a split's, not its batches'; colours that tell labels apart."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread

from alm_jax.evaluation.patch_labels import label_figures
from alm_jax.evaluation.pictures import draw_labels, label_colours
from alm_jax.objectives.objective import Inputs, Loss, Objective


def test_figures_are_those_of_the_whole_split():
    """Batches of 2 and 1 real rows, with weights 1 and 3; the padding row has labels of its own."""

    def combine(params, outputs, batch):
        weight = batch["weight"].sum(where=batch["mask"])
        correct = (batch["weight"] * batch["right"]).sum(where=batch["mask"])
        loss = Loss(2.0 * weight, weight)
        return loss, {"masked_accuracy": Loss(correct, weight), "label_perplexity": Loss(weight, weight)}

    objective = Objective(
        init=dict,
        axes=dict,
        prepare=lambda batch, key, *, train: Inputs(batch, None),
        encode=lambda variables, inputs, key, *, train: (SimpleNamespace(counts=inputs.rows["counts"]), {}),
        combine=combine,
        project=dict,
    )
    counts = np.array([[4, 0, 0, 0], [0, 4, 0, 0], [2, 2, 0, 0], [0, 0, 0, 4]], np.float32)
    rows = {
        "mask": np.array([True, True, True, False]),
        "weight": np.array([1.0, 1.0, 3.0, 9.0], np.float32),
        "right": np.array([1.0, 0.0, 1.0, 0.0], np.float32),
        "counts": counts,
    }
    batches = [{name: value[i : i + 2] for name, value in rows.items()} for i in (0, 2)]
    figures = label_figures(objective, {"params": {}}, batches, lambda batch: batch)
    assert figures.pop("labels/perplexity") == pytest.approx(2.0)
    assert figures == {
        "validation/loss": 2.0,
        "validation/masked_accuracy": pytest.approx(0.8),
        "labels/used": 2,
        "labels/most_frequent": 0.5,
    }


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
