"""`alm compile`: a training laid out on chips that are not here."""

import importlib.util
import json
from pathlib import Path

import pytest

from alm_jax.cli.main import dispatch

CONFIG = Path(__file__).with_name("tiny_config.py")
OPTIONS = ["--training.batch-size", "64", "--training.mesh.fsdp", "2"]


def test_shapes_alone(capsys):
    assert dispatch(["compile", str(CONFIG), "--topology", "v5e:4x4", "--no-compile", *OPTIONS]) == 0
    shown = capsys.readouterr().out
    assert "tiny on v5e:4x4 (data 8 x fsdp 2)" in shown
    assert "a chip has" in shown
    assert "text/token_embed/embedding" in shown


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--topology", "v9:2x2"], "no topology 'v9:2x2'"),
        (["--topology", "v5e"], "no topology 'v5e'"),
        (["--topology", "v5e:16x16", *OPTIONS], "a batch of 64 does not divide"),
        ([], "--topology"),
    ],
)
def test_mistakes(args, words, capsys):
    assert dispatch(["compile", str(CONFIG), "--no-compile", *args]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra `aot`)"
)
def test_the_compiler_says_its_peak(capsys):
    assert dispatch(["compile", str(CONFIG), "--topology", "v5e:2x2", "--json", "-", *OPTIONS]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert found["step"]["fits"]
    held = found["bytes_per_chip"]
    # State and batch go in and come out; gradients are made on the way.
    assert found["step"]["peak_bytes"] > found["total_bytes_per_chip"] - held["gradients"]
