"""Registry of all families of encoders and language models, by name and by the type of their config.

A family is found by its place: every file of `alm_jax.encoders.audio` and `alm_jax.encoders.text` ends with its
`Family`. A file elsewhere passes its family to `register`. An installed package may name such a file as an entry
point of the group "alm_jax.families", so that runs that use its models can be loaded anywhere.
"""

import functools
import importlib
import pkgutil
from importlib import metadata
from types import ModuleType
from typing import Any

import jax.numpy as jnp

from alm_jax.encoders import audio, text
from alm_jax.encoders.family import Family
from alm_jax.errors import UserError

FAMILIES: dict[str, Family] = {}
"""All families by name: the package's own and those that were registered."""


def register(family: Family) -> Family:
    """Registers a family and returns it. Raises UserError where another family has its name or its config type."""
    for other in FAMILIES.values():
        if other is not family and (other.name == family.name or other.config_type is family.config_type):
            raise UserError(
                f"the family {family.name!r} of {family.config_type.__name__} cannot be registered: there is "
                f"{other.name!r} of {other.config_type.__name__}; give it its own name and config type"
            )
    return FAMILIES.setdefault(family.name, family)


def families_in(package: ModuleType) -> list[Family]:
    """Yields the families that the modules of a package declare, in the order of the modules' names."""
    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
    ]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Family)]


@functools.cache
def import_installed() -> None:
    """Imports, once, the modules that installed packages name as their families."""
    for entry in metadata.entry_points(group="alm_jax.families"):
        entry.load()


def family_of(config: Any) -> Family:
    """Returns the family of a config. Raises UserError for a config of no family."""
    import_installed()
    for family in FAMILIES.values():
        if type(config) is family.config_type:
            return family
    raise UserError(
        f"{type(config).__name__} belongs to no family; the families are {sorted(FAMILIES)}; register your own with "
        "alm_jax.encoders.families.register"
    )


def audio_families() -> tuple[Family, ...]:
    """Returns the families that can be an audio tower."""
    import_installed()
    return tuple(family for family in FAMILIES.values() if family.kind == "audio encoder")


def text_families() -> tuple[Family, ...]:
    """Returns the families that can be a text tower: those that read nothing but token ids and their mask."""
    import_installed()
    return tuple(family for family in FAMILIES.values() if reads_one_text(family))


def reads_one_text(family: Family) -> bool:
    """Whether the family reads nothing but token ids and their mask."""
    dtypes = [given.dtype for given in family.example(family.variants["nano"])]
    return dtypes == [jnp.int32, jnp.bool_]


for _family in (*families_in(audio), *families_in(text)):
    register(_family)
