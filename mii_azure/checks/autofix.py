"""Makes the changes that findings mark as safe, checks again, and lists the changes.

YAML is changed at the place of its one value, every other byte kept: ruamel.yaml's round trip keeps comments, but
writes the whole file anew, with its own indentation and line ends.
"""

import json
from pathlib import Path
from typing import NamedTuple

import yaml

from local_runner.bundle.manifest import MANIFEST, hash_files
from mii_azure.bundle.bundle_view import Fix
from mii_azure.bundle.findings import Finding
from mii_azure.bundle.manifest import load_manifest, make_manifest
from mii_azure.bundle.render import as_json
from mii_azure.checks.check import check, problems

_ROUNDS = 3  # a change may reveal problems that an earlier finding hid


class Fixed(NamedTuple):
    """Result of fix: the changes made, one sentence each, and the findings after them."""

    changes: list[str]
    findings: list[Finding]


def fix(target: Path | str) -> Fixed:
    """Make the safe changes in a bundle or in YAML, rewrite the manifest, and check again.

    A round of changes that leaves more errors than before is reverted. Raises NotABundle.
    """
    root = Path(target)
    findings = check(root)
    changes: list[str] = []
    for _ in range(_ROUNDS):
        before, told = _apply(root)
        if not told:
            break
        after = check(root)
        if _errors(after) > _errors(findings):
            for path, content in before.items():
                path.write_bytes(content)
            break
        findings, changes = after, changes + told
    return Fixed(changes, findings)


def _errors(findings: list[Finding]) -> int:
    return sum(entry.severity == "error" for entry in findings)


def _apply(root: Path) -> tuple[dict[Path, bytes], list[str]]:
    """Make one round of changes; return the files as they were, and the changes made."""
    before: dict[Path, bytes] = {}
    told: list[str] = []
    for inspected, rule, problem in problems(root):
        for change in problem.fixes:
            path = inspected.path(change.file)
            if not path.is_file() or (inspected.loose is None and inspected.text(change.file) is None):
                continue
            content = path.read_bytes()
            text = content.decode()
            changed = text.replace(change.old, str(change.value)) if change.old else _set(text, change)
            if changed != text:
                before.setdefault(path, content)
                path.write_bytes(changed.encode())
                place = ".".join(change.keys) or change.old
                told.append(f"{rule.id}: {path.relative_to(_base(root))}: {place} is now {change.value!r}.")
    if before and (root / MANIFEST).is_file():
        manifest = root / MANIFEST
        before[manifest] = manifest.read_bytes()
        told += _adopt(root, [path.relative_to(root).as_posix() for path in before if path != manifest])
    return before, told


def _base(root: Path) -> Path:
    return root if root.is_dir() else root.parent


def _adopt(bundle: Path, changed: list[str]) -> list[str]:
    """Update the manifest with the hashes of the changed files; hashes of other files stay, even of edited ones."""
    hashes: dict[str, str] = load_manifest(bundle)["files"]
    (bundle / MANIFEST).write_text(as_json(make_manifest(hashes | hash_files(bundle, changed))), encoding="utf-8")
    return [f"{MANIFEST}: {', '.join(sorted(changed))} taken as it is now."]


def _set(text: str, change: Fix) -> str:
    """Set the value at the keys in a YAML text; unchanged if something other than a mapping is above it."""
    value = change.value if isinstance(change.value, int) else json.dumps(change.value)
    node: yaml.Node | None = yaml.compose(text, yaml.SafeLoader)
    for depth, key in enumerate(change.keys):
        if not isinstance(node, yaml.MappingNode):
            return text
        child = next((pair[1] for pair in node.value if pair[0].value == key), None)
        if child is None:
            return _insert(text, node, change.keys[depth:], str(value), depth)
        node = child
    if not isinstance(node, yaml.ScalarNode):
        return text
    gap = "" if node.start_mark.index and text[node.start_mark.index - 1] in " \t" else " "  # `key:` without a value
    return f"{text[: node.start_mark.index]}{gap}{value}{text[node.end_mark.index :]}"


def _insert(text: str, node: yaml.MappingNode, keys: tuple[str, ...], value: str, depth: int) -> str:
    """Insert new keys into a mapping: at the end of the file, or before the mapping's first key."""
    if node.flow_style:
        rest = "".join(f"{{{json.dumps(key)}: " for key in keys[1:])
        at = node.start_mark.index + 1
        comma = ", " if node.value else ""
        return f"{text[:at]}{json.dumps(keys[0])}: {rest}{value}{'}' * (len(keys) - 1)}{comma}{text[at:]}"
    column = node.start_mark.column
    lines = [f"{' ' * (column + 2 * level)}{key}:" for level, key in enumerate(keys)]
    block = "\n".join(lines) + f" {value}\n"
    if depth == 0:
        return text + ("" if text.endswith("\n") or not text else "\n") + block
    at = text.rfind("\n", 0, node.start_mark.index) + 1
    return text[:at] + block + text[at:]
