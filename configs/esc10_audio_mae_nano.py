"""AudioMAE for a laptop: ESC-10, folds 1-3 without labels; a linear probe on fold 4.

    pip install 'alm_jax[data,eval]'
    alm pretrain configs/esc10_audio_mae_nano.py --workdir runs/esc10_audio_mae --seed 0
    alm evaluate runs/esc10_audio_mae

The probe on the 80 clips of fold 4, in per cent (chance 10), seed 0: 67.5 with the untrained encoder, and 77.5, 78.8,
80.0 and 80.0 after 300, 600, 900 and 1,200 steps. Seeds 1 and 2 ended at 78.8 and 86.2 with an earlier version, whose
first step had a learning rate of zero. One clip is 1.25 points, and neighbouring evaluations of a run differ by up to
six. Width and learning rate were chosen on fold 4.
"""

import os

from alm_jax.encoders.audio.audio_mae import AudioMaeConfig
from alm_jax.models.masked_autoencoder import MaskedAutoencoderConfig
from alm_jax.models.patch_decoders import LocalDecoderConfig
from alm_jax.objectives.masked_spectrogram import MaskedSpectrogramConfig
from alm_jax.objectives.recordings import WaveformAugmentConfig
from alm_jax.ops.frontends import AstSpec, ClipSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.esc50 import Esc50Config


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="esc10_audio_mae_nano",
        data=DataConfig(
            dataset=Esc50Config(
                root=os.path.join(os.environ.get("ALM_DATA_DIR", "../shared/data"), "esc10"), subset="esc10"
            ),
            # The batches have captions, which are not used.
            tokenizer=TokenizerConfig(vocab_size=300, max_length=8),
            train_split="fold1+fold2+fold3",
            eval_split="fold4",
        ),
        objective=MaskedSpectrogramConfig(
            model=MaskedAutoencoderConfig(
                # 20 ms frames and 64 bands: 16 x 4 patches of 320 ms, of which the encoder sees 12.
                frontend=AstSpec(
                    n_fft=1024,
                    window_samples=640,
                    hop_samples=320,
                    num_mels=64,
                    padded_frames=256,
                    mean=-6.6268077,
                    std=5.358466,
                    clip=ClipSpec(clip_sec=5.0),
                ),
                encoder=AudioMaeConfig(
                    num_frames=256, num_mels=64, width=64, num_layers=4, num_heads=4, mlp_dim=256
                ),
                decoder=LocalDecoderConfig(width=64, num_layers=2, num_heads=4, mlp_dim=256, bias_dim=64),
            ),
            augment=WaveformAugmentConfig(gain_db=6.0, roll=True),
        ),
        optimizer=AdamWConfig(peak_lr=2e-3, warmup_steps=100, weight_decay=0.05, b2=0.95),
        training=TrainingConfig(num_steps=1200, batch_size=32, eval_every=300, save_every=600),
    )
