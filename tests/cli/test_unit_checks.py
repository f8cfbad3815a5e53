"""What does not fit a unit language model's run is said before anything is compiled."""

import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from alm_jax.cli.unit_language_modeling import check, is_fitted_here
from alm_jax.encoders.audio.encodec import EncodecConfig
from alm_jax.encoders.text.gpt2 import Gpt2Config
from alm_jax.errors import UserError
from alm_jax.models.audio_units import CodecUnitsConfig
from alm_jax.ops.frontends import ClipSpec, WaveformSpec
from alm_jax.run.session import Session
from alm_jax.training.initialise import InitFromConfig
from data_pipelines.config import TokenizerConfig
from data_pipelines.text import train_tokenizer

TOKENIZER = train_tokenizer(["a dog barks"], TokenizerConfig(vocab_size=320))


def load_tiny():
    path = Path(__file__).parent / "tiny_unit_language_modeling.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


CONFIG = load_tiny()


def make_session(config=CONFIG, **model):
    objective = dataclasses.replace(
        config.objective, model=dataclasses.replace(config.objective.model, **model)
    )
    # As `Session` leaves itself, without its data and devices.
    session = Session.__new__(Session)
    session.config = dataclasses.replace(config, objective=objective)
    session.data = SimpleNamespace(tokenizer=TOKENIZER)
    session.eval_batch_size = 64
    return session


def test_what_fits_is_not_refused():
    check(make_session())


def test_a_vocabulary_without_room_for_the_tokenizer_says_which_size_has():
    num_words = TOKENIZER.get_vocab_size()
    smaller = dataclasses.replace(CONFIG.objective.model.language_model, vocab_size=num_words + 11)
    with pytest.raises(UserError, match=f"make it at least {num_words + 12}"):
        check(make_session(language_model=smaller))


def test_rows_that_do_not_divide_are_refused():
    three = dataclasses.replace(CONFIG.objective, examples_per_row=3, row_tokens=96)
    with pytest.raises(UserError, match="examples_per_row is 3"):
        check(make_session(dataclasses.replace(CONFIG, objective=three)))


def test_texts_that_leave_no_room_for_units_are_refused():
    data = dataclasses.replace(CONFIG.data, tokenizer=TokenizerConfig(vocab_size=320, max_length=31))
    with pytest.raises(UserError, match="leave -2 units"):
        check(make_session(dataclasses.replace(CONFIG, data=data)))


@pytest.mark.parametrize(
    ("into", "is_fitted"),
    [(None, True), ("language_model", True), ("units/encoder", True), ("units", False), ("", False)],
)
def test_clusters_are_fitted_unless_they_are_brought(into, is_fitted):
    sources = () if into is None else (InitFromConfig(source="runs/other", into=into),)
    assert is_fitted_here(make_session(dataclasses.replace(CONFIG, init_from=sources))) is is_fitted


def test_a_codec_needs_no_clusters():
    codec = EncodecConfig()
    session = make_session(
        frontend=WaveformSpec(
            sample_rate_hz=codec.sample_rate_hz, normalise=False, clip=ClipSpec(clip_sec=1.0)
        ),
        units=CodecUnitsConfig(codec=codec),
        language_model=Gpt2Config(vocab_size=320 + 1024 + 2),
    )
    assert not is_fitted_here(session)
    check(session)
