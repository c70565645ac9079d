"""Facts of a model, read from `config.json` and safetensors headers, never from weights."""

from math import isqrt
from typing import Any

from pydantic import BaseModel, ConfigDict

from mii_azure.errors import TaskUnsupported
from mii_azure.model import configs
from mii_azure.model.cached_layers import CachedLayers, cached_layers
from mii_azure.model.consistency import tokens_without_embedding
from mii_azure.model.experts import experts_of
from mii_azure.model.families import Family, Options, TaskFacts, all_tasks, fact, find_family, first_architecture
from mii_azure.model.resolved import WITHOUT_VOCABULARY, Model, Source
from mii_azure.model.safetensors import DTYPE_BYTES
from mii_azure.model.states import States, states
from mii_azure.model.windows import windows
from scoring.config import MODULES
from scoring.sentence.ranker import CAUSAL, FORM, JUDGES

# A tokenizer without a limit records a number of this size (transformers' VERY_LARGE_INTEGER is 1e30).
_NO_LIMIT = 1_000_000
#: What a model is taken to have whose config.json does not say it.
_USUAL_LAYERS, _USUAL_VOCABULARY = 24, 50_000


class Profile(BaseModel):
    """Known facts of a model before any weight is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str  # as the user typed it: a folder, a hub id, an azureml: reference
    revision: str | None  # hub commit, 40 hex digits
    architecture: str  # first entry of config.json's "architectures", e.g. "BertForQuestionAnswering"
    family: str  # config.json's "model_type", e.g. "bert"
    kind: str  # "encoder", "decoder", "encoder-decoder", "speech" or "diffusion"
    parameters: int
    weight_bytes: int  # of the weight files
    dtype: str  # as stored: float32, float16, bfloat16
    layers: int  # encoder and decoder together; for a UNet its residual and attention blocks
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int  # tokens
    expert_parameters: int = 0  # of all experts of all layers; 0 if every token goes through the whole model
    expert_share: float = 1.0  # of them that one token goes through
    row_parameters: int = 0  # of tables beside the vocabulary's, of which a token reads a row for each layer
    image_size: int = 0  # width and height in pixels of the model's training images; 0 if it makes no images
    kv_bytes_per_token: int  # at the stored dtype; 0 for encoders
    state_bytes: int = 0  # of recurrent states, which each sequence has beside keys and values or in place of them
    window: int = 0  # keys that a token sees in some layers of a decoder, itself included; 0: all layers see all
    windowed_layers: int = 0  # those layers
    cached_layers: tuple[CachedLayers, ...] = ()  # by what they keep, where they are not alike in all but windows
    pooling: str = ""  # and what follows it, as a sentence-transformers folder says; "" if it does not
    shipped: str = ""  # numbers of the products in the weight files, if they are quantised, e.g. "int4"
    published: str = ""  # method by which their author quantised them, e.g. "awq"
    widened: str = ""  # what the file was before its weights are widened, e.g. "GGUF Q4_K, 4,920.7 MB"
    estimated: tuple[str, ...] = ()  # names of facts that config.json does not say under a known name
    unembedded: tuple[str, ...] = ()  # tokens of the tokenizer that the model has no embedding for, "TOKEN (ID)"
    source: Source  # origin of the facts

    @property
    def widest_head(self) -> int:
        """Numbers of the widest head of any layer."""
        return max((each.head_dim for each in self.cached_layers), default=self.head_dim)

    @property
    def known(self) -> bool:
        """True if there are facts at all; an azureml: reference is not opened."""
        return self.source != "reference"


def profile(model: Model) -> Profile:
    """Describe a resolved model; raise ConfigMissing for a fact that no model has.

    Facts that config.json does not say serve only to estimate memory and time: they are estimated.
    """
    config = model.config
    family = find_family(config)
    if model.source == "reference":
        return _unknown(model)
    sizes = _Sizes(config, family, model.weights.parameters)
    layers, hidden, heads, vocabulary = sizes.layers, sizes.hidden, sizes.heads, sizes.vocabulary
    kept = states(config, family.name, layers) or States(sizes.kv_layers, 0)
    kv_heads, head_dim = fact(config, family, "kv_heads") or heads, fact(config, family, "head_dim") or hidden // heads
    dtype = model.weights.dtype or "float32"
    experts = experts_of(config, family, layers, hidden, model.weights.parameters)
    differing = cached_layers(config, layers, kv_heads, head_dim) if family.kind == "decoder" else ()
    kv_bytes = _kv_bytes(family, differing, kept.attending * kv_heads * head_dim, DTYPE_BYTES[dtype])
    window, windowed = windows(config, layers) if family.kind == "decoder" else (0, 0)
    return Profile(
        model=model.name,
        revision=model.revision,
        architecture=first_architecture(config),
        family=family.name,
        kind=family.kind,
        parameters=model.weights.parameters,
        weight_bytes=model.weights.bytes,
        dtype=dtype,
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        context_length=context_length(model),
        expert_parameters=experts.parameters,
        expert_share=experts.share,
        row_parameters=row_parameters(config, layers, model.weights.parameters),
        image_size=fact(config, family, "image_size") or 0 if family.kind == "diffusion" else 0,
        kv_bytes_per_token=kv_bytes,
        state_bytes=kept.bytes,
        window=window,
        windowed_layers=windowed,
        cached_layers=differing,
        shipped=model.weights.kind,
        published=model.weights.published,
        widened=model.weights.widened,
        source=model.source,
        estimated=tuple(sizes.estimated),
        unembedded=() if family.kind == "diffusion" else tokens_without_embedding(model),
    )


def _kv_bytes(family: Family, differing: tuple[CachedLayers, ...], numbers: int, item: int) -> int:
    """Bytes of a token's keys and values in all layers, of so many numbers of keys unless layers differ."""
    if family.kind in ("encoder", "diffusion"):
        return 0
    return 2 * item * (sum(each.numbers for each in differing) or numbers)


