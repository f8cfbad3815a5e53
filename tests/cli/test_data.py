"""`alm data`: what is checked, built, shown and listed, and the exit code of each mistake."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from alm_jax.cli.main import dispatch

ROOT = Path(__file__).parents[2]
TINY = ["--data.source-sec", "0.5", "--data.tokenizer.vocab-size", "300", "--data.tokenizer.max-length", "12"]


@pytest.fixture
def own(tmp_path):
    """A table of ten clips, two of which cannot be used and two of which are the same recording."""
    rng = np.random.default_rng(0)
    for i in range(8):
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.5, 0.5, 8000), 16_000)
    shutil.copy(tmp_path / "0.wav", tmp_path / "8.wav")
    (tmp_path / "9.wav").write_text("<html>404</html>")
    lines = [f'{i}.wav,"a sound, number {i}",CC0,{"low" if i % 2 else "high"}' for i in range(11)]
    (tmp_path / "my.csv").write_text("file,text,licence,label\n" + "\n".join(lines) + "\n")
    return tmp_path / "my.csv"


def test_check_counts_and_names_the_problems(own, capsys):
    assert dispatch(["data", "check", str(own)]) == 3
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert any(line.startswith("recordings  10 found, 1 missing, 1 undecodable") for line in lines)
    assert "rates       16000 Hz mono 9" in lines
    assert "licences    CC0 11" in lines
    assert "classes     2: high 6, low 5" in lines
    assert "captions    11; 1 to 1 a clip" in lines
    assert "length      4.5 s together; 0.5 to 0.5 s, half at most 0.5, 99 % at most 0.5" in lines
    assert any(line.startswith("duplicates  1 recordings (8 is 0)") for line in lines)
    assert f"problem     {own}:11: 9.wav: not audio: an HTML page, probably a failed download" in lines
    assert f"problem     {own}:12: 10.wav: missing: there is no such file" in lines
    assert "2 of 11 rows cannot be used" in output.err
    assert not list(own.parent.glob("*/"))


def test_check_goes_on_after_rows_that_cannot_be_used(own, capsys):
    own.write_text(
        own.read_text() + "../x.wav,x,,\n" + "\n".join(f"nothing{i}.wav,x,," for i in range(20)) + "\n"
    )
    assert dispatch(["data", "check", str(own)]) == 3
    lines = capsys.readouterr().out.splitlines()
    problems = [line for line in lines if line.startswith("problem")]
    assert len(problems) == 10
    assert problems[0].startswith(f"problem     {own}:13: file is '../x.wav', expected a path inside")


def test_a_clean_set_exits_with_0_and_is_built_and_shown(own, tmp_path, capsys):
    own.write_text("".join(line + "\n" for line in own.read_text().splitlines()[:9]))
    assert dispatch(["data", "check", str(own)]) == 0
    settings = [
        "configs/clap.py",
        "--data.dataset.path",
        str(own),
        "--data.cache-dir",
        str(tmp_path / "cache"),
        *TINY,
    ]
    settings[0] = str(ROOT / settings[0])
    assert dispatch(["data", "build", *settings]) == 0
    assert "rejected recordings: 0" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert dispatch(["data", "show", *settings, "--out", str(page), "--clips", "2"]) == 0
    text = page.read_text()
    assert text.count("<audio") == 3
    assert text.count("data:image/png") == 3 + 2
    assert "a sound, number 0" in text
    assert "<th>silent<td>0" in text


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def beam_arguments(own, cache: Path) -> list[str]:
    own.write_text("".join(line + "\n" for line in own.read_text().splitlines()[:9]))
    args = ["data", "build", str(ROOT / "configs/clap.py"), "--data.dataset.path", str(own)]
    return [*args, "--data.cache-dir", str(cache), *TINY, "--beam", "--runner=DirectRunner"]


@pytest.mark.slow
def test_beam_by_the_command_line_writes_the_same_bytes(own, tmp_path, caplog):
    """`pip install alm_jax[beam]` in an environment of its own runs this."""
    pytest.importorskip("apache_beam")
    caplog.set_level("INFO", "data_pipelines")
    args = beam_arguments(own, tmp_path / "beam")
    assert dispatch(args) == 0
    assert "Apache Beam wrote: record bytes" in caplog.text
    args[args.index(str(tmp_path / "beam"))] = str(tmp_path / "threads")
    assert dispatch(args[:-2]) == 0
    beam, threads = (digests(tmp_path / name / "recordings") for name in ("beam", "threads"))
    assert beam == threads
    assert sum("array_record" in name for name in beam) == 2


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is not None, reason="Apache Beam is installed")
def test_beam_that_is_not_installed_is_a_mistake(own, tmp_path, capsys):
    assert dispatch(beam_arguments(own, tmp_path / "cache")) == 2
    assert "--beam needs Apache Beam, which is not installed" in capsys.readouterr().err


def test_list_names_every_data_set(capsys):
    assert dispatch(["data", "list"]) == 0
    output = capsys.readouterr().out
    assert "Esc50Config" in output
    assert "RecordingsConfig" in output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to do was named"),
        (["configs/demo.py"], "`alm data build configs/demo.py` builds a config"),
        (["biuld"], "there is no `alm data biuld`"),
        (["check"], "nothing to check was named"),
        (["check", "nowhere.csv"], "nowhere.csv: there is no such file or folder; expected a table"),
        (["build", "my.csv"], "name a config file"),
    ],
)
def test_mistakes_are_explained(args, message, capsys):
    assert dispatch(["data", *args]) == 2
    assert message in capsys.readouterr().err


def test_names_beyond_ascii_are_printed_under_the_c_locale(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(8000, 0.1), 16_000)
    lines = [{"audio": "a.wav", "text": "Möwen 海", "label": "ярмарка", "id": name} for name in "ab"]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-X", "utf8=0", "-m", "alm_jax", "data"]
    environment = {
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PATH": "",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
    }
    build = ["build", str(ROOT / "configs/clap.py"), "--data.dataset.path", str(tmp_path / "my.jsonl"), *TINY]
    build += ["--data.cache-dir", str(tmp_path / "cache")]
    for arguments in (["check", str(tmp_path / "my.jsonl")], build):
        done = subprocess.run(command + arguments, env=environment, capture_output=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr.decode()
        assert b"Traceback" not in done.stderr
