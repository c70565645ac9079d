"""What the host adds to an engine that costs nothing: tokens per second and processor time per token over real HTTP.

`python -m benchmarks.host_side [--step-ms MS] [--clients N] [--seconds S] [--front-ends N ...]` generates a bundle of a
tiny model with a real vocabulary, serves it by `local_runner.server` in a process of its own, alone and with front
ends, and asks it from another, whole and streamed. In place of the decoder stands one whose step gives random tokens,
at once or after MS milliseconds, in which the interpreter is free, as it is while a GPU works. Prints a table.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

NEW_TOKENS = 128
SHORTEST, LONGEST = 16, 256  # tokens of a prompt, about
CONTEXT = 512
COLUMNS = (
    *("front ends", "mode", "tokens/s", "engine us/token", "front ends us/token", "clients us/token"),
    *("first token ms p50", "answer s p50", "events/token"),
)
MODES = ("/score whole", "/score streamed", "/v1 chat whole", "/v1 chat streamed")


class InstantDecoder:
    """Stands for a GPU's decoder: every step gives random tokens of a vocabulary after a fixed time.

    With a context beyond the usual one, prompts take the time that they would take a GPU.
    """

    def __init__(self, slots: int, vocabulary: Sequence[int], step_s: float, context: int = CONTEXT) -> None:
        from scoring.decoder.block_pool import BLOCK, blocks_of
        from scoring.decoder.block_tables import BlockTables
        from scoring.decoder.layer_groups import Kept, group_layers
        from scoring.decoder.long_rotary import LongRotary
        from scoring.decoder.prompt_cost import PromptCost

        self.prompt_cost = PromptCost(0.013, 7e-7) if context > CONTEXT else PromptCost(0.04)
        self._priced = context > CONTEXT
        self.model = SimpleNamespace(device=SimpleNamespace(type="cuda"), layers=[])
        self.slots, self.max_length, self.full_length = slots, context, context
        blocks = blocks_of(max(2 * context, slots * CONTEXT))
        self.capacity = blocks * BLOCK
        self.groups = group_layers([Kept(0)], context)
        self.tables = BlockTables(slots, blocks_of(context), blocks, in_place=False)
        self.lengths = [0] * slots
        self._pool = random.Random(0).choices(list(vocabulary), k=1 << 16)
        self._at = 0
        self._step_s = step_s
        self.adapters = SimpleNamespace(use=lambda slot, name: None)
        self.recurrent = None
        self.draft, self.draft_cost, self.speculates = None, 0.0, False
        self.rotary = LongRotary(0, slots)
        self._free_at = 0.0  # when the device has done what was enqueued

    def open(self, slot: int, sampling: Any = None, ids: Sequence[int] = (), salt: str | None = None) -> int:
        self.lengths[slot] = held = self.tables.open(slot, ids, salt)
        return held

    def plan(self) -> None:
        """Nothing is kept by thread."""

    def choose(self, free: Any, ids: Sequence[int], salt: str | None) -> int:
        return self.tables.choose(free, ids, salt)

    def release(self, slot: int, ids: Sequence[int] | None = None) -> None:
        self.tables.close(slot, None if ids is None else ids[: self.lengths[slot]])
        self.lengths[slot] = 0

    def evict(self, most: int) -> None:
        self.tables.evict(most)

    def prefill_many(self, parts: Sequence[tuple[int, Sequence[int]]]) -> None:
        ms = sum(self.prompt_cost.ms(self.lengths[slot], len(ids)) for slot, ids in parts) if self._priced else 0.0
        for slot, ids in parts:
            self.lengths[slot] += len(ids)
            self.tables.reserve(slot, self.lengths[slot])
            self.tables.written(slot, ids)
        self._enqueue(ms / 1e3)

    def sample(self, slots: Sequence[int], masks: Any = None, added: Any = ()) -> Any:
        return self._pending(len(slots))

    def step(self, slots: Sequence[int]) -> Any:
        for slot in slots:
            self.lengths[slot] += 1
            self.tables.reserve(slot, self.lengths[slot])
        self.tables.copies, self.tables.grown, self.tables.pool.freed = [], [], []
        self._enqueue()
        return self._pending(len(slots))

    def _enqueue(self, more_s: float = 0.0) -> None:
        self._free_at = max(self._free_at, time.perf_counter()) + (more_s or self._step_s)

    def _pending(self, count: int) -> Any:
        at, self._at = self._at, (self._at + count) % (len(self._pool) - self.slots)
        due, tokens = self._free_at, self._pool[at : at + count]

        def wait() -> list[int]:
            if (left := due - time.perf_counter()) > 0:
                time.sleep(left)
            return tokens

        return SimpleNamespace(tokens=wait)


def write_bundle(folder: Path, kind: str = "bpe", count: int = 0) -> Path:
    """A bundle of one small layer with a vocabulary of that kind and at least that size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    import mii_azure
    from benchmarks.vocabularies import tokenizer_of

    tokenizer = tokenizer_of(kind, count)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return mii_azure.generate(
        task="conversational",
        model=str(folder / "model"),
        deployment_name="host-side",
        instance_type="Standard_F8s_v2",
        output=folder / "bundle",
    )


