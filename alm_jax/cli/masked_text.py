"""What the tokenizer must be where words of texts are hidden."""

from alm_jax.errors import UserError
from alm_jax.objectives.masked_text import MaskedTextConfig
from alm_jax.run.session import Session

MASK_TOKENS = ("<mask>", "[MASK]")
"""What the token that hides others is called, by kind of tokenizer."""


def check_masked_text(
    session: Session, config: MaskedTextConfig, *, vocab_size: int, max_length: int
) -> None:
    """Raises UserError where the model cannot take the tokenizer's texts, or ``mask_id`` is not its mask."""
    tokenizer, length = session.data.tokenizer, session.config.data.tokenizer.max_length
    if tokenizer.get_vocab_size() > vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the model embeds {vocab_size}: raise the model's "
            "vocab_size or lower data.tokenizer.vocab_size"
        )
    if length > max_length:
        raise UserError(
            f"texts are cut to {length} tokens, the model has positions for {max_length}: give the model more, or "
            "lower data.tokenizer.max_length"
        )
    ids = {token: tokenizer.token_to_id(token) for token in MASK_TOKENS}
    known = {token: found for token, found in ids.items() if found is not None}
    if not known:
        raise UserError(
            f"the tokenizer has no token that hides others; looked for {', '.join(MASK_TOKENS)}: take another"
        )
    if config.mask_id not in known.values():
        token, found = next(iter(known.items()))
        raise UserError(
            f"objective.masked_text.mask_id is {config.mask_id}, the tokenizer has {token} as {found}: set it to that"
        )
