"""A user's handler.py before it goes into a bundle: read and checked without being run."""

import ast

from mii_azure.errors import HandlerUnusable
from mii_azure.platform.paths import expanded
from scoring.api.hooks import HOOKS

_FORM = " and/or ".join(f"def {name}({', '.join(arguments)})" for name, arguments in HOOKS.items())
_REMEDY = f"It defines {_FORM}."


def read_handler(path: str) -> str:
    """Text of the file; raises HandlerUnusable, with the line, for one that is no handler."""
    file = expanded(path)
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        raise HandlerUnusable(f"The handler {path} cannot be read: {error.strerror}.", _REMEDY) from error
    except UnicodeDecodeError as error:
        raise HandlerUnusable(f"The handler {path} is not UTF-8 text.", _REMEDY) from error
    except ValueError as error:  # of a null byte in the name
        raise HandlerUnusable(f"{path!r} is no name of a file.", _REMEDY) from error
    check_handler(text, path)
    return text


def check_handler(text: str, path: str) -> None:
    """Raise HandlerUnusable unless a text is Python that defines hooks with the declared signatures."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        place = f"{path}:{line}" if line else path
        raise HandlerUnusable(f"The handler is not Python: {error.args[0]}.", _REMEDY, place) from error
    functions = {each.name: each for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    found = {name: function for name, function in functions.items() if name in HOOKS}
    if not found:
        raise HandlerUnusable(f"The handler {path} defines none of {', '.join(HOOKS)}.", _REMEDY, path)
    for name, function in found.items():
        asked = function.args
        named = tuple(each.arg for each in asked.args)
        others = asked.posonlyargs or asked.kwonlyargs or asked.vararg or asked.kwarg
        if named != HOOKS[name] or others or isinstance(function, ast.AsyncFunctionDef):
            said = f"The handler's {name} is no function of {', '.join(HOOKS[name])}."
            raise HandlerUnusable(said, _REMEDY, f"{path}:{function.lineno}")
