"""The static_decode pass: what it decides on paper, what it changes, and that its verification can fail."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mii_azure.quantize.writer import Writer
from scoring.config import Limits
from scoring.decoder import torch_experts, verify
from scoring.decoder.adapters.builders import FAMILIES as BUILT
from scoring.decoder.decoder import Decoder
from scoring.decoder.model import Linear
from scoring.decoder.verify import errors, reference
from scoring.model.loaded import Runtime
from scoring.passes.base import COST, LATENCY, TOLERANCE, Applicability, Facts, Hardware, PassRefused
from scoring.passes.families import STATIC_DECODE
from scoring.passes.registry import decoder_passes
from scoring.passes.runner import run_passes
from scoring.passes.speculation import decide
from scoring.passes.static_decode import StaticDecode
from scoring.passes.tensor_parallel import TensorParallel
from scoring.passes.verification_cache import TARGET, VERIFIED, save
from scoring.passes.weight_only import WeightOnly
from scoring.quantization.loading import from_pretrained
from tests.published import publish
from tests.scoring.decoder.test_adapters import plain_logits, prompt, tiny

FACTS = Facts("llama", "LlamaForCausalLM", "decoder", 1_100_000_000, 2_200_000_000, 22, 32, 4, 2048)
H100 = Hardware("cuda", "NVIDIA H100 80GB HBM3", (9, 0), 80 * 2**30, 1, True)
CPU = Hardware("cpu", "cpu", (0, 0), 0, 0, False)


@pytest.mark.parametrize(
    ("facts", "hardware", "reason"),
    [
        (replace(FACTS, family="bert", kind="encoder"), H100, "bert is not a decoder"),
        (replace(FACTS, family="codegen"), H100, "codegen: its attention does not go through"),
        (replace(FACTS, family="rwkv"), H100, "rwkv: its layers keep a recurrent state in a form of their own"),
        (FACTS, CPU, "in float32 only"),
        (FACTS, replace(H100, name="Tesla V100", capability=(7, 0)), "Tesla V100 has 7.0"),
        (replace(FACTS, heads=2), H100, "heads of 1024"),
        (FACTS, replace(H100, memory_bytes=2**31), "weights and a cache of 2,048 tokens need 2.1 GiB"),
    ],
)
def test_refusals_name_their_reason(facts: Facts, hardware: Hardware, reason: str) -> None:
    decision = StaticDecode().applies(facts, hardware, LATENCY)
    assert not decision.take
    assert reason in decision.reason


def test_a_family_without_an_adapter_is_for_the_generic_tier() -> None:
    """Its products are not quantised, its slices are served."""
    other = replace(FACTS, family="qwen2_moe", weight_bytes=4 * FACTS.parameters)
    decision = StaticDecode().applies(other, CPU, LATENCY)
    assert decision.take
    assert decision.reason.startswith("generic tier: transformers' own modules over our cache; 16 slots of 2048 tokens")
    assert StaticDecode().applies(replace(other, weight_bytes=10**9), H100, LATENCY).take
    assert StaticDecode().applies(replace(other, family="olmoe"), CPU, LATENCY).take
    assert (
        "qwen2_moe are transformers' own"
        in WeightOnly(StaticDecode(tier="generic")).applies(other, H100, LATENCY).reason
    )
    sliced = StaticDecode(slicing=TensorParallel(2), tier="generic").applies(other, replace(H100, gpus=2), LATENCY)
    assert sliced.take
    assert sliced.reason.endswith("on each of 2 GPUs")


def test_every_family_is_taken_on_an_h100() -> None:
    for family in STATIC_DECODE.served:
        assert StaticDecode().applies(replace(FACTS, family=family), H100, LATENCY).take, family


def test_in_float32_it_is_taken_on_a_cpu_with_a_slot_for_every_row(tmp_path: Path) -> None:
    wide = replace(FACTS, weight_bytes=4_400_000_000)
    limits = Limits(max_batch_size=24, max_batch_tokens=100, context_length=64, kv_cache_tokens=64, memory_share=0.1)
    *_, decode, weight_only = decoder_passes(limits)
    decision = decode.applies(wide, CPU, LATENCY)
    assert decision.take
    assert "24 slots of 64 tokens" in decision.reason
    assert "int8 weights beside the float32 ones" in weight_only.applies(wide, CPU, LATENCY).reason
    small = replace(wide, parameters=10**6, weight_bytes=4 * 10**6)
    assert "4.0 MB of weights are read too fast" in weight_only.applies(small, CPU, LATENCY).reason
    model = tiny("llama", tmp_path)
    decoder = decode.apply(model).made.decoder
    assert (decoder.slots, decoder.capacity) == (24, 24 * 64)  # a size for a GPU's memory is not for a host's


@pytest.mark.parametrize("speculation", ["auto", "ngram", "off"])
def test_on_a_cpu_steps_are_drafted_if_asked_for(speculation: Any, tmp_path: Path) -> None:
    *_, decode, _ = decoder_passes(Limits(max_batch_size=2, context_length=64, speculation=speculation))
    applied = decode.apply(tiny("llama", tmp_path))
    assert applied.made.decoder.speculates == (speculation == "ngram")
    assert ("drafted by n-grams" in applied.detail) == (speculation == "ngram")
    assert decide(speculation, "cuda").take == (speculation != "off")
    assert decide(speculation, "cuda", experts=True).take == (speculation == "ngram")


def test_a_released_slot_gives_its_memory_back_and_is_used_again(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    model.config.max_position_embeddings = 4096
    decoder = Decoder(model, 3, 4096)
    ids = prompt(model, 300)
    wanted = []
    for slot in range(3):
        decoder.open(slot)
        wanted.append(decoder.prefill(slot, ids).clone())
    first, mine, third = (decoder.tables.blocks(slot) for slot in range(3))
    kept = decoder.state.keys[:, :, first + third].clone()
    decoder.release(1)
    assert torch.equal(decoder.state.keys[:, :, first + third], kept)
    if sys.platform == "linux":
        assert not decoder.state.keys[:, :, mine[1:-1]].any()  # a tiny model's blocks are no whole pages
    decoder.open(1)
    assert torch.equal(decoder.prefill(1, ids), wanted[1])


@pytest.mark.parametrize("family", STATIC_DECODE.served)
def test_a_pass_is_applied_verified_and_undone(family: str, tmp_path: Path) -> None:
    model = tiny(family, tmp_path)
    before = plain_logits(model, prompt(model, 9))
    told = reference(model)
    chosen = StaticDecode(slots=2, max_length=64)
    applied = chosen.apply(model)
    assert applied.count == 2
    assert applied.made.decoder is chosen.decoder
    assert chosen.verify(model, told) <= 1e-5
    applied.undo()
    assert chosen.decoder is None
    assert torch.allclose(plain_logits(model, prompt(model, 9)), before, atol=1e-5)


def test_verification_fails_where_an_answer_is_wrong(tmp_path: Path) -> None:
    model = tiny("mistral", tmp_path)
    told = reference(model)
    chosen = StaticDecode(slots=2, max_length=64)
    chosen.apply(model)
    for layer in chosen.decoder.model.layers:
        layer.attention.window = 0  # sees past the window: only sequences longer than it can tell
    assert chosen.verify(model, told) > TOLERANCE
    chosen.decoder.model.layers[0].norm1.gain[0] = float("nan")
    assert errors(chosen.decoder, told())["prefill"] != errors(chosen.decoder, told())["prefill"]
    assert not chosen.verify(model, told) <= TOLERANCE


@pytest.mark.parametrize(
    "raised", [MemoryError(), RuntimeError("can't allocate memory: you tried to allocate 9 bytes"), OSError(12, "mmap")]
)
def test_a_decoder_without_memory_is_refused(
    raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "warm_up", Mock(side_effect=raised))
    with pytest.raises(PassRefused, match="no memory for 2 slots of 64 tokens"):
        StaticDecode(slots=2, max_length=64).apply(tiny("llama", tmp_path))


def test_a_configuration_that_is_not_covered_is_refused(tmp_path: Path) -> None:
    model = tiny("bloom", tmp_path)
    model.config.apply_residual_connection_post_layernorm = True
    with pytest.raises(PassRefused, match="residual after the norm"):
        StaticDecode(slots=1, max_length=16).apply(model)


def test_int8_is_for_large_models_and_latency() -> None:
    chosen = WeightOnly(StaticDecode())
    large = replace(FACTS, weight_bytes=13_400_000_000)
    assert chosen.applies(large, H100, LATENCY).take
    assert "too fast for it to pay" in chosen.applies(FACTS, H100, LATENCY).reason
    assert "larger batches" in chosen.applies(large, H100, COST).reason
    assert "need 69.8 GiB together" in chosen.applies(replace(FACTS, weight_bytes=50 * 10**9), H100, LATENCY).reason
    assert (
        "static_decode: bert is not"
        in chosen.applies(replace(large, family="bert", kind="encoder"), H100, LATENCY).reason
    )


def test_int8_weights_come_and_go(tmp_path: Path) -> None:
    model = tiny("opt", tmp_path)
    with pytest.raises(PassRefused, match="no static decoder"):
        WeightOnly(StaticDecode()).apply(model)
    decode = StaticDecode(slots=2, max_length=64)
    decode.apply(model)
    products = decode.decoder.model.products()
    before = [product.weight for product in products]
    told = iter((3.0, 2.0))
    applied = WeightOnly(decode, lambda _: next(told)).apply(model)
    assert applied.count == len(products)
    assert applied.detail == "int8, quantised at start: a step of one sequence 3.00 to 2.00 ms"
    for product, wide in zip(products, before, strict=True):
        assert product.weight.dtype == torch.int8
        assert product.scale is not None
        step = product.scale[:, None]
        assert ((product.weight * step - wide).abs() <= 0.5001 * step).all()
    applied.undo()
    assert all(product.weight is wide and product.scale is None for product, wide in zip(products, before, strict=True))


def test_a_pass_dropped_over_it_leaves_its_steps_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of a GPU, and what prompts cost there, are gone once weights come or go."""
    model, calls = tiny("opt", tmp_path), []
    whole = Decoder._start
    monkeypatch.setattr(Decoder, "_start", lambda self: (calls.append("start"), whole(self))[1])
    monkeypatch.setattr(Decoder, "warm_up", lambda self, sizes=None: calls.append("warm up"))
    decode, told = StaticDecode(slots=2, max_length=64), iter((3.0, 2.0))
    narrow = WeightOnly(decode, lambda _: next(told))
    monkeypatch.setattr(WeightOnly, "verify", lambda self, model, reference: 1.0)
    taken = Applicability(True, "")
    records = run_passes(model, Runtime(), [(decode, taken), (narrow, taken)], (), lambda m: reference(m))
    assert [record.state for record in records] == ["applied", "dropped"]
    assert calls.count("start") == 3
    assert calls[-1] == "warm up"


