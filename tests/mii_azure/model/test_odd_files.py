"""What a model folder may hold instead of what it should: always a sentence that names the file, never a defect."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mii_azure.bundle.licences import model_licence
from mii_azure.errors import ConfigMissing, MiiAzureError, ModelError, WeightsCorrupt
from mii_azure.model.safetensors import read_header
from mii_azure.planning.planner import plan
from scoring.config import Deployment
from scoring.errors import LoadError
from scoring.strict_json.files import parse, read_object
from tests.mii_azure.model_folders import BERT, Folder

DEEP = "[" * 100_000 + "]" * 100_000
INDEX = "model.safetensors.index.json"


def planned(path: Path, task: str = "fill-mask") -> Any:
    return plan(task=task, model=str(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", 5),
        ("architectures", [5]),
        ("architectures", "BertForMaskedLM"),
        ("quantization_config", "x"),
        ("quantization_config", [1]),
        ("text_config", 5),
        ("text_config", ["hidden_size"]),
        ("model_type", 5),
        ("hidden_size", -8),
        ("hidden_size", 10**40),
        ("num_attention_heads", -2),
        ("vocab_size", 10**400),
        ("max_position_embeddings", 2**64),
    ],
)
def test_a_value_that_no_config_has(folder: Folder, key: str, value: object) -> None:
    with pytest.raises(ConfigMissing, match=key) as caught:
        planned(folder(BERT | {key: value}))
    assert "config.json" in caught.value.message and caught.value.hint


@pytest.mark.parametrize("key", ["architectures", "quantization_config", "text_config", "tie_word_embeddings"])
def test_null_is_nothing(folder: Folder, key: str) -> None:
    try:
        planned(folder(BERT | {key: None}))
    except ModelError as error:
        assert key == "architectures" and "names no architecture" in error.message


def test_infinity_is_taken_where_it_is_no_fact(folder: Folder) -> None:
    assert planned(folder(BERT | {"time_step_limit": [0.0, float("inf")]})).profile.layers == 2


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "modules.json", "1_Pooling__config.json", INDEX]
)
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (DEEP, "nested too deeply"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nested too deeply"),
        ('{"a": 1, "a": 2}', "says 'a' twice"),
        ('{"a": NaN}', "NaN"),
        ('\ufeff{"a": 1}', "byte order mark"),
        ('{"a": "\\ud800"}', "surrogate"),
        ("{", "cannot be read"),
        ("5", "not a JSON object|should be a list"),
        ('"x"', "not a JSON object|should be a list"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
    ],
    ids=range(10),
)
def test_json_that_is_none_names_its_file(folder: Folder, name: str, text: str, why: str) -> None:
    listed = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    listed.append({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    files = ({"modules.json": listed} if "Pooling" in name else {}) | {name: text}
    path = folder(BERT | {"architectures": ["BertModel"]}, weights=name != INDEX, **files)
    with pytest.raises(ModelError, match=why) as caught:
        planned(path, "sentence-embeddings")
    assert Path(name.replace("__", "/")).name in caught.value.message and caught.value.hint


@pytest.mark.parametrize("raw", [b"\xff{}", '{"a": 1}'.encode("utf-16"), '{"a": 1}'.encode("utf-16-le")])
def test_json_in_other_encodings(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(LoadError, match=r"config\.json cannot be read"):
        read_object(tmp_path / "config.json")


def test_json_without_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoring.strict_json.files.LARGEST_FILE", 1 << 20)
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(LoadError, match="more than 1 MiB"):
        read_object(tmp_path / "config.json")


def test_ordinary_json_is_read() -> None:
    value = {"a": [1, 2.5, -3, True, None, "ä\n😀"], "b": {"c": {}}}
    assert parse(json.dumps(value).encode()) == parse(json.dumps(value, ensure_ascii=False).encode()) == value


ONE: dict[str, Any] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def two(**second: Any) -> str:
    return json.dumps({"first": ONE, "second": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]} | second})


@pytest.mark.parametrize(
    ("header", "named"),
    [
        (two(shape=[-1, -2]), "second"),
        (two(shape=[-2]), "second"),
        (two(shape=[2**40, 2**40]), "second"),
        (two(shape=[2**64]), "second"),
        (two(shape=[True, 2]), "second"),
        (two(shape=[2.0]), "second"),
        (two(shape=["2"]), "second"),
        (two(shape=2), "second"),
        (two(shape=[1] * 100_000), "second"),
        (two(dtype="F31"), "second"),
        (two(dtype=5), "second"),
        (two(data_offsets=[4, 12]), "second"),
        (two(data_offsets=[0, 8]), "second"),
        (two(data_offsets=[12, 20]), "second"),
        (two(data_offsets=[16, 8]), "second"),
        (two(data_offsets=[-8, 0]), "second"),
        (two(data_offsets=[8]), "second"),
        (two(data_offsets=[8, 16, 24]), "second"),
        (two(data_offsets=["8", "16"]), "second"),
        (two(data_offsets=[8, 2**70]), "second"),
        (two(data_offsets=None), "second"),
        (f'{{"twice": {json.dumps(ONE)}, "twice": {json.dumps(ONE)}}}', "twice"),
        (json.dumps({"__metadata__": 5, "first": ONE}), "__metadata__"),
        (json.dumps({"__metadata__": {"format": 5}, "first": ONE}), "__metadata__"),
        (json.dumps({"deep": "@"}).replace('"@"', DEEP), "nested"),
    ],
    ids=range(25),
)
def test_a_header_that_cannot_be_names_its_tensor(tmp_path: Path, header: str, named: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(16))
    with pytest.raises(WeightsCorrupt, match=named) as caught:
        read_header(path)
    assert "model.safetensors" in caught.value.message


@pytest.mark.parametrize(
    "front",
    [
        "license: " + "[" * 5000,
        "license: &a [*a]",
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)) + "license: *a39",
        "license: !!timestamp x",
        "license: !!int ''",
        "license: {a: b}",
        "? [a]\n: b",
        "license: 5",
        "\n" * 300_000,
    ],
    ids=range(9),
)
def test_a_card_that_is_none_has_no_licence(folder: Folder, front: str) -> None:
    assert model_licence(folder(**{"README.md": f"---\n{front}\n---\n"})) is None


def test_a_card_has_a_licence(folder: Folder) -> None:
    assert model_licence(folder(**{"README.md": "---\nlicense: [mit, apache-2.0]\n---\n# x\n"})) == "mit OR apache-2.0"


Change = Callable[[dict[str, Any]], object]
_GOOD: dict[str, Any] = {"schema": 1, "name": "a", "task": "fill-mask", "model": {}, "limits": {}, "optimisation": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"limits": {"max_batch_tokens": "x"}},
        {"limits": {"queue_size": -1}},
        {"limits": {"queue_size": 10**400}},
        {"limits": {"request_timeout_s": 1e400}},
        {"limits": {"prefix_reuse": 1}},
        {"limits": {"speculation": "always"}},
        {"limits": {"speculation": ["off"]}},
        {"limits": 5},
        {"model": "x"},
        {"model": {"revision": 5}},
        {"optimisation": [1]},
        {"optimisation": {"on": 5}},
        {"optimisation": {"on": [5]}},
        {"task": ["x"]},
        {"name": None},
        {"trust_remote_code": "yes"},
        {"more": 1},
        {"schema": {}},
    ],
    ids=str,
)
def test_settings_of_other_types(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "deployment.json"
    path.write_text(json.dumps(_GOOD))
    Deployment.read(path)
    path.write_text(json.dumps(_GOOD | change))
    with pytest.raises(LoadError, match=r"deployment\.json"):
        Deployment.read(path)


@pytest.mark.parametrize("text", [DEEP, "[]", '"x"', "5", "null", "{"])
def test_settings_that_are_no_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "deployment.json").write_text(text)
    with pytest.raises(MiiAzureError, match=r"deployment\.json"):
        Deployment.read(tmp_path / "deployment.json")
