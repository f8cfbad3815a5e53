"""Parameters by their path, ``audio/stage0_block0/attention/qkv/kernel``, and regular expressions over it."""

import re

import jax

from alm_jax.errors import UserError
from alm_jax.types import Params, PyTree


def parameter_paths(params: Params) -> PyTree:
    """Returns the path of every parameter, ``audio/stages_0/...``, as a tree like ``params``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "/".join(str(getattr(part, "key", part)) for part in path), params
    )


def match_paths(params: Params, patterns: tuple[str, ...], what: str, *, all_must_match: bool) -> PyTree:
    """Returns a tree that is True for every parameter whose path matches one of ``patterns``.

    Raises UserError where a pattern is no regular expression or, with ``all_must_match``, matches no parameter (a
    misspelt pattern would otherwise be ignored silently).
    """
    paths = parameter_paths(params)
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise UserError(f"{what} holds {error.pattern!r}, which is no regular expression: {error}") from error
    for pattern in compiled:
        if all_must_match and not any(pattern.search(path) for path in jax.tree.leaves(paths)):
            tops = sorted({path.split("/")[0] for path in jax.tree.leaves(paths)})
            raise UserError(
                f"{what} holds {pattern.pattern!r}, which matches no parameter; paths begin with {tops}"
            )
    return jax.tree.map(lambda path: any(pattern.search(path) for pattern in compiled), paths)
