"""Under pmap the three losses that it trains are those of the whole batch, and other objectives are refused."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_language_modeling_objective import CONFIG as LANGUAGE_MODELING
from test_language_modeling_objective import make_prompted
from test_masked_spectrogram import CONFIG as MASKED_SPECTROGRAM
from training_batches import make_batch

from alm_jax.encoders.audio.cnn14 import NANO as CNN14
from alm_jax.encoders.audio.htsat import VARIANTS as HTSAT
from alm_jax.errors import UserError
from alm_jax.objectives import build_objective
from alm_jax.objectives.contrastive import ContrastiveConfig
from alm_jax.objectives.language_modeling import LanguageModelingConfig
from alm_jax.objectives.masked_spectrogram import MaskedSpectrogramConfig
from alm_jax.run.experiment import load_config
from alm_jax.training.accumulation import loss_and_gradients
from alm_jax.training.build import build_parallel, check_parallelism
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.parallel import PMAP_AXIS


def devices_as_one(objective, variables, batch, key, num_devices):
    """The loss of the whole batch and its gradients, each device's noise drawn for its rows."""
    key_prepare, key_encode = jax.random.split(key)

    def mean(params):
        parts = []
        for device in range(num_devices):
            rows = {name: jnp.split(value, num_devices)[device] for name, value in batch.items()}
            own = [jax.random.fold_in(key, device) for key in (key_prepare, key_encode)]
            inputs = objective.prepare(rows, own[0], train=True)
            outputs, _ = objective.encode(variables | {"params": params}, inputs, own[1], train=True)
            parts.append(objective.combine(params, outputs, rows, None)[0])
        return sum(part.sum for part in parts) / sum(part.weight for part in parts)

    return jax.jit(jax.value_and_grad(mean))(variables["params"])


@pytest.mark.parametrize(
    ("config", "batch"),
    [
        (MASKED_SPECTROGRAM, make_batch(8, num_padding=3)),
        (LANGUAGE_MODELING, jax.tree.map(np.asarray, make_prompted(num_padding=2))),
    ],
    ids=["masked spectrogram", "language modelling"],
)
def test_losses_of_rows_under_pmap_are_those_of_the_whole_batch(config, batch):
    """Devices hold different numbers of real rows, one of them a single one."""
    objective, key = build_objective(config), jax.random.key(1)
    variables = objective.init(jax.random.key(0))
    loss, grads = devices_as_one(objective, variables, batch, key, 2)
    step = functools.partial(loss_and_gradients, objective, axis_name=PMAP_AXIS)
    rows = {name: value.reshape(2, -1, *value.shape[1:]) for name, value in batch.items()}
    mapped = jax.pmap(step, axis_name=PMAP_AXIS, in_axes=(None, 0, None), devices=jax.devices()[:2])
    found_loss, found_grads, _, _ = jax.device_get(mapped(variables, rows, key))
    np.testing.assert_allclose(found_loss, np.full(2, loss), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-5), found_grads, grads)


UNDER_PMAP = {ContrastiveConfig, LanguageModelingConfig, MaskedSpectrogramConfig}
TINY = sorted((Path(__file__).parents[1] / "cli").glob("tiny_*.py"))


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_every_other_objective_is_refused_under_pmap(path):
    """Before anything is traced."""
    config = load_config(path)
    training = dataclasses.replace(config.training, parallelism="pmap")
    objective = build_objective(config.objective)
    check_parallelism(objective, config.training)
    if type(config.objective) in UNDER_PMAP:
        check_parallelism(objective, training)
        return
    untouched = dataclasses.replace(objective, init=lambda key: pytest.fail("traced"))
    with pytest.raises(UserError, match=r"training\.parallelism is 'pmap'.* use training\.parallelism 'jit'"):
        build_parallel(untouched, config.optimizer, training, seed=0, mesh=build_mesh(MeshConfig()))


def test_towers_whose_norms_couple_rows_are_refused_under_pmap(objective_config):
    """Norms of the features alone are given the moments of all devices' rows by the contrastive objective."""
    training = TrainingConfig(num_steps=1, batch_size=8, parallelism="pmap")

    def with_tower(config, audio):
        frontend = dataclasses.replace(config.model.frontend, num_mels=audio.num_mels)
        model = dataclasses.replace(config.model, frontend=frontend, audio=audio, padding="unmasked")
        return build_objective(dataclasses.replace(config, model=model))

    check_parallelism(with_tower(objective_config, HTSAT["nano"]), training)
    for objective in (
        with_tower(objective_config, CNN14),
        with_tower(LANGUAGE_MODELING, HTSAT["nano"]),
        with_tower(LANGUAGE_MODELING, CNN14),
    ):
        with pytest.raises(UserError, match="batch norms"):
            check_parallelism(objective, training)
