"""Verbs that ask a model: query, and chat."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from mii_azure.cli import progress, serving
from mii_azure.cli.shared import AsJson, err, flag, out, print_json, print_text, read_input
from mii_azure.errors import MiiAzureError

Target = Annotated[
    str,
    typer.Argument(help="A bundle, HOST:PORT of gRPC, a local deployment, endpoint:NAME, or a scoring URL."),
]
Timeout = Annotated[float, flag("timeout", "Deadline in seconds.")]


def query(
    target: Target,
    request: Annotated[
        list[str],
        typer.Argument(help="Texts, @FILE, key=value of the input and of parameters; or JSON; - reads it from stdin."),
    ],
    stream: Annotated[bool, flag("stream", "Print text as it is generated.")] = False,
    output: Annotated[Path | None, flag("output", "Folder for images; the current one when absent.")] = None,
    as_json: AsJson = False,
    timeout: Timeout = 120.0,
    tls: serving.Tls = False,
    tls_ca: serving.TlsCa = None,
    tls_cert: serving.TlsCert = None,
    tls_key: serving.TlsKey = None,
    api_key_file: serving.ApiKeyFile = None,
) -> None:
    """Send one request and print the answer: for people, or as it is with --json."""
    from mii_azure.cli.answers import show_answer
    from mii_azure.sdk import query as asking
    from mii_azure.sdk import typed_request

    words = [read_input()] if request == ["-"] else request
    payload = asking.early_payload(words, target)  # wrong ones are refused before anything starts
    proof = serving.credentials(tls, tls_ca, tls_cert, tls_key, api_key_file)
    with (
        progress.status(err, enabled=True) as tell,
        asking.reached(target, proof, brief=True, progress=tell) as client,
    ):
        if payload is None:
            payload = typed_request.payload_of(words, asking.task_of(client, timeout))
        if stream:
            for piece in asking.texts(tell.over(client.stream(payload, timeout=timeout))):
                print_text(piece)
            print_text("\n")
            return
        tell("waiting for the answer")
        answer = client.query(payload, timeout=timeout)
    print_json(answer) if as_json else show_answer(out, answer, output or Path())


def chat(
    target: Target,
    parameters: Annotated[
        list[str] | None, typer.Argument(help="key=value of parameters, and system=... for the first message.")
    ] = None,
    timeout: Timeout = 120.0,
    tls: serving.Tls = False,
    tls_ca: serving.TlsCa = None,
    tls_cert: serving.TlsCert = None,
    tls_key: serving.TlsKey = None,
    api_key_file: serving.ApiKeyFile = None,
) -> None:
    """Talk with a conversational model, line by line, answers as they are generated. Ctrl-D ends, /new begins anew."""
    from mii_azure.sdk import query as asking
    from mii_azure.sdk.conversation import Conversation

    proof = serving.credentials(tls, tls_ca, tls_cert, tls_key, api_key_file)
    with (
        progress.status(err, enabled=True) as tell,
        asking.reached(target, proof, progress=tell) as client,
    ):
        conversation = Conversation(client, parameters or [], timeout)
        tell.end()
        for line in _lines():
            if line == "/new":
                conversation.restart()
                continue
            try:
                with progress.status(err, enabled=sys.stdin.isatty()) as answering:
                    answering("waiting for the answer")
                    for piece in answering.over(conversation.answer(line)):
                        print_text(piece)
                print_text("\n")
            except MiiAzureError as error:
                if not sys.stdin.isatty():
                    raise
                err.print(f"\nerror [{error.code}]: {error}", soft_wrap=True)


def _lines() -> Iterator[str]:
    """Lines of standard input that say something; on a terminal each is asked for."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line:
            yield line


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(query)
    app.command()(chat)
