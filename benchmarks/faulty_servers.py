"""Servers of SmolLM2-135M-Instruct in float32 with one fault planted in each, for `benchmarks.parity_faults`."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import mii_azure
from local_runner.targets.load import TargetReply
from local_runner.targets.targets import Target, make_target
from mii_azure.verdict.tokens.margins import pick_scores
from mii_azure.verdict.tokens.probes import NEW_TOKENS

TASK = "conversational"
_RANK = 8
_CUT = 256


class Altering:
    """A target whose requests are altered on their way."""

    def __init__(self, target: Target, alter: Callable[[dict[str, Any]], None]) -> None:
        self._target, self._alter = target, alter

    def send(self, raw: str) -> TargetReply:
        """Send the altered body."""
        body = json.loads(raw)
        self._alter(body["parameters"])
        return self._target.send(json.dumps(body))


class PlainServer:
    """Plain transformers, one token after the other, with a cache and prompts that a fault may change."""

    def __init__(self, folder: Path, cache: Callable[[], Any] = DynamicCache, most: int = 1 << 20) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._cache, self._most = cache, most

    @torch.inference_mode()
    def send(self, raw: str) -> TargetReply:
        """Answer one probe."""
        body = json.loads(raw)
        text = self.tokenizer.apply_chat_template(body["inputs"], tokenize=False, add_generation_prompt=True)
        prompt = self.tokenizer(text, add_special_tokens=False)["input_ids"][-self._most :]
        seed = body["parameters"].get("seed")
        cache, tokens, fed = self._cache(), [], prompt
        while len(tokens) < NEW_TOKENS:
            logits = self.model(torch.tensor([fed]), past_key_values=cache, use_cache=True).logits[:, -1]
            token = int(pick_scores(logits, seed, len(prompt) + len(tokens)).argmax())
            if token == self.tokenizer.eos_token_id:
                break
            tokens.append(token)
            fed = [token]
        answer = [{"generated_text": self.tokenizer.decode(tokens, skip_special_tokens=True)}]
        return TargetReply(200, json.dumps(answer).encode(), 0.0)


class FP8Cache(DynamicCache):
    """Keys and values in FP8 as servers keep them that were given no scales: each is rounded as it is."""

    def update(self, key_states: Any, value_states: Any, *more: Any, **named: Any) -> Any:
        """Round, then keep."""
        return super().update(_fp8(key_states), _fp8(value_states), *more, **named)


def _fp8(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float8_e4m3fn).to(values.dtype)


class ScaledFP8Cache(DynamicCache):
    """Keys and values in FP8 with a scale for all that come at once, which no suspect can know."""

    def update(self, key_states: Any, value_states: Any, *more: Any, **named: Any) -> Any:
        """Round, then keep."""
        return super().update(_scaled_fp8(key_states), _scaled_fp8(value_states), *more, **named)


def _scaled_fp8(values: torch.Tensor) -> torch.Tensor:
    scale = values.abs().max() / torch.finfo(torch.float8_e4m3fn).max
    return _fp8(values / scale) * scale


def bundle(model: Path, folder: Path, **options: Any) -> Path:
    """Bundle whose server rounds nothing by itself: on a CPU a start may choose int8 weights, whatever the dtype."""
    settings = {"dtype": "float32", "passes_off": ("weight_only",), "instance_type": "Standard_F8s_v2"} | options
    return mii_azure.generate(task=TASK, model=str(model), deployment_name="faults", output=folder, **settings)


def _copied(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder))


def _perturbed(model: Path, folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """A copy of a model with its projections changed."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    copy = _copied(model, folder)
    for shard in copy.glob("*.safetensors"):
        tensors = {n: change(n, t) if "_proj" in n else t for n, t in load_file(shard).items()}
        save_file({n: t.contiguous() for n, t in tensors.items()}, shard, {"format": "pt"})
    return copy


def _noise(name: str, weight: torch.Tensor) -> torch.Tensor:
    return weight + (0.02 * weight.float().std() * torch.randn(weight.shape)).to(weight.dtype)


