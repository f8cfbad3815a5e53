"""ClapCap at its published size: MS-CLAP 2023's HTSAT, a mapper of 8 layers and GPT-2 (arXiv 2309.05767).

    alm pretrain configs/clapcap_htsat_gpt2.py --workdir runs/clapcap_htsat_gpt2
    alm compile configs/clapcap_htsat_gpt2.py --topology v5e:16x16

Only the mapper trains: the audio tower and GPT-2 are frozen, as published. The folder `ALM_MODELS_DIR` must hold
`ms_clap_2023`, which `alm import` makes from the released CLAP, and `gpt2`, the Hub's folder with its tokenizer. The
published mapper reads CLAP's joint embedding (1024), this one the audio tower's own vector (768), from which the
joint embedding is projected. The training data and the number of steps are not public; the data set here is ESC-50
with captions from templates: point `data.dataset` at AudioCaps or Clotho.

State and batch take 1.03 GiB of a chip's 16.
"""

import os

from alm_jax.encoders.audio import htsat
from alm_jax.encoders.text import gpt2
from alm_jax.models.connectors import MapperConnectorConfig
from alm_jax.models.two_heads import TwoHeadsConfig
from alm_jax.objectives.language_modeling import LanguageModelingConfig
from alm_jax.ops.frontends import ClipSpec, TorchlibrosaSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.initialise import InitFromConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, PromptConfig, TokenizerConfig
from data_pipelines.datasets.esc50 import Esc50Config


def get_config() -> ExperimentConfig:
    models = os.environ.get("ALM_MODELS_DIR", "models")
    return ExperimentConfig(
        name="clapcap_htsat_gpt2",
        data=DataConfig(
            dataset=Esc50Config(
                root=os.path.join(os.environ.get("ALM_DATA_DIR", "../shared/data"), "esc10"), subset="esc10"
            ),
            tokenizer=TokenizerConfig(path=os.path.join(models, "gpt2"), max_length=67),
            prompt=PromptConfig(max_length=1),
            train_split="fold1+fold2+fold3",
            eval_split="fold4",
        ),
        objective=LanguageModelingConfig(
            model=TwoHeadsConfig(
                frontend=TorchlibrosaSpec(
                    sample_rate_hz=44100,
                    mel_sample_rate_hz=32000,
                    hop_samples=320,
                    clip=ClipSpec(clip_sec=7.0, pad="repeat"),
                ),
                audio=htsat.TINY,
                connector=MapperConnectorConfig(),
                language_model=gpt2.SMALL,
                compute_dtype="bfloat16",
                remat="block",
            ),
        ),
        init_from=(
            InitFromConfig(source=os.path.join(models, "ms_clap_2023"), into="audio", part="audio"),
            InitFromConfig(source=os.path.join(models, "gpt2"), into="language_model"),
        ),
        optimizer=AdamWConfig(peak_lr=1e-4, warmup_steps=1000, frozen=("^audio/", "^language_model/")),
        training=TrainingConfig(num_steps=20_000, batch_size=1024, eval_every=1000, save_every=1000),
    )
