"""Adapters served beside their base: each as peft has it, alone and together, and the base as without them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mii_azure
from mii_azure import errors
from scoring.api.service import Service
from scoring.config import Deployment
from scoring.decoder.adapters.builders import build
from scoring.decoder.decoder import Decoder
from scoring.decoder.low_rank import SlotAdapters
from scoring.decoder.verify import adapter_error
from scoring.lora.loading import AdapterRoom, load_bank, pairs_of, read_adapter
from scoring.lora.peft_folder import LowRank, UnservedAdapter
from scoring.lora.stacks import laid_out
from scoring.model.loader import load_with
from scoring.passes.registry import catalogue
from scoring.schema.registry import task_class
from tests.tiny_adapters import tiny_adapter
from tests.tiny_models import load_tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning"),  # peft corrects it, and says so
]

Tiny = Callable[[str, str], Path]
TASK = "text-generation"
TARGETS = {
    "llama": ("q_proj", "v_proj", "up_proj", "down_proj"),  # parts of products that the decoder fuses
    "gpt2": ("c_attn", "c_proj"),  # Conv1D
    "gpt_neox": ("query_key_value", "dense_4h_to_h"),  # rows ordered by head; blocks in parallel
}
PROMPTS = ([5, 9, 33, 7, 21], [11, 12], [40, 3, 8], [5, 9, 33, 7, 22, 90])
NAMES = ("b", "", "a", "b")  # adapter of each row


def _folder(base: Path, folder: Path, family: str) -> Path:
    """Folder with adapters of two ranks, the second of fewer products."""
    tiny_adapter(base, TASK, folder / "adapters" / "a", TARGETS[family], rank=2, seed=1)
    tiny_adapter(base, TASK, folder / "adapters" / "b", TARGETS[family][:1], rank=5, seed=2)
    return folder


def _folders(folder: Path) -> dict[str, Path]:
    return {name: folder / "adapters" / name for name in ("a", "b")}


def _decoded(decoder: Decoder, names: Sequence[str], steps: int = 3) -> list[Tensor]:
    """Logits after the prompts and after each of some steps [steps + 1, vocabulary], a row each; fed are likeliest."""
    for slot, name in enumerate(names):
        decoder.open(slot)
        decoder.adapters.use(slot, name)
    logits = [decoder.prefill_many(list(enumerate(PROMPTS[: len(names)])))]
    decoder.sample(range(len(names))).tokens()
    for _ in range(steps):
        decoder.step(range(len(names))).tokens()
        logits.append(decoder.last_logits(len(names)).clone())
    return list(torch.stack(logits, 1))


def _plain(model: Any, prompt: list[int], steps: int = 3) -> Tensor:
    """The same of a model of transformers, which computes every prefix whole."""
    ids, logits = list(prompt), []
    with torch.inference_mode():
        for _ in range(steps + 1):
            logits.append(model(input_ids=torch.tensor([ids])).logits[0, -1])
            ids.append(int(logits[-1].argmax()))
    return torch.stack(logits)


@pytest.mark.parametrize(
    ("family", "tier"), [("llama", "fused"), ("gpt2", "fused"), ("gpt_neox", "fused"), ("llama", "generic")]
)
def test_rows_of_several_adapters_are_those_of_peft(tiny: Tiny, tmp_path: Path, family: str, tier: Any) -> None:
    peft = pytest.importorskip("peft")
    base = tiny(family, TASK)
    folder = _folder(base, tmp_path, family)
    expected = []
    for name, prompt in zip(NAMES, PROMPTS, strict=True):
        model = load_tiny(base, TASK)[0]
        model = peft.PeftModel.from_pretrained(model, folder / "adapters" / name) if name else model
        expected.append(_plain(model.eval(), prompt))
    model = load_tiny(base, TASK)[0].eval()
    load_bank(_folders(folder), model)
    decoder = Decoder(model, slots=4, max_length=64, tier=tier)
    together = _decoded(decoder, NAMES)
    for found, wanted in zip(together, expected, strict=True):
        assert torch.allclose(found, wanted, atol=2e-3, rtol=1e-3)
    alone = _decoded(decoder, NAMES[:1])  # in a batch of its own, where all rows have it
    assert torch.allclose(alone[0], expected[0], atol=2e-3, rtol=1e-3)


def test_rows_of_the_base_keep_its_numbers(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("llama", TASK)
    bare = _decoded(Decoder(load_tiny(base, TASK)[0].eval(), slots=4, max_length=64), [""] * 4)
    model = load_tiny(base, TASK)[0].eval()
    bank = load_bank(_folders(_folder(base, tmp_path, "llama")), model)
    decoder = Decoder(model, slots=4, max_length=64)
    mixed = _decoded(decoder, NAMES)
    assert torch.equal(mixed[1], bare[1])
    with bank.everywhere("a"):  # slots take turns with a batch of one adapter
        between = _decoded(decoder, [""] * 4)
    assert all(torch.equal(found, wanted) for found, wanted in zip(between, bare, strict=True))
    assert not torch.allclose(mixed[0], bare[0], atol=0.1)


def test_a_start_sees_adapters_that_differ(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("llama", TASK)
    model = load_tiny(base, TASK)[0].eval()
    bank = load_bank(_folders(_folder(base, tmp_path, "llama")), model)
    decoder = Decoder(model, slots=4, max_length=64)
    assert adapter_error(decoder, model) < 1e-4
    product = decoder.model.layers[0].attention.qkv.adapters
    for _, stack in product._parts:
        stack.at = {place: (down, torch.zeros_like(up)) for place, (down, up) in stack.at.items()}
    for place in range(2):
        product.renew(place)
    assert adapter_error(decoder, model) > 0.01
    assert bank.groups is None


def test_requests_name_their_adapter(tiny: Tiny, tmp_path: Path) -> None:
    """Through the bundle and the service: slots, beams, prefixes that begin alike, drafts, names that are not there."""
    base = tiny("llama", TASK)
    folder = _folder(base, tmp_path, "llama")
    pairs = [f"{name}={folder / 'adapters' / name}" for name in ("a", "b")]
    texts: dict[str, list[str]] = {}
    for name in ("a", "b"):
        merged = mii_azure.generate(
            TASK, str(base), "one", output=tmp_path / f"merged-{name}", adapter=str(folder / "adapters" / name)
        )
        texts[name] = _texts(merged)
    texts[""] = _texts(base)
    assert len({*map(str, texts.values())}) == 3
    for speculation in ("off", "ngram"):
        bundle = mii_azure.generate(
            TASK, str(base), "many", output=tmp_path / speculation, adapters=pairs,
            instance_type="Standard_D4as_v4", speculation=speculation,
        )  # fmt: skip
        with start(bundle) as service:
            assert service.metadata()["optimisations"]["static_decode"] == "applied"
            for name in ("a", "", "b", "a"):  # twice: the second time its own prefix is found
                more = {"adapter": name} if name else {}
                assert [_answer(service, beams, more) for beams in (1, 2)] == texts[name], (speculation, name)
            refused = service.answer(json.dumps({"inputs": "x", "parameters": {"adapter": "c"}}))
            assert refused.status == 404
            assert json.loads(refused.body)["error"]["where"] == "parameters.adapter"
            assert [each["name"] for each in service.metadata()["adapters"]] == ["a", "b"]


@contextmanager
def start(bundle: Path) -> Iterator[Service]:
    """Service of a bundle, as `init` starts it."""
    deployment = Deployment.read(bundle / "code" / "deployment.json")
    loaded, chosen = load_with(catalogue(deployment), deployment, bundle / "model")
    service = Service(deployment, loaded, task_class(TASK)(loaded, TASK), {})
    service.start(chosen)
    yield service
    service.drain(5)


LONG = "The house is wonderful and the old bridge over the river was closed until noon on Monday."


def _texts(model: Path) -> list[str]:
    folder = model / "model" if (model / "model").is_dir() else model
    plain, tokenizer = load_tiny(folder, TASK)
    ids = tokenizer(LONG, return_tensors="pt")["input_ids"]
    made = [
        plain.eval().generate(input_ids=ids, max_new_tokens=12, do_sample=False, num_beams=beams, pad_token_id=0)
        for beams in (1, 2)
    ]
    return [str(tokenizer.decode(each[0][ids.shape[1] :], skip_special_tokens=True)) for each in made]


def _answer(service: Any, beams: int, more: dict[str, str]) -> str:
    parameters = {"max_new_tokens": 12, "return_full_text": False, "num_beams": beams, **more}
    reply = service.answer(json.dumps({"inputs": LONG, "parameters": parameters}))
    assert reply.status == 200, reply.body
    return str(json.loads(reply.body)[0]["generated_text"])


@pytest.mark.parametrize(
    ("adapters", "preferences", "sentence"),
    [
        (["a/b=x"], {}, "no NAME=FOLDER"),
        (["a"], {}, "no NAME=FOLDER"),
        (["many=x"], {}, "have one name"),
        (["a=x", "a=y"], {}, "have one name"),
        (["a=x"], {"adapter": "y"}, "leave out adapter"),
        (["a=x"], {"quantise": "int8"}, "then with quantise"),
        (["a=x"], {"task": "fill-mask"}, "merge one by adapter"),
    ],
    ids=str,
)
def test_specs_of_adapters_that_cannot_be(
    tiny: Tiny, tmp_path: Path, adapters: list[str], preferences: dict[str, Any], sentence: str
) -> None:
    given = {"task": TASK, **preferences}
    with pytest.raises(errors.SpecError) as caught:
        mii_azure.generate(given.pop("task"), "x", "many", output=tmp_path / "n", adapters=adapters, **given)
    assert sentence in str(caught.value)


def test_adapters_that_only_merging_serves(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("llama", TASK)
    head = tiny_adapter(base, TASK, tmp_path / "head", ("q_proj", "lm_head"))
    with pytest.raises(errors.AdapterUnusable, match="output matrix") as caught:
        mii_azure.generate(TASK, str(base), "many", output=tmp_path / "n", adapters=[f"a={head}"])
    assert "--adapter" in caught.value.hint


def test_memory_of_graphs_holds_what_has_a_place_now(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("llama", TASK)
    folders = _folders(_folder(base, tmp_path, "llama"))
    model = load_tiny(base, TASK)[0].eval()
    bank = load_bank({"a": folders["a"]}, model, AdapterRoom(1, 8))
    products = SlotAdapters(model, build(model, 64)).products
    before = [(product.static.down.data_ptr(), product.static.up.data_ptr()) for product in products]
    pairs = pairs_of(read_adapter("b", folders["b"]), model, bank)
    for place, name in ((1, "b"), (0, ""), (0, "b"), (1, "")):
        bank.put(place, name, pairs if name else {})
        for product in products:
            expected = laid_out(product._parts, 2, bank.room)
            assert torch.equal(product.static.down, expected.down)
            assert torch.equal(product.static.up, expected.up)
    assert bool(products[0].static.up[0].any()) and not bool(products[0].static.up[1].any())
    assert [(product.static.down.data_ptr(), product.static.up.data_ptr()) for product in products] == before


@pytest.mark.parametrize("module", ["model.norm", "model.layers.0", "lm_head", "model.embed_tokens", "nobody"])
def test_products_of_what_is_no_product_are_refused(module: str, tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("llama", TASK)
    read = read_adapter("a", _folders(_folder(base, tmp_path, "llama"))["a"])
    model = load_tiny(base, TASK)[0].eval()
    size = model.config.hidden_size
    product = LowRank(module, "down", "up", 2, size, size, 1.0)
    tensors = {"down": torch.ones(2, size), "up": torch.ones(size, 2)}
    with pytest.raises(UnservedAdapter, match=module):
        pairs_of(replace(read, products=(product,), tensors=tensors), model)
