"""Batches of recordings of about one length: shapes, shares, order; and captions made from classes."""

import dataclasses
import itertools

import numpy as np
import pytest

from alm_jax.errors import UserError
from data_pipelines.captions import make_caption, make_negatives, name_all
from data_pipelines.config import (
    DataConfig,
    DurationBucketsConfig,
    FilterConfig,
    MadeCaptionsConfig,
    MixtureConfig,
    MixturePart,
    TokenizerConfig,
)
from data_pipelines.dataset import DatasetConfig
from data_pipelines.order import make_order
from data_pipelines.pipeline import eval_batches, train_batches
from data_pipelines.prepare import prepare
from data_pipelines.source import Recording, Source, SourceRow

RATE_HZ = 8_000
BUCKETS = DurationBucketsConfig(longest_sec=(0.25, 0.5))
WINDOW_SEC = 1.0


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A recording of this many samples, each the number of the recording."""

    num_samples: int
    value: int

    def read(self, sample_rate_hz, *, start_sec=0.0, end_sec=None):
        return Recording(pcm=np.full(self.num_samples, self.value, np.int16), sha256="")

    def content(self):
        return b""

    def state(self):
        return self.num_samples, self.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class RampsConfig(DatasetConfig):
    """Recordings of 0.1 to 1.5 s, a tenth of a second apart, each length ``repeats`` times."""

    repeats: int = 4
    """Recordings of a length."""
    first: int = 1
    """Tenths of a second of the shortest."""

    def read(self, problems=None):
        lengths = [tenths for tenths in range(self.first, 16) for _ in range(self.repeats)]
        classes = ("rain", "wind", "dog_bark")
        rows = [
            SourceRow(
                id=f"{split}{number}",
                audio=Ramp(tenths * RATE_HZ // 10, number + 1),
                captions=(f"sound number {number}",),
                labels=(classes[number % 3], classes[(number + 1) % 3]) if number % 4 else (),
                split=split,
                source=str(number),
            )
            for split in ("train", "test")
            for number, tenths in enumerate(lengths)
        ]
        return Source(rows=rows, class_names=classes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("ramps"))


def make(cache, **changes):
    config = DataConfig(
        dataset=RampsConfig(),
        tokenizer=TokenizerConfig(vocab_size=300, max_length=16),
        source_sec=WINDOW_SEC,
        duration_buckets=BUCKETS,
        cache_dir=cache,
    )
    return prepare(dataclasses.replace(config, **changes), RATE_HZ)


def take(prepared, num_batches, **options):
    options = {"batch_size": 8, "seed": 3} | options
    return list(itertools.islice(train_batches(prepared, "train", **options), num_batches))


def test_batches_have_the_listed_shapes_and_recordings_that_fit(cache):
    prepared = make(cache)
    split = prepared.split("train")
    seen = {}
    for batch in take(prepared, 60):
        rows, size = batch["audio"].shape
        lengths = split.lengths(batch["index"])
        shorter = {2000: 0, 4000: 2000, 8000: 4000}[size]
        assert rows == 8
        assert (lengths > shorter).all()
        assert (lengths <= size).all() or size == 8000
        assert np.array_equal(batch["audio_num_samples"], np.minimum(lengths, size))
        for row, number in enumerate(batch["index"]):
            real = batch["audio_num_samples"][row]
            assert (batch["audio"][row, :real] == number + 1).all()
            assert not batch["audio"][row, real:].any()
        seen[size] = seen.get(size, 0) + rows
    assert seen.keys() == {2000, 4000, 8000}


def test_every_recording_is_read_equally_often(cache):
    prepared = make(cache)
    counts = np.zeros(60)
    order = make_order(prepared, prepared.split("train"), batch_size=8, seed=0)
    assert [stream.num_samples for stream in order.streams] == [2000, 4000, 8000]
    assert [len(stream) for stream in order.streams] == [8, 12, 40]
    period = len(order.plan)
    epochs = order.plan.rows_before(period) / [len(stream) for stream in order.streams]
    assert epochs.max() / epochs.min() < 1.005
    assert order.epochs(period)[""] == pytest.approx(period * 8 / 60)
    for batch in take(prepared, 150):  # 20 epochs
        np.add.at(counts, batch["index"], 1)
    assert counts.min() >= 16
    assert counts.max() <= 24


def test_with_a_budget_shorter_recordings_have_more_rows(cache):
    prepared = make(cache, duration_buckets=dataclasses.replace(BUCKETS, longest_sec=(0.25, 0.4), fill=True))
    shapes = {batch["audio"].shape for batch in take(prepared, 60)}
    assert shapes == {(32, 2000), (16, 3200), (8, 8000)}
    counts = np.zeros(60)
    for batch in take(prepared, 150):
        np.add.at(counts, batch["index"], 1)
    assert counts.max() / counts.min() < 1.5


@pytest.mark.parametrize("fill", [False, True])
def test_resuming_is_exact_and_costs_nothing(cache, fill):
    prepared = make(cache, duration_buckets=dataclasses.replace(BUCKETS, fill=fill))
    whole = take(prepared, 7)
    for start in (1, 4, 6):
        for a, b in zip(whole[start:], take(prepared, 7 - start, start_step=start), strict=True):
            assert all(np.array_equal(a[key], b[key]) for key in a)
    halves = [take(prepared, 7, process_index=i, process_count=2) for i in range(2)]
    for a, *parts in zip(whole, *halves, strict=True):
        assert all(np.array_equal(a[key], np.concatenate([part[key] for part in parts])) for key in a)
    (far,) = take(prepared, 1, start_step=10_000_000)
    (next_one,) = take(prepared, 2, start_step=9_999_999)[1:]
    assert all(np.array_equal(far[key], next_one[key]) for key in far)


def test_a_filter_a_mixture_and_evaluation(cache):
    kept = make(cache, filter=FilterConfig(min_sec=0.3, max_sec=1.2))
    assert {batch["audio"].shape[1] for batch in take(kept, 40)} == {4000, 8000}  # none of the first is left
    assert all(len(batch["index"]) == 8 for batch in take(kept, 5))
    parts = (
        MixturePart(name="a", dataset=RampsConfig(), weight=3),
        MixturePart(name="b", dataset=RampsConfig(first=6)),
    )
    mixture = make(cache, dataset=MixtureConfig(parts=parts, mode="turns"))
    source = [batch["source"] for batch in take(mixture, 400)]
    assert all(len(set(rows)) == 1 for rows in source)
    assert np.mean([rows[0] for rows in source]) == pytest.approx(0.25, abs=0.02)
    assert {batch["audio"].shape for batch in eval_batches(kept, "test", batch_size=8)} == {(8, 8000)}


def test_lengths_that_cannot_be_are_refused(cache):
    with pytest.raises(UserError, match="in rising order"):
        DurationBucketsConfig(longest_sec=(2.0, 1.0))
    with pytest.raises(UserError, match=r"has 1 s, and batches show 1 s of a recording"):
        make(cache, duration_buckets=DurationBucketsConfig(longest_sec=(1.0,)))
    with pytest.raises(UserError, match=r"False where duration_buckets\.longest_sec names no length"):
        DurationBucketsConfig(fill=True)
    parts = (MixturePart(name="a", dataset=RampsConfig()),)
    with pytest.raises(UserError, match=r"dataset\.mode is 'rows'; it must be turns"):
        make(cache, dataset=MixtureConfig(parts=parts))


MADE = MadeCaptionsConfig(templates=("the sounds of {}", "{} can be heard"), fraction=0.5)


def read_texts(prepared, key, batches):
    return [
        prepared.tokenizer.decode(row[mask])
        for batch in batches
        for row, mask in zip(
            batch[key].reshape(-1, 16), batch[key.replace("ids", "mask")].reshape(-1, 16), strict=True
        )
    ]


def test_captions_are_made_of_classes_and_nothing_else_changes(cache):
    tokenizer = TokenizerConfig(vocab_size=500, max_length=16)
    plain, made = (
        make(cache, made_captions=own, tokenizer=tokenizer) for own in (MadeCaptionsConfig(), MADE)
    )
    batches, again = take(made, 40), take(made, 20, start_step=20)
    assert all(np.array_equal(a["text_ids"], b["text_ids"]) for a, b in zip(batches[20:], again, strict=True))
    for before, after in zip(take(plain, 40), batches, strict=True):
        assert all(np.array_equal(before[key], after[key]) for key in before if not key.startswith("text"))
    texts = read_texts(made, "text_ids", batches)
    rows = np.concatenate([batch["index"] for batch in batches])
    own = np.array([text.startswith("sound number") for text in texts])
    assert own[rows % 4 == 0].all()  # without a class
    assert 0.4 < own[rows % 4 != 0].mean() < 0.6
    said = {text for text, is_own in zip(texts, own, strict=True) if not is_own}
    assert {
        "the sounds of rain and wind",
        "wind and rain can be heard",
        "the sounds of dog bark and wind",
    } <= said
    shown = read_texts(made, "text_ids", eval_batches(made, "test", batch_size=8))
    assert all(text.startswith("sound number") for text in shown if text)


def test_negatives_are_made_of_classes_that_a_recording_has_not(cache):
    with pytest.raises(UserError, match=r"have them made from classes by data\.made_captions"):
        make(cache, num_negatives=2)
    made = make(cache, num_negatives=2, made_captions=dataclasses.replace(MADE, negatives=True))
    for batches in (take(made, 3), list(eval_batches(made, "test", batch_size=8))):
        for batch in batches:
            has_any = batch["negative_mask"].any(axis=(1, 2))
            real = batch["index"] >= 0
            assert np.array_equal(has_any[real], batch["index"][real] % 4 != 0)


def test_what_is_made_of_names(rng):
    assert name_all("the sounds of {}", ["rain"]) == "the sounds of rain"
    assert name_all("{}!", ["a", "b_c", "d"]) == "a, b c and d!"
    assert make_caption(rng, "own", [], ["{}"], 1.0) == "own"
    assert {make_caption(rng, "own", ["a", "b"], ["{}"], 1.0) for _ in range(50)} == {"a and b", "b and a"}
    wrong = make_negatives(rng, ["a", "b"], ["a", "b", "c", "d"], ["{}"], 5)
    assert len(wrong) == len(set(wrong)) == 2
    for text in wrong:
        assert len({*text.split(" and ")} & {"c", "d"}) == 1
        assert len({*text.split(" and ")} & {"a", "b"}) == 1
    assert make_negatives(rng, ["a"], ["a"], ["{}"], 3) == make_negatives(rng, [], ["a"], ["{}"], 3) == []