def row_parameters(config: dict[str, Any], layers: int, parameters: int) -> int:
    """Parameters of the table that has a row for each token and layer, as Gemma 3n and the small Gemma 4 have one."""
    text = configs.value(config, "text_config", dict) or config
    width = configs.value(text, "hidden_size_per_layer_input", int) or 0
    rows = configs.value(text, "vocab_size_per_layer_input", int) or configs.value(text, "vocab_size", int) or 0
    found = width * rows * layers
    return found if 0 < found < parameters else 0


def _unknown(model: Model) -> Profile:
    """Profile of an azureml: reference: a name and no facts."""
    text = {"architecture": "", "family": "", "kind": "encoder", "dtype": "float32"}
    numbers = dict.fromkeys(("parameters", "weight_bytes", "layers", "hidden_size", "heads", "kv_heads", "head_dim"), 0)
    more = dict.fromkeys(("vocab_size", "context_length", "kv_bytes_per_token"), 0)
    return Profile(model=model.name, revision=None, source="reference", **text, **numbers, **more)  # type: ignore[arg-type]


class _Sizes:
    """Sizes of a model: as config.json has them, else estimated from the number of parameters.

    A layer of a transformer has about 12 squares of its width, and a head a width of 64.
    """

    def __init__(self, config: dict[str, Any], family: Family, parameters: int) -> None:
        self.estimated: list[str] = []
        self._config, self._family = config, family
        layers, self.kv_layers = self._known_layers()
        usual = layers or _USUAL_LAYERS
        self.hidden = self._fact("hidden_size", isqrt(parameters // (12 * usual)))
        self.layers = layers or self._estimate("layers", parameters // (12 * self.hidden**2))
        self.kv_layers = self.kv_layers or self.layers
        self.heads = self._fact("heads", self.hidden // 64)
        self.vocabulary = self._fact("vocab_size", min(_USUAL_VOCABULARY, parameters // self.hidden))

    def _fact(self, name: str, usual: int) -> int:
        return fact(self._config, self._family, name) or self._estimate(name, usual)

    def _estimate(self, name: str, usual: int) -> int:
        self.estimated.append(name)
        return max(1, usual)

    def _known_layers(self) -> tuple[int, int]:
        """Number of all layers, and of layers that keep keys and values; 0 for what is not known."""
        config, family = self._config, self._family
        layers = fact(config, family, "layers") or 0
        if family.kind not in ("encoder-decoder", "speech"):
            return layers, layers
        encoder, decoder = (fact(config, family, f"{side}_layers") or layers for side in ("encoder", "decoder"))
        # Each decoder layer keeps self-attention's keys per answer token and cross-attention's per source token.
        return encoder + decoder, decoder


def context_length(model: Model, told: int | None = None) -> int:
    """Maximum tokens of one request: the position table's length, or less if the tokenizer says so.

    `told`, a sentence-transformers folder's max_seq_length, goes before the tokenizer's.
    """
    family = find_family(model.config)
    if family.kind == "speech":  # a window's positions of sound, and its tokens
        sides = ((configs.value(model.config, f"max_{side}_positions", int) or 0) for side in ("source", "target"))
        return sum(sides) or 1948
    positions = fact(model.config, family, "context_length")
    if positions is not None:
        positions -= family.context_offset
    tokenizer = model.settings.get("tokenizer_config.json") or {}
    limit = told or tokenizer.get("model_max_length")
    numbers = [n for n in (positions, limit) if isinstance(n, int | float) and not isinstance(n, bool)]
    limits = [n for n in numbers if 1 <= n < _NO_LIMIT]
    return int(min(limits, default=512))


def supported_tasks(profile: Profile) -> list[str]:
    """Names of the tasks that the model's architecture can do."""
    return [name for name, task in all_tasks().items() if task.accepts(profile.architecture, profile.kind)]


def task_check(profile: Profile, task: TaskFacts) -> None:
    """Raise TaskUnsupported, with the tasks it can do, if the model's architecture cannot do the task."""
    if not profile.known:
        return
    if not profile.architecture:
        raise TaskUnsupported(
            f"config.json of {profile.model} names no architecture, so its head is not known.",
            'Add it, e.g. "architectures": ["BertForMaskedLM"].',
        )
    if profile.kind == "multimodal":
        raise TaskUnsupported(
            f"{profile.architecture} ({profile.model}) works on images or sound, and has no form for text alone.",
            "Served are models that take text; of a model of several parts, give the folder of its text model.",
        )
    if not task.accepts(profile.architecture, profile.kind):
        can = ", ".join(supported_tasks(profile)) or "none of the tasks served here"
        raise TaskUnsupported(f"{profile.architecture} ({profile.model}) cannot do {task.name}.", f"It can do: {can}.")


def task_options(model: Model, task: TaskFacts) -> Options:
    """Options of the task for this model: its defaults, or none where modules.json says how to make vectors.

    Raises TaskUnsupported if the model lacks a chat template, a label or offsets that the task needs.
    """
    if task.name == "conversational" and model.source in ("folder", "hub"):
        _check_chat_template(model)
    if task.name == "zero-shot-classification":
        _check_entailment(model)
    if task.name in ("token-classification", "question-answering"):
        _check_offsets(model, task.name)
    one_vector = task.name in ("sentence-embeddings", "sentence-similarity")
    if one_vector and MODULES in model.settings:
        return {}
    if one_vector and find_family(model.config).kind == "decoder":
        return {**task.options, "pooling": "lasttoken"}  # the only token that has seen the whole text
    if task.name == "text-ranking" and first_architecture(model.config).endswith(CAUSAL):
        return {FORM: JUDGES}
    return dict(task.options)


def _check_offsets(model: Model, task: str) -> None:
    """Refuse tokenizers whose class has no fast form, which alone tells where in a text its tokens are."""
    told = (model.settings.get("tokenizer_config.json") or {}).get("tokenizer_class")
    if told in WITHOUT_VOCABULARY:
        raise TaskUnsupported(
            f"{told} of {model.name} does not tell where in a text its tokens are, which {task} needs.",
            "Take a model whose folder has tokenizer.json, or a task over whole texts.",
        )


def _check_entailment(model: Model) -> None:
    names = (configs.value(model.config, "id2label", dict) or {}).values()
    labels = [*(configs.value(model.config, "label2id", dict) or {}), *map(str, names)]
    if model.source in ("folder", "hub") and not any(name.lower().startswith("entail") for name in labels):
        known = ", ".join(sorted(set(labels)))[:200] or "it has none"
        raise TaskUnsupported(
            f"None of the labels of {model.name} says entailment: {known}.",
            'Take a model of natural language inference, whose label2id has "entailment".',
        )


def _check_chat_template(model: Model) -> None:
    tokenizer = model.settings.get("tokenizer_config.json") or {}
    if not tokenizer.get("chat_template") and "chat_template.jinja" not in model.settings:
        raise TaskUnsupported(
            f"The tokenizer of {model.name} has no chat template, so messages cannot be turned into a prompt.",
            "Use the task text-generation, or the model's instruct or chat variant.",
        )
