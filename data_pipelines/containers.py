"""Checks from its container, without decoding, that an audio file is complete.

libsndfile decodes a file that was cut off without reporting it: Ogg streams end at the last
complete page, MP3 at the last complete frame, PCM at the last byte. So containers are checked here:

* Ogg (RFC 3533): every page's checksum and sequence number, and the end-of-stream flag of every stream.
* MP3 (ISO 11172-3, 13818-3): the chain of frame headers must end with a complete frame.
* WAV, AIFF, AU, W64, RF64: the size in the header against the size on disk, as libsndfile logs it.
* FLAC: nothing; its decoder checks every frame, and its header has the number of samples.
"""

import mmap
import re
import zlib
from pathlib import Path

from alm_jax.errors import DataError

_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_CHUNK_SIZES = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
_DS64_FRAMES = re.compile(r"frame count (\d+) does not match value from 'ds64' chunk of (\d+)")
_UNKNOWN_SIZES = (0xFFFFFFFF, 0x7FFFFFFF)  # written by streaming programs, which cannot go back to the header


def describe_unreadable(source: Path | bytes) -> str:
    """Guesses what a file is that libsndfile does not open; the reason of a rejection."""
    if isinstance(source, bytes):
        head = source[:512]
    else:
        with open(source, "rb") as file:
            head = file.read(512)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "not audio: an HTML page, probably a failed download"
    if head[4:8] == b"ftyp" or head[:2] in (b"\xff\xf1", b"\xff\xf9"):
        return "AAC/M4A is not supported; convert it to FLAC or WAV, for example with ffmpeg"
    if head[:4] in (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM", b".snd", b"riff", b"caff"):
        return "corrupt or truncated: its header is damaged"
    return "not an audio file that libsndfile reads (WAV, FLAC, Ogg Vorbis or Opus, MP3, AIFF)"


def check_whole(source: Path | bytes) -> None:
    """Raises DataError where the container of an Ogg or MP3 file is cut off or damaged."""
    if isinstance(source, bytes):
        _check_container(source)
        return
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _check_container(data)


def _check_container(data: mmap.mmap | bytes) -> None:
    if data[:4] == b"OggS":
        _check_ogg(data)
    elif data[:3] == b"ID3" or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2):
        _check_mp3(data)


def check_header_size(log: str) -> None:
    """Raises DataError where libsndfile's log shows that the file is shorter than its header states."""
    for stated, actual in _CHUNK_SIZES.findall(log):
        if int(stated) > int(actual) and int(stated) not in _UNKNOWN_SIZES:
            raise DataError(f"truncated: its header states {stated} bytes, it holds {actual}")
    for actual, stated in _DS64_FRAMES.findall(log):
        if int(stated) > int(actual):
            raise DataError(f"truncated: its header states {stated} samples, it holds {actual}")


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 of RFC 3533 (polynomial 0x04c11db7, not reflected, start 0), computed with zlib's reflected CRC-32."""
    reflected = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(reflected.to_bytes(4, "little").translate(_REVERSED_BITS), "big")


def _check_ogg(data: mmap.mmap | bytes) -> None:
    position = 0
    next_page: dict[int, int] = {}  # by the serial number of the stream
    is_open: dict[int, bool] = {}
    while position < len(data):
        if data[position : position + 4] != b"OggS":
            if not any(is_open.values()):
                return  # data after the end of every stream: a tag of another program, not audio
            raise DataError(f"corrupt: no Ogg page at byte {position}")
        num_segments = data[position + 26] if position + 27 <= len(data) else 0
        end = position + 27 + num_segments
        end += sum(data[position + 27 : end])
        if position + 27 > len(data) or end > len(data):
            raise DataError(f"truncated: its last Ogg page, at byte {position}, is incomplete")
        page = data[position:end]
        serial = int.from_bytes(page[14:18], "little")
        number = int.from_bytes(page[18:22], "little")
        if _ogg_checksum(page[:22] + bytes(4) + page[26:]) != int.from_bytes(page[22:26], "little"):
            raise DataError(f"corrupt: the Ogg page at byte {position} does not match its checksum")
        if number != next_page.get(serial, number):
            raise DataError(f"corrupt: Ogg page {next_page[serial]} is missing before byte {position}")
        next_page[serial] = number + 1
        is_open[serial] = not page[5] & 4
        position = end
    if any(is_open.values()):
        raise DataError("truncated: it ends without an Ogg end-of-stream page")


# Bit rates in kbit/s by (is MPEG 1, layer), and sampling rates by version: tables of ISO 11172-3 and 13818-3.
_MP3_KBPS = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _mp3_frame_bytes(header: bytes) -> int | None:
    """Length of the frame that starts with these four bytes; None where they start no frame."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    rate_index, kbps_index, padding = header[2] >> 2 & 3, header[2] >> 4, header[2] >> 1 & 1
    if version == 1 or layer == 4 or rate_index == 3 or kbps_index in (0, 15):
        return None
    is_mpeg1 = version == 3
    bits_per_sec = 1000 * _MP3_KBPS[is_mpeg1, layer][kbps_index]
    rate_hz = _MP3_RATES_HZ[version][rate_index]
    if layer == 1:
        return (12 * bits_per_sec // rate_hz + padding) * 4
    return (144 if is_mpeg1 or layer == 2 else 72) * bits_per_sec // rate_hz + padding


def _check_mp3(data: mmap.mmap | bytes) -> None:
    position, end = 0, len(data)
    if data[:3] == b"ID3" and end >= 10:
        size = sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
        position = 10 + size + (10 if data[5] & 0x10 else 0)
        if position >= end:
            raise DataError("truncated: it ends inside its ID3 tag")
    while position < end:
        length = _mp3_frame_bytes(data[position : position + 4])
        if length is None:
            return  # a tag at the end, or frames that cannot be followed; the decoder decides
        if position + length > end:
            raise DataError(f"truncated: its last MP3 frame, at byte {position}, is incomplete")
        position += length
