"""Pictures of what a run's model draws of clips from all over a split."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alm_jax import batch as contract
from alm_jax.cli.bands import band_centres_hz
from alm_jax.evaluation.masked_spectrogram import Reconstruction
from alm_jax.evaluation.pictures import draw_reconstruction
from alm_jax.ops.frontends import FrontendSpec
from alm_jax.run.session import Session
from alm_jax.training import sharding

NUM_PICTURES = 6
"""Clips that are shown with their reconstruction."""


def draw_pictures(
    session: Session,
    draw: Callable[[dict[str, Any], dict[str, np.ndarray]], Reconstruction],
    variables: dict[str, Any],
    frontend: FrontendSpec,
    split: str,
) -> dict[str, bytes]:
    """Pictures by the ids of their clips; ``draw`` takes the model's variables and rows of a batch."""
    ids = session.data.split(split).ids
    shown = np.unique(np.linspace(0, len(ids) - 1, NUM_PICTURES).astype(int))
    variables = jax.tree.map(sharding.fetch, variables)
    pictures: dict[str, bytes] = {}
    for batch in session.evaluation_batches(split):
        wanted = np.flatnonzero(np.isin(batch[contract.INDEX], shown))
        if not len(wanted):
            continue
        rows = {key: np.array(value[wanted]) for key, value in batch.items()}
        for row, maps in enumerate(zip(*draw(variables, rows), strict=True)):
            name = ids[int(rows[contract.INDEX][row])]
            pictures[name] = draw_reconstruction(
                *maps,
                title=name,
                frame_sec=frontend.hop_samples / frontend.sample_rate_hz,
                mel_frequencies_hz=band_centres_hz(frontend),
            )
    return pictures
