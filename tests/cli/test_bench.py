"""`alm bench` as it is typed."""

import argparse
import importlib.util
import json

import pytest

from alm_jax.bench import resident
from alm_jax.cli.bench.options import numbers
from alm_jax.cli.main import dispatch, is_compiler_only


@pytest.fixture(autouse=True)
def no_process(monkeypatch):
    monkeypatch.setattr(resident, "growth_of", lambda target, **arguments: 1)


LOSS = ["bench", "loss", "--impl", "chunked", "--dim", "8", "--repeats", "1"]


def test_only_rows_are_printed_as_json(capsys):
    assert dispatch([*LOSS, "--batch", "16,32", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["impl"], row["batch"]) for row in rows] == [("chunked", 16), ("chunked", 32)]


def test_a_file_has_its_circumstances_and_pictures_beside_it(tmp_path, capsys):
    command = [*LOSS, "--batch", "16,32", "--devices", "2", "--json", str(tmp_path / "a" / "loss.json")]
    assert dispatch(command) == 0
    assert capsys.readouterr().out == ""
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert files == {"loss.json", "loss.run.json", "loss_memory.png", "loss_throughput.png"}
    circumstances = json.loads((tmp_path / "a" / "loss.run.json").read_text())
    assert circumstances["command"].startswith("alm bench loss --impl chunked")
    assert "jax" in circumstances["versions"]


def test_without_a_file_there_is_a_table(capsys):
    assert dispatch([*LOSS, "--batch", "16"]) == 0
    assert "chunked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "alm bench WHAT"),
        (["bandwidth"], "nothing called 'bandwidth'"),
        (["loss", "--batch", "many"], "no list of whole numbers"),
        (["loss", "--topology", "v9:2x2"], "no topology 'v9:2x2'"),
        (["loss", "--impl", "fast"], "no form 'fast'"),
    ],
)
def test_mistakes(args, message, capsys):
    assert dispatch(["bench", *args]) == 2
    assert message in capsys.readouterr().err


def test_sizes():
    assert numbers("1_000,16k,1m") == [1000, 16384, 1048576]
    with pytest.raises(argparse.ArgumentTypeError):
        numbers("k")


def test_libtpu_alone_is_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert is_compiler_only([str(tmp_path / "accel*")])
    (tmp_path / "accel0").touch()
    assert not is_compiler_only([str(tmp_path / "accel*")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not is_compiler_only([])
