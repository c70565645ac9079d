"""OCI layouts of bundles: read here by the specification, and by skopeo and umoci where they are installed."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mii_azure.bundle.package import package
from mii_azure.bundle.verify import verify_bundle
from mii_azure.checks.check import check
from mii_azure.cli.app import app
from mii_azure.errors import BundleEdited, BundleExists, NotWritten, SpecError
from mii_azure.sdk.generate import generate

HOME = "opt/mii-azure/bundle"
ENV = ["PATH=/opt/mii-azure/venv/bin:/usr/bin:/bin", "AZUREML_MODEL_DIR=/elsewhere"]
CMD = ["sh", "-c", 'cd "$AML_APP_ROOT" && exec python -m local_runner.container']


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory) -> Path:
    model, folder = str(tiny("bert", "question-answering")), tmp_path_factory.mktemp("package") / "bundle"
    return generate("question-answering", model, "my-qa", output=folder, server="http")


def blob(folder: Path, content: bytes, kind: str) -> dict:
    digest = hashlib.sha256(content).hexdigest()
    (folder / "blobs/sha256" / digest).write_bytes(content)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}


def make_base(folder: Path, settings: dict) -> Path:
    """A layout as an engine writes it: one gzipped layer, by Docker's names."""
    (folder / "blobs/sha256").mkdir(parents=True)
    plain, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        entry = tarfile.TarInfo("etc/os-release")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"ID="))
    import gzip

    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        file.write(plain.getvalue())
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain.getvalue()).hexdigest()}"]},
        "history": [{"created_by": "RUN base"}],
    }
    docker = "application/vnd.docker"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{docker}.distribution.manifest.v2+json",
        "config": blob(folder, json.dumps(config).encode(), f"{docker}.container.image.v1+json"),
        "layers": [blob(folder, packed.getvalue(), f"{docker}.image.rootfs.diff.tar.gzip")],
    }
    listed = blob(folder, json.dumps(manifest).encode(), manifest["mediaType"])
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    return folder


