"""`alm` starts again with huge pages once, and not where it was told otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alm_jax.cli.main import HUGE_PAGES, TUNABLES

OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CODE = """
import os
from alm_jax.cli import main as entry
entry.dispatch = lambda _: print(os.environ.get(entry.TUNABLES))
entry.main()
"""


def setting_seen_by_a_command(tunables: str | None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != TUNABLES}
    if tunables is not None:
        environment[TUNABLES] = tunables
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(
    not OFFERED.is_file() or "[never]" in OFFERED.read_text(), reason="this system offers no huge pages"
)
def test_a_command_runs_with_huge_pages():
    assert setting_seen_by_a_command(None) == HUGE_PAGES


def test_a_setting_of_the_environment_stays():
    assert setting_seen_by_a_command("glibc.malloc.arena_max=1") == "glibc.malloc.arena_max=1"
