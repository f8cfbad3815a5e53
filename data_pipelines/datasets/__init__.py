"""One data set a file: its settings, and how its rows are read. Every file in this folder is found automatically."""

import importlib
import pkgutil


def import_all() -> None:
    """Imports every data set of this folder."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
