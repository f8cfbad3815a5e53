"""Evaluation of a two-tower model on one split: validation loss, retrieval, zero-shot classification."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from alm_jax import batch as contract
from alm_jax.evaluation.config import EvaluationConfig
from alm_jax.evaluation.embed import Batch, embed_audio, embed_text
from alm_jax.evaluation.metrics.retrieval import retrieval_metrics_of_embeddings
from alm_jax.evaluation.metrics.zero_shot import (
    build_prompts,
    class_embeddings,
    confusion_matrix,
    zero_shot_metrics,
)
from alm_jax.objectives.contrastive_losses import Negatives

Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
PairLoss = Callable[[jax.Array, jax.Array, Mapping[str, jax.Array], Negatives | None], tuple[Any, Any]]
"""(audio [b E], text [b E], ``mask``, ``index`` and ``label`` of the rows, their negatives) -> (sum, weight)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A split as evaluation sees it."""

    batches: Callable[[], Iterable[Batch]]
    """Its recordings in order, in batches of one shape, the last one padded."""
    captions: Sequence[Sequence[str]]
    """The captions of each recording, one or more."""
    negatives: Sequence[Sequence[str]]
    """Wrong captions of each recording that its loss reads; all empty where it reads none."""
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
    loss: PairLoss,
    data: EvaluationSet,
    config: EvaluationConfig,
    *,
    loss_batch_size: int,
) -> EvaluationResult:
    """Embeds the split once and measures everything on it.

    Args:
        encode_audio: a batch -> embeddings [B E]; encode_text: ids and mask [b L] -> embeddings [b E].
        loss: the one that is trained; the validation loss is its mean.
        loss_batch_size: pairs that compete in the validation loss; training's batch size, so that the two
            losses compare.
    """
    audio_emb, indices, labels = embed_audio(encode_audio, data.batches())
    captions = [caption for group in data.captions for caption in group]
    owner = np.repeat(np.arange(len(data.captions)), [len(group) for group in data.captions])

    def embed(texts: Sequence[str]) -> np.ndarray:
        return embed_text(encode_text, *data.tokenize(texts), config.batch_size)

    caption_emb = embed(captions)
    first_caption = caption_emb[np.searchsorted(owner, np.arange(len(audio_emb)))]
    metrics: dict[str, float | int] = {
        "n": len(audio_emb),
        "validation/loss": validation_loss(
            loss,
            audio_emb,
            first_caption,
            {contract.INDEX: indices, contract.LABEL: labels},
            embed_negatives(embed, data.negatives),
            loss_batch_size,
        ),
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


def embed_negatives(
    embed: Callable[[Sequence[str]], np.ndarray], negatives: Sequence[Sequence[str]]
) -> Negatives | None:
    """The wrong captions of N recordings, [N K E] and their mask; None where no recording has one."""
    most = max(map(len, negatives), default=0)
    if most == 0:
        return None
    mask = np.array([[place < len(texts) for place in range(most)] for texts in negatives])
    found = embed([text for texts in negatives for text in texts])
    emb = np.zeros((*mask.shape, found.shape[1]), np.float32)
    emb[mask] = found
    return Negatives(jnp.asarray(emb), jnp.asarray(mask))


def validation_loss(
    loss: PairLoss,
    audio_emb: Float[np.ndarray, "N E"],
    text_emb: Float[np.ndarray, "N E"],
    rows: Mapping[str, np.ndarray],
    negatives: Negatives | None,
    batch_size: int,
) -> float:
    """Mean of ``loss`` over the pairs, ``batch_size`` at a time in their order; ``rows`` has their index and label."""
    total = weight = 0.0
    for start in range(0, len(audio_emb), batch_size):
        part = slice(start, start + batch_size)
        batch = {key: jnp.asarray(value[part]) for key, value in rows.items()}
        batch[contract.MASK] = jnp.ones(len(audio_emb[part]), bool)
        own = None if negatives is None else Negatives(negatives.emb[part], negatives.mask[part])
        found = loss(jnp.asarray(audio_emb[part]), jnp.asarray(text_emb[part]), batch, own)
        total, weight = total + float(found[0]), weight + float(found[1])
    return total / weight
