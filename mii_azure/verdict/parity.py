"""Parity run: the same requests to every target, replies graded, differences explained."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mii_azure import notebook
from mii_azure.errors import SpecError
from mii_azure.platform.targets import CONTAINER, ENDPOINT, KNOWN, TARGETS
from mii_azure.verdict.cases import Request, edge_requests, read_requests
from mii_azure.verdict.grade import ALIKE, TOLERANCES, Grade, environment_difference, grade, worst
from scoring.config import Deployment

if TYPE_CHECKING:
    from local_runner.targets.load import TargetReply
    from local_runner.targets.targets import Target


_MOST_SHOWN = 20_000  # bytes of a reply that a verdict repeats


class Comparison(BaseModel):
    """Comparison of one target's answer to one request with the reference target's."""

    model_config = ConfigDict(frozen=True)

    request: str
    target: str
    status: int
    grade: Grade
    difference: str
    bodies: tuple[str, str] | None = None  # where they differ: the reference's and the target's, as far as is shown
    under_load: bool = False  # asked while other requests were in flight, and compared with the answer alone


class Verdict(BaseModel):
    """Verdict of a parity run; `agree` only if every target answered every request alike."""

    model_config = ConfigDict(frozen=True)

    agree: bool
    bundle: str
    bundle_hash: str
    reference: str
    targets: tuple[str, ...]
    tolerance: float
    requests: int
    load: int  # requests in flight during the second pass; 0: there was none
    comparisons: tuple[Comparison, ...]
    environment: dict[str, list[str]]  # per target: differences from the reference, likeliest cause first

    def __repr__(self) -> str:
        return f"Verdict({self.headline()})"

    __str__ = __repr__

    def headline(self) -> str:
        """Whether the targets agree, in one line."""
        word, alike = ("agree", "alike") if self.agree else ("disagree", "differently")
        return f"{word}: {', '.join(self.targets)} answered {self.requests} requests {alike}"

    def _repr_html_(self) -> str:
        grades = ("bytes", "values", "scores", "different")
        counts = [
            (name, *(self.counts[name].get(grade, "") for grade in grades), "; ".join(self.environment.get(name, [])))
            for name in self.targets
        ]
        other = [each for each in self.comparisons if each.grade not in ALIKE]
        made = notebook.table(("target", *grades, "environment"), counts)
        told = notebook.table(
            ("target", "request", "difference"), [(each.target, each.request, each.difference) for each in other]
        )
        return notebook.page(self.headline(), made, told if other else "")

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of replies with each grade, per target."""
        table: dict[str, dict[str, int]] = {target: {} for target in self.targets}
        for entry in (entry for entry in self.comparisons if not entry.under_load):
            table[entry.target][entry.grade] = table[entry.target].get(entry.grade, 0) + 1
        return table

    @property
    def moved(self) -> dict[str, int]:
        """Number of requests, per target, that were answered otherwise under load than alone."""
        moved = [entry.target for entry in self.comparisons if entry.under_load and entry.grade not in ALIKE]
        return {target: moved.count(target) for target in self.targets}


class _Run(BaseModel):
    replies: list[tuple[int, bytes]]
    loaded: list[list[tuple[int, bytes]]]  # each request's replies under load
    metadata: dict[str, Any]


