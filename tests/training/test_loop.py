"""The loop's order of things: a batch is on its way to the devices before the step before it is waited for."""

import functools
from pathlib import Path

import jax
import pytest
from rich.console import Console
from training_batches import make_batch

from alm_jax.objectives import build_objective
from alm_jax.training.checkpoint_writer import CheckpointWriter
from alm_jax.training.loop import Loop, TrainingConfig
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.optimizer import AdamWConfig, build_optimizer, learning_rate
from alm_jax.training.parallel import JitParallel
from alm_jax.training.progress import TrainingProgress
from alm_jax.training.state import init_state
from alm_jax.training.step import build_train_step
from alm_jax.training.wall_time import WallTime


class Told(JitParallel):
    """A model on one device that writes down what is asked of it; its steps take no time."""

    def __init__(self, *args):
        super().__init__(*args)
        self.told = []

    def send(self, batch):
        sent = super().send(batch)
        if batch:
            self.told.append(f"send {int(batch['index'][0])}")
        return sent

    def step(self, state, batch):
        assert all(isinstance(rows, jax.Array) for rows in batch.values())
        number = int(batch["index"][0])
        self.told.append(f"step {number}")
        return state, {"loss": jax.numpy.float32(number), "num_skipped": jax.numpy.int32(0)}


class Unsaved(CheckpointWriter):
    """Checkpoints that are written down and no more."""

    def __init__(self, told):
        self._told, self.folder = told, Path("nowhere")

    def save(self, state, *, wait=False):
        self._told.append("save")


class Recorded(Loop):
    """A loop that writes down for which step it waits."""

    def record(self, pending):
        self.parallel.told.append(f"wait {pending.step}")
        super().record(pending)


@pytest.fixture(scope="module")
def parallel(objective_config):
    objective, config = build_objective(objective_config), AdamWConfig(warmup_steps=1)
    abstract = jax.eval_shape(objective.init, jax.random.key(0))
    optimizer = build_optimizer(config, 10, abstract["params"])
    init = functools.partial(init_state, objective, optimizer, 0, with_ema=True)
    step = build_train_step(objective, optimizer, schedule=learning_rate(config, 10), ema_decay=0.9)
    return Told(init, step, objective, build_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.fixture(scope="module")
def state(parallel):
    return parallel.init()


def run(parallel, state, start_step: int, **options: int) -> list[str]:
    """What a run asks for, in order."""
    parallel.told = told = []

    def batches():
        for number in range(start_step + 1, 100):
            told.append(f"read {number}")
            batch = make_batch(8)
            batch["index"][:] = number
            yield batch

    loop = Recorded(
        TrainingConfig(batch_size=8, **options),
        workdir=Path(),
        parallel=parallel,
        checkpoints=Unsaved(told),
        writer=None,
        progress=TrainingProgress(10, pairs_per_step=8, console=Console(quiet=True)),
        evaluate=lambda state, number: {},
        figures={},
        clip_sec=1.0,
        wall_time=WallTime(),
    )
    loop.run(state, start_step, batches())
    return told


def test_a_batch_is_sent_while_the_step_before_it_computes(parallel, state):
    assert run(parallel, state, 0, num_steps=3) == [
        *("read 1", "send 1"),
        *("step 1", "read 2", "send 2"),
        *("step 2", "read 3", "send 3", "wait 1"),
        *("step 3", "wait 2", "wait 3"),
        "save",
    ]


def test_a_save_waits_for_its_step_and_a_resumed_run_reads_on(parallel, state):
    whole = run(parallel, state, 0, num_steps=4, save_every=2)
    assert whole.index("wait 2") < whole.index("save") < whole.index("step 3")
    resumed = run(parallel, state, 2, num_steps=4, save_every=2)
    assert resumed[:5] == ["read 3", "send 3", "step 3", "read 4", "send 4"]
    steps = [[said for said in told if said.startswith("step")] for told in (whole, resumed)]
    assert steps[0] == ["step 1", "step 2", *steps[1]]


def test_a_run_that_is_over_reads_nothing(parallel, state):
    assert run(parallel, state, 3, num_steps=3) == ["save"]
