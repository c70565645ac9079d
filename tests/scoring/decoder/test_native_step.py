"""A CPU's decode step in compiled C against torch's operations: rows, families, formats, and what is refused."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from unittest.mock import Mock

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
from scoring.decoder.native_step import NativeStep, unfit
from scoring.decoder.torch_backend import TorchBackend
from scoring.passes import weight_only
from scoring.passes.base import LATENCY, PassRefused
from scoring.passes.families import NATIVE_STEP, STATIC_DECODE
from scoring.passes.static_decode import StaticDecode
from scoring.passes.weight_only import WeightOnly
from scoring.quantization.dequantize import Grid
from scoring.quantization.loading import from_pretrained
from tests import published
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
        decoder.prefill(slot, [5 + (slot * 7 + i) % 50 for i in range(3 + 13 * (slot % 9))])
    for number in range(count):
        for slot in slots:
            decoder.feed(slot, 6 + slot + number)
        decoder.step(slots)
        found.append(decoder.last_logits(rows).clone())
    return torch.stack(found)


def of_rounded_inputs(_: TorchBackend, x: torch.Tensor, linear: Linear, biased: bool = True) -> torch.Tensor:
    """A product of inputs rounded to int8 with one scale for 64, its narrow weight widened, and of adapters."""
    units = functional.pad(x, (0, -x.shape[1] % 64)).view(len(x), -1, 64)
    scale = units.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    values = ((units / scale).round() * scale).view(len(x), -1)[:, : x.shape[1]]
    wide = widened(linear) if linear.group else linear.weight * linear.scale[:, None]
    out = functional.linear(values, wide, linear.bias)
    return out if linear.adapters is None else linear.adapters.add(x, out)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt", "mistral", "granite"])
def test_it_computes_what_torch_computes(family: str, tmp_path: Path) -> None:
    """Rotations or learned positions, norms of heads, biases, windows and scaled sums."""
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
    decoder.plain.use_wide()
    assert error(steps(decoder, 3), plain[:, :3]) < 1e-5


def test_a_row_has_the_same_bits_whatever_shares_its_step(tmp_path: Path) -> None:
    """Batches of more rows than a call takes are cut, and none is left to the wide weights."""
    decoder = Decoder(tiny("llama", tmp_path), slots=18, max_length=256)
    decoder.use_int8()
    decoder.plain.use_narrow()
    alone = steps(decoder, 1)
    for rows in (2, 5, 8, 9, 17):
        assert torch.equal(steps(decoder, rows)[:, :1], alone), rows
    assert torch.equal(steps(decoder, 9)[:, 8], steps(decoder, 17)[:, 8])


def test_threads_of_any_core_share_a_step(tmp_path: Path) -> None:
    """More than cores, they give the bits of one; OpenMP may have bound who starts them (OMP_PROC_BIND)."""
    decoder = Decoder(tiny("llama", tmp_path), slots=3, max_length=128)
    decoder.use_int8()
    decoder.plain.use_narrow()
    assert decoder.plain.narrow.threads == torch.get_num_threads()
    alone, allowed, before = steps(decoder, 3), os.sched_getaffinity(0), set(Path("/proc/self/task").iterdir())
    os.sched_setaffinity(0, {min(allowed)})
    decoder.plain.narrow.use_threads(3)
    os.sched_setaffinity(0, allowed)
    started = set(Path("/proc/self/task").iterdir()) - before
    assert [os.sched_getaffinity(int(each.name)) for each in started] == [allowed, allowed]
    for _ in range(4):
        assert torch.equal(steps(decoder, 3), alone)


def test_one_sequence_may_be_left_to_one_thread_beside_steps_of_all(tmp_path: Path) -> None:
    """Steps of one and of several alternate, with the bits of one thread, and no thread is left waiting."""
    decoder = Decoder(tiny("llama", tmp_path), slots=4, max_length=128)
    decoder.use_int8()
    decoder.plain.use_narrow()
    decoder.plain.narrow.use_threads(1)
    wanted = {rows: steps(decoder, rows) for rows in (1, 4)}
    decoder.plain.narrow.use_threads(3, alone=True)
    assert (decoder.plain.narrow.threads_of_one, decoder.plain.narrow.threads) == (1, 3)
    for rows in (1, 4, 1, 1, 4, 4, 1):
        assert torch.equal(steps(decoder, rows), wanted[rows]), rows


@pytest.mark.parametrize(("one", "wanted"), [(0.5, 1), (2.0, 2)])
def test_the_faster_number_of_threads_is_kept_for_one_sequence(one: float, wanted: int, tmp_path: Path) -> None:
    decoder = Decoder(tiny("llama", tmp_path), slots=1, max_length=64)
    decoder.use_int8()
    decoder.plain.use_narrow()
    decoder.plain.narrow.use_threads(2)
    timer = lambda each: one if each.plain.narrow.threads_of_one == 1 else 1.0  # noqa: E731
    assert weight_only.fastest(decoder, timer) == min(one, 1.0)
    assert decoder.plain.narrow.threads_of_one == wanted
    assert decoder.plain.narrow.threads == 2


def test_its_weights_are_held_once_and_outlive_no_step(tmp_path: Path) -> None:
    """A product's narrow weight is C's own; the end of the process does not take it from a step that runs."""
    decoder = Decoder(tiny("llama", tmp_path), slots=1, max_length=64)
    decoder.use_int8()
    decoder.plain.use_narrow()
    assert all(not product.weight.numel() for product in decoder.model.products())
    assert not decoder.plain.narrow._close.atexit
    place, maps = decoder.plain.narrow._all.data_ptr(), Path("/proc/self/maps").read_text().splitlines()
    spans = [(*(int(end, 16) for end in line.split()[0].split("-")), line.split()[1]) for line in maps]
    assert [kind for start, end, kind in spans if start <= place < end] == ["rw-p"]  # huge pages are for private memory
    decoder.plain.use_wide()
    decoder.use_int8(False)
    assert all(product.weight is product.full and product.weight.numel() for product in decoder.model.products())


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


def stored(method: str, folder: Path, group: int = 32) -> Any:
    """A tiny model of a checkpoint in int8, or in int4 in groups."""
    tiny("llama", folder / "wide").save_pretrained(folder / "wide")
    if method == "int8":
        shutil.copytree(folder / "wide", folder / method)
        Writer(folder / "wide", folder / method, torch.float32).write()
    else:
        form = {"num_bits": 4, "strategy": "group", "group_size": group, "symmetric": True}
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(published.PUBLISHED, method, published._compressed("pack-quantized", **form))
            published.publish(folder / "wide", folder / method, method)
    return from_pretrained(transformers.LlamaForCausalLM, folder / method, dtype=torch.float32).eval()


@pytest.mark.parametrize("method", ["w4a16", "int8"])
def test_numbers_of_a_checkpoint_are_read_as_they_are(method: str, tmp_path: Path) -> None:
    model = stored(method, tmp_path)
    decode, told = StaticDecode(slots=3, max_length=64), chain((3.0,), repeat(1.0))
    chosen = WeightOnly(decode, lambda _: next(told))
    kind = "int4" if method == "w4a16" else "int8"
    assert f"{kind} weights as shipped" in chosen.applies(replace(LARGE, shipped=kind), CPU, LATENCY).reason
    decode.apply(model)
    wanted = steps(decode.decoder, 3)
    applied = chosen.apply(model)
    assert applied.detail.startswith(f"{kind}, of {len(decode.decoder.model.products())} products {applied.count} as")
    assert error(steps(decode.decoder, 3), wanted) < ROUNDED
    assert {product.group for product in decode.decoder.model.products()[:-1]} == {32 if kind == "int4" else 0}
    applied.undo()
    assert decode.decoder.plain.narrow is None
    assert torch.equal(steps(decode.decoder, 3), wanted)


def test_groups_that_it_does_not_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PassRefused, match="groups of 16"):
        applied(stored("w4a16", tmp_path, group=16), shipped="int4")


def applied(model: Any, *, narrow: bool = False, **facts: Any) -> StaticDecode:
    """The decoder of a model to which the pass was applied, whatever a plan says of it."""
    decode = StaticDecode(slots=1, max_length=32)
    chosen = WeightOnly(decode, lambda _: 1.0)
    assert chosen.applies(replace(LARGE, **facts), CPU, LATENCY).take
    decode.narrow = narrow
    decode.apply(model)
    try:
        chosen.apply(model)
    finally:
        assert decode.decoder.plain.narrow is None
        assert all(product.scale is None and product.weight.numel() for product in decode.decoder.model.products())
    return decode


@pytest.mark.parametrize("family", ["bloom", "gemma2"])
def test_layers_that_it_does_not_cover_are_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(PassRefused, match=f"layers of {family}"):
        applied(tiny(family, tmp_path))


def test_a_cache_in_fp8_is_refused(tmp_path: Path) -> None:
    """By the plan, and by the step, which would write float32 into its single octets."""
    with pytest.raises(PassRefused, match="keys and values in float32 only"):
        applied(tiny("llama", tmp_path), narrow=True)
    decode = StaticDecode()
    decode.narrow = True
    told = WeightOnly(decode).applies(LARGE, CPU, LATENCY)
    assert not told.take
    assert "they are in FP8" in told.reason


def test_short_memory_is_refused_and_leaves_no_product_narrow(tmp_path: Path) -> None:
    """What a plan has no room for, what the machine has not, and what allocators say: each in words."""
    small = replace(CPU, memory_bytes=int(1.2 * LARGE.weight_bytes))
    assert "GiB are left for them" in WeightOnly(StaticDecode()).applies(LARGE, small, LATENCY).reason
    assert WeightOnly(StaticDecode()).applies(LARGE, replace(small, memory_bytes=2 * LARGE.weight_bytes), LATENCY).take
    model = tiny("llama", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_only, "left", lambda: 10)
        with pytest.raises(PassRefused, match="0 MiB are free"):
            applied(model)
    for short in (RuntimeError("cannot allocate"), OSError("cannot allocate"), MemoryError("cannot allocate")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(NativeStep, "_described", Mock(side_effect=short))
            with pytest.raises(PassRefused, match="no memory for int8 weights beside the wide ones: cannot allocate"):
                applied(model)


def test_plans_know_the_families_that_it_refuses() -> None:
    for family, reason in NATIVE_STEP.refused.items():
        told = WeightOnly(StaticDecode()).applies(replace(LARGE, family=family), CPU, LATENCY)
        assert not told.take
        assert reason in told.reason


@pytest.mark.parametrize("family", STATIC_DECODE.served)
def test_the_families_of_plans_are_those_of_the_step(family: str, tmp_path: Path) -> None:
    decoder = Decoder(tiny(family, tmp_path), slots=1, max_length=32)
    assert (unfit(decoder.model, decoder.state) == "") == (family in NATIVE_STEP.served)


def test_a_step_that_is_no_faster_is_refused(tmp_path: Path) -> None:
    model, decode, told = tiny("llama", tmp_path), StaticDecode(slots=1, max_length=32), chain((2.0,), repeat(1.99))
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
    """The check is run apart, and what it dies of there, an instruction that the machine has not, is a reason."""
    folder, source = tmp_path / "kept", tmp_path / "lies.c"
    source.write_text("int decode_check(void) { __builtin_trap(); }\n")
    monkeypatch.setenv(native_build.FOLDER, str(folder))
    monkeypatch.setattr(native_build, "SOURCE", source)
    with pytest.raises(NoNativeStep, match=rf"fails on it \(-({int(signal.SIGILL)}|{int(signal.SIGTRAP)})\)"):
        library.__wrapped__()
    assert not list(folder.iterdir())
    assert list(compiled.iterdir())


def kept(folder: Path) -> Path:
    return next(iter(folder.glob("*.so")))


def test_a_kept_library_is_checked_and_healed(compiled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Damaged, or open to others' writing, it is compiled anew; sound, it is loaded as it is."""
    monkeypatch.setenv(native_build.FOLDER, str(tmp_path))
    place, sound, run = tmp_path / kept(compiled).name, kept(compiled).read_bytes(), native_build._run
    compiles = []

    def counted(command: Any, deadline: float) -> tuple[int, bytes]:
        if "-O3" in command:
            compiles.append(command)
            raise OSError("compiled anew")
        return run(command, deadline)

    monkeypatch.setattr(native_build, "_run", counted)
    for mode, octets, anew in ((0o700, sound, False), (0o777, sound, True), (0o700, sound[:5000], True)):
        place.unlink(missing_ok=True)
        place.write_bytes(octets)
        place.chmod(mode)
        compiles.clear()
        with pytest.raises(NoNativeStep, match="compiled anew") if anew else nullcontext():
            library.__wrapped__()
        assert bool(compiles) == anew, oct(mode)


def test_a_folder_that_others_may_write_keeps_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared, file = tmp_path / "shared", tmp_path / "file"
    shared.mkdir()
    shared.chmod(0o777)
    file.touch()
    own = tmp_path / "own"
    for folder, found in ((shared, None), (file, None), (file / "under", None), (own, own)):
        monkeypatch.setenv(native_build.FOLDER, str(folder))
        assert native_build._kept() == found, folder


def test_what_hangs_ends_with_its_children() -> None:
    """At the deadline, which may have passed already."""
    with pytest.raises(subprocess.TimeoutExpired):
        native_build._run(("sh", "-c", "sleep 300 & wait"), time.monotonic() + 0.2)
    found = subprocess.run(("pgrep", "-P", "1", "-f", "sleep 300"), capture_output=True, check=False).stdout.split()
    assert not found


def test_prompts_are_computed_with_the_wide_weights(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    decoder = Decoder(model, slots=1, max_length=64)
    decoder.open(0)
    wide = decoder.prefill(0, prompt(model, 20)).clone()
    decoder.use_int8()
    decoder.plain.use_narrow()
    decoder.open(0)
    assert torch.equal(decoder.prefill(0, prompt(model, 20)), wide)
