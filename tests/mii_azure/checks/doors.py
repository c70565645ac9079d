"""Ways to break a deployment template's bundle and a KAITO workspace's, each with the rule that must notice."""

import re
from pathlib import Path

from local_runner.bundle.manifest import hash_files
from mii_azure.bundle.manifest import make_manifest, walk
from mii_azure.bundle.render import as_json, content_hash, image_version, template_version
from tests.mii_azure.checks.mutations import Mutation, both, edit, replaced, value, without

YML, KAITO_YML = "deployment-template.yml", "workspace.yml"
OF_TEMPLATE = {"kind": "template", "registry": "shared", "image": "mine.azurecr.io/models/qa"}
OF_KAITO = {"kind": "kaito", "image": "mine.azurecr.io/models/qa", "instance_type": "Standard_D8as_v4"}


def probe(name: str, field: str, new: str) -> Mutation:
    return edit(YML, rf"({name}:\n(?:  .*\n)*?  {field}:) .*", rf"\1 {new}")


def maps(*lines: str) -> Mutation:
    text = "".join(f"  - {{{line}}}\n" for line in lines)
    return edit(YML, r"^(scoring_path:)", rf"accelerator_maps:\n{text}\1")


_A100 = "accelerator_type: A100_80GB, number_of_accelerators_per_model_instance"
_ASSETS = "azureml://registries/shared"

TEMPLATE: dict[str, tuple[str, Mutation]] = {
    "another type": ("MII901", value(YML, "deployment_template_type", '"Kubernetes"')),
    "no type": ("MII902", without(YML, "deployment_template_type")),
    "no scoring port": ("MII902", without(YML, "scoring_port")),
    "no default instance type": ("MII902", without(YML, "default_instance_type")),
    "a workspace's environment": ("MII903", value(YML, "environment", '"azureml:My-qa-env:1"')),
    "an environment by label": ("MII903", value(YML, "environment", f'"{_ASSETS}/environments/e/labels/latest"')),
    "an environment inside": ("MII903", value(YML, "environment", '{name: e, image: "python:3.11"}')),
    "an allowed type that is none": ("MII904", edit(YML, "(types:\n  - ).*", r'\1"Standard_F8s_v9"')),
    "a default that is not allowed": (
        "MII904",
        both(edit(YML, '  - "Standard_F4s_v2"\n', ""), value("deployment.yml", "instance_type", '"Standard_F8s_v2"')),
    ),
    "an instance type that is not allowed": (
        "MII904",
        value("deployment.yml", "instance_type", '"Standard_NC24ads_A100_v4"'),
    ),
    "a scoring path without a slash": ("MII905", value(YML, "scoring_path", '"score"')),
    "another scoring port": ("MII905", value(YML, "scoring_port", "8080")),
    "a probe of no scheme": ("MII906", probe("liveness_probe", "scheme", '"tcp"')),
    "a probe of another port": ("MII906", probe("readiness_probe", "port", "5000")),
    "a probe's path without a slash": ("MII906", probe("readiness_probe", "path", '"readyz"')),
    "an accelerator that is none": (
        "MII907",
        maps("accelerator_type: a100, number_of_accelerators_per_model_instance: 1"),
    ),
    "no accelerator for a copy": ("MII907", maps(f"{_A100}: 0")),
    "an accelerator twice": ("MII907", maps(f"{_A100}: 1", f"{_A100}: 2")),
    "a default by label": (
        "MII908",
        edit("model.yml", "(template:\n  asset_id: ).*", rf'\1"{_ASSETS}/deploymenttemplates/t/labels/latest"'),
    ),
    "an allowed template by version": (
        "MII909",
        edit("model.yml", "(  - asset_id: ).*", rf'\1"{_ASSETS}/deploymenttemplates/t/versions/1"'),
    ),
    "another registry's model": (
        "MII910",
        replaced("deployment.yml", "azureml://registries/shared/models", "azureml://registries/other/models"),
    ),
    "another template": ("MII910", edit("model.yml", r"qa-template/versions/\w+", "qa-template/versions/1")),
    "an environment of the deployment's own": (
        "MII912",
        edit("deployment.yml", r"\Z", 'environment: "azureml:my-env:1"\n'),
    ),
    # Rules on deployments, where a template says the same.
    "no patience": ("MII212", without(YML, "readiness_probe")),
    "a probe that is over at once": ("MII205", probe("liveness_probe", "timeout", "0")),
    "probes before the model is loaded": (
        "MII206",
        edit(YML, r"(readiness_probe:\n(?:  .*\n)*?  failure_threshold:) \d+", r"\1 1"),
    ),
    "too long a request": ("MII207", value(YML, "request_timeout_ms", "200000")),
    "a variable that is no string": ("MII107", value(YML, "WORKER_COUNT", "1")),
    "two workers": ("MII210", value(YML, "WORKER_COUNT", '"2"')),
    "a secret": ("MII115", edit(YML, "(environment_variables:\n)", r'\1  API_TOKEN: "1234567"\n')),
    "a variable of Azure's": ("MII127", edit(YML, "(environment_variables:\n)", r'\1  AZUREML_MODEL_DIR: "/m"\n')),
    "too many instances": ("MII204", value(YML, "instance_count", "51")),
    "a key that azure-ai-ml does not know": ("MII501", edit(YML, r"\Z", "code_configuration: {code: code}\n")),
}

