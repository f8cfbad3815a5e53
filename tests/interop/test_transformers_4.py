"""What we export is the same model in transformers 4 as in 5, where both have the class.

Slow, and skipped unless ALM_TRANSFORMERS_4 is the Python of an environment with transformers 4 and PyTorch:

    python -m venv tf4 && tf4/bin/pip install 'transformers>=4.57,<5' torch jax flax optax soundfile soxr
    ALM_TRANSFORMERS_4=tf4/bin/python pytest -m slow tests/interop/test_transformers_4.py
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from alm_jax.interop.folder import export_model
from alm_jax.interop.formats import PARITY
from alm_jax.interop.real_inputs import load_real_inputs

PYTHON = os.environ.get("ALM_TRANSFORMERS_4", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="ALM_TRANSFORMERS_4 names no Python with transformers 4"),
]
CASES = [case for case in PARITY if case.layout.write_config and not case.layout.ignored]
# In the process of either version: opens each folder and applies the comparison's own function to its inputs.
SCRIPT = """
import pickle, sys, torch, transformers
from alm_jax.interop.formats import PARITY
cases = {case.name: case for case in PARITY}
found = {"version": transformers.__version__}
for name, folder, inputs in pickle.load(open(sys.argv[1], "rb")):
    case = cases[name]
    try:
        kind = getattr(transformers, case.layout.architectures[0])
        module = kind.from_pretrained(folder, local_files_only=True).eval()
        with torch.no_grad():
            given = {key: torch.as_tensor(array) for key, array in inputs.items()}
            found[name] = case.theirs(module, given).numpy()
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
pickle.dump(found, open(sys.argv[2], "wb"))
"""


def read(python: str, asked: Path, found: Path) -> dict:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [python, "-c", SCRIPT, str(asked), str(found)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads(found.read_bytes())


@pytest.fixture(scope="module")
def outputs(real_data_dir, tmp_path_factory) -> tuple[dict, dict]:
    """What transformers 5 and 4 compute with each export, by the name of the comparison."""
    root, real, asked = tmp_path_factory.mktemp("exports"), load_real_inputs(real_data_dir), []
    for number, case in enumerate(CASES):
        rng = np.random.default_rng(number)
        variables = jax.tree.map(
            lambda leaf, rng=rng: np.abs(rng.normal(0.0, leaf.shape[-1] ** -0.5 if leaf.shape else 1.0, leaf.shape))
            .astype(leaf.dtype) * np.where(rng.random(leaf.shape) < 0.5, 1, -1).astype(leaf.dtype)
            if leaf.ndim != 1
            else np.full(leaf.shape, 0.5, leaf.dtype),
            case.layout.abstract(case.config),
        )  # fmt: skip
        export_model(root / str(number), case.config, variables, case.layout)
        inputs = {key: np.asarray(array) for key, array in case.inputs(case.config, real).items()}
        asked.append((case.name, str(root / str(number)), inputs))
    (root / "asked").write_bytes(pickle.dumps(asked))
    return read(sys.executable, root / "asked", root / "5"), read(PYTHON, root / "asked", root / "4")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_export_is_the_same_model_in_both(case, outputs):
    five, four = outputs
    assert (five["version"][0], four["version"][0]) == ("5", "4")
    assert not isinstance(five[case.name], str), five[case.name]
    if isinstance(four[case.name], str) and "has no attribute" in four[case.name]:
        pytest.skip(four[case.name])
    assert not isinstance(four[case.name], str), four[case.name]
    scale = float(np.max(np.abs(five[case.name]))) or 1.0
    np.testing.assert_allclose(four[case.name], five[case.name], rtol=0, atol=1e-5 * scale)
