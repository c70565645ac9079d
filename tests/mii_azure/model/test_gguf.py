"""GGUF files: planned from their header, converted as transformers reads them, and refused where that is not sound."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import mii_azure
from mii_azure.errors import (
    ConfigMissing,
    MiiAzureError,
    ModelInconsistent,
    NotAvailable,
    TokenizerMissing,
    WeightsCorrupt,
    WeightsMissing,
)
from mii_azure.model import gguf_conversion
from mii_azure.model.folder import stored_tensors
from mii_azure.model.gguf_conversion import converted
from mii_azure.model.source import resolve
from tests.tiny_gguf import SIZES, finish, tiny_gguf, write_gguf

TEXT = "The river Aare runs through Bern, é 12."


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MII_AZURE_MODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("family", "kind", "dtype"),
    [
        ("llama", "Q8_0", "bfloat16"),
        ("llama", "Q4_K", "bfloat16"),
        ("llama", "F32", "float32"),
        ("qwen2", "Q4_0", "bfloat16"),
        ("qwen2", "BF16", "bfloat16"),
        ("qwen3", "Q6_K", "bfloat16"),
        ("qwen3", "F16", "float16"),
    ],
)
def test_it_becomes_what_transformers_reads(family: str, kind: str, dtype: str, tmp_path: Path) -> None:
    """Equal weights, equal tokens of a text, equal answers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers does not read Qwen3's width of a head, and has its usual one.
    width: dict[str, Any] = {"head_dim": 128} if family == "qwen3" else {}
    file = tiny_gguf(tmp_path / "tiny.gguf", family, kind, **width)
    facts, folder = resolve(str(file)), converted(file)
    assert {each.name: each for each in facts.weights.compared}.items() <= stored_tensors(folder).items()
    assert facts.weights.dtype == dtype
    assert facts.weights.bytes == sum(each.bytes for each in stored_tensors(folder).values())
    assert facts.weights.widened == f"GGUF {kind}, {file.stat().st_size / 1e6:,.1f} MB"
    ours = AutoModelForCausalLM.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=getattr(torch, dtype))
    weights = ours.state_dict()
    for name, weight in theirs.state_dict().items():
        assert torch.equal(weights[name], weight), name
    tokens = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)(TEXT, return_tensors="pt").input_ids
    assert AutoTokenizer.from_pretrained(folder)(TEXT).input_ids == tokens[0].tolist()
    answers = [each.generate(tokens, max_new_tokens=8, do_sample=False).tolist() for each in (ours, theirs)]
    assert answers[0] == answers[1]


def test_width_of_a_head_is_what_the_file_says(tmp_path: Path) -> None:
    assert resolve(str(tiny_gguf(tmp_path / "a.gguf", "qwen3", head_dim=64))).config["head_dim"] == 64


