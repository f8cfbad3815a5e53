"""Do the sounds contain what the captions say? Measured by Fourier transforms; captions parsed by hand."""

import itertools
import re

import numpy as np
import pytest

from data_pipelines import synthesis
from data_pipelines.synthesis import (
    KINDS,
    LEVELS,
    REGISTERS,
    Composition,
    Event,
    all_compositions,
    describe,
    events_in,
    render,
    similar_compositions,
)

RATE_HZ = 16_000
CLIP_SEC = 2.5
BANDS_HZ = {"low": (60, 700), "high": (1500, 7000)}


def make(relation: str, *events: Event, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return render(Composition(relation, events), rng, clip_sec=CLIP_SEC, sample_rate_hz=RATE_HZ).astype(
        np.float64
    )


def active(sound: np.ndarray) -> np.ndarray:
    """What is above the noise floor, from the first to the last such sample."""
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    return sound[loud[0] : loud[-1] + 1]


def spectrum(sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
    return np.fft.rfftfreq(len(sound), 1 / RATE_HZ), power


def dominant_hz(sound: np.ndarray) -> float:
    hz, power = spectrum(sound)
    return float(hz[power.argmax()])


def band_power(sound: np.ndarray, register: str) -> float:
    hz, power = spectrum(sound)
    low_hz, high_hz = BANDS_HZ[register]
    return float(power[(hz >= low_hz) & (hz <= high_hz)].sum())


def test_there_are_24_single_552_ordered_and_120_joint_compositions():
    compositions = all_compositions()
    assert len(set(compositions)) == len(compositions) == 24 + 24 * 23 + 15 * 2 * 4
    for composition in compositions:
        kinds, registers, _ = zip(*((e.kind, e.register, e.level) for e in composition.events), strict=True)
        if composition.relation == "while":
            assert kinds[0] != kinds[1]
            assert registers[0] != registers[1]


@pytest.mark.parametrize(("kind", "register"), list(itertools.product(KINDS, REGISTERS)))
def test_an_event_lies_in_its_register_and_a_loud_one_is_20_db_above_a_soft_one(kind, register):
    other = "high" if register == "low" else "low"
    peaks = {}
    for level in LEVELS:
        sound = make("alone", Event(kind, register, level))
        assert sound.shape == (round(CLIP_SEC * RATE_HZ),)
        assert band_power(sound, register) > 30 * band_power(sound, other)
        peaks[level] = np.abs(sound).max()
    assert 17 < 20 * np.log10(peaks["loud"] / peaks["soft"]) < 23


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("register", "low_hz", "high_hz"), [("low", 220, 440), ("high", 2000, 4000)])
def test_a_tone_is_one_steady_line(register, low_hz, high_hz, seed):
    sound = active(make("alone", Event("tone", register, "loud"), seed=seed))
    hz, power = spectrum(sound)
    peak_hz = dominant_hz(sound)
    assert low_hz - 2 < peak_hz < high_hz + 2
    assert power[np.abs(hz - peak_hz) < 10].sum() > 0.98 * power.sum()


@pytest.mark.parametrize("register", REGISTERS)
def test_a_tremolo_wavers_five_to_eight_times_a_second(register):
    sound = active(make("alone", Event("tremolo", register, "loud")))
    envelope = np.convolve(np.abs(sound), np.ones(200) / 200, "same")[400:-400]
    assert envelope.min() < 0.25 * envelope.max()
    assert 4 < dominant_hz(envelope - envelope.mean()) < 9
    steady = active(make("alone", Event("tone", register, "loud")))
    steady = np.convolve(np.abs(steady), np.ones(200) / 200, "same")[400:-400]
    assert steady.min() > 0.8 * steady.max()


@pytest.mark.parametrize("register", REGISTERS)
def test_sweeps_go_up_or_down_by_an_octave_and_a_half(register):
    for kind, sign in (("rising", 1), ("falling", -1)):
        sound = active(make("alone", Event(kind, register, "loud")))
        tenth = len(sound) // 10
        octaves = np.log2(dominant_hz(sound[-tenth:]) / dominant_hz(sound[:tenth]))
        assert 1.1 < sign * octaves < 1.6  # 1.35 between the middles of the first and the last tenth


@pytest.mark.parametrize("register", REGISTERS)
def test_noise_is_broad_and_clicks_are_sparse(register):
    noise = active(make("alone", Event("noise", register, "loud")))
    hz, power = spectrum(noise)
    share = power / power.sum()
    mean_hz = (share * hz).sum()
    assert np.sqrt((share * (hz - mean_hz) ** 2).sum()) > (90 if register == "low" else 700)
    clicks = active(make("alone", Event("clicks", register, "loud")))
    assert np.mean(np.abs(clicks) < 0.1 * np.abs(clicks).max()) > 0.6
    assert np.mean(np.abs(noise) < 0.1 * np.abs(noise).max()) < 0.5


@pytest.mark.parametrize("seed", range(4))
def test_events_in_order_come_in_that_order(seed):
    low, high = Event("noise", "low", "loud"), Event("rising", "high", "soft")
    for events in ((low, high), (high, low)):
        sound = make("then", *events, seed=seed)
        first, second = sound[: round(0.4 * len(sound))], sound[round(0.62 * len(sound)) :]
        for part, present, absent in ((first, *events), (second, *reversed(events))):
            assert band_power(part, present.register) > 10 * band_power(part, absent.register)


@pytest.mark.parametrize("seed", range(4))
def test_events_together_overlap(seed):
    low, high = Event("tone", "low", "soft"), Event("falling", "high", "soft")
    silence = make("alone", Event("tone", "low", "soft"), seed=seed)[:500]
    middle = make("while", low, high, seed=seed)
    middle = middle[round(0.3 * len(middle)) : round(0.7 * len(middle))]
    for register in REGISTERS:
        assert band_power(middle, register) / len(middle) > 100 * band_power(silence, register) / len(silence)


def test_nothing_clips():
    compositions = [c for c in all_compositions() if all(event.level == "loud" for event in c.events)]
    rng = np.random.default_rng(0)
    peaks = [
        np.abs(render(c, rng, clip_sec=1.0, sample_rate_hz=RATE_HZ)).max()
        for c in compositions
        if len(c.events) == 2
    ]
    assert max(peaks) < 1.0


ATOMS = {
    "kind": {
        "tone": r"steady tone|steady beep|constant note",
        "tremolo": r"trembling tone|wavering tone|pulsating note",
        "rising": r"rising sweep|upward glide|climbing chirp",
        "falling": r"falling sweep|downward glide|descending chirp",
        "noise": r"burst of noise|burst of static|rush of noise",
        "clicks": r"series of clicks|string of ticks|run of clicks",
    },
    "register": {"low": r"low|deep|low-pitched", "high": r"high|high-pitched|treble"},
    "level": {"loud": r"loud|strong|forceful", "soft": r"soft|quiet|faint"},
}


def parse(caption: str) -> Composition:
    """The composition that a caption speaks of, by what its words mean in English."""
    events = []
    for phrase in re.findall(
        r"\b[Aa] .*?(?:tone|beep|note|sweep|glide|chirp|noise|static|clicks|ticks)\b", caption
    ):
        found = {}
        for attribute, names in ATOMS.items():
            matches = [
                name for name, words in names.items() if re.search(rf"(?<![\w-])(?:{words})(?![\w-])", phrase)
            ]
            assert len(matches) == 1, (phrase, attribute, matches)
            found[attribute] = matches[0]
        events.append(Event(**found))
    if len(events) == 1:
        return Composition("alone", tuple(events))
    if re.search(r"while|at the same time|together|simultaneously|over", caption):
        return Composition("while", tuple(sorted(events, key=lambda e: all_events().index(e))))
    assert re.search(r"followed by|then|after|before", caption)
    swapped = " after a" in caption and "and after that" not in caption
    return Composition("then", tuple(reversed(events) if swapped else events))


def all_events() -> list[Event]:
    return [Event(*names) for names in itertools.product(KINDS, REGISTERS, LEVELS)]


def test_a_caption_says_all_of_its_composition():
    rng = np.random.default_rng(0)
    for composition in all_compositions():
        captions = describe(composition, rng, 4)
        assert len(set(captions)) == 4
        for caption in captions:
            assert caption[0].isupper()
            assert parse(caption) == composition, caption


def test_the_same_seed_gives_the_same_clip_and_another_seed_another():
    event = Event("noise", "low", "loud")
    assert np.array_equal(make("alone", event, seed=3), make("alone", event, seed=3))
    assert not np.array_equal(make("alone", event, seed=3), make("alone", event, seed=4))


def test_similar_compositions_differ_in_one_thing():
    """Counted by hand: of an event 5 + 1 + 1 others, of two in order as many each and two more, less what is there."""
    low, high = Event("tone", "low", "loud"), Event("clicks", "high", "soft")
    assert len(similar_compositions(Composition("alone", (low,)))) == 7
    ordered = similar_compositions(Composition("then", (low, high)))
    assert ordered[:2] == [Composition("then", (high, low)), Composition("while", (low, high))]
    assert len(ordered) == len(set(ordered)) == 2 + 2 * 7
    near = Event("tone", "low", "soft")
    # One event turned into the other would say that it is heard twice.
    assert len(similar_compositions(Composition("then", (low, near)))) == 2 + 2 * 6
    joint = similar_compositions(Composition("while", (low, high)))
    assert [other.relation for other in joint[:3]] == ["then", "then", "while"]
    for composition in all_compositions():
        for other in similar_compositions(composition):
            same_sound = other.relation == "while" and set(other.events) == set(composition.events)
            assert other != composition
            assert not (composition.relation == "while" and same_sound)


def name(event: Event) -> str:
    return f"{event.level} {event.register} {event.kind}"


def every_phrase(event: Event) -> list[str]:
    """All that `describe` may call an event."""
    adjectives, nouns = synthesis._ADJECTIVES, synthesis._NOUNS
    choices = itertools.product(
        ("{0} {1}", "{1}, {0}"), adjectives[event.level], adjectives[event.register], nouns[event.kind]
    )
    return [f"a {order.format(level, register)} {noun}" for order, level, register, noun in choices]


def test_every_wording_of_every_event_names_it():
    for event in all_events():
        phrases = every_phrase(event)
        assert len(phrases) == 2 * 3 * 3 * 3
        for phrase, sentence in itertools.product(phrases, synthesis._SENTENCES["alone"]):
            assert events_in(sentence.format(phrase)) == {name(event)}


def test_every_sentence_of_every_composition_names_its_events_and_no_others():
    rng = np.random.default_rng(0)
    for composition in all_compositions():
        names = {name(event) for event in composition.events}
        assert {event.name for event in composition.events} == names
        for sentence in synthesis._SENTENCES[composition.relation]:
            for events in {composition.events, composition.events[::-1]}:
                phrases = [every_phrase(event) for event in events]
                drawn = [options[rng.integers(len(options))] for options in phrases]
                assert events_in(sentence.format(*drawn)) == names


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", set()),
        ("A dog barks", set()),
        ("LOUD LOW STEADY TONE", {"loud low tone"}),
        # Words of a kind that `describe` does not put together, and what a decoder makes of a hyphen.
        ("a steady, quiet high - pitched note", {"soft high tone"}),
        (
            "faint deep rising chirp and a strong treble series of ticks",
            {"soft low rising", "loud high clicks"},
        ),
        ("a quiet low burst noise noise", {"soft low noise", "noise"}),
        ("a loud low tone", {"loud low sound"}),
        ("a low steady tone", {"low tone"}),
        ("a loud soft low steady tone", {"loud soft low tone"}),
        ("a loud low rising falling sweep", {"loud low rising falling"}),
        ("a loud low steady tone before a loud low steady tone", {"loud low tone"}),
        # Cut off by a length limit.
        ("A loud low steady tone, then a quiet high", {"loud low tone"}),
    ],
)
def test_what_is_said_is_the_name_and_nothing_is_guessed(caption, expected):
    assert events_in(caption) == expected
