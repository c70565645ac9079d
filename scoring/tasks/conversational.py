"""conversational: a decoder answers the last message of a conversation, calls tools, thinks first."""

from collections.abc import Iterator, Sequence
from typing import Any

from scoring.engine.row import Row
from scoring.errors import InvalidParameter, LoadError
from scoring.generation.call_forms import THINK, marks_as_text, marks_of_speech, thought_marks, tool_format
from scoring.generation.channels import THOUGHT, speaks_in_channels
from scoring.generation.mark_texts import keep_as_text
from scoring.generation.mark_tokens import mark_tokens
from scoring.generation.replies import ReplyForm, whole
from scoring.generation.settings import Bound
from scoring.generation.tagged_calls import Tags, typed
from scoring.generation.tool_formats import argument_schemas, call_or, framed, may_call, must_call, thought_rule
from scoring.model.loaded import Loaded
from scoring.schema.requests import ConversationalParameters, Message
from scoring.schema.structured import Constraint, constraint_of
from scoring.schema.tools import Tool, ToolChoice
from scoring.strict_json.body import dumps, text_bytes
from scoring.tasks.chat_template import ThoughtControls, continues, render
from scoring.tasks.generation import Generative, Tokens

_SCHEMA = "parameters.response_format.json_schema"
_MESSAGE_BYTES = 40  # of a message's JSON beside its content


