"""CALM-style pre-training of one head: aligned modalities, and what is hidden of one drawn from both.

After Sachidananda et al. 2022 (https://arxiv.org/abs/2202.03587), of which the abstract alone is public knowledge here:
its contrastive audio-language pre-training, between the trunk's vector of the audio alone and that of the text alone.
Beside it two losses of one more pass over both modalities, each with parts hidden: the hidden words (BERT,
https://arxiv.org/abs/1810.04805), and the hidden patches (AudioMAE's target, https://arxiv.org/abs/2207.06405, drawn in
place as by SimMIM, https://arxiv.org/abs/2111.09886). The survey's L_con, L_ar and a masked L_lm (2501.15177) on one
trunk.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax import batch as contract
from alm_jax.errors import UserError
from alm_jax.figures import Figure
from alm_jax.losses.reconstruction import masked_reconstruction, normalize_patches
from alm_jax.models import one_head
from alm_jax.models.capabilities import Reconstruction
from alm_jax.models.one_head import Audio, OneHeadConfig, Text
from alm_jax.objectives.contrastive_losses import (
    InfoNceConfig,
    MultiPositiveConfig,
    SigmoidConfig,
    contrastive_loss,
    init_scalars,
    project_scalars,
)
from alm_jax.objectives.masked_text import (
    MaskedTextConfig,
    check_masked_text,
    mask_texts,
    masked_text_loss,
    row_keys,
    words_right,
)
from alm_jax.objectives.objective import (
    LOGIT_SCALE,
    LOSS,
    DataFacts,
    Inputs,
    Loss,
    Objective,
    ObjectiveConfig,
    PairLoss,
    loss_figure,
)
from alm_jax.objectives.patch_masks import MaskConfig, UnstructuredMaskConfig, draw_masks
from alm_jax.objectives.reconstructions import to_maps
from alm_jax.objectives.recordings import Clips, WaveformAugmentConfig, embed_chunks, one_clip
from alm_jax.objectives.weighted_sum import add_means
from alm_jax.ops.patchify import patchify
from alm_jax.types import Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalmConfig(ObjectiveConfig):
    """One head, and the three losses that it is trained by."""

    model: OneHeadConfig
    """Front-end and trunk."""
    contrastive: InfoNceConfig | MultiPositiveConfig | SigmoidConfig = InfoNceConfig()
    """The loss between vectors of audio alone and of text alone."""
    masked_text: MaskedTextConfig = MaskedTextConfig()
    """Which words are hidden."""
    masked_audio: MaskConfig = UnstructuredMaskConfig()
    """Which patches are hidden."""
    normalize_target: bool = True
    """Whether each patch is standardised by its own mean and deviation before it is predicted, as in
    MaskedSpectrogramConfig."""
    contrastive_weight: float = 1.0
    """Weight of the contrastive loss in the sum."""
    text_weight: float = 1.0
    """Weight of the masked language model's loss in the sum."""
    audio_weight: float = 1.0
    """Weight of the reconstruction loss in the sum."""
    alone_rate: float = 0.25
    """Share of the rows whose modalities are masked from each other in the masked pass: the trunk then works with one
    of them alone, and what the other adds can be measured. At 0 attention has no mask of pairs, which fused kernels do
    not take."""
    augment: WaveformAugmentConfig = WaveformAugmentConfig()
    """Waveform augmentation."""

    def __post_init__(self) -> None:
        self.masked_audio.check(self.model.grid)
        if min(self.weights.values()) < 0 or sum(self.weights.values()) <= 0:
            raise UserError(f"the weights are {self.weights}; expected none below 0 and one above")
        if not 0 <= self.alone_rate < 1:
            raise UserError(f"alone_rate is {self.alone_rate}; it must be at least 0 and below 1")

    @property
    def weights(self) -> dict[str, float]:
        """Factor of each term by its name."""
        return {
            "contrastive": self.contrastive_weight,
            "masked_text": self.text_weight,
            "masked_audio": self.audio_weight,
        }

    @property
    def num_words(self) -> int:
        """Tokens of texts that the model has entries for."""
        return self.model.vocab_size

    def build(self) -> Objective:
        """The objective as pure functions."""
        return build_calm(self)


class Rows(NamedTuple):
    """Rows of the objective's inputs."""

    features: Float[Array, "B T F"]
    patch_mask: Bool[Array, "B N"]
    patch_hidden: Bool[Array, "B N"]
    text_ids: Int[Array, "B L"]
    text_mask: Bool[Array, "B L"]
    text_altered: Int[Array, "B L"]
    """The ids with the chosen tokens altered."""
    text_chosen: Bool[Array, "B L"]
    together: Bool[Array, " B"] | None
    """True where a row's modalities see each other in the masked pass; None for all."""


