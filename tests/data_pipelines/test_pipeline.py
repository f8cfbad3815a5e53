"""Batches: the contract, the order, resuming, several hosts, captions, windows, evaluation, damage."""

import dataclasses
import itertools
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from alm_jax import batch as contract
from alm_jax.errors import DataError, UserError
from data_pipelines.config import TokenizerConfig
from data_pipelines.pipeline import eval_batches, train_batches
from data_pipelines.prepare import open_folder
from data_pipelines.prepared import Prepared
from data_pipelines.text import encode

Batch = dict[str, np.ndarray]


def take(batches: Iterable[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for key in contract.SPEC:
            assert np.array_equal(a[key], b[key]), key


def test_batches_keep_the_contract(synthetic):
    batches = [*take(train_batches(synthetic, "train", batch_size=8, seed=0), 2)]
    batches += eval_batches(synthetic, "test", batch_size=8)
    for batch in batches:
        contract.validate(batch)
        assert batch["audio"].shape == (8, 12_000)
        assert batch["text_ids"].shape == (8, 24)


@pytest.mark.parametrize("start_step", [1, 7, 40])
def test_resuming_at_a_step_gives_the_same_batches(synthetic, start_step):
    whole = take(train_batches(synthetic, "train", batch_size=8, seed=3), start_step + 3)
    resumed = take(train_batches(synthetic, "train", batch_size=8, seed=3, start_step=start_step), 3)
    assert_equal(whole[start_step:], resumed)


def test_resuming_far_away_is_instant_and_in_range(synthetic):
    (batch,) = take(train_batches(synthetic, "train", batch_size=8, seed=3, start_step=10**9), 1)
    assert batch["mask"].all()


def test_the_order_does_not_depend_on_how_many_batches_are_read_at_once(synthetic):
    config = dataclasses.replace(synthetic.config, num_reads=5)
    other = dataclasses.replace(synthetic, config=config)
    assert_equal(
        take(train_batches(synthetic, "train", batch_size=8, seed=3), 10),
        take(train_batches(other, "train", batch_size=8, seed=3), 10),
    )


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_rows_of_all_processes_are_the_global_batch(synthetic, process_count):
    def of_process(index: int) -> list[list[Batch]]:
        where = {"process_index": index, "process_count": process_count}
        train = train_batches(synthetic, "train", batch_size=16, seed=3, start_step=5, **where)
        return [take(train, 3), list(eval_batches(synthetic, "test", batch_size=16, **where))]

    expected = [
        take(train_batches(synthetic, "train", batch_size=16, seed=3, start_step=5), 3),
        list(eval_batches(synthetic, "test", batch_size=16)),
    ]
    by_process = [of_process(index) for index in range(process_count)]
    for kind, whole in enumerate(expected):
        joined = [
            {key: np.concatenate([part[key] for part in parts]) for key in contract.SPEC}
            for parts in zip(*(process[kind] for process in by_process), strict=True)
        ]
        assert_equal(joined, whole)


def with_negatives(prepared: Prepared, num_negatives: int, **tokenizer) -> Prepared:
    tokenizer_config = dataclasses.replace(prepared.config.tokenizer, **tokenizer)
    config = dataclasses.replace(prepared.config, num_negatives=num_negatives, tokenizer=tokenizer_config)
    return dataclasses.replace(prepared, config=config)


@pytest.mark.parametrize("num_negatives", [2, 6])
def test_negative_captions_are_an_example_s_own_and_change_nothing_else(synthetic, num_negatives):
    """A clip has four: of six asked for, two are empty."""
    split = synthetic.split("train")
    other = with_negatives(synthetic, num_negatives)
    plain = take(train_batches(synthetic, "train", batch_size=8, seed=3), 4)
    batches = take(train_batches(other, "train", batch_size=8, seed=3), 4)
    assert_equal(plain, batches)
    for batch in batches:
        contract.validate(batch)
        ids, mask = batch["negative_ids"], batch["negative_mask"]
        assert ids.shape == mask.shape == (8, num_negatives, 24)
        assert (mask.any(-1).sum(1) == min(num_negatives, 4)).all()
        for row, index in enumerate(batch["index"]):
            drawn = [bytes(text) for text in ids[row][mask[row].any(-1)]]
            own = split.all_negatives[index]
            assert not set(own) & set(split.captions(index))
            assert set(drawn) <= {bytes(text) for text in encode(synthetic.tokenizer, own, 24)[0]}
            assert len(set(drawn)) == len(drawn)
    (last,) = list(eval_batches(other, "test", batch_size=32))
    assert last["negative_mask"][:30, 0].any(-1).all()
    assert not last["negative_mask"][30:].any()


def test_negatives_are_drawn_anew_in_every_epoch(synthetic):
    other = with_negatives(synthetic, 1)
    (one,) = take(train_batches(other, "train", batch_size=150, seed=3), 1)
    (two,) = take(train_batches(other, "train", batch_size=150, seed=3, start_step=1), 1)
    first, second = (
        dict(zip(batch["index"].tolist(), map(bytes, batch["negative_ids"]), strict=True))
        for batch in (one, two)
    )
    assert first.keys() == second.keys()
    num_same = sum(first[index] == second[index] for index in first)
    assert 10 < num_same < 75  # of 150, one in four by chance


def test_a_bucket_holds_the_negative_captions_too(synthetic):
    other = with_negatives(synthetic, 4, length_buckets=(12, 16, 20))
    for batch in take(train_batches(other, "train", batch_size=2, seed=3), 20):
        length = batch["text_ids"].shape[1]
        assert batch["negative_ids"].shape[2] == length
        longest = max(batch[key].sum(axis=-1).max() for key in ("text_mask", "negative_mask"))
        assert length == min(size for size in (12, 16, 20, 24) if size >= longest)


@pytest.fixture(scope="module")
def bucketed(synthetic) -> Prepared:
    """The same data, padded to 16, 20 or 24 tokens."""
    tokenizer = dataclasses.replace(synthetic.config.tokenizer, length_buckets=(16, 20))
    return dataclasses.replace(synthetic, config=dataclasses.replace(synthetic.config, tokenizer=tokenizer))


def test_a_bucketed_batch_is_the_padded_batch_without_its_tail(synthetic, bucketed):
    """Of all the lengths allowed it has the shortest that loses no token."""
    lengths = set()
    for padded, short in zip(
        take(train_batches(synthetic, "train", batch_size=2, seed=3), 30),
        take(train_batches(bucketed, "train", batch_size=2, seed=3), 30),
        strict=True,
    ):
        length = short["text_ids"].shape[1]
        longest = padded["text_mask"].sum(axis=1).max()
        assert length == min(size for size in (16, 20, 24) if size >= longest)
        for key in (contract.TEXT_IDS, contract.TEXT_MASK):
            np.testing.assert_array_equal(short[key], padded[key][:, :length])
        for key in contract.SPEC.keys() - {contract.TEXT_IDS, contract.TEXT_MASK}:
            np.testing.assert_array_equal(short[key], padded[key])
        lengths.add(length)
    assert len(lengths) > 1


def test_buckets_are_the_same_on_every_process_and_after_a_restart(bucketed):
    whole = take(train_batches(bucketed, "train", batch_size=4, seed=3), 12)
    parts = [
        take(
            train_batches(
                bucketed, "train", batch_size=4, seed=3, start_step=5, process_index=index, process_count=4
            ),
            7,
        )
        for index in range(4)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in batch]) for key in contract.SPEC}
        for batch in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole[5:])


