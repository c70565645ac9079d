"""Requests and answers of each task: parameters, inputs, a sample; no torch here, so that the generator can read it.

Parameter names and defaults follow the Hugging Face pipelines, whose shapes the answers have.
"""

import difflib
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from scoring.errors import InvalidInput, InvalidParameter
from scoring.schema.faults import first_fault
from scoring.schema.structured import StructuredParameters
from scoring.schema.tools import ToolCall, ToolParameters

#: Bounds of any one request: more than a model can use, and little enough to be read at once.
MOST = 2**31 - 1  # of any count; the model's context, its labels and its vocabulary bound it further
MOST_STOPS, MOST_STOP_CHARACTERS, MOST_BIASES = 16, 256, 1024
MOST_WORDS, MOST_WORD_CHARACTERS = 4096, 256  # labels, targets, names
MOST_PROMPT_CHARACTERS = 2**16  # of a negative prompt, or one that goes before a text
MOST_TOKENS, MOST_MESSAGES = 2**17, 2**14  # of an input in token ids, of a conversation
MOST_EMBEDDED = 2048  # inputs of a request for vectors, OpenAI's limit

Text = Annotated[str, Field(min_length=1)]
Word = Annotated[str, Field(min_length=1, max_length=MOST_WORD_CHARACTERS)]
StopText = Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]
Stops = Annotated[list[StopText], Field(max_length=MOST_STOPS)]
BadWords = Annotated[list[StopText], Field(max_length=128)]
TokenId = Annotated[int, Field(ge=0, le=MOST)]
#: JSON names tokens as text.
LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MOST_BIASES),
]
Words = Annotated[list[Word], Field(max_length=MOST_WORDS)]
Labels = Annotated[list[Annotated[str, Field(max_length=MOST_WORD_CHARACTERS)]], Field(max_length=MOST_WORDS)]
NegativePrompt = Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS)]


class Strict(BaseModel):
    """Types as written: no coercion, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextClassificationParameters(Strict):
    top_k: int | None = Field(1, ge=1, le=MOST, description="How many labels to return; null for all.")
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = Field(
        None,
        description="What turns logits into scores; null: by the model's problem type, as the pipeline does.",
    )
    truncation: bool = Field(False, description="Cut texts at the context length instead of refusing them.")


class TokenClassificationParameters(Strict):
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = Field(
        "none", description="How sub-word tags become entities."
    )
    ignore_labels: Labels = Field(["O"], description="Labels left out of the answer.")
    truncation: bool = Field(False, description="Cut texts at the context length instead of refusing them.")
    stride: int | None = Field(None, ge=0, le=MOST, description="Tokens shared by windows of a text past the context.")


class FillMaskParameters(Strict):
    top_k: int = Field(5, ge=1, le=MOST, description="How many fillings per mask.")
    targets: Words | Word | None = Field(
        None, description="Only score these words; one that is no token of its own stands for its first sub-word."
    )
    truncation: bool = Field(False, description="Cut texts at the context length instead of refusing them.")


class VectorParameters(Strict):
    """Parameters that all tasks over a text's vector share."""

    truncation: bool = Field(False, description="Cut texts at the context length instead of refusing them.")
    truncate: bool | None = Field(None, description="text-embeddings-inference's name of truncation; before it.")
    truncation_direction: Literal["right", "left", "Right", "Left"] | None = Field(
        None, description="The end at which truncation cuts; null: the tokenizer's own."
    )
    prompt_name: Word | None = Field(
        None, description="Which of the model's prompts goes before each text; null: its default one, if it has one."
    )
    prompt: Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS)] | None = Field(
        None, description="A prompt in place of the model's own; empty: none."
    )
    dimensions: int | None = Field(
        None, ge=1, le=MOST, description="Keep so many numbers of each vector; scaled to unit length again."
    )

    @property
    def cut(self) -> bool:
        """True if texts past the context length are cut."""
        return self.truncation if self.truncate is None else self.truncate


