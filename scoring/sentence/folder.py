"""Reads what a sentence-transformers folder says of itself: modules.json and the files that it names; no torch here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from scoring.config import MODULES
from scoring.sentence.vectors import MULTI_VECTOR, SPARSE, LateInteraction, Splade
from scoring.strict_json.files import typed

PROMPTS = "config_sentence_transformers.json"
#: Settings of the transformer module, under the names that sentence-transformers tries.
TRANSFORMER = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
#: Ways to make one vector of a text's token vectors, in sentence-transformers' order.
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
#: The same as booleans of older folders.
_BOOLEANS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
#: Activation functions that a Dense module may name: classes of torch.nn without arguments.
ACTIVATIONS = (
    *("ELU", "GELU", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish", "ReLU", "ReLU6", "SELU"),
    *("SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh", "Tanhshrink"),
)
MASKED_LM = "MLMTransformer"  # a Transformer with its head over the vocabulary, in older folders
_LAYERS = ("Dense", "Normalize", "LayerNorm", "Dropout")  # what may follow the pooling; Dropout does nothing here
#: Arguments of the tokenizer, model or config that change no vector here.
_HARMLESS = {"padding_side", "torch_dtype", "dtype", "attn_implementation", "use_cache", "trust_remote_code"}
_ARGUMENTS = tuple(
    f"{what}_{how}" for what in ("model", "tokenizer", "processor", "config") for how in ("args", "kwargs")
)
_WORKS_ON = {"sentence_embedding": "the pooled vector", "token_embeddings": "the tokens' vectors"}
_AGAIN = "Copy the model's folder again, as sentence-transformers saved it."
_FEATURES = "Serve the encoder alone (task feature-extraction, without modules.json) and do the rest on your side."

#: Parses a JSON file of the folder by its relative name; None if there is none.
Read = Callable[[str], Any]
T = TypeVar("T")


class Unserved(ValueError):
    """A folder asks for what is not served: a sentence, and a remedy."""

    def __init__(self, message: str, hint: str = _FEATURES) -> None:
        super().__init__(message)
        self.hint = hint


class Malformed(Unserved):
    """A file of the folder cannot mean anything."""

    def __init__(self, message: str) -> None:
        super().__init__(message, _AGAIN)


@dataclass(frozen=True)
class Module:
    """An entry of modules.json: its type's last name, the type as written, and its folder ("" is the model's own)."""

    kind: str
    type: str
    path: str

    def file(self, name: str) -> str:
        """Relative name of a file in its folder."""
        return f"{self.path}/{name}" if self.path else name


@dataclass(frozen=True)
class Layer:
    """A module after the pooling."""

    module: Module
    inputs: int = 0  # of Dense and LayerNorm; 0: it takes any
    outputs: int = 0
    bias: bool = True
    activation: str = "Identity"  # name in torch.nn
    residual: bool = False

    def told(self) -> str:
        """Describe the module in a word or two."""
        kind = self.module.kind
        return f"{kind} {self.inputs} to {self.outputs} ({self.activation})" if kind == "Dense" else kind


@dataclass(frozen=True)
class SentenceModel:
    """Settings of a sentence-transformers folder, beside its transformer's own files."""

    path: str  # folder of the transformer, relative; "" is the model's own
    pooling: tuple[str, ...]
    layers: tuple[Layer, ...] = ()
    include_prompt: bool = True  # False: the pooling leaves the prompt's tokens out
    max_seq_length: int | None = None  # tokens
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None  # a name among them
    splade: Splade | None = None  # of a model with sparse vectors
    late: LateInteraction | None = None  # of a model with a vector for each token

    @property
    def form(self) -> str:
        """Form of its vectors, where it is not one list of numbers a text."""
        return SPARSE if self.splade else MULTI_VECTOR if self.late else ""

    @property
    def normalize(self) -> bool:
        """True if its vectors have unit length."""
        return bool(self.layers) and self.layers[-1].module.kind == "Normalize"

    def dimension(self, hidden: int) -> int:
        """Numbers in a vector, of a transformer with `hidden` a token; raises Malformed if a module takes others."""
        size = hidden * (len(self.pooling) or 1)
        for layer in self.layers:
            if layer.inputs and layer.inputs != size:
                raise Malformed(f"{layer.module.path} takes vectors of {layer.inputs} numbers and gets {size}.")
            size = layer.outputs or size
        return size

    def told(self) -> str:
        """Describe pooling and what follows it, in the order of modules.json."""
        if self.splade:
            return self.splade.told()
        first = self.late.told() if self.late else " and ".join(self.pooling)
        steps = [first, *(layer.told() for layer in self.layers)]
        prompt = f"; prompt {self.default_prompt!r} by default" if self.default_prompt else ""
        return ", then ".join(steps) + prompt


def modules(listed: Any) -> list[Module]:
    """Entries of a parsed modules.json; raises Malformed."""
    return [_module(entry) for entry in typed_in(listed, list, "it", MODULES)]


