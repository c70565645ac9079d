"""Client credentials for a runner: certificate authority, the client's own certificate, API key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc

from local_runner.access.security import check_certificates, read_keys
from local_runner.errors import RunnerFailed


@dataclass(frozen=True)
class Credentials:
    """Credentials of a client; all absent for a runner without TLS and keys. `tls` without `ca` trusts gRPC's roots."""

    tls: bool = False
    ca: Path | None = None  # PEM; implies tls
    cert: Path | None = None  # of the client, with its key; implies tls
    key: Path | None = None
    api_key: str = field(default="", repr=False)

    @classmethod
    def of_files(
        cls,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        api_key_file: Path | None = None,
        tls: bool = False,
    ) -> Self:
        """Credentials with the first key of `api_key_file`; raises RunnerFailed for a file that is wrong or expired."""
        api_key = read_keys(api_key_file)[0] if api_key_file else ""
        return cls(tls, ca, cert, key, api_key)

    def channel(self, address: str, options: list[tuple[str, Any]], asynchronous: bool = False) -> Any:
        """Open a gRPC channel to `address`; raises RunnerFailed for files that are wrong."""
        module = grpc.aio if asynchronous else grpc
        if not (self.tls or self.ca or self.cert):
            return module.insecure_channel(address, options)
        if bool(self.cert) != bool(self.key):
            raise RunnerFailed("A client certificate needs its key.", "Give both.")
        for path in (self.ca, self.cert):
            if path:
                check_certificates(path)
        read = [path.read_bytes() if path else None for path in (self.ca, self.key, self.cert)]
        return module.secure_channel(address, grpc.ssl_channel_credentials(*read), options)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """gRPC metadata sent with every call."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()
