"""Two heads: an audio encoder whose vectors a language model reads among its tokens, and writes text after.

Free functions of a config and a tree of arrays; no Flax module is seen above this file. Qwen-Audio and Qwen2-Audio
(arXiv 2311.07919, 2407.10759), LTU (2305.10790), ClapCap and Pengi (2305.11834) are of this kind. A causal language
model reads audio, prompt and answer as one sequence; of an encoder-decoder the encoder reads audio and prompt, and the
decoder writes the answer.

Variables are ``{"params": {...}, "batch_stats": {...}}``, plain nested dicts of float32 arrays:

======================  ==================================================================
params/audio            the audio tower, as its family names its parameters
params/connector        from its states to the language model's width (`models/connectors.py`)
params/language_model   the language model, as its family names its parameters
batch_stats/audio       running statistics of the audio tower, empty where it has none
======================  ==================================================================
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders import tower
from alm_jax.encoders.families import family_of
from alm_jax.encoders.family import Family
from alm_jax.encoders.text.bart import BartConfig
from alm_jax.encoders.text.gpt2 import Gpt2Config
from alm_jax.encoders.text.llama import LlamaConfig, Qwen2Config
from alm_jax.encoders.text.t5 import T5Config
from alm_jax.errors import UserError
from alm_jax.models.connectors import Connector, ConnectorConfig, check_connector
from alm_jax.nn.norm import Moments
from alm_jax.nn.rematerialise import Remat
from alm_jax.nn.variables import Architecture
from alm_jax.ops.frontends import FrontendSpec, WaveformSpec, feature_shape
from alm_jax.types import PyTree

Variables: TypeAlias = dict[str, Any]
LanguageModelConfig: TypeAlias = Gpt2Config | LlamaConfig | Qwen2Config | T5Config | BartConfig
# Folded into the key of a forward pass for the dropout of each part; the audio tower has the key itself.
TEXT_STREAM, SOURCE_STREAM, CONNECTOR_STREAM = 1, 2, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoHeadsConfig:
    """A front-end, an audio tower, a connector and a language model."""

    frontend: FrontendSpec | WaveformSpec
    """Front-end, from waveform to features; stored with the weights."""
    audio: tower.AudioTowerConfig
    """The audio tower: the config of any audio encoder of the zoo, but for those with feature fusion."""
    connector: ConnectorConfig
    """Connector from the audio tower's output to vectors of the language model's width."""
    language_model: LanguageModelConfig
    """The language model: causal, or an encoder with a decoder."""
    prefix: Literal["causal", "bidirectional"] = "causal"
    """How a causal language model reads audio and prompt: from left to right, as published, or in both directions (a
    prefix LM: Raffel et al. 2020, section 3.2.1)."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products; parameters, norms, softmax and the loss stay float32."""
    remat: Remat = "none"
    """What the backward pass recomputes: nothing, all but the products with weights, or whole blocks."""
    padding: Literal["unmasked", "masked"] = "unmasked"
    """Treatment of the padding of a clip whose recording is shorter. "unmasked": it is encoded like audio. "masked": it
    makes no vectors; this needs a tower that tells which of its states are of real audio (Whisper's, wav2vec 2.0,
    BEATs, CAV-MAE)."""

    def __post_init__(self) -> None:
        tower.check_features(self.audio, self.frontend.num_frames, self.frontend.num_features)
        check_connector(self.connector, self.language_model.width)
        if tower.takes(self.audio, "longer"):
            raise UserError(
                f"{type(self.audio).__name__} reads four maps of a recording, and two heads give it one: take another "
                "audio tower"
            )
        if self.padding == "masked":
            tower.check_states_mask(self.audio)
        if self.prefix == "bidirectional" and self.has_encoder:
            raise UserError(
                f"prefix is 'bidirectional', which {type(self.language_model).__name__} always is: its encoder reads "
                "the audio and the prompt; leave prefix at 'causal'"
            )

    @property
    def has_encoder(self) -> bool:
        """Whether the language model is an encoder with a decoder."""
        return isinstance(self.language_model, T5Config | BartConfig)

    @property
    def start_id(self) -> int:
        """The token that the decoder of an encoder-decoder starts from."""
        model = self.language_model
        return model.start_id if isinstance(model, BartConfig) else getattr(model, "pad_id", 0)


