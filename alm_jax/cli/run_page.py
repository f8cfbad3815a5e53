"""A finished run's last figures and page, as every objective leaves them: ``evaluation.json`` and ``report.html``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from alm_jax.evaluation.report import write_report
from alm_jax.run.config_json import to_json
from alm_jax.run.session import Session
from alm_jax.run.workdir import EVALUATION
from alm_jax.training.metrics import METRICS_FILE
from alm_jax.training.state import TrainState


def write_run_page(
    workdir: Path,
    session: Session,
    state: TrainState,
    figures: Mapping[str, float | int],
    **sections: Any,
) -> None:
    """Writes ``figures``, flat and by name, and a page of them, the curves and the config.

    ``sections`` are further arguments of `alm_jax.evaluation.report.write_report`: what this objective has to show.
    """
    config = session.config
    split, train_split = config.data.eval_split, config.data.train_split
    evaluation = {"split": split, "step": int(state.step), **figures}
    (workdir / EVALUATION).write_text(json.dumps(evaluation, indent=2) + "\n")
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    write_report(
        workdir,
        title=config.name,
        summary={
            "parameters": f"{num_parameters / 1e6:.2f} M",
            "training": f"{int(state.step):,} steps of {config.training.batch_size} clips",
            "data": f"{train_split} ({len(session.data.split(train_split)):,} clips)",
            "evaluated on": f"{split} ({len(session.data.split(split)):,} clips)",
        },
        config_text=json.dumps(to_json(config), indent=2),
        metrics_path=workdir / METRICS_FILE,
        evaluation=evaluation,
        **sections,
    )
