"""Typed values of a model's config.json and its neighbours; a wrong type is refused by name."""

from collections.abc import Mapping
from typing import Any, TypeVar

from mii_azure.errors import ConfigMissing
from scoring.strict_json.files import typed

#: Above any size of a model: vocabularies, widths, layers and contexts are below 2**31 in every format.
LARGEST_FACT = 2**31
_REMEDY = "Copy the file again, as save_pretrained wrote it."

T = TypeVar("T")


def value(settings: Mapping[str, Any], key: str, kind: type[T], file: str = "config.json") -> T | None:
    """`settings[key]`, None if it is absent or null; raises ConfigMissing for a value of another type."""
    return None if settings.get(key) is None else _of_kind(settings[key], kind, key, file)


def names(settings: Mapping[str, Any], key: str, file: str = "config.json") -> list[str]:
    """List of names, empty if it is absent or null; raises ConfigMissing for anything else."""
    return [_of_kind(each, str, f"an entry of {key}", file) for each in value(settings, key, list, file) or []]


def whole(settings: Mapping[str, Any], key: str, file: str = "config.json") -> int:
    """Size: a whole number from 0 to LARGEST_FACT; raises ConfigMissing for anything else, and if it is absent."""
    return bounded(_of_kind(settings.get(key), int, key, file), key, file)


def bounded(number: int, key: str, file: str = "config.json") -> int:
    """Return the number if it can be a size of a model; raises ConfigMissing if not."""
    if not 0 <= number <= LARGEST_FACT:
        raise ConfigMissing(f"{file}: {key} is a number that no model has.", _REMEDY)
    return number


def objects(found: Any, file: str) -> list[Mapping[str, Any]]:
    """List of objects, as in modules.json; raises ConfigMissing for anything else."""
    return [_of_kind(each, dict, "an entry", file) for each in _of_kind(found, list, "it", file)]


def _of_kind(found: Any, kind: type[T], key: str, file: str) -> T:
    try:
        return typed(found, kind, key)
    except TypeError as error:
        raise ConfigMissing(f"{file}: {error}.", _REMEDY) from None
