"""Rematerialisation: what a stack of blocks keeps for the backward pass, and what it recomputes. Decided only
here."""

from typing import Any, Literal, TypeAlias, TypeVar

import flax.linen as nn
import jax
from jax import lax
from jax.extend.core import Primitive

Remat: TypeAlias = Literal["none", "dots", "block"]
"""What the backward pass finds of the forward pass; values and gradients are the same. From much memory to little:

=====  ==============================================================================================================
none   every array that a gradient reads
dots   each block's input and its products with weights (linear layers, convolutions); norms, activations and
       attention's products of Q with S are computed again
block  each block's input alone: a second forward pass through the blocks
=====  ==============================================================================================================

(Chen et al. 2016, https://arxiv.org/abs/1604.06174; the choice of products as Korthikanti et al. 2022, section 5.)
"""

Block = TypeVar("Block", bound=nn.Module)


def rematerialise(
    block: type[Block], remat: Remat, *, is_scanned: bool = True, static_argnums: tuple[int, ...] = ()
) -> type[Block]:
    """``block`` as ``remat`` has it: the same module, with the same parameters under the same names.

    Args:
        block: one of a stack of equal layers, or a stage.
        is_scanned: whether ``nn.scan`` repeats the result. The loop then keeps XLA from merging the second computation
            with the first; elsewhere it takes barriers.
        static_argnums: positions of the arguments of ``__call__`` that must stay Python values, the first after the
            module itself being 1.
    """
    if remat == "none":
        return block
    return nn.remat(
        block,
        prevent_cse=not is_scanned,
        static_argnums=static_argnums,
        policy=_is_product_with_weights if remat == "dots" else None,
    )


def _is_product_with_weights(primitive: Primitive, *args: Any, **params: Any) -> bool:
    """Whether a result is kept: a product of activations with activations has batch axes, one with weights has
    none."""
    if "call_jaxpr" in params:
        # A function with a gradient of its own is kept or computed again as a whole: `dense.multiply` is a product,
        # activations and norms are none.
        equations = params["call_jaxpr"].eqns
        return all(_is_product_with_weights(inner.primitive, **inner.params) for inner in equations)
    return (
        primitive is lax.conv_general_dilated_p
        or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)
    )
