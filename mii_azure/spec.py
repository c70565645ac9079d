"""Spec, the one frozen input: the user's request, validated once."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self, TypedDict

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from local_runner.flags.serving import MOST_ADAPTERS, MOST_SERVED_NAMES, check_served_name, split_names
from mii_azure.errors import InvalidName, SpecError
from mii_azure.platform.limits import (
    EXPECTED_NEW_TOKENS,
    EXPECTED_PROMPT_TOKENS,
    LEAST_CONTEXT,
    MAX_SEQUENCES,
    MEMORY_SHARES,
)
from mii_azure.platform.options import AzureOptions, OnCommandLine
from mii_azure.platform.servers import Server
from scoring.config import CacheDtype, Speculation
from scoring.lora.served import ADAPTER_NAME

# Azure's rule for endpoint and deployment names (managed online endpoints reference, azure-ai-ml's validators).
# Names of two characters, which MII's users have, get a suffix in Azure: see `azure_name`.
NAME_PATTERN = re.compile(r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$")
NAME_LENGTH = (3, 32)
SHORTEST_NAME = 2
ADAPTED_TASKS = ("text-generation", "conversational", "summarization", "translation")
CACHED_TASKS = ("text-generation", "conversational")


def check_name(name: str) -> str:
    """Return `name` if Azure accepts its `azure_name`; raise InvalidName with one that it does accept."""
    high = NAME_LENGTH[1]
    if not SHORTEST_NAME <= len(name) <= high:
        what = f"The name {name!r} is {len(name)} long; names are {SHORTEST_NAME} to {high} characters."
    elif not NAME_PATTERN.fullmatch(name):
        what = f"Azure refuses the name {name!r}: letters, digits and hyphens only, a letter first, no hyphen last."
    else:
        return name
    raise InvalidName(what, f"Try {near_name(name)!r}.")


def azure_name(name: str) -> str:
    """Name of the endpoint in Azure: the deployment's own, or `NAME-endpoint` (MII's form) if that is too short."""
    return name if len(name) >= NAME_LENGTH[0] else f"{name}-endpoint"


def one_name(name: str | None, deployment_name: str | None) -> str:
    """Name that was given by one of its two words; raises SpecError for none, or two."""
    if (name is None) == (deployment_name is None):
        raise SpecError("A deployment has one name.", "Give name; deployment_name, MII's word, means the same.")
    return str(name if name is not None else deployment_name)


def near_name(name: str) -> str:
    """Name that Azure accepts, made of the letters of another, or of a model's last part."""
    name = PurePath(name).name
    letters = re.sub(r"[^a-zA-Z0-9]+", "-", name).lstrip("-0123456789")[: NAME_LENGTH[1]].rstrip("-")
    if len(letters) >= SHORTEST_NAME:
        return letters
    return f"{letters}-model" if letters else "my-model"


