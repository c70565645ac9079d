"""Rules on serving: the model fits, has time to load, and is sent requests within the limits."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mii_azure.bundle.bundle_view import DEPLOYMENT, MODEL, SERVER_DEFAULTS, SETTINGS, Fix, Inspected, Problem
from mii_azure.errors import UnknownInstanceType
from mii_azure.hardware.skus import Sku, find_sku, nearest
from mii_azure.planning.budget import device_of
from mii_azure.planning.latency import start
from mii_azure.platform import limits
from mii_azure.platform.servers import PROBE_THREADS
from scoring.config import Limits
from scoring.errors import MiiAzureError

PROBES = ("liveness_probe", "readiness_probe")
_PROBE_FIELDS = ("initial_delay", "period", "timeout", "success_threshold", "failure_threshold")
ARM_PROBE = {"initial_delay": 10, "period": 10, "timeout": 2, "success_threshold": 1, "failure_threshold": 30}
_AGAIN = "Generate the bundle again, which derives it from the model."


def _sku(bundle: Inspected) -> Sku | None:
    """Instance type of the deployment; only for managed endpoints, since elsewhere the name means something else."""
    name = bundle.get(bundle.runtime, *bundle.instance_type) if bundle.kind == "managed" else None
    try:
        return find_sku(name) if isinstance(name, str) else None
    except UnknownInstanceType:
        return None


def unknown_instance_type(bundle: Inspected) -> Iterator[Problem]:
    name = bundle.get(bundle.runtime, *bundle.instance_type)
    if isinstance(name, str) and bundle.kind == "managed":
        try:
            known = find_sku(name).name
        except UnknownInstanceType as error:
            remedy = f"{nearest(name)} Azure may offer one that is newer than these data.".lstrip()
            yield Problem(error.message, remedy, bundle.runtime, bundle.instance_type, doubtful=True)
            return
        if known.lower() != name.lower():
            yield Problem(f"Azure knows no {name!r}.", f"Write {known}.", bundle.runtime, bundle.instance_type)


def retired_instance_type(bundle: Inspected) -> Iterator[Problem]:
    sku = _sku(bundle)
    if sku and sku.retired:
        message = f"Azure retired {sku.name} on {sku.retired}."
        yield Problem(message, "Choose another.", bundle.runtime, bundle.instance_type)


def model_does_not_fit(bundle: Inspected) -> Iterator[Problem]:
    """Plan the model in the bundle again for the deployment's instance type."""
    from mii_azure.planning.planner import plan_spec
    from mii_azure.spec import make_spec

    sku, settings = _sku(bundle), bundle.settings
    if not sku or sku.retired or not settings or not (bundle.root / "model").is_dir():
        return
    try:
        spec = make_spec(
            task=settings.task,
            model=str(bundle.root / "model"),
            name="model",
            instance_type=sku.name,
            dtype=settings.dtype,
            allow_pickle=settings.allow_pickle,
            trust_remote_code=settings.trust_remote_code,
            **_asked_of_the_cache(settings.limits),
        )
        plan_spec(spec).require_fit()
    except MiiAzureError as error:
        yield Problem(error.message, error.hint, bundle.runtime, bundle.instance_type)


def _asked_of_the_cache(bounds: Limits) -> dict[str, Any]:
    """Fields of a spec that ask for the cache which deployment.json sets."""
    form = {"batch_invariant": bounds.batch_invariant, "kv_cache_dtype": bounds.kv_cache_dtype}
    form = {name: value for name, value in form.items() if value != getattr(Limits, name)}
    if not bounds.kv_cache_tokens:
        return form
    asked = form | {"context_length": bounds.context_length, "max_concurrency": bounds.slots}
    return asked | ({"memory_share": bounds.memory_share} if bounds.memory_share else {})


def instance_count(bundle: Inspected) -> Iterator[Problem]:
    for file in dict.fromkeys((bundle.runtime, DEPLOYMENT)):
        count = bundle.number(file, "instance_count")
        if count is not None and not 1 <= count <= limits.MAX_INSTANCES:
            remedy = f"Azure takes 1 to {limits.MAX_INSTANCES}."
            yield Problem(f"instance_count is {count}.", remedy, file, ("instance_count",))


def missing_probes(bundle: Inspected) -> Iterator[Problem]:
    for probe in PROBES if _online(bundle) else ():
        if not bundle.section(bundle.runtime, probe):
            patience = ARM_PROBE["initial_delay"] + ARM_PROBE["period"] * ARM_PROBE["failure_threshold"]
            yield Problem(
                f"{probe} is missing; Azure's default gives up after {patience} s, however large the model.",
                _AGAIN if bundle.loose is None else f"Write {probe}, with an initial_delay as long as the start takes.",
                bundle.runtime,
                (probe,),
                fixes=_derived(bundle, probe),
            )


