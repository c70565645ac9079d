"""Access control of a runner: certificates for both ports, client certificates, and keys read from a file.

A key is sent as `Authorization: Bearer KEY`, `x-api-key: KEY` or `api-key: KEY`, over HTTP and as gRPC metadata alike.
Every route needs one except the health probes, so that an orchestrator needs no secret. With a client CA every
connection needs a certificate.
"""

import hashlib
import hmac
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from local_runner.errors import RunnerFailed, Unauthenticated
from local_runner.host.callers import key_of
from local_runner.protocol import errors

_PROBES = ("/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
OPEN_ROUTES = frozenset((method, path) for method in ("GET", "HEAD") for path in _PROBES)
OPEN_CALLS = frozenset(
    (
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    )
)


@dataclass(frozen=True)
class SecurityFiles:
    """Paths of certificates and keys; all absent means an open runner without TLS."""

    cert: Path | None = None  # PEM, the chain included
    key: Path | None = None
    client_ca: Path | None = None
    api_keys: Path | None = None  # one key per line


@dataclass(frozen=True)
class _Pems:
    """PEM files of a TLS server as bytes, read together: no handshake meets files that are half replaced."""

    cert: bytes
    key: bytes
    client_ca: bytes | None


@dataclass
class Security:
    """Checked contents of the files; never printed. `reload` applies changed files to new connections and to keys."""

    files: SecurityFiles = field(default_factory=SecurityFiles)
    expires: datetime | None = None  # of the server's certificate
    _keys: tuple[bytes, ...] = field(default=(), repr=False)
    _pems: _Pems | None = field(default=None, repr=False)
    _context: ssl.SSLContext | None = field(default=None, repr=False)
    _told: _Pems | None = field(default=None, repr=False)  # the files that gRPC was given last

    def reload(self) -> None:
        """Read the files again; raises RunnerFailed and changes nothing if one of them is wrong."""
        found = load(self.files)
        self.expires, self._keys, self._pems, self._context = found.expires, found._keys, found._pems, found._context

    def summary(self) -> str:
        """Summary of the protection in force, for a person; contains no key."""
        parts = [f"{len(self._keys)} API keys"] if self.files.api_keys else []
        parts += [f"a certificate until {self.expires:%Y-%m-%d %H:%M} UTC"] if self.expires else []
        return ", ".join(parts)

    @property
    def tls(self) -> bool:
        return self.files.cert is not None

    def grpc_credentials(self) -> Any:
        """Certificates as gRPC takes them, fetched again for every connection; None without TLS."""
        if self._pems is None:
            return None
        self._told = self._pems

        def latest() -> Any:
            if self._pems is self._told or self._pems is None:
                return None  # unchanged
            self._told = self._pems
            return _configuration(self._pems)

        required = self.files.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(_configuration(self._pems), latest, required)

    def uvicorn_options(self) -> dict[str, Any]:
        """Certificates as uvicorn takes them: a context that hands every connection over to the latest one."""
        if self._context is None:
            return {}
        first = _context(self.files)

        def hand_over(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            if self._context is not None:
                connection.context = self._context

        first.sni_callback = hand_over
        return {"ssl_context_factory": lambda config, usual: first}

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise Unauthenticated unless the headers carry one of the keys, or no keys are configured."""
        if not self._keys:
            return
        sent = key_of(headers)
        digest = _digest(sent)
        # All keys are compared, as digests of one length, so that timing reveals nothing about a key.
        if not sum(hmac.compare_digest(digest, known) for known in self._keys):
            how = "no key was sent" if not sent else "the key is not one of this runner's"
            raise Unauthenticated(f"Not allowed: {how}.", "Send Authorization: Bearer KEY.")

    def guard(self, app: Any) -> Any:
        """Wrap the ASGI application `app` in the key check; probes stay open."""
        return _Guard(app, self) if self.files.api_keys else app

    def interceptors(self) -> tuple[Any, ...]:
        """gRPC interceptors that check the keys; probes stay open."""
        return (_Interceptor(self),) if self.files.api_keys else ()


def load(files: SecurityFiles) -> Security:
    """Read and check the files; raises RunnerFailed, with a sentence that names the file and its fault."""
    if bool(files.cert) != bool(files.key):
        raise RunnerFailed("TLS needs a certificate and its key.", "Give both --tls-cert and --tls-key.")
    if files.client_ca and not files.cert:
        raise RunnerFailed("Client certificates need TLS.", "Give --tls-cert and --tls-key too.")
    expires = None
    if files.cert and files.key:
        expires = check_certificates(files.cert)
        _check_pair(files.cert, files.key)
    if files.client_ca:
        check_certificates(files.client_ca)
    keys = tuple(_digest(key) for key in read_keys(files.api_keys)) if files.api_keys else ()
    if not files.cert or not files.key:
        return Security(files, expires, keys)
    client_ca = _read(files.client_ca) if files.client_ca else None
    pems = _Pems(_read(files.cert), _read(files.key), client_ca)
    return Security(files, expires, keys, pems, _context(files))


def _context(files: SecurityFiles) -> ssl.SSLContext:
    """A server's SSL context from files that have been checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(files.cert), str(files.key))
    if files.client_ca:
        context.load_verify_locations(str(files.client_ca))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _configuration(pems: _Pems) -> Any:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.cert)], pems.client_ca)


