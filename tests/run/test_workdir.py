"""The folder of a run: who may hold it, what of it is believed, and what is said where it cannot be used."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from alm_jax.cli.main import dispatch
from alm_jax.errors import DataError, UserError
from alm_jax.run import workdir as run_folder
from alm_jax.training.metrics import METRICS_FILE, MetricsWriter

pytestmark = pytest.mark.faults
CONFIG = Path(__file__).parents[1] / "cli" / "tiny_config.py"
NOBODY = 65534


def test_a_folder_is_held_once(tmp_path):
    says = rf"in use by another run \(process {os.getpid()} on"
    with run_folder.locked(tmp_path / "run"), pytest.raises(UserError, match=says):
        run_folder.locked(tmp_path / "run").__enter__()
    with run_folder.locked(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_of_the_kernel_has_a_lock_file(tmp_path, monkeypatch):
    import errno
    import fcntl

    def refuse(*args):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_folder.locked(tmp_path), pytest.raises(UserError, match="in use"), run_folder.locked(tmp_path):
        pass
    with run_folder.locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("file", "File exists"),
        ("file/below", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("loop/run", "Too many levels of symbolic links"),
        ("/proc/run", "No such file or directory"),
    ],
)
def test_a_folder_that_cannot_be_is_a_message(tmp_path, capsys, name, says):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert dispatch(["pretrain", str(CONFIG), "--workdir", str(tmp_path / name)]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("address", ["gs://bucket/x", "s3://bucket/x", "gs:/bucket/x", "file:///x"])
def test_a_bucket_is_never_a_local_folder(tmp_path, monkeypatch, capsys, address):
    monkeypatch.chdir(tmp_path)
    assert dispatch(["pretrain", str(CONFIG), "--workdir", address]) == 2
    assert "mount the bucket" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")
def test_a_user_who_may_not_write_gets_a_message(tmp_path):
    (tmp_path / "run").mkdir()
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(0o755)
    code = (
        "import sys\nfrom pathlib import Path\nfrom alm_jax.run.workdir import locked\n"
        "from alm_jax.errors import UserError\n"
        "try:\n    locked(Path(sys.argv[1])).__enter__()\n"
        "except UserError as error:\n    print(error)\n    sys.exit(error.exit_code)"
    )
    for folder in (tmp_path / "run", tmp_path / "new"):
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        found = subprocess.run(
            [*user, sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
        )
        assert (found.returncode, found.stderr) == (2, "")
        assert "Permission denied; name another --workdir" in found.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config(:", r"SyntaxError: .* \(line 1\)"),
        ("import nothing_of_that_name", r"No module named .* \(line 1\)"),
        ("x = 1\ny = x / 0", r"ZeroDivisionError: .* \(line 2\)"),
        ("def get_config():\n    return missing", r"get_config\(\) of .* name 'missing' .* \(line 2\)"),
        ("def get_config():\n    return 3", "returned int"),
        ("", r"has no function get_config\(\)"),
    ],
)
def test_a_config_file_with_a_mistake_is_a_message(tmp_path, capsys, text, says):
    path = tmp_path / "config.py"
    path.write_text(text)
    assert dispatch(["pretrain", str(path), "--workdir", str(tmp_path / "run")]) == 2
    import re

    assert re.search(says, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ['{"a": 1', "", "[1]", '{"type": "Other"}'])
def test_a_damaged_config_of_a_run_is_written_anew(tmp_path, caplog, content):
    from alm_jax.run.train import read_again

    (tmp_path / "config.json").write_text(content)
    run_folder.check_config(tmp_path, {"a": 1}, read=read_again)
    assert "is damaged" in caplog.text


def test_data_that_moved_do_not_make_another_run():
    def config(root, mixed):
        dataset = {"type": "FsddConfig", "root": root, "size": 3}
        if mixed:
            dataset = {"type": "MixtureConfig", "parts": [{"dataset": dataset, "name": "a"}]}
        return {"data": {"dataset": dataset}}

    for mixed in (False, True):
        run_folder.check_resumable(config("/old", mixed), config("/new", mixed), where="x")
        other = json.loads(json.dumps(config("/new", mixed)).replace('"size": 3', '"size": 4'))
        with pytest.raises(UserError, match=r"size: 3 -> 4"):
            run_folder.check_resumable(config("/old", mixed), other, where="x")


def write_metrics(folder, *records):
    with MetricsWriter(folder) as writer:
        for step, metrics in records:
            writer.write(step, metrics)


def test_an_evaluation_that_was_stopped_is_found_missing(tmp_path):
    training = SimpleNamespace(num_steps=10, eval_every=4)
    write_metrics(
        tmp_path, (4, {"loss": 1.0, "grad_norm": 1.0}), (4, {"validation/loss": 1.0}), (8, {"grad_norm": 1.0})
    )
    found = {step: run_folder.is_evaluation_missing(tmp_path, step, training) for step in (0, 3, 4, 8, 10)}
    assert found == {0: False, 3: False, 4: False, 8: True, 10: True}


def test_a_folder_that_has_trained_is_not_begun_anew(tmp_path):
    run_folder.check_untrained(tmp_path, 5)
    write_metrics(tmp_path, (5, {"loss": 1.0}))
    run_folder.check_untrained(tmp_path, 5)
    write_metrics(tmp_path, (6, {"loss": 1.0}))
    content = (tmp_path / METRICS_FILE).read_bytes()
    with pytest.raises(DataError, match=r"has trained .* Nothing was changed"):
        run_folder.check_untrained(tmp_path, 5)
    assert (tmp_path / METRICS_FILE).read_bytes() == content
    (tmp_path / METRICS_FILE).unlink()
    (tmp_path / "checkpoints" / "damaged-60").mkdir(parents=True)
    with pytest.raises(DataError, match="damaged-60"):
        run_folder.check_untrained(tmp_path, 5)


def test_there_need_be_no_home(tmp_path):
    code = "from alm_jax.run.session import enable_compilation_cache as f\nf()\nimport jax\n"
    code += "print(jax.config.jax_compilation_cache_dir)"
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")
    }
    # A user id without an entry in the table of users.
    user = (
        ["setpriv", "--reuid=54321", "--clear-groups"]
        if os.geteuid() == 0 and shutil.which("setpriv")
        else []
    )
    for extra, expected in (
        ({}, "None"),
        ({"XDG_CACHE_HOME": str(tmp_path)}, str(tmp_path / "alm_jax" / "xla")),
    ):
        found = subprocess.run(
            [*user, sys.executable, "-c", code],
            env=environment | extra | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        if user:
            assert found.stdout.strip() == expected


def test_a_change_is_asked_for_and_said():
    old = {"training": {"num_steps": 5, "batch_size": 2}, "optimizer": {"peak_lr": 1.0}, "seed": 0}
    new = {"training": {"num_steps": 9, "batch_size": 2}, "optimizer": {"peak_lr": 0.5}, "seed": 0}
    with pytest.raises(UserError, match=r"training\.num_steps: 5 -> 9\nContinue with the change by --change"):
        run_folder.check_resumable(old, new, where="x")
    lines = run_folder.check_resumable(old, new, where="x", is_change_allowed=True)
    assert lines == ["optimizer.peak_lr: 1.0 -> 0.5", "training.num_steps: 5 -> 9"]
    with pytest.raises(UserError, match=r"  seed: 0 -> 1\nContinue it with its own config"):
        run_folder.check_resumable(old, new | {"seed": 1}, where="x", is_change_allowed=True)


def test_a_run_says_how_it_came_about(tmp_path):
    import logging

    from alm_jax.run.record import LOG, recorded

    def fail():
        logging.getLogger("alm_jax.training.loop").warning("a save failed")
        raise DataError("the loss is not finite")

    with pytest.raises(DataError), recorded(tmp_path, "8 cpu device(s)"):
        fail()
    with recorded(tmp_path, "8 cpu device(s)"):
        pass
    lines = [line.split(" ", 2)[2] for line in (tmp_path / LOG).read_text().splitlines()]
    start = json.loads(lines[0].removeprefix("start "))
    assert start["devices"] == "8 cpu device(s)"
    assert start["versions"]["jax"]
    assert Path(sys.executable).name in start["command"]
    assert lines[1:3] == ["WARNING a save failed", "end DataError: the loss is not finite"]
    assert lines[3].startswith("start ")
    assert lines[4] == "end"


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path):
    import logging

    from alm_jax.run.record import LOG, recorded

    (tmp_path / LOG).symlink_to(LOG)
    with recorded(tmp_path, ""):
        logging.getLogger("alm_jax").warning("x")
