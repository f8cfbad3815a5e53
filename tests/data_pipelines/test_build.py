"""Builds: the same bytes whoever makes them, whole after a kill, long recordings, FLAC, other rates, progress."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import tensorflow_datasets as tfds

from alm_jax.errors import DataError
from data_pipelines.build import BuildSpec, build, complete
from data_pipelines.build_progress import Progress
from data_pipelines.builder import CaptionedAudioConfig, build_folder, builder_class
from data_pipelines.config import StorageConfig, TokenizerConfig
from data_pipelines.dataset import DatasetConfig
from data_pipelines.datasets.synthetic_captions import Composed, SyntheticCaptionsConfig
from data_pipelines.decode import float_to_pcm
from data_pipelines.manifest import read_manifest
from data_pipelines.prepare import DataConfig, open_folder, prepare
from data_pipelines.records import PIECE_SEC
from data_pipelines.source import AudioFile, LongRecording, Source, SourceRow

TINY = SyntheticCaptionsConfig(num_train=11, num_validation=2, num_test=3, clip_sec=1.0)
RATE_HZ = 16_000


def make_spec(folder: Path, **changes: object) -> BuildSpec:
    spec = BuildSpec(name="tiny", folder=folder, sample_rate_hz=RATE_HZ, rows_per_shard=4)
    return dataclasses.replace(spec, **changes)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def build_whole(folder: Path, beam: str | None = None) -> dict[str, str]:
    spec = make_spec(folder)
    complete(spec, build(spec, TINY.read(), beam=beam))
    return digests(folder)


def test_two_builds_have_the_same_bytes(tmp_path):
    one, two = build_whole(tmp_path / "one"), build_whole(tmp_path / "two")
    assert one == two
    assert [name for name in one if "train" in name] == [
        "index/train.arrow",
        *(f"tiny-train.array_record-{i:05d}-of-00003" for i in range(3)),
    ]
    manifest = read_manifest(tmp_path / "one")
    assert {name: split.num_rows for name, split in manifest.splits.items()} == {
        "train": 11,
        "validation": 2,
        "test": 3,
    }
    assert manifest.splits["train"].shard_lengths == (4, 4, 3)
    assert manifest.splits["train"].seconds == 11.0
    ids = hashlib.sha256(b"".join(b"train-%06d\n" % i for i in range(11)))
    assert manifest.splits["train"].ids_sha256 == ids.hexdigest()


def test_a_build_that_was_stopped_goes_on_and_is_whole(tmp_path, monkeypatch):
    read = Composed.read
    made = []

    def stop_after_six(self: Composed, sample_rate_hz: int, **window: object) -> object:
        made.append(self)
        if len(made) == 9:
            raise KeyboardInterrupt
        return read(self, sample_rate_hz, **window)

    with monkeypatch.context() as patch:
        patch.setattr(Composed, "read", stop_after_six)
        with pytest.raises(KeyboardInterrupt):
            build_whole(tmp_path / "stopped")
    first = tmp_path / "stopped" / "tiny-train.array_record-00000-of-00003"
    before = first.stat()
    assert not (tmp_path / "stopped" / "manifest.json").exists()
    assert build_whole(tmp_path / "stopped") == build_whole(tmp_path / "whole")
    assert first.stat().st_mtime_ns == before.st_mtime_ns  # a shard that was complete is kept


KILLED = """
import sys, time
from pathlib import Path
from tests.data_pipelines.test_build import Composed, build_whole
read = Composed.read
Composed.read = lambda *args, **window: (time.sleep(0.2), read(*args, **window))[1]
build_whole(Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("shards", [0, 1, 3])
def test_a_build_that_was_killed_goes_on_and_is_whole(tmp_path, shards):
    root, folder = Path(__file__).parents[2], tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED, folder], cwd=root)
    while len(list(folder.glob("building/*-0*.json"))) < shards or not list(
        folder.glob("building/*.partial")
    ):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "manifest.json").exists()
    assert build_whole(folder) == build_whole(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="Apache Beam is not installed")
