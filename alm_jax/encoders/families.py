"""Every family of encoders and language models, by name and by the type of its config.

A family is found by where it is: each file of `alm_jax.encoders.audio` and `alm_jax.encoders.text` ends with its
`Family`. One that is defined elsewhere is handed to `register`, by the file that defines it. An installed package may
name such a file as an entry point of the group "alm_jax.families", so that runs with its models can be read anywhere.
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
"""By name: the package's own, and those that have been registered."""


def register(family: Family) -> Family:
    """Makes a family known, and returns it. Raises UserError where its name or its config is another family's."""
    for other in FAMILIES.values():
        if other is not family and (other.name == family.name or other.config_type is family.config_type):
            raise UserError(
                f"the family {family.name!r} of {family.config_type.__name__} cannot be registered: there is "
                f"{other.name!r} of {other.config_type.__name__}; give it a name and a config type of its own"
            )
    return FAMILIES.setdefault(family.name, family)


def families_in(package: ModuleType) -> list[Family]:
    """The families that the modules of a package declare, module by module in the order of their names."""
    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
    ]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Family)]


@functools.cache
def import_installed() -> None:
    """Imports what installed packages name as their families, once."""
    for entry in metadata.entry_points(group="alm_jax.families"):
        entry.load()


def family_of(config: Any) -> Family:
    """The family whose config this is. Raises UserError for anything else."""
    import_installed()
    for family in FAMILIES.values():
        if type(config) is family.config_type:
            return family
    raise UserError(
        f"{type(config).__name__} is no config of a family; there are {sorted(FAMILIES)}, and one of your own is made "
        "known by alm_jax.encoders.families.register"
    )


def audio_families() -> tuple[Family, ...]:
    """The families that may stand as an audio tower."""
    import_installed()
    return tuple(family for family in FAMILIES.values() if family.kind == "audio encoder")


def text_families() -> tuple[Family, ...]:
    """The families that may stand as a text tower: token ids and their mask are all that they read."""
    import_installed()
    return tuple(family for family in FAMILIES.values() if reads_one_text(family))


def reads_one_text(family: Family) -> bool:
    """Whether token ids and their mask are all that the family reads."""
    dtypes = [given.dtype for given in family.example(family.variants["nano"])]
    return dtypes == [jnp.int32, jnp.bool_]


for _family in (*families_in(audio), *families_in(text)):
    register(_family)
