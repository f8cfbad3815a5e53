"""Every `alm ...` command in the README, in docs/ and in the headers of configs is accepted by its parser."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from alm_jax.cli import arguments, compile
from alm_jax.cli.main import COMMANDS, dispatch
from data_pipelines.datasets.recordings import RecordingsConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
PLACEHOLDERS = {
    "runs/demo/config.json": "configs/demo.py",
    "CONFIG": "configs/demo.py",
    "$OPTIONS": "",
    "$remat": "dots",
}

_BLOCK = re.compile(r"^ {4,}(?:\$ )?(alm |launch/local\.sh \d+ )(.*)$")
_INLINE = re.compile(r"`alm ([^`\[|]* --[^`\[|]*)`")
_OPTIONS = re.compile(r"`(--(?:training|objective|optimizer|data)\.[^` ]+(?: [^`]+|:[^`]+))`")
_REMARK = re.compile(r"\s{2,}[#(].*$|\s+#.*$")


def commands_in(text: str) -> set[str]:
    """The arguments of ``alm`` in indented lines, joined at a backslash, and in `code`; fields of configs in `code`."""
    found = set()
    joined = re.sub(r"\\\n\s*", "", text)
    for line in joined.splitlines():
        if (match := _BLOCK.match(line)) and "[" not in line:
            found.add(_REMARK.sub("", match[2]).strip())
    for match in _INLINE.finditer(text):
        words = match[1].split()
        if not words[1].startswith("--") and "..." not in words:
            found.add(" ".join(words))
    for match in _OPTIONS.finditer(text):
        config = "configs/clap.py" if match[1].startswith("--data.dataset.") else "configs/demo.py"
        found.add(f"pretrain {config} {' '.join(match[1].split())} --workdir DIR")
    return found


def documented() -> list[str]:
    """Every command, each once."""
    texts = [path.read_text() for path in PAGES]
    texts += [ast.get_docstring(ast.parse(path.read_text()), clean=False) or "" for path in CONFIGS]
    return sorted(set().union(*map(commands_in, texts)))


class Parsed(Exception):
    """The arguments were accepted; nothing was run."""


@pytest.fixture
def parses_only(monkeypatch):
    """Commands stop once their arguments are read, by argparse and, of a config, by tyro and the checks of a config."""

    def then_stop(function):
        def wrapped(*args, **kwargs):
            function(*args, **kwargs)
            raise Parsed

        return wrapped

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(arguments.Parser, "parse_args", then_stop(arguments.Parser.parse_args))
    monkeypatch.setattr(arguments, "override", then_stop(arguments.override))
    monkeypatch.setattr(RecordingsConfig, "read", then_stop(lambda *_: None))
    monkeypatch.setattr("alm_jax.training.distributed.initialize", lambda **_: None)
    monkeypatch.setattr(compile, "prepare_jax", lambda *_, **__: None)
    monkeypatch.setattr("alm_jax.cli.bench.step.prepare_jax", lambda *_, **__: None)


def accept(command: str) -> None:
    """Raises AssertionError where ``alm`` does not accept the command."""
    for placeholder, value in PLACEHOLDERS.items():
        command = command.replace(placeholder, value)
    try:
        code = dispatch(shlex.split(command))
    except Parsed:
        return
    except SystemExit as exit:
        code = exit.code or 0
    assert code == 0


@pytest.mark.parametrize("command", documented())
def test_it_is_accepted(command, parses_only):
    accept(command)


def test_every_command_is_documented():
    assert {command.split()[0] for command in documented()} == set(COMMANDS)


@pytest.mark.parametrize(
    "command",
    [
        "pretrain CONFIG --no-such-option 1",
        "evaluate runs/x --no-such-option",
        "zoo --no-such-option",
        "none",
    ],
)
def test_a_wrong_one_is_not(command, parses_only):
    with pytest.raises(AssertionError):
        accept(command)
