"""A run of seconds of masked prediction, with every kind of noise on, for the tests of the command line."""

from alm_jax.encoders.audio.beats import BeatsConfig
from alm_jax.models.audio_tokenizer import RandomProjectionConfig
from alm_jax.models.label_predictor import LabelPredictorConfig
from alm_jax.models.patch_decoders import LocalDecoderConfig
from alm_jax.objectives.masked_prediction import MaskedPredictionConfig
from alm_jax.objectives.recordings import WaveformAugmentConfig
from alm_jax.ops.frontends import BeatsSpec, ClipSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig

ENCODER = BeatsConfig(
    num_mels=16,
    patch_size=4,
    patch_width=8,
    width=16,
    num_layers=1,
    num_heads=2,
    mlp_dim=16,
    position_window=4,
    position_groups=2,
    num_buckets=8,
    max_distance=16,
)


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="tiny_masked_prediction",
        data=DataConfig(
            dataset=SyntheticCaptionsConfig(num_train=40, num_validation=8, num_test=8, clip_sec=1.5),
            tokenizer=TokenizerConfig(vocab_size=320, max_length=16),
            source_sec=1.5,
        ),
        objective=MaskedPredictionConfig(
            model=LabelPredictorConfig(
                frontend=BeatsSpec(hop_samples=320, num_mels=16, clip=ClipSpec(clip_sec=1.32)),
                encoder=ENCODER,
                tokenizer=RandomProjectionConfig(num_codes=16, code_dim=8),
                predictor=LocalDecoderConfig(width=16, num_layers=2, num_heads=2, mlp_dim=16, bias_dim=4),
            ),
            augment=WaveformAugmentConfig(gain_db=3.0, roll=True),
        ),
        optimizer=AdamWConfig(warmup_steps=2),
        training=TrainingConfig(
            num_steps=4, batch_size=16, num_microbatches=2, ema_decay=0.9, save_every=2, keep_checkpoints=3
        ),
    )
