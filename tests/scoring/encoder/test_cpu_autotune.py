"""The CPU pass: every format answers as plain transformers does, padding or not, and only what is faster is kept."""

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scoring.encoder import cpu_autotune, cpu_ops, openvino_stack, real_text, room
from scoring.encoder.verify import Batch, answers, probes, reference, relative_error, verify_encoder
from scoring.passes import cpu
from scoring.passes.base import BOUNDS, Facts, Hardware, PassRefused
from tests.scoring.encoder.encoder_models import COVERED, GATED, SIZES, covered, make

BERT = Facts("bert", "BertModel", "encoder", 110_000_000, 440_000_000, 12, 12, 12, 768)
HERE = Hardware("cpu", "cpu", (0, 0), 0, 0, False)
OTHERS = {
    "albert": ("AlbertForMaskedLM", SIZES | {"embedding_size": 64}),
    "mpnet": ("MPNetForSequenceClassification", SIZES | {"pad_token_id": 1}),
    "deberta-v2": ("DebertaV2ForTokenClassification", SIZES),
}
_HEADS = {"num_key_value_heads": 2, "head_dim": 16}
#: Decoders that embed, causal and bidirectional.
DECODERS = {
    "qwen3 embeddings": ("Qwen3Model", SIZES | _HEADS),
    "gemma embeddings": ("Gemma3TextModel", SIZES | _HEADS | {"use_bidirectional_attention": True}),
}
#: Largest relative error of the tiny models, whose initial weights are larger than a trained model's; int8's is that of
#: two logits near zero. Of five draws of GTE's weights, transformers in bfloat16 errs by up to 0.027 itself.
ALLOWED = {"float32": 1e-5, "bfloat16": 3e-2, "int8": 3e-1}
NO_INT8 = cpu_autotune.missing("int8", cpu_autotune.cpu_flags())
NO_BFLOAT16 = "" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "oneDNN has no bfloat16 here"
if NO_INT8:
    ALLOWED["int8"] = 5e-1  # without the units a sum of two products is cut at 16 bits


@pytest.fixture(autouse=True)
def tiny_models_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models have tiny weights and no tokenizer: their text is random tokens."""
    monkeypatch.setattr(cpu_autotune, "_SMALLEST", 64)
    monkeypatch.setattr(cpu_autotune, "_WORTH_INT8", 0)
    monkeypatch.setattr(real_text, "_rows", _random_text)


def _random_text(model: torch.nn.Module) -> list[Batch]:
    return [probes(model, seed=seed)[0] for seed in range(1, real_text.CALIBRATION + 10)]


@pytest.fixture
def every_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Formats that this processor lacks are float32 by their name: what is kept of several does not hang on it."""
    lacks = {"int8": NO_INT8, "bfloat16": NO_BFLOAT16}
    real = cpu_autotune.prepare

    def prepare(model: torch.nn.Module, precision: str) -> cpu_autotune.Variant:
        return replace(real(model, "float32" if lacks.get(precision) else precision), name=precision)

    monkeypatch.setattr(cpu_autotune, "prepare", prepare)
    monkeypatch.setattr(cpu_autotune, "bfloat16_pays", lambda: True)
    monkeypatch.setattr(cpu_autotune, "missing", lambda precision, flags: "")


