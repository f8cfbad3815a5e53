"""Where the wall time went, by a clock of the test's own."""

from alm_jax.training.wall_time import FIGURES, WallTime


def test_every_second_is_of_one_part_and_sums_go_on_after_a_restart():
    now = [100.0]
    time = WallTime(clock=lambda: now[0])
    now[0] += 7
    time.begin_steps()
    with time.spent_on("compile"):
        now[0] += 5
    now[0] += 2
    time.add("data", 0.5)
    with time.spent_on("save"):
        now[0] += 1
    first = time.figures()
    assert first == {
        "wall/start_sec": 7.0,
        "wall/compile_sec": 5.0,
        "wall/data_sec": 0.5,
        "wall/step_sec": 1.5,
        "wall/evaluation_sec": 0.0,
        "wall/save_sec": 1.0,
        "wall/lost_sec": 0.0,
    }
    assert sum(first.values()) == now[0] - 100
    assert [figure.name for figure in FIGURES] == list(first)

    again = WallTime(clock=lambda: now[0])
    now[0] += 3
    again.begin_steps([{"step": 1, "step_sec": 9.0}, first, {"step": 3}], [{"step_sec": 0.25}, {"step": 4}])
    with again.spent_on("evaluation"):
        now[0] += 4
    second = again.figures()
    assert second["wall/start_sec"] == 10.0
    assert second["wall/evaluation_sec"] == 4.0
    assert second["wall/step_sec"] == 1.5
    assert second["wall/lost_sec"] == 0.25
