"""Deployment templates and KAITO workspaces: sound as generated, and each planted defect found by its rule."""

import shutil
import warnings
from pathlib import Path

import pytest

from mii_azure.bundle.bundle_view import Inspected
from mii_azure.checks.azure_loaders import refused_by_azure
from mii_azure.checks.check import RULES, check
from mii_azure.checks.kaito import port, variables
from mii_azure.checks.templates import accelerators
from mii_azure.sdk.generate import generate
from tests.mii_azure.checks.doors import KAITO, OF_KAITO, OF_TEMPLATE, TEMPLATE, YML, adopt, maps
from tests.mii_azure.checks.mutations import edit

KINDS = {"template": OF_TEMPLATE, "kaito": OF_KAITO}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, tiny) -> dict[str, Path]:
    model, folder = str(tiny("bert", "question-answering")), tmp_path_factory.mktemp("doors")
    return {
        kind: generate("question-answering", model, "My-qa", output=folder / kind, **options)
        for kind, options in KINDS.items()
    }


@pytest.fixture(scope="module", autouse=True)
def without_looking_for_callers():
    """azure-ai-ml walks the whole stack to decide on a warning that nobody sees: most of the time of these tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from azure.ai.ml._utils import _experimental

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_experimental, "_should_skip_warning", lambda: True)
        yield


def broken(pristine: Path, folder: Path, mutation) -> Path:
    bundle = Path(shutil.copytree(pristine, folder / "bundle"))
    mutation.apply(bundle)
    adopt(bundle)
    return bundle


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_as_generated_has_no_findings(pristine, kind):
    assert check(pristine[kind]) == []


def test_the_tag_is_of_the_users_own_code_too(pristine, tiny, tmp_path):
    handler = tmp_path / "handler.py"
    handler.write_text("def preprocess(inputs, parameters):\n    return inputs, parameters\n")
    model = str(tiny("bert", "question-answering"))
    bundle = generate("question-answering", model, "My-qa", output=tmp_path / "b", handler=str(handler), **OF_TEMPLATE)
    assert check(bundle) == []
    name = "environment.yml"
    assert (bundle / name).read_text() != (pristine["template"] / name).read_text()


@pytest.mark.parametrize("what", TEMPLATE)
def test_each_break_of_a_template_has_one_finding(pristine, tmp_path, what):
    rule, mutation = TEMPLATE[what]
    findings = check(broken(pristine["template"], tmp_path, mutation))
    assert [(finding.id, finding.file) for finding in findings] == [(rule, mutation.file)], findings
    assert findings[0].message.endswith(".")
    assert findings[0].remedy.endswith(".")


def test_azure_ai_ml_accepts_a_break_of_every_rule(pristine, tmp_path):
    """It is asked itself, as `tests/mii_azure/checks/test_check.py` asks it of other kinds."""
    accepted: set[str] = set()
    for number, (rule, mutation) in enumerate(TEMPLATE.values()):
        if rule not in accepted and rule.startswith("MII9"):
            folder = Path(shutil.copytree(pristine["template"], tmp_path / str(number)))
            mutation.apply(folder)
            accepted |= set() if any(refused_by_azure(Inspected(folder))) else {rule}
    assert {rule.id for rule in RULES if rule.id.startswith("MII90") or rule.id in ("MII910", "MII912")} == accepted


@pytest.mark.parametrize("what", KAITO)
def test_each_break_of_a_workspace_has_one_finding(pristine, tmp_path, what):
    rule, mutation = KAITO[what]
    findings = check(broken(pristine["kaito"], tmp_path, mutation))
    assert [(finding.id, finding.file) for finding in findings] == [(rule, mutation.file)], findings
    assert findings[0].message.endswith(".")
    assert findings[0].remedy.endswith(".")


def test_versions_of_other_content_are_found(pristine, tmp_path):
    """MII911 of a template and its image, MII927 of a workspace's image."""
    for kind, expected in (
        ("template", [("MII911", YML), ("MII911", "environment.yml")]),
        ("kaito", [("MII927", "workspace.yml")]),
    ):
        bundle = Path(shutil.copytree(pristine[kind], tmp_path / kind))
        (bundle / "code/score.py").write_text((bundle / "code/score.py").read_text() + "# newer\n")
        if kind == "template":
            (bundle / YML).write_text((bundle / YML).read_text() + "# newer\n")
        adopt(bundle, versions=False)
        assert [(finding.id, finding.file) for finding in check(bundle)] == expected


@pytest.mark.parametrize(
    ("kind", "mutation"),
    [
        ("template", maps(*["accelerator_type: [a]"] * 2)),
        ("kaito", edit("workspace.yml", r"^( +)(livenessProbe:)", r"\1ports: 5\n\1\2")),
        ("kaito", edit("workspace.yml", r"^( +)env:\n(\1 .*\n|\1- .*\n)+", r"\1env: 5\n")),
        ("kaito", edit("workspace.yml", r"^( +)env:\n", r"\1env:\n\1  - name: [a]\n")),
    ],
)
def test_values_of_any_type_are_judged(pristine, tmp_path, kind, mutation):
    bundle = Path(shutil.copytree(pristine[kind], tmp_path / "bundle"))
    mutation.apply(bundle)
    assert not Inspected(bundle).malformed(mutation.file)
    for rule in (accelerators, port, variables):
        list(rule(Inspected(bundle)))


@pytest.mark.parametrize(("kind", "file"), [("template", YML), ("kaito", "workspace.yml")])
def test_a_file_alone_is_judged_too(pristine, tmp_path, kind, file):
    shutil.copy(pristine[kind] / file, tmp_path / "any.yaml")
    assert check(tmp_path / "any.yaml") == []
    text = (tmp_path / "any.yaml").read_text()
    (tmp_path / "any.yaml").write_text(text.replace("5000", "5001").replace("Managed", "Kubernetes"))
    assert {finding.id for finding in check(tmp_path)} == {"MII901" if kind == "template" else "MII923"}
