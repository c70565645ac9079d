"""OCI image layouts: layers of tar written with the same bytes for the same files, and what is read of another layout.

By the OCI image specification 1.1: image-layout.md, manifest.md, config.md, layer.md.
"""

import hashlib
import json
import re
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from mii_azure.bundle.render import as_json
from mii_azure.errors import SpecError

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
NAME = "org.opencontainers.image.ref.name"
_MANIFESTS = (MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json")
_INDEXES = (INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json")
#: Docker's names of layers, which stay as they are but for their name.
_LAYERS = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": f"{LAYER_TYPE}+gzip",
    "application/vnd.docker.image.rootfs.diff.tar": LAYER_TYPE,
}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHUNK = 4 << 20
_MOST_JSON = 4 << 20  # bytes of an index, manifest or config
_HOW = "Make one with `buildah push IMAGE oci:FOLDER`, `skopeo copy docker://IMAGE oci:FOLDER` or `docker buildx`."


class Image(NamedTuple):
    """Image of a layout: its configuration, and the descriptors of its layers."""

    config: dict[str, Any]
    layers: list[dict[str, Any]]


class _Hashing:
    """Writer that knows the digest and size of what it was given."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)


def start(folder: Path) -> None:
    """Begin a layout in an empty folder."""
    (folder / "blobs" / "sha256").mkdir(parents=True)
    (folder / "oci-layout").write_text(as_json({"imageLayoutVersion": "1.0.0"}), encoding="utf-8")


def add_layer(folder: Path, files: Mapping[str, Path], executable: Iterable[str] = ()) -> dict[str, Any]:
    """Write a layer of files by their paths in the image, with their folders; return its descriptor.

    Sorted, owned by root, of 1970, and not compressed: the bytes depend on names and contents alone, and weights would
    not become smaller.
    """
    draft = folder / "blobs" / "sha256" / "draft"
    folders = {str(parent) for path in files for parent in Path(path).parents if str(parent) != "."}
    with draft.open("wb") as file:
        hashing = _Hashing(file)
        with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
            for path in sorted({*folders, *files}):
                entry = tarfile.TarInfo(path)
                if path in folders:
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(entry)
                    continue
                entry.size, entry.mode = files[path].stat().st_size, 0o755 if path in executable else 0o644
                with files[path].open("rb") as source:
                    tar.addfile(entry, source)
    digest = hashing.sha256.hexdigest()
    draft.rename(draft.with_name(digest))
    return {"mediaType": LAYER_TYPE, "digest": f"sha256:{digest}", "size": hashing.size}


def finish(folder: Path, config: Mapping[str, Any], layers: list[dict[str, Any]], names: Mapping[str, str]) -> str:
    """Write configuration, manifest and index; return the image's digest. `names` are the manifest's annotations."""
    described = _add_json(folder, config, CONFIG_TYPE)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": described,
        "layers": layers,
        "annotations": dict(names),
    }
    image = _add_json(folder, manifest, MANIFEST_TYPE)
    place = {"architecture": config["architecture"], "os": config["os"]}
    listed = {**image, "platform": place, "annotations": {NAME: names["org.opencontainers.image.version"]}}
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [listed]}
    (folder / "index.json").write_text(as_json(index), encoding="utf-8")
    return str(image["digest"])


def _add_json(folder: Path, value: Mapping[str, Any], kind: str) -> dict[str, Any]:
    content = as_json(value).encode()
    digest = hashlib.sha256(content).hexdigest()
    (folder / "blobs" / "sha256" / digest).write_bytes(content)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}


def read(folder: Path) -> Image:
    """Read the linux/amd64 image of a layout; raises SpecError for any other folder."""
    try:
        manifest = _manifest(folder, _json((folder / "index.json").read_bytes()))
        config = _json(_blob(folder, manifest["config"]).read_bytes())
        layers = [
            {**each, "mediaType": _LAYERS.get(each["mediaType"], each["mediaType"])} for each in manifest["layers"]
        ]
        if len(config["rootfs"]["diff_ids"]) != len(layers):
            raise ValueError("its configuration has another number of layers than its manifest")
        return Image(config, [{key: each[key] for key in ("mediaType", "digest", "size")} for each in layers])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
        raise SpecError(f"{folder} is no OCI image layout with an image for linux/amd64: {reason}.", _HOW) from None


def _manifest(folder: Path, index: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    for each in index["manifests"]:
        place = each.get("platform") or {}
        if place.get("os", "linux") != "linux" or place.get("architecture", "amd64") != "amd64":
            continue
        inner = _json(_blob(folder, each).read_bytes())
        if each["mediaType"] in _MANIFESTS:
            return inner
        if each["mediaType"] in _INDEXES and depth < 1:
            return _manifest(folder, inner, depth + 1)
    raise ValueError("its index names none")


def _blob(folder: Path, descriptor: Mapping[str, Any]) -> Path:
    """File of a small blob, whose digest is checked."""
    digest = str(descriptor["digest"])
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is no SHA-256")
    path = folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
    if path.stat().st_size > _MOST_JSON or hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
        raise ValueError(f"{digest} is not the hash of its file")
    return path


def _json(content: bytes) -> dict[str, Any]:
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError("a part of it is no JSON object")
    return value


def copy_layers(source: Path, folder: Path, layers: Iterable[Mapping[str, Any]]) -> None:
    """Copy layers of another layout, each checked against its digest and size; raises SpecError."""
    for each in layers:
        digest = str(each["digest"])
        name = digest.removeprefix("sha256:")
        sha256 = hashlib.sha256()
        try:
            if not _DIGEST.fullmatch(digest):
                raise ValueError(f"{digest!r} is no SHA-256")
            origin, target = source / "blobs" / "sha256" / name, folder / "blobs" / "sha256" / name
            with origin.open("rb") as reader, target.open("wb") as writer:
                while chunk := reader.read(_CHUNK):
                    sha256.update(chunk)
                    writer.write(chunk)
            if sha256.hexdigest() != name or target.stat().st_size != each["size"]:
                raise ValueError(f"{digest} is not the hash of its layer")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise SpecError(f"A layer of {source} cannot be taken: {reason}.", _HOW) from None


def discard(folder: Path) -> None:
    """Remove an unfinished layout."""
    shutil.rmtree(folder, ignore_errors=True)
