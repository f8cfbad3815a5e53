"""Connectors: an audio encoder's states, or a clip's vector, to vectors that a language model reads as tokens.

========================  =========================================================================================
config                    what it is
========================  =========================================================================================
LinearConnectorConfig     means of neighbouring states, and a linear layer (Qwen-Audio, Qwen2-Audio: arXiv 2407.10759)
MlpConnectorConfig        means of neighbouring states, and two linear layers
DirectConnectorConfig     nothing: the tower's vectors have the language model's width (CAV-MAE's prompt, as in LTU,
                          arXiv 2305.10790: mean over frequency, pooled by 2, divided by 50, standardised, linear)
MapperConnectorConfig     ClapCap's and Pengi's transformer, which makes a prefix of a clip's vector (arXiv 2305.11834)
QFormerConnectorConfig    learned queries that read the states, and a linear layer (BLIP-2, arXiv 2301.12597)
========================  =========================================================================================
"""

import dataclasses
from typing import Any, ClassVar, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.encoders.tower import Output
from alm_jax.errors import UserError
from alm_jax.models.q_former import QFormer, QFormerConfig
from alm_jax.nn.attention import SelfAttention
from alm_jax.nn.dense import Dense
from alm_jax.nn.mlp import Mlp, gelu
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import KERNEL_INITS, declare
from alm_jax.ops.similarity import unit_vectors
from alm_jax.ops.window_mask import window_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PoolingConfig:
    """Fields shared by connectors that map the tower's states one group at a time."""

    pool_size: int = 1
    """Number of neighbouring states, in the tower's order, averaged into one vector; a group with padding gives
    none."""

    reads: ClassVar[Output] = "states"
    """Output of the audio tower that the connector reads."""

    def __post_init__(self) -> None:
        if self.pool_size < 1:
            raise UserError(f"connector.pool_size is {self.pool_size}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearConnectorConfig(_PoolingConfig):
    """A linear layer. Qwen2-Audio's encoder pools by itself, before its last norm: there this does not."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpConnectorConfig(_PoolingConfig):
    """W2 gelu(W1 x + b1) + b2."""

    mlp_dim: int = 4096
    """Hidden size between the two layers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectConnectorConfig:
    """No connector: the tower's own vectors, which have the language model's width."""

    reads: ClassVar[Output] = "states"
    """Output of the audio tower that the connector reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapperConnectorConfig:
    """A transformer that maps a clip's vector to a prefix. Defaults are ClapCap's; Pengi's has 4 layers.

    A linear layer makes ``num_inputs`` vectors, ``num_vectors`` learned ones follow them, and the blocks' states of
    the learned ones are the prefix.
    """

    num_vectors: int = 40
    """Number of vectors of the prefix."""
    num_inputs: int = 40
    """Number of vectors that the clip's vector is projected to."""
    num_layers: int = 8
    """Transformer blocks."""
    num_heads: int = 8
    """Attention heads; divides the language model's width."""
    mlp_dim: int = 1536
    """Hidden size of the feed-forward layers: twice the language model's width, as published."""
    normalize: bool = True
    """Whether to divide the clip's vector by its norm first, as published."""

    reads: ClassVar[Output] = "clip"
    """Output of the audio tower that the connector reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QFormerConnectorConfig:
    """A Q-Former: as many vectors for any clip as there are queries. Its parameters may be initialised from a trained
    one."""

    q_former: QFormerConfig = QFormerConfig()
    """The Q-Former."""

    reads: ClassVar[Output] = "states"
    """Output of the audio tower that the connector reads."""


ConnectorConfig: TypeAlias = (
    LinearConnectorConfig
    | MlpConnectorConfig
    | DirectConnectorConfig
    | MapperConnectorConfig
    | QFormerConnectorConfig
)
_LAYER_NORM_EPS = 1e-5
_FAN_IN = KERNEL_INITS["fan_in"]


def check_connector(config: ConnectorConfig, width: int) -> None:
    """Raises UserError where a connector cannot make vectors of a language model's ``width``."""
    if isinstance(config, MapperConnectorConfig) and width % config.num_heads:
        raise UserError(
            f"connector.num_heads {config.num_heads} does not divide the language model's width {width}; change it"
        )


def pool_states(
    states: Float[Array, "B N D"], mask: Bool[Array, "B N"], size: int
) -> tuple[Float[Array, "B n D"], Bool[Array, "B n"]]:
    """Means of ``size`` neighbours, n = N // size, and which of them are of real states alone."""
    if size == 1:
        return states, mask
    rows, num_states, width = states.shape
    length = num_states // size
    # A mean loses bits in bfloat16.
    wide = states[:, : length * size].astype(jnp.promote_types(states.dtype, jnp.float32))
    pooled = jnp.mean(wide.reshape(rows, length, size, width), axis=2)
    return pooled.astype(states.dtype), window_mask(mask, size, size)


class MapperBlock(nn.Module):
    """x = x + attention(norm(x)); x = x + mlp(norm(x)), with ReLU, and no biases before attention.

    Written as the body of `nn.scan`: returns (x, None).
    """

    num_heads: int
    mlp_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> tuple[Float[Array, "B L D"], None]:
        y = LayerNorm(self.dtype, _LAYER_NORM_EPS, name="attention_norm")(x)
        attention = SelfAttention(
            self.num_heads, self.dtype, use_qkv_bias=False, kernel_init=_FAN_IN, name="attention"
        )
        x = x + attention(y)
        y = LayerNorm(self.dtype, _LAYER_NORM_EPS, name="mlp_norm")(x)
        return x + Mlp(self.mlp_dim, self.dtype, _FAN_IN, nn.relu, name="mlp")(y), None


class Mapper(nn.Module):
    """`MapperConnectorConfig`'s transformer: [B D] to [B num_vectors width].

    Parameters: ``linear``, ``prefix`` [num_vectors width], ``blocks`` (every array with a leading axis of layers).
    """

    config: MapperConnectorConfig
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B n width"]:
        config = self.config
        if config.normalize:
            x = unit_vectors(x)
        size = (config.num_inputs, self.width)
        linear = Dense(
            size, ("audio_embed", "positions", "embed"), self.dtype, kernel_init=_FAN_IN, name="linear"
        )
        shape = (config.num_vectors, self.width)
        prefix = declare(self, "prefix", nn.initializers.normal(1.0), shape, ("positions", "embed"))
        tokens = jnp.concatenate(
            [linear(x), jnp.broadcast_to(prefix.astype(self.dtype)[None], (len(x), *shape))], axis=1
        )
        blocks = nn.scan(
            MapperBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        tokens, _ = blocks(config.num_heads, config.mlp_dim, self.dtype, name="blocks")(tokens)
        return tokens[:, config.num_inputs :]


class Connector(nn.Module):
    """What the audio tower makes of clips to vectors of a language model's ``width``, and which of them are real.

    Parameters: ``linear``; ``up`` and ``down``; none; ``mapper``; ``q_former`` and ``linear``.
    """

    config: ConnectorConfig
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, states: Float[Array, "B *N D"], mask: Bool[Array, "B N"] | None, *, train: bool = False
    ) -> tuple[Float[Array, "B n width"], Bool[Array, "B n"]]:
        """``states`` are the tower's, or clips' vectors [B D], as ``config.reads`` says; ``mask``: the real ones.

        Training drops out, by the stream "dropout", where a Q-Former has a rate for it.

        Raises:
            UserError: nothing is to be changed, and the widths differ.
        """
        config: Any = self.config
        size = (self.width,)
        match config:
            case MapperConnectorConfig():
                vectors = Mapper(config, self.width, self.dtype, name="mapper")(states)
                return vectors, jnp.ones(vectors.shape[:2], bool)
            case DirectConnectorConfig():
                if states.shape[-1] != self.width:
                    raise UserError(
                        f"the audio tower's vectors are {states.shape[-1]} wide and the language model {self.width}, "
                        "and a DirectConnectorConfig changes nothing: make them equal (audio.prompt_width of CAV-MAE), "
                        "or take another connector"
                    )
                assert mask is not None
                return states.astype(self.dtype), mask
        assert mask is not None
        linear = Dense(size, ("audio_embed", "embed"), self.dtype, kernel_init=_FAN_IN, name="linear")
        if isinstance(config, QFormerConnectorConfig):
            queried = QFormer(config.q_former, self.dtype, name="q_former")(states, mask, train=train)
            return linear(queried), jnp.ones(queried.shape[:2], bool)
        pooled, mask = pool_states(states, mask, config.pool_size)
        if isinstance(config, LinearConnectorConfig):
            return linear(pooled), mask
        hidden = Dense((config.mlp_dim,), ("audio_embed", "mlp"), self.dtype, kernel_init=_FAN_IN, name="up")(
            pooled
        )
        return Dense(size, ("mlp", "embed"), self.dtype, kernel_init=_FAN_IN, name="down")(gelu(hidden)), mask
