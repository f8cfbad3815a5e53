"""CONTRIBUTING's evaluator, as it is written there, defined outside the package and run on a model."""

import re
from pathlib import Path

import numpy as np
import pytest
from fake_models import AudioTable, FakeSplit, make_model, unit_rows

from alm_jax.evaluation.evaluate import evaluate
from alm_jax.evaluation.evaluator import Evaluator


def test_the_recipe_measures_a_model(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    section = text.split("## Add an evaluator")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "collapse_recipe.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    from collapse_recipe import Collapse

    try:
        assert Collapse in Evaluator.kinds()
        table = unit_rows(0, 5, 3)
        split = FakeSplit([["a"]] * 5)
        found = evaluate((Collapse(),), make_model(AudioTable(), {"audio": table}), lambda _: split)
        expected = np.mean([table[i] @ table[j] for i in range(5) for j in range(5) if i != j])
        assert found.figures == {"collapse/mean_cosine": pytest.approx(expected)}
    finally:
        Evaluator._kinds.remove(Collapse)