class EmbeddingParameters(VectorParameters):
    pooling: (
        Literal["none", "mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", "model"] | None
    ) = Field(
        None,
        description="How token vectors become one, without the model's Dense and LayerNorm modules; model: as its "
        "modules.json says, else mean; null: the deployment's default.",
    )
    normalize: bool | None = Field(None, description="Scale to unit length; null: the deployment's default.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: each vector as little-endian float32."
    )
    input_type: Literal["query", "document"] | None = Field(
        None,
        description="Which side of a search the texts are on, whose prompt they take; null: none, but document for "
        "models with a vector for each token.",
    )
    max_active_dims: int | None = Field(
        None, ge=1, le=MOST, description="Of sparse vectors, keep so many of the largest weights; null: all above 0."
    )
    sparse_keys: Literal["index", "token"] = Field(
        "index", description="How sparse vectors name their weights: by the token's number, or by the token."
    )


class QuestionAnsweringParameters(Strict):
    top_k: int = Field(1, ge=1, le=MOST, description="How many answers to return.")
    doc_stride: int = Field(
        128,
        ge=0,
        le=MOST,
        description="Overlap of windows over a long context, tokens; unless given, at most half a window.",
    )
    max_seq_len: int = Field(
        384,
        ge=8,
        le=MOST,
        description="Length of a window, question included, tokens; at most the model's context.",
    )
    max_question_len: int = Field(64, ge=1, le=MOST, description="A longer question is cut here, tokens.")
    max_answer_len: int = Field(15, ge=1, le=512, description="Longest answer, tokens.")
    handle_impossible_answer: bool = Field(False, description="Allow the empty answer.")
    align_to_words: bool = Field(True, description="Widen answers to whole words.")


class GenerationParameters(Strict):
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Most tokens to generate; default: the model's own, else 128, as far as they fit.",
    )
    max_length: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Most tokens, a decoder's prompt included; max_new_tokens goes before it.",
    )
    min_new_tokens: int | None = Field(None, ge=0, le=MOST, description="Fewest tokens to generate.")
    min_length: int | None = Field(None, ge=0, le=MOST, description="Fewest tokens, a decoder's prompt included.")
    ignore_eos: bool = Field(False, description="Go on to the most tokens; the model cannot end earlier.")
    do_sample: bool | None = Field(
        None,
        description="Sample instead of taking the most likely token; null: true when one of temperature (but 0), "
        "top_k, top_p, min_p, typical_p is given. false: those have no effect.",
    )
    temperature: float | None = Field(None, ge=0, le=100, description="0 takes the most likely token.")
    top_k: int | None = Field(
        None, ge=-1, le=MOST, description="Sample from the k most likely tokens; 0 and -1: from all."
    )
    top_p: float | None = Field(
        None, ge=0, le=1, description="Sample from the likeliest tokens of this mass; 0: from the likeliest alone."
    )
    min_p: float | None = Field(None, ge=0, le=1, description="Sample from tokens this likely, relative to the first.")
    typical_p: float | None = Field(None, gt=0, le=1, description="Sample from locally typical tokens of this mass.")
    seed: int | None = Field(
        None, ge=-1, lt=2**63, description="Makes sampling repeatable; -1: another each time, as without one."
    )
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description="Above 1 discourages repetition.")
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="Taken from the logit of each token that the answer holds already."
    )
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="Taken from the logit of each token as often as the answer holds it."
    )
    logit_bias: LogitBias | None = Field(None, description="Added to the logits of tokens, by their ids.")
    no_repeat_ngram_size: int | None = Field(
        None, ge=0, le=MOST, description="No run of this many tokens twice; 0: off."
    )
    num_beams: int | None = Field(None, ge=1, le=16, description="Beams to search with; default: the model's own.")
    length_penalty: float | None = Field(None, ge=-10, le=10, description="Above 0 favours long beams.")
    early_stopping: bool | Literal["never"] | None = Field(None, description="When a search with beams ends.")
    num_return_sequences: int = Field(1, ge=1, le=16, description="Answers per input; sampled, or one per beam.")
    stop: Stops | StopText | None = Field(
        None, description="Texts that end the generation, up to 16 of 256 characters; not part of the answer."
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MOST_STOPS)] | None = Field(
        None, description="Tokens that end the generation; part of the answer unless special."
    )
    include_stop_str_in_output: bool = Field(False, description="Answer with the stop text that ended it, too.")
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MOST_BIASES)] | None = Field(
        None, description="The only tokens that may come, up to 1024; one that ends a text has to be among them."
    )
    bad_words: BadWords | None = Field(None, description="Words, up to 128, that may not come first or behind a space.")
    priority: int = Field(
        0,
        ge=-MOST,
        le=MOST,
        description="Lower ones are taken first from the queue, and give way last where tokens are short.",
    )
    return_details: bool = Field(
        False, description="Answer with `details`: each token with its log-probability, and why the answer ended."
    )
    top_n_tokens: int = Field(
        0, ge=0, le=20, description="With return_details: so many of the likeliest tokens in place of each."
    )
    return_token_ids: bool = Field(False, description="Answer with `token_ids` and `prompt_token_ids` too.")
    continuous_usage_stats: bool = Field(False, description="A stream's events of text tell the `usage` so far.")
    use_cache: bool | None = Field(None, description="false computes every step anew: same tokens, slower.")
    adapter: Word | None = Field(
        None, description="Which of the deployment's LoRA adapters answers; null: the model without any."
    )
    cache_salt: Word | None = Field(
        None,
        description="Only prompts with the same one share what is held of their beginning; the caller's secret.",
    )


