"""The report is one valid page that needs no other file, and shows the data as they are."""

import base64
import json
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest

from alm_jax.evaluation import pictures
from alm_jax.evaluation.report import write_report

VOID = {"meta", "img", "br", "link"}
NASTY = '<script>alert("x")</script> & $\\frac{ 犬 \U0001f415 \x00\n' + "very " * 40 + "long"


class Page(HTMLParser):
    """Collects tags, texts and images; fails where tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height, after the signature and every chunk's checksum have been checked."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, kinds = 8, []
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kinds.append(png[at + 4 : at + 8])
        (checksum,) = struct.unpack(">I", png[at + 8 + length : at + 12 + length])
        assert zlib.crc32(png[at + 4 : at + 8 + length]) == checksum
        at += 12 + length
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def make_inputs(tmp_path: Path, num_rows: int = 6, num_clips: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    metrics_path = tmp_path / "metrics.jsonl"
    with open(metrics_path, "w") as file:
        for step in range(1, 121):
            loss = "NaN" if step == 50 else 4 / step
            record = {"step": step, "loss": loss, "learning_rate": 1e-3, "logit_scale": 14.3}
            file.write(json.dumps(record | {"pairs_per_sec": 300.0}) + "\n")
        file.write('{"step": 120, "validation/loss": 0.5, "retrieval/text_to_audio/r@1": 0.25}\n')
        file.write('{"step": 121, "loss"')
    captions = [NASTY, *(f"caption {i}" for i in range(1, num_rows))]
    return {
        "title": "a <run>",
        "summary": {"Data": "synthetic & small"},
        "config_text": '{"lr": "<1e-3>"}',
        "metrics_path": metrics_path,
        "evaluation": {
            "n": 40,
            "retrieval/chance_r@1": 0.025,
            "retrieval/text_to_audio/r@1": 0.4567,
            "retrieval/audio_to_text/r@1": 0.5,
            "retrieval/text_to_audio/median_rank": 2.0,
            "zero_shot/chance": 0.5,
            "zero_shot/accuracy": 0.75,
            "zero_shot/class_accuracy/sea_waves": 0.875,
        },
        "similarity": rng.uniform(-1, 1, (num_rows, num_rows)).astype(np.float32),
        "captions": captions,
        "ids": [f"clip-{i}" for i in range(num_rows)],
        "features": rng.uniform(-90, 20, (num_clips, 101, 64)).astype(np.float32),
        "frame_sec": 0.01,
        "mel_frequencies_hz": librosa.mel_frequencies(66, fmin=50, fmax=14000)[1:-1],
        "retrieved": [["caption 3", NASTY], ["caption 1", "caption 2"]],
        "confusion": np.array([[3, 1], [0, 4]]),
        "class_names": ["sea_waves", "<dog>"],
    }


def test_a_full_report(tmp_path: Path) -> None:
    path = write_report(tmp_path, **make_inputs(tmp_path))
    assert path == tmp_path / "report.html"
    page = read_page(path)
    text = " ".join(page.text)

    # Only the page's own style: nothing is loaded and nothing runs.
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "audio"}
    assert "url(" not in path.read_text()
    # What the data say stands there as text, markup included.
    assert '<script>alert("x")</script> & $\\frac{ 犬' in text
    assert "a <run>" in text
    assert "<1e-3>" in text

    # Every image is a PNG, described, and the same as the file beside it.
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    embedded = []
    for attributes in images:
        prefix, data = (attributes["src"] or "").split(",")
        assert prefix == "data:image/png;base64"
        assert attributes["alt"]
        embedded.append(base64.b64decode(data, validate=True))
    files = {f.stem: f.read_bytes() for f in (tmp_path / "report").iterdir()}
    assert set(files) == {"curves", "similarity", "clip_00", "clip_01", "confusion", "overview"}
    assert embedded == [files[k] for k in ("curves", "similarity", "clip_00", "clip_01", "confusion")]
    assert png_size(files["overview"]) == (1600, 700)
    # Two columns of panels, 11 inches at 110 dots; the matrices and clips fit the page's 1120 pixels.
    assert png_size(files["curves"])[0] == pytest.approx(1210, abs=25)
    for name in ("similarity", "clip_00", "confusion"):
        width, height = png_size(files[name])
        assert 200 < width < 1120, name
        assert 200 < height < 1120, name

    # The right captions, and only they, are marked.
    right = [attributes for tag, attributes in page.tags if attributes.get("class") == "right"]
    assert len(right) == 2
    assert text.count("✓") == 2
    for figure in ("45.7%", "50.0%", "chance 2.5%", "75.0%", "chance 50%", "87.5%", "sea waves"):
        assert figure in text


def test_parts_that_are_missing_are_left_out(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    write_report(tmp_path, **inputs)
    assert (tmp_path / "report" / "overview.png").exists()
    # A page with nothing but a title; pictures of the page before do not linger.
    page = read_page(write_report(tmp_path, title="empty", metrics_path=tmp_path / "none.jsonl"))
    assert not [tag for tag, _ in page.tags if tag in ("img", "table", "section", "details")]
    assert list((tmp_path / "report").iterdir()) == []


@pytest.mark.parametrize(
    ("leave_out", "gone"),
    [
        (("metrics_path",), {"curves", "overview"}),
        (("features", "retrieved"), {"clip_00", "clip_01", "overview"}),
        (("similarity", "retrieved", "confusion", "evaluation"), {"similarity", "confusion", "overview"}),
    ],
)
def test_each_part_is_optional(tmp_path: Path, leave_out: tuple[str, ...], gone: set[str]) -> None:
    inputs = make_inputs(tmp_path)
    page = read_page(write_report(tmp_path, **{k: v for k, v in inputs.items() if k not in leave_out}))
    everything = {"curves", "similarity", "clip_00", "clip_01", "confusion", "overview"}
    assert {file.stem for file in (tmp_path / "report").iterdir()} == everything - gone
    assert sum(tag == "img" for tag, _ in page.tags) == len(everything - gone - {"overview"})


def test_any_caption_of_the_clip_is_right(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    for name in ("similarity", "metrics_path", "confusion"):
        del inputs[name]
    page = read_page(
        write_report(tmp_path, **inputs, own_captions=[["caption 3"], ["caption 2", "another wording"]])
    )
    assert " ".join(page.text).count("✓") == 2


def test_values_that_are_unknown_or_not_finite(tmp_path: Path) -> None:
    evaluation = {
        "retrieval/text_to_audio/r@1": None,
        "retrieval/audio_to_text/r@1": float("nan"),
        "fingerprint": "<a1b2>",
    }
    text = " ".join(read_page(write_report(tmp_path, title="t", evaluation=evaluation)).text)
    assert "–" in text
    assert "nan%" in text
    assert "<a1b2>" in text


def test_drawable_text() -> None:
    assert pictures.drawable("a\tb\n c\x00d", 20) == "a b c d"
    assert pictures.drawable("x" * 30, 10) == "x" * 9 + "…"
    assert pictures.drawable("Grüße, шум, θόρυβος", 40) == "Grüße, шум, θόρυβος"
    assert pictures.drawable("犬 barks \U0001f415", 40) == "□ barks □"


def test_frequencies_stand_at_their_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    # The bands of librosa, and the axis that was drawn: each label's place is its frequency's band.
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        pictures, "_png", lambda figure, **_: drawn.setdefault("axes", figure.axes[0]) and b""
    )
    mel_hz = librosa.mel_frequencies(66, fmin=50, fmax=14000)[1:-1]
    pictures.draw_spectrogram(
        np.zeros((501, 64), np.float32), frame_sec=0.01, mel_frequencies_hz=mel_hz, top_db=0.0
    )
    axes = drawn["axes"]
    texts = [label.get_text() for label in axes.get_yticklabels()]
    labels = dict(zip(texts, map(float, axes.get_yticks()), strict=True))
    assert {"500", "1k", "2k", "4k", "8k"} <= set(labels)
    for text, place in labels.items():
        hz = float(text.replace("k", "")) * (1000 if "k" in text else 1)
        below = int(place)
        assert mel_hz[below] <= hz <= mel_hz[below + 1]
    assert axes.get_xlim() == (0.0, pytest.approx(5.01))


def test_large_matrices_stay_readable() -> None:
    similarity = np.eye(100, dtype=np.float32)
    width, height = png_size(pictures.draw_similarity(similarity, ["a caption of a clip"] * 100))
    assert width < 1120
    assert height < 1000
    counts = np.eye(50, dtype=np.int64)
    width, height = png_size(pictures.draw_confusion(counts, [f"class_{c}" for c in range(50)]))
    assert max(width, height) < 1300
