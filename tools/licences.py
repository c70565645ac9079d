"""Writes templates/locks/licences.json: what packages' own metadata say of the licence of every locked one.

Run by tools/lock.sh, so that generation stays offline and repeatable. Of packages that are not installed here, such as
those for CUDA on a machine without a GPU, pip asks the index, which tells a wheel's metadata without the wheel. What no
index tells keeps what the file already says of it, and is otherwise left out.
"""

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from mii_azure.bundle.lockfile import pins

LOCKS = Path(__file__).resolve().parent.parent / "templates" / "locks"
RECORDED = LOCKS / "licences.json"
# Names that are no SPDX id and leave no doubt about one.
_NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "The MIT License (MIT)": "MIT",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
_LONGEST_NAME = 60  # some packages put the whole text of the licence where its name belongs


class Told(NamedTuple):
    """What metadata say of a licence; "" or nothing where they are silent."""

    expression: str = ""
    field: str = ""
    classifiers: tuple[str, ...] = ()
    text: str = ""  # of the first licence file


def licence(told: Told) -> str:
    """The SPDX expression, else the classifier's or the licence field's name; "" where nothing is known."""
    field, text = told.field.strip(), told.text.strip()
    headed = [_NAMES.get(each.partition("\n")[0].strip(), "") for each in (field, text)]  # a licence under its name
    named = " ".join(field.split())
    classes = [each.rpartition(" :: ")[2] for each in told.classifiers if each.startswith("License")]
    exact = [_NAMES[each] for each in classes if each in _NAMES]
    short = named if len(named) <= _LONGEST_NAME and named != "UNKNOWN" else ""
    choices = (" ".join(told.expression.split()), " OR ".join(exact), headed[0], _NAMES.get(short, short))
    return next((each for each in (*choices, *classes[:1], headed[1]) if each), "")


def installed(package: str) -> Told:
    """What the metadata of an installed package say; nothing if there is none of the name."""
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return Told()
    head = found.metadata
    files = head.get_all("License-File") or ()
    texts = (found.read_text(f"licenses/{name}") or found.read_text(name) for name in files)
    return Told(
        head.get("License-Expression") or "",
        head.get("License") or "",
        tuple(head.get_all("Classifier") or ()),
        next((text for text in texts if text), ""),
    )


def asked(package: str, version: str) -> Told:
    """What the index says of a wheel for Linux; nothing where there is none, or it does not answer."""
    glibc = [f"--platform=manylinux{tag}_x86_64" for tag in ("2014", *(f"_2_{minor}" for minor in range(28, 4, -1)))]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--no-deps", "--ignore-installed"]
        command += ["--only-binary=:all:", "--python-version=3.12", *glibc, "--platform=any", f"--target={folder}"]
        done = subprocess.run([*command, "--report=-", f"{package}=={version}"], capture_output=True, text=True)
    if done.returncode:
        return Told()
    (found,) = (each["metadata"] for each in json.loads(done.stdout)["install"])
    return reported(found)


def reported(found: dict[str, Any]) -> Told:
    """Metadata in the form of pip's report."""
    expression, field = found.get("license_expression") or "", found.get("license") or ""
    return Told(expression, field, tuple(found.get("classifier") or ()))


def main() -> None:
    """Read, ask, write, and say what is not known."""
    before = json.loads(RECORDED.read_text(encoding="utf-8"))["licences"] if RECORDED.is_file() else {}
    locked = {pin.name: pin.version for lock in LOCKS.glob("*.lock") for pin in pins(lock.read_text(encoding="utf-8"))}
    licences = {
        name: licence(installed(name)) or licence(asked(name, version)) or before.get(name, "")
        for name, version in sorted(locked.items())
    }
    unknown = [name for name, told in licences.items() if not told]
    content = {"source": "metadata of the packages themselves", "licences": {n: t for n, t in licences.items() if t}}
    RECORDED.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(locked) - len(unknown)} of {len(locked)} licences known; not: {', '.join(unknown) or 'none'}")


if __name__ == "__main__":
    main()