def test_numbers_that_are_not_rounded_come_back_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    file, original, _ = write_gguf(tmp_path / "tiny.gguf", "llama", tie_word_embeddings=False, **SIZES)
    monkeypatch.setattr(gguf_conversion, "SHARD_BYTES", 1_000_000)
    folder = converted(file)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_it_is_converted_once_and_the_same_each_time(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = converted(plain)
    assert "Widening tiny.gguf from Q8_0 to bfloat16" in capsys.readouterr().err
    assert converted(plain) == first and "Widening" not in capsys.readouterr().err
    monkeypatch.setenv("MII_AZURE_MODEL_CACHE", str(tmp_path / "other"))
    again = converted(plain)
    assert {each.name: each.read_bytes() for each in again.iterdir()} == {
        each.name: each.read_bytes() for each in first.iterdir()
    }


def test_a_plan_converts_nothing_and_tells_what_widening_costs(plain: Path, cache: Path) -> None:
    told = {each.what: each for each in mii_azure.plan("text-generation", str(plain.parent)).decisions}
    assert told["file"].value.startswith("GGUF Q8_0, ")
    assert "Widened to bfloat16" in told["file"].reason and "--quantise int4" in told["file"].reason
    assert not cache.exists()
    assert mii_azure.plan("conversational", str(plain), quantise="int4").profile.shipped == "int4"


def test_a_plan_needs_neither_torch_nor_ggufs_reader(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both take seconds, the reader ten of a large vocabulary."""
    for name in ("torch", "transformers", "gguf.gguf_reader"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(gguf, "GGUFReader", None)
    assert mii_azure.plan("text-generation", str(plain)).profile.vocab_size


def test_rotary_factors_become_the_rule_that_they_come_from(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rule = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rule |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(head_dim=64, hidden_size=256, num_attention_heads=4, rope_parameters=rule)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    usual = 1 / 500_000.0 ** (torch.arange(0, 64, 2) / 64)

    def factors(writer: gguf.GGUFWriter) -> Iterable[str]:
        writer.add_tensor("rope_freqs.weight", (usual / scaled).numpy())
        return []

    theta: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
    file = tiny_gguf(tmp_path / "tiny.gguf", parts=factors, **theta)
    assert resolve(str(file)).config["rope_parameters"] == pytest.approx(rule)
    model = AutoModelForCausalLM.from_pretrained(converted(file))
    assert torch.allclose(model.model.rotary_emb.inv_freq, scaled)


def _written(path: Path, architecture: str, *added: Callable[[gguf.GGUFWriter], None]) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for each in added:
        each(writer)
    finish(writer)
    return path


def _tensor(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("token_embd.weight", np.ones((4, 8), np.float32))


def _with(*without: str, **metadata: object) -> Callable[[gguf.GGUFWriter], Iterable[str]]:
    def parts(writer: gguf.GGUFWriter) -> Iterable[str]:
        for name, told in metadata.items():
            key = name.replace("__", ".")
            add = writer.add_string if isinstance(told, str) else writer.add_uint32
            writer.kv_data[0].pop(key, None)
            add(key, told)
        return without

    return parts


def _extra(writer: gguf.GGUFWriter) -> Iterable[str]:
    writer.add_tensor("blk.0.attn_q.bias", np.ones(256, np.float32))
    return []


def _odd_factors(writer: gguf.GGUFWriter) -> Iterable[str]:
    writer.add_tensor("rope_freqs.weight", np.linspace(1, 2, 32, dtype=np.float32))
    return []


@pytest.mark.parametrize(
    ("parts", "error", "told"),
    [
        (_with(split__count=3), NotAvailable, "one part"),
        (_with(general__type="mmproj"), NotAvailable, "mmproj"),
        (_with(general__type="adapter"), NotAvailable, "adapter"),
        (_with(llama__expert_count=8, llama__expert_used_count=2), NotAvailable, "no place for 6 of"),
        (_with(llama__expert_shared_count=1), NotAvailable, "llama.expert_shared_count .1., which has no place"),
        (_with(llama__rope__scaling__type="yarn"), NotAvailable, "scales its positions"),
        (_with("tokenizer.ggml.tokens"), TokenizerMissing, "no vocabulary"),
        (_with(tokenizer__ggml__model="bert"), NotAvailable, "tokenizer of the kind 'bert'"),
        (_with(llama__block_count=4_000_000_000), WeightsCorrupt, "4000000000 blocks"),
        (_with(llama__block_count=3), WeightsCorrupt, "lacks 9 tensors"),
        (_with(llama__feed_forward_length=128), WeightsCorrupt, "its metadata say"),
        (_with(llama__attention__head_count="four"), ConfigMissing, "describe no model"),
        (_extra, NotAvailable, "no place for 1 of"),
        (_odd_factors, NotAvailable, "not Llama 3's"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_written(
    parts: Callable[[gguf.GGUFWriter], Iterable[str]],
    error: type[MiiAzureError],
    told: str,
    tmp_path: Path,
    cache: Path,
) -> None:
    file = tiny_gguf(tmp_path / "tiny.gguf", parts=parts)
    for read in (resolve, lambda path: converted(Path(path))):
        with pytest.raises(error, match=told) as caught:
            read(str(file))
        assert caught.value.hint
    assert not cache.exists()


def test_other_architectures_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match=r"'rwkv7'; converted are llama, .*, qwen2"):
        resolve(str(_written(tmp_path / "a.gguf", "rwkv7", _tensor)))
    with pytest.raises(NotAvailable, match="eyes or ears"):
        resolve(str(_written(tmp_path / "b.gguf", "clip", _tensor)))
    with pytest.raises(WeightsMissing, match="only a vocabulary"):
        resolve(str(_written(tmp_path / "c.gguf", "llama")))
    with pytest.raises(NotAvailable, match="Q8_K, which gguf does not undo"):
        resolve(str(_unread(tmp_path / "d.gguf")))


def _unread(path: Path) -> Path:
    def parts(writer: gguf.GGUFWriter) -> Iterable[str]:
        kind = gguf.GGMLQuantizationType.Q8_K
        writer.add_tensor("odd", np.zeros((1, 292), np.uint8), raw_dtype=kind)
        return []

    return tiny_gguf(path, parts=parts)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.2, 0.999])
def test_a_file_that_is_cut_short(share: float, plain: Path, tmp_path: Path) -> None:
    content = plain.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsCorrupt) as caught:
        resolve(str(tmp_path))
    assert caught.value.hint


def test_what_only_looks_like_gguf(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightsMissing, match="LFS"):
        resolve(str(file))
    file.write_bytes(b"GGML" + bytes(1000))
    with pytest.raises(WeightsCorrupt, match="not GGUF"):
        resolve(str(file))


def test_which_file_of_a_folder(plain: Path, tmp_path: Path) -> None:
    for name in ("b.gguf", "mmproj-b.gguf"):
        (tmp_path / name).symlink_to(plain)
    assert resolve(str(tmp_path)).weights.widened
    (tmp_path / "c.gguf").symlink_to(plain)
    with pytest.raises(NotAvailable, match="holds 2 GGUF models") as caught:
        resolve(str(tmp_path))
    assert "b.gguf" in caught.value.hint


@pytest.mark.parametrize(
    ("told", "refused"),
    [
        ({"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 64}, False),
        ({"num_hidden_layers": 32}, True),
        ({"text_config": {"hidden_size": 4096}}, True),
    ],
)
def test_a_config_beside_it(told: dict[str, Any], refused: bool, plain: Path, tmp_path: Path) -> None:
    """It is not read, but for what shows that it is another model's."""
    (tmp_path / "tiny.gguf").symlink_to(plain)
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert resolve(str(tmp_path / "tiny.gguf")).config == resolve(str(plain)).config
    if not refused:
        assert resolve(str(tmp_path)).config == resolve(str(plain)).config
        return
    with pytest.raises(ModelInconsistent, match=r"and config.json beside it") as caught:
        resolve(str(tmp_path))
    assert "tiny.gguf" in caught.value.hint


def test_without_gguf_the_extra_is_named(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(NotAvailable, match="needs the package 'gguf'") as caught:
        resolve(str(plain))
    assert "mii-azure[models]" in caught.value.hint
