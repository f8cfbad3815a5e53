"""Suites on any model that loads: a run, an import, an export, or a published model of another library."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from alm_jax.encoders.tower import LONGEST_TEXT, text_limits
from alm_jax.errors import UserError
from alm_jax.evaluation.evaluate import EvaluationResult, choose_evaluators, declared_figures, evaluate
from alm_jax.evaluation.evaluator import Evaluator
from alm_jax.evaluation.evaluators.zero_shot import ZeroShot
from alm_jax.evaluation.metrics.bootstrap import bootstrap_interval
from alm_jax.evaluation.model import EvaluatedModel
from alm_jax.evaluation.report.page import Report, write_report
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.evaluation.suites import Suite, suite_named
from alm_jax.figures import Figure
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.objectives import build_objective
from alm_jax.objectives.contrastive import TwoTowers
from alm_jax.run.evaluate import Record, write_whole
from alm_jax.run.load import Model, cast_variables, load_model
from alm_jax.run.session import enable_compilation_cache, tokens_of
from alm_jax.run.workdir import EVALUATION
from alm_jax.training import sharding
from alm_jax.training.mesh import MeshConfig, build_mesh
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.dataset import DatasetConfig
from data_pipelines.prepare import prepare

SCORES = "scores.parquet"
BATCH_SIZE = 64
"""Number of recordings, and of texts, that are encoded at a time."""


def evaluate_model(
    source: str,
    suites: Sequence[str],
    *,
    data: str,
    split: str | None = None,
    templates: Sequence[str] = (),
    out: Path | None = None,
) -> Record:
    """The figures of a model by suites, ``SUITE/EVALUATOR/FIGURE``, with what is needed to get them again.

    Args:
        source: Whatever `load_model` takes.
        data: Folder of the suites' data set.
        split: Split(s) that are measured, in place of the suite's.
        templates: Prompts of classes, in place of the suite's.
        out: Folder for ``evaluation.json``, and in a folder of each suite ``report.html`` and the scores of single
            recordings, ``scores.parquet``; None leaves nothing.

    Raises:
        UserError: There is no such suite, or the model cannot be measured by one.
        DataError: The model or the data set cannot be read.
    """
    enable_compilation_cache()
    chosen = {name: suite_named(name) for name in suites}
    for suite in chosen.values():
        suite.dataset(data)
    loaded = load_model(source)
    model = _evaluated(loaded)
    record: Record = {"source": source, "model": loaded.fingerprint}
    for name, suite in chosen.items():
        found = _measure(loaded, model, suite, data, split, templates)
        measured = found.record
        record |= {f"{name}/{key}": value for key, value in measured.items()}
        if out is not None:
            (out / name).mkdir(parents=True, exist_ok=True)
            report = Report(
                title=f"{source}: {name}",
                summary={
                    "suite": suite.about,
                    "data": f"{measured['split']} ({measured['n']:,} clips)",
                    "model": loaded.fingerprint[:16],
                },
                figures=measured,
                declared=found.declared,
                sections=found.result.sections(),
                config_text=json.dumps(record, indent=2),
            )
            write_report(out / name, report)
            write_scores(out / name / SCORES, found.result, found.ids)
    if out is not None:
        write_whole(out / EVALUATION, json.dumps(record, indent=2) + "\n")
    return record


class _Measured(NamedTuple):
    """Result of one suite."""

    record: Record
    """Figures with their protocol."""
    result: EvaluationResult
    declared: dict[str, Figure]
    """Declarations of the figures."""
    ids: dict[str, Callable[[int], str]]
    """By evaluator: a place in its split -> the id of the recording there."""


def _measure(
    loaded: Model, model: EvaluatedModel, suite: Suite, data: str, split: str | None, templates: Sequence[str]
) -> _Measured:
    dataset = suite.dataset(data)
    name, evaluators = suite.choose(sorted({row.split for row in dataset.read().rows}), split)
    config = _data_config(loaded, dataset, name)
    prepared = prepare(config, model.frontend.sample_rate_hz, tokenizer=model.tokenizer)
    splits: dict[str, EvaluationSplit] = {}

    def split_of(evaluator: Evaluator) -> EvaluationSplit:
        wanted = evaluator.split or name
        if wanted not in splits:
            splits[wanted] = EvaluationSplit(prepared, wanted, batch_size=_batch_size())
        return splits[wanted]

    named = [_with_templates(evaluator, templates) for evaluator in evaluators]
    evaluators = choose_evaluators(named, model, split_of)
    if not evaluators:
        raise UserError(f"nothing of the suite can be measured of {loaded.provenance.source}: {suite.about}")
    result = evaluate(evaluators, model, split_of)
    prompts = [t for evaluator in evaluators if isinstance(evaluator, ZeroShot) for t in evaluator.templates]
    record: Record = {
        "split": name,
        "n": len(prepared.split(name)),
        "data": prepared.fingerprint,
        "eval_crop": model.frontend.clip.eval_crop,
        "prompts": " | ".join(prompts),
        **with_intervals(result),
    }
    ids: dict[str, Callable[[int], str]] = {one.name: split_of(one).id for one in evaluators}
    return _Measured(record, result, declared_figures(evaluators, model), ids)


def with_intervals(result: EvaluationResult) -> Record:
    """The figures, each that is a mean over recordings followed by its bootstrap interval, ``/low`` and ``/high``."""
    found: Record = {}
    scores = {
        f"{name}/{key}": one
        for name, evaluation in result.evaluations.items()
        for key, one in evaluation.scores.items()
    }
    for name, value in result.figures.items():
        found[name] = value
        if name in scores:
            found[f"{name}/low"], found[f"{name}/high"] = bootstrap_interval(scores[name])
    return found


def write_scores(path: Path, result: EvaluationResult, ids: Mapping[str, Callable[[int], str]]) -> None:
    """Writes every score of every recording as Parquet: figure, id of the recording, value."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {"figure": [], "id": [], "value": []}
    for name, evaluation in result.evaluations.items():
        for key, scores in evaluation.scores.items():
            columns["figure"] += [f"{name}/{key}"] * len(scores.values)
            columns["id"] += [ids[name](int(place)) for place in scores.owner]
            columns["value"] += scores.values.tolist()
    pq.write_table(pa.table(columns), path)