class Outputs(NamedTuple):
    """What the model makes of each row by itself."""

    audio_emb: Float[Array, "B E"]
    text_emb: Float[Array, "B E"]
    words: Float[Array, "B L D"]
    """States that are multiplied with the table of word embeddings to give logits."""
    text_chosen: Bool[Array, "B L"]
    """True where a token counts."""
    reconstruction: Loss
    """Sum and weight of each row."""


def prepare_rows(config: CalmConfig, batch: dict[str, Any], key: Any, *, train: bool) -> Rows:
    """What `encode_rows` reads of a batch; without ``train`` a recording always has the same masks, and sees all."""
    model = config.model
    key_audio, key_rows, key_alone = jax.random.split(key, 3) if train else (None, None, key)
    clips = one_clip(
        model.frontend, batch, padding="masked", train=train, key=key_audio, augment=config.augment
    )
    keys = jax.vmap(jax.random.split)(row_keys(key_rows, batch[contract.INDEX], train=train))
    ids, text_mask = batch[contract.TEXT_IDS], batch[contract.TEXT_MASK]
    masked = mask_texts(config.masked_text, ids, text_mask, keys[:, 0], vocab_size=model.vocab_size)
    together = None
    if train and config.alone_rate:
        together = jax.random.uniform(key_alone, (len(clips.features),)) >= config.alone_rate
    return Rows(
        features=clips.features,
        patch_mask=one_head.real_patches(model, clips.num_samples),
        patch_hidden=draw_masks(config.masked_audio, model.grid, keys[:, 1]).hidden,
        text_ids=ids,
        text_mask=text_mask,
        text_altered=masked.tokens,
        text_chosen=masked.chosen,
        together=together,
    )


def encode_rows(
    config: CalmConfig, variables: dict[str, Any], rows: Rows
) -> tuple[Outputs, Float[Array, "B N pixels"]]:
    """The model's outputs of each row by itself, and the pixels of every patch that the masked pass draws."""
    model = config.model
    audio, text = Audio(rows.features, rows.patch_mask), Text(rows.text_ids, rows.text_mask)
    encoded, _ = one_head.encode(model, variables, audio, None)
    _, read = one_head.encode(model, variables, None, text)
    patches, tokens = one_head.encode(
        model,
        variables,
        audio._replace(hidden=rows.patch_hidden),
        text._replace(ids=rows.text_altered),
        together=rows.together,
    )
    pixels = one_head.draw_patches(model, variables, patches)
    target = patchify(rows.features, model.patch_size)
    if config.normalize_target:
        target = normalize_patches(target)
    reconstruction = masked_reconstruction(pixels, target, rows.patch_hidden & rows.patch_mask, by_row=True)
    outputs = Outputs(
        audio_emb=one_head.embed(model, variables, encoded, rows.patch_mask),
        text_emb=one_head.embed(model, variables, read, rows.text_mask),
        words=one_head.predict_words(model, variables, tokens),
        text_chosen=rows.text_chosen,
        reconstruction=Loss(*reconstruction),
    )
    return outputs, pixels


def masked_losses(
    params: Params, outputs: Outputs, ids: Int[Array, "B L"], mask: Bool[Array, " B"]
) -> dict[str, Loss]:
    """The two losses of the masked pass over the rows where ``mask`` is True; ``ids`` are the true tokens."""
    counted = outputs.text_chosen & mask[:, None]
    return {
        "masked_text": masked_text_loss(outputs.words, *one_head.word_table(params), ids, counted),
        "masked_audio": Loss(*(jnp.sum(jnp.where(mask, x, 0.0)) for x in outputs.reconstruction)),
    }


FIGURES = (
    LOSS,
    loss_figure("contrastive_loss", "contrastive loss"),
    loss_figure("masked_text_loss", "loss of hidden words"),
    loss_figure("masked_audio_loss", "loss of hidden patches"),
    LOGIT_SCALE,
    loss_figure("masked_text/loss", "loss of hidden words, given the audio"),
    loss_figure("masked_text/loss_alone", "loss of hidden words, without audio"),
    loss_figure("masked_audio/loss", "loss of hidden patches, given the text"),
    loss_figure("masked_audio/loss_alone", "loss of hidden patches, without text"),
    Figure(
        name="masked_text/accuracy",
        label="hidden words named, given the audio",
        is_share=True,
        is_higher_better=True,
    ),
    Figure(
        name="masked_text/accuracy_alone",
        label="hidden words named, without audio",
        is_share=True,
        is_higher_better=True,
    ),
)
"""What training records, and what `measure_masked` measures."""


