"""Which parameters train. The others have no gradient, no moments and no average: the step never makes them.

A selection of parameters is the nested dict of them without the rest, so every tree made of it, gradients, moments and
averages, has room for nothing else.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from alm_jax.errors import UserError
from alm_jax.objectives import Objective
from alm_jax.training.parameter_paths import match_paths
from alm_jax.types import Params, PyTree


def select(tree: Params, keep: PyTree) -> dict[str, Any]:
    """The part of a nested dict where ``keep``, a tree like it, is True; branches without a leaf are left out."""
    selected: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            if branch := select(value, keep[name]):
                selected[name] = branch
        elif keep[name]:
            selected[name] = value
    return selected


def overlay(tree: Params, selection: Params) -> dict[str, Any]:
    """``tree`` with the leaves of a selection of it in their places."""
    return {
        name: overlay(value, selection.get(name, {}))
        if isinstance(value, Mapping)
        else selection.get(name, value)
        for name, value in tree.items()
    }


def freeze(objective: Objective, frozen: tuple[str, ...]) -> Objective:
    """The objective of which parameters that a regular expression of ``frozen`` finds by their path do not train.

    Raises UserError where an expression finds none, or all of them together find everything.
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
