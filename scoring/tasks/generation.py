"""Common part of generative tasks: parameters as a generation config, batches, stop texts, streams, cancellation.

Greedy unless sampling is asked for, so that one request has one answer. Rows share a batch only when everything that
`generate` takes is equal; a sampled row runs alone, on its own random numbers.
"""

import copy
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)

from scoring.config import Limits
from scoring.decoder.logprobs import ScoredTokens
from scoring.engine import dynamic_rotary
from scoring.engine.row import SLOTS, Between, Row, nothing
from scoring.errors import InvalidInput, InvalidParameter
from scoring.generation import closed_set, sequence
from scoring.generation.adapters import all_with
from scoring.generation.adjustments import AdjustmentsProcessor
from scoring.generation.cache_salt import salt_of
from scoring.generation.details import token_details
from scoring.generation.detokenizer import stop_at, text_of
from scoring.generation.generated import GrammarProcessor, logprobs_of, prompt_logprobs, until_end
from scoring.generation.grammars import Grammar, Grammars
from scoring.generation.scheduler import Scheduler
from scoring.generation.settings import (
    Bound,
    GenerationSettings,
    ModelStops,
    answer_tokens_alone,
    end_tokens,
    suits_batches,
    value_of,
)
from scoring.generation.streaming import BatchStreamer, show_end
from scoring.model.loaded import Loaded
from scoring.schema.requests import GenerationParameters
from scoring.schema.structured import Constraint
from scoring.tasks.base import Task, logit_count, vocabulary
from scoring.tasks.generation_parameters import adjustments_of, asked_of, lengths_of, new_tokens_of
from scoring.tasks.measuring import two_logits

#: Bytes of a reply that a generated token takes as text, and as an entry with its logprob.
_TOKEN_BYTES, _TOLD_BYTES = 16, 96
Tokens = list[int]


