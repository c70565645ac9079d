"""The examples do what they say, as far as a machine without Docker and Azure can tell."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import mii_azure
from mii_azure.cli.app import app
from scoring.config import find_model_dir

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Tiny = Callable[[str, str], Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MII_AZURE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("forked")
def test_the_notebook_runs(folder: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model").symlink_to(tiny("llama", "conversational"))
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    told: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "cell", "exec"), told)
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert told["verdict"].agree  # type: ignore[attr-defined]
    assert (folder / "chat" / "manifest.json").is_file()
    assert not (folder / "home" / "chat-here").exists()


def test_the_pipeline_is_one_that_azure_ml_reads(folder: Path) -> None:
    shutil.copy(EXAMPLES / "pipeline.yml", folder)
    (folder / "model").mkdir()
    done = CliRunner().invoke(app, ["component", "--output", "component"])
    assert done.exit_code == 0, done.output
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of marshmallow, which azure-ai-ml uses
        from azure.ai.ml import load_job

        job = load_job(folder / "pipeline.yml")
        assert job._validate().passed, job._validate()
    step = job.jobs["deploy"]
    component = yaml.safe_load((folder / "component" / "component.yml").read_text(encoding="utf-8"))
    assert set(step.inputs) == set(component["inputs"])


def test_the_compose_file_serves_a_bundle_as_its_image_wants_it(
    folder: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = EXAMPLES / "compose.yml"
    check = [str(Path(sys.executable).parent / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", file]
    valid = subprocess.run(check, capture_output=True, text=True, check=False)
    assert valid.returncode == 0, valid.stdout
    model = tiny("roberta", "text-classification")
    mii_azure.generate("text-classification", str(model), "sentiment", output="bundle", server="http")
    service = yaml.safe_load(file.read_text(encoding="utf-8"))["services"]["model"]
    image = (folder / service["build"]["context"] / "Dockerfile").read_text(encoding="utf-8")
    assert f"EXPOSE {service['ports'][0].rpartition(':')[2]}\n" in image
    drain = re.search(r'MII_AZURE_DRAIN_SECONDS="(\d+)"', image)
    assert drain and int(drain[1]) < int(service["stop_grace_period"].removesuffix("s"))
    root = folder / "container"
    for mount in service["volumes"]:
        source, place, mode = mount.split(":")
        assert ((folder / source).is_dir(), mode) == (True, "ro")
        (root / place[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / place[1:]).symlink_to(folder / source)
    code, models = (root / service["environment"][name][1:] for name in ("AML_APP_ROOT", "AZUREML_MODEL_DIR"))
    assert (code / service["environment"]["AZUREML_ENTRY_SCRIPT"]).is_file()
    assert (code / "local_runner" / "container.py").is_file()
    monkeypatch.setitem(os.environ, "AZUREML_MODEL_DIR", str(models))
    assert find_model_dir(code).resolve() == folder / "bundle" / "model"
