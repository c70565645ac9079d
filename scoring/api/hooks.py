"""A deployment's own handler.py: what goes before a request is checked, and before its answer is sent.

    def preprocess(inputs: list, parameters: dict) -> tuple[list, dict]   before the task's schema checks them
    def postprocess(outputs)                                             the answer, in the form that was asked in

Either may be missing. An error of scoring.errors that a hook raises is answered as it is; any other is HandlerFailed.
"""

import importlib.util
import inspect
import logging
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoring.errors import HandlerFailed, InvalidInput, LoadError, MiiAzureError

logger = logging.getLogger("mii_azure.handler")

FILE = "handler.py"
#: Names of the hooks, with those of their arguments.
HOOKS = {"preprocess": ("inputs", "parameters"), "postprocess": ("outputs",)}
_REMEDY = "Mend handler.py, and generate the bundle again with --handler."
_IN_LOG = "The log of the server has the details."


@dataclass(frozen=True)
class Hooks:
    """The hooks of a deployment; None for one that it does not have."""

    preprocess: Callable[[list[Any], dict[str, Any]], Any] | None = None
    postprocess: Callable[[Any], Any] | None = None

    @property
    def names(self) -> list[str]:
        """Names of the hooks that the handler defines."""
        return [name for name in HOOKS if getattr(self, name)]

    def prepare(self, values: list[Any], parameters: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Inputs and parameters as preprocess gives them; raises HandlerFailed, and what of our errors it raises."""
        if self.preprocess is None:
            return values, parameters
        count = len(values)
        with _running("preprocess"):
            made = self.preprocess(values, parameters)
        if not isinstance(made, tuple | list) or len(made) != 2:
            raise HandlerFailed("The handler's preprocess gives no pair of inputs and parameters.", _REMEDY)
        values, parameters = made
        if not isinstance(values, list) or not isinstance(parameters, dict) or len(values) != count:
            raise HandlerFailed(f"The handler's preprocess gives no list of {count} inputs with an object.", _REMEDY)
        return values, parameters

    def finish(self, answer: Any) -> Any:
        """The answer as postprocess gives it; raises HandlerFailed, and what of our errors it raises."""
        if self.postprocess is None:
            return answer
        with _running("postprocess"):
            return self.postprocess(answer)

    def refuse_stream(self) -> None:
        """Raise InvalidInput where postprocess has to see an answer before anybody else does."""
        if self.postprocess is not None:
            raise InvalidInput("This deployment's handler sees answers whole.", 'Leave out "stream".', "stream")


def load(folder: Path) -> Hooks:
    """Import handler.py in a folder; raises LoadError for one that does not load, or has no hooks."""
    spec = importlib.util.spec_from_file_location("mii_azure_handler", folder / FILE)
    if spec is None or spec.loader is None or not (folder / FILE).is_file():
        raise LoadError(f"There is no {FILE} beside score.py.", "Generate the bundle again with --handler.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pydantic look for what its annotations name
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        sys.modules.pop(spec.name, None)
        raise LoadError(
            f"handler.py needs the package {error.name!r}, which is not installed here.",
            "Use what the bundle's lock installs, or put the code into handler.py itself.",
        ) from error
    except BaseException as error:
        sys.modules.pop(spec.name, None)
        raise LoadError(f"handler.py did not load: {type(error).__name__}: {error}.", _REMEDY) from error
    hooks = Hooks(**{name: getattr(module, name, None) for name in HOOKS})
    for name in hooks.names:
        _check_signature(name, getattr(hooks, name))
    if not hooks.names:
        raise LoadError(f"handler.py defines none of {', '.join(HOOKS)}.", _REMEDY)
    return hooks


def _check_signature(name: str, hook: Any) -> None:
    try:
        found = tuple(inspect.signature(hook).parameters)
    except (TypeError, ValueError):
        found = ()
    if found != HOOKS[name] or inspect.iscoroutinefunction(hook):
        raise LoadError(f"{name} in handler.py is no function of {', '.join(HOOKS[name])}.", _REMEDY)


@contextmanager
def _running(name: str) -> Iterator[None]:
    try:
        yield
    except MiiAzureError:
        raise
    except Exception as error:
        incident = uuid.uuid4().hex[:12]
        logger.exception("the handler's %s failed, incident %s", name, incident)
        raise HandlerFailed(f"The handler's {name} failed; incident {incident}.", _IN_LOG) from error
