"""Read-only view of a bundle for checks: files parsed once, and no exception for their contents."""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from local_runner.bundle.manifest import MANIFEST
from mii_azure.bundle.manifest import Mismatch, find_mismatches, load_manifest, read_text
from mii_azure.bundle.yaml_text import compose_yaml, parse_yaml, repeated_keys
from mii_azure.errors import SpecError
from mii_azure.planning.plan import Quantization
from mii_azure.platform.servers import HOST_FOLDER, Server
from scoring.config import Deployment
from scoring.errors import LoadError

ENDPOINT, DEPLOYMENT, ENVIRONMENT, MODEL = "endpoint.yml", "deployment.yml", "environment.yml", "model.yml"
TEMPLATE, WORKSPACE = "deployment-template.yml", "workspace.yml"
YAMLS = (ENDPOINT, DEPLOYMENT, ENVIRONMENT, MODEL, TEMPLATE, WORKSPACE)
SETTINGS, SCORE, DOCKERFILE = "code/deployment.json", "code/score.py", "environment/Dockerfile"
LOCK = "environment/requirements.lock"
SERVER_DEFAULTS = {"WORKER_COUNT": "1", "WORKER_TIMEOUT": "300"}  # azureml-inference-server-http 1.5.1
_ENV_LINE = re.compile(r'^ENV +([A-Za-z_]\w*)=(?:"((?:[^"\\]|\\.)*)"|(\S*)) *$', re.MULTILINE)


Kind = Literal["managed", "kubernetes", "batch", "kaito"]


class Fix(NamedTuple):
    """Safe change: a value in a YAML file, or, if `old` is given, a replacement of text."""

    file: str
    keys: tuple[str, ...]
    value: str | int
    old: str = ""


class Problem(NamedTuple):
    """Finding of a rule: a sentence, the remedy, the place, and changes that would make it."""

    message: str
    remedy: str
    file: str
    keys: tuple[str, ...] = ()  # place in a YAML file
    line: int | None = None
    fixes: tuple[Fix, ...] = ()
    doubtful: bool = False  # whether Azure refuses it: a warning, whatever the rule


def _place(path: Path) -> tuple[Path, str]:
    """Folder and name of a path's target."""
    found = path.resolve()
    return found.parent, found.name


