"""Difference between a model of ours and a reference implementation: random weights, one input, both outputs.

The reference is a class of transformers where there is one, and a PyTorch module written from the equations
(tests/oracles) where there is none. Its weights come in through the family's `Format`, as a user's would; for
transformers through the file that `save_pretrained` writes. In float64 the difference distinguishes rounding from
errors. Needs PyTorch, imported where it is used.
"""

import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alm_jax.errors import UserError
from alm_jax.interop.format import Format, arrays_to_variables
from alm_jax.interop.safetensors_io import Arrays, read_weights

Inputs = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """One comparison. ``ours`` and ``theirs`` return the same array; padding whose values neither defines is cut
    off."""

    name: str
    """Name of the row: "whisper encoder, nano"."""
    layout: Format
    """Format by which the reference's weights are read."""
    config: Any
    """Our config; small enough for a test."""
    oracle: Callable[[Any], Any]
    """Makes the PyTorch module of a config, in evaluation mode and float32, with its own initial weights."""
    oracle_name: str
    """Name in the table: "transformers.WhisperModel", "tests/oracles/beats.py"."""
    inputs: Callable[[Any, "RealInputs"], dict[str, np.ndarray]]
    """Makes, from a config and real data, the named arrays that both take: float32 features or samples, integer ids,
    masks."""
    ours: Callable[[Any, Any, dict[str, jax.Array], Any], jax.Array]
    """``ours(config, variables, inputs, dtype)``."""
    theirs: Callable[[Any, dict[str, Any]], Any]
    """``theirs(module, inputs as tensors)`` returns a tensor."""
    tolerance: float = 1e-4
    """Largest error in float32, relative to the largest value of the reference's output; 1e-3 for stacks of an
    LLM."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealInputs:
    """Recordings and captions of real data sets for the comparisons."""

    waveforms: Callable[[int, float], np.ndarray]
    """Maps sample rate in Hz and seconds to float32 waveforms [2 W] of different recordings."""
    texts: tuple[str, ...]
    """Captions of different lengths."""
    token_ids: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
    """Maps the size of a vocabulary and a length to int32 ids [2 L] of captions, and their mask; the second row is
    padded. Ids are bytes of the text spread over the vocabulary: no published tokenizer is at hand."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParityError:
    """Largest differences between two outputs."""

    absolute: float
    relative: float
    """``absolute`` over the largest absolute value of the reference's output."""


def measure(case: Parity, real: RealInputs, *, dtype: str) -> ParityError:
    """Runs one comparison in "float32" or "float64"; the latter needs `jax.enable_x64` around it."""
    import torch

    torch.manual_seed(0)
    module = case.oracle(case.config)
    randomise(module)
    module = module.to(getattr(torch, dtype))
    variables = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf,
        arrays_to_variables(case.layout, case.config, saved_arrays(case, module)),
    )
    inputs = {
        name: array.astype(dtype) if array.dtype.kind == "f" else array
        for name, array in case.inputs(case.config, real).items()
    }
    with torch.no_grad():
        theirs = case.theirs(module, {name: torch.as_tensor(array) for name, array in inputs.items()})
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(lambda v, x: case.ours(case.config, v, x, dtype))(variables, inputs)
    expected = theirs.double().numpy()
    if ours.shape != expected.shape:
        raise ValueError(f"{case.name}: ours has shape {ours.shape}, the oracle {expected.shape}")
    absolute = float(np.max(np.abs(np.asarray(ours, np.float64) - expected)))
    return ParityError(absolute=absolute, relative=absolute / float(np.max(np.abs(expected))))


def load_oracle(name: str) -> Any:
    """Imports ``tests/oracles/NAME.py``. Raises UserError outside a checkout, which alone has it."""
    path = Path(__file__).parents[2] / "tests" / "oracles" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"alm_oracle_{name}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(
            f"{path}: no such file; oracles come with a checkout of the repository, not with the package"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomise(module: Any) -> None:
    """Random weights with which every parameter matters: matrices N(0, 1 / fan-in), vectors shifted by N(0,
    0.1^2)."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.1 * noise)


def saved_arrays(case: Parity, module: Any) -> Arrays:
    """Returns the reference's weights as files hold them."""
    if case.layout.architectures:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        with tempfile.TemporaryDirectory() as folder:
            module.save_pretrained(folder)
            return read_weights(folder)
    return {key: tensor.numpy() for key, tensor in module.state_dict().items()}
