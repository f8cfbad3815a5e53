"""What a language model has written, and how it is asked for the next token."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from jaxtyping import Array, Bool, Float, Int

from alm_jax.types import PyTree

Read: TypeAlias = Callable[..., tuple[Array, PyTree]]
"""``(ids [B L], mask [B L], cache=cache)`` -> logits [B V] of what follows each row's last real token, and the cache
that holds these tokens too."""


class Generated(NamedTuple):
    """What was written after a prompt."""

    ids: Int[Array, "B new"]
    """A row that ended has ``end_id`` for its last token; what comes after it is ``pad_id``."""
    mask: Bool[Array, "B new"]
    """True for the tokens written, ``end_id`` among them."""
    score: Float[Array, " B"]
    """float32: sum of the tokens' log-probabilities by the model, before anything was filtered; of a beam search
    divided by (number of tokens) ** length_penalty."""


def without_end(written: Generated, end_id: int) -> Generated:
    """The same with the token that ends a row masked out."""
    return written._replace(mask=written.mask & (written.ids != end_id))
