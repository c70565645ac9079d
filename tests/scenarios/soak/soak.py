"""Runs the clients against the servers for a time, and says what was lost, crossed, or grew."""

import datetime
import threading
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from local_runner.process.launch import LOOPBACK, Runner
from tests.scenarios.soak.clients import Client, Crossed
from tests.scenarios.soak.servers import Sample, Watch, Watched, bundle, expectations

#: How a request may end. 429 is the queue's word, and the deadline is the client's own.
SOUND = {"HTTP 200", "HTTP 400", "HTTP 429", "gRPC OK", "gRPC INVALID_ARGUMENT", "gRPC DEADLINE_EXCEEDED", "cancelled"}
THREADS_MORE = 2  # started on demand, up to the most requests at once; after the warm-up there have been as many
FILES_MORE = 4
MIB = 1 << 20


class Soak:
    """Some clients on each of some servers, for a number of seconds."""

    def __init__(self, servers: list[Watched], clients: int, seconds: float, pause_s: float) -> None:
        self.servers = servers
        self.seconds = seconds
        self.outcomes: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.crossed: list[str] = []
        self.lost: list[str] = []
        self._clients = [(server, Client(server, 97 * at)) for server in servers for at in range(clients)]
        self._pause = pause_s
        self._lock = threading.Lock()

    def run(self) -> float:
        """Load until the time is over; gives the seconds of the warm-up, half of it.

        So long, because oneDNN keeps up to 1,024 compiled products, one for each number of tokens that came, and they
        come by chance.
        """
        with Watch(self.servers) as watch:
            self._end = watch.began + self.seconds
            threads = [threading.Thread(target=self._work, args=pair) for pair in self._clients]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for _, client in self._clients:
                client.close()
        return self.seconds / 2

    def _work(self, server: Watched, client: Client) -> None:
        while time.monotonic() < self._end:
            try:
                outcome = client.step()
            except Crossed as error:
                outcome = "crossed"
                self._note(self.crossed, f"{server.task}: {error}")
            except Exception:
                outcome = "lost"
                self._note(self.lost, f"{server.task}: {traceback.format_exc(limit=-3)}")
            with self._lock:
                self.outcomes[outcome] += 1
                self.requests[server.task] += 1
            time.sleep(self._pause)

    def _note(self, notes: list[str], text: str) -> None:
        with self._lock:
            notes.append(text)


def idle(server: Watched) -> bool:
    """Whether the server holds no request, and no row of one that was cancelled, any more."""
    text = httpx.get(f"http://{LOOPBACK}:{server.runner.http_port}/metrics", trust_env=False).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return float(values["mii_azure_active_rows"]) == 0 == float(values["mii_azure_in_flight"])


def faults(soak: Soak, warm_s: float, growth: int) -> list[str]:
    """What the soak must not have had; `growth` in bytes is what a server's memory may rise after the warm-up."""
    found = [f"crossed: {text}" for text in soak.crossed[:5]] + [f"lost: {text}" for text in soak.lost[:5]]
    found += [f"{count} requests ended with {name}" for name, count in soak.outcomes.items() if name not in SOUND]
    for server in soak.servers:
        seen = server.after(warm_s)
        first, last = seen[: len(seen) // 3], seen[-len(seen) // 3 :]
        rise = server.growth(warm_s)
        if rise > growth:
            found.append(f"{server.task}: memory rose by {rise / MIB:.1f} MiB, more than {growth / MIB:.0f}")
        for name, more in (("threads", THREADS_MORE), ("files", FILES_MORE)):
            before, after = (max(getattr(sample, name) for sample in part) for part in (first, last))
            if after > before + more:
                found.append(f"{server.task}: {name} rose from {before} to {after}")
        if server.runner.process.poll() is not None:
            found.append(f"{server.task}: the server ended")
        elif "Traceback" in (log := server.runner.log.read_text()):
            found.append(f"{server.task}: there is a traceback in the log: {log[log.index('Traceback') :][:3000]}")
    return found


def summary(soak: Soak, warm_s: float, growth: int) -> dict[str, Any]:
    """The result, for machines."""
    servers = {}
    for server in soak.servers:
        seen = server.after(warm_s)
        first, last = seen[0], seen[-1]
        servers[server.task] = {
            "requests": soak.requests[server.task],
            "rss_mib": {
                "start": round(server.samples[0].rss / MIB, 1),
                "after warm-up": round(first.rss / MIB, 1),
                "end": round(last.rss / MIB, 1),
            },
            "rss_mib_by_tenth": [round(sample.rss / MIB, 1) for sample in _tenths(server.samples)],
            "rss_rise_mib_fitted": round(server.growth(warm_s) / MIB, 2),
            "threads": {"after warm-up": first.threads, "end": last.threads},
            "files": {"after warm-up": first.files, "end": last.files},
        }
    return {
        "seconds": soak.seconds,
        "warm_up_s": warm_s,
        "rss_rise_mib_allowed": growth // MIB,
        "requests": sum(soak.outcomes.values()),
        "outcomes": dict(sorted(soak.outcomes.items())),
        "lost": len(soak.lost),
        "crossed": len(soak.crossed),
        "servers": servers,
        "date": datetime.date.today().isoformat(),
    }


def _tenths(samples: list[Sample]) -> list[Sample]:
    return [samples[round((len(samples) - 1) * part / 10)] for part in range(11)]


def soaked(
    tasks: list[str], folder: Path, seconds: float, clients: int, pause_s: float, growth: int, texts: int
) -> tuple[dict[str, Any], list[str]]:
    """Soak a server of each task; the result, and its faults."""
    with ExitStack() as stack:
        servers = []
        for task in tasks:
            made = bundle(task, folder)
            runner = stack.enter_context(Runner(made, arguments=("--drain-seconds", "5")))
            servers.append(Watched(task, runner, expectations(task, folder, texts)))
        soak = Soak(servers, clients, seconds, pause_s)
        warm_s = soak.run()
        found = faults(soak, warm_s, growth)
        deadline = time.monotonic() + 10
        while not all(idle(server) for server in servers):
            if time.monotonic() > deadline:
                found.append("requests were still held 10 s after the last client had gone")
                break
            time.sleep(0.2)
        return summary(soak, warm_s, growth), found
