"""Registry of every checkpoint layout that the project reads and writes, and of every comparison with a reference
implementation.

A family's file in this folder ends with ``FORMATS`` and ``PARITY`` and is found automatically. A layout defined
elsewhere is passed to `register`.
"""

import importlib
import pkgutil
from typing import Any

from alm_jax import interop
from alm_jax.errors import UserError
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity

FORMATS: dict[str, Format] = {}
"""All formats by name: the package's own, and those that were registered."""

PARITY: list[Parity] = []
"""All comparisons in the order of docs/parity.md: by the names of the families' files."""


def register(layout: Format) -> Format:
    """Registers a layout, and returns it. Raises UserError where another one has its name."""
    if FORMATS.setdefault(layout.name, layout) is not layout:
        raise UserError(f"there is a format {layout.name!r} already; give the new one another name")
    return layout


def format_named(name: str) -> Format:
    """Returns the format of that name. Raises UserError with the existing names."""
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of_architecture(architecture: str) -> Format:
    """Returns the whole-file format of a class of transformers. Raises UserError with the existing classes."""
    # A format that ignores keys is a part of a class, and is asked for by name or known by other files.
    by_class = {
        kind: layout for layout in FORMATS.values() if not layout.ignored for kind in layout.architectures
    }
    if architecture not in by_class:
        raise UserError(f"{architecture!r} is no class that alm_jax reads; it reads {', '.join(by_class)}")
    return by_class[architecture]


def formats_of(config: Any) -> tuple[Format, ...]:
    """Returns every format that holds models of this config's type."""
    return tuple(layout for layout in FORMATS.values() if layout.config_type is type(config))


def formats_around(config: Any) -> tuple[Format, ...]:
    """Returns every format that holds models of this config's type, or two towers whose audio tower is one."""
    towers = (layout for layout in FORMATS.values() if type(config) in layout.audio_towers)
    return (*formats_of(config), *towers)


# At the end, since other files of this folder import the names above.
for _found in pkgutil.iter_modules(interop.__path__):
    _module = importlib.import_module(f"{interop.__name__}.{_found.name}")
    if isinstance(getattr(_module, "FORMATS", None), tuple):
        for _layout in _module.FORMATS:
            register(_layout)
        PARITY.extend(getattr(_module, "PARITY", ()))