def _module(entry: Any) -> Module:
    told = typed_in(entry, dict, "an entry", MODULES)
    name = typed_in(told.get("type", ""), str, "type", MODULES)
    path = typed_in(told.get("path", ""), str, "path", MODULES).strip("/")
    if path and {"", ".", ".."} & set(path.split("/")):
        raise Malformed(f"{MODULES} names the folder {path[:80]!a}, which is not one of the model's.")
    kind = name.rpartition(".")[2] if name.startswith(("sentence_transformers.", "pylate.models.")) else ""
    return Module("Transformer" if kind == MASKED_LM else kind, name, path)


def transformer_path(listed: Any) -> str:
    """Folder of the transformer that a parsed modules.json names; "" for the model's own, or none at all."""
    return next((each.path for each in modules(listed) if each.kind == "Transformer"), "")


def setting_files(listed: Any) -> list[str]:
    """Relative names of the JSON files that a parsed modules.json leads to, present or not."""
    found = modules(listed)
    names = [each.file(name) for each in found if each.kind == "Transformer" for name in TRANSFORMER]
    return [*names, PROMPTS, *(each.file("config.json") for each in found if each.kind != "Transformer" and each.path)]


def weight_files(listed: Any, names: Sequence[str], pickle: bool) -> list[str]:
    """Files with the weights of modules after the pooling, among a folder's `names`; a pickle only where allowed."""
    found = []
    for each in modules(listed):
        if each.kind in ("Dense", "LayerNorm") and each.path:
            safe, unsafe = each.file(WEIGHTS), each.file(PICKLE)
            found += [safe] if safe in names else [unsafe] if pickle and unsafe in names else []
    return found


def describe_dense(read: Read) -> SentenceModel:
    """Describe a folder with one vector a text; raises Unserved, or Malformed for a file that means nothing."""
    found = modules(read(MODULES))
    _check_order(found)
    first, pool, *rest = found
    settings, file = settings_of(first, read)
    check_transformer(settings, file)
    length = length_of(settings, "max_seq_length", file)
    modes, include = _pooling(pool, read)
    prompts, default = prompts_of(read, "SentenceTransformer")
    return SentenceModel(
        first.path,
        modes,
        tuple(layer_of(each, read) for each in rest if each.kind != "Dropout"),
        include,
        length,
        typed_in(settings.get("do_lower_case", False), bool, "do_lower_case", file),
        prompts,
        default,
    )


def settings_of(transformer: Module, read: Read) -> tuple[dict[str, Any], str]:
    """Settings of the transformer module, and the name of their file."""
    file = next((transformer.file(name) for name in TRANSFORMER if read(transformer.file(name)) is not None), None)
    file = file or transformer.file(TRANSFORMER[0])
    return typed_in(read(file) or {}, dict, "it", file), file


def length_of(told: Mapping[str, Any], key: str, file: str) -> int | None:
    """Number of tokens from one, or None where a file names none; raises Malformed."""
    length = told.get(key)
    if length is not None and typed_in(length, int, key, file) < 1:
        raise Malformed(f"{file}: {key} is {length}.")
    return length


def _check_order(found: Sequence[Module]) -> None:
    kinds = [each.kind for each in found]
    if any(each.type.endswith(MASKED_LM) for each in found):
        raise Unserved(f"{MODULES} pools the logits of a {MASKED_LM}, which is served with a SpladePooling only.")
    for at, each in enumerate(found):
        known = ("Transformer",) if at == 0 else ("Pooling",) if at == 1 else _LAYERS
        if each.kind not in known:
            place = "first" if at == 0 else "second" if at == 1 else f"as number {at + 1}"
            raise Unserved(
                f"{MODULES} has {each.type or 'a module without a type'} {place}, where only {', '.join(known)} "
                f"{'is' if len(known) == 1 else 'are'} served."
            )
        if at and each.kind in ("Pooling", "Dense", "LayerNorm") and not each.path:
            raise Malformed(f"{MODULES} says no path for {each.type}.")
    if len(kinds) < 2:
        raise Unserved(
            f"{MODULES} names {' and '.join(kinds) or 'no module'} only: nothing makes one vector of a text."
        )


def check_transformer(told: Mapping[str, Any], file: str, served_for: str = "feature-extraction") -> None:
    """Refuse settings under which the transformer would be another than what is loaded for this purpose."""
    output = "logits" if served_for == "fill-mask" else "last_hidden_state"
    purpose = told.get("transformer_task", served_for)
    if purpose != served_for:
        raise Unserved(f"{file} asks for the transformer task {str(purpose)[:80]}.")
    ways = told.get("modality_config")
    if ways is not None:
        text = typed_in(ways, dict, "modality_config", file).get("text")
        named = text.get("method_output_name") if isinstance(text, dict) else None
        if named != output or told.get("module_output_name") != "token_embeddings":
            raise Unserved(f"{file} has vectors made of something else than a text's {output.replace('_', ' ')}.")
    check_arguments(told, file)


