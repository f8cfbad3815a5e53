"""Building once, never serving what is stale, half built or someone else's; fingerprints; held-out sets."""

import csv
import dataclasses
import errno
import logging
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from alm_jax.errors import DataError, UserError
from data_pipelines import prepare as prepare_module
from data_pipelines.builder import settings_name
from data_pipelines.config import DataConfig, FilterConfig, TokenizerConfig
from data_pipelines.datasets.esc50 import Esc50Config
from data_pipelines.datasets.synthetic_captions import (
    Composed,
    SyntheticCaptionsConfig,
    split_compositions,
)
from data_pipelines.prepare import prepare

TIMEOUT_SEC = 600
TINY = SyntheticCaptionsConfig(num_train=6, num_validation=2, num_test=3, clip_sec=1.0)


def tiny_config(cache_dir: Path, **changes: object) -> DataConfig:
    config = DataConfig(dataset=TINY, tokenizer=TokenizerConfig(vocab_size=300), cache_dir=str(cache_dir))
    return dataclasses.replace(config, **changes)


def test_held_out_compositions_are_disjoint_and_made_of_seen_events():
    splits = split_compositions(SyntheticCaptionsConfig())
    train, validation, test = (splits[name] for name in ("train", "validation", "test"))
    assert (len(set(validation)), len(set(test))) == (100, 200)
    assert not set(train) & set(test)
    assert not set(train) & set(validation)
    assert not set(test) & set(validation)
    assert len(set(train) | set(test) | set(validation)) == 696
    alone = {c.events[0] for c in train if c.relation == "alone"}
    assert alone == {event for c in test + validation for event in c.events}
    assert {c.relation for c in test} == {"then", "while"} <= {c.relation for c in train}


def test_every_word_of_the_test_captions_is_seen_in_training(tmp_path):
    prepared = prepare(
        tiny_config(tmp_path, dataset=SyntheticCaptionsConfig(num_train=500, clip_sec=1.0)), 16_000
    )
    words = {
        name: set(
            re.findall(r"[\w-]+", " ".join(c for cs in prepared.split(name).all_captions for c in cs).lower())
        )
        for name in ("train", "test")
    }
    assert words["test"] <= words["train"]
    captions = [c for i in range(200) for c in prepared.split("test").captions(i)]
    assert len(set(captions)) == len(captions) == 1000


def test_too_many_held_out_compositions_are_an_error():
    with pytest.raises(UserError, match="only 336 of the 672 compositions of two events can be held out"):
        split_compositions(SyntheticCaptionsConfig(num_test=300))


def test_a_low_sampling_rate_is_an_error(tmp_path):
    with pytest.raises(UserError, match="need a sampling rate of 14000 Hz or more, the model has 8000 Hz"):
        prepare(tiny_config(tmp_path), 8_000)


def test_a_second_call_builds_nothing_and_any_tfds_program_can_read_it(tmp_path, monkeypatch):
    first = prepare(tiny_config(tmp_path), 16_000)
    monkeypatch.setattr(prepare_module, "_build", lambda *_: pytest.fail("it was built twice"))
    second = prepare(tiny_config(tmp_path), 16_000)
    assert second.folders[0] == first.folders[0]
    assert second.fingerprint == first.fingerprint
    records = tfds.builder_from_directory(first.folders[0]).as_data_source("train")
    assert [record["id"].decode() for record in records] == list(first.split("train").ids)
    assert np.array_equal(records[5]["audio"], first.split("train").read_pcm([5])[0])


def test_the_same_seed_builds_the_same_data_and_another_seed_other_data(tmp_path):
    one, other = (prepare(tiny_config(tmp_path / name), 16_000) for name in ("one", "other"))
    assert one.fingerprint == other.fingerprint
    for a, b in zip(*(p.split("train").read_pcm(range(6)) for p in (one, other)), strict=True):
        assert np.array_equal(a, b)
    reseeded = prepare(tiny_config(tmp_path / "one", dataset=dataclasses.replace(TINY, seed=1)), 16_000)
    assert reseeded.folders[0] != one.folders[0]
    assert reseeded.fingerprint != one.fingerprint


def test_what_decides_the_content_is_in_the_name():
    settings = [TINY, dataclasses.replace(TINY, clip_sec=1.5), dataclasses.replace(TINY, num_test=4)]
    names = {
        settings_name(own, rate_hz, encoding)
        for own in settings
        for rate_hz in (16_000, 48_000)
        for encoding in ("pcm", "flac")
    }
    assert len(names) == 12


