"""The model card: front matter that YAML and the Hub's own class read, and only what was given."""

import huggingface_hub
import yaml

from alm_jax.interop.model_card import write_model_card

FIELDS = {
    "name": "esc10_two_towers_nano",
    "licence": "cc-by-nc-3.0",
    "datasets": {"ESC-10": "CC BY 3.0", 'odd: "name" | x': "see\nLICENSE"},
    "metrics": {"zero_shot/accuracy": 0.8125, "retrieval/text_to_audio/r@1": 1 / 3},
    "config": {"model": {"embed_dim": 64}},
    "step": 1200,
    "commit": "0123abc",
    "versions": {"jax": "0.10.2", "alm_jax": "0.1.0"},
    "export_error": 3.2e-6,
}


def test_front_matter_is_valid_and_complete():
    card = write_model_card(**FIELDS)
    front_matter = yaml.safe_load(card.split("---\n")[1])
    assert front_matter == {
        "license": "cc-by-nc-3.0",
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-audio-classification",
        "tags": ["clap", "audio"],
        "datasets": ["ESC-10", 'odd: "name" | x'],
        "metrics": ["accuracy", "r@1"],
    }
    assert huggingface_hub.ModelCard(card).data.license == "cc-by-nc-3.0"


def test_every_fact_is_there():
    card = write_model_card(**FIELDS)
    for fact in (
        "# esc10_two_towers_nano",
        "| ESC-10 | CC BY 3.0 |",
        '| odd: "name" \\| x | see LICENSE |',
        "| zero_shot/accuracy | 0.8125 |",
        "| retrieval/text_to_audio/r@1 | 0.333333 |",
        "| optimiser steps | 1200 |",
        "| commit | 0123abc |",
        "| jax | 0.10.2 |",
        "3.20e-06",
        '"embed_dim": 64',
    ):
        assert fact in card, fact


def test_what_is_unknown_is_said_to_be():
    card = write_model_card(**FIELDS | {"metrics": {}, "commit": None, "export_error": None})
    assert "Not evaluated." in card
    assert "| commit | unknown |" in card
    assert "| export error | not measured |" in card
    assert yaml.safe_load(card.split("---\n")[1])["metrics"] == []
