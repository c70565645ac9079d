"""Files for MLOps: CI workflows and an Azure ML pipeline component, with the package that they install."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mii_azure.bundle.render import TEMPLATES, fill
from mii_azure.errors import NotWritten, SpecError
from mii_azure.mlops.wheel import wheel
from mii_azure.spec import Spec

#: Path at which each provider looks for the workflow of an endpoint, and the folder of what the workflow uses.
PROVIDERS = {
    "github": (".github/workflows/deploy-{name}.yml", ".github/mii-azure"),
    "azure-devops": ("azure-pipelines/deploy-{name}.yml", "azure-pipelines/mii-azure"),
}
#: What each provider's identity needs in Azure, and what the workflow reads.
NEEDS = {
    "github": (
        "An app registration or user-assigned identity with the role AzureML Data Scientist on the workspace.",
        "Its federated credential: issuer https://token.actions.githubusercontent.com, subject"
        " repo:OWNER/REPOSITORY:environment:production, audience api://AzureADTokenExchange.",
        "Repository variables: AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_SUBSCRIPTION_ID, AZURE_RESOURCE_GROUP,"
        " AZURE_WORKSPACE.",
    ),
    "azure-devops": (
        "The service connection `azure`, of workload identity federation, whose identity has the role AzureML Data"
        " Scientist on the workspace.",
        "Its federated credential: issuer and subject as the connection's page shows them; the subject is"
        " sc://ORGANISATION/PROJECT/azure, or a longer text on newer connections.",
        "Variables of the pipeline: AZURE_SUBSCRIPTION_ID, AZURE_RESOURCE_GROUP, AZURE_WORKSPACE.",
    ),
}
_LOCK = TEMPLATES / "locks" / "ci.lock"
_COMPONENT = ("component.yml", "environment/Dockerfile", "src/generate_and_deploy.py")
_PLAIN_PATH = re.compile(r"[\w.-][\w ./-]*")  # without what either provider's patterns read otherwise
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def workflow(provider: str, spec: Spec, index_url: str = "") -> dict[str, str | bytes]:
    """Generate {path: content} of a workflow that rolls a spec out, with the package that it installs.

    `index_url` is where the packages that ours needs come from; the workflow's own default if empty. Raises SpecError.
    """
    if provider not in PROVIDERS:
        raise SpecError(f"There is no provider {provider!r}.", f"Providers: {', '.join(PROVIDERS)}.")
    if spec.carries_code:
        raise SpecError(f"A bundle of kind {spec.kind} deploys by its own script, which no workflow runs.", "Run it.")
    arguments = list(_arguments(spec))
    odd = next((given for given in (*arguments, index_url) if _CONTROL.search(given)), None)
    if odd is not None:
        raise SpecError(f"{odd!r} has control characters.", "Leave them out.")
    path, folder = (text.format(name=spec.azure_name) for text in PROVIDERS[provider])
    context = {
        "name": spec.azure_name,
        "arguments": shlex.join(arguments),
        "index": f"--index-url {shlex.quote(index_url)} " if index_url else "",
        "folder": folder,
        "path": path,
        "watched": list(_watched(spec)),
        "needs": needs(provider, spec),
        "batch": spec.kind == "batch",
        "local": not spec.model.startswith("azureml:"),  # weights that parity can be asked of here
    }
    shipped = {f"{folder}/{name}": content for name, content in _package().items()}
    return {
        path: fill(f"ci/{provider}.yml.j2", context),
        f"{folder}/install.sh": fill("ci/install.sh.j2", context),
        f"{folder}/generate-{spec.azure_name}.sh": fill("ci/generate.sh.j2", context),
    } | shipped


def needs(provider: str, spec: Spec) -> tuple[str, ...]:
    """Tell in sentences what has to be there for the workflow to run."""
    outside = [path for path in _given(spec) if path.startswith(("/", "~")) or ".." in path.split("/")]
    # As JSON, in which no letter ends the line of a comment.
    there = (f"On the machine that runs it: {json.dumps(path)}, which is in no checkout." for path in outside)
    return *NEEDS[provider], *there


def _given(spec: Spec) -> list[str]:
    """Files and folders, or names elsewhere, that the bundle is made of."""
    given = (spec.model, spec.draft_model, spec.handler, spec.adapter)
    beside = (each.partition("=")[2] for each in spec.adapters)
    return list(dict.fromkeys(path for path in (*given, *beside) if path))


def _watched(spec: Spec) -> Iterator[str]:
    """Files and folders of the repository from which the bundle is made: a change in them is released too."""
    for each in _given(spec):
        plain = PurePosixPath(each).as_posix()
        here = each.startswith("./") or (not PurePosixPath(each).is_absolute() and Path(each).exists())
        if here and _PLAIN_PATH.fullmatch(plain) and ".." not in plain.split("/"):
            yield "**" if plain == "." else plain  # a dot matches nothing


def component() -> dict[str, str | bytes]:
    """Generate {path: content} of the pipeline component that generates and deploys a bundle."""
    files: dict[str, str | bytes] = {
        path: (TEMPLATES / "component" / path).read_text(encoding="utf-8") for path in _COMPONENT
    }
    return files | {f"environment/{name}": content for name, content in _package().items()}


def _package() -> dict[str, str | bytes]:
    """Wheel of this package, and the lock that names it and all that it needs, by hash."""
    name, content = wheel()
    line = f"./{name} --hash=sha256:{hashlib.sha256(content).hexdigest()}\n"
    return {name: content, "requirements.lock": line + _LOCK.read_text(encoding="utf-8")}


def _arguments(spec: Spec) -> Iterator[str]:
    """Flags of `mii-azure generate` for every field that is not at its default."""
    for name, field in Spec.model_fields.items():
        value: Any = getattr(spec, name)
        if not field.is_required() and value == field.get_default(call_default_factory=True):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        elif isinstance(value, dict):
            yield from (f"--{flag}", ",".join(f"{key}={text}" for key, text in value.items()))
        else:
            yield from (f"--{flag}", ",".join(value) if isinstance(value, tuple) else str(value))


def write_files(files: Mapping[str, str | bytes], folder: Path, force: bool = False) -> list[Path]:
    """Write files below a folder and return their paths; raises NotWritten rather than replace a different file."""
    targets = {folder / path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
    for target, content in targets.items():
        if target.is_symlink() or (target.exists() and not target.is_file()):
            raise NotWritten(f"{target} is no regular file.", "Remove it yourself, or choose another --output.")
        if not force and target.exists() and target.read_bytes() != content:
            raise NotWritten(f"{target} exists and differs.", "Pass --force to replace it, or another --output.")
    try:
        for target, content in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    except OSError as error:
        raise NotWritten(f"{folder} could not be written: {error.strerror}.", "Choose another --output.") from None
    return list(targets)
