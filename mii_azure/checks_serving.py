"""Rules about serving: whether the model fits, is waited for while it loads, and is asked within the limits."""

import re
from collections.abc import Iterator

from mii_azure import limits
from mii_azure.errors import UnknownInstanceType
from mii_azure.inspection import DEPLOYMENT, Inspected, Problem
from mii_azure.skus import Sku, find_sku
from scoring.errors import MiiAzureError

PROBES = ("liveness_probe", "readiness_probe")
_PROBE_FIELDS = ("initial_delay", "period", "timeout", "success_threshold", "failure_threshold")
_AGAIN = "Generate the bundle again, which derives it from the model."


def _sku(bundle: Inspected) -> Sku | None:
    name = bundle.get(DEPLOYMENT, "instance_type")
    try:
        return find_sku(name) if isinstance(name, str) else None
    except UnknownInstanceType:
        return None


def unknown_instance_type(bundle: Inspected) -> Iterator[Problem]:
    name = bundle.get(DEPLOYMENT, "instance_type")
    if isinstance(name, str):
        try:
            find_sku(name)
        except UnknownInstanceType as error:
            yield Problem(error.message, error.hint, DEPLOYMENT, ("instance_type",))


def retired_instance_type(bundle: Inspected) -> Iterator[Problem]:
    sku = _sku(bundle)
    if sku and sku.retired:
        yield Problem(f"Azure retired {sku.name} on {sku.retired}.", "Choose another.", DEPLOYMENT, ("instance_type",))


def model_does_not_fit(bundle: Inspected) -> Iterator[Problem]:
    """Plans the model in the bundle for the deployment's instance type again."""
    from mii_azure.planning import plan

    sku, settings = _sku(bundle), bundle.settings
    if not sku or sku.retired or not settings or not (bundle.root / "model").is_dir():
        return
    try:
        plan(
            task=settings.task,
            model=str(bundle.root / "model"),
            instance_type=sku.name,
            dtype=settings.dtype,
            allow_pickle=settings.allow_pickle,
        ).require_fit()
    except MiiAzureError as error:
        yield Problem(error.message, error.hint, DEPLOYMENT, ("instance_type",))


def instance_count(bundle: Inspected) -> Iterator[Problem]:
    count = bundle.number(DEPLOYMENT, "instance_count")
    if count is not None and not 1 <= count <= limits.MAX_INSTANCES:
        yield Problem(
            f"instance_count is {count}.",
            f"Azure takes 1 to {limits.MAX_INSTANCES}.",
            DEPLOYMENT,
            ("instance_count",),
        )


def probe_numbers(bundle: Inspected) -> Iterator[Problem]:
    """Zero means at once, always or never; success_threshold of a liveness probe must be 1."""
    for probe in PROBES if bundle.readable(DEPLOYMENT) else ():
        if not bundle.section(DEPLOYMENT, probe):
            yield Problem(
                f"{probe} is missing; Azure's default does not wait for a model.",
                _AGAIN,
                DEPLOYMENT,
                (probe,),
            )
            continue
        for field in _PROBE_FIELDS:
            value = bundle.number(DEPLOYMENT, probe, field)
            if value is None or value < 1:
                yield Problem(
                    f"{probe}.{field} is {bundle.get(DEPLOYMENT, probe, field)!r}.",
                    "Give a whole number from 1.",
                    DEPLOYMENT,
                    (probe, field),
                )
    successes = bundle.number(DEPLOYMENT, "liveness_probe", "success_threshold")
    if successes is not None and successes > 1:
        yield Problem(
            f"liveness_probe.success_threshold is {successes}; Azure takes only 1.",
            "Write 1.",
            DEPLOYMENT,
            ("liveness_probe", "success_threshold"),
        )


def probes_before_the_model_is_loaded(bundle: Inspected) -> Iterator[Problem]:
    from mii_azure.sizing import device_of
    from mii_azure.timing import start

    sku, folder = _sku(bundle), bundle.root / "model"
    if not sku or not folder.is_dir():
        return
    seconds = start(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), device_of(sku)).seconds
    for probe in PROBES:
        delay, period, failures = (
            bundle.number(DEPLOYMENT, probe, field) for field in ("initial_delay", "period", "failure_threshold")
        )
        if delay and period and failures and delay + period * failures < seconds:
            yield Problem(
                f"{probe} gives up after {delay + period * failures} s; loading the model takes about {seconds} s.",
                "Raise its failure_threshold or initial_delay.",
                DEPLOYMENT,
                (probe,),
            )


def request_timeout(bundle: Inspected) -> Iterator[Problem]:
    timeout = bundle.number(DEPLOYMENT, "request_settings", "request_timeout_ms")
    place = ("request_settings", "request_timeout_ms")
    if bundle.readable(DEPLOYMENT) and bundle.get(DEPLOYMENT, *place) is None:
        yield Problem("request_timeout_ms is missing; Azure's default is 5 s.", _AGAIN, DEPLOYMENT, place)
    if timeout is not None and not 1 <= timeout <= limits.MAX_REQUEST_TIMEOUT_MS:
        yield Problem(
            f"request_timeout_ms is {timeout}.",
            f"Azure takes at most {limits.MAX_REQUEST_TIMEOUT_MS} for a managed endpoint.",
            DEPLOYMENT,
            place,
        )


def concurrency(bundle: Inspected) -> Iterator[Problem]:
    place = ("request_settings", "max_concurrent_requests_per_instance")
    allowed = bundle.number(DEPLOYMENT, *place)
    if bundle.readable(DEPLOYMENT) and (allowed is None or allowed < 1):
        yield Problem(
            f"{place[1]} is {bundle.get(DEPLOYMENT, *place)!r}; Azure's default is 1, which leaves nothing to batch.",
            _AGAIN,
            DEPLOYMENT,
            place,
        )


def worker_timeout(bundle: Inspected) -> Iterator[Problem]:
    timeout = bundle.number(DEPLOYMENT, "request_settings", "request_timeout_ms")
    given = bundle.server["WORKER_TIMEOUT"]
    if timeout is not None and not (given.isdecimal() and int(given) * 1000 > timeout):
        yield Problem(
            f"WORKER_TIMEOUT is {given} s and a request may take {timeout / 1000:g} s:"
            " the server would kill its worker, which loads the model again.",
            "Raise WORKER_TIMEOUT above request_timeout_ms.",
            DEPLOYMENT,
            ("environment_variables", "WORKER_TIMEOUT"),
        )


def workers(bundle: Inspected) -> Iterator[Problem]:
    count = bundle.server["WORKER_COUNT"]
    if count != "1":
        yield Problem(
            f"WORKER_COUNT is {count}: every worker is a process that loads the model again.",
            'Write "1"; threads take the requests, and batching uses the device.',
            DEPLOYMENT,
            ("environment_variables", "WORKER_COUNT"),
        )


def threads(bundle: Inspected) -> Iterator[Problem]:
    arguments = bundle.server.get("GUNICORN_CMD_ARGS", "")
    allowed = bundle.number(DEPLOYMENT, "request_settings", "max_concurrent_requests_per_instance") or 1
    found = re.search(r"--threads[ =](\d+)", arguments)
    count = int(found[1]) if found and "gthread" in arguments else 1
    if count <= allowed:
        yield Problem(
            f"The server has {count} threads for {allowed} concurrent requests: probes would wait behind them.",
            f'Set GUNICORN_CMD_ARGS to "--worker-class gthread --threads {allowed + 2}".',
            DEPLOYMENT,
            ("environment_variables", "GUNICORN_CMD_ARGS"),
        )
