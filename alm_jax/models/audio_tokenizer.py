"""Audio tokenizers: a spectrogram's patches as labels, one of a codebook for each.

Free functions of a config and a tree of arrays; no Flax module is seen above this file. (BEATs, Chen et al. 2022,
https://arxiv.org/abs/2212.09058, section 3.1.)

Variables are ``{"params": {"projection", "codebook"}, "batch_stats": {}}`` of a random projection, and ``{"params":
{"encoder", "hidden", "latent"}, "batch_stats": {"codebook", "usage"}}`` of a learned tokenizer, whose codes no gradient
moves.
"""

import dataclasses
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alm_jax.encoders.audio.beats import Beats, BeatsConfig
from alm_jax.errors import UserError
from alm_jax.nn.dense import Dense
from alm_jax.nn.parameter import declare
from alm_jax.ops.patchify import patchify
from alm_jax.ops.vector_quantization import Codebook, nearest_codes, normalize
from alm_jax.types import PyTree

Variables: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomProjectionConfig:
    """Random projection of patches, then the nearest code of a random codebook; both are fixed from the start."""

    num_codes: int = 1024
    """Number of labels."""
    code_dim: int = 256
    """Size of a code."""

    def __post_init__(self) -> None:
        _check(self.num_codes, self.code_dim)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedTokenizerConfig:
    """An encoder whose states are quantised, trained by `alm_jax/objectives/tokenizer_distillation.py`."""

    encoder: BeatsConfig = BeatsConfig()
    """Encoder from patches to states."""
    num_codes: int = 1024
    """Number of labels."""
    code_dim: int = 256
    """Size of a code; two linear layers with a tanh between them project a state to it."""

    def __post_init__(self) -> None:
        _check(self.num_codes, self.code_dim)


AudioTokenizerConfig: TypeAlias = RandomProjectionConfig | LearnedTokenizerConfig


def _check(num_codes: int, code_dim: int) -> None:
    if num_codes < 2 or code_dim < 1:
        raise UserError(
            f"an audio tokenizer has num_codes {num_codes} and code_dim {code_dim}; expected two labels at least, of "
            "codes that have a size"
        )


def label_patches(
    config: AudioTokenizerConfig,
    variables: Variables,
    features: Float[Array, "B T F"],
    patch_size: int,
    *,
    dtype: Any = jnp.float32,
) -> Int[Array, "B N"]:
    """The label of each patch, time-major; nothing is hidden, and no gradient passes.

    Args:
        patch_size: that of the model whose targets these are; a learned tokenizer has its own.
        dtype: of the matrix products of a learned tokenizer's encoder. Codes are compared in float32.
    """
    features = jax.lax.stop_gradient(features)
    if isinstance(config, RandomProjectionConfig):
        params = variables["params"]
        whole = features[:, : features.shape[1] // patch_size * patch_size]
        latents = normalize(
            jnp.matmul(patchify(whole, patch_size), params["projection"], precision="highest")
        )
        vectors = params["codebook"]
    else:
        latents = patch_latents(config, variables, features, dtype=dtype)
        vectors = variables["batch_stats"]["codebook"]
    return jax.lax.stop_gradient(nearest_codes(latents, vectors))


def patch_latents(
    config: LearnedTokenizerConfig,
    variables: Variables,
    features: Float[Array, "B T F"],
    *,
    dtype: Any = jnp.float32,
) -> Float[Array, "B N code"]:
    """What is quantised: vectors of length 1, float32."""
    states: Any = _Latents(config, jnp.dtype(dtype)).apply({"params": variables["params"]}, features)
    return normalize(states)


def read_codebook(variables: Variables) -> Codebook:
    """The codes of a learned tokenizer."""
    stats = variables["batch_stats"]
    return Codebook(stats["codebook"], stats["usage"])


def init_boxed(config: AudioTokenizerConfig, key: Array, patch_size: int) -> Variables:
    """Variables whose parameters still carry their axis names; to be traced, not run."""
    key_params, key_codes = jax.random.split(key)
    if isinstance(config, RandomProjectionConfig):
        module = _RandomProjection(config)
        return {**module.init(key_params, jnp.zeros((patch_size**2,), jnp.float32)), "batch_stats": {}}
    encoder = config.encoder
    features = jnp.zeros((1, encoder.patch_size, encoder.num_mels), jnp.float32)
    params = _Latents(config, jnp.dtype("float32")).init(key_params, features)["params"]
    drawn = jax.random.normal(key_codes, (config.num_codes, config.code_dim), jnp.float32)
    stats: PyTree = {"codebook": normalize(drawn), "usage": jnp.zeros((config.num_codes,), jnp.float32)}
    return {"params": params, "batch_stats": stats}


def _unit_vectors(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return normalize(jax.random.normal(key, shape, dtype))


class _RandomProjection(nn.Module):
    """Declares what a random projection is made of."""

    config: RandomProjectionConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, " pixels"]) -> None:
        # Drawn as Xavier's, of which the length of a projected patch, and nothing else, would notice the scale.
        shape = pixels.shape[0], self.config.code_dim
        declare(self, "projection", nn.initializers.xavier_normal(), shape, ("patch", "code_dim"))
        shape = self.config.num_codes, self.config.code_dim
        declare(self, "codebook", _unit_vectors, shape, ("codes", "code_dim"))


class _Latents(nn.Module):
    """Encoder, linear, tanh, linear."""

    config: LearnedTokenizerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features: Float[Array, "B T F"]) -> Float[Array, "B N code"]:
        config = self.config
        x = Beats(config.encoder, self.dtype, "tokens", name="encoder")(features)
        x = Dense((config.encoder.width,), ("embed", "mlp"), self.dtype, name="hidden")(x)
        return Dense((config.code_dim,), ("mlp", "code_dim"), self.dtype, name="latent")(nn.tanh(x))
