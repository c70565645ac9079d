"""A model's own Python code: refused without the flag, and with it only where it is pinned, copied and hashed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mii_azure
from mii_azure.bundle.manifest import load_manifest
from mii_azure.errors import RemoteCodeRefused
from mii_azure.model.remote_code import check_remote_code, needs_code
from mii_azure.model.resolved import Model
from mii_azure.model.safetensors import Weights

COMMIT = "c" * 40
GOOD = {"task": "question-answering", "deployment_name": "my-qa"}
CODE = """
from transformers import BertConfig, BertForQuestionAnswering

class OurConfig(BertConfig):
    model_type = "our-bert"

class OurBertForQuestionAnswering(BertForQuestionAnswering):
    config_class = OurConfig
"""


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    """A tiny BERT whose type only its own Python file knows."""
    folder = Path(shutil.copytree(tiny("bert", "question-answering"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "our-bert",
        "architectures": ["OurBertForQuestionAnswering"],
        "auto_map": {
            "AutoConfig": "ours.OurConfig",
            "AutoModelForQuestionAnswering": "ours.OurBertForQuestionAnswering",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "ours.py").write_text(CODE)
    return folder


def described(source: str = "hub", revision: str | None = COMMIT, **config: object) -> Model:
    fields = {"model_type": "our-bert", "auto_map": {"AutoModel": "ours.Ours"}} | config
    return Model("owner/ours", source, fields, Weights(0, 0, "float32"), revision=revision)  # type: ignore[arg-type]


def test_it_is_refused_with_the_flag_that_would_allow_it(model, tmp_path):
    with pytest.raises(RemoteCodeRefused, match=r"auto_map in config\.json names ours\.OurConfig") as caught:
        mii_azure.generate(**GOOD, model=str(model), output=tmp_path / "b")
    assert "--trust-remote-code" in caught.value.hint
    assert not (tmp_path / "b").exists()


def test_with_the_flag_its_files_are_copied_hashed_and_loaded(model, tmp_path):
    bundle = mii_azure.generate(**GOOD, model=str(model), output=tmp_path / "b", trust_remote_code=True)
    assert "model/ours.py" in load_manifest(bundle)["files"]
    assert json.loads((bundle / "code/deployment.json").read_text())["trust_remote_code"] is True
    code = (
        "import json, sys, pathlib\n"
        "from local_runner.bundle.manifest import enter\n"
        "bundle = pathlib.Path(sys.argv[1]); enter(bundle)\n"
        "from scoring.config import Deployment\n"
        "from scoring.model.loader import load\n"
        "loaded = load(Deployment.read(bundle / 'code/deployment.json'), bundle / 'model')\n"
        "print(type(loaded.model).__name__, type(loaded.model).__module__.startswith('transformers_modules'))\n"
    )
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(bundle)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["OurBertForQuestionAnswering", "True"]


def test_the_loader_runs_no_code_that_the_settings_do_not_allow(model, tmp_path):
    from scoring.config import Deployment
    from scoring.errors import LoadError
    from scoring.model.loader import load

    with pytest.raises(LoadError):
        load(Deployment("my-qa", "question-answering"), model)


@pytest.mark.parametrize("revision", [None, "main", "c" * 39])
def test_a_hub_model_needs_a_commit(revision):
    with pytest.raises(RemoteCodeRefused, match="needs the commit") as caught:
        check_remote_code(described(), revision, trust=True)
    assert COMMIT in caught.value.hint


def test_a_hub_model_at_a_commit_is_allowed():
    check_remote_code(described(), COMMIT, trust=True)
    with pytest.raises(RemoteCodeRefused):
        check_remote_code(described(), COMMIT, trust=False)


@pytest.mark.parametrize("value", ["other/repo--ours.Ours", [None, "other/repo--ours.Ours"]])
def test_code_of_another_repository_is_refused(value):
    with pytest.raises(RemoteCodeRefused, match="another repository: other/repo"):
        check_remote_code(described(auto_map={"AutoTokenizer": value}), COMMIT, trust=True)


def test_the_flag_is_refused_where_there_is_no_code():
    with pytest.raises(RemoteCodeRefused, match="no code of its own"):
        check_remote_code(described(auto_map=None), COMMIT, trust=True)


def test_a_model_that_transformers_knows_needs_no_code_of_its_own():
    falcon = described(model_type="falcon")
    assert not needs_code(falcon.config)
    check_remote_code(falcon, None, trust=False)
    assert needs_code(described().config)


FOREIGN = "other/repo--ours.OurTokenizer"
PLACES = {
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [FOREIGN, None]}},
    "processor_config.json": {"auto_map": {"AutoProcessor": FOREIGN}},
    "preprocessor_config.json": {"auto_map": {"AutoImageProcessor": FOREIGN}},
    "generation_config.json": {"deep": [{"auto_map": [[{"a": [FOREIGN]}]]}]},
    "1_Pooling/config.json": {"auto_map": FOREIGN},
    "sub/folder/config.json": {"auto_map": {"AutoConfig": FOREIGN}},
}


@pytest.mark.parametrize("file", PLACES)
def test_foreign_code_is_refused_in_every_file_that_may_name_it(model, tmp_path, file):
    known = json.loads((model / file).read_text()) if (model / file).is_file() else {}
    (model / file).parent.mkdir(parents=True, exist_ok=True)
    (model / file).write_text(json.dumps(known | PLACES[file]))
    with pytest.raises(RemoteCodeRefused, match="another repository: other/repo") as caught:
        mii_azure.generate(**GOOD, model=str(model), output=tmp_path / "b", trust_remote_code=True)
    assert file in caught.value.message
    assert not (tmp_path / "b").exists()


def test_a_name_that_stands_twice_is_read_twice(model, tmp_path):
    told = f'"auto_map": {{"AutoTokenizer": "{FOREIGN}"}}, "auto_map": {{"AutoTokenizer": "ours.OurConfig"}}}}'
    (model / "processor_config.json").write_text("{" + told)
    with pytest.raises(RemoteCodeRefused, match="other/repo"):
        mii_azure.generate(**GOOD, model=str(model), output=tmp_path / "b", trust_remote_code=True)


@pytest.mark.parametrize(
    "name",
    ["absent.Ours", "../ours.Ours", "/etc/ours.Ours", "ours", "ours.", ".Ours", "a.b.Ours", "sub/ours.Ours", "5.5"],
)
def test_the_code_lies_in_the_folder(model, tmp_path, name):
    (model / "sub").mkdir()
    for place in (model / "sub", model.parent):
        (place / "ours.py").write_text(CODE)
    (model / "processor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": name}}))
    with pytest.raises(RemoteCodeRefused, match="does not lie in the model's folder"):
        mii_azure.generate(**GOOD, model=str(model), output=tmp_path / "b", trust_remote_code=True)


def test_words_of_a_vocabulary_are_no_names(model, tmp_path):
    (model / "vocab.json").write_text(json.dumps({"auto_map": 5, "a--b": 6}))
    assert mii_azure.generate(**GOOD, model=str(model), output=tmp_path / "b", trust_remote_code=True)


def test_code_that_only_the_tokenizer_names_is_code(model):
    config = json.loads((model / "config.json").read_text())
    del config["auto_map"]
    (model / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    (model / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["ours.OurConfig", None]}}))
    from mii_azure.model.source import resolve

    check_remote_code(resolve(str(model)), None, trust=True)
    (model / "tokenizer_config.json").write_text("{}")
    with pytest.raises(RemoteCodeRefused, match="no code of its own"):
        check_remote_code(resolve(str(model)), None, trust=True)


def test_a_hub_models_tokenizer_is_looked_at_before_anything_is_downloaded():
    from dataclasses import replace

    told = replace(described(), settings={"tokenizer_config.json": {"auto_map": {"AutoTokenizer": [FOREIGN, None]}}})
    with pytest.raises(RemoteCodeRefused, match="other/repo"):
        check_remote_code(told, COMMIT, trust=True)


@pytest.mark.parametrize("how", ["survey", "load"])
def test_the_loader_runs_no_foreign_code(model, tmp_path, monkeypatch, how):
    """Not even what lies in the hub client's cache, where no network is needed to run it."""
    from scoring.config import Deployment
    from scoring.errors import LoadError
    from scoring.model import loader

    known = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(known | {"auto_map": {"AutoTokenizer": [FOREIGN, None]}}))
    with pytest.raises(LoadError, match="another repository: other/repo"):
        getattr(loader, how)(Deployment("my-qa", "question-answering", trust_remote_code=True), model)


def test_no_variable_lets_the_scoring_script_ask_the_hub(tmp_path, make_bundle):
    bundle = make_bundle()
    code = (
        "import os, sys, pathlib\n"
        "from local_runner.bundle.manifest import enter\n"
        "enter(pathlib.Path(sys.argv[1]))\n"
        "from scoring import entry\n"
        "entry.init()\n"
        "from huggingface_hub import constants\n"
        "print(constants.HF_HUB_OFFLINE)\n"
    )
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(bundle)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.stdout.split()[-1:] == ["True"], done.stderr
