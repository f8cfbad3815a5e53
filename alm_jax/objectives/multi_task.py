"""Multi-task: a weighted sum of the means of several terms over one trunk, each over the rows of its own data sets.

Contrastive and captioning losses as CoCa (Yu et al. 2022, https://arxiv.org/abs/2205.01917, section 3.2); matching of
audio and text with negatives mined from the batch as ALBEF (Li et al. 2021, https://arxiv.org/abs/2107.07651, section
3.2) and BLIP; reconstruction of what was hidden as AudioMAE (Huang et al. 2022, https://arxiv.org/abs/2207.06405). The
trunk runs once for all terms that read the whole clip, and once over the visible patches for reconstruction.
"""

import dataclasses
import functools
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax import batch as contract
from alm_jax.encoders import tower
from alm_jax.errors import UserError
from alm_jax.figures import Figure
from alm_jax.losses.language_modeling import next_token_loss
from alm_jax.losses.matching import audio_text_matching, matching_pairs
from alm_jax.losses.reconstruction import masked_reconstruction
from alm_jax.models import contrastive_captioner
from alm_jax.models.capabilities import Reconstruction, TextTokens
from alm_jax.models.caption_decoder import FAMILY
from alm_jax.models.contrastive_captioner import ContrastiveCaptionerConfig, EncodedAudio
from alm_jax.models.generated import Generated, without_end
from alm_jax.models.generation import generate
from alm_jax.models.masked_autoencoder import reconstruct
from alm_jax.nn.language_model import head_kernel
from alm_jax.nn.norm import Moments
from alm_jax.objectives.contrastive_losses import (
    InfoNceConfig,
    MultiPositiveConfig,
    SigmoidConfig,
    contrastive_loss,
    init_scalars,
    project_scalars,
)
from alm_jax.objectives.masked_spectrogram import (
    MaskedAutoencoder,
    MaskedSpectrogramConfig,
    reconstruction_target,
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
    loss_figure,
)
from alm_jax.objectives.patch_masks import MaskConfig, UnstructuredMaskConfig, draw_masks, evaluation_masks
from alm_jax.objectives.recordings import Clips, WaveformAugmentConfig, embed_chunks, one_clip
from alm_jax.objectives.weighted_sum import add_means
from alm_jax.ops.patch_masking import PatchMask
from alm_jax.ranges import Range
from alm_jax.types import Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveTerm:
    """A contrastive loss: each audio against all texts of the batch, and each text against all audio."""

    name: ClassVar[str] = "contrastive"
    weight: float = 1.0
    """Weight of this term in the sum; CoCa's is 1."""
    sources: tuple[Annotated[int, Range(0)], ...] = ()
    """Parts of a mixture, by position, whose rows this term uses; the empty tuple: all rows."""
    loss: InfoNceConfig | MultiPositiveConfig | SigmoidConfig = InfoNceConfig()
    """The loss, and how it is computed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptioningTerm:
    """Each token of a caption is predicted from the audio and those before it."""

    name: ClassVar[str] = "captioning"
    weight: float = 2.0
    """Weight of this term in the sum; CoCa's is 2."""
    sources: tuple[Annotated[int, Range(0)], ...] = ()
    """Parts of a mixture, by position, whose rows this term uses; the empty tuple: all rows."""
    label_smoothing: float = 0.0
    """Label smoothing: fraction of the target that is spread evenly over the vocabulary."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchingTerm:
    """Whether a text belongs to a recording: of each row its own pair, and two with a partner of similar embedding."""

    name: ClassVar[str] = "matching"
    weight: float = 1.0
    """Weight of this term in the sum; ALBEF's is 1."""
    sources: tuple[Annotated[int, Range(0)], ...] = ()
    """Parts of a mixture, by position, whose rows this term uses; the empty tuple: all rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionTerm:
    """Patches that are hidden from the trunk are reconstructed from the visible ones; captions are not read."""

    name: ClassVar[str] = "reconstruction"
    weight: float = 1.0
    """Weight of this term in the sum."""
    sources: tuple[Annotated[int, Range(0)], ...] = ()
    """Parts of a mixture, by position, whose rows this term uses; the empty tuple: all rows."""
    mask: MaskConfig = UnstructuredMaskConfig()
    """Which patches are hidden, chosen at random for every clip and step."""
    normalize_target: bool = True
    """Whether each patch is standardised by its own mean and deviation before it is predicted."""


Term: TypeAlias = ContrastiveTerm | CaptioningTerm | MatchingTerm | ReconstructionTerm


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiTaskConfig(ObjectiveConfig):
    """A contrastive captioner, and what it is trained for at the same time."""

    model: ContrastiveCaptionerConfig
    """The trunk and its heads."""
    terms: tuple[Term, ...] = (ContrastiveTerm(), CaptioningTerm())
    """The terms of the sum, one of a kind; set in the config file: the command line has no lists."""
    augment: WaveformAugmentConfig = WaveformAugmentConfig()
    """Waveform augmentation, the same clip for all terms."""

    def __post_init__(self) -> None:
        names = [term.name for term in self.terms]
        if len(set(names)) < len(names):
            raise UserError(f"objective.terms are {names}; one term of a kind, whose sources may be several")
        if not {ContrastiveTerm.name, CaptioningTerm.name} <= set(names):
            raise UserError(
                f"objective.terms are {names}; a contrastive captioner is trained for both, so that there must be a "
                "ContrastiveTerm and a CaptioningTerm. For one of them, take ContrastiveConfig or "
                "LanguageModelingConfig"
            )
        for term in self.terms:
            if term.weight <= 0:
                raise UserError(f"the {term.name} term has weight {term.weight}; it must be positive")
            if any(source < 0 for source in term.sources):
                raise UserError(
                    f"the {term.name} term has sources {term.sources}; parts of a mixture count from 0"
                )
        if (MatchingTerm.name in names) != self.model.matching_head:
            raise UserError(
                "a MatchingTerm and model.matching_head go together: set matching_head to "
                f"{MatchingTerm.name in names}, or change objective.terms, which are {names}"
            )
        if (ReconstructionTerm.name in names) != (self.model.patch_decoder is not None):
            raise UserError(
                "a ReconstructionTerm and model.patch_decoder go together: give both or neither; objective.terms are "
                f"{names}"
            )
        if self.model.patch_decoder is not None:
            self.reconstruction  # noqa: B018  (its own checks)

    def term(self, kind: type) -> Any:
        """The term of this kind, or None."""
        return next((term for term in self.terms if isinstance(term, kind)), None)

    @property
    def reconstruction(self) -> MaskedSpectrogramConfig:
        """The ReconstructionTerm as the objective that it is by itself; where there is one."""
        term = self.term(ReconstructionTerm)
        return MaskedSpectrogramConfig(
            model=self.model.autoencoder, mask=term.mask, normalize_target=term.normalize_target
        )

    @property
    def num_words(self) -> int:
        """Tokens of texts that the model has entries for."""
        return self.model.text.vocab_size

    def build(self) -> Objective:
        """The objective as pure functions."""
        return build_multi_task(self)


class Rows(NamedTuple):
    """Rows of the objective's inputs."""

    features: Float[Array, "B T F"]
    frame_mask: Bool[Array, "B T"] | None
    """True where a frame is real; None where padding is not masked."""
    text_ids: Int[Array, "B L"]
    text_mask: Bool[Array, "B L"]
    masked: PatchMask | None
    """Patches that a ReconstructionTerm hides; None without one."""


