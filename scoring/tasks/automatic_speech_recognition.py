"""automatic-speech-recognition by Whisper: sound as text, by transformers' own generation.

Up to 30 seconds are one window, and rows of one window share a batch if they ask alike. Longer sound is written down
window after window, each from the last timestamp of the one before (Radford et al., arXiv 2212.04356, section 3.8).
"""

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from scoring.engine.row import Between, Row, nothing
from scoring.errors import InvalidInput, InvalidParameter, LoadError
from scoring.generation.settings import answer_tokens_alone
from scoring.limits.deadline import held
from scoring.model.loaded import Loaded
from scoring.schema.speech import MOST_SECONDS, MOST_SPEECH_TOKENS, RATE, SpeechParameters
from scoring.tasks.base import Task
from scoring.tasks.generation_parameters import COOLEST
from scoring.tasks.sound import require_libraries, samples_of
from scoring.tasks.speech_streams import Following, SpeechStream, certain, require_listeners, tell
from scoring.tasks.spoken_languages import language_codes

WORD = "word"
_LEADING = 4  # tokens before a text: the start, its language, its task, and that no times are told
_TOKEN_BYTES = 16  # of a reply, as text
_SEGMENT_BYTES = 8  # of each token, in a list


@dataclass(frozen=True)
class Spoken:
    """One row's sound and what is asked of it."""

    features: torch.Tensor  # [mel bands, frames]
    frames: int  # that are sound and no padding
    seconds: float
    language: str | None  # as <|de|>; None: to be heard, or the model knows one only
    task: str
    temperature: float
    seed: int
    prompt: tuple[int, ...]
    most: int | None
    told: list[str] = field(default_factory=list)  # texts that its stream has been sent


class Written(NamedTuple):
    """Transcript of one row's sound."""

    language: str | None
    segments: list[dict[str, Any]]  # each start, end, tokens
    tokens: list[int]
    times: list[float]  # of the tokens, if the times of words are asked for

    @property
    def new_tokens(self) -> int:
        return len(self.tokens)