KAITO: dict[str, tuple[str, Mutation]] = {
    "a version that is not served": ("MII921", value(KAITO_YML, "apiVersion", "kaito.sh/v1")),
    "capitals in the name": ("MII921", edit(KAITO_YML, '^  name: "my-qa"', '  name: "My-qa"')),
    "a preset too": ("MII921", edit(KAITO_YML, "^inference:\n", "inference:\n  preset: {name: phi-4}\n")),
    "another kind": ("MII921", value(KAITO_YML, "kind", "workspace")),
    "an image in capitals": ("MII921", edit(KAITO_YML, "^(          image: .*)/models/", r"\1/Models/")),
    "a container's name of an underscore": (
        "MII921",
        edit(KAITO_YML, '^(        - name: )"scoring"', r'\1"my_scoring"'),
    ),
    "a variable of two words": ("MII926", edit(KAITO_YML, '"MII_AZURE_DRAIN_SECONDS"', '"DRAIN SECONDS"')),
    "no image": ("MII921", edit(KAITO_YML, r"^          image: .*\n", "")),
    "a size that it makes no node of": ("MII922", value(KAITO_YML, "instanceType", '"Standard_F8s_v2"')),
    "no labels": ("MII922", edit(KAITO_YML, r"    matchLabels:\n.*\n", "    matchLabels: {}\n")),
    "two nodes": ("MII922", edit(KAITO_YML, "^resource:\n", "resource:\n  count: 2\n")),
    "another port": ("MII923", edit(KAITO_YML, '(HTTP_PORT"\n +value:) "5000"', r'\1 "5001"')),
    "a probe of another port": ("MII923", edit(KAITO_YML, r'("/readyz"\n +port:) 5000', r"\1 5001")),
    "no probe": ("MII924", edit(KAITO_YML, r"^          readinessProbe:\n(?:            .*\n)+", "")),
    "a probe's zero": ("MII924", edit(KAITO_YML, r"(livenessProbe:\n(?:  .*\n)*? +periodSeconds:) \d+", r"\1 0")),
    "a probe that gives up before the start": (
        "MII924",
        edit(KAITO_YML, r"(readinessProbe:\n(?:  .*\n)*? +failureThreshold:) \d+", r"\1 1"),
    ),
    "no amount": ("MII925", edit(KAITO_YML, r"(limits:\n +cpu:) .*", r'\1 "many"')),
    "more than the limit": ("MII925", edit(KAITO_YML, r"(requests:\n +cpu:) .*", r'\1 "64"')),
    "GPUs that the node has not": (
        "MII925",
        edit(KAITO_YML, r"(limits:\n)", r'\1              nvidia.com/gpu: "1"\n'),
    ),
    "a variable that is no string": ("MII926", edit(KAITO_YML, '(SECONDS"\n +value:) .*', r"\1 25")),
}


def adopt(bundle: Path, versions: bool = True) -> None:
    """Give the manifest, and with `versions` every version in the texts, the hashes of the files as they are."""
    if versions:
        for old, new in _renamed(bundle):
            for path in (*bundle.glob("*.yml"), bundle / "deploy.sh"):
                path.write_text(path.read_text().replace(old, new))
        text = (bundle / YML).read_text() if (bundle / YML).exists() else ""
        if told := re.search(r'^version: "(\w+)"', text, re.MULTILINE):
            new = template_version(text.replace(told[0], 'version: ""', 1))
            for path in (bundle / YML, bundle / "model.yml", bundle / "deploy.sh"):
                path.write_text(path.read_text().replace(told[1], new))
    paths = [path for path in walk(bundle) if path != "manifest.json"]
    (bundle / "manifest.json").write_text(as_json(make_manifest(hash_files(bundle, paths))))


def _renamed(bundle: Path) -> list[tuple[str, str]]:
    """The image's version in the texts, and that of its content."""
    hashes = hash_files(bundle, [path for path in walk(bundle) if path.startswith(("environment/", "code/", "model/"))])
    built = {path: digest for path, digest in hashes.items() if not path.startswith("model/")}
    weights = content_hash({path: digest for path, digest in hashes.items() if path.startswith("model/")})
    kaito = (bundle / KAITO_YML).exists()
    old = re.search(r"models/qa:(\w{12})", (bundle / "deploy.sh").read_text())
    return [(old[1], image_version(built, weights if kaito else None))] if old else []
