"""How a contrastive run is measured: retrieval and zero-shot classification by its two towers."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from alm_jax import batch as contract
from alm_jax.evaluation.contrastive import EvaluationResult, EvaluationSet
from alm_jax.evaluation.contrastive import evaluate as evaluate_two_towers
from alm_jax.evaluation.encoders import embed_captions, embed_recordings
from alm_jax.objectives.contrastive import ContrastiveConfig
from alm_jax.objectives.contrastive_losses import Negatives, contrastive_loss, init_scalars
from alm_jax.run.session import Session
from alm_jax.training import sharding
from alm_jax.training.state import TrainState
from data_pipelines.text import encode


def evaluation_set(session: Session, name: str) -> EvaluationSet:
    """A split of the data as evaluation sees it."""
    split, data = session.data.split(name), session.config.data
    return EvaluationSet(
        batches=lambda: session.evaluation_batches(name),
        captions=[split.captions(index) for index in range(len(split))],
        negatives=[texts[: data.num_negatives] for texts in split.all_negatives],
        ids=list(split.ids),
        class_names=session.data.class_names,
        tokenize=lambda texts: encode(session.data.tokenizer, list(texts), data.tokenizer.max_length),
    )


def evaluate(session: Session, state: TrainState, split: str) -> EvaluationResult:
    """Measures the state (averaged parameters where there are any) on a split; the same on every process."""
    variables = session.replicate(session.model_variables(state))
    model = session.model
    assert isinstance(session.config.objective, ContrastiveConfig)
    config = session.config.objective.loss

    def encode_audio(batch: Any) -> np.ndarray:
        placed = session.place(
            {key: np.asarray(batch[key]) for key in (contract.AUDIO, contract.AUDIO_NUM_SAMPLES)}
        )
        return sharding.fetch(embed_recordings(model, variables, placed))

    def encode_text(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        placed = session.place({"ids": ids, "mask": mask})
        return sharding.fetch(embed_captions(model, variables, placed["ids"], placed["mask"]))

    scalars = {name: jnp.asarray(sharding.fetch(variables["params"][name])) for name in init_scalars(config)}

    def loss(audio_emb: Any, text_emb: Any, batch: Any, negatives: Negatives | None) -> tuple[Any, Any]:
        return contrastive_loss(config, scalars, audio_emb, text_emb, batch, negatives=negatives)[0]

    return evaluate_two_towers(
        encode_audio,
        encode_text,
        loss,
        evaluation_set(session, split),
        dataclasses.replace(session.config.evaluation, batch_size=session.eval_batch_size),
        loss_batch_size=session.config.training.batch_size,
    )
