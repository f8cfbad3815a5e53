"""The pictures of a run, as PNG bytes: curves, similarities, spectrograms, confusions, and an overview.

Drawn with matplotlib's object interface, so that no window system and no global figure is involved. Texts
come from data and are drawn as they are: no ``$`` is mathematics, and what the font lacks becomes a square.
"""

import dataclasses
import functools
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from alm_jax.figures import Figure as FigureDeclaration

INK, MUTED, GRID = "#1f2933", "#5f6c7b", "#e4e8ed"
# Okabe and Ito's colours, which stay apart for colour-blind readers.
BLUE, VERMILION, GREEN, PURPLE = COLOURS = "#0072b2", "#d55e00", "#00795a", "#a2558a"
FONT = "DejaVu Sans"
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 10,
    "text.color": INK,
    "text.usetex": False,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#b8c1cc",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 110,
    "savefig.dpi": "figure",
}
DYNAMIC_RANGE_DB = 80.0
"""Spectrograms show this much below the loudest point, as librosa does; the rest is the darkest colour."""
MAX_SIMILARITY_ROWS = 32
MAX_COUNTED_CLASSES = 20
TICKS_HZ = (62.5, 125, 250, 500, 1000, 2000, 4000, 8000, 16000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot of the learning curves: figures with their legends, and how to draw them."""

    title: str
    series: Mapping[str, str]
    is_noisy: bool = False
    """Many noisy points: their running mean stands out, the points themselves stay pale behind it."""
    is_share: bool = False
    """Whether the axis is in percent."""


LOSS = "Loss"
"""Title of the plot that an overview shows."""


def panels_of(figures: Iterable[FigureDeclaration]) -> list[Panel]:
    """The plots that declared figures belong to, in the order of their first figures."""
    by_title: dict[str, list[FigureDeclaration]] = {}
    for figure in figures:
        if figure.panel:
            by_title.setdefault(figure.panel, []).append(figure)
    return [
        Panel(
            title=title,
            series={figure.name: figure.series or figure.label for figure in own},
            is_noisy=any(figure.is_noisy for figure in own),
            is_share=all(figure.is_share for figure in own),
        )
        for title, own in by_title.items()
    ]


Records = Sequence[Mapping[str, Any]]


@matplotlib.rc_context(STYLE)
def draw_curves(records: Records, panels: Sequence[Panel]) -> bytes | None:
    """The learning curves that ``records`` hold, or None where they hold none.

    Each record has ``step`` and some of the figures of ``panels``.
    """
    panels = [panel for panel in panels if any(_series(records, key)[0].size for key in panel.series)]
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 2.7 * rows), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    grid = figure.add_gridspec(rows, 2)
    for index, panel in enumerate(panels):
        # A last panel without a neighbour takes the whole row.
        alone = index == len(panels) - 1 and index % 2 == 0
        place = grid[index // 2, :] if alone else grid[index // 2, index % 2]
        _draw_panel(figure.add_subplot(place), panel, records)
    return _png(figure)


@matplotlib.rc_context(STYLE)
def draw_similarity(similarity: Float[np.ndarray, "n n"], captions: Sequence[str]) -> bytes:
    """Similarity of n clips (rows) and their captions (columns): a trained model has a bright diagonal."""
    n = min(len(similarity), MAX_SIMILARITY_ROWS)
    side = float(np.clip(0.27 * n, 2.6, 6.5))
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0, 0, 1, 1))
    image = _draw_similarity(axes, similarity[:n, :n], captions[:n], fontsize=8.5 if n <= 24 else 7.0)
    axes.set_xlabel("caption, by its number")
    _add_colour_bar(figure, axes, image, "cosine similarity")
    return _png(figure)


@matplotlib.rc_context(STYLE)
def draw_spectrogram(
    features: Float[np.ndarray, "T F"],
    *,
    frame_sec: float,
    mel_frequencies_hz: Float[np.ndarray, " F"],
    top_db: float,
) -> bytes:
    """One log-mel spectrogram, axes in seconds and Hz, colour from ``top_db`` downwards."""
    figure = Figure(figsize=(5.4, 2.3))
    axes = figure.add_axes((0, 0, 1, 1))
    image = _draw_spectrogram(axes, features, frame_sec, mel_frequencies_hz, top_db)
    axes.set_ylabel("Hz")
    _add_colour_bar(figure, axes, image, "dB")
    return _png(figure)


@matplotlib.rc_context(STYLE)
def draw_confusion(counts: Int[np.ndarray, "C C"], class_names: Sequence[str]) -> bytes:
    """Clips of each class (row) taken for each class (column); colour is the share of the row."""
    num_classes = len(counts)
    is_small = num_classes <= MAX_COUNTED_CLASSES
    side = max((0.44 if is_small else 0.17) * num_classes, 1.8)
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0, 0, 1, 1))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [drawable(name.replace("_", " "), 28) for name in class_names]
    fontsize = 9 if is_small else 7
    axes.set_xticks(range(num_classes), names, rotation=90, fontsize=fontsize, parse_math=False)
    axes.set_yticks(range(num_classes), names, fontsize=fontsize, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    _bare(axes)
    for row, column in np.argwhere(counts > 0) if is_small else ():
        colour = "white" if share[row, column] > 0.55 else INK
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=9, color=colour)
    _add_colour_bar(figure, axes, image, "share of the true class")
    return _png(figure)


@matplotlib.rc_context({**STYLE, "font.size": 13, "axes.titlesize": 15, "axes.titlepad": 10})
def draw_overview(
    *,
    title: str,
    subtitle: str,
    records: Records,
    loss: Panel,
    similarity: Float[np.ndarray, "n n"],
    captions: Sequence[str],
    features: Float[np.ndarray, "k T F"],
    frame_sec: float,
    mel_frequencies_hz: Float[np.ndarray, " F"],
    retrieved: Sequence[Sequence[tuple[str, bool]]],
) -> bytes:
    """A run at one glance, 1600 x 700 pixels: loss, similarities, and two clips with what they retrieve.

    ``retrieved`` holds, for each clip, captions with whether they are right, best first.
    """
    figure = Figure(figsize=(16, 7), dpi=100)
    _write(figure, 0.022, 0.948, title, fontsize=22, weight="bold")
    _write(figure, 0.022, 0.893, subtitle, fontsize=14, color=MUTED)

    _draw_panel(figure.add_axes((0.045, 0.115, 0.205, 0.675)), loss, records, linewidth=2.4)

    matrix = figure.add_axes((0.299, 0.115, 0.2953, 0.675))
    image = _draw_similarity(matrix, similarity[:16, :16], None, fontsize=11.0)
    matrix.set_title("Similarity of held-out pairs")
    matrix.set_xlabel("caption")
    matrix.set_ylabel("clip")
    _add_colour_bar(figure, matrix, image, "")

    left = 0.658
    _write(figure, left, 0.816, "Held-out clips, and what they retrieve", fontsize=15, weight="bold")
    top_db = spectrogram_top(features)
    for row, clip in enumerate(features[:2]):
        top = 0.767 - row * 0.385
        _write(figure, left, top, f"“{captions[row]}”", fontsize=12, weight="bold")
        axes = figure.add_axes((left + 0.03, top - 0.2, 0.292, 0.17))
        _draw_spectrogram(axes, clip, frame_sec, mel_frequencies_hz, top_db)
        axes.tick_params(labelsize=10.5)
        for rank, (text, is_right) in enumerate(retrieved[row][:3] if row < len(retrieved) else ()):
            line = f"{rank + 1}. {'✓ ' if is_right else ''}{text}"
            colour = GREEN if is_right else MUTED
            _write(figure, left, top - 0.262 - 0.034 * rank, line, fontsize=12, color=colour)
    return _png(figure, tight=False)


@matplotlib.rc_context(STYLE)
def draw_reconstruction(
    features: Float[np.ndarray, "T F"],
    hidden: Bool[np.ndarray, "T F"],
    drawn: Float[np.ndarray, "T F"],
    *,
    title: str,
    frame_sec: float,
    mel_frequencies_hz: Float[np.ndarray, " F"],
) -> bytes:
    """A spectrogram, what the encoder sees of it, and what the decoder makes of that, in one colour scale.

    ``hidden`` is True where the encoder sees nothing; elsewhere the last picture shows the input.
    """
    figure = Figure(figsize=(11, 2.6), layout=ConstrainedLayoutEngine(w_pad=0.1))
    axes = figure.subplots(1, 3, sharey=True)
    figure.suptitle(drawable(title, 120), x=0.01, ha="left", fontsize=10, parse_math=False)
    seen = np.where(hidden, np.nan, features)
    together = np.where(hidden, drawn, features)
    low, high = (float(value) for value in np.percentile(features, (1, 99.5)))
    for place, name, picture in zip(
        axes, ("input", "what the encoder sees", "reconstruction"), (features, seen, together), strict=True
    ):
        place.set_facecolor(GRID)
        image = _draw_spectrogram(place, picture, frame_sec, mel_frequencies_hz, high)
        image.set_clim(low, max(high, low + 1e-6))
        place.set_title(name)
    axes[0].set_ylabel("Hz")
    return _png(figure)


@matplotlib.rc_context(STYLE)
def draw_labels(
    features: Float[np.ndarray, "T F"],
    labels: Int[np.ndarray, "rows columns"],
    hidden: Bool[np.ndarray, "rows columns"] | None = None,
    predicted: Int[np.ndarray, "rows columns"] | None = None,
    *,
    title: str,
    frame_sec: float,
    mel_frequencies_hz: Float[np.ndarray, " F"],
) -> bytes:
    """A spectrogram and the labels of its patches, a colour for each; with a mask what is seen, and what is predicted.

    Rows of labels are steps of time, columns bands. ``hidden`` is True where the encoder sees nothing; the last
    picture has the predicted labels there, and nothing elsewhere.
    """
    step, band = len(features) // labels.shape[0], features.shape[1] // labels.shape[1]
    low, high = (float(value) for value in np.percentile(features, (1, 99.5)))
    pictures: list[tuple[str, np.ndarray]] = [("input", features), ("labels", label_colours(labels))]
    if hidden is not None and predicted is not None:
        covered = hidden.repeat(step, axis=0).repeat(band, axis=1)
        pictures.append(("what the encoder sees", np.where(covered, np.nan, features)))
        guessed = np.where(hidden[..., None], label_colours(predicted), np.nan)
        pictures.append(("labels predicted of the rest", guessed))
    figure = Figure(figsize=(3.7 * len(pictures), 2.6), layout=ConstrainedLayoutEngine(w_pad=0.1))
    axes = figure.subplots(1, len(pictures), sharey=True)
    figure.suptitle(drawable(title, 120), x=0.01, ha="left", fontsize=10, parse_math=False)
    for place, (name, picture) in zip(axes, pictures, strict=True):
        place.set_facecolor(GRID)
        colours = picture.repeat(step, axis=0).repeat(band, axis=1) if picture.ndim == 3 else None
        image = _draw_spectrogram(
            place, features if colours is not None else picture, frame_sec, mel_frequencies_hz, high
        )
        image.set_clim(low, max(high, low + 1e-6))
        if colours is not None:
            clear = np.isnan(colours[..., :1])
            shown = np.concatenate([np.nan_to_num(colours), np.where(clear, 0.0, 1.0)], axis=-1)
            image.set_data(shown.swapaxes(0, 1))
        place.set_title(name)
    axes[0].set_ylabel("Hz")
    return _png(figure)


def label_colours(labels: Int[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns 3"]:
    """A colour for each label, those of neighbouring numbers far apart: labels have no order."""
    turn = np.mod(labels * 0.6180339887, 1.0)
    hsv = np.stack([turn, 0.45 + 0.2 * (labels % 3), 0.95 - 0.15 * (labels // 3 % 3)], axis=-1)
    return hsv_to_rgb(hsv)


def spectrogram_top(features: Float[np.ndarray, "k T F"]) -> float:
    """The loudest point of all clips, so that they share one colour scale."""
    return float(np.nanmax(features)) if np.isfinite(features).any() else 0.0


def drawable(text: str, width: int) -> str:
    """``text`` on one line of at most ``width`` characters, in characters that the font has."""
    known = _known_characters()
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = "".join(c if ord(c) in known else "□" for c in text)
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


@functools.cache
def _known_characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


def _series(records: Records, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one metric."""
    points = [(r["step"], r[key]) for r in records if isinstance(r.get(key), int | float)]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def _draw_panel(axes: Axes, panel: Panel, records: Records, linewidth: float = 1.6) -> None:
    num_drawn = 0
    for (key, label), colour in zip(panel.series.items(), itertools.cycle(COLOURS)):
        steps, values = _series(records, key)
        if not steps.size:
            continue
        num_drawn += 1
        marker = "o" if len(steps) <= 30 else None
        window = len(steps) // 40
        if panel.is_noisy and window > 1:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=linewidth / 2)
            steps, values = _running_mean(steps, window), _running_mean(values, window)
        axes.plot(steps, values, color=colour, label=label, linewidth=linewidth, marker=marker, markersize=4)
    axes.set_title(panel.title)
    axes.set_xlabel("step")
    axes.set_xlim(0, 1.02 * max(record["step"] for record in records))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if panel.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(bottom=0)
    else:
        axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if num_drawn > 1:
        axes.legend(loc="best")


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    return np.convolve(values, np.full(window, 1 / window), mode="valid")


