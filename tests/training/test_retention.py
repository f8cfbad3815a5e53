"""Which checkpoints stay, by the rule alone and in a folder."""

import jax.numpy as jnp
import pytest

from alm_jax.training.checkpoint_writer import CheckpointWriter
from alm_jax.training.retention import steps_that_stay
from alm_jax.training.state import TrainState

HOUR = 3600.0
WRITTEN = {10: 0.0, 20: 0.4 * HOUR, 30: 1.0 * HOUR, 40: 1.9 * HOUR, 50: 2.0 * HOUR}
LOSSES = {10: 3.0, 20: 1.0, 30: 2.0, 40: 1.0, 99: 0.0}


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, set()),
        ({"every_steps": 20}, {20, 40}),
        ({"every_hours": 1.0}, {10, 30, 50}),
        ({"best": 1}, {20}),
        ({"best": 3}, {20, 30, 40}),
        ({"best": 9}, {10, 20, 30, 40}),
        ({"every_steps": 50, "best": 1}, {20, 50}),
    ],
)
def test_what_stays(options, steps):
    assert steps_that_stay(WRITTEN, LOSSES, **options) == steps


def test_a_writer_leaves_what_stays(tmp_path):
    def state(step):
        return TrainState(
            step=jnp.int32(step),
            params={"w": jnp.ones(4)},
            batch_stats={},
            opt_state=(),
            ema_params=None,
            key=jnp.zeros(2, jnp.uint32),
            num_skipped=jnp.int32(0),
        )

    writer = CheckpointWriter(
        tmp_path / "checkpoints", keep=1, also=lambda steps: {step for step in steps if step % 2 == 0}
    )
    for step in (1, 2, 3, 5):
        writer.save(state(step), wait=True)
    writer.close()
    assert writer.steps() == [2, 5]
