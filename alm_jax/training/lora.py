"""LoRA: kernels are frozen, and the product of two small matrices, added to each, is trained instead.

W' = W + (alpha / rank) A B, with A [inputs rank] initialised uniformly in +-1/sqrt(inputs) and B [rank outputs] with
zeros, so that training begins at the given model. (Hu et al. 2021, https://arxiv.org/abs/2106.09685; initialisation
and scale are those of ``peft``, whose A and B are ours transposed.) A kernel with several axes is treated as the
matrix of its inputs by its outputs, so the three products of a fused query, key and value share an A; a stack of
layers has an A and a B for each layer.

Adapters are functions of the tree of parameters: ``params["lora"]`` holds A and B under the path of their kernel, and
every forward pass uses merged kernels. No module needs to know of them. The price is a merged copy of each adapted
kernel, and of its gradient, during a step; the gradients that are kept, and the moments, are those of A and B only.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alm_jax.errors import UserError
from alm_jax.objectives import Objective
from alm_jax.objectives.objective import Inputs
from alm_jax.training.parameter_paths import match_paths, parameter_paths
from alm_jax.training.trainable import overlay, select
from alm_jax.types import Params, PyTree

ADAPTERS = "lora"
"""Path of the adapters in the tree of parameters."""
KEY_STREAM = 0x10A
"""Constant folded into a key, so that adapters and model use different random numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters, and the kernels that they adapt."""

    targets: tuple[str, ...] = ()
    """Regular expressions over parameter paths: ``^text/blocks/attention/.*kernel$``. None: no adapters. The matching
    kernels are frozen; ``optimizer.frozen`` decides about all other parameters."""
    rank: int = 8
    """Rank: columns of A and rows of B."""
    alpha: float = 16.0
    """Scale of the adapters: their product is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout rate of the adapters' inputs in training. One choice holds for all tokens of a step, since rows of A
    are zeroed; peft chooses for each token separately."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"lora.rank is {self.rank} and lora.dropout {self.dropout}; expected a rank of 1 or more, and 0 <= "
                "dropout < 1"
            )


