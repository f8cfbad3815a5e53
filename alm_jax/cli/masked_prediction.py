"""How a run of masked prediction is measured and shown: loss, labels in use, linear probe, and pictures."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax import batch as contract
from alm_jax.cli.bands import band_centres_hz
from alm_jax.cli.linear_probe import probe_encoder
from alm_jax.cli.run_page import write_run_page
from alm_jax.evaluation.patch_labels import label_figures
from alm_jax.evaluation.pictures import draw_labels
from alm_jax.models.label_predictor import LABEL_PREDICTOR
from alm_jax.run.session import Session
from alm_jax.training import sharding
from alm_jax.training.state import TrainState

NUM_PICTURES = 6
"""Clips that are shown with their labels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelResult:
    """Figures of one evaluation."""

    metrics: dict[str, float | int]
    """Flat: ``n``, ``validation/...``, ``labels/...``, and where clips have classes ``linear_probe/...``."""


def evaluate(session: Session, state: TrainState, split: str) -> LabelResult:
    """Measures the state (averaged parameters where there are any) on a split; the same on every process."""
    return measure(session, state, split, init=functools.partial(LABEL_PREDICTOR.init, session.model))


def measure(
    session: Session, state: TrainState, split: str, *, init: Callable[[Any], dict[str, Any]]
) -> LabelResult:
    """The figures of the labels and of the encoder, beside one as ``init`` draws it."""
    variables = session.replicate(state.evaluation_variables)
    figures = label_figures(session.objective, variables, session.evaluation_batches(split), session.place)
    probed = probe_encoder(
        session,
        state,
        split,
        embed=session.objective.capabilities(session.facts.tokens).embed_audio,
        init=init,
    )
    return LabelResult(metrics={"n": len(session.data.split(split)), **figures, **probed})


def write_run_report(workdir: Path, session: Session, state: TrainState, result: LabelResult) -> None:
    """Writes a run's last figures and its report page."""
    write_label_page(workdir, session, state, result)


def write_label_page(workdir: Path, session: Session, state: TrainState, result: LabelResult) -> None:
    """The page with pictures of some clips from all over the evaluation split."""
    split, frontend = session.config.data.eval_split, session.model.frontend
    ids = session.data.split(split).ids
    shown = np.unique(np.linspace(0, len(ids) - 1, NUM_PICTURES).astype(int))
    variables = jax.tree.map(sharding.fetch, session.model_variables(state))
    pictures: dict[str, bytes] = {}
    for batch in session.evaluation_batches(split):
        wanted = np.flatnonzero(np.isin(batch[contract.INDEX], shown))
        if not len(wanted):
            continue
        rows = {key: np.array(value[wanted]) for key, value in batch.items()}
        model = session.objective.capabilities(session.facts.tokens)
        maps = jax.tree.map(np.asarray, model.label_patches(variables, jax.tree.map(jnp.asarray, rows)))
        for row, index in enumerate(rows[contract.INDEX]):
            name = ids[int(index)]
            clip: list[Any] = [None if x is None else x[row] for x in maps]
            pictures[name] = draw_labels(
                *clip,
                title=name,
                frame_sec=frontend.hop_samples / frontend.sample_rate_hz,
                mel_frequencies_hz=band_centres_hz(frontend),
            )
    write_run_page(workdir, session, state, result.metrics, labels=pictures)