def check_arguments(told: Mapping[str, Any], file: str) -> None:
    """Refuse arguments of tokenizer, model or config that would change what it computes."""
    if told.get("processing_kwargs"):
        raise Unserved(f"{file} has texts prepared by processing_kwargs.")
    for key in _ARGUMENTS:
        given = typed_in(told.get(key) or {}, dict, key, file)
        strange = sorted(name for name in given if name not in _HARMLESS)
        if strange:
            raise Unserved(f"{file} sets {strange[0][:80]} in {key}.")


def _pooling(module: Module, read: Read) -> tuple[tuple[str, ...], bool]:
    """Modes of the pooling, and whether the prompt's tokens count."""
    file = module.file("config.json")
    told = read(file)
    if told is None:
        raise Malformed(f"{MODULES} names {module.path}, and there is no {file}.")
    told = typed_in(told, dict, "it", file)
    include = typed_in(told.get("include_prompt", True), bool, "include_prompt", file)
    named = told.get("pooling_mode")
    if named is None:
        odd = [key for key, on in told.items() if key.startswith("pooling_mode_") and on and key not in _BOOLEANS]
        if odd:
            raise Unserved(f"{file} pools by {odd[0][:80]}; served are {', '.join(POOLINGS)}.")
        flags = {mode: typed_in(told.get(key, False), bool, key, file) for key, mode in _BOOLEANS.items()}
        return tuple(mode for mode, on in flags.items() if on) or ("mean",), include
    modes = [named] if isinstance(named, str) else typed_in(named, list, "pooling_mode", file)
    for mode in modes:
        if mode not in POOLINGS:
            raise Unserved(f"{file} pools by {str(mode)[:80]}; served are {', '.join(POOLINGS)}.")
    if not 0 < len(modes) <= len(POOLINGS):
        raise Malformed(f"{file} names {len(modes)} ways to pool.")
    return tuple(modes), include


def layer_of(module: Module, read: Read, works_on: str = "sentence_embedding") -> Layer:
    """Describe a module after the pooling; raises Unserved if it works on something else than it gets here."""
    file = module.file("config.json")
    told = (read(file) if module.path else None) or {}
    for key in ("module_input_name", "module_output_name"):
        if typed_in(told, dict, "it", file).get(key) not in (None, works_on):
            raise Unserved(f"{module.type} works on {str(told[key])[:80]}, not on {_WORKS_ON[works_on]}.")
    if module.kind == "Normalize":
        return Layer(module)
    if module.kind == "LayerNorm":
        size = size_of(told, "dimension", file)
        return Layer(module, size, size)
    return Layer(
        module,
        size_of(told, "in_features", file),
        size_of(told, "out_features", file),
        typed_in(told.get("bias", True), bool, "bias", file),
        _activation(told, file),
        typed_in(told.get("use_residual", False), bool, "use_residual", file),
    )


def _activation(told: Mapping[str, Any], file: str) -> str:
    """Name in torch.nn of the activation function; sentence-transformers takes Tanh where none is said."""
    named = told.get("activation_function", "torch.nn.modules.activation.Tanh")
    if named is None:
        return "Identity"
    name = typed_in(named, str, "activation_function", file)
    if not name.startswith("torch.nn.") or name.rpartition(".")[2] not in ACTIVATIONS:
        raise Unserved(
            f"{file} names the activation function {name[:80]!r}; served are torch.nn's {', '.join(ACTIVATIONS)}."
        )
    return name.rpartition(".")[2]


def prompts_of(read: Read, *purposes: str) -> tuple[dict[str, str], str | None]:
    """Prompts by name, and the name of the one that goes before every text."""
    told = typed_in(read(PROMPTS) or {}, dict, "it", PROMPTS)
    kind = told.get("model_type")
    if kind not in (None, *purposes):
        raise Unserved(f"{PROMPTS} says that it is a {str(kind)[:80]}, and not a {purposes[0]}.")
    prompts = {
        name: typed_in(text, str, f"prompt {name[:80]!r}", PROMPTS)
        for name, text in typed_in(told.get("prompts") or {}, dict, "prompts", PROMPTS).items()
        if text is not None
    }
    default = told.get("default_prompt_name")
    if default is not None and typed_in(default, str, "default_prompt_name", PROMPTS) not in prompts:
        raise Malformed(f"{PROMPTS} names {default[:80]!r} as its default prompt, and has no prompt of that name.")
    return prompts, default


def size_of(told: Mapping[str, Any], key: str, file: str) -> int:
    size = typed_in(told.get(key), int, key, file)
    if not 1 <= size < 2**24:
        raise Malformed(f"{file}: {key} is {size}.")
    return size


def typed_in(value: Any, kind: type[T], what: str, file: str) -> T:
    """A value of a file if it has that type; raises Malformed naming the file."""
    try:
        return typed(value, kind, what)
    except TypeError as error:
        raise Malformed(f"{file}: {error}.") from None
