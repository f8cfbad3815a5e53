"""BERT and RoBERTa: one module with two position conventions.

Devlin et al. 2018 (https://arxiv.org/abs/1810.04805), Liu et al. 2019 (https://arxiv.org/abs/1907.11692). The output
is one of three: the pooler's tanh(W h_0 + b) of the first token's last state, which LAION-CLAP projects; that state
itself, which MS-CLAP projects; or the mean of the real tokens' last states, as in sentence encoders (Reimers and
Gurevych 2019, https://arxiv.org/abs/1908.10084).
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.family import Family, TextTowerConfig
from alm_jax.errors import UserError
from alm_jax.nn.dense import Dense, Embed
from alm_jax.nn.dropout import dropout
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import KERNEL_INITS
from alm_jax.nn.pooling import masked_mean
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.transformer import PostNormBlock


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(TextTowerConfig):
    """Shape of a BERT or RoBERTa encoder."""

    vocab_size: int = 50265
    """Vocabulary size: entries of the tokenizer."""
    width: int = 768
    """Width: size of a token's hidden state."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads; divides the width."""
    mlp_dim: int = 3072
    """Hidden size of the feed-forward layers."""
    max_positions: int = 514
    """Rows of the position table; RoBERTa leaves the first pad_id + 1 of them unused."""
    positions: Literal["roberta", "bert"] = "roberta"
    """Position numbering. "roberta": real tokens count from pad_id + 1 and padding has pad_id. "bert": 0, 1, 2,
    ..."""
    num_token_types: int = 1
    """Rows of the token-type table; every token has type 0."""
    layer_norm_eps: float = 1e-5
    """Epsilon of LayerNorm."""
    dropout: float = 0.1
    """Dropout rate of embeddings, attention weights and residual branches in training."""
    pad_id: int = 1
    """Id of the padding token."""
    pooling: Literal["pooler", "first", "mean"] = "pooler"
    """Pooling of the last states into one vector: the pooler's output for the first token, the first token's state,
    or the mean over real tokens. Only the pooler has parameters."""
    max_tokens: int | None = None
    """Maximum tokens of a text, special tokens included, as in the published code (LAION-CLAP's 77); None: as many as
    there are positions."""
    kernel_init: Literal["normal", "fan_in"] = "normal"
    """Initialisation of kernels: N(0, 0.02^2) as published, or N(0, 1 / fan-in), with which a narrow tower learns
    faster."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(
                f"text width {self.width} is not a multiple of num_heads {self.num_heads}; change one of them"
            )
        if self.max_length < 2:
            raise UserError(
                f"max_positions {self.max_positions} and max_tokens {self.max_tokens} leave no room for two tokens; "
                f"raise them (roberta positions start at pad_id + 1 = {self.pad_id + 1})"
            )

    @property
    def max_length(self) -> int:
        """Tokens of the longest text: `max_tokens`, limited by the rows of the position table."""
        held = self.max_positions - (self.pad_id + 1 if self.positions == "roberta" else 0)
        return held if self.max_tokens is None else min(held, self.max_tokens)


ROBERTA_BASE = BertConfig()
BERT_BASE = BertConfig(
    vocab_size=30522, max_positions=512, positions="bert", num_token_types=2, layer_norm_eps=1e-12, pad_id=0
)
NANO = BertConfig(
    vocab_size=1000, width=128, num_layers=2, num_heads=4, mlp_dim=512, max_positions=66, kernel_init="fan_in"
)
ALL_MINILM_L6 = dataclasses.replace(BERT_BASE, width=384, num_layers=6, mlp_dim=1536, pooling="mean")
VARIANTS = {
    "roberta_base": ROBERTA_BASE,
    "bert_base": BERT_BASE,
    "all_minilm_l6": ALL_MINILM_L6,
    "nano": NANO,
}


class Bert(nn.Module):
    """Module from token ids and their mask to one vector a text [B D], or to the last states of all tokens, in
    ``dtype``.

    Parameters: ``token_embed``, ``position_embed``, ``type_embed``, ``embed_norm``, ``blocks`` (every array with a
    leading axis of layers), and ``pooler`` where the config uses its output.
    """

    config: BertConfig
    dtype: jnp.dtype
    remat: Remat = "none"
    is_pooled: bool = True
    """Whether to pool. False returns the states [B L D], whatever the config's pooling."""

    @nn.compact
    def __call__(
        self, ids: Int[Array, "B L"], mask: Bool[Array, "B L"], *, train: bool = False
    ) -> Float[Array, "B D"] | Float[Array, "B L D"]:
        config = self.config
        if ids.shape[1] > config.max_length:
            raise UserError(
                f"captions are padded to {ids.shape[1]} tokens; max_positions {config.max_positions} and max_tokens "
                f"{config.max_tokens} hold {config.max_length}: shorten the tokenizer's max_length or raise these"
            )
        rate = config.dropout if train else 0.0

        def embed(name: str, num_entries: int, axis: str) -> Embed:
            return Embed(num_entries, config.width, (axis, "embed"), name=name)

        x = embed("token_embed", config.vocab_size, "vocab")(ids)
        x += embed("position_embed", config.max_positions, "positions")(compute_positions(config, mask))
        x += embed("type_embed", config.num_token_types, "token_types")(jnp.zeros_like(ids))
        x = LayerNorm(self.dtype, config.layer_norm_eps, name="embed_norm")(x)
        x = dropout(x, rate, self.make_rng("dropout") if rate else None)

        block = rematerialise(PostNormBlock, self.remat)
        init = KERNEL_INITS[config.kernel_init]
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(
            config.num_heads, config.mlp_dim, config.layer_norm_eps, rate, self.dtype, init, name="blocks"
        )(x, mask)
        if not self.is_pooled:
            return x
        if config.pooling == "mean":
            return masked_mean(x, mask)
        if config.pooling == "first":
            return x[:, 0]
        pooler = Dense((config.width,), ("embed", "pooled"), self.dtype, kernel_init=init, name="pooler")
        return jnp.tanh(pooler(x[:, 0]))


def compute_positions(config: BertConfig, mask: Bool[Array, "B L"]) -> Int[Array, "B L"]:
    """Returns each token's row of the position table."""
    if config.positions == "bert":
        return jnp.broadcast_to(jnp.arange(mask.shape[1])[None, :], mask.shape)
    real = mask.astype(jnp.int32)
    return jnp.cumsum(real, axis=1) * real + config.pad_id


FAMILY = Family(
    name="bert",
    kind="text encoder",
    config_type=BertConfig,
    build=Bert,
    variants=VARIANTS,
    example=lambda config: (jax.ShapeDtypeStruct((2, 4), jnp.int32), jax.ShapeDtypeStruct((2, 4), jnp.bool_)),
    takes=frozenset({"train"}),
    source="https://arxiv.org/abs/1810.04805, https://arxiv.org/abs/1907.11692, https://arxiv.org/abs/1908.10084",
)
