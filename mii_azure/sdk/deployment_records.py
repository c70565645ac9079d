"""Records of the deployments on this machine, and a lock per name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from mii_azure.errors import RunnerFailed, UnknownDeployment
from mii_azure.sdk.processes import HIGHEST_PID, Known

STATE = "state.json"
_LARGEST = 1 << 16  # bytes of a record; ours have a few hundred
_OURS = " -m local_runner "

Pid = Annotated[int, Field(gt=1, le=HIGHEST_PID)]
Port = Annotated[int, Field(ge=1, le=65535)]


@dataclass(frozen=True)
class LocalDeployment:
    """Running local runner, and the identity of its process."""

    name: str
    bundle: str
    pid: Pid
    host: str
    grpc_port: Port
    http_port: Port
    started: str
    command: str

    @property
    def process(self) -> Known:
        """Process that was started; another one may have its pid by now."""
        return Known(self.pid, self.started, self.command)


def home() -> Path:
    """Folder of local deployments; MII_AZURE_HOME overrides the user's cache folder."""
    base = os.environ.get("MII_AZURE_HOME")
    return Path(base) if base else Path.home() / ".cache" / "mii_azure" / "deployments"


def read(name: str) -> LocalDeployment | None:
    """Read the record of a name, running or not; raises UnknownDeployment for an invalid record."""
    try:
        with (home() / name / STATE).open("rb") as file:
            text = file.read(_LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(name, error.strerror or type(error).__name__) from error
    try:
        record = TypeAdapter(LocalDeployment).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise _unreadable(name, " ".join([*map(str, first["loc"]), first["msg"]])) from error
    if record.name != name or _OURS not in record.command:
        raise _unreadable(name, "it is of something else")
    return record


def write(deployment: LocalDeployment) -> None:
    """Record a deployment, atomically."""
    path = home() / deployment.name / STATE
    partial = path.with_name(f".{STATE}.{os.getpid()}")
    partial.write_bytes(TypeAdapter(dict).dump_json(asdict(deployment)))
    partial.replace(path)


def remove(name: str) -> None:
    """Remove the record of a name."""
    (home() / name / STATE).unlink(missing_ok=True)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of a name, so that nobody else starts or stops it; raises RunnerFailed if it is held already."""
    import fcntl

    home().mkdir(mode=0o700, parents=True, exist_ok=True)
    # Beside the deployment's folder, which `terminate` removes; the lock ends with this process, however that ends.
    with (home() / f".{name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunnerFailed(
                f"The deployment {name!r} is being started or stopped by another call.", "Try again when that is done."
            ) from error
        yield


def _unreadable(name: str, why: str) -> UnknownDeployment:
    return UnknownDeployment(
        f"The record of the deployment {name!r} cannot be read: {why}.",
        f"mii_azure.terminate({name!r}) removes it; a runner that it meant has to be ended by hand.",
    )
