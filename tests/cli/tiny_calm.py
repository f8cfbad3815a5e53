"""A run of seconds of a CALM-style head, with every kind of noise on, for the tests of the command line."""

from alm_jax.models.one_head import OneHeadConfig
from alm_jax.objectives.calm import CalmConfig
from alm_jax.objectives.masked_text import MaskedTextConfig
from alm_jax.objectives.recordings import WaveformAugmentConfig
from alm_jax.ops.frontends import AstSpec, ClipSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="tiny_calm",
        data=DataConfig(
            dataset=SyntheticCaptionsConfig(num_train=40, num_validation=8, num_test=8, clip_sec=1.5),
            tokenizer=TokenizerConfig(kind="wordpiece", vocab_size=80, max_length=16),
            source_sec=1.5,
        ),
        objective=CalmConfig(
            model=OneHeadConfig(
                frontend=AstSpec(hop_samples=320, num_mels=16, padded_frames=64, clip=ClipSpec(clip_sec=1.3)),
                patch_size=8,
                vocab_size=80,
                max_length=16,
                width=16,
                num_layers=1,
                num_heads=2,
                mlp_dim=16,
                embed_dim=8,
            ),
            masked_text=MaskedTextConfig(proportion=0.3),
            augment=WaveformAugmentConfig(gain_db=3.0, roll=True),
        ),
        optimizer=AdamWConfig(warmup_steps=2),
        training=TrainingConfig(
            num_steps=4, batch_size=16, num_microbatches=2, ema_decay=0.9, save_every=2, keep_checkpoints=3
        ),
    )
