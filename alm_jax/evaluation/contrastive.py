"""Evaluation of a two-tower model on one split: validation loss, retrieval, zero-shot classification."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from alm_jax.evaluation.config import EvaluationConfig
from alm_jax.evaluation.embed import Batch, embed_audio, embed_text
from alm_jax.evaluation.retrieval import retrieval_metrics_of_embeddings
from alm_jax.evaluation.zero_shot import build_prompts, class_embeddings, confusion_matrix, zero_shot_metrics
from alm_jax.losses.contrastive import symmetric_infonce

Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A split as evaluation sees it."""

    batches: Callable[[], Iterable[Batch]]
    """Its recordings in order, in batches of one shape, the last one padded."""
    captions: Sequence[Sequence[str]]
    """The captions of each recording, one or more."""
    ids: Sequence[str]
    """The name of each recording."""
    class_names: Sequence[str]
    """Names of the classes that labels count; empty where the set has none."""
    tokenize: Tokenize
    """Captions -> ids [M L] and mask [M L]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Figures, and what a report draws."""

    metrics: dict[str, float | int]
    """Flat: ``n``, ``validation/loss``, ``retrieval/...``, ``zero_shot/...``."""
    audio_emb: np.ndarray
    """[N E]"""
    caption_emb: np.ndarray
    """[M E], all captions, recording after recording."""
    caption_owner: np.ndarray
    """[M] position of each caption's recording."""
    confusion: np.ndarray | None
    """[C C] true class by predicted class, where there are classes."""


def evaluate(
    encode_audio: Callable[[Batch], np.ndarray],
    encode_text: Callable[[np.ndarray, np.ndarray], np.ndarray],
    logit_scale: float,
    data: EvaluationSet,
    config: EvaluationConfig,
    *,
    loss_batch_size: int,
) -> EvaluationResult:
    """Embeds the split once and measures everything on it.

    Args:
        encode_audio: a batch -> embeddings [B E]; encode_text: ids and mask [b L] -> embeddings [b E].
        logit_scale: the model's multiplier, for the validation loss.
        loss_batch_size: pairs that compete in the validation loss; training's batch size, so that the two
            losses compare.
    """
    audio_emb, _, labels = embed_audio(encode_audio, data.batches())
    captions = [caption for group in data.captions for caption in group]
    owner = np.repeat(np.arange(len(data.captions)), [len(group) for group in data.captions])

    def embed(texts: Sequence[str]) -> np.ndarray:
        return embed_text(encode_text, *data.tokenize(texts), config.batch_size)

    caption_emb = embed(captions)
    first_caption = caption_emb[np.searchsorted(owner, np.arange(len(audio_emb)))]
    metrics: dict[str, float | int] = {
        "n": len(audio_emb),
        "validation/loss": validation_loss(audio_emb, first_caption, logit_scale, loss_batch_size),
    }
    metrics |= retrieval_metrics_of_embeddings(audio_emb, caption_emb, owner)
    confusion = None
    if data.class_names and (labels >= 0).all():
        prompts = build_prompts(data.class_names, config.templates)
        class_emb = class_embeddings(embed(prompts), len(data.class_names))
        metrics |= zero_shot_metrics(audio_emb, class_emb, labels, data.class_names)
        confusion = confusion_matrix(audio_emb, class_emb, labels)
    return EvaluationResult(
        metrics=metrics,
        audio_emb=audio_emb,
        caption_emb=caption_emb,
        caption_owner=owner,
        confusion=confusion,
    )


def validation_loss(
    audio_emb: np.ndarray, text_emb: np.ndarray, logit_scale: float, batch_size: int
) -> float:
    """Mean symmetric InfoNCE of the pairs, ``batch_size`` at a time in their order."""
    total = weight = 0.0
    for start in range(0, len(audio_emb), batch_size):
        rows = slice(start, start + batch_size)
        loss = symmetric_infonce(
            jnp.asarray(audio_emb[rows]), jnp.asarray(text_emb[rows]), jnp.float32(logit_scale)
        )
        total, weight = total + float(loss[0]), weight + float(loss[1])
    return total / weight
