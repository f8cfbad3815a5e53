"""Masked language modelling as a part of objectives: which tokens are hidden, and the loss of naming them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.errors import UserError
from alm_jax.losses.language_modeling import token_loss
from alm_jax.nn.language_model import project
from alm_jax.objectives.objective import DataFacts, Loss
from alm_jax.ops.token_masking import MaskedTokens, mask_tokens

MASK_TOKENS = ("<mask>", "[MASK]")
"""Names of the token that hides others, by kind of tokenizer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedTextConfig:
    """BERT's masking: of the chosen tokens 80 % are hidden, 10 % replaced by any other, 10 % left as they are."""

    proportion: float = 0.15
    """Fraction of the words' tokens that are chosen, at random for every text and step."""
    mask_id: int = 4
    """Id of the token that hides another: 4 where the tokenizer is wordpiece, the last id where it is bpe."""
    special_ids: tuple[int, ...] = (0, 1, 2, 3)
    """Tokens that are never chosen, besides ``mask_id``: padding, the unknown, start and end, as both kinds of
    tokenizer that are trained here number them."""

    def __post_init__(self) -> None:
        if not 0 < self.proportion <= 1:
            raise UserError(f"masked_text.proportion is {self.proportion}; it must be above 0 and at most 1")

    def is_word(self, ids: Int[Array, "*B L"], mask: Bool[Array, "*B L"]) -> Bool[Array, "*B L"]:
        """True for real tokens that are part of a word."""
        return mask & ~jnp.isin(ids, jnp.asarray((*self.special_ids, self.mask_id)))


def check_masked_text(
    config: MaskedTextConfig, facts: DataFacts, *, vocab_size: int, max_length: int
) -> None:
    """Raises UserError where the model cannot take the tokenizer's texts, or ``mask_id`` is not its mask.

    Args:
        vocab_size: entries of the model's table of words.
        max_length: tokens that the model has positions for.
    """
    if facts.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer has {facts.vocab_size} tokens, the model embeds {vocab_size}: raise the model's "
            "vocab_size or lower data.tokenizer.vocab_size"
        )
    if facts.max_length > max_length:
        raise UserError(
            f"texts are cut to {facts.max_length} tokens, the model has positions for {max_length}: give the model "
            "more, or lower data.tokenizer.max_length"
        )
    if not facts.mask_ids:
        raise UserError(
            f"the tokenizer has no token that hides others; looked for {', '.join(MASK_TOKENS)}: take another"
        )
    if config.mask_id not in facts.mask_ids.values():
        token, found = next(iter(facts.mask_ids.items()))
        raise UserError(
            f"objective.masked_text.mask_id is {config.mask_id}, the tokenizer has {token} as {found}: set it to that"
        )


def row_keys(key: Any, index: Int[Array, " B"], *, train: bool) -> Any:
    """A key for each row: from ``key`` in training; in evaluation always the same, by its place in the split."""
    if train:
        return jax.random.split(key, len(index))
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(index)


def mask_texts(
    config: MaskedTextConfig,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    keys: Any,
    *,
    vocab_size: int,
) -> MaskedTokens:
    """Texts with some of their words' tokens altered, each by its own one of the B ``keys``."""

    def draw(ids: Array, is_word: Array, key: Any) -> MaskedTokens:
        return mask_tokens(
            ids, is_word, key, mask_id=config.mask_id, vocab_size=vocab_size, proportion=config.proportion
        )

    return jax.vmap(draw)(ids, config.is_word(ids, mask), keys)


def masked_text_loss(
    hidden: Float[Array, "B L D"],
    table: Float[Array, "V D"],
    bias: Float[Array, " V"],
    ids: Int[Array, "B L"],
    counted: Bool[Array, "B L"],
) -> Loss:
    """Cross-entropy of the true tokens where they count; ``hidden`` as `MaskedLanguageHead` makes it."""
    return Loss(*token_loss(hidden, table, ids, mask=counted, bias=bias, tied=True))


def words_right(
    hidden: Float[Array, "B L D"],
    table: Float[Array, "V D"],
    bias: Float[Array, " V"],
    ids: Int[Array, "B L"],
    counted: Bool[Array, "B L"],
) -> Loss:
    """How many of the tokens that count have the largest logit, and how many there are; all logits are made at once."""
    logits = project(hidden, table, tied=True) + bias[None, None]
    right = (jnp.argmax(logits, axis=-1) == ids) & counted
    return Loss(jnp.sum(right, dtype=jnp.float32), jnp.sum(counted, dtype=jnp.float32))
