"""What a run of several objectives is refused for, before anything is compiled."""

import dataclasses
from types import SimpleNamespace

import pytest
from tiny_together import get_config

from alm_jax.cli.together import check
from alm_jax.errors import UserError
from alm_jax.objectives.together import ReconstructionTerm
from alm_jax.run.session import Session
from data_pipelines.config import PromptConfig

CONFIG = get_config()


def session(config, *, vocab_size=320):
    """A session of which there is nothing but what `check` reads."""
    made = object.__new__(Session)
    tokenizer = SimpleNamespace(get_vocab_size=lambda: vocab_size)
    made.config = config
    made.data = SimpleNamespace(tokenizer=tokenizer, num_sources=len(config.data.dataset.parts))
    return made


def with_data(**changes):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **changes))


def test_the_tiny_config_passes():
    check(session(CONFIG))


@pytest.mark.parametrize(
    ("config", "vocab_size", "message"),
    [
        (CONFIG, 321, "321 tokens, the decoder embeds 320"),
        (
            with_data(tokenizer=dataclasses.replace(CONFIG.data.tokenizer, max_length=17)),
            320,
            "a class token follows",
        ),
        (with_data(prompt=PromptConfig(template="plain")), 320, "have no prompts"),
        (
            dataclasses.replace(
                CONFIG,
                objective=dataclasses.replace(
                    CONFIG.objective,
                    terms=(*CONFIG.objective.terms[:3], ReconstructionTerm(sources=(2,))),
                ),
            ),
            320,
            r"sources \(2,\), and data.dataset has 2 parts",
        ),
    ],
)
def test_what_does_not_fit_says_what_to_change(config, vocab_size, message):
    with pytest.raises(UserError, match=message):
        check(session(config, vocab_size=vocab_size))
