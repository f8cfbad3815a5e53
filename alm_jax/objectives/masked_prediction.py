"""Masked prediction of discrete labels: hide patches of a spectrogram, and name the tokenizer's labels of them.

BEATs (Chen et al. 2022, https://arxiv.org/abs/2212.09058): the labels are those of a random projection first, then of a
tokenizer that was distilled from the encoder of the iteration before. Captions and labels of clips are not read.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alm_jax import batch as contract
from alm_jax.figures import Figure
from alm_jax.losses.reconstruction import masked_label_prediction
from alm_jax.models.audio_tokenizer import LearnedTokenizerConfig
from alm_jax.models.capabilities import LabelMaps
from alm_jax.models.label_predictor import (
    LABEL_PREDICTOR,
    TOKENIZER,
    LabelPredictorConfig,
    encode_clips,
    label_clips,
    predict_labels,
)
from alm_jax.objectives.frozen_parts import warn_unless_given
from alm_jax.objectives.masked_spectrogram import MaskedClips
from alm_jax.objectives.objective import LOSS, DataFacts, Inputs, Loss, Objective, ObjectiveConfig
from alm_jax.objectives.patch_masks import MaskConfig, UnstructuredMaskConfig, draw_masks, evaluation_masks
from alm_jax.objectives.recordings import Clips, WaveformAugmentConfig, embed_chunks, one_clip
from alm_jax.ops.vector_quantization import count_codes, perplexity
from alm_jax.types import Metrics, Params


def count_real(labels: Int[Array, "B N"], mask: Bool[Array, " B"], num_labels: int) -> Int[Array, " V"]:
    """How often each label occurs in the rows where ``mask`` is True."""
    counts = jnp.where(mask[:, None], count_codes(labels, num_labels), 0)
    return jnp.sum(counts, axis=0).astype(jnp.int32)


LABEL_PERPLEXITY = Figure(
    name="label_perplexity",
    label="perplexity of the labels of a batch",
    panel="Perplexity of the labels",
    series="a training batch",
    is_noisy=True,
    is_of_batch=True,
)
"""exp of the entropy of the labels of a batch: 1 where the tokenizer has collapsed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedPredictionConfig(ObjectiveConfig):
    """An encoder, trained to predict the labels of hidden patches."""

    model: LabelPredictorConfig
    """Front-end, encoder, tokenizer and label predictor."""
    mask: MaskConfig = UnstructuredMaskConfig(ratio=0.75)
    """Which patches are hidden, chosen at random for every clip and step."""
    augment: WaveformAugmentConfig = WaveformAugmentConfig()
    """Waveform augmentation; labels are those of the augmented clip."""

    def __post_init__(self) -> None:
        self.mask.check(self.model.grid)

    def build(self) -> Objective:
        """The objective as pure functions."""
        return build_masked_prediction(self)


class LabelledClips(NamedTuple):
    """Loss, accuracy and labels of each row."""

    sum: Float[Array, " B"]
    """Sum of the losses of the hidden patches."""
    weight: Float[Array, " B"]
    """Number of hidden patches."""
    correct: Float[Array, " B"]
    """Hidden patches whose label is the likeliest one."""
    counts: Float[Array, "B V"]
    """How often each label occurs among all patches: where the tokenizer has collapsed, one has them all."""


FIGURES = (
    LOSS,
    Figure(
        name="masked_accuracy",
        label="labels of hidden patches",
        panel="Labels of hidden patches that are named",
        series="training",
        is_share=True,
        is_noisy=True,
        is_higher_better=True,
        is_headline=True,
        is_shown=True,
    ),
    LABEL_PERPLEXITY,
)
"""What training records."""


