"""A CPU's decode step in compiled C against torch's operations: rows, families, formats, and what is refused."""

import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional

from mii_azure.quantize.writer import Writer
from scoring.decoder import native_build, torch_backend
from scoring.decoder.decoder import Decoder
from scoring.decoder.int4 import pack, use
from scoring.decoder.model import Linear, quantize_weights
from scoring.decoder.native_build import NoNativeStep, library
from scoring.decoder.torch_backend import TorchBackend
from scoring.passes.base import LATENCY, PassRefused
from scoring.passes.static_decode import StaticDecode
from scoring.passes.weight_only import WeightOnly
from scoring.quantization.dequantize import Grid
from scoring.quantization.loading import from_pretrained
from tests.published import publish
from tests.scoring.decoder.test_adapters import prompt, tiny
from tests.scoring.passes.test_static_decode import CPU, FACTS, widened

LARGE = replace(FACTS, weight_bytes=4 * FACTS.parameters)
SAME = 5e-3  # sums in another order, and an input now and then rounded the other way
ROUNDED = 0.15  # what inputs lose in int8, in tiny random layers
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The library, kept in a folder of this module's."""
    folder = tmp_path_factory.mktemp("native")
    library.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native_build.FOLDER, str(folder))
        library()
        yield folder


def steps(decoder: Decoder, rows: int, count: int = 3) -> torch.Tensor:
    """Logits of a few steps of slots whose prompts have different lengths."""
    slots, found = list(range(rows)), []
    for slot in slots:
        decoder.open(slot)
        decoder.prefill(slot, [5 + (slot * 7 + i) % 50 for i in range(3 + 13 * slot)])
    for number in range(count):
        for slot in slots:
            decoder.feed(slot, 6 + slot + number)
        decoder.step(slots)
        found.append(decoder.last_logits(rows).clone())
    return torch.stack(found)


def of_rounded_inputs(_: TorchBackend, x: torch.Tensor, linear: Linear, biased: bool = True) -> torch.Tensor:
    """A product whose inputs are rounded to int8 with one scale for 64, and its narrow weight widened."""
    units = functional.pad(x, (0, -x.shape[1] % 64)).view(len(x), -1, 64)
    scale = units.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    values = ((units / scale).round() * scale).view(len(x), -1)[:, : x.shape[1]]
    wide = widened(linear) if linear.group else linear.weight * linear.scale[:, None]
    return functional.linear(values, wide, linear.bias)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt", "mistral", "granite"])
def test_it_computes_what_torch_computes(family: str, tmp_path: Path) -> None:
    """Rotations or learned positions, norms of heads, biases, windows and scaled sums; up to 8 rows, and of 9 none."""
    decoder = Decoder(tiny(family, tmp_path), slots=9, max_length=256)
    plain = steps(decoder, 9)
    decoder.use_int8()
    wanted = {}
    for rows in (1, 3, 5, 8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoder.plain, "step", partial(rounding, decoder.plain.step))
            wanted[rows] = steps(decoder, rows)
    decoder.plain.use_narrow()
    for rows, logits in wanted.items():
        assert error(steps(decoder, rows), logits) < SAME, rows
    assert torch.equal(steps(decoder, 9), plain)
    decoder.plain.use_wide()
    assert error(steps(decoder, 3), plain[:, :3]) < 1e-5


def rounding(step: Any, *given: Any) -> torch.Tensor:
    """A step whose products round their inputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_backend.TorchBackend, "product", of_rounded_inputs)
        return step(*given)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_is_read_in_groups(group: int, zeros: bool) -> None:
    """Groups of half a unit of inputs, of one and of two, of the products that it divides; the others are int8."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 224, "num_hidden_layers": 2, "vocab_size": 101}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, **heads, max_position_embeddings=128)
    decoder = Decoder(transformers.LlamaForCausalLM(config).eval(), slots=2, max_length=128)
    for product in decoder.model.products()[:-1]:
        outputs, inputs = product.full.shape
        if inputs % group == 0:
            values = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
            scale = torch.rand(outputs, inputs // group) / 50 + 1e-3
            zero = torch.randint(5, 11, scale.shape) if zeros else torch.full_like(scale, 8)
            assert use(product, [pack(Grid(values, scale, (1, group), zero))])
    quantize_weights(decoder.model, missing=True)
    assert {product.group for product in decoder.model.products()} == {0, group}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder.plain, "step", partial(rounding, decoder.plain.step))
        wanted = steps(decoder, 2)
    decoder.plain.use_narrow()
    assert error(steps(decoder, 2), wanted) < SAME


