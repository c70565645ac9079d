"""Families that no table lists: planned from config.json, and served as plain transformers answers, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

import mii_azure
from mii_azure.errors import ConfigMissing, TaskUnsupported
from mii_azure.model.families import find_task
from mii_azure.model.profile import profile, supported_tasks, task_check
from mii_azure.model.resolved import Model
from mii_azure.model.safetensors import Weights
from scoring.config import Deployment
from scoring.errors import LoadError
from scoring.model.loader import survey
from scoring.passes.hf_verify import reload
from tests import tiny_tokenizers
from tests.scoring.conftest import Served
from tests.scoring.encoders import TEXTS, assert_agree, oracle
from tests.scoring.generating import PROMPTS
from tests.tiny_causal import tiny_causal
from tests.tiny_models import CONTEXT, auto_class
from tools import model_types

_SIZES: dict[str, Any] = {"d_model": 32, "max_position_embeddings": CONTEXT, "init_std": 0.7}
for _side in ("encoder", "decoder"):
    _SIZES |= {f"{_side}_layers": 2, f"{_side}_attention_heads": 4, f"{_side}_ffn_dim": 64}
_PROPHET = {f"num_{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
#: Changes of the config of each, which make it tiny.
SEQ2SEQ: dict[str, dict[str, Any]] = {
    "m2m_100": _SIZES,
    "led": _SIZES
    | {"max_encoder_position_embeddings": CONTEXT, "max_decoder_position_embeddings": CONTEXT, "attention_window": 8},
    "blenderbot": _SIZES,
    "bigbird_pegasus": _SIZES | {"attention_type": "original_full"},
    "plbart": _SIZES,
    "prophetnet": _PROPHET
    | {"hidden_size": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "ngram": 2, "num_buckets": 8, "init_std": 0.7}
    | {"max_position_embeddings": CONTEXT + 2},
    "fsmt": _SIZES | {"langs": ["en", "de"]},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "funnel": {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 1], "initializer_std": 0.5},
    "fnet": {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "initializer_range": 0.5},
    "canine": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    | {"num_hash_buckets": 64, "num_hash_functions": 4, "local_transformer_stride": 16, "initializer_range": 0.5},
}
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "initializer_range": 0.5}
_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION |= {"image_size": 28, "patch_size": 14}
#: Models of images and text: changes of the text's config, and the vision's.
WRAPPERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({"head_dim": 16, "sliding_window": 32}, _VISION),
    "mistral3": ({"head_dim": 16}, _VISION | {"head_dim": 8}),
    "llama4": (
        {"head_dim": 16, "intermediate_size_mlp": 64, "num_local_experts": 2},
        _VISION | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    ),
    "qwen2_5_vl": (
        {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32},
    ),
}

Serving = Callable[[Path, str], Served]


@pytest.fixture
def serving() -> Iterator[Serving]:
    started: list[Served] = []

    def start(folder: Path, task: str) -> Served:
        started.append(Served(folder, task))
        return started[-1]

    yield start
    for served in started:
        served.service.drain(5)


def write(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random(config: Any, maker: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return maker.from_config(config).eval()


def generated(folder: Path, maker: Any, prompts: Any) -> list[str]:
    """What plain transformers makes of each text alone."""
    model, tokenizer = maker.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        made = model.generate(**given, max_new_tokens=8, do_sample=False)
        start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        texts.append(tokenizer.decode(made[0, start:], skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_an_encoder_decoder(name: str, tmp_path: Path, serving: Serving) -> None:
    tokenizer = tiny_tokenizers.t5(CONTEXT)
    size = len(tokenizer)
    vocabulary: dict[str, Any] = {"vocab_size": size}
    if name == "fsmt":
        vocabulary = {"src_vocab_size": size, "tgt_vocab_size": size}
    ends = {each: getattr(tokenizer, each) for each in ("pad_token_id", "eos_token_id")}
    config = AutoConfig.for_model(name, **SEQ2SEQ[name] | vocabulary | ends | {"decoder_start_token_id": 1})
    maker = auto_class("summarization")
    folder = write(tmp_path / "model", random(config, maker), tokenizer)
    planned = mii_azure.plan("summarization", str(folder))
    assert (planned.profile.kind, planned.profile.estimated, planned.profile.layers) == ("encoder-decoder", (), 4)
    texts = [text for text in PROMPTS if text.isascii()]
    answers = serving(folder, "summarization").ok(texts, max_new_tokens=8)
    assert [each[0]["summary_text"] for each in answers] == generated(folder, maker, texts)


@pytest.mark.parametrize("name", ["codegen", "mamba", "qwen3_next", "falcon", "bert-generation", "reformer"])
def test_a_decoder_that_no_slots_serve(name: str, tmp_path: Path, serving: Serving) -> None:
    """Other attention, states beside it or in its place: whole batches, and each text alone."""
    tokenizer = tiny_tokenizers.qwen2(CONTEXT)
    ids = {each: getattr(tokenizer, each) for each in ("pad_token_id", "eos_token_id")}
    folder = write(tmp_path / "model", tiny_causal(name, vocab_size=len(tokenizer), **ids), tokenizer)
    assert mii_azure.plan("text-generation", str(folder)).profile.kind == "decoder"
    served, wanted = serving(folder, "text-generation"), generated(folder, transformers.AutoModelForCausalLM, PROMPTS)
    asked: dict[str, Any] = {"max_new_tokens": 8, "return_full_text": False}
    assert [each[0]["generated_text"] for each in served.ok(list(PROMPTS), **asked)] == wanted
    assert [served.ok(text, **asked)[0]["generated_text"] for text in PROMPTS] == wanted


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder(name: str, tmp_path: Path, serving: Serving) -> None:
    tokenizer = tiny_tokenizers.bert(CONTEXT)
    vocabulary = {} if name == "canine" else {"vocab_size": len(tokenizer)}
    config = AutoConfig.for_model(name, **ENCODERS[name] | vocabulary | {"num_labels": 3})
    task = "text-classification"
    folder = write(tmp_path / "model", random(config, auto_class(task)), tokenizer)
    planned = mii_azure.plan(task, str(folder))
    missing = {"funnel": ("layers",), "fnet": ("heads",), "canine": ("vocab_size",)}[name]
    assert planned.profile.estimated == missing
    [note] = [each for each in planned.decisions if each.what == "estimated facts"]
    assert missing[0].replace("_", " ") in note.value
    if name != "canine":  # its tokenizer of all of Unicode takes transformers ten seconds
        pipe = oracle(folder, task)
        assert_agree(serving(folder, task).ok(TEXTS[:3]), [pipe(text)[0] for text in TEXTS[:3]])


def test_a_tokenizer_of_bytes_has_no_vocabulary_to_miss(tmp_path: Path, serving: Serving) -> None:
    tokenizer = transformers.ByT5Tokenizer(model_max_length=CONTEXT)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "initializer_factor": 12.0}
    config = transformers.T5Config(**sizes, vocab_size=len(tokenizer), decoder_start_token_id=0)
    maker = auto_class("translation")
    folder = write(tmp_path / "model", random(config, maker), tokenizer)
    mii_azure.generate("translation", str(folder), "bytes", output=tmp_path / "bundle")
    answer = serving(folder, "translation").ok("The house", max_new_tokens=8)
    assert [answer[0]["translation_text"]] == generated(folder, maker, ["The house"])


@pytest.mark.parametrize("task", ["token-classification", "question-answering"])
def test_a_tokenizer_of_characters_tells_no_offsets(task: str, tmp_path: Path) -> None:
    """Found before anything is written, not when the server starts."""
    folder = tmp_path / "model"
    random(AutoConfig.for_model("canine", **ENCODERS["canine"]), auto_class(task)).save_pretrained(folder)
    told = {"tokenizer_class": "CanineTokenizer", "model_max_length": CONTEXT}
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(TaskUnsupported, match=r"CanineTokenizer .* does not tell where in a text its tokens are"):
        mii_azure.plan(task, str(folder))
    assert mii_azure.plan("feature-extraction", str(folder)).profile.kind == "encoder"


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_text_part_of_a_model_of_images(name: str, tmp_path: Path, serving: Serving) -> None:
    tokenizer = tiny_tokenizers.qwen2(CONTEXT)
    text, vision = WRAPPERS[name]
    own = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = AutoConfig.for_model(name, text_config=_TEXT | own | {"bos_token_id": None} | text, vision_config=vision)
    folder = write(tmp_path / "model", random(config, AutoModelForImageTextToText), tokenizer)
    planned = mii_azure.plan("text-generation", str(folder))
    assert (planned.profile.kind, planned.profile.layers, planned.context_length) == ("decoder", 2, CONTEXT)
    served = serving(folder, "text-generation")
    assert served.service.loaded.context_length == CONTEXT
    answers = served.ok(list(PROMPTS), max_new_tokens=8, return_full_text=False)
    wanted = generated(folder, AutoModelForImageTextToText, PROMPTS)
    assert [each[0]["generated_text"] for each in answers] == wanted
    with pytest.raises(TaskUnsupported, match=r"It can do: text-generation, conversational\."):
        mii_azure.plan("feature-extraction", str(folder))


def test_gemma_3n_is_served_without_the_library_that_its_towers_need(tmp_path: Path, serving: Serving) -> None:
    """Only the text part is loaded; the tensors of towers stay in the file."""
    tokenizer, folder, plain = tiny_tokenizers.gemma(CONTEXT), tmp_path / "model", tmp_path / "text"
    size = {"vocab_size": len(tokenizer), "vocab_size_per_layer_input": len(tokenizer)}
    write(plain, tiny_causal("gemma3n_text", **size), tokenizer)
    shutil.copytree(plain, folder)
    held = load_file(plain / "model.safetensors")
    whole = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in held.items()}
    towers = {"model.vision_tower.timm_model.stem.weight": torch.zeros(2, 2)}
    save_file(whole | towers, folder / "model.safetensors", {"format": "pt"})
    text = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    parts = {"text_config": text, "vision_config": {"model_type": "gemma3n_vision"}, "audio_config": {}}
    told = {"model_type": "gemma3n", "architectures": ["Gemma3nForConditionalGeneration"], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(told | parts), encoding="utf-8")
    planned = mii_azure.plan("text-generation", str(folder))
    assert (planned.profile.layers, planned.context_length) == (6, CONTEXT)
    served = serving(folder, "text-generation")
    assert type(served.service.loaded.model).__name__ == "Gemma3nForCausalLM"
    answers = served.ok(list(PROMPTS), max_new_tokens=8, return_full_text=False)
    assert [each[0]["generated_text"] for each in answers] == generated(
        plain, transformers.AutoModelForCausalLM, PROMPTS
    )
    before = served.service.loaded.model.state_dict()
    reload(served.service.loaded.model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in served.service.loaded.model.state_dict().items())


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_a_model_that_needs_another_library_is_refused_with_its_name(tmp_path: Path) -> None:
    config = AutoConfig.for_model("perception_lm")
    config.architectures = ["PerceptionLMForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"needs a library that is not installed: .*timm"):
        survey(Deployment("tiny", "text-generation"), tmp_path)


def described(config: dict[str, Any], parameters: int = 10**8) -> Model:
    return Model("m", "folder", config, Weights(parameters, 4 * parameters, "float32"))


@pytest.mark.parametrize(
    ("task", "name", "architecture"),
    [
        ("text-generation", "xglm", "XGLMForCausalLM"),
        ("text-generation", "mamba", "MambaForCausalLM"),
        ("text-generation", "rwkv", "RwkvForCausalLM"),
        ("text-generation", "falcon", "FalconForCausalLM"),
        ("text-generation", "mpt", "MptForCausalLM"),
        ("text-generation", "nemotron_h", "NemotronHForCausalLM"),
        ("text-generation", "llava", "LlavaForConditionalGeneration"),
        ("conversational", "bert-generation", "BertGenerationDecoder"),
        ("text-generation", "reformer", "ReformerModelWithLMHead"),
        ("translation", "t5gemma", "T5GemmaForConditionalGeneration"),
        ("translation", "nllb-moe", "NllbMoeForConditionalGeneration"),
        ("summarization", "pegasus_x", "PegasusXForConditionalGeneration"),
        ("summarization", "encoder-decoder", "EncoderDecoderModel"),
        ("fill-mask", "xlm", "XLMWithLMHeadModel"),
        ("fill-mask", "esm", "EsmForMaskedLM"),
        ("fill-mask", "modernvbert", "ModernVBertForMaskedLM"),
        ("question-answering", "xlnet", "XLNetForQuestionAnsweringSimple"),
        ("token-classification", "t5", "T5ForTokenClassification"),
    ],
)
def test_any_type_that_transformers_loads_is_planned(task: str, name: str, architecture: str) -> None:
    facts = profile(described(AutoConfig.for_model(name).to_dict() | {"architectures": [architecture]}))
    task_check(facts, find_task(task))
    assert facts.layers and facts.heads and facts.hidden_size and facts.vocab_size


def test_the_table_of_types_is_that_of_the_installed_transformers() -> None:
    assert json.loads(model_types.TARGET.read_text(encoding="utf-8")) == model_types.current()


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "clip", "architectures": ["CLIPModel"], "text_config": {}, "vision_config": {}},
        {
            "model_type": "blip",
            "architectures": ["BlipForConditionalGeneration"],
            "text_config": {},
            "vision_config": {},
        },
        {"model_type": "voxtral", "architectures": ["VoxtralForConditionalGeneration"], "audio_config": {}},
        {"model_type": "moonshine", "architectures": ["MoonshineForConditionalGeneration"], "is_encoder_decoder": True},
        {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLModel"], "text_config": {}, "vision_config": {}},
    ],
    ids=lambda config: config["model_type"],
)
def test_a_model_without_a_form_for_text_alone_is_offered_nothing(config: dict[str, Any]) -> None:
    facts = profile(described(config))
    assert not supported_tasks(facts)
    for task in ("feature-extraction", "text-generation", "summarization"):
        with pytest.raises(TaskUnsupported, match="works on images or sound"):
            task_check(facts, find_task(task))


def test_an_xlm_predicts_the_next_word_or_a_masked_one() -> None:
    config = AutoConfig.for_model("xlm").to_dict() | {"architectures": ["XLMWithLMHeadModel"]}
    assert "fill-mask" in supported_tasks(profile(described(config)))
    causal = supported_tasks(profile(described(config | {"causal": True})))
    assert "text-generation" in causal and "fill-mask" not in causal


def test_facts_that_only_estimates_need_are_estimated_from_the_size() -> None:
    facts = profile(described({"model_type": "brand-new", "architectures": ["BrandNewForMaskedLM"]}, 110_000_000))
    assert facts.estimated == ("hidden_size", "layers", "heads", "vocab_size")
    assert 500 < facts.hidden_size < 1000 and 8 < facts.heads < 16 and 12 <= facts.layers <= 36
    known = profile(described({"architectures": ["A"], "hidden_size": 768, "num_attention_heads": 12}, 110_000_000))
    assert (known.heads, known.estimated) == (12, ("layers", "vocab_size")) and 10 < known.layers < 20
    with pytest.raises(ConfigMissing):
        profile(described({"architectures": ["A"], "hidden_size": 2**40}))
