"""What the modules of the command line share: the consoles, flags with their environment twins, JSON in and out."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mii_azure.errors import SpecError

# Messages hold brackets of their own, which markup would swallow.
out = Console(markup=False, highlight=False)
err = Console(stderr=True, markup=False, highlight=False)


def flag(name: str, text: str) -> Any:
    """An option and its twin in the environment, MII_AZURE_<NAME>."""
    return typer.Option(f"--{name}", envvar=f"MII_AZURE_{name.upper().replace('-', '_')}", help=text)


AsJson = Annotated[bool, flag("json", "Print JSON instead of tables.")]
Bundle = Annotated[Path, typer.Argument(envvar="MII_AZURE_BUNDLE", help="A generated folder.")]
Subscription = Annotated[str | None, flag("subscription", "Id of the Azure subscription.")]
ResourceGroup = Annotated[str | None, flag("resource-group", "Resource group of the workspace.")]
Workspace = Annotated[str | None, flag("workspace", "Azure ML workspace.")]


def read_request(request: str) -> Any:
    """The JSON of a request given as text, or `-` for standard input; raises SpecError."""
    try:
        return json.loads(sys.stdin.read() if request == "-" else request)
    except RecursionError:
        raise SpecError("The request is nested too deeply.", 'It looks like \'{"inputs": "..."}\'.') from None
    except ValueError as error:
        raise SpecError(f"The request is not JSON: {error}.", 'It looks like \'{"inputs": "..."}\'.') from None


def print_json(value: Any) -> None:
    """A value, or a pydantic model, on standard output."""
    plain = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
    sys.stdout.write(json.dumps(plain, ensure_ascii=False, indent=2) + "\n")
