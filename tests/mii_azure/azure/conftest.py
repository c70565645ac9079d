"""The fake cloud, a client of it that nothing in it knows to be one, and small bundles."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mii_azure.bundle.manifest import load_manifest, make_manifest
from mii_azure.bundle.render import as_json
from mii_azure.cli import app
from mii_azure.sdk.generate import generate
from tests.mii_azure.azure.fake_arm import Cloud
from tests.mii_azure.azure.fake_arm.cloud import METADATA

Tiny = Callable[[str, str], Path]
Verb = Callable[..., tuple[int, str, str]]

#: What azure-ai-ml and what it is built on warn of on their own account.
THIRD_PARTY = ("ignore:.*deprecated.*", "ignore:pkg_resources", "ignore::DeprecationWarning", "ignore::ResourceWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for rule in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(rule))


@pytest.fixture(scope="module", autouse=True)
def _forked(forked: None) -> None:
    """Have the servers behind live endpoints forked."""


class Credential:
    """Hands out tokens that live for `lifetime_s`."""

    def __init__(self, lifetime_s: float = 86_400) -> None:
        self.lifetime_s = lifetime_s
        self.count = 0

    def get_token(self, *scopes: str, **options: Any) -> Any:
        from azure.core.credentials import AccessToken

        self.count += 1
        if any("ml.azure.com" in scope for scope in scopes):
            return AccessToken("aad", int(time.time() + self.lifetime_s))
        return AccessToken(f"arm-{self.count}", int(time.time() + self.lifetime_s))


@pytest.fixture(scope="session")
def _cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("cloud")) as cloud, cloud.resolved():
        yield cloud


@pytest.fixture
def cloud(_cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """An empty cloud; retries of the storage client, which take no argument from MLClient, do not wait."""
    _cloud.reset()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(_cloud.certificate))
    monkeypatch.setenv("AZUREML_CURRENT_CLOUD", "AzureCloud")
    monkeypatch.setattr("azure.storage.blob._shared.policies.StorageRetryPolicy.sleep", lambda *a, **k: None)
    return _cloud


@pytest.fixture
def connect(cloud: Cloud) -> Callable[..., Any]:
    """Makes an MLClient of the fake cloud."""

    def make(credential: Credential | None = None, **options: Any) -> Any:
        from azure.ai.ml import MLClient

        return MLClient(
            credential or Credential(),
            "00000000-0000-0000-0000-000000000001",
            "group",
            "space",
            cloud="FakeCloud",
            cloud_metadata=METADATA,
            enable_telemetry=False,
            retry_backoff_factor=0.01,
            **options,
        )

    return make


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect()


@pytest.fixture
def mii(
    client: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a verb: (exit code, standard output, standard error)."""
    monkeypatch.setattr("mii_azure.azure.client.connect", lambda *scope: client)

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mii-azure", *map(str, arguments)])
        code = 0
        try:
            app.main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def _wholes(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("bundles")
    model = tiny("bert", "question-answering")
    changed = Path(shutil.copytree(model, root / "changed"))
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    first = generate("question-answering", str(model), "My-qa", output=root / "first")
    return first, generate("question-answering", str(changed), "My-qa", output=root / "second")


@pytest.fixture(scope="session")
def _bundles(_wholes: tuple[Path, Path]) -> list[Path]:
    return [lightened(whole) for whole in _wholes]


@pytest.fixture
def whole(_wholes: tuple[Path, Path], cloud: Cloud) -> Path:
    """A bundle as it was generated, which a host can load."""
    serve(cloud, _wholes[0])
    return _wholes[0]


@pytest.fixture
def whole_second(_wholes: tuple[Path, Path], cloud: Cloud) -> Path:
    """The same with other weights."""
    serve(cloud, _wholes[1])
    return _wholes[1]


@pytest.fixture
def bundle(_wholes: tuple[Path, Path], _bundles: list[Path], cloud: Cloud) -> Path:
    """A bundle without most of the scoring package."""
    serve(cloud, _bundles[0], _wholes[0])
    return _bundles[0]


@pytest.fixture
def second(_wholes: tuple[Path, Path], _bundles: list[Path], cloud: Cloud) -> Path:
    """The same with other weights."""
    serve(cloud, _bundles[1], _wholes[1])
    return _bundles[1]


def lightened(whole: Path) -> Path:
    """Copy a bundle without the rooms of its scoring package, whose hundreds of uploads are most of a deployment."""
    scoring = whole / "code" / "scoring"

    def rooms(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder) == scoring and (scoring / name).is_dir()]

    light = Path(shutil.copytree(whole, whole.with_name(f"{whole.name}-light"), ignore=rooms))
    hashes = {path: digest for path, digest in load_manifest(whole)["files"].items() if (light / path).is_file()}
    (light / "manifest.json").write_text(as_json(make_manifest(hashes)))
    return light


def serve(cloud: Cloud, folder: Path, whole: Path | None = None) -> None:
    """Let slots that are deployed from this bundle answer, as `whole` if it is a lightened one."""
    cloud.scoring.bundles[str(load_manifest(folder)["bundle"])] = whole or folder
