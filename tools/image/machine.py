"""How this machine reaches packages: its CA bundle and pip's settings, as mounts that leave no trace in an image."""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# Settings of pip that say where packages come from; all others stay as the image has them.
_SOURCES = ("index-url", "extra-index-url", "find-links", "trusted-host", "cert", "timeout")
_LINE = re.compile(r"^(?P<section>global|install|:env:)\.(?P<name>[\w-]+)='(?P<value>.*)'$")


def pip_settings() -> dict[str, str]:
    """Where pip looks for packages here, by the name of the setting; the environment wins over files."""
    done = subprocess.run(["pip", "config", "list"], check=True, capture_output=True, text=True)
    found: dict[str, str] = {}
    for line in sorted(done.stdout.splitlines(), reverse=True):  # `:env:` sorts before the sections: last, it wins
        match = _LINE.match(line)
        if match and match["name"].removeprefix("default-") in _SOURCES:
            found[match["name"].removeprefix("default-")] = match["value"].replace("\\n", " ")
    return found


def mounts(folder: Path) -> list[str]:
    """Values of buildah's --volume that give a build this machine's way to packages; writes pip.conf into `folder`."""
    settings = pip_settings()
    paths = {local for value in settings.values() for local in map(_local, value.split()) if local}
    # An index that does not answer is asked once; its packages are then on the other sources or nowhere.
    lines = ["[global]", "retries = 1", *(f"{name} = {value}" for name, value in sorted(settings.items()))]
    (folder / "pip.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = [f"{folder / 'pip.conf'}:/etc/pip.conf:ro"]
    found += [f"{_index_root(path)}:{_index_root(path)}:ro" for path in sorted(paths) if path != CA_BUNDLE]
    if CA_BUNDLE.is_file():
        found.append(f"{CA_BUNDLE}:{CA_BUNDLE}:ro")
    return list(dict.fromkeys(found))


def _local(value: str) -> Path | None:
    """The path that a value of pip's names, if it is on this machine."""
    text = unquote(urlsplit(value).path) if value.startswith("file:") else value
    return Path(text) if text.startswith("/") and os.path.exists(text) else None  # noqa: PTH110


def _index_root(path: Path) -> Path:
    """A `simple` index links to files beside it."""
    return path.parent if path.name == "simple" else path