@pytest.mark.parametrize("method", ["w4a16", "int8"])
def test_numbers_of_a_checkpoint_are_read_as_they_are(method: str, tmp_path: Path) -> None:
    tiny("llama", tmp_path / "wide").save_pretrained(tmp_path / "wide")
    if method == "int8":
        shutil.copytree(tmp_path / "wide", tmp_path / method)
        Writer(tmp_path / "wide", tmp_path / method, torch.float32).write()
    else:
        publish(tmp_path / "wide", tmp_path / method, method)
    model = from_pretrained(transformers.LlamaForCausalLM, tmp_path / method, dtype=torch.float32).eval()
    decode, told = StaticDecode(slots=3, max_length=64), iter((3.0, 1.0))
    chosen = WeightOnly(decode, lambda _: next(told))
    kind = "int4" if method == "w4a16" else "int8"
    assert f"{kind} weights as shipped" in chosen.applies(replace(LARGE, shipped=kind), CPU, LATENCY).reason
    decode.apply(model)
    wanted = steps(decode.decoder, 3)
    try:
        applied = chosen.apply(model)
    except PassRefused as refused:
        assert "groups of 16" in str(refused)  # as the tiny checkpoint has them
        return
    assert applied.detail.startswith(f"{kind}, of {len(decode.decoder.model.products())} products {applied.count} as")
    assert error(steps(decode.decoder, 3), wanted) < ROUNDED
    for product in decode.decoder.model.products()[: applied.count]:
        if kind == "int8":
            assert torch.equal(product.weight * product.scale[:, None], product.full)
    applied.undo()
    assert decode.decoder.plain.narrow is None
    assert torch.equal(steps(decode.decoder, 3), wanted)


def test_what_it_does_not_cover_is_refused(tmp_path: Path) -> None:
    for family, reason in (("bloom", "layers of bloom"), ("gemma2", "layers of gemma2")):
        model = tiny(family, tmp_path / family)
        decode = StaticDecode(slots=1, max_length=32)
        chosen = WeightOnly(decode, lambda _: 1.0)
        assert chosen.applies(LARGE, CPU, LATENCY).take
        decode.apply(model)
        with pytest.raises(PassRefused, match=reason):
            chosen.apply(model)
        assert all(product.scale is None for product in decode.decoder.model.products())


def test_a_step_that_is_no_faster_is_refused(tmp_path: Path) -> None:
    model, decode, told = tiny("llama", tmp_path), StaticDecode(slots=1, max_length=32), iter((2.0, 1.99))
    chosen = WeightOnly(decode, lambda _: next(told))
    chosen.applies(LARGE, CPU, LATENCY)
    decode.apply(model)
    with pytest.raises(PassRefused, match=r"takes 1\.99 ms, with float32 ones 2\.00 ms"):
        chosen.apply(model)
    plain: Any = decode.decoder.plain
    assert isinstance(plain, TorchBackend)
    assert plain.narrow is None


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    with pytest.raises(NoNativeStep, match="there is no C compiler"):
        library.__wrapped__()


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(native_build.FOLDER, str(tmp_path))
    monkeypatch.setattr(native_build, "_COMPILE", ("-march=no-such-machine", "-c"))
    with pytest.raises(NoNativeStep, match=r"does not compile here: .*no-such-machine"):
        library.__wrapped__()


def test_an_instruction_set_that_lies_ends_another_process(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The check is run apart, and its end by SIGILL is a reason."""
    monkeypatch.setenv(native_build.FOLDER, str(tmp_path))
    monkeypatch.setattr(native_build, "_CHECK", f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})")
    monkeypatch.setattr(native_build, "_COMPILE", (*native_build._COMPILE[:1], "-O0", *native_build._COMPILE[3:]))
    with pytest.raises(NoNativeStep, match=r"fails on it \(-4\)"):
        library.__wrapped__()
    assert not list(tmp_path.iterdir())
    assert list(compiled.iterdir())


def test_prompts_are_computed_with_the_wide_weights(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    decoder = Decoder(model, slots=1, max_length=64)
    decoder.open(0)
    wide = decoder.prefill(0, prompt(model, 20)).clone()
    decoder.use_int8()
    decoder.plain.use_narrow()
    decoder.open(0)
    assert torch.equal(decoder.prefill(0, prompt(model, 20)), wide)
