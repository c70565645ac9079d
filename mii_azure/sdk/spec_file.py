"""Spec as a file, mii-azure.yml: written with every setting explained, and read with its mistakes named."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mii_azure.errors import NotWritten, SpecError
from mii_azure.platform.paths import exists
from mii_azure.spec import Spec

NAME, SCHEMA = "mii-azure.yml", "mii-azure.schema.json"
_HEAD = f"""# yaml-language-server: $schema={SCHEMA}
# What is to be deployed. `mii-azure plan -f {NAME}`, `generate -f` and `deploy -f` read it; flags go before it.
# A setting that is commented out has the value that it shows.
"""


def schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors."""
    made = Spec.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": NAME, "description": "A spec."}


def init(folder: Path, given: Mapping[str, Any], force: bool = False) -> Path:
    """Write the file, and its schema beside it; return its path. Raises NotWritten for one that is there."""
    path = folder / NAME
    if exists(path) and not force:
        raise NotWritten(f"{path} exists.", "Edit it, or pass --force to replace it.")
    try:
        path.write_text(text(given), encoding="utf-8")
        (folder / SCHEMA).write_text(json.dumps(schema(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise NotWritten(f"{path} cannot be written: {error.strerror}.", "Choose another folder.") from None
    return path


def text(given: Mapping[str, Any]) -> str:
    """The file's text: what is given or required as settings, everything else as comments with its default."""
    parts = [_HEAD]
    own = Spec.__annotations__
    for name, field in sorted(Spec.model_fields.items(), key=lambda each: each[0] not in own):
        value = given.get(name, _EXAMPLES.get(name) if field.is_required() else None)
        shown = field.get_default(call_default_factory=True) if value is None else value
        mark = "# " if value is None else ""
        parts.append(f"\n# {field.description}\n{mark}{name}: {_yaml(shown)}\n")
    return "".join(parts)


#: Settings that name a file or a folder.
_PATHS = {"model", "handler", "adapter", "draft_model"}
_EXAMPLES = {"task": "text-classification", "model": "./model", "name": "my-endpoint"}


def _yaml(value: Any) -> str:
    """A value in one line; JSON is YAML too."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def read(path: Path) -> dict[str, Any]:
    """Settings of a file, whose relative paths are relative to it; raises SpecError if there is none."""
    import yaml

    from mii_azure.bundle.yaml_text import compose_yaml, parse_yaml, repeated_keys

    try:
        content = path.read_text(encoding="utf-8")
        found = parse_yaml(content)
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}.", "`mii-azure init` writes one.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(getattr(error, "problem", None) or error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise SpecError(f"{path}{place} is not YAML: {first}.", "Correct it; `mii-azure init` writes one.") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise SpecError(f"{path} is no list of settings.", "It has lines such as `task: fill-mask`.")
    for key, line in repeated_keys(compose_yaml(content)):
        raise SpecError(f"{path}, line {line}: {key} stands twice.", "Remove one.")
    for key in found:
        if key not in Spec.model_fields:
            near = get_close_matches(key, Spec.model_fields, n=1, cutoff=0.6)
            hint = f"Did you mean {near[0]}?" if near else f"Settings: {', '.join(Spec.model_fields)}."
            raise SpecError(f"{path} has a setting {key}, which there is not.", hint)
    for key in _PATHS & found.keys():
        found[key] = _beside(path, found[key])
    if isinstance(found.get("adapters"), list):
        found["adapters"] = [_pair_beside(path, pair) for pair in found["adapters"]]
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in found.items() if value is not None
    }


def _beside(file: Path, value: Any) -> Any:
    """Path of what lies beside the file; anything else as it is."""
    return str(file.parent / value) if isinstance(value, str) and exists(file.parent / value) else value


def _pair_beside(file: Path, pair: Any) -> Any:
    """NAME=FOLDER with its folder as `_beside` has it."""
    name, equals, folder = pair.partition("=") if isinstance(pair, str) else ("", "", "")
    return f"{name}={_beside(file, folder)}" if equals and folder else pair
