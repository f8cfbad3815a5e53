"""A run of seconds, with every kind of noise on, for the tests of the command line."""

import dataclasses

from alm_jax.encoders.audio.htsat import HtsatConfig
from alm_jax.encoders.text.bert import NANO
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.objectives.contrastive import ContrastiveConfig
from alm_jax.objectives.recordings import WaveformAugmentConfig
from alm_jax.ops.frontends import ClapSpec, ClipSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="tiny",
        data=DataConfig(
            dataset=SyntheticCaptionsConfig(num_train=40, num_validation=8, num_test=8, clip_sec=1.5),
            tokenizer=TokenizerConfig(vocab_size=320, max_length=16),
            source_sec=1.5,
        ),
        objective=ContrastiveConfig(
            model=TwoTowersConfig(
                frontend=ClapSpec(
                    sample_rate_hz=16000,
                    n_fft=512,
                    hop_samples=256,
                    num_mels=16,
                    fmax_hz=8000.0,
                    clip=ClipSpec(clip_sec=1.0),
                ),
                audio=HtsatConfig(
                    spec_size=32,
                    num_mels=16,
                    embed_dim=16,
                    depths=(1, 1),
                    num_heads=(2, 2),
                    window_size=4,
                    spec_augment_time_width=8,
                    spec_augment_freq_width=4,
                ),
                text=dataclasses.replace(
                    NANO, width=32, num_heads=2, mlp_dim=64, vocab_size=320, dropout=0.1
                ),
                embed_dim=16,
            ),
            augment=WaveformAugmentConfig(gain_db=3.0, roll=True),
        ),
        optimizer=AdamWConfig(warmup_steps=5),
        training=TrainingConfig(
            num_steps=100, batch_size=16, num_microbatches=2, ema_decay=0.9, save_every=10
        ),
    )
