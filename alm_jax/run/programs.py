"""A model's forward passes as StableHLO programs: which there are, and what each takes."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alm_jax import batch as contract
from alm_jax.encoders import family
from alm_jax.encoders.families import family_of
from alm_jax.encoders.tower import LONGEST_TEXT, text_limits
from alm_jax.interop.stablehlo import export_function, write_programs
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.objectives.contrastive import TwoTowers
from alm_jax.types import PyTree

_NAMES = {"f": "features", "i": "ids", "b": "mask"}


def export_programs(config: Any, variables: PyTree, folder: str | Path) -> None:
    """Writes a model's programs and their signature.json.

    Two towers become ``audio``, from waveforms of a clip's length (and how many samples of each are real) to
    embeddings [b E], and ``text``, from token ids and their mask to embeddings. A model of the zoo becomes
    ``encoder``, which takes what its family's example says.

    Raises:
        UserError: the weights do not fit in one file.
    """
    if isinstance(config, TwoTowersConfig):
        _export_two_towers(config, variables, folder)
        return
    of = family_of(config)
    inputs: dict[str, jax.ShapeDtypeStruct] = {}
    for given in of.example(config):
        name = _NAMES[jnp.dtype(given.dtype).kind]
        inputs[name if name not in inputs else f"{name}_{len(inputs)}"] = given
    forward = functools.partial(family.apply, of, config)
    program = export_function(forward, variables, inputs)
    write_programs(folder, {"encoder": program}, {"encoder": inputs}, {"family": of.name})


def _export_two_towers(config: TwoTowersConfig, variables: PyTree, folder: str | Path) -> None:
    def embed_audio(variables: PyTree, waveforms: Array, num_samples: Array) -> Array:
        given = {contract.AUDIO: waveforms, contract.AUDIO_NUM_SAMPLES: num_samples}
        return TwoTowers(config).embed_audio(variables, given)

    def embed_text(variables: PyTree, ids: Array, mask: Array) -> Array:
        return TwoTowers(config).embed_text(variables, ids, mask)

    _, longest = text_limits(config.text)
    samples, length = config.frontend.clip_samples, longest or LONGEST_TEXT
    inputs = {
        "audio": {
            "waveforms": jax.ShapeDtypeStruct((1, samples), jnp.float32),
            "num_samples": jax.ShapeDtypeStruct((1,), jnp.int32),
        },
        "text": {
            "ids": jax.ShapeDtypeStruct((1, length), jnp.int32),
            "mask": jax.ShapeDtypeStruct((1, length), jnp.bool_),
        },
    }
    programs = {
        name: export_function(function, variables, inputs[name])
        for name, function in (("audio", embed_audio), ("text", embed_text))
    }
    notes = {
        "sample_rate_hz": config.frontend.sample_rate_hz,
        # Language models have no padding of their own; 0 is what MS-CLAP's counts by.
        "pad_id": getattr(config.text, "pad_id", 0),
        "logit_scale": float(jnp.exp(variables["params"]["log_logit_scale"])),
    }
    write_programs(folder, programs, inputs, notes)
