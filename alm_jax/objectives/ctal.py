"""CTAL's pre-training: hidden words of a transcript, and hidden spans of the speech given the transcript.

Li et al. 2021, https://arxiv.org/abs/2109.00181: masked language modelling plus masked cross-modal acoustic modelling,
each the mean over what was chosen, added 1 to 1.
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
from alm_jax.losses.reconstruction import masked_reconstruction
from alm_jax.models import ctal
from alm_jax.models.capabilities import Reconstruction, TextTokens
from alm_jax.models.ctal import CtalModelConfig
from alm_jax.nn.pooling import masked_mean
from alm_jax.objectives.masked_text import (
    MaskedTextConfig,
    check_masked_text,
    mask_texts,
    masked_text_loss,
    row_keys,
    words_right,
)
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
from alm_jax.objectives.weighted_sum import add_means
from alm_jax.ops.frame_masking import MaskedFrames, mask_frame_spans
from alm_jax.types import Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedFramesConfig:
    """Spans of frames that are zeroed (80 %), replaced by others of the clip (10 %), or left (10 %)."""

    proportion: float = 0.15
    """Largest fraction of a clip's frames that is chosen."""
    min_span: int = 20
    """Frames of the shortest span. A clip with less than one span's share of frames has none."""
    max_span: int = 50
    """Frames of the longest span."""

    def __post_init__(self) -> None:
        if not (1 <= self.min_span <= self.max_span and 0 < self.proportion <= 1):
            raise UserError(
                f"masked_frames has spans of {self.min_span} to {self.max_span} frames over {self.proportion} of a "
                "clip; expected 1 <= min_span <= max_span and a proportion in (0, 1]"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CtalConfig(ObjectiveConfig):
    """CTAL's two encoders under its two losses."""

    model: CtalModelConfig
    """Front-end and encoders."""
    masked_text: MaskedTextConfig = MaskedTextConfig()
    """Which words are hidden."""
    masked_frames: MaskedFramesConfig = MaskedFramesConfig()
    """Which frames are hidden."""
    text_weight: float = 1.0
    """Weight of the masked language model's loss in the sum."""
    audio_weight: float = 1.0
    """Weight of the acoustic model's loss in the sum."""
    augment: WaveformAugmentConfig = WaveformAugmentConfig()
    """Waveform augmentation."""

    def __post_init__(self) -> None:
        longest = self.masked_frames.proportion * self.model.frontend.num_frames
        if self.masked_frames.min_span > longest + 1e-3:
            raise UserError(
                f"masked_frames.min_span is {self.masked_frames.min_span}, and {self.masked_frames.proportion} of the "
                f"{self.model.frontend.num_frames} frames of a clip is less: nothing would ever be hidden. Lower "
                "min_span or raise the proportion"
            )
        if min(self.text_weight, self.audio_weight) < 0 or self.text_weight + self.audio_weight <= 0:
            raise UserError(
                f"text_weight is {self.text_weight} and audio_weight {self.audio_weight}; expected none below 0 and "
                "one above"
            )

    @property
    def weights(self) -> dict[str, float]:
        """Factor of each term by its name."""
        return {"masked_text": self.text_weight, "masked_audio": self.audio_weight}

    @property
    def num_words(self) -> int:
        """Tokens of texts that the model has entries for."""
        return self.model.text.vocab_size

    def build(self) -> Objective:
        """The objective as pure functions."""
        return build_ctal(self)


class Rows(NamedTuple):
    """Rows of the objective's inputs."""

    features: Float[Array, "B T F"]
    """Features before spans are hidden, the target."""
    frame_mask: Bool[Array, "B T"]
    frames: MaskedFrames
    text_ids: Int[Array, "B L"]
    """Token ids, the chosen ones altered."""
    text_mask: Bool[Array, "B L"]
    text_chosen: Bool[Array, "B L"]


class Outputs(NamedTuple):
    """What the encoders make of each row by itself."""

    words: Float[Array, "B L D"]
    """States that are multiplied with the table of word embeddings to give logits."""
    text_chosen: Bool[Array, "B L"]
    """True where a token counts."""
    acoustic: Loss
    """Sum and weight of each row."""


def prepare_rows(config: CtalConfig, batch: dict[str, Any], key: Any, *, train: bool) -> Rows:
    """What `encode_rows` reads of a batch; without ``train`` a recording always has the same masks."""
    model, chance = config.model, config.masked_frames
    key_audio, key_rows = jax.random.split(key) if train else (None, None)
    clips = one_clip(
        model.frontend, batch, padding="masked", train=train, key=key_audio, augment=config.augment
    )
    features, frame_mask = clips.features, clips.frame_mask
    keys = jax.vmap(jax.random.split)(row_keys(key_rows, batch[contract.INDEX], train=train))

    def draw(features: Array, mask: Array, key: Any) -> MaskedFrames:
        drawn = mask_frame_spans(
            features[None],
            mask[None],
            key,
            proportion=chance.proportion,
            min_span=chance.min_span,
            max_span=chance.max_span,
        )
        return jax.tree.map(lambda x: x[0], drawn)

    ids, text_mask = batch[contract.TEXT_IDS], batch[contract.TEXT_MASK]
    masked = mask_texts(config.masked_text, ids, text_mask, keys[:, 0], vocab_size=model.text.vocab_size)
    frames = jax.vmap(draw)(features, frame_mask, keys[:, 1])
    return Rows(features, frame_mask, frames, masked.tokens, text_mask, masked.chosen)


def encode_rows(
    config: CtalConfig, variables: dict[str, Any], rows: Rows, *, train: bool, key: Any = None
) -> tuple[Outputs, Float[Array, "B T F"]]:
    """The encoders' outputs of each row by itself, and the features that they draw."""
    model = config.model
    key_text, key_audio = jax.random.split(key) if train else (None, None)
    text = ctal.encode_text(model, variables, rows.text_ids, rows.text_mask, train=train, key=key_text)
    audio = ctal.encode_audio(
        model,
        variables,
        rows.frames.features,
        rows.frame_mask,
        text,
        rows.text_mask,
        train=train,
        key=key_audio,
    )
    drawn = ctal.draw_frames(model, variables, audio)
    acoustic = masked_reconstruction(drawn, rows.features, rows.frames.chosen, distance="l1", by_row=True)
    words = ctal.predict_words(model, variables, text)
    return Outputs(words, rows.text_chosen, Loss(*acoustic)), drawn


FIGURES = (
    LOSS,
    loss_figure("masked_text_loss", "loss of hidden words"),
    loss_figure("masked_audio_loss", "loss of hidden frames"),
    Figure(name="masked_text/accuracy", label="hidden words named", is_share=True, is_higher_better=True),
    loss_figure("masked_audio/l1", "L1 of hidden frames, given the transcript"),
    loss_figure("masked_audio/l1_words_hidden", "L1 of hidden frames, with all words hidden"),
)
"""What training records, and what `measure_masked` measures."""


@dataclasses.dataclass(frozen=True)
class SpeechEncoder:
    """What CTAL's encoders can do: embed recordings, and draw hidden frames given the transcript."""

    config: CtalConfig
    tokens: TextTokens

    @functools.partial(jax.jit, static_argnums=0)
    def embed_audio(self, variables: dict[str, Any], batch: dict[str, Array]) -> Float[Array, "B D"]:
        """The mean of the states of each recording's real frames, given a text of one hidden word; float32.

        The text is the same for all recordings: the words of a transcript would give its class away.
        """
        model = self.config.model
        word = jnp.asarray((*self.tokens.begin, self.config.masked_text.mask_id, *self.tokens.end), jnp.int32)

        def encode(clips: Clips) -> Array:
            ids = jnp.broadcast_to(word[None], (len(clips.features), len(word)))
            text_mask = jnp.ones_like(ids, jnp.bool_)
            text = ctal.encode_text(model, variables, ids, text_mask)
            states = ctal.encode_audio(model, variables, clips.features, clips.frame_mask, text, text_mask)
            return masked_mean(states.astype(jnp.float32), clips.frame_mask)

        return embed_chunks(encode, model.frontend, batch, padding="masked", is_unit=False)

    @functools.partial(jax.jit, static_argnums=0)
    def reconstruct(self, variables: dict[str, Any], batch: dict[str, Array]) -> Reconstruction:
        """The levels, without their deltas, of each recording; hidden are the spans that were chosen."""
        config = self.config
        rows = prepare_rows(config, batch, None, train=False)
        _, drawn = encode_rows(config, variables, rows, train=False)
        num_mels = config.model.frontend.num_mels
        features = rows.features[..., :num_mels]
        hidden = jnp.broadcast_to(rows.frames.chosen[..., None], features.shape)
        return Reconstruction(features, hidden, drawn[..., :num_mels].astype(jnp.float32))


@functools.partial(jax.jit, static_argnums=0)
def measure_masked(config: CtalConfig, variables: dict[str, Any], batch: dict[str, Array]) -> dict[str, Loss]:
    """Accuracy of hidden words, and the L1 of hidden frames: given the transcript, and with all words hidden.

    The masks are those of the validation loss; the text encoder sees no audio.
    """
    rows = prepare_rows(config, batch, None, train=False)
    params, ids, real = variables["params"], batch[contract.TEXT_IDS], batch[contract.MASK]
    whole, _ = encode_rows(config, variables, rows._replace(text_ids=ids), train=False)
    is_word = config.masked_text.is_word(ids, rows.text_mask)
    wordless = rows._replace(text_ids=jnp.where(is_word, config.masked_text.mask_id, ids))
    hidden, _ = encode_rows(config, variables, wordless, train=False)
    masked, _ = encode_rows(config, variables, rows, train=False)
    counted = rows.text_chosen & real[:, None]

    def over_rows(loss: Loss) -> Loss:
        return Loss(*(jnp.sum(jnp.where(real, x, 0.0)) for x in loss))

    return {
        "masked_text/accuracy": words_right(masked.words, *ctal.word_table(params), ids, counted),
        "masked_audio/l1": over_rows(whole.acoustic),
        "masked_audio/l1_words_hidden": over_rows(hidden.acoustic),
    }


def build_ctal(config: CtalConfig) -> Objective:
    """The objective as pure functions."""
    model = config.model

    def prepare(batch: dict[str, Any], key: Any, *, train: bool) -> Inputs:
        return Inputs(prepare_rows(config, batch, key, train=train), None)

    def encode(variables: dict[str, Any], inputs: Inputs, key: Any, *, train: bool) -> tuple[Outputs, Params]:
        outputs, _ = encode_rows(config, variables, inputs.rows, train=train, key=key)
        return outputs, variables["batch_stats"]

    def combine(params: Params, outputs: Outputs, batch: dict[str, Any], key: Any) -> tuple[Loss, Metrics]:
        real = batch[contract.MASK]
        counted = outputs.text_chosen & real[:, None]
        table, bias = ctal.word_table(params)
        losses = {
            "masked_text": masked_text_loss(outputs.words, table, bias, batch[contract.TEXT_IDS], counted),
            "masked_audio": Loss(*(jnp.sum(jnp.where(real, x, 0.0)) for x in outputs.acoustic)),
        }
        total = add_means(losses, config.weights, real)
        return total, {f"{name}_loss": loss for name, loss in losses.items()}

    def check(facts: DataFacts) -> None:
        text = model.text
        check_masked_text(config.masked_text, facts, vocab_size=text.vocab_size, max_length=text.max_length)

    return Objective(
        init=lambda key: ctal.CTAL.init(model, key),
        axes=lambda: ctal.CTAL.axes(model),
        prepare=prepare,
        encode=encode,
        combine=combine,
        project=lambda params: params,
        check=check,
        figures=FIGURES,
        capabilities=lambda tokens: SpeechEncoder(config, tokens),
        measure=functools.partial(measure_masked, config),
    )
