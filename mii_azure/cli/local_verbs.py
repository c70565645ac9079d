"""Verbs of this machine: try a model, see what runs, stop it, begin a file of settings."""

import contextlib
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mii_azure.cli import derived, progress
from mii_azure.cli.report import print_table, table
from mii_azure.cli.shared import AsJson, err, flag, out, print_json


def try_model(
    model: Annotated[str, typer.Argument(help="Small model of `mii-azure models`, a folder, or a hub id.")] = "smollm2",
    task: Annotated[str, flag("task", "What it is to do; guessed from the model when empty.")] = "",
    browser: Annotated[bool, flag("browser", "Open its page in a browser.")] = False,
    keep: Annotated[bool, flag("keep", "Leave it running: `mii-azure ps` and `stop`.")] = False,
) -> None:
    """Try a model here: bundle, server, page, and a chat or its sample request. One command, nothing to set up."""
    from mii_azure.cli.answers import show_answer
    from mii_azure.sdk.deployments import client
    from mii_azure.sdk.trial import trial
    from scoring.schema.registry import task_schema

    with progress.status(err, enabled=True) as tell, _ended(keep) as begun:
        deployment, kind = trial(model, task, tell)
        begun.append(deployment.name)
        tell.end()
        page = f"http://{deployment.host}:{deployment.http_port}/"
        told = f"{deployment.name} ({kind}) answers at {page} and over gRPC on {deployment.grpc_port}"
        out.print(told, soft_wrap=True)
        if browser:
            webbrowser.open(page)
        with client(deployment.name) as asked:
            sample = task_schema(kind).sample
            out.print(f"asked {sample['inputs']!r}:", soft_wrap=True)
            tell("waiting for the answer")
            answer = asked.query(sample)
            tell.end()
            show_answer(out, answer, Path())
        if sys.stdin.isatty():
            _stay(deployment.name, kind)


@contextlib.contextmanager
def _ended(keep: bool) -> Iterator[list[str]]:
    """Stop the deployments that are put into the list, at the end, unless they are to be kept."""
    from mii_azure.sdk.deployments import terminate

    begun: list[str] = []
    try:
        yield begun
    finally:
        for name in begun:
            if keep:
                out.print(f"it runs on: mii-azure query {name} ...    mii-azure stop {name}", soft_wrap=True)
            else:
                terminate(name)


def _stay(name: str, kind: str) -> None:
    """Chat, or wait for Ctrl-C."""
    import signal

    from mii_azure.cli.query_verbs import chat

    if kind == "conversational":
        out.print("Type a message; Ctrl-D ends.")
        chat(name)
        return
    out.print(f"It answers until Ctrl-C; elsewhere: mii-azure query {name} ...", soft_wrap=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def ps(as_json: AsJson = False) -> None:
    """List the runners of this machine: name, task, ports, for how long, and the adapters beside the model."""
    from mii_azure.sdk.running import running

    found = running()
    if as_json:
        print_json([each.model_dump(mode="json") for each in found])
        return
    if not found:
        out.print("nothing runs here")
        return
    adapted = any(each.adapters for each in found)
    made = table("name", "task", "pid", "ports", "for", *(["adapters"] if adapted else []), "bundle", named=4)
    for each in found:
        ports = ", ".join(map(str, each.ports)) or "loading"
        adapters = [", ".join(each.adapters)] if adapted else []
        made.add_row(each.name, each.task, str(each.pid), ports, _age(each.seconds), *adapters, each.bundle)
    print_table(out, made)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def stop(
    which: Annotated[str, typer.Argument(help="Name or pid, as `mii-azure ps` shows them.")],
) -> None:
    """Stop a runner of this machine; it finishes what it accepted."""
    from mii_azure.sdk.running import stop as end

    with progress.status(err, enabled=True) as tell:
        tell(f"stopping {which}")
        ended = end(which)
    out.print(f"stopped {ended.name}, pid {ended.pid}", soft_wrap=True)


@derived.takes(derived.of_spec(("task", "model", "name", "instance_type")))
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")] = Path(),
    force: Annotated[bool, flag("force", "Replace an existing file.")] = False,
    **given: Any,
) -> None:
    """Write mii-azure.yml: every setting with its default and its meaning, and a JSON Schema for editors."""
    from mii_azure.sdk import spec_file

    path = spec_file.init(folder, {name: value for name, value in given.items() if value is not None}, force)
    out.print(f"wrote {path} and {spec_file.SCHEMA}", soft_wrap=True)
    out.print(f"next: edit it, then mii-azure plan -f {path}", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("try")(try_model)
    for verb in (ps, stop, init):
        app.command()(verb)