def _draw_similarity(
    axes: Axes, similarity: np.ndarray, captions: Sequence[str] | None, *, fontsize: float
) -> AxesImage:
    """With numbers on both sides, and beside the rows the captions where they are given."""
    image = axes.imshow(similarity, cmap="viridis")
    numbers = [str(i + 1) for i in range(len(similarity))]
    labels = numbers
    if captions is not None:
        labels = [f"{drawable(text, 60)}  {number}" for text, number in zip(captions, numbers, strict=True)]
    axes.set_xticks(range(len(numbers)), numbers, fontsize=fontsize)
    axes.set_yticks(range(len(numbers)), labels, fontsize=fontsize, parse_math=False)
    _bare(axes)
    return image


def _draw_spectrogram(
    axes: Axes, features: np.ndarray, frame_sec: float, mel_frequencies_hz: np.ndarray, top_db: float
) -> AxesImage:
    num_frames, num_bins = features.shape
    # Normalised features span a few units, in which 80 would be one colour.
    lowest = float(np.min(features, where=np.isfinite(features), initial=top_db))
    image = axes.imshow(
        features.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        interpolation="nearest",
        extent=(0.0, num_frames * frame_sec, -0.5, num_bins - 0.5),
        vmin=max(top_db - DYNAMIC_RANGE_DB, lowest) if lowest < top_db else top_db - DYNAMIC_RANGE_DB,
        vmax=top_db,
    )
    ticks: dict[float, str] = {}
    for hz in reversed(TICKS_HZ):
        place = float(np.interp(hz, mel_frequencies_hz, np.arange(num_bins), left=-1, right=-1))
        # The mel scale is nearly linear at its low end, where octaves would crowd.
        if place >= 0 and all(other - place >= num_bins / 10 for other in ticks):
            ticks[place] = f"{hz / 1000:g}k" if hz >= 1000 else f"{hz:g}"
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:g} s")
    _bare(axes)
    return image


def _add_colour_bar(figure: Figure, axes: Axes, image: AxesImage, label: str) -> None:
    """A narrow bar to the right of ``axes``, as high."""
    box = axes.get_position()
    width_inches, _ = figure.get_size_inches()
    bar_axes = figure.add_axes((box.x1 + 0.12 / width_inches, box.y0, 0.14 / width_inches, box.height))
    bar = figure.colorbar(image, cax=bar_axes, label=label)
    _bare(bar.ax)


def _write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """One line of text at a place of the figure, cut where the figure ends."""
    text = drawable(text, 200)
    line = figure.text(x, y, text, va="center", parse_math=False, **style)
    renderer = FigureCanvasAgg(figure).get_renderer()
    while text and line.get_window_extent(renderer).x1 > 0.988 * figure.bbox.width:
        text = text[:-1].rstrip()
        line.set_text(text + "…")


def _bare(axes: Axes) -> None:
    """A picture needs no frame and no tick marks."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _png(figure: Figure, *, tight: bool = True) -> bytes:
    """The figure as PNG; ``tight`` makes the picture as large as what is drawn."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight" if tight else None, pad_inches=0.1)
    return file.getvalue()