def _online(bundle: Inspected) -> bool:
    return bundle.readable(bundle.runtime) and bundle.kind != "batch"


def _derived(bundle: Inspected, probe: str, *fields: str) -> tuple[Fix, ...]:
    """Probe settings as the plan would set them; none if the model's size or the machine is unknown."""
    sku, folder = _sku(bundle), bundle.model_folder
    if sku is None or folder is None:
        return ()
    begun = start(weigh(folder), device_of(sku))
    wanted = (begun.liveness if probe == PROBES[0] else begun.readiness).model_dump()
    return tuple(Fix(bundle.runtime, (probe, field), wanted[field]) for field in fields or _PROBE_FIELDS)


def weigh(folder: Path) -> int:
    """Total bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def probe_numbers(bundle: Inspected) -> Iterator[Problem]:
    """Check probe numbers: zero means at once, always or never; success_threshold of a liveness probe must be 1."""
    for probe in PROBES if _online(bundle) else ():
        given = bundle.section(bundle.runtime, probe)
        for field in (field for field in _PROBE_FIELDS if field in given):
            value = bundle.number(bundle.runtime, probe, field)
            if value is None or value < 1:
                yield Problem(
                    f"{probe}.{field} is {given[field]!r}.",
                    "Give a whole number from 1.",
                    bundle.runtime,
                    (probe, field),
                    fixes=_derived(bundle, probe, field),
                )
    successes = bundle.number(bundle.runtime, "liveness_probe", "success_threshold")
    if successes is not None and successes > 1:
        yield Problem(
            f"liveness_probe.success_threshold is {successes}; Azure takes only 1.",
            "Write 1.",
            bundle.runtime,
            ("liveness_probe", "success_threshold"),
            fixes=(Fix(bundle.runtime, ("liveness_probe", "success_threshold"), 1),),
        )


def probes_before_the_model_is_loaded(bundle: Inspected) -> Iterator[Problem]:
    sku, folder = _sku(bundle), bundle.model_folder
    if sku is None or folder is None:
        return
    seconds = start(weigh(folder), device_of(sku)).seconds
    for probe in PROBES:
        given = ARM_PROBE | dict(bundle.section(bundle.runtime, probe))
        delay, period, failures = given["initial_delay"], given["period"], given["failure_threshold"]
        known = all(type(number) is int and number > 0 for number in (delay, period, failures))
        if known and delay + period * failures < seconds:
            yield Problem(
                f"{probe} gives up after {delay + period * failures} s; loading the model takes about {seconds} s.",
                "Raise its failure_threshold or initial_delay.",
                bundle.runtime,
                (probe,),
                fixes=_derived(bundle, probe, "initial_delay", "period", "failure_threshold"),
            )


def request_timeout(bundle: Inspected) -> Iterator[Problem]:
    if not _online(bundle):
        return
    place = ("request_settings", "request_timeout_ms")
    timeout = bundle.number(bundle.runtime, *place)
    cap = limits.KUBERNETES_TIMEOUT_MS if bundle.kind == "kubernetes" else limits.MAX_REQUEST_TIMEOUT_MS
    planned = bundle.settings and min(int(bundle.settings.limits.request_timeout_s * 1000), cap)
    if bundle.get(bundle.runtime, *place) is None and bundle.loose is None:
        fixes = (Fix(bundle.runtime, place, planned),) if planned else ()
        yield Problem(
            "request_timeout_ms is missing; Azure's default is 5 s.", _AGAIN, bundle.runtime, place, fixes=fixes
        )
    if timeout is not None and not 1 <= timeout <= cap:
        yield Problem(
            f"request_timeout_ms is {timeout}.",
            f"Azure takes at most {cap} for a {bundle.kind} endpoint.",
            bundle.runtime,
            place,
            fixes=(Fix(bundle.runtime, place, planned or cap),),
        )


def left_to_arm(bundle: Inspected) -> Iterator[Problem]:
    """Tell what a file that this program did not write leaves to ARM's defaults, which suit a small model only."""
    if bundle.loose is None or not _online(bundle):
        return
    for key, default, remedy in (
        ("request_timeout_ms", "5000", "the longest answer in milliseconds"),
        ("max_concurrent_requests_per_instance", "1", "how many requests the script answers at once"),
    ):
        if bundle.get(bundle.runtime, "request_settings", key) is None:
            message = f"{key} is left to Azure, whose default is {default}."
            yield Problem(
                message, f"Write request_settings.{key}: {remedy}.", bundle.runtime, ("request_settings", key)
            )


def queue_wait(bundle: Inspected) -> Iterator[Problem]:
    place = ("request_settings", "max_queue_wait_ms")
    if bundle.kind == "managed" and bundle.get(bundle.runtime, *place) is not None:
        yield Problem(
            "max_queue_wait_ms is deprecated for managed endpoints.",
            "Leave it out; raise request_timeout_ms if requests must wait longer.",
            bundle.runtime,
            place,
        )


