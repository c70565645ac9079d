"""Flags of serve and query, TLS and keys given by file and never on the command line; and the verb top."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from local_runner.flags import serving as declared
from local_runner.flags.flag import Flag
from mii_azure.cli.shared import flag, option, out

if TYPE_CHECKING:
    from local_runner.access.credentials import Credentials


#: What `mii-azure serve` takes; the runner, which it becomes, takes the same and what programs say.
RUNNER = (*declared.PEOPLE, *declared.LOCAL, *declared.RAY)

TlsCert = Annotated[Path | None, option(declared.TLS_CERT)]
TlsKey = Annotated[Path | None, option(declared.TLS_KEY)]
ApiKeyFile = Annotated[Path | None, option(declared.API_KEY_FILE)]
TlsCa = Annotated[
    Path | None, option(Flag("tls-ca", "PEM authorities that the server's certificate must be of.", guard=True))
]
Tls = Annotated[bool, option(Flag("tls", "Use TLS, trusting the authorities that gRPC comes with.", guard=True))]


def runner_options(values: Mapping[str, Path | str | float | None]) -> list[str]:
    """Command-line options of the runner for the values that are given."""
    words: list[str] = []
    for declared_flag in RUNNER:
        value = values[declared_flag.variable]
        if value is True:
            words.append(f"--{declared_flag.name}")
        elif value is not None and value is not False:
            words += [f"--{declared_flag.name}", str(value)]
    return words


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