def stand_in(clients: int, step_s: float, context: int = CONTEXT) -> None:
    """Have this process's `scoring` serve an `InstantDecoder` in place of a model's decoder."""
    from scoring import config
    from scoring.api.service import Service
    from scoring.model.loaded import Runtime
    from scoring.passes.base import Applied
    from scoring.passes.static_decode import StaticDecode

    read = config.Deployment.read
    limits: dict[str, Any] = {
        "max_batch_size": clients,
        "queue_size": 4 * clients,
        "max_batch_tokens": clients * CONTEXT,
    }
    if context > CONTEXT:
        limits |= {"max_batch_tokens": 2 * context, "context_length": context}

    def apply(self: Any, model: Any) -> Applied:
        decoder: Any = InstantDecoder(clients, range(1000, model.config.vocab_size), step_s, context)
        return Applied(1, "none", lambda: None, Runtime(decoder=decoder))

    def read_wide(path: Path) -> Any:
        found = read(path)
        return replace(found, limits=replace(found.limits, **limits))

    def keep(self: Any, failure: Exception, again: bool = False) -> bool:
        raise failure  # without its decoder, the server would be measured at something else

    config.Deployment.read = read_wide  # type: ignore[method-assign]
    Service.withdraw = keep  # type: ignore[method-assign]
    StaticDecode.apply = apply  # type: ignore[method-assign]
    StaticDecode.verify = lambda self, model, reference: 0.0  # type: ignore[method-assign]


def serve(bundle: Path, ready: Path, clients: int, step_s: float, front_ends: int) -> int:
    """Serve the bundle with an `InstantDecoder`; this process's `scoring` is the bundle's. Front ends run this too."""
    from local_runner.bundle import manifest

    manifest.enter(bundle)
    from local_runner.server import ServerSettings
    from local_runner.server import serve as run

    stand_in(clients, step_s)
    command = (sys.executable, "-m", "benchmarks.host_side", *sys.argv[1:])
    files = {"grpc_port": 0, "http_port": 0, "ready_file": ready}
    return run(ServerSettings(bundle, **files, front_ends=front_ends, command=command))  # type: ignore[arg-type]


class _Client(asyncio.Protocol):
    """One connection that asks again as soon as it has an answer."""

    def __init__(self, load: "_Load", number: int) -> None:
        self._load, self._random = load, random.Random(number)
        self._tail = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._began, self._first = time.perf_counter(), True
        self._transport.write(self._load.request(self._random))

    def data_received(self, data: bytes) -> None:
        load, now = self._load, time.perf_counter()
        seen = self._tail + data
        if seen.startswith(b"HTTP/1.1") and b" 200 " not in seen[:15]:
            load.fail(seen.decode(errors="replace"))
        if load.streamed:
            got = seen.count(b"data: {") - self._tail.count(b"data: {")
            if got and self._first:
                self._first = False
                load.first.append(now - self._began)
            load.events += got
            done = seen.endswith(b"0\r\n\r\n")
        else:
            head, _, body = seen.partition(b"\r\n\r\n")
            at = head.lower().find(b"content-length: ")
            done = bool(body) and len(body) >= int(head[at + 16 :].split(b"\r\n", 1)[0])
        self._tail = b"" if done else seen if not load.streamed else seen[-8:]
        if done:
            load.answers.append(now - self._began)
            if now < load.until:
                self._ask()
            else:
                load.left -= 1
                self._transport.close()
                if not load.left:
                    load.over.set()

    def connection_lost(self, error: Exception | None) -> None:
        if self._tail:
            self._load.fail(f"the server ended an answer: {error}")


