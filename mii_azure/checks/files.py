"""Rules on the files of a bundle: unchanged, complete, without secrets, installed with hashes."""

import re
from collections.abc import Iterator
from pathlib import Path

from mii_azure.bundle.bundle_view import (
    DEPLOYMENT,
    DOCKERFILE,
    ENDPOINT,
    ENVIRONMENT,
    LOCK,
    SCORE,
    SETTINGS,
    Inspected,
    Problem,
)
from mii_azure.bundle.carried import carried_code
from mii_azure.bundle.lockfile import pins
from mii_azure.bundle.manifest import has_other_line_endings, walk
from mii_azure.bundle.secret_scan import Leak, leaks_of
from mii_azure.platform.servers import HOST, HOST_FOLDER, HOST_MODULE, HOST_PACKAGES

REQUIRED = (SCORE, SETTINGS, DOCKERFILE, LOCK, "requests/sample.json")
_OF_AZURE_ML = (ENDPOINT, DEPLOYMENT, ENVIRONMENT)
UPLOADED = ("code/", "model/", "environment/")
_TOLD_ONE_BY_ONE = 3
_AGAIN = "Generate the bundle again with the settings you want; what is edited by hand is not what was planned."


def edited(bundle: Inspected) -> Iterator[Problem]:
    changed = [mismatch.path for mismatch in bundle.mismatches if mismatch.kind == "edited"]
    listed = bundle.manifest["files"]
    converted = [path for path in changed if has_other_line_endings(bundle.root, path, listed.get(path, ""))]
    yield from _of_line_endings(converted)
    for path in changed:
        if path not in converted:
            yield Problem("The file is not as it was generated.", _AGAIN, path)
    for mismatch in bundle.mismatches:
        if mismatch.kind == "no regular file":
            message = "This is a link, a device or a pipe, or a folder that cannot be read; a bundle has files only."
            yield Problem(
                message, "Remove it, and generate the bundle again where it took a file's place.", mismatch.path
            )


def _of_line_endings(paths: list[str]) -> Iterator[Problem]:
    """Tell of files whose line endings were converted: of each, or of a whole folder in one finding."""
    remedy = "Keep .gitattributes beside it, and check the folder out again."
    whose, told = "The file has", paths
    if len(paths) > _TOLD_ONE_BY_ONE:
        whose, told = f"This file and {len(paths) - 1} others have", paths[:1]
    for path in told:
        message = f"{whose} other line endings (CRLF) than were generated, as Git makes them on Windows."
        yield Problem(message, remedy, path)


def missing(bundle: Inspected) -> Iterator[Problem]:
    lost = {mismatch.path for mismatch in bundle.mismatches if mismatch.kind == "missing"}
    required = REQUIRED if bundle.kind == "kaito" else (*_OF_AZURE_ML, *REQUIRED)
    lost |= {file for file in required if not (bundle.root / file).is_file()}
    for path in sorted(lost):
        yield Problem("The file is missing.", "Generate the bundle again.", path)


def added_to_what_is_uploaded(bundle: Inspected) -> Iterator[Problem]:
    for path in _added(bundle):
        if path.startswith(UPLOADED):
            yield Problem("The file was added after generation and would be uploaded.", "Remove it.", path)


def added_elsewhere(bundle: Inspected) -> Iterator[Problem]:
    for path in _added(bundle):
        if not path.startswith(UPLOADED):
            yield Problem("The file was added after generation.", "Keep your own files outside the bundle.", path)


def _added(bundle: Inspected) -> list[str]:
    return [mismatch.path for mismatch in bundle.mismatches if mismatch.kind == "extra"]


def scoring_of_another_version(bundle: Inspected) -> Iterator[Problem]:
    """Find scoring code, or code of a carried HTTP host, that differs from the installed version."""
    installed = {path: source.read_bytes() for path, source in carried_code(bundle.server_kind).items()}
    folders = [bundle.root / "code" / name for name in ("scoring", HOST.name)]
    there = [folder / path for folder in folders if folder.is_dir() for path in walk(folder)]
    carried = {path.relative_to(bundle.root).as_posix(): path.read_bytes() for path in there}
    if carried != installed:
        differs = sorted(path for path in carried.keys() | installed.keys() if carried.get(path) != installed.get(path))
        what = "HTTP host" if all(path.startswith(HOST_FOLDER) for path in differs) else "scoring package"
        yield Problem(
            f"The {what} is not the installed one: {len(differs)} files differ, {differs[0]} first.",
            "Generate the bundle again, or install the version of mii-azure that wrote it.",
            differs[0],
        )


def secrets(bundle: Inspected) -> Iterator[Problem]:
    for path in walk(bundle.root):
        for leak in _leaks(bundle.root / path):
            remedy = "Revoke it, and take it out of the file."
            yield Problem(f"This looks like {leak.kind}.", remedy, path, line=leak.line)


def _leaks(path: Path) -> list[Leak]:
    try:
        return list(leaks_of(path))
    except OSError:  # an unreadable file is left to the rule on the manifest
        return []


def lock_without_hashes(bundle: Inspected) -> Iterator[Problem]:
    text = bundle.text(LOCK)
    if text is None:
        return
    number = 1
    for requirement in _logical_lines(text):
        content = requirement.split("#", 1)[0].strip()
        if content and not content.startswith("--"):
            if "==" not in content:
                yield Problem(
                    f"{content.split()[0]} is not pinned to a version.",
                    "Generate the bundle again.",
                    LOCK,
                    line=number,
                )
            elif "--hash=sha256:" not in content:
                yield Problem(f"{content.split()[0]} has no hash.", "Generate the bundle again.", LOCK, line=number)
        number += requirement.count("\n") + 1


def _logical_lines(text: str) -> list[str]:
    """Lines of a requirements file, each with its continuations."""
    return re.split(r"(?<!\\)\n", text.rstrip("\n"))


def image_without_the_lock(bundle: Inspected) -> Iterator[Problem]:
    text = bundle.text(DOCKERFILE)
    if text is None:
        return
    installs = re.findall(r"\bpip3? install\b[^&|;]*", text.replace("\\\n", " "))
    if not any("--require-hashes" in line and "requirements.lock" in line for line in installs):
        yield Problem(
            "The image does not install requirements.lock with its hashes.",
            "Install it with: pip install --require-hashes -r requirements.lock.",
            DOCKERFILE,
        )
        return
    for line in installs:
        if "--require-hashes" not in line:
            yield Problem(
                f"The image installs packages that no lock pins: {' '.join(line.split())}.",
                "Put them into the lock, so that the local runner checks against the same list.",
                DOCKERFILE,
            )


def image_without_the_host(bundle: Inspected) -> Iterator[Problem]:
    """Require that a bundle with the HTTP host has an image that starts it and installs its imports."""
    if bundle.server_kind != "http":
        return
    dockerfile, lock = bundle.text(DOCKERFILE), bundle.text(LOCK)
    if dockerfile is not None and HOST_MODULE not in dockerfile:
        yield Problem(
            f"The bundle carries its own HTTP server, and the image does not start {HOST_MODULE}.",
            "Generate the bundle again, with or without --server http.",
            DOCKERFILE,
        )
    installed = {pin.name for pin in pins(lock or "")}
    missing_packages = [name for name in HOST_PACKAGES if name not in installed]
    if lock is not None and missing_packages:
        yield Problem(
            f"The server of this bundle imports {', '.join(missing_packages)}, which the image does not install.",
            "Generate the bundle again, with or without --server http.",
            LOCK,
        )
