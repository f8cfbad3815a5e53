"""alm_jax: pre-training of audio-language models in JAX.

Importing this package is instant: it loads neither JAX nor TensorFlow until something is used.
"""

from typing import TYPE_CHECKING, Any

from alm_jax.version import __version__

if TYPE_CHECKING:
    from alm_jax.run.pretrained import from_pretrained

__all__ = ["__version__", "from_pretrained"]


def __getattr__(name: str) -> Any:
    if name == "from_pretrained":
        from alm_jax.run.pretrained import from_pretrained

        return from_pretrained
    raise AttributeError(f"module 'alm_jax' has no attribute {name!r}")