class _Load:
    def __init__(self, port: int, mode: str, clients: int, seconds: float) -> None:
        self.path, self.streamed = mode.split()[0], mode.endswith("streamed")
        self.port, self.left = port, clients
        self.until = time.perf_counter() + seconds
        self.events, self.first, self.answers = 0, list[float](), list[float]()
        self.over = asyncio.Event()
        self.failure = ""

    def fail(self, failure: str) -> None:
        """End the load: an answer is not what it should be."""
        self.failure = self.failure or failure
        self.over.set()

    def request(self, source: random.Random) -> bytes:
        words = " ".join(f"w{source.randrange(100)}" for _ in range(source.randint(SHORTEST // 3, LONGEST // 3)))
        messages = [{"role": "user", "content": words}]
        if self.path == "/score":
            parameters = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True}
            body: dict[str, Any] = {"inputs": messages, "parameters": parameters, "stream": self.streamed}
        else:
            self.path = "/v1/chat/completions"
            body = {"messages": messages, "max_tokens": NEW_TOKENS, "ignore_eos": True, "stream": self.streamed}
            body["model"] = "host-side"
        data = json.dumps(body).encode()
        head = f"POST {self.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def ask(port: int, mode: str, clients: int, seconds: float) -> dict[str, Any]:
    """One load, from this process."""
    load = _Load(port, mode, clients, seconds)
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    for number in range(clients):
        await loop.create_connection(lambda number=number: _Client(load, number), "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.wait_for(load.over.wait(), seconds + 60)
    if load.failure:
        raise SystemExit(load.failure)
    elapsed = time.perf_counter() - began
    tokens = len(load.answers) * NEW_TOKENS
    told = {"mode": mode, "tokens/s": tokens / elapsed, "tokens": tokens, "answer s p50": median(load.answers)}
    if load.streamed:
        told |= {"first token ms p50": 1e3 * median(load.first), "events/token": load.events / tokens}
    return told


def processor_s(pid: int) -> float:
    """Processor seconds that a process has used, of users and kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def front_ends_of(pid: int) -> list[int]:
    """Processes that a server has started."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(each) for path in children for each in path.read_text().split()]


@contextmanager
def served(bundle: Path, folder: Path, options: argparse.Namespace, front_ends: int) -> Iterator[tuple[int, int]]:
    """Process and HTTP port of a server of the bundle, ready."""
    ready = folder / f"ready-{front_ends}"
    arguments = ["--serve", bundle, ready, "--clients", options.clients, "--step-ms", options.step_ms]
    arguments += ["--front-ends", front_ends]
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.host_side", *map(str, arguments)])
    try:
        while '"ready"' not in (told := ready.read_text() if ready.exists() else ""):
            if server.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.2)
        yield server.pid, json.loads(told)["http_port"]
    finally:
        server.terminate()
        server.wait(20)


def measure(pid: int, port: int, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row: a load, and the processor time that it took the server."""
    import uvloop

    uvloop.run(ask(port, mode, options.clients, 1.0))
    others = front_ends_of(pid)
    before, before_others, own = processor_s(pid), sum(map(processor_s, others)), time.process_time()
    row = uvloop.run(ask(port, mode, options.clients, options.seconds))
    row["clients us/token"] = 1e6 * (time.process_time() - own) / row["tokens"]
    row["engine us/token"] = 1e6 * (processor_s(pid) - before) / row["tokens"]
    row["front ends us/token"] = 1e6 * (sum(map(processor_s, others)) - before_others) / row["tokens"]
    return row | {"front ends": len(others)}


def main() -> None:
    """Measure every mode in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--modes", nargs="*", default=MODES)
    parser.add_argument("--tokenizer", choices=("bpe", "wordpiece"), default="bpe")
    parser.add_argument("--vocabulary", type=int, default=0, help="tokens at least; 0: SmolLM2's")
    parser.add_argument("--front-ends", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--serve", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        bundle, ready = options.serve
        os._exit(serve(bundle, ready, options.clients, options.step_ms / 1e3, options.front_ends[0]))
    from benchmarks.common import table

    print(table(COLUMNS, []))
    with tempfile.TemporaryDirectory() as name:
        bundle = write_bundle(Path(name), options.tokenizer, options.vocabulary)
        for front_ends in options.front_ends:
            with served(bundle, Path(name), options, front_ends) as (pid, port):
                for mode in options.modes:
                    print(table(COLUMNS, [measure(pid, port, mode, options)]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