class Outputs(NamedTuple):
    """What the model makes of each row by itself; the losses over all rows are made of it."""

    audio_emb: Float[Array, "B E"]
    text_emb: Float[Array, "B E"]
    grounded: Float[Array, "B tokens D"]
    """States of the row's text after attention to its audio."""
    text_states: Float[Array, "B tokens D"] | None
    """States of the text alone, for a MatchingTerm; None without one."""
    vectors: Float[Array, "B n D"] | None
    """Vectors that the decoder attends to, for a MatchingTerm; None without one."""
    reconstruction: Loss | None
    """Sum and weight of the ReconstructionTerm of each row; None without one."""


def prepare_rows(config: MultiTaskConfig, batch: dict[str, Any], key: Any, *, train: bool) -> Rows:
    """What `encode_rows` reads of a batch; without ``train`` nothing is drawn, and ``key`` is not read."""
    model, drawn, masked = config.model, config.term(ReconstructionTerm), None
    keys: Any = jax.random.split(key) if train else (None, None)
    key_audio, key_mask = keys
    clips = one_clip(
        model.frontend, batch, padding=model.padding, train=train, key=key_audio, augment=config.augment
    )
    num_rows = len(clips.features)
    if drawn:
        grid = model.autoencoder.grid
        masked = (
            draw_masks(drawn.mask, grid, jax.random.split(key_mask, num_rows))
            if train
            else evaluation_masks(drawn.mask, grid, batch[contract.INDEX])
        )
    return Rows(
        features=clips.features,
        frame_mask=clips.frame_mask,
        text_ids=batch[contract.TEXT_IDS],
        text_mask=batch[contract.TEXT_MASK],
        masked=masked,
    )


