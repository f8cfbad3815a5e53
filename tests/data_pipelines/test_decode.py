"""Decoding against signals that are known in closed form, librosa, and files that are really broken."""

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile

from alm_jax.errors import DataError
from data_pipelines.decode import float_to_pcm, read_audio

RATE_HZ = 16_000
SECONDS = np.arange(2 * RATE_HZ) / RATE_HZ
SIGNAL = (0.4 * np.sin(2 * np.pi * 440 * SECONDS) + 0.3 * np.sin(2 * np.pi * 1000 * SECONDS)).astype(
    np.float32
)


def encode(signal: np.ndarray, format: str, subtype: str, rate_hz: int = RATE_HZ) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, signal, rate_hz, format=format, subtype=subtype)
    return file.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        (tmp_path / "recording").write_bytes(content)
        return tmp_path / "recording"

    return write


@pytest.mark.parametrize(
    ("format", "subtype", "step"),
    [
        ("WAV", "PCM_U8", 2.0**-7),
        ("WAV", "PCM_16", 2.0**-15),
        ("WAV", "PCM_24", 2.0**-23),
        ("WAV", "PCM_32", 2.0**-23),  # float32 has 24 bits of the 32
        ("WAV", "FLOAT", 0.0),
        ("WAV", "DOUBLE", 0.0),
        ("WAVEX", "PCM_16", 2.0**-15),
        ("RF64", "PCM_16", 2.0**-15),
        ("AIFF", "PCM_16", 2.0**-15),
        ("FLAC", "PCM_16", 2.0**-15),
        ("FLAC", "PCM_24", 2.0**-23),
    ],
)
def test_every_lossless_subtype_has_the_same_scale(write, format, subtype, step):
    decoded = read_audio(write(encode(SIGNAL, format, subtype)), RATE_HZ)
    assert decoded.dtype == np.float32
    assert decoded.shape == SIGNAL.shape
    np.testing.assert_allclose(decoded, SIGNAL, atol=step, rtol=0)


