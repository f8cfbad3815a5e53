"""``report.html``: what a run learned, on one page that needs nothing but itself.

Pictures are embedded as data URIs and lie beside it in ``report/``; there is no script and no other file.
"""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from alm_jax.evaluation import pictures

REPORT_FILE = "report.html"
PICTURES_FOLDER = "report"
WAYS = {"text_to_audio": "text → audio", "audio_to_text": "audio → text"}
RETRIEVAL_ROWS = {
    "r@1": "R@1",
    "r@5": "R@5",
    "r@10": "R@10",
    "map@10": "mAP@10",
    "median_rank": "median rank",
    "mean_rank": "mean rank",
}


def write_report(
    workdir: str | os.PathLike[str],
    *,
    title: str,
    summary: Mapping[str, str] | None = None,
    config_text: str = "",
    metrics_path: str | os.PathLike[str] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    similarity: Float[np.ndarray, "n n"] | None = None,
    captions: Sequence[str] = (),
    ids: Sequence[str] = (),
    features: Float[np.ndarray, "k T F"] | None = None,
    frame_sec: float = 0.01,
    mel_frequencies_hz: Float[np.ndarray, " F"] | None = None,
    retrieved: Sequence[Sequence[str]] = (),
    own_captions: Sequence[Sequence[str]] | None = None,
    confusion: Int[np.ndarray, "C C"] | None = None,
    class_names: Sequence[str] = (),
    reconstructions: Mapping[str, bytes] | None = None,
    labels: Mapping[str, bytes] | None = None,
    written: Sequence[Sequence[str]] = (),
) -> Path:
    """Writes ``workdir/report.html`` and its pictures, ``workdir/report/*.png``. Returns the page's path.

    What is not given is left out of the page.

    Args:
      workdir: an existing folder, the run's.
      title: heading of the page.
      summary: short facts to stand below it, such as model, parameters, data, steps.
      config_text: the resolved config, shown folded.
      metrics_path: the run's ``metrics.jsonl``; see ``pictures.PANELS`` for the keys that are drawn.
      evaluation: the flat dictionary of the evaluation.
      similarity: cosines of n held-out clips (rows) and their n captions (columns).
      captions, ids: one of each for every row of ``similarity``.
      features: log-mel features, in dB, of the first k of those clips.
      frame_sec: seconds from one frame to the next.
      mel_frequencies_hz: centre of each mel band.
      retrieved: for each of the k clips, the captions that the model puts first, best first.
      own_captions: for each of the k clips, all captions that are right; by default the one in ``captions``.
      reconstructions: pictures of `draw_reconstruction`, by the id of the clip.
      labels: pictures of `draw_labels`, by the id of the clip.
      written: id of a clip, what the model was asked, what it wrote, and what is right; a row each.
      confusion: zero-shot counts, true classes by predicted ones, with their ``class_names``.
    """
    folder = Path(workdir) / PICTURES_FOLDER
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    records = _read_records(metrics_path)
    evaluation = dict(evaluation or {})

    sections = [_tiles(evaluation)]
    curves = pictures.draw_curves(records)
    if curves:
        image = _image(folder / "curves.png", curves, "Learning curves over the training steps")
        sections.append(_section("Training", image))
    sections.append(_section("Evaluation", _tables(evaluation)))
    if similarity is not None:
        image = _image(
            folder / "similarity.png",
            pictures.draw_similarity(similarity, captions),
            "Matrix of cosine similarities between held-out clips and captions",
        )
        note = (
            "Each row is a held-out clip with its own caption; each column is a caption, by its number. "
            "The diagonal holds the true pairs."
        )
        sections.append(_section("Similarity of clips and captions", f"<p>{note}</p>{image}"))
    marked = _mark(retrieved, own_captions or [[caption] for caption in captions])
    if features is not None and mel_frequencies_hz is not None:
        spectrograms = [
            pictures.draw_spectrogram(
                clip,
                frame_sec=frame_sec,
                mel_frequencies_hz=mel_frequencies_hz,
                top_db=pictures.spectrogram_top(features),
            )
            for clip in features
        ]
        cards = [
            _clip_card(folder / f"clip_{k:02d}.png", png, captions[k], ids[k], marked[k] if marked else ())
            for k, png in enumerate(spectrograms)
        ]
        sections.append(_section("What the model hears", f'<div class="clips">{"".join(cards)}</div>'))
    if reconstructions:
        images = "".join(
            _image(folder / f"reconstruction_{k:02d}.png", png, f"{name}: input, mask and reconstruction")
            for k, (name, png) in enumerate(reconstructions.items())
        )
        note = "What the encoder is not shown, the decoder draws; the rest stands as it is."
        sections.append(_section("What the model draws", f"<p>{note}</p>{images}"))
    if labels:
        images = "".join(
            _image(folder / f"labels_{k:02d}.png", png, f"{name}: input and labels of its patches")
            for k, (name, png) in enumerate(labels.items())
        )
        note = "Each label of the tokenizer has a colour; where all patches have one, it has collapsed."
        sections.append(_section("Labels of the patches", f"<p>{note}</p>{images}"))
    if written:
        heads = "".join(f"<th>{name}</th>" for name in ("clip", "asked", "written", "right"))
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in written
        )
        sections.append(_section("What the model writes", f"<table><tr>{heads}</tr>{rows}</table>"))
    if confusion is not None:
        image = _image(
            folder / "confusion.png",
            pictures.draw_confusion(confusion, class_names),
            "Zero-shot confusion matrix",
        )
        sections.append(_section("Zero-shot classification", image))
    if config_text:
        sections.append(
            f"<details><summary>Resolved config</summary><pre>{escape(config_text)}</pre></details>"
        )
    if records and similarity is not None and features is not None and mel_frequencies_hz is not None:
        png = pictures.draw_overview(
            title=title,
            subtitle=_subtitle(evaluation),
            records=records,
            similarity=similarity,
            captions=captions,
            features=features,
            frame_sec=frame_sec,
            mel_frequencies_hz=mel_frequencies_hz,
            retrieved=marked,
        )
        (folder / "overview.png").write_bytes(png)

    page = Path(workdir) / REPORT_FILE
    temporary = page.with_suffix(".tmp")
    temporary.write_text(_page(title, summary or {}, "\n".join(filter(None, sections))), encoding="utf-8")
    os.replace(temporary, page)
    return page