@pytest.fixture
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs the layers: torch, as where OpenVINO is not installed, or OpenVINO."""
    if request.param == "openvino":
        pytest.importorskip("openvino")
    else:
        monkeypatch.setattr(openvino_stack, "installed", lambda: False)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    ("name", "library"),
    [(name, "torch") for name in [*COVERED, *GATED, *OTHERS, *DECODERS]]
    + [(name, "openvino") for name in [*COVERED, *GATED]],
    indirect=["library"],
)
@pytest.mark.usefixtures("library")
def test_answers_as_plain_transformers(name: str, precision: str) -> None:
    if precision == "bfloat16" and NO_BFLOAT16:
        pytest.skip(NO_BFLOAT16)
    architecture, config = (COVERED | GATED | OTHERS | DECODERS)[name]
    model = make(architecture, config | {"initializer_range": 0.1})  # weights as wide as the rounding of trained ones
    told = reference(model)
    way = cpu_autotune.prepare(model, precision)
    assert verify_encoder(model, told) < 1e-6  # nothing is changed before the way is on
    way.on()
    error = verify_encoder(model, told)
    assert error < ALLOWED[precision]
    assert error > 0.0 or precision == "float32"
    assert way.count >= 1
    way.off()
    assert verify_encoder(model, told) < 1e-6


@pytest.mark.parametrize("library", ["torch", "openvino"], indirect=True)
@pytest.mark.parametrize("name", ["deberta-v2 unshared", "modernbert embeddings", "mpnet embeddings"])
@pytest.mark.usefixtures("library")
def test_positions_are_those_within_a_row(name: str) -> None:
    """Distances beyond a table's end and a window's, wherever in the batch's width a row's tokens lie."""
    model = covered(name)
    first, last = probes(model, (40, 3, 17), seed=3)[1], probes(model, (17, 40), seed=4)[1]
    for key, value in last.items():  # the short row's tokens at the end
        if name != "mpnet embeddings":  # which counts its absolute positions in its own row
            last[key] = torch.stack([value[0].roll(23, -1), value[1]])
    way = cpu_autotune.prepare(model, "float32")
    for batch in (first, last):
        wanted = answers(model, batch)
        way.on()
        found = answers(model, batch)
        way.off()
        assert relative_error({"x": found["last_hidden_state"]}, {"x": wanted["last_hidden_state"]}) < 1e-5


@pytest.mark.parametrize("library", ["torch", "openvino"], indirect=True)
@pytest.mark.usefixtures("library")
def test_rows_of_many_lengths() -> None:
    """Neighbours of equal length run together, rows without a single live token run not at all."""
    model = covered("bert embeddings")
    batches = [probes(model, lengths, seed=3)[1] for lengths in ((7, 7, 3, 3, 3, 7), (5,) * 6, (9, 1, 9))]
    batches[2]["attention_mask"][1] = 0
    wanted = [answers(model, batch) for batch in batches]
    way = cpu_autotune.prepare(model, "float32")
    way.on()
    found = [answers(model, batch) for batch in batches]
    for answer, want in zip(found, wanted, strict=True):  # a later call changes no earlier answer
        answer.pop("pooler_output"), want.pop("pooler_output")  # of the row without a token there is none
        assert relative_error(answer, want) < 1e-5
    nothing = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.zeros(2, 3, dtype=torch.long)}
    assert not model(**nothing).last_hidden_state.any()


def test_groups() -> None:
    assert cpu_ops._groups([0, 4, 8, 11, 11, 14], 2) == [(0, 8, 2), (8, 14, 2)]
    assert len(cpu_ops._groups(range(0, 512 * 9, 512), 16)) == 8  # a row's scores fill the cache already


@pytest.mark.usefixtures("every_format")
def test_the_fastest_way_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_autotune, "_race", _times(eager=2.0, bfloat16=1.0, float32=1.5))
    monkeypatch.setattr(openvino_stack, "installed", lambda: False)
    model = covered("bert classification")
    told = reference(model)
    each = cpu.Cpu()
    applied = each.apply(model)
    assert applied.detail.startswith("bfloat16, 2.00 times as fast as eager")
    assert "by torch: OpenVINO is not installed" in applied.detail
    error = each.verify(model, told)
    assert error < each.tolerance
    assert error > 1e-4 or NO_BFLOAT16
    applied.undo()
    assert each.verify(model, told) < 1e-6


@pytest.mark.usefixtures("every_format")
def test_one_format_beside_the_best_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_stack, "installed", lambda: False)
    times = {"eager": [8.0], "int8": [2.0], "bfloat16": [3.0], "float32": [4.0]}
    prepare, held = cpu_autotune.prepare, list[list[str]]()
    made = list[tuple[str, weakref.ref[cpu_autotune.Variant]]]()

    def spied(model: torch.nn.Module, precision: str) -> cpu_autotune.Variant:
        held.append([name for name, way in made if way() is not None])
        way = prepare(model, precision)
        made.append((precision, weakref.ref(way)))
        return way

    monkeypatch.setattr(cpu_autotune, "prepare", spied)
    monkeypatch.setattr(cpu_autotune, "_race", lambda model, ways, *_: [times[way.name] for way in ways])
    assert cpu.Cpu().apply(covered("bert classification")).detail.startswith("int8, 4.00")
    assert held == [[], ["int8"], ["int8"]]


def test_a_format_without_room_is_refused_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "memory_limit", lambda: 10**9)
    monkeypatch.setattr(room, "_resident", lambda: 10**9 - 1)
    monkeypatch.setattr(cpu_autotune, "missing", lambda precision, flags: "")
    monkeypatch.setattr(cpu_autotune, "prepare", lambda *_: pytest.fail("it was prepared"))
    with pytest.raises(PassRefused, match=r"no float32: it may take 0\.00 GB, .* leaves 0\.00 of 1\.00 GB"):
        cpu.Cpu(precisions=("float32",), seconds=0.01).apply(covered("bert classification"))


def test_what_a_process_holds_is_known() -> None:
    assert 10**7 < room._resident() < 10**11


@pytest.mark.usefixtures("every_format")
def test_nothing_faster_is_refused_with_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cpu_autotune, "missing", lambda precision, flags: "no such units" if precision == "bfloat16" else ""
    )
    monkeypatch.setattr(cpu_autotune, "_race", _times(eager=1.0, float32=0.99))
    model = covered("bert classification")
    with pytest.raises(PassRefused, match=r"eager 1\.0, int8 99\.0, float32 1\.0 ms; no bfloat16: no such units"):
        cpu.Cpu().apply(model)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.usefixtures("every_format")
def test_a_format_that_is_slower_for_one_shape_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends single texts must not pay for those who send many."""
    times = {"eager": [2.0, 8.0], "int8": [2.5, 1.0], "bfloat16": [1.9, 6.0], "float32": [2.0, 7.0]}
    monkeypatch.setattr(cpu_autotune, "_race", lambda model, ways, *_: [times[way.name] for way in ways])
    assert cpu.Cpu().apply(covered("bert classification")).detail.startswith("bfloat16")


