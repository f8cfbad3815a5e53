"""What every data set is: found by itself, kept in a config, read into rows that several labels and captions pass."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from alm_jax.errors import DataError
from alm_jax.run.config_json import from_json, to_json
from data_pipelines.config import DataConfig, MixtureConfig, MixturePart, TokenizerConfig
from data_pipelines.dataset import DatasetConfig
from data_pipelines.prepare import prepare
from data_pipelines.source import AudioFile, AudioMember, Source, SourceRow, hash_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThreeClipsConfig(DatasetConfig):
    """A data set that is defined outside the package."""

    root: str
    """Its folder."""

    def read(self, problems: list[str] | None = None) -> Source:
        labels = (("dog", "rain"), ("rain",), ())
        rows = [
            SourceRow(
                id=str(i),
                audio=AudioFile(Path(self.root) / "a.wav"),
                start_sec=i / 4,
                end_sec=i / 4 + 0.25,
                captions=tuple(f"caption {i} {n}" for n in range(i + 1)),
                labels=labels[i],
                split="train" if i else "test",
                source="a.wav",
            )
            for i in range(3)
        ]
        return Source(rows=rows, class_names=("dog", "rain"))


@pytest.fixture
def three_clips(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 8000), 8000)
    return ThreeClipsConfig(root=str(tmp_path))


def test_every_data_set_is_found_and_survives_json(three_clips):
    kinds = {kind.__name__ for kind in DatasetConfig.kinds()}
    assert {"SyntheticCaptionsConfig", "Esc50Config", "FsddConfig", "ThreeClipsConfig"} <= kinds
    alone = DataConfig(dataset=three_clips)
    mixed = DataConfig(dataset=MixtureConfig(parts=(MixturePart(name="a", dataset=three_clips),)))
    for config in (alone, mixed):
        assert from_json(to_json(config), DataConfig) == config


def test_several_captions_and_labels_and_a_stretch_go_through_to_the_split(three_clips, tmp_path):
    config = DataConfig(
        dataset=three_clips, tokenizer=TokenizerConfig(vocab_size=300), cache_dir=str(tmp_path)
    )
    splits = prepare(config, 8000).splits
    test, train = splits["test"], splits["train"]
    assert test.all_labels == ((0, 1),)
    assert train.all_labels == ((1,), ())
    assert (test.labels.tolist(), train.labels.tolist()) == ([-1], [1, -1])
    assert train.captions(1) == ["caption 2 0", "caption 2 1", "caption 2 2"]
    whole = AudioFile(tmp_path / "a.wav").read(8000).pcm
    assert np.array_equal(train.read_pcm([1])[0], whole[4000:6000])


def test_a_member_is_read_as_its_file_is_and_a_short_tar_is_an_error(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 8000), 8000)
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.tar").write_bytes(bytes(512) + content)
    member = pickle.loads(pickle.dumps(AudioMember(tmp_path / "a.tar", "a.wav", 512, len(content))))
    read, whole = (
        member.read(16_000, start_sec=0.25),
        AudioFile(tmp_path / "a.wav").read(16_000, start_sec=0.25),
    )
    assert np.array_equal(read.pcm, whole.pcm)
    assert read.sha256 == whole.sha256 == hash_file(tmp_path / "a.wav")
    with pytest.raises(DataError, match="truncated: the tar has"):
        dataclasses.replace(member, offset_bytes=600).read(8000)


def test_one_sample_at_a_high_rate_is_too_short_everywhere(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(1, 0.5), 48_000)
    with pytest.raises(DataError, match="too short: 1 samples at 48000 Hz leave none at 8000 Hz"):
        AudioFile(tmp_path / "a.wav").read(8000)
