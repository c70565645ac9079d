"""Odd files in model folders and bundles, read by the verbs that read them: never a defect, never a traceback."""

import contextlib
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import save_file

import mii_azure
from mii_azure.bundle.manifest import make_manifest, walk
from mii_azure.cli.app import main
from tests.mii_azure.model_folders import BERT, LLAMA, tensors
from tests.scenarios.fuzz.conftest import Tally, sizes
from tests.scenarios.fuzz.odd_json import broken

DEFECT = 70
README = "---\nlicense: apache-2.0\ntags: [a, b]\n---\n# A model\n"


#: Aliases of aliases: 2**24 values once it is written out.
_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 24)) + "license: *a23"


class Edit(NamedTuple):
    """One file of a folder, written anew."""

    file: str
    content: bytes


class Said(NamedTuple):
    """What a verb ended with."""

    code: int
    text: str


def run(*arguments: str | Path) -> Said:
    """A verb of the command line, in this process."""
    told = io.StringIO()
    before, sys.argv = sys.argv, ["mii-azure", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            main()
    except SystemExit as end:
        return Said(int(end.code or 0), told.getvalue())
    finally:
        sys.argv = before
    return Said(0, told.getvalue())


def sound(said: Said, sent: object) -> None:
    """Done, findings or a sentence; and nothing that a terminal would obey."""
    assert said.code != DEFECT, (said.text, sent)
    assert "Traceback" not in said.text, (said.text, sent)
    assert "\x1b" not in said.text, (said.text, sent)


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By task: a decoder in shards with a text_config, an encoder with sentence-transformers' files, int8 weights."""
    base = tmp_path_factory.mktemp("models")
    tokenizer = {"tokenizer_config.json": {"model_max_length": 64, "chat_template": "x"}, "tokenizer.json": {"a": 1}}
    shared = tokenizer | {"README.md": README, "generation_config.json": {"eos_token_id": 1}}
    decoder = write(base / "decoder", **shared, **{"config.json": LLAMA | {"text_config": LLAMA, "dtype": "float32"}})
    shard = "model-00001-of-00001.safetensors"
    save_file(tensors(), decoder / shard)
    write(decoder, **{"model.safetensors.index.json": {"metadata": {}, "weight_map": dict.fromkeys(tensors(), shard)}})
    modules = [
        {"idx": n, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))
    ]
    encoder = write(
        base / "encoder",
        **shared,
        **{
            "config.json": BERT | {"architectures": ["BertModel"]},
            "modules.json": modules,
            "sentence_bert_config.json": {"max_seq_length": 64},
            "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 8},
        },
    )
    save_file({"embeddings.word_embeddings.weight": np.ones((30, 8), np.float32)}, encoder / "model.safetensors")
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    shipped = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }
    packed = write(
        base / "packed", **shared, **{"config.json": BERT | {"quantization_config": shipped, "dtype": "float16"}}
    )
    save_file(
        {
            "a.weight_packed": np.ones((8, 2), np.int32),
            "a.weight_scale": np.ones((8, 1), np.float32),
            "a.weight_shape": np.array([8, 8], np.int64),
        },
        packed / "model.safetensors",
    )
    return {"text-generation": decoder, "sentence-embeddings": encoder, "fill-mask": packed}


def edits(folder: Path) -> st.SearchStrategy[Edit]:
    """A change to one of the folder's JSON files, card or header."""
    names = [
        path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.json")) if path.name != "tokenizer.json"
    ]
    found = [st.builds(Edit, st.just(name), broken((folder / name).read_text())) for name in names]
    found += [st.builds(Edit, st.just(path.name), _headers(path)) for path in sorted(folder.glob("*.safetensors"))]
    return st.one_of(*found, st.builds(Edit, st.just("README.md"), _cards()))


def _headers(path: Path) -> st.SearchStrategy[bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, rest = raw[8 : 8 + length].decode(), raw[8 + length :]
    return broken(header).map(lambda told: len(told).to_bytes(8, "little") + told + rest)


def _cards() -> st.SearchStrategy[bytes]:
    front = st.sampled_from(
        [
            "license: " + "[" * 5000,
            "license: &a [*a]",
            _BOMB,
            "license: 2020-99-99",
            "license: !!timestamp x",
            "license: !!int ''",
            "license: {a: b}",
            "? {a: b}\n: c",
            "license: '\\x1b[2J'",
            "license: \x1b[2J",
            "license: [1, null, MIT]",
            "\n" * 100_000,
        ]
    )
    return front.map(lambda text: f"---\n{text}\n---\n".encode())


@sizes(30, 400)
def test_model_folders(models: dict[str, Path], tally: Tally, tmp_path: Path, count: int) -> None:
    def check(sent: tuple[str, Edit]) -> None:
        task, edit = sent
        folder, bundle = tmp_path / "model", tmp_path / "bundle"
        for old in (folder, bundle):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(models[task], folder)
        (folder / edit.file).write_bytes(edit.content)
        sound(run("plan", "--task", task, "--model", folder), sent)
        sound(run("generate", "--task", task, "--model", folder, "--name", "my-model", "--output", bundle), sent)

    tally.run(
        "model folders",
        count,
        st.sampled_from(sorted(models)).flatmap(lambda t: st.tuples(st.just(t), edits(models[t]))),
        check,
    )


@pytest.fixture(scope="module")
def written(tiny: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "bundle"
    return mii_azure.generate("question-answering", str(tiny("bert", "question-answering")), "my-qa", output=folder)


@sizes(6, 100)
def test_bundles(written: Path, tally: Tally, tmp_path: Path, count: int) -> None:
    """Half of them with a manifest that agrees, as somebody writes who hides an edit."""
    names = [
        path.relative_to(written).as_posix()
        for path in sorted(written.rglob("*.json"))
        if path.name != "tokenizer.json"
    ]

    def check(sent: tuple[Edit, bool]) -> None:
        edit, resealed = sent
        bundle = tmp_path / "bundle"
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.copytree(written, bundle)
        (bundle / edit.file).write_bytes(edit.content)
        if resealed and edit.file != "manifest.json":
            paths = [path for path in walk(bundle) if path != "manifest.json"]
            hashes = {path: hashlib.sha256((bundle / path).read_bytes()).hexdigest() for path in paths}
            (bundle / "manifest.json").write_text(json.dumps(make_manifest(hashes)))
        for verb in ("check", "verify"):
            sound(run(verb, bundle), sent)
        sound(run("diff", written, bundle), sent)

    one = st.one_of(*(st.builds(Edit, st.just(name), broken((written / name).read_text())) for name in names))
    tally.run("bundles", count, st.tuples(one, st.booleans()), check)
