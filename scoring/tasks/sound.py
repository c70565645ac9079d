"""Sound files as one channel of 16,000 samples a second, read by libsndfile and resampled by soxr, within bounds.

A file is decoded, mixed down and resampled block after block: what it takes is what it is at 16,000 samples a second.
"""

import base64
import binascii
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from scoring.errors import InvalidInput, LoadError
from scoring.limits.deadline import check
from scoring.schema.speech import MOST_SECONDS, RATE

_RATES = range(1_000, 192_001)
_MOST_CHANNELS = 8
_BLOCK = 1 << 16  # samples, over all channels, that are decoded at once
_UNKNOWN = 1 << 62  # frames or more: libsndfile's way to say that a header tells none
_LOUDEST = float(1 << 16)  # of a sample; 1 is full scale, files of floats may hold 16-bit numbers
_FILE = "Send the bytes of a WAV, FLAC, OGG or MP3 file, in base64."


def require_libraries() -> None:
    """Raise LoadError where the libraries that read sound are not installed."""
    try:
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    except (ImportError, OSError) as error:
        raise LoadError(
            f"Sound cannot be read here: {error}.", "Install the extra: pip install mii-azure[speech]."
        ) from error


def samples_of(text: str, where: str) -> Any:
    """Samples [n] float32 of a sound file in base64; raises InvalidInput for any other, an empty or a long one."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("The sound is not in base64.", _FILE, where) from error
    if not _known(content):
        raise InvalidInput("The bytes are no sound file that is read here.", _FILE, where)
    samples = _read(content, where)
    if not len(samples):
        raise InvalidInput("The file holds no sound.", _FILE, where)
    return samples


def _known(content: bytes) -> bool:
    """Return True if a file begins as WAV, FLAC, OGG or MP3 do; libsndfile would parse two dozen formats more."""
    if content[:4] == b"RIFF":
        return content[8:12] == b"WAVE"
    # Frames of MP3 begin with eleven bits that are set, a version and a layer, neither of which is the reserved one.
    frame = len(content) > 1 and content[0] == 0xFF and content[1] & 0xE0 == 0xE0
    return (
        content[:4] in (b"fLaC", b"OggS")
        or content[:3] == b"ID3"
        or (frame and content[1] & 0x18 != 0x08 and content[1] & 0x06 != 0)
    )


def _read(content: bytes, where: str) -> Any:
    """Samples [n] at 16,000 a second: of all channels' mean."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            _refuse_outside(file, where)
            parts = list(_resampled(_blocks(file, where), file.samplerate))
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
        raise InvalidInput(f"The bytes are no sound file that can be read: {_reason(error)}", _FILE, where) from error
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _refuse_outside(file: Any, where: str) -> None:
    """Raise InvalidInput for a file whose header tells more, or less, than is decoded here."""
    if file.samplerate not in _RATES or file.channels > _MOST_CHANNELS:
        raise InvalidInput(
            f"The sound has {file.channels} channels of {file.samplerate} samples a second.",
            f"Send up to {_MOST_CHANNELS} of {_RATES[0]:,} to {_RATES[-1]:,}.",
            where,
        )
    if file.frames >= _UNKNOWN:
        raise InvalidInput(
            "The sound's header does not say how long it is.", "Have it written to a file, not to a pipe.", where
        )
    if file.frames > MOST_SECONDS * file.samplerate:
        raise InvalidInput(
            f"The sound is longer than {MOST_SECONDS:,} seconds.", "Cut it, and send the parts one by one.", where
        )


def _blocks(file: Any, where: str) -> Iterator[Any]:
    """Mean of all channels [n], a block at a time; raises InvalidInput for samples that are no amplitudes."""
    left, most = file.frames, max(1, _BLOCK // file.channels)
    while left > 0:
        check()
        block = file.read(min(left, most), dtype="float32", always_2d=True)
        if not len(block):  # the file was cut
            return
        if not np.abs(block).max() <= _LOUDEST:  # nor is NaN
            raise InvalidInput(
                f"The sound has samples beyond {_LOUDEST:,.0f} times full scale, or that are no finite numbers.",
                "Write it with samples from -1 to 1.",
                where,
            )
        left -= len(block)
        yield block.mean(axis=1)


def _resampled(blocks: Iterator[Any], rate: int) -> Iterator[Any]:
    if rate == RATE:
        yield from blocks
        return
    import soxr

    stream = soxr.ResampleStream(rate, RATE, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _reason(error: Exception) -> str:
    reason = " ".join(str(error).split())
    return reason.rpartition(">: ")[2][:200].rstrip(".") + "."
