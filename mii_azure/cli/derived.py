"""Parameters of verbs that derive from declarations elsewhere: the runner's flags, and the fields of Spec."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_origin

import typer

from local_runner.flags.flag import Flag
from mii_azure.cli.shared import err, option
from mii_azure.cli.shared import flag as named
from mii_azure.errors import SpecError
from mii_azure.platform.machine import DESCRIPTION, MachineOptions
from mii_azure.platform.options import AzureOptions, OnCommandLine
from mii_azure.sdk.spec_file import read
from mii_azure.spec import Spec, near_name, refuse_wrong_values

SpecFile = Annotated[
    Path | None, typer.Option("--file", "-f", envvar="MII_AZURE_FILE", help="mii-azure.yml; flags go before it.")
]
Verb = TypeVar("Verb", bound=Callable[..., None])

#: Fields in the order that help shows: what every bundle has, then what only Azure reads.
FIELDS = (*Spec.__annotations__, *AzureOptions.__annotations__, *MachineOptions.__annotations__)


def takes(parameters: Iterable[inspect.Parameter]) -> Callable[[Verb], Verb]:
    """Decorate a verb whose `**` parameter receives values: typer then sees a flag for each of `parameters`."""

    def decorate(verb: Verb) -> Verb:
        own = [each for each in inspect.signature(verb).parameters.values() if each.kind is not each.VAR_KEYWORD]
        spoken = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        verb.__signature__ = inspect.Signature([*parameters, *spoken])  # type: ignore[attr-defined]
        return verb

    return decorate


def of_flags(flags: Iterable[Flag]) -> list[inspect.Parameter]:
    """Parameters for the runner's flags."""
    return [_parameter(flag.variable, _optional(flag), option(flag), flag.default) for flag in flags]


def of_spec(names: Iterable[str]) -> list[inspect.Parameter]:
    """Parameters for fields of Spec: collections as text with commas, what is on by default as `--no-...`.

    A field that a spec must have may be absent: a file may give it.
    """
    return [_of_field(name) for name in names]


def fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Spec from the values of their parameters; raises SpecError for secrets that are no pairs."""
    return {name: _field(name, values[_variable(name)]) for name in FIELDS if _variable(name) in values}


def asked(context: typer.Context, values: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """Fields of Spec, from a file where no flag or variable gives them; raises SpecError for a missing one.

    Warns of an instance type of which only the name is known.
    """
    found = fields(values)
    told = read(file) if file else {}
    refuse_wrong_values({name: value for name, value in told.items() if name not in found})  # what this verb leaves
    found |= {name: told[name] for name in found.keys() & told.keys() if not _given(context, name)}
    missing = [f"--{name}" for name, value in found.items() if value is None and Spec.model_fields[name].is_required()]
    if missing:
        raise SpecError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.",
            "Give them as flags, or in a file with -f; `mii-azure init` writes one.",
        )
    warn_of_machine(found)
    return found


def beside_file(context: typer.Context, values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Fields that generating by the file takes beside it: those of flags and variables, and a name if it has none."""
    found = {name: value for name, value in fields(values).items() if _given(context, name)}
    told = read(file)
    return found if "name" in told else {**found, "name": near_name(str(found.get("model", told.get("model"))))}


def warn_of_machine(values: Mapping[str, Any]) -> None:
    """Say first, on standard error, that of the instance type in fields of a spec only the name is known."""
    from mii_azure.hardware.described import unfamiliar

    described = any(values.get(name) is not None for name in DESCRIPTION)
    if unknown := unfamiliar(values.get("instance_type"), described):
        err.print(f"warning: {unknown.message} {unknown.hint}", soft_wrap=True)


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(_variable(name))
    return source is not None and not source.name.startswith("DEFAULT")


def split(text: str) -> list[str]:
    """Words of a text with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _parameter(name: str, kind: Any, info: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _optional(flag: Flag) -> Any:
    return flag.kind | None if flag.default is None else flag.kind


def _variable(name: str) -> str:
    return f"no_{name}" if Spec.model_fields[name].default is True else name


def _of_field(name: str) -> inspect.Parameter:
    field, variable = Spec.model_fields[name], _variable(name)
    told = next((each.text for each in field.metadata if isinstance(each, OnCommandLine)), str(field.description))
    kind: Any = str | None if field.is_required() else field.annotation
    default = None if field.is_required() else field.default
    if get_origin(kind) in (tuple, dict):
        kind, default = str, ""
    elif get_origin(kind) is Literal:
        kind = str
    elif default is True:
        default = False
    return _parameter(variable, kind, named(variable.replace("_", "-"), told), default)


def _field(name: str, value: Any) -> Any:
    kind = get_origin(Spec.model_fields[name].annotation)
    if _variable(name) != name:
        return not value
    if kind is dict:
        return _pairs(name, split(value))
    return split(value) if kind is tuple else value


def _pairs(name: str, words: list[str]) -> dict[str, str]:
    """NAME=REFERENCE pairs; the error never repeats a value."""
    found = dict(word.partition("=")[::2] for word in words)
    if not all(found) or not all(found.values()):
        raise SpecError(f"--{name} takes NAME=REFERENCE pairs.", "Secrets are given by reference, never as they are.")
    return found


def folders(words: str) -> dict[str, Path]:
    """Folders by name, of comma-separated NAME=FOLDER."""
    found = dict(word.partition("=")[::2] for word in split(words))
    if not all(found) or not all(found.values()):
        raise SpecError(f"{words!r} is no list of NAME=FOLDER.", "Write --suspects polite=adapters/polite.")
    return {name: Path(folder) for name, folder in found.items()}
