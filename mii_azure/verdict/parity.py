"""Parity run: the same requests to every target, replies graded, differences explained."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mii_azure.errors import SpecError
from mii_azure.platform.targets import CONTAINER, ENDPOINT, KNOWN, TARGETS
from mii_azure.verdict.cases import Request, edge_requests, read_requests
from mii_azure.verdict.grade import TOLERANCES, Grade, environment_difference, grade
from scoring.config import Deployment

if TYPE_CHECKING:
    from local_runner.targets.targets import Target


class Comparison(BaseModel):
    """Comparison of one target's answer to one request with the reference target's."""

    model_config = ConfigDict(frozen=True)

    request: str
    target: str
    status: int
    grade: Grade
    difference: str


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
    comparisons: tuple[Comparison, ...]
    environment: dict[str, list[str]]  # per target: differences from the reference, likeliest cause first

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of replies with each grade, per target."""
        table: dict[str, dict[str, int]] = {target: {} for target in self.targets}
        for entry in self.comparisons:
            table[entry.target][entry.grade] = table[entry.target].get(entry.grade, 0) + 1
        return table


class _Run(BaseModel):
    replies: list[tuple[int, bytes]]
    metadata: dict[str, Any]


def parity(
    bundle: str | Path,
    targets: Sequence[str] = (),
    requests: str | Path | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
    ml_client: Any = None,
) -> Verdict:
    """Start each target in turn, send it the same requests, and grade the replies against the first target's.

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
    own = read_requests(Path(requests)) if requests else None
    runs: dict[str, _Run] = {}
    sent: list[Request] = own or []
    for name in targets:
        on_progress(f"starting {name}")
        with _target(name, folder, ml_client) as target:
            metadata = target.metadata()
            sent = sent or edge_requests(settings["task"], int(metadata["context_length"]))
            on_progress(f"asking {name} {len(sent)} requests")
            replies = [(reply.status, reply.body) for reply in (target.send(request.body) for request in sent)]
        runs[name] = _Run(replies=replies, metadata=metadata)
    formats = {settings["dtype"], *(run.metadata.get("precision", settings["dtype"]) for run in runs.values())}
    return _judge(folder, digest, sent, runs, max(TOLERANCES[name] for name in formats))


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


def _judge(folder: Path, digest: str, sent: list[Request], runs: dict[str, _Run], tolerance: float) -> Verdict:
    names = list(runs)
    reference = runs[names[0]]
    comparisons = tuple(
        Comparison(request=request.name, target=name, status=reply[0], grade=given, difference=difference)
        for name in names[1:]
        for request, expected, reply in zip(sent, reference.replies, runs[name].replies, strict=True)
        for given, difference in [grade(expected, reply, tolerance)]
    )
    return Verdict(
        agree=all(entry.grade in ("bytes", "values") for entry in comparisons),
        bundle=str(folder),
        bundle_hash=digest,
        reference=names[0],
        targets=tuple(names),
        tolerance=tolerance,
        requests=len(sent),
        comparisons=comparisons,
        environment={name: environment_difference(reference.metadata, runs[name].metadata) for name in names[1:]},
    )
