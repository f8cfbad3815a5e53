"""Prompts: chat as transformers writes it, where the recording stands, what ends an answer, and what is refused."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from alm_jax import batch as contract
from alm_jax.errors import UserError
from data_pipelines.config import PromptConfig, TokenizerConfig
from data_pipelines.pipeline import eval_batches, train_batches
from data_pipelines.prepare import prepare
from data_pipelines.prepared import Prepared
from data_pipelines.prompts import answer_end_id, encode_answers, encode_prompts, prompt_texts
from data_pipelines.templates import AUDIO_MARKER, TEMPLATES, render
from data_pipelines.text import encode, load_tokenizer, train_tokenizer

CAPTIONS = ["A loud high-pitched beep followed by a soft low hum", "Rain falls on a tin roof"] * 3
QUESTION = "Which {digit} is spoken?"
QWEN_AUDIO = "<audio><|AUDIO|></audio>"
LENGTH = 200


def make_tokenizer(template: str, kind: str = "bpe") -> Tokenizer:
    config = TokenizerConfig(kind=kind, vocab_size=400)
    return train_tokenizer(CAPTIONS, config, TEMPLATES[template].special_tokens)


def decode_prompt(tokenizer: Tokenizer, template: str, question: str) -> str:
    """The prompt's text again, with the marker where the recording stands."""
    ids, mask, position = encode_prompts(tokenizer, template, [question], LENGTH)
    tokens = ids[0][mask[0]].tolist()
    assert not mask[0][len(tokens) :].any()
    before, after = tokens[: position[0]], tokens[position[0] :]
    return AUDIO_MARKER.join(tokenizer.decode(part, skip_special_tokens=False) for part in (before, after))


@pytest.mark.parametrize(
    ("template", "question", "expected"),
    [
        ("plain", "", "<|AUDIO|>"),
        ("plain", QUESTION, f"<|AUDIO|>{QUESTION}"),
        ("pengi", "caption", "<|AUDIO|>generate audio caption"),
        ("pengi", "question: what is it?", "<|AUDIO|>question: what is it?"),
        (
            "qwen_audio",
            "transcribe",
            f"{QWEN_AUDIO}<|startoftranscript|><|en|><|transcribe|><|en|><|notimestamps|><|wo_itn|>",
        ),
        (
            "qwen_audio",
            QUESTION,
            f"{QWEN_AUDIO}<|startofanalysis|><|en|><|question|>{QUESTION}<|answer|>",
        ),
        ("alpaca", QUESTION, f"<|AUDIO|><s>### Instruction:\n{QUESTION}\n\n### Response:\n"),
        (
            "speechgpt",
            QUESTION,
            f"<s>[Human]: {QUESTION} This is input: <|AUDIO|><eoh> [SpeechGPT]: ",
        ),
    ],
)
def test_a_prompt_reads_as_published(template, question, expected):
    tokenizer = make_tokenizer(template)
    before = tokenizer.to_str()
    assert decode_prompt(tokenizer, template, question) == expected
    assert tokenizer.to_str() == before


