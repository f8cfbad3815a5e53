"""One experiment as one frozen, typed value, and its JSON form.

``configs/*.py`` each define ``get_config() -> ExperimentConfig``; the command line overrides single fields;
the resolved value is stored in every run folder and checkpoint, and read back from there.
"""

import dataclasses
import importlib
import importlib.util
import types
from pathlib import Path
from typing import Any, get_args, get_type_hints

from alm_jax.errors import UserError
from alm_jax.evaluation.config import EvaluationConfig
from alm_jax.migrate import FORMAT_KEY, TYPE_KEY, current_format, migrate
from alm_jax.objectives import ObjectiveConfig
from alm_jax.training.initialise import InitFromConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.lora import LoraConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Data, model, loss, optimizer and schedule of one pre-training run."""

    name: str
    """What the run is called in reports and model cards."""
    seed: int = 0
    """Decides the initial weights, the order of the data, and every draw of noise."""
    data: DataConfig
    """Recordings, captions and tokenizer."""
    objective: ObjectiveConfig
    """The model and its loss."""
    optimizer: AdamWConfig = AdamWConfig()
    """The optimizer and its schedule."""
    init_from: tuple[InitFromConfig, ...] = ()
    """Models that a run begins with, in this order; the rest is drawn from the seed. Said in the config file: the
    command line changes single fields."""
    lora: LoraConfig = LoraConfig()
    """Low-rank adapters in place of whole kernels."""
    training: TrainingConfig
    """Steps, batch, devices, and how often to save and look."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured during and after training."""


def load_config(path: str | Path) -> ExperimentConfig:
    """Runs a config file's ``get_config()``. Raises UserError where there is none."""
    path = Path(path)
    if not path.is_file():
        near = sorted(str(found) for found in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UserError(f"there is no config file {path}" + (f"; {path.parent} has {near}" if near else ""))
    spec = importlib.util.spec_from_file_location(f"alm_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config(); see the files in configs/")
    config = module.get_config()
    if not isinstance(config, ExperimentConfig):
        raise UserError(f"get_config() of {path} returned {type(config).__name__}, expected ExperimentConfig")
    return config


def to_json(value: Any) -> Any:
    """A config as JSON values: each object has its type's name, the outermost the version of the format too."""
    encoded = _encode(value)
    return {FORMAT_KEY: current_format()} | encoded if isinstance(encoded, dict) else encoded


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {TYPE_KEY: type(value).__name__} | fields
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    return value


def from_json(value: Any, expected: Any = ExperimentConfig, path: str = "config") -> Any:
    """The config that ``to_json`` of this or an older version wrote; `alm_jax.migrate` has the old names.

    Raises UserError where it names what this version does not know, or is of a newer version. ``path`` is what an
    error calls the value.
    """
    return _decode(migrate(value, path), expected, path)


def _decode(value: Any, expected: Any, path: str) -> Any:
    alternatives: tuple[Any, ...] = get_args(expected) or (expected,)
    choices = [each for kind in alternatives if dataclasses.is_dataclass(kind) for each in kinds_of(kind)]
    if isinstance(value, dict) and choices:
        kinds = {kind.__name__: kind for kind in choices}
        kind = kinds.get(value.get(TYPE_KEY, ""))
        if kind is None:
            raise UserError(f"{path} is a {value.get(TYPE_KEY)!r}, this version knows {sorted(kinds)}")
        hints = get_type_hints(kind)
        fields = {name: item for name, item in value.items() if name != TYPE_KEY}
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(kind)})
        if unknown:
            raise UserError(
                f"{path} has unknown fields {unknown}; it may come from another version of alm_jax"
            )
        missing = sorted(
            field.name
            for field in dataclasses.fields(kind)
            if field.name not in fields
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
        if missing:
            raise UserError(f"{path} lacks the fields {missing} of {kind.__name__}; the file is damaged")
        return kind(**{name: _decode(item, hints[name], f"{path}.{name}") for name, item in fields.items()})
    if isinstance(value, list):
        return tuple(_decode(item, element_type(expected), path) for item in value)
    return value


def kinds_of(kind: Any) -> list[Any]:
    """The dataclasses that a field of this type may hold: itself, or of a base class, such as that of data sets, all
    that its ``kinds`` finds."""
    return kind.kinds() if hasattr(kind, "kinds") else [kind]


def element_type(expected: Any) -> Any:
    """The type of the items of a tuple, looking through ``tuple[...] | None``."""
    if isinstance(expected, types.UnionType):
        expected = next(kind for kind in get_args(expected) if kind is not types.NoneType)
    return (get_args(expected) or (Any,))[0]
