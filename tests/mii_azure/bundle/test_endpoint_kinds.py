"""Kubernetes and batch bundles, identity, network, secrets and autoscale: accepted by azure-ai-ml, no findings."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from mii_azure.bundle.lockfile import pins
from mii_azure.bundle.render import TEMPLATES, images
from mii_azure.checks.check import check
from mii_azure.checks.kinds import quantity
from mii_azure.errors import InvalidName, SpecError
from mii_azure.sdk.generate import generate
from mii_azure.spec import make_spec
from tests.mii_azure.bundle.test_azure_yaml import submit
from tests.mii_azure.bundles import rendered, spec_and_plan
from tests.mii_azure.checks.test_check import adopt

IDENTITY = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/mine"
CONNECTION = "${{azureml://connections/hub/credentials/token}}"
VAULT = "${{keyvault:https://mine.vault.azure.net/secrets/openai/1}}"


@pytest.fixture
def make(tiny, tmp_path):
    def write(**options) -> Path:
        model = tiny("bert", "question-answering")
        return generate("question-answering", str(model), "my-qa", output=tmp_path / "bundle", **options)

    return write


@pytest.mark.parametrize(("device", "gpus"), [("cpu", None), ("t4", "1")])
def test_kubernetes_reaches_the_wire(tmp_path, device, gpus):
    files = rendered("text-generation", device, kind="kubernetes", compute="cluster")
    sent = submit(tmp_path, files)
    assert sent["endpoint"]["properties"]["compute"] == "cluster"
    properties = sent["deployment"]["properties"]
    assert properties["endpointComputeType"] == "Kubernetes"
    assert "instanceType" not in properties
    asked = properties["containerResourceRequirements"]["containerResourceRequests"]
    allowed = properties["containerResourceRequirements"]["containerResourceLimits"]
    assert asked.get("gpu") == allowed.get("gpu") == gpus
    for what, amount in asked.items():
        assert 0 < quantity(amount) <= quantity(allowed[what])
    timeout = yaml.safe_load(files["deployment.yml"])["request_settings"]["request_timeout_ms"]
    assert timeout <= 150_000
    assert json.loads(files["code/deployment.json"])["limits"]["request_timeout_s"] * 1000 == timeout


def test_names_too_long_for_kubernetes_are_refused():
    with pytest.raises(InvalidName):
        rendered("fill-mask", kind="kubernetes", compute="cluster", name="a" * 32)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "kubernetes", "compute": "cluster", "instance_type": "Standard_NC4as_T4_v3"},
        {"kind": "batch", "compute": "azureml:cluster"},
        {"public_network_access": "disabled", "egress": "disabled", "max_instances": 5},
        {"secrets": {"HF_TOKEN": CONNECTION, "OPENAI_API_KEY": VAULT}},
        {"secrets": {"HF_TOKEN": CONNECTION}, "identities": [IDENTITY]},
    ],
    ids=["kubernetes", "batch", "network", "secrets", "identity"],
)
def test_a_bundle_of_every_kind_has_no_findings(make, options):
    assert check(make(**options)) == []


def test_batch_is_accepted_by_azure(tmp_path):
    files = rendered("fill-mask", kind="batch", compute="cluster", instance_count=2)
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from azure.ai.ml import load_batch_endpoint
        from azure.ai.ml.entities._load_functions import load_model_batch_deployment

        endpoint = load_batch_endpoint(tmp_path / "endpoint.yml")._to_rest_batch_endpoint("x").as_dict()
        sent = load_model_batch_deployment(tmp_path / "deployment.yml")._to_rest_object("x").as_dict()
    deployment = sent["properties"]
    assert endpoint["properties"]["authMode"].lower() == "aadtoken"
    assert deployment["codeConfiguration"] == {"codeId": "code", "scoringScript": "batch_score.py"}
    assert deployment["compute"] == "cluster"
    assert deployment["resources"]["instanceCount"] == 2
    assert deployment["outputAction"] == "AppendRow"
    assert (deployment["miniBatchSize"], deployment["errorThreshold"]) == (10, -1)
    locked = {pin.name for pin in pins(files["environment/requirements.lock"])}
    assert {"azureml-core", "azureml-dataset-runtime", "torch", "transformers"} <= locked
    assert "USER 10001" not in files["environment/Dockerfile"]
    script = files["deploy.sh"]
    assert "azml batch-deployment" in script
    assert "online-" not in script
    assert "defaults.deployment_name" in script


def test_a_default_that_the_folder_does_not_create_is_found(make):
    bundle = make(kind="batch", compute="cluster")
    with (bundle / "endpoint.yml").open("a") as file:
        file.write('defaults:\n  deployment_name: "other"\n')
    adopt(bundle)
    assert [finding.id for finding in check(bundle)] == ["MII703"]


def test_a_batch_bundle_without_a_cluster_is_found(make):
    bundle = make(kind="batch", compute="cluster")
    path = bundle / "deployment.yml"
    path.write_text(re.sub(r"^compute:.*\n", "", path.read_text(), flags=re.MULTILINE))
    adopt(bundle)
    assert [finding.id for finding in check(bundle)] == ["MII702"]


def test_a_batch_image_without_azures_packages_is_found(make):
    bundle = make(kind="batch", compute="cluster")
    lock = bundle / "environment" / "requirements.lock"
    lock.write_text(lock.read_text().replace("azureml-dataset-runtime==", "azureml-dataset-runtime-other=="))
    adopt(bundle)
    assert {finding.id for finding in check(bundle)} >= {"MII705"}


@pytest.mark.parametrize("line", ["cpu", "cuda13"])
def test_a_batch_lock_keeps_what_answers_the_requests(line):
    """Versions of torch and what is above it are the online image's."""
    own, online = (
        {pin.name: pin.version for pin in pins((TEMPLATES / "locks" / images()[line][lock]).read_text())}
        for lock in ("batch_lock", "lock")
    )
    for name in ("torch", "transformers", "tokenizers", "safetensors", "deepspeed", "diffusers", "pydantic"):
        assert own[name] == online[name], name