def _read_records(path: str | os.PathLike[str] | None) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl``; a torn last line, of a run that is still writing, is passed over."""
    if path is None or not Path(path).exists():
        return []
    complete = Path(path).read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in complete]


def _mark(retrieved: Sequence[Sequence[str]], own: Sequence[Sequence[str]]) -> list[list[tuple[str, bool]]]:
    """Each retrieved caption with whether it is right."""
    return [[(text, text in right) for text in texts] for texts, right in zip(retrieved, own, strict=False)]


HEADLINES = {
    "retrieval/text_to_audio/r@1": "R@1, text → audio",
    "retrieval/audio_to_text/r@1": "R@1, audio → text",
    "retrieval/text_to_audio/map@10": "mAP@10, text → audio",
    "retrieval/audio_to_text/map@10": "mAP@10, audio → text",
    "reranked/text_to_audio/r@1": "ranked again by matching, text → audio",
    "reranked/audio_to_text/r@1": "ranked again by matching, audio → text",
    "zero_shot/accuracy": "zero-shot accuracy",
    "validation/masked_accuracy": "labels of hidden patches",
    "validation/teacher_cosine": "cosine to the teacher",
    "answers/accuracy": "right answers",
    "answers/events_accuracy": "captions of the right events",
    "linear_probe/accuracy": "linear probe",
    "linear_probe/random_accuracy": "linear probe, untrained encoder",
}


def _headlines(evaluation: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The figures that one looks for first: label, value, and chance where that is known."""
    chance_of = {
        "retrieval/text_to_audio/r@1": "retrieval/chance_r@1",
        "retrieval/audio_to_text/r@1": "retrieval/chance_r@1",
        "zero_shot/accuracy": "zero_shot/chance",
        "answers/accuracy": "answers/chance",
        "linear_probe/accuracy": "linear_probe/chance",
    }
    headlines = []
    for key, label in HEADLINES.items():
        if key in evaluation:
            chance = evaluation.get(chance_of.get(key, ""))
            said = "" if chance is None else f"chance {_figure('chance', chance)}"
            headlines.append((label, _figure(key, evaluation[key]), said))
    return headlines


