"""A tokenizer beside the encoder that it learns from, and the estimator between them.

Free functions of a config and a tree of arrays; no Flax module is seen above this file. (BEATs, Chen et al. 2022,
https://arxiv.org/abs/2212.09058, section 3.1.2, the self-distilled tokenizer.)

Variables are ``{"params": {"tokenizer": ..., "estimator": ..., "teacher": ...}, "batch_stats": {"tokenizer": ...}}``;
the teacher does not train.
"""

import dataclasses
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alm_jax.encoders.audio.beats import Beats, BeatsConfig
from alm_jax.models import audio_tokenizer
from alm_jax.models.audio_tokenizer import LearnedTokenizerConfig
from alm_jax.models.label_predictor import (
    TOKENIZER,
    check_patches,
    check_same_patches,
    patch_grid,
)
from alm_jax.models.patch_decoders import DecoderConfig, GlobalDecoderConfig, PatchDecoder, check_grid
from alm_jax.nn.rematerialise import Remat
from alm_jax.nn.variables import Architecture
from alm_jax.ops.frontends import BeatsSpec, ClipSpec, FrontendSpec
from alm_jax.ops.vector_quantization import nearest_codes, straight_through, take_codes

Variables: TypeAlias = dict[str, Any]

TEACHER = "teacher"
"""Under which the parameters of the teacher lie."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilledTokenizerConfig:
    """A front-end, a tokenizer, a teacher and an estimator. Defaults are of BEATs' size."""

    frontend: FrontendSpec = BeatsSpec(clip=ClipSpec(clip_sec=10.0))
    """Front-end of the teacher, from waveform to features."""
    tokenizer: LearnedTokenizerConfig = LearnedTokenizerConfig()
    """The tokenizer, which is trained and kept."""
    teacher: BeatsConfig = BeatsConfig()
    """The teacher: the encoder of the previous iteration; ``init_from`` names its weights."""
    estimator: DecoderConfig = GlobalDecoderConfig(width=768, num_layers=3, num_heads=12, mlp_dim=3072)
    """Estimator of the teacher's states from the codes; only this training needs it."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products; parameters, norms, softmax, codes and the loss stay float32."""
    remat: Remat = "none"
    """What the backward pass of the estimator recomputes."""

    def __post_init__(self) -> None:
        check_patches(self.tokenizer.encoder, self.frontend)
        check_same_patches(self.tokenizer.encoder, self.teacher, "model.teacher")
        check_grid(self.estimator, self.grid)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a clip along time and along frequency."""
        return patch_grid(self.tokenizer.encoder, self.frontend)


def tokenizer_variables(variables: Variables) -> Variables:
    """Those of the tokenizer alone."""
    return {kind: tree[TOKENIZER] for kind, tree in variables.items()}


def latents_of(
    config: DistilledTokenizerConfig, variables: Variables, features: Float[Array, "B T F"]
) -> Float[Array, "B N code"]:
    """What is quantised: a vector of length 1 for each patch, float32."""
    return audio_tokenizer.patch_latents(
        config.tokenizer, tokenizer_variables(variables), features, dtype=jnp.dtype(config.compute_dtype)
    )


def teacher_states(
    config: DistilledTokenizerConfig, variables: Variables, features: Float[Array, "B T F"]
) -> Float[Array, "B N D"]:
    """What is to be estimated: the states of the teacher, which sees all patches. No gradient passes."""
    dtype = jnp.dtype(config.compute_dtype)
    states: Any = Beats(config.teacher, dtype, "tokens").apply(
        {"params": jax.lax.stop_gradient(variables["params"][TEACHER])}, features
    )
    return states


def quantize(
    variables: Variables, latents: Float[Array, "B N code"]
) -> tuple[Float[Array, "B N code"], Float[Array, "B N code"]]:
    """The nearest codes of latents: as they are, and with the gradient of the latents (straight through)."""
    vectors = audio_tokenizer.read_codebook(tokenizer_variables(variables)).vectors
    chosen = jax.lax.stop_gradient(take_codes(nearest_codes(latents, vectors), vectors))
    return chosen, straight_through(latents, chosen)


def estimate(
    config: DistilledTokenizerConfig,
    variables: Variables,
    codes: Float[Array, "B N code"],
    *,
    train: bool = False,
    key: Array | None = None,
) -> Float[Array, "B N D"]:
    """The teacher's states, estimated from the codes, in the compute dtype.

    ``train``: a local estimator's dropout is on and needs ``key``.
    """
    module = _estimator(config, jnp.dtype(config.compute_dtype))
    rngs = None if key is None else {"dropout": key}
    restore_ids = jnp.broadcast_to(jnp.arange(codes.shape[1])[None], codes.shape[:2])
    params = {"params": variables["params"]["estimator"]}
    states: Any = module.apply(params, codes, restore_ids, train=train, rngs=rngs)
    return states


def encode_clips(
    config: DistilledTokenizerConfig, variables: Variables, features: Float[Array, "B T F"]
) -> Float[Array, "B D"]:
    """The mean of the states of the tokenizer's encoder; float32."""
    params = variables["params"][TOKENIZER]["encoder"]
    encoder = Beats(config.tokenizer.encoder, jnp.dtype(config.compute_dtype), "tokens")
    states: Any = encoder.apply({"params": params}, features)
    return jnp.mean(states.astype(jnp.float32), axis=1)


def _estimator(config: DistilledTokenizerConfig, dtype: Any) -> PatchDecoder:
    return PatchDecoder(
        config.estimator,
        config.teacher.width,
        config.grid,
        False,
        dtype,
        config.remat,
        has_class_token=False,
        output_axis="audio_embed",
    )


def _draw(config: DistilledTokenizerConfig, key: Array) -> Variables:
    """Variables whose leaves still carry their axis names."""
    key_tokenizer, key_teacher, key_estimator = jax.random.split(key, 3)
    float32, encoder = jnp.dtype("float32"), config.tokenizer.encoder
    features = jnp.zeros((1, encoder.patch_size, encoder.num_mels), jnp.float32)
    tokenizer = audio_tokenizer.init_boxed(config.tokenizer, key_tokenizer, encoder.patch_size)
    num_patches = config.grid[0] * config.grid[1]
    codes = jnp.zeros((1, num_patches, config.tokenizer.code_dim), jnp.float32)
    restore_ids = jnp.zeros((1, num_patches), jnp.int32)
    estimator = _estimator(config, float32).init(key_estimator, codes, restore_ids)
    teacher = Beats(config.teacher, float32, "tokens").init(key_teacher, features)
    return {
        "params": {
            TOKENIZER: tokenizer["params"],
            "estimator": estimator["params"],
            TEACHER: teacher["params"],
        },
        "batch_stats": {TOKENIZER: tokenizer["batch_stats"]},
    }


DISTILLED_TOKENIZER = Architecture(_draw)
"""Variables of a `DistilledTokenizerConfig`."""
