"""Faults of recordings, tables, tars and records, as a person meets them: what happens, the message, the exit code."""

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from alm_jax.cli.main import dispatch
from alm_jax.errors import DataError
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.recordings import RecordingsConfig
from data_pipelines.decode import float_to_pcm, read_audio
from data_pipelines.pipeline import eval_batches
from data_pipelines.prepare import prepare
from data_pipelines.source import hash_file
from data_pipelines.text import encode

RATE_HZ = 16_000
SIGNAL = np.sin(np.arange(RATE_HZ) * 0.05) * 0.5


def encoded(
    container: str, subtype: str | None = None, signal: np.ndarray = SIGNAL, rate_hz: int = RATE_HZ
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, signal, rate_hz, format=container, subtype=subtype)
    return file.getvalue()


def cut(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def with_rate(rate_hz: int) -> bytes:
    content = bytearray(encoded("WAV"))
    content[24:28] = rate_hz.to_bytes(4, "little")
    return bytes(content)


def spoiled(value: float) -> bytes:
    signal = SIGNAL.copy()
    signal[100] = value
    return encoded("WAV", "FLOAT", signal)


BAD = {
    "1 nothing in it": (b"", "empty: the file has 0 bytes"),
    "1 an error page": (b"<!DOCTYPE html><p>404", "not audio: an HTML page, probably a failed download"),
    "2 a header alone": (encoded("WAV", signal=SIGNAL[:0]), "empty: it has a header and no samples"),
    "3 half a WAV": (cut(encoded("WAV"), 0.5), "truncated: its header states 32000 bytes"),
    "4 half an MP3": (cut(encoded("MP3"), 0.5), "truncated: "),
    "5 half a FLAC": (cut(encoded("FLAC"), 0.5), "corrupt or truncated"),
    "5 half a Vorbis": (cut(encoded("OGG", "VORBIS"), 0.5), "truncated: "),
    "5 most of a Vorbis": (cut(encoded("OGG", "VORBIS"), 0.9), "truncated: "),
    "5 half an Opus": (cut(encoded("OGG", "OPUS"), 0.5), "truncated: "),
    "5 most of an Opus": (cut(encoded("OGG", "OPUS"), 0.9), "truncated: "),
    "8 an M4A": (b"\0\0\0\x20ftypM4A " + bytes(100), "AAC/M4A is not supported; convert it to FLAC or WAV"),
    "9 no rate": (with_rate(0), ""),
    "9 an absurd rate": (with_rate(2_000_000), "absurd sampling rate: 2000000 Hz, expected 1000 to 768000"),
    "11 not a number": (spoiled(np.nan), "not finite: 1 of 16000 samples are NaN or Inf"),
    "11 infinite": (spoiled(np.inf), "not finite: 1 of 16000 samples are NaN or Inf"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_recording_is_named_with_its_reason_and_exits_with_3(tmp_path, capsys, fault):
    content, reason = BAD[fault]
    (tmp_path / "bad.wav").write_bytes(content)
    (tmp_path / "good.wav").write_bytes(encoded("WAV"))
    table = tmp_path / "my.csv"
    table.write_text("file,text\ngood.wav,one\nbad.wav,two\n")
    assert dispatch(["data", "check", str(table)]) == 3
    output = capsys.readouterr()
    assert f"problem     {table}:3: bad.wav: {reason}" in output.out
    assert "1 of 2 rows cannot be used" in output.err


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_6_every_subtype_has_the_same_scale(subtype):
    waveform = read_audio(encoded("WAV", subtype), RATE_HZ)
    np.testing.assert_allclose(waveform, SIGNAL, atol=1 / 128 if subtype == "PCM_U8" else 1 / 32768)


@pytest.mark.parametrize("num_channels", [2, 6])
def test_7_channels_are_averaged(num_channels):
    gains = np.linspace(0.1, 1.0, num_channels)
    waveform = read_audio(encoded("WAV", "FLOAT", SIGNAL[:, None] * gains), RATE_HZ)
    np.testing.assert_allclose(waveform, SIGNAL * gains.mean(), atol=1e-6)


@pytest.mark.parametrize("rate_hz", [8_000, 192_000])
def test_9_low_and_high_rates_are_resampled(rate_hz):
    seconds = np.arange(rate_hz) / rate_hz
    tone = np.sin(2 * np.pi * 1000 * seconds) + np.sin(2 * np.pi * 30_000 * seconds) * (rate_hz > 100_000)
    waveform = read_audio(encoded("WAV", "FLOAT", tone * 0.4, rate_hz), RATE_HZ)
    expected = 0.4 * np.sin(2 * np.pi * 1000 * np.arange(RATE_HZ) / RATE_HZ)
    np.testing.assert_allclose(
        waveform[2000:-2000], expected[2000:-2000], atol=1e-3
    )  # nothing was folded down


def test_10_a_long_recording_takes_no_more_memory_than_its_window(tmp_path):
    path = tmp_path / "long.wav"
    seconds = 3 * 3600
    num_bytes = seconds * 16_000  # 8 kHz, two bytes a sample
    parts = (
        b"RIFF",
        36 + num_bytes,
        b"WAVEfmt ",
        16,
        b"\1\0\1\0",
        8000,
        16_000,
        b"\2\0\x10\0data",
        num_bytes,
    )
    header = b"".join(part if isinstance(part, bytes) else part.to_bytes(4, "little") for part in parts)
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(44 + num_bytes)  # 173 MB of silence, which the disk does not hold
    tracemalloc.start()
    window = read_audio(path, RATE_HZ, start_sec=seconds - 20, max_sec=5.0)
    digest = hash_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(window), len(digest)) == (5 * RATE_HZ, 64)
    assert peak < 5e6


def test_11_silence_clipping_and_offsets_are_kept(tmp_path):
    for name, signal in (
        ("silence", SIGNAL * 0),
        ("clipped", np.clip(SIGNAL * 4, -1, 1)),
        ("offset", SIGNAL + 0.3),
    ):
        assert np.isfinite(read_audio(encoded("WAV", "FLOAT", signal), RATE_HZ)).all(), name


def test_12_int16_is_divided_by_32768_and_comes_back_exactly():
    pcm = np.array([-32768, -32767, -1, 0, 1, 32767] * 100, np.int16)
    waveform = read_audio(encoded("WAV", "PCM_16", pcm), RATE_HZ)
    assert np.array_equal(waveform * 32768, pcm)
    assert np.array_equal(float_to_pcm(waveform), pcm)
    assert float_to_pcm(np.array([2.0, -2.0], np.float32)).tolist() == [32767, -32768]


CAPTIONS = ["", "  \t", "🐶🐶", "صوت كلب", "a\0b", "x " * 50_000, "e\u0301"]


@pytest.fixture
def strange(tmp_path):
    """A built data set of strange captions."""
    (tmp_path / "a.wav").write_bytes(encoded("WAV", signal=SIGNAL[:4000]))
    rows = [
        {"audio": "a.wav", "text": text, "id": str(i), "split": "train"} for i, text in enumerate(CAPTIONS)
    ]
    rows += [{"audio": "a.wav", "text": ["one", "two"], "id": "several", "split": "test"}]
    rows += [{"audio": "a.wav", "text": "alone", "id": "ragged", "split": "test", "unknown": 3}]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(
        dataset=RecordingsConfig(path=str(tmp_path / "my.jsonl")),
        tokenizer=TokenizerConfig(vocab_size=300, max_length=8),
        source_sec=0.25,
        max_bad_fraction=0.5,
        cache_dir=str(tmp_path / "cache"),
    )
    return config, prepare(config, RATE_HZ)


def test_13_to_15_strange_long_and_ragged_captions(strange):
    _, prepared = strange
    train, test = prepared.split("train"), prepared.split("test")
    assert prepared.num_rejected == 2  # no caption is left of the first two
    assert [train.captions(i)[0] for i in range(len(train))] == [
        "🐶🐶",
        "صوت كلب",
        "ab",
        CAPTIONS[5].strip(),
        "é",
    ]
    assert [test.captions(i) for i in range(2)] == [["one", "two"], ["alone"]]
    ids, mask = encode(prepared.tokenizer, [CAPTIONS[5]], 8)
    assert mask.all()
    assert ids[0, -1] == prepared.tokenizer.token_to_id("</s>")


def read_table(tmp_path: Path, content: bytes) -> int:
    for name in "ab":
        (tmp_path / f"{name}.wav").write_bytes(encoded("WAV"))
    (tmp_path / "my.csv").write_bytes(content)
    return dispatch(["data", "check", str(tmp_path / "my.csv")])


def test_16_marks_line_ends_quotes_and_further_columns_are_read(tmp_path):
    table = '\ufefffile,text,more\r\na.wav,"one, and two",x\r\n"b.wav","sa\ny ""hi""",\r\n'
    assert read_table(tmp_path, table.encode()) == 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,text\na.wav,café\n".encode("latin-1"), ":2: not UTF-8 (byte 19); save the table as UTF-8"),
        (b"file,text,id\na.wav,x,1\nb.wav,y,1\n", "the id '1' is that of a.wav and of b.wav"),
        (b"file\ttext\na.wav\tx\n", "no column for the recordings; it has file\ttext"),
        (b"file,text\n../../etc/passwd,x\n", "none of its 1 rows can be used"),
        (b"file,text\n/etc/passwd,x\n", "none of its 1 rows can be used"),
    ],
)
def test_16_and_17_bad_tables_exit_with_3(tmp_path, capsys, table, message):
    assert read_table(tmp_path, table) == 3
    assert message in capsys.readouterr().err


