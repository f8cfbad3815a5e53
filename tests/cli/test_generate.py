"""`alm generate`: what it writes is what the evaluation of the same run, and transformers, write of the same files."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from alm_jax.cli.main import dispatch
from alm_jax.evaluation.evaluators.answers import Answers, write_split
from alm_jax.interop.qwen2_audio import QWEN2_AUDIO
from alm_jax.models import qwen2_audio
from alm_jax.models.generation import Beam, Greedy, Sample
from alm_jax.run.evaluate import RunEvaluation
from alm_jax.run.experiment import load_config
from alm_jax.run.generate import choose_strategy
from alm_jax.run.load import load_model
from alm_jax.run.session import Session, restore_run
from alm_jax.run.workdir import TOKENIZER
from data_pipelines.config import TokenizerConfig
from data_pipelines.templates import TEMPLATES, render
from data_pipelines.text import train_tokenizer

HERE = Path(__file__).parent
CONFIG = HERE / "tiny_language_modeling.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that is saved before its first step, and what it and its test split are."""
    folder = tmp_path_factory.mktemp("generate")
    config = load_config(CONFIG)
    data = dataclasses.replace(config.data, cache_dir=str(folder / "data"))
    session = Session(dataclasses.replace(config, data=data))
    checkpoints = session.checkpoints(folder / "run")
    checkpoints.save(session.parallel.init(), wait=True)
    checkpoints.close()
    session.data.tokenizer.save(str(folder / "run" / TOKENIZER))
    split = session.data.split("test")
    for index, pcm in enumerate(split.read_pcm(range(len(split)))):
        soundfile.write(folder / f"{index}.wav", pcm, session.data.sample_rate_hz)
    return folder


@pytest.fixture
def files(folder):
    """The recordings of the test split."""
    return [folder / f"{index}.wav" for index in range(8)]


