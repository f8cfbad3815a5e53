"""metrics.jsonl survives kills, full disks and resumes, and gives every float back to the last bit."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.training.metrics import MetricsWriter, read_metrics

AWKWARD = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1e16, 2.2250738585072014e-308, np.pi]


def test_floats_come_back_to_the_last_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    singles = rng.standard_normal(50, np.float32) * np.float32(10.0) ** rng.integers(-30, 30, 50)
    values = {f"d{i}": v for i, v in enumerate(AWKWARD)}
    values |= {f"s{i}": v for i, v in enumerate(singles)} | {"jax": jnp.float32(np.log(64))}
    with MetricsWriter(tmp_path) as writer:
        writer.write(7, values)
    (record,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert next(iter(record)) == "step"
    assert record["step"] == 7
    for name, value in values.items():
        restored = value.dtype.type(record[name]) if hasattr(value, "dtype") else record[name]
        assert np.asarray(restored).tobytes() == np.asarray(value).tobytes(), name


def test_kinds_of_values(tmp_path: Path) -> None:
    metrics = {
        "int": np.int32(3),
        "bool": np.bool_(True),
        "bf16": jnp.bfloat16(1.5),
        "text": "fold 4, ‘quoted’\n",
        "big": 2**60 + 1,
    }
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, metrics)
        for bad in (np.zeros(2), [1.0], {"a": 1.0}, None, 1j):
            with pytest.raises(ValueError, match="one number or string"):
                writer.write(2, {"bad": bad})
        with pytest.raises(ValueError, match="line's own key"):
            writer.write(2, {"step": 2})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "int": 3, "bool": True, "bf16": 1.5, "text": "fold 4, ‘quoted’\n", "big": 2**60 + 1}
    ]


def test_values_that_are_not_finite_are_valid_json(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": np.nan, "b": np.inf, "c": jnp.float32(-jnp.inf)})
    path = tmp_path / "metrics.jsonl"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    line = json.loads(path.read_text(), parse_constant=refuse)
    assert line == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity"}
    (record,) = read_metrics(path)
    assert np.isnan(record["a"])
    assert (record["b"], record["c"]) == (np.inf, -np.inf)


def test_resume_leaves_one_version_of_each_step(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 11):
            writer.write(step, {"loss": step / 3})
        writer.write(10, {"zero_shot/accuracy": 0.5})
    with MetricsWriter(tmp_path) as writer:
        writer.truncate_after(6)
        for step in range(7, 13):
            writer.write(step, {"loss": step / 3})
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records == [{"step": step, "loss": step / 3} for step in range(1, 13)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncate_to_nothing_and_to_everything(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "new" / "run") as writer:
        writer.truncate_after(0)
        writer.write(5, {"loss": 1.0})
        before = writer.path.stat()
        writer.truncate_after(5)
        assert writer.path.stat().st_ino == before.st_ino
        writer.truncate_after(4)
        assert read_metrics(writer.path) == []


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    with MetricsWriter(tmp_path) as writer:
        writer.write(2, {"loss": 1.5})
    assert [r["step"] for r in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss": 1.0}', '{"step": "1"}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not a metrics record"):
        read_metrics(path)


def test_a_killed_process_keeps_every_line_it_wrote(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from alm_jax.training.metrics import MetricsWriter\n"
        "writer = MetricsWriter(sys.argv[1])\n"
        "for step in range(1, 100): writer.write(step, {'loss': 1 / step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": s, "loss": 1 / s} for s in range(1, 100)]


@pytest.mark.faults
def test_a_refused_write_ends_nothing_and_loses_nothing(tmp_path: Path, caplog: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (writer.path.stat().st_size + 9, hard))
        try:
            writer.write(2, {"loss": 0.5})
            writer.write(3, {"loss": 0.5})
            assert [r["step"] for r in read_metrics(writer.path)] == [1]
            assert writer.path.read_bytes().endswith(b"\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        writer.write(4, {"loss": 0.25})
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [record.message for record in caplog.records] == [
        f"{writer.path} cannot be written: File too large; training goes on, and records wait in memory until it can",
        f"{writer.path} can be written again, and lacks no record",
    ]


@pytest.mark.faults
def test_what_could_not_be_written_to_the_end_is_counted(tmp_path: Path, caplog: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, hard))
    try:
        with MetricsWriter(tmp_path) as writer:
            for step in (1, 2, 3):
                writer.write(step, {"loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "lacks the last 3 records" in caplog.text