class Conversational(Generative):
    """Answers a conversation through the tokenizer's chat template; continues a last message of the assistant's."""

    name = "conversational"
    auto_class = "AutoModelForCausalLM"

    def __init__(self, loaded: Loaded, name: str) -> None:
        template = getattr(loaded.tokenizer, "chat_template", None) or ""
        written = template if isinstance(template, str) else "".join(template.values())
        marks = marks_as_text(written)
        kept = keep_as_text(loaded.tokenizer, marks)
        self._dropped = tuple(sorted({*kept, *marks_of_speech(written)}))
        super().__init__(loaded, name)
        self._mark_tokens = mark_tokens(loaded.tokenizer, marks, self.eos)
        if not template:
            raise LoadError(
                "The model's tokenizer has no chat template, so messages cannot become a prompt.",
                "Serve it as text-generation, or put its chat_template.jinja into the model folder.",
            )
        self.tool_format = tool_format(written)
        self._channels = speaks_in_channels(written)
        self.marks = thought_marks(written)
        self._controls = ThoughtControls.of_template(written, self._channels or self.marks is not None)

    def abilities(self) -> dict[str, Any]:
        """Kinds of content that the chat template allows beside text, for the metadata."""
        controls, marks = self._controls, THOUGHT if self._channels else self.marks
        return {
            "tools": self.tool_format.name if self.tool_format else None,
            "reasoning": {"marks": marks, "switch": controls.switch} if marks else None,
        }

    def samples(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Samples with and without a system message: some templates demand one, some refuse it."""
        usual = list(super().samples())
        yield from usual
        for messages, parameters in usual:
            yield [{"role": "system", "content": "Be brief."}, *messages], parameters

    def encode(self, value: list[Message], parameters: ConversationalParameters, item: int) -> list[Row]:
        tools = self._tools(parameters)
        variables = self._controls.variables(parameters)
        going_on = continues(value, parameters)
        prompt = render(self.tokenizer, value, tools, variables, item, going_on, parameters.add_generation_prompt)
        marks = None if going_on or self._controls.off(variables) else self.marks
        opened = marks is not None and prompt.rstrip().endswith(marks[0].rstrip())
        called = () if going_on else tuple(tool.function.name for tool in tools)
        tagged = typed(tools) if self.tool_format and isinstance(self.tool_format.style, Tags) else frozenset()
        form = ReplyForm(
            marks is not None,
            opened,
            called,
            self.tool_format,
            tagged,
            marks or THINK,
            dropped=self._dropped,
            channels=self._channels and not going_on,
        )
        # The template writes the special tokens itself.
        tokens = self.last_of(self.call_tokenizer.ids(prompt, special=False), parameters)
        # An answer that is bound has no channels, and is read as one without them.
        constraint = self._constraint(parameters, tools, thought_rule(prompt, marks))
        return self.generation_rows(tokens, parameters, item, Bound(constraint, form))

    def _tools(self, parameters: ConversationalParameters) -> list[Tool]:
        """Tools for the template; raises InvalidParameter if it takes none, or the chosen one is not among them."""
        tools, choice = parameters.tools or [], parameters.tool_choice
        if choice == "none":
            return []
        if isinstance(choice, ToolChoice) and choice.function.name not in [tool.function.name for tool in tools]:
            raise InvalidParameter(
                f"tool_choice names {choice.function.name!r}, which is none of the tools.",
                where="parameters.tool_choice",
            )
        if choice == "required" and not tools:
            raise InvalidParameter("There are no tools to call.", "Send tools.", where="parameters.tool_choice")
        if tools and self.tool_format is None:
            raise InvalidParameter(
                "The model's chat template takes no tools.",
                "Leave them out, or serve a model whose template does.",
                where="parameters.tools",
            )
        return tools

    def _constraint(self, p: ConversationalParameters, tools: list[Tool], thought: str) -> Constraint | None:
        """Constraint on the answer: calls, where one must be made; else the request's own.

        A format binds the answer's text: there is none where a call must be made, and a schema leaves calls open.
        """
        own, choice, form = constraint_of(p), p.tool_choice, self.tool_format
        must = choice == "required" or isinstance(choice, ToolChoice)
        if own is not None and must and not own.where.startswith("parameters.response_format"):
            name = own.where.removeprefix("parameters.")
            raise InvalidParameter(f"An answer that must call a tool cannot keep {name}.", where=own.where)
        if own is not None and not must and not (tools and own.where.startswith(_SCHEMA)):
            return framed(own, thought, self._mark_tokens)
        strict = any(tool.function.strict for tool in tools) and form is not None and form.bounded
        if not tools or form is None or not (must or own is not None or strict):
            return None
        for schema in argument_schemas(tools):
            self.grammars.start(schema)
        several = p.parallel_tool_calls is not False and not isinstance(choice, ToolChoice)
        if not must:
            if own is None:
                return may_call(form, tools, thought, self._mark_tokens)
            return call_or(own, form, tools, several, thought, self._mark_tokens)
        if isinstance(choice, ToolChoice):
            tools = [tool for tool in tools if tool.function.name == choice.function.name]
        return must_call(form, tools, several, thought, self._mark_tokens)

    def repeated_bytes(self, value: list[Message], parameters: ConversationalParameters) -> int:
        if not parameters.return_full_text:
            return 0
        return sum(_bytes(message) for message in value)

    def decode(
        self,
        value: list[Message],
        parameters: ConversationalParameters,
        rows: Sequence[Row],
        outputs: Sequence[list[Tokens]],
    ) -> list[dict[str, Any]]:
        replies = [
            self._reply(row, number, tokens)
            for row, output in zip(rows, outputs, strict=True)
            for number, tokens in enumerate(output)
        ]
        if not parameters.return_full_text:
            plain = [{"generated_text": reply.pop("text"), **reply} for reply in replies]
            return self.detailed(plain, rows, outputs)
        messages = [message.model_dump(exclude_none=True) for message in value]
        last = messages.pop() if continues(value, parameters) else {"role": "assistant", "content": ""}
        full = [
            {"generated_text": [*messages, {**last, "content": last.get("content", "") + reply.pop("text"), **reply}]}
            for reply in replies
        ]
        return self.detailed(full, rows, outputs)

    def _reply(self, row: Row, number: int, tokens: Tokens) -> dict[str, Any]:
        settings = row.parameters
        text = self.text(tokens, settings)
        return whole(settings.reply, row.features["input_ids"], row.answer + number, text)

    def calls(self, row: Row, tokens: Tokens) -> bool:
        """Return True if an answer calls tools."""
        return "tool_calls" in self._reply(row, 0, tokens)

    def plain_text(self, entry: dict[str, Any]) -> str:
        text = entry["generated_text"]
        return str(text if isinstance(text, str) else text[-1]["content"])


def _bytes(message: Message) -> int:
    calls = len(dumps(message.model_dump(exclude_none=True)["tool_calls"])) if message.tool_calls else 0
    texts = (message.content, message.name, message.reasoning_content, message.tool_call_id)
    return sum(text_bytes(text) for text in texts if text) + calls + _MESSAGE_BYTES
