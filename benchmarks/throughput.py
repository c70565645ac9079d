"""Tokens per second of 256 requests through the engine, against stock generate() and the floor, on one GPU.

`python -m benchmarks.throughput [--only NAME ...] [--out FOLDER]` prints the tables and writes throughput.json. Random
weights of the real shapes in fp16; every request has 16 to 256 prompt tokens and gets exactly 128, greedily, all of
them submitted at once. Each model has a process of its own: both prepare at the same time, and measure one by one.
"""

import cProfile
import io
import itertools
import json
import pstats
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import ceilings, device_ms, provenance, table, write
from benchmarks.decoder_shapes import CASES
from benchmarks.encoder_service import tokenizer
from benchmarks.memory import WORK
from scoring.api.service import Service
from scoring.config import Deployment, Limits
from scoring.engine.row import Row
from scoring.model.loader import load_with
from scoring.passes.registry import catalogue
from scoring.schema.registry import task_class

TASK = "text-generation"
#: Tokens per second to reach, and what vLLM 0.20.2 was measured to give for the same work on an H100: both quoted.
BARS = {"llama-1.1b": 35_000, "opt-1.3b": 28_000}
QUOTED = {"llama-1.1b": 34_600, "opt-1.3b": 27_500}
_CALLS = itertools.count()
COLUMNS = (
    *("model", "tokens/s", "with prompts", "answered", "stock", "floor", "first p50", "first p99"),
    *("next p50", "next p99", "peak GB", "bar", "vLLM, quoted"),
)


@dataclass(frozen=True)
class Load:
    """The work: requests of `shortest` to `longest` prompt tokens, special ones included, and `new` answered each."""

    requests: int = 256
    shortest: int = 16
    longest: int = 256
    new: int = 128
    stock_batch: int = 64

    def texts(self) -> list[str]:
        """One prompt a request, in words that are one token each; the tokenizer adds two tokens of its own.

        Every call gives the same lengths and other words, so that what slots keep of a run's prompts helps no other.
        """
        lengths, words = random.Random(0), random.Random(next(_CALLS))
        return [
            " ".join(f"w{words.randrange(2000):05d}" for _ in range(lengths.randint(self.shortest, self.longest) - 2))
            for _ in range(self.requests)
        ]

    @property
    def parameters(self) -> dict[str, Any]:
        return {"max_new_tokens": self.new, "ignore_eos": True, "return_full_text": False}


def write_folder(architecture: str, config: dict[str, Any], dtype: torch.dtype, device: str, folder: Path) -> None:
    """A model folder as a hub repository has it, its weights drawn on the device."""
    import transformers

    cls = getattr(transformers, architecture)
    torch.manual_seed(0)
    with torch.device(device):
        model = cls(cls.config_class(**config)).to(dtype)
    model.cpu().save_pretrained(folder)
    tokenizer(model.config.vocab_size, 0, model.config.max_position_embeddings).save_pretrained(folder)


def serve(folder: Path, load: Load, dtype: str) -> Service:
    """The folder behind a started engine, with a slot for every request and the passes that a deployment takes."""
    context = load.longest + load.new
    limits = Limits(
        max_batch_tokens=load.requests * context,
        max_batch_size=load.requests,
        slots=load.requests,
        queue_size=4 * load.requests,
        request_timeout_s=120.0,
        context_length=context,
    )
    deployment = Deployment("throughput", TASK, dtype=dtype, limits=limits)
    loaded, chosen = load_with(catalogue(deployment), deployment, folder)
    service = Service(deployment, loaded, task_class(TASK)(loaded, TASK), {})
    service.start(chosen)
    return service


def rows(service: Service, load: Load) -> list[Row]:
    """The requests as rows, encoded."""
    parameters = service.task.schema.parse_parameters(load.parameters)
    return [row for text in load.texts() for row in service.task.encode(text, parameters, 0)]


