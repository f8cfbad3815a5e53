"""One experiment as one frozen, typed value.

``configs/*.py`` each define ``get_config() -> ExperimentConfig``; the command line overrides single fields;
the resolved value is stored in every run folder and checkpoint, and read back from there.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alm_jax.errors import AlmError, UserError
from alm_jax.evaluation.evaluate import check_names
from alm_jax.evaluation.evaluator import Evaluator
from alm_jax.objectives import ObjectiveConfig
from alm_jax.ranges import check_config
from alm_jax.run.config_json import from_json
from alm_jax.training.initialise import InitFromConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.lora import LoraConfig
from alm_jax.training.optimizer import AdamWConfig, OptimizerConfig
from alm_jax.training.profile import parse_steps
from data_pipelines.config import DataConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Data, model, loss, optimizer and schedule of one pre-training run."""

    name: str
    """Name of the run in reports and model cards."""
    seed: int = 0
    """Seed of the initial weights, the order of the data, and all noise."""
    data: DataConfig
    """Recordings, captions and tokenizer."""
    objective: ObjectiveConfig
    """The model and its loss."""
    optimizer: OptimizerConfig = AdamWConfig()
    """The optimizer and its schedule."""
    init_from: tuple[InitFromConfig, ...] = ()
    """Models whose parameters a run starts from, in this order; other parameters are initialised from the seed. Set
    in the config file: the command line changes only single fields."""
    lora: LoraConfig = LoraConfig()
    """Low-rank adapters in place of whole kernels."""
    training: TrainingConfig
    """Steps, batch, devices, and how often to save and to evaluate."""
    eval_batch_size: int = 64
    """Number of recordings, and of captions, that an evaluation encodes at a time."""
    evaluations: tuple[Evaluator, ...] = ()
    """Evaluators that run during and after training, each on its own data set and split. Empty: all in
    `alm_jax.evaluation.evaluators` that the model and the run's data allow."""

    def __post_init__(self) -> None:
        check_names(self.evaluations)
        if self.eval_batch_size < 1:
            raise UserError(f"eval_batch_size is {self.eval_batch_size}; expected 1 or more")


def load_config(path: str | Path) -> ExperimentConfig:
    """A config file's experiment, checked and resolved. Raises UserError where there is none."""
    config = run_config(path)
    check_experiment(config)
    return resolve(config)


def run_config(path: str | Path) -> ExperimentConfig:
    """What a config file's ``get_config()`` returns, or the config.json of a run holds, not yet checked.

    Raises UserError where there is none, or the file has a mistake.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(found) for found in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UserError(f"there is no config file {path}" + (f"; {path.parent} has {near}" if near else ""))
    if path.suffix == ".json":
        return _read_record(path)
    spec = importlib.util.spec_from_file_location(f"alm_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except AlmError:
        raise
    except Exception as error:
        raise UserError(f"the config file {path} cannot be run: {_place_of(error, path)}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config(); see the files in configs/")
    try:
        config = module.get_config()
    except AlmError:
        raise
    except Exception as error:
        raise UserError(f"get_config() of {path} fails: {_place_of(error, path)}") from error
    if not isinstance(config, ExperimentConfig):
        raise UserError(f"get_config() of {path} returned {type(config).__name__}, expected ExperimentConfig")
    return config


def _read_record(path: Path) -> ExperimentConfig:
    try:
        return read_experiment(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is no config of a run: {error}") from error


def _place_of(error: Exception, path: Path) -> str:
    """The error and the line of ``path`` that it comes from."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}{where}"


def resolve(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment with what its parts must have in common filled in, where the config leaves it to the model."""
    data, tokenizer = config.data, config.data.tokenizer
    if tokenizer.vocab_size is None and config.objective.num_words is not None:
        tokenizer = dataclasses.replace(tokenizer, vocab_size=config.objective.num_words)
    source_sec = data.source_sec
    if source_sec is None:
        source_sec = config.objective.model.frontend.clip.clip_sec
    return dataclasses.replace(
        config, data=dataclasses.replace(data, tokenizer=tokenizer, source_sec=source_sec)
    )


@contextlib.contextmanager
def mistakes_are_users(what: str) -> Iterator[None]:
    """Turns what a constructor raises for a wrong value, such as a size of 0 or a text for a number, into UserError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{what} fails: {type(error).__name__}: {error}") from error


def check_experiment(config: ExperimentConfig) -> None:
    """Checks every field, and what fields must have in common; looks at no data, device or file.

    Raises UserError with the field, its value and what it must be.
    """
    check_config(config)
    training, warmup = config.training, config.optimizer.warmup_steps
    if warmup >= training.num_steps:
        raise UserError(
            f"optimizer.warmup_steps is {warmup} and training.num_steps is {training.num_steps}: the warm-up must be "
            "shorter than the run"
        )
    parse_steps(training.profile_steps)
    if training.batch_size % training.num_microbatches:
        raise UserError(
            f"training.batch_size is {training.batch_size}, which training.num_microbatches "
            f"{training.num_microbatches} does not divide: change one of them"
        )
    if config.data.duration_buckets.fill and not config.objective.follows_batch:
        raise UserError(
            "data.duration_buckets.fill is True, which gives batches of shorter recordings more rows, and this model "
            "computes clips of the same length for all: set it to False, or take an audio encoder of any length "
            "(packed_vit) with padding 'masked' and frontend.clip.pad 'zero'"
        )


def read_experiment(value: Any, path: str = "config") -> ExperimentConfig:
    """The experiment that `to_json` wrote. Raises UserError where it is none, or names what this version does not know.

    ``path`` is what an error calls the value: its file.
    """
    config = from_json(value, ExperimentConfig, path)
    if not isinstance(config, ExperimentConfig):
        raise UserError(f"{path} is {value!r:.80}, expected the config of a run")
    return config
