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

from alm_jax.evaluation.report import pictures
from alm_jax.evaluation.report.page import Report, write_report
from alm_jax.evaluation.report.pictures import LOSS
from alm_jax.evaluation.report.sections import Card, Picture, Section, Table
from alm_jax.figures import Figure

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


SHARE = {"is_share": True, "is_headline": True}
DECLARED = {
    figure.name: figure
    for figure in (
        Figure(name="loss", label="loss", panel=LOSS, series="training", is_noisy=True),
        Figure(name="validation/loss", label="validation loss", panel=LOSS, series="validation"),
        Figure(name="learning_rate", label="learning rate", panel="Learning rate"),
        Figure(name="retrieval/r@1", label="R@1", panel="Retrieval", chance="retrieval/chance", **SHARE),
        Figure(name="retrieval/chance", label="R@1 by chance", is_share=True),
        Figure(name="zero_shot/accuracy", label="zero-shot accuracy", chance="zero_shot/chance", **SHARE),
        Figure(name="zero_shot/chance", label="zero-shot accuracy by chance", is_share=True),
    )
}


def write_metrics(folder: Path) -> Path:
    path = folder / "metrics.jsonl"
    with open(path, "w") as file:
        for step in range(1, 121):
            loss = "NaN" if step == 50 else 4 / step
            file.write(json.dumps({"step": step, "loss": loss, "learning_rate": 1e-3}) + "\n")
        file.write('{"step": 120, "validation/loss": 0.5, "retrieval/r@1": 0.25}\n')
        file.write('{"step": 121, "loss"')
    return path


def retrieval_section(num_rows: int = 6, num_clips: int = 2) -> Section:
    """As the evaluator of retrieval makes it."""
    rng = np.random.default_rng(0)
    captions = [NASTY, *(f"caption {i}" for i in range(1, num_rows))]
    similarity = rng.uniform(-1, 1, (num_rows, num_rows)).astype(np.float32)
    features = rng.uniform(-90, 20, (num_clips, 101, 64)).astype(np.float32)
    axes = {"frame_sec": 0.01, "mel_frequencies_hz": librosa.mel_frequencies(66, fmin=50, fmax=14000)[1:-1]}
    found = [[("caption 3", False), (NASTY, True)], [("caption 1", True), ("caption 2", False)]]
    cards = [
        Card(
            Picture(f"clip_{k:02d}", pictures.draw_spectrogram(clip, top_db=20.0, **axes), f"clip {k}"),
            captions[k],
            f"clip-{k}",
            found[k],
        )
        for k, clip in enumerate(features)
    ]
    matrix = Picture("similarity", pictures.draw_similarity(similarity, captions), "similarities")
    overview = {"similarity": similarity, "captions": captions, "features": features, "retrieved": found}
    return Section(
        heading="Similarity",
        note="How to <read> it.",
        pictures=(matrix,),
        cards=cards,
        overview=overview | axes,
    )


def confusion_section() -> Section:
    png = pictures.draw_confusion(np.array([[3, 1], [0, 4]]), ["sea_waves", "<dog>"])
    return Section(heading="Zero-shot", pictures=(Picture("confusion", png, "confusion"),))


def make_report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "title": "a <run>",
        "summary": {"Data": "synthetic & small"},
        "config_text": '{"lr": "<1e-3>"}',
        "declared": DECLARED,
        "figures": {
            "n": 40,
            "retrieval/chance": 0.025,
            "retrieval/r@1": 0.4567,
            "retrieval/median_rank": 2.0,
            "zero_shot/chance": 0.5,
            "zero_shot/accuracy": 0.75,
            "zero_shot/class_accuracy/sea_waves": 0.875,
        },
        "sections": [
            retrieval_section(),
            confusion_section(),
            Section(heading="Written", table=Table(("clip", "text"), [("a", "<b>"), ("c", "d")])),
        ],
    }
    return Report(**(fields | changes))


def test_a_full_report(tmp_path: Path) -> None:
    path = write_report(tmp_path, make_report(), metrics_path=write_metrics(tmp_path))
    assert path == tmp_path / "report.html"
    page = read_page(path)
    text = " ".join(page.text)

    # Only the page's own style: nothing is loaded and nothing runs.
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "audio"}
    assert "url(" not in path.read_text()
    # What the data say stands there as text, markup included.
    assert '<script>alert("x")</script> & $\\frac{ 犬' in text
    for written in ("a <run>", "<1e-3>", "How to <read> it.", "<b>"):
        assert written in text

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
    assert len([attributes for tag, attributes in page.tags if attributes.get("class") == "right"]) == 2
    assert text.count("✓") == 2
    for figure in ("45.7%", "chance 2.5%", "75.0%", "chance 50.0%", "87.5%", "sea waves"):
        assert figure in text


def test_parts_that_are_missing_are_left_out(tmp_path: Path) -> None:
    write_report(tmp_path, make_report(), metrics_path=write_metrics(tmp_path))
    assert (tmp_path / "report" / "overview.png").exists()
    # A page with nothing but a title; pictures of the page before do not linger.
    page = read_page(write_report(tmp_path, Report(title="empty"), metrics_path=tmp_path / "none.jsonl"))
    assert not [tag for tag, _ in page.tags if tag in ("img", "table", "section", "details")]
    assert list((tmp_path / "report").iterdir()) == []


def test_curves_need_records_and_declarations(tmp_path: Path) -> None:
    for report, metrics_path in (
        (make_report(), None),
        (make_report(declared={}), write_metrics(tmp_path)),
    ):
        write_report(tmp_path, report, metrics_path=metrics_path)
        files = {file.stem for file in (tmp_path / "report").iterdir()}
        assert files == {"similarity", "clip_00", "clip_01", "confusion"}


def test_panels_are_made_of_declarations() -> None:
    panels = pictures.panels_of(DECLARED.values())
    assert [panel.title for panel in panels] == [LOSS, "Learning rate", "Retrieval"]
    assert panels[0].series == {"loss": "training", "validation/loss": "validation"}
    assert [panel.is_share for panel in panels] == [False, False, True]
    assert [panel.is_noisy for panel in panels] == [True, False, False]


def test_values_that_are_unknown_or_not_finite(tmp_path: Path) -> None:
    figures = {"retrieval/r@1": None, "zero_shot/accuracy": float("nan"), "fingerprint": "<a1b2>"}
    report = Report(title="t", figures=figures, declared=DECLARED)
    text = " ".join(read_page(write_report(tmp_path, report)).text)
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
