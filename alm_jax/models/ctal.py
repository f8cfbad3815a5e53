"""CTAL: a text encoder, and an audio encoder whose blocks attend to the text's states.

Li et al. 2021, https://arxiv.org/abs/2109.00181. RoBERTa reads the transcript; frames of speech go through a linear
layer and positions of their own into RoBERTa blocks that have cross-attention between the two halves. Both ends
predict what was hidden: the text by a masked language model's head, the audio by Mockingjay's (Liu et al. 2019,
https://arxiv.org/abs/1910.12638).

Variables are ``{"params": {"text", "word_head", "audio", "acoustic_head"}, "batch_stats": {}}``, as `Bert`,
`MaskedLanguageHead`, `TextConditionedEncoder` and `AcousticHead` name their parameters.
"""

import dataclasses
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.text.bert import Bert, BertConfig
from alm_jax.errors import UserError
from alm_jax.nn.attention import SelfAttention
from alm_jax.nn.cross_attention import CrossAttention, CrossKeyValue
from alm_jax.nn.dense import Dense
from alm_jax.nn.dropout import dropout
from alm_jax.nn.masked_language_head import MaskedLanguageHead
from alm_jax.nn.mlp import Mlp, gelu
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import KERNEL_INITS, declare, truncated_normal
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.variables import Architecture
from alm_jax.ops.attention_masks import causal_mask
from alm_jax.ops.frontends import ClipSpec, CtalSpec, FrontendSpec
from alm_jax.types import PyTree

Variables: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CtalModelConfig:
    """A front-end and both encoders. Defaults are the published base size."""

    frontend: FrontendSpec = CtalSpec(clip=ClipSpec(clip_sec=37.4875, pad="zero"))
    """Front-end, from waveform to features; stored with the weights. The default makes clips of the published 3,000
    frames."""
    text: BertConfig = BertConfig(vocab_size=30000, num_layers=6)
    """The text encoder, of which every state is read and no pooling. The audio encoder has its width, heads, MLP width,
    epsilon, dropout and initialisation."""
    num_audio_layers: int = 6
    """Number of blocks of the audio encoder; the published sizes have 3, 6 and 12 in each encoder."""
    max_frames: int = 3000
    """Rows of the audio encoder's position table: maximum frames of a clip."""
    compat: bool = False
    """Frames see no later ones: the pinned version of the published code's library masks so whatever is_decoder is set
    on, which is what made cross-attention possible. Nothing in the paper asks for it; False sees both ways."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products; parameters, norms, softmax and the losses stay float32."""
    remat: Remat = "none"
    """What the backward pass recomputes."""

    def __post_init__(self) -> None:
        if self.frontend.num_frames > self.max_frames:
            raise UserError(
                f"the front-end makes {self.frontend.num_frames} frames a clip, the audio encoder has positions for "
                f"{self.max_frames}: lower frontend.clip.clip_sec or raise max_frames"
            )
        if self.num_audio_layers < 1:
            raise UserError(f"num_audio_layers is {self.num_audio_layers}; expected at least one block")


class TextConditionedBlock(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + cross(x, text)); x = norm(x + mlp(x)).

    Written as the body of `nn.scan`: returns (x, None).
    """

    config: BertConfig
    dropout_rate: float
    """Dropout rate of attention weights and of all branches; above 0 it needs the PRNG stream "dropout"."""
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        source: tuple[Float[Array, "B L H K"], Float[Array, "B L H K"]],
        visible: Bool[Array, "B 1 queries T"],
        source_mask: Bool[Array, "B L"],
    ) -> tuple[Float[Array, "B T D"], None]:
        """``source`` is this layer's keys and values of the text; ``visible`` says which frame sees which."""
        config, rate = self.config, self.dropout_rate
        init = KERNEL_INITS[config.kernel_init]

        def make_key() -> Array | None:
            return self.make_rng("dropout") if rate > 0.0 else None

        def add(x: Array, y: Array, name: str) -> Array:
            return LayerNorm(self.dtype, config.layer_norm_eps, name=name)(x + dropout(y, rate, make_key()))

        attention = SelfAttention(
            config.num_heads, self.dtype, dropout_rate=rate, kernel_init=init, name="attention"
        )
        x = add(x, attention(x, mask=visible, dropout_key=make_key()), "attention_norm")
        cross_attention = CrossAttention(
            config.num_heads,
            config.width // config.num_heads,
            self.dtype,
            dropout_rate=rate,
            kernel_init=init,
            query_init=init,
            name="cross_attention",
        )
        x = add(x, cross_attention(x, *source, source_mask, make_key()), "cross_norm")
        return add(x, Mlp(config.mlp_dim, self.dtype, init, name="mlp")(x), "mlp_norm"), None


