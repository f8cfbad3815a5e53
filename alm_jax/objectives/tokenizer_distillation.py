"""Distillation of an audio tokenizer: codes from which an encoder's states can be estimated.

BEATs (Chen et al. 2022, https://arxiv.org/abs/2212.09058, section 3.1.2 and equation 6): the states of the tokenizer's
encoder are quantised, an estimator makes the teacher's states of the codes, and the loss is the mean over patches of

    1 - cos(estimate, teacher) + beta mean((latent - sg(code))^2),

with all latents and codes of length 1. As printed, the squared distance is a sum over the dimensions; in the released
quantiser, in BEiT v2 and here it is their mean, 256 times less with codes of BEATs' size. The codes follow the latents
without a gradient, by a moving average over all rows of a batch (`alm_jax/ops/vector_quantization.py`). Captions and
labels of clips are not read.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from alm_jax import batch as contract
from alm_jax.errors import UserError
from alm_jax.figures import Figure
from alm_jax.losses.regression import cosine_distance
from alm_jax.models.audio_tokenizer import label_patches, read_codebook
from alm_jax.models.capabilities import LabelMaps
from alm_jax.models.distilled_tokenizer import (
    DISTILLED_TOKENIZER,
    TEACHER,
    DistilledTokenizerConfig,
    encode_clips,
    estimate,
    latents_of,
    quantize,
    teacher_states,
    tokenizer_variables,
)
from alm_jax.models.label_predictor import TOKENIZER
from alm_jax.objectives.frozen_parts import warn_unless_given
from alm_jax.objectives.masked_prediction import LABEL_PERPLEXITY, count_real
from alm_jax.objectives.objective import (
    LOSS,
    DataFacts,
    Inputs,
    Loss,
    Objective,
    ObjectiveConfig,
    loss_figure,
)
from alm_jax.objectives.recordings import Clips, WaveformAugmentConfig, embed_chunks, one_clip
from alm_jax.ops.vector_quantization import count_codes, nearest_codes, perplexity, update_codebook
from alm_jax.types import Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerDistillationConfig(ObjectiveConfig):
    """A tokenizer, trained on the states of a teacher."""

    model: DistilledTokenizerConfig
    """Front-end, tokenizer, teacher and estimator."""
    beta: float = 1.0
    """Weight of the mean square of a latent's difference from its code, which keeps latents close to their codes."""
    codebook_decay: float = 0.99
    """Decay of the moving average by which codes follow latents."""
    revive_below: float = 0.1
    """Usage, as a fraction of the average code's, below which a code is replaced by a latent of the batch."""
    augment: WaveformAugmentConfig = WaveformAugmentConfig()
    """Waveform augmentation; tokenizer and teacher are given the same clip."""

    def __post_init__(self) -> None:
        if not 0 <= self.codebook_decay < 1 or not 0 <= self.revive_below < 1:
            raise UserError(
                f"codebook_decay is {self.codebook_decay} and revive_below {self.revive_below}; expected both in [0, 1)"
            )

    def build(self) -> Objective:
        """The objective as pure functions."""
        return build_tokenizer_distillation(self)


class QuantizedClips(NamedTuple):
    """Losses, labels and latents of each row."""

    distance: Float[Array, " B"]
    """Sum over the patches of 1 - cos(estimate, teacher)."""
    commitment: Float[Array, " B"]
    """Sum over the patches of the mean over dimensions of a latent's squared difference from its code."""
    num_patches: Float[Array, " B"]
    """Number of patches."""
    counts: Float[Array, "B V"]
    """How often each code was taken."""
    latents: Float[Array, "B N code"]
    """What the codes follow; no gradient passes."""


FIGURES = (
    LOSS,
    Figure(
        name="teacher_cosine",
        label="cosine to the teacher",
        panel="Cosine of estimate and teacher",
        series="training",
        is_noisy=True,
        is_higher_better=True,
        is_headline=True,
        is_shown=True,
    ),
    loss_figure("commitment", "squared distance of latents and codes"),
    LABEL_PERPLEXITY,
)
"""What training records."""


