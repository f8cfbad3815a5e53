"""A run folder without its training."""

from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from alm_jax.objectives import build_objective
from alm_jax.run import workdir as run_folder
from alm_jax.run.config_json import to_json
from alm_jax.run.experiment import load_config
from alm_jax.run.workdir import CHECKPOINTS
from alm_jax.training.build import build_parallel
from alm_jax.training.checkpoint_writer import CheckpointWriter
from alm_jax.training.mesh import build_mesh
from alm_jax.training.metrics import MetricsWriter

CONFIG = load_config(Path(__file__).parents[1] / "cli" / "tiny_config.py")


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run folder with three checkpoints whose parameters and average tell their step."""
    folder = tmp_path_factory.mktemp("load") / "run[1]@2"
    folder.mkdir()
    mesh = build_mesh(CONFIG.training.mesh)
    objective = build_objective(CONFIG.objective)
    parallel = build_parallel(objective, CONFIG.optimizer, CONFIG.training, seed=0, mesh=mesh)
    manifest = {"config": to_json(CONFIG), "data_fingerprint": "abc", "class_names": []}
    writer = CheckpointWriter(folder / CHECKPOINTS, keep=5, manifest=manifest)
    state = parallel.init()
    for step in (10, 20, 30):
        writer.save(marked(state, step), wait=True)
    writer.close()
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<pad>": 1}, unk_token="a"))
    run_folder.write_record(folder, to_json(CONFIG), tokenizer.to_str(pretty=True))
    with MetricsWriter(folder) as metrics:
        for step, loss in ((10, 3.0), (15, 0.5), (20, 1.0), (30, 2.0)):
            metrics.write(step, {"validation/loss": loss})
    return folder


def marked(state, step):
    def fill(tree, value):
        return jax.tree.map(lambda x: x * 0 + np.asarray(value, x.dtype), tree)

    fields = {"step": fill(state.step, step), "params": fill(state.params, step)}
    if state.ema_params is not None:
        fields["ema_params"] = fill(state.ema_params, step + 0.5)
    return type(state)(
        **{name: fields.get(name, getattr(state, name)) for name in state.__dataclass_fields__}
    )