class EncodedAudio(NamedTuple):
    """Clips as vectors that a language model reads."""

    vectors: Float[Array, "B N D"]
    mask: Bool[Array, "B N"]
    """True where a vector is of real audio."""


class Prompts(NamedTuple):
    """The texts that come before the answers, without the marker of the audio."""

    ids: Int[Array, "B P"]
    mask: Bool[Array, "B P"]
    audio_position: Int[Array, " B"]
    """The audio stands before this token; 0 for before everything."""


class Sequence(NamedTuple):
    """Audio, prompt and answer of each row as one text, its real tokens first: S = N + P + L."""

    ids: Int[Array, "B S"]
    mask: Bool[Array, "B S"]
    """True where there is a token or a vector."""
    embeds: Float[Array, "B S D"]
    embeds_mask: Bool[Array, "B S"]
    """True where ``embeds`` stands for the embedding of a token."""
    prefix: Bool[Array, "B S"]
    """True for what stands before the answer."""
    places: Int[Array, "B texts"]
    """Where the P tokens of the prompt and the L of the answer are in the sequence."""


class Predicted(NamedTuple):
    """States, and the tokens that they are to predict: logits are `project(states, *head)` of the language model."""

    states: Float[Array, "B K D"]
    labels: Int[Array, "B K"]
    mask: Bool[Array, "B K"]
    """True where the prediction counts."""


def encode_audio(
    config: TwoHeadsConfig,
    variables: Variables,
    features: Float[Array, "B *features"],
    frame_mask: Bool[Array, "B T"] | None = None,
    *,
    train: bool = False,
    key: Array | None = None,
    moments: Moments | None = None,
) -> tuple[EncodedAudio, PyTree]:
    """The features of clips as vectors of the language model's width, and the next ``batch_stats``.

    Args:
        frame_mask: True where a frame is real, where ``padding`` is masked (`tower.frame_mask`); None: all are.
        train, key, moments: as in `alm_jax.models.two_towers.encode_audio`.
    """
    dtype = jnp.dtype(config.compute_dtype)
    states, batch_stats = tower.apply_audio_tower(
        config.audio,
        {"params": variables["params"]["audio"], "batch_stats": variables["batch_stats"]["audio"]},
        features,
        dtype=dtype,
        remat=config.remat,
        train=train,
        key=key,
        row_mask=None,
        mask=frame_mask,
        longer=None,
        moments=moments,
        output=config.connector.reads,
    )
    is_real = None
    if states.ndim == 3:
        is_real = jnp.ones(states.shape[:2], bool)
        if frame_mask is not None:
            is_real = tower.state_mask(config.audio, frame_mask, train=train)
    # A connector may have no parameters.
    params = variables["params"].get("connector", {})
    rngs = None if key is None else {"dropout": jax.random.fold_in(key, CONNECTOR_STREAM)}
    vectors: Any = _connector(config, dtype).apply(
        {"params": params}, states, is_real, train=train, rngs=rngs
    )
    return EncodedAudio(*vectors), {"audio": batch_stats}


def assemble(
    encoded: EncodedAudio,
    prompts: Prompts,
    answer_ids: Int[Array, "B L"],
    answer_mask: Bool[Array, "B L"],
) -> Sequence:
    """Audio, prompt and answer of each row as one sequence.

    Padding, wherever it is, goes behind everything, so that a token follows upon the one before it and no padding takes
    a position.
    """
    num_vectors, num_prompt = encoded.mask.shape[1], prompts.mask.shape[1]
    rows, length = answer_ids.shape
    # Tokens of the prompt have even ranks, and the audio the odd one before its token.
    ranks = jnp.concatenate(
        [
            jnp.broadcast_to(2 * prompts.audio_position[:, None] - 1, (rows, num_vectors)),
            jnp.broadcast_to(2 * jnp.arange(num_prompt)[None, :], (rows, num_prompt)),
            jnp.full((rows, length), 2 * num_prompt + 1),
        ],
        axis=1,
    )
    real = jnp.concatenate([encoded.mask, prompts.mask, answer_mask], axis=1)
    order = jnp.argsort(jnp.where(real, ranks, 2 * num_prompt + 2), axis=1, stable=True)

    def put(x: Array) -> Array:
        return jnp.take_along_axis(x, order, axis=1)

    nothing = jnp.zeros((rows, num_vectors), answer_ids.dtype)
    embeds = jnp.take_along_axis(encoded.vectors, order[:, :, None], axis=1, mode="clip")
    return Sequence(
        ids=put(jnp.concatenate([nothing, prompts.ids.astype(answer_ids.dtype), answer_ids], axis=1)),
        mask=put(real),
        embeds=embeds,
        embeds_mask=order < num_vectors,
        prefix=order < num_vectors + num_prompt,
        places=jnp.argsort(order, axis=1)[:, num_vectors:],
    )


