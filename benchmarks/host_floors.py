"""What a host takes for the least that an answer needs: threads that wake each other, gRPC and HTTP that echo, CUDA.

`python -m benchmarks.host_floors [--out FOLDER]` prints milliseconds [p50, p99] and writes host_floors.json. "After
1 ms": the same, after a millisecond in which nothing ran, as between requests. Servers are processes of their own.
"""

import asyncio
import http.client
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import provenance, write

Times = dict[str, list[float]]
ANSWER, REQUEST = 80, 900  # characters, as of a classification of 128 tokens
GRPC = ("sync", "aio", "aio, a thread")


def timed(call: Callable[[], Any], calls: int = 300, idle_s: float = 0.0) -> list[float]:
    """Milliseconds of a call, p50 and p99."""
    found = []
    for number in range(calls + 20):
        if idle_s:
            time.sleep(idle_s)
        began = time.perf_counter()
        call()
        if number >= 20:
            found.append(1e3 * (time.perf_counter() - began))
    found.sort()
    return [round(found[calls // 2], 4), round(found[calls * 99 // 100], 4)]


def both(call: Callable[[], Any]) -> Times:
    return {"tight": timed(call), "after 1 ms": timed(call, 150, 0.001)}


def hand_over() -> Times:
    """To another thread and back, through queues."""
    there: queue.SimpleQueue[int] = queue.SimpleQueue()
    back: queue.SimpleQueue[int] = queue.SimpleQueue()

    def echo() -> None:
        while number := there.get():
            back.put(number)

    threading.Thread(target=echo, daemon=True).start()

    def call() -> None:
        there.put(1)
        back.get()

    found = both(call)
    there.put(0)
    return found


def serve_grpc(kind: str, place: str) -> None:
    """Echo until killed; print the port."""
    import grpc
    import uvloop

    from local_runner.protos import scoring_pb2, scoring_pb2_grpc

    def reply() -> Any:
        return scoring_pb2.ScoreReply(json="x" * ANSWER)

    class Sync(scoring_pb2_grpc.ScoringServicer):  # type: ignore[misc]
        def Score(self, request: Any, context: Any) -> Any:  # noqa: N802
            return reply()

    class Aio(scoring_pb2_grpc.ScoringServicer):  # type: ignore[misc]
        async def Score(self, request: Any, context: Any) -> Any:  # noqa: N802
            return await asyncio.get_running_loop().run_in_executor(None, reply) if "thread" in kind else reply()

    async def run() -> None:
        server = grpc.aio.server()
        scoring_pb2_grpc.add_ScoringServicer_to_server(Aio(), server)
        print(server.add_insecure_port(place), flush=True)
        await server.start()
        await server.wait_for_termination()

    if kind != "sync":
        uvloop.run(run())
    server = grpc.server(ThreadPoolExecutor(4))
    scoring_pb2_grpc.add_ScoringServicer_to_server(Sync(), server)
    print(server.add_insecure_port(place), flush=True)
    server.start()
    server.wait_for_termination()


def over_grpc(kind: str, unix: bool = False) -> Times:
    """A call of a server that echoes."""
    import grpc

    from local_runner.protos import scoring_pb2, scoring_pb2_grpc

    with tempfile.TemporaryDirectory() as folder:
        place = f"unix:{folder}/s" if unix else "127.0.0.1:0"
        command = [sys.executable, "-m", "benchmarks.host_floors", "--grpc", kind, place]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            try:
                assert child.stdout is not None
                port = child.stdout.readline().strip()
                channel = grpc.insecure_channel(place if unix else f"127.0.0.1:{port}")
                stub, request = scoring_pb2_grpc.ScoringStub(channel), scoring_pb2.ScoreRequest(json="y" * REQUEST)
                return both(lambda: stub.Score(request))
            finally:
                child.kill()


def serve_http(port: int) -> None:
    """Echo until killed."""
    import uvicorn

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        length = [(b"content-length", str(ANSWER).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b"x" * ANSWER})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", loop="uvloop", http="httptools", lifespan="off")


def over_http() -> Times:
    """A POST over a kept connection to a server that echoes."""
    from benchmarks.peers.servers import free_port

    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "benchmarks.host_floors", "--http", str(port)]) as child:
        try:
            for _ in range(200):
                try:
                    socket.create_connection(("127.0.0.1", port), 0.2).close()
                    break
                except OSError:
                    time.sleep(0.1)
            kept = http.client.HTTPConnection("127.0.0.1", port)

            def post() -> None:
                kept.request("POST", "/score", b"y" * REQUEST)
                kept.getresponse().read()

            return both(post)
        finally:
            child.kill()


def on_device() -> dict[str, list[float]]:
    """What reading a result costs beyond its kernels, each on an idle device."""
    scores = torch.zeros(1, 3, device="cuda", dtype=torch.float16)
    event = torch.cuda.Event()

    def mark() -> None:
        event.record()
        event.synchronize()

    return {
        "a float32 copy to the host": timed(lambda: scores.float().cpu()),
        "a copy to the host": timed(scores.cpu),
        "an event recorded and waited for": timed(mark),
    }


def main() -> None:
    """Every floor, printed and written."""
    if sys.argv[1:2] == ["--grpc"]:
        serve_grpc(*sys.argv[2:])
        return
    if sys.argv[1:2] == ["--http"]:
        serve_http(int(sys.argv[2]))
        return
    out = Parser(__doc__).parse_args().out
    parts: dict[str, Callable[[], Any]] = {
        "Python adds a hundred thousand numbers": lambda: timed(lambda: sum(range(100_000)), 50),
        "to a thread and back": hand_over,
        **{f"gRPC {kind}": lambda kind=kind: over_grpc(kind) for kind in GRPC},
        "gRPC aio by a Unix socket": lambda: over_grpc("aio", unix=True),
        "HTTP": over_http,
        **({"device": on_device} if torch.cuda.is_available() else {}),
    }
    told: dict[str, Any] = {"cores": os.cpu_count()}
    for name, part in parts.items():
        told[name] = part()
        print(name, told[name], flush=True)
    write("host_floors", provenance() | told, out)


if __name__ == "__main__":
    main()
