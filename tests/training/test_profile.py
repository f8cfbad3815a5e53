"""A trace of some steps, and what it is asked for with."""

import subprocess
import sys

import jax
import pytest

from alm_jax.errors import UserError
from alm_jax.training.profile import StepProfile

TRACED = """
import sys
from pathlib import Path
import jax
import jax.numpy as jnp
from alm_jax.training.profile import StepProfile
steps, num_steps, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
profile = StepProfile(steps, folder)
double = jax.jit(lambda x: 2 * x)
for step in range(1, num_steps + 1):
    profile.before(step)
    double(jnp.float32(step)).block_until_ready()
    if profile.is_due_after(step):
        profile.close()
        print(step)
profile.close()
profile.close()
"""


@pytest.mark.parametrize(
    ("steps", "num_steps", "ended_after"),
    [("2:3", 5, ["3"]), ("1:100", 1, [])],
    ids=["whole", "run ends before"],
)
def test_the_steps_that_are_asked_for_are_traced(tmp_path, steps, num_steps, ended_after):
    """In a process of its own: the profiler can crash a process in which TensorFlow and PyTorch have run."""
    found = subprocess.run(
        [sys.executable, "-c", TRACED, steps, str(num_steps), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ended_after
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


def test_a_trace_that_fails_ends_nothing(tmp_path, monkeypatch, caplog):
    def fail(*args, **options):
        raise RuntimeError("no room")

    monkeypatch.setattr(jax.profiler, "start_trace", fail)
    profile = StepProfile("1:1", tmp_path)
    profile.before(1)
    assert not profile.is_due_after(1)
    assert "could not be traced: no room" in caplog.text


@pytest.mark.parametrize("steps", ["3", "3:2", "0:2", "a:b", "1:2:3", ":"])
def test_other_words_are_refused(tmp_path, steps):
    with pytest.raises(UserError, match="expected FIRST:LAST"):
        StepProfile(steps, tmp_path)
