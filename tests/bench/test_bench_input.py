"""`alm bench input` and `alm bench index`: rows, stages, peers, and virtual indexes of any length."""

import importlib.util
import json

import numpy as np
import pytest

from alm_jax.bench import index as index_bench
from alm_jax.bench.table import INPUT_COLUMNS, STAGES, cells
from alm_jax.cli.main import dispatch
from data_pipelines.index import ROWS_PER_BATCH, Index


def command(tmp_path, *args: str) -> list[str]:
    data = [
        "--data.cache-dir",
        str(tmp_path),
        "--data.dataset.num-train",
        "16",
        "--data.dataset.num-test",
        "2",
    ]
    data += ["--data.dataset.num-validation", "2"]
    sizes = ["--repeats", "1", "--batches", "2", "--seconds", "0.5", "--json", "-"]
    return ["bench", "input", "configs/demo.py", *sizes, *args, *data, "--training.batch-size", "8"]


def test_every_case_has_a_row_with_its_stages(tmp_path, capsys):
    args = ["--rate", "16000,32000", "--step-ms", "100"]
    assert dispatch(command(tmp_path, *args)) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["encoding"], row["stored_hz"], row["model_hz"]) for row in rows] == [
        ("pcm", 16_000, 16_000),
        ("pcm", 32_000, 32_000),
        ("pcm", 32_000, 16_000),
    ]
    for row in rows:
        assert row["clips_per_core_sec"] > 0
        assert row["cores_needed"] == pytest.approx(80 / row["clips_per_core_sec"])
        stages = set(STAGES) - (set() if row["stored_hz"] != row["model_hz"] else {"resample"})
        assert set(row["stages_us"]) == stages
    titles, lines = cells(rows)
    assert len(titles) == len(INPUT_COLUMNS)
    assert len(lines) == 3


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("grain") is None, reason="Grain is not installed")
def test_peers_read_the_same_records(tmp_path, capsys):
    assert dispatch(command(tmp_path, "--peer", "dataloader,grain", "--encoding", "pcm,flac")) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["impl"] for row in rows] == ["alm_jax", "dataloader", "grain"] * 2
    assert rows[3]["bytes_per_clip"] < rows[0]["bytes_per_clip"]


def test_an_unknown_peer_is_an_error(tmp_path, capsys):
    assert dispatch(command(tmp_path, "--peer", "dali")) == 2
    assert "the peer 'dali' is not known; there are dataloader, grain" in capsys.readouterr().err


def test_an_index_whose_batches_are_one_is_as_long_as_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(index_bench, "MAX_WRITTEN_ROWS", 10)
    num_rows = 3 * ROWS_PER_BATCH + 5
    settings = index_bench.VirtualClipsConfig(num_rows=num_rows)
    index_bench.write_virtual(settings, tmp_path)
    (path,) = tmp_path.rglob("train.arrow")
    index = Index(path, num_rows)
    rows = np.array([0, ROWS_PER_BATCH, 3 * ROWS_PER_BATCH - 1, num_rows - 1])
    assert index.numbers("num_samples", rows).tolist() == [10, 10, 360, 130]
    assert path.stat().st_size < 2 * 120 * ROWS_PER_BATCH


def test_opening_and_resuming_a_virtual_index(tmp_path, monkeypatch):
    monkeypatch.setattr(index_bench, "_GROWTH_STEPS", 2)
    for num_rows in (100_000, 1_000):
        index_bench.write_virtual(index_bench.VirtualClipsConfig(num_rows=num_rows), tmp_path)
    row = index_bench.measure(100_000, str(tmp_path))
    numbers = np.arange(100_000)
    kept = (10 * (1 + numbers % 100) >= 250) & (numbers % 3 < 2) & (numbers % 8 < 6)
    assert row["kept_rows"] == kept.sum()
    assert row["resume_at_10000000_sec"] > 0
