"""A run of seconds of CTAL, with every kind of noise on, for the tests of the command line."""

from alm_jax.encoders.text.bert import BertConfig
from alm_jax.models.ctal import CtalModelConfig
from alm_jax.objectives.ctal import CtalConfig, MaskedFramesConfig
from alm_jax.objectives.recordings import WaveformAugmentConfig
from alm_jax.ops.frontends import ClipSpec, CtalSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="tiny_ctal",
        data=DataConfig(
            dataset=SyntheticCaptionsConfig(num_train=40, num_validation=8, num_test=8, clip_sec=1.5),
            tokenizer=TokenizerConfig(kind="wordpiece", vocab_size=80, max_length=16),
            source_sec=1.5,
        ),
        objective=CtalConfig(
            model=CtalModelConfig(
                frontend=CtalSpec(
                    n_fft=1024, hop_samples=400, num_mels=16, clip=ClipSpec(clip_sec=1.3, pad="zero")
                ),
                text=BertConfig(
                    vocab_size=80, width=16, num_layers=1, num_heads=2, mlp_dim=16, max_positions=18
                ),
                num_audio_layers=1,
                max_frames=64,
            ),
            masked_frames=MaskedFramesConfig(proportion=0.3, min_span=3, max_span=6),
            augment=WaveformAugmentConfig(gain_db=3.0, roll=True),
        ),
        optimizer=AdamWConfig(warmup_steps=2),
        training=TrainingConfig(
            num_steps=4, batch_size=16, num_microbatches=2, ema_decay=0.9, save_every=2, keep_checkpoints=3
        ),
    )
