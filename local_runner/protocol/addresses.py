"""Addresses that keys and tokens are sent to: parsed in one way, and refused if they could be parsed in two."""

import ipaddress
import re
import urllib.request
from typing import Any, NamedTuple

_PORTS = {"http": 80, "https": 443}
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_PLACE = rf"(?P<host>{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9a-f:.]{{2,45}}\])"
_URL = re.compile(rf"(?P<scheme>https?)://{_PLACE}(?::(?P<port>[0-9]{{1,5}}))?(?P<path>/[!-\[\]-~]*)?", re.IGNORECASE)
_HOST_PORT = re.compile(rf"{_PLACE}:(?P<port>[0-9]{{1,5}})", re.IGNORECASE)
_ODD = (
    (re.compile(r"[\x00-\x20\x7f]"), "white space or a control character"),
    (re.compile(r"[^\x00-\x7f]"), "a character that is not ASCII"),
    (re.compile(r"\\"), "a backslash"),
    (re.compile(r"^[^/]*//[^/]*@"), "a name or password before its host"),
    (re.compile(r"^[^/]*//[^/]*%"), "a percent sign in its host"),
    (re.compile(r"#"), "a fragment"),
)


class Address(NamedTuple):
    """Destination of a request."""

    scheme: str  # http or https
    host: str  # in lower case; IPv6 in brackets
    port: int
    path: str  # includes the query; empty, or begins with a slash


def read_url(url: str) -> Address:
    """Parse the address in a URL; raises ValueError, whose text says what is odd about it.

    No two parsers may disagree about the host: it is letters, digits, hyphens and dots, or IPv6 in brackets, and ends
    at a colon, at a slash or with the text.
    """
    for pattern, what in _ODD:
        if pattern.search(url):
            raise ValueError(f"it has {what}")
    match = _URL.fullmatch(url)
    if not match:
        raise ValueError("it is not http or https, a host, perhaps a port, and a path")
    scheme = match["scheme"].lower()
    return Address(scheme, *_place(match, _PORTS[scheme]), match["path"] or "")


def read_host_port(address: str) -> tuple[str, int]:
    """Parse host and port of HOST:PORT, IPv6 in brackets; raises ValueError."""
    match = _HOST_PORT.fullmatch(address)
    if not match:
        raise ValueError("it is not HOST:PORT")
    return _place(match, 0)


def _place(match: re.Match[str], default: int) -> tuple[str, int]:
    host, port = match["host"].lower(), int(match["port"] or default)
    if host.startswith("["):
        ipaddress.IPv6Address(host[1:-1])  # its ValueError says what is wrong
    if not 0 < port < 1 << 16:
        raise ValueError(f"{port} is no port")
    return host, port


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Handler that follows no redirect: urllib would send the headers along, keys included."""

    def redirect_request(self, *_: Any) -> None:
        return None


def opener(*handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """Build urllib's opener with these handlers; it requests no other address than the given one."""
    return urllib.request.build_opener(_NoRedirects(), *handlers)
