"""Time of a compiled TPU step by module, under the names that parameters have too."""

import collections
import dataclasses
import re
from collections.abc import Mapping

from alm_jax.bench.chips import Chip
from alm_jax.bench.hlo import parse
from alm_jax.bench.roofline import cost_of

WRAPPERS = re.compile(
    r"^(jit\(.*\)|while|body|cond|branch_\d+_fun|closed_call|checkpoint|rematted_computation|custom_vjp_call|"
    r"custom_jvp_call|remat\d*|shard_map|vmap\(.*\)|\w+\[.*\]|jvp\(\)|transpose\(jvp\(\)\))$"
)
"""Parts of an operation's name that JAX adds for its own transformations."""
TRANSFORM = re.compile(r"^(?:transpose\(|jvp\(|vmap\()+([\w.\-]*)\)*$")


@dataclasses.dataclass
class Share:
    """Share of one module in a step, on one device."""

    cycles: int = 0
    """XLA's estimated cycles, without the bundles of kernels."""
    roofline_s: float = 0.0
    """Seconds by the roofline, with kernels' bundles."""
    hbm_bytes: float = 0.0
    """Bytes to and from HBM."""


def by_module(
    text: str, chip: Chip, kernels: Mapping[tuple[str, ...], int] | None = None, *, depth: int = 3
) -> dict[str, Share]:
    """Maps module names, at most ``depth`` parts long, to their shares, the most expensive by XLA's cycles first.

    Work outside of modules, for example the optimizer's, is listed by the names of its operations.
    """
    module = parse(text)
    shares: dict[str, Share] = collections.defaultdict(Share)
    for line, times in module.walk():
        cost = cost_of(module, line, chip, kernels)
        share = shares[module_of(line.op_name, depth)]
        share.cycles += times * (line.estimated_cycles or 0)
        share.roofline_s += times * cost.seconds(chip)
        share.hbm_bytes += times * cost.hbm_bytes
    used = {name: share for name, share in shares.items() if share.cycles or share.roofline_s}
    return dict(sorted(used.items(), key=lambda item: (-item[1].cycles, -item[1].roofline_s)))


def module_of(op_name: str, depth: int) -> str:
    """``jit(step)/transpose(jvp(Llama))/while/body/closed_call/blocks/mlp/up/dot_general`` -> ``Llama/blocks/mlp``."""
    parts = []
    for part in op_name.split("/"):
        found = TRANSFORM.match(part)
        name = found.group(1) if found else part
        if name and not WRAPPERS.match(name):
            parts.append(name)
    # The last part is the operation.
    return "/".join((parts[:-1] or parts)[:depth]) or "(unnamed)"
