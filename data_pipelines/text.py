"""Captions to token ids, by the ``tokenizers`` library. Needs neither TensorFlow nor JAX.

Two families, with the special tokens and ids of the published models, so that what is trained here is
written as a ``tokenizer.json`` that the fast tokenizers of ``transformers`` load:

=========  ==========================================================  =====================
kind       special tokens                                              a caption becomes
=========  ==========================================================  =====================
bpe        ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, ``<mask>``  ``<s> X </s>``
wordpiece  ``[PAD]`` 0, ``[UNK]`` 1, ``[CLS]`` 2, ``[SEP]`` 3, ``[MASK]`` 4  ``[CLS] X [SEP]``
=========  ==========================================================  =====================
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from alm_jax.errors import UserError, as_user_error
from data_pipelines.config import TokenizerConfig
from data_pipelines.special_tokens import add_special_tokens

_BPE_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|endoftext|>")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a ``tokenizer.json``, or in a folder that holds one, with the special tokens named beside it.

    Raises:
      UserError: there is none, a file does not parse, or it has no padding token.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such tokenizer; expected a tokenizer.json, or a folder that holds one")
    with as_user_error(f"{file}: not a tokenizer that the tokenizers library reads"):
        tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    add_special_tokens(tokenizer, file.parent)
    pad_id(tokenizer)
    return tokenizer


def train_tokenizer(
    captions: Iterable[str], config: TokenizerConfig, special_tokens: Sequence[str] = ()
) -> Tokenizer:
    """Trains a tokenizer on ``captions``: the same captions in any order give the same tokenizer.

    ``special_tokens`` are added to the family's own, and count in the vocabulary size.
    """
    captions = sorted(captions)
    train = _train_bpe if config.kind == "bpe" else _train_wordpiece
    return train(captions, config, special_tokens)


def pad_id(tokenizer: Tokenizer) -> int:
    """Returns the id of the padding token: that of the file's padding section, else the first well-known name."""
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    for token in _PAD_TOKENS:
        if (token_id := tokenizer.token_to_id(token)) is not None:
            return token_id
    raise UserError(f"the tokenizer has no padding token; looked for {', '.join(_PAD_TOKENS)}")


def encode(
    tokenizer: Tokenizer, captions: Sequence[str], max_length: int
) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
    """Encodes captions: token ids (int32) and mask (bool), L = ``max_length``, padded on the right.

    A caption that is too long loses its last tokens, and keeps the tokens that the tokenizer puts around every text:
    the rows are those of the library's own truncation, whatever the post-processor. ``tokenizer`` is not changed, so
    threads may share it.

    Raises UserError where ``max_length`` leaves no room for a token of the text.
    """
    begin, end = framing_tokens(tokenizer)
    room = max_length - len(begin) - len(end)
    if room < 1:
        raise UserError(
            f"texts are cut to {max_length} tokens, and the tokenizer puts {len(begin) + len(end)} around each: raise "
            "data.tokenizer.max_length"
        )
    rows = [[*begin, *tokens[:room], *end] for tokens in encode_pieces(tokenizer, captions)]
    return pad_rows(rows, max_length, pad_id(tokenizer))


def pad_rows(
    rows: Sequence[Sequence[int]], length: int, pad: int
) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
    """Pads rows of at most ``length`` tokens on the right with the id ``pad``: ids (int32) and mask (bool)."""
    ids = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), np.bool_)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = True
    return ids, mask


def encode_pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Returns the token ids of texts, without any token added before or after them."""
    return _encode_unpadded(tokenizer, texts, add_special_tokens=False)


def framing_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns the tokens that the tokenizer itself puts before and after a text; often one each, or none."""
    (bare,), (framed,) = encode_pieces(tokenizer, ["a"]), _encode_unpadded(tokenizer, ["a"])
    start = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
    return framed[:start], framed[start + len(bare) :]


def token_lengths(tokenizer: Tokenizer, captions: Sequence[str]) -> Int[np.ndarray, " B"]:
    """Returns the number of tokens of each caption before it is cut, special tokens included."""
    return np.array([len(tokens) for tokens in _encode_unpadded(tokenizer, captions)], np.int64)


def _encode_unpadded(
    tokenizer: Tokenizer, captions: Sequence[str], *, add_special_tokens: bool = True
) -> list[list[int]]:
    encodings = tokenizer.encode_batch_fast(list(captions), add_special_tokens=add_special_tokens)
    if tokenizer.padding is None:
        return [encoding.ids for encoding in encodings]
    return [[i for i, real in zip(e.ids, e.attention_mask, strict=True) if real] for e in encodings]


def _train_bpe(captions: Sequence[str], config: TokenizerConfig, special_tokens: Sequence[str]) -> Tokenizer:
    """Makes a tokenizer like RoBERTa's: byte-level, so that nothing is unknown; ``<mask>`` is the last id."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=config.num_tokens - 1 - len(special_tokens),
        special_tokens=[AddedToken(token, special=True, normalized=True) for token in _BPE_SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.add_special_tokens(_whole(special_tokens))
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _train_wordpiece(
    captions: Sequence[str], config: TokenizerConfig, special_tokens: Sequence[str]
) -> Tokenizer:
    """Makes a tokenizer like BERT's, uncased."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers the single-letter pieces in the order of a hash table, and breaks ties between merges by
    # those numbers. Declared in advance as special tokens, they have a fixed order.
    normalised = (tokenizer.normalizer.normalize_str(caption) for caption in captions)
    words = {word for text in normalised for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    letters = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.num_tokens - len(special_tokens),
        special_tokens=[*_WORDPIECE_SPECIALS, *letters],
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in letters]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens(_whole(special_tokens))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _whole(special_tokens: Sequence[str]) -> list[AddedToken]:
    """Tokens that are recognised in a text as written, before it is split."""
    return [AddedToken(token, special=True, normalized=False) for token in special_tokens]
