"""Reads and writes safetensors as NumPy arrays: one file, or the weights of a folder in one file or several.

A folder holds ``model.safetensors``, or pieces of it and ``model.safetensors.index.json``, which names the piece of
each array: the layout of transformers' `save_pretrained`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from alm_jax.errors import UserError, as_user_error
from alm_jax.interop.fields import read_object, show
from alm_jax.interop.model_files import find_file, need_file

Arrays: TypeAlias = dict[str, np.ndarray]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = ("BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64")
SHARD_BYTES = 5_000_000_000
"""Largest file that `write_weights` makes, as the Hub recommends; a larger array gets its own file."""


def read_safetensors(path: str | Path) -> Arrays:
    """Reads all arrays of one file, in the dtypes of the file (bfloat16 is ml_dtypes').

    Raises:
      UserError: there is no such file, it is truncated or not safetensors, or has an array of a dtype that no weights
        of ours have.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the weights as safetensors")
    with (
        as_user_error(f"{path}: not a readable safetensors file; copy or export it again"),
        safetensors.safe_open(path, framework="numpy") as file,
    ):
        names = list(file.keys())
        for name in names:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _DTYPES:
                raise UserError(
                    f"{path}: {name:.200} has the dtype {dtype}; weights of ours are one of {', '.join(_DTYPES)}"
                )
        return {name: file.get_tensor(name) for name in names}


def write_safetensors(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes ``arrays`` to one file, with the metadata that `transformers` requires."""
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    safetensors.numpy.save_file(contiguous, path, metadata={"format": "pt"})


def read_weights(folder: str | Path) -> Arrays:
    """Reads all arrays of a folder, from one file or from all that its index names.

    Raises:
      UserError: there are no weights, a file is missing or damaged, or index and files do not belong together.
    """
    folder = Path(folder)
    index = find_file(folder, INDEX)
    if index is None:
        return read_safetensors(need_file(folder, WEIGHTS, "the weights as safetensors"))
    places = read_object(index).section("weight_map")
    for key, place in places.items():
        if not isinstance(place, str) or Path(place).name != place:
            raise UserError(f"{index}: {key:.200} lies in {show(place)}; expected files of its own folder")
    arrays: Arrays = {}
    for name in sorted(set(places.values())):
        shard = read_safetensors(need_file(folder, name, f"a part of the weights that {INDEX} names"))
        stated = {key for key, place in places.items() if place == name}
        if shard.keys() != stated:
            raise UserError(
                f"{folder / name} and the index differ in {sorted(shard.keys() ^ stated)[:5]}; they are of different "
                "models: copy the folder again"
            )
        arrays |= shard
    if not arrays:
        raise UserError(
            f"{index}: not an index of safetensors files, its weight_map names none; copy it again"
        )
    return arrays


def write_weights(
    folder: str | Path, arrays: Mapping[str, np.ndarray], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes ``arrays`` to one file of a folder, or to several with an index where they exceed ``shard_bytes``."""
    folder = Path(folder)
    shards: list[dict[str, np.ndarray]] = [{}]
    filled = 0
    for key, array in arrays.items():
        if shards[-1] and filled + array.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][key] = array
        filled += array.nbytes
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS, shards[0])
        return
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard)
    index = {
        "metadata": {"total_size": sum(array.nbytes for array in arrays.values())},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def cast_floats(arrays: Mapping[str, np.ndarray], dtype: Any) -> Arrays:
    """Casts every float array, bfloat16 too, to ``dtype``; float32 holds every value of both 16-bit types."""
    return {
        name: array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array
        for name, array in arrays.items()
    }
