"""Captions as they come from files, and titles as people on Freesound write them."""

import csv
import doctest
import unicodedata

import pytest

from data_pipelines import captions
from data_pipelines.captions import clean_title, normalise_caption


def test_doctests():
    assert doctest.testmod(captions).failed == 0


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("  A dog\t barks \r\n twice ", "A dog barks twice"),
        ("", ""),
        (" \t\n\u00a0\u2003", ""),
        ("\u200b\ufeff\u200e", ""),
        ("\u200d \u200c", ""),
        ("cafe\u0301", "café"),
        ("a\0b", "ab"),
        ("rain \U0001f327\ufe0f falls", "rain \U0001f327\ufe0f falls"),
        ("\u0643\u0644\u0628 \u064a\u0646\u0628\u062d", "\u0643\u0644\u0628 \u064a\u0646\u0628\u062d"),
        ("\U0001f469\u200d\U0001f3a4", "\U0001f469\u200d\U0001f3a4"),
    ],
)
def test_normalise_caption(caption, expected):
    assert normalise_caption(caption) == expected


def test_normalised_captions_are_nfc_and_stay_as_they_are():
    for caption in ("e\u0301 \u1e9b\u0323", "\ufb01 A\u030a", "x" * 100_000):
        once = normalise_caption(caption)
        assert unicodedata.is_normalized("NFC", once)
        assert normalise_caption(once) == once


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Fire_Crackles(No Room).wav", "fire crackles no room"),
        ("20060810.peters.clock.01.flac", "peters clock"),
        ("01-Baby_Crying_small-room.wav", "baby crying small room"),
        ("rain, sm57.wav", "rain"),
        ("Sneeze; male_1-2.aif", "sneeze male"),
        ("FireBurning_v2.wav", "fire burning"),
        ("helicopters2.mp3", "helicopters"),
        ("CHAINSAW.wav", "chainsaw"),
        ("Sneeze and Sniffle 44hzStereo.wav", "sneeze and sniffle"),
        ("A dog barking (close recording)", "a dog barking close"),
        ("helicopter take off distance.wav", "helicopter take off distance"),
        ("Rooster at Max's.mp3", "rooster at max's"),
        (r"sea \u200b\u200bon the road, night, Rhodes", "sea on the road night rhodes"),
        ("\u6d77\u306e\u97f3.wav", "\u6d77\u306e\u97f3"),
        ("8am.wav", ""),
        ("a 01.wav", ""),
        ("20110503_00.wav", ""),
        ("", ""),
    ],
)
def test_clean_title(title, expected):
    assert clean_title(title) == expected


def test_every_real_title_is_words(real_data_dir):
    with open(real_data_dir / "esc10" / "meta" / "freesound.csv", newline="", encoding="utf-8") as table:
        cleaned = [clean_title(row["title"]) for row in csv.DictReader(table)]
    assert len(cleaned) == 320
    assert sum(not title for title in cleaned) == 1  # "8am.wav"
    assert all(ch.isalpha() or ch in " '" for title in cleaned for ch in title)
    assert all(len(title.split()) < 25 for title in cleaned)
