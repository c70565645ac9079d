"""Adapters in a CPU's decode step in compiled C, against peft and torch's operations: alone, together, and changed."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoring.decoder.decoder import Decoder
from scoring.decoder.verify import adapter_error
from scoring.lora.loading import AdapterRoom, load_bank, pairs_of, read_adapter
from scoring.passes.base import LATENCY
from scoring.passes.static_decode import StaticDecode
from scoring.passes.weight_only import WeightOnly
from tests.scoring.decoder.test_native_step import LARGE, ROUNDED, SAME, compiled, error, rounding  # noqa: F401
from tests.scoring.passes.test_static_decode import CPU
from tests.tiny_adapters import tiny_adapter
from tests.tiny_models import load_tiny, tiny_model

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
TASK = "text-generation"
#: Ranks and products of each: parts of fused ones, of which one adapter has some that the other lacks.
ADAPTERS = {
    "llama": {"a": (2, ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")), "b": (9, ("q_proj", "gate_proj"))},
    "opt": {"a": (2, ("q_proj", "v_proj", "out_proj", "fc1", "fc2")), "b": (9, ("k_proj",))},
}
NAMES = ("b", "", "a", "b", "a", "", "", "", "", "a")  # of rows, of which C takes eight at a time


def folders(family: str, folder: Path) -> tuple[Path, dict[str, Path]]:
    """A tiny base with adapters."""
    base = tiny_model(family, TASK, folder / "base")
    return base, {
        name: tiny_adapter(base, TASK, folder / name, targets, rank, seed)
        for seed, (name, (rank, targets)) in enumerate(ADAPTERS[family].items())
    }


def decoder_of(model: Any, slots: int = len(NAMES)) -> Any:
    torch.set_num_threads(1)
    decoder = Decoder(model, slots=slots, max_length=128)
    decoder.use_int8()
    return decoder


def decoded(decoder: Any, names: Sequence[str], steps: int = 2) -> Tensor:
    """Logits [steps, rows, vocabulary] of steps after prompts of several lengths, with teacher forcing."""
    slots, found = list(range(len(names))), []
    for slot, name in enumerate(names):
        decoder.open(slot)
        decoder.adapters.use(slot, name)
        decoder.prefill(slot, prompt(slot))
    for number in range(steps):
        for slot in slots:
            decoder.feed(slot, 6 + slot + number)
        decoder.step(slots)
        found.append(decoder.last_logits(len(slots)).clone())
    return torch.stack(found)


def prompt(slot: int) -> list[int]:
    return [5 + (slot * 7 + i) % 50 for i in range(3 + slot)]


def by_torch(decoder: Any, names: Sequence[str]) -> Tensor:
    """The same by torch's operations: the base's inputs rounded as C rounds them, those of adapters as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder.plain, "step", partial(rounding, decoder.plain.step))
        return decoded(decoder, names)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_rows_of_several_adapters_are_those_of_torch_and_peft(family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, adapters = folders(family, tmp_path)
    model = load_tiny(base, TASK)[0].eval()
    load_bank(adapters, model)
    decoder = decoder_of(model)
    wanted = by_torch(decoder, NAMES)
    decoder.plain.use_narrow()
    found = decoded(decoder, NAMES)
    bare = decoded(decoder, [""] * len(NAMES))
    for row, name in enumerate(NAMES):
        assert error(found[:, row], wanted[:, row]) < SAME, (row, name)
        if name:
            assert error(found[:, row], bare[:, row]) > 1.5 * ROUNDED, "an adapter changes answers"
    for row in (0, 2):
        own = peft.PeftModel.from_pretrained(load_tiny(base, TASK)[0], adapters[NAMES[row]]).eval()
        with torch.inference_mode():
            logits = own(input_ids=torch.tensor([[*prompt(row), 6 + row, 7 + row]])).logits[0, -2:]
        assert error(found[:, row], logits) < ROUNDED


def test_a_row_has_the_same_bits_in_any_company_and_by_any_threads(tmp_path: Path) -> None:
    """A row of the base those of a model without adapters, too."""
    base, adapters = folders("llama", tmp_path)
    bare = decoder_of(load_tiny(base, TASK)[0].eval())
    bare.plain.use_narrow()
    model = load_tiny(base, TASK)[0].eval()
    load_bank(adapters, model)
    decoder = decoder_of(model)
    decoder.plain.use_narrow()
    together, plain = decoded(decoder, NAMES), decoded(bare, [""] * len(NAMES))
    for row, name in enumerate(NAMES):
        if not name:
            assert torch.equal(together[:, row], plain[:, row]), row
    assert torch.equal(decoded(decoder, NAMES[:1])[:, 0], together[:, 0])
    assert torch.equal(decoded(decoder, NAMES[:3]), together[:, :3])
    decoder.plain.narrow.use_threads(3)
    assert torch.equal(decoded(decoder, NAMES), together)


def test_adapters_that_come_and_go_are_followed(tmp_path: Path) -> None:
    """Between steps, at places that others had; memory that the step gave up is not written any more."""
    base, adapters = folders("llama", tmp_path)
    model = load_tiny(base, TASK)[0].eval()
    bank = load_bank({}, model, AdapterRoom(1, 16))
    pairs = {name: pairs_of(read_adapter(name, folder), model, bank) for name, folder in adapters.items()}
    decoder = decoder_of(model, slots=2)
    wanted = {}
    for name in ("a", "b"):
        bank.put(0, name, pairs[name])
        wanted[name] = by_torch(decoder, (name, ""))
    decoder.plain.use_narrow()
    for place, name in ((1, "a"), (0, "b"), (1, "b"), (0, "a")):
        bank.put(1 - place, "", {})
        bank.put(place, name, pairs[name])
        assert error(decoded(decoder, (name, "")), wanted[name]) < SAME, (place, name)
    product = decoder.model.layers[0].attention.qkv.adapters
    assert len(product._laid_out) == 1
    decoder.plain.use_wide()
    assert not product._laid_out


def test_the_pass_is_taken_and_verified_beside_adapters(tmp_path: Path) -> None:
    base, adapters = folders("llama", tmp_path)
    model = load_tiny(base, TASK)[0].eval()
    load_bank(adapters, model)
    decode: Any = StaticDecode(slots=3, max_length=64)
    told = iter((3.0, *[1.0] * 9))
    chosen, facts = WeightOnly(decode, lambda _: next(told)), replace(LARGE, adapters=2)
    assert chosen.applies(facts, CPU, LATENCY).take
    decode.apply(model)
    assert chosen.apply(model).count
    assert adapter_error(decode.decoder, model) < ROUNDED
    for held in decode.decoder.plain.narrow._low_rank:
        held.up.zero_()
    assert adapter_error(decode.decoder, model) > 1.5 * ROUNDED, "a step that leaves adapters out is seen"
    on_gpu = WeightOnly(decode).applies(
        facts, replace(CPU, device="cuda", capability=(9, 0), memory_bytes=1 << 37), LATENCY
    )
    assert not on_gpu.take
    assert "no adapters beside the model" in on_gpu.reason
