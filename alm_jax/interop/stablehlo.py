"""Models as StableHLO: one file for CPUs, NVIDIA GPUs and TPUs that `jax.export` reads, weights inside, no model
code.

The batch size is left open. JAX guarantees that its releases of the next six months run such files
(https://docs.jax.dev/en/latest/export/export.html).
"""

import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array

from alm_jax.errors import UserError
from alm_jax.types import PyTree

PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIX = ".stablehlo"
SIGNATURE = "signature.json"
MAX_BYTES = 2**31 - 2**24
"""Maximum size of a file, bytes: its offsets are signed 32-bit numbers; leaves room for the program."""


def export_function(
    function: Callable[..., Array], variables: PyTree, inputs: Mapping[str, jax.ShapeDtypeStruct]
) -> bytes:
    """Serialises ``function(variables, *inputs)`` as a program of ``inputs`` only.

    Args: inputs: by name, in order; the first axis of each is the batch, and left open.

    Raises: UserError: the weights do not fit in one file.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    if size > MAX_BYTES:
        raise UserError(
            f"the weights are {size / 1e9:.1f} GB, and one StableHLO file holds {MAX_BYTES / 1e9:.1f} GB; import them "
            "in a smaller dtype (--dtype bfloat16)"
        )
    batch = export.symbolic_shape("b")
    symbolic = [jax.ShapeDtypeStruct((*batch, *x.shape[1:]), x.dtype) for x in inputs.values()]
    constants = jax.tree.map(jnp.asarray, variables)
    closed = jax.jit(lambda *given: function(constants, *given))
    return bytes(export.export(closed, platforms=PLATFORMS)(*symbolic).serialize())


def write_programs(
    folder: str | Path,
    programs: Mapping[str, bytes],
    inputs: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]],
    notes: Mapping[str, Any],
) -> None:
    """Writes ``NAME.stablehlo`` for each program, and signature.json, which says how each is called.

    Args:
        inputs: of each program, by name and in order.
        notes: what a caller must know besides (sample rate, ...), JSON-ready.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        (folder / f"{name}{SUFFIX}").write_bytes(program)
    signature = {
        "programs": {
            name: [
                {"name": key, "shape": ["b", *x.shape[1:]], "dtype": str(jnp.dtype(x.dtype))}
                for key, x in inputs[name].items()
            ]
            for name in programs
        },
        **notes,
        "platforms": list(PLATFORMS),
        "jax": metadata.version("jax"),
    }
    (folder / SIGNATURE).write_text(json.dumps(signature, indent=2) + "\n", encoding="utf-8")
