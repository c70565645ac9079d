"""Clients over HTTP for `benchmarks.over_http`, in a process of their own that imports nothing heavy.

`python -m benchmarks.http_clients` reads a line of JSON, prepares its requests, says so, and sends them when told to.
"""

import asyncio
import json
import random
import sys
import time
from itertools import pairwise
from typing import Any

SHORTEST, LONGEST, NEW = 16, 256, 128  # tokens of prompts and of each answer
ANSWER_S = 200.0
LOOPBACK = "127.0.0.1"
MODEL = "bench"  # what requests at OpenAI's route ask for
WHOLE = ("whole", "completions")  # ways in that answer once
_EVENT = b"data: {"


def bodies(count: int, way: str, seed: int) -> list[bytes]:
    """Requests of one way in; lengths are the same for every seed, words are not."""
    lengths, words = random.Random(0), random.Random(seed)
    texts = [prompt(lengths.randint(SHORTEST, LONGEST), words) for _ in range(count)]
    return [body(text, NEW, way) for text in texts]


def prompt(tokens: int, words: random.Random) -> str:
    """A text of so many tokens; the tokenizer adds two of its own."""
    return " ".join(f"w{words.randrange(2000):05d}" for _ in range(tokens - 2))


def body(text: str, new: int, way: str) -> bytes:
    """An HTTP request as bytes; `way` is whole, stream, or at OpenAI's route completions or openai (a stream)."""
    if way in ("completions", "openai"):
        path, sent = "/v1/completions", {"model": MODEL, "prompt": text, "max_tokens": new, "temperature": 0}
        sent |= {"stream": way == "openai", "ignore_eos": True}
    else:
        parameters = {"max_new_tokens": new, "ignore_eos": True, "return_full_text": False, "do_sample": False}
        path, sent = "/score", {"inputs": text, "parameters": parameters, "stream": way == "stream"}
    raw = json.dumps(sent).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + raw


async def ask(port: int, request: bytes, host: str = LOOPBACK) -> tuple[bool, list[float]]:
    """Whether a request was answered, and when each event of its answer came, and its end.

    The head of an answer is no event: it comes when a stream is accepted, before its first token.
    """
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    stamps: list[float] = []
    status, last = b"", b""
    while data := await reader.read(1 << 16):
        status = status or data[:15]
        begun = last[1 - len(_EVENT) :]  # of an event whose beginning came before
        stamps += [time.perf_counter()] * (begun + data).count(_EVENT)
        last = (last + data)[-400:]
    writer.close()
    return status.startswith(b"HTTP/1.1 200") and b'"error"' not in last, [*stamps, time.perf_counter()]


async def ask_all(port: int, requests: list[bytes], apart: float = 0.0, host: str = LOOPBACK) -> dict[str, Any]:
    """Send requests at once, or so many seconds apart; return begin, end, failures, and milliseconds.

    They are to the first event, between later ones, and of whole answers, each from when its request was sent.
    """
    began = time.perf_counter()

    async def later(number: int, request: bytes) -> tuple[bool, float, list[float]]:
        if apart:
            await asyncio.sleep(number * apart)
        sent = time.perf_counter() if apart else began
        good, stamps = await ask(port, request, host)
        return good, sent, stamps

    answers = await asyncio.gather(*(later(*each) for each in enumerate(requests)))
    times = [(sent, stamps) for good, sent, stamps in answers if good]
    between = [1e3 * (b - a) for _, stamps in times for a, b in pairwise(stamps[:-2])]
    first, whole = ([1e3 * (stamps[at] - sent) for sent, stamps in times] for at in (0, -1))
    ended = max((stamps[-1] for _, stamps in times), default=began)
    failed = len(answers) - len(times)
    return {"began": began, "ended": ended, "failed": failed, "first": first, "next": between, "whole": whole}


def client() -> None:
    """A process of clients: prepares, says so, and asks when told to."""
    told = json.loads(sys.stdin.readline())
    if "texts" in told:
        requests = [body(text, told["new"], told["way"]) for text in told["texts"]]
    else:
        requests = bodies(told["all"], told["way"], told["seed"])[told["at"] :: told["step"]]
    print("ready", flush=True)
    sys.stdin.readline()
    asked = ask_all(told["port"], requests, told.get("apart", 0.0), told.get("host", LOOPBACK))
    print(json.dumps(asyncio.run(asyncio.wait_for(asked, ANSWER_S))), flush=True)


if __name__ == "__main__":
    client()
