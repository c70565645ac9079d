"""Tokens per second of many streams at once on a CPU, served by the engine, against `generate()` one after another.

`python -m benchmarks.streams` takes turns: some prompts through plain `generate()`, all of them as concurrent streams,
and again, so that whatever else the machine does slows both. Both sides give every prompt the same number of tokens;
the texts are compared. Writes results/streams.json.
"""

import datetime
import json
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import revision, table, write
from mii_azure.model.packaged import packaged_model
from scoring.api.service import Service
from scoring.config import Deployment, Limits
from scoring.model.loader import load_with
from scoring.passes.registry import decoder_passes
from scoring.schema.registry import task_class
from scoring.telemetry.versions import versions

STREAMS = 64
NEW_TOKENS = 16
ROUNDS = 2
SEQUENTIAL = 2  # prompts that generate() answers in a round: its rate does not depend on how many there are
TASK = "text-generation"
SENTENCE = "the history of science is a story of people who asked how things work and would not let go"


def prompts() -> list[str]:
    """As many texts as streams, 6 to 17 words long, all different."""
    words = SENTENCE.split()
    return [f"Number {n}: " + " ".join((words[n % 19 :] + words)[: 4 + n % 12]) for n in range(STREAMS)]


def serve() -> Service:
    """The packaged model behind an engine, with the passes that a deployment takes."""
    limits = Limits(max_batch_size=STREAMS, request_timeout_s=600)
    deployment = Deployment("streams", TASK, limits=limits)
    loaded, chosen = load_with(decoder_passes(limits), deployment, packaged_model("smollm2"))
    service = Service(deployment, loaded, task_class(TASK)(loaded, TASK), {})
    service.start(chosen)
    return service


def sequential(service: Service, texts: list[str]) -> list[str]:
    """Plain generate(), one text after another."""
    model, tokenizer = service.loaded.model, service.loaded.tokenizer
    answers = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        sequence = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
        answers.append(tokenizer.decode(sequence[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
    return answers


def stream(service: Service, text: str) -> tuple[str, float]:
    """One stream's answer, and the seconds until its first piece."""
    parameters = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True, "return_full_text": False}
    began, first, answer = time.perf_counter(), 0.0, ""
    body: Any = service.answer(json.dumps({"inputs": text, "parameters": parameters, "stream": True})).body
    for event in body:
        first = first or time.perf_counter() - began
        if b'"answer"' in event:
            answer = json.loads(event.removeprefix(b"data: "))["answer"][0]["generated_text"]
    return answer, first


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its seconds."""
    began = time.perf_counter()
    given = call()
    return given, time.perf_counter() - began


def measure(service: Service, texts: list[str], rounds: int) -> dict[str, Any]:
    """Medians over rounds in which both sides take turns."""
    plain, ours, first, equal = [], [], [], 0
    some = texts[:SEQUENTIAL]
    with ThreadPoolExecutor(len(texts)) as pool:
        for _ in range(rounds):
            wanted, seconds = timed(lambda: sequential(service, some))
            plain.append(len(some) * NEW_TOKENS / seconds)
            answers, seconds = timed(lambda: list(pool.map(partial(stream, service), texts)))
            ours.append(len(texts) * NEW_TOKENS / seconds)
            first += [each for _, each in answers]
            equal += sum(text == told for (text, _), told in zip(answers, wanted, strict=False))
    return {
        "streams": len(texts),
        "generate tokens/s": median(plain),
        "ours tokens/s": median(ours),
        "times": median(mine / theirs for mine, theirs in zip(ours, plain, strict=True)),
        "first token ms p50": 1e3 * median(first),
        "equal texts": f"{equal} of {rounds * len(some)}",
    }


def main() -> None:
    """Measure one stream and many, print the table, write the result."""
    out = Parser(__doc__).parse_args().out
    service = serve()
    texts = prompts()
    sequential(service, texts[:1])
    stream(service, texts[0])
    rows = [measure(service, texts[:1], ROUNDS), measure(service, texts, ROUNDS)]
    print(table(list(rows[0]), rows))
    service.drain(10)
    result = {
        "model": "SmolLM2-135M-Instruct, float32",
        "new_tokens": NEW_TOKENS,
        "rows": rows,
        "passes": service.metadata()["passes"],
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()}",
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "revision": revision(),
    }
    write("streams", result, out)


if __name__ == "__main__":
    main()