def test_a_gpus_steps_are_captured_once(tmp_path: Path) -> None:
    decode, calls = StaticDecode(slots=2, max_length=64), []
    decode.apply(tiny("opt", tmp_path))
    told = SimpleNamespace(warm=False)

    def warm_up(sizes: Any) -> None:
        calls.append(sizes)
        told.warm = True

    told.warm_up = warm_up
    decode.decoder._cuda = told
    decode.decoder.warm_up()
    decode.warm(None)
    assert calls == [None]


@pytest.mark.parametrize(("method", "kind"), [("w4a16", "int4"), ("awq", "int4"), ("gptq-ordered", "int8")])
def test_int4_weights_of_a_checkpoint_are_used_as_they_are(method: str, kind: str, tmp_path: Path) -> None:
    """Beside the wide ones, and int8 instead where the kernels do not read their layout."""
    tiny("llama", tmp_path / "wide").save_pretrained(tmp_path / "wide")
    publish(tmp_path / "wide", tmp_path / method, method)
    model = from_pretrained(transformers.LlamaForCausalLM, tmp_path / method, dtype=torch.float32).eval()
    decode, told = StaticDecode(slots=2, max_length=64), iter((3.0, 1.0))
    chosen = WeightOnly(decode, lambda _: next(told))
    facts = replace(FACTS, weight_bytes=13_400_000_000, shipped="int4")
    assert "int4 weights as shipped" in chosen.applies(facts, H100, LATENCY).reason
    decode.apply(model)
    products = decode.decoder.model.products()
    before = [product.weight for product in products]
    applied = chosen.apply(model)
    assert applied.count == len(products) - (kind == "int4")  # the head is not stored so
    whence = f"of {len(products)} products {applied.count} as shipped" if kind == "int4" else "quantised at start"
    assert applied.detail == f"{kind}, {whence}: a step of one sequence 3.00 to 1.00 ms"
    for product, wide in zip(products[: applied.count], before, strict=False):
        assert product.weight.dtype == (torch.int32 if kind == "int4" else torch.int8)
        assert kind == "int8" or torch.equal(widened(product), wide)
    applied.undo()
    assert all(product.weight is wide and product.zero is None for product, wide in zip(products, before, strict=True))


