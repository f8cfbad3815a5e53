"""Adds the special tokens that a tokenizer's folder names beside its tokenizer.json, as `transformers` does.

A tokenizer.json lists the tokens that are kept whole in a text. transformers reads further special tokens from the
files beside it, and a literal occurrence of such a token in a text gets that token's id.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from alm_jax.errors import UserError, as_user_error

_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def add_special_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Adds the tokens that the files beside a tokenizer.json name and that it lacks, in the order of transformers.

    Where ``split_special_tokens`` is true, special tokens in a text are treated as ordinary letters. A padding token
    that the files name is used unless tokenizer.json has its own. Without such files nothing changes.

    Args:
        tokenizer: the tokenizer of ``folder``'s tokenizer.json; it is changed in place.

    Raises:
        UserError: one of the files is not in transformers' format, or a token cannot be added.
    """
    config = _read(folder / _CONFIG)
    is_split = config.get("split_special_tokens", False)
    if not isinstance(is_split, bool):
        raise UserError(
            f"{folder / _CONFIG}: split_special_tokens is {is_split!r:.80}, expected true or false"
        )
    tokenizer.encode_special_tokens = is_split
    numbered: list[AddedToken]
    if "added_tokens_decoder" in config:
        by_number = _object(config["added_tokens_decoder"], f"{folder / _CONFIG}: added_tokens_decoder")
        numbered = [
            _token(by_number[number], f"{folder / _CONFIG}: added_tokens_decoder.{number:.20}")
            for number in sorted(by_number, key=lambda number: (len(number), number))
        ]
        named = list(_named(config, folder))
    else:  # what transformers wrote before its version 4.34
        named = list(_named(config, folder, _read(folder / _MAP)))
        specials = {token.content for _, token in named}
        numbers = _read(folder / _ADDED)
        if not all(isinstance(number, int) for number in numbers.values()):
            raise UserError(f"{folder / _ADDED}: expected the id, a whole number, of each token")
        numbered = [
            AddedToken(content, normalized=content not in specials, special=content in specials)
            for content in sorted(numbers, key=lambda content: numbers[content])
        ]
    names = {token.content for _, token in named}
    for token in numbered:
        token.special = token.special or token.content in names
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    present |= {token.content for token in numbered}
    with as_user_error(f"{folder}: its special tokens cannot be added to its tokenizer.json"):
        tokenizer.add_tokens([*numbered, *(token for _, token in named if token.content not in present)])
        pad = dict(named).get("pad_token")
        if pad is not None and tokenizer.padding is None:
            tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad.content), pad_token=pad.content)


def _named(
    config: Mapping[str, Any], folder: Path, former: Mapping[str, Any] = {}
) -> Iterator[tuple[str, AddedToken]]:
    """Returns the tokens that a config names, by role: the common roles, those of the model, those without a role.

    Tokens of ``former``, the fields of special_tokens_map.json, take precedence over those of ``config``.
    """
    fields = {**config, **former}

    def place(name: str) -> str:
        return f"{folder / (_MAP if name in former else _CONFIG)}: {name}"

    own = [name for name in fields if name.endswith("_token") and name not in _ROLES]
    for name in (*_ROLES, *own):
        # Flags of the former classes have such names too: add_bos_token.
        if fields.get(name) is not None and not isinstance(fields[name], bool):
            yield name, _token(fields[name], place(name))
    key = "extra_special_tokens"
    if isinstance(fields.get(key), Mapping):
        for name, value in fields[key].items():
            yield name, _token(value, f"{place(key)}.{name:.80}")
    if isinstance(fields.get(key), Mapping) or not fields.get(key):
        key = "additional_special_tokens"
    others = fields.get(key) or []
    if not isinstance(others, list):
        raise UserError(f"{place(key)} is {others!r:.80}, expected a list of tokens")
    yield from (("", _token(value, place(key))) for value in others)


def _token(value: Any, what: str) -> AddedToken:
    """Reads a special token, a text or an object with its flags."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    content = value.get("content") if isinstance(value, Mapping) else None
    if not isinstance(content, str):
        raise UserError(
            f"{what} is {value!r:.80}, expected a text, or an object with the text as its content"
        )
    flags = {name: value[name] for name in _FLAGS if name in value}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise UserError(f"{what} has the flags {flags}, expected each to be true or false")
    return AddedToken(content, **{"special": True} | flags)


def _read(path: Path) -> dict[str, Any]:
    """Reads the object of a JSON file; empty where the file does not exist."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error!s:.200})") from error
    return _object(content, f"{path}: it")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{what} is {value!r:.80}, expected an object of JSON")
    return value