@dataclasses.dataclass(frozen=True)
class LabelPredictor:
    """What an encoder that was trained on labels can do: embed recordings, and name the labels of hidden patches."""

    config: MaskedPredictionConfig

    @functools.partial(jax.jit, static_argnums=0)
    def embed_audio(self, variables: dict[str, Any], batch: dict[str, Array]) -> Float[Array, "B D"]:
        """The mean of the encoder's states of all patches of each recording; nothing is hidden."""
        model = self.config.model

        def encode(clips: Clips) -> Array:
            return encode_clips(model, variables, clips.features)

        return embed_chunks(encode, model.frontend, batch, padding="unmasked", is_unit=False)

    @functools.partial(jax.jit, static_argnums=0)
    def label_patches(self, variables: dict[str, Any], batch: dict[str, Array]) -> LabelMaps:
        """Labels and predictions of each recording, with the masks of the validation loss."""
        model = self.config.model
        features, size = (
            one_clip(model.frontend, batch, padding="unmasked").features,
            model.encoder.patch_size,
        )
        masked = evaluation_masks(self.config.mask, model.grid, batch[contract.INDEX])
        predicted = jnp.argmax(predict_labels(model, variables, features, masked), axis=-1)
        labels = label_clips(model, variables, features)
        maps = (x.reshape(-1, *model.grid) for x in (labels, masked.hidden, predicted))
        return LabelMaps(features[:, : model.grid[0] * size], *maps)

    @functools.partial(jax.jit, static_argnums=0)
    def count_labels(self, variables: dict[str, Any], batch: dict[str, Array]) -> Int[Array, " V"]:
        """How often each label occurs among the patches of the real rows."""
        model = self.config.model
        labels = label_clips(model, variables, one_clip(model.frontend, batch, padding="unmasked").features)
        return count_real(labels, batch[contract.MASK], model.tokenizer.num_codes)


def build_masked_prediction(config: MaskedPredictionConfig) -> Objective:
    """The objective as pure functions. The tokenizer does not train."""
    model = config.model

    def prepare(batch: dict[str, Any], key: Any, *, train: bool) -> Inputs:
        keys: Any = jax.random.split(key) if train else (None, None)
        key_mask, key_audio = keys
        clips = one_clip(
            model.frontend, batch, padding="unmasked", train=train, key=key_audio, augment=config.augment
        )
        masked = (
            draw_masks(config.mask, model.grid, jax.random.split(key_mask, len(clips.features)))
            if train
            else evaluation_masks(config.mask, model.grid, batch[contract.INDEX])
        )
        return Inputs(MaskedClips(clips.features, masked), None)

    def encode(
        variables: dict[str, Any], inputs: Inputs, key: Any, *, train: bool
    ) -> tuple[LabelledClips, Params]:
        clips: MaskedClips = inputs.rows
        labels = label_clips(model, variables, clips.features)
        logits = predict_labels(
            model, variables, clips.features, clips.masked, train=train, key=key if train else None
        )
        hidden = clips.masked.hidden
        loss, weight = masked_label_prediction(logits, labels, hidden, by_row=True)
        correct = jnp.sum((jnp.argmax(logits, axis=-1) == labels) & hidden, axis=-1, dtype=jnp.float32)
        counts = count_codes(labels, model.tokenizer.num_codes)
        return LabelledClips(loss, weight, correct, counts), variables["batch_stats"]

    def combine(
        params: Params, outputs: LabelledClips, batch: dict[str, Any], key: Any
    ) -> tuple[Loss, Metrics]:
        real = batch[contract.MASK]
        total, weight, correct = (jnp.sum(jnp.where(real, x, 0.0)) for x in outputs[:3])
        counts = jnp.sum(jnp.where(real[:, None], outputs.counts, 0.0), axis=0)
        return Loss(total, weight), {
            "masked_accuracy": Loss(correct, weight),
            "label_perplexity": Loss(perplexity(lax.stop_gradient(counts)) * weight, weight),
        }

    def trained(params: Params) -> dict[str, Any]:
        return {name: tree for name, tree in params.items() if name != TOKENIZER}

    def check(facts: DataFacts) -> None:
        if isinstance(model.tokenizer, LearnedTokenizerConfig):
            origin = "alm pretrain of a TokenizerDistillationConfig"
            warn_unless_given(facts, TOKENIZER, "the tokenizer", origin)

    return Objective(
        init=lambda key: LABEL_PREDICTOR.init(model, key),
        axes=lambda: LABEL_PREDICTOR.axes(model),
        prepare=prepare,
        encode=encode,
        combine=combine,
        project=lambda params: params,
        trained=trained,
        check=check,
        figures=FIGURES,
        capabilities=lambda tokens: LabelPredictor(config),
    )
