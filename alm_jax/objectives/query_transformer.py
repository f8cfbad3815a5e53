"""A Q-Former trained by three targets at once: contrast, matching and generation.

The first stage of BLIP-2 (Li et al. 2023, https://arxiv.org/abs/2301.12597, section 3.2, and its code) on audio; MINT
(https://arxiv.org/abs/2402.07485) has the same three.

- Contrast: the similarity of a clip and a text is that of the nearest query; queries and text do not see each other.
- Matching: three pairs a row, the true one and two with negatives mined by that similarity; queries and text see each
  other. The pairs couple the rows and want a second pass of the Q-Former, which is ``combine``'s: the audio tower's
  states come to it as ``encode``'s outputs, so that micro-batches stay exact, whether the tower trains or not.
- Generation: a text is written after the queries; it sees them and what was written, and they do not see it.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax import batch as contract
from alm_jax.encoders import tower
from alm_jax.errors import UserError
from alm_jax.figures import Figure
from alm_jax.losses.contrastive import temperature
from alm_jax.losses.language_modeling import next_token_loss
from alm_jax.losses.late_interaction import max_similarity, max_similarity_infonce
from alm_jax.losses.matching import audio_text_matching, matching_pairs_by_scores
from alm_jax.models import audio_q_former
from alm_jax.models.audio_q_former import AudioQFormerConfig, EncodedAudio, Read
from alm_jax.models.capabilities import AudioStates
from alm_jax.objectives.contrastive_losses import GROUP_KEYS
from alm_jax.objectives.microbatches import check_microbatches
from alm_jax.objectives.objective import (
    LOGIT_SCALE,
    LOSS,
    DataFacts,
    Inputs,
    Loss,
    Objective,
    ObjectiveConfig,
    loss_figure,
)
from alm_jax.objectives.recordings import Clips, WaveformAugmentConfig, embed_chunks, one_clip
from alm_jax.objectives.weighted_sum import add_means
from alm_jax.types import Metrics, Params

TAU_BOUNDS = (1e-4, 10.0)
"""BLIP-2 lets the temperature free; these only keep it positive."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryTransformerConfig(ObjectiveConfig):
    """An audio tower and a Q-Former, trained by contrast, matching and generation, which count alike."""

    model: AudioQFormerConfig
    """Front-end, audio tower and Q-Former."""
    group: Literal["recording", "label"] = "recording"
    """Rows of a group are positives of each other in contrast and no negatives in matching: those of one recording, or
    of one class (rows without a class are alone)."""
    label_smoothing: float = 0.1
    """Label smoothing: fraction of the target that is spread evenly over the candidates (contrast) or the words
    (generation)."""
    augment: WaveformAugmentConfig = WaveformAugmentConfig()
    """Waveform augmentation; SpecAugment belongs to the audio tower."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"label_smoothing is {self.label_smoothing}; expected a share from 0 to below 1, such as 0.1"
            )

    @property
    def num_words(self) -> int:
        """Tokens of texts that the model has entries for."""
        return self.model.vocab_size

    def build(self) -> Objective:
        """The objective as pure functions."""
        return build_query_transformer(self)


class Rows(NamedTuple):
    """Rows of the objective's inputs."""

    clips: Clips
    text_ids: Int[Array, "B L"]
    text_mask: Bool[Array, "B L"]


class Outputs(NamedTuple):
    """What comes of each row by itself."""

    read: Read
    audio_states: Float[Array, "B N A"]
    audio_mask: Bool[Array, "B N"]
    """True where a state is of real audio."""


def group_rows(group: Literal["recording", "label"], batch: dict[str, Any]) -> Int[Array, " B"]:
    """A number for each row, equal where rows are of one group; a row that has none is alone."""
    found = batch[GROUP_KEYS[group]]
    rows = jnp.arange(len(found), dtype=found.dtype)
    return jnp.where(found < 0, -1 - rows, found)


def matching_loss(
    config: QueryTransformerConfig,
    params: Params,
    outputs: Outputs,
    batch: dict[str, Any],
    group: Int[Array, " B"],
    scale: Float[Array, ""],
    key: Any,
) -> tuple[Loss, Loss]:
    """The loss of three pairs a row, and how many of them are judged rightly.

    Negatives are mined among the rows of the batch; without a key the same each time, and without dropout.
    """
    keys: Any = (jax.random.key(0), None) if key is None else jax.random.split(key)
    key_draw, key_dropout = keys
    similarity = max_similarity(outputs.read.query_emb, outputs.read.text_emb)
    pairs = matching_pairs_by_scores(key_draw, scale * similarity, group=group, mask=batch[contract.MASK])

    def take(x: Array, index: Array) -> Array:
        return jnp.take(x, index, axis=0, mode="clip")

    logits = audio_q_former.match(
        config.model,
        params,
        EncodedAudio(
            take(outputs.audio_states, pairs.audio_index), take(outputs.audio_mask, pairs.audio_index)
        ),
        take(batch[contract.TEXT_IDS], pairs.text_index),
        take(batch[contract.TEXT_MASK], pairs.text_index),
        train=key is not None,
        key=key_dropout,
    )
    loss = Loss(*audio_text_matching(logits, pairs.is_match, mask=pairs.mask))
    right = jnp.sum(((logits > 0) == pairs.is_match) & pairs.mask, dtype=jnp.float32)
    return loss, Loss(right, loss.weight)


FIGURES = (
    LOSS,
    loss_figure("contrastive_loss", "contrastive loss"),
    loss_figure("matching_loss", "matching loss"),
    loss_figure("generation_loss", "loss of generated words"),
    Figure(name="matching_accuracy", label="pairs judged rightly", is_share=True, is_higher_better=True),
    LOGIT_SCALE,
)
"""What training records."""