@dataclasses.dataclass(frozen=True)
class OneHead:
    """What one head can do: embed recordings and texts, and draw hidden patches given the text."""

    config: CalmConfig

    @functools.partial(jax.jit, static_argnums=0)
    def embed_audio(self, variables: dict[str, Any], batch: dict[str, Array]) -> Float[Array, "B E"]:
        """The L2-normalised vector of each recording, encoded without a text."""
        model = self.config.model

        def encode(clips: Clips) -> Array:
            mask = one_head.real_patches(model, clips.num_samples)
            states, _ = one_head.encode(model, variables, Audio(clips.features, mask), None)
            return one_head.embed(model, variables, states, mask)

        return embed_chunks(encode, model.frontend, batch, padding="masked", is_unit=True)

    @functools.partial(jax.jit, static_argnums=0)
    def embed_text(
        self, variables: dict[str, Any], ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B E"]:
        """The L2-normalised vector of each text, encoded without audio."""
        _, states = one_head.encode(self.config.model, variables, None, Text(ids, mask))
        return one_head.embed(self.config.model, variables, states, mask)

    @functools.partial(jax.jit, static_argnums=0)
    def reconstruct(self, variables: dict[str, Any], batch: dict[str, Array]) -> Reconstruction:
        """Each recording given its text, with the masks of the validation loss."""
        config = self.config
        rows = prepare_rows(config, batch, None, train=False)
        _, pixels = encode_rows(config, variables, rows)
        return to_maps(
            rows.features,
            rows.patch_hidden,
            pixels,
            patch_size=config.model.patch_size,
            is_normalized=config.normalize_target,
        )


@functools.partial(jax.jit, static_argnums=0)
def measure_masked(config: CalmConfig, variables: dict[str, Any], batch: dict[str, Array]) -> dict[str, Loss]:
    """Losses of hidden words and patches, and the share of words named; with the other modality, and ``_alone``.

    The masks are those of the validation loss. Of what is hidden, both modalities have their part: a word is named from
    the visible words and patches, ``_alone`` from the visible words.
    """
    rows = prepare_rows(config, batch, None, train=False)
    params, ids, real = variables["params"], batch[contract.TEXT_IDS], batch[contract.MASK]
    found: dict[str, Loss] = {}
    for suffix, together in (("", True), ("_alone", False)):
        seen = jnp.full_like(real, together)
        outputs, _ = encode_rows(config, variables, rows._replace(together=seen))
        losses = masked_losses(params, outputs, ids, real)
        found |= {f"{name}/loss{suffix}": loss for name, loss in losses.items()}
        counted = rows.text_chosen & real[:, None]
        right = words_right(outputs.words, *one_head.word_table(params), ids, counted)
        found[f"masked_text/accuracy{suffix}"] = right
    return found


def build_calm(config: CalmConfig) -> Objective:
    """The objective as pure functions."""
    model = config.model

    def prepare(batch: dict[str, Any], key: Any, *, train: bool) -> Inputs:
        return Inputs(prepare_rows(config, batch, key, train=train), None)

    def encode(variables: dict[str, Any], inputs: Inputs, key: Any, *, train: bool) -> tuple[Outputs, Params]:
        return encode_rows(config, variables, inputs.rows)[0], variables["batch_stats"]

    def combine(params: Params, outputs: Outputs, batch: dict[str, Any], key: Any) -> tuple[Loss, Metrics]:
        real = batch[contract.MASK]
        aligned, scale = contrastive_loss(
            config.contrastive, params, outputs.audio_emb, outputs.text_emb, batch
        )
        losses = {"contrastive": aligned} | masked_losses(params, outputs, batch[contract.TEXT_IDS], real)
        total = add_means(losses, config.weights, real)
        metrics = {f"{name}_loss": loss for name, loss in losses.items()}
        return total, metrics | {"logit_scale": Loss(scale * total.weight, total.weight)}

    def init(key: Any) -> dict[str, Params]:
        variables = one_head.ONE_HEAD.init(model, key)
        return {**variables, "params": {**variables["params"], **init_scalars(config.contrastive)}}

    def check(facts: DataFacts) -> None:
        check_masked_text(config.masked_text, facts, vocab_size=model.vocab_size, max_length=model.max_length)

    def pair_loss(params: Params, audio_emb: Array, text_emb: Array, rows: Any, negatives: Any) -> Loss:
        return contrastive_loss(config.contrastive, params, audio_emb, text_emb, rows)[0]

    return Objective(
        init=init,
        axes=lambda: {**one_head.ONE_HEAD.axes(model), **dict.fromkeys(init_scalars(config.contrastive), ())},
        prepare=prepare,
        encode=encode,
        combine=combine,
        project=lambda params: {**params, **project_scalars(config.contrastive, params)},
        check=check,
        pair_loss=PairLoss("contrastive_loss", pair_loss),
        figures=FIGURES,
        capabilities=lambda tokens: OneHead(config),
        measure=functools.partial(measure_masked, config),
    )