def test_a_busy_round_falls_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds beside other work, in which every call takes long, change no verdict."""
    ways = [cpu_autotune.Variant("eager", []), cpu_autotune.Variant("ours", [])]
    rounds = iter([(1.0, 0.5), (9.0, 4.5), (9.0, 4.5)])
    calls = iter([[ms] for both in rounds for ms in both])
    monkeypatch.setattr(cpu_autotune, "_times", lambda model, way, batches: next(calls))
    assert cpu_autotune._race(None, ways, [{}], 0.0) == [[9.0], [4.5]]


def test_a_cpu_that_lies_about_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its flag is there, and oneDNN may not use the units: products would take three times as long."""
    monkeypatch.setattr(cpu_autotune, "missing", lambda precision, flags: "")
    monkeypatch.setattr(cpu_autotune, "bfloat16_pays", lambda: False)
    with pytest.raises(PassRefused, match="takes longer"):
        cpu_autotune._judged(covered("bert classification"), "bfloat16", [])


@pytest.mark.usefixtures("every_format")
@pytest.mark.parametrize("name", ["bert embeddings", "bert classification", "bert fill-mask"])
def test_int8_is_judged_by_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_text, "LEAST_COSINE" if name == "bert embeddings" else "LEAST_EQUAL", 1.01)
    with pytest.raises(PassRefused, match="cosine" if name == "bert embeddings" else "% of the labels stay"):
        cpu_autotune._judged(covered(name), "int8", [*reference(covered(name))()])


def test_int8_without_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(cpu_autotune, "missing", lambda precision, flags: "")
    model = covered("bert embeddings")
    with pytest.raises(PassRefused, match="the model is too small for it to pay"):
        cpu_autotune._judged(model, "int8", [])
    monkeypatch.setattr(cpu_autotune, "_WORTH_INT8", 0)
    with pytest.raises(PassRefused, match="no folder with a tokenizer"):
        cpu_autotune._judged(model, "int8", [])


@pytest.mark.skipif(bool(NO_INT8), reason=NO_INT8)
def test_a_real_model_in_int8(monkeypatch: pytest.MonkeyPatch, packaged: Callable[[str], Path]) -> None:
    import transformers

    monkeypatch.undo()
    model = transformers.AutoModel.from_pretrained(packaged("minilm")).eval()
    judge, way = real_text.Judge(model), cpu_autotune.prepare(model, "int8")
    way.on()
    assert judge.fault(model) == ""
    way.off()


@pytest.mark.usefixtures("every_format")
def test_an_inaccurate_format_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_autotune, "_race", _times(eager=9.0, int8=1.0, bfloat16=3.0, float32=5.0))
    monkeypatch.setitem(BOUNDS, "int8", 1e-9)
    applied = cpu.Cpu().apply(covered("bert classification"))
    assert applied.detail.startswith("bfloat16")
    assert "no int8: its relative error is" in applied.detail


