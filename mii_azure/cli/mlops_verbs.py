"""Verbs ci, component and infra."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mii_azure.cli import derived
from mii_azure.cli.shared import Bundle, flag, out

Force = Annotated[bool, flag("force", "Replace files that differ.")]


@derived.takes(derived.of_spec(derived.FIELDS))
def ci(
    context: typer.Context,
    provider: Annotated[str, flag("provider", "github or azure-devops.")],
    index_url: Annotated[
        str, flag("index-url", "Where the workflow gets the packages that mii-azure needs; PyPI when empty.")
    ] = "",
    output: Annotated[Path | None, flag("output", "Repository to write into; . when absent.")] = None,
    force: Force = False,
    file: derived.SpecFile = None,
    **given: Any,
) -> None:
    """Write a workflow, and the package that it installs: check, OIDC sign-in, green at 0 %, parity gate, promote.

    A folder for --model is one of the repository.
    """
    from mii_azure.mlops.workflows import needs, workflow, write_files
    from mii_azure.spec import make_spec

    spec = make_spec(**derived.asked(context, given, file))
    for path in write_files(workflow(provider, spec, index_url), output or Path(), force):
        out.print(f"wrote {path}", soft_wrap=True)
    for need in needs(provider, spec):
        out.print(f"it needs: {need}", soft_wrap=True)


def component(
    output: Annotated[Path | None, flag("output", "Folder to write; ./component when absent.")] = None,
    force: Force = False,
) -> None:
    """Write an Azure ML pipeline component that generates a bundle and rolls it out."""
    from mii_azure.mlops.workflows import component as files
    from mii_azure.mlops.workflows import write_files

    for path in write_files(files(), output or Path("component"), force):
        out.print(f"wrote {path}", soft_wrap=True)


def infra(
    bundle: Bundle,
    form: Annotated[str, flag("format", "bicep or terraform.")] = "bicep",
    output: Annotated[Path | None, flag("output", "Folder to write; ./infra when absent.")] = None,
    force: Force = False,
) -> None:
    """Write a bundle's endpoint and deployment as Bicep or Terraform, for teams that do not use az ml."""
    from mii_azure.mlops.infra import infra as files
    from mii_azure.mlops.workflows import write_files

    for path in write_files(files(bundle, form), output or Path("infra"), force):
        out.print(f"wrote {path}", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (ci, component, infra):
        app.command()(verb)