def test_evaluation_keeps_the_longest_length(synthetic, bucketed):
    assert_equal(
        list(eval_batches(bucketed, "test", batch_size=8)),
        list(eval_batches(synthetic, "test", batch_size=8)),
    )


@pytest.mark.parametrize("buckets", [(2,), (8, 8), (12, 8), (8, 24)])
def test_buckets_that_do_not_rise_below_the_longest_length_are_an_error(buckets):
    with pytest.raises(UserError, match="length_buckets"):
        TokenizerConfig(max_length=24, length_buckets=buckets)


@pytest.mark.parametrize(("batch_size", "process_count"), [(0, 1), (10, 4), (3, 2)])
def test_a_batch_that_does_not_divide_is_an_error(synthetic, batch_size, process_count):
    with pytest.raises(
        UserError, match=f"a batch of {batch_size} does not divide among {process_count} processes"
    ):
        train_batches(synthetic, "train", batch_size=batch_size, seed=0, process_count=process_count)
    with pytest.raises(UserError, match="does not divide"):
        eval_batches(synthetic, "test", batch_size=batch_size, process_count=process_count)


def test_a_negative_seed_is_an_error(synthetic):
    with pytest.raises(UserError, match="the seed of the data order is -1; it must be zero or more"):
        train_batches(synthetic, "train", batch_size=8, seed=-1)


def test_an_epoch_shows_every_example_once_and_the_next_in_another_order(synthetic):
    batches = take(train_batches(synthetic, "train", batch_size=30, seed=0), 10)
    orders = np.concatenate([batch["index"] for batch in batches]).reshape(2, 150)
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(150), (2, 1)))
    assert not np.array_equal(orders[0], orders[1])


def test_rows_show_a_window_and_a_caption_of_their_example(synthetic):
    split = synthetic.split("train")
    for batch in take(train_batches(synthetic, "train", batch_size=30, seed=0), 3):
        for row, index in enumerate(batch["index"]):
            (pcm,) = split.read_pcm([int(index)])
            windows = np.lib.stride_tricks.sliding_window_view(pcm, 12_000)
            assert (windows == batch["audio"][row]).all(axis=1).any()
            ids, _ = encode(synthetic.tokenizer, split.captions(int(index)), 24)
            assert (ids == batch["text_ids"][row]).all(axis=1).any()