def write(folder, capsys, *args):
    capsys.readouterr()
    assert dispatch(["generate", str(folder / "run"), *map(str, args), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_answers_are_those_of_the_evaluation(folder, files, capsys):
    written = write(folder, capsys, "--audio", *files)
    session, state = restore_run(folder / "run")
    evaluation = RunEvaluation(session, split="test")
    answers = write_split(evaluation.model(state), evaluation.split_of(Answers()))
    assert [found["text"] for found in written] == answers[: len(files)]
    assert [found["audio"] for found in written] == list(map(str, files))
    assert {found["prompt"] for found in written} == {"what is this?"}
    assert all(found["score"] < 0 and 1 <= found["num_tokens"] <= 12 for found in written)


@pytest.mark.slow
def test_one_file_for_a_person(folder, files, capsys):
    """Its own question, five tokens; the batch it is in changes nothing."""
    asked = ["--prompt", "describe it", "--max-new-tokens", "5"]
    capsys.readouterr()
    assert dispatch(["generate", str(folder / "run"), "--audio", str(files[1]), *asked]) == 0
    shown = capsys.readouterr().out
    both = write(folder, capsys, "--audio", *files[:2], *asked)
    assert shown == f"{files[1]}: {both[1]['text']}\n"


@pytest.mark.slow
def test_beams_find_likelier_texts_and_draws_repeat_by_their_seed(folder, files, capsys):
    greedy = write(folder, capsys, "--audio", *files)
    beams = write(folder, capsys, "--audio", *files, "--beams", 4)
    means = [found["score"] / found["num_tokens"] for found in greedy]
    assert np.mean([found["score"] for found in beams]) > np.mean(means)
    drawn = [
        write(folder, capsys, "--audio", *files, "--top-k", 50, "--top-p", 0.9, "--seed", seed)
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_options_say_how_tokens_are_chosen():
    assert choose_strategy(None, None, None, None) == Greedy()
    assert choose_strategy(3, None, None, None) == Beam(num_beams=3)
    assert choose_strategy(None, 0.7, None, 0.9) == Sample(temperature=0.7, top_p=0.9)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--audio", "absent.wav"], 3, "absent.wav cannot be used: missing"),
        (["--audio", str(CONFIG)], 3, "cannot be used"),
        (["--audio", "GOOD", "--beams", "2", "--top-k", "3"], 2, "--beams searches"),
        (["--audio", "GOOD", "--top-p", "2"], 2, "top_p is 2.0"),
        (["--audio", "GOOD", "--max-new-tokens", "0"], 2, "max-new-tokens is 0"),
        (["--audio", "GOOD", "--max-new-tokens", "900"], 2, "max_positions 40"),
        (["--audio", "GOOD", "--prompt", "what is it? " * 20], 2, "prompt.max_length 10"),
        ([], 2, "--audio"),
    ],
    ids=["absent", "no audio", "both", "share", "none", "long", "prompt", "nothing"],
)
def test_mistakes(folder, files, capsys, args, code, words):
    args = [str(files[0]) if part == "GOOD" else part for part in args]
    assert dispatch(["generate", str(folder / "run"), *args]) == code
    assert words in capsys.readouterr().err


def test_what_does_not_write_is_refused(folder, tmp_path, capsys, monkeypatch):
    assert dispatch(["generate", str(tmp_path / "absent"), "--audio", "x.wav"]) == 2
    assert "no such folder or file" in capsys.readouterr().err
    assert dispatch(["generate", str(tmp_path), "--audio", "x.wav"]) == 2
    assert "config.json" in capsys.readouterr().err
    other = load_config(HERE / "tiny_config.py")
    loaded = dataclasses.replace(load_model(folder / "run"), experiment=other)
    monkeypatch.setattr("alm_jax.run.generate.load_model", lambda source: loaded)
    assert dispatch(["generate", str(folder / "run"), "--audio", "x.wav"]) == 2
    assert "ContrastiveConfig, which writes no text" in capsys.readouterr().err


@pytest.mark.slow
def test_an_imported_qwen2_audio_writes_what_transformers_does(tmp_path, capsys):
    """From files: its processor cuts, filters and expands them, and its model writes; weights are random."""
    import torch
    import transformers

    tokenizer = train_tokenizer(
        ["a loud high tone", "which sound is it"],
        TokenizerConfig(vocab_size=400),
        TEMPLATES["chatml"].special_tokens,
    )
    nano = qwen2_audio.NANO
    config = dataclasses.replace(
        nano,
        language_model=dataclasses.replace(nano.language_model, vocab_size=tokenizer.get_vocab_size()),
        audio_token_id=tokenizer.token_to_id("<|AUDIO|>"),
    )
    torch.manual_seed(0)
    theirs = transformers.Qwen2AudioForConditionalGeneration(
        transformers.Qwen2AudioConfig(**QWEN2_AUDIO.write_config(config))
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path / "hub")
    tokenizer.save(str(tmp_path / "hub" / "tokenizer.json"))
    assert dispatch(["import", str(tmp_path / "hub"), "--out", str(tmp_path / "imported")]) == 0

    rng, files, waveforms = np.random.default_rng(0), [], []
    for index, num_samples in enumerate((24_000, 40_007)):
        pcm = rng.integers(-8000, 8000, num_samples).astype(np.int16)
        files.append(str(tmp_path / f"{index}.wav"))
        waveforms.append(pcm.astype(np.float32) / 32768)
        soundfile.write(files[-1], pcm, 16000)
    capsys.readouterr()
    asked = ["--prompt", "which sound is it?", "--max-new-tokens", "20", "--json", "-"]
    assert dispatch(["generate", str(tmp_path / "imported"), "--audio", *files, *asked]) == 0
    ours = json.loads(capsys.readouterr().out)

    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", padding_side="left"
    )
    extractor = transformers.WhisperFeatureExtractor(
        feature_size=config.encoder.num_mels, chunk_length=config.encoder.max_positions // 50
    )
    processor = transformers.Qwen2AudioProcessor(extractor, fast)
    inputs = processor(
        text=[render("chatml", "which sound is it?")] * 2,
        audio=waveforms,
        sampling_rate=16000,
        padding=True,
        return_tensors="pt",
        add_special_tokens=False,
    )
    end_id = tokenizer.token_to_id("<|im_end|>")
    written = theirs.generate(
        **inputs,
        generation_config=transformers.GenerationConfig(
            max_new_tokens=20, do_sample=False, eos_token_id=end_id, pad_token_id=1
        ),
    )
    texts = tokenizer.decode_batch(
        [
            [token for token in row if token != end_id]
            for row in written[:, inputs["input_ids"].shape[1] :].tolist()
        ]
    )
    assert [found["text"] for found in ours] == [text.strip() for text in texts]
    assert len({found["text"] for found in ours}) == 2