def encode_rows(
    config: MultiTaskConfig,
    variables: dict[str, Any],
    rows: Rows,
    *,
    train: bool,
    key: Any = None,
    moments: Moments | None = None,
) -> tuple[Outputs, Params]:
    """The model's outputs of each row by itself, and the next ``batch_stats``."""
    model, params = config.model, variables["params"]
    key_trunk, key_draw = jax.random.split(key) if train else (None, None)
    encoded, batch_stats = contrastive_captioner.encode_audio(
        model,
        variables,
        rows.features,
        rows.frame_mask,
        train=train,
        key=key_trunk,
        moments=moments,
    )
    vectors = contrastive_captioner.pool_for_captions(model, params, encoded)
    text_states = contrastive_captioner.read_texts(model, params, rows.text_ids, rows.text_mask)
    reconstruction = None
    if rows.masked is not None:
        drawn = config.reconstruction
        pixels = reconstruct(
            drawn.model,
            contrastive_captioner.autoencoder_variables(params),
            rows.features,
            rows.masked,
            train=train,
            key=key_draw,
        )
        target = reconstruction_target(drawn, rows.features)
        reconstruction = Loss(*masked_reconstruction(pixels, target, rows.masked.hidden, by_row=True))
    matches = model.matching_head
    return Outputs(
        audio_emb=contrastive_captioner.embed_audio(model, params, encoded),
        text_emb=contrastive_captioner.embed_texts(model, params, text_states),
        grounded=contrastive_captioner.ground_texts(model, params, text_states, rows.text_mask, vectors),
        text_states=text_states if matches else None,
        vectors=vectors if matches else None,
        reconstruction=reconstruction,
    ), batch_stats


def counted_rows(term: Term, batch: dict[str, Any]) -> Bool[Array, " B"]:
    """The real rows that a term counts. Raises UserError where it names sources and the batch has none."""
    if not term.sources:
        return batch[contract.MASK]
    if contract.SOURCE not in batch:
        raise UserError(
            f"the {term.name} term counts sources {term.sources}, and the batches do not say where a row is from: make "
            "data.dataset a mixture, or leave the term's sources out"
        )
    return batch[contract.MASK] & jnp.isin(batch[contract.SOURCE], jnp.asarray(term.sources))


def captioning_loss(
    config: MultiTaskConfig,
    params: Params,
    outputs: Outputs,
    batch: dict[str, Any],
    counted: Bool[Array, " B"],
) -> Loss:
    """Cross-entropy of the captions' tokens, their first ones left out."""
    kernel, tied = head_kernel(config.model.text, params["text"])
    found = next_token_loss(
        outputs.grounded[:, :-1],
        kernel,
        batch[contract.TEXT_IDS],
        mask=batch[contract.TEXT_MASK] & counted[:, None],
        tied=tied,
        label_smoothing=config.term(CaptioningTerm).label_smoothing,
    )
    return Loss(*found)


