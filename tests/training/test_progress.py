"""The bar on a terminal, and plain lines in a file."""

import io
import re

import pytest
from rich.console import Console

from alm_jax.training.progress import TrainingProgress, format_duration

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*[39][0-9]")


def run(console: Console, num_steps: int = 20, *, start_step: int = 0) -> TrainingProgress:
    """Steps of two seconds each, by a clock of the test's own, and a line each ten."""
    time = [0.0]
    progress = TrainingProgress(
        num_steps,
        pairs_per_step=64,
        start_step=start_step,
        log_sec=10.0,
        clock=lambda: time[0],
        console=console,
    )
    with progress:
        for step in range(start_step + 1, num_steps + 1):
            time[0] = 2.0 * step
            compiles = step == start_step + 1
            progress.update(
                step,
                loss=4.0 / step,
                step_sec=30.0 if compiles else 0.2,
                wait_sec=0.0 if compiles else 0.05,
                audio_hours=step * 64 * 5 / 3600,
            )
    return progress


def test_a_file_gets_a_plain_line_now_and_then() -> None:
    out = io.StringIO()
    run(Console(file=out, width=40))
    times, lines = zip(*(line.split(" step ") for line in out.getvalue().splitlines()), strict=True)
    assert all(re.fullmatch(r"19(70-01-01|69-12-31) \d\d:\d\d:\d\d", time) for time in times)
    assert [int(time[-2:]) for time in times] == [2, 12, 22, 32, 40]
    assert list(lines) == [
        "1/20  loss 4.0000  30 s/step  2 pairs/s  0.0889 h audio  data wait 0%",
        "6/20  0:03 left  loss 0.6667  0.2 s/step  320 pairs/s  0.533 h audio  data wait 25%",
        "11/20  0:02 left  loss 0.3636  0.2 s/step  320 pairs/s  0.978 h audio  data wait 25%",
        "16/20  0:01 left  loss 0.2500  0.2 s/step  320 pairs/s  1.42 h audio  data wait 25%",
        "20/20  0:00 left  loss 0.2000  0.2 s/step  320 pairs/s  1.78 h audio  data wait 25%",
    ]


def test_sparse_updates_and_a_wait_longer_than_a_step() -> None:
    out, times = io.StringIO(), iter((0, 0, 5, 31, 31, 100, 100))
    progress = TrainingProgress(
        1000, pairs_per_step=8, start_step=400, clock=lambda: next(times), console=Console(file=out)
    )
    with progress:
        for step in (410, 490, 510, 730):
            progress.update(step, loss=1.0, step_sec=0.1, wait_sec=0.2, audio_hours=1.0)
    lines = out.getvalue().splitlines()
    assert [line.split(" step ")[1].split()[0] for line in lines] == ["410/1000", "510/1000", "730/1000"]
    assert all("data wait 100%" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_terminal_gets_a_bar_that_fits(width: int) -> None:
    out = io.StringIO()
    run(Console(file=out, force_terminal=True, width=width, _environ={"TERM": "xterm"}))
    last = [CONTROL.sub("", line) for line in re.split(r"[\r\n]+", out.getvalue()) if CONTROL.sub("", line)]
    bar, figures = last[-2:]
    assert re.fullmatch(r"━+ 20/20  0:00 left", bar.strip())
    assert figures.startswith("loss 0.2000  0.2 s/step  320 pairs/s  1.78 h audio")
    assert max(len(line) for line in last) <= width


def test_no_color_and_dumb_terminals_are_honoured() -> None:
    texts = {}
    for name, environ in (
        ("colour", {"TERM": "xterm-256color"}),
        ("no_color", {"TERM": "xterm-256color", "NO_COLOR": "1"}),
        ("dumb", {"TERM": "dumb"}),
    ):
        out = io.StringIO()
        run(Console(file=out, force_terminal=True, width=80, _environ=environ))
        texts[name] = out.getvalue()
    assert COLOUR.search(texts["colour"])
    assert not COLOUR.search(texts["no_color"])
    assert "\x1b" not in texts["dumb"]
    assert len(texts["dumb"].splitlines()) == 5


def test_quiet_says_nothing_and_messages_are_printed_as_they_are() -> None:
    out = io.StringIO()
    run(Console(file=out, quiet=True))
    assert out.getvalue() == ""
    with TrainingProgress(5, pairs_per_step=1, console=Console(file=out)) as progress:
        progress.message("saved [bold]step[/bold] 3 in runs/demo")
    assert out.getvalue() == "saved [bold]step[/bold] 3 in runs/demo\n"


def test_standard_output_stays_clean(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(1, pairs_per_step=1) as progress:
        progress.update(1, loss=1.0, step_sec=1.0, wait_sec=0.0, audio_hours=0.0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert " step 1/1  loss" in captured.err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00"), (59.6, "1:00"), (3599.0, "59:59"), (3600.0, "1:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
