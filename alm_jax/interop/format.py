"""A published checkpoint layout as data, and the two functions that convert any of them in both directions."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import jax
import numpy as np

from alm_jax.errors import UserError, as_user_error
from alm_jax.interop.entry import Entry, Path
from alm_jax.interop.safetensors_io import Arrays
from alm_jax.types import PyTree

_MISSING_ENTRIES = 10_000
"""Limit of arrays in excess of twice those of the file: up to it every missing array is named."""


def nothing(_: Any) -> dict[str, Any]:
    """Function for a format without buffers or copies: returns none."""
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """The layout of one family of checkpoints: config.json, every key, every shape.

    The functions take our config of the family, and every key on disk is an entry, a buffer or a copy.
    """

    name: str
    """Name of the format in `alm import` and `alm zoo`."""
    config_type: type
    """Type of our config of the family."""
    audio_towers: tuple[type, ...] = ()
    """For two towers: the config types that their audio tower may have."""
    abstract: Callable[[Any], PyTree]
    """Maps a config to the shapes of our variables, ``{"params": ...}`` and perhaps ``"batch_stats"``."""
    entries: Callable[[Any], Iterable[Entry]]
    """Maps a config to every array on disk that is a part of ours. No part may be left out or named twice."""
    buffers: Callable[[Any], Arrays] = nothing
    """Arrays on disk that follow from the config: written, compared when read, and optional."""
    unread: Callable[[Any], frozenset[str]] = lambda _: frozenset()
    """Keys of ``buffers`` that are not compared: counters that are never used."""
    copies: Callable[[Any], dict[str, str]] = nothing
    """Keys on disk that repeat another array: written, and not read."""
    optional: Callable[[Any], frozenset[str]] = lambda _: frozenset()
    """Keys of ``copies`` or ``buffers`` that `save_pretrained` leaves out: not written, and accepted when present."""

    former: tuple[tuple[str, str], ...] = ()
    """Former names of keys in older files: a regular expression, and the present name. Read, not written."""

    architectures: tuple[str, ...] = ()
    """Classes of transformers, as config.json names them; the first is written. Empty for a format without
    config.json."""
    read_config: Callable[[Mapping[str, Any]], Any] | None = None
    """Converts config.json to our config. Raises UserError where the family does not compute that model."""
    with_keys: Callable[[Any, Set[str]], Any] = lambda config, _: config
    """Completes the config from a file's keys, where they determine what config.json does not: whether a head is
    tied."""
    write_config: Callable[[Any], dict[str, Any]] | None = None
    """Converts our config to the config.json of the same model (without "architectures", which is `architectures`'
    first)."""

    infer_config: Callable[[Mapping[str, tuple[int, ...]]], Any] | None = None
    """For PyTorch archives, which have no config.json: makes our config from shapes by key."""
    archive_entry: tuple[str, ...] = ()
    """Keys under which the authors' archives store the state dict: ("model",), ("state_dict",), () for the object
    itself. Tried before the other usual keys."""
    key_prefix: str = ""
    """Prefix of the keys in the authors' archives that ours do not have ("module."); archives without it are read
    too."""
    signature: str = ""
    """A key that only this format has, which identifies an archive."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of keys on disk that have no counterpart and are not needed (for example a classifier's
    head). They are listed when read. A format with any cannot be written bit for bit, so formats of transformers have
    none."""


def variables_to_arrays(layout: Format, config: Any, variables: PyTree) -> Arrays:
    """Converts our variables to the arrays of ``layout``, each in its own dtype."""
    optional = layout.optional(config)
    arrays: Arrays = {key: array for key, array in layout.buffers(config).items() if key not in optional}
    for entry in layout.entries(config):
        array = np.asarray(get_array(variables, entry.path))
        arrays[entry.key] = entry.to_disk(array[*entry.index, ...])
    for key, original in layout.copies(config).items():
        if key not in optional:
            arrays[key] = arrays[original]
    return arrays


def arrays_to_variables(layout: Format, config: Any, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """Converts the arrays of ``layout`` to our variables, in the dtypes of the file.

    Raises:
        UserError: keys are missing, unknown or misshapen, a buffer contradicts the config, or parts of one of our
            arrays differ in dtype; lists them.
    """
    arrays = rename_former(layout, arrays)
    entries = bounded_entries(layout, config, len(arrays))
    check_keys(layout, config, entries, arrays)
    dtypes: dict[Path, np.dtype] = {}
    for entry in entries:
        found = arrays[entry.key].dtype
        if dtypes.setdefault(entry.path, found) != found:
            raise UserError(
                f"{entry.key} is {found} and other layers of it are {dtypes[entry.path]}; import with a dtype that all "
                "shall have"
            )
    with as_user_error(f"no {layout.name} can have the sizes of this config together"):
        abstract = layout.abstract(config)
    # Every element is written exactly once, or `entries` is wrong: what stays is made visible.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.empty(leaf.shape, dtypes[tuple(step.key for step in path)]), abstract
    )
    for entry in entries:
        part = get_array(variables, entry.path)[*entry.index, ...]
        part[...] = entry.from_disk(arrays[entry.key], part.shape)
    return variables


def bounded_entries(layout: Format, config: Any, num_arrays: int) -> list[Entry]:
    """Returns every entry, unless there are many more than arrays: a config may ask for a thousand million layers.

    Raises UserError where there are.
    """
    limit = 2 * num_arrays + _MISSING_ENTRIES
    entries = list(itertools.islice(layout.entries(config), limit + 1))
    if len(entries) > limit:
        raise UserError(
            f"not weights in the format {layout.name} with this config: it asks for more than {limit} arrays, and the "
            f"file has {num_arrays}; check its numbers of layers"
        )
    return entries


def rename_former(layout: Format, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Renames ``arrays`` to the names that ``layout`` knows; a former name whose new one is present too stays, as
    does an unknown name."""
    renamed = {}
    for key, array in arrays.items():
        name = key
        for pattern, replacement in layout.former:
            name = re.sub(pattern, replacement, name)
        renamed[key if name in arrays else name] = array
    return renamed


