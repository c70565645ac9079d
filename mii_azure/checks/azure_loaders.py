"""Rule that azure-ai-ml decides: its own loaders and conversions, with readable messages."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mii_azure.azure import batch
from mii_azure.bundle.bundle_view import (
    DEPLOYMENT,
    ENDPOINT,
    ENVIRONMENT,
    MODEL,
    TEMPLATE,
    WORKSPACE,
    Inspected,
    Kind,
    Problem,
)


def refused_by_azure(bundle: Inspected) -> Iterator[Problem]:
    """Find refusals of azure-ai-ml's own loaders and conversions, as sentences with their places."""
    for file in bundle.yamls:
        if file != WORKSPACE and not bundle.malformed(file):
            for keys, reason in _refusals(bundle.path(file), _submission(file, bundle.kind)):
                place = ".".join(keys) or file
                message = f"azure-ai-ml refuses {place}: {reason.rstrip('.')}."
                remedy = "Correct it, or generate the bundle again." if bundle.loose is None else "Correct it."
                yield Problem(message, remedy, file, keys)


def _refusals(path: Path, submit: Callable[[Path], Any]) -> list[tuple[tuple[str, ...], str]]:
    """Load and convert one file as `az ml` would; return (place, reason) for each refusal."""
    quiet = io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            submit(path)
    except Exception as error:  # anything raised is its verdict on the file; its classes share no base
        return _explain(error)
    finally:
        logging.disable(logging.NOTSET)
    return []


def _submission(file: str, kind: Kind) -> Callable[[Path], Any]:
    """Conversion that `az ml` applies to a file before sending it."""

    def environment(ml: Any, path: Path) -> None:
        loaded = ml.load_environment(path)
        loaded.validate()
        loaded._to_rest_object()

    def deployment_template(_: Any, path: Path) -> None:
        from azure.ai.ml.entities._load_functions import load_deployment_template

        load_deployment_template(path)._to_rest_object()

    def batch_deployment(_: Any, path: Path) -> None:
        loaded = batch.load_deployment(path)
        if hasattr(loaded, "component"):  # Microsoft's client converts it only once its component is registered
            return
        loaded._to_rest_object(location="any")

    submissions: dict[tuple[str, bool], Callable[[Any, Path], Any]] = {
        (ENDPOINT, False): lambda ml, path: ml.load_online_endpoint(path)._to_rest_online_endpoint(location="any"),
        (ENDPOINT, True): lambda ml, path: ml.load_batch_endpoint(path)._to_rest_batch_endpoint(location="any"),
        (DEPLOYMENT, False): lambda ml, path: ml.load_online_deployment(path)._to_rest_object(location="any"),
        (DEPLOYMENT, True): batch_deployment,
        (ENVIRONMENT, False): environment,
        (MODEL, False): lambda ml, path: ml.load_model(path)._to_rest_object(),
        (TEMPLATE, False): deployment_template,
    }
    chosen = submissions[file, kind == "batch" and file in (ENDPOINT, DEPLOYMENT)]

    def submit(path: Path) -> None:
        from azure.ai import ml

        chosen(ml, path)

    return submit


def _explain(error: BaseException) -> list[tuple[tuple[str, ...], str]]:
    """Places and reasons in an azure-ai-ml error; the outermost only wraps the marshmallow error that has them."""
    inner: BaseException | None = error
    while inner is not None:
        messages = getattr(inner, "messages", None)
        if isinstance(messages, dict):
            return list(_flatten(messages))
        inner = inner.__cause__ or inner.__context__
    text = re.sub(r"\x1b\[\d+m", "", str(error))
    details = re.findall(r"\(x\) (.+)", text) or [" ".join(text.split()) or type(error).__name__]
    about_name = details[0].startswith("The name for")
    return [(("name",) if about_name else (), detail) for detail in details]


def _flatten(messages: dict[Any, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in messages.items():
        keys = above if key == "_schema" else (*above, str(key))
        if isinstance(value, dict):
            yield from _flatten(value, keys)
        elif all(isinstance(item, str) for item in value):
            yield keys, " ".join(value)
        else:
            # One message for each form that was tried; for a reference they only describe the forms.
            yield keys, "it is none of the forms that Azure ML reads there."
