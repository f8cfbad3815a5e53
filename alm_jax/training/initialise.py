"""Parameters from another model in place of the initial ones, before the first step."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.errors import UserError
from alm_jax.training import sharding
from alm_jax.training.state import TrainState
from alm_jax.training.trainable import overlay
from alm_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitFromConfig:
    """A model, or a part of one, whose parameters a run starts from."""

    source: str
    """Where the parameters come from: a run folder of `alm pretrain`, whose newest checkpoint is used (the moving
    average where there is one); or what `alm import` reads or has written: a folder, an archive of PyTorch, or an id
    of the Hub."""
    into: str = ""
    """Path of the parameters that are replaced, such as ``text`` for the text tower; empty: all."""
    part: str = ""
    """Path of the parameters inside the source, such as ``audio`` of two towers or ``encoder`` of a masked model;
    empty: all."""
    is_extended: bool = False
    """Whether an array may be longer here than in the source along one axis: the source's entries come first, and
    those after them keep their initial values. With this a published language model can get new tokens, for example
    audio units."""


def take_from(
    state: TrainState, variables: Mapping[str, Any], config: InitFromConfig
) -> tuple[TrainState, str]:
    """Replaces ``config.into`` of the state by ``variables`` {"params": ..., "batch_stats": ...} of the source.

    Every parameter under ``into`` is replaced, in float32 and with its sharding. Parameters of the source without a
    place here (for example a head or a pooler) are left out and listed. The moving average starts from the same
    values. Returns the state and a description of what was done.

    Raises:
        UserError: a parameter under ``into`` is missing in the source, or has another shape, unless ``is_extended``
            allows it.
    """
    taken, unused, extended = {}, [], []
    for kind in ("params", "batch_stats"):
        wanted = _flatten(
            _descend(getattr(state, kind), config.into, "init_from.into", is_needed=kind == "params")
        )
        given = _flatten(
            _descend(variables.get(kind, {}), config.part, "init_from.part", is_needed=kind == "params")
        )
        problems = [
            f"  {path} {list(leaf.shape)}: missing" for path, leaf in wanted.items() if path not in given
        ]
        problems += [
            f"  {path} {list(leaf.shape)}: has shape {list(given[path].shape)}"
            for path, leaf in wanted.items()
            if path in given and not _fits(given[path].shape, leaf.shape, is_extended=config.is_extended)
        ]
        if problems:
            more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
            raise UserError(
                f"init_from: {config.source} does not fit {config.into or 'the model'}:\n"
                + "\n".join(problems[:20])
                + more
                + "\nGive the tower the config of that model."
            )
        unused += sorted(set(given) - set(wanted))
        extended += [path for path, leaf in wanted.items() if given[path].shape != leaf.shape]
        placed = {path: _place(given[path], leaf) for path, leaf in wanted.items()}
        tree = getattr(state, kind)
        taken[kind] = overlay(tree, _nest(placed, config.into)) if placed else tree
    count = sum(
        leaf.size for leaf in jax.tree.leaves(_descend(taken["params"], config.into, "", is_needed=True))
    )
    said = f"{config.into or 'model'}: {count:,} parameters from {config.source}"
    if unused:
        said += f"; not used: {', '.join(unused[:8])}" + (
            f" and {len(unused) - 8} more" if len(unused) > 8 else ""
        )
    if extended:
        said += f"; longer here, and new at their ends: {', '.join(extended)}"
    average = state.ema_params
    if average is not None:
        # Copies: a donated buffer must not be two leaves.
        average = jax.tree.map(jnp.copy, _like(taken["params"], average))
    return dataclasses.replace(
        state, params=taken["params"], batch_stats=taken["batch_stats"], ema_params=average
    ), said


def _fits(given: tuple[int, ...], wanted: tuple[int, ...], *, is_extended: bool) -> bool:
    if not is_extended or len(given) != len(wanted):
        return given == wanted
    more = [ours - theirs for theirs, ours in zip(given, wanted, strict=True) if ours != theirs]
    return not more or (len(more) == 1 and more[0] > 0)


def _place(value: Any, leaf: Any) -> jax.Array:
    value = np.asarray(value).astype(leaf.dtype)
    if value.shape != leaf.shape:
        # Entries beyond the source's keep their initial values.
        whole = np.array(sharding.fetch(leaf))
        whole[tuple(slice(size) for size in value.shape)] = value
        value = whole
    return jax.device_put(value, leaf.sharding)


def _descend(tree: Params, path: str, what: str, *, is_needed: bool) -> Any:
    for name in filter(None, path.split("/")):
        if not isinstance(tree, Mapping) or name not in tree:
            if is_needed:
                raise UserError(f"{what} is {path!r}; there is no {name!r} among {sorted(tree)}")
            return {}
        tree = tree[name]
    return tree


def _flatten(tree: Any) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(tree)
    return {"/".join(str(part.key) for part in path): leaf for path, leaf in leaves}


def _nest(flat: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *branches, name = [*filter(None, prefix.split("/")), *path.split("/")]
        tree = nested
        for branch in branches:
            tree = tree.setdefault(branch, {})
        tree[name] = value
    return nested


def _like(tree: Params, selection: Params) -> dict[str, Any]:
    return {
        name: _like(tree[name], value) if isinstance(value, Mapping) else tree[name]
        for name, value in selection.items()
    }
