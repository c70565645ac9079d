"""feature-extraction and sentence-embeddings: hidden states of an encoder, pooled or not; or in a model's own form."""

import base64
from collections.abc import Hashable, Sequence
from typing import Any

import torch

from scoring.config import Limits
from scoring.engine.row import Row
from scoring.errors import InvalidInput, InvalidParameter
from scoring.model.loaded import Loaded
from scoring.schema.requests import MOST_EMBEDDED, EmbeddingParameters
from scoring.sentence.head import pool
from scoring.strict_json.body import NUMBER_BYTES
from scoring.tasks.base import EncoderTask
from scoring.tasks.vector_forms import DOCUMENT, DOCUMENT_PROMPTS, TokenVectors, form_of, refuse_empty, refuse_more

#: Pooling and normalize unless the deployment or the model's folder sets them.
_DEFAULTS = {
    "feature-extraction": ("none", False),
    "sentence-embeddings": ("mean", True),
    "sentence-similarity": ("mean", True),
}
_MOST_NAMED = 20  # prompts listed in a refusal


class Embeddings(EncoderTask):
    """One vector per text, or with pooling "none" one per token, special tokens included."""

    name = "sentence-embeddings"
    auto_class = "AutoModel"
    smaller = "Send fewer or shorter inputs at once, have token vectors pooled into one, or ask for base64."

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        # With padding behind the text, no position and no causal mask of a token depends on it.
        self.side = "right"
        self.head = loaded.head
        self.form = form_of(loaded) if name != "feature-extraction" else None
        if self.form:
            self.smaller = self.form.smaller
        pooling, normalize = _DEFAULTS[name]
        if self.head and name != "feature-extraction":
            pooling, normalize = "model", self.head.told.normalize
        self._pooling = str(loaded.options.get("pooling", pooling))
        self._normalize = bool(loaded.options.get("normalize", normalize))

    def encode(self, value: str | list[int], parameters: EmbeddingParameters, item: int) -> list[Row]:
        self._check(parameters)
        skipped: Any = 0  # tokens that the pooling leaves out; of token vectors, the places of those compared
        if isinstance(value, list):
            encoded = self._as_given(value, parameters, item)
        else:
            prompt = self._prompt(parameters)
            side = (parameters.truncation_direction or "").lower() or None
            if isinstance(self.form, TokenVectors):
                return [self._compared(self.form, prompt + value, parameters, item, side)]
            encoded = self.tokenize([prompt + value], parameters.cut, item, side=side)
            skipped = self._skipped(prompt)
        if isinstance(self.form, TokenVectors):
            encoded, skipped = self.form.fill(encoded, self.form.role(parameters))
        row = self.row(encoded, item, parameters=parameters, extra=skipped)
        if isinstance(self.form, TokenVectors):
            refuse_empty(row, item)
        elif skipped >= row.tokens and self._mode(parameters) != "none":
            raise InvalidInput("The prompt leaves no token of the text.", "Shorten it.", f"inputs[{item}]")
        return [row]

    def _compared(
        self, form: TokenVectors, text: str, parameters: EmbeddingParameters, item: int, side: str | None
    ) -> Row:
        """Row of a text whose tokens are compared, as long as its side may be."""
        role = form.role(parameters)
        most = form.limit(role) if parameters.cut else None
        encoded = self.call_tokenizer(text, truncation=parameters.cut, max_length=most, side=side)
        if not encoded["input_ids"]:
            raise InvalidInput("The tokenizer finds nothing in the text.", "Send visible text.", f"inputs[{item}]")
        form.check_length(len(encoded["input_ids"]), role, item)
        features, kept = form.fill(dict(encoded), role)
        row = self.row(features, item, parameters=parameters, extra=kept)
        refuse_empty(row, item)
        return row

    def _check(self, parameters: EmbeddingParameters) -> None:
        """Refuse parameters that the model's vectors cannot honour."""
        if self.form:
            self.form.check(parameters)
            return
        for name in ("max_active_dims", "sparse_keys"):
            if name in parameters.model_fields_set:
                raise InvalidParameter(
                    f"{name} is for sparse vectors; this model's are not.", f'Leave out "{name}".', f"parameters.{name}"
                )
        refuse_more(parameters.dimensions, self._dimension(parameters))
        if parameters.encoding_format == "base64" and self._mode(parameters) == "none":
            raise InvalidParameter(
                "A vector per token is not encoded in base64.",
                'Choose a "pooling", or leave out "encoding_format".',
                "parameters.encoding_format",
            )

    def _prompt(self, parameters: EmbeddingParameters) -> str:
        """Prompt that goes before a text: the request's, one that it names, or the model's default."""
        known = self.head.told.prompts if self.head else {}
        if parameters.prompt is not None:
            if parameters.prompt_name is not None:
                raise InvalidParameter(
                    "There is both a prompt and a prompt_name.", "Send one of them.", "parameters.prompt"
                )
            return parameters.prompt
        name = parameters.prompt_name
        if name is not None and name not in known:
            names = ", ".join(repr(each[:80]) for each in sorted(known)[:_MOST_NAMED])
            raise InvalidParameter(
                f"The model has no prompt {name[:80]!r}.",
                f"It has {names}." if names else 'It has none: send the text of one as "prompt".',
                "parameters.prompt_name",
            )
        if name is None:
            name = self._usual_prompt(parameters)
        return known[name] if name is not None else ""

    def _usual_prompt(self, parameters: EmbeddingParameters) -> str | None:
        """Name of the prompt for a text's side, if the model has one, else of the default one."""
        if self.head is None:
            return None
        role = self.form.role(parameters) if self.form else parameters.input_type
        names = DOCUMENT_PROMPTS if role == DOCUMENT else (role,) if role else ()
        return next((name for name in names if name in self.head.told.prompts), self.head.told.default_prompt)

    def _skipped(self, prompt: str) -> int:
        """Tokens that the pooling leaves out: the prompt's own, for a model whose pooling does so."""
        if not prompt or self.head is None or self.head.told.include_prompt:
            return 0
        ids = self.call_tokenizer(prompt, truncation=True, max_length=self.loaded.context_length)["input_ids"]
        return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)

    def _as_given(self, ids: list[int], parameters: EmbeddingParameters, item: int) -> dict[str, Any]:
        """Features of a text that came as token ids: they are the whole sequence."""
        if parameters.prompt or parameters.prompt_name is not None:
            raise InvalidParameter(
                "A prompt goes before a text, and this input is token ids.", "Send texts.", f"inputs[{item}]"
            )
        self.check_known(ids, item)
        most = self.loaded.context_length
        if isinstance(self.form, TokenVectors):
            most = self.form.limit(self.form.role(parameters))
        if not parameters.cut and isinstance(self.form, TokenVectors):
            self.form.check_length(len(ids), self.form.role(parameters), item)
        elif not parameters.cut:
            self.check_length(len(ids), item, 'Shorten it, or set "parameters": {"truncation": true}.')
        left = (parameters.truncation_direction or self.tokenizer.truncation_side).lower() == "left"
        kept = ids[-most:] if left else ids[:most]
        features = {"attention_mask": [1] * len(kept), "token_type_ids": [0] * len(kept)}
        return {"input_ids": kept, **features, "cut": len(kept) < len(ids)}

    def _mode(self, parameters: EmbeddingParameters) -> str:
        """Pooling of a request: "model" only for a model that says its own."""
        mode = parameters.pooling or self._pooling
        return "mean" if mode == "model" and self.head is None else mode

    def _dimension(self, parameters: EmbeddingParameters) -> int:
        whole = self.head is not None and self._mode(parameters) == "model"
        return self.head.dimension if whole and self.head else int(self.model.config.get_text_config().hidden_size)

    def _normal(self, parameters: EmbeddingParameters) -> bool:
        if parameters.normalize is not None:
            return parameters.normalize
        if parameters.pooling == "model" and self.head:
            return self.head.told.normalize
        return self._normalize

    def answer_bytes(self, value: str | list[int], parameters: EmbeddingParameters, rows: Sequence[Row]) -> int:
        if self.form:
            return self.form.answer_bytes(parameters, rows[0])
        vectors = rows[0].tokens if self._mode(parameters) == "none" else 1
        size = parameters.dimensions or self._dimension(parameters)
        # Base64 takes four characters for three bytes of a float32's four.
        return vectors * size * (6 if parameters.encoding_format == "base64" else NUMBER_BYTES)

    def output_bytes(self, row: Row, output: Any) -> int:
        return self.form.output_bytes(row.parameters, output) if self.form else 0

    def most_rows(self, limits: Limits) -> int:
        return max(limits.queue_size, MOST_EMBEDDED)

    def split(self, output: Any, rows: Sequence[Row]) -> list[Any]:
        if self.form:
            return [self._in_form(each, row) for each, row in zip(self.live(output[0], rows), rows, strict=True)]
        hidden = output[0].float()  # [B, S, H]
        vectors = [self._pool(states, row) for states, row in zip(self.live(hidden, rows), rows, strict=True)]
        whole = [at for at, row in enumerate(rows) if self._mode(row.parameters) == "model"]
        if self.head:
            for at, vector in zip(whole, self.head.finish([vectors[at] for at in whole]), strict=True):
                vectors[at] = vector
        return [self._finish(vector, row.parameters).cpu() for vector, row in zip(vectors, rows, strict=True)]

    def _in_form(self, output: torch.Tensor, row: Row) -> Any:
        assert self.form is not None
        vector = self.form.make(output.float(), row)
        return self._finish(vector, row.parameters).cpu() if isinstance(self.form, TokenVectors) else vector

    def kin(self, row: Row) -> Hashable:
        """Key of rows with tokens that nothing attends to: no pass computes those, so that they run plainly."""
        return self.form is not None and 0 in row.features.get("attention_mask", ())

    def run(self, rows: Sequence[Row]) -> Any:
        if not self.kin(rows[0]):
            return super().run(rows)
        batch = {name: ids.to(self.model.device) for name, ids in self.pad(rows).items()}
        return type(self.model).forward(self.model, **batch)

    def _pool(self, states: torch.Tensor, row: Row) -> torch.Tensor:
        """Pool [S, H] to one vector, or to [1, S, H] for "none"."""
        mode = self._mode(row.parameters)
        if mode == "none":
            return states[None]
        modes = self.head.told.pooling if mode == "model" and self.head else (mode,)
        return pool(states, modes, row.extra or 0)

    def _finish(self, vector: torch.Tensor, parameters: EmbeddingParameters) -> torch.Tensor:
        """Cut a vector to the dimensions that were asked for, and scale it."""
        vector = vector[..., : parameters.dimensions]
        return torch.nn.functional.normalize(vector, dim=-1) if self._normal(parameters) else vector

    def decode(
        self,
        value: str | list[int],
        parameters: EmbeddingParameters,
        rows: Sequence[Row],
        outputs: Sequence[Any],
    ) -> Any:
        if self.form:
            return self.form.answer(outputs[0], parameters)
        if parameters.encoding_format == "base64":
            return base64.b64encode(outputs[0].numpy().astype("<f4").tobytes()).decode()
        return outputs[0].tolist()
