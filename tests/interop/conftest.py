"""Random ClapModels in PyTorch, real clips and real captions."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.initialization import no_init_weights

from alm_jax.encoders.audio import htsat
from alm_jax.encoders.text import bert
from alm_jax.interop.clap_config import config_to_clap
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.ops.frontends import ClapSpec, ClipSpec

SPECIAL_IDS = {"bos_token": 0, "eos_token": 2}


@pytest.fixture(scope="session")
def nano_config() -> TwoTowersConfig:
    """16 kHz clips of 5 s: 251 frames."""
    return TwoTowersConfig(
        frontend=ClapSpec(
            sample_rate_hz=16000, n_fft=1024, hop_samples=320, fmax_hz=8000.0, clip=ClipSpec(clip_sec=5.0)
        ),
        audio=htsat.NANO,
        text=bert.NANO,
        embed_dim=64,
    )


@pytest.fixture(scope="session")
def tiny_config() -> TwoTowersConfig:
    """The published model at its full size: HTSAT-tiny, RoBERTa-base, 10 s at 48 kHz."""
    return TwoTowersConfig(
        frontend=ClapSpec(clip=ClipSpec(clip_sec=10.0)), audio=htsat.TINY, text=bert.ROBERTA_BASE
    )


def randomise(model: torch.nn.Module) -> None:
    """Weights under which every example has an embedding of its own; biases and statistics too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            elif name.endswith(".bias"):
                parameter.normal_(0.0, 0.2, generator=generator)
            elif name.endswith(".weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(-40.0, 10.0, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(50.0, 400.0, generator=generator)


@pytest.fixture(scope="session")
def build_clap():
    """config -> ClapModel in evaluation mode, every parameter and statistic random, attention eager."""

    def build(config: TwoTowersConfig) -> transformers.ClapModel:
        clap = transformers.ClapConfig(**config_to_clap(config, SPECIAL_IDS), attn_implementation="eager")
        with no_init_weights():
            model = transformers.ClapModel(clap).eval()
        randomise(model)
        return model

    return build


@pytest.fixture(scope="session")
def read_clips(real_data_dir: Path):
    """sample rate -> the first clip of each of four ESC-10 classes, as float32 waveforms."""

    def read(sample_rate_hz: int) -> list[np.ndarray]:
        with (real_data_dir / "esc10" / "meta" / "esc50.csv").open(encoding="utf-8") as file:
            first = {row["category"]: row["filename"] for row in reversed(list(csv.DictReader(file)))}
        clips = []
        for category in sorted(first)[:4]:
            waveform, rate = soundfile.read(
                real_data_dir / "esc10" / "audio" / first[category], dtype="float32"
            )
            clips.append(soxr.resample(waveform, rate, sample_rate_hz))
        return clips

    return read


@pytest.fixture(scope="session")
def captions(real_data_dir: Path) -> list[str]:
    """AudioCaps captions, short and long."""
    with (real_data_dir / "audiocaps" / "test.csv").open(encoding="utf-8") as file:
        return [row["caption"] for row in csv.DictReader(file)][:500]


@pytest.fixture(scope="session")
def tokenizer_json(captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with RoBERTa's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path