class _Stuck(Exception):
    """A window whose reading ends where it began."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class _Progress:
    """Sees after each window that every row goes on, and that somebody still waits for one."""

    def __init__(self, rows: Sequence[Row], between: Between, following: Following | None) -> None:
        self._rows, self._between, self._following = rows, between, following
        self._before = [-1] * len(rows)

    def __call__(self, progress: torch.Tensor) -> None:
        self._between()
        require_listeners(self._rows)
        if self._following is not None:
            self._following.read([number for number, (at, end) in enumerate(progress.tolist()) if at < end])
        for number, (at, end) in enumerate(progress.tolist()):
            if at < end and at == self._before[number]:
                raise _Stuck(at / 100)  # frames are of 10 ms
            self._before[number] = at


class AutomaticSpeechRecognition(Task):
    """Sound as text, with the times of its parts if asked."""

    name = "automatic-speech-recognition"
    auto_class = "AutoModelForSpeechSeq2Seq"
    unit = "positions of sound and text"

    def __init__(self, loaded: Loaded, name: str) -> None:
        require_libraries()
        super().__init__(loaded, name)
        if loaded.model.config.model_type != "whisper":
            raise LoadError(f"{type(loaded.model).__name__} is not served here.", "Models of Whisper's kind are.")
        self.extractor = loaded.extractor
        self._codes = language_codes(loaded.model, self.tokenizer)
        answer_tokens_alone(loaded.model.generation_config)
        self.defaults = loaded.model.generation_config  # for front ends, which load no weights and no such file
        self._positions = int(loaded.model.config.max_target_positions)
        self._window = int(loaded.model.config.max_source_positions)  # of 20 ms
        self._frames = 2 * self._window
        self._extracting = threading.Lock()  # spectra of long sound take a gigabyte on the way

    def encode(self, value: str, parameters: SpeechParameters, item: int) -> list[Row]:
        asked = parameters.asked
        prompt = self._prompt(parameters.prompt)
        self._check(asked.max_new_tokens, len(prompt))
        language = self._language(asked.language, asked.task)
        samples = samples_of(value, f"inputs[{item}]")
        features, frames = self._features(samples)
        worded = parameters.return_timestamps == WORD
        if worded and not getattr(self.defaults, "alignment_heads", None):
            raise InvalidParameter(
                "This model does not tell the times of words: its generation_config.json has no alignment_heads.",
                "Ask for the times of segments.",
                "parameters.return_timestamps",
            )
        seed = secrets.randbelow(2**63) if asked.seed in (None, -1) else asked.seed
        spoken = Spoken(
            features, frames, len(samples) / RATE, language, asked.task or "transcribe",
            max(asked.temperature, COOLEST) if asked.temperature else 0.0, int(seed or 0), prompt, asked.max_new_tokens,
        )  # fmt: skip
        alone = features.shape[1] > self._frames or spoken.temperature > 0 or worded
        timed = bool(parameters.return_timestamps or parameters.return_segments)
        key = (spoken.language, spoken.task, spoken.prompt, spoken.most, timed, secrets.token_hex(8) if alone else "")
        row = Row({"input_ids": [0] * self._window}, item, key, parameters, spoken)
        row.new_tokens = spoken.most or self._positions
        row.windows = self._windows(row)
        return [row]

    def _features(self, samples: Any) -> tuple[torch.Tensor, int]:
        """Features [mel bands, frames], a window's at least, and how many frames are sound."""
        frames = len(samples) // int(self.extractor.hop_length)
        more: dict[str, Any] = {"truncation": False, "padding": "longest"} if frames >= self._frames else {}
        with held(self._extracting):
            made = self.extractor(samples, sampling_rate=RATE, return_tensors="pt", **more)
        return made["input_features"][0], frames

    def check_together(self, rows: Sequence[Sequence[Row]]) -> None:
        seconds = sum(row.extra.seconds for each in rows for row in each)
        if seconds > MOST_SECONDS:
            raise InvalidInput(
                f"The request's sounds are longer than {MOST_SECONDS:,} seconds together.",
                "Send them in smaller parts.",
                "inputs",
            )

    def _windows(self, row: Row) -> int:
        return -(-int(row.extra.features.shape[1]) // self._frames)

    def _check(self, most: int | None, prompt: int) -> None:
        bound = min(MOST_SPEECH_TOKENS, self._positions - _LEADING - prompt)
        if most is not None and most > bound:
            beside = f" beside the {prompt} of the prompt" if prompt else ""
            raise InvalidParameter(
                f"A window has at most {bound} tokens{beside}; {most} are asked for.", where="parameters.max_new_tokens"
            )

    def _language(self, asked: str | None, task: str | None) -> str | None:
        """Token of the language asked for; raises InvalidParameter for one that the model does not know."""
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        if not self._codes:
            if task == "translate" or (asked or "en").lower() not in ("en", "english"):
                where = "parameters.task" if task == "translate" else "parameters.language"
                raise InvalidParameter("This model knows English alone.", "Leave language and task out.", where)
            return None
        if asked is None:
            return None
        code = TO_LANGUAGE_CODE.get(asked.lower(), asked.lower())
        token = asked if asked in self._codes else f"<|{code}|>"
        if token not in self._codes:
            shown = ", ".join(sorted(each.strip("<|>") for each in self._codes)[:12])
            raise InvalidParameter(
                f"The model knows no language {asked[:40]!r}.", f"Its codes: {shown}, ….", "parameters.language"
            )
        return token

    def _prompt(self, text: str | None) -> tuple[int, ...]:
        if not text or not text.strip():
            return ()
        try:
            ids = self.tokenizer.get_prompt_ids(text)
        except ValueError as error:
            raise InvalidParameter(f"The prompt cannot be used: {error}", where="parameters.prompt") from error
        first, rest = int(ids[0]), [int(each) for each in ids[1:]]
        most = self._positions // 2 - 1  # transformers' own bound, less the token that begins it
        return (first, *rest[-most:])

    def forward(self, rows: Sequence[Row], between: Between = nothing) -> list[Any]:
        """Write rows down; per row its language, tokens and segments, on the CPU.

        Where a window's last timestamp is its start, transformers' loop would read it for ever: of one window the first
        reading counts, and longer sound is refused. Rows beside such a one are read again by themselves.
        """
        try:
            return self._written(rows, between)
        except _Stuck as stuck:
            if len(rows) > 1:
                return [output for row in rows for output in self.forward([row], between)]
            if rows[0].extra.features.shape[1] > self._frames:
                raise InvalidInput(
                    f"The model does not go on from second {stuck.seconds:g}.", "Cut the sound there."
                ) from None
            return self._written(rows, between, force_unique_generate_call=True)

    def _written(self, rows: Sequence[Row], between: Between, **more: Any) -> list[Any]:
        first: Spoken = rows[0].extra
        features = torch.stack([row.extra.features for row in rows]).to(self.model.device, self.model.dtype)
        worded = rows[0].parameters.return_timestamps == WORD
        following = self._following(rows, between)
        with torch.inference_mode(), self._random(first), self._attending(worded):
            languages = self._heard(features, first)
            told = {} if not self._codes else {"language": languages, "task": first.task}
            made = self.model.generate(
                features, **told, **self._options(rows, first), **more, return_segments=True, streamer=following,
                monitor_progress=_Progress(rows, between, following),
            )  # fmt: skip
        found = []
        for number in range(len(rows)):
            segments = [
                {
                    "start": round(float(each["start"]), 2),
                    "end": round(float(each["end"]), 2),
                    "tokens": each["tokens"].tolist(),
                }
                for each in made["segments"][number]
            ]
            own = made["segments"][number] if worded else ()
            times = [time for each in own for time in each["token_timestamps"].tolist()]
            tokens = [token for each in segments for token in each["tokens"]]
            found.append(Written(languages[number], segments, tokens, times))
            tell(rows[number], self._text(tokens))
        return found

    def _following(self, rows: Sequence[Row], between: Between) -> Following | None:
        """Follower of the tokens of rows that are streamed; None if there are none, or a window may be left out."""
        told = self.model.generation_config
        if not certain(told) or all(row.emit is None for row in rows):
            return None
        ends = {told.eos_token_id, told.pad_token_id, self.tokenizer.eos_token_id} - {None}

        def stream(row: Row) -> SpeechStream:
            return SpeechStream(row, self.tokenizer, int(told.no_timestamps_token_id) + 1, frozenset(ends))

        return Following(rows, stream, rows[0].extra.features.shape[1] > self._frames, between)

    def _options(self, rows: Sequence[Row], first: Spoken) -> dict[str, Any]:
        parameters: SpeechParameters = rows[0].parameters
        long = first.features.shape[1] > self._frames
        options: dict[str, Any] = {
            "return_timestamps": bool(parameters.return_timestamps or parameters.return_segments or long),
            "do_sample": first.temperature > 0,
        }
        if parameters.return_timestamps == WORD:
            options["return_token_timestamps"] = True
        if long or parameters.return_timestamps == WORD:
            mask = torch.zeros(1, max(first.frames, self._frames), dtype=torch.long, device=self.model.device)
            mask[:, : first.frames] = 1
            options["attention_mask"] = mask
        if first.temperature > 0:
            options["temperature"] = first.temperature
        if first.prompt:
            options["prompt_ids"] = torch.tensor(first.prompt, device=self.model.device)
        if first.most is not None:
            options["max_new_tokens"] = first.most
        return options

    def _heard(self, features: torch.Tensor, first: Spoken) -> list[str | None]:
        """Language of each row: the request's, else the likeliest of the first window."""
        if first.language is not None or not self._codes:
            return [first.language] * len(features)
        found = self.model.detect_language(features[:, :, : self._frames]).tolist()
        names = {number: name for name, number in self._codes.items()}
        return [names[number] for number in found]

    @contextmanager
    def _attending(self, worded: bool) -> Iterator[None]:
        """Have transformers' way of attention back afterwards: it changes the model's to tell the times of words."""
        before = self.model.config._attn_implementation
        try:
            yield
        finally:
            if worded:
                self.model.set_attn_implementation(before)

    @contextmanager
    def _random(self, first: Spoken) -> Iterator[None]:
        """Have what is sampled inside follow the row's own seed."""
        with torch.random.fork_rng(devices=[self.loaded.device] if self.loaded.device.type == "cuda" else []):
            torch.manual_seed(first.seed)
            yield

    def decode(self, value: str, parameters: SpeechParameters, rows: Sequence[Row], outputs: Sequence[Any]) -> Any:
        (row,), (written,) = rows, outputs
        language, segments, tokens, times = written
        spoken: Spoken = row.extra
        answer: dict[str, Any] = {"text": self._text(tokens)}
        if parameters.return_timestamps == WORD:
            answer["chunks"] = self._words(tokens, times)
        elif parameters.return_timestamps:
            answer["chunks"] = [
                {"timestamp": [each["start"], each["end"]], "text": self._text(each["tokens"])} for each in segments
            ]
        if parameters.return_segments:
            own = [
                {"id": at, **each, "text": self._text(each["tokens"]), "temperature": spoken.temperature}
                for at, each in enumerate(segments)
            ]
            known = "en" if language is None else language.strip("<|>")
            answer |= {"language": known, "duration": round(spoken.seconds, 3), "segments": own}
        return answer

    def _words(self, tokens: Sequence[int], times: Sequence[float]) -> list[dict[str, Any]]:
        """Words of a text with their times, as transformers' pipeline has them."""
        made = [{"tokens": torch.tensor([tokens]), "token_timestamps": torch.tensor([times])}]
        precision = self.extractor.chunk_length / self._window
        _, told = self.tokenizer._decode_asr(
            made, return_timestamps=WORD, return_language=None, time_precision=precision
        )
        words = told.get("chunks", [])
        return [{"timestamp": [float(at) for at in each["timestamp"]], "text": each["text"]} for each in words]

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def plain(self, answer: dict[str, Any]) -> Any:
        return answer["text"]

    def answer_bytes(self, value: str, parameters: SpeechParameters, rows: Sequence[Row]) -> int:
        windows = sum(map(self._windows, rows))
        listed = _SEGMENT_BYTES if parameters.return_segments else 0
        times = 1 + 2 * bool(parameters.return_timestamps) + parameters.return_segments
        return windows * self._positions * (times * _TOKEN_BYTES + listed)