def large_upload(bundle: Inspected) -> Iterator[Problem]:
    folder = bundle.model_folder
    size = weigh(folder) if folder else 0
    if size > limits.UPLOAD_BYTES:
        yield Problem(
            f"{size / limits.GB:.0f} GB of weights are uploaded by the client; such uploads are known to stall.",
            "Copy them with AzCopy, and write path: azureml://datastores/NAME/paths/PATH.",
            MODEL if bundle.readable(MODEL) else DEPLOYMENT,
            ("path",),
        )


def payload(bundle: Inspected) -> Iterator[Problem]:
    size = bundle.settings.limits.max_payload_bytes if bundle.settings and bundle.kind == "managed" else 0
    if size > limits.ENDPOINT_BYTES_PER_S:
        yield Problem(
            f"Requests of {size / 1e6:g} MB are allowed, and an endpoint carries"
            f" {limits.ENDPOINT_BYTES_PER_S / 1e6:g} MB a second for all its callers.",
            _AGAIN,
            SETTINGS,
        )


def concurrency(bundle: Inspected) -> Iterator[Problem]:
    place = ("request_settings", "max_concurrent_requests_per_instance")
    allowed = bundle.number(bundle.runtime, *place)
    limits_of = bundle.settings.limits if bundle.settings else None
    wanted = (limits_of.slots or limits_of.max_batch_size) if limits_of else 0
    absent = bundle.get(bundle.runtime, *place) is None and bundle.loose is not None  # told by `left_to_arm`
    if _online(bundle) and not absent and (allowed is None or allowed < 1):
        yield Problem(
            f"{place[1]} is {bundle.get(bundle.runtime, *place)!r}; Azure's default, 1, leaves nothing to batch.",
            _AGAIN if bundle.loose is None else "Write how many requests the script answers at once.",
            bundle.runtime,
            place,
            fixes=(Fix(bundle.runtime, place, wanted),) if wanted else (),
        )


def worker_timeout(bundle: Inspected) -> Iterator[Problem]:
    timeout = bundle.number(bundle.runtime, "request_settings", "request_timeout_ms")
    given = bundle.server["WORKER_TIMEOUT"]
    if not bundle.get(bundle.runtime, "code_configuration") or bundle.kind == "batch" or bundle.server_kind == "http":
        return  # a custom container, which need not run the inference server
    timeout = timeout and min(timeout, limits.MAX_REQUEST_TIMEOUT_MS)  # another rule refuses larger ones
    if timeout is not None and not (given.isdecimal() and int(given) * 1000 > timeout):
        yield Problem(
            f"WORKER_TIMEOUT is {given} s and a request may take {timeout / 1000:g} s:"
            " the server would kill its worker, which loads the model again.",
            "Raise WORKER_TIMEOUT above request_timeout_ms.",
            bundle.runtime,
            ("environment_variables", "WORKER_TIMEOUT"),
            fixes=(Fix(bundle.runtime, ("environment_variables", "WORKER_TIMEOUT"), _above(timeout)),),
        )


def _above(timeout_ms: int) -> str:
    """WORKER_TIMEOUT in seconds: the inference server's default, or a margin above the request's time."""
    return str(max(int(SERVER_DEFAULTS["WORKER_TIMEOUT"]), timeout_ms // 1000 + 30))


def workers(bundle: Inspected) -> Iterator[Problem]:
    count = bundle.server["WORKER_COUNT"]
    if count != "1":
        yield Problem(
            f"WORKER_COUNT is {count}: every worker is a process that loads the model again.",
            'Write "1"; threads take the requests, and batching uses the device.',
            bundle.runtime,
            ("environment_variables", "WORKER_COUNT"),
            fixes=(Fix(bundle.runtime, ("environment_variables", "WORKER_COUNT"), "1"),),
        )


def threads(bundle: Inspected) -> Iterator[Problem]:
    given = bundle.server.get("GUNICORN_CMD_ARGS", "")
    allowed = bundle.number(bundle.runtime, "request_settings", "max_concurrent_requests_per_instance") or 1
    found = re.search(r"--threads[ =](\d+)", given)
    count = int(found[1]) if found and "gthread" in given else 1
    arguments = f"--worker-class gthread --threads {allowed + PROBE_THREADS}"
    if count <= allowed and bundle.kind != "batch" and bundle.server_kind != "http":
        yield Problem(
            f"The server has {count} threads for {allowed} concurrent requests: probes would wait behind them.",
            f'Set GUNICORN_CMD_ARGS to "{arguments}".',
            bundle.runtime,
            ("environment_variables", "GUNICORN_CMD_ARGS"),
            fixes=(Fix(bundle.runtime, ("environment_variables", "GUNICORN_CMD_ARGS"), arguments),),
        )