def submit(service: Service, load: Load) -> float:
    """Seconds in which the engine answers all requests submitted at once; checks the answers' lengths."""
    encoded = rows(service, load)
    began = time.perf_counter()
    jobs = [service.engine.submit([row]) for row in encoded]
    outputs = [job.future.result(120) for job in jobs]
    seconds = time.perf_counter() - began
    lengths = {len(tokens) for (answers,) in outputs for tokens in answers}
    if lengths != {load.new}:
        raise RuntimeError(f"answers of {sorted(lengths)} tokens, not {load.new}")
    return seconds


def answer(service: Service, load: Load) -> float:
    """Seconds in which as many threads as requests get them answered, from JSON to JSON."""
    bodies = [json.dumps({"inputs": text, "parameters": load.parameters}) for text in load.texts()]
    with ThreadPoolExecutor(len(bodies)) as pool:
        gate = threading.Barrier(len(bodies))
        list(pool.map(lambda _: gate.wait(), bodies))  # every thread is there
        began = time.perf_counter()
        statuses = {reply.status for reply in pool.map(service.answer, bodies)}
        seconds = time.perf_counter() - began
    if statuses != {200}:
        raise RuntimeError(f"the service answered {sorted(statuses)}")
    return seconds


class Stamped:
    """Tokens under way that note when they were read."""

    def __init__(self, pending: Any, note: Callable[[], None]) -> None:
        self._pending, self._note = pending, note

    def tokens(self) -> list[int]:
        tokens: list[int] = self._pending.tokens()
        self._note()
        return tokens


def latencies(service: Service, load: Load) -> dict[str, float]:
    """One more run: milliseconds to a request's first token, and between its tokens."""
    decoder = service.loaded.runtime.decoder
    stamps: dict[int, list[float]] = defaultdict(list)

    def stamped(call: Callable[..., Any]) -> Callable[..., Stamped]:
        def wrapper(slots: Any, *more: Any) -> Stamped:
            def note(own: tuple[int, ...] = tuple(slots)) -> None:
                now = time.perf_counter()
                for slot in own:
                    stamps[slot].append(now)

            return Stamped(call(slots, *more), note)

        return wrapper

    with replaced(decoder, "step", stamped), replaced(decoder, "sample", stamped):
        began = time.perf_counter()
        submit(service, load)
    first = [1e3 * (times[0] - began) for times in stamps.values()]
    between = [1e3 * (b - a) for times in stamps.values() for a, b in pairwise(times)]
    cuts = {"first": quantiles(first, n=100), "next": quantiles(between, n=100)}
    return {f"{name} p{p}": each[p - 1] for name, each in cuts.items() for p in (50, 99)}


@contextmanager
def replaced(thing: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Put a wrapper around one attribute of an object or module for a while."""
    held, own = getattr(thing, name), name in vars(thing)
    setattr(thing, name, wrap(held))
    try:
        yield
    finally:
        if own:
            setattr(thing, name, held)
        else:
            delattr(thing, name)


class Phases:
    """Where the inference thread's time goes; on a GPU also how long the device is at what was enqueued."""

    def __init__(self, cuda: bool) -> None:
        self.host: dict[str, list[float]] = defaultdict(list)
        self._marks: dict[str, list[Any]] = defaultdict(list)
        self._cuda = cuda

    def around(self, name: str, device: bool = False, waits: bool = False) -> Callable[[Any], Any]:
        """A wrapper that times a call as `name`; with `waits`, also the reading of the tokens it returns."""

        def wrap(call: Any) -> Any:
            def timed(*args: Any, **named: Any) -> Any:
                mark = self._event() if device else None
                began = time.perf_counter()
                result = call(*args, **named)
                self.host[name].append(time.perf_counter() - began)
                if mark is not None:
                    self._marks[name].append((mark, self._event()))
                if waits:
                    result.tokens = self.around("token wait")(result.tokens)
                return result

            return timed

        return wrap

    def _event(self) -> Any:
        if not self._cuda:
            return None
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call,unused-ignore]
        event.record()
        return event

    def result(self) -> dict[str, dict[str, float]]:
        """Per phase its calls, host milliseconds in all and in the median, and device milliseconds likewise."""
        if self._cuda:
            torch.cuda.synchronize()
        told: dict[str, dict[str, float]] = {}
        for name, seconds in self.host.items():
            told[name] = {"calls": len(seconds), "host ms": 1e3 * sum(seconds), "host ms p50": 1e3 * median(seconds)}
            if self._marks[name]:
                times = [begin.elapsed_time(end) for begin, end in self._marks[name]]
                told[name] |= {"device ms": sum(times), "device ms p50": median(times)}
        return told


