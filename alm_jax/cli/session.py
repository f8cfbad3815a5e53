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
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from alm_jax import batch as contract
from alm_jax.encoders.tower import text_limits
from alm_jax.errors import UserError
from alm_jax.evaluation.contrastive import EvaluationResult, EvaluationSet, evaluate
from alm_jax.evaluation.encoders import embed_captions, embed_recordings
from alm_jax.experiment import ExperimentConfig, to_json
from alm_jax.objectives import build_objective
from alm_jax.objectives.contrastive_losses import Negatives, contrastive_loss, init_scalars
from alm_jax.training import mesh as meshes
from alm_jax.training import sharding
from alm_jax.training.build import build_parallel
from alm_jax.training.checkpoint import Checkpoints
from alm_jax.training.lora import add_adapters
from alm_jax.training.state import TrainState
from alm_jax.training.workdir import CHECKPOINTS
from data_pipelines.pipeline import eval_batches, train_batches
from data_pipelines.prepare import Prepared, prepare
from data_pipelines.text import encode

log = logging.getLogger(__name__)


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a restarted run starts at once; JAX_COMPILATION_CACHE_DIR moves it."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
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
        self.eval_batch_size = -(-config.evaluation.batch_size // num_shards) * num_shards
        self.data = prepare_once(config)
        check_vocabulary(config, self.data)
        self.objective = add_adapters(build_objective(config.objective), config.lora)
        self.parallel = build_parallel(
            self.objective, config.optimizer, training, seed=config.seed, mesh=self.mesh
        )

    @property
    def model(self) -> Any:
        """The model's config."""
        return self.config.objective.model

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint states of the run."""
        return {
            "config": to_json(self.config),
            "data_fingerprint": self.data.fingerprint,
            "class_names": list(self.data.class_names),
        }

    def checkpoints(self, workdir: Path) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(
            workdir / CHECKPOINTS, keep=self.config.training.keep_checkpoints, manifest=self.manifest()
        )

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

    def tokenize(self, texts: Any) -> tuple[np.ndarray, np.ndarray]:
        """Captions -> ids [M L] int32 and mask [M L] bool."""
        return encode(self.data.tokenizer, list(texts), self.config.data.tokenizer.max_length)

    def evaluation_set(self, split_name: str | None = None) -> EvaluationSet:
        """A split of the data as evaluation sees it; by default the config's ``eval_split``."""
        name = split_name or self.config.data.eval_split
        split = self.data.split(name)
        return EvaluationSet(
            batches=lambda: eval_batches(self.data, name, batch_size=self.eval_batch_size),
            captions=[split.captions(index) for index in range(len(split))],
            negatives=[texts[: self.config.data.num_negatives] for texts in split.all_negatives],
            ids=list(split.ids),
            class_names=self.data.class_names,
            tokenize=self.tokenize,
        )

    def model_variables(self, state: TrainState) -> dict[str, Any]:
        """The variables of the model itself: averaged where there is an average, adapters merged."""
        variables = state.evaluation_variables
        return variables | {"params": self.objective.merge(variables["params"])}

    def evaluate(self, state: TrainState, data: EvaluationSet) -> EvaluationResult:
        """Measures the state (averaged parameters where there are any) on a split; the same on every process."""
        variables = self.model_variables(state)
        if self.config.training.parallelism == "pmap":
            variables = jax.device_put(variables, sharding.replicated(self.mesh))

        def encode_audio(batch: Any) -> np.ndarray:
            placed = self.place(
                {key: np.asarray(batch[key]) for key in (contract.AUDIO, contract.AUDIO_NUM_SAMPLES)}
            )
            return sharding.fetch(embed_recordings(self.model, variables, placed))

        def encode_text(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
            placed = self.place({"ids": ids, "mask": mask})
            return sharding.fetch(embed_captions(self.model, variables, placed["ids"], placed["mask"]))

        config = self.config.objective.loss
        scalars = {
            name: jnp.asarray(sharding.fetch(variables["params"][name])) for name in init_scalars(config)
        }

        def loss(audio_emb: Any, text_emb: Any, batch: Any, negatives: Negatives | None) -> tuple[Any, Any]:
            return contrastive_loss(config, scalars, audio_emb, text_emb, batch, negatives=negatives)[0]

        return evaluate(
            encode_audio,
            encode_text,
            loss,
            data,
            dataclasses.replace(self.config.evaluation, batch_size=self.eval_batch_size),
            loss_batch_size=self.config.training.batch_size,
        )

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch that every process holds whole, cut over the mesh where its rows divide."""
        count, index = jax.process_count(), jax.process_index()
        rows = next(iter(batch.values())).shape[0] // count
        own = {key: value[index * rows : (index + 1) * rows] for key, value in batch.items()}
        return sharding.place_batch(own, self.mesh)


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


def check_vocabulary(config: ExperimentConfig, data: Prepared) -> None:
    """Raises UserError where the text tower cannot take what the tokenizer makes."""
    vocab_size, max_length = text_limits(config.objective.model.text)
    tokenizer = data.tokenizer
    if tokenizer.get_vocab_size() > vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the text tower embeds {vocab_size}: "
            "raise objective.model.text.vocab_size or lower data.tokenizer.vocab_size"
        )
    if max_length is not None and config.data.tokenizer.max_length > max_length:
        raise UserError(
            f"captions are cut to {config.data.tokenizer.max_length} tokens, the text tower takes {max_length}: "
            "raise objective.model.text.max_positions or lower data.tokenizer.max_length"
        )