def adapter(model: Path, folder: Path) -> Path:
    """A LoRA adapter of random numbers on the attention's projections, of the size that training leaves."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    folder.mkdir()
    layers = {
        n: m for n, m in AutoModelForCausalLM.from_pretrained(model).named_modules() if n.endswith(("q_proj", "v_proj"))
    }
    tensors = {}
    for name, layer in layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = 0.02 * torch.randn(_RANK, layer.in_features)
        tensors[f"base_model.model.{name}.lora_B.weight"] = 0.02 * torch.randn(layer.out_features, _RANK)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 2 * _RANK, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _with_adapter(model: Path, folder: Path, polite: Path) -> Path:
    from safetensors.torch import load_file

    low = load_file(polite / "adapter_model.safetensors")

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" not in low:
            return weight
        return weight + (2 * low[f"{key}.lora_B.weight"] @ low[f"{key}.lora_A.weight"]).to(weight.dtype)

    return _perturbed(model, folder, change)


def _without_system(model: Path, folder: Path) -> Path:
    """A copy of a model whose template adds no system message of its own."""
    copy = _copied(model, folder)
    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    template = turns + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    (copy / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = json.loads((copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return copy


def _without_special(model: Path, folder: Path) -> Path:
    """A copy of a model whose tokenizer has lost the special tokens of turns, and cuts them up like other text."""
    copy = _copied(model, folder)
    tokenizer = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<|im_start|>"]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = json.loads((copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    for key in ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "bos_token"):
        config.pop(key, None)
    (copy / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (copy / "special_tokens_map.json").unlink(missing_ok=True)
    return copy


def _sampled(parameters: dict[str, Any]) -> None:
    if "do_sample" not in parameters:
        parameters.update(do_sample=True, temperature=0.7, top_p=0.9)


def _reseeded(parameters: dict[str, Any]) -> None:
    if "seed" in parameters:
        parameters["seed"] += 1


@contextmanager
def _altered(bundle: Path, alter: Callable[[dict[str, Any]], None]) -> Iterator[Altering]:
    with make_target("http", bundle) as target:
        yield Altering(target, alter)


@contextmanager
def _plain(server: PlainServer) -> Iterator[PlainServer]:
    yield server


def bundle_name(folder: Path, options: Mapping[str, Any]) -> str:
    """Name of the bundle of a model under some options: faults of one model are served from bundles of their own."""
    return "-".join(["bundle", folder.name, *map(str, options.values())])


def faults(model: Path, sound: Path, work: Path) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Faults by name: a word that the cause must hold, and what serves with it."""

    def served(folder: Path, **options: Any) -> Any:
        return make_target("http", bundle(folder, work / bundle_name(folder, options), **options))

    return {
        "int4 weights": ("int4", lambda: served(model, quantise="int4")),
        "KV cache in FP8": ("KV cache", lambda: _plain(PlainServer(model, FP8Cache))),
        "KV cache in FP8, with scales": ("KV cache", lambda: _plain(PlainServer(model, ScaledFP8Cache))),
        "another chat template": ("chat template", lambda: served(_without_system(model, work / "template"))),
        "sampling defaults": ("sampling defaults", lambda: _altered(sound, _sampled)),
        "another revision": ("other weights", lambda: served(_perturbed(model, work / "revision", _noise))),
        "a LoRA left on": ("adapter polite", lambda: served(_with_adapter(model, work / "lora", work / "polite"))),
        "truncation": ("truncation", lambda: _plain(PlainServer(model, most=_CUT))),
        "another tokenizer": ("tokenizer", lambda: _plain(PlainServer(_without_special(model, work / "tokenizer")))),
        "dtype": ("bfloat16", lambda: served(model, dtype="bfloat16")),
        "seed": ("seed", lambda: _altered(sound, _reseeded)),
        "none": ("", lambda: make_target("http", sound)),
    }
