"""SpeechGPT for a laptop: spoken digits as audio units in a vocabulary with words, and one small Llama for both.

    pip install 'alm_jax[data,eval]'
    alm pretrain configs/fsdd_unit_lm_nano.py --workdir runs/fsdd_unit_lm --seed 0
    alm evaluate runs/fsdd_unit_lm

k-means with 100 units is fitted to the cepstra of the training takes when the run begins; a take has 10.7 units on
average. On the 200 test takes, seed 0, after 100, 200, 300 and 400 steps: loss of all tasks 1.971, 1.601, 1.533 and
1.529 nats a token; bits a unit 3.22, 2.64, 2.57 and 2.57 (6.64 if all units were equally likely); digits written
correctly from units, in per cent (chance 10), 89.0, 93.5, 95.5 and 95.5.
"""

import os

from alm_jax.encoders.text.llama import LlamaConfig
from alm_jax.models.audio_units import ClusterUnitsConfig
from alm_jax.models.unit_language_model import UnitLanguageModelConfig
from alm_jax.objectives.recordings import WaveformAugmentConfig
from alm_jax.objectives.unit_language_modeling import UnitLanguageModelingConfig
from alm_jax.ops.frontends import ClipSpec, TorchlibrosaSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.fsdd import FsddConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="fsdd_unit_lm_nano",
        data=DataConfig(
            dataset=FsddConfig(root=os.path.join(os.environ.get("ALM_DATA_DIR", "../shared/data"), "fsdd")),
            tokenizer=TokenizerConfig(max_length=8),
        ),
        objective=UnitLanguageModelingConfig(
            model=UnitLanguageModelConfig(
                # 20 ms frames of 32 ms: 51 a clip, of which half a second is speech.
                frontend=TorchlibrosaSpec(
                    sample_rate_hz=8000,
                    n_fft=256,
                    hop_samples=160,
                    num_mels=40,
                    fmin_hz=50.0,
                    fmax_hz=4000.0,
                    clip=ClipSpec(clip_sec=1.0, train_crop="centre", pad="zero"),
                ),
                units=ClusterUnitsConfig(num_units=100),
                language_model=LlamaConfig(
                    # Words, units and tags.
                    vocab_size=300 + 100 + 2,
                    width=128,
                    num_layers=3,
                    num_heads=4,
                    num_kv_heads=4,
                    mlp_dim=256,
                    max_positions=128,
                    tied_head=True,
                    kernel_init="fan_in",
                ),
            ),
            # Eight clips together: ten tokens of each for text and tags, and 112 units, of which they have 86.
            row_tokens=192,
            examples_per_row=8,
            augment=WaveformAugmentConfig(gain_db=6.0),
        ),
        optimizer=AdamWConfig(peak_lr=2e-3, warmup_steps=50, weight_decay=0.1, b2=0.95),
        training=TrainingConfig(num_steps=400, batch_size=64, eval_every=100, save_every=200),
    )
