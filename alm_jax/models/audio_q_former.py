"""An audio tower and a Q-Former over it, with what its three targets want: a joint space, a match, and words.

The first stage of BLIP-2 (Li et al. 2023, https://arxiv.org/abs/2301.12597, section 3.2) on audio, as MINT
(arXiv 2402.07485) has it. Free functions of a config and a tree of arrays; no Flax module is seen above this file.

Variables are ``{"params": {...}, "batch_stats": {...}}``, plain nested dicts of float32 arrays:

=======================  ================================================================================
params/audio             the audio tower, as its family names its parameters
params/q_former          the Q-Former (`models/q_former.py`), which a connector of a language model can begin with
params/text_embed        ``token_embed``, ``position_embed``, and ``start`` [D], which stands in the place of a text's
                         first token where it is written and not read (BLIP-2's [DEC])
params/audio_projection  a query's last state to the joint space
params/text_projection   the first token's last state to the joint space
params/match_head        a query's last state to two logits: no match, match
params/lm_head           BERT's: ``transform``, ``norm``, and ``bias`` [V] of the words, whose kernel is the embedding
params/tau               scalar temperature, starts at 0.07
batch_stats/audio        running statistics of the audio tower, empty where it has none
=======================  ================================================================================
"""

import dataclasses
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders import tower
from alm_jax.errors import UserError
from alm_jax.losses.contrastive.temperature import TAU_INIT
from alm_jax.models.q_former import QFormer, QFormerConfig, query_audio
from alm_jax.nn.dense import Dense, Embed
from alm_jax.nn.mlp import gelu
from alm_jax.nn.norm import LayerNorm, Moments
from alm_jax.nn.parameter import KERNEL_INITS, declare, truncated_normal, zeros
from alm_jax.nn.rematerialise import Remat
from alm_jax.nn.variables import Architecture
from alm_jax.ops.frontends import FrontendSpec, WaveformSpec, feature_shape
from alm_jax.ops.similarity import unit_vectors
from alm_jax.types import PyTree

Variables: TypeAlias = dict[str, Any]
TEXT_STREAM = 1
"""Folded into a step's key for the dropout of texts read alone; texts after their clip have the key itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioQFormerConfig:
    """A front-end, an audio tower, and a Q-Former that reads its states and text."""

    frontend: FrontendSpec | WaveformSpec
    """Front-end, from waveform to features; stored with the weights."""
    audio: tower.AudioTowerConfig
    """The audio tower: the config of any audio encoder of the zoo, but for those with feature fusion. Published
    systems keep it as it was released: ``optimizer.frozen`` (^audio/)."""
    q_former: QFormerConfig = QFormerConfig()
    """The Q-Former."""
    vocab_size: int = 30522
    """Vocabulary size: entries of the tokenizer."""
    max_positions: int = 512
    """Maximum tokens of a text."""
    embed_dim: int = 256
    """Size of the joint embedding space."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products; parameters, norms, softmax and losses stay float32."""
    remat: Remat = "none"
    """What the backward pass recomputes; in the Q-Former a block is a group of ``cross_every`` blocks."""
    padding: Literal["unmasked", "masked"] = "unmasked"
    """Treatment of the padding of a clip whose recording is shorter. "unmasked": it is encoded like audio. "masked": no
    query attends to it; this needs a tower that tells which of its states are of real audio (Whisper's, wav2vec 2.0,
    BEATs, CAV-MAE)."""

    def __post_init__(self) -> None:
        tower.check_features(self.audio, self.frontend.num_frames, self.frontend.num_features)
        if tower.takes(self.audio, "longer"):
            raise UserError(
                f"{type(self.audio).__name__} reads four maps of a recording, and a Q-Former's tower is given one: "
                "take another audio tower"
            )
        if self.padding == "masked":
            tower.check_states_mask(self.audio)


class EncodedAudio(NamedTuple):
    """Output of the audio tower for clips."""

    states: Float[Array, "B N A"]
    mask: Bool[Array, "B N"]
    """True where a state is of real audio."""


class Read(NamedTuple):
    """Output of the Q-Former for clips and their texts, each row separately."""

    query_emb: Float[Array, "B K E"]
    """L2-normalised float32, one a query; independent of the text."""
    text_emb: Float[Array, "B E"]
    """L2-normalised float32; independent of the audio."""
    written: Float[Array, "B L D"]
    """Vectors that predict the next token: their products with the embeddings, plus ``bias``, are the logits."""


