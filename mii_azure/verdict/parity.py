"""Parity run: the same requests to every target, replies graded, differences explained."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mii_azure.errors import SpecError
from mii_azure.platform.target_names import ELSEWHERE
from mii_azure.verdict.cases import Request, edge_requests, read_requests
from mii_azure.verdict.grade import ALIKE, Reply
from mii_azure.verdict.outcome import Comparison, TargetRun, Verdict, compare, differences, require_compared
from mii_azure.verdict.sides import side_of
from mii_azure.verdict.targets import Reach, check_targets, open_target, targets_of
from mii_azure.verdict.tokens.judge import (
    Answered,
    TokenVerdict,
    ask,
    askable,
    judge,
    precision_of,
    probes_for,
    shipped_numbers,
)
from mii_azure.verdict.tokens.suspects import Suspect, fp8_cache, named_suspects
from scoring.config import Deployment
from scoring.passes.cpu import FORMAT

if TYPE_CHECKING:
    from local_runner.targets.load import TargetReply
    from local_runner.targets.targets import Target

Progress = Callable[[str], None]


def parity(
    bundle: str | Path,
    targets: Sequence[str] = (),
    requests: str | Path | None = None,
    progress: Progress = lambda text: None,
    ml_client: Any = None,
    load: int = 0,
    tokens: int = 0,
    suspects: Mapping[str, Path] = MappingProxyType({}),
    api_key: str = "",
) -> Verdict:
    """Reach each target in turn, send it the same requests, and grade the replies against the first target's.

    With `load`, each target is then sent all of them again, shuffled and so many at a time, and every reply is graded
    against that target's reply to the request alone; of one that serves with batch_invariant, no number may differ.
    With `tokens`, each target is asked for about so many of them, which the bundle's model then scores by plain
    transformers, the first target's too; `suspects` are folders of adapters or models that may serve instead. One
    target is then enough.
    Without `targets` they are those of `targets_of`. `ml_client` reaches the targets that are live in Azure,
    `endpoint:NAME[/SLOT]`; MII_AZURE_WORKSPACE and its siblings name the workspace without it. `api_key` goes to
    targets `url:URL`.
    Raises SpecError for unknown targets, NotABundle, BundleEdited, and RunnerFailed when a target does not start.
    """
    folder = Path(bundle)
    digest, settings = _identity(folder)
    targets = targets or targets_of(folder)
    check_targets(targets, 1 if tokens else 2, api_key)
    run = _Run(settings, load, tokens, progress, shipped_numbers(folder / "model") if tokens else "")
    named = named_suspects(suspects, folder / "model", settings["model"]["family"])
    run.sent = read_requests(Path(requests)) if requests else []
    for number, name in enumerate(targets, 1):
        run.place = f"{number} of {len(targets)}: "
        run.say(f"starting {name}")
        with _one_format(run.runs), open_target(name, folder, settings["task"], Reach(ml_client, api_key)) as target:
            run.ask(name, target)
    judged, compared = run.judged(folder / "model", named), run.compared()
    return Verdict(
        agree=all(entry.grade in ALIKE for entry in compared) and all(one.agree for one in judged),
        bundle=str(folder),
        bundle_hash=digest,
        reference=targets[0],
        targets=tuple(run.runs),
        tolerance=run.tolerance,
        requests=len(run.sent),
        load=load,
        comparisons=tuple(compared),
        environment=differences(run.runs),
        tokens=judged,
        sides=tuple(each.side for each in run.runs.values()),
    )


class _Run:
    """Run in progress: what is asked, and what was replied so far."""

    def __init__(self, settings: dict[str, Any], load: int, tokens: int, progress: Progress, shipped: str = "") -> None:
        if load < 0:
            raise SpecError(f"No {load} requests can be in flight.", "Give the number of clients, or 0 for none.")
        self._settings, self._load, self._progress = settings, load, progress
        self._shipped = shipped  # numbers of the products in the folder of the model, if they are quantised
        self._context = int(settings["limits"]["context_length"])
        self._probes = probes_for(settings["task"], tokens, self._context) if tokens else []
        self._answered: list[Answered] = []
        self.sent: list[Request] = []
        self.runs: dict[str, TargetRun] = {}
        self.place = ""

    @property
    def tolerance(self) -> float:
        """Widest tolerance of those that pairs are compared with."""
        return max(run.tolerance(self._settings["dtype"]) for run in self.runs.values())

    def say(self, told: str) -> None:
        """Tell what is done, and for which target."""
        self._progress(self.place + told)

    def ask(self, name: str, target: "Target") -> None:
        """Send a target every request, alone and under load, and the probes."""
        metadata = target.metadata()
        context = int(metadata.get("context_length", self._context))
        self.sent = self.sent or edge_requests(self._settings["task"], context, _beside(self._settings))
        self.say(f"asking {name} {len(self.sent)} requests")
        taken = [target.takes(request.body) for request in self.sent]
        timed = [target.send(request.body) if takes else None for request, takes in zip(self.sent, taken, strict=True)]
        seconds = [reply.seconds for reply in timed if reply is not None and reply.status == 200]
        replies = [None if reply is None else _bare(reply) for reply in timed]
        promised = {} if name.startswith(ELSEWHERE) else self._settings["limits"]  # by who tells nothing
        invariant = bool(metadata.get("limits", promised).get("batch_invariant"))
        run = TargetRun(replies, metadata, side_of(name, target, metadata, seconds), target.own_form, invariant)
        if self._load and any(taken):
            self.say(f"asking {name} with {self._load} requests in flight")
            bodies = [request.body for request, takes in zip(self.sent, taken, strict=True) if takes]
            run.loaded = [[_bare(reply) for reply in replies] for replies in target.together(bodies, self._load)]
        if self._probes:
            self.say(f"asking {name} for tokens")
            probes = askable(self._probes, metadata)
            self._answered.append(
                ask(name, target, precision_of(metadata, self._settings["dtype"], self._shipped), probes)
            )
        self.runs[name] = run

    def compared(self) -> list[Comparison]:
        """Comparisons of all replies; raises SpecError if nothing was compared and no tokens are judged."""
        if not self._answered:
            require_compared(self.runs, len(self.sent))
        return compare(self.sent, self.runs, self._settings["dtype"])

    def judged(self, model: Path, suspects: Sequence[Suspect]) -> tuple[TokenVerdict, ...]:
        """Verdicts on the targets' tokens, by the model in a folder."""
        if not self._answered:
            return ()
        from mii_azure.verdict.tokens.reference import ReferenceModel

        self.place = ""
        self.say("loading the reference model")
        reference = ReferenceModel(model, self._settings["task"])
        found = []
        narrow = self._settings["limits"]["kv_cache_dtype"] == "fp8"  # as the bundle asks for: then no suspect
        with fp8_cache(reference) if narrow else nullcontext():
            for each in self._answered:
                self.say(f"scoring the tokens of {each.target}")
                found.append(judge(reference, each, suspects, self.say))
        return tuple(found)


@contextmanager
def _one_format(runs: Mapping[str, TargetRun]) -> Iterator[None]:
    """Have hosts that start on this machine run in the number format of the first one.

    Each would time the formats for itself, and two that are as fast fall one way here and the other way there: that
    says nothing of the hosts.
    """
    told = next((run.metadata.get("precision") for name, run in runs.items() if not name.startswith(ELSEWHERE)), None)
    if told is None or FORMAT in os.environ:
        yield
        return
    os.environ[FORMAT] = str(told)
    try:
        yield
    finally:
        del os.environ[FORMAT]


def _beside(settings: Mapping[str, Any]) -> list[str]:
    """Names of the adapters beside the model of a bundle, by its settings."""
    return [each["name"] for each in settings.get("adapters", []) if not each["merged"]]


def _bare(reply: "TargetReply") -> Reply:
    return reply.status, reply.body


def _identity(folder: Path) -> tuple[str, dict[str, Any]]:
    from mii_azure.bundle.manifest import load_manifest

    digest = str(load_manifest(folder)["bundle"])
    return digest, asdict(Deployment.read(folder / "code" / "deployment.json"))
