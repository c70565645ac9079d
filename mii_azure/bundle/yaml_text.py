"""Untrusted YAML: parsed without running code, and without values that expand when they are read."""

from collections.abc import Iterator
from typing import Any

import yaml

#: Values in one file, each counted as often as its aliases repeat it; bundles of the largest models have hundreds.
MOST_VALUES = 100_000
_BROKEN = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)
_MERGE = "tag:yaml.org,2002:merge"  # PyYAML's tag of `<<`


def parse_yaml(text: str) -> Any:
    """Parse a YAML text; raises yaml.YAMLError for one that has no value, or more than MOST_VALUES."""
    try:
        value = yaml.safe_load(text)
    except _BROKEN as error:  # raised by PyYAML's constructors for odd dates, numbers, keys and depths
        raise yaml.YAMLError(str(error) or type(error).__name__) from error
    _count(value)
    return value


def compose_yaml(text: str) -> yaml.Node | None:
    """Compose the nodes of a text that `parse_yaml` accepts; raises yaml.YAMLError."""
    try:
        return yaml.compose(text, yaml.SafeLoader)
    except _BROKEN as error:
        raise yaml.YAMLError(str(error) or type(error).__name__) from error


def repeated_keys(node: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Keys that a mapping has more than once, each with the line of a later one; parsing takes the last.

    Merge keys (`<<`) are none: all of them count.
    """
    left, seen = [node], set()
    while left:
        inner = left.pop()
        if id(inner) in seen or not isinstance(inner, yaml.CollectionNode):
            continue
        seen.add(id(inner))  # an alias is its anchor's node
        if isinstance(inner, yaml.SequenceNode):
            left += inner.value
            continue
        keys = [key for key, _ in inner.value if key.tag != _MERGE]
        told = [(key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key) for key in keys]
        known: set[Any] = set()
        for key, each in zip(keys, told, strict=True):
            if each in known:
                yield str(key.value), key.start_mark.line + 1
            known.add(each)
        left += [value for _, value in inner.value]


def _count(value: Any) -> None:
    left, seen = [value], 0
    while left:
        inner = left.pop()
        seen += 1
        if seen + len(left) > MOST_VALUES:
            raise yaml.YAMLError(f"it has more than {MOST_VALUES:,} values")
        if isinstance(inner, dict):
            left += [*inner.keys(), *inner.values()]
        elif isinstance(inner, list | tuple | set):
            left += inner