def matching_loss(
    config: MultiTaskConfig,
    params: Params,
    outputs: Outputs,
    batch: dict[str, Any],
    counted: Bool[Array, " B"],
    logit_scale: Float[Array, ""],
    key: Any,
) -> tuple[Loss, Loss]:
    """The loss of three pairs a row, and how many of them are judged rightly.

    Negatives are mined among the rows of the batch. Rows of one recording are no negatives of each other.
    """
    assert outputs.text_states is not None
    assert outputs.vectors is not None
    num_rows = len(counted)
    pairs = matching_pairs(
        jax.random.key(0) if key is None else key,
        outputs.audio_emb,
        outputs.text_emb,
        logit_scale,
        group=batch[contract.INDEX],
        mask=counted,
    )
    # The first run of pairs are the rows themselves, which `encode` has grounded.
    audio, text = pairs.audio_index[num_rows:], pairs.text_index[num_rows:]

    def take(x: Array, index: Array) -> Array:
        return jnp.take(x, index, axis=0, mode="clip")

    grounded = contrastive_captioner.ground_texts(
        config.model,
        params,
        take(outputs.text_states, text),
        take(batch[contract.TEXT_MASK], text),
        take(outputs.vectors, audio),
    )
    states = jnp.concatenate([outputs.grounded[:, -1:], grounded[:, -1:]])
    logits = contrastive_captioner.matching_logits(config.model, params, states)
    loss = Loss(*audio_text_matching(logits, pairs.is_match, mask=pairs.mask))
    right = jnp.sum(((logits > 0) == pairs.is_match) & pairs.mask, dtype=jnp.float32)
    return loss, Loss(right, loss.weight)


MATCHING_ACCURACY = Figure(
    name="matching_accuracy", label="pairs judged rightly", is_share=True, is_higher_better=True
)


def figures_of(config: MultiTaskConfig) -> tuple[Figure, ...]:
    """What training records of these terms."""
    terms = [loss_figure(f"{term.name}_loss", f"{term.name} loss") for term in config.terms]
    accuracy = [MATCHING_ACCURACY] if config.term(MatchingTerm) else []
    return (LOSS, *terms, *accuracy, LOGIT_SCALE)


