"""sentence-transformers folders on paper: what is served is told, what is not is refused by its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import mii_azure
from mii_azure.checks.check import check
from mii_azure.errors import ConfigMissing, ModelError, NotAvailable, PickleRefused, TaskUnsupported, WeightsMissing
from mii_azure.model.folder import files_to_copy
from mii_azure.planning.plan import Plan
from mii_azure.planning.planner import plan
from scoring.config import find_model_dir
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.sentence_folders import HIDDEN, NORMALIZE, PROMPTS, TYPES, Reference, dense, sentence_folder

TASK = "sentence-embeddings"
CPU = "Standard_F8s_v2"


def planned(folder: Path, task: str = TASK, **preferences: Any) -> Plan:
    return plan(task, str(folder), instance_type=CPU, **preferences)


def told(found: Plan, what: str) -> str:
    return next((f"{each.value} | {each.reason}" for each in found.decisions if each.what == what), "")


@pytest.mark.parametrize(
    ("options", "pooling"),
    [
        ({}, "mean"),
        ({"pooling": {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}}, "cls and max"),
        ({"pooling": "lasttoken", "layers": [NORMALIZE]}, "lasttoken, then Normalize"),
        ({"layers": [dense(HIDDEN, 24), NORMALIZE]}, "mean, then Dense 32 to 24 (Tanh), then Normalize"),
        (
            {"prompts": {"prompts": PROMPTS, "default_prompt_name": "query"}},
            "mean; prompt 'query' by default",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_pooling_is_a_decision_of_the_plan(options: dict[str, Any], pooling: str, tiny: Tiny, tmp_path: Path) -> None:
    found = planned(sentence_folder(tiny("bert", TASK), tmp_path / "m", max_seq_length=40, **options))
    assert told(found, "pooling") == f"{pooling} | What the folder's modules.json says, in its order."
    assert (found.context_length, found.task_options, found.profile.pooling) == (40, {}, pooling)


def test_a_folder_without_modules_is_told_to_have_none(tiny: Tiny, tmp_path: Path) -> None:
    found = planned(tiny("bert", TASK))
    assert found.task_options == {"pooling": "mean", "normalize": True}
    assert "no modules.json" in told(found, "task options")
    assert (told(found, "pooling"), found.context_length) == ("", 128)
    folder = sentence_folder(tiny("bert", TASK), tmp_path / "m", max_seq_length=40)
    assert planned(folder, "feature-extraction").context_length == 40


def test_a_decoder_is_planned_as_what_reads_a_text_once(tiny: Tiny, tmp_path: Path) -> None:
    folder = sentence_folder(tiny("qwen3", "text-generation"), tmp_path / "m", pooling="lasttoken")
    found = planned(folder)
    assert (found.profile.kind, found.profile.kv_bytes_per_token, found.slots) == ("encoder", 0, 0)
    assert planned(folder, "text-generation").profile.kind == "decoder"


@pytest.mark.parametrize(
    ("modules", "named"),
    [
        (["Transformer", "WordWeights"], "sentence_transformers.models.WordWeights second"),
        (["Transformer", "Pooling", "CNN"], "sentence_transformers.models.CNN as number 3"),
        (["CLIPModel"], "sentence_transformers.models.CLIPModel first"),
        (["Transformer", "Pooling", "Pooling"], "sentence_transformers.models.Pooling as number 3"),
        (["Transformer", "Dense", "Pooling"], "sentence_transformers.models.Dense second"),
        (["Transformer"], "nothing makes one vector"),
        ([], "no module"),
        (["!custom_st.Transformer", "Pooling"], "custom_st.Transformer first"),
    ],
)
def test_a_module_that_is_not_served_is_named(modules: list[str], named: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = sentence_folder(tiny("bert", TASK), tmp_path / "m")
    types = [kind[1:] if kind.startswith("!") else f"{TYPES}.{kind}" for kind in modules]
    paths = ["", "1_Pooling", "2"]
    listed = [{"path": path, "type": kind} for path, kind in zip(paths, types, strict=False)]
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(TaskUnsupported) as caught:
        planned(folder)
    assert named in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("file", "content", "error", "named"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, TaskUnsupported, "pools by median"),
        ("1_Pooling/config.json", {"pooling_mode_median": True}, TaskUnsupported, "pooling_mode_median"),
        ("1_Pooling/config.json", {"pooling_mode": []}, ConfigMissing, "0 ways"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": 1}, ConfigMissing, "true or false"),
        ("2_Dense/config.json", {"in_features": 8}, ConfigMissing, "out_features"),
        ("2_Dense/config.json", {"in_features": 8, "out_features": 4}, ConfigMissing, "takes vectors of 8 numbers"),
        (
            "2_Dense/config.json",
            {"in_features": HIDDEN, "out_features": 4, "activation_function": "os.system"},
            TaskUnsupported,
            "'os.system'",
        ),
        ("sentence_bert_config.json", {"max_seq_length": 0}, ConfigMissing, "max_seq_length is 0"),
        ("sentence_bert_config.json", {"max_seq_length": "256"}, ConfigMissing, "max_seq_length"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, TaskUnsupported, "fill-mask"),
        ("sentence_bert_config.json", {"tokenizer_args": {"add_eos_token": True}}, TaskUnsupported, "add_eos_token"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {}}}, TaskUnsupported, "processing_kwargs"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, ConfigMissing, "prompt 'a'"),
        ("config_sentence_transformers.json", {"default_prompt_name": "a"}, ConfigMissing, "default prompt"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, TaskUnsupported, "SparseEncoder"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_are_not_served_are_named(
    file: str, content: Any, error: type[ModelError], named: str, tiny: Tiny, tmp_path: Path
) -> None:
    folder = sentence_folder(tiny("bert", TASK), tmp_path / "m", layers=[dense(HIDDEN, 24)])
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(error) as caught:
        planned(folder)
    assert named in caught.value.message and caught.value.hint


def test_current_settings_are_as_good_as_none(tiny: Tiny, tmp_path: Path) -> None:
    """What sentence-transformers 6 writes for a model of texts."""
    ways = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    new = {"transformer_task": "feature-extraction", "modality_config": ways, "module_output_name": "token_embeddings"}
    folder = sentence_folder(tiny("bert", TASK), tmp_path / "m", model_args={"torch_dtype": "float32"}, **new)
    types = ("base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling")
    paths = ("", "1_Pooling")
    listed = [{"path": p, "type": f"sentence_transformers.{t}"} for p, t in zip(paths, types, strict=True)]
    (folder / "modules.json").write_text(json.dumps(listed))
    assert told(planned(folder), "pooling").startswith("mean |")


def test_a_pooling_that_is_not_there_is_no_mean(tiny: Tiny, tmp_path: Path) -> None:
    folder = sentence_folder(tiny("bert", TASK), tmp_path / "m", pooling="cls")
    (folder / "1_Pooling").rename(folder / "pool")
    with pytest.raises(ConfigMissing, match="names 1_Pooling"):
        planned(folder)
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["path"] = "pool"
    (folder / "modules.json").write_text(json.dumps(listed))
    assert told(planned(folder), "pooling").startswith("cls |")
    assert Path("pool/config.json") in files_to_copy(folder)


def test_weights_of_a_dense_module(tiny: Tiny, tmp_path: Path) -> None:
    folder = sentence_folder(tiny("bert", TASK), tmp_path / "m", layers=[dense(HIDDEN, 24)], pickle=True)
    with pytest.raises(PickleRefused, match="2_Dense"):
        planned(folder)
    assert planned(folder, allow_pickle=True)
    assert Path("2_Dense/pytorch_model.bin") in files_to_copy(folder, allow_pickle=True)
    (folder / "2_Dense" / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsMissing, match="2_Dense"):
        planned(folder)


def test_a_transformer_in_a_folder_of_its_own_is_bundled_and_loaded(tiny: Tiny, tmp_path: Path) -> None:
    """The bundle keeps the layout, and loses neither pooling nor Dense nor length."""
    layers = [dense(HIDDEN, 24), NORMALIZE]
    source = sentence_folder(
        tiny("bert", TASK), tmp_path / "m", pooling="cls", layers=layers, path="0_Transformer", max_seq_length=40
    )
    bundle = mii_azure.generate(TASK, str(source), "nested", output=tmp_path / "b", instance_type=CPU)
    model = find_model_dir(bundle / "code")
    for name in ("0_Transformer/model.safetensors", "2_Dense/model.safetensors", "1_Pooling/config.json"):
        assert (model / name).is_file()
    served = Served(model, TASK)
    assert served.ok("Paris") == pytest.approx(Reference(source).encode("Paris").tolist(), abs=1e-5)
    assert served.service.loaded.context_length == 40
    served.service.drain(5)
    assert check(bundle) == []
    with pytest.raises(NotAvailable, match="0_Transformer"):
        planned(source, quantise="int8")
    shutil.rmtree(source / "0_Transformer")
    with pytest.raises(ConfigMissing, match="0_Transformer"):
        planned(source)