def predict(
    config: TwoHeadsConfig,
    variables: Variables,
    encoded: EncodedAudio,
    prompts: Prompts,
    answer_ids: Int[Array, "B L"],
    answer_mask: Bool[Array, "B L"],
    *,
    loss_on: Literal["answer", "all"] = "answer",
    train: bool = False,
    key: Array | None = None,
) -> Predicted:
    """The states that predict the answers, K = L; with ``loss_on`` "all" those that predict the prompts too, K = P + L.

    A token of the prompt counts where it follows another: the first, and one right after the audio, are predicted by
    nothing that says what they are (LTU's code leaves them out too). The answer counts whole.

    Args:
        train: dropout is on, where the language model has it, and needs ``key``.
    """
    if config.has_encoder:
        source, source_mask = _read_source(config, variables, encoded, prompts, train=train, key=key)
        start = jnp.full_like(answer_ids[:, :1], config.start_id)
        ids = jnp.concatenate([start, answer_ids[:, :-1]], axis=1)
        # A token is real where there is one to come after it.
        states = _apply(
            config,
            variables,
            ids,
            answer_mask,
            method="decode",
            output="states",
            source=source,
            source_mask=source_mask,
            **_noise(config, train, key, SOURCE_STREAM),
        )
        return Predicted(states, answer_ids, answer_mask)
    whole = assemble(encoded, prompts, answer_ids, answer_mask)
    states = _apply(
        config,
        variables,
        whole.ids,
        whole.mask,
        embeds=whole.embeds,
        embeds_mask=whole.embeds_mask,
        output="states",
        **({"prefix": whole.prefix} if config.prefix == "bidirectional" else {}),
        **_noise(config, train, key, TEXT_STREAM),
    )
    mask, before = answer_mask, whole.places[:, prompts.mask.shape[1] :] - 1
    if loss_on == "all":
        before = whole.places - 1
        follows = (before >= 0) & ~jnp.take_along_axis(whole.embeds_mask, before, axis=1, mode="clip")
        mask = jnp.concatenate([prompts.mask & follows[:, : prompts.mask.shape[1]], mask], axis=1)
    # A token that stands first of all, an answer to nothing, is predicted by nothing.
    states = jnp.take_along_axis(states, before[:, :, None], axis=1, mode="clip")
    return Predicted(states, labels_of(prompts, answer_ids, loss_on), mask & (before >= 0))


def labels_of(
    prompts: Prompts, answer_ids: Int[Array, "B L"], loss_on: Literal["answer", "all"]
) -> Int[Array, "B K"]:
    """The tokens that `predict` gives states for."""
    if loss_on == "answer":
        return answer_ids
    return jnp.concatenate([prompts.ids.astype(answer_ids.dtype), answer_ids], axis=1)


class Opening(NamedTuple):
    """What generation starts from: positional arguments after the variables, and options."""

    family: Family
    """Family of the language model."""
    config: Any
    """Config of the language model."""
    variables: PyTree
    """Variables of the language model."""
    ids: Int[Array, "B S"]
    mask: Bool[Array, "B S"]
    options: dict[str, Any]