def check_keys(
    layout: Format, config: Any, entries: Iterable[Entry], arrays: Mapping[str, np.ndarray]
) -> None:
    """Raises UserError with every key of ``arrays`` that is missing, unknown, misshapen or contradictory."""
    shapes = {entry.key: entry.shape for entry in entries}
    copies, optional = layout.copies(config), layout.optional(config)
    required = shapes.keys() | (copies.keys() - optional)
    problems = [f"missing {key}" for key in sorted(required - arrays.keys())]
    for key in sorted((shapes.keys() | copies.keys()) & arrays.keys()):
        expected = shapes[copies.get(key, key)]
        if arrays[key].shape != expected:
            problems.append(f"{key} has shape {arrays[key].shape}, the config says {expected}")
    # Buffers are as large as the config says, so they are made only where the arrays are as large.
    buffers = {} if problems else layout.buffers(config)
    known = required | optional | buffers.keys()
    unknown = [
        f"unknown {key}"
        for key in sorted(arrays.keys() - known)
        if not any(re.fullmatch(pattern, key) for pattern in layout.ignored)
        and not (problems and arrays[key].dtype.kind in "iub")
    ]
    for key in sorted((buffers.keys() - layout.unread(config)) & arrays.keys()):
        if not np.array_equal(arrays[key], buffers[key]):
            problems.append(f"{key} is not what the config implies")
    problems += unknown
    if problems:
        listed = "\n  ".join([*(problem[:300] for problem in problems[:20]), *["..."] * (len(problems) > 20)])
        raise UserError(
            f"not weights in the format {layout.name} with this config ({len(problems)} problems):\n  {listed}\n"
            "check that the config and the weights belong together"
        )


def get_array(tree: PyTree, path: Path) -> Any:
    """Returns the leaf of nested dicts at ``path``."""
    for name in path:
        tree = tree[name]
    return tree
