"""One run, wired: what ``pretrain``, ``evaluate`` and ``export`` build alike from a config."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from alm_jax.errors import UserError
from alm_jax.models.capabilities import TextTokens
from alm_jax.objectives import build_objective
from alm_jax.objectives.masked_text import MASK_TOKENS
from alm_jax.objectives.objective import DataFacts, TrainingData
from alm_jax.run.config_json import to_json
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.run.load import find_step, load_run, open_run, split_step
from alm_jax.run.workdir import CHECKPOINTS, validation_losses
from alm_jax.training import mesh as meshes
from alm_jax.training import sharding
from alm_jax.training.build import build_parallel, check_parallelism
from alm_jax.training.checkpoint_writer import CheckpointWriter
from alm_jax.training.lora import add_adapters
from alm_jax.training.retention import steps_that_stay
from alm_jax.training.state import TrainState
from data_pipelines.pipeline import eval_batches, train_batches
from data_pipelines.prepare import Prepared, prepare
from data_pipelines.prompts import answer_end_id
from data_pipelines.text import framing_tokens, pad_id

log = logging.getLogger(__name__)


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a restarted run starts at once; JAX_COMPILATION_CACHE_DIR moves it."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        try:
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:
            log.warning("there is no home folder, so compiled programs are not kept; set XDG_CACHE_HOME")
            return
        jax.config.update("jax_compilation_cache_dir", str(home / "alm_jax" / "xla"))


class Session:
    """The parts of a run. Raises UserError before anything is compiled where they do not fit together."""

    def __init__(self, config: ExperimentConfig):
        training = config.training
        self.config = config
        self.mesh = meshes.build_mesh(training.mesh)
        num_shards = (
            jax.local_device_count()
            if training.parallelism == "pmap"
            else sharding.num_batch_shards(self.mesh)
        )
        meshes.check_batch_size(training.batch_size, training.num_microbatches, num_shards)
        self.eval_batch_size = -(-config.eval_batch_size // num_shards) * num_shards
        self.objective = add_adapters(build_objective(config.objective), config.lora)
        check_parallelism(self.objective, training)
        self.parallel = build_parallel(
            self.objective, config.optimizer, training, seed=config.seed, mesh=self.mesh
        )
        self.data = prepare_once(config)  # last: it may take hours

    @property
    def model(self) -> Any:
        """The model's config."""
        return self.config.objective.model

    @functools.cached_property
    def tokens(self) -> TextTokens:
        """The ids that frame a text: after a prompt an answer begins with none, and ends as its template says."""
        tokenizer, prompts = self.data.tokenizer, self.config.data.prompts
        if prompts:
            end_id = answer_end_id(tokenizer, prompts[0].template)
            return TextTokens((), (end_id,), pad_id(tokenizer))
        return tokens_of(tokenizer)

    @functools.cached_property
    def facts(self) -> DataFacts:
        """What the objective checks of the data set and the run."""
        return facts_of(self.config, self.data, eval_batch_size=self.eval_batch_size)

    def training_data(self) -> TrainingData:
        """The training split as `Objective.fit` reads it."""
        name, seed = self.config.data.train_split, self.config.seed
        return TrainingData(
            batches=train_batches(self.data, name, batch_size=self.eval_batch_size, seed=seed),
            num_clips=len(self.data.split(name)),
            place=self.place,
            fetch=sharding.fetch,
            seed=seed,
        )

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint states of the run."""
        return {
            "config": to_json(self.config),
            "data_fingerprint": self.data.fingerprint,
            "class_names": list(self.data.class_names),
        }

    def checkpoints(self, workdir: Path) -> CheckpointWriter:
        """The run's checkpoints, for the process that holds its lock."""
        training, folder = self.config.training, workdir / CHECKPOINTS

        def also(steps: list[int]) -> set[int]:
            return steps_that_stay(
                {step: (folder / str(step)).stat().st_mtime for step in steps},
                validation_losses(workdir) if training.keep_best else {},
                every_steps=training.keep_every,
                every_hours=training.keep_hours,
                best=training.keep_best,
            )

        return CheckpointWriter(folder, keep=training.keep_checkpoints, also=also, manifest=self.manifest())

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of every global batch after ``start_step``."""
        return train_batches(
            self.data,
            self.config.data.train_split,
            batch_size=self.config.training.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def evaluation_batches(self, split: str) -> Iterator[dict[str, np.ndarray]]:
        """A split's recordings in order, whole on every process; the last batch is padded."""
        return eval_batches(self.data, split, batch_size=self.eval_batch_size)

    def model_variables(self, state: TrainState) -> dict[str, Any]:
        """The variables of the model itself: averaged where there is an average, adapters merged."""
        variables = state.evaluation_variables
        return variables | {"params": self.objective.merge(variables["params"])}

    def replicate(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Variables where evaluation wants them: as they are, but after ``pmap`` on all devices."""
        if self.config.training.parallelism == "pmap":
            return dict(jax.device_put(variables, sharding.replicated(self.mesh)))
        return variables

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch that every process holds whole, cut over the mesh where its rows divide."""
        count, index = jax.process_count(), jax.process_index()
        rows = next(iter(batch.values())).shape[0] // count
        own = {key: value[index * rows : (index + 1) * rows] for key, value in batch.items()}
        return sharding.place_batch(own, self.mesh)


def tokens_of(tokenizer: Any) -> TextTokens:
    """The ids that frame a text of a tokenizer of `data_pipelines.text`."""
    begin, end = framing_tokens(tokenizer)
    return TextTokens(tuple(begin), tuple(end), pad_id(tokenizer))


def facts_of(config: ExperimentConfig, data: Prepared, *, eval_batch_size: int) -> DataFacts:
    """What an objective checks of the data set and the run that it is trained with."""
    training, tokenizer = config.training, data.tokenizer
    mask_ids = {token: tokenizer.token_to_id(token) for token in MASK_TOKENS}
    return DataFacts(
        tokens=tokens_of(tokenizer),
        vocab_size=tokenizer.get_vocab_size(),
        max_length=config.data.tokenizer.max_length,
        mask_ids={token: found for token, found in mask_ids.items() if found is not None},
        prompt_length=config.data.prompt_length if config.data.prompts else None,
        num_sources=data.num_sources,
        batch_size=training.batch_size,
        eval_batch_size=eval_batch_size,
        num_microbatches=training.num_microbatches,
        init_paths=tuple(source.into for source in config.init_from),
    )


def restore_run(source: str | Path) -> tuple[Session, TrainState]:
    """The session of a run and its state at ``RUN@STEP``, or its newest good one, on the devices that are here.

    Raises UserError where there is no run, DataError where no checkpoint can be read.
    """
    config = load_run(source)
    # Where a run trained says nothing about where it is measured.
    here = dataclasses.replace(
        config.training, mesh=type(config.training.mesh)(), parallelism="jit", num_microbatches=1
    )
    session = Session(dataclasses.replace(config, training=here))
    folder, step = split_step(source)
    checkpoints, abstract = open_run(folder), session.parallel.abstract()
    if step is not None:
        return session, checkpoints.restore(find_step(folder, checkpoints, step), abstract)
    state = checkpoints.restore_newest(abstract)
    assert state is not None, "load_run has found a checkpoint"
    return session, state


def prepare_once(config: ExperimentConfig) -> Prepared:
    """The data set, built by the first process while the others wait for it."""
    build = functools.partial(prepare, config.data, config.objective.model.frontend.sample_rate_hz)
    if jax.process_count() == 1:
        return build()
    if jax.process_index() == 0:
        build()
    multihost_utils.sync_global_devices("data prepared")
    return build()


def check_processes_agree(config: ExperimentConfig, data: Prepared) -> None:
    """Raises UserError unless every process runs the same config on the same data."""
    if jax.process_count() == 1:
        return
    text = json.dumps(to_json(config), sort_keys=True) + data.fingerprint
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
    try:
        multihost_utils.assert_equal(digest, "config or data differ")
    except AssertionError as error:
        raise UserError(
            "the processes of this run do not have the same config and data; start all of them with the same "
            "command, on the same prepared data set"
        ) from error
