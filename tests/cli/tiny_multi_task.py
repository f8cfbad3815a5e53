"""A run of seconds of four objectives over one trunk, with all noise on, for the tests of the command line.

Of two data sets: one has captions to learn from, of the other the sounds alone are read.
"""

from alm_jax.encoders.audio.audio_mae import AudioMaeConfig
from alm_jax.models.caption_decoder import CaptionDecoderConfig
from alm_jax.models.contrastive_captioner import ContrastiveCaptionerConfig
from alm_jax.models.patch_decoders import GlobalDecoderConfig
from alm_jax.objectives.multi_task import (
    CaptioningTerm,
    ContrastiveTerm,
    MatchingTerm,
    MultiTaskConfig,
    ReconstructionTerm,
)
from alm_jax.objectives.recordings import WaveformAugmentConfig
from alm_jax.ops.frontends import AstSpec, ClipSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, MixtureConfig, MixturePart, TokenizerConfig
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig


def sounds(seed: int) -> SyntheticCaptionsConfig:
    return SyntheticCaptionsConfig(num_train=40, num_validation=8, num_test=8, clip_sec=1.5, seed=seed)


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="tiny_multi_task",
        data=DataConfig(
            dataset=MixtureConfig(
                parts=(
                    MixturePart(name="captioned", dataset=sounds(seed=0), weight=3),
                    MixturePart(name="heard", dataset=sounds(seed=1)),
                )
            ),
            tokenizer=TokenizerConfig(vocab_size=320, max_length=16),
            source_sec=1.5,
        ),
        objective=MultiTaskConfig(
            model=ContrastiveCaptionerConfig(
                frontend=AstSpec(hop_samples=320, num_mels=16, padded_frames=64, clip=ClipSpec(clip_sec=1.3)),
                audio=AudioMaeConfig(
                    num_frames=64, num_mels=16, patch_size=4, width=16, num_layers=1, num_heads=2, mlp_dim=16
                ),
                text=CaptionDecoderConfig(
                    vocab_size=320,
                    width=16,
                    num_unimodal_layers=1,
                    num_multimodal_layers=1,
                    num_heads=2,
                    mlp_dim=16,
                    max_positions=17,
                ),
                caption_queries=4,
                embed_dim=8,
                matching_head=True,
                patch_decoder=GlobalDecoderConfig(width=16, num_layers=1, num_heads=2, mlp_dim=16),
            ),
            terms=(
                ContrastiveTerm(sources=(0,)),
                CaptioningTerm(sources=(0,)),
                MatchingTerm(sources=(0,)),
                ReconstructionTerm(),
            ),
            augment=WaveformAugmentConfig(gain_db=3.0, roll=True),
        ),
        optimizer=AdamWConfig(warmup_steps=2),
        training=TrainingConfig(
            num_steps=4, batch_size=16, num_microbatches=2, ema_decay=0.9, save_every=2, keep_checkpoints=3
        ),
    )
