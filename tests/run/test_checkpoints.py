"""`alm checkpoint`: what lies in a run folder, whether it is whole, how two differ, copies, and what may go."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from alm_jax.cli.main import dispatch
from alm_jax.run.checkpoints import difference, list_checkpoints, verify
from alm_jax.run.load import load_model
from alm_jax.run.workdir import CHECKPOINTS, locked

pytestmark = pytest.mark.faults


@pytest.fixture
def own(run, tmp_path):
    """A copy that a test may damage."""
    folder = tmp_path / "own"
    shutil.copytree(run, folder)
    return folder


def test_list(run, capsys):
    entries = list_checkpoints(run)
    assert [(entry.step, entry.loss) for entry in entries] == [(10, 3.0), (20, 1.0), (30, 2.0)]
    assert all(entry.size_bytes > 10_000 for entry in entries)
    assert dispatch(["checkpoint", "list", str(run)]) == 0
    assert "3.0000" in capsys.readouterr().out


def test_verify_finds_each_flipped_bit(own, rng, capsys):
    assert dispatch(["checkpoint", "verify", str(own)]) == 0
    assert "as it was written" in capsys.readouterr().out
    # Of one step, so that each of a hundred looks is short.
    files = [path for path in (own / CHECKPOINTS / "20").rglob("*") if path.is_file()]
    files += [own / "config.json", own / "tokenizer.json", own / "SHA256SUMS"]
    files = [path for path in files if path.stat().st_size]
    missed = []
    for count in range(100):
        path = files[count % len(files)]
        content = path.read_bytes()
        position = int(rng.integers(0, len(content) * 8))
        changed = bytearray(content)
        changed[position // 8] ^= 1 << (position % 8)
        path.write_bytes(bytes(changed))
        if not verify(own, []) and not verify_files(own):
            missed.append((str(path), position))
        path.write_bytes(content)
    assert not missed
    assert not verify(own)


def verify_files(run):
    from alm_jax.training.file_sums import check_sums

    return check_sums(run / CHECKPOINTS / "20", is_complete=True)


def test_arrays_are_checked_where_files_have_no_sums(own, capsys):
    folder = own / CHECKPOINTS / "20"
    (folder / "SHA256SUMS").unlink()
    assert not verify(own, [20])
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert dispatch(["checkpoint", "verify", str(own)]) == 3
    assert "20 is damaged" in capsys.readouterr().err


def test_sums_are_those_of_sha256sum(run):
    for folder in (run, run / CHECKPOINTS / "10"):
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


def test_a_file_that_came_or_went_is_found(own):
    (own / CHECKPOINTS / "10" / "new").touch()
    assert any("has no sum" in problem for problem in verify(own, [10]))
    (own / CHECKPOINTS / "10" / "new").unlink()
    (own / CHECKPOINTS / "10" / "manifest" / "metadata").rename(own / "elsewhere")
    assert any("is missing" in problem for problem in verify(own, [10]))


def test_diff(run, capsys):
    config, arrays = difference(f"{run}@10", f"{run}@30")
    assert config == []
    # Every parameter was filled with its step, and the step itself is an array.
    params = [line for line in arrays if line.startswith("params/")]
    assert params
    assert all("differs by 2 of its norm, at most 20" in line for line in params)
    assert any(line.startswith("step:") for line in arrays)
    assert dispatch(["checkpoint", "diff", f"{run}@10", f"{run}@10"]) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_copy_is_a_run_of_its_own(run, tmp_path):
    out = tmp_path / "copy"
    assert dispatch(["checkpoint", "copy", f"{run}@20", str(out)]) == 0
    ours, theirs = load_model(out), load_model(f"{run}@20")
    assert ours.fingerprint == theirs.fingerprint
    assert ours.experiment == theirs.experiment
    assert not verify(out)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert max(record["step"] for record in records) == 20
    assert dispatch(["checkpoint", "copy", str(run), str(out)]) == 2


def test_prune_leaves_whole_ones(own, capsys):
    (own / CHECKPOINTS / "30" / "manifest" / "metadata").write_text("{")
    with locked(own):
        assert dispatch(["checkpoint", "prune", str(own)]) == 2
    assert "in use" in capsys.readouterr().err
    assert dispatch(["checkpoint", "prune", str(own), "--keep", "0"]) == 2
    assert dispatch(["checkpoint", "prune", str(own), "--keep-step", "11"]) == 2
    assert dispatch(["checkpoint", "prune", str(own), "--keep", "1"]) == 0
    assert capsys.readouterr().out == "deleted [10, 30]\n"
    assert np.all([path.name == "20" for path in (own / CHECKPOINTS).iterdir()])
