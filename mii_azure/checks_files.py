"""Rules about the files of a bundle: unchanged, complete, without secrets, installed with hashes."""

import re
from collections.abc import Iterator

from mii_azure.bundle import SCORING, scoring_files
from mii_azure.inspection import (
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
from mii_azure.leaks import LARGEST_TEXT, leaks
from mii_azure.manifest import walk

REQUIRED = (ENDPOINT, DEPLOYMENT, ENVIRONMENT, SCORE, SETTINGS, DOCKERFILE, LOCK, "requests/sample.json")
UPLOADED = ("code/", "model/", "environment/")
_AGAIN = "Generate the bundle again with the settings you want; what is edited by hand is not what was planned."


def edited(bundle: Inspected) -> Iterator[Problem]:
    for mismatch in bundle.mismatches:
        if mismatch.kind == "edited":
            yield Problem("The file is not as it was generated.", _AGAIN, mismatch.path)


def missing(bundle: Inspected) -> Iterator[Problem]:
    lost = {mismatch.path for mismatch in bundle.mismatches if mismatch.kind == "missing"}
    lost |= {file for file in REQUIRED if not (bundle.root / file).is_file()}
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
    folder = bundle.root / "code" / "scoring"
    installed = {path: (SCORING / path).read_bytes() for path in scoring_files()}
    carried = {path: (folder / path).read_bytes() for path in (walk(folder) if folder.is_dir() else ())}
    if carried != installed:
        differs = sorted(path for path in carried.keys() | installed.keys() if carried.get(path) != installed.get(path))
        yield Problem(
            f"The scoring package is not the installed one: {len(differs)} files differ, {differs[0]} first.",
            "Generate the bundle again, or install the version of mii-azure that wrote it.",
            f"code/scoring/{differs[0]}",
        )


def secrets(bundle: Inspected) -> Iterator[Problem]:
    for path in walk(bundle.root):
        if (bundle.root / path).stat().st_size > LARGEST_TEXT:
            continue
        for leak in leaks(bundle.text(path) or ""):
            remedy = "Revoke it, and take it out of the file."
            yield Problem(f"This looks like {leak.kind}.", remedy, path, line=leak.line)


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
