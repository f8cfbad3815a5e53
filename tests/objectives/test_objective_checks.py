"""What an objective refuses of its data and its run, before anything is compiled."""

import dataclasses
import logging

import pytest

from alm_jax.encoders.audio import cnn14, htsat, htsat_fusion
from alm_jax.encoders.audio.encodec import EncodecConfig
from alm_jax.encoders.text.gpt2 import Gpt2Config
from alm_jax.errors import UserError
from alm_jax.models.audio_units import CodecUnitsConfig
from alm_jax.models.capabilities import TextTokens
from alm_jax.objectives import build_objective
from alm_jax.objectives.frozen_parts import warn_unless_given
from alm_jax.objectives.microbatches import check_microbatches
from alm_jax.objectives.multi_task import ReconstructionTerm
from alm_jax.objectives.unit_language_modeling import is_fitted_here
from alm_jax.ops.frontends import ClipSpec, WaveformSpec


def test_every_tiny_config_fits_its_own_data(tiny_name, load_tiny, make_facts):
    config = load_tiny(tiny_name)
    build_objective(config.objective).check(make_facts(config))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tiny_config", {"vocab_size": 321}, "321 tokens, the text tower embeds 320"),
        ("tiny_config", {"max_length": 10_000}, "captions are cut to 10000 tokens, the text tower takes"),
        ("tiny_language_modeling", {"prompt_length": None}, "data.prompt is not set"),
        ("tiny_language_modeling", {"vocab_size": 10_000}, "10000 tokens, the language model"),
        ("tiny_language_modeling", {"max_length": 10_000}, "max_positions"),
        ("tiny_query_transformer", {"vocab_size": 10_000}, "10000 tokens, the Q-Former embeds"),
        ("tiny_query_transformer", {"max_length": 10_000}, "the Q-Former has positions for"),
        ("tiny_query_transformer", {"prompt_length": 4}, "reads whole captions"),
        ("tiny_multi_task", {"vocab_size": 321}, "321 tokens, the decoder embeds 320"),
        ("tiny_multi_task", {"max_length": 17}, "a class token follows"),
        ("tiny_multi_task", {"prompt_length": 4}, "have no prompts"),
        ("tiny_multi_task", {"num_sources": 0}, "data.dataset has no parts of a mixture"),
        ("tiny_calm", {"vocab_size": 10_000}, "10000 tokens, the model embeds"),
        ("tiny_calm", {"max_length": 10_000}, "the model has positions for"),
        ("tiny_calm", {"mask_ids": {}}, "no token that hides others"),
        ("tiny_calm", {"mask_ids": {"<mask>": 17}}, "has <mask> as 17: set it to that"),
        ("tiny_ctal", {"vocab_size": 10_000}, "10000 tokens, the model embeds"),
        ("tiny_ctal", {"mask_ids": {"<mask>": 17}}, "has <mask> as 17: set it to that"),
        ("tiny_unit_language_modeling", {"vocab_size": 100_000}, "make it at least"),
        ("tiny_unit_language_modeling", {"tokens": TextTokens((), (), 1)}, "no token after a text"),
        ("tiny_unit_language_modeling", {"max_length": 31}, "leave -2 units"),
    ],
)
def test_what_does_not_fit_says_what_to_change(name, changes, message, load_tiny, make_facts):
    config = load_tiny(name)
    with pytest.raises(UserError, match=message):
        build_objective(config.objective).check(make_facts(config, **changes))


def test_a_source_that_a_mixture_lacks_is_refused(load_tiny, make_facts):
    config = load_tiny("tiny_multi_task")
    terms = (*config.objective.terms[:3], ReconstructionTerm(sources=(2,)))
    objective = build_objective(dataclasses.replace(config.objective, terms=terms))
    with pytest.raises(UserError, match=r"sources \(2,\), and data.dataset has 2 parts"):
        objective.check(make_facts(config))


@pytest.mark.parametrize("audio", [cnn14.VARIANTS["nano"], htsat_fusion.VARIANTS["nano"]])
def test_inner_batch_norms_want_the_whole_batch(audio):
    check_microbatches(audio, 1)
    with pytest.raises(UserError, match="num_microbatches is 2"):
        check_microbatches(audio, 2)


def test_a_norm_of_features_takes_the_moments_of_the_whole_batch():
    check_microbatches(htsat.NANO, 2)


def test_frozen_parameters_that_come_from_nowhere_are_named(caplog, load_tiny, make_facts):
    def check(into):
        facts = make_facts(load_tiny("tiny_tokenizer_distillation"), init_paths=(into,))
        warn_unless_given(facts, "teacher", "the teacher", "a run")

    with caplog.at_level(logging.WARNING):
        check("teacher")
        check("")
        assert not caplog.text
        check("tokenizer")
    assert "the teacher is as it was drawn from the seed" in caplog.text


def test_rows_of_units_that_do_not_divide_are_refused(load_tiny, make_facts):
    config = load_tiny("tiny_unit_language_modeling")
    three = dataclasses.replace(config.objective, examples_per_row=3, row_tokens=96)
    with pytest.raises(UserError, match="examples_per_row is 3"):
        build_objective(three).check(make_facts(config))


@pytest.mark.parametrize(
    ("init_paths", "is_fitted"),
    [
        ((), True),
        (("language_model",), True),
        (("units/encoder",), True),
        (("units",), False),
        (("",), False),
    ],
)
def test_clusters_are_fitted_unless_they_are_brought(init_paths, is_fitted, load_tiny, make_facts):
    config = load_tiny("tiny_unit_language_modeling")
    assert is_fitted_here(config.objective, make_facts(config, init_paths=init_paths)) is is_fitted


def test_a_codec_needs_no_clusters(load_tiny, make_facts):
    config, codec = load_tiny("tiny_unit_language_modeling"), EncodecConfig()
    model = dataclasses.replace(
        config.objective.model,
        frontend=WaveformSpec(
            sample_rate_hz=codec.sample_rate_hz, normalise=False, clip=ClipSpec(clip_sec=1.0)
        ),
        units=CodecUnitsConfig(codec=codec),
        language_model=Gpt2Config(vocab_size=320 + 1024 + 2),
    )
    objective = dataclasses.replace(config.objective, model=model)
    assert not is_fitted_here(objective, make_facts(config))
    build_objective(objective).check(make_facts(config))