def phases(service: Service, load: Load) -> dict[str, dict[str, float]]:
    """One more run, each phase timed: what is in none of them is the slots' and the engine's own."""
    decoder, slots = service.loaded.runtime.decoder, service.task.slots(service.deployment.limits)
    cuda = service.loaded.device.type == "cuda"
    timer = Phases(cuda)
    with (
        replaced(decoder, "open", timer.around("open slot")),
        replaced(decoder, "prefill_many", timer.around("prefill", device=True)),
        replaced(decoder, "sample", timer.around("first token", waits=True)),
        replaced(decoder, "step", timer.around("step", device=True, waits=True)),
        replaced(slots, "add", timer.around("add, open slot included")),
        replaced(slots, "step", timer.around("whole step")),
    ):
        seconds = submit(service, load)
    return {"run": {"calls": 1, "host ms": 1e3 * seconds}, **timer.result()}


def profile(service: Service, load: Load) -> str:
    """One more run under Python's profiler: the inference thread's costliest functions."""
    slots, profiler = service.task.slots(service.deployment.limits), cProfile.Profile()

    def profiled(call: Any) -> Any:
        return lambda *args: profiler.runcall(call, *args)

    with replaced(slots, "step", profiled), replaced(slots, "add", profiled):
        submit(service, load)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(35)
    return text.getvalue()


def alone(service: Service, load: Load) -> dict[str, float]:
    """Milliseconds of 1,024 prompt tokens and of a step of all slots, with nothing beside them."""
    decoder = service.loaded.runtime.decoder
    slots, piece = list(range(load.requests)), [7 + number % 1000 for number in range(128)]

    def prefill() -> None:
        decoder.lengths[:8] = [0] * 8
        decoder.prefill_many([(slot, piece) for slot in slots[:8]])

    told = {}
    for slot in slots:
        decoder.open(slot)
    for first in range(0, len(slots), 8):
        decoder.prefill_many([(slot, piece) for slot in slots[first : first + 8]])
    decoder.sample(slots).tokens()
    for name, call in (("step", lambda: decoder.step(slots)), ("prefill of 1024", prefill)):
        call()
        torch.cuda.synchronize()
        began = time.perf_counter()
        told[name] = device_ms(call, 12)
        told[name + ", host and device"] = 1e3 * (time.perf_counter() - began) / 12
    return told


def stock(service: Service, load: Load) -> float:
    """Generated tokens per second of plain generate() over the same requests, batch after batch."""
    model, device = service.loaded.model, service.loaded.device
    prompts = [row.features["input_ids"] for row in rows(service, load)]
    batches = [prompts[at : at + load.stock_batch] for at in range(0, len(prompts), load.stock_batch)]

    def generate(batch: list[list[int]], new: int) -> None:
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(each)) + each for each in batch], device=device)
        mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in batch], device=device)
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )
        out.cpu()

    generate(batches[0], 4)
    began = time.perf_counter()
    for batch in batches:
        generate(batch, load.new)
    return len(prompts) * load.new / (time.perf_counter() - began)


