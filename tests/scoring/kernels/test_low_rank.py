"""Adapters in the launches that a GPU's graphs hold, against the plain back end and its grouped products.

On a GPU it is tests/scoring/decoder/test_adapters_gpu.py that has the real graphs.

TRITON_INTERPRET=1 pytest tests/scoring/kernels/test_low_rank.py     # with triton installed, no GPU
"""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from scoring.decoder import adapter_step
from scoring.decoder.decoder import Decoder
from scoring.decoder.gemv_config import GemvTile
from scoring.decoder.generic import cuda_backend as generic
from scoring.decoder.generic.model import GenericModel
from scoring.lora.loading import AdapterRoom, load_bank, pairs_of, read_adapter
from tests.scoring.kernels.test_decoder import back_end  # noqa: F401
from tests.tiny_adapters import tiny_adapter
from tests.tiny_models import load_tiny, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
TASK = "text-generation"
TARGETS = {"llama": ("q_proj", "v_proj", "up_proj", "down_proj"), "gpt_neox": ("query_key_value", "dense_4h_to_h")}
NAMES = {5: "b", 0: "", 3: "a"}  # of slots


def adapted(family: str, folder: Path, rank: int = 5, device: str = "cpu") -> Any:
    """A model with adapters of two ranks, the second, of the given one, of fewer products."""
    base = tiny_model(family, TASK, folder / "base")
    tiny_adapter(base, TASK, folder / "adapters" / "a", TARGETS[family], rank=2, seed=1)
    tiny_adapter(base, TASK, folder / "adapters" / "b", TARGETS[family][:1], rank=rank, seed=2)
    model = load_tiny(base, TASK)[0].eval().to(device)
    load_bank({name: folder / "adapters" / name for name in ("a", "b")}, model)
    return model


def ids(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(5, 90, (length,), generator=generator).tolist()


def go(decoder: Decoder, names: dict[int, str]) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Tokens and logits of prompts in two pieces, of steps, of one with drafts, and of a step of the base alone."""
    slots, logits = list(names), []
    for slot, name in names.items():
        decoder.open(slot)
        decoder.adapters.use(slot, name)
    logits.append(decoder.prefill_many([(slot, ids(9 + slot)) for slot in slots]).clone())
    logits.append(decoder.prefill_many([(slot, ids(4, slot)) for slot in slots]).clone())
    told = [decoder.sample(slots).tokens()]
    for _ in range(2):
        told.append(decoder.step(slots).tokens())
        logits.append(decoder.last_logits(len(slots)).clone())
    decoder.speculate([(slot, [token, 9, 8]) for slot, token in zip(slots, told[-1], strict=True)]).runs()
    logits.append(decoder.last_logits(3 * len(slots)).clone())
    for slot in slots:
        decoder.adapters.use(slot, "")
    told.append(decoder.step(slots).tokens())
    logits.append(decoder.last_logits(len(slots)).clone())
    return told, logits


def same(ours: Decoder, plain: Decoder, names: dict[int, str]) -> None:
    (told, logits), (expected, wanted) = go(ours, names), go(plain, names)
    assert told == expected
    for found, other in zip(logits, wanted, strict=True):
        assert (found.cpu() - other).abs().max() <= 1e-4 * other.abs().max()


def roomy(folder: Path, device: str = "cpu") -> tuple[Any, dict[str, Any]]:
    """A model with room for adapters, and some for it by name."""
    base = tiny_model("llama", TASK, folder / "base")
    for seed, (name, targets) in enumerate((("a", TARGETS["llama"]), ("b", TARGETS["llama"][:1]), ("c", ("o_proj",)))):
        tiny_adapter(base, TASK, folder / name, targets, rank=2 + seed, seed=seed)
    model = load_tiny(base, TASK)[0].eval().to(device)
    bank = load_bank({}, model, AdapterRoom(2, 4))
    return model, {name: pairs_of(read_adapter(name, folder / name), model, bank) for name in "abc"}


def same_as_they_come_and_go(ours: Decoder, plain: Decoder, own: dict[str, Any], others: dict[str, Any]) -> None:
    """In memory whose addresses graphs hold, what has a place now counts, and nothing that was there before."""
    held = [product.static.down.data_ptr() for product in ours.adapters.products]
    for places in (("a", "b", ""), ("b", "c", "a"), ("c", "", "b")):
        for place, name in enumerate(places):
            ours.adapters.bank.put(place, name, own.get(name, {}))
            plain.adapters.bank.put(place, name, others.get(name, {}))
        same(ours, plain, dict(zip((5, 0, 3), places, strict=True)))
    assert [product.static.down.data_ptr() for product in ours.adapters.products] == held


@pytest.mark.parametrize(("family", "piece", "rank"), [("llama", 1024, 5), ("gpt_neox", 32, 5), ("llama", 1024, 250)])
def test_rows_of_any_adapters_in_one_launch(
    family: str, piece: int, rank: int, back_end: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    """The first product over all inputs at once, and over parts of them."""
    monkeypatch.setattr(adapter_step, "_PIECE", piece)
    monkeypatch.setattr(adapter_step, "_LONG_PIECE", max(piece, 32))
    monkeypatch.setattr(adapter_step, "_BLOCK", 32)
    model = adapted(family, tmp_path, rank)
    plain, ours = (Decoder(model, 6, 128, drafts=True) for _ in range(2))
    ours._cuda = back_end(ours.model, ours.state, drafts=True, adapters=ours.adapters)
    ours._cuda.launcher.tiles = {name: GemvTile(64, 64, 1) for name in ("qkv", "out", "up", "gated", "down", "head")}
    same(ours, plain, NAMES)
    assert ours._cuda.graphs is ours._cuda._plain  # of the last step, in which no row had any
    assert ours._cuda._adapted.near and ours._cuda._adapted.drafts


def test_adapters_come_and_go_between_launches(back_end: Any, tmp_path: Path) -> None:  # noqa: F811
    model, pairs = roomy(tmp_path)
    plain, ours = (Decoder(model, 6, 128, drafts=True) for _ in range(2))
    ours._cuda = back_end(ours.model, ours.state, drafts=True, adapters=ours.adapters)
    ours._cuda.launcher.tiles = {name: GemvTile(64, 64, 1) for name in ("qkv", "out", "up", "gated", "down", "head")}
    same_as_they_come_and_go(ours, plain, pairs, pairs)


def test_rows_of_any_adapters_by_a_models_own_modules(back_end: Any, tmp_path: Path) -> None:  # noqa: F811
    model = adapted("llama", tmp_path)
    plain, ours = (Decoder(model, 6, 128, tier="generic", drafts=True) for _ in range(2))

    class Uncaptured(back_end, generic.GenericCudaBackend):  # type: ignore[misc]
        pass

    assert isinstance(ours.model, GenericModel)
    ours._cuda = Uncaptured(ours.model, ours.state, True, ours.adapters)
    same(ours, plain, NAMES)
