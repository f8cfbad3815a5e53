"""How a step runs on many devices: global-view ``jit`` over a mesh, or data-parallel ``pmap``.

Both run the same ``train_step``. ``jit`` with NamedSharding supports every mesh. ``pmap`` keeps a whole copy of the
state on each local device; it exists for comparison and for code built on it. It accepts objectives whose rows are
independent, and contrastive learning, which uses the rows of all devices through the mapped axis (`Objective.pmap`);
others raise an error.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from alm_jax.errors import UserError
from alm_jax.objectives import Objective
from alm_jax.training import sharding
from alm_jax.training.mesh import AnyMesh
from alm_jax.training.state import TrainState
from alm_jax.training.step import TrainStep
from alm_jax.types import Metrics, PyTree

InitState = Callable[[], TrainState]
Batch = Mapping[str, np.ndarray | jax.Array]
PMAP_AXIS = "data"


@runtime_checkable
class Parallel(Protocol):
    """A way to place and run training steps. Only the implementation knows the state's layout."""

    def init(self) -> TrainState:
        """Makes the state before the first step, where it is to live."""

    def abstract(self) -> TrainState:
        """Returns shapes, dtypes and shardings of ``unplaced``'s result, for restoring."""

    def place(self, state: TrainState) -> TrainState:
        """Converts a restored state (as ``abstract`` describes it) to the layout that ``step`` takes."""

    def unplaced(self, state: TrainState) -> TrainState:
        """Converts the state to one tree of global arrays, for saving and evaluation."""

    def send(self, batch: dict[str, np.ndarray]) -> Batch:
        """Starts to copy this process's rows of the global batch to its devices, and does not wait for the copy."""

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Runs one training step on a batch that was sent, or on this process's rows of one."""


def state_shardings(objective: Objective, abstract: TrainState, mesh: AnyMesh) -> TrainState:
    """Returns the NamedSharding of every array of the state.

    Moments and averages have the sharding of their parameters and are also cut over ``data``.
    """
    params = sharding.parameter_shardings(objective.axes(), abstract.params, mesh)
    trained = objective.trained(abstract.params)
    cut = sharding.spread_shardings(objective.trained(params), trained, mesh)
    whole = sharding.replicated(mesh)
    return TrainState(
        step=whole,
        params=params,
        batch_stats=jax.tree.map(lambda _: whole, abstract.batch_stats),
        opt_state=_like_parameters(abstract.opt_state, trained, cut, whole),
        ema_params=None if abstract.ema_params is None else cut,
        key=whole,
        num_skipped=whole,
    )


def _like_parameters(opt_state: PyTree, params: PyTree, shardings: PyTree, otherwise: Any) -> PyTree:
    """For each array of an optimizer's state the sharding of its parameter, found by the end of its path.

    An array of another shape than the parameter, such as a row of a factored moment, gets ``otherwise``.
    """
    leaves = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(shardings), strict=True)
    placed = {path: (leaf.shape, place) for (path, leaf), place in leaves}

    def place(path: tuple[Any, ...], leaf: Any) -> Any:
        ends = (placed.get(path[start:]) for start in range(len(path)))
        return next((place for shape, place in filter(None, ends) if shape == leaf.shape), otherwise)

    return jax.tree.map_with_path(place, opt_state)


class JitParallel:
    """Runs steps with ``jit`` over a mesh of data x fsdp x tensor; every process of the run calls it."""

    def __init__(
        self,
        init_state: InitState,
        train_step: TrainStep,
        objective: Objective,
        mesh: AnyMesh,
        options: Mapping[str, str | bool] | None = None,
    ):
        """``options`` are the compiler's options for the step, default none.

        Raises UserError where the mesh requires cut parameters and cannot cut them.
        """
        abstract = jax.eval_shape(init_state)
        self.objective = objective
        # `init` and `step` need a mesh of devices; `abstract` does not.
        self.mesh: Any = mesh
        self.shardings = state_shardings(objective, abstract, mesh)
        sharding.check_sharded(objective.axes(), abstract.params, self.shardings.params, mesh)
        self._abstract = abstract
        self._init = jax.jit(init_state, out_shardings=self.shardings)

        update = sharding.update_layout(
            objective.trained(self.shardings.params), objective.trained(abstract.params), mesh
        )

        def laid_out_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
            with sharding.layout(mesh):
                return train_step(state, batch, update)

        self._step = jax.jit(
            laid_out_step,
            in_shardings=(self.shardings, sharding.batch_sharding(mesh)),
            out_shardings=(self.shardings, sharding.replicated(mesh)),
            donate_argnums=0,
            compiler_options=dict(options) if options else None,
        )

    def init(self) -> TrainState:
        with jax.set_mesh(self.mesh):
            return self._init()

    def abstract(self) -> TrainState:
        return jax.tree.map(
            lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
            self._abstract,
            self.shardings,
        )

    def place(self, state: TrainState) -> TrainState:
        return state

    def unplaced(self, state: TrainState) -> TrainState:
        return state

    def send(self, batch: dict[str, np.ndarray]) -> Batch:
        return sharding.place_batch(batch, self.mesh)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        host = {key: rows for key, rows in batch.items() if isinstance(rows, np.ndarray)}
        with jax.set_mesh(self.mesh):
            return self._step(state, {**batch, **self.send(host)})

    def trace_step(self, batch: dict[str, jax.ShapeDtypeStruct]) -> Any:
        """Returns the step as ``jax.stages.Traced``, to count its cost or to compile it for devices that do not exist
        here.

        ``batch`` has the shapes of the global batch.
        """
        with jax.set_mesh(self.mesh):
            return self._step.trace(self.abstract(), batch)


class PmapParallel:
    """Runs steps with ``pmap``: each local device holds the whole state and its own rows of the batch."""

    def __init__(self, init_state: InitState, train_step: TrainStep):
        """``train_step`` must have been built with ``axis_name=PMAP_AXIS``."""
        if jax.process_count() > 1:
            raise UserError(
                "training.parallelism is 'pmap', which runs in one process; use 'jit' on several hosts"
            )
        self._init = jax.jit(init_state)
        self._abstract = jax.eval_shape(init_state)
        self._step = jax.pmap(train_step, axis_name=PMAP_AXIS, donate_argnums=0)

    def init(self) -> TrainState:
        return self.place(self._init())

    def abstract(self) -> TrainState:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), self._abstract
        )

    def place(self, state: TrainState) -> TrainState:
        copies = jax.local_device_count()

        def repeat(leaf: Any) -> np.ndarray:
            leaf = np.asarray(leaf)
            return np.broadcast_to(leaf[None], (copies, *leaf.shape))

        return jax.tree.map(repeat, state)

    def unplaced(self, state: TrainState) -> TrainState:
        return jax.tree.map(lambda leaf: leaf[0], state)

    def send(self, batch: dict[str, np.ndarray]) -> Batch:
        return batch  # pmap copies what it is called with

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        devices = jax.local_device_count()
        rows: PyTree = {key: x.reshape(devices, -1, *x.shape[1:]) for key, x in batch.items()}
        state, metrics = self._step(state, rows)
        return state, {name: value[0] for name, value in metrics.items()}
