"""What serve and query take to be sure of each other: certificates and keys, by file, never on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mii_azure.cli_shared import flag

if TYPE_CHECKING:
    from local_runner.credentials import Credentials

TlsCert = Annotated[Path | None, flag("tls-cert", "PEM certificate that this side presents.")]
TlsKey = Annotated[Path | None, flag("tls-key", "PEM key of the certificate.")]
TlsClientCa = Annotated[Path | None, flag("tls-client-ca", "PEM authorities that clients' certificates must be of.")]
TlsCa = Annotated[Path | None, flag("tls-ca", "PEM authorities that the server's certificate must be of.")]
Tls = Annotated[bool, flag("tls", "Use TLS, trusting the authorities that gRPC comes with.")]
ApiKeyFile = Annotated[Path | None, flag("api-key-file", "File of API keys, one a line; a client sends the first.")]


def runner_options(**files: Path | None) -> list[str]:
    """The runner's own options for the files that are given."""
    given = {name.replace("_", "-"): path for name, path in files.items() if path is not None}
    return [word for name, path in given.items() for word in (f"--{name}", str(path))]


def credentials(
    tls: bool, ca: Path | None, cert: Path | None, key: Path | None, api_key_file: Path | None
) -> "Credentials | None":
    """What a client goes with; None without any of it."""
    if not (tls or ca or cert or api_key_file):
        return None
    from local_runner.credentials import Credentials

    return Credentials.of_files(ca, cert, key, api_key_file, tls)
