"""Debian's buildah over a local root: the base image's stand-in, the build, and a container without a network.

Everything lies below one folder, `storage`; nothing is pulled, and nothing of this machine is written into an image.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.image.machine import mounts

PROGRAMS = ("buildah", "debootstrap", "unshare", "nsenter", "ip", "curl")
MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
# debootstrap resolves no virtual packages: python3-distutils is what python3.11-venv asks for.
_PACKAGES = "python3.11,python3.11-venv,python3-distutils,ca-certificates"
_ROOT_TIMEOUT_S, _BUILD_TIMEOUT_S, _STEP_TIMEOUT_S, _START_TIMEOUT_S = 600, 1500, 300, 180


def missing_programs() -> list[str]:
    """What has to be installed first."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class Images:
    """Images below `folder`; `log` is appended what the programs say."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder = folder
        self.log = log
        folder.mkdir(parents=True, exist_ok=True)

    def ensure_base(self, name: str) -> None:
        """Have a Debian root with Python 3.11 under the base image's name, made once."""
        if self._exists(name):
            return
        root = self.folder / "root"
        if not (root / "usr/bin/python3.11").exists() or (root / "debootstrap").exists():
            shutil.rmtree(root, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", SUITE, str(root), MIRROR]
            self._run(command, _ROOT_TIMEOUT_S)
        container = self.output("from", "scratch").strip()
        self._buildah("copy", container, str(root), "/")
        self._buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        self._buildah("commit", "--rm", container, name)

    def build(self, context: Path, name: str) -> None:
        """Build the Dockerfile of a bundle's environment folder; raises CalledProcessError or TimeoutExpired."""
        volumes = [f"--volume={value}" for value in mounts(self.folder)]
        options = ["--isolation=chroot", "--network=host", "--pull-never", "--layers=false", *volumes]
        self._buildah("build", *options, "--tag", name, str(context), timeout=_BUILD_TIMEOUT_S)

    def remove(self, name: str) -> None:
        """Remove an image and what builds left without a name; vfs keeps whole copies, some GB each."""
        self._buildah("rmi", name)
        self._buildah("rmi", "--prune", "--force")

    def config(self, name: str) -> dict[str, Any]:
        """The image's own configuration: User, Cmd, Env and so on."""
        found: dict[str, Any] = json.loads(self.output("inspect", "--type=image", name))
        return dict(found["OCIv1"]["config"])

    @contextmanager
    def container(self, name: str) -> Iterator[str]:
        """A working container of the image, gone afterwards."""
        container = self.output("from", "--pull-never", name).strip()
        try:
            yield container
        finally:
            self._buildah("rm", container)

    def inside(self, container: str, *command: str) -> str:
        """What a command prints inside the container, run as the image's user; raises CalledProcessError."""
        return self.output("run", "--isolation=chroot", container, "--", *command)

    def output(self, *arguments: str) -> str:
        """What buildah prints."""
        command = [*self._command(), *arguments]
        with self.log.open("ab") as log:
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=log, timeout=_STEP_TIMEOUT_S)
        return done.stdout.decode()

    @contextmanager
    def serving(
        self, container: str, command: Sequence[str], volumes: Mapping[Path, str], variables: Mapping[str, str]
    ) -> Iterator["Server"]:
        """Run the command in the container, in a network of its own that has a loopback and nothing else."""
        options = [f"--volume={source}:{target}:ro" for source, target in volumes.items()]
        options += [f"--env={key}={value}" for key, value in variables.items()]
        inner = [*self._command(), "run", "--isolation=chroot", *options, container, "--", *command]
        script = 'ip link set lo up && exec "$@"'
        # The processes die with their namespace, whose first process dies with this one.
        outer = [
            "unshare",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            script,
            "sh",
            *inner,
        ]
        with self.log.open("ab") as log, subprocess.Popen(outer, stdout=log, stderr=log) as process:
            try:
                yield Server(process)
            finally:
                process.kill()

    def _exists(self, name: str) -> bool:
        command = [*self._command(), "inspect", "--type=image", name]
        return subprocess.run(command, check=False, capture_output=True, timeout=_STEP_TIMEOUT_S).returncode == 0

    def _command(self) -> list[str]:
        store = self.folder / "storage"
        return ["buildah", f"--root={store}", f"--runroot={self.folder / 'run'}", "--storage-driver=vfs"]

    def _buildah(self, *arguments: str, timeout: float = _STEP_TIMEOUT_S) -> None:
        self._run([*self._command(), *arguments], timeout)

    def _run(self, command: list[str], timeout: float) -> None:
        with self.log.open("ab") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, timeout=timeout)


class Server:
    """A server in a network of its own; only `ask` reaches it."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def ask(self, path: str, body: str | None = None, timeout: float = 60) -> tuple[int, bytes]:
        """Status and body of a GET, or of a POST of JSON; status 0 where nothing answers."""
        command = ["nsenter", "--net", f"--target={self._process.pid}", "curl", "--silent"]
        command += ["--max-time", f"{timeout:g}", "--write-out", "\n%{http_code}", f"http://127.0.0.1:5001{path}"]
        if body is not None:
            command += ["--header", "Content-Type: application/json", "--data-binary", "@-"]
        done = subprocess.run(command, check=False, input=(body or "").encode(), capture_output=True)
        answer, _, status = done.stdout.rpartition(b"\n")
        return int(status or 0), answer

    def wait(self, timeout: float = _START_TIMEOUT_S) -> None:
        """Return when the health route answers 200; raises RuntimeError if it never does."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and self._process.poll() is None:
            if self.ask("/", timeout=5)[0] == 200:
                return
            time.sleep(0.5)
        raise RuntimeError(f"nothing healthy after {timeout:g} s; exit status {self._process.poll()}")