class Generative(Task):
    """A task that generates text with the model's own `generate`."""

    smaller = "Ask for fewer tokens or fewer details of them, for fewer answers, or send fewer inputs at once."

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        answer_tokens_alone(loaded.model.generation_config)
        self.defaults: GenerationConfig = copy.deepcopy(loaded.model.generation_config)
        loaded.model.generation_config.stop_strings = None  # `generate` needs the tokenizer for them: handled here
        self.encoder_decoder = bool(loaded.model.config.is_encoder_decoder)
        self.eos = end_tokens(loaded.model, self.tokenizer, vocabulary(loaded.model.config))
        own = self.defaults.stop_strings
        self.stops = ModelStops(self.tokenizer, own) if own else None
        pads = [self.defaults.pad_token_id, self.tokenizer.pad_token_id, *self.eos, 0]
        self.pad_id: int = next(pad for pad in pads if pad is not None and 0 <= pad < vocabulary(loaded.model.config))
        self.grammars = Grammars(self.tokenizer, logit_count(loaded.model), self.eos)
        self._continuous: Scheduler | None = None
        self._config = lru_cache(64)(self._make_config)  # copying the defaults costs as much as a step of one slot

    def samples(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Samples of two tokens each, a prefill and one cached step; with a tiny context, one token."""
        for inputs, parameters in super().samples():
            yield inputs, {**parameters, "max_new_tokens": 2}
        for inputs, parameters in super().samples():
            yield inputs, {**parameters, "max_new_tokens": 1}

    # -- on the caller's thread --------------------------------------------------------------------------------------

    def generation_rows(
        self, tokens: Tokens, parameters: Any, item: int, bound: Bound | None = None, **overrides: Any
    ) -> list[Row]:
        """Check the parameters against the prompt, and make its rows; raises InvalidParameter, PromptTooLong.

        On slots each of several sampled answers is a row of its own, with its own seed; otherwise one row has all.
        """
        if not tokens:
            raise InvalidInput("The tokenizer finds nothing in the text.", "Send visible text.", f"inputs[{item}]")
        self.check_tokens(tokens, item)
        start = 1 if self.encoder_decoder else len(tokens)
        asked = asked_of(parameters, self.defaults) | self._lengths(parameters, start, item) | overrides
        bound = bound or Bound()
        if bound.constraint is not None:
            self._bind(bound.constraint, asked)
        answers = asked["num_return_sequences"]
        if answers > 1 and asked["num_beams"] == 1:
            each = [
                asked | {"num_return_sequences": 1, "seed": (asked["seed"] + number) % 2**63}
                for number in range(answers)
            ]
            settings = [self._settings(one, parameters, tokens, bound) for one in each]
            if self._slotted(settings[0], len(tokens)):
                urgent = parameters.priority
                return [self._row(own, tokens, item, number, answers, urgent) for number, own in enumerate(settings)]
        own = self._settings(asked, parameters, tokens, bound)
        return [self._row(own, tokens, item, 0, answers, parameters.priority)]

    def _bind(self, constraint: Constraint, asked: dict[str, Any]) -> None:
        """Compile the constraint on an answer; raises InvalidParameter if that fails, or with beams."""
        if asked["num_beams"] > 1:
            raise InvalidParameter(
                "A search with beams cannot be bound to a grammar.", "Set num_beams to 1.", where=constraint.where
            )
        self.grammars.start(constraint)

    def _row(
        self, settings: GenerationSettings, tokens: Tokens, item: int, answer: int, answers: int, priority: int
    ) -> Row:
        return Row(
            {"input_ids": tokens, "attention_mask": [1] * len(tokens)},
            item,
            key=self._key(settings, len(tokens)),
            parameters=settings,
            new_tokens=settings["max_new_tokens"],
            copies=max(settings["num_beams"], settings["num_return_sequences"]),
            answer=answer,
            answers=answers,
            priority=priority,
        )

    def _settings(self, asked: dict[str, Any], parameters: Any, tokens: Tokens, bound: Bound) -> GenerationSettings:
        stop, adapter = parameters.stop or (), self.loaded.served.key_of(parameters.adapter)
        return GenerationSettings(
            tuple(sorted(asked.items())),
            (stop,) if isinstance(stop, str) else tuple(stop),
            len(tokens) if self._padding_matters(asked) else None,
            parameters.top_n_tokens if parameters.return_details else None,
            adapter,
            f"{adapter}\0{salt_of(parameters.cache_salt)}",  # an adapter's keys and values are its own
            bound.constraint,
            bound.reply,
            adjustments_of(
                parameters, asked["min_new_tokens"], vocabulary(self.model.config), self._banned(parameters), self.eos
            ),
            tuple(parameters.stop_token_ids or ()),
            getattr(parameters, "prompt_logprobs", None),
            parameters.include_stop_str_in_output,
            parameters.return_token_ids,
            parameters.continuous_usage_stats,
        )

    def _banned(self, parameters: Any) -> tuple[Tokens, ...]:
        """Runs of tokens that write a word that may not come, at the beginning of a text and behind a space."""
        spelled = [text for word in parameters.bad_words or () for text in (word.lstrip(), f" {word.lstrip()}")]
        return tuple(self.call_tokenizer.ids(text, special=False) for text in spelled)

    def last_of(self, tokens: Tokens, parameters: Any) -> Tokens:
        """The prompt's tokens, or as many of its last as are asked for; -1: as fit beside the answer."""
        most = parameters.truncate_prompt_tokens
        if most == 0:
            where = "parameters.truncate_prompt_tokens"
            raise InvalidParameter("truncate_prompt_tokens is 0.", "Send at least 1, or -1.", where=where)
        if most == -1:
            context = self.loaded.context_length
            most = max(1, context - new_tokens_of(parameters, self.defaults, context))
        return tokens if most is None else tokens[-most:]

    def _key(self, settings: GenerationSettings, length: int) -> Hashable:
        """Batch key: on slots any rows share a batch; `generate` takes one config, and one stream of random numbers."""
        if self._slotted(settings, length):
            return SLOTS
        config, _ = self.generation_config(settings)
        batched = suits_batches(config, self.encoder_decoder)
        if settings["do_sample"] or not batched or config.stop_strings or settings.constraint:
            return object()
        total = length if self.encoder_decoder else length + settings["max_new_tokens"]
        mates = self.company.key(length), dynamic_rotary.length_class(self.rotary, length, total)
        own = settings.adjustments, settings.stop_ids, settings.prompt_logprobs
        return settings.overrides, settings.length, settings.details, settings.adapter, own, mates

    def _slotted(self, settings: GenerationSettings, length: int) -> bool:
        decoder = self.loaded.runtime.decoder
        if decoder is None or settings.prompt_logprobs is not None:
            return False
        config, _ = self.generation_config(settings)
        return sequence.supports(config, self.eos, length + settings["max_new_tokens"], decoder)

    def _lengths(self, p: GenerationParameters, start: int, item: int) -> dict[str, int]:
        return lengths_of(p, self.defaults, start, self.loaded.context_length, self.encoder_decoder, item)

    def _padding_matters(self, asked: dict[str, Any]) -> bool:
        """Return True if a penalty would see padding: in a decoder's prompt, or in an encoder's input."""
        own = self.defaults
        if (own.encoder_repetition_penalty or 1.0) != 1.0 or own.encoder_no_repeat_ngram_size:
            return True
        if self.encoder_decoder:
            return False
        penalty = asked.get("repetition_penalty", own.repetition_penalty)
        return (penalty or 1.0) != 1.0 or bool(asked.get("no_repeat_ngram_size", own.no_repeat_ngram_size))

    def answer_bytes(self, value: Any, parameters: Any, rows: Sequence[Row]) -> int:
        told = 1 + parameters.top_n_tokens if parameters.return_details else 0
        own = rows[0].new_tokens * (_TOKEN_BYTES + told * _TOLD_BYTES)
        if rows[0].parameters.prompt_logprobs is not None:
            own += rows[0].tokens * (1 + rows[0].parameters.prompt_logprobs) * _TOLD_BYTES
        return rows[0].answers * (own + self.repeated_bytes(value, parameters))

    def repeated_bytes(self, value: Any, parameters: Any) -> int:
        """Bytes of its input that each answer repeats."""
        return 0

    # -- on the inference thread -------------------------------------------------------------------------------------

    def forward(self, rows: Sequence[Row], between: Between = nothing) -> list[list[Tokens]]:
        """Generate for rows with equal keys; per row, the new tokens of each of its answers.

        A stop text and everything after it is cut off later, in `text`.
        """
        decoder = self.loaded.runtime.decoder
        if rows[0].key == SLOTS and decoder is not None:
            outputs = closed_set.generate_on_slots(self, decoder, rows)
        else:
            with all_with(self.loaded.adapters, rows[0].parameters.adapter):
                outputs = self._generated(rows, between)
        for row, output in zip(rows, outputs, strict=True):
            show_end(self, row, output)
        return outputs

    def slots(self, limits: Limits) -> Scheduler | None:
        decoder = self.loaded.runtime.decoder
        if decoder is None:
            self._continuous = None
            return None
        if self._continuous is None or self._continuous.decoder is not decoder:
            self._continuous = Scheduler(self, decoder, sequence.capacity(decoder, limits), limits.prefix_reuse)
        return self._continuous

    def _generated(self, rows: Sequence[Row], between: Between) -> list[list[Tokens]]:
        settings: GenerationSettings = rows[0].parameters
        if settings.prompt_logprobs is not None and self.loaded.runtime.ranks is not None:
            raise InvalidParameter(
                "A model that is sliced over GPUs does not tell its prompts' log-probabilities.",
                "Leave it out, or serve the model on one GPU.",
                where="parameters.prompt_logprobs",
            )
        config, seed = self.generation_config(settings)
        batch = self._pad(rows, self.loaded.device)
        if self.rotary:
            dynamic_rotary.forget(self.model, batch["input_ids"].shape[1])
        start = 1 if self.encoder_decoder else batch["input_ids"].shape[1]
        constraint, count = settings.constraint, settings["num_return_sequences"]
        own = [] if constraint is None else [self.grammars.start(constraint) for _ in range(count)]
        config = self._ending_at(config, settings)
        processors = self._processors(config, settings, own, start)
        watch = BatchStreamer(self, rows, start, settings["num_beams"] > 1, between, own)
        with torch.inference_mode(), self._random_numbers(seed) if config.do_sample else nullcontext():
            if settings.details is not None:
                config = copy.deepcopy(config)
                config.update(return_dict_in_generate=True, output_logits=True)
            made = self.model.generate(
                **batch,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([watch]),
                **({"tokenizer": self.tokenizer} if config.stop_strings else {}),
                logits_processor=processors,
            )
        sequences = made if settings.details is None else made.sequences
        made_ids = zip(sequences[:, start:].tolist(), watch.lengths, strict=True)
        answers = [until_end(tokens[:length], [*self.eos, *settings.stop_ids]) for tokens, length in made_ids]
        if settings.details is not None:
            chances = logprobs_of(made, start, settings.details)
            answers = [ScoredTokens(tokens, own[: len(tokens)]) for tokens, own in zip(answers, chances, strict=True)]
        each = len(answers) // len(rows)
        found = [answers[i : i + each] for i in range(0, len(answers), each)]
        if settings.prompt_logprobs is not None:
            self._score_prompts(rows, found, settings.prompt_logprobs, between)
        return found

    def _score_prompts(self, rows: Sequence[Row], found: list[list[Tokens]], most: int, between: Between) -> None:
        """Note the log-probabilities of prompts with their answers."""
        for row, output in zip(rows, found, strict=True):
            scored = prompt_logprobs(self.model, row, most, between)
            for tokens in output:
                if isinstance(tokens, ScoredTokens):
                    tokens.prompt = scored

    def _ending_at(self, config: GenerationConfig, settings: GenerationSettings) -> GenerationConfig:
        """The config with the row's own tokens that end a text, and no penalty that is applied elsewhere."""
        if not settings.stop_ids and not settings.adjustments:
            return config
        config = copy.deepcopy(config)
        config.eos_token_id = [*self.eos, *settings.stop_ids] or None
        return config

    def _processors(
        self, config: GenerationConfig, settings: GenerationSettings, own: list[Grammar], start: int
    ) -> LogitsProcessorList:
        """Logits processors of `generate` beside its config's own, in the order of the slots' sampler."""
        found = LogitsProcessorList()
        if settings.adjustments:
            found.append(AdjustmentsProcessor(settings.adjustments, start))
            penalty, config.repetition_penalty = config.repetition_penalty or 1.0, 1.0  # behind them, on slots too
            if penalty != 1.0:
                found.append(RepetitionPenaltyLogitsProcessor(penalty))
        if own:
            found.append(GrammarProcessor(self.grammars, own))
        return found

    def generation_config(self, settings: GenerationSettings) -> tuple[GenerationConfig, int | None]:
        """The model's generation config with a row's settings (read-only), and the seed of a sampled row."""
        seed = next((value for name, value in settings.overrides if name == "seed"), None)
        return self._config(tuple(pair for pair in settings.overrides if pair[0] != "seed")), seed

    def _make_config(self, overrides: tuple[tuple[str, Any], ...]) -> GenerationConfig:
        config = copy.deepcopy(self.defaults)
        config.update(**dict(overrides), pad_token_id=self.pad_id, eos_token_id=self.eos or None)
        if value_of(config, "num_beams") == 1:
            config.stop_strings = None  # found by `stops`, step by step
        return config

    def probe(self, text: str) -> dict[str, list[int]]:
        ids = self.call_tokenizer(text)["input_ids"]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    def measure(self, model: Any, rows: Sequence[Row]) -> list[torch.Tensor]:
        if self.rotary:
            dynamic_rotary.forget(model, max(row.tokens for row in rows))
        return two_logits(model, self._pad(rows, model.device), self.defaults, self.pad_id, self.eos)

    def _pad(self, rows: Sequence[Row], device: Any) -> dict[str, torch.Tensor]:
        """Pad rows into model inputs, each [B, S] int64; decoders on the left, so that new tokens follow the prompt."""
        longest = max(row.tokens for row in rows)
        batch = {}
        for name, fill in (("input_ids", self.pad_id), ("attention_mask", 0)):
            padded = []
            for row in rows:
                padding = [fill] * (longest - row.tokens)
                padded.append(row.features[name] + padding if self.encoder_decoder else padding + row.features[name])
            batch[name] = torch.tensor(padded, device=device)
        return batch

    @contextmanager
    def _random_numbers(self, seed: int | None) -> Iterator[None]:
        """Use the row's own seed inside the context, and restore the process's generators after it."""
        device = self.loaded.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed or 0)
            yield

    # -- answers -----------------------------------------------------------------------------------------------------

    def text(self, tokens: Tokens, settings: GenerationSettings) -> str:
        """The text of generated tokens, without special ones, cut at the first stop text."""
        text = text_of(self.tokenizer, tokens)
        return text[: stop_at(text, settings.stop, settings.tells_stop)]

    def texts(self, rows: Sequence[Row], outputs: Sequence[list[Tokens]]) -> list[str]:
        """The answers' texts of an input's rows."""
        return [self.text(tokens, rows[0].parameters) for output in outputs for tokens in output]

    def detailed(self, entries: list[Any], rows: Sequence[Row], outputs: Sequence[list[Tokens]]) -> list[Any]:
        """The answers of an input, with `details` and the tokens' ids if the request asks for them."""
        if rows[0].parameters.tells_ids:
            prompt = rows[0].features["input_ids"]
            ids = [list(tokens) for output in outputs for tokens in output]
            entries = [
                {**entry, "token_ids": own, "prompt_token_ids": prompt} for entry, own in zip(entries, ids, strict=True)
            ]
        if rows[0].parameters.details is None:
            return entries
        details = [
            token_details(self, row, tokens)
            for row, output in zip(rows, outputs, strict=True)
            for tokens in output
            if isinstance(tokens, ScoredTokens)
        ]
        return [{**entry, "details": own} for entry, own in zip(entries, details, strict=True)]

    def plain(self, answer: list[dict[str, Any]]) -> Any:
        values = [self.plain_text(entry) for entry in answer]
        return values[0] if len(values) == 1 else values

    @abstractmethod
    def plain_text(self, entry: dict[str, Any]) -> str:
        """The bare text of one answer."""
