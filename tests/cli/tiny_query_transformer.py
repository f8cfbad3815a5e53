"""A run of seconds of a Q-Former and its three targets, with all noise on, for the tests of the command line."""

from alm_jax.encoders.audio.whisper import WhisperEncoderConfig
from alm_jax.models.audio_q_former import AudioQFormerConfig
from alm_jax.models.q_former import QFormerConfig
from alm_jax.objectives.query_transformer import QueryTransformerConfig
from alm_jax.objectives.recordings import WaveformAugmentConfig
from alm_jax.ops.frontends import AstSpec, ClipSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="tiny_query_transformer",
        data=DataConfig(
            dataset=SyntheticCaptionsConfig(num_train=40, num_validation=8, num_test=8, clip_sec=1.5),
            tokenizer=TokenizerConfig(vocab_size=320, max_length=16),
            source_sec=1.5,
        ),
        objective=QueryTransformerConfig(
            model=AudioQFormerConfig(
                frontend=AstSpec(hop_samples=320, num_mels=16, padded_frames=64, clip=ClipSpec(clip_sec=1.3)),
                audio=WhisperEncoderConfig(
                    num_mels=16,
                    max_positions=32,
                    width=16,
                    num_layers=1,
                    num_heads=2,
                    mlp_dim=16,
                    pool_size=2,
                ),
                q_former=QFormerConfig(num_queries=4, width=16, num_layers=2, num_heads=2, mlp_dim=16),
                vocab_size=320,
                max_positions=16,
                embed_dim=8,
                padding="masked",
            ),
            augment=WaveformAugmentConfig(gain_db=3.0, roll=True),
        ),
        optimizer=AdamWConfig(warmup_steps=2),
        training=TrainingConfig(
            num_steps=4, batch_size=16, num_microbatches=2, ema_decay=0.9, save_every=2, keep_checkpoints=3
        ),
    )
