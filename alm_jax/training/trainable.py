"""Selection of the parameters that train. The others have no gradients, moments or averages.

A selection of parameters is the nested dict of them without the rest, so every tree made from it (gradients, moments,
averages) holds nothing else.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from alm_jax.errors import UserError
from alm_jax.objectives import Objective
from alm_jax.training.parameter_paths import match_paths
from alm_jax.types import Params, PyTree


def select(tree: Params, keep: PyTree) -> dict[str, Any]:
    """Returns the part of a nested dict where ``keep``, a tree like it, is True; branches without a leaf are left
    out."""
    selected: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            if branch := select(value, keep[name]):
                selected[name] = branch
        elif keep[name]:
            selected[name] = value
    return selected


def overlay(tree: Params, selection: Params) -> dict[str, Any]:
    """Returns ``tree`` with the leaves of a selection of it replaced."""
    return {
        name: overlay(value, selection.get(name, {}))
        if isinstance(value, Mapping)
        else selection.get(name, value)
        for name, value in tree.items()
    }


def freeze(objective: Objective, frozen: tuple[str, ...]) -> Objective:
    """Returns the objective with the parameters frozen whose path matches a regular expression of ``frozen``.

    Raises UserError where an expression matches none, or all of them together match everything.
    """
    if not frozen:
        return objective

    def trained(params: Params) -> dict[str, Any]:
        inner = objective.trained(params)
        found = match_paths(params, frozen, "optimizer.frozen", all_must_match=True)
        kept = select(inner, _invert(found))
        if not kept:
            raise UserError(f"optimizer.frozen {list(frozen)} freezes every parameter: nothing would train")
        return kept

    return dataclasses.replace(objective, trained=trained)


def _invert(tree: PyTree) -> PyTree:
    return {name: _invert(value) if isinstance(value, Mapping) else not value for name, value in tree.items()}