def test_a_chat_has_the_text_and_the_ids_of_transformers(tmp_path):
    """Those of Qwen2AudioProcessor: its template, and one `<|AUDIO|>` a vector where ours has the recording."""
    from transformers import PreTrainedTokenizerFast, Qwen2AudioProcessor, WhisperFeatureExtractor

    tokenizer = make_tokenizer("chatml")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    published = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="<pad>", bos_token=None
    )
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1, hop_length=160)
    processor = Qwen2AudioProcessor(extractor, published)
    for question in (QUESTION, ""):
        content = [{"type": "audio", "audio_url": "x"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        assert render("chatml", question) == text
        found = processor(text=text, audio=np.zeros(8_000, np.float32), sampling_rate=16_000)
        expected = list(found["input_ids"][0])
        marker = tokenizer.token_to_id(AUDIO_MARKER)
        ids, mask, (position,) = encode_prompts(tokenizer, "chatml", [question], LENGTH)
        tokens = ids[0][mask[0]].tolist()
        # The tokenizers trained here put <s> and </s> around a text; Qwen's puts nothing.
        start, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
        num_vectors = expected.count(marker)
        assert num_vectors > 1
        assert [start, *tokens[:position], *[marker] * num_vectors, *tokens[position:], end] == expected


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_ends_with_its_end_token_and_has_no_start(template, kind):
    tokenizer = make_tokenizer(template, kind)
    assert tokenizer.get_vocab_size() <= 400
    end = {"chatml": "<|im_end|>", "speechgpt": "<eoa>"}.get(template, {"bpe": "</s>"}.get(kind, "[SEP]"))
    assert answer_end_id(tokenizer, template) == tokenizer.token_to_id(end)
    ids, mask = encode_answers(tokenizer, template, ["rain", "rain " * 50, ""], 12)
    assert ids.dtype == np.int32
    assert mask.sum(1)[1:].tolist() == [12, 1]
    for row, real in zip(ids, mask, strict=True):
        tokens = row[real].tolist()
        assert tokens[-1] == tokenizer.token_to_id(end)
        assert tokens.count(tokens[-1]) == 1
        assert (
            tokenizer.decode(tokens[:-1], skip_special_tokens=False)
            == ("rain " * 50)[: len(tokenizer.decode(tokens[:-1], skip_special_tokens=False))]
        )


def published_tokenizer(names: list[str], post: object = None) -> Tokenizer:
    """A byte-level vocabulary without merges, with the special tokens of a published family."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(names)
    if post:
        tokenizer.post_processor = post
    return tokenizer


def test_the_end_of_a_published_tokenizer():
    gpt2 = published_tokenizer(["<|endoftext|>"])
    assert answer_end_id(gpt2, "plain") == gpt2.token_to_id("<|endoftext|>")
    assert answer_end_id(gpt2, "alpaca") == gpt2.token_to_id("<|endoftext|>")
    # Llama's puts a start token, and no end token.
    llama = published_tokenizer(["<unk>", "<s>", "</s>", "<pad>"])
    llama.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", llama.token_to_id("<s>"))]
    )
    assert answer_end_id(llama, "alpaca") == llama.token_to_id("</s>")
    for tokenizer, start in ((gpt2, []), (llama, [llama.token_to_id("<s>")])):
        ids, mask, position = encode_prompts(tokenizer, "alpaca", ["Why?"], LENGTH)
        assert position.tolist() == [0]
        assert ids[0][mask[0]].tolist()[: len(start)] == start
        assert mask.sum() == len("### Instruction:\nWhy?\n\n### Response:\n") + len(start)


def test_a_published_tokenizer_without_the_tokens_of_a_template_is_an_error():
    gpt2 = published_tokenizer(["<|endoftext|>"])
    with pytest.raises(
        UserError, match=r"'chatml' needs the tokens <\|im_start\|>, .*another prompt\.template"
    ):
        encode_prompts(gpt2, "chatml", [""], LENGTH)
    with pytest.raises(UserError, match="'speechgpt' needs the tokens <eoh>, <eoa>"):
        encode_answers(gpt2, "speechgpt", ["x"], 8)


def test_a_prompt_that_is_too_long_is_an_error_and_never_cut():
    tokenizer = make_tokenizer("plain")
    num_tokens = int(encode_prompts(tokenizer, "plain", [QUESTION], LENGTH)[1].sum())
    assert encode_prompts(tokenizer, "plain", [QUESTION], num_tokens)[1].all()
    with pytest.raises(UserError, match=rf"takes {num_tokens} tokens .* more than prompt\.max_length"):
        encode_prompts(tokenizer, "plain", ["", QUESTION], num_tokens - 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptConfig(template="alpaca"), "'alpaca' needs a question and has none; give one"),
        (
            lambda: PromptConfig(template="pengi", question=" "),
            "or one of its tasks: caption, metadata, class",
        ),
        (lambda: PromptConfig(question=()), "prompt.question is "),
        (lambda: PromptConfig(question=("a", "a")), "it must be different questions"),
        (lambda: PromptConfig(question="what is <|AUDIO|>?"), "whose place the template decides"),
        (lambda: PromptConfig(max_length=0), "prompt.max_length is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_errors(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)


def test_the_words_of_a_prompt_are_trained_on():
    config = PromptConfig(template="chatml", question=("Which digit?", "What is said?"))
    texts = prompt_texts(config)
    assert "\nWhich digit?" in texts
    assert not any(token in text for text in texts for token in TEMPLATES["chatml"].special_tokens)
    trained = train_tokenizer([*CAPTIONS, *texts], TokenizerConfig(vocab_size=600))
    with_words, without = (
        encode_prompts(tokenizer, "plain", ["Which digit?"], LENGTH)[1].sum()
        for tokenizer in (trained, make_tokenizer("plain"))
    )
    assert with_words < without


@pytest.fixture(scope="module")
def asked(synthetic: Prepared) -> Prepared:
    """The synthetic clips, each asked one of two questions."""
    prompt = PromptConfig(template="chatml", question=("What is heard?", "Say what sounds."), max_length=60)
    tokenizer = dataclasses.replace(synthetic.config.tokenizer, vocab_size=500)
    return prepare(dataclasses.replace(synthetic.config, prompt=prompt, tokenizer=tokenizer), 16_000)


def take(prepared: Prepared, count: int, **options) -> list[dict[str, np.ndarray]]:
    batches = train_batches(prepared, "train", **{"batch_size": 30, "seed": 3, **options})
    return list(itertools.islice(batches, count))


def test_batches_ask_and_their_captions_are_the_answers(synthetic, asked):
    config = asked.config.prompt
    ids, mask, position = encode_prompts(asked.tokenizer, "chatml", config.questions, 60)
    end = asked.tokenizer.token_to_id("<|im_end|>")
    questions: dict[int, list[int]] = {}
    for batch, plain in zip(take(asked, 10), take(synthetic, 10), strict=True):
        contract.validate(batch)
        for key in ("audio", "index", "label"):
            np.testing.assert_array_equal(batch[key], plain[key])
        for row, index in enumerate(batch["index"].tolist()):
            (which,) = np.flatnonzero((ids == batch["prompt_ids"][row]).all(1))
            np.testing.assert_array_equal(batch["prompt_mask"][row], mask[which])
            assert batch["audio_position"][row] == position[which]
            questions.setdefault(index, []).append(int(which))
            # The caption that is drawn is the one that is drawn without a question.
            answer = batch["text_ids"][row][batch["text_mask"][row]].tolist()
            assert answer[-1] == end
            captions = asked.split("train").captions(index)
            said = asked.tokenizer.decode(answer[:-1])
            shown = encode(synthetic.tokenizer, [said], 24)[0][0]
            assert said in captions
            np.testing.assert_array_equal(plain["text_ids"][row], shown)
    assert {len(drawn) for drawn in questions.values()} == {2}
    shares = np.bincount(np.concatenate(list(questions.values())))
    assert (shares > 110).all()  # of 300
    num_changed = sum(one != two for one, two in questions.values())
    assert 45 < num_changed < 105  # of 150: drawn anew in the second epoch


def test_evaluation_asks_the_first_question_and_padding_asks_none(asked):
    ids, mask, position = encode_prompts(asked.tokenizer, "chatml", asked.config.prompt.questions[:1], 60)
    *_, last = eval_batches(asked, "test", batch_size=16)
    contract.validate(last)
    np.testing.assert_array_equal(last["prompt_ids"][:14], np.repeat(ids, 14, 0))
    np.testing.assert_array_equal(last["prompt_mask"][:14], np.repeat(mask, 14, 0))
    assert not last["prompt_mask"][14:].any()
    assert last["audio_position"].tolist() == [position[0]] * 14 + [0] * 2
    assert not last["text_mask"][14:].any()


def test_negative_captions_are_answers_too(asked):
    config = dataclasses.replace(asked.config, num_negatives=2)
    (batch,) = take(dataclasses.replace(asked, config=config), 1)
    contract.validate(batch)
    end = asked.tokenizer.token_to_id("<|im_end|>")
    assert (np.where(batch["negative_mask"], batch["negative_ids"], 0) == end).sum(-1).min() == 1
    assert not (batch["negative_ids"] == 0).any()  # <s>


def test_questions_are_the_same_on_every_process_and_after_a_restart(asked):
    whole = take(asked, 4, batch_size=8)
    parts = [take(asked, 2, batch_size=8, start_step=2, process_index=i, process_count=2) for i in range(2)]
    for expected, *pieces in zip(whole[2:], *parts, strict=True):
        for key in contract.spec_of(negatives=False, prompt=True, source=False):
            np.testing.assert_array_equal(np.concatenate([piece[key] for piece in pieces]), expected[key])


def test_the_fingerprint_covers_what_is_asked(synthetic, asked):
    prompts = [
        None,
        asked.config.prompt,
        dataclasses.replace(asked.config.prompt, question="What is heard?"),
        dataclasses.replace(asked.config.prompt, max_length=61),
    ]
    variants = [
        dataclasses.replace(asked, config=dataclasses.replace(asked.config, prompt=prompt))
        for prompt in prompts
    ]
    assert len({prepared.fingerprint for prepared in variants}) == len(prompts)


def test_a_prompt_that_cannot_be_stops_before_training(synthetic, tmp_path: Path):
    prompt = PromptConfig(question="What is heard in this recording?", max_length=3)
    with pytest.raises(UserError, match=r"more than prompt\.max_length 3"):
        prepare(dataclasses.replace(synthetic.config, prompt=prompt), 16_000)
    published_tokenizer(["<|endoftext|>"]).save(str(tmp_path / "tokenizer.json"))
    config = dataclasses.replace(
        synthetic.config,
        prompt=PromptConfig(template="chatml"),
        tokenizer=TokenizerConfig(path=str(tmp_path), max_length=24),
    )
    with pytest.raises(UserError, match="'chatml' needs the tokens"):
        prepare(config, 16_000)


def test_a_trained_tokenizer_with_the_tokens_of_a_template_survives_being_saved(asked, tmp_path):
    asked.tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(tmp_path)
    expected = encode_prompts(asked.tokenizer, "chatml", [QUESTION], LENGTH)
    for found, wanted in zip(encode_prompts(again, "chatml", [QUESTION], LENGTH), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert again.token_to_id("<mask>") == again.get_vocab_size() - 1