@dataclasses.dataclass(frozen=True)
class AudioQFormer:
    """What a Q-Former can do: embed recordings by several vectors each, embed texts, and match both."""

    config: AudioQFormerConfig

    def encode(self, variables: dict[str, Any], clips: Clips) -> EncodedAudio:
        """The audio tower's states of clips."""
        return audio_q_former.encode_audio(self.config, variables, clips.features, clips.frame_mask)[0]

    @functools.partial(jax.jit, static_argnums=0)
    def embed_audio(self, variables: dict[str, Any], batch: dict[str, Array]) -> Float[Array, "B K E"]:
        """An L2-normalised vector of each query."""
        config = self.config

        def encode(clips: Clips) -> Array:
            return audio_q_former.embed_audio(config, variables["params"], self.encode(variables, clips))

        return embed_chunks(encode, config.frontend, batch, padding=config.padding, is_unit=True)

    @functools.partial(jax.jit, static_argnums=0)
    def embed_text(
        self, variables: dict[str, Any], ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B E"]:
        """The L2-normalised vector of each text."""
        return audio_q_former.embed_text(self.config, variables["params"], ids, mask)

    @functools.partial(jax.jit, static_argnums=0)
    def encode_states(self, variables: dict[str, Any], batch: dict[str, Array]) -> AudioStates:
        """The audio tower's states of one clip of each recording, float32."""
        config = self.config
        encoded = self.encode(variables, one_clip(config.frontend, batch, padding=config.padding))
        return AudioStates(encoded.states.astype(jnp.float32), encoded.mask)

    @functools.partial(jax.jit, static_argnums=0)
    def match(
        self, variables: dict[str, Any], audio: AudioStates, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, " B"]:
        """The logit that each text belongs to the recording in its row."""
        encoded = EncodedAudio(audio.states, audio.mask)
        return audio_q_former.match(self.config, variables["params"], encoded, ids, mask)


def build_query_transformer(config: QueryTransformerConfig) -> Objective:
    """The objective as pure functions."""
    model = config.model

    def prepare(batch: dict[str, Any], key: Any, *, train: bool) -> Inputs:
        moments = None
        clips = one_clip(
            model.frontend, batch, padding=model.padding, train=train, key=key, augment=config.augment
        )
        if train:
            moments = tower.batch_moments(model.audio, clips.features, batch[contract.MASK])
        return Inputs(Rows(clips, batch[contract.TEXT_IDS], batch[contract.TEXT_MASK]), moments)

    def encode(variables: dict[str, Any], inputs: Inputs, key: Any, *, train: bool) -> tuple[Outputs, Params]:
        rows: Rows = inputs.rows
        key_audio, key_read = jax.random.split(key) if train else (None, None)
        encoded, batch_stats = audio_q_former.encode_audio(
            model,
            variables,
            rows.clips.features,
            rows.clips.frame_mask,
            train=train,
            key=key_audio,
            moments=inputs.shared,
        )
        read = audio_q_former.read(
            model, variables["params"], encoded, rows.text_ids, rows.text_mask, train=train, key=key_read
        )
        return Outputs(read, encoded.states, encoded.mask), batch_stats

    def combine(params: Params, outputs: Outputs, batch: dict[str, Any], key: Any) -> tuple[Loss, Metrics]:
        real, group = batch[contract.MASK], group_rows(config.group, batch)
        scale = temperature.inverse_tau(params["tau"])
        contrast = max_similarity_infonce(
            outputs.read.query_emb,
            outputs.read.text_emb,
            scale,
            group=group,
            mask=real,
            label_smoothing=config.label_smoothing,
        )
        matching, right = matching_loss(config, params, outputs, batch, group, scale, key)
        generation = next_token_loss(
            outputs.read.written,
            params["text_embed"]["token_embed"]["embedding"],
            batch[contract.TEXT_IDS],
            mask=batch[contract.TEXT_MASK] & real[:, None],
            bias=params["lm_head"]["bias"],
            tied=True,
            label_smoothing=config.label_smoothing,
        )
        losses = {
            "contrastive_loss": Loss(*contrast),
            "matching_loss": matching,
            "generation_loss": Loss(*generation),
        }
        total = add_means(losses, dict.fromkeys(losses, 1.0), real)
        return total, {
            **losses,
            "matching_accuracy": right,
            "logit_scale": Loss(scale * total.weight, total.weight),
        }

    def project(params: Params) -> Params:
        return {**params, "tau": temperature.clamp_tau(params["tau"], *TAU_BOUNDS)}

    def check(facts: DataFacts) -> None:
        check_microbatches(model.audio, facts.num_microbatches)
        if facts.vocab_size > model.vocab_size:
            raise UserError(
                f"the tokenizer has {facts.vocab_size} tokens, the Q-Former embeds {model.vocab_size}: raise "
                "objective.model.vocab_size or lower data.tokenizer.vocab_size"
            )
        if facts.max_length > model.max_positions:
            raise UserError(
                f"captions are cut to {facts.max_length} tokens, the Q-Former has positions for "
                f"{model.max_positions}: raise objective.model.max_positions or lower data.tokenizer.max_length"
            )
        if facts.prompt_length is not None:
            raise UserError(
                "data.prompt is set, and a Q-Former reads whole captions from their start token on: leave it out"
            )

    return Objective(
        init=lambda key: audio_q_former.AUDIO_Q_FORMER.init(model, key),
        axes=lambda: audio_q_former.AUDIO_Q_FORMER.axes(model),
        prepare=prepare,
        encode=encode,
        combine=combine,
        project=project,
        check=check,
        figures=FIGURES,
        capabilities=lambda tokens: AudioQFormer(model),
    )