def test_the_fingerprint_covers_settings_and_tokenizer(tmp_path):
    base = tiny_config(tmp_path)
    tokenizer = dataclasses.replace(base.tokenizer, vocab_size=320)
    configs = [
        base,
        dataclasses.replace(base, source_sec=2.0),
        dataclasses.replace(base, tokenizer=tokenizer),
        dataclasses.replace(base, train_split="train+validation"),
        dataclasses.replace(base, eval_split="validation"),
    ]
    assert len({prepare(config, 16_000).fingerprint for config in configs}) == len(configs)
    unchanged = dataclasses.replace(base, num_reads=7, max_bad_fraction=0.9)
    assert prepare(unchanged, 16_000).fingerprint == prepare(base, 16_000).fingerprint


def esc_config(root: Path, cache_dir: Path) -> DataConfig:
    return tiny_config(
        cache_dir, dataset=Esc50Config(root=str(root)), train_split="fold1", eval_split="fold2"
    )


def test_a_source_that_has_changed_is_built_again(make_esc, tmp_path):
    root = make_esc(4)
    config = esc_config(root, tmp_path / "cache")
    before = prepare(config, 8_000)
    assert prepare(config, 8_000).folders[0] == before.folders[0]

    with open(root / "meta" / "esc50.csv", newline="") as table:
        first, second = [row["filename"] for row in csv.DictReader(table)][:2]
    (root / "audio" / first).write_bytes((root / "audio" / second).read_bytes())
    changed_audio = prepare(config, 8_000)
    assert np.array_equal(*changed_audio.split("fold1").read_pcm([0, 1]))

    table = root / "meta" / "esc50.csv"
    table.write_text(table.read_text().replace("dog", "wolf"))
    changed_label = prepare(config, 8_000)
    assert changed_label.class_names[0] == "wolf"
    versions = (before, changed_audio, changed_label)
    assert len({prepared.fingerprint for prepared in versions}) == 3
    assert len({prepared.folders[0] for prepared in versions}) == 3


@pytest.mark.parametrize("name", ["nothing", "train+nothing", "", "train+"])
@pytest.mark.parametrize("field", ["train_split", "eval_split"])
def test_an_unknown_split_is_an_error_that_names_those_there_are(tmp_path, field, name):
    with pytest.raises(UserError, match="the data set has test, train, validation"):
        prepare(tiny_config(tmp_path.parent / "shared", **{field: name}), 16_000)


def test_a_split_named_twice_is_an_error(tmp_path):
    with pytest.raises(UserError, match="names a part twice"):
        prepare(tiny_config(tmp_path, train_split="train+train"), 16_000)


def test_a_build_that_fails_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    def stop(self: object, sample_rate_hz: int, **window: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Composed, "read", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(tiny_config(tmp_path), 16_000)
    assert not list(tmp_path.rglob("manifest.json"))
    prepared = prepare(tiny_config(tmp_path), 16_000)
    assert len(prepared.split("train")) == 6
    assert sorted(path.name for path in prepared.folders[0].parent.iterdir()) == [
        prepared.folders[0].name,
        "lock",
    ]
    assert not (prepared.folders[0] / "building").exists()


def test_processes_take_turns(tmp_path, caplog, monkeypatch):
    order = []
    held, is_waited_for = threading.Event(), threading.Event()

    def hold() -> None:
        with prepare_module._lock(tmp_path / "lock"):
            order.append("first")
            held.set()
            is_waited_for.wait(TIMEOUT_SEC)
            order.append("first done")

    warn = prepare_module.logger.warning
    monkeypatch.setattr(prepare_module.logger, "warning", lambda *args: (warn(*args), is_waited_for.set()))
    thread = threading.Thread(target=hold)
    with caplog.at_level(logging.WARNING):
        thread.start()
        held.wait(TIMEOUT_SEC)
        with prepare_module._lock(tmp_path / "lock"):
            order.append("second")
        thread.join()
    assert order == ["first", "first done", "second"]
    assert "waiting for another process" in caplog.text


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot prepare data in .*; choose another cache_dir"):
        prepare(tiny_config(tmp_path / "file"), 16_000)


def test_long_captions_are_counted(tmp_path, caplog):
    prepare(tiny_config(tmp_path, tokenizer=TokenizerConfig(vocab_size=300, max_length=5)), 16_000)
    assert re.search(r"\d+ of \d+ captions are longer than tokenizer.max_length=5", caplog.text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenizerConfig(vocab_size=100), "tokenizer.vocab_size is 100; it must be at least 300"),
        (lambda: TokenizerConfig(max_length=2), "tokenizer.max_length is 2; it must be at least 3"),
        (lambda: SyntheticCaptionsConfig(num_test=0), "num_test is 0; it must be at least 1"),
        (lambda: SyntheticCaptionsConfig(clip_sec=0.1), "clip_sec is 0.1; it must be between 1 and 60"),
        (lambda: DataConfig(dataset=TINY, source_sec=0.0), "source_sec is 0.0; it must be above zero"),
        (lambda: DataConfig(dataset=TINY, max_bad_fraction=1.0), "max_bad_fraction is 1.0; it must be in"),
    ],
)
def test_settings_that_cannot_be_are_errors(make, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make()


IMPORT = """
import sys
import data_pipelines.config, data_pipelines.decode, data_pipelines.text
heavy = {"tensorflow", "tensorflow_datasets", "jax"} & set(sys.modules)
assert not heavy, heavy
import data_pipelines.prepare, data_pipelines.pipeline, data_pipelines.sampling
heavy = {"tensorflow", "jax"} & set(sys.modules)
assert not heavy, heavy
"""


def test_importing_loads_neither_tensorflow_nor_jax():
    subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=Path(__file__).parents[2], check=True, timeout=TIMEOUT_SEC
    )


