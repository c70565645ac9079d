"""Declaration of a flag, and the argparse options and environment variables that derive from it."""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def twin(name: str) -> str:
    """Environment variable that stands for the flag `name`."""
    return f"MII_AZURE_{name.upper().replace('-', '_')}"


@dataclass(frozen=True)
class Flag:
    """Flag `--NAME` with its environment variable; one of kind `bool` takes no value on a command line."""

    name: str
    text: str
    kind: type = str
    default: Any = None  # None: the flag may be absent
    choices: tuple[str, ...] = ()
    guard: bool = False  # blank is an error, not absent: it would mean every address, or no guard at all
    check: Callable[[Any], None] | None = None  # raises ValueError, with a sentence, for a value out of range

    @property
    def twin(self) -> str:
        """Environment variable that stands for the flag."""
        return twin(self.name)

    @property
    def variable(self) -> str:
        """Name of the value in Python."""
        return self.name.replace("-", "_")

    def told(self, environment: Mapping[str, str]) -> str | None:
        """Text of the flag's variable; None if it is unset, or blank and no guard."""
        text = environment.get(self.twin)
        return text if text is not None and (self.guard or text.strip()) else None

    def read(self, environment: Mapping[str, str], default: Any = None) -> Any:
        """Value from the environment, else `default`, else the flag's own; raises ValueError."""
        text = self.told(environment)
        if text is None:
            return self.default if default is None else default
        try:
            return self.parse(text)
        except ValueError as error:
            raise ValueError(f"{self.twin}: {error}") from None

    def parse(self, text: str) -> Any:
        """Value that a text stands for; raises ValueError, with a sentence."""
        if self.guard and not text.strip():
            raise ValueError("it is blank; give a value, or unset its variable in the environment")
        try:
            value = _WORDS[text.strip().lower()] if self.kind is bool else self.kind(text)
        except (KeyError, ValueError):
            raise ValueError(f"invalid {self.kind.__name__} value: {text!r}") from None
        if self.choices and value not in self.choices:
            raise ValueError(f"invalid choice: {text!r} (choose from {', '.join(self.choices)})")
        if self.check:
            self.check(value)
        return value


class Parser(argparse.ArgumentParser):
    """Parser that tells a wrong argument in one line: a screen of usage would hide the sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence on standard error and exit 2."""
        self.exit(2, f"error [wrong_arguments]: {message.rstrip('.')}. --help lists what there is.\n")


def twins(flags: Iterable[Flag]) -> set[str]:
    """Environment variables of flags."""
    return {flag.twin for flag in flags}


def add(parser: argparse.ArgumentParser, flags: Iterable[Flag], title: str = "") -> None:
    """Add flags to a parser, in a group if `title` is given; what the environment says is their default."""
    target = parser.add_argument_group(title) if title else parser
    for flag in flags:
        text = flag.text if flag.default in (None, False) else f"{flag.text} ({flag.default})"
        told = flag.told(os.environ)
        options: dict[str, Any] = {"default": flag.default if told is None else told, "help": text.replace("%", "%%")}
        if flag.kind is bool:
            options |= {"action": "store_true", "default": _word(parser, flag)}
        else:
            options |= {"type": _typed(flag), "metavar": f"{{{','.join(flag.choices)}}}" if flag.choices else None}
        target.add_argument(f"--{flag.name}", **options)


def _typed(flag: Flag) -> Callable[[str], Any]:
    """Type for argparse, which tells the sentence of this error only."""

    def typed(text: str) -> Any:
        try:
            return flag.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return typed


def _word(parser: argparse.ArgumentParser, flag: Flag) -> bool:
    try:
        return bool(flag.read(os.environ))
    except ValueError as error:
        parser.error(str(error))
