"""The evaluation of a run: its evaluators, the model at one of its states, and what is left in a folder."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from alm_jax.errors import UserError
from alm_jax.evaluation.evaluate import EvaluationResult, choose_evaluators, declared_figures, evaluate
from alm_jax.evaluation.evaluator import Evaluator
from alm_jax.evaluation.model import EvaluatedModel
from alm_jax.evaluation.report.page import Report, write_report
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.figures import Figure
from alm_jax.run.config_json import to_json
from alm_jax.run.session import Session, enable_compilation_cache, restore_run
from alm_jax.run.workdir import EVALUATION
from alm_jax.training import loop, sharding, step
from alm_jax.training.metrics import METRICS_FILE
from alm_jax.training.state import TrainState
from data_pipelines.config import DataConfig
from data_pipelines.prepare import Prepared, prepare

log = logging.getLogger(__name__)

Record = dict[str, float | int | str]


class RunEvaluation:
    """The evaluators of one run, chosen once, and what they keep from one evaluation to the next."""

    def __init__(self, session: Session, *, split: str | None = None):
        """
        Args:
            split: what evaluators without a split of their own measure, in place of ``data.eval_split``.

        Raises UserError where an evaluator that the config names cannot measure this model.
        """
        self.session = session
        self.split = split or session.config.data.eval_split
        self._kept: dict[Any, Any] = {}
        self._prepared: dict[DataConfig, Prepared] = {session.config.data: session.data}
        self._splits: dict[tuple[DataConfig, str], EvaluationSplit] = {}
        self._model = self.model(None)
        self.evaluators = choose_evaluators(session.config.evaluations, self._model, self.split_of)

    @property
    def figures(self) -> dict[str, Figure]:
        """Declarations of all figures that the run records, by name."""
        declared = declared_figures(self.evaluators, self._model)
        return {figure.name: figure for figure in (*step.FIGURES, *loop.FIGURES)} | declared

    def split_of(self, evaluator: Evaluator) -> EvaluationSplit:
        """What an evaluator measures: one object, decoded once, for all that measure the same."""
        session = self.session
        config = evaluator.data or session.config.data
        if config not in self._prepared:
            rate_hz = session.model.frontend.sample_rate_hz
            self._prepared[config] = prepare(config, rate_hz, tokenizer=session.data.tokenizer)
        name = evaluator.split or (self.split if evaluator.data is None else config.eval_split)
        if (config, name) not in self._splits:
            data = self._prepared[config]
            self._splits[config, name] = EvaluationSplit(data, name, batch_size=session.eval_batch_size)
        return self._splits[config, name]

    def model(self, state: TrainState | None) -> EvaluatedModel:
        """The model at a state, averaged where there is an average; None for one that is not run yet."""
        session = self.session
        variables: dict[str, Any] = {}
        objective_variables: dict[str, Any] = {}
        if state is not None:
            objective_variables = session.replicate(state.evaluation_variables)
            variables = session.replicate(session.model_variables(state))
        return EvaluatedModel(
            capabilities=session.objective.capabilities(session.tokens),
            variables=variables,
            frontend=session.model.frontend,
            tokenizer=session.data.tokenizer,
            tokens=session.tokens,
            place=session.place,
            objective=session.objective,
            objective_variables=objective_variables,
            loss_batch_size=session.config.training.batch_size,
            train_split=session.config.data.train_split,
            draw_untrained=self._draw_untrained,
            kept=self._kept,
        )

    def _draw_untrained(self) -> dict[str, Any]:
        # As training/state.py draws it.
        key, _ = jax.random.split(jax.random.key(self.session.config.seed))
        objective = self.session.objective

        def draw(key: Any) -> dict[str, Any]:
            variables = objective.init(key)
            return {**variables, "params": objective.merge(variables["params"])}

        return dict(jax.jit(draw, out_shardings=sharding.replicated(self.session.mesh))(key))

    def evaluate(self, state: TrainState, *, count: int | None = None) -> EvaluationResult:
        """Measures a state; the same on every process. ``count`` is as in `alm_jax.evaluation.evaluate.evaluate`."""
        return evaluate(self.evaluators, self.model(state), self.split_of, count=count)

    def record(self, state: TrainState, result: EvaluationResult) -> Record:
        """The figures with what they are of, as ``evaluation.json`` has them."""
        num_clips = len(self.session.data.split(self.split))
        return {"split": self.split, "step": int(state.step), "n": num_clips, **result.figures}

    def write(self, folder: Path, state: TrainState, result: EvaluationResult, *, run_folder: Path) -> None:
        """Leaves ``evaluation.json``, ``report.html`` and its pictures in ``folder``, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        record = self.record(state, result)
        write_whole(folder / EVALUATION, json.dumps(record, indent=2) + "\n")
        report = Report(
            title=self.session.config.name,
            summary=self._summary(state),
            figures=record,
            declared=self.figures,
            sections=result.sections(),
            config_text=json.dumps(to_json(self.session.config), indent=2),
        )
        write_report(folder, report, metrics_path=run_folder / METRICS_FILE)

    def _summary(self, state: TrainState) -> Mapping[str, str]:
        session, config = self.session, self.session.config
        num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        train = config.data.train_split
        return {
            "parameters": f"{num_parameters / 1e6:.2f} M",
            "training": f"{int(state.step):,} steps of {config.training.batch_size} clips",
            "data": f"{train} ({len(session.data.split(train)):,} clips)",
            "evaluated on": f"{self.split} ({len(session.data.split(self.split)):,} clips)",
        }


def evaluate_run(workdir: Path, *, split: str | None = None, out: Path | None = None) -> Record:
    """The figures of a run's newest good checkpoint, which are left with a report in ``out``.

    By default they are left in the run's own folder, where the run's own split was measured; where that cannot be
    written to, a warning says so.

    Raises UserError where there is no run, DataError where no checkpoint can be read.
    """
    enable_compilation_cache()
    session, state = restore_run(workdir)
    evaluation = RunEvaluation(session, split=split)
    result = evaluation.evaluate(state)
    folder = out or (workdir if split is None else None)
    if folder is not None:
        try:
            evaluation.write(folder, state, result, run_folder=workdir)
        except OSError as error:
            if out is not None:
                raise UserError(f"cannot write to {folder}: {error}; name another folder by --out") from error
            log.warning(
                "the figures are not kept: cannot write to %s (%s); name a folder by --out", folder, error
            )
    return evaluation.record(state, result)


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader finds the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
