"""Contrastive language-audio pre-training: two towers under a loss over all pairs of the batch.

Source: the survey's L_con (arXiv 2501.15177); CLAP (arXiv 2206.04769, 2211.06687).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax import batch as contract
from alm_jax.encoders import tower
from alm_jax.encoders.families import family_of
from alm_jax.encoders.tower import text_limits
from alm_jax.errors import UserError
from alm_jax.figures import Figure
from alm_jax.models import two_towers
from alm_jax.objectives.contrastive_losses import (
    HardNegativesConfig,
    InfoNceConfig,
    LossConfig,
    Negatives,
    check_negatives,
    contrastive_loss,
    init_scalars,
    project_scalars,
)
from alm_jax.objectives.microbatches import check_microbatches
from alm_jax.objectives.objective import (
    LOGIT_SCALE,
    LOSS,
    DataFacts,
    Inputs,
    Loss,
    Objective,
    ObjectiveConfig,
    PairLoss,
)
from alm_jax.objectives.recordings import Clips, WaveformAugmentConfig, embed_chunks, one_clip
from alm_jax.types import Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(ObjectiveConfig):
    """Two towers, aligned by a contrastive loss."""

    model: two_towers.TwoTowersConfig
    """The two towers and their front-end."""
    augment: WaveformAugmentConfig = WaveformAugmentConfig()
    """Waveform augmentation; SpecAugment belongs to the audio encoder."""
    loss: LossConfig = InfoNceConfig()
    """The loss, and how it is computed."""

    @property
    def num_words(self) -> int:
        """Tokens of texts that the model has entries for."""
        return text_limits(self.model.text)[0]

    @property
    def follows_batch(self) -> bool:
        """Whether a step of shorter recordings computes less."""
        return tower.follows_batch(self.model.audio, self.model.frontend, self.model.padding)

    def build(self) -> Objective:
        """The objective as pure functions."""
        return build_contrastive(self)


def read_texts(loss: LossConfig, batch: dict[str, Any]) -> tuple[Array, Array]:
    """Ids and mask of a batch's captions [B 1 L]; with hard negatives [B 1+K L], each caption before its negatives.

    Raises UserError where the loss takes negatives and the batch has none.
    """
    check_negatives(loss, batch)
    ids, mask = batch[contract.TEXT_IDS][:, None], batch[contract.TEXT_MASK][:, None]
    if isinstance(loss, HardNegativesConfig):
        ids = jnp.concatenate([ids, batch[contract.NEGATIVE_IDS]], axis=1)
        mask = jnp.concatenate([mask, batch[contract.NEGATIVE_MASK]], axis=1)
    return ids, mask


FIGURES = (
    LOSS,
    LOGIT_SCALE,
    Figure(name="positive_cosine", label="cosine of true pairs", is_higher_better=True),
)
"""What training records."""


@dataclasses.dataclass(frozen=True)
class TwoTowers:
    """What two towers can do: embed recordings and texts."""

    config: two_towers.TwoTowersConfig

    @functools.partial(jax.jit, static_argnums=0)
    def embed_audio(self, variables: dict[str, Any], batch: dict[str, Array]) -> Float[Array, "B E"]:
        """The L2-normalised vector of each recording."""
        config = self.config

        def encode(clips: Clips) -> Array:
            return two_towers.encode_audio(
                config, variables, clips.features, frame_mask=clips.frame_mask, longer=clips.longer
            )[0]

        return embed_chunks(encode, config.frontend, batch, padding=config.padding, is_unit=True)

    @functools.partial(jax.jit, static_argnums=0)
    def embed_text(
        self, variables: dict[str, Any], ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B E"]:
        """The L2-normalised vector of each text."""
        return two_towers.encode_text(self.config, variables, ids, mask)


def build_contrastive(config: ContrastiveConfig) -> Objective:
    """The objective as pure functions."""
    model = config.model

    def prepare(batch: dict[str, Any], key: Any, *, train: bool, axis_name: str | None = None) -> Inputs:
        clips = one_clip(
            model.frontend,
            batch,
            padding=model.padding,
            train=train,
            key=key,
            augment=config.augment,
            follows_batch=config.follows_batch,
        )
        moments = None
        if train:
            moments = tower.batch_moments(
                model.audio, clips.features, batch[contract.MASK], axis_name=axis_name
            )
        return Inputs((clips, *read_texts(config.loss, batch)), moments)

    def encode(
        variables: dict[str, Any], inputs: Inputs, key: Any, *, train: bool
    ) -> tuple[tuple[Array, Array], Params]:
        audio, text_ids, text_mask = inputs.rows
        key_audio, key_text = jax.random.split(key) if train else (None, None)
        audio_emb, batch_stats = two_towers.encode_audio(
            model,
            variables,
            audio.features,
            frame_mask=audio.frame_mask,
            longer=audio.longer,
            train=train,
            key=key_audio,
            moments=inputs.shared,
        )
        # All texts of a row side by side, so that rows cut over devices stay where they are.
        flat = (x.reshape(-1, x.shape[-1]) for x in (text_ids, text_mask))
        text_emb = two_towers.encode_text(model, variables, *flat, train=train, key=key_text)
        return (audio_emb, text_emb.reshape(*text_ids.shape[:2], -1)), batch_stats

    def combine(
        params: Params,
        outputs: tuple[Array, Array],
        batch: dict[str, Any],
        key: Any,
        *,
        axis_name: str | None = None,
    ) -> tuple[Loss, Metrics]:
        audio_emb, texts_emb = outputs
        text_emb, negatives = texts_emb[:, 0], None
        if isinstance(config.loss, HardNegativesConfig):
            negatives = Negatives(texts_emb[:, 1:], jnp.any(batch[contract.NEGATIVE_MASK], axis=-1))
        loss, scale = contrastive_loss(
            config.loss, params, audio_emb, text_emb, batch, negatives=negatives, axis_name=axis_name
        )
        positive = jnp.sum(audio_emb * text_emb, axis=-1)
        cosine = jnp.sum(jnp.where(batch[contract.MASK], positive, 0.0))
        return loss, {
            "logit_scale": Loss(scale * loss.weight, loss.weight),
            "positive_cosine": Loss(cosine, loss.weight),
        }

    def init(key: Any) -> dict[str, Params]:
        variables = two_towers.TWO_TOWERS.init(model, key)
        return {**variables, "params": {**variables["params"], **init_scalars(config.loss)}}

    def axes() -> Any:
        return {**two_towers.TWO_TOWERS.axes(model), **dict.fromkeys(init_scalars(config.loss), ())}

    def project(params: Params) -> Params:
        return {**params, **project_scalars(config.loss, params)}

    def check(facts: DataFacts) -> None:
        check_microbatches(model.audio, facts.num_microbatches)
        vocab_size, max_length = text_limits(model.text)
        if facts.vocab_size > vocab_size:
            raise UserError(
                f"the tokenizer has {facts.vocab_size} tokens, the text tower embeds {vocab_size}: "
                "raise objective.model.text.vocab_size or lower data.tokenizer.vocab_size"
            )
        if max_length is not None and facts.max_length > max_length:
            raise UserError(
                f"captions are cut to {facts.max_length} tokens, the text tower takes {max_length}: "
                "raise objective.model.text.max_positions or lower data.tokenizer.max_length"
            )

    def pair_loss(params: Params, audio_emb: Array, text_emb: Array, rows: Any, negatives: Any) -> Loss:
        return contrastive_loss(config.loss, params, audio_emb, text_emb, rows, negatives=negatives)[0]

    return Objective(
        init=init,
        axes=axes,
        prepare=prepare,
        encode=encode,
        combine=combine,
        project=project,
        check=check,
        pair_loss=PairLoss("loss", pair_loss),
        figures=FIGURES,
        # Batch norms inside a tower see the rows of one device alone.
        pmap="none" if family_of(model.audio).normalises_inside else "batch",
        capabilities=lambda tokens: TwoTowers(model),
    )
