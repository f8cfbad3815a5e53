"""Own data by one command: four layouts of the same real clips train to the same losses, bit for bit."""

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from alm_jax.cli.main import dispatch

CONFIG = str(Path(__file__).parents[2] / "configs" / "clap.py")
NUM_CLIPS = 24
TINY = [
    "--data.source-sec",
    "1",
    "--data.tokenizer.vocab-size",
    "320",
    "--data.tokenizer.max-length",
    "16",
    "--data.dataset.test-fraction",
    "0.3",
    "--training.num-steps",
    "3",
    "--optimizer.warmup-steps",
    "1",
    "--training.ema-decay",  # jaxtyping looks at states, and JAX at None in them
    "0.9",
    "--training.batch-size",
    "8",
    "--objective.model.frontend.clip.clip-sec",
    "1",
    "--objective.model.frontend.num-mels",
    "16",
    "--objective.model.frontend.n-fft",
    "512",
    "--objective.model.audio.spec-size",
    "32",
    "--objective.model.audio.num-mels",
    "16",
    "--objective.model.audio.embed-dim",
    "16",
    "--objective.model.audio.depths",
    "1",
    "1",
    "--objective.model.audio.num-heads",
    "2",
    "2",
    "--objective.model.audio.spec-augment-time-width",
    "4",
    "--objective.model.audio.spec-augment-freq-width",
    "4",
    "--objective.model.text.width",
    "32",
    "--objective.model.text.num-heads",
    "2",
    "--objective.model.text.mlp-dim",
    "64",
    "--objective.model.text.vocab-size",
    "320",
    "--objective.model.embed-dim",
    "16",
]


@pytest.fixture(scope="module")
def clips(real_data_dir):
    """Real recordings of ESC-10 and the names of their classes, by id, ordered by id."""
    with open(real_data_dir / "esc10" / "meta" / "esc50.csv", newline="") as table:
        rows = sorted(csv.DictReader(table), key=lambda row: row["filename"])[:NUM_CLIPS]
    folder = real_data_dir / "esc10" / "audio"
    return {folder / row["filename"]: row["category"].replace("_", " ") for row in rows}


def caption(name: str) -> str:
    return f"the sound of {name}"


def make_csv(root: Path, clips: dict[Path, str]) -> Path:
    (root / "sounds").mkdir()
    for path in clips:
        shutil.copy(path, root / "sounds")
    lines = [f"sounds/{path.name},{caption(name)}" for path, name in clips.items()]
    (root / "my.csv").write_text("path,caption\n" + "\n".join(lines) + "\n")
    return root / "my.csv"


def make_json_lines(root: Path, clips: dict[Path, str]) -> Path:
    make_csv(root, clips)
    lines = [{"audio": f"sounds/{path.name}", "text": caption(name)} for path, name in clips.items()]
    (root / "my.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root / "my.jsonl"


def make_audio_folder(root: Path, clips: dict[Path, str]) -> Path:
    (root / "data").mkdir()
    for path in clips:
        shutil.copy(path, root / "data")
    lines = [f"{path.name},{caption(name)}" for path, name in clips.items()]
    (root / "data" / "metadata.csv").write_text("file_name,text\n" + "\n".join(lines) + "\n")
    return root / "data"


def make_tar(root: Path, clips: dict[Path, str]) -> Path:
    with tarfile.open(root / "000000.tar", "w") as tar:
        for path, name in clips.items():
            tar.add(path, arcname=path.name)
            text = tarfile.TarInfo(f"{path.stem}.txt")
            text.size = len(caption(name))
            tar.addfile(text, io.BytesIO(caption(name).encode()))
    return root / "000000.tar"


def arguments(path: Path, root: Path) -> list[str]:
    """The one command."""
    options = ["--data.dataset.path", str(path), "--data.cache-dir", str(root / "cache"), *TINY]
    return ["pretrain", CONFIG, *options, "--workdir", str(root / "run")]


def train(path: Path, root: Path) -> list[float]:
    """The losses of a run by one command."""
    workdir = root / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    assert dispatch(arguments(path, root)) == 0
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.slow
def test_four_layouts_train_to_the_same_losses(tmp_path, clips):
    losses = {}
    for make in (make_csv, make_json_lines, make_audio_folder, make_tar):
        root = tmp_path / make.__name__
        root.mkdir()
        losses[make.__name__] = train(make(root, clips), root)
    assert len(losses["make_csv"]) == 3
    assert all(curve == losses["make_csv"] for curve in losses.values()), losses


@pytest.mark.slow
def test_five_captions_train_and_repeat_themselves(tmp_path, clips):
    make_csv(tmp_path, clips)
    forms = ("{}", "the sound of {}", "a recording of {}", "{} can be heard", "this is {}")
    lines = [
        {"audio": f"sounds/{path.name}", "captions": [form.format(name) for form in forms]}
        for path, name in clips.items()
    ]
    (tmp_path / "five.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first = train(tmp_path / "five.jsonl", tmp_path)
    assert first == train(tmp_path / "five.jsonl", tmp_path)


@pytest.mark.slow
def test_23_a_run_whose_data_have_changed_is_not_continued_unless_it_is_asked_for(tmp_path, clips, capsys):
    path = make_csv(tmp_path, clips)
    train(path, tmp_path)
    path.write_text(path.read_text().replace("the sound of", "a sound of", 1))
    assert dispatch(arguments(path, tmp_path)) == 2
    assert "the data set has changed since this run was saved (fingerprint" in capsys.readouterr().err
    assert dispatch([*arguments(path, tmp_path), "--allow-data-change"]) == 0
    assert "it goes on as --allow-data-change says" in capsys.readouterr().err


def test_a_dry_run_trains_nothing(tmp_path, clips, capsys):
    path = make_csv(tmp_path, clips)
    options = ["--data.dataset.path", str(path), "--data.cache-dir", str(tmp_path / "cache"), *TINY]
    assert dispatch(["pretrain", CONFIG, *options, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "batch      audio: int16 [8, 16000]" in output
    assert "the sound of" in output
    for start in ("memory", "disk", "time", "nothing was trained"):
        assert any(line.startswith(start) for line in output.splitlines())
    assert sorted(place.name for place in tmp_path.iterdir()) == ["cache", "my.csv", "sounds"]
