"""Sound files as one channel of 16,000 samples a second, read by libsndfile and resampled by soxr, within bounds."""

import base64
import binascii
import io
from typing import Any

import numpy as np

from scoring.errors import InvalidInput, LoadError
from scoring.schema.speech import MOST_SECONDS, RATE

_RATES = range(1_000, 384_001)
_MOST_CHANNELS = 16
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
    """Samples [n] float32 of a sound file in base64; raises InvalidInput for what is none, empty or too long."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("The sound is not in base64.", _FILE, where) from error
    return resampled(*_read(content, where))


def _read(content: bytes, where: str) -> tuple[Any, int]:
    """Samples [n] of all channels' mean, and their rate."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate, most = file.samplerate, MOST_SECONDS * file.samplerate
            if rate not in _RATES or file.channels > _MOST_CHANNELS:
                raise InvalidInput(
                    f"The sound has {file.channels} channels of {rate} samples a second.",
                    f"Send up to {_MOST_CHANNELS} of {_RATES[0]:,} to {_RATES[-1]:,}.",
                    where,
                )
            samples = file.read(most + 1, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
        raise InvalidInput(f"The bytes are no sound file that can be read: {_reason(error)}", _FILE, where) from error
    if not len(samples):
        raise InvalidInput("The file holds no sound.", _FILE, where)
    if len(samples) > most:
        raise InvalidInput(
            f"The sound is longer than {MOST_SECONDS:,} seconds.", "Cut it, and send the parts one by one.", where
        )
    return np.nan_to_num(samples.mean(axis=1)), rate


def resampled(samples: Any, rate: int) -> Any:
    """Samples at 16,000 a second."""
    if rate == RATE:
        return samples
    import soxr

    return soxr.resample(samples, rate, RATE)


def _reason(error: Exception) -> str:
    reason = " ".join(str(error).split())
    return reason.rpartition(">: ")[2][:200].rstrip(".") + "."