@pytest.mark.parametrize("workers", [1, 2])
def test_beam_writes_the_same_bytes(tmp_path, workers):
    """`pip install alm_jax[beam]` in an environment of its own runs this."""
    mode = "in_memory" if workers == 1 else "multi_processing"
    options = f"--runner=DirectRunner --direct_running_mode={mode} --direct_num_workers={workers}"
    assert build_whole(tmp_path / "beam", options) == build_whole(tmp_path / "threads")


@pytest.mark.parametrize("encoding", ["pcm", "flac"])
def test_tfds_builds_and_reads_the_same(tmp_path, encoding):
    """``download_and_prepare``, which ``tfds build`` calls, and ``builder_from_directory`` of what is built here."""
    settings, source = TINY, TINY.read()
    options = {"sample_rate_hz": RATE_HZ, "encoding": encoding, "max_bad_fraction": 0.0}
    config = CaptionedAudioConfig(name="tiny", settings=settings, source=source, **options)
    builder = builder_class(type(settings))(data_dir=tmp_path / "tfds", config=config)
    builder.download_and_prepare()
    build_folder(settings, source, tmp_path / "ours", **options)
    theirs, ours = digests(Path(builder.data_path)), digests(tmp_path / "ours")
    records = [name for name in ours if "array_record" in name or name.endswith(".arrow")]
    assert len(records) == 6
    assert [ours[name] for name in records] == [theirs[name] for name in records]
    split = open_folder(tmp_path / "ours", RATE_HZ)["train"]
    rows = tfds.builder_from_directory(tmp_path / "ours").as_data_source("train")
    assert len(rows) == len(split) == 11
    for row, record in enumerate(rows):
        assert record["id"].decode() == split.ids[row]
        assert [caption.decode() for caption in record["captions"]] == split.captions(row)
        if encoding == "pcm":
            assert np.array_equal(record["audio"], split.read_pcm([row])[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneFileConfig(DatasetConfig):
    """One recording, and a stretch of it."""

    path: str
    """The file."""

    def read(self, problems: list[str] | None = None) -> Source:
        audio = AudioFile(Path(self.path))
        common = {"captions": ("a sound",), "split": "train", "source": "a"}
        rows = [
            SourceRow(id="whole", audio=audio, **common),
            SourceRow(id="stretch", audio=audio, start_sec=1.5, end_sec=3.0, **common),
        ]
        return Source(rows=rows, signature=str(Path(self.path).stat().st_size))


def write_noise(path: Path, seconds: float, rate_hz: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    pcm = (np.cumsum(rng.standard_normal(int(seconds * rate_hz)), dtype=np.float64) % 60 - 30) * 500
    soundfile.write(path, pcm.astype(np.int16), rate_hz)
    return pcm.astype(np.int16)


@pytest.mark.parametrize("encoding", ["pcm", "flac"])
@pytest.mark.parametrize("seconds", [29.99, 30.0, 95.5])
def test_a_long_recording_is_read_by_window(tmp_path, encoding, seconds):
    pcm = write_noise(tmp_path / "a.wav", seconds, 8_000)
    settings = OneFileConfig(path=str(tmp_path / "a.wav"))
    options = {"sample_rate_hz": 8_000, "encoding": encoding, "max_bad_fraction": 0.0}
    manifest = build_folder(settings, settings.read(), tmp_path / "built", **options)
    assert manifest.splits["train"].shard_lengths == (-(-len(pcm) // (PIECE_SEC * 8_000)) + 1,)
    split = open_folder(tmp_path / "built", 8_000)["train"]
    whole, stretch = split.read_pcm([0, 1])
    assert np.array_equal(whole, pcm)
    assert np.array_equal(stretch, pcm[12_000:24_000])
    for start in (0, 5, 239_990, 240_000, 480_001, len(pcm) - 100):
        (window,) = split.read_windows(np.array([0]), np.array([start]), 500)
        assert np.array_equal(window, pcm[start : start + 500])


def test_a_recording_that_is_never_in_memory_whole_is_stored_as_it_is(tmp_path, monkeypatch):
    pcm = write_noise(tmp_path / "a.wav", 95.5, 8_000)
    monkeypatch.setattr("data_pipelines.source.LONG_SEC", 50.0)
    monkeypatch.setattr("data_pipelines.decode.BLOCK_SEC", 20)
    settings = OneFileConfig(path=str(tmp_path / "a.wav"))
    recording = AudioFile(tmp_path / "a.wav").read(8_000)
    assert isinstance(recording, LongRecording)
    assert (recording.num_samples, len(list(recording.blocks()))) == (len(pcm), 5)
    options = {"sample_rate_hz": 8_000, "encoding": "pcm", "max_bad_fraction": 0.0}
    build_folder(settings, settings.read(), tmp_path / "built", **options)
    assert np.array_equal(open_folder(tmp_path / "built", 8_000)["train"].read_pcm([0])[0], pcm)


@pytest.mark.parametrize("model_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_one_build_serves_models_of_every_rate(tmp_path, model_hz):
    """A window, resampled as it is read, is that window of the whole recording resampled."""
    pcm = write_noise(tmp_path / "a.wav", 40.3, 44_100)
    config = DataConfig(
        dataset=OneFileConfig(path=str(tmp_path / "a.wav")),
        eval_split="train",
        tokenizer=TokenizerConfig(vocab_size=300),
        storage=StorageConfig(sample_rate_hz=44_100),
        cache_dir=str(tmp_path / "cache"),
    )
    split = prepare(config, model_hz).split("train")
    expected = float_to_pcm(soxr.resample(pcm.astype(np.float32) / 32768, 44_100, model_hz, "HQ"))
    assert split.num_samples[0] == len(expected)
    for start in (0, 1, 7 * model_hz + 3, len(expected) - 1000):
        (window,) = split.read_windows(np.array([0]), np.array([start]), 2 * model_hz)
        wanted = expected[start : start + 2 * model_hz]
        assert len(window) == len(wanted)
        assert np.abs(window.astype(int) - wanted).max() <= 1  # the rounding of the last bit
    assert len(list((tmp_path / "cache").glob("one_file/*"))) == 1


def test_missing_and_undecodable_are_counted_apart(tmp_path, make_esc):
    from data_pipelines.datasets.esc50 import Esc50Config

    root = make_esc(8)
    gone, broken = sorted((root / "audio").iterdir())[:2]
    gone.unlink()
    broken.write_bytes(b"x")
    settings = Esc50Config(root=str(root))
    options = {"sample_rate_hz": 8_000, "encoding": "pcm", "max_bad_fraction": 0.5}
    manifest = build_folder(settings, settings.read(), tmp_path / "built", **options)
    fold = manifest.splits["fold1"]
    assert (fold.num_planned, fold.num_rows, fold.num_missing, fold.num_undecodable) == (4, 2, 1, 1)
    assert (
        json.loads((tmp_path / "built" / "manifest.json").read_text())["splits"]["fold1"]["num_missing"] == 1
    )


def test_bad_rows_are_counted_over_shards(tmp_path):
    rows = [
        dataclasses.replace(row, captions=("",) if i % 4 == 0 else row.captions)
        for i, row in enumerate(TINY.read().rows)
    ]
    with pytest.raises(DataError, match=r"3 of 16 recordings are bad so far.*empty caption"):
        build(make_spec(tmp_path / "a", max_bad_fraction=0.15), Source(rows=rows))
    spec = make_spec(tmp_path / "a", max_bad_fraction=0.25)
    assert build(spec, Source(rows=rows)).num_rejected == 4


def test_off_a_terminal_a_line_comes_now_and_then(capsys):
    now = [0.0]
    with Progress("esc50", 100, is_terminal=False, clock=lambda: now[0]) as progress:
        for _ in range(50):
            now[0] += 1.0
            progress.advance()
        progress.advance(30, rejected=2)
        now[0] += 30.0
        progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "esc50: 30 of 100 recordings, 0 rejected, 1 a second, 1 minutes left",
        "esc50: 81 of 100 recordings, 2 rejected, 1 a second, 0 minutes left",
    ]
