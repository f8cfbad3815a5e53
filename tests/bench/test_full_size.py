"""The table of full-size configs: every config has its row, a row is made once, and the table says what is missing."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from alm_jax.bench.full_size import CASES, Case, run_cases, write_table

CONFIGS = Path(__file__).parents[2] / "configs"
STEP = {
    "mesh": "data 8 x fsdp 32",
    "batch": 2048,
    "devices": 256,
    "error": None,
    "fits": True,
    "peak_bytes": 2**31,
    "estimated_ms": 348.2,
    "roofline_ms": 299.4,
    "predicted_ms": 505.3,
    "estimated_mfu": 0.686,
    "roofline_mfu": 0.798,
    "predicted_mfu": 0.473,
    "collectives": [
        {"kind": "all-gather", "sent_bytes": 25e9, "ms": 250.0, "hidden_ms": 125.0},
        {"kind": "all-gather", "sent_bytes": 1e9, "ms": 10.0, "hidden_ms": 0.0},
    ],
}
FOUND = {
    "config": "ltu_7b",
    "topology": "v5e:16x16",
    "parameters": 6_831_400_000,
    "total_bytes_per_chip": 2**30,
    "step": STEP,
}
PAIR = (Case("ltu_7b", "v5e:16x16"), Case("ltu_7b", "v5e:16x16", ("--search-batch",)))


def test_every_config_of_published_size_is_compiled_for_a_pod():
    compiled = {case.config for case in CASES if case.topology == "v5e:16x16"}
    published = {path.stem for path in CONFIGS.glob("*.py") if "v5e:16x16" in path.read_text()}
    assert published <= compiled
    assert all((CONFIGS / f"{case.config}.py").exists() for case in CASES)
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.fixture
def asked(monkeypatch) -> list[list[str]]:
    """Commands in place of which an answer is given."""
    commands: list[list[str]] = []

    def run(command, **options):
        commands.append(command)
        found = (
            {"rows": [{**STEP, "fits": False}, {**STEP, "batch": 1024}]}
            if "--search-batch" in command
            else FOUND
        )
        return SimpleNamespace(returncode=0, stdout=json.dumps(found), stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_a_row_is_made_once(tmp_path, asked):
    assert list(run_cases(CONFIGS, tmp_path, cases=PAIR, only=["search"])) == [
        "ltu_7b_v5e_16x16_search: done"
    ]
    assert "Not compiled yet: `ltu_7b_v5e_16x16`." in write_table(tmp_path, cases=PAIR)
    assert len(list(run_cases(CONFIGS, tmp_path, cases=PAIR))) == len(asked) == 2
    changed = (PAIR[0], Case("ltu_7b", "v5e:16x16", ("--search-batch", "--training.batch-size", "8")))
    assert list(run_cases(CONFIGS, tmp_path, cases=changed)) == [
        "ltu_7b_v5e_16x16: kept",
        "ltu_7b_v5e_16x16_search: done",
    ]
    table = write_table(tmp_path, cases=PAIR)
    assert "| 348.2 / 299.4 / 505.3 | 68.6% / 79.8% / 47.3% | all-gather 26.00 | 48% |" in table
    assert "1,024 rows, 4 a chip, with a peak of 2.00 GiB, an MFU of 68.6%" in table
