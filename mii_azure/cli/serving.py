"""Flags of serve and query for TLS and keys, given by file and never on the command line; and the verb top."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mii_azure.cli.shared import flag, out

if TYPE_CHECKING:
    from local_runner.access.credentials import Credentials


def _guard(name: str, text: str) -> Any:
    """Create a flag for keys or TLS; a variable that is set but blank is an error, unlike one that is unset."""
    option = flag(name, text)

    def not_blank(value: Path | bool | None) -> Path | bool | None:
        if not os.environ.get(option.envvar, "set").strip():
            raise typer.BadParameter(f"{option.envvar} is blank; give it a value, or unset it")
        return value

    option.callback = not_blank
    return option


TlsCert = Annotated[Path | None, _guard("tls-cert", "PEM certificate that this side presents.")]
TlsKey = Annotated[Path | None, _guard("tls-key", "PEM key of the certificate.")]
TlsClientCa = Annotated[Path | None, _guard("tls-client-ca", "PEM authorities that clients' certificates must be of.")]
TlsCa = Annotated[Path | None, _guard("tls-ca", "PEM authorities that the server's certificate must be of.")]
Tls = Annotated[bool, _guard("tls", "Use TLS, trusting the authorities that gRPC comes with.")]
ApiKeyFile = Annotated[Path | None, _guard("api-key-file", "File of API keys, one a line; a client sends the first.")]

SettingsFile = Annotated[
    Path | None, flag("settings-file", "JSON of log level, limits and drain; read again on SIGHUP, like keys.")
]
Replicas = Annotated[int, flag("replicas", "Processes that each hold the model, one per GPU or group of GPUs.")]
Sticky = Annotated[
    str | None, flag("sticky", "Header whose value keeps a session on one replica, such as x-session-id.")
]
LogFormat = Annotated[str, flag("log-format", "text for people, or json: one object a line, every request told.")]
OtlpEndpoint = Annotated[str | None, flag("otlp-endpoint", "Traces go to this OTLP/HTTP port: http://HOST:4318.")]


def runner_options(**values: Path | str | float | None) -> list[str]:
    """Command-line options of the runner for the values that are given."""
    given = {name.replace("_", "-"): value for name, value in values.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def credentials(
    tls: bool, ca: Path | None, cert: Path | None, key: Path | None, api_key_file: Path | None
) -> "Credentials | None":
    """Credentials of a client; None if none are given."""
    if not (tls or ca or cert or api_key_file):
        return None
    from local_runner.access.credentials import Credentials

    return Credentials.of_files(ca, cert, key, api_key_file, tls)


def top(
    address: Annotated[str, typer.Argument(help="HOST:PORT of the runner's HTTP side.")],
    once: Annotated[bool, flag("once", "Print one look, totals since the start, and end.")] = False,
    interval: Annotated[float, flag("interval", "Seconds between two looks.")] = 1.0,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    api_key_file: ApiKeyFile = None,
) -> None:
    """Watch a running server: phase, queue, batches, times per stage, tokens. Reads /metrics."""
    from local_runner.client.top import Source, show

    show(Source(address, tls, tls_ca, api_key_file), out, once, max(0.1, interval))


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(top)
