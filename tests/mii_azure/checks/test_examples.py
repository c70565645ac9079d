"""Microsoft's own files: where a checkout of azureml-examples is at hand, none that Azure takes is called an error.

MII_AZURE_EXAMPLES names the checkout. Files that are filled in by a script first have a warning instead (MII120).
"""

import os
from pathlib import Path

import pytest

from mii_azure.bundle.standalone_yaml import _role
from mii_azure.checks.check import check

FOLDER = os.environ.get("MII_AZURE_EXAMPLES", "")
#: What azure-ai-ml itself refuses, so that Microsoft deploys it with other values or not at all.
REFUSED = {
    "cli/endpoints/online/deploy-with-packages/custom-model/model-deployment.yml": "MII102",  # an underscore
    "sdk/python/endpoints/online/deploy-with-packages/custom-model/environment/sklearn-regression-env.yml": "MII501",
}


@pytest.mark.skipif(not FOLDER, reason="needs MII_AZURE_EXAMPLES, a checkout of Azure/azureml-examples")
def test_nothing_that_microsoft_deploys_is_an_error():
    files = [path for path in sorted(Path(FOLDER).rglob("*.y*ml")) if path.is_file() and _role(path)]
    assert len(files) > 100
    wrong = {
        path.relative_to(FOLDER).as_posix(): found[0].id
        for path in files
        if (found := [finding for finding in check(path) if finding.severity == "error"])
    }
    assert wrong == REFUSED


@pytest.mark.skipif(not FOLDER, reason="needs MII_AZURE_EXAMPLES, a checkout of Azure/azureml-examples")
def test_nor_is_any_where_a_folders_files_are_read_together():
    """Deployments with the endpoint beside them: traffic, names and kinds have to agree."""
    folders = {path.parent for path in Path(FOLDER).rglob("*.y*ml") if path.is_file() and _role(path)}
    wrong = {
        (folder.relative_to(FOLDER) / finding.file).as_posix(): finding.id
        for folder in folders
        for finding in check(folder)
        if finding.severity == "error"
    }
    assert wrong == REFUSED


PIECES = {
    "names by flags": ("batch.yml", "type: model\nsettings: {mini_batch_size: 1}\nmodel: azureml:m:1\n"),
    "numbers for text": (
        "blue.yml",
        "name: blue\nendpoint_name: my-endpoint\nmodel: azureml:m:1\ninstance_type: Standard_DS3_v2\n"
        "environment_variables: {WORKER_COUNT: 2}\ntags: {size: 16}\n",
    ),
    "filled in by a script": ("endpoint.yml", "name: {{ENDPOINT_NAME}}\nauth_mode: key\n"),
    "angles": ("blue.yml", "name: blue\nendpoint_name: <endpoint_name>\ninstance_type: Standard_DS3_v2\n"),
    "an mlflow model": (
        "blue.yml",
        "name: blue\nendpoint_name: my-endpoint\nmodel: azureml:m@latest\ninstance_type: Standard_DS3_v2\n",
    ),
}
_KINDS = {
    "batch.yml": "modelBatchDeployment",
    "blue.yml": "managedOnlineDeployment",
    "endpoint.yml": "managedOnlineEndpoint",
}
_SCHEMA = "$schema: https://azuremlschemas.azureedge.net/latest/{}.schema.json\n"


@pytest.mark.parametrize("what", PIECES)
def test_ways_of_writing_that_the_examples_have_are_no_errors(what, tmp_path):
    name, text = PIECES[what]
    kind = {"batch.yml": "modelBatchDeployment", "blue.yml": "managedOnlineDeployment"}.get(
        name, "managedOnlineEndpoint"
    )
    (tmp_path / name).write_text(_SCHEMA.format(kind) + text)
    assert [finding for finding in check(tmp_path / name) if finding.severity == "error"] == []
