"""Evaluation of what labels patches, and of what predicts the labels: figures of a split, a vector a clip, and maps."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alm_jax import batch as contract
from alm_jax.evaluation.embed import Batch
from alm_jax.evaluation.metrics.linear_probe import evaluation_crop
from alm_jax.models import distilled_tokenizer, label_predictor
from alm_jax.models.audio_tokenizer import label_patches
from alm_jax.models.distilled_tokenizer import DistilledTokenizerConfig, tokenizer_variables
from alm_jax.models.label_predictor import LabelPredictorConfig, label_clips, predict_labels
from alm_jax.objectives import Objective
from alm_jax.objectives.masked_prediction import MaskedPredictionConfig
from alm_jax.objectives.patch_masks import evaluation_masks
from alm_jax.objectives.recordings import clip_features
from alm_jax.ops.vector_quantization import perplexity


@functools.partial(jax.jit, static_argnums=0)
def embed_clips(
    config: LabelPredictorConfig | DistilledTokenizerConfig,
    variables: dict[str, Any],
    batch: dict[str, Array],
) -> Float[Array, "B D"]:
    """The mean of the encoder's states of all patches of each recording; nothing is hidden."""
    features = clip_features(config.frontend, batch, crop=evaluation_crop(config.frontend))
    if isinstance(config, LabelPredictorConfig):
        return label_predictor.encode_clips(config, variables, features)
    return distilled_tokenizer.encode_clips(config, variables, features)


@functools.partial(jax.jit, static_argnums=0)
def _measure(objective: Objective, variables: dict[str, Any], batch: dict[str, Array]) -> Any:
    """Loss and metrics as sums and weights, and how often each label occurs, of a batch without noise."""
    inputs = objective.prepare(batch, None, train=False)
    outputs, _ = objective.encode(variables, inputs, None, train=False)
    loss, metrics = objective.combine(variables["params"], outputs, batch)
    counts = jnp.sum(jnp.where(batch[contract.MASK][:, None], outputs.counts, 0.0), axis=0)
    return {"loss": loss, **metrics}, counts


def label_figures(
    objective: Objective,
    variables: dict[str, Any],
    batches: Iterable[Batch],
    place: Callable[[dict[str, np.ndarray]], dict[str, Array]],
) -> dict[str, float | int]:
    """Figures of a split, ``validation/...`` of the objective's loss and metrics and ``labels/...`` of the labels.

    ``labels/used`` is how many different ones occur, ``labels/perplexity`` exp of their entropy, and
    ``labels/most_frequent`` the share of the commonest: what one reaches who always says that one.

    ``objective``: one whose outputs have ``counts`` [B V], how often each row has each label.
    """
    sums: dict[str, np.ndarray] = {}
    total: Any = 0.0
    for batch in batches:
        measured, counts = _measure(
            objective, variables, place({key: np.array(value) for key, value in batch.items()})
        )
        for name, (part, weight) in measured.items():
            sums[name] = sums.get(name, np.zeros(2)) + np.array([float(part), float(weight)])
        total = total + np.asarray(counts, np.float64)
    means = {name: float(part / max(weight, 1.0)) for name, (part, weight) in sums.items()}
    # A batch's perplexity says nothing of the split's.
    del means["label_perplexity"]
    return {f"validation/{name}": value for name, value in means.items()} | {
        "labels/used": int(np.sum(total > 0)),
        "labels/perplexity": float(perplexity(jnp.asarray(total, jnp.float32))),
        "labels/most_frequent": float(np.max(total) / max(np.sum(total), 1.0)),
    }


class LabelMaps(NamedTuple):
    """Some clips as maps: of the front-end's features, and of the grid of patches."""

    features: Any
    """[B T F] float32, the input; frames after the last whole patch are left out."""
    labels: Any
    """[B rows columns] int32, the label of each patch."""
    hidden: Any
    """[B rows columns] bool, True where the encoder sees nothing; None of a tokenizer alone."""
    predicted: Any
    """[B rows columns] int32, the likeliest label of each patch; None of a tokenizer alone."""


def draw_label_maps(
    config: MaskedPredictionConfig | DistilledTokenizerConfig,
    variables: dict[str, Any],
    batch: Mapping[str, np.ndarray],
) -> LabelMaps:
    """The maps of a batch's recordings, with the masks of the validation loss."""
    keys = contract.AUDIO, contract.AUDIO_NUM_SAMPLES, contract.INDEX
    placed = {key: jnp.asarray(batch[key]) for key in keys}
    return jax.tree.map(np.asarray, _maps(config, variables, placed))


@functools.partial(jax.jit, static_argnums=0)
def _maps(
    config: MaskedPredictionConfig | DistilledTokenizerConfig,
    variables: dict[str, Any],
    batch: dict[str, Array],
) -> LabelMaps:
    more: tuple[Array | None, Array | None] = None, None
    model = config.model if isinstance(config, MaskedPredictionConfig) else config
    features, grid = clip_features(model.frontend, batch), model.grid

    def lay(x: Array) -> Array:
        return x.reshape(-1, *grid)

    if isinstance(config, MaskedPredictionConfig):
        size = config.model.encoder.patch_size
        masked = evaluation_masks(config.mask, grid, batch[contract.INDEX])
        labels = label_clips(config.model, variables, features)
        predicted = jnp.argmax(predict_labels(config.model, variables, features, masked), axis=-1)
        more = lay(masked.hidden), lay(predicted)
    else:
        size = config.tokenizer.encoder.patch_size
        own = tokenizer_variables(variables)
        dtype = jnp.dtype(config.compute_dtype)
        labels = label_patches(config.tokenizer, own, features, size, dtype=dtype)
    return LabelMaps(features[:, : grid[0] * size], lay(labels), *more)