def test_a_prepared_set_may_be_moved_and_read_only_and_its_source_gone(
    make_esc, tmp_path, monkeypatch, caplog
):
    root = make_esc(4)
    config = esc_config(root, tmp_path / "cache")
    before = prepare(config, 8_000)
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    shutil.rmtree(root)

    def refuse_in(folder: Path, do: Callable[..., object]) -> Callable[..., object]:
        def refuse(self: Path, *args: object, **options: object) -> object:
            if self.is_relative_to(folder):
                raise OSError(errno.EROFS, "Read-only file system")
            return do(self, *args, **options)

        return refuse

    monkeypatch.setattr(prepare_module, "_lock", lambda *_: pytest.fail("a complete data set was locked"))
    for name in ("mkdir", "write_text"):
        monkeypatch.setattr(Path, name, refuse_in(tmp_path / "moved", getattr(Path, name)))
    moved = dataclasses.replace(config, cache_dir=str(tmp_path / "moved"))
    with caplog.at_level(logging.WARNING):
        after = prepare(moved, 8_000)
    assert "no such folder" in caplog.text
    assert f"using the prepared data set: {after.folders[0]}" in caplog.text
    assert after.fingerprint == before.fingerprint
    assert np.array_equal(after.split("fold1").read_pcm([1])[0], before_pcm(root, tmp_path))
    filtered = dataclasses.replace(moved, filter=FilterConfig(min_sec=1.0))
    assert len(prepare(filtered, 8_000).split("fold1")) == 2
    assert "cannot be stored in" in caplog.text


def before_pcm(root: Path, tmp_path: Path) -> np.ndarray:
    """The second record, as TFDS reads it."""
    (folder,) = (path.parent for path in (tmp_path / "moved").rglob("manifest.json"))
    return tfds.builder_from_directory(folder).as_data_source("fold1")[1]["audio"]


@pytest.mark.parametrize("file", ["manifest.json", "index/train.arrow"])
@pytest.mark.parametrize("damage", ["empty", "half", "garbage", "gone"])
def test_a_damaged_folder_is_an_error_with_the_remedy(tmp_path, file, damage):
    folder = prepare(tiny_config(tmp_path), 16_000).folders[0]
    content = (folder / file).read_bytes()
    if damage == "gone":
        (folder / file).unlink()
    else:
        middle = b"x" * (len(content) // 4)
        half = content[: len(content) // 2]
        (folder / file).write_bytes({"empty": b"", "half": half, "garbage": middle * 4}[damage])
    if (file, damage) == ("manifest.json", "gone"):
        prepare(tiny_config(tmp_path), 16_000)  # it is not complete, so it is built again
        return
    with pytest.raises(DataError, match=f"{folder}.*delete the folder {folder}.*built again"):
        prepare(tiny_config(tmp_path), 16_000)
    shutil.rmtree(folder)
    assert len(prepare(tiny_config(tmp_path), 16_000).split("train")) == 6


def test_a_folder_of_another_format_is_not_read(tmp_path):
    folder = prepare(tiny_config(tmp_path), 16_000).folders[0]
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(DataError, match="has format 1, this version reads 2; delete"):
        prepare(tiny_config(tmp_path), 16_000)


def test_negative_captions_are_asked_of_a_data_set_that_has_none(make_esc, tmp_path):
    config = tiny_config(tmp_path, dataset=Esc50Config(root=str(make_esc())), num_negatives=2)
    config = dataclasses.replace(config, train_split="fold1", eval_split="fold2")
    with pytest.raises(UserError, match=r"num_negatives is 2, and no example of split 'fold1'"):
        prepare(config, 16_000)


def test_negative_captions_are_part_of_what_a_run_reads_where_it_reads_them(tmp_path):
    plain = prepare(tiny_config(tmp_path), 16_000)
    config = dataclasses.replace(plain.config, num_negatives=1)
    assert dataclasses.replace(plain, config=config).fingerprint != plain.fingerprint