def _with_templates(evaluator: Evaluator, templates: Sequence[str]) -> Evaluator:
    if templates and isinstance(evaluator, ZeroShot):
        return dataclasses.replace(evaluator, templates=tuple(templates))
    return evaluator


def _data_config(loaded: Model, dataset: DatasetConfig, split: str) -> DataConfig:
    """The data set as the model reads it: clips of its length, texts as long as it takes."""
    if loaded.experiment is not None:
        tokenizer = loaded.experiment.data.tokenizer
    else:
        _, longest = text_limits(loaded.config.text)
        tokenizer = TokenizerConfig(max_length=longest or LONGEST_TEXT)
    return DataConfig(
        dataset=dataset,
        tokenizer=tokenizer,
        source_sec=loaded.config.frontend.clip.clip_sec,
        train_split=split,
        eval_split=split,
    )


def _evaluated(loaded: Model) -> EvaluatedModel:
    """A loaded model as evaluators use it. Raises UserError where evaluators have no use for it."""
    source, config = loaded.provenance.source, loaded.config
    if loaded.tokenizer is None:
        raise UserError(
            f"{source} has no tokenizer, and evaluators read texts; put the model's tokenizer.json there"
        )
    tokens = tokens_of(loaded.tokenizer)
    if loaded.experiment is not None:
        objective = build_objective(loaded.experiment.objective)
        capabilities, variables = objective.capabilities(tokens), loaded.variables
    elif isinstance(config, TwoTowersConfig):
        capabilities, variables = TwoTowers(config), cast_variables(loaded.variables, "float32")
    else:
        raise UserError(
            f"{source} is a {type(config).__name__}; suites measure runs and two towers, which embed recordings"
        )
    mesh = build_mesh(MeshConfig())

    def place(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return sharding.place_batch(batch, mesh)

    return EvaluatedModel(
        capabilities=capabilities,
        variables=jax.device_put(variables, sharding.replicated(mesh)),
        frontend=config.frontend,
        tokenizer=loaded.tokenizer,
        tokens=tokens,
        place=place,
    )


def _batch_size() -> int:
    """`BATCH_SIZE`, rounded up to a number that all devices divide."""
    count = jax.device_count()
    return -(-BATCH_SIZE // count) * count
