"""How a masked-spectrogram run is checked, measured and shown: loss, linear probe, and pictures of what it draws."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alm_jax import batch as contract
from alm_jax.cli.bands import band_centres_hz
from alm_jax.cli.run_page import write_run_page
from alm_jax.cli.session import Session
from alm_jax.evaluation.embed import embed_audio
from alm_jax.evaluation.linear_probe import linear_probe_accuracy
from alm_jax.evaluation.masked_spectrogram import draw, embed_clips, probe_classes
from alm_jax.evaluation.pictures import draw_reconstruction
from alm_jax.evaluation.validation_loss import validation_loss
from alm_jax.models.masked_autoencoder import init_masked_autoencoder
from alm_jax.objectives import MaskedSpectrogramConfig
from alm_jax.training import sharding
from alm_jax.training.state import TrainState

NUM_PICTURES = 6
"""Clips that are shown with their reconstruction."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedSpectrogramResult:
    """Figures of one evaluation."""

    metrics: dict[str, float | int]
    """Flat: ``n``, ``validation/loss``, and where clips have classes ``linear_probe/...``."""


def check(session: Session) -> None:
    """Finds out now, and not after training, that scikit-learn is missing."""
    import sklearn.linear_model  # noqa: F401


def evaluate(session: Session, state: TrainState, split: str) -> MaskedSpectrogramResult:
    """Measures the state (averaged parameters where there are any) on a split; the same on every process.

    The linear probe is fitted on the training split's clips, whose labels training does not see, and is compared with
    the same probe on the encoder as it was drawn from the seed.
    """
    variables = session.replicate(state.evaluation_variables)
    batches = session.evaluation_batches
    loss = validation_loss(session.objective, variables, batches(split), session.place)

    def embed(variables: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
        def encode(batch: Any) -> np.ndarray:
            placed = session.place(
                {key: np.asarray(batch[key]) for key in (contract.AUDIO, contract.AUDIO_NUM_SAMPLES)}
            )
            return sharding.fetch(embed_clips(session.model, variables, placed))

        feat, _, labels = embed_audio(encode, batches(name))
        return feat, labels

    def probe(variables: dict[str, Any]) -> float | None:
        train_feat, train_labels = embed(variables, session.config.data.train_split)
        test_feat, test_labels = embed(variables, split)
        if not probe_classes(train_labels, test_labels):
            return None
        return linear_probe_accuracy(train_feat, train_labels, test_feat, test_labels)

    metrics: dict[str, float | int] = {"n": len(session.data.split(split)), "validation/loss": loss}
    accuracy = probe(session.replicate(session.model_variables(state)))
    if accuracy is not None:
        # As training/state.py draws it.
        key, _ = jax.random.split(jax.random.key(session.config.seed))
        whole = sharding.replicated(session.mesh)
        untrained = jax.jit(lambda key: init_masked_autoencoder(session.model, key), out_shardings=whole)(key)
        random_accuracy = probe(untrained)
        assert random_accuracy is not None
        metrics |= {
            "linear_probe/accuracy": accuracy,
            "linear_probe/random_accuracy": random_accuracy,
            "linear_probe/chance": 1 / len(session.data.class_names),
        }
    return MaskedSpectrogramResult(metrics=metrics)


def write_run_report(
    workdir: Path, session: Session, state: TrainState, result: MaskedSpectrogramResult
) -> None:
    """Writes a run's last figures and its report page."""
    pictures = draw_clips(session, state, session.config.data.eval_split)
    write_run_page(workdir, session, state, result.metrics, reconstructions=pictures)


def draw_clips(session: Session, state: TrainState, split: str) -> dict[str, bytes]:
    """Pictures of some clips from all over a split, by their ids."""
    objective = session.config.objective
    assert isinstance(objective, MaskedSpectrogramConfig)
    frontend, ids = session.model.frontend, session.data.split(split).ids
    shown = np.unique(np.linspace(0, len(ids) - 1, NUM_PICTURES).astype(int))
    variables = jax.tree.map(sharding.fetch, session.model_variables(state))
    pictures: dict[str, bytes] = {}
    for batch in session.evaluation_batches(split):
        wanted = np.flatnonzero(np.isin(batch[contract.INDEX], shown))
        if not len(wanted):
            continue
        rows = {key: np.array(value[wanted]) for key, value in batch.items()}
        for row, maps in enumerate(zip(*draw(objective, variables, rows), strict=True)):
            name = ids[int(rows[contract.INDEX][row])]
            pictures[name] = draw_reconstruction(
                *maps,
                title=name,
                frame_sec=frontend.hop_samples / frontend.sample_rate_hz,
                mel_frequencies_hz=band_centres_hz(frontend),
            )
    return pictures
