"""Requests of speech: sound in base64, and how it is to be written down; no torch here."""

import base64
import io
import math
import struct
import wave
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from scoring.schema.requests import MOST, MOST_PROMPT_CHARACTERS, Strict, Word

RATE = 16_000  # samples a second that models of speech take
MOST_SECONDS = 1500  # of a request's sound
MOST_SPEECH_TOKENS = 444  # of one window of 30 seconds: 448 positions, less the tokens that tell language and task

#: A sound file in base64: WAV, FLAC, OGG or MP3.
Sound = Annotated[str, Field(min_length=1, description="A sound file (WAV, FLAC, OGG, MP3), in base64.")]


class SpeechOptions(Strict):
    language: Word | None = Field(
        None, description="What is spoken, as a code or an English name; null: heard from the first 30 seconds."
    )
    task: Literal["transcribe", "translate"] | None = Field(None, description="translate: into English.")
    temperature: float | None = Field(None, ge=0, le=1, description="Above 0: sampled. null: the likeliest tokens.")
    seed: int | None = Field(None, ge=-1, le=2**63 - 1, description="Of what is sampled; null and -1: a new one.")
    max_new_tokens: int | None = Field(
        None, ge=1, le=MOST, description="Most tokens of each window of 30 seconds; null: the model's own."
    )


class SpeechParameters(SpeechOptions):
    return_timestamps: Literal[False, True, "word"] = Field(
        False, description="Answer also with chunks, and the seconds of each; word: with each word as one."
    )
    prompt: Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS)] | None = Field(
        None, description="Text that goes before: names and a style to follow; its last tokens count."
    )
    return_segments: bool = Field(False, description="Answer also with language, duration and segments.")
    generate_kwargs: SpeechOptions | None = Field(
        None, description="The same options as transformers' pipeline takes them; before those beside it."
    )

    @field_validator("return_timestamps", mode="before")
    @classmethod
    def _is_no_number(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):  # a literal would take 1 for true
            raise ValueError("it is true, false or word")
        return value

    @property
    def asked(self) -> SpeechOptions:
        """The options, wherever they stand."""
        own = {name: getattr(self, name) for name in SpeechOptions.model_fields}
        inner = self.generate_kwargs.model_dump() if self.generate_kwargs else {}
        return SpeechOptions(**{**own, **{name: value for name, value in inner.items() if value is not None}})


def tone(seconds: float = 0.05, rate: int = 8000) -> str:
    """A WAV file of a short tone, in base64: the sample request."""
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        count = round(seconds * rate)
        waves = (round(8000 * math.sin(2 * math.pi * 440 * at / rate)) for at in range(count))
        file.writeframes(struct.pack(f"<{count}h", *waves))
    return base64.b64encode(made.getvalue()).decode()