class Spec(AzureOptions):
    """Spec of a bundle: task, model, name, and preferences that have defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(description="What the endpoint does, e.g. question-answering.")
    model: str = Field(description="A folder, a Hugging Face hub id, or an azureml: reference.")
    name: str = Field(
        description="Name of endpoint and deployment: 2 to 32 letters, digits and hyphens; Azure's has 3 or more."
    )
    instance_type: str | None = Field(None, description="Azure instance type; the plan chooses one when absent.")
    revision: str | None = Field(None, description="Hub commit, branch or tag; pinned to a commit.")
    auth_mode: Literal["key", "aml_token", "aad_token"] = Field("key", description="key, aml_token or aad_token.")
    instance_count: int = Field(1, ge=1, le=50, description="Instances of the deployment, 1 to 50.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="auto, float32, float16 or bfloat16."
    )
    quantise: Literal["none", "int8", "fp8", "int4"] = Field(
        "none", description="none, or int8, fp8 or int4: weights quantised once, at generation, and shipped so."
    )
    allow_pickle: bool = Field(False, description="Accept weights that exist only as pickle files.")
    trust_remote_code: bool = Field(
        False, description="Run the model's own Python code; a hub model's only at a pinned commit."
    )
    image_digest: str | None = Field(
        None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="Digest that pins the base image: sha256: and 64 hex digits.",
    )
    objective: Literal["latency", "cost"] = Field(
        "latency", description="What optimisations are chosen for: latency or cost."
    )
    optimisations: Literal["azure", "public"] = Field(
        "azure", description="azure: every pass; public: DeepSpeed's own open ones."
    )
    passes_on: Annotated[tuple[str, ...], OnCommandLine("Comma-separated passes to force on.")] = Field(
        (), description="Passes to force on; one that cannot be served is an error."
    )
    passes_off: Annotated[tuple[str, ...], OnCommandLine("Comma-separated passes to leave out.")] = Field(
        (), description="Passes to leave out."
    )
    kv_cache_dtype: CacheDtype = Field(
        "auto", description="auto or fp8: a decoder's keys and values in the model's type, or in FP8, twice the tokens."
    )
    prefix_reuse: Annotated[
        bool, OnCommandLine("Compute every prompt whole: nothing of another caller's is reused.")
    ] = Field(True, description="Compute the beginning that prompts share once.")
    batch_invariant: bool = Field(
        False, description="Answer with the same bits alone and in company, by sums whose order no batch changes."
    )
    speculation: Speculation = Field(
        "auto",
        description="auto, ngram, draft or off: several tokens a step, of what a text repeats or of the draft model;"
        " auto: of the draft model, else on GPUs.",
    )
    draft_model: str | None = Field(
        None, min_length=1, description="Folder of a small model with the same vocabulary, which drafts tokens."
    )
    handler: str | None = Field(
        None, min_length=1, description="Python file with your own preprocess and postprocess, carried in the bundle."
    )
    adapter: str | None = Field(
        None, min_length=1, description="Folder of a PEFT LoRA adapter, merged into the weights at generation."
    )
    adapters: Annotated[tuple[str, ...], OnCommandLine("Comma-separated NAME=FOLDER of LoRA adapters to serve.")] = (
        Field((), max_length=MOST_ADAPTERS, description="NAME=FOLDER of PEFT LoRA adapters served beside the model.")
    )
    src_lang: str | None = Field(
        None, min_length=1, description="Of translation: the texts' language, unless a request says."
    )
    tgt_lang: str | None = Field(
        None, min_length=1, description="Of translation: the answers' language, unless a request says."
    )
    tensor_parallel: int = Field(
        0, ge=0, le=16, description="GPUs that share one copy of the weights; 0: as many as they need."
    )
    context_length: int | None = Field(
        None, ge=LEAST_CONTEXT, description="Tokens of a request, prompt and answer; the model's own when absent."
    )
    max_concurrency: int | None = Field(
        None, ge=1, le=MAX_SEQUENCES, description="Most sequences at once; as many as memory holds when absent."
    )
    memory_share: float | None = Field(
        None,
        ge=MEMORY_SHARES[0],
        le=MEMORY_SHARES[1],
        description="Share of a GPU's memory for weights and KV cache, 0.1 to 0.98.",
    )
    expected_prompt_tokens: int = Field(
        EXPECTED_PROMPT_TOKENS, ge=1, description="Prompt tokens of the requests to plan concurrency for."
    )
    expected_new_tokens: int = Field(
        EXPECTED_NEW_TOKENS, ge=1, description="New tokens of the requests to plan concurrency for."
    )

    served_name: Annotated[
        tuple[Annotated[str, AfterValidator(check_served_name)], ...],
        OnCommandLine("Comma-separated further names by which requests may call the model."),
        BeforeValidator(split_names),
    ] = Field((), max_length=MOST_SERVED_NAMES, description="Further names by which requests may call the model.")
    server: Server = Field(
        "azmlinfsrv", description="azmlinfsrv: Azure's; http: our own in the container, with streams and /v1/*."
    )

    @property
    def azure_name(self) -> str:
        """Name that Azure's resources carry."""
        return azure_name(self.name)

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return check_name(name)

    @model_validator(mode="after")
    def _languages(self) -> Self:
        if self.task != "translation" and (self.src_lang or self.tgt_lang):
            raise ValueError("only translation has languages; leave out src_lang and tgt_lang")
        return self

    @model_validator(mode="after")
    def _adapter(self) -> Self:
        self._adapters()
        if (self.adapter or self.adapters) and self.quantise != "none":
            raise ValueError(
                "an adapter is merged into weights as they were trained: generate with adapter first, then"
                " with quantise from that bundle's model/"
            )
        return self

    def _adapters(self) -> None:
        """Raise ValueError for adapters that could not be told apart, or that the task's requests cannot name."""
        names = [each.partition("=")[0] for each in self.adapters]
        for pair, name in zip(self.adapters, names, strict=True):
            if not (ADAPTER_NAME.fullmatch(name) and pair.partition("=")[2]):
                raise ValueError(f"{pair[:80]!r} is no NAME=FOLDER; a name has 1 to 64 letters, digits, '.', '_', '-'")
        taken = [*names, *dict.fromkeys((self.name, self.azure_name, *self.served_name))]
        if len(set(taken)) < len(taken):
            raise ValueError("two adapters, or an adapter and the model, have one name; give each its own")
        if names and self.adapter:
            raise ValueError("adapters are served beside the weights that they were trained on; leave out adapter")
        if names and self.task not in ADAPTED_TASKS:
            told = ", ".join(ADAPTED_TASKS)
            raise ValueError(f"adapters are served beside models of {told}; merge one by adapter")

    @model_validator(mode="after")
    def _draft(self) -> Self:
        if self.draft_model and self.task not in CACHED_TASKS:
            raise ValueError(f"only {' and '.join(CACHED_TASKS)} are drafted; leave out draft_model")
        if self.draft_model and self.speculation not in ("auto", "draft"):
            raise ValueError(f"with speculation {self.speculation} nothing reads a draft model; leave one of them out")
        if self.speculation == "draft" and not self.draft_model:
            raise ValueError("speculation draft needs a draft_model")
        if self.batch_invariant and (self.draft_model or self.speculation in ("ngram", "draft")):
            raise ValueError(
                "with batch_invariant nothing is drafted, since who else is served decides on drafts; leave out"
                " speculation and draft_model"
            )
        return self

    @property
    def expects(self) -> bool:
        """True if the expected request is the user's, not the default."""
        return (self.expected_prompt_tokens, self.expected_new_tokens) != (EXPECTED_PROMPT_TOKENS, EXPECTED_NEW_TOKENS)

    @model_validator(mode="after")
    def _cache(self) -> Self:
        if self.task not in CACHED_TASKS and (self.memory_share or self.expects or self.kv_cache_dtype != "auto"):
            raise ValueError(
                f"only {' and '.join(CACHED_TASKS)} have a KV cache to size; leave out memory_share, kv_cache_dtype and"
                " expected tokens"
            )
        if self.task == "text-to-image" and self.context_length:
            raise ValueError("the context of a pipeline's text encoder is fixed; leave out context_length")
        return self

    @property
    def languages(self) -> dict[str, str]:
        """Languages that were given, by the names of the request's parameters."""
        given = {"src_lang": self.src_lang, "tgt_lang": self.tgt_lang}
        return {name: language for name, language in given.items() if language}

    @model_validator(mode="after")
    def _auth_mode(self) -> Self:
        if self.kind == "kubernetes" and self.auth_mode == "aad_token":
            raise ValueError("endpoints on Kubernetes take keys and aml_token, not aad_token; change auth_mode")
        return self

    @model_validator(mode="before")
    @classmethod
    def _server_of_kaito(cls, given: Any) -> Any:
        """The HTTP host for KAITO, whatever is given: Azure's server answers on another port than its service asks."""
        return given | {"server": "http"} if isinstance(given, dict) and given.get("kind") == "kaito" else given

    @model_validator(mode="after")
    def _server(self) -> Self:
        if self.kind == "batch" and self.server != "azmlinfsrv":
            raise ValueError("a batch endpoint runs no HTTP server; leave out server")
        if self.kind == "kaito" and self.instance_count > 1:
            raise ValueError("the service that KAITO makes reaches one pod only; leave out instance_count")
        return self


