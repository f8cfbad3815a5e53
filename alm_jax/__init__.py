"""alm_jax: pre-training of audio-language models in JAX.

Importing this package is instant: it loads neither JAX nor TensorFlow until something is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from alm_jax.version import __version__

if TYPE_CHECKING:
    from alm_jax.run.experiment import load_config
    from alm_jax.run.load import load_model
    from alm_jax.run.pretrained import from_pretrained
    from alm_jax.run.train import pretrain as train

__all__ = ["__version__", "from_pretrained", "load_config", "load_model", "train"]

PLACES = {
    "from_pretrained": ("alm_jax.run.pretrained", "from_pretrained"),
    "load_config": ("alm_jax.run.experiment", "load_config"),
    "load_model": ("alm_jax.run.load", "load_model"),
    "train": ("alm_jax.run.train", "pretrain"),
}
"""Module and name of what is public, imported when it is used."""


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'alm_jax' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, found = PLACES[name]
    return getattr(importlib.import_module(module), found)


def __dir__() -> list[str]:
    return list(__all__)
