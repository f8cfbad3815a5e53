"""Filters and the index itself: what is kept, against plain Python; large files; files of row numbers."""

import concurrent.futures
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from alm_jax.errors import DataError, UserError
from data_pipelines.config import DataConfig, FilterConfig, TokenizerConfig
from data_pipelines.dataset import DatasetConfig
from data_pipelines.index import ROWS_PER_BATCH, Index, IndexWriter
from data_pipelines.pipeline import train_batches
from data_pipelines.prepare import prepare
from data_pipelines.selection import select
from data_pipelines.source import Recording, Source, SourceRow

LICENCES = ("CC-BY-4.0", "CC0-1.0", "CC-BY-NC-4.0", "")
RATE_HZ = 1_000


def row(i: int) -> dict[str, object]:
    return {
        "id": f"clip-{i}",
        "captions": [" ".join(["word"] * (1 + (i + n) % 7)) for n in range(1 + i % 3)],
        "negatives": [],
        "labels": [i % 5] * (i % 2),
        "num_samples": 100 * (1 + i % 50),
        "record": i,
        "licence": i % 4,
        "source_sha256": None if i % 10 else bytes([i % 251]) * 32,
    }


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """A little more than two batches of rows, written from pieces of odd sizes."""
    folder = tmp_path_factory.mktemp("index")
    num_rows = 2 * ROWS_PER_BATCH + 77
    borders = [0, 5, 5, 40_000, 100_000, num_rows]
    for number, (start, end) in enumerate(itertools.pairwise(borders)):
        with IndexWriter(folder / f"{number}.arrow") as writer:
            for i in range(start, end):
                writer.add(row(i))
    (folder / "index").mkdir()
    with IndexWriter(folder / "index" / "all.arrow") as writer:
        for number in range(len(borders) - 1):
            with pa.ipc.open_file(str(folder / f"{number}.arrow")) as reader:
                writer.extend(reader.get_batch(i) for i in range(reader.num_record_batches))
    return Index(folder / "index" / "all.arrow", num_rows)


def test_rows_are_found_wherever_they_lie(index):
    assert index.num_batches == 3
    places = [0, 4, 5, ROWS_PER_BATCH - 1, ROWS_PER_BATCH, 99_999, 100_000, len(index) - 1]
    for column in row(0):
        assert [index.value(column, i) for i in places] == [row(i)[column] for i in places]
    numbers = np.array(places[::-1])
    assert index.numbers("num_samples", numbers).tolist() == [row(i)["num_samples"] for i in places[::-1]]


@pytest.mark.parametrize("cut", [1, 0.5, 0.001])
def test_an_index_that_is_cut_off_says_what_to_do(index, tmp_path, cut):
    content = index.path.read_bytes()
    (tmp_path / "index").mkdir()
    path = tmp_path / "index" / "all.arrow"
    path.write_bytes(content[:-1] if cut == 1 else content[: int(cut * len(content))])
    with pytest.raises(
        DataError, match=f"damaged .*; delete the folder {tmp_path}, and the data set is built"
    ):
        Index(path, len(index)).check()
    with pytest.raises(DataError, match="3 batches of rows for 5 rows"):
        Index(index.path, 5).check()


FILTERS = [
    FilterConfig(min_sec=1.0),
    FilterConfig(max_sec=0.5),
    FilterConfig(licences=("cc0*", "CC-BY-4.0")),
    FilterConfig(min_caption_words=3, max_caption_words=4),
    FilterConfig(min_sec=0.2, max_sec=4.0, licences=("CC-BY*",), max_caption_words=2),
    FilterConfig(min_sec=90.0),
]


def keeps(kept: FilterConfig, own: dict[str, object]) -> bool:
    seconds = own["num_samples"] / RATE_HZ
    licence = LICENCES[own["licence"]].lower()
    words = [len(caption.split()) for caption in own["captions"]]
    most = kept.max_caption_words or 99
    allowed = [p.lower() for p in kept.licences]
    return (
        kept.min_sec <= seconds <= (kept.max_sec or np.inf)
        and any(kept.min_caption_words <= n <= most for n in words)
        and (
            not allowed
            or licence in allowed
            or any(p[-1] == "*" and licence.startswith(p[:-1]) for p in allowed)
        )
    )