def test_int8_weights_of_a_checkpoint_are_a_gpus_too(tmp_path: Path) -> None:
    """Numbers of which no row reaches 127 stay so: quantised again, all rows would."""
    wide = tiny("llama", tmp_path / "wide")
    wide.config.tie_word_embeddings = False
    wide.save_pretrained(tmp_path / "wide")
    shutil.copytree(tmp_path / "wide", tmp_path / "int8")
    Writer(tmp_path / "wide", tmp_path / "int8", torch.float32).write()
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    packed = {name: words for name, words in stored.items() if name.endswith(".weight_packed")}
    stored |= {name: (words.view(torch.uint8) // 2 + 64).view(torch.int32) for name, words in packed.items()}
    save_file(stored, tmp_path / "int8" / "model.safetensors", metadata={"format": "pt"})
    model = from_pretrained(transformers.LlamaForCausalLM, tmp_path / "int8", dtype=torch.float32).eval()
    decode, told = StaticDecode(slots=2, max_length=64), iter((3.0, 1.0))
    chosen = WeightOnly(decode, lambda _: next(told))
    facts = replace(FACTS, weight_bytes=13_400_000_000, shipped="int8")
    assert "int8 weights as shipped, where" in chosen.applies(facts, H100, LATENCY).reason
    decode.apply(model)
    products = decode.decoder.model.products()
    assert f"of {len(products)} products {len(products)} as shipped" in chosen.apply(model).detail
    assert all(product.weight.dtype == torch.int8 and product.weight.abs().max() <= 64 for product in products)


def widened(product: Linear) -> torch.Tensor:
    """An int4 product's weight, from the numbers that a step reads."""
    words = product.weight.view(len(product.weight), -1, 1, product.group // 8)
    numbers = torch.cat([words >> 4 * place & 15 for place in range(8)], 2).flatten(2).float()
    zero = torch.tensor(8.0) if product.zero is None else product.zero[..., None].float()
    return ((numbers - zero) * product.scale[..., None].float()).view(product.full.shape)


def test_int8_weights_that_are_no_faster_are_refused(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    decode = StaticDecode(slots=2, max_length=64)
    decode.apply(model)
    products = decode.decoder.model.products()
    wide, told = [product.weight for product in products], iter((2.0, 1.99))
    with pytest.raises(PassRefused, match=r"takes 1\.99 ms, with 16-bit ones 2\.00 ms"):
        WeightOnly(decode, lambda _: next(told)).apply(model)
    assert all(product.weight is each for product, each in zip(products, wide, strict=True))
    assert 0 < verify.step_ms(decode.decoder, 5) < 10_000
    decode.decoder.open(0)
    decode.decoder.prefill(0, [5, 6])


def test_the_pass_names_the_families_that_are_built() -> None:
    assert sorted(STATIC_DECODE.served) == sorted(BUILT)


def test_it_is_verified_where_slots_are_shorter_than_the_probes(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    told = reference(model)
    for length in (8, 20):
        decode = StaticDecode(2, length)
        decode.apply(model)
        assert 0 <= decode.verify(model, told) <= 1e-4


@pytest.mark.parametrize(("free", "exact"), [(1 << 40, True), (1, False)])
def test_where_memory_is_short_the_model_is_its_own_measure(
    free: int, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second copy in float32 is made only where there is room for it, in host memory as well."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=99))
    model = model.half().eval()
    monkeypatch.setattr(verify, "free_bytes", lambda device: free)
    assert (verify.reference(model)().own_error > 0) == exact


def test_free_memory_of_the_host_is_read() -> None:
    assert 0 < verify.free_bytes(torch.device("cpu")) < 1 << 50


def test_a_fused_decoder_that_differs_is_followed_by_a_generic_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was is told, and not trusted at the next start; where only one tier will do, there is no other."""
    choose = torch_experts.choose

    def wrong(*given: Any) -> Any:
        shares, chosen = choose(*given)
        return shares, (chosen + 1) % 4

    monkeypatch.setattr(torch_experts, "choose", wrong)
    model = tiny("mixtral", tmp_path)
    taken = Applicability(True, "fused tier")
    chosen, runtime = StaticDecode(slots=2, max_length=64), Runtime()
    [record] = run_passes(model, runtime, [(chosen, taken)], (), reference)
    assert record.state == "applied" and record.error <= 1e-5
    assert "in the generic tier after all; tried before: it differs from plain transformers by" in record.reason
    assert runtime.decoder.tier == "generic" and runtime.decoder is chosen.decoder
    monkeypatch.setenv(TARGET, str(tmp_path))
    save(model, [record])
    assert json.loads((tmp_path / VERIFIED).read_text())["errors"] == {}
    record.applied.undo()
    only = StaticDecode(slots=2, max_length=64, tier="fused")
    [record] = run_passes(model, Runtime(), [(only, taken)], (), reference)
    assert (record.state, record.retried) == ("dropped", False)
