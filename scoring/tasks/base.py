"""Base of every task: encode on the caller's thread, forward on the inference thread, decode on the caller's."""

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch

from scoring.config import Limits
from scoring.engine import dynamic_rotary
from scoring.engine.batch_invariance import Company, judge
from scoring.engine.row import Between, Row, Slots, nothing
from scoring.errors import InvalidInput, LoadError, PromptTooLong, RequestError
from scoring.limits.bounded_tokenizer import Tokenizing
from scoring.model.loaded import Loaded
from scoring.schema.registry import task_schema
from scoring.schema.requests import Strict, TaskSchema
from scoring.telemetry.statistics import Statistics

logger = logging.getLogger("mii_azure.tasks")

#: Texts of different lengths, whose answers alone and together show whether padding changes any; in English, and the
#: shorter one for models of few positions.
_RAGGED = ("Rain.", "It rained on Monday, and the old bridge over the river was closed until noon.")
_PROBED = 24  # tokens of the longest probe


class Task(ABC):
    """One task over one loaded model."""

    unit: ClassVar[str] = "tokens"  # unit of a row's footprint
    smaller: str = "Send fewer inputs at once."  # remedy for too large a reply
    name: ClassVar[str]
    auto_class: ClassVar[str]  # auto class of transformers

    def __init__(self, loaded: Loaded, name: str) -> None:
        self.loaded = loaded
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.schema: TaskSchema = task_schema(name)
        self.statistics = Statistics()  # the engine counts here too
        #: Tokenises one text or a pair into a BatchEncoding, within bounds.
        self.call_tokenizer = Tokenizing(self.tokenizer, loaded.context_length)
        self.company = Company()
        self._unembedded = _unembedded(loaded)
        self.rotary = dynamic_rotary.changes(self.model.config)

    @abstractmethod
    def encode(self, value: Any, parameters: Any, item: int) -> list[Row]:
        """Tokenise one checked input into one row or several."""

    @abstractmethod
    def forward(self, rows: Sequence[Row], between: Between = nothing) -> list[Any]:
        """Run the model over rows with equal keys; one output per row, on the CPU. Inference thread only.

        A forward of several steps calls `between` after each.
        """

    def examine(self) -> None:
        """Determine which rows may share a forward, from the model in its plain form. Inference thread only."""
        try:
            rows, twins = self._probes()
        except Exception as error:  # the sample request will show whether that is a defect
            self.company = Company("none", f"no rows could be made to try: {type(error).__name__}")
        else:
            if not rows:
                return
            with torch.inference_mode():
                self.company = self.judge(rows, twins)
        logger.info("batches hold rows of %(rows)s: %(reason)s", self.company.to_dict())

    def judge(self, rows: Sequence[Row], twins: Sequence[Row]) -> Company:
        """Judge from rows of different lengths, and others of one length, which rows may share a forward."""
        return judge(self.model, rows, twins, self.measure)

    def measure(self, model: Any, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Run the rows as one batch; per row the numbers from which its answer is made, float32 on the CPU."""
        raise NotImplementedError

    def probe(self, text: str) -> dict[str, list[int]]:
        """Features of a text as a row of this task; empty for tasks whose rows are not tokens."""
        return {}

    def _probes(self) -> tuple[list[Row], list[Row]]:
        """Rows of different lengths, and rows of one length: the longest, and the same with its tokens in reverse."""
        # Two tokens may follow, and length-dependent positions must not change here.
        bounds = [self.loaded.context_length, *(change.tokens for change in self.rotary)]
        most = max(2, min(_PROBED, *(bound - 2 for bound in bounds)))
        short, long = (self.probe(text) for text in _RAGGED)
        if not short.get("input_ids") or not long.get("input_ids"):
            return [], []
        long = {name: _of_length(ids, most) for name, ids in long.items()}
        short = {name: _of_length(ids, min(len(ids), most // 2)) for name, ids in short.items()}
        ids = long["input_ids"]
        twin = {**long, "input_ids": [ids[0], *reversed(ids[1:-1]), *ids[1:][-1:]]}
        return [Row(short, 0), Row(long, 0)], [Row(long, 0), Row(twin, 0)]

    def abilities(self) -> dict[str, Any]:
        """Kinds of content that this model's answers may hold beside the usual, for the metadata."""
        return {}

    def slots(self, limits: Limits) -> Slots | None:
        """Runner of rows with the key SLOTS, or None."""
        return None

    @abstractmethod
    def decode(self, value: Any, parameters: Any, rows: Sequence[Row], outputs: Sequence[Any]) -> Any:
        """Turn the outputs of one input's rows into the answer, in the Hugging Face pipeline's shape for one input."""

    def collect(self, answers: list[Any], single: bool, parameters: Strict) -> Any:
        """The canonical answer of a request: one answer, or a list of them."""
        return answers[0] if single else answers

    def plain(self, answer: Any) -> Any:
        """One answer as Azure ML's own model images return it: bare text if it has any."""
        return answer

    def table(self, answers: list[Any]) -> list[Any]:
        """Answers of a request as Azure ML's own model images list them."""
        return [self.plain(answer) for answer in answers]

    def answer_bytes(self, value: Any, parameters: Any, rows: Sequence[Row]) -> int:
        """Most bytes that the answer to one encoded input takes in a reply."""
        return 0

    def output_bytes(self, row: Row, output: Any) -> int:
        """Most bytes that a row's output adds to what `answer_bytes` could count before it was known."""
        return 0

    def check_together(self, rows: Sequence[Sequence[Row]]) -> None:
        """Raise InvalidInput where the inputs encoded so far are more than one request may have together."""
        return

    def most_rows(self, limits: Limits) -> int:
        """Most rows of one request."""
        return limits.queue_size

    def most_bytes(self, limits: Limits) -> int:
        """Most bytes that a reply may take; a request whose answers may take more is refused before it runs."""
        return limits.max_answer_bytes

    def warm_up(self) -> None:
        """Run the sample once, so that the first request does not wait for lazy initialisation.

        Raises LoadError if the model refuses every form of it.
        """
        refusals: list[RequestError] = []
        for inputs, parameters in self.samples():
            try:
                value = self.schema.parse_input(inputs, "")
                rows = self.encode(value, self.schema.parse_parameters(parameters), 0)
            except RequestError as refusal:
                refusals.append(refusal)
                continue
            self.forward(rows)
            return
        raise self._unanswerable(next((each for each in refusals if isinstance(each, PromptTooLong)), refusals[0]))

    def samples(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Inputs with their parameters to warm up on: the usual one first, then shorter ones."""
        sample = self.schema.sample
        inputs = sample["inputs"]
        value = inputs[0] if isinstance(inputs, list) and self.schema.name != "conversational" else inputs
        parameters = sample.get("parameters", {})
        cut = {"truncation": True} if "truncation" in self.schema.parameters.model_fields else {}
        for each in (value, shorter(value)):
            yield each, parameters
            if cut:
                yield each, {**parameters, **cut}

    def _unanswerable(self, refusal: RequestError) -> LoadError:
        remedy = "No request could be answered: correct what the sentence names in the model's folder."
        if isinstance(refusal, PromptTooLong):
            remedy = "Serve it with the context length that it was trained for."
        return LoadError(f"The model cannot answer any sample of {self.schema.name}: {refusal.message}", remedy)

    def check_tokens(self, ids: Sequence[int], item: int) -> None:
        """Raise InvalidInput for a token that the tokenizer has and the model no embedding for."""
        if self._unembedded and (found := self._unembedded.keys() & set(ids)):
            token = min(found)
            raise InvalidInput(
                f"The text holds {self._unembedded[token]!r}, token {token}, for which the model has no embedding.",
                "Leave it out of the text.",
                where=f"inputs[{item}]",
            )

    def check_known(self, ids: Sequence[int], item: int) -> None:
        """Raise InvalidInput for a token that was sent by its number and that the model does not have."""
        if max(ids) >= (known := vocabulary(self.model.config)):
            raise InvalidInput(
                f"The model has no token {max(ids)}; its vocabulary ends at {known - 1}.",
                "Send the ids of the model's own tokenizer, or texts.",
                f"inputs[{item}]",
            )

    def check_length(self, length: int, item: int, remedy: str) -> None:
        """Raise PromptTooLong if a row has more tokens than the model's context."""
        if length > self.loaded.context_length:
            raise PromptTooLong(
                f"The text has {length} tokens; the model takes {self.loaded.context_length}.",
                remedy,
                where=f"inputs[{item}]",
            )


class EncoderTask(Task):
    """A task whose forward is one pass of an encoder over padded rows."""

    #: Names of the transformers outputs from which answers are read.
    _read = ("logits", "start_logits", "end_logits", "last_hidden_state")

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        config = loaded.model.config
        accepted = set(inspect.signature(type(loaded.model).forward).parameters)
        if getattr(config, "type_vocab_size", 2) < 2:
            accepted.discard("token_type_ids")  # with a single type, the model's default is the same
        self._inputs = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in accepted]
        self.side: str = self.tokenizer.padding_side
        # A model that searches for padding searches for its config's token.
        pads = (getattr(config, "pad_token_id", None), self.tokenizer.pad_token_id, 0)
        self.pad_id: int = next(pad for pad in pads if pad is not None and 0 <= pad < vocabulary(config))

    def tokenize(self, texts: Sequence[str], truncation: bool | str, item: int, **options: Any) -> Any:
        """Tokenise one text or a pair into a BatchEncoding; refuse or cut what exceeds the context length."""
        limit = self.loaded.context_length if truncation else None
        encoded = self.call_tokenizer(*texts, truncation=truncation, max_length=limit, **options)
        if not encoded["input_ids"]:
            raise InvalidInput("The tokenizer finds nothing in the text.", "Send visible text.", f"inputs[{item}]")
        if not truncation:
            remedy = 'Shorten it, or set "parameters": {"truncation": true}.'
            self.check_length(len(encoded["input_ids"]), item, remedy)
        return encoded

    def row(self, encoded: Any, item: int, **rest: Any) -> Row:
        """Make a row of the features that the model takes; some tokenizers give token types to models without any."""
        self.check_tokens(encoded["input_ids"], item)
        cut = bool(encoded.get("cut"))
        row = Row({name: encoded[name] for name in self._inputs if name in encoded}, item, cut=cut, **rest)
        row.key = (
            self.company.key(row.tokens),
            dynamic_rotary.length_class(self.rotary, row.tokens, row.tokens),
            self.kin(row),
        )
        return row

    def kin(self, row: Row) -> Hashable:
        """Key that the task itself requires to be equal among the rows of a batch."""
        return None

    def forward(self, rows: Sequence[Row], between: Between = nothing) -> list[Any]:
        with torch.inference_mode():
            return self.split(self.run(rows), rows)

    def run(self, rows: Sequence[Row]) -> Any:
        """Run the model on rows as one batch."""
        if self.rotary:
            dynamic_rotary.forget(self.model, max(row.tokens for row in rows))
        return self.model(**self.pad(rows))

    @abstractmethod
    def split(self, output: Any, rows: Sequence[Row]) -> list[Any]:
        """Cut the model's output into one float32 CPU tensor (or tuple) per row, padding removed."""

    def live(self, values: torch.Tensor, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Cut an output [B, S, ...] to each row's own positions, without padding."""
        if self.side == "right":
            return [each[: row.tokens] for each, row in zip(values, rows, strict=True)]
        return [each[max(0, len(each) - row.tokens) :] for each, row in zip(values, rows, strict=True)]

    def pad(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Pad rows, on the side that the model needs, into model inputs, each [B, S] int64."""
        longest = max(row.tokens for row in rows)
        fill = {
            "input_ids": self.pad_id,
            "attention_mask": 0,
            "token_type_ids": int(getattr(self.tokenizer, "pad_token_type_id", 0) or 0),
        }
        device = "cpu" if self.loaded.runtime.host_inputs else self.loaded.device
        batch = {}
        for name in rows[0].features:
            padded = []
            for row in rows:
                padding = [fill[name]] * (longest - row.tokens)
                ids = row.features[name]
                padded.append(ids + padding if self.side == "right" else padding + ids)
            # Straight from lists, a tensor takes six times as long.
            batch[name] = torch.from_numpy(np.array(padded, dtype=np.int64)).to(device)
        return batch

    def probe(self, text: str) -> dict[str, list[int]]:
        return self.row(self.call_tokenizer(text), 0).features

    def judge(self, rows: Sequence[Row], twins: Sequence[Row]) -> Company:
        """Judge as the base does; pads on the side opposite to the tokenizer's if only that changes nothing."""
        own = self.side
        found = super().judge(rows, twins)
        if found.mates == "equal":
            self.side = "left" if own == "right" else "right"
            other = super().judge(rows, twins)
            if other.mates == "any":
                return Company("any", f"padding on the {self.side} changes no answer")
            self.side = own
        return found

    def measure(self, model: Any, rows: Sequence[Row]) -> list[torch.Tensor]:
        batch = {name: ids.to(model.device) for name, ids in self.pad(rows).items()}
        if self.rotary:
            dynamic_rotary.forget(model, max(row.tokens for row in rows))
        output = model(**batch)
        read = [(name, output[name]) for name in self._read if name in output] if isinstance(output, dict) else []
        found: list[list[torch.Tensor]] = [[] for _ in rows]
        for name, value in read or [("", output[0])]:
            spans = name in ("start_logits", "end_logits")
            for own, part in zip(found, self.live(value, rows) if spans or value.dim() > 2 else value, strict=True):
                own.append(part.float().cpu().flatten())
        return [torch.cat(own) for own in found]

    def require_offsets(self) -> None:
        """Raise LoadError for a tokenizer without character offsets of its tokens."""
        if not self.tokenizer.is_fast:
            raise LoadError(
                f"{type(self.tokenizer).__name__} gives no character offsets, which {self.schema.name} needs.",
                "Save the model with a fast tokenizer: the folder then has tokenizer.json.",
            )


def _unembedded(loaded: Loaded) -> dict[int, str]:
    """Tokens of the tokenizer beyond the model's embeddings, by id."""
    try:
        rows = int(loaded.model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):  # hashed or convolved characters, a model of another shape
        return {}
    if len(loaded.tokenizer) <= rows:
        return {}
    found = {number: token for token, number in loaded.tokenizer.get_vocab().items() if number >= rows}
    shown = ", ".join(f"{found[number]} ({number})" for number in sorted(found)[:5])
    logger.warning("the model has %d embeddings; %d tokens of its tokenizer have none: %s", rows, len(found), shown)
    return found


def _of_length(ids: list[int], length: int) -> list[int]:
    """Tokens cut or repeated to a length, with the last one kept at the end, where heads may look for it."""
    body = ids[:-1] or ids
    return [*(body * length)[: length - 1], ids[-1]]


def shorter(value: Any) -> Any:
    """Inputs of a sample cut to a word each; a text with a mask is cut to the mask."""
    if isinstance(value, dict):
        return {name: text if name == "role" else shorter(text) for name, text in value.items()}
    if isinstance(value, list):
        return [shorter(each) for each in value]
    return "[MASK]" if "[MASK]" in value else value.split()[0]


def vocabulary(config: Any) -> int:
    """Number of token ids for which a model has embeddings; unbounded if its config does not say."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "vocab_size", 0) or 0) or 1 << 62


def logit_count(model: Any) -> int:
    """Number of logits of a model that generates."""
    head = model.get_output_embeddings()
    return vocabulary(model.config) if head is None else int(head.weight.shape[0])


@contextmanager
def placed(whole: str, place: str) -> Iterator[None]:
    """Name the text in errors that name its input only."""
    try:
        yield
    except RequestError as error:
        if error.where in ("", whole):
            error.where = whole + place
        raise
