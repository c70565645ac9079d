"""What the processes of a server were doing, step by step, for `benchmarks.waits`; all times are of one clock.

`python -m benchmarks.step_trace BUNDLE FOLDER [--instant] [--front-ends N]` serves a bundle with every process traced,
and writes a trace of each to the folder as they end. A span is a name, its begin and end in seconds, and what else is
known. `install` wraps functions of this process's `scoring` and `local_runner`, and has a thread look at the others.
"""

import argparse
import asyncio
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

_LOOK_S = 0.004  # between two looks at a thread's stack
_LATE_S = 0.015  # by which a thread or an event loop has to be late to be noted
_LONG_S = 0.045  # of a step, from which on stacks are kept
_DEEP = 7  # frames of a stack
_SLOTS, _STEP_S, _CONTEXT = 96, 0.006, 131_072  # of the decoder that stands for a GPU's

spans: list[dict[str, Any]] = []
_marks: list[tuple[dict[str, Any], Any]] = []  # steps, and the events that end them on the device
_kind = ["engine"]  # of this process
_step = 0.0  # when the step under way began
_clock: tuple[Any, float] | None = None  # an event, and when the device had come to it


def note(name: str, begin: float, end: float, **told: Any) -> dict[str, Any]:
    """Add a span."""
    spans.append({"name": name, "begin": begin, "end": end, "thread": threading.current_thread().name, **told})
    return spans[-1]