def parity(
    bundle: str | Path,
    targets: Sequence[str] = (),
    requests: str | Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
    ml_client: Any = None,
    load: int = 0,
) -> Verdict:
    """Start each target in turn, send it the same requests, and grade the replies against the first target's.

    With `load`, each target is then sent all of them again, shuffled and so many at a time, and every reply is graded
    against that target's reply to the request alone.
    Without `targets` they are TARGETS, the last being the server in the bundle's own image: for a bundle made with
    `--server http` the target `container`.
    `ml_client` reaches the targets that are live in Azure, `endpoint:NAME[/SLOT]`; MII_AZURE_WORKSPACE and its siblings
    name the workspace without it.
    Raises SpecError for unknown targets, NotABundle, BundleEdited, and RunnerFailed when a target does not start.
    """
    folder = Path(bundle)
    digest, settings = _identity(folder)
    targets = targets or _targets_of(folder)
    _check_targets(targets)
    if load < 0:
        raise SpecError(f"No {load} requests can be in flight.", "Give the number of clients, or 0 for none.")
    own = read_requests(Path(requests)) if requests else None
    runs: dict[str, _Run] = {}
    sent: list[Request] = own or []
    for number, name in enumerate(targets, 1):
        progress(f"{number} of {len(targets)}: starting {name}")
        with _target(name, folder, ml_client) as target:
            metadata = target.metadata()
            sent = sent or edge_requests(settings["task"], int(metadata["context_length"]))
            progress(f"{number} of {len(targets)}: asking {name} {len(sent)} requests")
            replies = [target.send(request.body) for request in sent]
            if load:
                progress(f"{number} of {len(targets)}: asking {name} with {load} requests in flight")
            loaded = target.together([request.body for request in sent], load) if load else []
        runs[name] = _Run(replies=_bare(replies), loaded=[_bare(each) for each in loaded], metadata=metadata)
    formats = {settings["dtype"], *(run.metadata.get("precision", settings["dtype"]) for run in runs.values())}
    return _judge(folder, digest, sent, runs, max(TOLERANCES[name] for name in formats), load)


def _bare(replies: "Sequence[TargetReply]") -> list[tuple[int, bytes]]:
    return [(reply.status, reply.body) for reply in replies]


def _identity(folder: Path) -> tuple[str, dict[str, Any]]:
    from mii_azure.bundle.manifest import load_manifest

    digest = str(load_manifest(folder)["bundle"])
    return digest, asdict(Deployment.read(folder / "code" / "deployment.json"))


def _targets_of(folder: Path) -> tuple[str, ...]:
    from local_runner.process.launch import carries_host

    return (*TARGETS[:-1], CONTAINER) if carries_host(folder) else TARGETS


def _target(name: str, folder: Path, ml_client: Any) -> "Target":
    if name.startswith(ENDPOINT):
        from mii_azure.azure.client import connect
        from mii_azure.azure.live import EndpointTarget

        return EndpointTarget(folder, name, ml_client or connect())
    from local_runner.targets.targets import make_target

    return make_target(name, folder)


def _check_targets(targets: Sequence[str]) -> None:
    known = f"Targets: {', '.join(KNOWN)}, {ENDPOINT}NAME."
    unknown = [name for name in targets if name not in KNOWN and not name.startswith(ENDPOINT)]
    if unknown:
        raise SpecError(f"Unknown target {unknown[0]!r}.", known)
    if len(set(targets)) < 2:
        raise SpecError("Parity compares at least two targets.", known)


def _judge(
    folder: Path, digest: str, sent: list[Request], runs: dict[str, _Run], tolerance: float, load: int
) -> Verdict:
    names = list(runs)
    reference = runs[names[0]]
    comparisons = [
        Comparison(
            request=request.name,
            target=name,
            status=reply[0],
            grade=given,
            difference=difference,
            bodies=None if given in ALIKE else (_shown(expected[1]), _shown(reply[1])),
        )
        for name in names[1:]
        for request, expected, reply in zip(sent, reference.replies, runs[name].replies, strict=True)
        for given, difference in [grade(expected, reply, tolerance)]
    ]
    comparisons += [entry for name in names for entry in _under_load(name, sent, runs[name], tolerance)]
    return Verdict(
        agree=all(entry.grade in ALIKE for entry in comparisons),
        bundle=str(folder),
        bundle_hash=digest,
        reference=names[0],
        targets=tuple(names),
        tolerance=tolerance,
        requests=len(sent),
        load=load,
        comparisons=tuple(comparisons),
        environment={name: environment_difference(reference.metadata, runs[name].metadata) for name in names[1:]},
    )


def _shown(body: bytes) -> str:
    """Beginning of a reply, as text."""
    return body[:_MOST_SHOWN].decode(errors="replace")


def _under_load(name: str, sent: list[Request], run: _Run, tolerance: float) -> Iterator[Comparison]:
    """Compare what a target answered under load with what it answered alone: of each request, the worst."""
    for request, alone, replies in zip(sent, run.replies, run.loaded, strict=bool(run.loaded)):
        status, given, difference = worst([(reply[0], *grade(alone, reply, tolerance)) for reply in replies])
        yield Comparison(
            request=request.name, target=name, status=status, grade=given, difference=difference, under_load=True
        )