class Inspected:
    """View of the bundle at `root`, or, with `loose`, of standalone YAML: {role, e.g. DEPLOYMENT: file in that role}.

    Raises NotABundle for a bundle without a manifest.
    """

    def __init__(
        self, root: Path, loose: Mapping[str, Path] | None = None, slots: frozenset[str] = frozenset()
    ) -> None:
        self.root = root
        self.loose = loose
        self._slots = slots
        self.manifest = load_manifest(root) if loose is None else {"files": {}}
        self._texts: dict[str, str | None] = {}
        self._yamls: dict[str, tuple[Any, yaml.Node | None, str]] = {}

    def path(self, file: str) -> Path:
        """Path of a file of the bundle, or of the file in that role."""
        return self.root / file if self.loose is None else self.loose.get(file, self.root / file)

    @cached_property
    def kind(self) -> Kind:
        """Kind of endpoint that the YAML deploys to: by its `type`, its `$schema`, or the endpoint's `compute`."""
        if WORKSPACE in self.yamls:
            return "kaito"
        schemas = " ".join(str(self.get(file, "$schema")).lower() for file in (DEPLOYMENT, ENDPOINT))
        batch = self.get(DEPLOYMENT, "mini_batch_size") or self.get(DEPLOYMENT, "settings")
        if "batch" in schemas or batch:
            return "batch"
        kubernetes = self.get(DEPLOYMENT, "type") == "kubernetes" or self.get(ENDPOINT, "compute")
        return "kubernetes" if kubernetes or "kubernetes" in schemas else "managed"

    @cached_property
    def runtime(self) -> str:
        """File with probes, request settings and variables of the container: the deployment, or its template."""
        return TEMPLATE if TEMPLATE in self.yamls else DEPLOYMENT

    @property
    def instance_type(self) -> tuple[str, ...]:
        """Key of the instance type in `runtime`."""
        return ("default_instance_type",) if self.runtime == TEMPLATE else ("instance_type",)

    @cached_property
    def slots(self) -> frozenset[str]:
        """Names of the endpoint's deployments that are here, in lower case, as Azure keeps them."""
        return self._slots or frozenset(
            {str(self.get(DEPLOYMENT, "name")).lower()} if self.readable(DEPLOYMENT) else ()
        )

    @cached_property
    def server_kind(self) -> Server:
        """Server in the container: the HTTP host if the bundle carries it, else Azure's inference server."""
        return "http" if any(path.startswith(HOST_FOLDER) for path in self.manifest["files"]) else "azmlinfsrv"

    @cached_property
    def model_folder(self) -> Path | None:
        """Folder of the uploaded weights; None if the model is a reference."""
        if self.loose is None:
            return self.root / "model" if (self.root / "model").is_dir() else None
        for file, keys in ((MODEL, ("path",)), (DEPLOYMENT, ("model", "path"))):
            given = self.get(file, *keys)
            if isinstance(given, str) and (self.path(file).parent / given).is_dir():
                return self.path(file).parent / given
        return None

    @cached_property
    def mismatches(self) -> list[Mismatch]:
        """Differences from the manifest."""
        return find_mismatches(self.root)

    @cached_property
    def settings(self) -> Deployment | None:
        """Settings from code/deployment.json as the scoring code reads them; None if it cannot."""
        if self.text(SETTINGS) is None:
            return None
        try:
            return Deployment.read(self.root / SETTINGS)
        except LoadError:
            return None

    @cached_property
    def yamls(self) -> list[str]:
        """YAML files that exist."""
        return [file for file in YAMLS if self.path(file).is_file() and (self.loose is None or file in self.loose)]

    def text(self, file: str) -> str | None:
        """Text of a file; None if it is missing, no regular file or not UTF-8."""
        if file not in self._texts:
            # Standalone YAML may be reached through links.
            place = (self.root, file) if self.loose is None else _place(self.path(file))
            self._texts[file] = read_text(*place)
        return self._texts[file]

    def malformed(self, file: str) -> tuple[str, int | None] | None:
        """Reason why a YAML file cannot be read as a mapping, and the line."""
        value, _, reason = self._parsed(file)
        if reason:
            found = re.search(r"line (\d+)", reason)
            return reason, int(found[1]) if found else None
        return None if isinstance(value, dict) else ("it is not a mapping", None)

    def readable(self, *files: str) -> bool:
        """True if these YAML files exist and are mappings."""
        return all(file in self.yamls and not self.malformed(file) for file in files)

    def get(self, file: str, *keys: str) -> Any:
        """Value in a YAML file, or None; `get(file)` is all of it, {} if malformed."""
        value = self._parsed(file)[0]
        value = value if isinstance(value, dict) else {}
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def section(self, file: str, *keys: str) -> Mapping[Any, Any]:
        """Mapping in a YAML file; {} for anything else."""
        value = self.get(file, *keys)
        return value if isinstance(value, dict) else {}

    def number(self, file: str, *keys: str) -> int | None:
        """Integer in a YAML file, in quotes too, as azure-ai-ml reads it; None for anything else, booleans included."""
        value = self.get(file, *keys)
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
            return int(value)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def line(self, file: str, keys: tuple[str, ...]) -> int | None:
        """Line of a key, or of the deepest existing key above it; None if there is none."""
        node, line = self._parsed(file)[1], None
        for key in keys:
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            pair = next((pair for pair in pairs if pair[0].value == key), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        return line

    def repeated(self, file: str) -> Iterator[tuple[str, int]]:
        """Keys that a mapping of a YAML file has more than once, each with the line of a later one."""
        return repeated_keys(self._parsed(file)[1])

    @cached_property
    def server(self) -> dict[str, str]:
        """Environment variables of the inference server: its defaults, the image's, the deployment's."""
        image = {
            name: quoted if quoted else plain for name, quoted, plain in _ENV_LINE.findall(self.text(DOCKERFILE) or "")
        }
        given = self.section(self.runtime, "environment_variables")
        return SERVER_DEFAULTS | image | {str(name): str(value) for name, value in given.items()}

    def _parsed(self, file: str) -> tuple[Any, yaml.Node | None, str]:
        if file not in self._yamls:
            self._yamls[file] = self._parse(file)
        return self._yamls[file]

    def _parse(self, file: str) -> tuple[Any, yaml.Node | None, str]:
        text = self.text(file)
        if text is None:
            missing = not self.path(file).exists()
            return {}, None, "" if missing else "it is not UTF-8 text"
        try:
            return parse_yaml(text), compose_yaml(text), ""
        except yaml.YAMLError as error:
            return {}, None, " ".join(str(error).split()) or type(error).__name__


def is_bundle(target: Path) -> bool:
    """True if all rules apply; to YAML files, and folders of them without a manifest, only the rules on YAML do."""
    return not target.is_file() and ((target / MANIFEST).is_file() or not any(target.glob("*.y*ml")))


def refuse_own_image(bundle: Path) -> None:
    """Raise SpecError for a bundle whose image carries it: its own script publishes and deploys it."""
    for file, kind in ((TEMPLATE, "template"), (WORKSPACE, "kaito")):
        if (bundle / file).is_file():
            raise SpecError(f"This is a bundle of kind {kind}, which needs its image first.", "Run its own deploy.sh.")


def told_by(bundle: Path) -> Quantization | None:
    """Quantisation that a bundle records; None if the weights are as the model's author stored them."""
    told = Deployment.read(bundle / SETTINGS).quantisation
    return Quantization.model_validate(told) if told else None
