"""Cleaning of captions and of the titles that stand in for them, and captions made from the names of classes."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

_JOINERS = "\u200c\u200d"  # joiners inside words and emoji; meaningless between words
_EXTENSION = re.compile(r"\.(?:wave?|mp3|flac|og[ga]|opus|aif[fc]?|m4a|aac|wma|caf|au)$", re.IGNORECASE)
_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}")
_CAMEL_CASE = re.compile(r"(?<=[a-z]{2})(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})")
_SEPARATORS = re.compile(r"[^\w\s']|_")
_TAKE_NUMBER = re.compile(r"(?<=[^\W\d]{3})\d+$")
_CODE = re.compile(r"[bcdfghjklmnpqrstvwxz]{1,3}")
_ABOUT_THE_FILE = re.compile(
    "wav|mp3|flac|ogg|aiff?|stereo|ste|mono|mix|merged|loop|sfx|ext|int|rec|recording|khz|hz|bit|kbps|"
    "final|edit|version|untitled|audio|file|session|seconds|sec"
)


def normalise_caption(caption: str) -> str:
    """Normalises a text to NFC without invisible characters (control, format, half surrogates), each run of white
    space made one space. The result may be empty."""
    words = unicodedata.normalize("NFC", caption).split()
    visible = ("".join(filter(_is_visible, word)).strip(_JOINERS) for word in words)
    return " ".join(filter(None, visible))


def _is_visible(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs")


def name_all(template: str, names: Sequence[str]) -> str:
    """A template filled with names: ``the sounds of rain, wind and thunder``.

    >>> name_all("the sounds of {}", ["rain", "wind_chime", "thunder"])
    'the sounds of rain, wind chime and thunder'
    """
    *first, last = [name.replace("_", " ") for name in names]
    return template.format(f"{', '.join(first)} and {last}" if first else last)


def make_caption(
    rng: np.random.Generator, own: str, names: Sequence[str], templates: Sequence[str], fraction: float
) -> str:
    """The caption ``own``, or with the probability ``fraction`` one made of ``names``, if there are any."""
    if not names or rng.random() >= fraction:
        return own
    template = templates[int(rng.integers(len(templates)))]
    return name_all(template, [names[i] for i in rng.permutation(len(names))])


def make_negatives(
    rng: np.random.Generator,
    names: Sequence[str],
    all_names: Sequence[str],
    templates: Sequence[str],
    count: int,
) -> list[str]:
    """Up to ``count`` captions, all different, that name as many classes as a recording has, one of them wrong.

    A recording without a class has none: what would be wrong of it is not known.
    """
    wrong = [name for name in all_names if name not in names]
    if not names or not wrong:
        return []
    found = []
    for i in rng.permutation(len(wrong))[:count]:
        said = list(names)
        said[rng.integers(len(said))] = wrong[i]
        found.append(name_all(templates[int(rng.integers(len(templates)))], said))
    return found


def clean_title(title: str) -> str:
    """Extracts the words of a recording's title that describe a sound; '' where none are left.

    In this order: the file extension is removed; punctuation and underscores become spaces, CamelCase is split, and
    all is lower-case; a number at the end of a word is removed (``rooster2``), as is any other word with a digit in
    it (take numbers, dates, model codes); so are words about the file, not the sound (``stereo``, ``loop``), and
    words of up to three letters without a vowel (library codes, initials).

    >>> clean_title("animals_dog_bark_springer_spaniel_001.wav")
    'animals dog bark springer spaniel'
    >>> clean_title("LBS_FX DOG Small Alert Bark001.wav")
    'dog small alert bark'
    >>> clean_title("8am.wav")
    ''
    """
    title = _ESCAPE.sub("", _EXTENSION.sub("", normalise_caption(title)))
    title = _SEPARATORS.sub(" ", _CAMEL_CASE.sub(" ", title)).lower()
    words = [_TAKE_NUMBER.sub("", word) for word in title.split()]
    kept = [word for word in words if _is_descriptive(word)]
    return " ".join(kept) if kept != ["a"] else ""


def _is_descriptive(word: str) -> bool:
    return (
        any(ch.isalpha() for ch in word)
        and not any(ch.isdigit() for ch in word)
        and not _ABOUT_THE_FILE.fullmatch(word)
        and not _CODE.fullmatch(word)
    )