class TextEmbed(nn.Module):
    """Token ids to embeddings with positions, float32. Parameters: ``token_embed``, ``position_embed``, ``start``."""

    vocab_size: int
    max_positions: int
    width: int

    @nn.compact
    def __call__(self, ids: Int[Array, "B L"], *, is_written: bool) -> Float[Array, "B L D"]:
        """``is_written``: the first token is replaced by ``start``, whatever it is."""
        if ids.shape[1] > self.max_positions:
            raise UserError(
                f"captions are padded to {ids.shape[1]} tokens, the Q-Former has {self.max_positions} positions: "
                "shorten the tokenizer's max_length or raise max_positions"
            )
        x = Embed(self.vocab_size, self.width, ("vocab", "embed"), name="token_embed")(ids)
        start = declare(self, "start", truncated_normal, (self.width,), ("embed",))
        if is_written:
            x = jnp.where((jnp.arange(ids.shape[1]) == 0)[None, :, None], start[None, None], x)
        positions = Embed(self.max_positions, self.width, ("positions", "embed"), name="position_embed")
        return x + positions(jnp.arange(ids.shape[1]))[None]


class LmHead(nn.Module):
    """norm(gelu(W x + b)), BERT's way from states to what the table of words is multiplied with."""

    vocab_size: int
    epsilon: float
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        declare(self, "bias", zeros, (self.vocab_size,), ("vocab",))
        size = (x.shape[-1],)
        y = Dense(size, ("embed", "mlp"), self.dtype, kernel_init=self.kernel_init, name="transform")(x)
        return LayerNorm(self.dtype, self.epsilon, name="norm")(gelu(y))


def encode_audio(
    config: AudioQFormerConfig,
    variables: Variables,
    features: Float[Array, "B *features"],
    frame_mask: Bool[Array, "B T"] | None = None,
    *,
    train: bool = False,
    key: Array | None = None,
    moments: Moments | None = None,
) -> tuple[EncodedAudio, PyTree]:
    """The audio tower's states of clips, and the next ``batch_stats``.

    Args:
        frame_mask: True where a frame is real, where ``padding`` is masked (`tower.frame_mask`); None: all are.
        train, key, moments: as in `alm_jax.models.two_towers.encode_audio`.
    """
    states, batch_stats = tower.apply_audio_tower(
        config.audio,
        {"params": variables["params"]["audio"], "batch_stats": variables["batch_stats"]["audio"]},
        features,
        dtype=jnp.dtype(config.compute_dtype),
        remat=config.remat,
        train=train,
        key=key,
        row_mask=None,
        mask=frame_mask,
        longer=None,
        moments=moments,
        output="states",
    )
    whole = jnp.ones(states.shape[:2], bool)
    mask = whole if frame_mask is None else tower.state_mask(config.audio, frame_mask, train=train)
    return EncodedAudio(states, mask), {"audio": batch_stats}


def read(
    config: AudioQFormerConfig,
    params: PyTree,
    encoded: EncodedAudio,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    *,
    train: bool = False,
    key: Array | None = None,
) -> Read:
    """Clips and texts apart, for contrast, and each text as it is written after its clip, for generation.

    Queries do not see a text that is written, so one pass gives both their states and the words'. ``ids`` begin with a
    start token, whose state is the text's; ``mask`` is True for real tokens. ``key`` is needed for dropout.
    """
    key_text = None if key is None else jax.random.fold_in(key, TEXT_STREAM)
    states = _apply(config, params, encoded, ids, mask, reading="causal", train=train, key=key)
    num_queries = config.q_former.num_queries
    written: Any = _lm_head(config).apply({"params": params["lm_head"]}, states[:, num_queries:])
    return Read(
        query_emb=_project(config, params["audio_projection"], states[:, :num_queries]),
        text_emb=embed_text(config, params, ids, mask, train=train, key=key_text),
        written=written,
    )


def embed_audio(config: AudioQFormerConfig, params: PyTree, encoded: EncodedAudio) -> Float[Array, "B K E"]:
    """`Read.query_emb` alone, without noise."""
    dtype = jnp.dtype(config.compute_dtype)
    states = query_audio(
        config.q_former, params["q_former"], encoded.states, encoded.mask, dtype=dtype, remat=config.remat
    )
    return _project(config, params["audio_projection"], states)


