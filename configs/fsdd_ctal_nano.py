"""CTAL for a laptop: spoken digits and their words, masked in turn; a linear probe of the audio encoder.

    pip install 'alm_jax[data,eval]'
    alm pretrain configs/fsdd_ctal_nano.py --workdir runs/fsdd_ctal --seed 0
    alm evaluate runs/fsdd_ctal

Seed 0, on the 200 recordings of the test split, of the four speakers of the training split:

    after                                              350     700 steps
    validation loss                                  2.310   2.261
    L1 of hidden frames, given the words            0.0567  0.0466
    L1 with all words hidden                        0.0568  0.0475
    linear probe of the digit, per cent               89.5    92.5

The probe of the untrained encoders has 91.5 per cent; chance is 10. The text is one word, and the text encoder has no
access to the audio, so predicting the hidden word is a guess among ten: ln 10 = 2.303 of the loss.
"""

import os

from alm_jax.encoders.text.bert import BertConfig
from alm_jax.models.ctal import CtalModelConfig
from alm_jax.objectives.ctal import CtalConfig, MaskedFramesConfig
from alm_jax.objectives.masked_text import MaskedTextConfig
from alm_jax.objectives.recordings import WaveformAugmentConfig
from alm_jax.ops.frontends import ClipSpec, CtalSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.fsdd import FsddConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="fsdd_ctal_nano",
        data=DataConfig(
            dataset=FsddConfig(root=os.path.join(os.environ.get("ALM_DATA_DIR", "../shared/data"), "fsdd")),
            # A word of the ten is one token: "[CLS] seven [SEP]".
            tokenizer=TokenizerConfig(kind="wordpiece", max_length=4),
        ),
        objective=CtalConfig(
            model=CtalModelConfig(
                # 20 ms from frame to frame: half a recording in 20 frames.
                frontend=CtalSpec(
                    sample_rate_hz=8000,
                    n_fft=512,
                    window_samples=400,
                    hop_samples=160,
                    num_mels=40,
                    fmax_hz=4000.0,
                    clip=ClipSpec(clip_sec=0.8, pad="zero"),
                ),
                text=BertConfig(
                    vocab_size=100,
                    width=64,
                    num_layers=2,
                    num_heads=4,
                    mlp_dim=256,
                    max_positions=8,
                    kernel_init="fan_in",
                ),
                num_audio_layers=3,
                max_frames=64,
            ),
            # The only word of a text is hidden in 40 % of the rows, so that the audio encoder learns to do without it.
            masked_text=MaskedTextConfig(proportion=0.5),
            # 160 to 320 ms: the published spans, of 250 to 625 ms, are longer than many of these recordings.
            masked_frames=MaskedFramesConfig(proportion=0.6, min_span=8, max_span=16),
            augment=WaveformAugmentConfig(gain_db=6.0),
        ),
        optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=100, weight_decay=0.05),
        training=TrainingConfig(num_steps=700, batch_size=64, eval_every=350, save_every=350),
    )