@dataclasses.dataclass(frozen=True)
class DistilledTokenizer:
    """What a tokenizer can do: embed recordings by its encoder, and label their patches."""

    config: DistilledTokenizerConfig

    @functools.partial(jax.jit, static_argnums=0)
    def embed_audio(self, variables: dict[str, Any], batch: dict[str, Array]) -> Float[Array, "B D"]:
        """The mean of the states that the tokenizer's encoder makes of all patches of each recording."""

        def encode(clips: Clips) -> Array:
            return encode_clips(self.config, variables, clips.features)

        return embed_chunks(encode, self.config.frontend, batch, padding="unmasked", is_unit=False)

    @functools.partial(jax.jit, static_argnums=0)
    def label_patches(self, variables: dict[str, Any], batch: dict[str, Array]) -> LabelMaps:
        """The labels of each recording."""
        config, grid = self.config, self.config.grid
        features, size = (
            one_clip(config.frontend, batch, padding="unmasked").features,
            config.tokenizer.encoder.patch_size,
        )
        labels = self.label(variables, features)
        return LabelMaps(features[:, : grid[0] * size], labels.reshape(-1, *grid), None, None)

    @functools.partial(jax.jit, static_argnums=0)
    def count_labels(self, variables: dict[str, Any], batch: dict[str, Array]) -> Int[Array, " V"]:
        """How often each label occurs among the patches of the real rows."""
        labels = self.label(variables, one_clip(self.config.frontend, batch, padding="unmasked").features)
        return count_real(labels, batch[contract.MASK], self.config.tokenizer.num_codes)

    def label(self, variables: dict[str, Any], features: Float[Array, "B T F"]) -> Int[Array, "B N"]:
        """The label of each patch of some features."""
        config, own = self.config, tokenizer_variables(variables)
        size, dtype = config.tokenizer.encoder.patch_size, jnp.dtype(config.compute_dtype)
        return label_patches(config.tokenizer, own, features, size, dtype=dtype)


def build_tokenizer_distillation(config: TokenizerDistillationConfig) -> Objective:
    """The objective as pure functions. The teacher does not train; the codes move by `Objective.update_stats`."""
    model = config.model

    def prepare(batch: dict[str, Any], key: Any, *, train: bool) -> Inputs:
        clips = one_clip(
            model.frontend, batch, padding="unmasked", train=train, key=key, augment=config.augment
        )
        return Inputs(clips.features, None)

    def encode(
        variables: dict[str, Any], inputs: Inputs, key: Any, *, train: bool
    ) -> tuple[QuantizedClips, Params]:
        latents = latents_of(model, variables, inputs.rows)
        chosen, codes = quantize(variables, latents)
        target = teacher_states(model, variables, inputs.rows)
        estimated = estimate(model, variables, codes, train=train, key=key if train else None)
        distance, num_patches = cosine_distance(estimated, target, by_row=True)
        commitment = jnp.sum(jnp.mean(jnp.square(latents - chosen), axis=-1), axis=-1)
        vectors = read_codebook(tokenizer_variables(variables)).vectors
        kept = lax.stop_gradient(latents)
        counts = count_codes(nearest_codes(kept, vectors), model.tokenizer.num_codes)
        return QuantizedClips(distance, commitment, num_patches, counts, kept), variables["batch_stats"]

    def combine(
        params: Params, outputs: QuantizedClips, batch: dict[str, Any], key: Any
    ) -> tuple[Loss, Metrics]:
        real = batch[contract.MASK]
        distance, commitment, weight = (jnp.sum(jnp.where(real, x, 0.0)) for x in outputs[:3])
        counts = lax.stop_gradient(jnp.sum(jnp.where(real[:, None], outputs.counts, 0.0), axis=0))
        return Loss(distance + config.beta * commitment, weight), {
            "teacher_cosine": Loss(weight - distance, weight),
            "commitment": Loss(commitment, weight),
            "label_perplexity": Loss(perplexity(counts) * weight, weight),
        }

    def update_stats(
        batch_stats: Params,
        outputs: QuantizedClips,
        batch: dict[str, Any],
        key: Any,
    ) -> Params:
        moved = update_codebook(
            read_codebook({"batch_stats": batch_stats[TOKENIZER]}),
            outputs.latents,
            batch[contract.MASK],
            key,
            decay=config.codebook_decay,
            revive_below=config.revive_below,
        )
        return {**batch_stats, TOKENIZER: {"codebook": moved.vectors, "usage": moved.usage}}

    def trained(params: Params) -> dict[str, Any]:
        return {name: tree for name, tree in params.items() if name != TEACHER}

    def check(facts: DataFacts) -> None:
        warn_unless_given(facts, TEACHER, "the teacher", "alm pretrain of a MaskedPredictionConfig")

    return Objective(
        init=lambda key: DISTILLED_TOKENIZER.init(model, key),
        axes=lambda: DISTILLED_TOKENIZER.axes(model),
        prepare=prepare,
        encode=encode,
        combine=combine,
        update_stats=update_stats,
        project=lambda params: params,
        trained=trained,
        check=check,
        figures=FIGURES,
        capabilities=lambda tokens: DistilledTokenizer(model),
    )
