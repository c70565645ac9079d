"""Each rule finds the one thing that was broken, and a bundle as generated has no findings."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from local_runner.bundle.manifest import hash_files
from mii_azure.bundle.bundle_view import Inspected
from mii_azure.bundle.manifest import make_manifest, walk
from mii_azure.bundle.render import content_hash
from mii_azure.bundle.standalone_yaml import views
from mii_azure.checks import code
from mii_azure.checks.azure_loaders import refused_by_azure
from mii_azure.checks.check import RULES, check
from mii_azure.checks.yaml_rules import _ASSET_FOLDERS
from mii_azure.errors import NotABundle
from mii_azure.platform import limits
from mii_azure.sdk.generate import generate
from scoring.schema.registry import TASKS
from tests.mii_azure.checks.doors import KAITO, TEMPLATE
from tests.mii_azure.checks.loose import LOOSE, change, write
from tests.mii_azure.checks.mutations import BROKEN, value

FAMILIES = {
    "text-generation": "gpt2",
    "conversational": "llama",
    "summarization": "bart",
    "translation": "t5",
    "automatic-speech-recognition": "whisper",
    "text-to-image": "stable-diffusion",
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, tiny) -> Path:
    """One bundle, never changed."""
    model = tiny("bert", "question-answering")
    return generate("question-answering", str(model), "my-qa", output=tmp_path_factory.mktemp("pristine") / "bundle")


@pytest.fixture
def bundle(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def adopt(bundle: Path) -> None:
    """Give the manifest and the asset versions the hashes of the files as they are, as if generated so."""
    paths = [path for path in walk(bundle) if path != "manifest.json"]
    for file, folder in _ASSET_FOLDERS.items():
        version = content_hash(hash_files(bundle, [path for path in paths if path.startswith(folder)]))
        text = (bundle / file).read_bytes()
        old = re.search(rb'^version: "(\w+)"', text, re.MULTILINE)
        for changed in (file, "deployment.yml"):
            content = (bundle / changed).read_bytes()
            if old:
                (bundle / changed).write_bytes(content.replace(old[1], version.encode()))
    (bundle / "manifest.json").write_text(json.dumps(make_manifest(hash_files(bundle, paths))))


def found(bundle: Path) -> list[tuple[str, str]]:
    return [(finding.id, finding.file) for finding in check(bundle)]


@pytest.mark.parametrize("what", BROKEN)
def test_each_break_has_one_finding(bundle, what):
    rule, mutation = BROKEN[what]
    mutation.apply(bundle)
    adopt(bundle)
    findings = check(bundle)
    assert [(finding.id, finding.file) for finding in findings] == [(rule, mutation.file)], findings
    assert findings[0].message.endswith(".")
    assert findings[0].remedy.endswith(".")


#: Rules on what is no YAML, or that need more than a changed value, by the test that breaks each.
ELSEWHERE = {
    "test_edits_are_found_by_hash": {"MII001", "MII002", "MII003", "MII004"},
    "test_scoring_code_of_another_version_is_named": {"MII005"},
    "test_a_changed_image_under_the_old_version_is_found": {"MII106"},
    "test_an_upload_that_would_stall_is_warned_about": {"MII215"},
    "test_an_image_that_starts_another_server_is_found": {"MII406"},
    "test_names_too_long_together_on_kubernetes": {"MII603"},
    "test_a_key_that_stands_twice_is_told_for_the_last_one_counts_alone": {"MII132"},
    "test_a_default_that_the_folder_does_not_create_is_found": {"MII703"},
    "test_a_batch_image_without_azures_packages_is_found": {"MII705"},
    "test_a_batch_bundle_without_a_cluster_is_found": {"MII702"},
    "test_versions_of_other_content_are_found": {"MII911", "MII927"},
}


def test_every_rule_breaks_in_some_test():
    sources = "".join(path.read_text() for path in sorted(Path(__file__).parents[1].rglob("test_*.py")))
    for name, rules in ELSEWHERE.items():
        body = re.search(rf"^def {name}\(.*?(?=^def |^@|\Z)", sources, re.MULTILINE | re.DOTALL)
        assert body, name
        assert rules == set(re.findall(r"MII\d{3}", body[0])), name
    broken = {rule for rule, _ in (*BROKEN.values(), *TEMPLATE.values(), *KAITO.values())}
    broken |= {case.rule for case in LOOSE.values()}
    assert {rule.id for rule in RULES} == broken.union(*ELSEWHERE.values())
    assert len({rule.id for rule in RULES}) == len(RULES)


#: What azure-ai-ml says too, or does not come to say: it reads no file that is no YAML.
ITS_OWN = {"MII101", "MII501"}


def test_azure_ai_ml_accepts_a_break_of_every_rule(pristine, tmp_path):
    """It is asked itself: `check` leaves out what it says about a place where one of our rules has spoken."""
    accepted = set().union(*ELSEWHERE.values(), {rule for rule, _ in KAITO.values()})
    for number, (rule, mutation) in enumerate(BROKEN.values()):
        if rule not in accepted | ITS_OWN:
            folder = Path(shutil.copytree(pristine, tmp_path / str(number)))
            mutation.apply(folder)
            adopt(folder)
            accepted |= set() if any(refused_by_azure(Inspected(folder))) else {rule}
    for number, case in enumerate(LOOSE.values()):
        if case.rule not in accepted | ITS_OWN:
            folder = tmp_path / f"loose{number}"
            folder.mkdir()
            write(folder, case.kind, change(case))
            accepted |= set() if any(any(refused_by_azure(view)) for view in views(folder)) else {case.rule}
    assert {rule.id for rule in RULES} - ITS_OWN - {rule for rule, _ in TEMPLATE.values()} <= accepted


@pytest.mark.parametrize("task", TASKS)
def test_a_bundle_as_generated_has_no_findings(task, tiny, tmp_path):
    model = tiny(FAMILIES.get(task, "bert"), task)
    assert check(generate(task, str(model), "my-name", output=tmp_path / "bundle")) == []


@pytest.mark.parametrize("instance_type", ["Standard_NC4as_T4_v3", "Standard_NC24ads_A100_v4"])
def test_a_bundle_for_a_gpu_has_no_findings(instance_type, tiny, tmp_path):
    model = tiny("bert", "fill-mask")
    bundle = generate("fill-mask", str(model), "my-name", output=tmp_path / "bundle", instance_type=instance_type)
    assert check(bundle) == []


def test_a_bundle_of_a_registered_model_has_no_findings(tmp_path):
    bundle = generate(
        "fill-mask", "azureml://registries/azureml/models/bert/versions/3", "my-name",
        output=tmp_path / "bundle", instance_type="Standard_F8s_v2",
    )  # fmt: skip
    assert not (bundle / "model.yml").exists()
    assert not (bundle / "model").exists()
    assert check(bundle) == []


def test_the_packages_of_this_machine_are_asked_only_of_a_name_that_nothing_else_explains(bundle, monkeypatch):
    """Each has its whole list of files read, which takes longer than all else that is checked."""
    asked = []
    monkeypatch.setattr(code, "packages_distributions", lambda: asked.append(1) or {"yaml": ["PyYAML"]})
    code._installed.cache_clear()
    try:
        assert check(bundle) == []
        assert asked == []
        path = bundle / "code/score.py"
        path.write_text(path.read_text() + "import yaml\nimport sklearn\n")
        adopt(bundle)
        (finding,) = check(bundle)
        assert "imports sklearn" in finding.message  # and yaml comes from PyYAML, which the lock has
        assert asked == [1]
    finally:
        code._installed.cache_clear()


def test_edits_are_found_by_hash(bundle):
    (bundle / "code/score.py").write_text((bundle / "code/score.py").read_text() + "\n")
    (bundle / "plan.md").unlink()
    (bundle / "code/extra.py").write_text("")
    (bundle / "notes.txt").write_text("")
    assert found(bundle) == [
        ("MII001", "code/score.py"),
        ("MII002", "plan.md"),
        ("MII003", "code/extra.py"),
        ("MII004", "notes.txt"),
    ]


def test_line_endings_that_git_changed_are_told_as_such(bundle):
    for path in ("deploy.sh", "code/score.py"):
        (bundle / path).write_bytes((bundle / path).read_bytes().replace(b"\n", b"\r\n"))
    (bundle / "plan.md").write_bytes(b"x\r\n")
    told = {finding.file: finding.message for finding in check(bundle) if finding.id == "MII001"}
    assert "line endings" in told["deploy.sh"]
    assert "line endings" in told["code/score.py"]
    assert "as it was generated" in told["plan.md"]
    subprocess.run(["git", "init", "-q"], cwd=bundle, check=True)
    git = subprocess.run(["git", "check-attr", "text", "deploy.sh"], cwd=bundle, capture_output=True, text=True)
    assert git.stdout == "deploy.sh: text: unset\n"


def test_line_endings_of_a_whole_folder_are_told_once(bundle):
    scripts = sorted((bundle / "code").rglob("*.py"))
    for path in scripts:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    (told,) = [each for each in check(bundle) if each.id == "MII001"]
    changed = [path for path in scripts if path.stat().st_size]  # an empty file has no line to end
    assert told.message.startswith(f"This file and {len(changed) - 1} others have other line endings")


def test_a_missing_file_is_found_even_if_no_manifest_lists_it(bundle):
    (bundle / "environment.yml").unlink()
    paths = [path for path in walk(bundle) if path != "manifest.json"]
    (bundle / "manifest.json").write_text(json.dumps(make_manifest(hash_files(bundle, paths))))
    assert found(bundle) == [("MII002", "environment.yml")]


def test_scoring_code_of_another_version_is_named(bundle):
    path = bundle / "code/scoring/entry.py"
    path.write_text(path.read_text() + "# patched\n")
    adopt(bundle)
    assert found(bundle) == [("MII005", "code/scoring/entry.py")]


def test_a_changed_image_under_the_old_version_is_found(bundle):
    path = bundle / "environment/Dockerfile"
    path.write_text(path.read_text() + "# newer\n")
    paths = [path for path in walk(bundle) if path != "manifest.json"]
    (bundle / "manifest.json").write_text(json.dumps(make_manifest(hash_files(bundle, paths))))
    assert found(bundle) == [("MII106", "environment.yml")]


def test_an_upload_that_would_stall_is_warned_about(bundle, monkeypatch):
    monkeypatch.setattr(limits, "UPLOAD_BYTES", 1)
    assert found(bundle) == [("MII215", "model.yml")]


def test_findings_have_the_line(bundle):
    value("deployment.yml", "instance_count", "0").apply(bundle)
    adopt(bundle)
    text = (bundle / "deployment.yml").read_text().splitlines()
    assert text[check(bundle)[0].line - 1] == "instance_count: 0"


def test_a_secret_is_not_repeated(bundle):
    secret = "hf_" + "a1B2" * 9
    (bundle / "README.md").write_text(f"first\n{secret}\n")
    adopt(bundle)
    (finding,) = check(bundle)
    assert (finding.id, finding.line) == ("MII006", 2)
    assert secret not in finding.model_dump_json()


@pytest.mark.parametrize(
    "content",
    [
        "environment_variables: [1]",
        "request_settings: 5",
        "liveness_probe: [a]",
        "code_configuration: null",
        "model: {}",
    ],
)
def test_values_of_the_wrong_kind_are_findings_not_tracebacks(bundle, content):
    (bundle / "deployment.yml").write_text(content + "\n")
    adopt(bundle)
    assert check(bundle)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(NotABundle):
        check(tmp_path)
