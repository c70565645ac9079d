"""Wheel of this package as it is installed, for workflows to ship: no index of packages has it."""

import base64
import hashlib
import io
import zipfile
from importlib import metadata
from pathlib import Path

from mii_azure.version import __version__

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("local_runner", "mii_azure", "scoring", "templates")
_INFO = f"mii_azure-{__version__}.dist-info"
_TAGS = "Wheel-Version: 1.0\nGenerator: mii-azure\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_SCRIPTS = "[console_scripts]\nmii-azure = mii_azure.cli.app:main\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip file can state: the same content gives the same bytes


def wheel() -> tuple[str, bytes]:
    """Pack (file name, content); the same installed files give the same bytes."""
    files = {path.relative_to(_ROOT).as_posix(): path.read_bytes() for path in _sources()}
    files[f"{_INFO}/METADATA"] = _metadata().encode()
    files |= {f"{_INFO}/WHEEL": _TAGS.encode(), f"{_INFO}/entry_points.txt": _SCRIPTS.encode()}
    rows = [f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items()]
    files[f"{_INFO}/RECORD"] = "".join([*rows, f"{_INFO}/RECORD,,\n"]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return f"mii_azure-{__version__}-py3-none-any.whl", packed.getvalue()


def _metadata() -> str:
    """Metadata as installed; a checkout that is on the path comes first with the same under setuptools' older name."""
    known = metadata.distribution("mii-azure")
    return known.read_text("METADATA") or known.read_text("PKG-INFO") or ""


def _sources() -> list[Path]:
    found = (path for package in _PACKAGES for path in (_ROOT / package).rglob("*"))
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
