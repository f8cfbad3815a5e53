"""One language model over one vocabulary of words and audio units: it reads and writes both.

SpeechGPT (Zhang et al. 2023, https://arxiv.org/abs/2305.11000) and AudioPaLM (Rubenstein et al. 2023,
https://arxiv.org/abs/2306.12925): a published language model whose table of embeddings has rows for units too. Free
functions of a config and a tree of arrays.

Parameters: ``units`` (`alm_jax.models.audio_units`), which do not train, and ``language_model``.
"""

import dataclasses
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders import tower
from alm_jax.encoders.families import family_of
from alm_jax.encoders.family import Family
from alm_jax.encoders.text.gpt2 import Gpt2Config
from alm_jax.encoders.text.llama import LlamaConfig, Qwen2Config
from alm_jax.errors import UserError
from alm_jax.models.audio_units import ClusterUnitsConfig, UnitsConfig, check_units, init_units, read_units
from alm_jax.models.generated import Generated
from alm_jax.models.generation import generate
from alm_jax.nn.rematerialise import Remat
from alm_jax.nn.variables import Architecture
from alm_jax.ops.compaction import first_of_runs
from alm_jax.ops.frontends import TowerSpec
from alm_jax.ops.unit_sequences import NUM_TAGS, Sequences, Vocabulary

Variables: TypeAlias = dict[str, Any]

NEW_ROWS = 0.01
"""Factor of the initial embeddings of units and tags, which begin near zero (AudioPaLM, section 3.1), and of their
columns in a head that is not tied."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitLanguageModelConfig:
    """A front-end, a model of audio units, and a language model of words and units."""

    frontend: TowerSpec
    """Front-end, from waveform to features; stored with the weights."""
    units: UnitsConfig = ClusterUnitsConfig()
    """Model from features to units."""
    language_model: LlamaConfig | Qwen2Config | Gpt2Config
    """The language model. Its ``vocab_size`` counts words, units and two tags: 32000 + 1000 + 2 in SpeechGPT."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products; parameters, norms, softmax, the loss and the distances to centroids
    stay float32."""
    remat: Remat = "none"
    """What the backward pass recomputes."""

    def __post_init__(self) -> None:
        check_units(self.units, self.frontend)
        if self.vocabulary.num_words < 1:
            raise UserError(
                f"language_model.vocab_size is {self.language_model.vocab_size}, of which the units take "
                f"{self.units.num_units} and the tags {NUM_TAGS}: make it the tokenizer's size and these together"
            )

    @property
    def vocabulary(self) -> Vocabulary:
        """Words first, then units, then tags."""
        num_units = self.units.num_units
        return Vocabulary(self.language_model.vocab_size - num_units - NUM_TAGS, num_units)


def encode_units(
    config: UnitLanguageModelConfig,
    variables: Variables,
    features: Float[Array, "B *features"],
    frame_mask: Bool[Array, "B T"],
) -> tuple[Int[Array, "B N"], Bool[Array, "B N"]]:
    """Encodes clips as units, int32 from 0 on, and the mask of those that are kept: real, and not a repetition.

    ``frame_mask`` is True for real frames, padding at the end.
    """
    units = {name: tree["units"] for name, tree in variables.items() if "units" in tree}
    ids, mask = read_units(config.units, units, features, frame_mask, dtype=jnp.dtype(config.compute_dtype))
    return ids, first_of_runs(ids, mask)


def predict(
    config: UnitLanguageModelConfig,
    variables: Variables,
    sequences: Sequences,
    *,
    train: bool = False,
    key: Array | None = None,
) -> Float[Array, "R C D"]:
    """The state of each token, which its successor is predicted from; examples of a row do not see each other.

    ``train``: the language model's dropout is on, if it has any, and needs ``key``.
    """
    family, config_lm = language_family(config), config.language_model
    options: dict[str, Any] = {"train": train} if tower.takes(config_lm, "train") else {}
    module = family.build(config_lm, jnp.dtype(config.compute_dtype), config.remat)
    states: Any = module.apply(
        {"params": variables["params"]["language_model"]},
        sequences.ids,
        sequences.mask,
        segments=sequences.segments,
        output="states",
        rngs=None if key is None else {"dropout": key},
        **options,
    )
    return states


def write(
    config: UnitLanguageModelConfig,
    variables: Variables,
    prompts: Sequences,
    *,
    num_new_tokens: int,
    end_id: int | Int[Array, ""],
) -> Generated:
    """What greedily follows prompts, one a row: words, or units where ``end_id`` is <eosp>. Wants `jit`."""
    return generate(
        language_family(config),
        config.language_model,
        {"params": variables["params"]["language_model"]},
        prompts.ids,
        prompts.mask,
        num_new_tokens=num_new_tokens,
        end_id=end_id,
        dtype=jnp.dtype(config.compute_dtype),
    )


def language_family(config: UnitLanguageModelConfig) -> Family:
    """The family of the language model."""
    return family_of(config.language_model)


def _draw(config: UnitLanguageModelConfig, key: Array) -> Variables:
    """Variables whose leaves still carry their axis names."""
    key_units, key_language = jax.random.split(key)
    units = init_units(config.units, config.frontend, key_units)
    module = language_family(config).build(config.language_model, jnp.dtype("float32"), "none")
    ids = jnp.zeros((1, 2), jnp.int32)
    params = dict(module.init(key_language, ids, jnp.ones((1, 2), bool))["params"])
    is_new = jnp.arange(config.language_model.vocab_size) >= config.vocabulary.num_words
    scale = jnp.where(is_new, NEW_ROWS, 1.0)
    params["token_embed"] = jax.tree.map(lambda table: table * scale[:, None], params["token_embed"])
    if "head" in params:
        params["head"] = jax.tree.map(lambda kernel: kernel * scale[None, :], params["head"])
    return {
        "params": {"units": units["params"], "language_model": params},
        "batch_stats": {"units": units["batch_stats"]},
    }


UNIT_LANGUAGE_MODEL = Architecture(_draw)
"""Variables of a `UnitLanguageModelConfig`."""
