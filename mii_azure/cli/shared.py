"""Shared parts of the command line: consoles, flags with their environment variables, JSON input and output."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from local_runner.flags.flag import Flag
from local_runner.telemetry.elapsed import ElapsedLine
from local_runner.telemetry.terminal import escaped, escaped_json
from mii_azure.errors import NotABundle
from mii_azure.platform.paths import exists


class Opening:
    """Line that tells of a command that has printed nothing yet: its name, and for how long it runs."""

    def __init__(self) -> None:
        self._line: ElapsedLine | None = None

    def begin(self, command: str) -> None:
        """Tell of a command from now on."""
        self.end()
        self._line = ElapsedLine(lambda: command, sys.stderr)

    def end(self) -> None:
        """Tell of it no more: something else is about to be shown, or asked for."""
        line, self._line = self._line, None
        if line is not None:
            line.end()


opening = Opening()


class Plain(Console):
    """Console that shows text as it is: neither markup nor emoji codes, and no terminal control sequences.

    Everything printed is first rendered here; rich adds its own colours afterwards.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, after what was told of the silence before."""
        opening.end()
        super().print(*objects, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render with rich, escaping the text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escaped(segment.text), segment.style)


out, err = Plain(), Plain(stderr=True)


def option(declared: Flag) -> Any:
    """Create typer's option of a flag; a guard's variable that is set but blank is an error, not absent."""
    made = typer.Option(f"--{declared.name}", envvar=declared.twin, help=declared.text)

    def not_blank(value: Path | str | bool | None) -> Path | str | bool | None:
        if not os.environ.get(declared.twin, "set").strip():
            raise typer.BadParameter(f"{declared.twin} is blank; give it a value, or unset it")
        return value

    if declared.guard:
        made.callback = not_blank
    return made


def flag(name: str, text: str) -> Any:
    """Create an option and its environment variable, MII_AZURE_<NAME>."""
    return option(Flag(name, text))


def a_folder(path: Path | None) -> Path | None:
    """Return a path, or None for none; raises NotABundle for the address of something that answers."""
    # A path has lost one of two slashes.
    scheme, colon, rest = str(path).partition(":")
    if path is None or not colon or scheme not in ("http", "https", "endpoint") or exists(path):
        return path
    address = f"{scheme}:{rest if scheme == 'endpoint' else '//' + rest.lstrip('/')}"
    raise NotABundle(
        f"{address} is an address, and a folder that `mii-azure generate` wrote is needed here.",
        "`mii-azure query` asks what answers at an address; parity and bench take one as a target.",
    )


AsJson = Annotated[bool, flag("json", "Print JSON instead of tables.")]
Report = Annotated[Path | None, flag("report", "HTML file to write: charts and tables, for a browser or a printer.")]
Bundle = Annotated[
    Path, typer.Argument(envvar="MII_AZURE_BUNDLE", help="A generated folder.", callback=lambda path: a_folder(path))
]
Subscription = Annotated[str | None, flag("subscription", "Id of the Azure subscription.")]
ResourceGroup = Annotated[str | None, flag("resource-group", "Resource group of the workspace.")]
Workspace = Annotated[str | None, flag("workspace", "Azure ML workspace.")]


def read_input() -> str:
    """Read standard input to its end; a person who types sees no line of the elapsed time meanwhile."""
    opening.end()
    return sys.stdin.read()


def read_request(request: str) -> Any:
    """Parse the JSON of a request given as text, or `-` for standard input; raises SpecError."""
    from mii_azure.sdk.typed_request import read_json

    return read_json(read_input() if request == "-" else request)


def print_json(value: Any) -> None:
    """Print a value, or a pydantic model, on standard output."""
    plain = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
    opening.end()
    sys.stdout.write(escaped_json(json.dumps(plain, ensure_ascii=False, indent=2)) + "\n")


def print_text(text: str) -> None:
    """Print raw text on standard output: a piece of an answer, or lines of a log."""
    opening.end()
    sys.stdout.write(escaped(text))
    sys.stdout.flush()
