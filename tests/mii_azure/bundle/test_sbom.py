"""The bill of materials, judged by CycloneDX's own schema and by what is in the bundle."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import mii_azure
from mii_azure.bundle.licences import model_licence, package_licences
from mii_azure.bundle.lockfile import pins
from mii_azure.bundle.render import TEMPLATES
from mii_azure.bundle.sbom import ModelFacts, make_sbom
from tools.licences import Told, installed, licence, reported

LOCK = f"a==1.0 \\\n    --hash=sha256:{'1' * 64} \\\n    --hash=sha256:{'2' * 64}\nb==2.0 --hash=sha256:{'3' * 64}\n"
FACTS = ModelFacts("owner/a-model", True, "c" * 40, "0123456789ab", "apache-2.0", {"model/config.json": "4" * 64})


def bill(lock: str = LOCK, image: str = "host/base:latest", facts: ModelFacts = FACTS, **licences: str) -> str:
    return make_sbom("my-qa", "0.1.0", lock, image, facts, licences)


def component(text: str, reference: str) -> dict[str, Any]:
    return next(each for each in json.loads(text)["components"] if each["bom-ref"] == reference)


@pytest.mark.parametrize("facts", [FACTS, FACTS._replace(on_hub=False, revision=None, licence=None, files={})])
def test_cyclonedx_accepts_it(facts):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = bill(facts=facts, image=f"host/base:latest@sha256:{'9' * 64}", a="MIT AND ISC", b="Some licence")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"library"', '"book"')) is not None


def test_it_is_the_same_every_time_and_another_for_other_content():
    assert bill() == bill()
    assert "timestamp" not in bill()
    numbers = {
        json.loads(text)["serialNumber"] for text in (bill(), bill(a="MIT"), bill(lock=LOCK.replace("2.0", "2.1")))
    }
    assert len(numbers) == 3


def test_it_names_the_model_with_commit_licence_and_files():
    model = component(bill(), "model")
    assert model["type"] == "machine-learning-model"
    assert model["version"] == "c" * 40
    assert model["purl"] == f"pkg:huggingface/owner/a-model@{'c' * 40}"
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert model["components"][0]["hashes"] == [{"alg": "SHA-256", "content": "4" * 64}]


def test_it_names_packages_with_every_hash_of_the_lock_and_the_base_image_with_its_digest():
    package = component(bill(a="bsd-3-clause"), "pkg:pypi/a@1.0")
    hashes = {each["content"] for each in package["externalReferences"][0]["hashes"]}
    assert hashes == {"1" * 64, "2" * 64}
    assert package["licenses"] == [{"license": {"id": "BSD-3-Clause"}}]
    assert "licenses" not in component(bill(), "pkg:pypi/b@2.0")
    pinned = component(bill(image=f"host:80/base:1@sha256:{'9' * 64}"), "base-image")
    assert (pinned["name"], pinned["version"]) == ("host:80/base", "1")
    assert pinned["hashes"] == [{"alg": "SHA-256", "content": "9" * 64}]


def test_a_bundles_bill_lists_what_its_lock_pins_and_what_was_copied(make_bundle):
    bundle = make_bundle()
    document = json.loads((bundle / "sbom.json").read_text())
    libraries = {(each["name"], each["version"]) for each in document["components"] if each["type"] == "library"}
    lock = (bundle / "environment/requirements.lock").read_text()
    assert libraries == {(pin.name, pin.version) for pin in pins(lock)}
    files = {each["name"] for each in component(json.dumps(document), "model")["components"]}
    assert files == {path.relative_to(bundle).as_posix() for path in (bundle / "model").rglob("*") if path.is_file()}
    assert any("licenses" in each for each in document["components"] if each["type"] == "library")


@pytest.mark.parametrize(
    ("card", "config", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# Card", {}, "apache-2.0"),
        ("---\r\nlicense: mit\r\ntags: [a]\r\n---\r\n", {}, "mit"),
        ("---\nlicense: other\nlicense_name: our-terms\n---\n", {}, "our-terms"),
        ("---\nlicense: other\n---\n", {}, "other"),
        ("---\nlicense: [mit, isc]\n---\n", {}, "mit OR isc"),
        ("# No front matter", {"license": "mit"}, "mit"),
        ("---\n: [\n---\n", {}, None),
        ("---\n- a list\n---\n", {}, None),
        (None, {}, None),
    ],
)
def test_a_models_licence_is_its_cards_or_its_configs(tmp_path, card, config, licence):
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_licence(tmp_path) == licence


def test_the_licence_text_goes_with_the_weights_and_the_card_does_not(tiny, tmp_path):
    model = Path(shutil.copytree(tiny("bert", "question-answering"), tmp_path / "model"))
    (model / "LICENSE").write_text("Terms")
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    bundle = mii_azure.generate("question-answering", str(model), "my-qa", output=tmp_path / "b")
    assert (bundle / "model/LICENSE").read_text() == "Terms"
    assert not (bundle / "model/README.md").exists()
    assert component((bundle / "sbom.json").read_text(), "model")["licenses"] == [{"license": {"id": "MIT"}}]


def test_licences_are_recorded_for_what_generation_and_serving_stand_on():
    recorded = package_licences()
    assert recorded["transformers"] == recorded["safetensors"] == "Apache-2.0"
    assert recorded["pydantic"] == "MIT"


@pytest.mark.parametrize("digest", ["sha256:abc", "1" * 64, "sha512:" + "1" * 64])
def test_a_digest_that_is_none_is_refused(tiny, tmp_path, digest):
    from mii_azure.errors import SpecError

    model = str(tiny("bert", "question-answering"))
    with pytest.raises(SpecError, match="image_digest"):
        mii_azure.generate("question-answering", model, "my-qa", output=tmp_path / "b", image_digest=digest)
    assert not (tmp_path / "b").exists()


def test_it_is_the_same_in_processes_that_order_sets_differently(tmp_path):
    import os
    import subprocess
    import sys

    code = "import sys; from tests.mii_azure.bundle.test_sbom import bill; "
    code += "sys.stdout.write(bill(a='MIT AND ISC', b='Terms'))"
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in "123"
    }
    assert texts == {bill(a="MIT AND ISC", b="Terms")}


def test_licences_are_recorded_of_all_that_any_image_or_ci_job_installs():
    recorded = package_licences()
    locked = {pin.name for lock in (TEMPLATES / "locks").glob("*.lock") for pin in pins(lock.read_text())}
    assert locked - set(recorded) <= {"cuda-toolkit"}  # whose metadata say nothing
    assert "azureml" in recorded["azureml-core"]


MIT_TEXT = "MIT License\n\nPermission is hereby granted"


@pytest.mark.parametrize(
    "told, wanted",
    [
        (Told("MIT AND  ISC", "Other", ("License :: OSI Approved :: MIT License",)), "MIT AND ISC"),
        (Told("", "", ("License :: OSI Approved :: MIT License",)), "MIT"),
        (
            Told("", "LicenseRef-NVIDIA-Proprietary", ("License :: Other/Proprietary License",)),
            "LicenseRef-NVIDIA-Proprietary",
        ),
        (Told("", MIT_TEXT, ()), "MIT"),
        (Told(text=MIT_TEXT), "MIT"),
        (Told("", "Terms", (), MIT_TEXT), "Terms"),
        (Told("", "UNKNOWN", ("License :: Free For Educational Use",)), "Free For Educational Use"),
        (Told(), ""),
    ],
)
def test_a_licence_is_named_by_the_surest_that_the_metadata_say(told, wanted):
    assert licence(told) == wanted


def test_an_installed_package_and_pips_report_tell_alike():
    told = installed("pydantic")
    report = {"license_expression": told.expression, "license": told.field, "classifier": list(told.classifiers)}
    assert licence(reported(report)) == licence(told) == "MIT"
    assert installed("no-such-package") == Told()
