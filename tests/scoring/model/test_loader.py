"""Loading: a head that a checkpoint lacks is refused, never made up; broken folders get a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import transformers

from scoring.config import Deployment, find_model_dir
from scoring.errors import HeadMissing, LoadError, ModelNotFound, OutOfMemory, WeightsUnreadable
from scoring.model import host_memory
from scoring.model.loader import load, survey

Tiny = Callable[[str, str], Path]
ENCODERS = ("bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra", "deberta-v2", "mpnet")


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("task", ["fill-mask", "text-classification", "question-answering", "token-classification"])
def test_a_checkpoint_without_the_head_is_refused(family: str, task: str, tiny: Tiny) -> None:
    with pytest.raises(HeadMissing, match="would be random"):
        load(Deployment(name="x", task=task), tiny(family, "feature-extraction"))


@pytest.mark.parametrize("family", ENCODERS)
def test_a_checkpoint_with_another_head_embeds(family: str, tiny: Tiny) -> None:
    options = {"pooling": "mean", "normalize": True}
    deployment = Deployment(name="x", task="sentence-embeddings", task_options=options)
    model = load(deployment, tiny(family, "question-answering")).model
    assert not hasattr(model, "qa_outputs")
    assert model.get_input_embeddings().weight.isfinite().all()


def test_an_architecture_that_cannot_do_the_task(tiny: Tiny) -> None:
    with pytest.raises(HeadMissing, match="cannot do summarization"):
        load(Deployment(name="x", task="summarization"), tiny("bert", "fill-mask"))


def test_weights_cut_short(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("bert", "fill-mask"), tmp_path / "model"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WeightsUnreadable, match="cannot be loaded"):
        load(Deployment(name="x", task="fill-mask"), folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/model.safetensors", "..\\a.safetensors", "pickle.bin", 5])
def test_an_index_that_names_a_file_elsewhere(name: object, tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("bert", "fill-mask"), tmp_path / "model"))
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsUnreadable, match=r"which is no \.safetensors file beside it"):
        load(Deployment(name="x", task="fill-mask"), folder)


def test_an_index_that_no_loader_reads_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("bert", "fill-mask"), tmp_path / "model"))
    for name in ("model.safetensors.index.json", "tf_model.h5.index.json"):
        (folder / name).write_text(json.dumps({"weight_map": {"a": "../x"}}))
    assert type(load(Deployment(name="x", task="fill-mask"), folder).model).__name__ == "BertForMaskedLM"


def test_no_tokenizer(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("bert", "fill-mask"), tmp_path / "model"))
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "vocab.txt").unlink(missing_ok=True)
    with pytest.raises(LoadError, match="tokenizer"):
        load(Deployment(name="x", task="fill-mask"), folder)


@pytest.mark.parametrize("layout", ["{root}/model", "{root}", "{root}//model", "{root}/model/"])
def test_the_model_folder_is_found_wherever_azure_mounts_it(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setenv("AZUREML_MODEL_DIR", layout.format(root=tmp_path))
    assert find_model_dir(tmp_path / "code") == tmp_path / "model"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (("mlflow_model_folder/data/model/",), "mlflow_model_folder/data/model"),
        (("mlflow_model_folder/model/",), "mlflow_model_folder/model"),
        (("m/data/config/config.json", "m/data/model/", "m/data/tokenizer/tokenizer.json"), "m/data/model"),
        (("config.json", "a/b/weights/"), "a/b/weights"),  # what lies above has no weights
        (("a/", "a/old/"), "a"),
        (("onnx/model.onnx", "pipe/model_index.json", "pipe/unet/"), "pipe"),
        (("a/", "b/"), "several models: a, b"),
        (("a/config.json", "b/config.json"), "several models: a, b"),
        (("a/weights.onnx",), "No config.json"),
    ],
)
def test_a_model_is_found_at_any_depth_unless_there_are_several(
    files: tuple[str, ...], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in files:
        names = ("config.json", "model.safetensors") if name.endswith("/") else ("",)
        for each in names:
            path = tmp_path / "mounted" / f"{name}{each}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}", encoding="utf-8")
    monkeypatch.setenv("AZUREML_MODEL_DIR", f"{tmp_path}//mounted")
    if " " in found:
        with pytest.raises(ModelNotFound, match=found):
            find_model_dir(tmp_path / "code")
    else:
        assert find_model_dir(tmp_path / "code") == tmp_path / "mounted" / found


@pytest.mark.parametrize("place", ["tokenizer", "components/tokenizer"])
def test_a_registrys_mlflow_layout_starts(place: str, tiny: Tiny, tmp_path: Path) -> None:
    data = tmp_path / "mlflow_model_folder" / "data"
    shutil.copytree(tiny("bert", "fill-mask"), data / "model")
    (data / place).mkdir(parents=True)
    for path in [*(data / "model").glob("tokenizer*"), *(data / "model").glob("vocab*")]:
        path.rename(data / place / path.name)
    loaded = load(Deployment(name="x", task="fill-mask"), data / "model")
    assert loaded.tokenizer.mask_token_id is not None


def test_without_the_variable_the_bundle_s_own_model_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZUREML_MODEL_DIR", raising=False)
    with pytest.raises(ModelNotFound, match=r"No config\.json"):
        find_model_dir(tmp_path / "code")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    assert find_model_dir(tmp_path / "code") == tmp_path / "model"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "name": "x"}', '{"schema": 1, "surprise": 1}']
)
def test_settings_that_cannot_be_read(content: str, tmp_path: Path) -> None:
    path = tmp_path / "deployment.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(LoadError):
        Deployment.read(path)


def test_settings_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "deployment.json"
    settings = {
        "schema": 1,
        "name": "x",
        "task": "fill-mask",
        "model": {"id": "m", "revision": None, "architecture": "A", "family": "f"},
        "limits": {"queue_size": 3},
    }
    path.write_text(json.dumps(settings), encoding="utf-8")
    deployment = Deployment.read(path)
    assert (deployment.model.id, deployment.limits.queue_size, deployment.dtype) == ("m", 3, "float32")


def test_weights_that_the_device_cannot_hold(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch raises there becomes a sentence with the sizes, and the size that would do."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_000_000_000, 16_000_000_000))
    with pytest.raises(OutOfMemory, match=r"the GPU has 3\.0 of 16\.0 GB free") as told:
        load(Deployment(name="x", task="text-generation"), tiny("llama", "text-generation"))
    assert "zero_inference" in told.value.hint
    assert (told.value.http_status, told.value.exit_code) == (503, 3)


def test_a_container_of_less_memory_than_the_weights(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would end the process while it loads; it is refused with both sizes before, and just enough is not."""
    folder, deployment = tiny("bert", "fill-mask"), Deployment(name="x", task="fill-mask")
    size, libraries = survey(deployment, folder).weight_bytes, 10**9
    monkeypatch.setattr(host_memory, "held", lambda: libraries)
    monkeypatch.setattr(host_memory, "memory_limit", lambda: libraries + size - 1)
    with pytest.raises(OutOfMemory, match=r"libraries 1\.00 GB; the container may use 1\.00 GB") as told:
        load(deployment, folder)
    assert "GB or more" in told.value.hint
    monkeypatch.setattr(host_memory, "memory_limit", lambda: libraries + size)
    assert load(deployment, folder).model.num_parameters() > 0


@pytest.mark.parametrize(
    "told",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: error 12"),
        RuntimeError("unable to mmap 269060552 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
    ],
    ids=["python", "allocator", "mmap"],
)
def test_memory_that_ends_while_weights_load(told: Exception, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the allocator raises is no fault of the file: a limit on the process stands in no control group."""
    monkeypatch.setattr(transformers.AutoModelForMaskedLM, "from_pretrained", Mock(side_effect=told))
    with pytest.raises(OutOfMemory, match=r"as float32, and memory ran out") as refused:
        load(Deployment(name="x", task="fill-mask"), tiny("bert", "fill-mask"))
    assert "GB or more" in refused.value.hint


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "opt"])
def test_facts_are_known_before_the_weights_are_read(family: str, tiny: Tiny) -> None:
    folder, deployment = tiny(family, "text-generation"), Deployment(name="x", task="text-generation")
    told, model = survey(deployment, folder), load(deployment, folder).model
    assert told.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert told.weight_bytes == sum(parameter.numel() * 4 for parameter in model.parameters())
    assert told.kind == "decoder"


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LoadError, match="config cannot be read"):
        survey(Deployment(name="x", task="text-generation"), tmp_path)
