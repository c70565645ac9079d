"""text-generation and conversational: a decoder continues a prompt, or answers the last message."""

from collections.abc import Iterator, Sequence
from typing import Any

from scoring.engine.row import Row
from scoring.errors import InvalidInput, LoadError, RequestTimeout
from scoring.limits.deadline import interrupting
from scoring.model.loaded import Loaded
from scoring.schema.requests import Message, TextGenerationParameters
from scoring.schema.structured import constraint_of
from scoring.strict_json.body import text_bytes
from scoring.tasks.generation import Generative, Tokens

_MESSAGE_BYTES = 40  # of a message's JSON beside its content


class TextGeneration(Generative):
    """Continues a text; the answer's shape is the pipeline's."""

    name = "text-generation"
    auto_class = "AutoModelForCausalLM"

    def repeated_bytes(self, value: str, parameters: TextGenerationParameters) -> int:
        return text_bytes(value) if parameters.return_full_text else 0

    def encode(self, value: str, parameters: TextGenerationParameters, item: int) -> list[Row]:
        tokens = self.call_tokenizer(value)["input_ids"]
        return self.generation_rows(tokens, parameters, item, constraint_of(parameters))

    def decode(
        self,
        value: str,
        parameters: TextGenerationParameters,
        rows: Sequence[Row],
        outputs: Sequence[list[Tokens]],
    ) -> list[dict[str, Any]]:
        prompt = value if parameters.return_full_text else ""
        entries = [{"generated_text": prompt + text} for text in self.texts(rows, outputs)]
        return self.detailed(entries, rows, outputs)

    def plain_text(self, entry: dict[str, Any]) -> str:
        return str(entry["generated_text"])


class Conversational(Generative):
    """Answers a conversation through the tokenizer's chat template; continues a last message of the assistant's."""

    name = "conversational"
    auto_class = "AutoModelForCausalLM"

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        if not self.tokenizer.chat_template:
            raise LoadError(
                "The model's tokenizer has no chat template, so messages cannot become a prompt.",
                "Serve it as text-generation, or put its chat_template.jinja into the model folder.",
            )

    def samples(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Samples with and without a system message: some templates demand one, some refuse it."""
        usual = list(super().samples())
        yield from usual
        for messages, parameters in usual:
            yield [{"role": "system", "content": "Be brief."}, *messages], parameters

    def encode(self, value: list[Message], parameters: TextGenerationParameters, item: int) -> list[Row]:
        prompt = self._prompt([message.model_dump(exclude_none=True) for message in value], item)
        # The template writes the special tokens itself.
        tokens = self.call_tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return self.generation_rows(tokens, parameters, item, constraint_of(parameters))

    def repeated_bytes(self, value: list[Message], parameters: TextGenerationParameters) -> int:
        if not parameters.return_full_text:
            return 0
        return sum(text_bytes(message.content + (message.name or "")) + _MESSAGE_BYTES for message in value)

    def _prompt(self, messages: list[dict[str, str]], item: int) -> str:
        going_on = messages[-1]["role"] == "assistant"
        try:
            with interrupting():
                prompt: str = self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=not going_on, continue_final_message=going_on
                )
        except RequestTimeout:
            raise
        except Exception as error:  # a template may refuse messages by raising anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise InvalidInput(
                f"The model's chat template refuses the messages: {reason}.",
                "Most templates want user and assistant in turn, a system message only at the beginning.",
                where=f"inputs[{item}]",
            ) from error
        return prompt

    def decode(
        self,
        value: list[Message],
        parameters: TextGenerationParameters,
        rows: Sequence[Row],
        outputs: Sequence[list[Tokens]],
    ) -> list[dict[str, Any]]:
        replies = self.texts(rows, outputs)
        if not parameters.return_full_text:
            return self.detailed([{"generated_text": reply} for reply in replies], rows, outputs)
        messages = [message.model_dump(exclude_none=True) for message in value]
        last = messages.pop() if messages[-1]["role"] == "assistant" else {"role": "assistant", "content": ""}
        whole = [
            {"generated_text": [*messages, {"role": "assistant", "content": last["content"] + reply}]}
            for reply in replies
        ]
        return self.detailed(whole, rows, outputs)

    def plain_text(self, entry: dict[str, Any]) -> str:
        text = entry["generated_text"]
        return str(text if isinstance(text, str) else text[-1]["content"])
