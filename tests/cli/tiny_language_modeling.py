"""A run of seconds of two heads, with every kind of noise on, for the tests of the command line."""

from alm_jax.encoders.audio.whisper import WhisperEncoderConfig
from alm_jax.encoders.text.gpt2 import Gpt2Config
from alm_jax.models.connectors import LinearConnectorConfig
from alm_jax.models.two_heads import TwoHeadsConfig
from alm_jax.objectives.language_modeling import LanguageModelingConfig
from alm_jax.objectives.recordings import WaveformAugmentConfig
from alm_jax.ops.frontends import ClipSpec, WhisperSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, PromptConfig, TokenizerConfig
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="tiny_language_modeling",
        data=DataConfig(
            dataset=SyntheticCaptionsConfig(num_train=40, num_validation=8, num_test=8, clip_sec=1.5),
            tokenizer=TokenizerConfig(vocab_size=320, max_length=12),
            prompt=PromptConfig(question=("what is this?", "describe it"), max_length=10),
            source_sec=1.5,
        ),
        objective=LanguageModelingConfig(
            model=TwoHeadsConfig(
                frontend=WhisperSpec(hop_samples=640, num_mels=16, clip=ClipSpec(clip_sec=1.3, pad="zero")),
                audio=WhisperEncoderConfig(
                    num_mels=16, max_positions=16, width=16, num_layers=1, num_heads=2, mlp_dim=16
                ),
                connector=LinearConnectorConfig(pool_size=2),
                language_model=Gpt2Config(
                    vocab_size=320, width=16, num_layers=1, num_heads=2, mlp_dim=16, max_positions=40
                ),
                prefix="bidirectional",
                padding="masked",
            ),
            loss_on="all",
            label_smoothing=0.1,
            augment=WaveformAugmentConfig(gain_db=3.0, roll=True),
        ),
        optimizer=AdamWConfig(warmup_steps=2),
        training=TrainingConfig(
            num_steps=4, batch_size=16, num_microbatches=2, ema_decay=0.9, save_every=2, keep_checkpoints=3
        ),
    )