class OtherPreferences(TypedDict, total=False):
    """Preferences of a spec beside the instance type, as keyword arguments; `Spec` says what each means."""

    adapter: str | None
    adapters: Sequence[str]
    draft_model: str | None
    handler: str | None
    served_name: Sequence[str]
    kind: Literal["managed", "kubernetes", "batch", "template", "kaito"]
    registry: str | None
    image: str | None
    compute: str | None
    cores: int | None
    ram: float | None
    disk: float | None
    gpus: int | None
    gpu_memory: float | None
    gpu_bandwidth: float | None
    gpu_tflops: float | None
    gpu_capability: float | None
    public_network_access: Literal["enabled", "disabled"]
    egress: Literal["enabled", "disabled"]
    identities: Sequence[str]
    secrets: Mapping[str, str]
    max_instances: int | None
    revision: str | None
    auth_mode: Literal["key", "aml_token", "aad_token"]
    instance_count: int
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    quantise: Literal["none", "int8", "fp8", "int4"]
    allow_pickle: bool
    trust_remote_code: bool
    image_digest: str | None
    objective: Literal["latency", "cost"]
    optimisations: Literal["azure", "public"]
    passes_on: Sequence[str]
    passes_off: Sequence[str]
    kv_cache_dtype: CacheDtype
    prefix_reuse: bool
    batch_invariant: bool
    speculation: Speculation
    src_lang: str | None
    tgt_lang: str | None
    tensor_parallel: int
    context_length: int | None
    max_concurrency: int | None
    memory_share: float | None
    expected_prompt_tokens: int
    expected_new_tokens: int
    server: Server


