"""Damaged files of every reader, at random: a few hundred always, two hundred thousand behind the mark."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz_readers.py")


def fuzz(num_inputs: int, seed: int) -> str:
    """In a process of its own, which the guard against execution would otherwise outlive."""
    found = subprocess.run(
        [sys.executable, str(FUZZ), "--inputs", str(num_inputs), "--seed", str(seed)],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    return found.stdout


def test_damaged_files_are_refused_by_name():
    assert " 0 problems" in fuzz(600, 1)


@pytest.mark.slow
def test_damaged_files_at_length():
    print(fuzz(200_000, 0))
