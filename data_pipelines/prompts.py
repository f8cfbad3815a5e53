"""Prompts and answers as token ids, for training and for generation.

A prompt is the text that `data_pipelines.templates` puts before an answer. The vectors of the recording are inserted
before one of its tokens, and an answer ends with an end token.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import AddedToken, Tokenizer

from alm_jax.errors import UserError
from data_pipelines.config import PromptConfig
from data_pipelines.templates import AUDIO_MARKER, TEMPLATES, TemplateName, render
from data_pipelines.text import encode_pieces, framing_tokens, pad_id, pad_rows

_END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>")


def encode_prompts(
    tokenizer: Tokenizer, template: TemplateName, questions: Sequence[str], max_length: int
) -> tuple[Int[np.ndarray, "B P"], Bool[np.ndarray, "B P"], Int[np.ndarray, " B"]]:
    """Encodes the prompts of ``questions``: ids, mask and place of the recording, P = ``max_length``.

    Ids (int32) are padded on the right; the third result (int32) is the number of the token before which the
    recording's vectors are inserted. ``tokenizer`` is not changed.

    Raises:
      UserError: a prompt is longer than ``max_length``, the template needs a question and there is none, or it needs
      tokens that the tokenizer does not have.
    """
    check_special_tokens(tokenizer, template)
    marked = _with_marker(tokenizer)
    marker_id = _id_of(marked, AUDIO_MARKER)
    start = framing_tokens(tokenizer)[0] if TEMPLATES[template].starts_text else []
    rows, positions = [], []
    for question, tokens in zip(
        questions, encode_pieces(marked, [render(template, question) for question in questions]), strict=True
    ):
        place = tokens.index(marker_id)
        row = [*start, *tokens[:place], *tokens[place + 1 :]]
        if len(row) > max_length:
            raise UserError(
                f"the prompt of the question {question!r} takes {len(row)} tokens with the template {template!r}, "
                f"more than prompt.max_length {max_length}; raise that, or ask in fewer words"
            )
        rows.append(row)
        positions.append(place + len(start) if place else 0)
    ids, mask = pad_rows(rows, max_length, pad_id(tokenizer))
    return ids, mask, np.array(positions, np.int32)


def encode_answers(
    tokenizer: Tokenizer, template: TemplateName, answers: Sequence[str], max_length: int
) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
    """Encodes answers: ids (int32) and mask (bool), each with its end token and no start token, L = ``max_length``.

    An answer that is too long keeps its first tokens and the end token.
    """
    end = answer_end_id(tokenizer, template)
    rows = [[*tokens[: max_length - 1], end] for tokens in encode_pieces(tokenizer, answers)]
    return pad_rows(rows, max_length, pad_id(tokenizer))


def answer_end_id(tokenizer: Tokenizer, template: TemplateName) -> int:
    """Returns the id of the token that ends an answer: the template's, else the tokenizer's own. UserError where
    there is none."""
    check_special_tokens(tokenizer, template)
    if (token := TEMPLATES[template].end_token) is not None:
        return _id_of(tokenizer, token)
    _, end = framing_tokens(tokenizer)
    known = [*end, *(tokenizer.token_to_id(token) for token in _END_TOKENS)]
    found = next((token_id for token_id in known if token_id is not None), None)
    if found is None:
        raise UserError(f"the tokenizer has no token that ends a text; looked for {', '.join(_END_TOKENS)}")
    return int(found)


def check_special_tokens(tokenizer: Tokenizer, template: TemplateName) -> None:
    """Raises UserError where the tokenizer lacks a special token of the template."""
    missing = [token for token in TEMPLATES[template].special_tokens if tokenizer.token_to_id(token) is None]
    if missing:
        raise UserError(
            f"the template {template!r} needs the tokens {', '.join(missing)}, which the tokenizer does not have; take "
            "a tokenizer that has them (one that is trained here gets them), or another prompt.template"
        )


def prompt_texts(config: PromptConfig) -> list[str]:
    """Returns the text of the prompts between the special tokens, on which a new tokenizer should be trained."""
    texts = [render(config.template, question) for question in config.questions]
    for token in (AUDIO_MARKER, *TEMPLATES[config.template].special_tokens):
        texts = [piece for text in texts for piece in text.split(token)]
    return [text for text in texts if text.strip()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of one data set, a row a question."""

    ids: Int[np.ndarray, "Q P"]
    mask: Bool[np.ndarray, "Q P"]
    audio_position: Int[np.ndarray, " Q"]


def encode_prompt_config(tokenizer: Tokenizer, config: PromptConfig, length: int) -> Prompts:
    """Encodes every prompt of ``config``, padded to ``length``. Raises UserError as `encode_prompts` does."""
    ids, mask, position = encode_prompts(tokenizer, config.template, config.questions, config.max_length)
    padded, padded_mask = pad_rows(
        [row[real].tolist() for row, real in zip(ids, mask, strict=True)], length, pad_id(tokenizer)
    )
    return Prompts(ids=padded, mask=padded_mask, audio_position=position)


def _id_of(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id


@functools.lru_cache(maxsize=4)
def _marked_copy(serialised: str) -> Tokenizer:
    copy = Tokenizer.from_str(serialised)
    copy.add_special_tokens([AddedToken(AUDIO_MARKER, special=True, normalized=False)])
    return copy


def _with_marker(tokenizer: Tokenizer) -> Tokenizer:
    """Returns the tokenizer, or a copy that keeps the marker as one token, so that the text around it is split as
    before."""
    return tokenizer if tokenizer.token_to_id(AUDIO_MARKER) is not None else _marked_copy(tokenizer.to_str())