def test_windows_and_captions_are_drawn_anew_in_every_epoch(synthetic):
    split = synthetic.split("train")
    seen: dict[int, list[tuple[bytes, bytes]]] = {}
    for batch in take(train_batches(synthetic, "train", batch_size=50, seed=0), 12):
        for row, index in enumerate(batch["index"]):
            drawn = (batch["audio"][row].tobytes(), batch["text_ids"][row].tobytes())
            seen.setdefault(int(index), []).append(drawn)
    assert all(len(draws) == 4 for draws in seen.values())
    assert np.mean([len({audio for audio, _ in draws}) for draws in seen.values()]) > 3.9
    with_one = [i for i in seen if len(split.captions(i)) == 1]
    with_five = [i for i in seen if len(split.captions(i)) == 5]
    assert with_one
    assert all(len({text for _, text in seen[i]}) == 1 for i in with_one)
    assert np.mean([len({text for _, text in seen[i]}) for i in with_five]) > 2.5  # expected 2.95 of 4 draws


def test_evaluation_is_in_order_centred_first_caption_and_padded(synthetic):
    split = synthetic.split("test")
    batches = list(eval_batches(synthetic, "test", batch_size=16))
    assert len(batches) == 2
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == [*range(30), -1, -1]
    assert np.concatenate([batch["mask"] for batch in batches]).tolist() == [True] * 30 + [False] * 2
    ids, mask = encode(synthetic.tokenizer, [split.captions(i)[0] for i in range(30)], 24)
    assert np.array_equal(np.concatenate([batch["text_ids"] for batch in batches])[:30], ids)
    assert np.array_equal(np.concatenate([batch["text_mask"] for batch in batches])[:30], mask)
    audio = np.concatenate([batch["audio"] for batch in batches])
    for row, pcm in enumerate(split.read_pcm(range(30))):
        assert np.array_equal(audio[row], pcm[2000:14_000])
    last = batches[-1]
    assert not last["audio"][-2:].any()
    assert not last["text_mask"][-2:].any()
    assert last["audio_num_samples"][-3:].tolist() == [12_000, 0, 0]
    assert last["label"][-2:].tolist() == [-1, -1]


def test_short_recordings_are_padded_with_zeros_and_keep_their_labels(esc10):
    split = esc10.split("fold4")
    for batch in eval_batches(esc10, "fold4", batch_size=40):
        for row, index in enumerate(batch["index"]):
            (pcm,) = split.read_pcm([int(index)])
            assert batch["audio_num_samples"][row] == len(pcm) < 96_000
            assert np.array_equal(batch["audio"][row, : len(pcm)], pcm)
            assert not batch["audio"][row, len(pcm) :].any()
            assert batch["label"][row] == split.labels[index]


@pytest.mark.parametrize("name", ["fold1+fold3", "fold3+fold1", "fold2"])
def test_joined_splits_are_read_in_the_order_of_their_names(esc10, name):
    split = esc10.split(name)
    parts = [esc10.split(part) for part in name.split("+")]
    assert split.ids == tuple(id for part in parts for id in part.ids)
    for batch in eval_batches(esc10, name, batch_size=80):
        for row, index in list(enumerate(batch["index"]))[::13]:
            part = parts[index // 80]
            (pcm,) = part.read_pcm([int(index) % 80])
            assert np.array_equal(batch["audio"][row, : len(pcm)], pcm)


ENDED = """
import pickle, sys, time
from data_pipelines import pipeline

prepared = pickle.loads(sys.stdin.buffer.read())
read = pipeline._Reader._read
pipeline._Reader._read = lambda *args: (time.sleep(0.1), read(*args))[1]  # always in the middle of a batch
batches = pipeline.train_batches(prepared, "train", batch_size=8, seed=0)
next(batches)
sys.exit(75)
"""


def test_a_program_ends_in_the_middle_of_a_batch(synthetic):
    program = [sys.executable, "-c", ENDED]
    root = Path(__file__).parents[2]
    ended = subprocess.run(program, input=pickle.dumps(synthetic), cwd=root, timeout=600, check=False)
    assert ended.returncode == 75


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_record_stops_the_run_and_says_where(synthetic, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(synthetic.folders[0], folder)
    (shard,) = folder.glob("*train.array_record*")
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    shard.write_bytes(content[: len(content) // 2] if damage == "truncate" else content)
    if damage == "delete":
        shard.unlink()
    damaged: Prepared = dataclasses.replace(synthetic, splits=open_folder(folder, 16_000))
    with pytest.raises(DataError, match=f"{folder}.*delete that folder, and it is built again"):
        take(train_batches(damaged, "train", batch_size=30, seed=0), 5)
