"""Prompts that ask a decoder whether a document answers a query: by the chat template, or in Qwen3-Reranker's words."""

from typing import Any

from scoring.errors import InvalidInput, LoadError, RequestTimeout
from scoring.limits.deadline import interrupting

#: What stands for a document where only the prompt around it is wanted.
_PLACE = "mii-azure-document"
_PROBES = ("mii-azure-one", "mii-azure-two")
#: The prompt with which Qwen3-Reranker was trained, for folders whose chat template has no place for a pair.
_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_MARKS = ("<|im_start|>", "<|im_end|>")


class PairPrompt:
    """Writes a query and a document into a prompt."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._templated = self._takes_pairs()
        known = tokenizer.get_vocab()
        if not self._templated and not all(mark in known for mark in _MARKS):
            raise LoadError(
                "The tokenizer's chat template has no place for a query and a document, and its tokens are not Qwen's.",
                "Give it a chat template that writes messages of the roles query and document.",
            )

    def after(self, query: str, instruction: str | None, item: int) -> str:
        """The part of the prompt that follows the document; raises InvalidInput if the template refuses."""
        return self.write(query, _PLACE, instruction, item).rpartition(_PLACE)[2]

    def write(self, query: str, document: str, instruction: str | None, item: int) -> str:
        """The prompt; raises InvalidInput if the template refuses."""
        try:
            with interrupting():
                return self._written(query, document, instruction)
        except RequestTimeout:
            raise
        except Exception as error:  # a template may refuse messages by raising anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise InvalidInput(
                f"The model's chat template refuses the texts: {reason}.", where=f"inputs[{item}]"
            ) from error

    def _written(self, query: str, document: str, instruction: str | None) -> str:
        if not self._templated:
            start, end = _MARKS
            asked = f"<Instruct>: {instruction or _INSTRUCTION}\n<Query>: {query}\n<Document>: {document}"
            return (
                f"{start}system\n{_SYSTEM}{end}\n{start}user\n{asked}{end}\n{start}assistant\n<think>\n\n</think>\n\n"
            )
        system = [{"role": "system", "content": instruction}] if instruction else []
        pair = [{"role": "query", "content": query}, {"role": "document", "content": document}]
        return str(self._tokenizer.apply_chat_template([*system, *pair], tokenize=False))

    def _takes_pairs(self) -> bool:
        """True if the chat template writes both of a pair's texts."""
        if not getattr(self._tokenizer, "chat_template", None):
            return False
        self._templated = True
        try:
            return all(probe in self._written(*_PROBES, None) for probe in _PROBES)
        except Exception:  # it knows no such roles
            return False