def test_17_a_path_that_leads_out_is_refused_by_a_build(tmp_path):
    (tmp_path / "my.csv").write_text("file,text\n../x.wav,x\n")
    with pytest.raises(DataError, match=r"my\.csv:2: file is '\.\./x\.wav', expected a path inside"):
        RecordingsConfig(path=str(tmp_path / "my.csv")).read()


def test_18_and_19_hostile_and_untidy_tars(tmp_path, capsys):
    path = tmp_path / "own" / "x.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name, content in (
            ("../../b.txt", b"two"),
            ("/abs/A.WAV", encoded("WAV")),
            ("../../b.Flac", encoded("FLAC", signal=SIGNAL[:999])),
            ("/abs/A.TXT", b"one"),
            ("lonely.wav", encoded("WAV")),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("device.wav")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    assert dispatch(["data", "check", str(path)]) == 0
    output = capsys.readouterr().out
    assert "rows        2 (" in output
    assert "4 members of tars that are links, devices or sparse, such as x.tar:device.wav" in output
    assert "1 recordings in tars without a text, such as x.tar:lonely.wav" in output
    assert [place.name for place in tmp_path.rglob("*")] == ["own", "x.tar"], "nothing was extracted"


def test_18_a_text_that_is_a_bomb_is_refused(tmp_path, capsys):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (("a.wav", encoded("WAV")), ("a.json", b" " * 2_000_000)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert dispatch(["data", "check", str(path)]) == 3
    assert "a.json has 2000000 bytes, a text has at most 1048576" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["flipped", "cut off", "missing"])
