"""Bad recordings and bad tables on the command line: counted or refused, with the exit code that says which."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from alm_jax.cli.main import dispatch

CONFIG = Path(__file__).parents[2] / "configs" / "esc10_two_towers_nano.py"
NUM_GOOD = 16


@pytest.fixture
def esc(tmp_path, real_data_dir):
    """A small ESC folder of real recordings, some of every fold of the config."""
    root = tmp_path / "esc"
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    with (real_data_dir / "esc10" / "meta" / "esc50.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_fold = [row for fold in "1234" for row in [r for r in rows if r["fold"] == fold][: NUM_GOOD // 4]]
    for row in by_fold:
        shutil.copy(real_data_dir / "esc10" / "audio" / row["filename"], root / "audio")
    write_table(root, by_fold)
    return root, by_fold


def write_table(root: Path, rows: list[dict[str, str]]) -> None:
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def build(root: Path, tmp_path: Path, *options: str) -> int:
    own = ["--data.dataset.root", str(root), "--data.cache-dir", str(tmp_path / "cache")]
    return dispatch(["data", "build", str(CONFIG), *own, *options])


def test_broken_recordings_are_counted_and_listed(esc, tmp_path, capsys):
    root, rows = esc
    whole = (root / "audio" / rows[0]["filename"]).read_bytes()
    broken = {
        "corrupt": whole[:100] + bytes(200) + whole[300:],
        "empty": b"",
        "page": b"<html>not found</html>",
        "truncated": whole[: len(whole) // 2],
    }
    for name, content in broken.items():
        (root / "audio" / f"1-{name}-A.ogg").write_bytes(content)
    soundfile.write(root / "audio" / "1-header-A.wav", np.zeros(0, np.float32), 44100)
    soundfile.write(
        root / "audio" / "1-nan-A.wav", np.full(44100, np.nan, np.float32), 44100, subtype="FLOAT"
    )
    names = [f"1-{name}-A.ogg" for name in broken] + ["1-header-A.wav", "1-nan-A.wav"]
    write_table(root, rows + [rows[0] | {"filename": name} for name in names])

    assert build(root, tmp_path, "--data.max-bad-fraction", "0.5") == 0
    output = capsys.readouterr().out
    assert f"rejected recordings: {len(names)}" in output
    found = [
        json.loads(line)
        for path in (tmp_path / "cache").rglob("rejects.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert sorted(Path(row["path"]).name for row in found) == sorted(names)
    assert all(row["reason"] for row in found)

    assert build(root, tmp_path, "--data.max-bad-fraction", "0.1") == 3
    assert "max_bad_fraction" in capsys.readouterr().err


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert build(tmp_path / "nowhere", tmp_path) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_table_without_a_column(esc, tmp_path, capsys):
    root, rows = esc
    write_table(root, [{key: value for key, value in row.items() if key != "category"} for row in rows])
    assert build(root, tmp_path) in (2, 3)
    errors = capsys.readouterr().err
    assert "category" in errors
    assert "esc50.csv" in errors


def test_a_file_that_the_table_names_and_nobody_has(esc, tmp_path, capsys):
    root, rows = esc
    (root / "audio" / rows[3]["filename"]).unlink()
    assert build(root, tmp_path, "--data.max-bad-fraction", "0.5") == 0
    assert "rejected recordings: 1" in capsys.readouterr().out