def timed(owner: Any, name: str, least_s: float = 0.0, told: Callable[..., dict[str, Any]] | None = None) -> None:
    """Note every call of an owner's function that lasts at least so long, with what `told` makes of its arguments."""
    whole = getattr(owner, name)

    @wraps(whole)
    def call(*args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        try:
            return whole(*args, **options)
        finally:
            if (end := time.perf_counter()) - begin >= least_s:
                note(name, begin, end, **(told(*args, **options) if told else {}))

    setattr(owner, name, call)


def install() -> None:
    """Trace this process."""
    gc.callbacks.append(_collected)
    threading.Thread(target=_watch, name="watch", daemon=True).start()
    _trace_engine()
    _trace_front_end()
    _trace_device()


def _trace_engine() -> None:
    from scoring.engine.outbox import Outbox
    from scoring.front_ends.channel import Channel
    from scoring.front_ends.engine_server import EngineServer
    from scoring.generation import scheduler

    own = scheduler.Scheduler
    whole, pieces = own.step, own._pieces
    chosen: list[Any] = []

    def some_pieces(self: Any, budget: int) -> Any:
        found = pieces(self, budget)
        chosen[:] = [(running.filled, len(ids)) for running, ids in found]
        return found

    def step(self: Any) -> None:
        global _step
        chosen.clear()
        begin, used = time.perf_counter(), time.thread_time()
        _step = begin
        told = {"decoding": len(self._decoding), "prefilling": len(self._prefilling)}
        whole(self)
        _step = 0.0
        longest = max(chosen, key=sum, default=(0, 0))
        more = {"tokens": sum(count for _, count in chosen), "parts": len(chosen), "longest": longest}
        span = note("step", begin, time.perf_counter(), cpu=time.thread_time() - used, **told, **more)
        _mark(span)

    own._pieces, own.step = some_pieces, step  # type: ignore[method-assign]
    for part in ("_decode", "_prefill", "_sweep", "add", "_pick_open"):
        timed(own, part, 0.002)
    timed(Outbox, "hand_over", 0.002)
    timed(Channel, "flush", 0.004)
    timed(EngineServer, "_round", 0.025)


def _trace_front_end() -> None:
    from local_runner.front_ends.front_end import FrontEndHost
    from scoring.front_ends.remote_engine import RemoteEngine
    from scoring.limits.bounded_tokenizer import Tokenizing

    timed(Tokenizing, "ids", 0.001, lambda self, text, *_, **__: {"characters": len(text)})
    timed(RemoteEngine, "submit", 0.0, lambda self, rows, *_: {"tokens": sum(row.tokens for row in rows)})
    timed(RemoteEngine, "_tokens", 0.0)
    timed(RemoteEngine, "_done", 0.002)
    whole = FrontEndHost.connect

    def connect(self: Any, control: Any) -> None:
        whole(self, control)
        _kind[:] = ["front end"]
        watch_loop()

    FrontEndHost.connect = connect  # type: ignore[method-assign]


def _trace_device() -> None:
    """Note waits for the GPU, kernels compiled, plans made and memory taken while requests are answered."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return
    import torch

    if not torch.cuda.is_available():
        return
    from triton.runtime import jit  # type: ignore[import-not-found,unused-ignore]

    from scoring.decoder import cuda_backend, prompt_attention
    from scoring.decoder.prefill import Prefiller

    timed(cuda_backend, "_synchronize", 0.002)
    timed(cuda_backend.CudaBackend, "_captured", 0.0)
    timed(cuda_backend.CudaBackend, "_enqueue", 0.002)
    timed(prompt_attention, "attend_whole", 0.003, lambda q, k, v, scale: {"shapes": [list(q.shape), list(k.shape)]})
    timed(Prefiller, "piece", 0.002)
    timed(jit.JITFunction, "_do_compile", 0.0, lambda self, *_, **__: {"kernel": self.fn.__name__})


def _mark(span: dict[str, Any]) -> None:
    """Have the device tell when it comes to the end of what a step enqueued; and how often memory was taken."""
    global _clock
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    if _clock is None:
        _clock = torch.cuda.Event(enable_timing=True), 0.0
        _clock[0].record()
        _clock[0].synchronize()
        _clock = _clock[0], time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    _marks.append((span, event))
    found = torch._C._cuda_memoryStats(torch.cuda.current_device())
    span["memory"] = [found.get(name) for name in ("num_device_alloc", "num_device_free", "num_alloc_retries")]


def _collected(phase: str, told: dict[str, int]) -> None:
    if phase == "start":
        _collected.began = time.perf_counter()  # type: ignore[attr-defined]
    elif (end := time.perf_counter()) - _collected.began > 0.003:  # type: ignore[attr-defined]
        note("collection", _collected.began, end, **told)  # type: ignore[attr-defined]


def watch_loop() -> None:
    """Have the running event loop tell where it is late."""
    _tick(asyncio.get_running_loop(), time.perf_counter())


def _tick(loop: Any, due: float) -> None:
    """Note where an event loop comes late to what was due."""
    now = time.perf_counter()
    if now - due > _LATE_S:
        note("loop late", due, now)
    loop.call_later(_LOOK_S, _tick, loop, now + _LOOK_S)


def _watch() -> None:
    """Note where this thread comes late, so that others held the interpreter; and what a long step is doing."""
    while True:
        before = time.perf_counter()
        time.sleep(_LOOK_S)
        now = time.perf_counter()
        if now - before > _LATE_S + _LOOK_S:
            note("interpreter held", before + _LOOK_S, now, stacks=_stacks())
        if _step and now - _step > _LONG_S:
            note("in a long step", before, now, stacks=_stacks("inference"))


def _stacks(only: str = "") -> dict[str, list[str]]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = {}
    for ident, frame in sys._current_frames().items():
        name = names.get(ident, str(ident))
        if name == "watch" or only not in name:
            continue
        lines: list[str] = []
        one = frame
        while one is not None and len(lines) < _DEEP:
            lines.append(f"{Path(one.f_code.co_filename).name}:{one.f_lineno} {one.f_code.co_name}")
            one = one.f_back  # type: ignore[assignment]
        if only or not lines[0].startswith(("threading.py", "selectors.py", "thread.py")):
            found[name] = lines
    return found


def write(folder: Path) -> None:
    """Write what was noted, with the device's times of the steps' ends."""
    for span, event in _marks:
        if _clock is not None and event.query():
            span["device end"] = _clock[1] + _clock[0].elapsed_time(event) / 1e3
    told = {"kind": _kind[0], "pid": os.getpid(), "spans": spans}
    (folder / f"trace-{os.getpid()}.json").write_text(json.dumps(told), encoding="utf-8")


def serve(bundle: Path, folder: Path, instant: bool, front_ends: int | None) -> int:
    """Serve the bundle with every process traced; front ends run this too."""
    from local_runner.bundle import manifest

    manifest.enter(bundle)
    from local_runner.front_ends.number import number_of
    from local_runner.server import ServerSettings
    from local_runner.server import serve as run

    if instant:
        from benchmarks.host_side import stand_in

        stand_in(_SLOTS, _STEP_S, _CONTEXT)
    install()
    settings = ServerSettings(
        bundle, grpc_port=0, http_port=0, ready_file=folder / "ready",
        front_ends=number_of(front_ends, bundle / "code"),
        command=(sys.executable, "-m", "benchmarks.step_trace", *sys.argv[1:]),
    )  # fmt: skip
    try:
        return run(settings)
    finally:
        write(folder)


def main() -> None:
    """Serve, then end the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--instant", action="store_true", help="a decoder that computes nothing, on any machine")
    parser.add_argument("--front-ends", type=int, help="what serve decides when absent")
    chosen = parser.parse_args()
    os._exit(serve(chosen.bundle, chosen.folder, chosen.instant, chosen.front_ends))


if __name__ == "__main__":
    main()
