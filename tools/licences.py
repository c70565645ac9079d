"""Writes templates/locks/licences.json: what the metadata of the installed packages says of every locked one.

Run by tools/lock.sh, so that generation stays offline and repeatable. Packages that are not installed here, such as
those for CUDA on a machine without a GPU, keep what the file already says of them, and are otherwise left out.
"""

import json
from importlib import metadata
from pathlib import Path

from mii_azure.bundle.lockfile import pins

LOCKS = Path(__file__).resolve().parent.parent / "templates" / "locks"
RECORDED = LOCKS / "licences.json"
# Names that are no SPDX id and leave no doubt about one.
_NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
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


def licence(package: str) -> str:
    """The SPDX expression, else the classifier's or the licence field's name; "" where nothing is known."""
    try:
        found = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return ""
    told = " ".join((found.get("License-Expression") or "").split())
    whole = (found.get("License") or "").strip()
    headed = _NAMES.get(whole.partition("\n")[0].strip(), "")  # the licence's text, under its name
    named = " ".join(whole.split())
    classes = [each.rpartition(" :: ")[2] for each in found.get_all("Classifier") or () if each.startswith("License")]
    exact = [_NAMES[each] for each in classes if each in _NAMES]
    short = named if len(named) <= _LONGEST_NAME and named != "UNKNOWN" else ""
    return told or " OR ".join(exact) or headed or _NAMES.get(short, short) or next(iter(classes), "")


def main() -> None:
    before = json.loads(RECORDED.read_text(encoding="utf-8"))["licences"] if RECORDED.is_file() else {}
    names = sorted({pin.name for lock in LOCKS.glob("*.lock") for pin in pins(lock.read_text(encoding="utf-8"))})
    licences = {name: licence(name) or before.get(name, "") for name in names}
    unknown = [name for name, told in licences.items() if not told]
    content = {"source": "metadata of the packages themselves", "licences": {n: t for n, t in licences.items() if t}}
    RECORDED.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(names) - len(unknown)} of {len(names)} licences known; not: {', '.join(unknown) or 'none'}")


if __name__ == "__main__":
    main()
