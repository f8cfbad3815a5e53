"""Every evaluator of the package, found in its files; an evaluator elsewhere is known once its module is imported."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
