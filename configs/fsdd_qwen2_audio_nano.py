"""Qwen2-Audio for a laptop: answers which digit is spoken, on the Free Spoken Digit Dataset.

    alm pretrain configs/fsdd_qwen2_audio_nano.py --workdir runs/fsdd_qwen2_audio --seed 0
    alm evaluate runs/fsdd_qwen2_audio
    alm generate runs/fsdd_qwen2_audio --audio FILE --prompt "Which digit is spoken?"

Right answers on the 200 test takes, in per cent (chance 10), seed 0: 97.5, 99.0, 98.5 and 98.5 after 300, 600, 900
and 1,200 steps; validation loss 0.081, 0.015, 0.033 and 0.031. With --training.num-steps 600 and an earlier version,
whose first step had a learning rate of zero, seeds 1 and 2 ended at 99.0 and 98.5.
"""

import os

from alm_jax.encoders.audio.whisper import WhisperEncoderConfig
from alm_jax.encoders.text.llama import Qwen2Config
from alm_jax.models.connectors import LinearConnectorConfig
from alm_jax.models.two_heads import TwoHeadsConfig
from alm_jax.objectives.language_modeling import LanguageModelingConfig
from alm_jax.objectives.recordings import WaveformAugmentConfig
from alm_jax.ops.frontends import ClipSpec, WhisperSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, PromptConfig, TokenizerConfig
from data_pipelines.datasets.fsdd import FsddConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="fsdd_qwen2_audio_nano",
        data=DataConfig(
            dataset=FsddConfig(root=os.path.join(os.environ.get("ALM_DATA_DIR", "../shared/data"), "fsdd")),
            tokenizer=TokenizerConfig(max_length=3),
            prompt=PromptConfig(template="chatml", question="Which digit is spoken?", max_length=32),
        ),
        objective=LanguageModelingConfig(
            model=TwoHeadsConfig(
                frontend=WhisperSpec(
                    sample_rate_hz=8000,
                    n_fft=256,
                    hop_samples=80,
                    num_mels=32,
                    fmax_hz=4000.0,
                    clip=ClipSpec(clip_sec=1.0, pad="zero"),
                ),
                # 25 vectors a second, as published; silence after a word makes none.
                audio=WhisperEncoderConfig(
                    num_mels=32,
                    max_positions=50,
                    width=96,
                    num_layers=2,
                    num_heads=4,
                    mlp_dim=384,
                    pool_size=2,
                ),
                connector=LinearConnectorConfig(),
                language_model=Qwen2Config(
                    vocab_size=400,
                    width=96,
                    num_layers=2,
                    num_heads=4,
                    num_kv_heads=2,
                    mlp_dim=192,
                    max_positions=128,
                    tied_head=True,
                    kernel_init="fan_in",
                ),
                padding="masked",
            ),
            augment=WaveformAugmentConfig(gain_db=6.0),
        ),
        optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=100),
        training=TrainingConfig(
            num_steps=1200, batch_size=32, ema_decay=0.99, eval_every=300, save_every=600
        ),
    )
