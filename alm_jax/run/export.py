"""A trained or imported model as a folder that other libraries load.

A run of two towers becomes a ClapModel; another run, or a part of one, becomes what its published code calls it
(run/export_part.py). What ``alm import`` wrote becomes again what it was, bit for bit. StableHLO programs of any of
them run with JAX alone (interop/stablehlo.py).
"""

import dataclasses
import importlib.util
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alm_jax.errors import AlmError, UserError
from alm_jax.interop.clap import compare_with_transformers, export_clap
from alm_jax.interop.folder import CONFIG as HUB_CONFIG
from alm_jax.interop.folder import export_model, writable
from alm_jax.interop.format import Format
from alm_jax.interop.formats import FORMATS
from alm_jax.interop.model_card import write_model_card
from alm_jax.interop.model_files import read_fields
from alm_jax.interop.written_whole import written_whole
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.objectives.contrastive import ContrastiveConfig
from alm_jax.run.config_json import to_json
from alm_jax.run.export_part import export_part
from alm_jax.run.load import load_model, load_run, split_step
from alm_jax.run.model_folder import ORIGINAL, is_model_folder
from alm_jax.run.programs import export_programs
from alm_jax.run.record import current_commit
from alm_jax.run.session import Session, enable_compilation_cache, restore_run
from alm_jax.run.workdir import EVALUATION, TOKENIZER
from alm_jax.training.checkpoint_writer import PACKAGES
from alm_jax.types import PyTree

NUM_COMPARED = 4
"""Recordings of the evaluation split on which the export is compared with PyTorch."""
MAX_LOGIT_ERROR = 1e-3
"""Above this difference of logits (which reach 100) the export is no export of this model."""
CARD_METRICS = (
    "n",
    "zero_shot/accuracy",
    "retrieval/text_to_audio/r@1",
    "retrieval/text_to_audio/r@10",
    "retrieval/text_to_audio/map@10",
    "retrieval/audio_to_text/r@1",
    "retrieval/audio_to_text/r@10",
    "retrieval/audio_to_text/map@10",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """What was written, for the person who exported."""

    layout: str = ""
    """The published layout, where it was found by the model and not asked for."""
    remark: str = ""
    """How far the export is from this project's model, or why that was not measured."""


def export(source: str, out: Path, *, format: str, part: str = "", licence: str = "other") -> Written:
    """Writes the model of a run, or of what `alm import` wrote, into the folder ``out``.

    Args:
        source: a run's folder, RUN@STEP, or a folder of `alm import`.
        out: the folder; an older export in it is replaced when the new one is whole.
        format: "transformers" or "stablehlo".
        part: of a run's model, as in `export_part`; "" for the model as a whole.
        licence: of a run's weights, for the model card.

    Raises:
        UserError: there is no such model or part, the format does not hold it, or ``out`` holds something else.
        AlmError: transformers computes other logits from the export; nothing is kept of it.
    """
    is_imported = is_model_folder(source)
    if part and (format != "transformers" or is_imported):
        raise UserError("--part is for runs, in the format transformers; leave it out, or --format stablehlo")
    with written_whole(out) as folder:
        if format == "stablehlo":
            model = load_model(source)
            export_programs(model.config, model.variables, folder)
        elif is_imported:
            export_imported(source, folder)
        elif not part and isinstance(load_run(source).objective, ContrastiveConfig):
            return Written(remark=export_run(source, folder, licence=licence))
        else:
            layout = export_part(source, part, folder).name
        if is_imported:
            return Written()
        shutil.copyfile(split_step(source)[0] / TOKENIZER, folder / TOKENIZER)
        return Written(layout="" if format == "stablehlo" else layout)


def export_imported(source: str, out: Path) -> None:
    """Writes what `alm import` wrote as its class of transformers saves it, with the files that came with it."""
    model = load_model(source)
    original = read_fields(Path(source) / ORIGINAL) if HUB_CONFIG in model.files else None
    export_model(
        out,
        model.config,
        model.variables,
        choose_layout(model.config, model.variables, model.layout),
        original,
    )
    for name, path in model.files.items():
        if name != HUB_CONFIG:
            shutil.copyfile(path, out / name)


def choose_layout(config: Any, variables: PyTree, layout: Format | None) -> Format:
    """The format that a model came in, or the first of transformers that holds it. Raises UserError for none."""
    assert layout is not None
    if layout.name in writable(config):
        return layout
    if isinstance(config, TwoTowersConfig):
        raise UserError(
            f"{layout.name} was read from an archive, and ClapModel with its feature extractor is not the same "
            "model; `--format stablehlo` writes it as programs, with its own front-end"
        )
    ours = {tuple(step.key for step in path) for path, _ in jax.tree.leaves_with_path(variables)}
    for name in writable(config):
        if {entry.path for entry in FORMATS[name].entries(config)} == ours:
            return FORMATS[name]
    raise UserError(
        f"{layout.name} was read from an archive, and transformers has no class for it; `--format stablehlo` "
        "writes it as a program"
    )


def export_run(source: str, out: Path, *, licence: str) -> str:
    """Exports a run for ``transformers.ClapModel``.

    Returns a sentence with the largest difference of logits between PyTorch and this project on real recordings, or
    one that says that PyTorch is not installed. Raises AlmError where the difference says that the export is wrong.
    """
    enable_compilation_cache()
    session, state = restore_run(source)
    workdir = split_step(source)[0]
    variables = jax.device_get(session.model_variables(state))

    def write(export_error: float | None) -> None:
        card = write_model_card(
            name=session.config.name,
            licence=licence,
            datasets=session.data.licences,
            metrics=last_metrics(workdir),
            config=to_json(session.config),
            step=int(state.step),
            commit=current_commit(),
            versions={name: metadata.version(name) for name in PACKAGES},
            export_error=export_error,
        )
        export_clap(out, session.model, variables, workdir / TOKENIZER, card)

    write(None)
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        return "PyTorch is not installed, so the export was not compared with transformers ([torch] extra)"
    error = compare(session, out)
    if not error <= MAX_LOGIT_ERROR:
        raise AlmError(
            f"the logits of the export in transformers differ from this project's by {error:.2e}, at most "
            f"{MAX_LOGIT_ERROR:.0e} is rounding: it was not kept; report the config and this figure"
        )
    write(error)
    return f"largest difference of logits to transformers.ClapModel on real recordings: {error:.2e}"


def compare(session: Session, folder: Path) -> float:
    """Largest difference of logits on a few recordings and captions of the evaluation split."""
    split = session.data.split(session.config.data.eval_split)
    chosen = np.unique(np.linspace(0, len(split) - 1, NUM_COMPARED).astype(int)).tolist()
    waveforms = [pcm.astype(np.float32) / 32768 for pcm in split.read_pcm(chosen)]
    texts = [split.captions(index)[0] for index in chosen]
    return compare_with_transformers(folder, waveforms, texts, session.data.sample_rate_hz)


def last_metrics(workdir: Path) -> dict[str, float]:
    """The run's last evaluation, for the card; empty where there is none."""
    path = workdir / EVALUATION
    metrics = json.loads(path.read_text()) if path.is_file() else {}
    return {name: float(metrics[name]) for name in CARD_METRICS if name in metrics}