@pytest.mark.usefixtures("every_format")
def test_a_host_beside_another_takes_its_format_untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_autotune, "_race", _times(eager=1.0, bfloat16=9.0))
    monkeypatch.setenv(cpu.FORMAT, "bfloat16")
    applied = cpu.Cpu().apply(covered("bert classification"))
    assert applied.detail.startswith("bfloat16, as the host beside it")
    assert applied.made.precision == "bfloat16"
    monkeypatch.setattr(cpu_autotune, "missing", lambda precision, flags: "the CPU multiplies none")
    with pytest.raises(PassRefused, match="multiplies none"):
        cpu.Cpu().apply(covered("bert classification"))


def test_timing_is_real() -> None:
    """Without any stand-in: whatever this machine finds fastest, the answers hold."""
    model = covered("bert embeddings")
    told = reference(model)
    try:
        cpu.Cpu(seconds=0.2).apply(model)
    except PassRefused as refused:
        assert "nothing is faster than eager" in str(refused)
    assert verify_encoder(model, told) < BOUNDS["int8"]


def test_weights_of_another_type_are_refused() -> None:
    with pytest.raises(PassRefused, match="bfloat16 already"):
        cpu.Cpu().apply(covered("bert embeddings").bfloat16())


def test_decisions() -> None:
    assert "int8, bfloat16, float32 are timed" in cpu.Cpu().applies(BERT, HERE, "latency").reason
    assert not cpu.Cpu().applies(BERT, replace(HERE, device="cuda"), "latency").take
    assert not cpu.Cpu().applies(replace(BERT, kind="decoder"), HERE, "latency").take


def test_flags_decide_the_format() -> None:
    assert cpu_autotune.missing("float32", frozenset()) == ""
    assert "avx512_bf16" in cpu_autotune.missing("bfloat16", frozenset({"avx512f"}))
    assert cpu_autotune.missing("bfloat16", frozenset({"amx_bf16"})) == ""
    assert "vnni" in cpu_autotune.missing("int8", frozenset({"avx2"}))
    assert cpu_autotune.missing("int8", frozenset({"avx512_vnni"})) == ""


def test_rounding() -> None:
    x = torch.randn(5, 48)
    values, scale = cpu_ops.quantize(x)
    assert values.dtype == torch.uint8
    assert ((values.float() - 128) * scale - x).abs().max() <= 0.51 * scale.max()
    assert torch.equal(cpu_ops.quantize(x, -9.0)[1], torch.full((5, 1), 9.0 / 127))


def _times(**milliseconds: float) -> Callable[..., list[list[float]]]:
    return lambda model, ways, batches, seconds: [[milliseconds.get(way.name, 99.0)] for way in ways]


def test_products_come_in_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN compiles, and keeps, a product for each number of rows: a server that saw them all held 400 MB more."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(24, 40, generator=generator), torch.randn(24, generator=generator)
    product = cpu_ops.Product(weight, bias, "float32")
    inner, seen = product._product, set()

    def spy(x: torch.Tensor, act: int) -> torch.Tensor:
        seen.add(len(x))
        return inner(x, act)

    monkeypatch.setattr(product, "_product", spy)
    for rows in range(1, 50):
        x = torch.randn(rows, 40, generator=generator)
        assert torch.allclose(product(x), torch.nn.functional.linear(x, weight, bias), atol=1e-5)
    assert seen == {16, 32, 48, 64}


@pytest.mark.skipif("avx512_bf16" not in cpu_autotune.cpu_flags(), reason="the CPU multiplies no bfloat16 anyway")
def test_a_set_that_onednn_may_not_use_is_not_believed() -> None:
    """The flags say bfloat16, and oneDNN is kept from it: a product by other instructions takes many times as long."""
    told = "from scoring.encoder.cpu_ops import bfloat16_pays; print(bfloat16_pays())"
    held = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
    ran = subprocess.run([sys.executable, "-c", told], env=held, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_a_cpu_whose_onednn_has_no_bfloat16_at_all_multiplies_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Int8 by avx_vnni comes without AVX-512, and there torch raises where weights are laid out in bfloat16."""

    class Refusing(cpu_ops.Product):
        def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> None:
            if precision == cpu_ops.BFLOAT16:
                raise RuntimeError("bf16 path needs the cpu support avx512bw, avx512vl and avx512dq")
            super().__init__(weight, bias, precision)

    monkeypatch.setattr(cpu_ops, "Product", Refusing)
    cpu_ops.bfloat16_pays.cache_clear()
    assert not cpu_ops.bfloat16_pays()
    cpu_ops.bfloat16_pays.cache_clear()
