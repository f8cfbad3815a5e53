"""How a contrastive run is checked and measured: retrieval and zero-shot classification by its two towers."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from alm_jax import batch as contract
from alm_jax.encoders.audio.cnn14 import Cnn14Config
from alm_jax.encoders.audio.htsat_fusion import HtsatFusionConfig
from alm_jax.encoders.tower import AudioTowerConfig, text_limits
from alm_jax.errors import UserError
from alm_jax.evaluation.contrastive import EvaluationResult, EvaluationSet
from alm_jax.evaluation.contrastive import evaluate as evaluate_two_towers
from alm_jax.evaluation.encoders import embed_captions, embed_recordings
from alm_jax.objectives import ContrastiveConfig
from alm_jax.objectives.contrastive_losses import Negatives, contrastive_loss, init_scalars
from alm_jax.run.session import Session
from alm_jax.training import sharding
from alm_jax.training.state import TrainState
from data_pipelines.text import encode


def check(session: Session) -> None:
    """Raises UserError where the text tower cannot take the tokenizer's texts, or micro-batches are not exact."""
    check_microbatches(session.model.audio, session.config.training.num_microbatches)
    vocab_size, max_length = text_limits(session.model.text)
    tokenizer, length = session.data.tokenizer, session.config.data.tokenizer.max_length
    if tokenizer.get_vocab_size() > vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the text tower embeds {vocab_size}: "
            "raise objective.model.text.vocab_size or lower data.tokenizer.vocab_size"
        )
    if max_length is not None and length > max_length:
        raise UserError(
            f"captions are cut to {length} tokens, the text tower takes {max_length}: "
            "raise objective.model.text.max_positions or lower data.tokenizer.max_length"
        )


def check_microbatches(audio: AudioTowerConfig, num_microbatches: int) -> None:
    """Raises UserError where a tower's own batch norms would see a micro-batch and the whole batch is meant."""
    if num_microbatches > 1 and isinstance(audio, Cnn14Config | HtsatFusionConfig):
        raise UserError(
            f"training.num_microbatches is {num_microbatches}, and the batch norms inside {type(audio).__name__} would "
            "normalise by a micro-batch instead of the batch: set it to 1, or choose another audio tower"
        )


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
