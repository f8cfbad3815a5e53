"""Sounds composed from a seed, and sentences that describe them. Needs only NumPy.

An *event* is a kind of sound in a register at a level: 6 x 2 x 2 = 24 of them. A *composition* is one
event alone, two in order, or two together: 24 + 552 + 120. What a caption does not describe is random: the
exact frequency, the onset, the length, a decibel or so of level, and a faint noise under it all.

============  =====================================================  ==============================
kind          low                                                    high
============  =====================================================  ==============================
tone          sine, 220-440 Hz                                       sine, 2.0-4.0 kHz
tremolo       the same, its amplitude falling by 90 % 5-8 times a second
rising        exponential sweep from 140-200 Hz, over 1.5 octaves    from 1.6-2.2 kHz
falling       the same, backwards
noise         band-passed noise, 80-500 Hz                           2.5-6.0 kHz
clicks        6-10 damped sines a second, 250-400 Hz                 3.0-4.5 kHz
============  =====================================================  ==============================

A loud event peaks at -8 dB of full scale, a soft one 20 dB below.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

KINDS = ("tone", "tremolo", "rising", "falling", "noise", "clicks")
REGISTERS = ("low", "high")
LEVELS = ("loud", "soft")
MIN_SAMPLE_RATE_HZ = 14_000

_PEAK_DB = {"loud": -8.0, "soft": -28.0}
_FLOOR_DB = -65.0
_FADE_SEC = 0.01


@dataclasses.dataclass(frozen=True, order=True)
class Event:
    """One sound: its kind, register and level."""

    kind: str
    register: str
    level: str

    @property
    def name(self) -> str:
        """Name of the event, as `events_in` returns it: ``loud low tone``."""
        return f"{self.level} {self.register} {self.kind}"


@dataclasses.dataclass(frozen=True, order=True)
class Composition:
    """One event ``alone``, one ``then`` another, or one ``while`` another."""

    relation: Literal["alone", "then", "while"]
    events: tuple[Event, ...]


def all_compositions() -> list[Composition]:
    """Returns every composition, in a fixed order.

    Two events in order differ in something; two at the same time differ in kind and in register, so that neither
    masks the other.
    """
    events = [Event(*names) for names in itertools.product(KINDS, REGISTERS, LEVELS)]
    alone = [Composition("alone", (event,)) for event in events]
    then = [Composition("then", pair) for pair in itertools.permutations(events, 2)]
    together = [
        Composition("while", pair)
        for pair in itertools.combinations(events, 2)
        if pair[0].kind != pair[1].kind and pair[0].register != pair[1].register
    ]
    return alone + then + together


@functools.cache
def similar_compositions(composition: Composition) -> list[Composition]:
    """Returns the compositions that differ from one in a single thing, in a fixed order; their captions are wrong but
    similar.

    They differ in the order of two events, in how these relate, or in kind, register or level of one: the negatives
    of CompA (Ghosh et al. 2023, arXiv 2310.08753, section 3).
    """
    relation, events = composition.relation, composition.events
    found = []
    if relation == "then":
        found += [Composition("then", events[::-1]), Composition("while", events)]
    elif relation == "while":
        found += [Composition("then", events), Composition("then", events[::-1])]
    for place, event in enumerate(events):
        for field, values in (("kind", KINDS), ("register", REGISTERS), ("level", LEVELS)):
            for value in values:
                other = dataclasses.replace(event, **{field: value})
                if other not in events:
                    found.append(Composition(relation, (*events[:place], other, *events[place + 1 :])))
    return found


def render(
    composition: Composition, rng: np.random.Generator, *, clip_sec: float, sample_rate_hz: int
) -> Float[np.ndarray, " W"]:
    """Synthesises a composition: float32, round(clip_sec * sample_rate_hz) samples, within [-1, 1]."""
    num_samples = round(clip_sec * sample_rate_hz)
    clip = rng.standard_normal(num_samples, np.float32) * np.float32(10 ** (_FLOOR_DB / 20))
    for event, (start, end) in zip(composition.events, _schedule(composition.relation, rng), strict=True):
        first, last = round(start * num_samples), round(end * num_samples)
        peak = 10 ** ((_PEAK_DB[event.level] + rng.uniform(-1, 1)) / 20)
        clip[first:last] += peak * _sound(event, rng, last - first, sample_rate_hz)
    return clip


def _schedule(relation: str, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Returns start and end of each event, as fractions of the clip."""
    if relation == "alone":
        start, length = rng.uniform(0.05, 0.4), rng.uniform(0.35, 0.55)
        return [(start, start + length)]
    if relation == "then":
        first, gap = rng.uniform(0.02, 0.06), rng.uniform(0.04, 0.1)
        middle, end = rng.uniform(0.42, 0.5), rng.uniform(0.92, 0.98)
        return [(first, middle), (middle + gap, end)]
    return [(rng.uniform(0.05, 0.2), rng.uniform(0.75, 0.95)) for _ in range(2)]