def read(layout: Path) -> tuple[dict, dict]:
    """Manifest and configuration; every blob has the size and digest that it is named by, and none is left over."""
    named = set()

    def open_blob(descriptor: dict) -> bytes:
        content = (layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
        assert len(content) == descriptor["size"]
        named.add(descriptor["digest"].removeprefix("sha256:"))
        return content

    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (listed,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads(open_blob(listed))
    config = json.loads(open_blob(manifest["config"]))
    for layer, diff in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        content = open_blob(layer)
        assert layer["mediaType"].endswith("+gzip") or diff == layer["digest"]
        assert content
    assert len([each for each in config["history"] if not each.get("empty_layer")]) == len(manifest["layers"])
    assert {path.name for path in (layout / "blobs/sha256").iterdir()} == named
    return manifest, config


def unpack(layout: Path, manifest: dict, target: Path) -> list[tarfile.TarInfo]:
    entries = []
    for layer in manifest["layers"]:
        with tarfile.open(layout / "blobs" / layer["digest"].replace(":", "/")) as tar:
            entries += tar.getmembers()
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python has it since 3.11.4
            tar.extractall(target)
    return entries


def test_the_files_come_out_as_they_went_in(bundle, tmp_path):
    made = package(bundle, tmp_path / "image")
    manifest, config = read(tmp_path / "image")
    assert (made.runs, config["architecture"], config["os"]) == (False, "amd64", "linux")
    assert "Cmd" not in config["config"]
    entries = unpack(tmp_path / "image", manifest, tmp_path / "root")
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries} == {(0, 0, 0)}
    assert {entry.mode for entry in entries if entry.isfile()} == {0o644, 0o755}
    out = tmp_path / "root" / HOME
    assert verify_bundle(out).sound
    assert check(out) == []
    assert (out / "deploy.sh").stat().st_mode & 0o111


def test_the_same_files_give_the_same_image_whenever_they_were_written(bundle, tmp_path):
    copied = Path(shutil.copytree(bundle, tmp_path / "copy", copy_function=shutil.copyfile))
    first, second = package(bundle, tmp_path / "a"), package(copied, tmp_path / "b")
    assert first.digest == second.digest
    for path in (tmp_path / "a").rglob("*"):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.is_dir() or path.read_bytes() == other.read_bytes()


def test_over_its_base_it_is_an_image_that_runs(bundle, tmp_path):
    base = make_base(tmp_path / "base", {"Env": ENV, "Cmd": CMD, "User": "10001", "ExposedPorts": {"5001/tcp": {}}})
    made = package(bundle, tmp_path / "image", base=base, tag="1.0")
    manifest, config = read(tmp_path / "image")
    assert (made.runs, made.tag, len(manifest["layers"])) == (True, "1.0", 3)
    settings = config["config"]
    assert (settings["Cmd"], settings["User"], settings["ExposedPorts"]) == (CMD, "10001", {"5001/tcp": {}})
    assert settings["Env"] == [
        ENV[0],
        f"AML_APP_ROOT=/{HOME}/code",
        "AZUREML_ENTRY_SCRIPT=score.py",
        f"AZUREML_MODEL_DIR=/{HOME}/model",
    ]
    unpack(tmp_path / "image", manifest, tmp_path / "root")
    assert (tmp_path / "root/etc/os-release").read_text() == "ID="
    assert (tmp_path / "root" / HOME / "code/local_runner/container.py").is_file()


@pytest.mark.parametrize(
    ("settings", "spoil", "told"),
    [
        ({"Env": ["PATH=/usr/bin"], "Cmd": CMD}, None, "starts no server"),
        ({"Env": ENV}, None, "starts no server"),
        ({"Env": ENV, "Cmd": CMD}, "index.json", "no OCI image layout"),
        ({"Env": ENV, "Cmd": CMD}, "blobs", "is not the hash of"),
    ],
)
def test_another_base_is_refused_and_nothing_is_left(bundle, tmp_path, settings, spoil, told):
    base = make_base(tmp_path / "base", settings)
    if spoil == "index.json":
        (base / spoil).write_text("[]")
    elif spoil:
        for path in (base / "blobs/sha256").iterdir():
            if path.read_bytes()[:2] == b"\x1f\x8b":
                path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(SpecError, match=told):
        package(bundle, tmp_path / "image", base=base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_what_is_there_stays_and_an_edited_bundle_is_refused(bundle, tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "mine").touch()
    with pytest.raises(BundleExists):
        package(bundle, tmp_path / "image")
    with pytest.raises(NotWritten, match="inside the bundle"):
        package(bundle, bundle / "image")
    edited = Path(shutil.copytree(bundle, tmp_path / "edited"))
    (edited / "code/score.py").write_text("")
    with pytest.raises(BundleEdited):
        package(edited, tmp_path / "other")


def test_the_verb_writes_beside_the_bundle(bundle):
    done = CliRunner().invoke(app, ["package", str(bundle), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["layout"] == f"{bundle}.oci"
    assert read(Path(told["layout"]))[0]["annotations"]["io.mii-azure.task"] == "question-answering"


@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
def test_skopeo_reads_and_copies_it(bundle, tmp_path):
    base = make_base(tmp_path / "base", {"Env": ENV, "Cmd": CMD})
    made = package(bundle, tmp_path / "image", base=base, tag="1")
    source = f"oci:{tmp_path / 'image'}:1"
    told = json.loads(subprocess.run(["skopeo", "inspect", source], check=True, capture_output=True).stdout)
    assert told["Digest"] == made.digest
    assert len(told["Layers"]) == 3
    archive = f"oci-archive:{tmp_path / 'image.tar'}"
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    done = subprocess.run(["skopeo", "--policy", policy, "copy", source, archive], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("umoci"), reason="umoci is not installed")
def test_umoci_unpacks_it(bundle, tmp_path):
    package(bundle, tmp_path / "image", tag="1")
    command = ["umoci", "unpack", "--rootless", "--image", f"{tmp_path / 'image'}:1", tmp_path / "unpacked"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert verify_bundle(tmp_path / "unpacked/rootfs" / HOME).sound


@pytest.mark.skipif(not shutil.which("buildah") or os.geteuid(), reason="needs buildah, and root")
def test_buildah_makes_the_base_and_takes_what_is_packaged_over_it(bundle, tmp_path):
    """The commands of docs/handover.md; the base is one file and the settings that a bundle's Dockerfile ends with."""
    store = ["--storage-driver=vfs", f"--root={tmp_path / 'store'}", f"--runroot={tmp_path / 'run'}"]
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def buildah(verb: str, *arguments: object) -> str:
        trust = [f"--signature-policy={policy}"] if verb in ("from", "push", "build") else []
        command = ["buildah", *store, verb, *trust, *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    context = tmp_path / "context"
    context.mkdir()
    (context / "here").touch()
    settings = f"ENV {ENV[0]}\nCMD {json.dumps(CMD)}\n"
    (context / "Dockerfile").write_text(f"FROM scratch\nCOPY here /here\n{settings}")
    buildah("build", "--isolation=chroot", "--tag=base", context)
    buildah("push", "base", f"oci:{tmp_path / 'base'}")
    made = package(bundle, tmp_path / "image", base=tmp_path / "base", tag="1")
    assert made.runs
    container = buildah("from", f"oci:{tmp_path / 'image'}:1")
    root = Path(buildah("mount", container))
    try:
        assert (root / "here").is_file()
        assert verify_bundle(root / HOME).sound
        told = json.loads(buildah("inspect", container))["OCIv1"]["config"]
        assert told["Cmd"] == CMD
        assert f"AML_APP_ROOT=/{HOME}/code" in told["Env"]
    finally:
        buildah("umount", container)
