"""Vectors of sentence-transformers folders: against the documented arithmetic, and against the package where it is."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from scoring.config import Deployment, Limits
from scoring.errors import LoadError
from scoring.model.loader import load
from tests.conftest import Tiny
from tests.scoring.conftest import Serve
from tests.sentence_folders import HIDDEN, MODES, NORMALIZE, PROMPTS, TYPES, Reference, dense, sentence_folder

TASK = "sentence-embeddings"
TEXTS = ["Paris", "Anna lives in Zürich with her brother Paul and an OLD grey cat.", "The river Aare runs. " * 12]
LAYER_NORM = {"type": f"{TYPES}.LayerNorm", "config": {"dimension": HIDDEN}}
ASKED = {"prompts": PROMPTS, "default_prompt_name": "query"}
#: Folders by name: family, then what `sentence_folder` takes.
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{mode: ("bert", {"pooling": mode}) for mode in MODES},
    "several": ("bert", {"pooling": ["weightedmean", "cls", "max"]}),
    "booleans": ("bert", {"pooling": {"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}}),
    "dense": ("bert", {"layers": [dense(HIDDEN, 24), dense(24, 40, "torch.nn.GELU", bias=False), NORMALIZE]}),
    "residual": (
        "bert",
        {"layers": [dense(HIDDEN, 24, use_residual=True), NORMALIZE, dense(24, 24, use_residual=True)]},
    ),
    "pickled": ("bert", {"layers": [dense(HIDDEN, 24)], "pickle": True}),
    "layer norm": ("bert", {"layers": [LAYER_NORM, NORMALIZE]}),
    "short": ("roberta", {"max_seq_length": 24}),
    "lower": ("distilbert", {"do_lower_case": True}),
    "nested": ("bert", {"path": "0_Transformer", "max_seq_length": 40, "layers": [NORMALIZE]}),
    "prompted": ("bert", {"prompts": ASKED, "layers": [NORMALIZE]}),
    "prompt left out": (
        "bert",
        {"prompts": ASKED, "pooling": {"pooling_mode": ["weightedmean", "cls"], "include_prompt": False}},
    ),
    "qwen3": ("qwen3", {"pooling": "lasttoken", "prompts": ASKED, "layers": [NORMALIZE]}),
    "mistral": ("mistral", {"pooling": "lasttoken", "max_seq_length": 96, "layers": [NORMALIZE]}),
    "gemma": (
        "gemma3_text",
        {
            "layers": [
                dense(HIDDEN, 64, "torch.nn.modules.linear.Identity"),
                dense(64, HIDDEN, "torch.nn.modules.linear.Identity"),
                NORMALIZE,
            ]
        },
    ),
}
BASE = {"qwen3": "text-generation", "mistral": "text-generation", "gemma3_text": "text-generation"}

#: What the published embedders of a family set in config.json and in their tokenizer.
CHANGED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3": ({}, {"padding_side": "left"}),
    "mistral": ({}, {"pad_token": "</s>", "add_eos_token": True, "padding_side": "left"}),
    "gemma3_text": ({"use_bidirectional_attention": True}, {}),
}

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            family, options = FOLDERS[name]
            made[name] = sentence_folder(
                tiny(family, BASE.get(family, TASK)), tmp_path_factory.mktemp("sentence") / "model", **options
            )
            if family in CHANGED:
                _change(made[name], *CHANGED[family])
        return made[name]

    return folder


def _change(folder: Path, config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    AutoTokenizer.from_pretrained(folder, **tokenizer).save_pretrained(folder)


def cosine(one: Any, other: Any) -> float:
    return float(torch.cosine_similarity(torch.tensor(one).double(), torch.as_tensor(other).double(), dim=0))


def same(found: Any, wanted: Any) -> None:
    wanted = torch.as_tensor(wanted)
    assert len(found) == len(wanted)
    assert cosine(found, wanted) > 0.99999
    assert torch.tensor(found).norm() == pytest.approx(float(wanted.norm()), rel=1e-4)


@pytest.mark.parametrize("name", FOLDERS)
def test_vectors_are_those_of_the_folders_modules(name: str, folders: Folders, serve: Serve) -> None:
    """Every pooling, Dense, LayerNorm, Normalize, prompts, length and layout; batched as alone."""
    if name == "pickled":
        return
    reference, served = Reference(folders(name)), serve(folders(name), TASK)
    together = served.ok(TEXTS, truncation=True)
    for text, vector in zip(TEXTS, together, strict=True):
        same(vector, reference.encode(text))
        same(served.ok(text, truncation=True), vector)


@pytest.mark.filterwarnings("ignore")
def test_the_reference_is_sentence_transformers(folders: Folders) -> None:
    package = pytest.importorskip("sentence_transformers", reason="needs the extra `reference`")
    for name in FOLDERS:
        theirs, ours = package.SentenceTransformer(str(folders(name)), device="cpu"), Reference(folders(name))
        for text, vector in zip(TEXTS, theirs.encode(TEXTS), strict=True):
            same(ours.encode(text).tolist(), vector)
        for prompt in ("A question: ", ""):
            same(ours.encode(TEXTS[1], prompt).tolist(), theirs.encode(TEXTS[1], prompt=prompt))


def test_weights_in_a_pickle_are_read_only_where_that_is_allowed(folders: Folders) -> None:
    with pytest.raises(LoadError, match="pickle only"):
        load(Deployment("x", TASK), folders("pickled"))
    head = load(Deployment("x", TASK, allow_pickle=True), folders("pickled")).head
    assert head and head.dimension == 24


def test_truncation_is_told(folders: Folders, serve: Serve) -> None:
    """By the header and in the usage; past the folder's own length, which is below the model's."""
    served = serve(folders("short"), TASK)
    assert "the model takes 24" in served.refused(TEXTS[2])["message"]
    body = {"inputs": [TEXTS[0], TEXTS[2]], "truncate": True, "options": {"usage": True}}
    reply = served.service.answer(json.dumps(body))
    assert reply.headers == {"X-Truncated-Inputs": "1"}
    assert isinstance(reply.body, bytes)
    used = json.loads(reply.body)["usage"]
    tokens = served({"inputs": TEXTS[0], "options": {"usage": True}})[1]["usage"]["prompt_tokens"]
    assert used == {"prompt_tokens": 24 + tokens, "truncated": [1]}
    assert served.service.answer(json.dumps(body | {"inputs": TEXTS[0]})).headers == {}
    left = served.ok(TEXTS[2], truncation=True, truncation_direction="left")
    assert cosine(left, served.ok(TEXTS[2], truncation=True)) < 0.9999
    assert served({"inputs": TEXTS[2], "truncate": True, "truncation_direction": "Left"}) == (200, left)


def test_prompts_of_a_request(folders: Folders, serve: Serve) -> None:
    served, reference = serve(folders("prompted"), TASK), Reference(folders("prompted"))
    same(served.ok(TEXTS[1], prompt_name="passage"), reference.encode(TEXTS[1], PROMPTS["passage"]))
    same(served.ok(TEXTS[1], prompt="Other: "), reference.encode(TEXTS[1], "Other: "))
    same(served.ok(TEXTS[1], prompt=""), reference.encode(TEXTS[1], ""))
    error = served.refused("a", prompt_name="title")
    assert (error["code"], error["hint"]) == ("invalid_parameter", "It has 'passage', 'query'.")
    assert "both" in served.refused("a", prompt_name="query", prompt="x")["message"]
    assert "none" in serve(folders("mean"), TASK).refused("a", prompt_name="query")["hint"]


def test_normalize_and_dimensions(folders: Folders, serve: Serve) -> None:
    for name in ("dense", "prompted"):
        served, plain = serve(folders(name), TASK), torch.tensor(serve(folders(name), TASK).ok("Paris"))
        assert plain.norm() == pytest.approx(1, abs=1e-5)
        raw = torch.tensor(served.ok("Paris", normalize=False))
        assert raw.norm() != pytest.approx(1, abs=1e-2)
        same(served.ok("Paris", dimensions=7), torch.nn.functional.normalize(raw[:7], dim=0))
        same(served.ok("Paris", dimensions=7, normalize=False), raw[:7])
        size = len(plain)
        assert f"1 to {size}" in served.refused("Paris", dimensions=size + 1)["hint"]


def test_a_pooling_of_the_request_leaves_the_folders_modules_out(folders: Folders, serve: Serve) -> None:
    served = serve(folders("dense"), TASK)
    same(served.ok("Paris", pooling="model", normalize=False), served.ok("Paris", normalize=False))
    same(served.ok("Paris", pooling="cls", normalize=False), Reference(folders("cls")).encode("Paris"))
    features = serve(folders("dense"), "feature-extraction")
    assert len(features.ok("Paris")[0][0]) == HIDDEN
    same(features.ok("Paris", pooling="model"), served.ok("Paris"))


def test_base64_holds_the_same_numbers(folders: Folders, serve: Serve) -> None:
    served = serve(folders("dense"), TASK)
    for text, encoded in zip(TEXTS[:2], served.ok(TEXTS[:2], encoding_format="base64"), strict=True):
        numbers = torch.frombuffer(bytearray(base64.b64decode(encoded)), dtype=torch.float32)
        assert (
            torch.equal(numbers, torch.tensor(served.ok(text))) or cosine(numbers.tolist(), served.ok(text)) > 0.99999
        )
    assert served.refused("a", encoding_format="base64", pooling="none")["where"] == "parameters.encoding_format"


def test_token_ids_are_the_whole_text(folders: Folders, serve: Serve) -> None:
    served = serve(folders("prompted"), TASK)
    tokenizer = AutoTokenizer.from_pretrained(folders("prompted"))
    ids = [tokenizer(text)["input_ids"] for text in TEXTS[:2]]
    wanted = served.ok(TEXTS[:2], prompt="")
    same(served.ok(ids[0]), wanted[0])
    for found, vector in zip(served.ok(ids), wanted, strict=True):
        same(found, vector)
    assert served.refused([[len(tokenizer)]])["where"] == "inputs[0]"
    assert served.refused([ids[0]], prompt="x")["code"] == "invalid_parameter"
    assert served.refused([[5] * 400])["code"] == "prompt_too_long"
    same(served.ok([5] * 400, truncation=True), served.ok([5] * 128))


def test_two_thousand_inputs_pass_a_queue_of_few_in_parts(folders: Folders, serve: Serve) -> None:
    served = serve(folders("mean"), TASK, Limits(queue_size=300, max_batch_size=256))
    vectors = served.ok(["a", "b"] * 1024)
    assert len(vectors) == 2048
    same(vectors[2047], vectors[1])
    assert "2,048" in served.refused(["a"] * 2049)["message"]


BAD: list[dict[str, Any]] = [
    *({name: value} for name in ("normalize", "truncate") for value in (1, "true", [], {})),
    *({name: value} for name in ("prompt", "prompt_name") for value in (1, [], {}, True, "x" * 70_000)),
    *({"dimensions": value} for value in (0, -1, 1.5, "8", True, 2**40, [], {})),
    *({"encoding_format": value} for value in ("", "hex", None, 1, [])),
    *({"truncation_direction": value} for value in ("", "up", 1, [])),
    *({"pooling": value} for value in ("", "median", ["mean"], 1)),
    {"prompt_name": ""},
]


@pytest.mark.parametrize("fields", BAD, ids=lambda fields: str(fields)[:40])
def test_bad_fields_are_refused_wherever_they_stand(fields: dict[str, Any], folders: Folders, serve: Serve) -> None:
    served = serve(folders("mean"), TASK)
    for body in ({"inputs": "a", **fields}, {"inputs": "a", "parameters": fields}):
        status, answer = served(body)
        assert (status, answer["error"]["code"]) == (400, "invalid_parameter"), answer
        assert answer["error"]["message"] and next(iter(fields)) in answer["error"]["where"]


@pytest.mark.parametrize(
    "inputs", [[[]], [1.5], [True], [-1], [[1, "a"]], [[1], 2], [[2**40]], [None], {}, [[[1]]]], ids=str
)
def test_bad_token_ids(inputs: Any, folders: Folders, serve: Serve) -> None:
    assert serve(folders("mean"), TASK).refused(inputs)["code"] == "invalid_input"


def test_null_is_as_good_as_left_out(folders: Folders, serve: Serve) -> None:
    served = serve(folders("mean"), TASK)
    names = ("normalize", "truncate", "truncation_direction", "prompt", "prompt_name", "dimensions", "pooling")
    assert served({"inputs": "a", **dict.fromkeys(names)}) == (200, served.ok("a"))
    twice = {"inputs": "a", "normalize": True, "parameters": {"normalize": True}}
    assert served(twice)[1]["error"]["where"] == "normalize"


def test_what_no_module_can_do_is_refused_at_the_start(tiny: Tiny, tmp_path: Path) -> None:
    folder = sentence_folder(tiny("bert", TASK), tmp_path / "m", layers=[dense(16, 8)])
    with pytest.raises(LoadError, match="takes vectors of 16 numbers and gets 32"):
        load(Deployment("x", TASK), folder)
    shutil.rmtree(folder / "2_Dense")
    with pytest.raises(LoadError, match="in_features"):
        load(Deployment("x", TASK), folder)
