"""Verbs that talk to Azure: deploy, rollout, status, logs, invoke, delete."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mii_azure.cli.derived import SpecFile, warn_of_machine
from mii_azure.cli.shared import (
    AsJson,
    Bundle,
    ResourceGroup,
    Subscription,
    Workspace,
    a_folder,
    err,
    flag,
    opening,
    out,
    print_json,
    print_text,
    read_request,
)
from mii_azure.errors import SpecError

Slot = Annotated[str, flag("slot", "Deployment of the endpoint, e.g. blue or green.")]
Online = Annotated[bool, flag("online", "Also ask the workspace what only Azure knows; changes nothing there.")]
Endpoint = Annotated[str, typer.Argument(help="Name of the endpoint in Azure.")]


@contextlib.contextmanager
def _azure(subscription: str | None, resource_group: str | None, workspace: str | None) -> Iterator[Any]:
    """Workspace client; azure-ai-ml's polling output goes to standard error, which keeps --json clean."""
    with contextlib.redirect_stdout(sys.stderr):
        yield workspace_client(subscription, resource_group, workspace)


def workspace_client(subscription: str | None, resource_group: str | None, workspace: str | None) -> Any:
    """Workspace client, under this machine's sign-in."""
    from mii_azure.azure.client import connect

    return connect(subscription, resource_group, workspace)


def asked_online(
    target: Path, slot: str, subscription: str | None, resource_group: str | None, workspace: str | None
) -> list[Any]:
    """Ask the workspace about a bundle or YAML."""
    from mii_azure.preflight.preflight import online

    with _azure(subscription, resource_group, workspace) as client:
        return list(online(target, client, slot or None))


def afforded(
    plan: Any, instances: int, scope: tuple[str | None, str | None, str | None], online: bool
) -> list[Any] | None:
    """Answers of the workspace about a plan's machines; None unless it is to be asked."""
    from mii_azure.preflight.preflight import afford

    if not online:
        return None
    with _azure(*scope) as client:
        return list(afford(plan.instance_type, instances, client))


def _say(text: str) -> None:
    err.print(text, soft_wrap=True)


def deploy(
    bundle: Annotated[
        Path | None, typer.Argument(envvar="MII_AZURE_BUNDLE", help="A generated folder.", callback=a_folder)
    ] = None,
    file: SpecFile = None,
    subscription: Subscription = None,
    resource_group: ResourceGroup = None,
    workspace: Workspace = None,
    slot: Slot = "blue",
    traffic: Annotated[int | None, flag("traffic", "Percentage for the slot; all when no other slot has any.")] = None,
    as_json: AsJson = False,
) -> None:
    """Deploy a bundle: environment, model, endpoint, deployment, sample request, traffic. Safe to run again.

    With -f and no bundle, the one that the file describes is written to ./NAME first.
    """
    from dataclasses import asdict

    from mii_azure.operations.deploy import deploy as run

    if bundle is None:
        bundle = _written(file)

    with _azure(subscription, resource_group, workspace) as client:
        done = run(bundle, client, slot, traffic, _say)
    if as_json:
        print_json(asdict(done))
        return
    out.print(f"{done.endpoint}, slot {done.slot}, answers at {done.scoring_uri}", soft_wrap=True)
    out.print(f"traffic: {done.traffic or 'none yet'}", soft_wrap=True)


def _written(file: Path | None) -> Path:
    """Bundle of a spec's file, written anew below the current folder."""
    from mii_azure.sdk.generate import write_bundle
    from mii_azure.sdk.spec_file import read
    from mii_azure.spec import make_spec

    if file is None:
        raise SpecError("deploy needs a bundle, or a file of settings.", "Name a bundle, or give -f mii-azure.yml.")
    spec = make_spec(**read(file))
    warn_of_machine(spec.model_dump())
    _say(f"writing the bundle {spec.name}")
    return write_bundle(spec, force=True)[0]