@pytest.mark.parametrize(
    ("format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
)
def test_lossy_formats_keep_length_time_and_scale(write, format, subtype):
    decoded = read_audio(write(encode(SIGNAL, format, subtype)), RATE_HZ)
    assert decoded.shape == SIGNAL.shape
    inner = slice(RATE_HZ // 4, -RATE_HZ // 4)
    error_db = 10 * np.log10(np.mean((decoded - SIGNAL)[inner] ** 2) / np.mean(SIGNAL[inner] ** 2))
    assert error_db < -25  # measured: Vorbis -34, Opus -39, MP3 -50; a shift by one sample gives -10


def test_pcm_round_trip_is_exact(write):
    pcm = np.array([-32768, -32767, -1, 0, 1, 12345, 32767], np.int16)
    assert np.array_equal(float_to_pcm(read_audio(write(encode(pcm, "WAV", "PCM_16")), RATE_HZ)), pcm)


def test_pcm_clips_at_full_scale():
    assert float_to_pcm(np.array([-2.0, -1.0, 1.0, 1e30], np.float32)).tolist() == [
        -32768,
        -32768,
        32767,
        32767,
    ]


@pytest.mark.parametrize("num_channels", [2, 6])
def test_channels_are_averaged(write, num_channels):
    channels = np.random.default_rng(0).uniform(-0.9, 0.9, (5000, num_channels)).astype(np.float32)
    decoded = read_audio(write(encode(channels, "WAV", "FLOAT")), RATE_HZ)
    np.testing.assert_allclose(decoded, channels.astype(np.float64).mean(axis=1), atol=1e-6)
    first = read_audio(write(encode(channels, "WAV", "FLOAT")), RATE_HZ, channels="first")
    np.testing.assert_array_equal(first, channels[:, 0])


def test_resampling_of_a_sine_is_that_sine(write):
    long = np.arange(44_100) / 44_100
    decoded = read_audio(write(encode(0.5 * np.sin(2 * np.pi * 440 * long), "WAV", "FLOAT", 44_100)), RATE_HZ)
    assert decoded.shape == (RATE_HZ,)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)
    np.testing.assert_allclose(decoded[1000:-1000], expected[1000:-1000], atol=1e-4)


def test_resampling_does_not_alias(write):
    tone = 0.5 * np.sin(2 * np.pi * 10_000 * np.arange(44_100) / 44_100)  # above the new Nyquist
    decoded = read_audio(write(encode(tone, "WAV", "FLOAT", 44_100)), RATE_HZ)
    assert np.abs(decoded[1000:-1000]).max() < 1e-4


# audioread, which librosa imports, takes modules that left the standard library in Python 3.13.
@pytest.mark.filterwarnings("ignore:.*is deprecated and slated for removal:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*was removed in Python 3.13:DeprecationWarning")
@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
def test_a_real_recording_equals_librosa(real_data_dir, rate_hz):
    path = real_data_dir / "esc10" / "audio" / "1-100032-A.ogg"
    expected, _ = librosa.load(path, sr=rate_hz, mono=True, res_type="soxr_hq")
    np.testing.assert_allclose(read_audio(path, rate_hz), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")],
)
def test_a_window_is_the_slice_of_the_whole(write, format, subtype):
    path = write(encode(SIGNAL, format, subtype))
    window = read_audio(path, RATE_HZ, start_sec=1.5, max_sec=0.25)
    assert window.shape == (4000,)
    # MP3 is what can go wrong: without a lead-in the window begins with frames whose bits are missing.
    np.testing.assert_allclose(window, read_audio(path, RATE_HZ)[24000:28000], atol=1e-6)


def test_a_long_mp3_has_no_seams(write):
    seconds = np.arange(30 * RATE_HZ) / RATE_HZ
    signal = (0.4 * np.sin(2 * np.pi * 440 * seconds) + 0.3 * np.sin(2 * np.pi * 1000 * seconds)).astype(
        np.float32
    )
    decoded = read_audio(write(encode(signal, "MP3", "MPEG_LAYER_III")), RATE_HZ)
    assert np.abs(decoded - signal)[2000:-2000].max() < 0.02  # measured 0.003; a seam gives 0.7


def test_a_window_beyond_the_end_is_an_error(write):
    with pytest.raises(DataError, match=r"too short: it lasts 2\.000 s, wanted from 5\.000 s"):
        read_audio(write(encode(SIGNAL, "WAV", "PCM_16")), RATE_HZ, start_sec=5.0)


def test_memory_is_bounded_by_the_window(write):
    path = write(encode(np.zeros(30 * 60 * 8_000, np.int16), "FLAC", "PCM_16", 8_000))  # 58 MB as float32
    tracemalloc.start()
    window = read_audio(path, 8_000, start_sec=1700.0, max_sec=2.0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert window.shape == (16_000,)
    assert peak_bytes < 2e6


def real_bytes(real_data_dir: Path, format: str, subtype: str) -> bytes:
    """A real recording in the format; the Ogg file is the published one."""
    path = real_data_dir / "esc10" / "audio" / "1-100032-A.ogg"
    if format == "OGG" and subtype == "VORBIS":
        return path.read_bytes()
    signal, rate_hz = soundfile.read(path)
    return encode(signal, format, subtype, 48_000 if subtype == "OPUS" else rate_hz)


ALL_FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "FLOAT"),
    ("RF64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("W64", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


@pytest.mark.parametrize(("format", "subtype"), ALL_FORMATS)
def test_a_file_cut_anywhere_is_rejected(write, real_data_dir, format, subtype):
    whole = real_bytes(real_data_dir, format, subtype)
    read_audio(write(whole), RATE_HZ)
    for fraction in (0.02, 0.1, 0.33, 0.5, 0.77, 0.9, 0.999):
        with pytest.raises(DataError, match=r"truncated|damaged|corrupt"):
            read_audio(write(whole[: int(len(whole) * fraction)]), RATE_HZ)
    with pytest.raises(DataError, match="truncated"):
        read_audio(write(whole[:-1]), RATE_HZ)


def ogg_page_starts(content: bytes) -> list[int]:
    """Where pages start; the mark is rare enough in compressed audio to be searched for."""
    return [i for i in range(len(content)) if content.startswith(b"OggS\0", i)]


def test_ogg_cut_at_a_page_is_rejected(write, real_data_dir):
    whole = real_bytes(real_data_dir, "OGG", "VORBIS")
    starts = ogg_page_starts(whole)
    assert len(starts) > 5
    for start in starts[1:]:  # every page left is whole: only the missing end-of-stream flag tells
        with pytest.raises(DataError, match="truncated: it ends without an Ogg end-of-stream page"):
            read_audio(write(whole[:start]), RATE_HZ)


def test_ogg_with_a_page_missing_is_rejected(write, real_data_dir):
    whole = real_bytes(real_data_dir, "OGG", "VORBIS")
    starts = ogg_page_starts(whole)
    with pytest.raises(DataError, match="corrupt: Ogg page 4 is missing"):
        read_audio(write(whole[: starts[4]] + whole[starts[5] :]), RATE_HZ)


def test_ogg_with_something_after_the_end_is_read(write, real_data_dir):
    whole = real_bytes(real_data_dir, "OGG", "VORBIS")
    assert np.array_equal(read_audio(write(whole + b"some tag"), 44_100), read_audio(write(whole), 44_100))


@pytest.mark.parametrize(("format", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_a_flipped_bit_is_rejected(write, real_data_dir, format, subtype):
    content = bytearray(real_bytes(real_data_dir, format, subtype))
    rng = np.random.default_rng(0)
    for position in rng.integers(len(content) // 10, len(content), 10):
        content[position] ^= 16
        with pytest.raises(DataError, match="corrupt"):
            read_audio(write(bytes(content)), RATE_HZ)
        content[position] ^= 16
    read_audio(write(bytes(content)), RATE_HZ)


def mp3_without_info_frame() -> bytes:
    """MP3 as encoders write it that cannot seek back: no frame that says how many there are."""
    content = encode(SIGNAL, "MP3", "MPEG_LAYER_III")
    second = content.index(content[:2], 4)
    assert b"Xing" in content[:second] or b"Info" in content[:second]
    return content[second:]


def test_mp3_without_a_frame_count_is_checked_too(write):
    whole = mp3_without_info_frame()
    read_audio(write(whole), RATE_HZ)
    with pytest.raises(DataError, match="truncated: its last MP3 frame"):
        read_audio(write(whole[: len(whole) // 2 + 7]), RATE_HZ)


def test_mp3_with_tags_is_read(write):
    whole = encode(SIGNAL, "MP3", "MPEG_LAYER_III")
    id3v2 = b"ID3\x04\x00\x00" + bytes([0, 0, 1, 0]) + bytes(128)
    id3v1 = b"TAG" + bytes(125)
    assert read_audio(write(id3v2 + whole + id3v1), RATE_HZ).shape == SIGNAL.shape


def test_wav_of_a_program_that_streams_is_read(write):
    content = bytearray(encode(SIGNAL, "WAV", "PCM_16"))
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"  # sizes that were never filled in
    assert content[36:40] == b"data"
    assert read_audio(write(bytes(content)), RATE_HZ).shape == SIGNAL.shape


def wav_with_rate(rate_hz: int) -> bytes:
    content = bytearray(encode(SIGNAL, "WAV", "PCM_16"))
    content[24:28] = rate_hz.to_bytes(4, "little")
    return bytes(content)


def flac_with_length(num_samples: int) -> bytes:
    content = bytearray(encode(SIGNAL, "FLAC", "PCM_16"))
    content[21:26] = (content[21] >> 4 << 36 | num_samples).to_bytes(5, "big")  # 36 bits of STREAMINFO
    return bytes(content)


def with_sample(value: float) -> np.ndarray:
    signal = SIGNAL.copy()
    signal[1234] = value
    return signal


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty: the file has 0 bytes"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not audio: an HTML page"),
        (b"\xef\xbb\xbf\n<html><body>moved</body></html>", "not audio: an HTML page"),
        (b"filename,fold\n1-2-A.wav,1\n", "not an audio file that libsndfile reads"),
        (b"\x00\x00\x00\x20ftypM4A " + bytes(100), "AAC/M4A is not supported; convert it"),
        (encode(np.zeros(0), "WAV", "PCM_16"), "empty: it has a header and no samples"),
        (encode(np.zeros(0), "FLAC", "PCM_16"), "empty|damaged"),
        (encode(SIGNAL, "WAV", "PCM_16")[:20], "corrupt or truncated: its header is damaged"),
        (encode(with_sample(np.nan), "WAV", "FLOAT"), "not finite: 1 of 32000 samples are NaN or Inf"),
        (encode(with_sample(-np.inf), "WAV", "DOUBLE"), "not finite: 1 of 32000 samples are NaN or Inf"),
        (wav_with_rate(0), "damaged|absurd sampling rate: 0 Hz"),
        (wav_with_rate(100), "absurd sampling rate: 100 Hz"),
        (wav_with_rate(5_000_000), "absurd sampling rate: 5000000 Hz"),
        (flac_with_length(0), "absurd length"),  # "unknown"
        (flac_with_length(2**36 - 1), "absurd length"),
        (flac_with_length(40_000), "corrupt or truncated|truncated: 32000 samples decoded"),
        (np.random.default_rng(0).bytes(5000), "not an audio file that libsndfile reads"),
    ],
)  # fmt: skip
def test_what_is_not_a_recording_is_rejected_with_its_reason(write, content, reason):
    with pytest.raises(DataError, match=reason):
        read_audio(write(content), RATE_HZ)


def test_a_missing_file_is_rejected(tmp_path):
    with pytest.raises(DataError, match="missing: there is no such file"):
        read_audio(tmp_path / "nothing.wav", RATE_HZ)


def test_silence_and_denormals_are_recordings(write):
    assert not read_audio(write(encode(np.zeros(100), "WAV", "PCM_16")), RATE_HZ).any()
    tiny = np.full(100, 1e-40, np.float32)
    assert np.isfinite(read_audio(write(encode(tiny, "WAV", "FLOAT")), RATE_HZ)).all()