class TextGenerationParameters(GenerationParameters, StructuredParameters):
    return_full_text: bool = Field(True, description="Answer with the prompt in front, as the pipeline does.")
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="With return_details: each of the prompt's tokens with its log-probability, and so many of the "
        "likeliest in its place.",
    )
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=MOST,
        description="Keep only so many of the prompt's last tokens; -1: what fits beside the answer.",
    )


class ConversationalParameters(TextGenerationParameters, ToolParameters):
    continue_final_message: bool | None = Field(
        None, description="Continue the last message; null: where it is the assistant's own."
    )
    add_generation_prompt: bool | None = Field(
        None, description="Begin the assistant's turn behind the messages; null: unless the last one is continued."
    )


class SummarizationParameters(GenerationParameters):
    truncation: bool = Field(False, description="Cut texts at the context length instead of refusing them.")


class TranslationParameters(GenerationParameters):
    truncation: bool = Field(False, description="Cut texts at the context length instead of refusing them.")
    src_lang: Word | None = Field(None, description="Language of the text, e.g. en; for models that take one.")
    tgt_lang: Word | None = Field(None, description="Language to translate to, e.g. de.")
    task_type: str | None = Field(
        None,
        max_length=MOST_WORD_CHARACTERS,
        pattern=r"^translation_[A-Za-z_-]+_to_[A-Za-z_-]+$",
        description="Azure's form: translation_en_to_de.",
    )


class TextToImageParameters(Strict):
    negative_prompt: NegativePrompt | None = Field(
        None, description="What the image should not show; of prompts without one."
    )
    num_inference_steps: int = Field(50, ge=1, le=500, description="Steps from noise to image; time grows with them.")
    guidance_scale: float = Field(
        7.5, ge=0, le=50, description="How closely to follow the prompt; up to 1: not at all."
    )
    height: int | None = Field(None, ge=64, le=2048, multiple_of=8, description="Pixels; null: the model's own.")
    width: int | None = Field(None, ge=64, le=2048, multiple_of=8, description="Pixels; null: the model's own.")
    seed: int | None = Field(
        None,
        ge=-1,
        lt=2**63,
        description="Makes an image repeatable; the images of one prompt take this one and the next. "
        "-1: another each time, as without one.",
    )
    num_images_per_prompt: int = Field(1, ge=1, le=16, description="Images per prompt, as far as they fit one reply.")
    truncation: bool = Field(False, description="Cut prompts at the context length instead of refusing them.")


