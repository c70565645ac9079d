"""Tokens of a generative target, judged from its texts: sound ones agree, planted faults are seen and named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from benchmarks.common import RESULTS
from local_runner.targets.load import TargetReply
from mii_azure.errors import AdapterUnusable, SpecError
from mii_azure.verdict.tokens.causes import UNEXPLAINED
from mii_azure.verdict.tokens.judge import (
    ROUNDING,
    Answered,
    Rounding,
    ask,
    askable,
    judge,
    precision_of,
    probes_for,
    rounding_cause,
    shipped_numbers,
)
from mii_azure.verdict.tokens.margins import pick_scores
from mii_azure.verdict.tokens.probes import NEW_TOKENS
from mii_azure.verdict.tokens.reference import ReferenceModel
from mii_azure.verdict.tokens.suspects import Suspect, named_suspects, suspects

TASK = "conversational"
CONTEXT = 256
TOKENS = 160


class Faulty:
    """A server of a reference model that answers as a suspect would, token after token."""

    def __init__(self, reference: ReferenceModel, suspect: Suspect) -> None:
        self.reference, self.suspect = reference, suspect

    def send(self, raw: str) -> TargetReply:
        body = json.loads(raw)
        seed = body["parameters"].get("seed")
        prompt, tokens = self.suspect.prompt(self.reference, body["inputs"]), list[int]()
        while len(tokens) < NEW_TOKENS:
            logits = self.reference.logits(prompt, [*tokens, 0])[-1:]
            token = int(pick_scores(logits, seed, len(prompt) + len(tokens)).argmax())
            if token in self.reference.ends:
                break
            tokens.append(token)
        text = self.reference.tokenizer.decode(tokens, skip_special_tokens=True)
        return TargetReply(200, json.dumps([{"generated_text": text}]).encode(), 0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose tokens are characters, so that a text has one way to be cut."""
    folder = tmp_path_factory.mktemp("characters")
    signs = [chr(number) for number in range(32, 127)] + ["\n"]
    special = ["<|im_start|>", "<|im_end|>"]
    vocabulary = {sign: number for number, sign in enumerate([*special, *signs])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    characters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters, bos_token=special[0], eos_token=special[1], clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(model: Path) -> ReferenceModel:
    return ReferenceModel(model, TASK)


def answers(reference: ReferenceModel, suspect: Suspect) -> Answered:
    probes = probes_for(TASK, TOKENS, CONTEXT)
    with reference.changed(suspect.model) if suspect.model else nullcontext():
        return ask("faulty", Faulty(reference, suspect), "float32", probes)  # type: ignore[arg-type]


def test_sound_tokens_agree(reference: ReferenceModel) -> None:
    verdict = judge(reference, answers(reference, Suspect("nothing")))
    assert verdict.agree
    assert verdict.picked == verdict.tokens > TOKENS / 4


NAMED = (
    "another chat template: ChatML",
    "another tokenizer: special tokens read as plain text",
    "truncation: the last 64 tokens of a prompt kept",
    "weights in int4, groups of 128",
    "KV cache in FP8",
    "dtype bfloat16",
)


@pytest.mark.parametrize("cause", NAMED)
def test_a_suspect_that_serves_is_named(cause: str, reference: ReferenceModel) -> None:
    planted = next(suspect for suspect in suspects(TASK) if suspect.cause == cause)
    verdict = judge(reference, answers(reference, planted))
    assert not verdict.agree
    assert verdict.cause == cause
    assert verdict.suspects[cause] == min(verdict.suspects.values())


@contextmanager
def _trained_further(reference: ReferenceModel) -> Iterator[None]:
    """Other weights, as another revision has them."""
    torch.manual_seed(3)
    layers = [module for module in reference.model.modules() if isinstance(module, torch.nn.Linear)]
    kept = [layer.weight.data for layer in layers]
    for layer in layers:
        layer.weight.data = layer.weight.data + 0.03 * layer.weight.data.std() * torch.randn_like(layer.weight.data)
    yield
    for layer, weight in zip(layers, kept, strict=True):
        layer.weight.data = weight


def test_what_no_suspect_explains_is_told_so(reference: ReferenceModel) -> None:
    verdict = judge(reference, answers(reference, Suspect("other weights", model=_trained_further)))
    assert not verdict.agree
    assert verdict.cause == UNEXPLAINED


@pytest.mark.parametrize(
    ("precision", "mean", "told"),
    [
        ("float32", 1.8e-3, "rounding as of bfloat16: that number format (dtype), or another change as small"),
        ("float32", 0.02, "rounding as of int8: that number format (dtype), or another change as small"),
        ("bfloat16", 0.02, "rounding as of int8: that number format (dtype), or another change as small"),
        ("float32", 0.1, ""),
        ("int8", 0.1, ""),
    ],
)
def test_margins_like_those_of_rounding_name_the_format(precision: str, mean: float, told: str) -> None:
    assert rounding_cause(precision, {"greedy": (mean, 64), "seeded": (0.0, 64), "default": (0.0, 0)}) == told


def test_margins_of_one_kind_beyond_a_format_are_not_its_rounding() -> None:
    within, beyond = (1.8e-3, 64), (0.9, 64)
    assert rounding_cause("float32", {"greedy": within, "seeded": beyond}) == ""


def test_rounding_that_no_suspect_explains_is_named(reference: ReferenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server rounds in another order; the margins' size tells what it computes in."""
    planted = next(suspect for suspect in suspects(TASK) if suspect.cause == "dtype bfloat16")
    told = answers(reference, planted)
    monkeypatch.setattr("mii_azure.verdict.tokens.causes.suspects", lambda task, named: [])
    wide = Rounding(0.2, 0.1)  # a tiny model of random weights is rounded more than a trained one
    monkeypatch.setitem(ROUNDING, "bfloat16", wide)
    assert judge(reference, told).cause.startswith("rounding as of bfloat16")


def test_bounds_allow_for_what_rounding_was_measured_to_cost() -> None:
    measured = json.loads((RESULTS / "token_margins.json").read_text("utf-8"))
    rows = {row["format"]: row for row in measured["rows"]}
    for name in ROUNDING.keys() - {"float32"}:
        assert ROUNDING[name].mean == pytest.approx(rows[name]["mean"], rel=0.2)
        assert ROUNDING[name].spread == pytest.approx(rows[name]["spread"], rel=0.2)
        assert ROUNDING[name].bound(64) > max(rows[name]["greedy high"], rows[name]["seeded high"])
        assert ROUNDING[name].bound(1000) < ROUNDING[name].bound(100)
    sound = json.loads((RESULTS / "parity_faults.json").read_text("utf-8"))["clean"]
    assert (sound["false_alarms"], sound["tokens"] - sound["picked"]) == (0, 0)


def test_seeded_answers_are_asked_where_the_sampler_is_ours() -> None:
    probes = probes_for(TASK, TOKENS, CONTEXT)
    assert askable(probes, {"optimisations": {"static_decode": "applied"}}) == probes
    for metadata in ({}, {"optimisations": {"static_decode": "refused"}}):
        assert {probe.kind for probe in askable(probes, metadata)} == {"greedy", "default"}


class Silent:
    """A server that ends every answer before it begins."""

    def send(self, raw: str) -> TargetReply:
        return TargetReply(200, b'[{"generated_text": ""}]', 0.0)


class Failing:
    """A sound server that fails now and then."""

    def __init__(self, sound: Faulty) -> None:
        self.sound, self.count = sound, 0

    def send(self, raw: str) -> TargetReply:
        self.count += 1
        return TargetReply(500, b"{}", 0.0) if self.count == 1 else self.sound.send(raw)


def test_answers_that_say_nothing_are_no_proof(reference: ReferenceModel) -> None:
    probes = probes_for(TASK, TOKENS, CONTEXT)
    verdict = judge(reference, ask("silent", Silent(), "float32", probes))  # type: ignore[arg-type]
    assert not verdict.agree
    failing = Failing(Faulty(reference, Suspect("nothing")))
    verdict = judge(reference, ask("failing", failing, "float32", probes))  # type: ignore[arg-type]
    assert not verdict.agree
    assert verdict.cause == "1 of 5 requests for tokens were not answered"


def test_an_adapter_left_on_is_named(model: Path, reference: ReferenceModel, tmp_path: Path) -> None:
    rank, config = 2, reference.model.config
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    torch.manual_seed(2)
    tensors = {
        f"{layer}.lora_A.weight": torch.randn(rank, config.hidden_size),
        f"{layer}.lora_B.weight": torch.randn(config.hidden_size, rank),
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": 1, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told), encoding="utf-8")
    named = named_suspects({"polite": tmp_path}, model, "llama")
    verdict = judge(reference, answers(reference, named[0]), named)
    assert verdict.cause == "the adapter polite"


def test_suspects_are_looked_at_before_anything_starts(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no folder of a model or of an adapter"):
        named_suspects({"typo": tmp_path / "none"}, model, "llama")
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(AdapterUnusable):
        named_suspects({"empty": tmp_path}, model, "llama")


@pytest.mark.parametrize(
    ("told", "shipped", "expected"),
    [
        ({}, "", "bfloat16"),
        ({"device": "cuda", "optimisations": {"weight_only": "refused"}}, "", "bfloat16"),
        ({"device": "NVIDIA H200", "optimisations": {"weight_only": "applied"}}, "", "int8"),
        ({"device": "NVIDIA H200", "optimisations": {"weight_only": "applied"}}, "fp8", "int8"),
        ({"device": "NVIDIA H200", "optimisations": {"weight_only": "applied"}}, "int8", "bfloat16"),
        ({"device": "NVIDIA H200", "optimisations": {"weight_only": "applied"}}, "int4", "bfloat16"),
        (
            {"device": "NVIDIA H200", "optimisations": {"weight_only": "applied", "tensor_parallel": "applied"}},
            "int4",
            "int8",
        ),
        ({"device": "cpu", "optimisations": {"weight_only": "applied"}}, "int4", "int8"),  # inputs are rounded there
    ],
)
def test_int8_is_allowed_for_where_the_start_rounded(told: dict[str, object], shipped: str, expected: str) -> None:
    assert precision_of(told, "bfloat16", shipped) == expected


def test_numbers_of_a_folder(tmp_path: Path) -> None:
    for told, expected in (({}, ""), ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "int4")):
        (tmp_path / "config.json").write_text(json.dumps(told), encoding="utf-8")
        assert shipped_numbers(tmp_path) == expected


def test_a_prompt_that_is_the_kept_beginning_itself(reference: ReferenceModel) -> None:
    long = [2 + number % 90 for number in range(140)]
    for prompt in (long, [*long, 3], long):
        with reference.changed(lambda each: nullcontext()):
            alone = reference.logits(prompt, [5, 6])
        assert alone.shape[0] == 2
        for before in (long, [*long, 4], [*long, 3, 7]):
            reference.logits(before, [5])
        torch.testing.assert_close(reference.logits(prompt, [5, 6]), alone, rtol=1e-4, atol=1e-4)


def test_a_model_without_keys_and_values_is_computed_whole(model: Path, tmp_path: Path) -> None:
    PreTrainedTokenizerFast.from_pretrained(model).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=98, hidden_size=16, state_size=4, num_hidden_layers=1, eos_token_id=1)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    reference = ReferenceModel(tmp_path, TASK)
    long = [2 + number % 90 for number in range(140)]
    first = reference.logits([*long, 3], [5, 6])
    for _ in range(2):
        reference.logits([*long, 4], [5])
    torch.testing.assert_close(reference.logits([*long, 3], [5, 6]), first)
