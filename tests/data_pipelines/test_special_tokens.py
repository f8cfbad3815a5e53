"""Special tokens that are written literally in a text, against the tokenizers of transformers."""

import json
from pathlib import Path

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from alm_jax.errors import UserError
from data_pipelines.text import encode, load_tokenizer, pad_id

TEXTS = [
    "a dog",
    "a <s> dog</s>",
    "a<s>dog",
    "<s>",
    "  <mask>  barks",
    "a<mask>dog",
    "<MASK> <pad> <unk>",
    "<pad>",
    "<|endoftext|> rain",
    "<|im_start|>user\nrain<|im_end|>\n",
    "<|AUDIO|><tool_call>x",
    "[CLS] dog [SEP] [PAD]",
    "",
    "  ",
    "</s",
    "dog " * 30 + "<s>",
]
LETTERS = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def roberta() -> transformers.PreTrainedTokenizerBase:
    names = {name: i for i, name in enumerate(("<s>", "<pad>", "</s>", "<unk>"))}
    vocabulary = names | {letter: i + 4 for letter, i in LETTERS.items()} | {"<mask>": 260}
    mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=[], mask_token=mask)


def qwen() -> transformers.PreTrainedTokenizerBase:
    tokenizer = transformers.Qwen2Tokenizer(vocab=LETTERS | {"<|endoftext|>": 256}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|AUDIO|>"]})
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return tokenizer


def gpt2() -> transformers.PreTrainedTokenizerBase:
    tokenizer = transformers.GPT2Tokenizer(vocab=LETTERS | {"<|endoftext|>": 256}, merges=[])
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
    return tokenizer


def check_equal(folder: Path) -> None:
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    expected = theirs(TEXTS, truncation=True, max_length=24)["input_ids"]
    ids, mask = encode(ours, TEXTS, 24)
    assert [row[real].tolist() for row, real in zip(ids, mask, strict=True)] == expected
    assert pad_id(ours) == theirs.pad_token_id
    assert ours.get_vocab_size() == len(theirs)


@pytest.mark.parametrize("make", [roberta, qwen, gpt2])
def test_literal_special_tokens_get_their_ids(make, tmp_path):
    make().save_pretrained(tmp_path)
    check_equal(tmp_path)


@pytest.mark.parametrize("make", [roberta, qwen])
def test_split_special_tokens_are_letters(make, tmp_path):
    tokenizer = make()
    tokenizer.split_special_tokens = True
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"split_special_tokens": True}))
    check_equal(tmp_path)
    letters = load_tokenizer(tmp_path).encode("<s><|im_end|>", add_special_tokens=False)
    assert len(letters.ids) == len("<s><|im_end|>")


def save_bare(folder: Path) -> None:
    """A tokenizer.json that lists one special token of its own, ``<s>``."""
    tokenizer = Tokenizer(models.BPE(LETTERS | {"<unk>": 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens([AddedToken("<s>", special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


BESIDE = {
    "roles alone": {
        "tokenizer_config.json": {"pad_token": "<pad>", "mask_token": "<mask>", "audio_token": "<|AUDIO|>"}
    },
    "numbered, with flags of their own": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "258": {"content": "<mask>", "lstrip": True, "rstrip": True, "special": False},
                "1000": {"content": "<|im_end|>", "special": True},
                "257": {"content": "<s>", "lstrip": True, "special": True, "normalized": False},
            },
            "additional_special_tokens": ["<|im_start|>", "</s>"],
            "extra_special_tokens": {"audio_token": "<|AUDIO|>"},
            "mask_token": "<mask>",
            "pad_token": "<pad>",
        }
    },
    "files of older versions": {
        "tokenizer_config.json": {"add_bos_token": True},
        "special_tokens_map.json": {
            "pad_token": "<pad>",
            "mask_token": {"content": "<mask>", "lstrip": True, "normalized": True, "single_word": False},
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        },
        "added_tokens.json": {"<tool_call>": 260, "<|im_end|>": 259, "<pad>": 258},
    },
}


@pytest.mark.parametrize("name", BESIDE)
def test_tokens_that_are_named_beside_the_file_are_found_too(name, tmp_path):
    save_bare(tmp_path)
    for file, content in BESIDE[name].items():
        common = {"tokenizer_class": "PreTrainedTokenizerFast"} if file == "tokenizer_config.json" else {}
        (tmp_path / file).write_text(json.dumps(common | content))
    check_equal(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", [], "expected an object"),
        ("tokenizer_config.json", {"split_special_tokens": "no"}, "split_special_tokens is 'no', expected true"),
        ("tokenizer_config.json", {"pad_token": 3}, "pad_token is 3, expected a text"),
        ("tokenizer_config.json", {"added_tokens_decoder": 3}, "added_tokens_decoder is 3, expected an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": "a", "lstrip": 2}}}, "each to be true"),
        ("tokenizer_config.json", {"extra_special_tokens": "x"}, "extra_special_tokens is 'x', expected a list"),
        ("special_tokens_map.json", {"eos_token": {}}, "eos_token is {}, expected a text"),
        ("added_tokens.json", {"a": "b"}, "expected the id"),
    ],
)  # fmt: skip
def test_files_beside_it_that_are_not_what_they_should_be(file, content, message, tmp_path):
    save_bare(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as found:
        load_tokenizer(tmp_path)
    assert str(tmp_path / file) in str(found.value)