def embed_text(
    config: AudioQFormerConfig,
    params: PyTree,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    *,
    train: bool = False,
    key: Array | None = None,
) -> Float[Array, "B E"]:
    """`Read.text_emb` alone."""
    states = _apply(config, params, None, ids, mask, reading="both", train=train, key=key)
    return _project(config, params["text_projection"], states[:, 0])


def match(
    config: AudioQFormerConfig,
    params: PyTree,
    encoded: EncodedAudio,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    *,
    train: bool = False,
    key: Array | None = None,
) -> Float[Array, " B"]:
    """The logit that each text belongs to its clip, float32: the mean over queries that have seen the text.

    The head has two logits a query, no match and match; their difference makes the same loss.
    """
    states = _apply(config, params, encoded, ids, mask, reading="both", train=train, key=key)
    logits: Any = _match_head(config).apply(
        {"params": params["match_head"]}, states[:, : config.q_former.num_queries]
    )
    logits = jnp.mean(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=1)
    return logits[:, 1] - logits[:, 0]


def _apply(
    config: AudioQFormerConfig,
    params: PyTree,
    encoded: EncodedAudio | None,
    ids: Array,
    mask: Array,
    *,
    reading: Literal["both", "causal"],
    train: bool,
    key: Array | None,
) -> Array:
    """States of queries, where there is audio, and text."""
    dtype = jnp.dtype(config.compute_dtype)
    text: Any = _text_embed(config).apply(
        {"params": params["text_embed"]}, ids, is_written=reading == "causal"
    )
    states: Any = QFormer(config.q_former, dtype, config.remat).apply(
        {"params": params["q_former"]},
        *((None, None) if encoded is None else encoded),
        text,
        mask,
        reading=reading,
        train=train,
        rngs=None if key is None else {"dropout": key},
    )
    return states


def _project(config: AudioQFormerConfig, params: PyTree, states: Float[Array, "B *K D"]) -> Array:
    """States in the joint space, x / ||x||, float32."""
    emb: Any = _projection(config).apply({"params": params}, states)
    return unit_vectors(emb)


def _text_embed(config: AudioQFormerConfig) -> TextEmbed:
    return TextEmbed(config.vocab_size, config.max_positions, config.q_former.width)


def _projection(config: AudioQFormerConfig) -> Dense:
    return _head(config, config.embed_dim, "joint")


def _match_head(config: AudioQFormerConfig) -> Dense:
    return _head(config, 2, "classes")


def _head(config: AudioQFormerConfig, size: int, axis: str) -> Dense:
    init = KERNEL_INITS[config.q_former.kernel_init]
    return Dense((size,), ("embed", axis), jnp.dtype(config.compute_dtype), kernel_init=init)


def _lm_head(config: AudioQFormerConfig) -> LmHead:
    shape, init = config.q_former, KERNEL_INITS[config.q_former.kernel_init]
    return LmHead(config.vocab_size, shape.layer_norm_eps, jnp.dtype(config.compute_dtype), init)


def _draw(config: AudioQFormerConfig, key: Array) -> Variables:
    """Variables whose leaves still carry their axis names."""
    keys = jax.random.split(key, 7)
    features = jnp.zeros((1, *feature_shape(config.frontend)), jnp.float32)
    audio, audio_width = tower.init_audio_tower(config.audio, keys[0], features, "states")
    states, ids = jnp.zeros((1, 1, audio_width)), jnp.zeros((1, 2), jnp.int32)
    text = jnp.zeros((1, 2, config.q_former.width))
    q_former = QFormer(config.q_former, jnp.dtype("float32")).init(
        keys[1], states, jnp.ones((1, 1), bool), text, jnp.ones((1, 2), bool)
    )
    return {
        "params": {
            "audio": audio["params"],
            "q_former": q_former["params"],
            "text_embed": _text_embed(config).init(keys[2], ids, is_written=True)["params"],
            "audio_projection": _projection(config).init(keys[3], text)["params"],
            "text_projection": _projection(config).init(keys[4], text)["params"],
            "match_head": _match_head(config).init(keys[5], text)["params"],
            "lm_head": _lm_head(config).init(keys[6], text)["params"],
            "tau": jnp.asarray(TAU_INIT, jnp.float32),
        },
        "batch_stats": {"audio": audio.get("batch_stats", {})},
    }


AUDIO_Q_FORMER = Architecture(_draw)
"""Variables of a `AudioQFormerConfig`."""
