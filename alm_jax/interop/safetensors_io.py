"""Reads and writes safetensors as NumPy arrays."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from alm_jax.errors import UserError

Arrays: TypeAlias = dict[str, np.ndarray]


def read_safetensors(path: str | Path) -> Arrays:
    """All arrays of one file; half-precision floats come as float32, which holds each of their values.

    Raises:
      UserError: there is no such file, or it is truncated or not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the weights as safetensors")
    try:
        arrays = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); copy or export it again"
        ) from error
    halves = (np.dtype(np.float16), np.dtype(jnp.bfloat16))
    return {name: a.astype(np.float32) if a.dtype in halves else a for name, a in arrays.items()}


def write_safetensors(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes ``arrays`` to one file, with the metadata that `transformers` asks for."""
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    safetensors.numpy.save_file(contiguous, path, metadata={"format": "pt"})