def read_keys(path: Path) -> list[str]:
    """Keys in a file: one per line, empty lines and `#` comments ignored. Raises RunnerFailed."""
    lines = [line.strip() for line in _read(path).decode(errors="replace").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise RunnerFailed(f"{path} holds no key.", "Write one key per line.")
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise RunnerFailed(f"A key in {path} cannot be sent in a header.", "Use printable ASCII without spaces.")
    return keys


def check_certificates(path: Path) -> datetime:
    """Expiry time of the first certificate in a PEM file; raises RunnerFailed for one that is not valid now."""
    from cryptography import x509

    try:
        certificates = x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise RunnerFailed(
            f"{path} holds no PEM certificate.", "It begins with -----BEGIN CERTIFICATE-----."
        ) from error
    now = datetime.now(UTC)
    for certificate in certificates:
        if certificate.not_valid_after_utc < now:
            when = f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            raise RunnerFailed(f"The certificate in {path} expired on {when}.", "Put a renewed one in its place.")
        if certificate.not_valid_before_utc > now:
            when = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            raise RunnerFailed(f"The certificate in {path} is valid only from {when}.", "Check this machine's clock.")
    return certificates[0].not_valid_after_utc


def _check_pair(cert: Path, key: Path) -> None:
    _read(key)
    try:
        # An encrypted key must not make OpenSSL prompt on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        why = getattr(error, "reason", None) or error
        raise RunnerFailed(
            f"{key} is not the key of {cert}: {why}.", "Give the unencrypted PEM key that the certificate was made for."
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunnerFailed(
            f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions."
        ) from error


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class _Guard:
    """ASGI middleware that checks keys before any part of a request is read."""

    def __init__(self, app: Any, security: Security) -> None:
        self._app = app
        self._security = security

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not _is_open(scope):
            try:
                self._security.check(_text(scope["headers"]))
            except Unauthenticated as error:
                await self._refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _refuse(self, error: Unauthenticated, scope: Any, receive: Any, send: Any) -> None:
        from local_runner.http.app import error_response

        await error_response(scope["path"], error)(scope, receive, send)


def _is_open(scope: Any) -> bool:
    """True if it is an open route, by method and by path exactly as sent: no other spelling of a route counts."""
    path = scope["path"]
    return scope["type"] == "http" and (scope["method"], path) in OPEN_ROUTES and scope["raw_path"] == path.encode()


def _text(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


class _Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc is untyped
    def __init__(self, security: Security) -> None:
        self._security = security

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        if details.method in OPEN_CALLS:
            return await continuation(details)
        headers = {key: value for key, value in details.invocation_metadata if isinstance(value, str)}
        try:
            self._security.check(headers)
        except Unauthenticated as error:
            return _refusal(error)
        return await continuation(details)


def _refusal(error: Unauthenticated) -> Any:
    sentence, trailing = errors.trailers(error.http_status, error.headers, errors.body_of(error))

    async def refuse(requests: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, sentence, trailing)

    # Whatever kind of call it is, it ends before its first message is read.
    return grpc.stream_unary_rpc_method_handler(refuse)