def open_answers(
    config: TwoHeadsConfig, variables: Variables, encoded: EncodedAudio, prompts: Prompts
) -> Opening:
    """The language model and what it reads before it writes: ``generate(*opening[:5], ..., **opening.options)``.

    A causal model reads audio and prompt as vectors in place of tokens; the decoder of an encoder-decoder its first
    token, with the encoder's states for a source.
    """
    family = family_of(config.language_model)
    params = {"params": variables["params"]["language_model"]}
    rows = encoded.mask.shape[0]
    if config.has_encoder:
        source, source_mask = _read_source(config, variables, encoded, prompts)
        options: dict[str, Any] = {"method": "decode", "source": source, "source_mask": source_mask}
        ids, mask = jnp.full((rows, 1), config.start_id, jnp.int32), jnp.ones((rows, 1), bool)
        return Opening(family, config.language_model, params, ids, mask, options)
    nothing = jnp.zeros((rows, 0), jnp.int32)
    whole = assemble(encoded, prompts, nothing, nothing.astype(bool))
    options = {"embeds": whole.embeds, "embeds_mask": whole.embeds_mask}
    if config.prefix == "bidirectional":
        options["prefix"] = whole.prefix
    return Opening(family, config.language_model, params, whole.ids, whole.mask, options)


def count_vectors(config: TwoHeadsConfig) -> int:
    """Vectors of a whole clip, which take as many of the language model's positions."""
    features = jax.ShapeDtypeStruct((1, *feature_shape(config.frontend)), jnp.float32)
    encoded, _ = jax.eval_shape(functools.partial(encode_audio, config), TWO_HEADS.abstract(config), features)
    return encoded.mask.shape[1]


def _read_source(
    config: TwoHeadsConfig,
    variables: Variables,
    encoded: EncodedAudio,
    prompts: Prompts,
    *,
    train: bool = False,
    key: Array | None = None,
) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"]]:
    """The encoder's states of audio and prompt, and which are real."""
    nothing = jnp.zeros((encoded.mask.shape[0], 0), jnp.int32)
    whole = assemble(encoded, prompts, nothing, nothing.astype(bool))
    states = _apply(
        config,
        variables,
        whole.ids,
        whole.mask,
        method="encode",
        embeds=whole.embeds,
        embeds_mask=whole.embeds_mask,
        **_noise(config, train, key, TEXT_STREAM),
    )
    return states, whole.mask


def _apply(config: TwoHeadsConfig, variables: Variables, *inputs: Array, **options: Any) -> Any:
    """A method of the language model."""
    model = config.language_model
    module = family_of(model).build(model, jnp.dtype(config.compute_dtype), config.remat)
    return module.apply({"params": variables["params"]["language_model"]}, *inputs, **options)


def _noise(config: TwoHeadsConfig, train: bool, key: Array | None, stream: int) -> dict[str, Any]:
    """The options that switch on dropout, in language models that have it."""
    if not train or key is None or not hasattr(config.language_model, "dropout"):
        return {}
    return {"train": True, "rngs": {"dropout": jax.random.fold_in(key, stream)}}


def _connector(config: TwoHeadsConfig, dtype: Any) -> Connector:
    return Connector(config.connector, config.language_model.width, dtype)


def _draw(config: TwoHeadsConfig, key: Array) -> Variables:
    """Variables whose leaves still carry their axis names."""
    keys = jax.random.split(key, 3)
    float32 = jnp.dtype("float32")
    features = jnp.zeros((1, *feature_shape(config.frontend)), jnp.float32)
    reads = config.connector.reads
    audio, width = tower.init_audio_tower(config.audio, keys[0], features, reads)
    states = jnp.zeros(
        (1, width) if reads == "clip" else (1, 2 * getattr(config.connector, "pool_size", 1), width)
    )
    mask = None if reads == "clip" else jnp.ones(states.shape[:2], bool)
    connector = _connector(config, float32).init(keys[1], states, mask)
    family = family_of(config.language_model)
    tokens = [jnp.zeros(given.shape, given.dtype) for given in family.example(config.language_model)]
    language_model = family.build(config.language_model, float32, "none").init(keys[2], *tokens)
    params = {"audio": audio["params"], "language_model": language_model["params"]}
    # A connector without parameters has no place among them.
    if "params" in connector:
        params["connector"] = connector["params"]
    return {"params": params, "batch_stats": {"audio": audio.get("batch_stats", {})}}


TWO_HEADS = Architecture(_draw)
"""Variables of a `TwoHeadsConfig`."""
