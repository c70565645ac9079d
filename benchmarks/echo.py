"""The floor under any gRPC host in Python: a server that answers the same bytes without looking at the request.

`python -m benchmarks.echo FILE` serves the bytes of a file as the answer to every Score call, and prints its port.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
import uvloop

from local_runner.process.launch import LOOPBACK
from local_runner.protos import scoring_pb2, scoring_pb2_grpc
from local_runner.targets.targets import Grpc, InProcess


class Echo(Grpc):
    """That server as a target of `bench`, in a process of its own, with what the bundle answers its sample."""

    name = "grpc-echo"

    def _start(self) -> None:
        scratch = Path(self._open.enter_context(tempfile.TemporaryDirectory()))
        answer = scratch / "answer.json"
        with InProcess(self.bundle) as like:
            answer.write_bytes(like.send((self.bundle / "requests" / "sample.json").read_text(encoding="utf-8")).body)
        command = [sys.executable, "-m", "benchmarks.echo", str(answer)]
        child = self._open.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        self._open.callback(child.kill)
        self._connect(int(child.stdout.readline()))  # type: ignore[union-attr]  # it is a pipe


class _Echo(scoring_pb2_grpc.ScoringServicer):  # type: ignore[misc]  # generated code is untyped
    def __init__(self, answer: str) -> None:
        self._answer = answer

    async def Score(self, request: Any, context: Any) -> Any:  # noqa: N802
        return scoring_pb2.ScoreReply(json=self._answer)


async def _serve(answer: str) -> None:
    server = grpc.aio.server()
    scoring_pb2_grpc.add_ScoringServicer_to_server(_Echo(answer), server)
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1]).read_text(encoding="utf-8")))