def test_files_are_answered_row_by_row_by_the_bundle_itself(make, tmp_path):
    bundle = make(kind="batch", compute="cluster")
    good = {"inputs": {"question": "Who?", "context": "It was Ann."}}
    files = {
        "a.jsonl": "\n".join([json.dumps(good), "", "{", json.dumps({"inputs": 3})]),
        "b.json": json.dumps(good),
        "c.parquet": "x",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    code = "import json, sys, batch_score as b\nb.init()\nfor _ in '12': print(json.dumps(b.run(sys.argv[1:])))"
    environment = {**os.environ, "PYTHONPATH": str(bundle / "code"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-B", "-c", code, *(str(tmp_path / name) for name in files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert first == second  # a mini-batch that is tried again gives the same rows
    rows = [json.loads(row) for row in first]
    assert [(row["file"], row["line"]) for row in rows] == [
        ("a.jsonl", 1), ("a.jsonl", 3), ("a.jsonl", 4), ("b.json", 1), ("c.parquet", 0),
    ]  # fmt: skip
    assert rows[0]["output"].keys() == {"score", "start", "end", "answer"}
    assert rows[3]["output"] == rows[0]["output"]
    assert all(row["error"]["message"] for row in (rows[1], rows[2], rows[4]))


@pytest.mark.parametrize(("status", "raises"), [(200, False), (400, False), (413, False), (429, True), (500, True)])
def test_only_what_trying_again_may_mend_is_raised(tmp_path, status, raises):
    from scoring.batch_files import score

    class Response:
        status_code = status

        def get_data(self) -> bytes:
            return b'{"error": {"message": "no"}}'

    (tmp_path / "a.txt").write_text("one\r\ntwo\n")
    bodies: list[str] = []

    def answer(raw: str) -> Response:
        bodies.append(raw)
        return Response()

    if raises:
        with pytest.raises(RuntimeError, match=r"a\.txt, line \d"):
            score([str(tmp_path / "a.txt")], answer, 1)
    else:
        assert len(score([str(tmp_path / "a.txt")], answer, 1)) == 2
        assert [json.loads(body) for body in bodies] == [{"inputs": "one"}, {"inputs": "two"}]


def test_identity_secrets_and_network_reach_the_wire(tmp_path):
    files = rendered("fill-mask", identities=[IDENTITY], secrets={"HF_TOKEN": VAULT}, egress="disabled",
                     public_network_access="disabled")  # fmt: skip
    sent = submit(tmp_path, files)
    assert list(sent["endpoint"]["identity"]["userAssignedIdentities"]) == [IDENTITY]
    assert sent["endpoint"]["properties"]["publicNetworkAccess"].lower() == "disabled"
    assert sent["deployment"]["properties"]["egressPublicNetworkAccess"].lower() == "disabled"
    assert sent["deployment"]["properties"]["environmentVariables"]["HF_TOKEN"] == VAULT
    for role in ("AcrPull", "Storage Blob Data Reader", "Key Vault Secrets User"):
        assert role in files["plan.md"]


def test_the_systems_identity_asks_for_the_workspaces_connections(tmp_path):
    sent = submit(tmp_path, rendered("fill-mask", secrets={"HF_TOKEN": CONNECTION}))
    assert sent["endpoint"]["properties"]["properties"] == {"enforce_access_to_default_secret_stores": "enabled"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "kubernetes"},
        {"kind": "batch"},
        {"compute": "cluster"},
        {"kind": "batch", "compute": "cluster", "secrets": {"A_KEY": CONNECTION}},
        {"kind": "kubernetes", "compute": "cluster", "egress": "disabled"},
        {"kind": "kubernetes", "compute": "cluster", "auth_mode": "aad_token"},
        {"kind": "edge"},
        {"identities": ["mine"]},
    ],
)
def test_options_that_do_not_go_together_are_refused(wrong):
    with pytest.raises(SpecError) as caught:
        make_spec(task="fill-mask", model="m", name="abc", **wrong)
    assert "Value error" not in caught.value.message
    assert not caught.value.message.startswith(":")


def test_a_secret_as_it_is_is_refused_and_not_repeated():
    with pytest.raises(SpecError) as caught:
        make_spec(task="fill-mask", model="m", name="abc", secrets={"HF_TOKEN": "opensesame"})
    assert "opensesame" not in str(caught.value)


@pytest.mark.parametrize(("device", "metric"), [("cpu", "CpuUtilization"), ("t4", "GpuUtilization")])
def test_autoscale_goes_out_when_busy_and_in_when_idle(tmp_path, device, metric):
    _, plan = spec_and_plan("fill-mask", device)
    script = tmp_path / "autoscale.sh"
    script.write_text(rendered("fill-mask", device, max_instances=4)["autoscale.sh"])
    fake = tmp_path / "az"
    fake.write_text(
        '#!/bin/sh\necho "$@" >> "$LOG"\ncase "$1" in ml) echo /subscriptions/s/resourceGroups/g/x;; esac\n'
    )
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    subprocess.run(["bash", str(script), "--workspace-name", "w"], env=environment, check=True)
    log = (tmp_path / "log").read_text()
    assert "--min-count 1 --max-count 4" in log
    assert "--resource-group g --subscription s" in log
    rules = re.findall(r"--condition (\w+) ([<>]) (\d+) avg \d+m --scale (in|out) 1", log)
    assert {(name, "out" if sign == ">" else "in") for name, sign, _, _ in rules} == {
        (name, direction) for name, _, _, direction in rules
    }
    assert (f"{metric}Percentage", "<", "30", "in") in rules
    assert ("RequestLatency_P90", ">", str(plan.request_timeout_ms // 2), "out") in rules
    assert "autoscale.sh" not in rendered("fill-mask", device)


def test_the_rules_that_deploy_sets_are_those_of_the_script():
    files = rendered("fill-mask", "t4", max_instances=4)
    profile = json.loads(files["autoscale.json"])["profiles"][0]
    assert profile["capacity"] == {"minimum": "1", "maximum": "4", "default": "1"}
    script = re.findall(r'^rule "(\w+) ([<>]) (\d+) avg (\d+)m" (in|out) (\d+)$', files["autoscale.sh"], re.MULTILINE)
    signs, ways = {"<": "LessThan", ">": "GreaterThan"}, {"in": "Decrease", "out": "Increase"}
    wanted = [
        (m, signs[sign], int(at), f"PT{window}M", ways[way], f"PT{wait}M") for m, sign, at, window, way, wait in script
    ]
    assert len(wanted) == 3
    assert wanted == [
        (
            rule["metricTrigger"]["metricName"],
            rule["metricTrigger"]["operator"],
            rule["metricTrigger"]["threshold"],
            rule["metricTrigger"]["timeWindow"],
            rule["scaleAction"]["direction"],
            rule["scaleAction"]["cooldown"],
        )
        for rule in profile["rules"]
    ]
