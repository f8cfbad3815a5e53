"""HTML page of a built data set: clips to play, with spectrogram and captions, and statistics of each split."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from data_pipelines.prepared import Prepared
from data_pipelines.statistics import Statistics

PLAYED_SEC = 10.0
"""Longest part of a clip that is played and plotted, seconds."""
_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .2em 1em .2em 0; text-align: left; vertical-align: top }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(20em, 1fr)); gap: 1.5em }
.clip img, .clip audio { width: 100% } .id { color: #666; overflow-wrap: anywhere } p { margin: .3em 0 }
"""


def write_page(path: Path, prepared: Prepared, title: str, statistics: dict[str, Statistics]) -> None:
    """Writes one self-contained HTML file; ``statistics`` by the name of the split, in order."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
    ]
    parts.append(f"<h1>{html.escape(title)}</h1>")
    facts = {
        "sampling rate": f"{prepared.sample_rate_hz:,} Hz",
        "classes": f"{len(prepared.class_names):,}",
        "tokens of the tokenizer": f"{prepared.tokenizer.get_vocab_size():,}",
        "rejected recordings": f"{prepared.num_rejected:,}",
        "fingerprint": prepared.fingerprint,
    }
    parts.append(_table(facts))
    for name, figures in statistics.items():
        parts += _section(prepared, name, figures)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8", errors="replace")


def _section(prepared: Prepared, name: str, figures: Statistics) -> list[str]:
    split = prepared.split(name)
    facts = {
        "clips": f"{len(split):,}"
        + (f", {figures.num_clips:,} looked at" if figures.num_clips < len(split) else ""),
        "licences": split.licence,
        "silent": f"{figures.num_silent:,}",
        "clipped": f"{figures.num_clipped:,}",
        "with a DC offset": f"{figures.num_offset:,}",
    }
    parts = [
        f"<h2>{html.escape(name)}</h2>",
        _table(facts),
        _image(draw_histograms(figures, prepared.class_names)),
    ]
    parts.append("<div class=clips>")
    for clip in figures.clips:
        shown = clip.pcm[: round(PLAYED_SEC * prepared.sample_rate_hz)]
        captions = "".join(f"<p>{html.escape(text)}</p>" for text in split.captions(clip.index))
        parts.append(
            f"<div class=clip><p class=id>{html.escape(split.ids[clip.index])}</p>"
            f"{_image(draw_spectrogram(shown, prepared.sample_rate_hz))}"
            f'<audio controls preload=none src="{_sound(shown, prepared.sample_rate_hz)}"></audio>{captions}</div>'
        )
    return [*parts, "</div>"]


def draw_histograms(figures: Statistics, class_names: Sequence[str]) -> bytes:
    """Plots lengths, loudness, tokens, and the most frequent classes where there are any; returns a PNG."""
    from matplotlib.figure import Figure

    labels = figures.labels[figures.labels >= 0]
    figure = Figure(figsize=(13, 2.8), layout="constrained")
    axes = figure.subplots(1, 4 if labels.size else 3)
    axes[0].hist(figures.seconds, bins=30)
    axes[0].set_xlabel("length, s")
    axes[1].hist(figures.loudness_dbfs, bins=30)
    axes[1].set_xlabel("loudness, dBFS")
    most = int(figures.num_tokens.max(initial=1))
    axes[2].hist(figures.num_tokens, bins=np.arange(0.5, most + 1.5, max(most // 30, 1)))
    axes[2].set_xlabel("tokens of a caption")
    axes[0].set_ylabel("clips")
    if labels.size:
        counts = np.bincount(labels, minlength=len(class_names))
        shown = np.argsort(-counts, kind="stable")[:12][::-1]
        names = [class_names[i][:20].encode("ascii", "replace").decode().replace("$", "") for i in shown]
        axes[3].barh(np.arange(len(shown)), counts[shown], tick_label=names)
        axes[3].set_xlabel("clips")
    return _png(figure)


def draw_spectrogram(pcm: np.ndarray, sample_rate_hz: int) -> bytes:
    """Plots decibels over time and frequency; returns a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 1.6), layout="constrained")
    axes = figure.subplots()
    size = 512
    padded = np.pad(pcm / 32768.0, (0, max(0, size - len(pcm))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: size // 2]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)) ** 2
    seconds = len(padded) / sample_rate_hz
    axes.imshow(
        10 * np.log10(power.T + 1e-8),
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, sample_rate_hz / 2000),
        cmap="magma",
    )
    axes.set_xlabel("s")
    axes.set_ylabel("kHz")
    return _png(figure)


def _png(figure: object) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)  # type: ignore[attr-defined]
    return file.getvalue()


def _image(png: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _sound(pcm: np.ndarray, sample_rate_hz: int) -> str:
    file = io.BytesIO()
    soundfile.write(file, pcm, sample_rate_hz, format="WAV", subtype="PCM_16")
    return f"data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"


def _table(facts: dict[str, str]) -> str:
    rows = "".join(f"<tr><th>{html.escape(k)}<td>{html.escape(v)}" for k, v in facts.items())
    return f"<table>{rows}</table>"
