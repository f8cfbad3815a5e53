"""Types of data sets, models, front-ends, losses and objectives are chosen on the command line."""

from pathlib import Path

import pytest

from alm_jax.cli.arguments import override
from alm_jax.encoders.audio.whisper import WhisperEncoderConfig
from alm_jax.errors import UserError
from alm_jax.objectives.contrastive_losses import (
    HardNegativesConfig,
    RetrievalConfig,
    SigmoidConfig,
    TauTemperature,
)
from alm_jax.objectives.masked_spectrogram import MaskedSpectrogramConfig
from alm_jax.objectives.patch_masks import StructuredMaskConfig
from alm_jax.ops.frontends import WhisperSpec
from alm_jax.run.experiment import load_config

CONFIG = load_config(Path(__file__).parent / "tiny_config.py")


def changed(*args):
    return override(CONFIG, args, prog="alm pretrain tiny_config.py")


def test_a_loss_is_chosen_and_its_fields_are_options():
    config = changed("--objective.loss:hard-negatives-config", "--objective.loss.group", "label")
    assert config.objective.loss == HardNegativesConfig(group="label")
    assert config.objective.model == CONFIG.objective.model
    assert changed("--objective.loss:SigmoidConfig").objective.loss == SigmoidConfig()
    assert changed("--objective.loss:sigmoid").objective.loss == SigmoidConfig()
    one_way = changed("--objective.loss:retrieval", "--objective.loss.direction", "audio_to_text")
    assert one_way.objective.loss == RetrievalConfig(direction="audio_to_text")


def test_what_types_have_in_common_is_kept():
    config = changed(
        "--objective.loss:multi-positive",
        "--objective.loss.temperature:tau-temperature",
        "--objective.loss.computation.tile",
        "64",
    )
    loss = override(config, ["--objective.loss:hard-negatives"], prog="alm").objective.loss
    assert loss.temperature == TauTemperature()
    assert loss.computation.tile == 64


def test_a_data_set_and_its_folder():
    config = changed("--data.dataset:esc50-config", "--data.dataset.root", "sounds", "--seed", "3")
    assert type(config.data.dataset).__name__ == "Esc50Config"
    assert str(config.data.dataset.root) == "sounds"
    assert config.seed == 3
    assert config.data.tokenizer == CONFIG.data.tokenizer


def test_parts_that_must_fit_are_changed_together():
    config = changed("--objective.model.audio:whisper-encoder", "--objective.model.frontend:whisper")
    assert isinstance(config.objective.model.audio, WhisperEncoderConfig)
    assert isinstance(config.objective.model.frontend, WhisperSpec)
    assert config.objective.model.frontend.clip == CONFIG.objective.model.frontend.clip


def test_an_objective_and_what_it_shares_with_the_one_before():
    config = changed(
        "--objective:masked-spectrogram",
        "--objective.mask:structured-mask-config",
        *("--objective.model.encoder.num-mels", "16", "--objective.model.encoder.num-frames", "64"),
        *("--objective.model.frontend.clip.clip-sec", "1.01", "--objective.model.encoder.patch-size", "8"),
    )
    assert isinstance(config.objective, MaskedSpectrogramConfig)
    assert config.objective.mask == StructuredMaskConfig()
    assert config.objective.model.frontend.n_fft == CONFIG.objective.model.frontend.n_fft
    assert config.objective.model.frontend.clip.clip_sec == 1.01
    assert config.objective.model.encoder.num_mels == 16
    assert config.objective.augment == CONFIG.objective.augment


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--objective.loss:nothing"], "expected one of info-nce-config, multi-positive-config"),
        (["--objective.los:sigmoid"], "there is no field 'los' there"),
        (["--training:fast"], "training has no choice of types"),
        (["--data.dataset:esc50-config"], "has no value for root: give --data.dataset.root VALUE"),
        (["--objective.model.audio:cnn14"], "16 mel bins are halved 5 times"),
    ],
)
def test_what_cannot_be_chosen_says_what_can(args, message):
    with pytest.raises(UserError, match=message):
        changed(*args)


def test_help_shows_the_fields_of_what_was_chosen(capsys):
    with pytest.raises(SystemExit):
        changed("--objective.loss:sigmoid-config", "--help")
    shown = capsys.readouterr().out
    assert "--objective.loss:TYPE with one of info-nce-config" in shown
    assert "Rows of a group match each other" in " ".join(shown.split())
    assert "--data.dataset:TYPE" in shown
