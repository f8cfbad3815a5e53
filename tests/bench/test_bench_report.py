"""The page is made of files, and of files alone."""

import json

import pytest

from alm_jax.bench.record import Recorder, read_record
from alm_jax.bench.report import write_page
from alm_jax.errors import DataError, UserError

ROW = {
    "loss": "infonce",
    "impl": "chunked",
    "batch": 4096,
    "dim": 512,
    "vocab": None,
    "dtype": "float32",
    "devices": 1,
    "platform": "cpu",
    "topology": None,
    "temp_bytes": 3 * 2**20,
    "peak_bytes": None,
    "rss_bytes": 2**20,
    "flops": 1.0,
    "flops_over_b2d": 8.0,
    "collective_bytes": None,
    "estimated_cycles": None,
    "step_ms": {"min": 1.5, "median": 2.0, "spread": 1.0},
    "pairs_per_s": 2048000.0,
    "hbm_limit": None,
    "fits": True,
    "error": None,
}


@pytest.fixture
def folder(tmp_path):
    recorder = Recorder(tmp_path / "rows" / "loss_cpu.json", "alm bench loss --batch 4k")
    recorder.add(ROW)
    peer = {"impl": "open_clip", "temp_bytes": None, "error": "it broke", "rss_bytes": 3 * 2**20}
    recorder.add(ROW | peer | {"step_ms": {"min": 3.0, "median": 4.0, "spread": 2.0}})
    (tmp_path / "rows" / "loss_cpu_memory.png").write_bytes(b"")
    return tmp_path / "rows"


def test_what_is_written_is_read(folder):
    record = read_record(folder / "loss_cpu.json")
    assert record.rows[0] == ROW
    assert record.command == "alm bench loss --batch 4k"
    assert record.machine["cores"] >= 1
    assert {"python", "jax"} <= set(record.versions)


def test_the_page_has_every_figure_and_where_it_is_from(folder):
    page = write_page(folder, relative_to=folder.parent)
    assert "## Loss cpu" in page
    assert "    alm bench loss --batch 4k" in page
    assert (
        "| loss | impl | batch | dim | dtype | devices | on | temp MiB | resident MiB | FLOPs / (B² D / n) |"
        in page
    )
    assert (
        "| infonce | chunked | 4,096 | 512 | float32 | 1 | cpu | 3.0 | 1.0 | 8.00 | 1.5 | 2.0 | 1.0 | 2,048,000 | yes |"
        in page
    )
    assert "open_clip, batch 4,096: it broke" in page
    assert (
        "- infonce, 4,096: open_clip takes 2.00 times as long as chunked (minima) and 3.0 times its resident"
        in page
    )
    assert "(rows/loss_cpu_memory.png)" in page
    assert "cores" in page


def test_it_says_what_is_missing(folder, tmp_path):
    with pytest.raises(UserError, match="holds no rows"):
        write_page(tmp_path / "nowhere", relative_to=tmp_path)
    (folder / "loss_cpu.run.json").unlink()
    with pytest.raises(DataError, match=r"loss_cpu\.run\.json"):
        write_page(folder, relative_to=tmp_path)
    (folder / "loss_cpu.run.json").write_text(json.dumps({"command": "x"}))
    with pytest.raises(DataError, match="no record"):
        read_record(folder / "loss_cpu.json")
