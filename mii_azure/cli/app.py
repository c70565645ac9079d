"""Command line: one thin function per verb; every flag has an environment variable, MII_AZURE_<FLAG>."""

import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from mii_azure.cli import (
    azure_verbs,
    bench_verbs,
    derived,
    handover,
    lists,
    local_verbs,
    mlops_verbs,
    price_verbs,
    query_verbs,
    serving,
)
from mii_azure.cli.shared import (
    AsJson,
    Bundle,
    Report,
    ResourceGroup,
    Subscription,
    Workspace,
    a_folder,
    err,
    opening,
    out,
)
from mii_azure.cli.shared import flag as _flag
from mii_azure.cli.shared import print_json as _print_json
from mii_azure.errors import FileUnusable, MiiAzureError
from mii_azure.platform.machine import DESCRIPTION
from mii_azure.version import __version__

app = typer.Typer(
    name="mii-azure",
    help="From a model and a task to a folder that Azure ML deploys as it stands, served and proven locally.",
    epilog="Exit codes: 0 done, 1 findings or a verdict of no, 2 usage, 3 model or bundle, 4 host, 5 Azure, 70 defect.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        out.print(f"mii-azure {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    opening.begin(context.invoked_subcommand or "")


Targets = Annotated[
    str,
    _flag(
        "targets",
        "Comma-separated: in-process, grpc, http, azmlinfsrv, container, endpoint:NAME, url:URL, bundle:FOLDER.",
    ),
]


#: Fields of a spec that a plan depends on.
PLANNED = (
    "task",
    "model",
    "instance_type",
    "revision",
    "dtype",
    "quantise",
    "adapter",
    "adapters",
    "instance_count",
    "allow_pickle",
    "trust_remote_code",
    "objective",
    "optimisations",
    "passes_on",
    "passes_off",
    "tensor_parallel",
    "context_length",
    "max_concurrency",
    "memory_share",
    "kv_cache_dtype",
    "batch_invariant",
    "speculation",
    "draft_model",
    "expected_prompt_tokens",
    "expected_new_tokens",
    *DESCRIPTION,
)


@app.command()
@derived.takes(derived.of_spec(PLANNED))
def plan(
    context: typer.Context,
    file: derived.SpecFile = None,
    rank: Annotated[bool, _flag("rank", "Rank the instance types: fit, speed, quota and cost.")] = False,
    compare: Annotated[bool, _flag("compare", "Set the ways to serve it side by side: limits, price, proof.")] = False,
    verbose: Annotated[bool, _flag("verbose", "Also tell of each pass; with --rank, of every instance type.")] = False,
    prices: price_verbs.PriceFile = None,
    utilisation: price_verbs.Utilisation = 0.5,
    batch: price_verbs.BatchSize = 0,
    online: azure_verbs.Online = False,
    subscription: Subscription = None,
    resource_group: ResourceGroup = None,
    workspace: Workspace = None,
    report: Report = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    """Say whether a model fits, where, and with which settings, before anything starts. Downloads no weights."""
    from mii_azure.cli.report import show_findings
    from mii_azure.cli.report_plan import headline, next_command, show_plan
    from mii_azure.planning.planner import plan as make

    asked = derived.asked(context, given, file)
    if rank:
        price_verbs.show_ranked(
            prices=prices, as_json=as_json, verbose=verbose, utilisation=utilisation, batch=batch, **asked
        )
        return
    if compare:
        price_verbs.show_compared(prices=prices, as_json=as_json, **asked)
        return
    known = price_verbs.known(prices)
    made = make(**asked)
    flags = derived.beside_file(context, given, file) if file else asked
    costs = price_verbs.cheaper(made, known, utilisation, batch, **asked)
    lines = headline(made, asked, next_command(made, flags, file), known, costs)
    found = azure_verbs.afforded(made, asked["instance_count"], (subscription, resource_group, workspace), online)
    if as_json:
        told: dict[str, Any] = {} if found is None else {"online": [finding.model_dump() for finding in found]}
        told |= {} if costs is None else {"cheaper": costs.model_dump(mode="json")}
        _print_json(made.model_dump(mode="json") | told)
    else:
        show_plan(out, made, lines, verbose)
        if found is not None:
            show_findings(out, found)
    if report:
        from mii_azure.reports.plan_report import write_plan

        write_plan(made, lines, report)
    _fail_on_errors(found or [])


@app.command()
@derived.takes(derived.of_spec(derived.FIELDS))
def generate(
    context: typer.Context,
    file: derived.SpecFile = None,
    output: Annotated[Path | None, _flag("output", "Folder to write; ./NAME when absent.")] = None,
    force: Annotated[bool, _flag("force", "Replace an existing bundle.")] = False,
    prices: price_verbs.PriceFile = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    """Write the folder that Azure ML deploys: environment, scoring script, endpoint and deployment."""
    from mii_azure.cli.progress import copying
    from mii_azure.cli.report_plan import show_written
    from mii_azure.sdk.generate import write_bundle
    from mii_azure.spec import make_spec

    spec, known = make_spec(**derived.asked(context, given, file)), price_verbs.known(prices)
    with copying(err, enabled=not as_json) as progress:
        folder, plan = write_bundle(spec, output=output, force=force, progress=progress)
    if as_json:
        _print_json(_written(folder))
    else:
        show_written(out, folder, plan, spec, known)


def _written(folder: Path) -> dict[str, Any]:
    """Facts about a written bundle, for programs."""
    from mii_azure.bundle.bundle_view import told_by
    from mii_azure.bundle.manifest import load_manifest

    manifest, quantised = load_manifest(folder), told_by(folder)
    told = {"bundle": str(folder), "hash": manifest["bundle"], "files": len(manifest["files"])}
    return told | ({"quantisation": quantised.model_dump()} if quantised else {})


@app.command()
def check(
    target: Annotated[
        Path,
        typer.Argument(
            envvar="MII_AZURE_BUNDLE",
            help="A generated folder, or Azure ML YAML: a file or a folder.",
            callback=a_folder,
        ),
    ],
    fix: Annotated[bool, _flag("fix", "Make the changes that are safe, then check again.")] = False,
    online: azure_verbs.Online = False,
    subscription: Subscription = None,
    resource_group: ResourceGroup = None,
    workspace: Workspace = None,
    slot: Annotated[str, _flag("slot", "With --online: the slot to deploy to; the deployment's name if empty.")] = "",
    as_json: AsJson = False,
) -> None:
    """Find what would stop a deployment. YAML of other origin is judged by the rules on YAML. Exit 1 on an error."""
    from mii_azure.bundle.bundle_view import is_bundle
    from mii_azure.checks.autofix import fix as repair
    from mii_azure.checks.check import check as find
    from mii_azure.cli.report import show_findings

    if not is_bundle(target):
        what = "a file by itself" if target.is_file() else "no manifest.json"
        err.print(f"{what}: only the rules on YAML apply", soft_wrap=True)
    with _status(as_json) as status:
        status("checking, azure-ai-ml's loaders too")
        changes, findings = repair(target) if fix else ([], find(target))
        if online:
            status("asking the workspace")
            findings = [*findings, *azure_verbs.asked_online(target, slot, subscription, resource_group, workspace)]
    for change in changes:
        (err if as_json else out).print(f"changed {change}", soft_wrap=True)
    _print_json([finding.model_dump() for finding in findings]) if as_json else show_findings(out, findings)
    _fail_on_errors(findings)


def _fail_on_errors(findings: Iterable[Any]) -> None:
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@app.command()
@derived.takes(derived.of_flags(serving.RUNNER))
def serve(bundle: Bundle, **given: Any) -> None:
    """Serve a bundle over gRPC and HTTP until SIGTERM or Ctrl-C, on this machine or on a Ray cluster."""
    opening.end()
    command = [sys.executable, "-m", "local_runner", str(bundle), *serving.runner_options(given)]
    # The runner replaces this process: only the bundle's own scoring package may ever be imported there.
    # What lies in the current folder is not imported, by this process or by its children.
    os.execve(sys.executable, command, {**os.environ, "PYTHONSAFEPATH": "1"})  # noqa: S606


Tokens = Annotated[
    int, _flag("tokens", "Ask for so many tokens, and let plain transformers judge them; 1,000 see most faults.")
]
Suspects = Annotated[str, _flag("suspects", "Comma-separated NAME=FOLDER: adapters or models that may serve instead.")]


@app.command()
def parity(
    bundle: Bundle,
    targets: Targets = "",
    requests: Annotated[
        Path | None, _flag("requests", "File of request bodies, one per line, instead of our own.")
    ] = None,
    load: Annotated[
        int, _flag("load", "Ask again with so many requests in flight; answers must stay what they were alone.")
    ] = 0,
    tokens: Tokens = 0,
    suspects: Suspects = "",
    api_key_file: serving.ApiKeyFile = None,
    output: Annotated[Path | None, _flag("output", "Write the verdict to this file as JSON, too.")] = None,
    subscription: Subscription = None,
    resource_group: ResourceGroup = None,
    workspace: Workspace = None,
    report: Report = None,
    prices: price_verbs.PriceFile = None,
    as_json: AsJson = False,
) -> None:
    """Prove that hosts answer alike: same requests, graded replies. Exit 0 only when every target agrees."""
    from mii_azure.cli.report import show_verdict
    from mii_azure.verdict.parity import parity as compare
    from mii_azure.verdict.verdict_file import write_verdict

    proof = serving.credentials(tls=False, ca=None, cert=None, key=None, api_key_file=api_key_file)
    billed = price_verbs.known(prices)
    live = any(name.startswith("endpoint:") for name in derived.split(targets))
    client = azure_verbs.workspace_client(subscription, resource_group, workspace) if live else None
    with _status(as_json) as status:
        verdict = compare(
            bundle,
            targets=derived.split(targets),
            requests=requests,
            progress=status,
            ml_client=client,
            load=load,
            tokens=tokens,
            suspects=derived.folders(suspects),
            api_key=proof.api_key if proof else "",
        )
    _print_json(verdict) if as_json else show_verdict(out, verdict)
    if output:
        write_verdict(verdict, output)
    if report:
        from mii_azure.reports.parity_report import write_parity

        write_parity(verdict, report, billed)
    if not verdict.agree:
        raise typer.Exit(1)


def _status(quiet: bool) -> Any:
    from mii_azure.cli.progress import status

    return status(err, enabled=not quiet)


local_verbs.register(app)
lists.register(app)
query_verbs.register(app)
bench_verbs.register(app)
azure_verbs.register(app)
handover.register(app)
price_verbs.register(app)
serving.register(app)
mlops_verbs.register(app)


#: What a machine says of a file that a user named, wherever that is noticed; anything else is a defect of ours.
_REFUSALS = (
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
)


def main() -> None:
    """Run the command line; errors become one line and an exit code, never a traceback."""
    try:
        app()
    except MiiAzureError as error:
        err.print(Text.assemble(("error", "red"), f" [{error.code}]: {error}"), soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
    except Exception as error:
        if os.environ.get("MII_AZURE_DEBUG"):
            raise
        if isinstance(error, OSError) and error.errno in _REFUSALS and error.filename is not None:
            refused = FileUnusable(f"{error.filename}: {error.strerror}.", "Name another file or folder.")
            err.print(Text.assemble(("error", "red"), f" [{refused.code}]: {refused}"), soft_wrap=True)
            sys.exit(refused.exit_code)
        told = f" [internal]: {type(error).__name__}: {error}. This is a defect; MII_AZURE_DEBUG=1 shows where."
        err.print(Text.assemble(("error", "red"), told), soft_wrap=True)
        sys.exit(70)  # EX_SOFTWARE of sysexits.h
    finally:
        opening.end()


if __name__ == "__main__":
    main()
