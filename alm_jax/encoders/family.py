"""A family of the zoo: its config type, its module, its named variants, and functions that work for every family.

In the layers above `encoders` a model is a config and a tree of arrays, used through `init`, `abstract`, `axes` and
`apply`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from alm_jax.nn.rematerialise import Remat
from alm_jax.nn.variables import Architecture
from alm_jax.ops.frontends import FrontendSpec, FusionSpec
from alm_jax.types import PyTree

Option: TypeAlias = Literal["train", "mask", "row_mask", "longer", "moments"]
"""A keyword argument of a tower's forward pass. ``train``: noise is on and batch statistics are those of the rows.
``mask`` [B T]: True for real frames or samples of an audio tower. ``row_mask`` [B]: True for rows that count in batch
statistics. ``longer`` [B]: True for recordings longer than a clip. ``moments``: statistics of the features over the
whole batch."""
Kind: TypeAlias = Literal["audio encoder", "text encoder", "language model", "codec"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioTowerConfig:
    """Base class of the configs of audio encoders; the annotation of a field that takes any of them."""

    @classmethod
    def kinds(cls) -> list[type]:
        """Returns the config types of all audio encoders."""
        from alm_jax.encoders import families  # which imports the modules that import this one

        return [family.config_type for family in families.audio_families()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """Base class of the configs of models that read token ids and their mask."""

    @classmethod
    def kinds(cls) -> list[type]:
        """Returns the config types of all models that read one text."""
        from alm_jax.encoders import families

        return [family.config_type for family in families.text_families()]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """One architecture with its published sizes. Every family's file ends with its ``FAMILY``."""

    name: str
    """Name in `alm zoo`: "roberta", "whisper"."""
    kind: Kind
    config_type: type
    """The frozen dataclass that describes a model of this family completely."""
    build: Callable[..., nn.Module]
    """``build(config, dtype, remat)`` makes the module; ``dtype`` is that of the matrix products, ``remat`` a
    `Remat`."""
    variants: Mapping[str, Any]
    """Configs by name: the published sizes, and "nano" for tests."""
    example: Callable[[Any], tuple[jax.ShapeDtypeStruct, ...]]
    """Maps a config to the positional arguments of a forward pass for two rows, as short as the model allows: floats
    are features or samples, integers are token ids, booleans are a mask."""
    takes: frozenset[Option] = frozenset()
    """Keyword arguments that the module's forward pass accepts."""
    states: str | None = None
    """Value of the module's field ``output`` that returns an audio encoder's states [B N D]; "clip" returns its
    vector. None where the vector is the only output and the module has no such field."""
    state_mask: Callable[[Any, Array, bool], Array] | None = None
    """(config, real frames [B T], train) -> mask of the states of real audio [B N]. None where the module cannot
    compute it."""
    any_length: bool = False
    """Whether an audio encoder takes clips of any length up to its longest and computes no more than they have."""
    normalises_inside: bool = False
    """Whether batch norms between its layers use the statistics of the rows at hand. They are exact over a whole
    batch only, so not in micro-batches and not under ``pmap``. A norm of the features can be given the moments of the
    whole batch instead."""
    frontend: FrontendSpec | FusionSpec | None = None
    """Front-end of the published audio variants; None where the input is a waveform or token ids. The nano variant
    takes any front-end that fits its config."""
    source: str
    """URL of the paper or the repository."""


def init(family: Family, config: Any, key: Array) -> PyTree:
    """Initialises variables ``{"params": ...}``, with ``"batch_stats"`` where the module has any; float32 arrays
    without boxes."""
    return _architecture(family).init(config, key)


def abstract(family: Family, config: Any) -> PyTree:
    """Returns the variables' shapes and dtypes without making arrays."""
    return _architecture(family).abstract(config)


def axes(family: Family, config: Any) -> PyTree:
    """Returns the tree of ``params`` with a tuple of axis names (alm_jax/nn/parameter.py) at each leaf, without
    making arrays."""
    return _architecture(family).axes(config)


def apply(
    family: Family,
    config: Any,
    variables: PyTree,
    *inputs: Array,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    **options: Any,
) -> Any:
    """Runs the forward pass; ``options`` are the module's own keyword arguments."""
    return family.build(config, jnp.dtype(dtype), remat).apply(variables, *inputs, **options)


@functools.cache
def _architecture(family: Family) -> Architecture:
    def draw(config: Any, key: Array) -> PyTree:
        inputs = [jnp.zeros(given.shape, given.dtype) for given in family.example(config)]
        return family.build(config, jnp.dtype("float32"), "none").init(key, *inputs)

    return Architecture(draw)
