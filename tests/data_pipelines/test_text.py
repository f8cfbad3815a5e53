"""Tokenizers against the fast tokenizers of transformers, which load what is trained here."""

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from alm_jax.errors import UserError
from data_pipelines.config import TokenizerConfig
from data_pipelines.text import encode, load_tokenizer, pad_id, token_lengths, train_tokenizer

CAPTIONS = [
    "A dog barks twice, then a door closes",
    "Rain falls on a tin roof while thunder rolls in the distance",
    "A loud high-pitched beep followed by a soft low hum",
    "Birds are singing and a stream is running",
] * 3
ODD = [
    "",
    "a",
    "Ein café",
    "\U0001f327 rain",
    "\u0643\u0644\u0628 \u064a\u0646\u0628\u062d",
    "a <s> b </s> [SEP] c",
    "  two  spaces ",
    "dog " * 50,
]
KINDS = ("bpe", "wordpiece")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind: str) -> Tokenizer:
    return train_tokenizer(CAPTIONS, TokenizerConfig(kind=kind, vocab_size=350))


def test_special_tokens_have_the_published_ids(tokenizer, kind):
    if kind == "bpe":
        ids = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": tokenizer.get_vocab_size() - 1}
    else:
        ids = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    assert {token: tokenizer.token_to_id(token) for token in ids} == ids
    assert pad_id(tokenizer) == (1 if kind == "bpe" else 0)
    assert tokenizer.get_vocab_size() <= 350


def test_ids_and_masks_are_those_of_transformers(tokenizer, kind, tmp_path):
    from transformers import BertTokenizerFast, RobertaTokenizerFast

    tokenizer.save(str(tmp_path / "tokenizer.json"))
    published = (RobertaTokenizerFast if kind == "bpe" else BertTokenizerFast).from_pretrained(tmp_path)
    for captions, max_length in ((CAPTIONS + ODD, 16), (ODD, 64), (CAPTIONS, 3)):
        ids, mask = encode(tokenizer, captions, max_length)
        expected = published(captions, padding="max_length", truncation=True, max_length=max_length)
        assert ids.dtype == np.int32
        assert mask.dtype == np.bool_
        assert ids.tolist() == expected["input_ids"]
        assert mask.astype(int).tolist() == expected["attention_mask"]


def test_what_was_trained_survives_being_saved(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        ids, mask = encode(load_tokenizer(path), CAPTIONS + ODD, 20)
        expected_ids, expected_mask = encode(tokenizer, CAPTIONS + ODD, 20)
        assert np.array_equal(ids, expected_ids)
        assert np.array_equal(mask, expected_mask)


def test_truncation_and_padding_set_in_a_file_do_not_matter(tokenizer):
    other = Tokenizer.from_str(tokenizer.to_str())
    other.enable_padding(pad_id=pad_id(tokenizer), length=64)
    assert np.array_equal(encode(other, CAPTIONS, 12)[0], encode(tokenizer, CAPTIONS, 12)[0])
    assert token_lengths(other, ODD).tolist() == token_lengths(tokenizer, ODD).tolist()


def test_bytes_are_never_unknown_to_bpe():
    tokenizer = train_tokenizer(CAPTIONS, TokenizerConfig(kind="bpe", vocab_size=300))
    for caption in ODD:
        assert tokenizer.decode(tokenizer.encode(caption, add_special_tokens=False).ids, False) == caption


def test_a_very_long_caption_keeps_its_start_and_its_end_token(tokenizer):
    ids, mask = encode(tokenizer, ["dog " * 25_000], 16)
    start, end = tokenizer.encode("").ids
    assert ids[0, 0] == start
    assert ids[0, -1] == end
    assert mask.all()


TRAIN = """
import csv, hashlib, sys
from data_pipelines.config import TokenizerConfig
from data_pipelines.text import train_tokenizer
captions = [row["caption"] for row in csv.DictReader(open(sys.argv[1], newline=""))]
for kind in ("bpe", "wordpiece"):
    tokenizer = train_tokenizer(reversed(captions), TokenizerConfig(kind=kind, vocab_size=900))
    print(hashlib.sha256(tokenizer.to_str().encode()).hexdigest())
assert not {"tensorflow", "jax"} & set(sys.modules)
"""


def test_training_is_the_same_in_every_process_and_order(real_data_dir):
    path = real_data_dir / "audiocaps" / "val.csv"
    with open(path, newline="") as table:
        captions = [row["caption"] for row in csv.DictReader(table)]
    expected = [
        hashlib.sha256(
            train_tokenizer(captions, TokenizerConfig(kind=kind, vocab_size=900)).to_str().encode()
        )
        for kind in KINDS
    ]
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", TRAIN, path], cwd=root, check=True, capture_output=True, text=True, timeout=600
    )
    assert result.stdout.split() == [digest.hexdigest() for digest in expected]


def test_a_tokenizer_that_is_not_there_or_not_one_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json: no such tokenizer; expected a tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer that the tokenizers library reads"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_padding_is_an_error(tmp_path):
    from tokenizers import models

    Tokenizer(models.WordLevel({"dog": 0}, unk_token="dog")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="no padding token; looked for <pad>"):
        load_tokenizer(tmp_path)


FRAMES = {
    "none, as GPT-2": processors.ByteLevel(trim_offsets=False),
    "start alone, as Llama": processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
    "end alone, as T5": processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)]),
    "two ends": processors.TemplateProcessing(
        single="<s> $A </s> <unk>", special_tokens=[("<s>", 0), ("</s>", 2), ("<unk>", 3)]
    ),
    "one after another": processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]),
        ]
    ),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
@pytest.mark.parametrize("max_length", [4, 6, 64])
def test_texts_are_cut_as_the_library_cuts_them(frame, max_length):
    tokenizer = train_tokenizer(CAPTIONS, TokenizerConfig(kind="bpe", vocab_size=350))
    tokenizer.post_processor = frame
    library = Tokenizer.from_str(tokenizer.to_str())
    library.enable_truncation(max_length)
    ids, mask = encode(tokenizer, CAPTIONS + ODD, max_length)
    expected = [found.ids for found in library.encode_batch(CAPTIONS + ODD)]
    assert [row[real].tolist() for row, real in zip(ids, mask, strict=True)] == expected


def test_no_room_for_a_text_is_a_mistake():
    tokenizer = train_tokenizer(CAPTIONS, TokenizerConfig(kind="bpe", vocab_size=350))
    with pytest.raises(UserError, match="cut to 2 tokens, and the tokenizer puts 2 around each"):
        encode(tokenizer, CAPTIONS, 2)
