"""A family of the zoo: its config type, its module, its named variants, and free functions over any of them.

Above `encoders` a model is a config and a tree of arrays: `init`, `abstract`, `axes` and `apply` are how.
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
"""A keyword argument of a tower's forward pass. ``train``: noise is on, and batch statistics are those of the rows;
``mask``: True for real frames, or samples, of an audio tower [B T]; ``row_mask``: True for rows that count in batch
statistics [B]; ``longer``: True for recordings longer than a clip [B]; ``moments``: the whole batch's statistics of the
features."""
Kind: TypeAlias = Literal["audio encoder", "text encoder", "language model", "codec"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioTowerConfig:
    """Base of the configs of audio encoders: what a field that takes any of them is annotated with."""

    @classmethod
    def kinds(cls) -> list[type]:
        """The configs of all audio encoders there are."""
        from alm_jax.encoders import families  # which imports the modules that import this one

        return [family.config_type for family in families.audio_families()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """Base of the configs of models that read token ids and their mask."""

    @classmethod
    def kinds(cls) -> list[type]:
        """The configs of all models there are that read one text."""
        from alm_jax.encoders import families

        return [family.config_type for family in families.text_families()]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """One architecture with its published sizes. Each file of a family ends with its ``FAMILY``."""

    name: str
    """As `alm zoo` lists it: "roberta", "whisper"."""
    kind: Kind
    config_type: type
    """The frozen dataclass that says everything about a model of this family."""
    build: Callable[..., nn.Module]
    """``build(config, dtype, remat)``; dtype is that of the matrix products, remat a `Remat`."""
    variants: Mapping[str, Any]
    """Configs by name: the published ones, and "nano" for tests."""
    example: Callable[[Any], tuple[jax.ShapeDtypeStruct, ...]]
    """Config to the positional arguments of a forward pass for two rows, as short as the model allows: floats are
    features or samples, integers are token ids, booleans a mask."""
    takes: frozenset[Option] = frozenset()
    """The keyword arguments of a tower's forward pass that the module has."""
    states: str | None = None
    """Value of the module's field ``output`` for an audio encoder's states [B N D]; for its vector it is "clip". None
    where the vector is all there is, and the module has no such field."""
    state_mask: Callable[[Any, Array, bool], Array] | None = None
    """(config, real frames [B T], train) -> which states are of real audio [B N]; None where the module cannot say."""
    normalises_inside: bool = False
    """Whether batch norms between its layers see the rows at hand: exact over a whole batch alone, so neither in
    micro-batches nor under ``pmap``. A norm of the features can be given the moments of the whole batch instead."""
    frontend: FrontendSpec | FusionSpec | None = None
    """What the published audio variants are fed by; None where waveforms or token ids go in. The nano one takes
    whatever fits its config."""
    source: str
    """Paper or repository."""


def init(family: Family, config: Any, key: Array) -> PyTree:
    """Draws variables ``{"params": ...}``, and ``"batch_stats"`` where there are any; float32, without boxes."""
    return _architecture(family).init(config, key)


def abstract(family: Family, config: Any) -> PyTree:
    """The variables' shapes and dtypes; makes no array."""
    return _architecture(family).abstract(config)


def axes(family: Family, config: Any) -> PyTree:
    """The tree of ``params`` with a tuple of axis names (alm_jax/nn/parameter.py) at each leaf; makes no array."""
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
    """The forward pass; ``options`` are the module's own keyword arguments."""
    return family.build(config, jnp.dtype(dtype), remat).apply(variables, *inputs, **options)


@functools.cache
def _architecture(family: Family) -> Architecture:
    def draw(config: Any, key: Array) -> PyTree:
        inputs = [jnp.zeros(given.shape, given.dtype) for given in family.example(config)]
        return family.build(config, jnp.dtype("float32"), "none").init(key, *inputs)

    return Architecture(draw)
