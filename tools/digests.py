"""Asks the registry for the digests of the base images, and writes them to `templates/images.json`.

    .venv/bin/python -m tools.digests [NAME ...]      # cpu, cuda13; all of them if none is named
    .venv/bin/python -m tools.digests --forget [NAME ...]        # by tag again

A digest pins what every later bundle is built on, which gets no patches until this is run again. The digest is the hash
of the manifest that the registry answers with, by the OCI distribution specification 1.1, and no header's word for it.
"""

import argparse
import hashlib
import http.client
import json
import re
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "templates" / "images.json"
_TYPES = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_REFERENCE = re.compile(r"(?P<host>[^/]+)/(?P<name>[a-z0-9._/-]+):(?P<tag>[\w.-]+)")
_MOST = 4 << 20  # bytes of a manifest
_TIMEOUT_S = 30


class Unanswered(Exception):
    """The registry was not reached, or answered with no manifest."""


def digest_of(image: str, scheme: str = "https") -> str:
    """Digest of HOST/NAME:TAG; raises Unanswered."""
    found = _REFERENCE.fullmatch(image)
    if found is None:
        raise Unanswered(f"{image} is not of the form HOST/NAME:TAG")
    url = f"{scheme}://{found['host']}/v2/{found['name']}/manifests/{found['tag']}"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers={"Accept": _TYPES}), timeout=_TIMEOUT_S
        ) as answer:
            content = answer.read(_MOST + 1)
    except (http.client.HTTPException, OSError) as error:
        raise Unanswered(f"{found['host']} did not answer for {image}: {error}") from error
    try:
        known = len(content) <= _MOST and json.loads(content)["schemaVersion"] == 2
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise Unanswered(f"{found['host']} answered for {image} with no manifest")
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def refreshed(images: dict[str, dict[str, Any]], names: list[str], today: str, scheme: str = "https") -> dict[str, Any]:
    """The images with the digests that the registry has now, and the day; raises Unanswered, having changed nothing."""
    found = {name: digest_of(images[name]["image"], scheme) for name in names or images}
    return {
        name: each | ({"digest": found[name], "digest_date": today} if name in found else {})
        for name, each in images.items()
    }


def forgotten(images: dict[str, dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """The images with those named by tag, or all of them if none is named."""
    asked = names or images
    return {
        name: each | ({"digest": None, "digest_date": None} if name in asked else {}) for name, each in images.items()
    }


def main() -> None:
    """Refresh or forget, print, write."""
    images = json.loads(PAGE.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description="Writes the digests of the base images to templates/images.json.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(images)}; all if none is named")
    parser.add_argument("--forget", action="store_true", help="go back to tags")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(images):
        parser.error(f"no image is called {', '.join(sorted(unknown))}")
    try:
        today = datetime.now(UTC).date().isoformat()
        made = forgotten(images, asked.names) if asked.forget else refreshed(images, asked.names, today)
    except Unanswered as error:
        sys.exit(f"{error}. Nothing was changed.")
    PAGE.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    for name, image in made.items():
        print(f"{name}: {image['image']}: {image['digest'] or 'by tag'}")
    print("`make golden` shows what it changes; a pinned base gets patches only when this is run again.")


if __name__ == "__main__":
    main()