class TextConditionedEncoder(nn.Module):
    """Frames and the text's states to the frames' states [B T D], in ``dtype``.

    Parameters: ``frame_embed``, ``position_embed`` [max_frames D], ``type_embed`` [D], ``embed_norm``,
    ``cross_key_value``, ``blocks`` (every array with a leading axis of layers).
    """

    config: CtalModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B T F"],
        frame_mask: Bool[Array, "B T"],
        text_states: Float[Array, "B L D"],
        text_mask: Bool[Array, "B L"],
        *,
        train: bool = False,
    ) -> Float[Array, "B T D"]:
        config, text = self.config, self.config.text
        num_frames, width = features.shape[1], text.width
        if num_frames > config.max_frames:
            raise UserError(
                f"{num_frames} frames; the audio encoder has positions for {config.max_frames}: raise max_frames"
            )
        rate, init = text.dropout if train else 0.0, KERNEL_INITS[text.kernel_init]
        x = Dense((width,), ("mel", "embed"), self.dtype, kernel_init=init, name="frame_embed")(features)
        shape = (config.max_frames, width)
        positions = declare(self, "position_embed", truncated_normal, shape, ("positions", "embed"))
        kind = declare(self, "type_embed", truncated_normal, (width,), ("embed",))
        x += (positions[:num_frames] + kind[None])[None].astype(self.dtype)
        x = LayerNorm(self.dtype, text.layer_norm_eps, name="embed_norm")(x)
        x = dropout(x, rate, self.make_rng("dropout") if rate else None)

        source = CrossKeyValue(
            config.num_audio_layers,
            text.num_heads,
            width // text.num_heads,
            self.dtype,
            kernel_init=init,
            name="cross_key_value",
        )(text_states, text_mask)
        blocks = nn.scan(
            rematerialise(TextConditionedBlock, config.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.num_audio_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        visible = causal_mask(frame_mask) if config.compat else frame_mask[:, None, None, :]
        x, _ = blocks(text, rate, self.dtype, name="blocks")(
            x, (source.key, source.value), visible, text_mask
        )
        return x


class AcousticHead(nn.Module):
    """States to features: W2 norm(gelu(W1 x + b1)) + b2. Parameters: ``dense``, ``norm``, ``out``."""

    config: CtalModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, states: Float[Array, "B T D"]) -> Float[Array, "B T F"]:
        text, num_features = self.config.text, self.config.frontend.num_features
        init = KERNEL_INITS[text.kernel_init]
        size = (text.width,)
        hidden = gelu(Dense(size, ("embed", "mlp"), self.dtype, kernel_init=init, name="dense")(states))
        hidden = LayerNorm(self.dtype, text.layer_norm_eps, axis="mlp", name="norm")(hidden)
        out = Dense((num_features,), ("mlp", "mel"), self.dtype, kernel_init=init, name="out")
        return out(hidden)


def encode_text(
    config: CtalModelConfig,
    variables: Variables,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    *,
    train: bool = False,
    key: Array | None = None,
) -> Float[Array, "B L D"]:
    """States of a transcript, independent of the audio; ``key`` is needed when training with dropout."""
    states: Any = _text(config, _dtype(config)).apply(
        {"params": variables["params"]["text"]}, ids, mask, train=train, rngs=_rngs(key)
    )
    return states


def encode_audio(
    config: CtalModelConfig,
    variables: Variables,
    features: Float[Array, "B T F"],
    frame_mask: Bool[Array, "B T"],
    text_states: Float[Array, "B L D"],
    text_mask: Bool[Array, "B L"],
    *,
    train: bool = False,
    key: Array | None = None,
) -> Float[Array, "B T D"]:
    """States of frames, given those of the transcript; masks are True where a frame or a token is real.

    ``key`` is needed when training with dropout.
    """
    states: Any = TextConditionedEncoder(config, _dtype(config)).apply(
        {"params": variables["params"]["audio"]},
        features,
        frame_mask,
        text_states,
        text_mask,
        train=train,
        rngs=_rngs(key),
    )
    return states


def draw_frames(
    config: CtalModelConfig, variables: Variables, states: Float[Array, "B T D"]
) -> Float[Array, "B T F"]:
    """The features that the audio encoder's states stand for, in the compute dtype."""
    head = AcousticHead(config, _dtype(config))
    drawn: Any = head.apply({"params": variables["params"]["acoustic_head"]}, states)
    return drawn


def predict_words(
    config: CtalModelConfig, variables: Variables, states: Float[Array, "B L D"]
) -> Float[Array, "B L D"]:
    """What the product with `word_table` makes logits of."""
    hidden: Any = _word_head(config, _dtype(config)).apply(
        {"params": variables["params"]["word_head"]}, states
    )
    return hidden


def word_table(params: PyTree) -> tuple[Float[Array, "V D"], Float[Array, " V"]]:
    """The table of embeddings and the bias that make logits."""
    return params["text"]["token_embed"]["embedding"], params["word_head"]["bias"]


def _dtype(config: CtalModelConfig) -> jnp.dtype:
    return jnp.dtype(config.compute_dtype)


def _rngs(key: Array | None) -> dict[str, Array] | None:
    return None if key is None else {"dropout": key}


def _text(config: CtalModelConfig, dtype: jnp.dtype) -> Bert:
    return Bert(config.text, dtype, remat=config.remat, is_pooled=False)


def _word_head(config: CtalModelConfig, dtype: jnp.dtype) -> MaskedLanguageHead:
    text = config.text
    return MaskedLanguageHead(text.vocab_size, text.layer_norm_eps, dtype, KERNEL_INITS[text.kernel_init])


def _draw(config: CtalModelConfig, key: Array) -> Variables:
    """Variables whose leaves still carry their axis names."""
    keys, float32 = jax.random.split(key, 4), jnp.dtype("float32")
    ids, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), jnp.bool_)
    features = jnp.zeros((1, 2, config.frontend.num_features), jnp.float32)
    states = jnp.zeros((1, 2, config.text.width), jnp.float32)
    drawn = {
        "text": _text(config, float32).init(keys[0], ids, mask),
        "word_head": _word_head(config, float32).init(keys[1], states),
        "audio": TextConditionedEncoder(config, float32).init(keys[2], features, mask, states, mask),
        "acoustic_head": AcousticHead(config, float32).init(keys[3], states),
    }
    return {"params": {name: variables["params"] for name, variables in drawn.items()}, "batch_stats": {}}


CTAL = Architecture(_draw)
"""Variables of a `CtalModelConfig`."""
