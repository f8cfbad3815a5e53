"""A run of seconds of a unit language model, with every kind of noise on, for the tests of the command line."""

from alm_jax.encoders.text.gpt2 import Gpt2Config
from alm_jax.models.audio_units import CepstraConfig, ClusterUnitsConfig
from alm_jax.models.unit_language_model import UnitLanguageModelConfig
from alm_jax.objectives.recordings import WaveformAugmentConfig
from alm_jax.objectives.unit_language_modeling import UnitLanguageModelingConfig
from alm_jax.ops.frontends import AstSpec, ClipSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="tiny_unit_language_modeling",
        data=DataConfig(
            dataset=SyntheticCaptionsConfig(num_train=40, num_validation=8, num_test=8, clip_sec=1.5),
            tokenizer=TokenizerConfig(vocab_size=320, max_length=16),
            source_sec=1.5,
        ),
        objective=UnitLanguageModelingConfig(
            model=UnitLanguageModelConfig(
                frontend=AstSpec(hop_samples=320, num_mels=16, padded_frames=64, clip=ClipSpec(clip_sec=1.3)),
                units=ClusterUnitsConfig(num_units=10, frames=CepstraConfig(num_cepstra=4), num_fit_clips=16),
                # The tokenizer's 320 entries, 10 units and 2 tags.
                language_model=Gpt2Config(
                    vocab_size=332,
                    width=16,
                    num_layers=1,
                    num_heads=2,
                    mlp_dim=16,
                    max_positions=96,
                    dropout=0.1,
                ),
            ),
            row_tokens=64,
            examples_per_row=2,
            augment=WaveformAugmentConfig(gain_db=3.0, roll=True),
        ),
        optimizer=AdamWConfig(warmup_steps=2),
        training=TrainingConfig(
            num_steps=4, batch_size=32, num_microbatches=2, ema_decay=0.9, save_every=2, keep_checkpoints=3
        ),
    )
