"""SpeechGPT-7B, its second stage: LLaMA-7B over words and HuBERT's units (arXiv 2305.11000).

    alm pretrain configs/speech_gpt_7b.py --workdir runs/speech_gpt_7b
    alm compile configs/speech_gpt_7b.py --topology v5e:16x16

Every parameter of the language model trains, on whole sequences of 512 tokens, in both directions between units and
text, with learning rate 2e-5 and a cosine with 3 % of warm-up. The paper's batch is 576 examples (8 cards, 6 each,
accumulated 12 times); here it is 512, which 256 chips divide. The vocabulary gets 1,000 units of multilingual
HuBERT-base (repetitions are left out), two tags, and the template's two tokens. The folder `ALM_MODELS_DIR` must hold
`mhubert-base`, which `alm import` makes from the released encoder, and `llama-7b`, the Hub's folder with a
tokenizer.json that pads and has `<eoh>` and `<eoa>` added; the rows of units and tags are initialised at random. The
data set here is ESC-50, which has no speech: point `data.dataset` at pairs of speech and text.

State and batch take 1.78 GiB of a chip's 16.
"""

import dataclasses
import os

from alm_jax.encoders.audio import wav2vec2
from alm_jax.encoders.text import llama
from alm_jax.models.audio_units import ClusterUnitsConfig
from alm_jax.models.unit_language_model import UnitLanguageModelConfig
from alm_jax.objectives.unit_language_modeling import UnitLanguageModelingConfig, UnitTasksConfig
from alm_jax.ops.frontends import ClipSpec, WaveformSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.initialise import InitFromConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.mesh import MeshConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, PromptConfig, TokenizerConfig
from data_pipelines.datasets.esc50 import Esc50Config


def get_config() -> ExperimentConfig:
    models = os.environ.get("ALM_MODELS_DIR", "models")
    return ExperimentConfig(
        name="speech_gpt_7b",
        data=DataConfig(
            dataset=Esc50Config(
                root=os.path.join(os.environ.get("ALM_DATA_DIR", "../shared/data"), "esc10"), subset="esc10"
            ),
            tokenizer=TokenizerConfig(path=os.path.join(models, "llama-7b"), max_length=96),
            prompt=PromptConfig(
                template="speechgpt", question="Please transcribe the speech.", max_length=48
            ),
            train_split="fold1+fold2+fold3",
            eval_split="fold4",
        ),
        objective=UnitLanguageModelingConfig(
            model=UnitLanguageModelConfig(
                frontend=WaveformSpec(clip=ClipSpec(clip_sec=10.0, pad="zero")),
                units=ClusterUnitsConfig(num_units=1000, frames=wav2vec2.VARIANTS["hubert_base"], layer=11),
                language_model=dataclasses.replace(llama.LLAMA_7B, vocab_size=32000 + 2 + 1000 + 2),
                compute_dtype="bfloat16",
                remat="block",
            ),
            tasks=UnitTasksConfig(speech=0.0, units_to_text=1.0, text_to_units=1.0),
            row_tokens=512,
        ),
        init_from=(
            InitFromConfig(source=os.path.join(models, "mhubert-base"), into="units/encoder"),
            InitFromConfig(source=os.path.join(models, "llama-7b"), into="language_model", is_extended=True),
        ),
        optimizer=AdamWConfig(peak_lr=2e-5, warmup_steps=900, b2=0.999, weight_decay=0.0),
        training=TrainingConfig(
            num_steps=30_000,
            batch_size=512,
            mesh=MeshConfig(data=8, fsdp=32),
            eval_every=1000,
            save_every=1000,
        ),
    )