@pytest.mark.parametrize("kept", FILTERS)
def test_a_filter_keeps_what_it_says(index, tmp_path, kept):
    options = {"sample_rate_hz": RATE_HZ, "licences": LICENCES, "fingerprint": "a", "cache_dir": tmp_path}
    found = select(index, kept, **options)
    expected = [i for i in range(len(index)) if keeps(kept, row(i))]
    assert found.rows.tolist() == expected
    assert sum(found.licences.values()) == len(expected)
    assert found.num_samples == sum(row(i)["num_samples"] for i in expected)
    again = select(dataclasses.replace(index, path=Path("gone")), kept, **options)  # the file is there
    assert again.rows.tolist() == expected
    assert len(list((tmp_path / "selections").iterdir())) == 2


@dataclasses.dataclass(frozen=True)
class Tone:
    """A recording of some length."""

    num_samples: int

    def read(self, sample_rate_hz: int, **_: object) -> Recording:
        return Recording(pcm=np.full(self.num_samples, self.num_samples, np.int16), sha256="")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TonesConfig(DatasetConfig):
    """Recordings of 0.1 to 5 s."""

    num_rows: int = 120

    def read(self, problems: list[str] | None = None) -> Source:
        rows = []
        for i in range(self.num_rows):
            own = row(i)
            captions = tuple(own["captions"])
            split, licence = ("test" if i % 6 == 5 else "train"), LICENCES[own["licence"]]
            audio = Tone(own["num_samples"])
            rows.append(
                SourceRow(
                    id=own["id"], audio=audio, captions=captions, split=split, licence=licence, source="x"
                )
            )
        return Source(rows=rows)


def test_a_filter_decides_what_training_reads_and_evaluation_reads_all(tmp_path):
    kept = FilterConfig(min_sec=1.0, licences=("CC-BY*",), max_caption_words=4)
    config = DataConfig(
        dataset=TonesConfig(),
        tokenizer=TokenizerConfig(vocab_size=300, max_length=16),
        source_sec=1.0,
        filter=kept,
        cache_dir=str(tmp_path),
    )
    prepared, plain = (
        prepare(config, RATE_HZ),
        prepare(dataclasses.replace(config, filter=FilterConfig()), RATE_HZ),
    )
    split = prepared.split("train")
    expected = [f"clip-{i}" for i in range(120) if i % 6 != 5 and keeps(kept, row(i))]
    assert list(split.ids) == expected
    assert 0 < len(expected) < len(plain.split("train"))
    assert len(prepared.split("test")) == len(plain.split("test")) == 20
    assert prepared.fingerprint != plain.fingerprint
    assert sum(map(int, split.licence.replace(")", "(").split("(")[1::2])) == len(expected)
    batches = train_batches(prepared, "train", batch_size=len(expected), seed=0)
    for _ in range(3):
        batch = next(batches)
        assert sorted(batch["index"].tolist()) == list(range(len(expected)))
        for i, audio, ids, mask in zip(
            *(batch[key] for key in ("index", "audio", "text_ids", "text_mask")), strict=True
        ):
            assert (audio == row(int(split.ids[i][5:]))["num_samples"]).all()
            assert len(prepared.tokenizer.decode(ids[mask].tolist()).split()) <= 4


def test_a_filter_that_leaves_nothing_is_an_error(tmp_path):
    config = DataConfig(
        dataset=TonesConfig(),
        tokenizer=TokenizerConfig(vocab_size=300),
        filter=FilterConfig(licences=("MIT",)),
        cache_dir=str(tmp_path),
    )
    with pytest.raises(UserError, match=r"leaves none of the 100 recordings of split 'train'.*'CC-BY-4.0'"):
        prepare(config, RATE_HZ)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_sec": -1.0}, "filter.min_sec is -1.0; it must be zero or more"),
        ({"min_sec": 2.0, "max_sec": 1.0}, "filter.max_sec is 1.0; it must be above filter.min_sec"),
        (
            {"max_caption_words": 0},
            "filter.max_caption_words is 0; it must be filter.min_caption_words or more",
        ),
    ],
)
def test_filters_that_cannot_be_are_errors(changes, message):
    with pytest.raises(UserError, match=message):
        FilterConfig(**changes)


def test_several_may_make_one_selection_at_the_same_time(index, tmp_path):
    options = {"sample_rate_hz": RATE_HZ, "licences": LICENCES, "fingerprint": "b", "cache_dir": tmp_path}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: select(index, FILTERS[0], **options), range(3)))
    expected = sum(keeps(FILTERS[0], row(i)) for i in range(len(index)))
    assert [len(own.rows) for own in found] == [expected] * 3
