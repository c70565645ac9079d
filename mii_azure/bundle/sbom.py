"""Software bill of materials of a bundle: CycloneDX 1.6, from the lock, the base image and the model; no clock.

The maintained CycloneDX library writes it. Its time stamp is left out, and the serial number is a UUID of the content,
so that the same bundle has the same bill. CycloneDX specification: https://cyclonedx.org/docs/1.6/json/.
"""

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from mii_azure.bundle.lockfile import pins

if TYPE_CHECKING:
    from cyclonedx.model import HashType
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

SBOM = "sbom.json"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/schema/bom-1.6.schema.json")


class ModelFacts(NamedTuple):
    """Provenance of a model."""

    id: str
    on_hub: bool
    revision: str | None  # hub commit
    version: str | None  # content hash of its files; None for a reference
    licence: str | None
    files: Mapping[str, str]  # {path in the bundle: SHA-256}


def make_sbom(
    name: str, version: str, lock: str, base_image: str, model: ModelFacts, licences: Mapping[str, str]
) -> str:
    """Text of sbom.json for a bundle called `name`, written by `version` of mii-azure."""
    from cyclonedx.model.component import Component, ComponentType

    bundle = Component(name=name, type=ComponentType.APPLICATION, bom_ref="bundle", version=model.version)
    tool = Component(name="mii-azure", type=ComponentType.APPLICATION, bom_ref="generator", version=version)
    document = _document([_model(model), _base(base_image)], bundle, tool)
    packages = _locked(lock, tuple(sorted(licences.items())))
    for part, order in (("components", "type"), ("dependencies", "ref")):
        document[part] = sorted([*document[part], *packages[part]], key=lambda entry: entry[order])
    (needs,) = (entry["dependsOn"] for entry in document["dependencies"] if entry["ref"] == "bundle")
    needs[:] = sorted([*needs, *(package["bom-ref"] for package in packages["components"])])
    content = json.dumps(document, sort_keys=True, ensure_ascii=False)
    document["serialNumber"] = uuid.uuid5(_NAMESPACE, content).urn
    return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


@lru_cache(maxsize=4)
def _locked(lock: str, licences: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Part of a bill for a lock's packages; the library takes 0.1 s over it, so it is written once a process."""
    return _document(_packages(lock, dict(licences)))


def _document(
    components: list["Component"], bundle: "Component | None" = None, tool: "Component | None" = None
) -> dict[str, Any]:
    """CycloneDX document of components, which a bundle consists of, without time stamp and serial number."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.output.json import JsonV1Dot6

    fixed = datetime.fromtimestamp(0, UTC)
    bom = Bom(components=components, serial_number=uuid.UUID(int=0), metadata=BomMetaData(timestamp=fixed))
    if bundle and tool:
        bom.metadata.component = bundle
        bom.metadata.tools.components.add(tool)
        bom.register_dependency(bundle, components)
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"], document["serialNumber"]
    return document


def _model(model: ModelFacts) -> "Component":
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    owner, _, name = model.id.rpartition("/")
    purl = PackageURL("huggingface", owner or None, name, model.revision) if model.on_hub else None
    files = [
        Component(name=path, type=ComponentType.FILE, bom_ref=f"model:{path}", hashes=[_sha256(digest)])
        for path, digest in sorted(model.files.items())
    ]
    return Component(
        name=model.id,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        version=model.revision or model.version,
        licenses=_licences(model.licence),
        purl=purl,
        components=files,
    )


def _base(image: str) -> "Component":
    from cyclonedx.model.component import Component, ComponentType

    name, _, digest = image.partition("@sha256:")
    path, _, tag = name.rpartition(":")
    hashes = [_sha256(digest)] if digest else []
    return Component(name=path, type=ComponentType.CONTAINER, bom_ref="base-image", version=tag, hashes=hashes)


def _packages(lock: str, licences: Mapping[str, str]) -> list["Component"]:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

    found = []
    for pin in pins(lock):
        purl = PackageURL("pypi", None, pin.name, pin.version)
        # The lock allows any of these files, for various Pythons and platforms: they are not hashes of one file.
        page = ExternalReference(
            type=ExternalReferenceType.DISTRIBUTION,
            url=XsUri(f"https://pypi.org/project/{pin.name}/{pin.version}/"),
            hashes=[_sha256(digest.removeprefix("sha256:")) for digest in pin.hashes],
        )
        component = Component(
            name=pin.name,
            version=pin.version,
            bom_ref=purl.to_string(),
            purl=purl,
            licenses=_licences(licences.get(pin.name)),
            external_references=[page],
        )
        found.append(component)
    return found


def _licences(told: str | None) -> list["License"]:
    """SPDX id or expression, in any case, if it is one; else a licence of that name."""
    from cyclonedx.contrib.license.factories import LicenseFactory

    return [LicenseFactory().make_from_string(told)] if told else []


def _sha256(digest: str) -> "HashType":
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=digest)