@dataclasses.dataclass(frozen=True)
class _Target:
    """One adapted kernel."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    num_stacked: int
    """Number of leading axes of layers: 0 or 1."""
    num_inputs: int
    """Number of axes produced by the layer, after those that it contracts."""

    @property
    def cuts(self) -> tuple[int, int]:
        """First axis of the inputs, and of the outputs."""
        return self.num_stacked, self.num_stacked + self.num_inputs

    def flatten(self, sizes: tuple[int, ...]) -> tuple[int, int]:
        """Sizes of inputs and outputs, each as one axis."""
        first, second = self.cuts
        return math.prod(sizes[first:second]), math.prod(sizes[second:])


def add_adapters(objective: Objective, config: LoraConfig) -> Objective:
    """Returns the objective with adapters on the kernels that ``config.targets`` matches; those kernels are frozen.

    Base parameters are initialised as without adapters. `Objective.merge` returns the adapted model's parameters.

    Raises UserError where an expression matches nothing, or anything but kernels of linear layers.
    """
    if not config.targets:
        return objective
    targets = find_targets(objective, config)

    def init(key: Any) -> dict[str, Params]:
        variables = objective.init(key)
        key = jax.random.fold_in(key, KEY_STREAM)
        adapters: dict[str, Any] = {}
        for index, target in enumerate(targets):
            first, second = target.cuts
            stacked, (num_inputs, _) = target.shape[:first], target.flatten(target.shape)
            bound = num_inputs**-0.5
            a_shape = (*target.shape[:second], config.rank)
            a = jax.random.uniform(jax.random.fold_in(key, index), a_shape, jnp.float32, -bound, bound)
            b = jnp.zeros((*stacked, config.rank, *target.shape[second:]), jnp.float32)
            _put(adapters, target.path, {"a": a, "b": b})
        return {**variables, "params": {**variables["params"], ADAPTERS: adapters}}

    def axes() -> PyTree:
        adapters: dict[str, Any] = {}
        for target in targets:
            first, second = target.cuts
            names = target.axes
            pair = {"a": (*names[:second], "rank"), "b": (*names[:first], "rank", *names[second:])}
            _put(adapters, target.path, pair)
        return {**objective.axes(), ADAPTERS: adapters}

    def merge(params: Params, key: Any = None) -> dict[str, Any]:
        base = without_adapters(params)
        merged: dict[str, Any] = {}
        for index, target in enumerate(targets):
            pair, kernel = _get(params[ADAPTERS], target.path), _get(base, target.path)
            drop = None if key is None else jax.random.fold_in(key, index)
            _put(merged, target.path, kernel + compute_update(target, pair["a"], pair["b"], config, drop))
        return overlay(base, merged)

    def encode(variables: dict[str, Any], inputs: Inputs, key: Any, *, train: bool) -> tuple[PyTree, Params]:
        drop = jax.random.fold_in(key, KEY_STREAM) if train and config.dropout else None
        params = merge(variables["params"], drop)
        return objective.encode({**variables, "params": params}, inputs, key, train=train)

    def combine(params: Params, *args: Any, **kwargs: Any) -> Any:
        # A loss may read kernels too, such as a language model's head.
        return objective.combine(merge(params), *args, **kwargs)

    def project(params: Params) -> dict[str, Any]:
        return {**objective.project(without_adapters(params)), ADAPTERS: params[ADAPTERS]}

    def trained(params: Params) -> dict[str, Any]:
        base = objective.trained(without_adapters(params))
        paths = {"/".join(target.path) for target in targets}
        kept = jax.tree.map(lambda path: path not in paths, parameter_paths(base))
        return {**select(base, kept), ADAPTERS: params[ADAPTERS]}

    return dataclasses.replace(
        objective,
        init=init,
        axes=axes,
        encode=encode,
        combine=combine,
        project=project,
        trained=trained,
        merge=lambda params: dict(objective.merge(merge(params))),
    )


def without_adapters(params: Params) -> dict[str, Any]:
    """Returns the base parameters."""
    return {name: value for name, value in params.items() if name != ADAPTERS}


def compute_update(
    target: _Target, a: Float[Array, "..."], b: Float[Array, "..."], config: LoraConfig, key: Array | None
) -> Float[Array, "..."]:
    """Computes (alpha / rank) A B in the shape of the kernel; with a ``key``, rows of A are zeroed and the rest
    scaled up."""
    stacked = target.shape[: target.num_stacked]
    num_inputs, num_outputs = target.flatten(target.shape)
    a = a.reshape(*stacked, num_inputs, config.rank)
    if key is not None:
        kept = jax.random.bernoulli(key, 1 - config.dropout, (*a.shape[:-1], 1))
        a = jnp.where(kept, a / (1 - config.dropout), 0)
    product = jnp.matmul(a, b.reshape(*stacked, config.rank, num_outputs), precision="highest")
    return (config.alpha / config.rank) * product.reshape(target.shape)


def find_targets(objective: Objective, config: LoraConfig) -> list[_Target]:
    """Returns the kernels to adapt, in the order of their paths."""
    params = jax.eval_shape(objective.init, jax.random.key(0))["params"]
    found = match_paths(params, config.targets, "lora.targets", all_must_match=True)
    axes = objective.axes()
    targets = []
    for keys, is_target in jax.tree.leaves_with_path(found):
        if not is_target:
            continue
        path = tuple(str(part.key) for part in keys)
        names, shape = _get(axes, path), _get(params, path).shape
        num_stacked = 1 if names[:1] == ("layers",) else 0
        own = names[num_stacked:]
        if path[-1] != "kernel" or len(own) < 2 or any(name.startswith("window") for name in own):
            raise UserError(
                f"lora.targets finds {'/'.join(path)} {list(shape)}, which is no kernel of a linear layer; let the "
                "expressions end in kernel$, and name layers that are linear"
            )
        # Only the layer after attention contracts two axes.
        num_inputs = 2 if own[:2] == ("heads", "head_dim") else 1
        targets.append(_Target(path, shape, names, num_stacked, num_inputs))
    return targets


def _get(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
