"""Rules on code/ and the sample: faults with which the inference server would not start, or not answer."""

import ast
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions

from mii_azure.bundle.bundle_view import LOCK, MODEL, SCORE, SETTINGS, Inspected, Problem
from scoring.api import dialects
from scoring.api.hooks import FILE
from scoring.config import MODULES, models_below
from scoring.errors import MiiAzureError
from scoring.schema.registry import task_schema
from scoring.sentence.folder import transformer_path
from scoring.strict_json.body import read_json
from scoring.strict_json.files import parse

HANDLER = f"code/{FILE}"
SAMPLE = "requests/sample.json"
OPENAPI = ("code/swagger2.json", "code/swagger3.json", "code/swagger3.1.json")
# Read by the inference server as its own settings, and not intended for it.
SERVER_FILES = ("code/config.json", "code/logging.json", "code/swagger.json")
_CONFIG = "model/config.json"
_AGAIN = "Generate the bundle again."


def _tree(bundle: Inspected, file: str = SCORE) -> ast.Module | None:
    try:
        return ast.parse(bundle.text(file) or "")
    except (SyntaxError, ValueError):
        return None


def script_does_not_compile(bundle: Inspected) -> Iterator[Problem]:
    text = bundle.text(SCORE)
    if text is None:
        if (bundle.root / SCORE).exists():
            yield Problem("score.py is not UTF-8 text.", _AGAIN, SCORE)
        return
    try:
        compile(text, SCORE, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        yield Problem(f"score.py is not Python: {error.args[0]}.", _AGAIN, SCORE, line=getattr(error, "lineno", None))


def entry_points(bundle: Inspected) -> Iterator[Problem]:
    """Require init() and run(data), as the server does; run() without positional-only, * or ** arguments."""
    tree = _tree(bundle)
    if tree is None or bundle.text(SCORE) is None:
        return
    bound = {name: node for node in tree.body for name in _names(node)}
    for name in ("init", "run"):
        if name not in bound:
            yield Problem(f"score.py defines no {name}(); the inference server does not start.", _AGAIN, SCORE)
    for name, judge in (("init", _init_reason), ("run", _run_reason)):
        node = bound.get(name)
        if isinstance(node, ast.AsyncFunctionDef):
            yield Problem(
                f"{name}() is async, and the inference server does not await it.",
                _AGAIN,
                SCORE,
                line=node.lineno,
            )
        elif isinstance(node, ast.FunctionDef) and judge(node.args):
            yield Problem(f"{name}() {judge(node.args)}.", _AGAIN, SCORE, line=node.lineno)


def _names(node: ast.stmt) -> list[str]:
    """Names bound by a top-level statement that may be functions."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.ImportFrom | ast.Import):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def _init_reason(args: ast.arguments) -> str:
    required = len(args.posonlyargs) + len(args.args) - len(args.defaults)
    required += sum(default is None for default in args.kw_defaults)
    return "takes arguments, and the inference server gives it none" if required else ""


def _run_reason(args: ast.arguments) -> str:
    if args.posonlyargs or args.vararg or args.kwarg:
        return "has positional-only, * or ** arguments, which the inference server refuses"
    names = [arg.arg for arg in (*args.args, *args.kwonlyargs) if arg.arg != "request_headers"]
    return "" if names else "takes no argument for the request"


def server_settings_beside_the_script(bundle: Inspected) -> Iterator[Problem]:
    for file in SERVER_FILES:
        if (bundle.root / file).exists():
            yield Problem(
                "The inference server reads this file as its own settings.",
                "Move it away; the model's config.json belongs into model/.",
                file,
            )


def deployment_settings(bundle: Inspected) -> Iterator[Problem]:
    """Require that deployment.json is valid for scoring, and agrees with deployment.yml."""
    if bundle.settings is None:
        if (bundle.root / SETTINGS).exists():
            yield Problem("The scoring code cannot read its settings.", _AGAIN, SETTINGS)
        return
    instance = bundle.get(bundle.runtime, *bundle.instance_type)
    if isinstance(instance, str) and instance.lower() != bundle.settings.instance_type.lower():
        yield Problem(
            f"Planned for {bundle.settings.instance_type} and deployed on {instance}, with the former's batches.",
            f"Generate the bundle again with --instance-type {instance}.",
            bundle.runtime,
            bundle.instance_type,
        )


def model_layout(bundle: Inspected) -> Iterator[Problem]:
    """Require one model in AZUREML_MODEL_DIR, at the depth at which the scoring code looks for it."""
    given = bundle.get(MODEL, "path")
    folder = bundle.path(MODEL).parent / given if isinstance(given, str) else None
    if folder is None or not folder.is_dir():
        return
    found = models_below(folder)
    if len(found) != 1:
        what = "no config.json" if not found else f"more than one model, {found[0].name} first,"
        message = f"There is {what} in {given} or below it; the scoring code would not know what to load."
        yield Problem(message, "Register the folder that holds config.json and the weights.", MODEL, ("path",))


def _config(bundle: Inspected) -> str:
    """Path of the model's config.json: in model/, or where modules.json says."""
    listed = bundle.text(f"model/{MODULES}") if bundle.text(_CONFIG) is None else None
    inner = transformer_path(parse(listed.encode())) if listed else ""
    return f"model/{inner}/config.json" if inner else _CONFIG


def own_code(bundle: Inspected) -> Iterator[Problem]:
    try:
        config = parse((bundle.text(_config(bundle)) or "{}").encode())
    except ValueError as error:
        yield Problem(f"The model's config.json cannot be read: {error}.", _AGAIN, _CONFIG)
        return
    trusted = getattr(bundle.settings, "trust_remote_code", False)
    if isinstance(config, dict) and config.get("auto_map") and not trusted:
        message = "The model is loaded by code of its own (trust_remote_code), which nobody said to trust."
        yield Problem(message, "Use a model whose architecture transformers has.", _CONFIG)


def imports_past_the_lock(bundle: Inspected) -> Iterator[Problem]:
    """Require that top-level imports of score.py and handler.py are in Python, beside them, or in the lock."""
    if (lock := bundle.text(LOCK)) is None:
        return
    locked = {_normal(name) for name in re.findall(r"^([A-Za-z0-9][\w.-]*)==", lock, re.MULTILINE)}
    for file in (SCORE, HANDLER):
        tree = _tree(bundle, file)
        imports = [(each, name) for each in (tree.body if tree else []) for name in _imported(each)]
        for node, name in imports:
            beside = any((bundle.root / "code" / found).exists() for found in (name, f"{name}.py"))
            if not beside and name not in sys.stdlib_module_names and not _distributions(name) & locked:
                message = f"{file.removeprefix('code/')} imports {name}, which the image does not install."
                yield Problem(message, _AGAIN, file, line=node.lineno)


def _distributions(module: str) -> set[str]:
    """Normalised names of the packages that a top-level module may come from: its own, and those installed here."""
    return {_normal(module), *(_normal(name) for name in _installed().get(module, ()))}


@cache
def _installed() -> Mapping[str, list[str]]:
    """Packages of this environment by top-level module; slow, since it reads the list of files of every package."""
    return packages_distributions()


def _imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module.split(".")[0]]
    return []


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def sample(bundle: Inspected) -> Iterator[Problem]:
    text = bundle.text(SAMPLE)
    if text is None or bundle.settings is None:
        return
    try:
        dialects.parse(read_json(text), task_schema(bundle.settings.task))
    except MiiAzureError as error:
        yield Problem(f"The sample would be answered with an error: {error.message}", error.hint or _AGAIN, SAMPLE)


def openapi(bundle: Inspected) -> Iterator[Problem]:
    for file in OPENAPI:
        text = bundle.text(file)
        try:
            paths = json.loads(text)["paths"] if text is not None else {}
        except (ValueError, TypeError, KeyError, RecursionError):
            paths = {}
        if not {"/", "/score"} <= set(paths):
            yield Problem("The inference server could not serve it at /swagger.json.", _AGAIN, file)