class Preferences(OtherPreferences, total=False):
    """Preferences of a spec, as keyword arguments."""

    instance_type: str | None


def make_spec(**preferences: Any) -> Spec:
    """Create a Spec from its fields; raises SpecError naming the invalid field, InvalidName for the name."""
    try:
        return Spec.model_validate(preferences)
    except ValidationError as error:
        raise _refusal(error) from None


def refuse_wrong_values(preferences: Mapping[str, Any]) -> None:
    """Refuse a value that its field does not take, whatever is missing or does not go together; raises SpecError."""
    try:
        Spec.model_validate({"task": "fill-mask", "model": "m", "name": "abc", **preferences})
    except ValidationError as error:
        if error.errors()[0]["loc"]:
            raise _refusal(error) from None


def _refusal(error: ValidationError) -> SpecError:
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in detail["loc"])
    told = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "string_pattern_mismatch":
        told = "it does not have the form that is asked for"
    sentence = f"{field}: {told}." if field else f"{told[:1].upper()}{told[1:]}."
    return SpecError(sentence, _hint(field, told))


def _hint(field: str, told: str) -> str:
    """Remedy for a field or for what is said of several: its description, their flags, names like an unknown one."""
    if known := Spec.model_fields.get(field):
        return str(known.description)
    if field:
        near = get_close_matches(field, Spec.model_fields, n=3)
        return f"Nearest: {', '.join(near)}." if near else f"Preferences: {', '.join(Spec.model_fields)}."
    said = set(re.findall(r"[a-z_]+", told)) - {"name", "model", "task", "kind", "server"}
    flags = [f"--{each.replace('_', '-')}" for each in Spec.model_fields if each in said]
    return f"{' and '.join(flags)}: `--help` says what belongs there." if flags else "`--help` says what goes together."
