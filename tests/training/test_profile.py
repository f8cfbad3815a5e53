"""A trace of some steps, and what it is asked for with."""

import jax
import jax.numpy as jnp
import pytest

from alm_jax.errors import UserError
from alm_jax.training.profile import StepProfile


def test_the_steps_that_are_asked_for_are_traced(tmp_path):
    profile = StepProfile("2:3", tmp_path)
    double = jax.jit(lambda x: 2 * x)
    ended_after = []
    for step in range(1, 6):
        profile.before(step)
        double(jnp.float32(step)).block_until_ready()
        if profile.is_due_after(step):
            profile.close()
            ended_after.append(step)
    assert ended_after == [3]
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


def test_a_run_that_ends_before_writes_what_it_has(tmp_path):
    profile = StepProfile("1:100", tmp_path)
    profile.before(1)
    profile.close()
    profile.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


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
