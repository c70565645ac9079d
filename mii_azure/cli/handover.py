"""Verbs for handing a bundle over: prepare, verify, diff and package."""

from pathlib import Path
from typing import Annotated

import typer

from mii_azure.cli.shared import AsJson, Bundle, flag, out, print_json
from mii_azure.platform.paths import expanded


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(prepare)
    app.command()(verify)
    app.command()(diff)
    app.command()(package)


def prepare(bundle: Bundle, as_json: AsJson = False) -> None:
    """Verify a bundle's optimisations on this machine now, so that the endpoint need not at every start.

    It holds for the same device, versions and model; anywhere else they are verified at start, as without it.
    """
    from mii_azure.bundle.prepare import prepare as run

    done = run(bundle)
    if as_json:
        print_json(done)
        return
    for name, error in done.errors.items():
        out.print(f"{name}: relative error {error:.1e}, {done.seconds[name]:g} s", soft_wrap=True)
    if not done.errors:
        out.print("no pass applies on this machine: there is nothing to verify")
    out.print(f"prepared for {done.device}; bundle {done.bundle[:12]}", soft_wrap=True)


def verify(bundle: Bundle, as_json: AsJson = False) -> None:
    """Verify that a bundle is as it was generated: hashes, scoring package, lock, SBOM. Exit 1 where it is not."""
    from mii_azure.bundle.verify import verify_bundle

    found = verify_bundle(bundle)
    if as_json:
        print_json(found.model_dump() | {"sound": found.sound})
    else:
        out.print("\n".join(found.lines()), soft_wrap=True)
    if not found.sound:
        raise typer.Exit(1)


def diff(
    a: Annotated[Path, typer.Argument(help="A generated folder.")],
    b: Annotated[Path, typer.Argument(help="The one to compare it with.")],
    as_json: AsJson = False,
) -> None:
    """Compare two bundles: model, scoring, environment, settings, documents. Exit 1 where they differ."""
    from mii_azure.bundle.diff import GROUPS
    from mii_azure.bundle.diff import diff as compare

    changes = compare(a, b)
    if as_json:
        print_json([change.model_dump() for change in changes])
    else:
        for group in GROUPS:
            lines = [f"  {change.line()}" for change in changes if change.group == group]
            if lines:
                out.print("\n".join([f"{group}:", *lines]), soft_wrap=True)
        if not changes:
            out.print("the same")
    if changes:
        raise typer.Exit(1)


def package(
    bundle: Bundle,
    output: Annotated[Path | None, flag("output", "Folder of the OCI layout to write; BUNDLE.oci when absent.")] = None,
    base: Annotated[
        Path | None, flag("base", "OCI layout of the image that the bundle's Dockerfile builds: the result then runs.")
    ] = None,
    tag: Annotated[str, flag("tag", "Tag of the image; the bundle's hash if empty.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write an OCI image layout of a bundle, without a container engine: files to mount, or an image that runs."""
    from mii_azure.bundle.package import package as write

    folder = expanded(bundle).resolve()
    made = write(bundle, output or folder.with_name(f"{folder.name}.oci"), base=base, tag=tag)
    if as_json:
        print_json(made)
        return
    what = "an image that runs" if made.runs else "an image of files, to mount or to serve from"
    out.print(f"wrote {made.layout}: {what}, {made.bytes / 1e6:,.1f} MB, tag {made.tag}, {made.digest}", soft_wrap=True)
    out.print(f"next: skopeo copy oci:{made.layout}:{made.tag} docker://REGISTRY/NAME:{made.tag}", soft_wrap=True)
