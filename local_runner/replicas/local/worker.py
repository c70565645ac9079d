"""One replica, a Host behind a Unix socket: `python -m local_runner.replicas.local.worker BUNDLE SOCKET`.

Its front starts it. It ends on SIGTERM from the front, or when the front is gone: standard input ends. A failure to
load is left as JSON in SOCKET.failed.
"""

import asyncio
import logging
import os
import signal
import sys
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from local_runner.bundle import manifest
from local_runner.process import leash, ready_file
from local_runner.telemetry import logs

if TYPE_CHECKING:
    from local_runner.host.host import Host
    from local_runner.replicas.local.framing import Connection

FAILED = ".failed"


class ReplicaWorker:
    """Answers a front: `score` with the scoring script's answer, `statistics` with the replica's state."""

    def __init__(self, host: "Host") -> None:
        self._host = host

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        from local_runner.replicas.local.framing import GONE, Connection

        connection = Connection(reader, writer)
        try:
            while True:
                request = await connection.receive_head()
                await self._while_open(connection, self._answer(connection, request, await connection.receive()))
        except (*GONE, asyncio.CancelledError):  # the front has gone, or this replica is stopping
            pass
        finally:
            connection.close()

    async def _while_open(self, connection: "Connection", work: Any) -> None:
        """Do `work`, but cancel it if the front closes the connection: then its client went away."""
        task, closed = asyncio.ensure_future(work), asyncio.ensure_future(connection.closed())
        await asyncio.wait({task, closed}, return_when=asyncio.FIRST_COMPLETED)
        for each in (task, closed):
            each.cancel()
        await asyncio.gather(task, closed, return_exceptions=True)
        if task.cancelled():
            raise ConnectionResetError
        task.result()

    async def _answer(self, connection: "Connection", request: dict[str, Any], body: bytes) -> None:
        from local_runner.host.reload import Tuning
        from local_runner.replicas import answers
        from local_runner.replicas.local.framing import frame, head

        if request["op"] == "statistics":
            state = {"ready": self._host.ready, "state": self._host.state, "statistics": self._host.statistics()}
            await connection.send(head(state), frame(b""))
            return
        if request["op"] == "tune":
            await self._host.tune(Tuning(**request["tuning"]))
            await connection.send(head({}), frame(b""))
            return
        if request["op"] == "adapters":
            await connection.send(head(await self._adapters(request["wanted"])), frame(b""))
            return
        headers = request["headers"]
        logs.take(headers.get(logs.HEADER))
        answer = await answers.answer(self._host, body.decode(), headers)
        facts = {"status": answer.status, "headers": answer.headers, "stream": answer.chunks is not None}
        if answer.chunks is None:
            await connection.send(head(facts), frame(answer.body))
            return
        async with aclosing(self._host.chunks(answer)) as chunks:
            await connection.send(head(facts))
            async for chunk in chunks:
                if chunk:
                    await connection.send(frame(chunk))
        await connection.send(frame(b""))

    async def _adapters(self, wanted: list[dict[str, Any]]) -> dict[str, Any]:
        """Serve these adapters and no others; what they are, or why they are not served."""
        from dataclasses import asdict

        from scoring.errors import MiiAzureError
        from scoring.host_api import ServeThese, WantedAdapter

        try:
            await self._host.change_adapters(ServeThese(tuple(WantedAdapter(**each) for each in wanted)))
        except MiiAzureError as error:
            return {"status": error.http_status, **error.to_dict()}
        return {"adapters": [asdict(each) for each in self._host.adapters() or ()]}


async def _serve(bundle: Path, path: Path) -> None:
    from local_runner.host.host import ScriptHost
    from local_runner.replicas.local.framing import BUFFER

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    host = ScriptHost(bundle)
    server = await asyncio.start_unix_server(ReplicaWorker(host).accept, path, limit=BUFFER)
    loading, stopping = asyncio.ensure_future(host.load()), asyncio.ensure_future(stop.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done():
        loading.result()
    await stopping
    # The front has every answer, or gives up on the rest: it holds the only clock of the drain.
    server.close()
    await host.finish(0.0)


def main() -> NoReturn:
    """Serve one front, then end the process."""
    leash.hold()
    bundle, path, log_format, verbose = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "verbose"
    logs.set_up(log_format, verbose)
    # The front logs every request.
    logging.getLogger("local_runner.requests").setLevel(logging.WARNING)
    code = 0
    try:
        manifest.enter(bundle)
        import uvloop

        uvloop.run(_serve(bundle, path))
    except Exception as error:
        code = 1
        if hasattr(error, "to_dict") and hasattr(error, "exit_code"):
            code = error.exit_code
            ready_file.write(path.with_name(path.name + FAILED), "failed", **error.to_dict(), exit_code=code)
        else:
            logging.getLogger(__name__).critical("The replica failed.", exc_info=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # The scoring script may own threads that never end.
    os._exit(code)


if __name__ == "__main__":
    main()