def _tiles(evaluation: Mapping[str, Any]) -> str:
    tiles = [
        f'<div class="tile"><span>{escape(label)}</span><strong>{value}</strong><small>{chance}</small></div>'
        for label, value, chance in _headlines(evaluation)
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _subtitle(evaluation: Mapping[str, Any]) -> str:
    """One line for the overview: the figures whose chance is known."""
    parts = [f"{label} {value} ({chance})" for label, value, chance in _headlines(evaluation) if chance]
    return "  ·  ".join(parts)


def _tables(evaluation: Mapping[str, Any]) -> str:
    """Retrieval as a table of two directions, the rest below it."""
    left = dict(evaluation)
    rows = []
    for name, label in RETRIEVAL_ROWS.items():
        values = [left.pop(f"retrieval/{way}/{name}", None) for way in WAYS]
        if any(value is not None for value in values):
            rows.append(_row(label, *(_figure(name, value) for value in values)))
    tables = []
    if rows:
        tables.append(_table(["Retrieval", *WAYS.values()], rows))
    by_class = {key: value for key, value in left.items() if "/class_accuracy/" in key}
    others = {key: value for key, value in left.items() if key not in by_class}
    if others:
        tables.append(_table(["Other figures", "value"], [_row(k, _figure(k, v)) for k, v in others.items()]))
    if by_class:
        rows = [
            _row(key.rsplit("/", 1)[1].replace("_", " "), _figure(key, value))
            for key, value in by_class.items()
        ]
        tables.append(_table(["Zero-shot class", "accuracy"], rows))
    return f'<div class="tables">{"".join(tables)}</div>' if tables else ""


def _figure(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if "chance" in name:
        return f"{100 * value:.3g}%"
    is_share = any(word in name for word in ("r@", "map@", "accuracy"))
    return f"{value:.1%}" if is_share else f"{value:.4g}"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(head: str, *cells: str) -> str:
    return (
        f'<tr><th scope="row">{escape(head)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
    )


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>" if body else ""


def _image(path: Path, png: bytes, description: str) -> str:
    path.write_bytes(png)
    data = base64.b64encode(png).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(description)}">'


def _clip_card(
    path: Path, png: bytes, caption: str, clip_id: str, retrieved: Sequence[tuple[str, bool]]
) -> str:
    image = _image(path, png, f"Log-mel spectrogram of: {caption}")
    items = "".join(
        f'<li class="right">{escape(text)} <b>✓ right</b></li>' if right else f"<li>{escape(text)}</li>"
        for text, right in retrieved
    )
    found = f"<h4>Retrieved</h4><ol>{items}</ol>" if items else ""
    return (
        f'<figure class="clip">{image}<figcaption><h3>“{escape(caption)}”</h3>'
        f"<small>{escape(clip_id)}</small>{found}</figcaption></figure>"
    )


def _page(title: str, summary: Mapping[str, str], body: str) -> str:
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in summary.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>{f"<dl>{facts}</dl>" if facts else ""}</header>
<main>
{body}
</main>
</body>
</html>
"""


CSS = """
:root { --ink: #1f2933; --muted: #5f6c7b; --line: #dfe4ea; --paper: #f6f7f9; --card: #fff;
  --right: #00684d; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaef; --muted: #a3afbd; --line: #35404d; --paper: #12171d; --card: #1b222b;
    --right: #5fd3ae; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header, main { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 40px 0 12px; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
h4 { font-size: .75rem; margin: 12px 0 2px; color: var(--muted); text-transform: uppercase;
  letter-spacing: .05em; }
small, dt { color: var(--muted); }
small { font-size: .8rem; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: 8px 28px; margin: 0; }
dt { font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
section > img { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 12px; }
.tiles { display: flex; flex-wrap: wrap; gap: 14px; margin-top: 24px; }
.tile { flex: 1 1 150px; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 16px; }
.tile span, .tile small { display: block; color: var(--muted); font-size: .85rem; }
.tile strong { font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tables { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 14px; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; }
tbody th { font-weight: normal; overflow-wrap: anywhere; }
thead th { color: var(--muted); font-size: .85rem; }
.clips { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px; }
@media (max-width: 760px) { .clips { grid-template-columns: minmax(0, 1fr); } }
.clip { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; }
.clip img { width: 100%; background: #fff; }
.clip figcaption { padding: 12px 16px 14px; }
ol { margin: 0; padding-left: 1.4em; }
li { overflow-wrap: anywhere; }
.right { color: var(--right); font-weight: 600; }
details { margin: 40px 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px; font-size: .85rem; }
main { padding-bottom: 60px; }
"""
