"""The verb prepare: verify a bundle's passes on this machine once, instead of at every start of the endpoint."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from local_runner.manifest import MANIFEST, hash_files
from mii_azure.manifest import load_manifest, make_manifest, walk
from mii_azure.render import as_json
from mii_azure.stopping import unwinding

FOLDER = "code/prepared"


class Prepared(BaseModel):
    """What was verified and compiled, and for which machine it holds."""

    model_config = ConfigDict(frozen=True)

    bundle: str  # its hash from now on
    device: str
    errors: dict[str, float | None]  # relative, per applied pass
    seconds: dict[str, float]  # that each pass took here, verification included
    compiled_bytes: int


def prepare(bundle: str | Path) -> Prepared:
    """Start the bundle's score.py here, and keep in the bundle what it verified and compiled.

    Serving uses it on machines with this device, these versions and this model, and verifies as usual on others. Raises
    NotABundle, BundleEdited, and RunnerFailed or the script's own error when it does not start.
    """
    from local_runner.targets import InProcess

    root = Path(bundle).expanduser().resolve()
    load_manifest(root)
    with unwinding(), tempfile.TemporaryDirectory() as place:
        target = InProcess(root)
        target.environment = {"MII_AZURE_PREPARE": place}
        with target:
            metadata = target.metadata()
        _put(Path(place), root / FOLDER)
    told = json.loads((root / FOLDER / "verified.json").read_text(encoding="utf-8"))
    compiled = root / FOLDER / "compiled.inductor"
    return Prepared(
        bundle=_sign(root),
        device=metadata["device"],
        errors=told["errors"],
        seconds=told["seconds"],
        compiled_bytes=compiled.stat().st_size if compiled.is_file() else 0,
    )


def _put(source: Path, folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
    shutil.copytree(source, folder)


def _sign(root: Path) -> str:
    """Write the manifest again, with the hashes of what was added, and return the bundle's hash."""
    files: dict[str, Any] = load_manifest(root)["files"]
    kept = {path: digest for path, digest in files.items() if not path.startswith(f"{FOLDER}/")}
    added = hash_files(root, [f"{FOLDER}/{path}" for path in walk(root / FOLDER)])
    manifest = make_manifest(kept | added)
    (root / MANIFEST).write_text(as_json(manifest), encoding="utf-8")
    return str(manifest["bundle"])