def _sound(event: Event, rng: np.random.Generator, num_samples: int, rate_hz: int) -> Float[np.ndarray, " W"]:
    """Synthesises one event with a peak of one, faded in and out."""
    is_low = event.register == "low"
    seconds: np.ndarray = np.arange(num_samples) / rate_hz
    sound: np.ndarray
    match event.kind:
        case "tone" | "tremolo":
            sound = np.sin(2 * np.pi * rng.uniform(*((220, 440) if is_low else (2000, 4000))) * seconds)
            if event.kind == "tremolo":
                sound *= 1 - 0.9 * np.sin(np.pi * rng.uniform(5, 8) * seconds) ** 2
        case "rising" | "falling":
            start_hz = rng.uniform(*((140, 200) if is_low else (1600, 2200)))
            growth = 1.5 * float(np.log(2)) / (num_samples / rate_hz)
            sound = np.sin(2 * np.pi * start_hz / growth * np.expm1(growth * seconds))
            if event.kind == "falling":
                sound = sound[::-1]
        case "noise":
            padded = 1 << (num_samples - 1).bit_length()
            spectrum = np.fft.rfft(rng.normal(size=padded))
            hz = np.fft.rfftfreq(padded, 1 / rate_hz)
            low_hz, high_hz = (80, 500) if is_low else (2500, 6000)
            sound = np.fft.irfft(spectrum * ((hz >= low_hz) & (hz <= high_hz)), padded)[:num_samples]
        case "clicks":
            ring_hz = rng.uniform(*((250, 400) if is_low else (3000, 4500)))
            since = np.mod(seconds, 1 / rng.uniform(6, 10))
            sound = np.exp(-since / (0.015 if is_low else 0.005)) * np.sin(2 * np.pi * ring_hz * since)
        case _:
            raise ValueError(f"unknown kind of event {event.kind!r}")
    fade = np.clip(np.minimum(seconds, seconds[::-1]) / _FADE_SEC, 0, 1)
    sound = sound * fade
    return sound / np.abs(sound).max()


_NOUNS = {
    "tone": ("steady tone", "steady beep", "constant note"),
    "tremolo": ("trembling tone", "wavering tone", "pulsating note"),
    "rising": ("rising sweep", "upward glide", "climbing chirp"),
    "falling": ("falling sweep", "downward glide", "descending chirp"),
    "noise": ("burst of noise", "burst of static", "rush of noise"),
    "clicks": ("series of clicks", "string of ticks", "run of clicks"),
}
_ADJECTIVES = {
    "low": ("low", "deep", "low-pitched"),
    "high": ("high", "high-pitched", "treble"),
    "loud": ("loud", "strong", "forceful"),
    "soft": ("soft", "quiet", "faint"),
}
_SENTENCES = {
    "alone": ("{0}", "there is {0}", "{0} is heard", "the sound of {0}", "only {0}", "{0} on its own"),
    "then": (
        "{0} followed by {1}",
        "{0}, then {1}",
        "first {0}, then {1}",
        "{0} and after that {1}",
        "{1} after {0}",
        "{0} before {1}",
    ),
    "while": (
        "{0} while there is {1}",
        "{0} and {1} at the same time",
        "{0} together with {1}",
        "{0} and {1} simultaneously",
        "{0} over {1}",
    ),
}


def describe(composition: Composition, rng: np.random.Generator, num_captions: int) -> list[str]:
    """Returns ``num_captions`` different sentences, each of which describes all of the composition and nothing
    else."""
    captions: dict[str, None] = {}
    while len(captions) < num_captions:
        phrases = [_phrase(event, rng) for event in composition.events]
        if composition.relation == "while" and rng.random() < 0.5:
            phrases.reverse()
        sentence = _pick(_SENTENCES[composition.relation], rng).format(*phrases)
        captions[sentence[0].upper() + sentence[1:]] = None
    return list(captions)


def _phrase(event: Event, rng: np.random.Generator) -> str:
    level, register = (_pick(_ADJECTIVES[name], rng) for name in (event.level, event.register))
    adjectives = f"{level} {register}" if rng.random() < 0.7 else f"{register}, {level}"
    return f"a {adjectives} {_pick(_NOUNS[event.kind], rng)}"


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


_HEADS = {kind: frozenset(noun.split()[-1] for noun in nouns) for kind, nouns in _NOUNS.items()}
_OF_ITS_OWN = {kind for kind in KINDS if not any(_HEADS[kind] & _HEADS[k] for k in KINDS if k != kind)}
_MODIFIERS = {kind: frozenset(noun.split()[0] for noun in nouns) for kind, nouns in _NOUNS.items()}


def events_in(caption: str) -> frozenset[str]:
    """Returns the events that a caption names, as `Event.name` writes them, whatever their order.

    Reads captions of `describe` and texts of models trained on them: the words of a kind, a register or a level may
    be combined in new ways, and stand in any order before the noun. Nothing is guessed: without a level the result is
    ``low tone``, with two levels ``loud soft low tone``, and an ambiguous kind (``a loud low note``) gives ``loud low
    sound``; none of these is the name of an event.
    """
    words = re.findall(r"[a-z]+(?:-[a-z]+)*", re.sub(r"\s*-\s*", "-", caption.lower()))
    heads = frozenset(itertools.chain(*_HEADS.values()))
    found: set[str] = set()
    phrase: set[str] = set()
    for word in words:
        phrase.add(word)
        if word not in heads:
            continue
        described = [name for name in (*LEVELS, *REGISTERS) if phrase.intersection(_ADJECTIVES[name])]
        kinds = [
            kind
            for kind in KINDS
            if word in _HEADS[kind] and (kind in _OF_ITS_OWN or phrase & _MODIFIERS[kind])
        ]
        found.add(" ".join([*described, *(kinds or ["sound"])]))
        phrase.clear()
    return frozenset(found)
