"""What is refused of a model folder, each with a remedy, and what is counted of one that is not."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mii_azure.errors import (
    ConfigMissing,
    NotAvailable,
    PickleRefused,
    UnknownModel,
    WeightsCorrupt,
    WeightsMissing,
)
from mii_azure.model.folder import bundle_files, files_to_copy
from mii_azure.model.source import resolve
from tests.mii_azure.model_folders import BERT, Folder, tensors


def shards(path: Path, **weight_map: str) -> None:
    for name in set(weight_map.values()):
        save_file({key: np.ones((4, 4), np.float16) for key, file in weight_map.items() if file == name}, path / name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_folder_is_read_without_its_weights(folder: Folder) -> None:
    path = folder()
    model = resolve(str(path))
    assert (model.source, model.name, model.config) == ("folder", str(path), BERT)
    assert model.weights.parameters == 30 * 8 + 8 * 8
    assert model.weights.bytes == (path / "model.safetensors").stat().st_size
    assert model.weights.dtype == "float32"


def test_shards_are_added_up(folder: Folder) -> None:
    path = folder(weights=False)
    shards(path, a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors")
    weights = resolve(str(path)).weights
    assert (weights.parameters, weights.dtype) == (32, "float16")
    assert weights.bytes == sum(file.stat().st_size for file in path.glob("model-*"))


def test_no_config(folder: Folder) -> None:
    with pytest.raises(ConfigMissing, match=r"no config\.json") as caught:
        resolve(str(folder(None)))
    assert "save_pretrained" in caught.value.hint


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        ({"adapter_config.json": "{}"}, "merge"),
        ({"modules.json": "[]"}, "0_Transformer"),
        ({"model_index.json": "{}"}, "diffusers' save_pretrained"),
        ({"0_Transformer__config.json": "{}", "0_Transformer__model.safetensors": ""}, "0_Transformer"),
    ],
)
def test_no_config_but_another_kind_of_folder(folder: Folder, files: dict[str, str], remedy: str) -> None:
    with pytest.raises(ConfigMissing) as caught:
        resolve(str(folder(None, weights=False, **files)))
    assert remedy in caught.value.hint


def test_config_that_is_not_json(folder: Folder) -> None:
    path = folder(None)
    (path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ConfigMissing, match="cannot be read"):
        resolve(str(path))


def test_config_that_is_a_list(folder: Folder) -> None:
    path = folder(None)
    (path / "config.json").write_text("[]")
    with pytest.raises(ConfigMissing, match="not a JSON object"):
        resolve(str(path))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (None, "copy the weights"),
        ("flax_model.msgpack", "another runtime's format"),
        ("adapter_config.json", "give its base as the model"),
        ("model-00001-of-00002.safetensors", "restore the index"),
    ],
)
def test_config_without_weights(folder: Folder, name: str | None, remedy: str) -> None:
    path = folder(weights=False)
    if name:
        (path / name).write_bytes(b"x")
    with pytest.raises(WeightsMissing) as caught:
        resolve(str(path))
    assert remedy in caught.value.hint


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickle_is_refused_unless_allowed(folder: Folder, name: str) -> None:
    path = folder(weights=False)
    (path / name).write_bytes(bytes(4000))
    with pytest.raises(PickleRefused, match=name) as caught:
        resolve(str(path))
    assert "--allow-pickle" in caught.value.hint
    allowed = resolve(str(path), allow_pickle=True)
    assert (allowed.weights.bytes, allowed.weights.parameters) == (4000, 1000)


def test_pickle_beside_safetensors_is_ignored(folder: Folder) -> None:
    path = folder(**{"pytorch_model.bin": "not even a pickle"})
    assert resolve(str(path)).weights.parameters == 304
    assert Path("pytorch_model.bin") not in files_to_copy(path, allow_pickle=True)


def test_a_trainers_arguments_are_no_weights(folder: Folder) -> None:
    path = folder(weights=False, **{"training_args.bin": "x"})
    with pytest.raises(WeightsMissing):
        resolve(str(path))


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_truncated_safetensors(folder: Folder, keep: int) -> None:
    path = folder() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsCorrupt, match=r"model\.safetensors is damaged") as caught:
        resolve(str(path.parent))
    assert caught.value.hint and caught.value.where == str(path)


def test_safetensors_with_bytes_appended(folder: Folder) -> None:
    path = folder() / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(WeightsCorrupt, match="describes"):
        resolve(str(path.parent))


@pytest.mark.parametrize(
    "header",
    [
        b"not json at all!",
        b"[1, 2, 3]",
        json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 8]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [2]}}).encode(),
        json.dumps({"a": "b"}).encode(),
    ],
)
def test_malformed_header(folder: Folder, header: bytes) -> None:
    path = folder() / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(WeightsCorrupt):
        resolve(str(path.parent))


def test_git_lfs_pointer(folder: Folder) -> None:
    path = folder()
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(WeightsMissing, match="Git LFS") as caught:
        resolve(str(path))
    assert "git lfs pull" in caught.value.hint


def test_a_shard_is_missing(folder: Folder) -> None:
    path = folder(weights=False)
    shards(path, a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors")
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsMissing, match=r"model-00002-of-00002\.safetensors"):
        resolve(str(path))


def test_a_tensor_of_the_index_is_in_no_shard(folder: Folder) -> None:
    path = folder(weights=False)
    shards(path, a="model-00001-of-00001.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors", "b": "model-00001-of-00001.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsCorrupt, match="1 of 2 tensors"):
        resolve(str(path))


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, []])
def test_an_index_without_a_map(folder: Folder, index: object) -> None:
    path = folder(weights=False, **{"model.safetensors.index.json": index})
    with pytest.raises(WeightsCorrupt, match=r"weight_map|not a JSON object"):
        resolve(str(path))


@pytest.mark.parametrize("absolute", [False, True])
def test_an_index_cannot_name_a_file_outside_the_folder(folder: Folder, tmp_path: Path, absolute: bool) -> None:
    save_file(tensors(), tmp_path / "outside.safetensors")
    name = str(tmp_path / "outside.safetensors") if absolute else "../outside.safetensors"
    index = {"weight_map": {"bert.embeddings.word_embeddings.weight": name}}
    path = folder(weights=False, **{"model.safetensors.index.json": index})
    with pytest.raises(WeightsCorrupt, match=r"which is no \.safetensors file beside it"):
        resolve(str(path))


def test_quantised_weights_are_refused(folder: Folder) -> None:
    with pytest.raises(NotAvailable, match="aqlm"):
        resolve(str(folder(BERT | {"quantization_config": {"quant_method": "aqlm"}})))


def test_integer_weights_are_refused(folder: Folder) -> None:
    path = folder(weights=False)
    save_file(
        {"a.qweight": np.ones((64, 64), np.int32), "a.scales": np.ones(8, np.float16)}, path / "model.safetensors"
    )
    with pytest.raises(NotAvailable, match="quantised"):
        resolve(str(path))


def test_a_missing_folder_offers_the_nearest(folder: Folder) -> None:
    path = folder(name="bert-tiny")
    with pytest.raises(UnknownModel) as caught:
        resolve(str(path.with_name("bert-tiney")))
    assert str(path) in caught.value.hint


def test_a_file_is_not_a_model(folder: Folder) -> None:
    path = folder()
    with pytest.raises(UnknownModel, match="is a file") as caught:
        resolve(str(path / "config.json"))
    assert str(path) in caught.value.hint


@pytest.mark.parametrize("text", ["", "a b", "a/b/c", "\N{SNOWMAN}", "x" * 300])
def test_what_is_neither_a_path_nor_a_hub_id(text: str) -> None:
    with pytest.raises(UnknownModel):
        resolve(text)


@pytest.mark.parametrize(
    "reference",
    [
        "azureml:bert:3",
        "azureml:bert@latest",
        "azureml:Llama-3.2-1B:2",
        "azureml://registries/azureml-meta/models/Llama-3.2-1B/versions/2",
        "azureml://registries/HuggingFace/models/gpt2/versions/17",
        "azureml://registries/azureml/models/gpt2/labels/latest",
        "azureml://datastores/blobs/paths/models/bert/",
    ],
)
def test_references_are_taken_unopened(reference: str) -> None:
    model = resolve(reference)
    assert (model.source, model.name, model.weights.bytes) == ("reference", reference, 0)


@pytest.mark.parametrize(
    "reference", ["azureml:", "azureml:bert", "azureml:bert@newest", "azureml://registries/x/bert"]
)
def test_malformed_references(reference: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        resolve(reference)
    assert "azureml:NAME:VERSION" in caught.value.hint


MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
]


def test_what_a_bundle_takes(folder: Folder) -> None:
    takes = {
        "generation_config.json": "{}",
        "tokenizer.json": "{}",
        "vocab.txt": "a",
        "merges.txt": "a",
        "spiece.model": "a",
        "chat_template.jinja": "x",
        "modules.json": MODULES,
        "1_Pooling__config.json": "{}",
        "2_Dense__config.json": "{}",
        "2_Dense__model.safetensors": "x",
    }
    leaves = {
        "README.md": "",
        ".gitattributes": "",
        "modeling_custom.py": "",
        "pytorch_model.bin": "",
        "pytorch_model.bin.index.json": "{}",
        "tf_model.h5": "",
        "flax_model.msgpack": "",
        "training_args.bin": "",
        "trainer_state.json": "{}",
        "all_results.json": "{}",
        "requirements.txt": "",
        "onnx__config.json": "{}",
        "2_Dense__pytorch_model.bin": "x",
        "3_Other__config.json": "{}",
        "onnx__model.onnx": "",
    }
    path = folder(**takes, **leaves)
    expected = {"config.json", "model.safetensors", *(name.replace("__", "/") for name in takes)}
    assert {file.as_posix() for file in files_to_copy(path)} == expected


def test_a_bundle_takes_shards_with_their_index(folder: Folder) -> None:
    path = folder(weights=False)
    shards(path, a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors")
    names = {file.name for file in files_to_copy(path)}
    assert names == {"config.json", "model.safetensors.index.json", *(file.name for file in path.glob("model-*"))}


def test_a_bundle_takes_pickle_only_where_allowed(folder: Folder) -> None:
    path = folder(weights=False, **{"pytorch_model.bin": "x", "training_args.bin": "x"})
    assert [file.name for file in files_to_copy(path)] == ["config.json"]
    assert [file.name for file in files_to_copy(path, allow_pickle=True)] == ["config.json", "pytorch_model.bin"]


def test_duplicate_weights_on_the_hub_are_downloaded_once() -> None:
    names = ["config.json", "model.safetensors", "model.safetensors.index.json", "model-00001-of-00001.safetensors"]
    assert bundle_files(names) == ["config.json", "model.safetensors"]
