"""How a CALM-style run is measured and shown: zero-shot, retrieval, and what a modality gives to the other."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from alm_jax import batch as contract
from alm_jax.cli.reconstructions import draw_pictures
from alm_jax.cli.run_page import write_run_page
from alm_jax.cli.two_towers import evaluation_set
from alm_jax.evaluation.calm import draw
from alm_jax.evaluation.contrastive import EvaluationResult
from alm_jax.evaluation.contrastive import evaluate as evaluate_embeddings
from alm_jax.evaluation.means import split_means
from alm_jax.evaluation.validation_loss import validation_loss
from alm_jax.objectives.calm import CalmConfig, OneHead, measure_masked
from alm_jax.objectives.contrastive_losses import contrastive_loss, init_scalars
from alm_jax.run.session import Session
from alm_jax.training import sharding
from alm_jax.training.state import TrainState


def evaluate(session: Session, state: TrainState, split: str) -> EvaluationResult:
    """Measures the state (averaged parameters where there are any) on a split; the same on every process.

    ``validation/loss`` is the objective's, of batches of evaluation; ``contrastive/loss`` is one of batches as large as
    training's.
    """
    config = _config(session)
    model = OneHead(config)
    variables = session.replicate(session.model_variables(state))
    batches = functools.partial(session.evaluation_batches, split)

    def encode_audio(batch: Any) -> np.ndarray:
        keys = (contract.AUDIO, contract.AUDIO_NUM_SAMPLES)
        placed = session.place({key: np.asarray(batch[key]) for key in keys})
        return sharding.fetch(model.embed_audio(variables, placed))

    def encode_text(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        placed = session.place({"ids": ids, "mask": mask})
        return sharding.fetch(model.embed_text(variables, placed["ids"], placed["mask"]))

    params = variables["params"]
    scalars = {name: jnp.asarray(sharding.fetch(params[name])) for name in init_scalars(config.contrastive)}

    def loss(audio_emb: Any, text_emb: Any, batch: Any, negatives: Any) -> tuple[Any, Any]:
        return contrastive_loss(config.contrastive, scalars, audio_emb, text_emb, batch)[0]

    aligned = evaluate_embeddings(
        encode_audio,
        encode_text,
        loss,
        evaluation_set(session, split),
        dataclasses.replace(session.config.evaluation, batch_size=session.eval_batch_size),
        loss_batch_size=session.config.training.batch_size,
    )
    metrics = dict(aligned.metrics)
    metrics["contrastive/loss"] = metrics.pop("validation/loss")
    metrics["validation/loss"] = validation_loss(
        session.objective, session.replicate(state.evaluation_variables), batches(), session.place
    )
    metrics |= split_means(functools.partial(measure_masked, config, variables), batches(), session.place)
    return dataclasses.replace(aligned, metrics=metrics)


def write_run_report(workdir: Path, session: Session, state: TrainState, result: EvaluationResult) -> None:
    """Writes a run's last figures and its report page."""
    config, split = _config(session), session.config.data.eval_split
    pictures = draw_pictures(
        session,
        functools.partial(draw, config),
        session.model_variables(state),
        config.model.frontend,
        split,
    )
    write_run_page(
        workdir,
        session,
        state,
        result.metrics,
        reconstructions=pictures,
        confusion=result.confusion,
        class_names=session.data.class_names,
    )


def _config(session: Session) -> CalmConfig:
    assert isinstance(session.config.objective, CalmConfig)
    return session.config.objective
