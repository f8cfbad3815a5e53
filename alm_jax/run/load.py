"""The one way to load a trained model: `load_model` takes a run, an import, an export, a published model or an id.

Reading an export loads neither the training loop nor Orbax nor Optax; they are imported where a run is read.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from tokenizers import Tokenizer

from alm_jax.errors import UserError
from alm_jax.interop.folder import import_model
from alm_jax.interop.format import Format
from alm_jax.interop.safetensors_io import cast_floats
from alm_jax.run.model_folder import is_model_folder, load_model_folder
from alm_jax.run.workdir import BEST_BY, CHECKPOINTS, METRICS_FILE, TOKENIZER, validation_losses
from alm_jax.types import PyTree
from data_pipelines.text import load_tokenizer

if TYPE_CHECKING:
    from alm_jax.run.experiment import ExperimentConfig
    from alm_jax.training.checkpoint import Checkpoints

BEST = "best"
"""As the step of a run: the saved step with the lowest validation loss."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a model came from."""

    kind: Literal["run", "import", "published"]
    """A folder of `alm pretrain`, a folder of `alm import`, or a folder, archive or id of another library."""
    source: str
    """The folder, archive or id."""
    step: int | None = None
    """Steps of training of a run; None of the other kinds."""
    data_fingerprint: str = ""
    """Fingerprint of the data set that a run was trained on; empty for the other kinds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A trained model: what it is, its arrays on the host, and what came with it."""

    config: Any
    """The config of the model itself."""
    variables: dict[str, PyTree]
    """``{"params": ...}``, and ``"batch_stats"`` where there are any, as NumPy arrays; of a run averaged where there is
    an average, adapters merged."""
    tokenizer: Tokenizer | None
    """The tokenizer that the model was trained with; None where none came with the weights."""
    provenance: Provenance
    experiment: "ExperimentConfig | None" = None
    """The config of the run; None of the other kinds."""
    layout: Format | None = None
    """The published layout of an import or a published model; None of a run."""
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    """What else lay beside the weights, by name."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names, shapes, dtypes and bytes of all arrays, in hexadecimal digits."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables):
            array = np.asarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def load_model(source: str | Path, *, dtype: str | None = None) -> Model:
    """Loads a trained model. Nothing at its source is changed.

    Args:
        source: a run folder of `alm pretrain`, for its newest checkpoint that is whole, ``RUN@STEP`` for a given one
            or ``RUN@best`` for the saved step with the lowest validation loss; a folder of `alm import` or `alm export`
            or of transformers' ``save_pretrained``; an archive of ``torch.save``; or an id of the Hugging Face Hub.
        dtype: of every float array; None leaves each as it was saved.

    Raises:
        UserError: there is no such model, or its parts do not fit each other.
        DataError: no checkpoint of the run is whole, or one cannot be read.
    """
    folder, step = split_step(source)
    if is_run_folder(folder):
        model = _load_run_model(folder, step)
    elif step is not None:
        raise UserError(f"{folder} is no run folder, so there is no step {step} of it; leave out @{step}")
    else:
        is_imported = is_model_folder(source)
        found = load_model_folder(source) if is_imported else import_model(source, dtype=dtype)
        path = found.files.get(TOKENIZER)
        model = Model(
            config=found.config,
            variables=dict(found.variables),
            tokenizer=None if path is None else load_tokenizer(path),
            provenance=Provenance(kind="import" if is_imported else "published", source=str(source)),
            layout=found.layout,
            files=found.files,
        )
    return (
        model
        if dtype is None
        else dataclasses.replace(model, variables=cast_variables(model.variables, dtype))
    )


def cast_variables(variables: dict[str, PyTree], dtype: str) -> dict[str, PyTree]:
    """The variables with every float array in ``dtype``."""
    leaves, structure = jax.tree.flatten(variables)
    cast = cast_floats({str(i): leaf for i, leaf in enumerate(leaves)}, dtype)
    return dict(jax.tree.unflatten(structure, list(cast.values())))


def split_step(source: str | Path) -> tuple[Path, str | None]:
    """``RUN@60`` as (RUN, "60"), ``RUN@best`` as (RUN, "best"); what exists under the whole name has no step."""
    text = str(source)
    folder, at, step = text.rpartition("@")
    if at and folder and not Path(text).exists() and (step.isdecimal() or step == BEST):
        return Path(folder), step
    return Path(text), None


def is_run_folder(folder: str | Path) -> bool:
    """Whether `alm pretrain` has made a folder for checkpoints here."""
    return (Path(folder) / CHECKPOINTS).is_dir()


def load_run(source: str | Path) -> "ExperimentConfig":
    """The config that a checkpoint of a run was made with, the newest where ``source`` names no step.

    Raises UserError where the folder holds no checkpoint, DataError where no manifest is whole.
    """
    from alm_jax.run.experiment import read_experiment

    folder, step = split_step(source)
    checkpoints = open_run(folder)
    if step is not None:
        number = find_step(folder, checkpoints, step)
        return read_experiment(checkpoints.manifest(number)["config"], _config_of(checkpoints, number))
    found = checkpoints.newest(lambda number: (number, checkpoints.manifest(number)["config"]))
    assert found is not None, "open_run has found a checkpoint"
    number, config = found[0]
    return read_experiment(config, _config_of(checkpoints, number))


def _config_of(checkpoints: "Checkpoints", step: int) -> str:
    """What messages call the config of a checkpoint."""
    return f"{checkpoints.folder / str(step)}: config"


def open_run(folder: Path) -> "Checkpoints":
    """The checkpoints of a run folder, for reading. Raises UserError where it holds none."""
    from alm_jax.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder / CHECKPOINTS)
    if not is_run_folder(folder):
        raise UserError(
            f"{folder} holds no run: there is no {checkpoints.folder}. Expected a --workdir of `alm pretrain`"
        )
    if not checkpoints.steps():
        raise UserError(
            f"{checkpoints.folder} holds no finished checkpoint yet; let `alm pretrain` reach its first save"
        )
    return checkpoints


def find_step(folder: Path, checkpoints: "Checkpoints", step: str) -> int:
    """The number of a step that ``RUN@step`` names. Raises UserError where it is not saved."""
    steps = checkpoints.steps()
    if step != BEST:
        if int(step) not in steps:
            raise UserError(f"{folder} has no checkpoint of step {step}; it has {steps}")
        return int(step)
    losses = {number: loss for number, loss in validation_losses(folder).items() if number in steps}
    if not losses:
        raise UserError(
            f"{folder / METRICS_FILE} has no {BEST_BY} of a saved step ({steps}), so the best is not known; name one, "
            f"as {folder}@{steps[-1]}, or let training.eval_every and training.save_every meet"
        )
    return min(losses, key=lambda number: (losses[number], number))


def _load_run_model(folder: Path, step: str | None) -> Model:
    from alm_jax.objectives import build_objective
    from alm_jax.run.experiment import read_experiment
    from alm_jax.training.checkpoint import by_path, check_same_arrays, describe_arrays
    from alm_jax.training.lora import add_adapters
    from alm_jax.training.trainable import overlay

    checkpoints = open_run(folder)

    def read(number: int) -> tuple[int, dict[str, Any], dict[str, Any]]:
        fields = checkpoints.read_arrays(number, ("params", "batch_stats", "ema_params"))
        return number, checkpoints.manifest(number), fields

    if step is None:
        found = checkpoints.newest(read)
        assert found is not None, "open_run has found a checkpoint"
        number, manifest, fields = found[0]
    else:
        number, manifest, fields = read(find_step(folder, checkpoints, step))
    experiment = read_experiment(manifest["config"], _config_of(checkpoints, number))
    objective = add_adapters(build_objective(experiment.objective), experiment.lora)
    abstract = jax.eval_shape(objective.init, jax.random.key(0))
    saved = {name: fields[name] for name in ("params", "batch_stats") if name in fields}
    check_same_arrays(
        describe_arrays(saved, with_checksums=False),
        describe_arrays(abstract, with_checksums=False),
        f"checkpoint {checkpoints.folder / str(number)}",
    )
    # In the model's own tree, which has branches without arrays too.
    arrays = by_path(saved)
    variables = jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in by_path(abstract)])
    params = overlay(variables["params"], fields.get("ema_params", {}))
    tokenizer = folder / TOKENIZER
    return Model(
        config=experiment.objective.model,
        variables={
            "params": jax.tree.map(np.asarray, objective.merge(params)),
            "batch_stats": variables["batch_stats"],
        },
        tokenizer=load_tokenizer(tokenizer) if tokenizer.is_file() else None,
        provenance=Provenance(
            kind="run",
            source=str(folder),
            step=number,
            data_fingerprint=manifest.get("data_fingerprint", ""),
        ),
        experiment=experiment,
        files={TOKENIZER: tokenizer} if tokenizer.is_file() else {},
    )
