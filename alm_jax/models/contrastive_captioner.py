"""One audio trunk under several heads: contrast, captioning, matching, and the drawing of what was hidden from it.

Free functions of a config and a tree of arrays; no Flax module is seen above this file. The contrastive captioner is
CoCa (Yu et al. 2022, https://arxiv.org/abs/2205.01917): the trunk's states are pooled by one query for a contrastive
embedding and by many for a text decoder, whose first half reads texts alone. Matching judges the decoder's last state
of a text and an audio (ALBEF, arXiv 2107.07651, has an encoder there); a masked autoencoder's decoder draws patches.

Variables are ``{"params": {...}, "batch_stats": {"audio": ...}}``; of the parameters:

==========================  ================================================================
audio                       the trunk, as its family names its parameters
contrast_pooler             `AttentionalPooler` of one query
caption_pooler              `AttentionalPooler` of ``caption_queries``
audio_projection            ``kernel`` [D E]
text_projection             ``kernel`` [D E]
text                        `CaptionDecoder`
matching_head               ``kernel`` [D 1] and ``bias``, where the config has it
patch_decoder               `PatchDecoder`, where the config has one
==========================  ================================================================
"""

import dataclasses
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders import tower
from alm_jax.encoders.audio.audio_mae import AudioMaeConfig
from alm_jax.errors import UserError
from alm_jax.models.caption_decoder import CaptionDecoder, CaptionDecoderConfig
from alm_jax.models.masked_autoencoder import MASKED_AUTOENCODER, MaskedAutoencoderConfig
from alm_jax.models.patch_decoders import DecoderConfig
from alm_jax.nn.attentional_pooler import AttentionalPooler
from alm_jax.nn.dense import Dense
from alm_jax.nn.norm import Moments
from alm_jax.nn.parameter import KERNEL_INITS
from alm_jax.nn.rematerialise import Remat
from alm_jax.nn.variables import Architecture
from alm_jax.ops.frontends import FrontendSpec, feature_shape
from alm_jax.ops.similarity import unit_vectors
from alm_jax.types import Params, PyTree

Variables: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveCaptionerConfig:
    """A front-end, a trunk, a text decoder, and the heads over them."""

    frontend: FrontendSpec
    """Front-end, from waveform to features; stored with the weights."""
    audio: tower.AudioTowerConfig
    """The trunk: the config of any audio encoder of the zoo; of one that makes a single vector, that is the only
    state. What is to be drawn from a part of the clip takes an AudioMaeConfig."""
    text: CaptionDecoderConfig
    """The text decoder."""
    caption_queries: int = 256
    """Number of vectors of a clip that the text decoder attends to."""
    embed_dim: int = 512
    """Size of the joint embedding space."""
    matching_head: bool = False
    """Whether there is a head that decides if a text matches an audio; a MatchingTerm trains it."""
    patch_decoder: DecoderConfig | None = None
    """Decoder of hidden patches; a ReconstructionTerm trains it."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products; parameters, norms, softmax and the losses stay float32."""
    remat: Remat = "none"
    """What the backward pass recomputes."""
    padding: Literal["unmasked", "masked"] = "unmasked"
    """Treatment of the padding of a clip whose recording is shorter. "unmasked": it is encoded like audio. "masked": no
    query attends to it; this needs a trunk that tells which of its states are real, as the packed ViT does, whose clips
    then share rows."""

    def __post_init__(self) -> None:
        tower.check_features(self.audio, self.frontend.num_frames, self.frontend.num_features)
        if self.caption_queries < 1:
            raise UserError(f"caption_queries is {self.caption_queries}; the decoder attends to one at least")
        if self.padding == "masked":
            tower.check_states_mask(self.audio)
        if self.patch_decoder is not None:
            if not isinstance(self.audio, AudioMaeConfig):
                raise UserError(
                    f"patch_decoder draws what a trunk has not seen, and {type(self.audio).__name__} sees all of a "
                    "clip: take an AudioMaeConfig for audio, or no patch_decoder"
                )
            self.autoencoder  # noqa: B018  (its own checks)

    @property
    def autoencoder(self) -> MaskedAutoencoderConfig:
        """Trunk and patch decoder as the masked autoencoder that they are; where there is a patch decoder."""
        assert self.patch_decoder is not None
        return MaskedAutoencoderConfig(
            frontend=self.frontend,
            encoder=self.audio,
            decoder=self.patch_decoder,
            compute_dtype=self.compute_dtype,
            remat=self.remat,
        )


def autoencoder_variables(params: Params) -> Variables:
    """Trunk and patch decoder under the names that `alm_jax.models.masked_autoencoder` has for them."""
    return {"params": {"encoder": params["audio"], "decoder": params["patch_decoder"]}, "batch_stats": {}}


class EncodedAudio(NamedTuple):
    """States of clips from the trunk, the input of every head."""

    states: Float[Array, "B N A"]
    mask: Bool[Array, "B N"]
    """True where a state is of real audio."""