def floor(service: Service, load: Load, card: dict[str, float]) -> float:
    """Tokens per second that the card's measured ceilings allow: the prompts' arithmetic, then what each step reads."""
    model = service.loaded.runtime.decoder.model
    prompt = sum(row.tokens for row in rows(service, load))
    matmul = sum(product.full.numel() for product in model.products())
    prefill = 2.0 * (matmul - model.head.full.numel()) * prompt / card["peak"]
    live = sum(prompt + load.requests * (number + 1) for number in range(load.new - 1))
    read = (load.new - 1) * model.step_bytes() + live * model.kv_bytes_per_token()
    return float(load.requests * load.new / (prefill + read / card["bandwidth"]))


def measure(service: Service, load: Load, rounds: int = 3) -> dict[str, Any]:
    """The engine's figures, of the median round; the first requests warm it up."""
    submit(service, load)
    cuda = service.loaded.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = [submit(service, load) for _ in range(rounds)]
    answered = [answer(service, load) for _ in range(rounds)]
    made, prompt = load.requests * load.new, sum(row.tokens for row in rows(service, load))
    return {
        "requests": load.requests,
        "prompt tokens": prompt,
        "tokens/s": made / median(seconds),
        "with prompts": (made + prompt) / median(seconds),
        "runs s": seconds,
        "answered": made / median(answered),
        "answered s": answered,
        **latencies(service, load),
        "peak GB": torch.cuda.max_memory_reserved() / 1e9 if cuda else None,
        "phases": phases(service, load),
    }


def child(name: str, out: Path) -> None:
    """One model: prepare, say "ready", wait for a line, measure, print the row as JSON."""
    load, work = Load(), WORK[name]
    with tempfile.TemporaryDirectory() as place:
        write_folder(work.architecture, CASES[name].config, torch.float16, "cuda", Path(place))
        service = serve(Path(place), load, "float16")
    print("ready", flush=True)
    sys.stdin.readline()
    row = {"model": name} | measure(service, load)
    row["alone"] = alone(service, load)
    (out / f"throughput-{name}.profile.txt").write_text(profile(service, load), encoding="utf-8")
    card = ceilings()
    row |= {"stock": stock(service, load), "floor": floor(service, load, card), "card": card}
    row |= {"bar": BARS[name], "vLLM, quoted": QUOTED[name], "passes": service.metadata()["passes"]}
    print(json.dumps(row), flush=True)


def main() -> None:
    """Measure the models, print the tables, write the JSON."""
    if "--child" in sys.argv:
        at = sys.argv.index("--child")
        child(sys.argv[at + 1], Path(sys.argv[at + 2]))
        return
    parser = Parser(__doc__, gpus=1)
    parser.add_argument("--only", nargs="+", choices=BARS, default=[*BARS], metavar="NAME")
    chosen = parser.parse_args()
    out = chosen.out
    out.mkdir(parents=True, exist_ok=True)
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children: dict[str, Any] = {
        name: subprocess.Popen([sys.executable, "-m", "benchmarks.throughput", "--child", name, str(out)], **pipes)
        for name in chosen.only
    }
    for process in children.values():  # all prepare at once; none is measured while another prepares
        while (line := process.stdout.readline()) and line.strip() != "ready":
            pass
    found: list[dict[str, Any]] = []
    for name, process in children.items():
        lines = [line for line in process.communicate("go\n")[0].splitlines() if line.startswith("{")]
        found.append(json.loads(lines[-1]) if lines else {"model": name, "failed": process.returncode})
        print(json.dumps(found[-1]), flush=True)
    reached = {row["model"]: row["tokens/s"] >= row["bar"] for row in found if "bar" in row}
    write("throughput", provenance() | {"load": vars(Load()), "rows": found, "reached": reached}, out)
    for row in found:
        each = [{"phase": name} | told for name, told in row.get("phases", {}).items()]
        print(table(("phase", "calls", "host ms", "host ms p50", "device ms", "device ms p50"), each))
    print(table(COLUMNS, found))


if __name__ == "__main__":
    main()