@dataclasses.dataclass(frozen=True)
class Captioner:
    """What a contrastive captioner can do: embed recordings and texts, and write captions."""

    config: MultiTaskConfig

    def encode(self, variables: dict[str, Any], clips: Clips) -> EncodedAudio:
        """The trunk's states of clips."""
        return contrastive_captioner.encode_audio(
            self.config.model, variables, clips.features, clips.frame_mask
        )[0]

    @functools.partial(jax.jit, static_argnums=0)
    def embed_audio(self, variables: dict[str, Any], batch: dict[str, Array]) -> Float[Array, "B E"]:
        """The L2-normalised vector of each recording."""
        model = self.config.model

        def encode(clips: Clips) -> Array:
            encoded = self.encode(variables, clips)
            return contrastive_captioner.embed_audio(model, variables["params"], encoded)

        return embed_chunks(encode, model.frontend, batch, padding=model.padding, is_unit=True)

    @functools.partial(jax.jit, static_argnums=0)
    def embed_text(
        self, variables: dict[str, Any], ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B E"]:
        """The L2-normalised vector of each text."""
        model, params = self.config.model, variables["params"]
        states = contrastive_captioner.read_texts(model, params, ids, mask)
        return contrastive_captioner.embed_texts(model, params, states)

    @functools.partial(jax.jit, static_argnums=(0, 3), static_argnames=("tokens", "num_new_tokens"))
    def generate_text(
        self, variables: dict[str, Any], batch: dict[str, Array], tokens: TextTokens, *, num_new_tokens: int
    ) -> Generated:
        """The likeliest caption of each recording, token by token."""
        model, params = self.config.model, variables["params"]
        encoded = self.encode(variables, one_clip(model.frontend, batch, padding=model.padding))
        vectors = contrastive_captioner.pool_for_captions(model, params, encoded)
        ids = jnp.full((vectors.shape[0], 1), tokens.begin[0], jnp.int32)
        written = generate(
            FAMILY,
            model.text,
            {"params": params["text"]},
            ids,
            jnp.ones(ids.shape, bool),
            num_new_tokens=num_new_tokens,
            end_id=tokens.end[0],
            dtype=jnp.dtype(model.compute_dtype),
            method="decode",
            source=vectors,
        )
        return without_end(written, tokens.end[0])


class DrawingCaptioner(Captioner):
    """A contrastive captioner that has a patch decoder, and draws what is hidden of recordings too."""

    def reconstruct(self, variables: dict[str, Any], batch: dict[str, Array]) -> Reconstruction:
        """Each recording with the masks of the validation loss."""
        own = contrastive_captioner.autoencoder_variables(variables["params"])
        return MaskedAutoencoder(self.config.reconstruction).reconstruct(own, batch)


def capabilities_of(config: MultiTaskConfig) -> Captioner:
    """What the model of these terms can do."""
    return DrawingCaptioner(config) if config.model.patch_decoder is not None else Captioner(config)


def build_multi_task(config: MultiTaskConfig) -> Objective:
    """The objective as pure functions."""
    model, contrast = config.model, config.term(ContrastiveTerm).loss

    def prepare(batch: dict[str, Any], key: Any, *, train: bool) -> Inputs:
        rows = prepare_rows(config, batch, key, train=train)
        moments = None
        if train:
            moments = tower.batch_moments(model.audio, rows.features, batch[contract.MASK])
        return Inputs(rows, moments)

    def encode(variables: dict[str, Any], inputs: Inputs, key: Any, *, train: bool) -> tuple[Outputs, Params]:
        return encode_rows(config, variables, inputs.rows, train=train, key=key, moments=inputs.shared)

    def combine(params: Params, outputs: Outputs, batch: dict[str, Any], key: Any) -> tuple[Loss, Metrics]:
        counted = {term.name: counted_rows(term, batch) for term in config.terms}
        pairs = {**batch, contract.MASK: counted[ContrastiveTerm.name]}
        contrastive, scale = contrastive_loss(contrast, params, outputs.audio_emb, outputs.text_emb, pairs)
        losses = {
            ContrastiveTerm.name: contrastive,
            CaptioningTerm.name: captioning_loss(
                config, params, outputs, batch, counted[CaptioningTerm.name]
            ),
        }
        metrics: Metrics = {}
        if MatchingTerm.name in counted:
            loss, right = matching_loss(
                config, params, outputs, batch, counted[MatchingTerm.name], scale, key
            )
            losses[MatchingTerm.name] = loss
            metrics["matching_accuracy"] = right
        if outputs.reconstruction is not None:
            real = counted[ReconstructionTerm.name]
            losses[ReconstructionTerm.name] = Loss(
                *(jnp.sum(jnp.where(real, x, 0.0)) for x in outputs.reconstruction)
            )
        weights = {term.name: term.weight for term in config.terms}
        total = add_means(losses, weights, batch[contract.MASK])
        metrics |= {f"{name}_loss": loss for name, loss in losses.items()}
        metrics["logit_scale"] = Loss(scale * total.weight, total.weight)
        return total, metrics

    def init(key: Any) -> dict[str, Params]:
        variables = contrastive_captioner.CONTRASTIVE_CAPTIONER.init(model, key)
        return {**variables, "params": {**variables["params"], **init_scalars(contrast)}}

    def axes() -> Any:
        scalars = dict.fromkeys(init_scalars(contrast), ())
        return {**contrastive_captioner.CONTRASTIVE_CAPTIONER.axes(model), **scalars}

    def check(facts: DataFacts) -> None:
        text = model.text
        check_microbatches(model.audio, facts.num_microbatches)
        if facts.vocab_size > text.vocab_size:
            raise UserError(
                f"the tokenizer has {facts.vocab_size} tokens, the decoder embeds {text.vocab_size}: raise "
                "objective.model.text.vocab_size or lower data.tokenizer.vocab_size"
            )
        if facts.max_length >= text.max_positions:
            raise UserError(
                f"captions are cut to {facts.max_length} tokens and a class token follows, the decoder has "
                f"positions for {text.max_positions}: raise objective.model.text.max_positions or lower "
                "data.tokenizer.max_length"
            )
        if facts.prompt_length is not None:
            raise UserError(
                "data.prompt is set, and captions that are to be contrasted have no prompts: leave it out"
            )
        for term in config.terms:
            if any(source >= facts.num_sources for source in term.sources):
                raise UserError(
                    f"the {term.name} term counts sources {term.sources}, and data.dataset has "
                    f"{facts.num_sources or 'no'} parts of a mixture, which count from 0: change the term's "
                    "sources, or make data.dataset a MixtureConfig"
                )

    return Objective(
        init=init,
        axes=axes,
        prepare=prepare,
        encode=encode,
        combine=combine,
        project=lambda params: {**params, **project_scalars(contrast, params)},
        check=check,
        figures=figures_of(config),
        capabilities=lambda tokens: capabilities_of(config),
        sources=(
            ("retrieval", config.term(ContrastiveTerm).sources),
            ("answers", config.term(CaptioningTerm).sources),
        ),
    )