def rollout(
    bundle: Bundle,
    subscription: Subscription = None,
    resource_group: ResourceGroup = None,
    workspace: Workspace = None,
    hold: Annotated[float, flag("hold", "Seconds that each share of traffic is held and watched.")] = 60.0,
    skip_parity: Annotated[bool, flag("skip-parity", "Do not compare with the local runner.")] = False,
    tokens: Annotated[int, flag("tokens", "Let the parity gate judge so many tokens by plain transformers.")] = 0,
    require: Annotated[
        Path | None, flag("require", "Go on only with this file of a verdict of yes, by `parity --output`.")
    ] = None,
    keep_old: Annotated[bool, flag("keep-old", "Leave the old slot, without traffic.")] = False,
    watch: Annotated[
        bool, flag("watch", "Compare both slots' numbers in Azure Monitor too; hold for minutes.")
    ] = False,
    max_errors: Annotated[float, flag("max-errors", "With --watch: points of failed requests above the old slot.")] = 1,
    max_slower: Annotated[float, flag("max-slower", "With --watch: percent above the old slot's p90.")] = 50,
    undo: Annotated[bool, flag("undo", "Give all traffic back to the slot that this bundle was to replace.")] = False,
    as_json: AsJson = False,
) -> None:
    """Replace what an endpoint serves, gate by gate: 0 %, parity, mirror, 10, 50, 100 %. A failed gate rolls back."""
    from dataclasses import asdict

    from mii_azure.operations.metrics_gate import Allowed
    from mii_azure.operations.rollout import rollout as run
    from mii_azure.operations.rollout import undo as give_back

    if undo:
        with _azure(subscription, resource_group, workspace) as client:
            traffic = give_back(bundle, client, _say)
        print_json({"traffic": traffic}) if as_json else out.print(f"traffic: {traffic}", soft_wrap=True)
        return

    options: dict[str, Any] = {"hold_s": hold, "parity": not skip_parity, "tokens": tokens, "require": require}
    options |= {"keep_old": keep_old, "watch": Allowed(max_errors, max_slower) if watch else None}
    with _azure(subscription, resource_group, workspace) as client:
        done = run(bundle, client, say=_say, **options)
    if as_json:
        print_json(asdict(done))
        return
    gates = ", ".join(done.gates) or "none, the bundle was live already"
    out.print(f"{done.endpoint} is served by {done.slot}; gates passed: {gates}", soft_wrap=True)


def status(
    endpoint: Endpoint,
    subscription: Subscription = None,
    resource_group: ResourceGroup = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Show an endpoint's slots: state, traffic, instances, and which bundle each one runs."""
    from mii_azure.cli.report import show_status
    from mii_azure.operations.operate import status as read

    with _azure(subscription, resource_group, workspace) as client:
        found = read(client, endpoint)
    print_json(found) if as_json else show_status(out, found)


def logs(
    endpoint: Endpoint,
    subscription: Subscription = None,
    resource_group: ResourceGroup = None,
    workspace: Workspace = None,
    slot: Slot = "blue",
    lines: Annotated[int, flag("lines", "How many lines from the end.")] = 200,
    container: Annotated[
        str | None, flag("container", "inference-server, or storage-initializer, which fetches the model.")
    ] = None,
) -> None:
    """Print the last lines of a slot's container."""
    from mii_azure.operations.operate import logs as read

    with _azure(subscription, resource_group, workspace) as client:
        text = read(client, endpoint, slot, lines, container)
    print_text(text.rstrip("\n") + "\n")


def invoke(
    endpoint: Endpoint,
    request: Annotated[str, typer.Argument(help="The request as JSON, or - to read it from standard input.")],
    subscription: Subscription = None,
    resource_group: ResourceGroup = None,
    workspace: Workspace = None,
    slot: Annotated[str, flag("slot", "Ask this slot whatever the traffic; by traffic when empty.")] = "",
) -> None:
    """Send one request to a live endpoint and print the answer; the model's own refusals keep their status."""
    from mii_azure.operations.operate import invoke as send

    payload = read_request(request)
    with _azure(subscription, resource_group, workspace) as client:
        answer = send(client, endpoint, payload, slot or None)
    print_json(answer)


def delete(
    endpoint: Endpoint,
    subscription: Subscription = None,
    resource_group: ResourceGroup = None,
    workspace: Workspace = None,
    slot: Annotated[str, flag("slot", "Delete only this slot; the endpoint when empty.")] = "",
    yes: Annotated[bool, flag("yes", "Do not ask.")] = False,
) -> None:
    """Delete a slot, or the endpoint with all of its slots. Models and environments stay registered."""
    from mii_azure.operations.operate import delete as remove

    what = f"slot {slot} of {endpoint}" if slot else f"the endpoint {endpoint} and all of its slots"
    opening.end()
    if not yes and not typer.confirm(f"Delete {what}?", err=True):
        raise typer.Exit(1)
    with _azure(subscription, resource_group, workspace) as client:
        remove(client, endpoint, slot or None, _say)
    out.print(f"deleted {what}", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (deploy, rollout, status, logs, invoke, delete):
        app.command()(verb)