def encode_audio(
    config: ContrastiveCaptionerConfig,
    variables: Variables,
    features: Float[Array, "B *features"],
    frame_mask: Bool[Array, "B T"] | None = None,
    *,
    train: bool = False,
    key: Array | None = None,
    moments: Moments | None = None,
) -> tuple[EncodedAudio, PyTree]:
    """The trunk's states, and the next ``batch_stats`` (unchanged unless training).

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
    if frame_mask is None:
        mask = jnp.ones(states.shape[:2], bool)
    else:
        mask = tower.state_mask(config.audio, frame_mask, train=train)
    return EncodedAudio(states, mask), {"audio": batch_stats}


def embed_audio(
    config: ContrastiveCaptionerConfig, params: Params, encoded: EncodedAudio
) -> Float[Array, "B E"]:
    """The contrastive embedding of clips: L2-normalised, float32."""
    pooled = _pool(config, params["contrast_pooler"], encoded, 1)
    return _embed(config, params["audio_projection"], pooled[:, 0])


def pool_for_captions(
    config: ContrastiveCaptionerConfig, params: Params, encoded: EncodedAudio
) -> Float[Array, "B n D"]:
    """The vectors that the text decoder attends to."""
    return _pool(config, params["caption_pooler"], encoded, config.caption_queries)


def read_texts(
    config: ContrastiveCaptionerConfig, params: Params, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
) -> Float[Array, "B tokens D"]:
    """States of texts by themselves: `CaptionDecoder.read`."""
    return _apply_decoder(config, params, "read", ids, mask)


def embed_texts(
    config: ContrastiveCaptionerConfig, params: Params, states: Float[Array, "B tokens D"]
) -> Float[Array, "B E"]:
    """The contrastive embedding of `read_texts`' states: L2-normalised, float32."""
    return _embed(config, params["text_projection"], _apply_decoder(config, params, "summarise", states))


def ground_texts(
    config: ContrastiveCaptionerConfig,
    params: Params,
    states: Float[Array, "B tokens D"],
    mask: Bool[Array, "B L"],
    vectors: Float[Array, "B n D"],
) -> Float[Array, "B tokens D"]:
    """States of texts that attend to audio: `CaptionDecoder.ground` of `read_texts` and `pool_for_captions`."""
    return _apply_decoder(config, params, "ground", states, mask, vectors)


def matching_logits(
    config: ContrastiveCaptionerConfig, params: Params, grounded: Float[Array, "B tokens D"]
) -> Float[Array, " B"]:
    """Logit that a text is of an audio, of `ground_texts`' states, by that of the class token; float32."""
    logits: Any = _matching_head().apply({"params": params["matching_head"]}, grounded[:, -1])
    return logits[:, 0]


def _pooler(config: ContrastiveCaptionerConfig, num_queries: int, dtype: Any) -> AttentionalPooler:
    text = config.text
    return AttentionalPooler(num_queries, text.width, text.num_heads, dtype, KERNEL_INITS[text.kernel_init])


def _pool(
    config: ContrastiveCaptionerConfig, params: Params, encoded: EncodedAudio, num_queries: int
) -> Array:
    pooler = _pooler(config, num_queries, jnp.dtype(config.compute_dtype))
    pooled: Any = pooler.apply({"params": params}, encoded.states, encoded.mask)
    return pooled


def _projection(config: ContrastiveCaptionerConfig, dtype: Any) -> Dense:
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    return Dense((config.embed_dim,), ("embed", "joint"), dtype, use_bias=False, kernel_init=init)


def _embed(config: ContrastiveCaptionerConfig, params: Params, x: Array) -> Array:
    """x W / ||x W||."""
    y: Any = _projection(config, jnp.dtype(config.compute_dtype)).apply({"params": params}, x)
    return unit_vectors(y)


def _matching_head() -> Dense:
    return Dense((1,), ("embed", "classes"), jnp.dtype("float32"))


def _decoder(config: ContrastiveCaptionerConfig, dtype: Any) -> CaptionDecoder:
    return CaptionDecoder(config.text, dtype, config.remat)


def _apply_decoder(config: ContrastiveCaptionerConfig, params: Params, method: str, *inputs: Array) -> Array:
    decoder = _decoder(config, jnp.dtype(config.compute_dtype))
    output: Any = decoder.apply({"params": params["text"]}, *inputs, method=method)
    return output


def _draw(config: ContrastiveCaptionerConfig, key: Array) -> Variables:
    """Variables whose leaves still carry their axis names."""
    keys = jax.random.split(key, 8)
    float32 = jnp.dtype("float32")
    features = jnp.zeros((1, *feature_shape(config.frontend)), float32)
    audio, audio_width = tower.init_audio_tower(config.audio, keys[0], features, "states")
    states, is_real = jnp.zeros((1, 1, audio_width), float32), jnp.ones((1, 1), bool)
    vectors, token = jnp.zeros((1, 1, config.text.width), float32), jnp.zeros((1, 1), jnp.int32)
    modules = {
        "contrast_pooler": (_pooler(config, 1, float32), (states, is_real)),
        "caption_pooler": (_pooler(config, config.caption_queries, float32), (states, is_real)),
        "audio_projection": (_projection(config, float32), (vectors[0],)),
        "text_projection": (_projection(config, float32), (vectors[0],)),
        "text": (_decoder(config, float32), (vectors, token, is_real)),
    }
    if config.matching_head:
        modules["matching_head"] = (_matching_head(), (vectors[0],))
    params: dict[str, Any] = {"audio": audio["params"]}
    for own_key, (name, (module, inputs)) in zip(keys[1:], modules.items(), strict=False):
        params[name] = module.init(own_key, *inputs)["params"]
    if config.patch_decoder is not None:
        drawn = MASKED_AUTOENCODER.draw(config.autoencoder, keys[7])
        params["patch_decoder"] = drawn["params"]["decoder"]
    return {"params": params, "batch_stats": {"audio": audio.get("batch_stats", {})}}


CONTRASTIVE_CAPTIONER = Architecture(_draw)
"""Variables of a `ContrastiveCaptionerConfig`."""
