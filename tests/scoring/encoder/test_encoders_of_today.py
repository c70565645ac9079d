"""Encoders that came after BERT: planned, served and in the CPU's forms as plain transformers answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

import mii_azure
from scoring.encoder import cpu_autotune
from scoring.encoder.verify import reference, verify_encoder
from scoring.passes.families import FUSED_ENCODER
from scoring.passes.fused_encoder import FusedEncoder
from tests import tiny_tokenizers
from tests.conftest import Tiny
from tests.scoring.conftest import Serve
from tests.scoring.encoders import TEXTS
from tests.sentence_folders import NORMALIZE, Reference, sentence_folder
from tests.tiny_models import CONTEXT

TASK = "sentence-embeddings"
_SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96,
    "max_position_embeddings": CONTEXT, "initializer_range": 0.4, "pad_token_id": 0,
}  # fmt: skip
_ENDS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
#: Changes of the config of each, which make it tiny, and its peculiarities count.
FAMILIES: dict[str, dict[str, Any]] = {
    "modernbert": {**_SIZES, **_ENDS, "local_attention": 12, "global_attn_every_n_layers": 2},
    "nomic_bert": _SIZES,
    "gte": {**_SIZES, "type_vocab_size": 2},
    "deberta": {**_SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16},
    "deberta-v2": {
        **_SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16,
        "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0,
    },
    "eurobert": {**_SIZES, **_ENDS, "num_key_value_heads": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`folders(name)` writes a tiny model of the family with BERT's tokenizer."""

    def folder(name: str) -> Path:
        path = tmp_path_factory.getbasetemp() / f"today-{name}"
        if not path.is_dir():
            tokenizer = tiny_tokenizers.bert(CONTEXT)
            config = AutoConfig.for_model(name, **FAMILIES[name], vocab_size=len(tokenizer))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                AutoModel.from_config(config).save_pretrained(path)
            tokenizer.save_pretrained(path)
        return path

    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_planned_and_served(name: str, folders: Callable[[str], Path], serve: Serve) -> None:
    folder = folders(name)
    planned = mii_azure.plan(TASK, str(folder), instance_type="Standard_NC40ads_H100_v5")
    (fused,) = [each for each in planned.passes if each.name == "fused_encoder"]
    assert fused.take is (name in FUSED_ENCODER.served), fused.reason
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = torch.tensor(serve(folder, TASK).ok(TEXTS))
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt"))[0][0].mean(0)
        torch.testing.assert_close(vector, torch.nn.functional.normalize(expected, dim=0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_forms_of_a_cpu_answer_alike(
    name: str, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of a family without a stack of its own are replaced one by one."""
    monkeypatch.setattr(cpu_autotune, "_SMALLEST", 1 << 10)  # tiny weights are worth it here
    model = AutoModel.from_pretrained(folders(name)).eval()
    told = reference(model)
    way = cpu_autotune.prepare(model, "float32")
    assert way.count
    way.on()
    assert verify_encoder(model, told) < 1e-4
    way.off()
    if name in FUSED_ENCODER.served:
        applied = FusedEncoder().apply(model)
        assert 0 < verify_encoder(model, told) < 1e-4
        applied.undo()
    assert verify_encoder(model, told) < 5e-6


def test_a_decoder_embeds_by_its_last_token_behind_an_instruction(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    """Qwen3-Embedding's folder: last token, unit length, an instruction before queries and none before documents."""
    prompts = {"prompts": {"query": "Instruct: Find it.\nQuery:", "document": ""}, "default_prompt_name": None}
    folder = sentence_folder(
        tiny("qwen3", "text-generation"), tmp_path / "m", pooling="lasttoken", layers=[NORMALIZE], prompts=prompts
    )
    planned = mii_azure.plan(TASK, str(folder))
    assert (planned.profile.kind, planned.profile.pooling) == ("encoder", "lasttoken, then Normalize")
    served, told = serve(folder, TASK), Reference(folder)
    for side, prompt in (("query", "Instruct: Find it.\nQuery:"), ("document", "")):
        found = torch.tensor(served.ok(TEXTS, input_type=side, truncation=True))
        for text, vector in zip(TEXTS, found, strict=True):
            torch.testing.assert_close(vector, told.encode(text, prompt), rtol=1e-3, atol=1e-4)
    assert served.ok(TEXTS[0], input_type="query") == served.ok(TEXTS[0], prompt_name="query")
