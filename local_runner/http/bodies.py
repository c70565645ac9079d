"""Bodies of requests: read within a limit, which holds for what is sent and for what that unpacks to."""

import zlib
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.requests import ClientDisconnect

from local_runner.errors import UnsupportedEncoding
from scoring.errors import InvalidInput, InvalidJson, PayloadTooLarge

_GZIP = 31  # zlib's number of a gzip stream
_PLAIN = ("", "identity")


async def read_body(request: Request, limit: int) -> bytes:
    """Read a request's body, unpacked; raises PayloadTooLarge as soon as it is known to be too long.

    Raises UnsupportedEncoding for a compression other than gzip, and InvalidInput for a stream that is none.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in (*_PLAIN, "gzip"):
        raise UnsupportedEncoding(
            f"The body's encoding is {encoding[:40]!r}.", "Send it as it is, or by gzip.", "content-encoding"
        )
    parts = request.stream() if encoding in _PLAIN else _unpacked(request.stream(), limit)
    found, size = [], 0
    try:
        async for part in parts:
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            found.append(part)
    except ClientDisconnect:  # the client has gone: nobody to answer, and nothing to alarm the log with
        raise InvalidJson("The body ended before its length.") from None
    return b"".join(found)


async def _unpacked(parts: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    """Unpack a gzip stream, at most one byte past the limit at once."""
    stream = zlib.decompressobj(_GZIP)
    try:
        async for part in parts:
            yield stream.decompress(part, limit + 1)
            if stream.unconsumed_tail:  # more than the limit: whoever reads has refused it by now
                return
            if stream.unused_data:
                raise zlib.error("bytes follow its end")
    except zlib.error as error:
        raise InvalidInput(f"The body is not gzip: {error}.", where="content-encoding") from error
    if not stream.eof:
        raise InvalidInput("The body is not gzip: it ends too early.", where="content-encoding")


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {limit} bytes.", "Send it in parts.")
