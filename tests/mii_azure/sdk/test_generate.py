"""The verb generate: what it refuses leaves nothing behind, and where it runs leaves no trace in what it writes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import mii_azure
from mii_azure import errors
from mii_azure.bundle.manifest import load_manifest
from mii_azure.bundle.writer import write
from scoring.errors import MiiAzureError

GOOD = {"task": "question-answering", "deployment_name": "my-qa"}


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    """A model of the test's own, to damage."""
    return Path(shutil.copytree(tiny("bert", "question-answering"), tmp_path / "model"))


def pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def truncated(model: Path) -> None:
    path = model / "model.safetensors"
    with path.open("rb+") as stream:
        stream.truncate(path.stat().st_size // 2)


def headless(model: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (model / "config.json").write_text(json.dumps(config))


#: What is wrong: damage to the model, arguments, and the error.
REFUSED: dict[str, tuple[Callable[[Path], None] | None, dict[str, object], type[MiiAzureError]]] = {
    "an unknown task": (None, {"task": "question-answerin"}, errors.UnknownTask),
    "a name with an underscore": (None, {"deployment_name": "my_qa"}, errors.InvalidName),
    "a name of one character": (None, {"deployment_name": "q"}, errors.InvalidName),
    "an unknown instance type": (None, {"instance_type": "Standard-NC4as-T4-v3"}, errors.UnknownInstanceType),
    "an unknown authentication": (None, {"auth_mode": "password"}, errors.SpecError),
    "no instances": (None, {"instance_count": 0}, errors.SpecError),
    "an unknown preference": (None, {"colour": "red"}, errors.SpecError),
    "no such folder": (shutil.rmtree, {}, errors.UnknownModel),
    "no config": (lambda model: (model / "config.json").unlink(), {}, errors.ConfigMissing),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), {}, errors.WeightsMissing),
    "pickle only": (pickled, {}, errors.PickleRefused),
    "half of the weights": (truncated, {}, errors.WeightsCorrupt),
    "a model for another task": (headless, {}, errors.TaskUnsupported),
    "a language of a task that has none": (None, {"tgt_lang": "de"}, errors.SpecError),
    "a reference without an instance type": (None, {"model": "azureml:bert:1"}, errors.SpecError),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_leaves_nothing_behind(model, tmp_path, what):
    damage, arguments, error = REFUSED[what]
    if damage:
        damage(model)
    fields = {**GOOD, "model": str(model), **arguments}
    with pytest.raises(error) as caught:
        mii_azure.generate(**fields, output=tmp_path / "out" / "bundle")
    assert caught.value.hint, "every error has a remedy"
    assert not (tmp_path / "out").exists()


def test_an_existing_bundle_is_refused_before_the_model_is_looked_at(make_bundle):
    bundle = make_bundle()
    with pytest.raises(errors.BundleExists):
        mii_azure.generate(**GOOD, model="/absent", output=bundle)


def test_pickle_is_copied_when_asked_for(model, tmp_path):
    pickled(model)
    bundle = mii_azure.generate(**GOOD, model=str(model), output=tmp_path / "b", allow_pickle=True)
    assert (bundle / "model/pytorch_model.bin").is_file()
    assert json.loads((bundle / "code/deployment.json").read_text())["allow_pickle"] is True


def test_where_the_model_lies_does_not_show(model, tmp_path, monkeypatch):
    elsewhere = Path(shutil.copytree(model, tmp_path / "a" / "deep" / "place" / "model"))
    monkeypatch.chdir(elsewhere)
    bundles = [
        mii_azure.generate(**GOOD, model=name, output=tmp_path / f"bundle{number}")
        for number, name in enumerate([str(model), str(elsewhere), ".", f"{elsewhere}/"])
    ]
    assert len({load_manifest(bundle)["bundle"] for bundle in bundles}) == 1


def test_without_an_output_the_bundle_has_the_deployments_name(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mii_azure.generate(**GOOD, model=str(model)) == tmp_path / "my-qa"


def test_a_name_too_short_for_azure_is_kept_here_and_lengthened_there(model, tmp_path):
    bundle = mii_azure.generate("question-answering", str(model), "qa", output=tmp_path / "b")
    assert json.loads((bundle / "code/deployment.json").read_text())["name"] == "qa"
    assert yaml.safe_load((bundle / "endpoint.yml").read_text())["name"] == "qa-endpoint"
    assert mii_azure.check(bundle) == []


def test_only_what_serves_is_copied(model, tmp_path):
    for name in ("optimizer.pt", "training_args.bin", "flax_model.msgpack", "modeling_evil.py", ".env", "notes.docx"):
        (model / name).write_text("no")
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_text("no")
    bundle = mii_azure.generate(**GOOD, model=str(model), output=tmp_path / "b")
    copied = {path.relative_to(bundle / "model").as_posix() for path in (bundle / "model").rglob("*")}
    assert copied == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_a_bundle_can_be_made_again_from_its_own_model(make_bundle):
    bundle = make_bundle()
    before = load_manifest(bundle)["files"]["model/model.safetensors"]
    mii_azure.generate(**GOOD, model=str(bundle / "model"), output=bundle, force=True)
    assert load_manifest(bundle)["files"]["model/model.safetensors"] == before


def test_generation_imports_nothing_heavy_and_stays_off_the_network(model, tmp_path):
    code = (
        "import socket, sys, mii_azure\n"
        "socket.socket = None\n"
        f"mii_azure.generate('question-answering', {str(model)!r}, 'my-qa', output={str(tmp_path / 'b')!r})\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"HOME": "/"})
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "transformers", "deepspeed", "azure", "grpc", "huggingface_hub", "fastapi"}


def test_a_bundle_may_be_written_without_weights(tmp_path):
    bundle = write(tmp_path / "b", render_files=lambda hashes: {"code/score.py": "x"}, weights={})
    assert "code/score.py" in load_manifest(bundle)["files"]


@pytest.mark.parametrize("told", [{"src_lang": "en", "tgt_lang": "fr"}, {"tgt_lang": "ro"}, {}], ids=str)
def test_languages_reach_the_scoring_script(told: dict[str, str], tiny, tmp_path) -> None:
    source = tiny("t5", "translation")
    folder = mii_azure.generate("translation", str(source), "translate", output=tmp_path / "bundle", **told)
    deployment = json.loads((folder / "code" / "deployment.json").read_text(encoding="utf-8"))
    assert deployment["task_options"] == told


@pytest.mark.parametrize(
    ("told", "refused"), [("a b", "is no name of a model"), ("x" * 129, "is no name"), (["a"] * 33, "32")]
)
def test_names_that_no_client_could_send_are_refused(told: object, refused: str, tiny, tmp_path) -> None:
    from mii_azure.errors import SpecError

    with pytest.raises(SpecError, match=refused):
        mii_azure.generate("fill-mask", "m", "mask", output=tmp_path / "bundle", served_name=told)


def test_languages_are_flags_with_environment_twins(tiny, tmp_path) -> None:
    from typer.testing import CliRunner

    from mii_azure.cli.app import app

    arguments = ["generate", "--task", "translation", "--model", str(tiny("t5", "translation")), "--name", "translate"]
    arguments += ["--output", str(tmp_path / "bundle"), "--src-lang", "en"]
    done = CliRunner().invoke(app, arguments, env={"MII_AZURE_TGT_LANG": "fr"})
    assert done.exit_code == 0, done.output
    deployment = json.loads((tmp_path / "bundle" / "code" / "deployment.json").read_text(encoding="utf-8"))
    assert deployment["task_options"] == {"src_lang": "en", "tgt_lang": "fr"}


def test_the_scoring_script_reads_what_was_asked_of_memory(tiny, tmp_path) -> None:
    from scoring.config import Deployment

    asked = {"context_length": 64, "max_concurrency": 3}
    for name, sku, more in (("cpu", "Standard_F8s_v2", {}), ("gpu", "Standard_NC40ads_H100_v5", {"memory_share": 0.5})):
        model = str(tiny("llama", "text-generation"))
        folder = mii_azure.generate(
            "text-generation", model, name, output=tmp_path / name, instance_type=sku, **asked, **more
        )
        told = Deployment.read(folder / "code" / "deployment.json").limits
        assert told.context_length == 64
        assert (told.slots if more else told.max_batch_size) == 3
        assert bool(told.kv_cache_tokens) == bool(more)
        assert told.memory_share == more.get("memory_share", 0.0)
        assert "max_concurrent_requests_per_instance: 3\n" in (folder / "deployment.yml").read_text(encoding="utf-8")
        assert ("| 64 tokens | 3 |" in (folder / "plan.md").read_text(encoding="utf-8")) == bool(more)
