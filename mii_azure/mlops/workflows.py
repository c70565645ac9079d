"""Files for MLOps: CI workflows and an Azure ML pipeline component."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from mii_azure.bundle.render import TEMPLATES, fill
from mii_azure.errors import NotWritten, SpecError
from mii_azure.spec import Spec
from mii_azure.version import __version__

#: Path at which each provider looks for the workflow of an endpoint.
PROVIDERS = {"github": ".github/workflows/deploy-{name}.yml", "azure-devops": "azure-pipelines/deploy-{name}.yml"}
_COMPONENT = ("component.yml", "environment/Dockerfile.j2", "src/generate_and_deploy.py")
# Characters that a shell in a workflow could expand, or its YAML misread, even in quotes.
_UNSAFE = re.compile(r"[\x00-\x1f$`\\{}\"']")


def workflow(provider: str, spec: Spec) -> dict[str, str]:
    """Generate {path: text} of the workflow that generates and rolls out a spec; raises SpecError."""
    if provider not in PROVIDERS:
        raise SpecError(f"There is no provider {provider!r}.", f"Providers: {', '.join(PROVIDERS)}.")
    given = {"task": spec.task, "model": spec.model, "name": spec.name}
    given |= {"instance-type": spec.instance_type or "", "revision": spec.revision or ""}
    given |= {"auth-mode": spec.auth_mode, "instance-count": str(spec.instance_count)}
    unsafe = [name for name, value in given.items() if _UNSAFE.search(value)]
    if unsafe:
        raise SpecError(f"{unsafe[0]} has characters that a workflow would read as its own.", "Leave them out.")
    arguments = " ".join(f"--{name} {shlex.quote(value)}" for name, value in given.items() if value)
    context = {"name": spec.azure_name, "arguments": arguments, "version": __version__}
    return {PROVIDERS[provider].format(name=spec.azure_name): fill(f"ci/{provider}.yml.j2", context)}


def component() -> dict[str, str]:
    """Generate {path: text} of the pipeline component that generates and deploys a bundle."""
    files = {}
    for path in _COMPONENT:
        template = f"component/{path}"
        if path.endswith(".j2"):
            files[path.removesuffix(".j2")] = fill(template, {"version": __version__})
        else:
            files[path] = (TEMPLATES / template).read_text(encoding="utf-8")
    return files


def write_files(files: Mapping[str, str], folder: Path, force: bool = False) -> list[Path]:
    """Write files below a folder and return their paths; raises NotWritten rather than replace a different file."""
    targets = {folder / path: text for path, text in files.items()}
    for target, text in targets.items():
        if target.is_symlink() or (target.exists() and not target.is_file()):
            raise NotWritten(f"{target} is no regular file.", "Remove it yourself, or choose another --output.")
        if not force and target.exists() and target.read_bytes() != text.encode():
            raise NotWritten(f"{target} exists and differs.", "Pass --force to replace it, or another --output.")
    try:
        for target, text in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise NotWritten(f"{folder} could not be written: {error.strerror}.", "Choose another --output.") from None
    return list(targets)