def test_20_to_22_damaged_records_are_named_and_exit_with_3(strange, damage):
    config, prepared = strange
    (shard,) = prepared.folders[0].glob("*test.array_record*")
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    else:
        content[len(content) // 2] ^= 1
        shard.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    with pytest.raises(DataError, match=str(prepared.folders[0])) as caught:
        list(eval_batches(prepare(config, RATE_HZ), "test", batch_size=2))
    assert caught.value.exit_code == 3


def test_any_cut_file_of_a_prepared_set_is_named_with_the_remedy_or_does_not_matter(strange):
    """Not those of its records, which are looked at when they are read."""
    config, prepared = strange
    cache = Path(config.cache_dir)
    files = [path for path in sorted(cache.rglob("*")) if path.is_file() and "array_record" not in path.name]
    assert {"manifest.json", "train.arrow", "dataset_info.json"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        for kept in (0, len(content) // 2):
            path.write_bytes(content[:kept])
            try:
                again = prepare(config, RATE_HZ)
                list(eval_batches(again, "test", batch_size=2))
            except DataError as error:
                assert str(path) in str(error), path  # noqa: PT017
                assert "delete" in str(error), path  # noqa: PT017
            else:
                assert again.fingerprint == prepared.fingerprint, path
        path.write_bytes(content)