class PromptPair(Strict):
    prompt: Text
    negative_prompt: NegativePrompt | None = None


class TextPair(Strict):
    text: Text
    text_pair: str | None = None


TokenIds = Annotated[
    list[Annotated[int, Field(strict=True, ge=0, le=MOST)]], Field(min_length=1, max_length=MOST_TOKENS)
]
#: A text, or its token ids with special tokens; a refusal names no tag that begins with "function-".
TextOrTokens = Annotated[
    Annotated[Text, Tag("function-text")] | Annotated[TokenIds, Tag("function-tokens")],
    Discriminator(lambda value: "function-tokens" if isinstance(value, list) else "function-text"),
]


class QuestionContext(Strict):
    question: Text
    context: Text


class Message(Strict):
    role: Literal["system", "user", "assistant", "tool"]
    tool_calls: list[ToolCall] | None = Field(None, description="Of an assistant: what it called.")
    content: str | None = Field(None, validate_default=True, description="null only beside tool_calls.")
    name: Word | None = Field(None, description="Of who speaks, for chat templates that write it.")
    tool_call_id: Word | None = Field(None, description="Of a tool: the call that this answers.")
    reasoning_content: str | None = Field(None, description="Of an assistant: its thought, for templates that keep it.")

    @field_validator("content", mode="after")
    @classmethod
    def _says_something(cls, content: str | None, found: ValidationInfo) -> str | None:
        if content is None and not found.data.get("tool_calls"):
            raise PydanticCustomError("content", "Input should be a valid string")
        return content


Conversation = Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]


@dataclass(frozen=True)
class TaskSchema:
    """The declarative part of a task, read by the generator, docs, dialects and hosts."""

    name: str
    summary: str
    parameters: type[Strict]
    input: Any  # the type of one input
    sample: dict[str, Any]  # a canonical request that works with any model of the task
    response: dict[str, Any]  # JSON schema of the answer to one input
    generative: bool = False
    embeds: bool = False  # takes parameters beside the inputs too
    tokens: bool = False  # takes token ids for a text
    ranks: bool = False  # a list of two texts is one input, a pair
    hears: bool = False  # its inputs are sound files
    adapter: TypeAdapter[Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", TypeAdapter(self.input))

    def parse_input(self, value: Any, where: str) -> Any:
        """Check one input; raise InvalidInput naming the place."""
        try:
            return self.adapter.validate_python(value)
        except ValidationError as error:
            place, reason = first_fault(error)
            raise InvalidInput(
                f"{reason}.",
                f"One input of {self.name} looks like {self.example()}.",
                where=_join(where, place),
            ) from None

    def parse_parameters(self, values: Any) -> Strict:
        """Check the parameters; raise InvalidParameter naming the place, with the nearest name for an unknown one."""
        if not isinstance(values, dict):
            raise InvalidParameter('"parameters" must be an object.', where="parameters")
        known = list(self.parameters.model_fields)
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name)[:80], known, 1)
                hint = f"Did you mean {near[0]!r}?" if near else f"{self.name} takes {', '.join(known)}."
                named = str(name)[:80]
                raise InvalidParameter(f"Unknown parameter {named!r}.", hint, where=f"parameters.{named}")
        try:
            return self.parameters.model_validate(values)
        except ValidationError as error:
            place, reason = first_fault(error)
            raise InvalidParameter(f"{reason}.", where=_join("parameters", place)) from None

    def example(self) -> str:
        """One input of the sample, as JSON."""
        import json

        return json.dumps(self.sample["inputs"])


def _join(where: str, place: str) -> str:
    return f"{where}.{place}" if where and place else where or place
