"""Verb prepare: verify a bundle's passes on this machine once, instead of at every start of the endpoint."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from local_runner.bundle.manifest import MANIFEST, hash_files
from mii_azure.bundle.manifest import load_manifest, make_manifest, walk
from mii_azure.bundle.render import as_json
from mii_azure.bundle.stopping import unwinding
from mii_azure.errors import NotABundle, NotWritten
from mii_azure.platform.paths import expanded
from scoring.strict_json.files import read_object

FOLDER = "code/prepared"


class Prepared(BaseModel):
    """Result of prepare: passes verified and compiled, and the machine that the result holds for."""

    model_config = ConfigDict(frozen=True)

    bundle: str  # its hash, now changed
    device: str
    errors: dict[str, float | None]  # relative error per applied pass
    seconds: dict[str, float]  # time that each pass took here, verification included
    compiled_bytes: int


def prepare(bundle: str | Path) -> Prepared:
    """Start the bundle's score.py here, and store the verified and compiled results in the bundle.

    Serving uses them on machines with this device, these versions and this model, and verifies elsewhere. Raises
    NotABundle, BundleEdited, NotWritten, and RunnerFailed or the script's own error when it does not start.
    """
    from local_runner.targets.targets import InProcess

    root = expanded(bundle).resolve()
    load_manifest(root)
    with _writing(root):  # fails before a minute is spent on results that could not be stored
        (root / FOLDER).mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=root / FOLDER).close()
        (root / MANIFEST).open("ab").close()
    with unwinding(), tempfile.TemporaryDirectory() as place:
        target = InProcess(root)
        target.environment = {"MII_AZURE_PREPARE": place}
        with target:
            metadata = target.metadata()
        with _writing(root):
            _put(Path(place), root / FOLDER)
            digest = _sign(root)
    told = read_object(root / FOLDER / "verified.json", NotABundle)
    compiled = root / FOLDER / "compiled.inductor"
    return Prepared(
        bundle=digest,
        device=metadata["device"],
        errors=told["errors"],
        seconds=told["seconds"],
        compiled_bytes=compiled.stat().st_size if compiled.is_file() else 0,
    )


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Turn a failure to write into NotWritten."""
    try:
        yield
    except OSError as error:
        told = f"{root} cannot be written to: {error.strerror or error}."
        raise NotWritten(told, "Prepare a copy of the bundle in a folder that you may write to.") from error


def _put(source: Path, folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
    shutil.copytree(source, folder)


def _sign(root: Path) -> str:
    """Rewrite the manifest with the hashes of the added files, and return the bundle's hash."""
    files: dict[str, Any] = load_manifest(root)["files"]
    kept = {path: digest for path, digest in files.items() if not path.startswith(f"{FOLDER}/")}
    added = hash_files(root, [f"{FOLDER}/{path}" for path in walk(root / FOLDER)])
    manifest = make_manifest(kept | added)
    (root / MANIFEST).write_text(as_json(manifest), encoding="utf-8")
    return str(manifest["bundle"])
